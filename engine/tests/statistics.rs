//! ANALYZE: statistics that each node has for itself, whatever becomes of the schema.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use self::support::Cluster;

const SCHEMA: &str = "
    CREATE TABLE cart(id TEXT PRIMARY KEY NOT NULL, item TEXT);
    CREATE TABLE orders(id INTEGER PRIMARY KEY, code TEXT NOT NULL UNIQUE, total REAL);
    CREATE TABLE lines(id INTEGER PRIMARY KEY, orders INTEGER NOT NULL REFERENCES orders(id));";

fn linked() -> Cluster {
    support::linked(2, SCHEMA, &[("cart", support::any())])
}

#[test]
fn analyze_is_each_nodes_own_and_its_readers_plan_by_it() {
    let mut cluster = linked();
    cluster.write(
        0,
        "CREATE TABLE many(id INTEGER PRIMARY KEY, alike, apart);
         CREATE INDEX by_alike ON many(alike);
         CREATE INDEX by_apart ON many(apart)",
    );
    cluster.settle();
    let reader = cluster.replica(1).db().reader().unwrap();
    let plan = || -> String {
        // Only what runs looks whether the schema is another one.
        reader.connection().query_row("SELECT count(*) FROM many", (), |_| Ok(())).unwrap();
        let sql = "EXPLAIN QUERY PLAN SELECT * FROM many WHERE alike = 1 AND apart BETWEEN 5 AND 6";
        reader.connection().query_row(sql, (), |row| row.get(3)).unwrap()
    };
    assert!(plan().contains("by_alike"), "{}", plan());
    // The first one makes the table for statistics, and finds no rows yet.
    for fill in [false, true] {
        if fill {
            cluster.write(
                0,
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
                 INSERT INTO many(alike, apart) SELECT 1, i FROM n",
            );
            cluster.settle();
        }
        let before = cluster.replica(1).status().applied;
        let changed = cluster
            .try_write(1, |tx| {
                tx.execute(
                    "INSERT INTO cart(id, item) VALUES('a', 'x') ON CONFLICT DO NOTHING",
                    (),
                )?;
                tx.execute("ANALYZE", ())?;
                assert_eq!(tx.prepare("analyze many")?.execute(())?, 0);
                tx.execute("UPDATE cart SET item = item || 'y'", ()).map(drop)
            })
            .unwrap();
        assert!(changed.dot.is_some() && cluster.replica(1).status().applied != before);
        let committed = cluster.try_write(1, |tx| tx.execute("ANALYZE", ()).map(drop)).unwrap();
        assert_eq!(committed.dot, None, "nothing of it replicates");
    }
    assert!(plan().contains("by_apart"), "{}", plan());
    cluster.settle();
    cluster.assert_equal();
    let statistics = "SELECT count(*) > 0 FROM sqlite_schema WHERE name = 'sqlite_stat1'";
    assert_eq!(
        (cluster.rows(0, statistics), cluster.rows(1, statistics)),
        (vec!["0".to_owned()], vec!["1".to_owned()])
    );
    // Nobody writes them otherwise.
    let error = cluster
        .try_write(1, |tx| tx.execute("DELETE FROM sqlite_stat1", ()).map(drop))
        .unwrap_err();
    assert!(error.to_string().contains("sqlite_stat1"), "{error}");

    // Changes of the schema go on, where there are statistics and where there are none.
    drop(reader);
    let now = cluster.now;
    let (_, closed) = cluster.replicas[1].take().unwrap().close(now);
    closed.unwrap();
    cluster.open(1);
    cluster.links.clear();
    cluster.link(0, 1);
    cluster.write(
        0,
        "DROP INDEX by_apart;
         ALTER TABLE many DROP COLUMN apart;
         ALTER TABLE lines RENAME TO positions",
    );
    cluster.settle();
    cluster.assert_equal();
    let of_many = "SELECT count(*) FROM sqlite_stat1 WHERE tbl = 'many'";
    assert_eq!(cluster.rows(1, of_many), ["1"]);
    cluster.write(0, "DROP TABLE many");
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(1, of_many), ["0"]);
    cluster.write(1, "INSERT INTO cart(id, item) VALUES('b', 'z')");
    cluster.settle();
    cluster.assert_equal();
}

#[test]
fn a_group_with_analyze_in_it_commits_job_by_job() {
    let mut cluster = linked();
    let now = cluster.now;
    let tickets: Vec<_> =
        ["INSERT INTO orders VALUES(1, 'a', 1)", "ANALYZE", "INSERT INTO orders VALUES(2, 'b', 2)"]
            .into_iter()
            .map(|sql| {
                let job = move |tx: &mut littoral::WriteTx<'_>| tx.execute(sql, ()).map(drop);
                cluster.replica(0).write(now, Box::new(job))
            })
            .collect();
    cluster.drain(0);
    assert!(tickets.iter().all(|ticket| cluster.done.remove(&(0, *ticket)).unwrap().is_ok()));
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(0, "SELECT tbl FROM sqlite_stat1 WHERE tbl = 'orders'"), ["orders"]);
    assert_eq!(cluster.rows(1, "SELECT id FROM orders"), ["1", "2"]);
}
