//! What a change of the schema costs at the origin, as a ratio to plain SQLite in the same run: ADD
//! COLUMN on a table of 100,000 rows, a transaction each.

use std::time::Duration;

use littoral::Writers;
use littoral_benches::{Key, Node, Plain, Setup, figure, repeats, row_count, rows, timed};

/// Columns added in one run: one takes too little time to be measured.
const COLUMNS: usize = 10;

fn main() {
    for writers in [Writers::Any, Writers::Origin] {
        for key in [Key::Integer, Key::Text] {
            add_column(Setup { writers, ..Setup::new(key) });
        }
    }
}

fn add_column(setup: Setup) {
    let key = setup.key;
    let rows = rows(row_count(100_000));
    let mut pairs = Vec::new();
    for _ in 0..repeats() {
        let mut node = Node::open(setup, 0);
        let plain = Plain::new(key);
        node.insert(key, &rows);
        plain.insert(key, &rows);
        node.checkpoint();
        plain.checkpoint();
        let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
        for column in 0..COLUMNS {
            let sql = format!("ALTER TABLE item ADD COLUMN more_{column} TEXT DEFAULT 'none'");
            theirs += timed(|| plain.conn.execute_batch(&sql).expect("a new column"));
            ours += node.write(move |tx| tx.execute(&sql, []).map(drop));
        }
        pairs.push((ours, theirs));
    }
    let whose = if setup.writers == Writers::Origin { "-of-origin" } else { "" };
    figure(&format!("add-column-{}{whose}", key.name()), &pairs, 1.2);
}
