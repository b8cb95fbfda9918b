//! Jobs of a group run as if each were alone: random groups against plain SQLite, one transaction per job.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use std::sync::{Arc, Mutex};

use littoral::{WriteError, WriteTx};
use rusqlite::Connection;

use self::support::{Cluster, linked};

const SCHEMA: &str = "
    CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE, v CHECK (v < 100));
    CREATE TABLE p(id INTEGER PRIMARY KEY);
    CREATE TABLE c(id INTEGER PRIMARY KEY, p REFERENCES p DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE d(id INTEGER PRIMARY KEY, p REFERENCES p ON DELETE CASCADE);
    CREATE TABLE bare(v);
    CREATE TABLE n(id INTEGER PRIMARY KEY AUTOINCREMENT, v);
    CREATE TRIGGER bad AFTER INSERT ON t WHEN new.v = 13 BEGIN SELECT RAISE(ROLLBACK, 'thirteen'); END;
    CREATE TRIGGER worse BEFORE UPDATE ON t WHEN new.v = 17 BEGIN SELECT RAISE(FAIL, 'seventeen'); END;
    CREATE TRIGGER told AFTER INSERT ON t BEGIN INSERT INTO n(v) VALUES(new.id); END;";

/// `?` stands for a small number.
const STATEMENTS: [&str; 34] = [
    "INSERT INTO t VALUES(?, ?, ?)",
    "INSERT INTO t VALUES(?, ?, ?), (?, ?, ?), (?, ?, ?)",
    "INSERT OR FAIL INTO t VALUES(?, ?, ?), (?, ?, ?), (?, ?, ?)",
    "INSERT OR ROLLBACK INTO t VALUES(?, ?, ?)",
    "INSERT OR REPLACE INTO t VALUES(?, ?, ?)",
    "INSERT OR IGNORE INTO t VALUES(?, ?, ?), (?, ?, ?)",
    "INSERT INTO t VALUES(?, ?, 13)",
    "INSERT INTO t VALUES(?, ?, ?) ON CONFLICT(u) DO UPDATE SET v = v + 1",
    "UPDATE t SET v = v + 30 WHERE id > ?",
    "UPDATE OR FAIL t SET v = v + 40",
    "UPDATE t SET v = 17 WHERE id >= ?",
    "UPDATE OR ROLLBACK t SET u = ? WHERE id = ?",
    "UPDATE OR REPLACE t SET id = ? WHERE id = ?",
    "DELETE FROM t WHERE id = ?",
    "DELETE FROM t",
    "INSERT INTO p VALUES(?)",
    "INSERT OR IGNORE INTO p VALUES(?)",
    "DELETE FROM p WHERE id = ?",
    "DELETE FROM p",
    "INSERT INTO c VALUES(?, ?)",
    "UPDATE c SET p = ?",
    "DELETE FROM c WHERE p = ?",
    "INSERT INTO d VALUES(?, ?)",
    "DELETE FROM d",
    "INSERT INTO bare VALUES(?)",
    "DELETE FROM bare WHERE v < ?",
    "INSERT INTO n(v) VALUES(?)",
    "DELETE FROM n WHERE v = ?",
    "INSERT INTO nowhere VALUES(?)",
    "SAVEPOINT s",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "RELEASE s",
    "INSERT INTO t SELECT id + 100, NULL, v FROM t",
];

const TABLES: [&str; 6] = ["t", "p", "c", "d", "bare", "n"];

/// A statement, and whether the job goes on if it fails.
type Step = (String, bool);

/// Numbers that follow from a seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn job(&mut self) -> Vec<Step> {
        let steps = 1 + self.below(4);
        (0..steps)
            .map(|_| {
                let place = usize::try_from(self.below(STATEMENTS.len() as u64)).unwrap();
                let mut sql = String::new();
                for c in STATEMENTS[place].chars() {
                    if c == '?' {
                        sql.push_str(&self.below(6).to_string());
                    } else {
                        sql.push(c);
                    }
                }
                (sql, self.below(2) == 0)
            })
            .collect()
    }
}

/// Runs a job in a transaction of plain SQLite; says whether it was committed.
fn plainly(plain: &Connection, job: &[Step]) -> bool {
    plain.execute_batch("BEGIN IMMEDIATE").unwrap();
    for (sql, tolerant) in job {
        let failed = plain.execute_batch(sql).is_err();
        if plain.is_autocommit() {
            return false;
        }
        if failed && !tolerant {
            plain.execute_batch("ROLLBACK").unwrap();
            return false;
        }
    }
    // A savepoint that was left open is released by COMMIT.
    let committed = plain.execute_batch("COMMIT").is_ok();
    if !committed {
        plain.execute_batch("ROLLBACK").unwrap();
    }
    committed
}

fn rows_of(plain: &Connection, sql: &str) -> Vec<String> {
    let mut statement = plain.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

fn run(cluster: &mut Cluster, jobs: &[Vec<Step>]) -> Vec<bool> {
    let now = cluster.now;
    let runs = Arc::new(Mutex::new(0));
    let tickets: Vec<_> = jobs
        .iter()
        .cloned()
        .map(|job| {
            let runs = Arc::clone(&runs);
            let job = move |tx: &mut WriteTx<'_>| -> Result<(), WriteError> {
                *runs.lock().unwrap() += 1;
                for (sql, tolerant) in &job {
                    match tx.execute(sql, []) {
                        Err(error) if !tolerant => return Err(error),
                        _ => {}
                    }
                }
                Ok(())
            };
            cluster.replica(0).write(now, Box::new(job))
        })
        .collect();
    cluster.drain(0);
    assert!(*runs.lock().unwrap() >= jobs.len());
    tickets.into_iter().map(|ticket| cluster.done.remove(&(0, ticket)).unwrap().is_ok()).collect()
}

#[test]
fn jobs_of_a_group_do_what_they_would_do_alone() {
    for seed in 0..6 {
        let mut draw = Draw(seed);
        let mut cluster = linked(2, SCHEMA, &[]);
        let plain = Connection::open_in_memory().unwrap();
        plain.pragma_update(None, "foreign_keys", true).unwrap();
        plain.execute_batch(SCHEMA).unwrap();
        for group in 0..60 {
            let jobs: Vec<Vec<Step>> = (0..1 + draw.below(6)).map(|_| draw.job()).collect();
            let expected: Vec<bool> = jobs.iter().map(|job| plainly(&plain, job)).collect();
            assert_eq!(run(&mut cluster, &jobs), expected, "seed {seed}, group {group}: {jobs:?}");
            for table in TABLES {
                let sql =
                    format!("SELECT json_array(rowid, {table}.*) FROM {table} ORDER BY rowid")
                        .replace("t.*", "id, u, v")
                        .replace("p.*", "id")
                        .replace("c.*", "id, p")
                        .replace("d.*", "id, p")
                        .replace("bare.*", "v")
                        .replace("n.*", "id, v");
                let rows = rows_of(&plain, &sql);
                assert_eq!(cluster.rows(0, &sql), rows, "seed {seed}, group {group}: {jobs:?}");
                cluster.settle();
                assert_eq!(cluster.rows(1, &sql), rows, "seed {seed}, group {group}, replica");
            }
        }
        cluster.assert_equal();
        let sequence = "SELECT coalesce(max(seq), 0) || '' FROM sqlite_sequence";
        assert_eq!(cluster.rows(0, sequence), cluster.rows(1, sequence), "seed {seed}");
    }
}
