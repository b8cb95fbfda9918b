//! `littoral serve`: runs a node until it is told to stop.

use std::path::PathBuf;

use anyhow::{anyhow, bail};
use clap::Args;
use littoral::NodeId;
use serde_json::json;
use tracing::info;

use super::say;
use crate::{
    config::{Config, Dial},
    node::Node,
};

/// Run a node until SIGINT or SIGTERM, which end it in good order.
///
/// When it is up, one line on stdout says where links and clients are accepted. The log goes to stderr.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  littoral serve --config shop/origin/littoral.toml\n  \
    littoral serve --config shop/edge1/littoral.toml --dial origin=10.0.0.1:4400 --json")]
pub(super) struct Serve {
    /// The node's configuration.
    #[arg(long, value_name = "FILE")]
    pub(super) config: PathBuf,
    /// Dial one more node, besides those of the configuration; may be given more than once.
    #[arg(long, value_name = "NODE=HOST:PORT")]
    pub(super) dial: Vec<String>,
    /// Print the addresses as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

impl Serve {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let config = Config::load(&self.config)?;
        let dials: Vec<Dial> = self.dial.iter().map(|text| dial(text)).collect::<Result<_, _>>()?;
        self.serve(config, dials).await
    }

    /// Runs a node with these settings.
    pub(super) async fn serve(self, config: Config, dials: Vec<Dial>) -> anyhow::Result<()> {
        let mut signals = Signals::new()?;
        let has_tls = config.http.as_ref().is_some_and(|http| http.tls.is_some());
        let scheme = if has_tls { "https" } else { "http" };
        let node = Node::start(config).await?;
        for dial in dials {
            node.dial(dial);
        }
        self.announce(&node, scheme)?;
        let handle = node.handle().clone();
        let ended = tokio::select! {
            () = signals.next() => false,
            () = handle.ended() => true,
        };
        if ended {
            // Stopping tells why.
            node.stop().await?;
            bail!("the replica ended by itself");
        }
        info!("stopping");
        tokio::select! {
            stopped = node.stop() => stopped?,
            () = signals.next() => bail!("stopped by a second signal, without waiting"),
        }
        info!("stopped");
        Ok(())
    }

    fn announce(&self, node: &Node, scheme: &str) -> anyhow::Result<()> {
        let name = node.handle().identity().node.as_str();
        let links = node.links_address().to_string();
        let http = node.http_address().map(|address| format!("{scheme}://{address}"));
        if self.json {
            return say(json!({ "node": name, "links": links, "http": http }));
        }
        match http {
            Some(http) => say(format_args!("{name} is up: links on {links}, clients on {http}")),
            None => say(format_args!("{name} is up: links on {links}, no clients")),
        }
    }
}

/// `NODE=HOST:PORT`.
pub(super) fn dial(text: &str) -> anyhow::Result<Dial> {
    let parsed = text.split_once('=').and_then(|(node, address)| {
        let (host, port) = address.rsplit_once(':')?;
        let port: u16 = port.parse().ok()?;
        (!host.is_empty() && port != 0)
            .then(|| NodeId::new(node).ok())
            .flatten()
            .map(|node| Dial { node, address: address.to_owned() })
    });
    parsed
        .ok_or_else(|| anyhow!("{text}: expected NODE=HOST:PORT, for example origin=10.0.0.1:4400"))
}

/// SIGINT and SIGTERM.
pub(super) struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    /// From here on the signals do not kill the process.
    pub(super) fn new() -> std::io::Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Self {
                interrupt: signal(SignalKind::interrupt())?,
                terminate: signal(SignalKind::terminate())?,
            })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    pub(super) async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_to_dial_are_checked() {
        let dialed = dial("origin=[::1]:4400").unwrap();
        assert_eq!((dialed.node.as_str(), dialed.address.as_str()), ("origin", "[::1]:4400"));
        for text in ["origin", "origin=host", "origin=:1", "origin=host:0", "Origin=host:1", "=a:1"]
        {
            assert!(dial(text).is_err(), "{text}");
        }
    }
}
