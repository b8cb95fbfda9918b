//! `littoral init`: makes a cluster, as one directory for each node and one for the authority.
//!
//! Everything is made in a temporary directory beside the target and renamed at the end, so that a
//! failed `init` leaves nothing behind, and an existing cluster is never touched.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use littoral::{
    ClusterId, Genesis, Identity, Incarnation, MaxLag, NodeId, OnUnreachable, Replica, TablePolicy,
};
use serde_json::json;

use super::{Hinted, OrHint as _, create_private_dir, say};
use crate::{
    authority::{AuthorityHome, BOOKMARK_KEY},
    clock::Clock,
    config::{self, Dial, is_loopback},
    pki::{self, Authority},
};

/// Make a cluster: one directory for each node, and the certificate authority.
///
/// The directory of each node is to be copied to its machine; `ca` holds the authority's key, and is to be
/// kept somewhere safe. The first node is the origin, which alone changes the schema; the others dial it.
/// Nothing is overwritten.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    littoral init shop --schema schema.sql --nodes origin,edge1 --table cart:writers=any\n  \
    littoral init shop --schema schema.sql --policies policies.toml --nodes fra,nyc \\\n    \
    --address fra=10.0.0.1:4400,4401 --address nyc=10.0.1.1:4400,4401")]
pub(super) struct Init {
    /// The directory to make.
    directory: PathBuf,
    /// A file with the tables, as CREATE statements.
    #[arg(long, value_name = "FILE")]
    schema: PathBuf,
    /// A file with what the tables promise, as [tables.NAME] sections; see docs/schema.md.
    #[arg(long, value_name = "FILE")]
    policies: Option<PathBuf>,
    /// What one table promises, such as stock:writers=any,quantity=counter; may be given more than once.
    #[arg(long, value_name = "NAME:KEY=VALUE,...")]
    #[arg(
        long_help = "What one table promises; may be given more than once. Without it, only the origin writes the table.\n\
        Keys are policy, writers, key, max_lag_ms, on_stale and on_unreachable, as in a policies file; any other key is a \
        column and its merge type, for example stock:writers=any,quantity=counter"
    )]
    table: Vec<String>,
    /// The names of the nodes, the origin first.
    #[arg(long, value_delimiter = ',', required = true, value_name = "ORIGIN,EDGE,...")]
    nodes: Vec<String>,
    /// First port on 127.0.0.1; each node takes two, for links and for clients. 0 lets the system
    /// choose at every start, and leaves it to `serve --dial` to tell the edges.
    #[arg(long, default_value_t = 4400, value_name = "PORT")]
    listen_base: u16,
    /// Where a node is reached by the others, and the port for its clients on loopback; may be given
    /// more than once.
    #[arg(long, value_name = "NODE=HOST:PORT[,HTTPPORT]")]
    address: Vec<String>,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// One node to be.
pub(super) struct Node {
    identity: Identity,
    pub(super) links: SocketAddr,
    http: SocketAddr,
    /// What others dial; `None` if the port is not known yet.
    address: Option<String>,
}

impl Init {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let nodes = self.nodes()?;
        let policies = self.policies()?;
        let schema = fs::read_to_string(&self.schema)
            .with_context(|| format!("cannot read {}", self.schema.display()))?;
        let members =
            nodes.iter().map(|n| (n.identity.node.clone(), n.identity.incarnation)).collect();
        let genesis = Genesis { members, schema, policies };
        try_out(&nodes[0].identity, &genesis)?;

