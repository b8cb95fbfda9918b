//! What replication adds to local writes and reads, as ratios to plain SQLite in the same run: 100,000
//! rows in one transaction, WAL; once with an INTEGER key and ascending keys, once with a key of 36
//! characters in random order; of a table that every node may write, and, for orientation, of one that
//! the origin writes. `capture-discard` is what follows the inserts later, against the same inserts: their
//! entry, which every member has, is removed from the log.

use std::time::Duration;

use littoral::{Writers, limits::DISCARD_INTERVAL};
use littoral_benches::{
    DELETE_BY_KEY, ItemRow, Key, Node, Plain, Setup, figure, repeats, row_count, rows, timed,
};
use rusqlite::Connection;

const UPDATE: &str = "UPDATE item SET qty = qty + 1";
const SELECT: &str = "SELECT qty, note FROM item WHERE id = ?";

fn main() {
    for writers in [Writers::Any, Writers::Origin] {
        for key in [Key::Integer, Key::Text] {
            capture(Setup { writers, ..Setup::new(key) });
        }
    }
}

fn capture(setup: Setup) {
    let key = setup.key;
    let rows = rows(row_count(100_000));
    let mut inserts = Vec::new();
    let mut discards = Vec::new();
    let mut updates = Vec::new();
    let mut deletes = Vec::new();
    let mut reads = Vec::new();
    for _ in 0..repeats() {
        let mut node = Node::open(setup, 0);
        let plain = Plain::new(key);
        let plain_insert = plain.insert(key, &rows);
        inserts.push((node.insert(key, &rows), plain_insert));
        discards.push((discard(&mut node), plain_insert));

        checkpoint(&node, &plain);
        reads.push(read(&node, &plain, key, &rows));

        let ours = node.write(|tx| tx.execute(UPDATE, []).map(drop));
        let theirs = timed(|| {
            plain
                .conn
                .execute_batch(&format!("BEGIN IMMEDIATE; {UPDATE}; COMMIT"))
                .expect("an update");
        });
        updates.push((ours, theirs));

        checkpoint(&node, &plain);
        let ours = node
            .each(DELETE_BY_KEY, &rows, move |delete, r| delete.execute([r.key(key)]).map(drop));
        let theirs = plain.each(DELETE_BY_KEY, &rows, |delete, r| {
            delete.execute([r.key(key)]).expect("a delete");
        });
        deletes.push((ours, theirs));
    }
    let whose = if setup.writers == Writers::Origin { "-of-origin" } else { "" };
    let name = |what: &str| format!("capture-{what}-{}{whose}", key.name());
    figure(&name("insert"), &inserts, 1.8);
    figure(&name("discard"), &discards, 0.3);
    figure(&name("update"), &updates, 2.2);
    figure(&name("delete"), &deletes, 1.8);
    figure(&format!("reader-{}{whose}", key.name()), &reads, 1.05);
}

fn checkpoint(node: &Node, plain: &Plain) {
    node.checkpoint();
    plain.checkpoint();
}

/// Removes the entry of the inserts, which nobody needs any more, in the steps that follow them.
fn discard(node: &mut Node) -> Duration {
    (0..40).map(|_| node.advance(DISCARD_INTERVAL)).sum()
}

/// Every row by its key, through a reader and through a plain connection.
fn read(node: &Node, plain: &Plain, key: Key, rows: &[ItemRow]) -> (Duration, Duration) {
    let reader = node.replica.db().reader().expect("a reader");
    let all = |conn: &Connection| {
        let mut select = conn.prepare_cached(SELECT).expect("a statement");
        for r in rows {
            let found: (i64, String) = select
                .query_row([r.key(key)], |row| Ok((row.get(0)?, row.get(1)?)))
                .expect("the row");
            assert_eq!(found.0, r.qty);
        }
    };
    // Once to warm both caches.
    all(reader.connection());
    all(&plain.conn);
    (timed(|| all(reader.connection())), timed(|| all(&plain.conn)))
}
