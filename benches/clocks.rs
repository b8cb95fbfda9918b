//! What contested rows cost while a member is away: memory, opening the file, and frontiers.
//!
//! The figures are absolute, so they tell of this machine only. A frontier that drops one row while a
//! million stay contested must not pay for those that stay.

use std::time::Duration;

use littoral::Status;
use littoral_benches::{Key, Pair, Setup, row_count, rows, value};

fn main() {
    for key in [Key::Integer, Key::Text] {
        clocks(key);
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of rows and bytes")]
fn clocks(key: Key) {
    const TRANSACTION: usize = 10_000;
    let all = rows(row_count(1_000_000));
    let (first, rest) = all.split_at(2);
    let name = key.name();

    let mut pair = Pair::new(Setup::new(key));
    // The edge takes both rows and says so: a frontier covers the first at once, the second is left for
    // the next one. Then the edge is not heard of for a while.
    for row in first {
        pair.origin.insert(key, std::slice::from_ref(row));
        pair.exchange();
        pair.edge.advance(Duration::from_millis(25));
        pair.exchange();
    }
    for part in rest.chunks(TRANSACTION) {
        pair.origin.insert(key, part);
    }
    let status = pair.origin.replica.status();
    assert!(contested(&status) >= rest.len() as u64, "the rest is contested");
    let bytes = status.stability.contested_bytes as f64 / status.contested_rows as f64;
    value(&format!("contested-bytes-per-row-{name}"), bytes, 80.0);

    // What is due anyway, so that it is not counted with the frontier.
    pair.origin.advance(Duration::from_millis(1));
    let frontier = status.stability.frontier;
    let keeps = pair.origin.advance(Duration::from_secs(1));
    let status = pair.origin.replica.status();
    assert_eq!(status.stability.frontier, frontier + 1);
    assert_eq!(contested(&status), rest.len() as u64, "one row is dropped");
    value(&format!("frontier-that-drops-one-ms-{name}"), keeps.as_secs_f64() * 1e3, 20.0);

    let opened = pair.origin.reopen();
    assert_eq!(contested(&pair.origin.replica.status()), rest.len() as u64);
    let rate = rest.len() as f64 / opened.as_secs_f64() / 1e6;
    value(&format!("replayed-million-rows-per-s-{name}"), rate, 0.2);

    pair.link();
    pair.settle();
    assert_eq!(contested(&pair.origin.replica.status()), 0);
}

fn contested(status: &Status) -> u64 {
    status.contested_rows
}
