//! `littoral ca list`, `ca renew`, `ca revoke`: the certificates that were issued.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use littoral::NodeId;
use serde_json::json;

use crate::{
    authority::{AuthorityHome, Certificate, DAY_S, REVOKED, now},
    cli::{OrHint as _, say},
    pki,
};

/// Show the certificates that were issued, and what they are worth.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  littoral ca list --cluster shop\n  \
    littoral ca list --cluster shop --json")]
pub(super) struct List {
    /// The directory that `littoral init` made.
    #[arg(long, value_name = "DIR", default_value = ".")]
    cluster: PathBuf,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Issue another certificate to a node, before its own expires.
///
/// It is for the key that the node has. The node's directory beside the authority's, if it is there, is
/// given the new one; if not, copy it over `node.pem` in the node's directory. A node that runs takes it up
/// within seconds, and keeps its links.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  littoral ca renew edge3 --cluster shop --days 365\n  \
    littoral ca renew edge3 --cluster shop --dir /srv/edge3 --new-key")]
pub(super) struct Renew {
    /// The node's name.
    #[arg(value_parser = NodeId::new)]
    node: NodeId,
    /// The directory that `littoral init` made.
    #[arg(long, value_name = "DIR", default_value = ".")]
    cluster: PathBuf,
    /// The node's directory; by default its name within the cluster's.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// For how many days it is valid.
    #[arg(long, value_name = "N", default_value_t = pki::VALID_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Make a new key, too. The node's directory is needed for that.
    #[arg(long)]
    new_key: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Shut a node out: its certificates are worth nothing any more.
///
/// They are put on the list `ca/revoked.pem`. Directories of nodes beside the authority's are given the new
/// list; copy it to all others. Nodes that run take it up within seconds: they close their links to the
/// node, and make none. `littoral ca issue` lets a node of that name in again, as a new one.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  littoral ca revoke edge3 --cluster shop\n  \
    littoral ca revoke edge3 --cluster shop --certificate edge3/node.pem")]
pub(super) struct Revoke {
    /// The node's name.
    #[arg(value_parser = NodeId::new)]
    node: NodeId,
    /// The directory that `littoral init` made.
    #[arg(long, value_name = "DIR", default_value = ".")]
    cluster: PathBuf,
    /// A certificate of the node, if the authority has not noted it.
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let issued = AuthorityHome::open(&self.cluster)?.issued()?;
        if self.json {
            let all: Vec<_> = issued
                .iter()
                .map(|Certificate { facts, revoked, .. }| {
                    json!({
                        "node": facts.node.as_str(),
                        "serial": facts.serial,
                        "not_before": facts.not_before,
                        "not_after": facts.not_after,
                        "revoked": revoked,
                    })
                })
                .collect();
            return say(json!(all));
        }
        let now = now();
        for Certificate { facts, revoked, .. } in &issued {
            let worth = match revoked {
                Some(_) => "revoked".to_owned(),
                None if facts.not_after < now => "expired".to_owned(),
                None => format!("valid for {} days", (facts.not_after - now) / DAY_S),
            };
            say(format_args!("{:<32}  {}  {worth}", facts.node, facts.serial))?;
        }
        Ok(())
    }
}

impl Renew {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let ca = AuthorityHome::open(&self.cluster)?;
        let home = self.dir.clone().unwrap_or_else(|| self.cluster.join(self.node.as_str()));
        let path = home.join("node.pem");
        let current = match fs::read_to_string(&path) {
            Ok(pem) => Some(pem),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.dir.is_none() => {
                None
            }
            Err(error) => return Err(anyhow!("cannot read {}: {error}", path.display())),
        };
        let mut issued = ca.issued()?;
        issued.retain(|one| one.facts.node == self.node);
        let is_revoked = |serial: &str| {
            issued.iter().any(|one| one.facts.serial == serial && one.revoked.is_some())
        };
        let revoked = match &current {
            None => !issued.is_empty() && issued.iter().all(|one| one.revoked.is_some()),
            Some(pem) => {
                let facts = pki::facts_of_pem(pem, ca.cluster())?;
                if facts.node != self.node {
                    bail!("{} is a certificate of {}", path.display(), facts.node);
                }
                is_revoked(&facts.serial)
            }
        };
        if revoked {
            bail!(
                "{node} was revoked, and a renewed certificate would let it in again; to have it back, \
                 make it a new node: littoral ca issue {node} --dir NEW",
                node = self.node
            );
        }
        let lifetime = pki::days(self.days);
        let renewed = if self.new_key {
            if current.is_none() {
                bail!(
                    "{} is not there: a new key is put into the node's directory",
                    path.display()
                );
            }
            let issued = ca.issue(&self.node, lifetime)?;
            pki::replace_private(&home.join("node.key"), &issued.key)?;
            issued.certificate
        } else {
            let noted = || {
                let newest = issued.into_iter().rfind(|one| one.revoked.is_none());
                newest.map(|one| one.pem).ok_or_else(|| self.unknown())
            };
            ca.renew(&current.map_or_else(noted, Ok)?, lifetime)?
        };
        let facts = pki::facts_of_pem(&renewed, ca.cluster())?;
        let noted = ca.noted_at(&facts);
        let in_place = path.exists();
        if in_place {
            pki::replace_private(&path, &renewed)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        if self.json {
            return say(json!({
                "node": self.node.as_str(),
                "serial": facts.serial,
                "not_after": facts.not_after,
                "certificate": if in_place { path } else { noted },
                "in_place": in_place,
            }));
        }
        if in_place {
            return say(format_args!("{} is valid for {} days", path.display(), self.days));
        }
        say(format_args!(
            "copy {} over node.pem in the directory of {}",
            noted.display(),
            self.node
        ))
    }

