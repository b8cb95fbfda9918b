//! `littoral join`: runs a node that the cluster does not know yet, with a peer to begin with.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use littoral::Genesis;

use super::serve::{Serve, dial};
use crate::config::{Config, Dial};

/// Makes a node part of a running cluster, and runs it until SIGINT or SIGTERM. The peer may be any
/// node of the cluster; it is written nowhere, so name it under [links] in the configuration to have it
/// dialed by `littoral serve` later.
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
        let serve = Serve { config: path, dial: Vec::new(), json: self.json };
        serve.serve(config, vec![peer]).await
    }
}
