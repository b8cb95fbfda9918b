//! `littoral ca`: what the cluster's certificate authority does after `init`.

mod certificates;
mod invite;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use littoral::{Identity, Incarnation, NodeId};
use serde_json::json;

use super::{
    create_private_dir,
    init::{Node, configuration, given_address, random, refuse_existing},
    say, warn,
};
use crate::{authority::AuthorityHome, config, pki};

/// Issue, renew and revoke certificates of the cluster's authority, and invite nodes.
///
/// It works on the directory that `littoral init` made, with `ca/ca.pem` and `ca/ca.key`; nodes take up what
/// it writes into their directories while they run.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  littoral ca issue edge3 --cluster shop --dial origin=10.0.0.1:4400\n  \
    littoral ca list --cluster shop\n  littoral ca renew edge3 --cluster shop --days 365\n  \
    littoral ca revoke edge3 --cluster shop"
)]
pub(super) struct Ca {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Issue(Issue),
    Invite(invite::Invite),
    Serve(invite::Serve),
    List(certificates::List),
    Renew(certificates::Renew),
    Revoke(certificates::Revoke),
}

/// Make the directory of one more node: its certificate, its key and its configuration.
///
/// It is put beside those that `init` made. Copy it to the node's machine and run `littoral join` there.
/// Each call draws a new incarnation: so this is also how a node starts again that has lost its file.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  littoral ca issue edge3 --cluster shop\n  \
    littoral ca issue edge3 --cluster shop --address 10.0.0.3:4400,8080 --dial origin=10.0.0.1:4400\n  \
    littoral ca issue edge1 --cluster shop --dir shop/edge1-again")]
pub(super) struct Issue {
    /// The node's name.
    node: String,
    /// The directory that `littoral init` made, with `ca/ca.pem` and `ca/ca.key`.
    #[arg(long, value_name = "DIR", default_value = ".")]
    cluster: PathBuf,
    /// The directory to make; by default the node's name within the cluster's.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where links and clients are accepted; by default on loopback, at ports the system chooses.
    #[arg(long, value_name = "HOST:PORT[,HTTPPORT]")]
    address: Option<String>,
    /// Nodes to dial, so that `littoral serve` is enough; may be given more than once.
    #[arg(long, value_name = "NODE=HOST:PORT")]
    dial: Vec<String>,
    /// The node only applies and relays; nothing in the cluster waits for it.
    #[arg(long)]
    read_only: bool,
    /// For how many days the certificate is valid.
    #[arg(long, value_name = "N", default_value_t = pki::VALID_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

impl Ca {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Issue(issue) => issue.run(),
            Command::Invite(invite) => invite.run(),
            Command::Serve(serve) => serve.run(),
            Command::List(list) => list.run(),
            Command::Renew(renew) => renew.run(),
            Command::Revoke(revoke) => revoke.run(),
        }
    }
}

impl Issue {
    fn run(self) -> anyhow::Result<()> {
        let node = NodeId::new(&self.node)?;
        if self.node == "ca" {
            bail!("ca is the authority's directory; give the node another name");
        }
        let ca = AuthorityHome::open(&self.cluster)?;
        let home = self.dir.clone().unwrap_or_else(|| self.cluster.join(node.as_str()));
        refuse_existing(&home)?;
        warn_of_namesake(&ca, &node)?;
        self.write(&ca, node, &home)?;
        if self.json {
            return say(json!({
                "node": self.node,
                "directory": home,
                "config": home.join("littoral.toml"),
                "needs_peer": self.dial.is_empty(),
            }));
        }
        let home = home.display();
        if self.dial.is_empty() {
            say(format_args!("  littoral join {home} NODE=HOST:PORT"))
        } else {
            say(format_args!("  littoral serve --config {home}/littoral.toml"))
        }
    }

    fn write(&self, ca: &AuthorityHome, node: NodeId, home: &Path) -> anyhow::Result<()> {
        let given = given_address(&node, self.address.as_deref())?;
        let dials = self.dial.iter().map(|text| super::serve::dial(text));
        let dials = dials.collect::<Result<Vec<_>, _>>()?;
        let issued = ca.issue(&node, pki::days(self.days))?;
        let identity =
            Identity { cluster: ca.cluster(), node, incarnation: Incarnation(random()?) };
        let node = Node::place(identity, given, (0, 0));
        let made = tempfile::Builder::new().prefix(".littoral-issue-").tempdir_in(
            match home.parent() {
                Some(parent) if parent != Path::new("") => parent,
                _ => Path::new("."),
            },
        )?;
        let new = made.path().join("node");
        create_private_dir(&new)?;
        let bookmark_key = ca.furnish(&new, &issued.certificate)?;
        pki::write_private(&new.join("node.key"), &issued.key)?;
        let text = configuration(&node, bookmark_key, self.read_only, &dials);
        let path = new.join("littoral.toml");
        fs::write(&path, &text)?;
        // What is written here, serve must be able to read.
        config::Config::load(&path)?;
        fs::rename(&new, home).with_context(|| format!("cannot create {}", home.display()))
    }
}

/// Two nodes of one name are not told apart by those that dial them.
fn warn_of_namesake(ca: &AuthorityHome, node: &NodeId) -> anyhow::Result<()> {
    if let Some(days) = ca.days_left(node)? {
        warn(
            format_args!("{node} has a certificate already, valid for {days} days"),
            format_args!(
                "two nodes of one name must not run at once; if the first is gone, \
                 `littoral ca revoke {node}` and then this shut it out for good"
            ),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use littoral::ClusterId;

    use super::*;
    use crate::pki::Authority;

    #[test]
    fn an_issued_directory_is_one_that_serve_reads() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(ClusterId(0x77)).unwrap();
        AuthorityHome::create(&directory.path().join("ca"), authority).unwrap();
        let issue = |node: &str, read_only| {
            Issue {
                node: node.to_owned(),
                cluster: directory.path().to_owned(),
                dir: None,
                address: None,
                dial: vec!["origin=127.0.0.1:4400".to_owned()],
                read_only,
                days: 1,
                json: false,
            }
            .run()
        };
        issue("edge9", true).unwrap();
        let path = directory.path().join("edge9/littoral.toml");
        let config = config::Config::load(&path).unwrap();
        assert_eq!(config.identity.cluster, ClusterId(0x77));
        assert_eq!(config.links.dial[0].address, "127.0.0.1:4400");
        assert!(config.read_only);
        assert!(issue("edge9", false).is_err(), "an existing directory is left alone");
        assert!(issue("ca", false).is_err());
        issue("edge8", false).unwrap();
        let other = config::Config::load(&directory.path().join("edge8/littoral.toml")).unwrap();
        assert!(!other.read_only);
        assert_ne!(other.identity.incarnation, config.identity.incarnation);
    }
}
