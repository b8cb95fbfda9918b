//! One path of the benches once, for callgrind: `path PATH KEY SIDE`, where PATH is `insert`, `update`,
//! `delete`, `merge`, `conflict`, `lost` or `column`, KEY is `integer` or `text`, and SIDE is `ours` or
//! `plain`. Only what the benches time happens within `measured`:
//!
//! ```console
//! $ cargo build --release -p littoral-benches --example path
//! $ valgrind --tool=callgrind --toggle-collect='path::measured*' target/release/examples/path insert text ours
//! ```

use std::{sync::Arc, time::Duration};

use littoral_benches::{
    DELETE_BY_KEY, INSERT, ItemRow, Key, Node, Pair, Plain, Setup, UPDATE_BY_KEY, rows,
};
use rusqlite::params;

const ROWS: usize = 100_000;
const COLUMNS: usize = 10;
const UPDATE: &str = "UPDATE item SET qty = qty + 1";

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [path, key, side] = words[..] else { panic!("path PATH KEY SIDE") };
    let key = if key == "text" { Key::Text } else { Key::Integer };
    let rows = rows(ROWS);
    match side {
        "plain" => plain(path, key, &rows),
        _ => match path {
            "merge" | "conflict" | "lost" => pair(path, key, &rows),
            _ => node(path, key, &rows),
        },
    }
}

/// What is counted.
#[inline(never)]
fn measured<T>(run: impl FnOnce() -> T) -> T {
    run()
}

fn node(path: &str, key: Key, rows: &[ItemRow]) {
    let mut node = Node::new(key);
    // The job must not be the one that makes or frees them.
    let shared: Arc<[ItemRow]> = rows.into();
    if path == "insert" {
        let rows = Arc::clone(&shared);
        measured(|| {
            node.write(move |tx| {
                let mut insert = tx.prepare(INSERT)?;
                rows.iter().try_for_each(|r| {
                    let values = params![r.key(key), r.qty, r.price, r.name, r.note, r.data];
                    insert.execute(values).map(drop)
                })
            })
        });
        return;
    }
    node.insert(key, rows);
    node.checkpoint();
    match path {
        "update" => drop(measured(|| node.write(|tx| tx.execute(UPDATE, []).map(drop)))),
        "delete" => drop(measured(|| {
            let rows = Arc::clone(&shared);
            node.write(move |tx| {
                let mut delete = tx.prepare(DELETE_BY_KEY)?;
                rows.iter().try_for_each(|r| delete.execute([r.key(key)]).map(drop))
            })
        })),
        "column" => (0..COLUMNS).for_each(|column| {
            let sql = column_sql(column);
            measured(|| node.write(move |tx| tx.execute(&sql, []).map(drop)));
        }),
        other => panic!("no path {other:?}"),
    }
}

fn pair(path: &str, key: Key, rows: &[ItemRow]) {
    let mut pair = Pair::new(Setup::new(key));
    pair.origin.insert(key, rows);
    if path == "merge" {
        measured(|| pair.exchange());
        return;
    }
    pair.exchange();
    pair.edge.checkpoint();
    let Pair { origin, edge, .. } = &mut pair;
    let (first, second) = if path == "lost" { (origin, edge) } else { (edge, origin) };
    first.write(|tx| tx.execute(UPDATE, []).map(drop));
    second.advance(Duration::from_millis(5));
    second.write(|tx| tx.execute("UPDATE item SET qty = qty + 2", []).map(drop));
    pair.edge.checkpoint();
    measured(|| pair.exchange());
}

fn plain(path: &str, key: Key, rows: &[ItemRow]) {
    let plain = Plain::new(key);
    if matches!(path, "merge" | "conflict" | "lost") {
        plain.conn.pragma_update(None, "cache_size", -(16 << 10)).expect("a page cache");
    }
    if matches!(path, "insert" | "merge") {
        measured(|| plain.insert(key, rows));
        return;
    }
    plain.insert(key, rows);
    plain.checkpoint();
    match path {
        "update" => measured(|| {
            let sql = format!("BEGIN IMMEDIATE; {UPDATE}; COMMIT");
            plain.conn.execute_batch(&sql).expect("an update");
        }),
        "delete" => drop(measured(|| {
            plain.each(DELETE_BY_KEY, rows, |delete, r| {
                delete.execute([r.key(key)]).expect("a delete");
            })
        })),
        "conflict" | "lost" => drop(measured(|| {
            plain.each(UPDATE_BY_KEY, rows, |update, r| {
                update.execute(params![r.key(key), r.qty + 2]).expect("an update");
            })
        })),
        "column" => (0..COLUMNS).for_each(|column| {
            let sql = column_sql(column);
            measured(|| plain.conn.execute_batch(&sql).expect("a new column"));
        }),
        other => panic!("no path {other:?}"),
    }
}

fn column_sql(column: usize) -> String {
    format!("ALTER TABLE item ADD COLUMN more_{column} TEXT DEFAULT 'none'")
}