        refuse_existing(&self.directory)?;
        let parent = match self.directory.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        let made = tempfile::Builder::new()
            .prefix(".littoral-init-")
            .tempdir_in(parent)
            .with_context(|| format!("cannot write to {}", parent.display()))?;
        write_cluster(made.path(), &nodes, &genesis)?;
        fs::rename(made.path(), &self.directory)
            .with_context(|| format!("cannot create {}", self.directory.display()))?;
        // Renamed: there is nothing left to remove.
        let _ = made.keep();
        self.tell(&nodes)
    }

    fn tell(&self, nodes: &[Node]) -> anyhow::Result<()> {
        let cluster = nodes[0].identity.cluster.to_string();
        if self.json {
            let nodes = nodes.iter().map(|node| {
                let name = node.identity.node.as_str();
                json!({
                    "node": name,
                    "config": self.directory.join(name).join("littoral.toml"),
                    "links": node.links,
                    "http": node.http,
                })
            });
            return say(json!({
                "cluster": cluster,
                "nodes": nodes.collect::<Vec<_>>(),
                "ca_key": self.directory.join("ca/ca.key"),
            }));
        }
        let directory = self.directory.display();
        say(format_args!("cluster {cluster} is in {directory}"))?;
        for node in nodes {
            let name = &node.identity.node;
            say(format_args!("  littoral serve --config {directory}/{name}/littoral.toml"))?;
        }
        say(format_args!("keep {directory}/ca/ca.key somewhere safe; no node needs it"))
    }

    fn nodes(&self) -> anyhow::Result<Vec<Node>> {
        let cluster = ClusterId(random()?);
        let mut addresses = BTreeMap::new();
        for text in &self.address {
            let (node, address) = parse_address(text)?;
            if addresses.insert(node.clone(), address).is_some() {
                bail!("--address: {node} is given twice");
            }
        }
        let mut nodes: Vec<Node> = Vec::new();
        for (i, name) in self.nodes.iter().enumerate() {
            let node = NodeId::new(name).map_err(|error| anyhow!("--nodes: {error}"))?;
            if nodes.iter().any(|other| other.identity.node == node) || name == "ca" {
                bail!("--nodes: {name} cannot be used, or not twice");
            }
            let identity = Identity { cluster, node, incarnation: Incarnation(random()?) };
            let defaults = (self.default_port(2 * i)?, self.default_port(2 * i + 1)?);
            let given = addresses.remove(&identity.node);
            nodes.push(Node::place(identity, given, defaults));
        }
        if let Some(unknown) = addresses.keys().next() {
            bail!("--address: {unknown} is not among --nodes");
        }
        if nodes.iter().any(|node| !is_loopback(node.links.ip())) {
            nodes.iter_mut().for_each(Node::reach_other_machines);
        }
        Ok(nodes)
    }

    fn default_port(&self, offset: usize) -> anyhow::Result<u16> {
        if self.listen_base == 0 {
            return Ok(0);
        }
        u16::try_from(offset)
            .ok()
            .and_then(|offset| self.listen_base.checked_add(offset))
            .ok_or_else(|| anyhow!("--listen-base {}: ports end at 65535", self.listen_base))
    }

    fn policies(&self) -> anyhow::Result<BTreeMap<String, TablePolicy>> {
        let mut policies = match &self.policies {
            Some(path) => config::load_policies(path)?,
            None => BTreeMap::new(),
        };
        for text in &self.table {
            for (table, policy) in
                config::parse_policies(&table_section(text)?, Path::new("--table"))?
            {
                if policies.insert(table.clone(), policy).is_some() {
                    bail!("--table: {table} is declared twice");
                }
            }
        }
        Ok(policies)
    }
}

impl Node {
    /// A socket bound to loopback cannot.
    pub(super) fn reach_other_machines(&mut self) {
        self.links.set_ip(IpAddr::from([0, 0, 0, 0]));
    }

    pub(super) fn place(
        identity: Identity,
        given: Option<Address>,
        (links, http): (u16, u16),
    ) -> Self {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        match given {
            None => Self {
                identity,
                links: SocketAddr::new(loopback, links),
                http: SocketAddr::new(loopback, http),
                address: (links != 0).then(|| format!("127.0.0.1:{links}")),
            },
            Some(Address { host, port, http: http_port }) => {
                let local = host == "localhost" || host.parse().is_ok_and(is_loopback);
                let listen = if local { loopback } else { IpAddr::from([0, 0, 0, 0]) };
                Self {
                    identity,
                    links: SocketAddr::new(listen, port),
                    http: SocketAddr::new(loopback, http_port.unwrap_or(http)),
                    address: Some(format!("{host}:{port}")),
                }
            }
        }
    }
}

pub(super) struct Address {
    host: String,
    port: u16,
    http: Option<u16>,
}

