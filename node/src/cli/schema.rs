//! `littoral schema`: a change of the schema that waits until all nodes have heard of it.

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::Value;

use super::{NotInOrder, client::Target, moment, say, status::shown};

/// Watch a change of the schema that waits for other nodes, or give it up.
///
/// The schema itself is changed with SQL, at the origin.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  littoral schema status --config origin/littoral.toml\n  \
    littoral schema abort --config origin/littoral.toml")]
pub(super) struct Schema {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show which change waits, since when, and for whom.
    Status(Show),
    /// Give the change up: its tables take writes again. At the origin only.
    Abort(Abort),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  littoral schema status --config origin/littoral.toml\n  \
    littoral schema status --url http://127.0.0.1:4401 --json")]
struct Show {
    #[command(flatten)]
    target: Target,
    /// Print it as JSON: null if nothing waits.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  littoral schema abort --config origin/littoral.toml")]
struct Abort {
    #[command(flatten)]
    target: Target,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

impl Schema {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Status(show) => show.run().await,
            Command::Abort(abort) => abort.run().await,
        }
    }
}

impl Show {
    async fn run(self) -> anyhow::Result<()> {
        let status = self.target.status().await?;
        let freeze = &status["freeze"];
        if self.json {
            say(freeze)?;
            return if freeze.is_null() { Ok(()) } else { Err(NotInOrder::shown()) };
        }
        say(format_args!("version     {}", status["schema"]))?;
        if freeze.is_null() {
            return say("no change waits");
        }
        say(format_args!("frozen      {}", names(&freeze["tables"])))?;
        let since = moment::shown(&freeze["since_ms"], &status);
        say(format_args!("since       {}", since.as_deref().unwrap_or("-")))?;
        say(format_args!("waiting for {}", names(&freeze["waiting_for"])))?;
        say(format_args!("change      {}", shown(&freeze["script"])))?;
        Err(NotInOrder::shown())
    }
}

impl Abort {
    async fn run(self) -> anyhow::Result<()> {
        let answer = self.target.ask_for(Method::POST, "/schema/abort").await?;
        if self.json { say(answer) } else { say("given up") }
    }
}

/// A list of names in one line.
fn names(list: &Value) -> String {
    let names: Vec<String> = list.as_array().into_iter().flatten().map(shown).collect();
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}
