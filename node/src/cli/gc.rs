//! `littoral gc explain`: what is kept of old changes, and for whom.

use clap::{Args, Subcommand};

use super::{
    client::Target,
    say,
    status::{heard, print_list, shown},
};

/// Explain what is kept of old changes, and for whom.
#[derive(Debug, Args)]
pub(super) struct Gc {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Explain(Explain),
}

/// Show which members hold the frontier back, since when, and what that costs.
///
/// Clocks, deletes and the log are kept until every member has said to have what they belong to: until the
/// frontier has passed it. A member that is away holds it back, and everybody keeps more.
#[derive(Debug, Args)]
struct Explain {
    #[command(flatten)]
    target: Target,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

impl Gc {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Command::Explain(explain) = self.command;
        explain.run().await
    }
}

impl Explain {
    async fn run(self) -> anyhow::Result<()> {
        let status = self.target.status().await?;
        let stability = &status["stability"];
        if self.json {
            return say(stability);
        }
        say(format_args!("frontier    {}", stability["frontier"]))?;
        say(format_args!("log         {} bytes of entries", stability["log_bytes"]))?;
        say(format_args!(
            "clocks      {} rows, {} bytes in memory",
            status["contested_rows"], stability["contested_bytes"]
        ))?;
        let held = &stability["held_back_by"];
        if held.as_array().is_none_or(Vec::is_empty) {
            return say(format_args!(
                "held back   by nobody, as far as {} has heard",
                shown(&status["node"])
            ));
        }
        print_list(
            &heard(&status),
            &[
                ("held back by", "node"),
                ("entries missing", "missing"),
                ("held since", "since"),
                ("last heard", "heard"),
            ],
        )
    }
}
