//! Who holds the frontier back, since when, and when they were last heard.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use littoral::Held;

use support::{Cluster, any};

const SCHEMA: &str = "CREATE TABLE cart(id INTEGER PRIMARY KEY, n INTEGER);";

fn linked(nodes: usize) -> Cluster {
    let policy = littoral::TablePolicy { explicit_key: true, ..any() };
    support::linked(nodes, SCHEMA, &[("cart", policy)])
}

/// What a node says of the one that holds it back: entries, and how many milliseconds ago since when, and when
/// it was heard.
fn held(cluster: &mut Cluster, node: usize) -> (u64, u64, Option<u64>) {
    let now = cluster.now.wall.0;
    let held = cluster.replica(node).status().stability.held_back_by;
    let [Held { missing, since, heard, .. }] = &held[..] else { panic!("{held:?}") };
    (*missing, now - since.unwrap().0, heard.map(|at| now - at.0))
}

#[test]
fn a_member_is_heard_as_long_as_its_link_gives_signs_of_life() {
    let mut cluster = linked(2);
    // Nothing to acknowledge, for more than a minute.
    (0..150).for_each(|_| cluster.wait(500));
    assert_eq!(cluster.replica(0).status().stability.held_back_by, []);
    cluster.cut();
    cluster.write(0, "INSERT INTO cart VALUES(1, 1)");
    cluster.wait(300);
    cluster.write(0, "INSERT INTO cart VALUES(2, 1)");
    let (missing, since, heard) = held(&mut cluster, 0);
    assert_eq!((missing, since), (2, 300));
    assert!((300..=2300).contains(&heard.unwrap()), "{heard:?}");

    // It is there again, and its disk is slow: it is heard, and still holds all of it back.
    cluster.wait(60_000);
    cluster.held_syncs = true;
    cluster.link(0, 1);
    (0..20).for_each(|_| cluster.wait(500));
    let (missing, since, heard) = held(&mut cluster, 0);
    assert_eq!((missing, since), (2, 70_300));
    assert!(heard.unwrap() <= 2000, "{heard:?}");
}

#[test]
fn a_member_behind_a_relay_was_heard_when_its_newest_acknowledgement_came() {
    let mut cluster = linked(3);
    cluster.write(0, "INSERT INTO cart VALUES(1, 1)");
    cluster.settle();
    assert_eq!(cluster.replica(0).status().stability.held_back_by, []);
    // The frontier that follows is acknowledged, too.
    (0..60).for_each(|_| cluster.wait(500));
    cluster.cut();
    cluster.link(0, 1);
    cluster.settle();
    cluster.write(0, "INSERT INTO cart VALUES(2, 1)");
    cluster.settle();
    let (missing, since, heard) = held(&mut cluster, 0);
    assert_eq!((missing, since), (1, 250));
    assert!((28_000..31_000).contains(&heard.unwrap()), "{heard:?}");
    // Whoever opens its file anew has heard of nobody, and still knows what waits.
    cluster.cut();
    cluster.replicas[0].take().unwrap().close(cluster.now_at(0)).1.unwrap();
    cluster.open(0);
    let held = cluster.replica(0).status().stability.held_back_by;
    assert_eq!(held.len(), 2);
    assert!(held.iter().all(|held| held.heard.is_none() && held.since.is_some()), "{held:?}");
}