fn parse_address(text: &str) -> anyhow::Result<(NodeId, Address)> {
    let (dialed, http) = match text.rsplit_once(',') {
        Some((dialed, http)) => {
            let port = http.parse().map_err(|_| anyhow!("--address {text}: {http} is no port"))?;
            (dialed, Some(port))
        }
        None => (text, None),
    };
    let dial = super::serve::dial(dialed).map_err(|error| anyhow!("--address {error}"))?;
    let (host, port) = dial
        .address
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse().ok()?)))
        .ok_or_else(|| anyhow!("--address {text}: expected NODE=HOST:PORT"))?;
    Ok((dial.node, Address { host: host.to_owned(), port, http }))
}

/// `NAME:KEY=VALUE,...` as the section of a policies file.
fn table_section(text: &str) -> anyhow::Result<String> {
    let malformed = || anyhow!("--table {text}: expected NAME:KEY=VALUE,...");
    let (table, settings) = text.split_once(':').ok_or_else(malformed)?;
    let mut section = format!("[tables.{}]\n", quoted(table));
    for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
        let (key, value) = setting.split_once('=').ok_or_else(malformed)?;
        let key = match key {
            "policy" | "writers" | "key" | "on_stale" | "on_unreachable" => key.to_owned(),
            "max_lag_ms" => {
                writeln!(section, "max_lag_ms = {value}")?;
                continue;
            }
            column => {
                check_merge_type(text, column, value)?;
                format!("columns.{}", quoted(column))
            }
        };
        writeln!(section, "{key} = {}", quoted(value))?;
    }
    Ok(section)
}

/// A setting whose name is misspelled is taken for a column, so the error names both.
fn check_merge_type(text: &str, column: &str, value: &str) -> anyhow::Result<()> {
    TablePolicy::default().declare_column(column, value).map_err(|unknown| {
        let error = anyhow!(
            "--table {text}: {column} is no setting, so it is taken for a column, and {value:?} is no \
             merge type of one"
        );
        let hint = format!("settings are {TABLE_KEYS}; merge types are {}", unknown.expected());
        anyhow::Error::new(Hinted { error, hint })
    })
}

/// What [`table_section`] takes for more than a column's name.
const TABLE_KEYS: &str = "policy, writers, key, max_lag_ms, on_stale and on_unreachable";

/// Begins the cluster in a scratch directory, so that a schema that cannot replicate is refused now.
pub(super) fn try_out(origin: &Identity, genesis: &Genesis) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let clock = Clock::start();
    let replica = Replica::builder(origin.clone())
        .genesis(genesis.clone())
        .open(&scratch.path().join("try.sqlite"), clock.now(), 0)
        .context("the cluster cannot begin like this")?;
    replica.close(clock.now()).1?;
    Ok(())
}

pub(super) fn refuse_existing(directory: &Path) -> anyhow::Result<()> {
    let first = fs::read_dir(directory).map(|mut entries| entries.next().is_some());
    match first {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Ok(false) => Ok(()),
        _ => Err(anyhow!("{} exists already", directory.display()))
            .or_hint("nothing is overwritten: choose another directory"),
    }
}

fn write_cluster(directory: &Path, nodes: &[Node], genesis: &Genesis) -> anyhow::Result<()> {
    let cluster = nodes[0].identity.cluster;
    let authority = Authority::create(cluster)?;
    let ca = AuthorityHome::create(&directory.join("ca"), authority)?;
    let bookmark_key = bookmark_key()?;
    ca.keep_bookmark_key(&bookmark_key)?;
    for (i, node) in nodes.iter().enumerate() {
        let home = directory.join(node.identity.node.as_str());
        create_private_dir(&home)?;
        let issued = ca.issue(&node.identity.node, pki::days(pki::VALID_DAYS))?;
        ca.furnish(&home, &issued.certificate)?;
        pki::write_private(&home.join("node.key"), &issued.key)?;
        let mut text = node_section(node, true);
        if i == 0 {
            fs::write(home.join("schema.sql"), &genesis.schema)?;
            text += &links_section(node, None);
            text += &genesis_section(genesis);
        } else {
            text += &links_section(node, Some(&nodes[0]));
        }
        let path = home.join("littoral.toml");
        fs::write(&path, &text)?;
        // What init writes, serve must be able to read.
        config::Config::load(&path)?;
    }
    Ok(())
}

