//! Tokens of clients: JSON Web Tokens (RFC 7519) that say who somebody is and what they may do.
//!
//! A token without the claim `littoral` is nobody's who may do anything: what is not granted is refused.

mod crypto;
mod verifier;

use littoral::{Grants, TableSet};
use serde::{Deserialize, Serialize};

pub(crate) use self::verifier::{KeyError, Refused, Verifier};

/// What a token says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    /// Who it was issued to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sub: Option<String>,
    /// Who issued it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) iss: Option<String>,
    /// Whom it is for; the verifier has compared it already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) aud: Option<serde_json::Value>,
    /// When it expires, in seconds since 1970.
    pub(crate) exp: u64,
    /// What it gives.
    #[serde(default)]
    pub(crate) littoral: Access,
}

/// The claim `littoral`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Access {
    /// Tables and views that may be read.
    #[serde(skip_serializing_if = "Names::is_empty")]
    pub(crate) read: Names,
    /// Tables whose rows may be inserted, updated and deleted.
    #[serde(skip_serializing_if = "Names::is_empty")]
    pub(crate) write: Names,
    /// Tables whose rows may be inserted.
    #[serde(skip_serializing_if = "Names::is_empty")]
    pub(crate) insert: Names,
    /// Tables whose rows may be updated.
    #[serde(skip_serializing_if = "Names::is_empty")]
    pub(crate) update: Names,
    /// Tables whose rows may be deleted.
    #[serde(skip_serializing_if = "Names::is_empty")]
    pub(crate) delete: Names,
    /// Schema and policies may be changed.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) schema: bool,
    /// The engine's own tables may be read.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) engine: bool,
    /// Status and metrics may be read, and the node told to verify and the like.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) operate: bool,
}

/// Names of tables: `"*"` or `["orders", "items"]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Names {
    /// These.
    Some(Vec<String>),
    /// `"*"`: all.
    All(Star),
}

/// The text `*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Star {
    /// `*`.
    #[serde(rename = "*")]
    Star,
}

impl Default for Names {
    fn default() -> Self {
        Self::Some(Vec::new())
    }
}

impl Names {
    /// From the words of a command line; `*` stands for all.
    pub(crate) fn from_words(words: Vec<String>) -> Self {
        if words.iter().any(|word| word == "*") { Self::All(Star::Star) } else { Self::Some(words) }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Some(names) if names.is_empty())
    }

    /// The tables of this and of another right.
    fn with(&self, other: &Self) -> TableSet {
        match (self, other) {
            (Self::Some(these), Self::Some(those)) => {
                let names: Vec<&String> = these.iter().chain(those).collect();
                if names.is_empty() { TableSet::None } else { TableSet::named(names) }
            }
            _ => TableSet::All,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Access {
    /// What the engine is to allow.
    pub(crate) fn grants(&self) -> Grants {
        Grants {
            read: self.read.with(&Names::default()),
            insert: self.insert.with(&self.write),
            update: self.update.with(&self.write),
            delete: self.delete.with(&self.write),
            schema: self.schema,
            engine: self.engine,
        }
    }
}

/// Signs claims with a private key in PEM, made by [`new_key`].
pub(crate) fn issue(claims: &Claims, private_key: &[u8]) -> Result<String, KeyError> {
    crypto::install();
    let broken = |error: jsonwebtoken::errors::Error| KeyError::Key(error.to_string());
    let key = jsonwebtoken::EncodingKey::from_ed_pem(private_key).map_err(broken)?;
    let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA);
    jsonwebtoken::encode(&header, claims, &key).map_err(broken)
}

/// A new Ed25519 key: the private one and the public one, both in PEM.
pub(crate) fn new_key() -> Result<(String, String), KeyError> {
    let broken = |error: rcgen::Error| KeyError::Key(error.to_string());
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(broken)?;
    Ok((pair.serialize_pem(), pair.public_key_pem()))
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
