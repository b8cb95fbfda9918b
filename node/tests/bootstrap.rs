//! How long a node takes to join a large database, against copying the file with SQLite's backup.
//!
//! Run by hand: `cargo test --release -p littoral-node --test bootstrap -- --ignored --nocapture`.
//! `LITTORAL_BOOTSTRAP_MB` sets the size, 300 by default.
#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use std::time::{Duration, Instant};

use littoral_node::{Node, NodeHandle};
use rusqlite::{Connection, backup::Backup};

use self::support::{Cluster, converge, dial_to, stop, until};

/// The most memory this process has used, in KiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").trim().parse().unwrap_or(0)
}

async fn fill(origin: &NodeHandle, megabytes: usize) {
    for round in 0..megabytes / 4 {
        origin
            .write(move |tx| {
                let sql = format!(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
                     INSERT INTO places SELECT {round} || '-' || i, hex(randomblob(2000)) FROM n"
                );
                tx.execute(&sql, ()).map(drop)
            })
            .await
            .unwrap();
    }
}

fn backup(node: &Node) -> Duration {
    let source = Connection::open(node.database()).unwrap();
    let target = node.database().with_extension("backup");
    let mut copy = Connection::open(&target).unwrap();
    let began = Instant::now();
    Backup::new(&source, &mut copy).unwrap().run_to_completion(1024, Duration::ZERO, None).unwrap();
    let took = began.elapsed();
    drop(copy);
    std::fs::remove_file(target).unwrap();
    took
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long and measures"]
async fn a_large_database_is_joined_while_its_sponsor_goes_on_committing() {
    let megabytes =
        std::env::var("LITTORAL_BOOTSTRAP_MB").ok().and_then(|mb| mb.parse().ok()).unwrap_or(300);
    let cluster = Cluster::new(&["origin", "late"]).begin_with(1);
    let origin = Node::start(cluster.config(0, Vec::new())).await.unwrap();
    fill(origin.handle(), megabytes).await;
    let size = std::fs::metadata(origin.database()).unwrap().len() >> 20;
    let copied = backup(&origin).min(backup(&origin));

    let before = peak_memory();
    let writer = origin.handle().clone();
    let writing = tokio::spawn(async move {
        let mut written = 0;
        loop {
            let name = format!("meanwhile {written}");
            let sql = "INSERT INTO places VALUES (?, 'x')";
            if writer.write(move |tx| tx.execute(sql, [&name])).await.is_err() {
                return;
            }
            written += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let began = Instant::now();
    let late = Node::start(cluster.config(1, vec![dial_to(&origin)])).await.unwrap();
    until("the newcomer to be a member", async || {
        late.handle().status().await.unwrap().author.is_some()
    })
    .await;
    let joined = began.elapsed();
    let memory = peak_memory().saturating_sub(before) >> 10;
    writing.abort();
    println!(
        "{size} MiB: joined in {joined:.2?}, copied by SQLite in {copied:.2?}, ratio {:.2}; \
         {memory} MiB more at the peak for both nodes",
        joined.as_secs_f64() / copied.as_secs_f64()
    );
    let nodes = vec![origin, late];
    converge(&nodes).await;
    stop(nodes).await;
}
