//! `littoral ca invite` and `ca serve`: tokens with which machines make themselves nodes.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use littoral::NodeId;
use serde_json::json;

use super::warn_of_namesake;
use crate::{
    authority::{AuthorityHome, Invitation, Signer, now},
    cli::{
        say,
        serve::{Signals, dial},
        token::parse_time,
    },
    pki,
};

/// Make a token with which a machine makes itself one more node.
///
/// Whoever has the token can make a machine that node, once, by `littoral join DIR --token TOKEN`: so send
/// it as you would a password. `littoral ca serve` must run where the token says.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    littoral ca invite edge3 --cluster shop --at 10.0.0.9:4500 --dial origin=10.0.0.1:4400")]
pub(super) struct Invite {
    /// The node's name.
    #[arg(value_parser = NodeId::new)]
    node: NodeId,
    /// The directory that `littoral init` made.
    #[arg(long, value_name = "DIR", default_value = ".")]
    cluster: PathBuf,
    /// Where the machine that joins reaches `littoral ca serve`.
    #[arg(long, value_name = "HOST:PORT")]
    at: String,
    /// Nodes that the new one dials; may be given more than once.
    #[arg(long, value_name = "NODE=HOST:PORT", required = true)]
    dial: Vec<String>,
    /// For how long the token may be used: 90s, 15m, 12h or 30d.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_time)]
    expires: Duration,
    /// For how many days the certificate is valid.
    #[arg(long, value_name = "N", default_value_t = pki::VALID_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// The node only applies and relays; nothing in the cluster waits for it.
    #[arg(long)]
    read_only: bool,
    /// One JSON object instead of the token alone.
    #[arg(long)]
    json: bool,
}

/// Answer machines that join with a token, until SIGINT or SIGTERM.
///
/// It signs their certificates and needs the authority's key, so run it where that is kept, and only while
/// nodes are to join; no node needs it. Run one at a time.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  littoral ca serve --cluster shop --listen 10.0.0.9:4500\n  \
    littoral ca serve --cluster shop --listen 127.0.0.1:0 --json")]
pub(super) struct Serve {
    /// The directory that `littoral init` made.
    #[arg(long, value_name = "DIR", default_value = ".")]
    cluster: PathBuf,
    /// Where to listen, TCP.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Print the address as JSON.
    #[arg(long)]
    json: bool,
}

impl Invite {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if self.node.as_str() == "ca" {
            bail!("ca is the authority's directory; give the node another name");
        }
        // What is written here, the machine that joins must be able to read.
        self.dial.iter().try_for_each(|text| dial(text).map(drop))?;
        let at = format!("ca={}", self.at);
        dial(&at).with_context(|| format!("--at {}: expected HOST:PORT", self.at))?;
        let lifetime = i64::try_from(self.expires.as_secs())?;
        let invitation = Invitation::new(
            &self.node,
            now().saturating_add(lifetime),
            self.days,
            self.read_only,
            self.dial,
        );
        let ca = AuthorityHome::open(&self.cluster)?;
        warn_of_namesake(&ca, &self.node)?;
        let token = ca.invite(&self.at, &invitation)?;
        let text = token.to_text()?;
        if self.json {
            return say(json!({
                "token": text,
                "node": self.node.as_str(),
                "expires": invitation.expires,
                "ca_sha256": token.ca,
            }));
        }
        say(text)
    }
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let home = AuthorityHome::open(&self.cluster)?;
        let _only = home.lock()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut signals = Signals::new()?;
            let signer = Signer::bind(home, self.listen).await?;
            let address = signer.address()?;
            if self.json {
                say(json!({ "listen": address }))?;
            } else {
                say(format_args!("signing on {address}"))?;
            }
            tokio::select! {
                () = signer.run() => {}
                () = signals.next() => {}
            }
            Ok(())
        })
    }
}
