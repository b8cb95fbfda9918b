//! Three nodes in this process, with real links between them: an origin and two edges.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use littoral::{
    ClusterId, DatabaseDigest, Genesis, Identity, Incarnation, NodeId, Synchronous, VersionVector,
};
use tokio::time::sleep;

use super::dataset;
use crate::{
    NodeHandle,
    cli::init::random,
    config::{self, Config, Dial, Http, Links, Storage, Tls},
    node::Node,
    pki::{self, Authority},
};

const NAMES: [&str; 3] = ["origin", "edge1", "edge2"];
/// Much longer than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often conditions without news of their own are looked at again.
const POLL: Duration = Duration::from_millis(10);

/// The cluster, in the order of [`NAMES`].
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) nodes: [Node; 3],
}

/// Where each replica stands.
pub(super) type Digests = [DatabaseDigest; 3];

impl Cluster {
    /// Starts the nodes, and waits until both edges are members.
    pub(super) async fn start(directory: &Path) -> anyhow::Result<Self> {
        let cluster = ClusterId(random()?);
        let authority = Authority::create(cluster)?;
        let mut identities = Vec::new();
        for name in NAMES {
            let incarnation = Incarnation(random()?);
            identities.push(Identity { cluster, node: NodeId::new(name)?, incarnation });
        }
        let policies = config::parse_policies(dataset::POLICIES, Path::new("policies.toml"))?;
        let members = identities.iter().map(|i| (i.node.clone(), i.incarnation)).collect();
        let genesis = Genesis { members, schema: dataset::SCHEMA.to_owned(), policies };

        let mut nodes = Vec::new();
        let mut origin_address: Option<String> = None;
        let origin_name = identities[0].node.clone();
        for identity in identities {
            let home = directory.join(identity.node.as_str());
            let tls = install(&home, &authority, &identity.node)?;
            let dial = origin_address
                .iter()
                .map(|address| Dial { node: origin_name.clone(), address: address.clone() })
                .collect();
            let genesis = nodes.is_empty().then(|| genesis.clone());
            let node = Node::start(config(&home, identity, tls, dial, genesis)).await?;
            origin_address.get_or_insert_with(|| node.links_address().to_string());
            nodes.push(node);
        }
        let nodes = nodes.try_into().ok().context("three nodes were started")?;
        let this = Self { nodes };
        for node in &this.nodes {
            wait("a node to become a member", async || {
                let status = node.handle().status().await.context("the replica has ended")?;
                Ok(status.author.map(|_| ()))
            })
            .await?;
        }
        Ok(this)
    }

    pub(super) fn origin(&self) -> &NodeHandle {
        self.nodes[0].handle()
    }

    pub(super) fn edge1(&self) -> &NodeHandle {
        self.nodes[1].handle()
    }

    pub(super) fn edge2(&self) -> &NodeHandle {
        self.nodes[2].handle()
    }

    /// Waits until all nodes have applied the same entries, then compares every row; gives the digests
    /// and how long it took until they were equal.
    pub(super) async fn converge(&self) -> anyhow::Result<(Digests, Duration)> {
        let began = Instant::now();
        wait("the nodes to become equal", async || {
            let [a, b, c] = [self.vector(0).await?, self.vector(1).await?, self.vector(2).await?];
            if a != b || b != c {
                return Ok(None);
            }
            let digests = [self.digest(0).await?, self.digest(1).await?, self.digest(2).await?];
            let equal = digests[0] == digests[1] && digests[1] == digests[2];
            Ok(equal.then(|| (digests, began.elapsed())))
        })
        .await
    }

    async fn vector(&self, node: usize) -> anyhow::Result<VersionVector> {
        let status = self.nodes[node].handle().status().await.context("the replica has ended")?;
        Ok(status.vector)
    }

    async fn digest(&self, node: usize) -> anyhow::Result<DatabaseDigest> {
        Ok(self.nodes[node].handle().read(|reader| reader.digest()).await??)
    }

    /// Waits until a node has no link left.
    pub(super) async fn until_alone(&self, node: &NodeHandle) -> anyhow::Result<()> {
        wait("the links to be gone", async || {
            let status = node.status().await.context("the replica has ended")?;
            Ok(status.peers.is_empty().then_some(()))
        })
        .await
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        let [origin, edge1, edge2] = self.nodes;
        for node in [edge2, edge1, origin] {
            node.stop().await?;
        }
        Ok(())
    }
}

async fn wait<T>(
    what: &str,
    mut condition: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(value) = condition().await? {
            return Ok(value);
        }
        sleep(POLL).await;
    }
    bail!("waited {} s for {what}, in vain", PATIENCE.as_secs())
}

/// Makes a node's directory, with certificate and key.
fn install(home: &Path, authority: &Authority, node: &NodeId) -> anyhow::Result<Tls> {
    std::fs::create_dir(home)?;
    let issued = authority.issue(node)?;
    let tls = Tls {
        ca: home.join("ca.pem"),
        certificate: home.join("node.pem"),
        key: home.join("node.key"),
        revoked: None,
    };
    std::fs::write(&tls.ca, authority.certificate())?;
    std::fs::write(&tls.certificate, issued.certificate)?;
    pki::write_private(&tls.key, &issued.key)?;
    Ok(tls)
}

fn config(
    home: &Path,
    identity: Identity,
    tls: Tls,
    dial: Vec<Dial>,
    genesis: Option<Genesis>,
) -> Config {
    let any_port = ([127, 0, 0, 1], 0).into();
    Config {
        identity,
        database: home.join("data.sqlite"),
        links: Links { listen: any_port, dial },
        tls,
        http: Some(Http::on(any_port)),
        storage: Storage { synchronous: Synchronous::Full, ..Storage::default() },
        read_only: false,
        genesis,
    }
}