    fn unknown(&self) -> anyhow::Error {
        anyhow!("no certificate of {} is known; `littoral ca list` shows those that are", self.node)
    }
}

impl Revoke {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let ca = AuthorityHome::open(&self.cluster)?;
        let mut serials: Vec<String> = ca
            .issued()?
            .into_iter()
            .filter(|one| one.facts.node == self.node && one.revoked.is_none())
            .map(|one| one.facts.serial)
            .collect();
        if let Some(path) = &self.certificate {
            let pem = fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let facts = pki::facts_of_pem(&pem, ca.cluster())?;
            if facts.node != self.node {
                bail!("{} is a certificate of {}", path.display(), facts.node);
            }
            serials.push(facts.serial);
        }
        let withdrawn = ca.withdraw(&self.node)?;
        if withdrawn > 0 && !self.json {
            say(format_args!("its tokens to join with are taken back"))?;
        }
        if serials.is_empty() {
            return Err(anyhow!("no certificate of {} is known that is not revoked", self.node))
                .or_hint("`littoral ca list` shows those that are known; name another with --certificate");
        }
        let list = ca.revoke(&serials)?;
        let text = fs::read_to_string(&list)?;
        let given = give(&self.cluster, &text)?;
        if self.json {
            return say(json!({
                "node": self.node.as_str(),
                "revoked": serials,
                "tokens_taken_back": withdrawn,
                "list": list,
                "given_to": given,
            }));
        }
        say(format_args!("{} certificates of {} are revoked", serials.len(), self.node))?;
        for path in given {
            say(format_args!("  {}", path.display()))?;
        }
        say(format_args!(
            "copy {} over {REVOKED} in the directories of all other nodes",
            list.display()
        ))
    }
}

/// Gives the list to the nodes whose directories are beside the authority's.
fn give(cluster: &Path, list: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut given = Vec::new();
    for entry in fs::read_dir(cluster)? {
        let home = entry?.path();
        let path = home.join(REVOKED);
        if home.join("littoral.toml").exists() && path.exists() {
            pki::replace_private(&path, list)
                .with_context(|| format!("cannot write {}", path.display()))?;
            given.push(path);
        }
    }
    given.sort();
    Ok(given)
}
