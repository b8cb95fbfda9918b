//! One TOML file turned into [`Config`]: parsed once into types that cannot be wrong later.
//!
//! Paths in the file are relative to the directory that holds it. Unknown keys are errors, and so
//! are values out of bounds: the error names key, value and what is allowed.

#[cfg(test)]
mod fuzz;
mod http;
mod tables;

use self::{
    http::RawHttp,
    tables::{RawTable, resolve_tables},
};
pub use self::{
    http::{Auth, Http, HttpLimits, ServerTls},
    tables::{load_policies, parse_policies},
};

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use littoral::{
    ClusterId, Genesis, Identity, Incarnation, NodeId, Synchronous,
    limits::{MAX_ENTRY_BYTES, MAX_ENTRY_RANGE},
};
use serde::Deserialize;

/// Everything a node needs to know before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who the node is.
    pub identity: Identity,
    /// The SQLite file. Its directory must exist.
    pub database: PathBuf,
    /// Links to other nodes.
    pub links: Links,
    /// Certificate and key.
    pub tls: Tls,
    /// The HTTP server; `None` for a node that serves no clients.
    pub http: Option<Http>,
    /// How the database is used.
    pub storage: Storage,
    /// Whether the node only applies and relays: it never writes, and nothing waits for it.
    pub read_only: bool,
    /// What the cluster begins with: at the first origin only, and used only while the file is empty.
    pub genesis: Option<Genesis>,
}

/// Links to other nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Links {
    /// Where links are accepted; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Nodes to dial, and to dial again whenever no link to them is up.
    pub dial: Vec<Dial>,
}

/// A node to dial.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dial {
    /// Its name, which its certificate must carry.
    pub node: NodeId,
    /// `HOST:PORT`, resolved anew at every attempt.
    pub address: String,
}

/// Certificate and key, as PEM files. They are read again when they change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tls {
    /// The certificate of the cluster's authority.
    pub ca: PathBuf,
    /// The node's certificate.
    pub certificate: PathBuf,
    /// The node's private key; nobody but its owner may be able to read the file.
    pub key: PathBuf,
    /// The authority's list of revoked certificates; without it, none is.
    pub revoked: Option<PathBuf>,
}

/// How the database is used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Storage {
    /// When an answered commit is durable.
    pub synchronous: Synchronous,
    /// Read-only connections at most.
    pub readers: usize,
    /// The largest entry that a transaction may become, in bytes. It should be the same on all nodes.
    pub max_entry: u64,
}

impl Storage {
    /// The default of `readers`.
    pub const DEFAULT_READERS: usize = 8;
    const READERS_BOUNDS: (i64, i64) = (1, 256);
    const MAX_ENTRY_BOUNDS: (i64, i64) =
        (MAX_ENTRY_RANGE.start().cast_signed(), MAX_ENTRY_RANGE.end().cast_signed());
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            synchronous: Synchronous::Full,
            readers: Self::DEFAULT_READERS,
            max_entry: MAX_ENTRY_BYTES,
        }
    }
}

/// Why a configuration was refused. Nothing was started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file could not be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is the node's directory.
    #[error("{} is a directory; give the file in it, {}", .0.display(), .0.join("littoral.toml").display())]
    Directory(PathBuf),
    /// The file is not TOML, or has a key that is not known, or a value of the wrong type.
    #[error("{}: {error}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        error: Box<toml::de::Error>,
    },
    /// A value is not among those allowed.
    #[error("{key} = {value}: expected {expected}")]
    Value {
        /// The key, with the sections it is in.
        key: String,
        /// What the file says.
        value: String,
        /// What it may say.
        expected: String,
    },
    /// Two settings contradict each other.
    #[error("{0}")]
    Contradiction(String),
}

impl ConfigError {
    fn value(key: impl Into<String>, value: impl ToString, expected: impl Into<String>) -> Self {
        Self::Value { key: key.into(), value: value.to_string(), expected: expected.into() }
    }
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// Tells which file, key and value are wrong, and what is allowed.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        if path.is_dir() {
            return Err(ConfigError::Directory(path.to_owned()));
        }
        let text = read(path)?;
        let directory = path.parent().unwrap_or_else(|| Path::new(""));
        Self::parse(&text, path, directory)
    }

    /// Parses the text of a configuration file; `path` is for errors, `directory` what relative paths
    /// are relative to.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path, directory: &Path) -> Result<Self, ConfigError> {
        let raw: RawConfig = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            error: Box::new(error),
        })?;
        let identity = raw.node.identity()?;
        let genesis = match raw.genesis {
            Some(genesis) => Some(genesis.resolve(&identity, raw.tables, directory)?),
            None if raw.tables.is_empty() => None,
            None => {
                return Err(ConfigError::Contradiction(
                    "[tables] without [genesis]: policies are part of what the origin begins the \
                     cluster with, other nodes receive them"
                        .to_owned(),
                ));
            }
        };
        if raw.node.read_only && genesis.is_some() {
            return Err(ConfigError::Contradiction(
                "node.read_only = true with [genesis]: the origin writes".to_owned(),
            ));
        }
        Ok(Self {
            read_only: raw.node.read_only,
            database: directory.join(raw.node.data),
            links: raw.links.resolve(&identity.node)?,
            tls: raw.tls.resolve(directory),
            http: raw.http.map(|http| http.resolve(directory)).transpose()?,
            storage: raw.storage.unwrap_or_default().resolve()?,
            identity,
            genesis,
        })
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })
}

