//! Single-row transactions, as ratios to plain SQLite in the same run: at FULL on a real file with one
//! writer, and with 16 that are committed together; and, at NORMAL, with 200 replicated tables against
//! one.

use littoral::Synchronous;
use littoral_benches::{
    INSERT, ItemRow, Key, Node, Plain, Setup, figure, repeats, row_count, rows, timed,
};
use rusqlite::params;

/// Writers that wait for their commits at the same time.
const WRITERS: usize = 16;

fn main() {
    let rows = rows(row_count(5_000));
    for key in [Key::Integer, Key::Text] {
        durable(key, &rows);
    }
    many_tables(&rows);
}

fn durable(key: Key, rows: &[ItemRow]) {
    let setup = Setup { synchronous: Synchronous::Full, ..Setup::new(key) };
    let mut alone = Vec::new();
    let mut grouped = Vec::new();
    for _ in 0..repeats().min(3) {
        let plain = Plain::open(key, Synchronous::Full);
        let theirs = timed(|| {
            let mut insert = plain.conn.prepare_cached(INSERT).expect("a statement");
            for r in rows {
                insert
                    .execute(params![r.key(key), r.qty, r.price, r.name, r.note, r.data])
                    .expect("an insert");
            }
        });
        for (writers, pairs) in [(1, &mut alone), (WRITERS, &mut grouped)] {
            let mut node = Node::open(setup, 0);
            pairs.push((timed(|| one_by_one(&mut node, key, rows, writers)), theirs));
        }
    }
    figure(&format!("transactions-full-1-writer-{}", key.name()), &alone, 1.3);
    figure(&format!("transactions-full-{WRITERS}-writers-{}", key.name()), &grouped, 1.0);
}

/// One transaction per row; `writers` of them wait at a time.
fn one_by_one(node: &mut Node, key: Key, rows: &[ItemRow], writers: usize) {
    for rows in rows.chunks(writers) {
        for row in rows {
            let r = row.clone();
            node.queue(move |tx| {
                tx.execute(INSERT, params![r.key(key), r.qty, r.price, r.name, r.note, r.data])
                    .map(drop)
            });
        }
        node.drain();
    }
}

fn many_tables(rows: &[ItemRow]) {
    let key = Key::Text;
    let mut pairs = Vec::new();
    for _ in 0..repeats() {
        let mut many = Node::open(Setup { more_tables: 199, ..Setup::new(key) }, 0);
        let mut one = Node::new(key);
        let many = timed(|| one_by_one(&mut many, key, rows, 1));
        let one = timed(|| one_by_one(&mut one, key, rows, 1));
        pairs.push((many, one));
    }
    figure("transactions-200-tables", &pairs, 1.05);
}
