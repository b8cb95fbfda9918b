//! `littoral policy`: what the policies of tables make of a statement.

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::json;

use super::{
    client::{Target, refused},
    say,
    status::{print_list, shown},
};

/// Explain what the policies of tables make of a statement.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  littoral policy explain --config edge1/littoral.toml \"SELECT * FROM stock\""
)]
pub(super) struct Policy {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell which tables a statement touches, under which policy, and whether it would run on the node
    /// now. It is not run.
    Explain(Explain),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  littoral policy explain --config edge1/littoral.toml \"SELECT * FROM stock\""
)]
struct Explain {
    #[command(flatten)]
    target: Target,
    /// Print all of it as JSON.
    #[arg(long)]
    json: bool,
    /// One statement.
    sql: String,
}

impl Policy {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Explain(explain) => explain.run().await,
        }
    }
}

impl Explain {
    async fn run(self) -> anyhow::Result<()> {
        let body = json!({ "sql": self.sql });
        let (code, answer) = self.target.ask(Method::POST, "/policy/explain", Some(&body)).await?;
        if !code.is_success() {
            return Err(refused(code, &answer));
        }
        if self.json {
            return say(&answer);
        }
        let runs = if answer["runs_here"] == true { "here" } else { "not here" };
        say(format_args!("{:<11} {runs}: {}", "runs", shown(&answer["why"])))?;
        say(format_args!("{:<11} {}", "policy", shown(&answer["policy"])))?;
        say(format_args!("{:<11} {}", "lag ms", shown(&answer["lag_ms"])))?;
        print_list(
            &answer["tables"],
            &[
                ("table", "table"),
                ("policy", "policy"),
                ("writers", "writers"),
                ("max lag ms", "max_lag_ms"),
                ("on stale", "on_stale"),
                ("on unreachable", "on_unreachable"),
                ("reads", "reads"),
                ("writes", "writes"),
            ],
        )
    }
}
