//! [`AuthorityHome`]: the directory of the cluster's authority, and what it notes there.
//!
//! | file | what |
//! | --- | --- |
//! | `ca.pem`, `ca.key` | the authority's certificate and key |
//! | `issued/NODE-SERIAL.pem` | every certificate that it has issued |
//! | `revoked.pem` | the list of those that are worth nothing any more, which every node is given |
//! | `bookmark.key` | the key of bookmarks, which every node is given |
//! | `invitations/HASH.json` | who may join with a token, see [`Invitation`] |
//!
//! The commands of `littoral ca` work on it; [`Signer`] serves machines that join with a token, and
//! [`ask_to_be_signed`] is what such a machine does.

#[cfg(test)]
mod fuzz;
mod invitations;
mod request;
mod signer;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, anyhow};
use littoral::{ClusterId, NodeId};

pub(crate) use self::{
    invitations::{Invitation, Token},
    request::{Unsigned, ask_to_be_signed, new_key},
    signer::Signer,
};
use crate::{
    cli::{OrHint as _, create_private_dir},
    pki::{self, Authority, Facts, Issued, Revoked, RevokedList},
};

/// The file with the key with which bookmarks are sealed.
pub(crate) const BOOKMARK_KEY: &str = "bookmark.key";

/// The list of revoked certificates, here and in the directories of nodes.
pub(crate) const REVOKED: &str = "revoked.pem";

const ISSUED: &str = "issued";

/// Seconds of a day.
pub(crate) const DAY_S: i64 = 24 * 60 * 60;

/// The directory of an authority.
#[derive(Debug)]
pub(crate) struct AuthorityHome {
    directory: PathBuf,
    cluster: ClusterId,
    authority: Authority,
}

/// A certificate that was issued.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) facts: Facts,
    pub(crate) pem: String,
    /// Since when it is revoked, in seconds since 1970.
    pub(crate) revoked: Option<i64>,
    /// When it was issued: certificates of one second may be for different keys.
    noted: SystemTime,
}

impl AuthorityHome {
    /// Makes the directory of a new authority.
    pub(crate) fn create(directory: &Path, authority: Authority) -> anyhow::Result<Self> {
        create_private_dir(directory)?;
        fs::write(directory.join("ca.pem"), authority.certificate())?;
        pki::write_private(&directory.join("ca.key"), &authority.key())?;
        create_private_dir(&directory.join(ISSUED))?;
        let cluster = pki::cluster_of(authority.certificate())?;
        let this = Self { directory: directory.to_owned(), cluster, authority };
        this.write_list(&RevokedList::default())?;
        Ok(this)
    }

    /// The authority in the directory that `littoral init` made.
    pub(crate) fn open(cluster_directory: &Path) -> anyhow::Result<Self> {
        let directory = cluster_directory.join("ca");
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let hint =
            "run it where the directory is that `littoral init` made, or name that with --cluster";
        let certificate = read("ca.pem").or_hint(hint)?;
        let key = read("ca.key").or_hint(hint)?;
        let cluster = pki::cluster_of(&certificate)?;
        let authority = Authority::from_pem(cluster, &certificate, &key)?;
        Ok(Self { directory, cluster, authority })
    }

    /// Keeps other processes from using invitations, for as long as the file lives.
    pub(crate) fn lock(&self) -> anyhow::Result<fs::File> {
        let path = self.directory.join("serve.lock");
        let file =
            fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => {
                Err(anyhow!("{} is served by another process", self.directory.display()))
            }
            Err(fs::TryLockError::Error(error)) => {
                Err(anyhow!("cannot lock {}: {error}", path.display()))
            }
        }
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Draws up a certificate with a new key, and notes it.
    pub(crate) fn issue(&self, node: &NodeId, lifetime: Duration) -> anyhow::Result<Issued> {
        let issued = self.authority.issue_for(node, lifetime)?;
        self.note(&issued.certificate)?;
        Ok(issued)
    }

    /// Draws up another certificate for the key of one, and notes it.
    pub(crate) fn renew(&self, certificate: &str, lifetime: Duration) -> anyhow::Result<String> {
        let renewed = self.authority.renew(certificate, lifetime)?;
        self.note(&renewed)?;
        Ok(renewed)
    }

    /// Draws up a certificate for somebody else's key, and notes it.
    fn sign(
        &self,
        node: &NodeId,
        request: &pki::SigningRequest,
        lifetime: Duration,
    ) -> anyhow::Result<String> {
        let certificate = self.authority.sign(node, request, lifetime)?;
        self.note(&certificate)?;
        Ok(certificate)
    }

