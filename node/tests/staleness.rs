//! What policies say of reads holds for programs that embed a node, too: bounds of lag, `origin-strong` tables,
//! and bookmarks.
#![allow(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use littoral::Genesis;
use littoral_node::{Config, Node, Place, ReadError, config::parse_policies};

use self::support::{Cluster, converge, dial_to, stop, until, write};

const SCHEMA: &str = "
    CREATE TABLE served (n INTEGER PRIMARY KEY);
    CREATE TABLE awaited (n INTEGER PRIMARY KEY);
    CREATE TABLE forwarded (n INTEGER PRIMARY KEY);
    CREATE TABLE failing (n INTEGER PRIMARY KEY);
    CREATE TABLE strong (n INTEGER PRIMARY KEY);
    CREATE TABLE plain (n INTEGER PRIMARY KEY);
    CREATE VIEW both AS SELECT plain.n FROM plain, failing;";
const POLICIES: &str = "
    [tables.served]
    policy = \"eventual\"
    max_lag_ms = 1500
    on_stale = \"serve\"
    [tables.awaited]
    policy = \"eventual\"
    max_lag_ms = 1500
    [tables.forwarded]
    policy = \"eventual\"
    max_lag_ms = 1500
    on_stale = \"forward\"
    [tables.failing]
    policy = \"eventual\"
    max_lag_ms = 1500
    on_stale = \"fail\"
    [tables.strong]
    policy = \"origin-strong\"";
const BOUND: Duration = Duration::from_millis(1500);

/// The configuration of the origin, with a schema of its own.
fn origin_of(cluster: &Cluster) -> Config {
    let mut config = cluster.config(0, Vec::new());
    let genesis = config.genesis.take().unwrap();
    let policies = parse_policies(POLICIES, Path::new("policies")).unwrap();
    config.genesis = Some(Genesis { schema: SCHEMA.to_owned(), policies, ..genesis });
    config
}

/// How many rows a table has at a node, read as an embedder reads: with a statement that stays prepared.
async fn count(node: &Node, table: &str) -> Result<i64, ReadError> {
    let sql = format!("SELECT count(*) FROM {table}");
    let read = node.handle().read(move |reader| {
        let mut query = reader.connection().prepare_cached(&sql).ok()?;
        query.query_row((), |row| row.get(0)).ok()
    });
    // What `read` does not tell of is no policy's.
    read.await.map(|counted: Option<i64>| counted.unwrap())
}

async fn admitted(node: &Node, table: &str) -> Result<Place, ReadError> {
    node.handle().admit(vec![format!("SELECT * FROM {table}")]).await
}

