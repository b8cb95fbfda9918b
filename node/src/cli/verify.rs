//! `littoral verify`: compares a node's rows with those of a peer.

use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use clap::Args;
use hyper::Method;
use serde_json::Value;
use tokio::time::sleep;

use super::{NotInOrder, client::Target, say, status::shown};

/// How often the node is asked how far it is.
const POLL: Duration = Duration::from_millis(100);

/// A comparison that gets no further for this long is not waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Compare a node's rows with those of a peer, and mend what differs.
///
/// The peer is the origin if it is linked; both go on working. Rows that differ from the origin's are
/// mended; what was there before is listed in littoral_conflicts.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  littoral verify --config edge1/littoral.toml\n  \
    littoral verify --url http://127.0.0.1:4401 --json")]
pub(super) struct Verify {
    #[command(flatten)]
    target: Target,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        self.target.ask_for(Method::POST, "/verify").await?;
        let (mut last, mut since) = (Value::Null, Instant::now());
        let report = loop {
            let report = self.target.status().await?["verification"].take();
            if report["running"] == false {
                break report;
            }
            if report != last {
                (last, since) = (report, Instant::now());
            } else if since.elapsed() > PATIENCE {
                bail!(
                    "the comparison has stood still for {} s: is the node linked to another one? It goes \
                     on as soon as it can",
                    PATIENCE.as_secs()
                );
            }
            sleep(POLL).await;
        };
        let number = |name: &str| report[name].as_u64().unwrap_or_default();
        let (differing, repaired) = (number("differing"), number("repaired"));
        let undecided = number("undecided");
        if self.json {
            say(&report)?;
        } else {
            say(format_args!(
                "compared    {} rows with {}",
                report["rows"],
                shown(&report["with"])
            ))?;
            say(format_args!("different   {differing}"))?;
            say(format_args!("mended      {repaired}"))?;
            say(format_args!("undecided   {undecided}"))?;
        }
        if differing > repaired || undecided > 0 {
            let problem =
                anyhow!("not all rows are known to be right: {}", shown(&report["problem"]));
            return Err(NotInOrder::found(&problem));
        }
        Ok(())
    }
}
