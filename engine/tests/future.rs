//! Wrong clocks: entries from the future wait, and so does all behind them, until the time has come.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use std::time::Duration;

use littoral::{Hold, HoldReason, WriteError};

use support::{Cluster, any};

const SCHEMA: &str = "
    CREATE TABLE cart(id TEXT PRIMARY KEY NOT NULL, qty INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE orders(id INTEGER PRIMARY KEY, note TEXT);
";
const MINUTE: i64 = 60_000;

/// Members that have been linked and are not any more, so that nobody knows what time it is at the
/// origin: replicas start anew.
fn strangers(nodes: usize) -> Cluster {
    let mut cluster = support::linked(nodes, SCHEMA, &[("cart", any())]);
    cluster.cut();
    for node in 0..nodes {
        let now = cluster.now_at(node);
        cluster.replicas[node].take().unwrap().close(now).1.unwrap();
        cluster.open(node);
    }
    cluster
}

/// Writes while the wall clock of the node is ahead.
fn write_ahead(cluster: &mut Cluster, node: usize, ms: i64, sql: &'static str) {
    cluster.ahead.insert(node, ms);
    cluster.write(node, sql);
    cluster.ahead.remove(&node);
}

fn hold(cluster: &mut Cluster, node: usize) -> Option<Hold> {
    cluster.replica(node).status().peers.iter().find_map(|peer| peer.holds)
}

fn carts(cluster: &mut Cluster, node: usize) -> Vec<String> {
    cluster.rows(node, "SELECT id FROM cart ORDER BY id")
}

/// Seconds pass, one by one, since links live by their keep-alives.
fn wait(cluster: &mut Cluster, seconds: u64) {
    (0..seconds).for_each(|_| cluster.wait(1000));
}

#[test]
fn an_entry_from_the_future_waits_with_all_behind_it_until_the_time_has_come() {
    let mut cluster = strangers(3);
    write_ahead(&mut cluster, 1, MINUTE, "INSERT INTO cart VALUES('early', 1)");
    cluster.write(1, "INSERT INTO cart VALUES('behind', 1)");
    cluster.link(1, 0);
    cluster.link(0, 2);
    cluster.settle();
    cluster.write(0, "INSERT INTO cart VALUES('other', 1)");
    wait(&mut cluster, 2);
    assert_eq!(carts(&mut cluster, 0), ["other"]);
    assert_eq!(carts(&mut cluster, 1), ["behind", "early", "other"]);
    assert_eq!(carts(&mut cluster, 2), ["other"]);
    let Some(Hold { dot, why: HoldReason::Future { ahead } }) = hold(&mut cluster, 0) else {
        panic!("the link is not held")
    };
    assert!(ahead > Duration::from_secs(50) && ahead < Duration::from_secs(60), "{ahead:?}");
    let peer = &cluster.replica(1).status().peers[0];
    assert_eq!(peer.held_by_peer, Some(dot));
    wait(&mut cluster, 50);
    assert_eq!(carts(&mut cluster, 0), ["other"]);
    wait(&mut cluster, 5);
    cluster.assert_rows("SELECT id FROM cart ORDER BY id", &["behind", "early", "other"]);
    assert_eq!(hold(&mut cluster, 0), None);
    assert_eq!(cluster.replica(1).status().peers[0].held_by_peer, None);
    assert_eq!(cluster.closed, []);
}

#[test]
fn a_replica_asks_to_be_woken_when_the_time_has_come() {
    let mut cluster = strangers(2);
    write_ahead(&mut cluster, 1, 5300, "INSERT INTO cart VALUES('early', 1)");
    cluster.link(1, 0);
    assert_eq!(carts(&mut cluster, 0), [""; 0]);
    let deadline = loop {
        if let littoral::Output::WakeAt(at) = cluster.replica(0).poll() {
            break at.unwrap();
        }
    };
    assert_eq!(deadline.since(cluster.now.mono), Duration::from_millis(300));
    cluster.wait(299);
    assert_eq!(carts(&mut cluster, 0), [""; 0]);
    cluster.wait(1);
    assert_eq!(carts(&mut cluster, 0), ["early"]);
}

#[test]
fn the_same_entry_may_be_held_on_two_links() {
    let mut cluster = strangers(4);
    cluster.write(1, "INSERT INTO cart VALUES('before', 1)");
    write_ahead(&mut cluster, 1, MINUTE, "INSERT INTO cart VALUES('early', 1)");
    // Node 2 takes it, since its clock is as wrong as that of node 1 and nobody has told it better.
    cluster.ahead.insert(2, MINUTE);
    cluster.link(1, 2);
    cluster.ahead.remove(&2);
    cluster.write(2, "INSERT INTO cart VALUES('later', 1)");
    for node in [1, 2] {
        cluster.link(0, node);
        cluster.link(3, node);
    }
    cluster.settle();
    for node in [0, 3] {
        assert_eq!(carts(&mut cluster, node), ["before"], "n{node}");
        let held =
            cluster.replica(node).status().peers.iter().filter(|p| p.holds.is_some()).count();
        assert_eq!(held, 2, "n{node}");
    }
    wait(&mut cluster, 56);
    cluster.assert_rows("SELECT id FROM cart ORDER BY id", &["before", "early", "later"]);
    assert_eq!(cluster.closed, []);
    for node in 0..4 {
        for peer in cluster.replica(node).status().peers {
            assert_eq!((peer.holds, peer.held_by_peer), (None, None), "n{node}");
        }
    }
}

#[test]
fn a_held_link_may_break_and_a_node_that_holds_it_may_restart() {
    let mut cluster = strangers(2);
    write_ahead(&mut cluster, 1, MINUTE, "INSERT INTO cart VALUES('early', 1)");
    cluster.link(1, 0);
    wait(&mut cluster, 10);
    assert!(hold(&mut cluster, 0).is_some());
    cluster.cut();
    assert_eq!(hold(&mut cluster, 0), None);
    wait(&mut cluster, 10);
    cluster.link(1, 0);
    wait(&mut cluster, 1);
    assert!(hold(&mut cluster, 0).is_some());
    cluster.cut();
    let now = cluster.now;
    cluster.replicas[0].take().unwrap().close(now).1.unwrap();
    cluster.open(0);
    cluster.link(1, 0);
    wait(&mut cluster, 1);
    assert!(hold(&mut cluster, 0).is_some());
    assert_eq!(carts(&mut cluster, 0), [""; 0]);
    wait(&mut cluster, 34);
    cluster.assert_rows("SELECT id FROM cart", &["early"]);
}

#[test]
fn a_node_stamps_by_the_origins_clock_as_soon_as_it_knows_it() {
    let mut cluster = strangers(3);
    cluster.ahead.insert(1, -3600 * 1000);
    cluster.ahead.insert(2, 2 * MINUTE);
    cluster.link(1, 0);
    cluster.link(2, 1);
    wait(&mut cluster, 2);
    for node in 0..3 {
        let (clock, right) = (cluster.replica(node).status().clock, cluster.now.wall);
        let error = clock.error.unwrap();
        assert!(Duration::from_millis(right.0.abs_diff(clock.corrected.0)) <= error, "n{node}");
        assert!(error < Duration::from_millis(10), "n{node}: {error:?}");
    }
    cluster.write(2, "INSERT INTO cart VALUES('a', 1)");
    // Neither does a jump of the clock matter any more.
    cluster.ahead.insert(2, -10 * MINUTE);
    cluster.write(2, "INSERT INTO cart VALUES('b', 1)");
    cluster.ahead.insert(1, 10 * MINUTE);
    cluster.write(1, "INSERT INTO cart VALUES('c', 1)");
    cluster.assert_rows("SELECT id FROM cart ORDER BY id", &["a", "b", "c"]);
    assert!(cluster.replica(2).status().clock.stamps_ahead < Duration::from_secs(1));
}

#[test]
fn an_origin_whose_clock_was_set_back_is_followed_by_all() {
    let mut cluster = strangers(3);
    cluster.ahead.insert(0, 10 * MINUTE);
    cluster.link(1, 0);
    cluster.link(2, 1);
    wait(&mut cluster, 2);
    cluster.ahead.remove(&0);
    wait(&mut cluster, 3);
    let right = cluster.now.wall;
    for node in 0..3 {
        let clock = cluster.replica(node).status().clock;
        assert!(right.0.abs_diff(clock.corrected.0) < 50, "n{node}: {clock:?}, not {right}");
    }
}

#[test]
fn a_node_whose_stamps_are_far_ahead_writes_no_multi_writer_table_until_the_time_has_come() {
    let mut cluster = strangers(2);
    write_ahead(&mut cluster, 0, 2 * MINUTE, "INSERT INTO cart VALUES('early', 1)");
    let refused = |cluster: &mut Cluster| {
        cluster.try_write(0, |tx| tx.execute_batch("INSERT INTO cart VALUES('x', 1)")).unwrap_err()
    };
    let error = refused(&mut cluster);
    assert!(matches!(error, WriteError::ClockAhead { .. }) && error.is_retryable(), "{error}");
    assert!(error.to_string().contains("120.0 s ahead of the origin's clock"), "{error}");
    // A table that only the origin writes merges by no stamp.
    cluster.write(0, "INSERT INTO orders VALUES(1, 'x')");
    // In a group it fails alone.
    let orders = "INSERT INTO orders VALUES(2, 'x')";
    let results = cluster.group(0, [orders, "DELETE FROM cart", "SELECT 1"]);
    assert_eq!(results, [true, false, true]);
    wait(&mut cluster, 59);
    refused(&mut cluster);
    wait(&mut cluster, 1);
    cluster.write(0, "INSERT INTO cart VALUES('x', 1)");
    assert_eq!(carts(&mut cluster, 0), ["early", "x"]);
    assert!(cluster.replica(0).status().clock.stamps_ahead > Duration::from_secs(59));
}
