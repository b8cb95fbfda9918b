//! `littoral token`: keys and tokens for clients, for those who have no identity provider.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{OrHint as _, say};
use crate::{
    pki,
    token::{self, Access, Claims, Names},
};

/// Make keys and tokens for clients of nodes with [http.auth].
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  littoral token key --dir keys\n  \
    littoral token issue --key keys/token.key --read '*' --write cart --expires 12h")]
pub(super) struct Token {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Key(Key),
    Issue(Box<Issue>),
}

/// Make a key that signs tokens, and the public key that nodes check them with.
///
/// `token.key` signs tokens and belongs on no node; `token.pem` is for `http.auth.keys`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  littoral token key --dir keys")]
struct Key {
    /// Where to put them.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Sign a token. What is not granted here, nobody may do with it.
///
/// The token is printed; the commands of littoral take it from the variable LITTORAL_TOKEN. `*` in place of
/// names stands for every table.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    littoral token issue --key token.key --subject alice --read '*' --write cart --expires 12h")]
struct Issue {
    /// The private key that `littoral token key` made.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Who it is for (`sub`).
    #[arg(long)]
    subject: Option<String>,
    /// Who issues it (`iss`).
    #[arg(long)]
    issuer: Option<String>,
    /// Whom it is shown to (`aud`).
    #[arg(long)]
    audience: Option<String>,
    /// For how long it is valid: 90s, 15m, 12h or 30d.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_time)]
    expires: Duration,
    /// Tables and views that may be read, with commas between them.
    #[arg(long, value_name = "TABLE", value_delimiter = ',')]
    read: Vec<String>,
    /// Tables whose rows may be inserted, updated and deleted.
    #[arg(long, value_name = "TABLE", value_delimiter = ',')]
    write: Vec<String>,
    /// Tables whose rows may be inserted.
    #[arg(long, value_name = "TABLE", value_delimiter = ',')]
    insert: Vec<String>,
    /// Tables whose rows may be updated.
    #[arg(long, value_name = "TABLE", value_delimiter = ',')]
    update: Vec<String>,
    /// Tables whose rows may be deleted.
    #[arg(long, value_name = "TABLE", value_delimiter = ',')]
    delete: Vec<String>,
    /// Schema and policies may be changed, at the origin.
    #[arg(long)]
    schema: bool,
    /// The engine's own tables may be read.
    #[arg(long)]
    engine: bool,
    /// Status and metrics may be read, and the node told to verify and the like.
    #[arg(long)]
    operate: bool,
    /// One JSON object instead of the token alone.
    #[arg(long)]
    json: bool,
}

impl Token {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Key(key) => key.run(),
            Command::Issue(issue) => issue.run(),
        }
    }
}

impl Key {
    fn run(self) -> anyhow::Result<()> {
        let (private, public) = (self.dir.join("token.key"), self.dir.join("token.pem"));
        for path in [&private, &public] {
            if path.exists() {
                return Err(anyhow::anyhow!("{} exists already", path.display())).or_hint(
                    "a new key makes the tokens of the old one worthless; name another --dir",
                );
            }
        }
        let (key, certificate) = token::new_key()?;
        pki::write_private(&private, &key)?;
        fs::write(&public, certificate)
            .with_context(|| format!("cannot write {}", public.display()))?;
        if self.json {
            return say(json!({ "private": private, "public": public }));
        }
        say(format_args!("signs tokens, keep it to yourself: {}", private.display()))?;
        say(format_args!("checks them, for http.auth.keys:   {}", public.display()))
    }
}

impl Issue {
    fn run(self) -> anyhow::Result<()> {
        let key = read_private(&self.key)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let littoral = Access {
            read: Names::from_words(self.read),
            write: Names::from_words(self.write),
            insert: Names::from_words(self.insert),
            update: Names::from_words(self.update),
            delete: Names::from_words(self.delete),
            schema: self.schema,
            engine: self.engine,
            operate: self.operate,
        };
        if littoral == Access::default() {
            bail!(
                "the token would give nothing: name tables with --read and --write, or see --help"
            );
        }
        let claims = Claims {
            sub: self.subject,
            iss: self.issuer,
            aud: self.audience.map(serde_json::Value::String),
            exp: (now + self.expires).as_secs(),
            littoral,
        };
        let token = token::issue(&claims, &key)
            .with_context(|| format!("cannot sign with {}", self.key.display()))
            .or_hint("`littoral token key` makes a key that signs tokens")?;
        if self.json {
            return say(json!({ "token": token, "claims": claims }));
        }
        say(token)
    }
}

fn read_private(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path)
        .with_context(|| format!("cannot read {}", path.display()))
        .or_hint("`littoral token key` makes a key that signs tokens")
}

pub(super) fn parse_time(text: &str) -> Result<Duration, String> {
    let expected =
        || format!("{text:?}: expected a number with s, m, h or d behind it, such as 12h");
    let unit = text.chars().last().ok_or_else(expected)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(expected()),
    };
    let count: u32 = text[..text.len() - 1].parse().map_err(|_| expected())?;
    if count == 0 {
        return Err(expected());
    }
    Ok(Duration::from_secs(u64::from(count) * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(parse_time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("2d"), Ok(Duration::from_secs(172_800)));
        for text in ["", "h", "1", "0h", "-1h", "1.5h", "1w", "é"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
