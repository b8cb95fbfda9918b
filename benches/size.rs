//! What replication leaves in the file, in bytes per row beyond plain SQLite: of rows that are there,
//! and of rows that are gone, some seconds after everybody has them.

use littoral::Writers;
use littoral_benches::{DELETE_BY_KEY, Key, Pair, Plain, Setup, row_count, rows, value};

fn main() {
    for writers in [Writers::Any, Writers::Origin] {
        for key in [Key::Integer, Key::Text] {
            sizes(Setup { writers, ..Setup::new(key) });
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes of a small file")]
fn sizes(setup: Setup) {
    let key = setup.key;
    let rows = rows(row_count(100_000));
    let per_row = |bytes: u64, plain: u64| (bytes as f64 - plain as f64) / rows.len() as f64;
    let whose = if setup.writers == Writers::Origin { "-of-origin" } else { "" };

    let mut pair = Pair::new(setup);
    let plain = Plain::new(key);
    let before = (pair.edge.bytes(), plain.bytes());
    pair.origin.insert(key, &rows);
    plain.insert(key, &rows);
    pair.settle();
    let added = (pair.edge.bytes() - before.0, plain.bytes() - before.1);
    value(&format!("bytes-per-row-{}{whose}", key.name()), per_row(added.0, added.1), 1.0);

    // An entry's rows come in the order of their keys, and so they are stored at other nodes: the pages of
    // the key's index are filled in another way than by the order in which they were inserted.
    if key == Key::Text {
        let mut sorted = rows.clone();
        sorted.sort_by(|a, b| a.id.cmp(&b.id));
        let ordered = Plain::new(key);
        let empty = ordered.bytes();
        ordered.insert(key, &sorted);
        let beyond = per_row(added.0, ordered.bytes() - empty);
        value(&format!("bytes-per-row-{}-in-key-order{whose}", key.name()), beyond, 1.0);
    }

    pair.origin.each(DELETE_BY_KEY, &rows, move |delete, r| delete.execute([r.key(key)]).map(drop));
    pair.settle();
    let empty = Pair::new(setup).edge.vacuumed();
    let left = per_row(pair.edge.vacuumed(), empty);
    value(&format!("bytes-per-deleted-row-{}{whose}", key.name()), left, 0.0);
}
