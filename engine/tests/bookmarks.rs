//! Bookmarks: a session that moves to another node sees there what it wrote and read before.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]
#![expect(clippy::disallowed_methods, reason = "readers run on threads of their own")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use littoral::{
    Bookmark, Consistency, MaxLag, OnStale, OnUnreachable, Output, ReadRefused, Seq, TablePolicy,
};

use support::{Cluster, any, linked};

const SCHEMA: &str =
    "CREATE TABLE cart(id TEXT PRIMARY KEY NOT NULL, qty INTEGER NOT NULL DEFAULT 0)";

fn cluster(nodes: usize) -> Cluster {
    linked(nodes, SCHEMA, &[("cart", any())])
}

fn reached(cluster: &mut Cluster, node: usize, bookmark: &Bookmark) -> bool {
    cluster.replica(node).db().reached(bookmark).is_ok()
}

#[test]
fn a_bookmark_is_reached_where_the_write_has_arrived() {
    let mut cluster = cluster(3);
    cluster.wait(2000);
    cluster.cut();
    cluster.write(1, "INSERT INTO cart VALUES('tea', 1)");
    let bookmark = cluster.replica(1).bookmark();
    assert!(reached(&mut cluster, 1, &bookmark));
    let refused = cluster.replica(2).db().reached(&bookmark).unwrap_err();
    assert_eq!(refused.missing.entries.len(), 1, "{refused}");
    assert!(refused.to_string().contains("it lacks entry 1.2:1"), "{refused}");
    cluster.link(1, 2);
    cluster.settle();
    assert!(reached(&mut cluster, 2, &bookmark));
    assert!(!reached(&mut cluster, 0, &bookmark));
}

#[test]
fn what_a_frontier_covers_is_not_named_one_by_one() {
    let mut cluster = cluster(5);
    for node in 0..5 {
        cluster.write(node, "INSERT INTO cart VALUES(hex(randomblob(8)), 1)");
    }
    let long = cluster.replica(1).bookmark();
    (0..5).for_each(|_| cluster.wait(1000));
    let short = cluster.replica(1).bookmark();
    assert!(short.frontier() > long.frontier());
    assert_eq!(short.entries().iter().count(), 1, "the frontier's own entry: {short:?}");
    for node in 0..5 {
        assert!(reached(&mut cluster, node, &short));
    }
    // It holds after a restart, too.
    let now = cluster.now_at(1);
    cluster.replicas[1].take().unwrap().close(now).1.unwrap();
    cluster.open(1);
    assert!(reached(&mut cluster, 1, &short));
    assert_eq!(cluster.replica(1).bookmark().entries(), short.entries());
}

#[test]
fn sql_gives_the_bookmark_of_what_a_connection_reads() {
    let mut cluster = cluster(2);
    cluster.write(1, "INSERT INTO cart VALUES('tea', 1)");
    let reader = cluster.replica(1).db().reader().unwrap();
    let text: String = reader
        .connection()
        .query_row("SELECT littoral_bookmark() FROM cart", [], |row| row.get(0))
        .unwrap();
    assert_eq!(text.parse::<Bookmark>().unwrap(), cluster.replica(1).bookmark());
    let told = cluster.refused(1, "INSERT INTO cart VALUES(littoral_bookmark(), 1)");
    assert!(told.contains("before it is committed"), "{told}");
}

/// SQLite shows a commit before the replica knows that it succeeded.
#[test]
fn the_bookmark_of_a_read_covers_what_it_saw_while_others_write() {
    let mut cluster = cluster(2);
    cluster.write(1, "INSERT INTO cart VALUES('n', 0)");
    let author = cluster.replica(1).status().author.unwrap();
    let first = cluster.replica(1).status().vector.seq(author);
    let db = cluster.replica(1).db().clone();
    let over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = [false, true]
        .into_iter()
        .map(|by_sql| {
            let (reader, over) = (db.reader().unwrap(), Arc::clone(&over));
            let db = db.clone();
            thread::spawn(move || {
                let mut last = 0;
                while !over.load(Ordering::Relaxed) {
                    let conn = reader.connection();
                    let snapshot = conn.unchecked_transaction().unwrap();
                    let n: i64 =
                        conn.query_row("SELECT qty FROM cart", [], |row| row.get(0)).unwrap();
                    let n = Seq::try_from(n).unwrap();
                    let bookmark = if by_sql {
                        let sql = "SELECT littoral_bookmark()";
                        let text: String = conn.query_row(sql, [], |row| row.get(0)).unwrap();
                        text.parse().unwrap()
                    } else {
                        reader.bookmark().unwrap()
                    };
                    snapshot.finish().unwrap();
                    let named = bookmark.entries().seq(author);
                    assert!(named >= first + n, "it saw {n} and names {named}");
                    assert!(n >= last, "it saw {last} before");
                    last = n;
                    if let Some(settled) = db.bookmark() {
                        assert!(settled.entries().seq(author) >= named);
                    }
                }
                last
            })
        })
        .collect();
    for _ in 0..400 {
        let now = cluster.now;
        let replica = cluster.replica(1);
        let job = |tx: &mut littoral::WriteTx<'_>| {
            tx.execute("UPDATE cart SET qty = qty + 1", ()).map(drop)
        };
        replica.write(now, Box::new(job));
        while !matches!(replica.poll(), Output::WakeAt(_)) {}
    }
    over.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 0);
    }
}

