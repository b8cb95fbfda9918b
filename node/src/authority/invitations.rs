//! [`Token`] and [`Invitation`]: who may join without anybody carrying a directory to them.
//!
//! A token holds a secret; the authority keeps its hash only, as the name of the file with the invitation.
//! An invitation is used up by the first key that it was shown with, for good: the file says which, and is
//! on disk before the certificate is given away. The same key may ask again, since an answer can be lost.

use std::{fmt, fs, io, path::PathBuf};

use anyhow::{Context as _, anyhow};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use littoral::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

use super::{AuthorityHome, now};
use crate::{cli::create_private_dir, pki};

const INVITATIONS: &str = "invitations";

/// Tells a token from everything else that is base64.
const PREFIX: &str = "littoral-join.";

/// What a machine that joins is given: where the authority listens, by which certificate it knows that it is
/// the authority, and a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Token {
    /// The version of tokens.
    v: u8,
    /// Which node it is for.
    pub(crate) node: String,
    /// The cluster, in hexadecimal.
    cluster: String,
    /// `HOST:PORT` of `littoral ca serve`.
    pub(crate) at: String,
    /// SHA-256 of the authority's certificate, in hexadecimal.
    pub(crate) ca: String,
    /// The secret, in hexadecimal.
    pub(crate) secret: String,
}

impl fmt::Debug for Token {
    /// Without the secret, so that it reaches no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("node", &self.node)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// As people copy it.
    pub(crate) fn to_text(&self) -> anyhow::Result<String> {
        Ok(Self::text_of(&serde_json::to_vec(self)?))
    }

    /// What people copy of a token that says this.
    pub(super) fn text_of(says: &[u8]) -> String {
        format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(says))
    }

    /// What was copied.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let malformed = || {
            anyhow!(
                "this is no token to join with, or not all of it: `littoral ca invite` makes them"
            )
        };
        let encoded = text.trim().strip_prefix(PREFIX).ok_or_else(malformed)?;
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(encoded).map_err(|_| malformed())?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|_| malformed())?;
        if token.v != 1 {
            return Err(anyhow!("the token is of version {}, and this program knows 1", token.v));
        }
        Ok(token)
    }

    /// The cluster.
    pub(crate) fn cluster(&self) -> anyhow::Result<ClusterId> {
        let number = u128::from_str_radix(&self.cluster, 16);
        number.map(ClusterId).map_err(|_| anyhow!("the token names no cluster"))
    }
}

/// Who may join, and what they are told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Invitation {
    /// The node's name.
    pub(crate) node: String,
    /// Until when, in seconds since 1970.
    pub(crate) expires: i64,
    /// For how many days its certificate is valid.
    pub(crate) days: u32,
    /// The node only applies and relays.
    pub(crate) read_only: bool,
    /// Nodes to dial, `NODE=HOST:PORT`.
    pub(crate) dial: Vec<String>,
    /// By which key it was used, hashed, and the certificate for it.
    pub(super) used: Option<Used>,
}

impl Invitation {
    /// One that nobody has used.
    pub(crate) fn new(
        node: &NodeId,
        expires: i64,
        days: u32,
        read_only: bool,
        dial: Vec<String>,
    ) -> Self {
        Self { node: node.to_string(), expires, days, read_only, dial, used: None }
    }
}

/// What an invitation was used for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Used {
    pub(super) key: String,
    pub(super) certificate: String,
}

impl AuthorityHome {
    /// Writes down an invitation, and gives the token for it. `at` is where `littoral ca serve` is reached.
    pub(crate) fn invite(&self, at: &str, invitation: &Invitation) -> anyhow::Result<Token> {
        self.forget_expired()?;
        let secret = pki::hex(&pki::random::<32>()?);
        let directory = self.directory.join(INVITATIONS);
        if !directory.exists() {
            create_private_dir(&directory)?;
        }
        self.keep(&secret, invitation)?;
        Ok(Token {
            v: 1,
            node: invitation.node.clone(),
            cluster: self.cluster.to_string(),
            at: at.to_owned(),
            ca: pki::fingerprint(self.authority.certificate())?,
            secret,
        })
    }

    /// The invitation that a secret is for, used or not, as long as it has not expired.
    pub(super) fn invitation(&self, secret: &str) -> anyhow::Result<Option<Invitation>> {
        let text = match fs::read_to_string(self.kept_at(secret)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("cannot read an invitation"),
        };
        let invitation: Invitation = serde_json::from_str(&text)?;
        Ok((invitation.expires > now()).then_some(invitation))
    }

    /// Writes an invitation down, as it is now. It is on disk when this returns.
    pub(super) fn keep(&self, secret: &str, invitation: &Invitation) -> anyhow::Result<()> {
        let path = self.kept_at(secret);
        pki::replace_private(&path, &serde_json::to_string(invitation)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Whoever knows the file's name does not know the secret, and whoever guesses at secrets learns nothing
    /// from how long it takes to find none.
    fn kept_at(&self, secret: &str) -> PathBuf {
        let hash = blake3::hash(secret.as_bytes()).to_hex();
        self.directory.join(INVITATIONS).join(format!("{hash}.json"))
    }

    /// Takes back the invitations of a node; gives how many there were that could still be used.
    pub(crate) fn withdraw(&self, node: &NodeId) -> anyhow::Result<usize> {
        let mut withdrawn = 0;
        for (path, invitation) in self.invitations()? {
            if invitation.node == node.as_str() {
                withdrawn += usize::from(invitation.expires > now() && invitation.used.is_none());
                fs::remove_file(path)?;
            }
        }
        Ok(withdrawn)
    }

    fn forget_expired(&self) -> anyhow::Result<()> {
        for (path, invitation) in self.invitations()? {
            if invitation.expires <= now() {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn invitations(&self) -> anyhow::Result<Vec<(PathBuf, Invitation)>> {
        let entries = match fs::read_dir(self.directory.join(INVITATIONS)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context("cannot read the invitations"),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "json") {
                let invitation = serde_json::from_str(&fs::read_to_string(&path)?)
                    .with_context(|| path.display().to_string())?;
                found.push((path, invitation));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_being_copied_and_its_secret_reaches_no_log() {
        let token = Token {
            v: 1,
            node: "edge3".to_owned(),
            cluster: ClusterId(7).to_string(),
            at: "10.0.0.1:4500".to_owned(),
            ca: "ab".repeat(32),
            secret: "cd".repeat(32),
        };
        let text = token.to_text().unwrap();
        assert_eq!(Token::parse(&format!(" {text}\n")).unwrap(), token);
        assert_eq!(token.cluster().unwrap(), ClusterId(7));
        assert!(!format!("{token:?}").contains("cdcd"));
        for wrong in ["", "littoral-join.", &text[1..], &text[..text.len() - 1]] {
            assert!(Token::parse(wrong).is_err(), "{wrong}");
        }
    }
}
