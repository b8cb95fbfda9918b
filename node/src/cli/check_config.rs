//! `littoral check-config`: everything that can be wrong with a configuration, told before a start.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::{NotInOrder, ReaderGone, init, say};
use crate::{
    config::{Config, ConfigError},
    http,
    runtime::{self, Found},
    transport,
};

/// Check a node's configuration, certificates, keys and the place of its database, without starting it.
///
/// Where the node is to begin its cluster, the tables and what they promise are tried out in a temporary
/// directory. The node's own files are only read, and it may run meanwhile.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  littoral check-config --config edge1/littoral.toml\n  \
    littoral check-config --config edge1/littoral.toml --json")]
pub(super) struct CheckConfig {
    /// The configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

impl CheckConfig {
    pub(super) fn run(self) -> anyhow::Result<()> {
        self.check().map_err(|error| match error.downcast_ref() {
            Some(ConfigError::Read { .. }) => error,
            _ if error.is::<ReaderGone>() => error,
            _ => NotInOrder::found(&error),
        })
    }

    fn check(&self) -> anyhow::Result<()> {
        let config = Config::load(&self.config)?;
        let (certificate, refused) = transport::check(&config.tls, &config.identity)?;
        if let Some(why) = refused {
            bail!("{}: peers refuse this node: {why}", config.tls.certificate.display());
        }
        if let Some(server) = &config.http {
            http::check(server)?;
        }
        let found = runtime::check(&config)?;
        if let (Found::Nothing, Some(genesis)) = (&found, &config.genesis) {
            init::try_out(&config.identity, genesis)?;
        }
        let clients = config.http.as_ref().map(|http| http.listen);
        let tokens = config.http.as_ref().is_some_and(|http| http.auth.is_some());
        if self.json {
            return say(json!({
                "node": config.identity.node.as_str(),
                "database": config.database,
                "database_is": match found {
                    Found::Nothing => "not there",
                    Found::Closed => "there",
                    Found::InUse => "in use",
                },
                "links": config.links.listen,
                "dials": config.links.dial.iter().map(|dial| dial.node.as_str()).collect::<Vec<_>>(),
                "http": clients,
                "tokens": tokens,
                "certificate_not_after": certificate.not_after,
                "begins_cluster": config.genesis.is_some(),
            }));
        }
        say(format_args!("node        {}", config.identity.node))?;
        let state = match found {
            Found::Nothing => "not there yet",
            Found::Closed => "there, of this node, and no older copy",
            Found::InUse => "there, and a node runs on it",
        };
        say(format_args!("database    {}: {state}", config.database.display()))?;
        say(format_args!("links       {}", config.links.listen))?;
        for dial in &config.links.dial {
            say(format_args!("dials       {} at {}", dial.node, dial.address))?;
        }
        match clients {
            None => say(format_args!("clients     none")),
            Some(listen) if tokens => say(format_args!("clients     {listen}, with a token")),
            Some(listen) => say(format_args!("clients     {listen}, whoever reaches it")),
        }
    }
}