fn node_section(node: &Node, has_bookmark_key: bool) -> String {
    let Identity { cluster, node: name, incarnation } = &node.identity;
    let http = node.http;
    let key = if has_bookmark_key {
        format!("# All nodes have the same one.\nbookmark_key = \"{BOOKMARK_KEY}\"\n")
    } else {
        String::new()
    };
    format!(
        "# Paths are relative to this file.\n\n\
         [node]\n\
         name = \"{name}\"\n\
         cluster = \"{cluster}\"\n\
         # This life of the node: never give it to a copy.\n\
         incarnation = \"{incarnation}\"\n\
         data = \"data.sqlite\"\n\n\
         [tls]\n\
         ca = \"ca.pem\"\n\
         certificate = \"node.pem\"\n\
         key = \"node.key\"\n\
         # What `littoral ca revoke` writes; copy it here when it changes.\n\
         revoked = \"revoked.pem\"\n\n\
         [http]\n\
         listen = \"{http}\"\n\
         {key}\n\
         [storage]\n\
         # \"full\": an answered commit is on disk. \"normal\": a power cut may lose the newest ones.\n\
         synchronous = \"full\"\n\n"
    )
}

/// The configuration of a node that is not there from the beginning.
pub(super) fn configuration(
    node: &Node,
    has_bookmark_key: bool,
    read_only: bool,
    dials: &[Dial],
) -> String {
    let mut text = node_section(node, has_bookmark_key);
    if read_only {
        text = text.replacen(
            "data = \"data.sqlite\"\n",
            "data = \"data.sqlite\"\n\
             # Applies and relays only: no member, and nothing waits for it.\n\
             read_only = true\n",
            1,
        );
    }
    text += &format!("[links]\nlisten = \"{}\"\n", node.links);
    let dials: Vec<String> = dials
        .iter()
        .map(|dial| format!("{{ node = \"{}\", address = {} }}", dial.node, quoted(&dial.address)))
        .collect();
    text += &format!("dial = [{}]\n", dials.join(", "));
    text
}

/// Where a node is reached, given as `HOST:PORT[,HTTPPORT]`.
pub(super) fn given_address(node: &NodeId, text: Option<&str>) -> anyhow::Result<Option<Address>> {
    let parse = |text| parse_address(&format!("{node}={text}")).map(|(_, address)| address);
    text.map(parse).transpose().map_err(|error| anyhow!("{error:#}"))
}

fn links_section(node: &Node, dialed: Option<&Node>) -> String {
    let mut text = format!("[links]\nlisten = \"{}\"\n", node.links);
    if let Some(other) = dialed {
        let name = &other.identity.node;
        text += &match &other.address {
            Some(address) => {
                format!("dial = [{{ node = \"{name}\", address = {} }}]\n", quoted(address))
            }
            None => {
                format!("# The port is not known yet: littoral serve --dial {name}=HOST:PORT\n")
            }
        };
    }
    text
}

fn genesis_section(genesis: &Genesis) -> String {
    let mut text = String::from(
        "\n# What the cluster begins with: checked at every start, used only while there is no database yet.\n\
         [genesis]\nschema = \"schema.sql\"\nmembers = [\n",
    );
    for (node, incarnation) in &genesis.members {
        text += &format!("  {{ node = \"{node}\", incarnation = \"{incarnation}\" }},\n");
    }
    text += "]\n";
    for (table, policy) in &genesis.policies {
        text += &format!(
            "\n[tables.{}]\npolicy = \"{}\"\nwriters = \"{}\"\n",
            key(table),
            policy.consistency,
            policy.writers
        );
        if policy.explicit_key {
            text += "key = \"explicit\"\n";
        }
        if let Some(MaxLag { ms, on_stale }) = policy.max_lag {
            text += &format!("max_lag_ms = {ms}\non_stale = \"{on_stale}\"\n");
        }
        if policy.on_unreachable != OnUnreachable::default() {
            text += &format!("on_unreachable = \"{}\"\n", policy.on_unreachable);
        }
        for column in policy.declared_columns() {
            let word = quoted(&policy.column_word(column));
            text += &format!("columns.{} = {word}\n", key(column));
        }
    }
    text
}