    fn note(&self, certificate: &str) -> anyhow::Result<()> {
        let facts = pki::facts_of_pem(certificate, self.cluster)?;
        let directory = self.directory.join(ISSUED);
        if !directory.exists() {
            create_private_dir(&directory)?;
        }
        pki::write_private(&self.noted_at(&facts), certificate)
            .with_context(|| format!("cannot write to {}", directory.display()))
    }

    /// Where a certificate is noted.
    pub(crate) fn noted_at(&self, facts: &Facts) -> PathBuf {
        self.directory.join(ISSUED).join(format!("{}-{}.pem", facts.node, facts.serial))
    }

    pub(crate) fn keep_bookmark_key(&self, key: &str) -> anyhow::Result<()> {
        Ok(pki::write_private(&self.directory.join(BOOKMARK_KEY), key)?)
    }

    /// Puts into a new node's directory what all nodes have, and its certificate. Gives whether there is a
    /// key of bookmarks.
    pub(crate) fn furnish(&self, node: &Path, certificate: &str) -> anyhow::Result<bool> {
        fs::write(node.join("ca.pem"), self.authority.certificate())?;
        fs::write(node.join("node.pem"), certificate)?;
        fs::write(node.join(REVOKED), self.signed_list()?)?;
        let key = self.bookmark_key()?;
        if let Some(key) = &key {
            pki::write_private(&node.join(BOOKMARK_KEY), key)?;
        }
        Ok(key.is_some())
    }

    /// The list of revoked certificates, signed, PEM.
    fn signed_list(&self) -> anyhow::Result<String> {
        let path = self.directory.join(REVOKED);
        if !path.exists() {
            self.write_list(&RevokedList::default())?;
        }
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The key of bookmarks; a cluster that an earlier version made has none.
    fn bookmark_key(&self) -> anyhow::Result<Option<String>> {
        match fs::read_to_string(self.directory.join(BOOKMARK_KEY)) {
            Ok(key) => Ok(Some(key)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("cannot read the key of bookmarks"),
        }
    }

    /// All certificates that were issued, by node and age.
    pub(crate) fn issued(&self) -> anyhow::Result<Vec<Certificate>> {
        let list = self.list()?;
        let directory = self.directory.join(ISSUED);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(anyhow!("cannot read {}: {error}", directory.display()));
            }
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let (path, noted) = (entry.path(), entry.metadata()?.modified()?);
            if path.extension().is_none_or(|ending| ending != "pem") {
                continue;
            }
            let pem = fs::read_to_string(&path)?;
            let facts = pki::facts_of_pem(&pem, self.cluster)
                .with_context(|| path.display().to_string())?;
            let revoked = list.revoked.iter().find(|revoked| revoked.serial == facts.serial);
            let revoked = revoked.map(|revoked| revoked.at);
            found.push(Certificate { facts, pem, revoked, noted });
        }
        found.sort_by(|a, b| (&a.facts.node, a.noted).cmp(&(&b.facts.node, b.noted)));
        Ok(found)
    }

    /// For how many days certificates of a node are valid that are not revoked, if there are any.
    pub(crate) fn days_left(&self, node: &NodeId) -> anyhow::Result<Option<i64>> {
        let issued = self.issued()?;
        let valid = issued.iter().filter(|one| one.facts.node == *node && one.revoked.is_none());
        let seconds = valid.map(|one| one.facts.not_after - now()).filter(|left| *left > 0).max();
        Ok(seconds.map(|left| left / DAY_S))
    }

    /// The list of revoked certificates as it is.
    pub(crate) fn list(&self) -> anyhow::Result<RevokedList> {
        let path = self.directory.join(REVOKED);
        match fs::read_to_string(&path) {
            Ok(text) => pki::read_list(&text).with_context(|| path.display().to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(RevokedList::default()),
            Err(error) => Err(anyhow!("cannot read {}: {error}", path.display())),
        }
    }

    /// Puts certificates on the list; gives where the list is.
    pub(crate) fn revoke(&self, serials: &[String]) -> anyhow::Result<PathBuf> {
        let mut list = self.list()?;
        list.number += 1;
        let at = now();
        for serial in serials {
            if list.revoked.iter().all(|revoked| revoked.serial != *serial) {
                list.revoked.push(Revoked { serial: serial.clone(), at });
            }
        }
        self.write_list(&list)
    }

    fn write_list(&self, list: &RevokedList) -> anyhow::Result<PathBuf> {
        let path = self.directory.join(REVOKED);
        pki::replace_private(&path, &self.authority.sign_list(list)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
