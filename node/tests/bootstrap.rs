//! How long a node takes to join a large database, against copying the file with SQLite's backup.
//!
//! Run by hand: `cargo test --release --workspace --test bootstrap -- --ignored --nocapture`.
//! `LITTORAL_BOOTSTRAP_MB` sets the size, 300 by default.
#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use littoral_node::{Node, NodeHandle};
use rusqlite::{Connection, backup::Backup};

use self::support::{Cluster, converge, dial_to, stop, until};

/// The most memory this process has used, in KiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").trim().parse().unwrap_or(0)
}

/// Seconds of processor that threads of this process have used, by the threads' names.
fn processor() -> BTreeMap<String, f64> {
    let mut used = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let Some((name, rest)) = stat.split_once('(').and_then(|(_, it)| it.rsplit_once(") "))
        else {
            continue;
        };
        // Fields 14 and 15 of the line, in ticks of 10 ms.
        let ticks: f64 =
            rest.split(' ').skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
        *used.entry(name.to_owned()).or_default() += ticks / 100.0;
    }
    used
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

fn megabytes() -> usize {
    std::env::var("LITTORAL_BOOTSTRAP_MB").ok().and_then(|mb| mb.parse().ok()).unwrap_or(300)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long and measures"]
async fn a_large_database_is_joined_while_its_sponsor_goes_on_committing() {
    let cluster = Cluster::new(&["origin", "late"]).begin_with(1);
    let origin = Node::start(cluster.config(0, Vec::new())).await.unwrap();
    fill(origin.handle(), megabytes()).await;
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
    let idle = processor();
    let began = Instant::now();
    let late = Node::start(cluster.config(1, vec![dial_to(&origin)])).await.unwrap();
    until("the newcomer to be a member", async || {
        late.handle().status().await.unwrap().author.is_some()
    })
    .await;
    let joined = began.elapsed();
    let memory = peak_memory().saturating_sub(before) >> 10;
    writing.abort();
    println!("{size} MiB: joined in {joined:.2?}, copied by SQLite in {copied:.2?}");
    println!("figure bootstrap {:.2} 2", joined.as_secs_f64() / copied.as_secs_f64());
    println!("figure bootstrap-memory-mib-of-both-nodes {memory} 64");
    for (thread, seconds) in processor() {
        let seconds = seconds - idle.get(&thread).copied().unwrap_or(0.0);
        if seconds >= 0.05 {
            println!("  {thread:20} {seconds:6.2} s of processor");
        }
    }
    let nodes = vec![origin, late];
    converge(&nodes).await;
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long"]
async fn a_link_that_is_cut_half_way_goes_on_from_there() {
    let cluster = Cluster::new(&["origin", "late"]).begin_with(1);
    let origin = Node::start(cluster.config(0, Vec::new())).await.unwrap();
    fill(origin.handle(), megabytes()).await;
    let late = Node::start(cluster.config(1, vec![dial_to(&origin)])).await.unwrap();
    let received = async || late.handle().status().await.unwrap().receiving;
    let (before, size) = loop {
        if let Some((upto, size)) = received().await
            && upto * 2 >= size
        {
            break (upto, size);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    origin.suspend_links();
    until("the link to be cut", async || received().await.is_none()).await;
    origin.resume_links();
    until("the newcomer to be sent the rest", async || received().await.is_some()).await;
    let (upto, again) = received().await.unwrap_or((before, size));
    assert!(upto >= before && again == size, "{upto} of {again} after {before} of {size}");
    let mut sent = 0;
    until("the newcomer to be a member", async || {
        sent = sent.max(bytes_sent(&origin).await);
        late.handle().status().await.unwrap().author.is_some()
    })
    .await;
    println!("{before} of {size} bytes before the cut, at most {sent} seen to be sent after it");
    assert!(sent < size - before + (24 << 20), "{sent} bytes of {size} were sent after {before}");
    let nodes = vec![origin, late];
    converge(&nodes).await;
    stop(nodes).await;
}

/// Bytes that a node has sent on the link it has.
async fn bytes_sent(origin: &Node) -> u64 {
    let peers = origin.handle().status().await.unwrap().peers;
    peers.iter().map(|peer| peer.bytes_sent).max().unwrap_or(0)
}