#[test]
fn a_reader_tells_which_tables_a_statement_touches() {
    const SCHEMA: &str = "
        CREATE TABLE cart(id TEXT PRIMARY KEY NOT NULL, qty INTEGER NOT NULL DEFAULT 0);
        CREATE TABLE orders(id INTEGER PRIMARY KEY, note TEXT);
        CREATE TABLE lines(id INTEGER PRIMARY KEY, of INTEGER REFERENCES orders ON DELETE CASCADE);
        CREATE TABLE notes(id INTEGER PRIMARY KEY, what TEXT);
        CREATE VIEW big AS SELECT id FROM cart WHERE qty > 10;
        CREATE TRIGGER orders_gone AFTER DELETE ON orders
        BEGIN INSERT INTO notes(what) VALUES(old.note); END;";
    let mut cluster = linked(2, SCHEMA, &[("cart", any())]);
    let reader = cluster.replica(1).db().reader().unwrap();
    let touches = |sql: &str| -> Vec<String> {
        let touched = reader.touches(sql).unwrap().into_iter();
        let mark = |what: bool, letter| if what { letter } else { "" };
        touched
            .map(|t| format!("{} {}{}", t.table, mark(t.reads, "r"), mark(t.writes, "w")))
            .collect()
    };
    assert_eq!(touches("SELECT count(*) FROM big"), ["cart r"]);
    assert_eq!(touches("WITH o AS (SELECT id FROM orders) SELECT 1 FROM o"), ["orders r"]);
    assert_eq!(touches("INSERT INTO cart SELECT note, 1 FROM orders"), ["cart w", "orders r"]);
    let deleted = touches("DELETE FROM orders WHERE id = 1");
    assert_eq!(deleted, ["lines rw", "notes w", "orders rw"]);
    assert!(touches("SELECT 1").is_empty());
    assert!(touches("SELECT name FROM sqlite_schema").is_empty());
    // Nothing was run, and what SQLite would do while it prepares is not allowed either.
    assert!(reader.touches("PRAGMA foreign_keys = off").is_err());
    let on: bool =
        reader.connection().query_row("PRAGMA foreign_keys", [], |row| row.get(0)).unwrap();
    assert!(on);
    assert!(reader.connection().execute("DELETE FROM orders", []).is_err());
}

