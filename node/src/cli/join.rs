//! `littoral join`: runs a node that the cluster does not know yet, with a peer to begin with.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;
use littoral::Genesis;

use super::{
    init::quoted,
    serve::{Serve, dial},
};
use crate::config::{Config, Dial};

/// Makes a node part of a running cluster, and runs it until SIGINT or SIGTERM. The peer may be any
/// node of the cluster. If the configuration names no node to dial yet, this one is written there, so that
/// `littoral serve` dials it from then on.
#[derive(Debug, Args)]
pub(super) struct Join {
    /// The directory that `littoral ca issue` made.
    directory: PathBuf,
    /// Any node of the cluster.
    #[arg(value_name = "NODE=HOST:PORT")]
    peer: String,
    /// Print the addresses as JSON.
    #[arg(long)]
    json: bool,
}

impl Join {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let path = self.directory.join("littoral.toml");
        let config = Config::load(&path)?;
        if matches!(config.genesis, Some(Genesis { .. })) {
            bail!("{}: the origin of a cluster does not join one", path.display());
        }
        let peer: Dial = dial(&self.peer)?;
        if config.links.dial.is_empty() {
            remember(&path, &peer)?;
        }
        let serve = Serve { config: path, dial: Vec::new(), json: self.json };
        serve.serve(config, vec![peer]).await
    }
}

/// Writes the first node to dial into a configuration that was issued without one.
fn remember(path: &Path, peer: &Dial) -> anyhow::Result<()> {
    let text = fs::read_to_string(path)?;
    let dial =
        format!("\ndial = [{{ node = \"{}\", address = {} }}]\n", peer.node, quoted(&peer.address));
    let changed = text.replacen("\ndial = []\n", &dial, 1);
    if changed == text {
        // Somebody has written the file in another way, and keeps it so.
        tracing::warn!(
            peer = %peer.node,
            "name it under [links] in {}, or `littoral serve` will not dial it", path.display()
        );
        return Ok(());
    }
    let new = path.with_extension("toml.new");
    fs::write(&new, &changed).with_context(|| format!("cannot write {}", new.display()))?;
    // What is written here, serve must be able to read.
    Config::load(&new)?;
    fs::rename(&new, path).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_peer_is_written_down_and_a_configuration_of_ones_own_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("littoral.toml");
        let text = "[node]\nname = \"edge2\"\ncluster = \"000102030405060708090a0b0c0d0e0f\"\n\
                    incarnation = \"ffffffffffffffffffffffffffffffff\"\n\n\
                    [links]\nlisten = \"127.0.0.1:0\"\ndial = []\n\n\
                    [tls]\nca = \"ca.pem\"\ncertificate = \"node.pem\"\nkey = \"node.key\"\n";
        fs::write(&path, text).unwrap();
        let peer = dial("edge1=127.0.0.1:4402").unwrap();
        remember(&path, &peer).unwrap();
        assert_eq!(Config::load(&path).unwrap().links.dial, std::slice::from_ref(&peer));
        let own = text.replace("dial = []", "dial=[ ] # to come");
        fs::write(&path, &own).unwrap();
        remember(&path, &peer).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), own);
    }
}
