//! What another node's rows cost the node that receives them, as ratios to plain SQLite in the same
//! run: 100,000 rows in one entry, from the frame to the commit; and how large the entry is on the way.

use littoral::Writers;
use littoral_benches::{
    Key, Node, Pair, Plain, Setup, UPDATE_BY_KEY, figure, repeats, row_count, rows, value,
};
use rusqlite::params;

fn main() {
    for writers in [Writers::Any, Writers::Origin] {
        for key in [Key::Integer, Key::Text] {
            inserts(Setup { writers, ..Setup::new(key) });
        }
    }
    for key in [Key::Integer, Key::Text] {
        conflicts(Setup::new(key));
    }
    linear("100k", 100_000, repeats().min(3));
    linear("1000k", 1_000_000, 1);
}

/// As many rows as there are already, between them, in one entry.
fn linear(name: &str, count: usize, repeats: usize) {
    let key = Key::Text;
    let count = row_count(count);
    let rows = rows(2 * count);
    let (there, more) = rows.split_at(count);
    let mut pairs = Vec::new();
    for _ in 0..repeats {
        let mut pair = Pair::new(Setup::new(key));
        let plain = plain(key);
        pair.origin.insert(key, there);
        pair.settle();
        plain.insert(key, there);
        pair.edge.checkpoint();
        plain.checkpoint();
        pair.origin.insert(key, more);
        let ours = pair.exchange().edge;
        pairs.push((ours, plain.insert(key, more)));
        assert_eq!(usize::try_from(count_of(&pair.edge)), Ok(rows.len()));
    }
    figure(&format!("merge-into-{name}"), &pairs, 2.5);
}

/// With as large a page cache as the connection has that applies entries.
fn plain(key: Key) -> Plain {
    const CACHE_KIB: i64 = 16 << 10;
    let plain = Plain::new(key);
    plain.conn.pragma_update(None, "cache_size", -CACHE_KIB).expect("a page cache");
    plain
}

fn inserts(setup: Setup) {
    let key = setup.key;
    let rows = rows(row_count(100_000));
    let mut merges = Vec::new();
    let mut sizes = (0.0, 0.0);
    for _ in 0..repeats() {
        let mut pair = Pair::new(setup);
        let plain = plain(key);
        pair.origin.insert(key, &rows);
        // Before both have it: then it may be trimmed.
        let entry_bytes = largest_entry(&pair.origin);
        let exchanged = pair.exchange();
        merges.push((exchanged.edge, plain.insert(key, &rows)));
        assert_eq!(usize::try_from(count_of(&pair.edge)), Ok(rows.len()));
        #[expect(clippy::cast_precision_loss, reason = "bytes of one entry")]
        let per_row = |bytes: u64| bytes as f64 / rows.len() as f64 / key.row_bytes();
        sizes = (per_row(entry_bytes), per_row(exchanged.wire_bytes));
    }
    let whose = if setup.writers == Writers::Origin { "-of-origin" } else { "" };
    figure(&format!("merge-insert-{}{whose}", key.name()), &merges, 2.0);
    if setup.writers == Writers::Any {
        value(&format!("wire-entry-bytes-{}", key.name()), sizes.0, 1.1);
        value(&format!("wire-zstd-bytes-{}", key.name()), sizes.1, 0.8);
    }
}

fn conflicts(setup: Setup) {
    let key = setup.key;
    let rows = rows(row_count(100_000));
    let mut incoming_wins = Vec::new();
    let mut incoming_loses = Vec::new();
    for _ in 0..repeats() {
        for (pairs, edge_is_later) in [(&mut incoming_wins, false), (&mut incoming_loses, true)] {
            let mut pair = Pair::new(setup);
            let plain = plain(key);
            pair.origin.insert(key, &rows);
            plain.insert(key, &rows);
            pair.exchange();
            pair.edge.checkpoint();
            plain.checkpoint();
            // Neither has heard of the other's update; the later one wins.
            let (first, second) = if edge_is_later {
                (&mut pair.origin, &mut pair.edge)
            } else {
                (&mut pair.edge, &mut pair.origin)
            };
            first.write(|tx| tx.execute("UPDATE item SET qty = qty + 1", []).map(drop));
            second.advance(std::time::Duration::from_millis(5));
            second.write(|tx| tx.execute("UPDATE item SET qty = qty + 2", []).map(drop));
            pair.edge.checkpoint();
            let before = pair.edge.replica.status().counts.conflicts;
            let ours = pair.exchange().edge;
            let conflicts = pair.edge.replica.status().counts.conflicts - before;
            assert_eq!(conflicts, rows.len() as u64, "every update conflicts");
            let theirs = plain.each(UPDATE_BY_KEY, &rows, |update, r| {
                update.execute(params![r.key(key), r.qty + 2]).expect("an update");
            });
            pairs.push((ours, theirs));
        }
    }
    figure(&format!("merge-conflict-{}", key.name()), &incoming_wins, 3.0);
    figure(&format!("merge-conflict-lost-{}", key.name()), &incoming_loses, 3.0);
}

fn count_of(node: &Node) -> i64 {
    let reader = node.replica.db().reader().expect("a reader");
    let count = reader.connection().query_row("SELECT count(*) FROM item", [], |row| row.get(0));
    count.expect("a count")
}

/// The bytes of the largest entry: the one that holds the rows.
fn largest_entry(node: &Node) -> u64 {
    let reader = node.replica.db().reader().expect("a reader");
    let bytes = reader.connection().query_row(
        "SELECT max(bytes) FROM (SELECT length(bytes) AS bytes FROM littoral_log
                                 UNION ALL SELECT length FROM littoral_large)",
        [],
        |row| row.get::<_, i64>(0),
    );
    bytes.expect("an entry").cast_unsigned()
}