/// Text as a key of TOML, bare where that is possible.
fn key(text: &str) -> String {
    let bare = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare && !text.is_empty() { text.to_owned() } else { quoted(text) }
}

/// Text as a basic string of TOML, which differs from JSON's in one character.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\x7f', "\\u007f")
}

fn bookmark_key() -> anyhow::Result<String> {
    Ok(format!("{:032x}{:032x}\n", random()?, random()?))
}

pub(super) fn random() -> anyhow::Result<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| anyhow!("cannot draw a random number: {error}"))?;
    Ok(u128::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use littoral::{ColumnType, Consistency, Writers};

    use super::*;

    #[test]
    fn tables_may_be_declared_on_the_command_line() {
        let section = table_section(
            "stock:policy=eventual,writers=any,key=explicit,quantity=counter,aisle=group=place",
        )
        .unwrap();
        let policies = config::parse_policies(&section, Path::new("--table")).unwrap();
        let policy = &policies["stock"];
        assert_eq!((policy.consistency, policy.writers), (Consistency::Eventual, Writers::Any));
        assert!(policy.explicit_key);
        assert_eq!(policy.columns["quantity"], ColumnType::Counter);
        assert_eq!(policy.groups["aisle"], "place");
        assert!(table_section("stock").is_err());
        assert!(table_section("stock:writers").is_err());
    }

    #[test]
    fn what_init_writes_serve_reads() {
        let directory = tempfile::tempdir().unwrap();
        let identity = |name: &str, incarnation| Identity {
            cluster: ClusterId(7),
            node: NodeId::new(name).unwrap(),
            incarnation: Incarnation(incarnation),
        };
        let nodes = [
            Node::place(identity("origin", 1), None, (4400, 4401)),
            Node::place(identity("edge1", 2), None, (0, 0)),
        ];
        let policies = config::parse_policies(
            "[tables.\"a 'b' \\\"c\\\"\"]\nwriters = \"any\"\ncolumns.n = \"counter\"\n\
             columns.m = \"max\"\ncolumns.x = \"group=a 'b' \\\"c\\\"\"\n\
             [tables.old]\npolicy = \"eventual\"\nmax_lag_ms = 5000\non_stale = \"fail\"",
            Path::new("policies.toml"),
        )
        .unwrap();
        let members =
            nodes.iter().map(|n| (n.identity.node.clone(), n.identity.incarnation)).collect();
        let genesis = Genesis { members, schema: "-- none\n".to_owned(), policies };
        write_cluster(directory.path(), &nodes, &genesis).unwrap();

        let origin = config::Config::load(&directory.path().join("origin/littoral.toml")).unwrap();
        assert_eq!(origin.genesis, Some(genesis));
        assert_eq!(origin.identity, nodes[0].identity);
        let edge = config::Config::load(&directory.path().join("edge1/littoral.toml")).unwrap();
        assert_eq!(edge.links.dial[0].address, "127.0.0.1:4400");
        assert!(!pki::others_may_read(&directory.path().join("edge1/node.key")).unwrap());
        assert!(!pki::others_may_read(&directory.path().join("ca/ca.key")).unwrap());
    }

    #[test]
    fn an_existing_directory_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        assert!(refuse_existing(directory.path()).is_ok(), "an empty one may be used");
        fs::write(directory.path().join("a"), "").unwrap();
        assert!(refuse_existing(directory.path()).is_err());
    }

    #[test]
    fn addresses_name_node_host_and_ports() {
        let (node, address) = parse_address("edge1=example.org:4400,8080").unwrap();
        assert_eq!((node.as_str(), address.host.as_str()), ("edge1", "example.org"));
        assert_eq!((address.port, address.http), (4400, Some(8080)));
        assert!(parse_address("edge1=example.org").is_err());
        assert!(parse_address("edge1=example.org:1,x").is_err());
    }
}