fn too_stale<T: std::fmt::Debug>(read: Result<T, ReadError>) -> bool {
    match read {
        Err(ReadError::TooStale(old)) => {
            assert_eq!(old.most, BOUND);
            assert!(old.lag.is_none_or(|lag| lag > BOUND), "{old}");
            true
        }
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_of_tables_hold_for_reads_in_process() {
    const TABLES: [&str; 4] = ["served", "awaited", "forwarded", "failing"];
    let cluster = Cluster::new(&["origin", "edge"]);
    let mut config = origin_of(&cluster);
    let origin = Node::start(config.clone()).await.unwrap();
    let edge = Node::start(cluster.config(1, vec![dial_to(&origin)])).await.unwrap();
    for table in TABLES.into_iter().chain(["plain"]) {
        write(&origin, &format!("INSERT INTO {table} VALUES(1)")).await.unwrap();
        assert_eq!(count(&origin, table).await.unwrap(), 1, "{table}");
    }
    converge(&[&origin, &edge]).await;
    // Fresh enough: all is answered here, and stays prepared.
    for table in TABLES.into_iter().chain(["both"]) {
        until("the edge to be new enough", async || match count(&edge, table).await {
            Ok(found) => found == 1,
            other => !too_stale(other) && panic!("{table}"),
        })
        .await;
    }
    until("all to be admitted", async || {
        let mut here = true;
        for table in TABLES {
            here &= matches!(admitted(&edge, table).await, Ok(Place::Here));
        }
        here
    })
    .await;

    // The origin is away for longer than that.
    let address = origin.links_address();
    origin.stop().await.unwrap();
    until("the edge to be too old", async || edge.handle().lag() > Some(BOUND)).await;
    assert_eq!(count(&edge, "served").await.unwrap(), 1);
    assert_eq!(count(&edge, "plain").await.unwrap(), 1);
    assert!(matches!(admitted(&edge, "served").await, Ok(Place::Here)));
    for table in ["failing", "both"] {
        assert!(too_stale(count(&edge, table).await), "{table}");
        assert!(too_stale(admitted(&edge, table).await), "{table}");
    }
    // There is no way to the origin from here.
    assert!(too_stale(count(&edge, "forwarded").await));
    assert!(matches!(admitted(&edge, "forwarded").await, Ok(Place::Origin(_))));
    let began = Instant::now();
    assert!(too_stale(count(&edge, "awaited").await));
    assert!(began.elapsed() > Duration::from_secs(4), "it waits: {:?}", began.elapsed());

    // What waits is answered when the origin is back.
    let (waited, origin) = tokio::join!(count(&edge, "awaited"), async {
        config.links.listen = address;
        Node::start(config).await.unwrap()
    });
    assert!(waited.is_err() || waited.is_ok_and(|found| found == 1));
    for table in TABLES.into_iter().chain(["both"]) {
        until("the edge to be new enough again", async || count(&edge, table).await.is_ok()).await;
    }
    stop(vec![origin, edge]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn origin_strong_tables_are_read_at_the_origin_only() {
    let cluster = Cluster::new(&["origin", "edge"]);
    let origin = Node::start(origin_of(&cluster)).await.unwrap();
    let edge = Node::start(cluster.config(1, vec![dial_to(&origin)])).await.unwrap();
    write(&origin, "INSERT INTO strong VALUES(1)").await.unwrap();
    converge(&[&origin, &edge]).await;
    assert_eq!(count(&origin, "strong").await.unwrap(), 1);
    match count(&edge, "strong").await {
        Err(ReadError::AtOrigin { table }) => assert_eq!(table, "strong"),
        other => panic!("{other:?}"),
    }
    assert_eq!(count(&edge, "plain").await.unwrap(), 0);
    stop(vec![origin, edge]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_in_process_waits_for_its_bookmark() {
    let cluster = Cluster::new(&["origin", "edge"]);
    let origin = Node::start(origin_of(&cluster)).await.unwrap();
    let edge = Node::start(cluster.config(1, vec![dial_to(&origin)])).await.unwrap();
    converge(&[&origin, &edge]).await;
    let read = |node: &Node, bookmark: &littoral::Bookmark, limit| {
        let (handle, bookmark) = (node.handle().clone(), bookmark.clone());
        async move {
            let sql = "SELECT count(*) FROM plain";
            let read = handle.read_at(&bookmark, limit, move |reader| {
                reader.connection().query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap()
            });
            read.await
        }
    };
    for n in 1..=20 {
        write(&origin, &format!("INSERT INTO plain VALUES({n})")).await.unwrap();
        let bookmark = origin.handle().bookmark().await.unwrap();
        assert_eq!(read(&edge, &bookmark, Duration::from_secs(60)).await.unwrap(), n);
    }
    // What cannot come is told.
    let config = cluster.config(1, vec![dial_to(&origin)]);
    edge.stop().await.unwrap();
    write(&origin, "INSERT INTO plain VALUES(21)").await.unwrap();
    let bookmark = origin.handle().bookmark().await.unwrap();
    origin.stop().await.unwrap();
    let edge = Node::start(config).await.unwrap();
    match read(&edge, &bookmark, Duration::from_millis(200)).await {
        Err(ReadError::BookmarkNotReached(_)) => {}
        other => panic!("{other:?}"),
    }
    stop(vec![edge]).await;
}
