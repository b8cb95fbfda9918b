//! The commands and their shared rules: data goes to stdout, logs and errors to stderr; an error ends with a
//! line `hint:` where something can be done about it; every command has `--json`.

mod backup;
mod ca;
mod check_config;
mod client;
mod conflicts;
mod demo;
mod dump;
mod ending;
mod gc;
mod init;
mod join;
mod moment;
mod policy;
mod schema;
mod serve;
mod sql;
mod status;
mod table;
mod token;
mod verify;

use std::{
    fmt, fs,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{ArgAction, FromArgMatches as _, Parser, Subcommand};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use self::ending::{NotInOrder, warn};
use crate::{config::ConfigError, node::StartError, runtime::RuntimeError, transport::TlsError};

/// Edge data replication for SQLite: one file per node, a consistency policy per table.
#[derive(Debug, Parser)]
#[command(name = "littoral", version, after_help = EXAMPLES)]
struct Cli {
    /// Log more; twice for everything.
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 900)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  littoral demo                                      three nodes, on this machine
  littoral init shop --schema schema.sql --nodes origin,edge1 --table cart:writers=any
  littoral serve --config shop/origin/littoral.toml
  littoral sql --config shop/origin/littoral.toml -c \"SELECT * FROM cart\"

`littoral help COMMAND` tells all of a command; docs/start.md is a tutorial.";

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Init),
    Ca(ca::Ca),
    Token(token::Token),
    Join(join::Join),
    Serve(serve::Serve),
    Sql(sql::Sql),
    Status(status::Show),
    Conflicts(conflicts::Conflicts),
    Backup(backup::Backup),
    Dump(dump::Dump),
    CheckConfig(check_config::CheckConfig),
    Verify(verify::Verify),
    Schema(schema::Schema),
    Policy(policy::Policy),
    Gc(gc::Gc),
    Demo(demo::Demo),
}

/// Runs the command that the process's arguments ask for.
pub fn main() -> ExitCode {
    let parsed = ending::commands().try_get_matches();
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return ending::usage(&error),
    };
    start_logging(&cli);
    run(cli.command).map_or_else(|error| ending::report(&error), |()| ExitCode::SUCCESS)
}

fn run(command: Command) -> anyhow::Result<()> {
    let command = match command {
        Command::Init(init) => return init.run(),
        Command::Ca(ca) => return ca.run(),
        Command::Token(token) => return token.run(),
        Command::Backup(backup) => return backup.run(),
        Command::Dump(dump) => return dump.run(),
        Command::CheckConfig(check) => return check.run(),
        other => other,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("littoral-io")
        .build()?;
    runtime.block_on(async {
        match command {
            Command::Init(init) => init.run(),
            Command::Ca(ca) => ca.run(),
            Command::Token(token) => token.run(),
            Command::Backup(backup) => backup.run(),
            Command::Dump(dump) => dump.run(),
            Command::CheckConfig(check) => check.run(),
            Command::Conflicts(conflicts) => conflicts.run().await,
            Command::Join(join) => join.run().await,
            Command::Serve(serve) => serve.run().await,
            Command::Sql(sql) => sql.run().await,
            Command::Status(show) => show.run().await,
            Command::Verify(verify) => verify.run().await,
            Command::Schema(schema) => schema.run().await,
            Command::Policy(policy) => policy.run().await,
            Command::Gc(gc) => gc.run().await,
            Command::Demo(demo) => demo.run().await,
        }
    })
}

fn start_logging(cli: &Cli) {
    let serving = matches!(cli.command, Command::Serve(_) | Command::Join(_));
    let level = match (cli.verbose, serving) {
        (0, false) => LevelFilter::ERROR,
        (0, true) => LevelFilter::INFO,
        (1, _) => LevelFilter::DEBUG,
        (2.., _) => LevelFilter::TRACE,
    };
    let targets = Targets::new()
        .with_target("littoral", level)
        .with_target("littoral_node", level)
        .with_default(if cli.verbose > 1 { LevelFilter::DEBUG } else { LevelFilter::WARN });
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry().with(layer).with(targets).init();
}

/// Writes a line of output. A reader who has seen enough, as `head` has, ends the command quietly.
fn say(line: impl fmt::Display) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(ReaderGone))
        }
        other => Ok(other?),
    }
}

/// Whoever read our output has closed it.
#[derive(Debug, thiserror::Error)]
#[error("the output was closed")]
struct ReaderGone;

/// What to do about an error, if that is not in its text.
fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(Hinted { hint, .. }) = error.downcast_ref() {
        return Some(hint.clone());
    }
    let hint = match (error.downcast_ref::<ConfigError>(), error.downcast_ref::<StartError>()) {
        (Some(ConfigError::Read { .. }), _) => {
            "`littoral init` makes a directory with a configuration for each node"
        }
        (Some(ConfigError::Syntax { .. }), _) => {
            "the file that `littoral init` wrote shows the settings there are"
        }
        (_, Some(StartError::Runtime(RuntimeError::InUse(_)))) => {
            "stop the other process, or give this node a directory of its own"
        }
        (_, Some(StartError::Transport(crate::TransportError::Bind { .. })))
        | (_, Some(StartError::Http(crate::HttpError::Bind { .. }))) => {
            "is the node running already? port 0 lets the system choose a free one"
        }
        (
            _,
            Some(StartError::Transport(crate::TransportError::Tls(TlsError::KeyNotPrivate(_)))),
        ) => "chmod 600 the file",
        _ => return None,
    };
    Some(hint.to_owned())
}

/// An error that knows what can be done about it.
#[derive(Debug)]
struct Hinted {
    error: anyhow::Error,
    hint: String,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl std::error::Error for Hinted {}

/// Makes a directory that only its owner may enter.
pub(crate) fn create_private_dir(path: &Path) -> anyhow::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).with_context(|| format!("cannot create {}", path.display()))
}

/// An error and what can be done about it.
pub(crate) trait OrHint<T> {
    /// Says what can be done about an error.
    fn or_hint(self, hint: &str) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> OrHint<T> for Result<T, E> {
    fn or_hint(self, hint: &str) -> anyhow::Result<T> {
        self.map_err(|error| {
            anyhow::Error::new(Hinted { error: error.into(), hint: hint.to_owned() })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        ending::commands().debug_assert();
    }

    #[test]
    fn hints_survive_being_wrapped() {
        let error = Err::<(), _>(anyhow::anyhow!("it broke")).or_hint("mend it").unwrap_err();
        assert_eq!(error.to_string(), "it broke");
        assert_eq!(hint(&error.context("while trying")).as_deref(), Some("mend it"));
    }
}