// --- The file as it is written.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    node: RawNode,
    links: RawLinks,
    tls: RawTls,
    http: Option<RawHttp>,
    storage: Option<RawStorage>,
    genesis: Option<RawGenesis>,
    #[serde(default)]
    tables: BTreeMap<String, RawTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    name: String,
    cluster: String,
    incarnation: String,
    #[serde(default = "default_database")]
    data: PathBuf,
    #[serde(default)]
    read_only: bool,
}

fn default_database() -> PathBuf {
    PathBuf::from("data.sqlite")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLinks {
    listen: String,
    #[serde(default)]
    dial: Vec<RawDial>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDial {
    node: String,
    address: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    revoked: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawStorage {
    synchronous: Option<String>,
    readers: Option<i64>,
    max_entry: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGenesis {
    schema: PathBuf,
    members: Vec<RawMember>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMember {
    node: String,
    incarnation: String,
}

// --- From what is written to what is meant.

impl RawNode {
    fn identity(&self) -> Result<Identity, ConfigError> {
        Ok(Identity {
            cluster: ClusterId(hex128("node.cluster", &self.cluster)?),
            node: node_name("node.name", &self.name)?,
            incarnation: Incarnation(hex128("node.incarnation", &self.incarnation)?),
        })
    }
}

impl RawLinks {
    fn resolve(self, me: &NodeId) -> Result<Links, ConfigError> {
        let dial = self.dial.into_iter().map(|dial| dial.resolve(me)).collect::<Result<_, _>>()?;
        Ok(Links { listen: socket_address("links.listen", &self.listen)?, dial })
    }
}

impl RawDial {
    fn resolve(self, me: &NodeId) -> Result<Dial, ConfigError> {
        let node = node_name("links.dial.node", &self.node)?;
        if node == *me {
            return Err(ConfigError::value("links.dial.node", node, "the name of another node"));
        }
        let well_formed = self.address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
        if !well_formed {
            return Err(ConfigError::value(
                "links.dial.address",
                quoted(&self.address),
                "HOST:PORT with a port from 1 to 65535",
            ));
        }
        Ok(Dial { node, address: self.address })
    }
}

impl RawTls {
    fn resolve(self, directory: &Path) -> Tls {
        Tls {
            ca: directory.join(self.ca),
            certificate: directory.join(self.certificate),
            key: directory.join(self.key),
            revoked: self.revoked.map(|path| directory.join(path)),
        }
    }
}

impl RawStorage {
    fn resolve(self) -> Result<Storage, ConfigError> {
        let synchronous = match self.synchronous.as_deref() {
            None | Some("full") => Synchronous::Full,
            Some("normal") => Synchronous::Normal,
            Some(other) => {
                return Err(ConfigError::value(
                    "storage.synchronous",
                    quoted(other),
                    "\"full\" or \"normal\"",
                ));
            }
        };
        let readers = match self.readers {
            None => Storage::DEFAULT_READERS,
            Some(n) => bounded("storage.readers", n, Storage::READERS_BOUNDS)?,
        };
        let max_entry = match self.max_entry {
            None => MAX_ENTRY_BYTES,
            Some(n) => bounded("storage.max_entry", n, Storage::MAX_ENTRY_BOUNDS)? as u64,
        };
        Ok(Storage { synchronous, readers, max_entry })
    }
}

impl RawGenesis {
    fn resolve(
        self,
        me: &Identity,
        tables: BTreeMap<String, RawTable>,
        directory: &Path,
    ) -> Result<Genesis, ConfigError> {
        let mut members: Vec<(NodeId, Incarnation)> = Vec::new();
        for member in self.members {
            let node = node_name("genesis.members.node", &member.node)?;
            let incarnation = hex128("genesis.members.incarnation", &member.incarnation)?;
            if members.iter().any(|(known, _)| *known == node) {
                return Err(ConfigError::value("genesis.members.node", node, "each node once"));
            }
            members.push((node, Incarnation(incarnation)));
        }
        if members.first() != Some(&(me.node.clone(), me.incarnation)) {
            return Err(ConfigError::Contradiction(format!(
                "genesis.members must begin with the origin, which is this node: {} with \
                 incarnation {}",
                me.node, me.incarnation
            )));
        }
        let path = directory.join(self.schema);
        let schema = fs::read_to_string(&path).map_err(|error| {
            let expected = format!("a file that can be read, but: {error}");
            ConfigError::value("genesis.schema", path.display(), expected)
        })?;
        Ok(Genesis { members, schema, policies: resolve_tables(tables)? })
    }
}

pub(crate) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn node_name(key: &str, name: &str) -> Result<NodeId, ConfigError> {
    NodeId::new(name).map_err(|_| {
        ConfigError::value(
            key,
            quoted(name),
            "1 to 32 lowercase letters, digits and hyphens, beginning with a letter",
        )
    })
}

fn hex128(key: &str, text: &str) -> Result<u128, ConfigError> {
    let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    match u128::from_str_radix(text, 16) {
        Ok(number) if digits => Ok(number),
        _ => Err(ConfigError::value(key, quoted(text), "32 hexadecimal digits, as `init` wrote")),
    }
}

fn socket_address(key: &str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| {
        ConfigError::value(key, quoted(text), "IP:PORT, for example \"127.0.0.1:4400\"")
    })
}

fn bounded(key: &str, n: i64, (least, most): (i64, i64)) -> Result<usize, ConfigError> {
    match usize::try_from(n) {
        Ok(size) if (least..=most).contains(&n) => Ok(size),
        _ => Err(ConfigError::value(key, n, format!("{least} to {most}"))),
    }
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDGE: &str = r#"
        [node]
        name = "edge1"
        cluster = "000102030405060708090a0b0c0d0e0f"
        incarnation = "ffffffffffffffffffffffffffffffff"

        [links]
        listen = "127.0.0.1:0"
        dial = [{ node = "origin", address = "localhost:4400" }]

        [tls]
        ca = "ca.pem"
        certificate = "node.pem"
        key = "node.key"
    "#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("littoral.toml"), Path::new("/srv/edge1"))
    }

    fn error(extra: &str) -> String {
        parse(&format!("{EDGE}\n{extra}")).unwrap_err().to_string()
    }

    #[test]
    fn an_edge_needs_only_identity_links_and_tls() {
        let config = parse(EDGE).unwrap();
        assert_eq!(config.identity.node.as_str(), "edge1");
        assert_eq!(config.database, Path::new("/srv/edge1/data.sqlite"));
        assert_eq!(config.tls.key, Path::new("/srv/edge1/node.key"));
        assert_eq!(config.links.dial[0].address, "localhost:4400");
        assert_eq!(config.storage, Storage::default());
        assert!(config.http.is_none() && config.genesis.is_none());
    }

    #[test]
    fn unknown_keys_are_named() {
        let message = error("[http]\nlisten = \"127.0.0.1:0\"\nport = 1");
        assert!(message.contains("port") && message.contains("listen"), "{message}");
    }

    #[test]
    fn values_out_of_bounds_are_named_with_their_bounds() {
        let message = error("[http]\nlisten = \"127.0.0.1:0\"\nmax_body_bytes = 3");
        assert_eq!(message, "http.max_body_bytes = 3: expected 65536 to 1073741824");
        let message = error("[storage]\nreaders = 0");
        assert_eq!(message, "storage.readers = 0: expected 1 to 256");
        let message = error("[storage]\nsynchronous = \"off\"");
        assert!(message.contains("storage.synchronous = \"off\""), "{message}");
    }

    #[test]
    fn clients_from_outside_need_the_word_of_the_owner() {
        let message = error("[http]\nlisten = \"0.0.0.0:80\"");
        assert!(message.contains("allow_unauthenticated"), "{message}");
        let config = "[http]\nlisten = \"0.0.0.0:80\"\nallow_unauthenticated = true";
        assert!(parse(&format!("{EDGE}\n{config}")).unwrap().http.is_some());
    }

    #[test]
    fn bad_names_numbers_and_addresses_are_refused() {
        for (good, bad) in [
            ("\"edge1\"", "\"Edge 1\""),
            ("000102030405060708090a0b0c0d0e0f", "00"),
            ("ffffffffffffffffffffffffffffffff", "+fffffffffffffffffffffffffffffff"),
            ("127.0.0.1:0", "localhost:0"),
            ("localhost:4400", "localhost"),
            ("localhost:4400", "localhost:0"),
            ("\"origin\"", "\"edge1\""),
        ] {
            let text = EDGE.replacen(good, bad, 1);
            assert!(matches!(parse(&text), Err(ConfigError::Value { .. })), "{bad}");
        }
    }

    #[test]
    fn policies_belong_to_the_origin() {
        assert!(error("[tables.carts]\nwriters = \"any\"").contains("[genesis]"));
    }
}