#[test]
fn a_bound_on_lag_is_part_of_the_policy_everywhere() {
    let mut cluster = cluster(2);
    assert!(!cluster.replica(1).db().bounds_lag());
    cluster.write(
        0,
        "SELECT littoral_policy('cart', 'eventual', \
         '{\"writers\": \"any\", \"max_lag_ms\": 2000, \"on_stale\": \"fail\"}')",
    );
    cluster.settle();
    let bound = |cluster: &mut Cluster, node: usize| {
        let tables = cluster.replica(node).status().tables;
        tables.into_iter().find_map(|(_, policy)| policy.max_lag)
    };
    let expected = Some(MaxLag { ms: 2000, on_stale: OnStale::Fail });
    assert_eq!([bound(&mut cluster, 0), bound(&mut cluster, 1)], [expected; 2]);
    let now = cluster.now_at(1);
    cluster.replicas[1].take().unwrap().close(now).1.unwrap();
    cluster.open(1);
    assert_eq!(bound(&mut cluster, 1), expected);
    assert!(cluster.replica(1).db().bounds_lag());
    for (options, why) in [
        (r#"'read-after-write', '{"max_lag_ms": 2000}'"#, "bounds reads of an eventual table"),
        (r#"'eventual', '{"max_lag_ms": 5}'"#, "max_lag_ms = 5: expected 100 to 86400000"),
        (r#"'eventual', '{"max_lag_ms": "5 s"}'"#, "must be a whole number"),
        (r#"'eventual', '{"on_stale": "fail"}'"#, "only with max_lag_ms"),
        (r#"'eventual', '{"max_lag_ms": 500, "on_stale": "ask"}'"#, "serve, wait, forward, fail"),
    ] {
        let sql = format!("SELECT littoral_policy('cart', {options})").leak();
        let told = cluster.refused(0, sql);
        assert!(told.contains(why), "{told}");
    }
}

#[test]
fn an_origin_strong_table_is_read_at_the_origin_only() {
    const SCHEMA: &str = "
        CREATE TABLE cart(id TEXT PRIMARY KEY NOT NULL, qty INTEGER NOT NULL DEFAULT 0);
        CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL DEFAULT 0);
        CREATE VIEW rich AS SELECT id FROM account WHERE balance > 10;";
    let strong = TablePolicy { consistency: Consistency::OriginStrong, ..TablePolicy::default() };
    let mut cluster = linked(2, SCHEMA, &[("cart", any()), ("account", strong)]);
    cluster.write(0, "INSERT INTO account VALUES(1, 20)");
    cluster.settle();
    let count = |reader: &littoral::Reader, sql: &str| {
        reader.connection().query_row(sql, [], |row| row.get::<_, i64>(0)).ok()
    };
    let [origin, edge] = [0, 1].map(|node| cluster.replica(node).db().reader().unwrap());
    for sql in ["SELECT count(*) FROM account", "SELECT count(*) FROM rich"] {
        assert_eq!(count(&origin, sql), Some(1));
        assert_eq!(count(&edge, sql), None, "{sql}");
        assert_eq!(edge.refused_origin_strong().as_deref(), Some("account"));
    }
    assert_eq!(count(&edge, "SELECT count(*) FROM cart"), Some(0));
    let told = cluster.refused(1, "INSERT INTO cart SELECT id, balance FROM account");
    assert!(told.contains("at the origin only"), "{told}");
    assert_eq!(origin.digest().unwrap(), edge.digest().unwrap());
    assert_eq!(edge.touches("SELECT * FROM rich").unwrap()[0].table, "account");

    // A declaration that comes later counts also for statements that were prepared before.
    cluster.write(0, "SELECT littoral_policy('account', 'read-after-write')");
    cluster.settle();
    let read = |edge: &littoral::Reader| {
        edge.restrict(None).unwrap();
        let found = edge.connection().prepare_cached("SELECT count(*) FROM account");
        found.and_then(|mut found| found.query_row([], |row| row.get::<_, i64>(0))).ok()
    };
    assert_eq!(read(&edge), Some(1));
    cluster.write(0, "SELECT littoral_policy('account', 'origin-strong')");
    cluster.settle();
    assert_eq!(read(&edge), None);
}

#[test]
fn what_may_be_stale_is_read_here_only_while_the_driver_says_so() {
    let strong = |on_unreachable| TablePolicy {
        consistency: Consistency::OriginStrong,
        on_unreachable,
        ..TablePolicy::default()
    };
    let schema = "CREATE TABLE a (id INTEGER PRIMARY KEY); CREATE TABLE b (id INTEGER PRIMARY KEY);
                  CREATE VIEW both AS SELECT a.id FROM a JOIN b USING (id);";
    let policies = [("a", strong(OnUnreachable::Stale)), ("b", strong(OnUnreachable::Fail))];
    let mut cluster = linked(2, schema, &policies);
    cluster.write(0, "INSERT INTO a VALUES (1)");
    cluster.settle();
    let db = cluster.replica(1).db().clone();
    assert!(db.serves_stale() && !cluster.replica(0).db().serves_stale());
    let reader = db.reader().unwrap();
    let read = |sql: &str| {
        let mut statement = reader.connection().prepare_cached(sql)?;
        statement.query_row((), |row| row.get::<_, i64>(0))
    };
    let refused = |sql| {
        let error = read(sql).unwrap_err();
        matches!(reader.refused(&error), ReadRefused::AtOrigin { .. })
    };
    let [a, b, both] =
        ["SELECT count(*) FROM a", "SELECT count(*) FROM b", "SELECT count(*) FROM both"];
    assert!(refused(a) && refused(b));
    reader.serve_stale(true);
    assert_eq!(read(a), Ok(1));
    assert!(refused(b) && refused(both));
    // What was prepared meanwhile is judged again.
    reader.serve_stale(false);
    assert!(refused(a));
    reader.serve_stale(true);
    assert_eq!(read(a), Ok(1));
    reader.restrict(None).unwrap();
    assert!(refused(a));

    // The schema says it as well.
    let change = "SELECT littoral_policy('b', 'origin-strong', '{\"on_unreachable\": \"stale\"}')";
    cluster.write(0, change);
    cluster.settle();
    reader.serve_stale(true);
    assert_eq!(read(both), Ok(0));
    let wrong = cluster
        .refused(0, "SELECT littoral_policy('b', 'eventual', '{\"on_unreachable\": \"stale\"}')");
    assert!(
        wrong.contains("on_unreachable says what reads of an origin-strong table get"),
        "{wrong}"
    );
}
