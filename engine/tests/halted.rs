//! A replica that has stopped its links and goes on writing.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use littoral::{Channel, CloseCode, Input};

use support::any;

const SCHEMA: &str = "CREATE TABLE cart(id INTEGER PRIMARY KEY, note BLOB);";

#[test]
fn what_is_written_while_the_links_are_stopped_is_in_a_clock_checkpoint_in_time() {
    let policy = littoral::TablePolicy { explicit_key: true, ..any() };
    let mut cluster = support::linked(2, SCHEMA, &[("cart", policy)]);
    let (_, peer) = *cluster.links.keys().find(|(node, _)| *node == 0).unwrap();
    // An entry of a format that this version does not know.
    let bytes = vec![3, 0, 0, 0, 2, 2, 99, 0];
    cluster.handle(0, Input::Frame { peer, channel: Channel::Entries, bytes });
    assert!(cluster.replica(0).status().halted.is_some());
    assert!(cluster.closed.contains(&(0, CloseCode::Halted)));
    let checkpoint = "SELECT hex(value) FROM littoral_meta WHERE name = 'checkpoint'";
    let before = cluster.rows(0, checkpoint);
    for id in 0..75 {
        let sql = format!("INSERT INTO cart VALUES({id}, zeroblob(900000))");
        cluster.try_write(0, move |tx| tx.execute_batch(&sql)).unwrap();
    }
    assert_ne!(cluster.rows(0, checkpoint), before);
}
