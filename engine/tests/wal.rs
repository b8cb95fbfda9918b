//! The WAL stays short, though there may always be something in it that is not copied into the file yet.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use littoral::{Input, Output, TablePolicy, WriteTx, limits::WAL_CHECKPOINT_BYTES};
use support::Cluster;

/// Writes a row; tells whether the WAL is to be copied.
fn put(cluster: &mut Cluster) -> bool {
    let now = cluster.now_at(0);
    let job = |tx: &mut WriteTx<'_>| {
        tx.execute("INSERT INTO item(data) VALUES (randomblob(100000))", []).map(drop)
    };
    cluster.replica(0).write(now, Box::new(job));
    let mut is_due = false;
    loop {
        match cluster.replica(0).poll() {
            Output::WakeAt(_) => return is_due,
            Output::WalCheckpoint => is_due = true,
            Output::Sync(lsn) => cluster.replica(0).handle(now, Input::Synced(lsn)),
            Output::Done { result, .. } => drop(result.unwrap()),
            _ => {}
        }
    }
}

#[test]
fn a_wal_that_is_written_while_it_is_copied_begins_anew() {
    let schema = "CREATE TABLE item(id INTEGER PRIMARY KEY, data)";
    let mut cluster = Cluster::new(1, schema, &[("item", TablePolicy::default())]);
    let mut copies = 0;
    while copies < 6 {
        if !put(&mut cluster) {
            continue;
        }
        copies += 1;
        // What comes after the reader has begun is not copied, as what comes while the thread copies.
        let reader = cluster.replica(0).db().reader().unwrap();
        reader.connection().execute_batch("BEGIN; SELECT count(*) FROM item;").unwrap();
        put(&mut cluster);
        assert!(!cluster.replica(0).db().wal_checkpoint().unwrap(), "the reader holds it up");
        drop(reader);
        put(&mut cluster);
        cluster.handle(0, Input::WalCheckpointed);
    }
    let wal = cluster.dir.path().join("0.sqlite-wal");
    let bytes = std::fs::metadata(wal).unwrap().len();
    assert!(bytes < 2 * WAL_CHECKPOINT_BYTES, "{bytes}");
}
