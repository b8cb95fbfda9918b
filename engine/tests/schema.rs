//! Changes of the schema and of policies at the origin: what they do there, on edges, and after a
//! restart.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use littoral::{ColumnType, Consistency, TablePolicy, WriteError, Writers};

use self::support::Cluster;

const SCHEMA: &str = "
    CREATE TABLE cart(id TEXT PRIMARY KEY NOT NULL, item TEXT, note TEXT, qty INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE orders(id INTEGER PRIMARY KEY, code TEXT NOT NULL UNIQUE, total REAL);
    CREATE TABLE lines(
      id INTEGER PRIMARY KEY, orders INTEGER NOT NULL REFERENCES orders(id) ON DELETE CASCADE
      DEFERRABLE INITIALLY DEFERRED, qty INTEGER CHECK (qty > 0));
";

fn linked(nodes: usize) -> Cluster {
    let columns = [("qty".to_owned(), ColumnType::Counter)].into();
    let cart = TablePolicy { writers: Writers::Any, columns, ..TablePolicy::default() };
    support::linked(nodes, SCHEMA, &[("cart", cart)])
}

const SHAPE: &str = "SELECT type, name, tbl_name, sql FROM sqlite_schema
                     WHERE name NOT LIKE 'littoral%' AND name NOT LIKE 'sqlite%' ORDER BY name";

/// Nodes with the same tables, ids, policies, version and rows.
fn assert_alike(cluster: &mut Cluster) {
    cluster.settle();
    for node in 0..cluster.replicas.len() {
        assert_eq!(cluster.replica(node).status().halted, None, "node {node}");
    }
    cluster.assert_equal();
    const CATALOG: &str = "SELECT t.id, t.name, policy, writers, explicit_key, next_column, c.id,
                             c.name, c.type
                           FROM littoral_tables t JOIN littoral_ids i ON i.table_id = t.id
                           LEFT JOIN littoral_columns c ON c.table_id = t.id
                           ORDER BY t.id, c.id";
    const VERSION: &str = "SELECT name, value FROM littoral_meta
                           WHERE name IN ('schema_version', 'next_table') ORDER BY name";
    for query in [SHAPE, CATALOG, VERSION] {
        let origin = cluster.rows(0, query);
        for node in 1..cluster.replicas.len() {
            assert_eq!(cluster.rows(node, query), origin, "node {node}");
        }
    }
    let version = cluster.replica(0).status().schema;
    for node in 1..cluster.replicas.len() {
        assert_eq!(cluster.replica(node).status().schema, version);
    }
}

fn reopen(cluster: &mut Cluster, node: usize) {
    let now = cluster.now;
    let (_, closed) = cluster.replicas[node].take().unwrap().close(now);
    closed.unwrap();
    cluster.open(node);
}

fn refused(cluster: &mut Cluster, node: usize, sql: &'static str) -> WriteError {
    let before = cluster.rows(node, SHAPE);
    let error = cluster.try_write(node, |tx| tx.execute_batch(sql)).unwrap_err();
    assert_eq!(cluster.rows(node, SHAPE), before, "{sql}");
    error
}

#[test]
fn statements_and_rows_mix_in_one_transaction_and_reach_the_edges() {
    let mut cluster = linked(3);
    cluster.write(
        0,
        "INSERT INTO orders VALUES(1, 'a', 2.5);
         ALTER TABLE orders ADD COLUMN note TEXT DEFAULT 'none';
         INSERT INTO orders VALUES(2, 'b', 3.5, 'two');
         UPDATE orders SET note = 'one' WHERE id = 1;
         ALTER TABLE orders RENAME COLUMN note TO remark;
         CREATE TABLE stock(sku TEXT PRIMARY KEY NOT NULL, n INTEGER);
         INSERT INTO stock SELECT code, id FROM orders;
         CREATE INDEX by_n ON stock(n);
         CREATE VIEW plenty AS SELECT * FROM stock WHERE n > 1;
         CREATE TRIGGER restock AFTER DELETE ON stock BEGIN
           UPDATE orders SET remark = 'sold' WHERE code = old.sku; END;
         ALTER TABLE stock RENAME TO inventory;
         DELETE FROM inventory WHERE sku = 'a';
         ALTER TABLE orders DROP COLUMN total;",
    );
    assert_alike(&mut cluster);
    for node in 0..3 {
        assert_eq!(cluster.rows(node, "SELECT * FROM orders"), ["1|a|sold", "2|b|two"]);
        assert_eq!(cluster.rows(node, "SELECT * FROM plenty"), ["b|2"]);
    }
    cluster.write(0, "UPDATE inventory SET n = 7; INSERT INTO orders VALUES(3, 'c', NULL)");
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(2, "SELECT n FROM inventory"), ["7"]);
    for node in 0..3 {
        reopen(&mut cluster, node);
    }
    cluster.links.clear();
    cluster.link(1, 0);
    cluster.link(2, 1);
    cluster.write(0, "DROP TABLE inventory; DROP VIEW plenty; DELETE FROM orders WHERE id = 1");
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(2, "SELECT id FROM orders"), ["2", "3"]);
}

#[test]
fn ids_are_kept_by_a_rename_and_never_given_twice() {
    let mut cluster = linked(2);
    let ids = "SELECT t.name || '.' || c.name || ' ' || t.id || '.' || c.id FROM littoral_tables t
               JOIN littoral_columns c ON c.table_id = t.id WHERE t.name = 'a' ORDER BY c.id";
    cluster.write(0, "CREATE TABLE a(k INTEGER PRIMARY KEY, x, y)");
    assert_eq!(cluster.rows(0, ids), ["a.k 4.1", "a.x 4.2", "a.y 4.3"]);
    cluster.write(0, "ALTER TABLE a RENAME x TO z; ALTER TABLE a DROP y; ALTER TABLE a ADD y");
    assert_eq!(cluster.rows(0, ids), ["a.k 4.1", "a.z 4.2", "a.y 4.4"]);
    cluster.write(0, "DROP TABLE a; CREATE TABLE a(k INTEGER PRIMARY KEY)");
    assert_eq!(cluster.rows(0, ids), ["a.k 5.1"]);
    cluster.write(0, "CREATE TABLE b(k INTEGER PRIMARY KEY); DROP TABLE b");
    cluster.write(0, "DROP TABLE a");
    cluster.write(0, "CREATE TABLE a(k INTEGER PRIMARY KEY)");
    assert_eq!(cluster.rows(0, ids), ["a.k 7.1"]);
    assert_alike(&mut cluster);
}

#[test]
fn a_job_that_fails_leaves_schema_catalog_and_gate_as_they_were() {
    let mut cluster = linked(2);
    let before = cluster.rows(0, SHAPE);
    let catalog =
        "SELECT * FROM littoral_tables, littoral_meta WHERE littoral_meta.name <> 'opened'";
    let known = cluster.rows(0, catalog);
    let error = cluster.try_write(0, |tx| {
        tx.execute_batch(
            "CREATE TABLE gone(k INTEGER PRIMARY KEY); INSERT INTO gone VALUES(1);
             ALTER TABLE orders ADD COLUMN gone;
             SELECT littoral_policy('gone', 'local')",
        )?;
        Err(WriteError::Aborted("changed my mind".to_owned()))
    });
    assert!(matches!(error, Err(WriteError::Aborted(_))));
    assert_eq!(cluster.rows(0, SHAPE), before);
    assert_eq!(cluster.rows(0, catalog), known);
    cluster.write(0, "INSERT INTO orders VALUES(1, 'a', 1)");
    assert!(
        refused(&mut cluster, 0, "INSERT INTO gone VALUES(1)")
            .to_string()
            .contains("no such table")
    );
    assert_alike(&mut cluster);
}

#[test]
fn a_savepoint_takes_changes_of_the_schema_back() {
    let mut cluster = linked(2);
    cluster.write(
        0,
        "INSERT INTO orders VALUES(1, 'a', 1);
         SAVEPOINT s;
         UPDATE orders SET total = 2;
         CREATE TABLE gone(k INTEGER PRIMARY KEY);
         INSERT INTO gone VALUES(1);
         ALTER TABLE orders DROP COLUMN total;
         INSERT INTO orders VALUES(2, 'b');
         ROLLBACK TO s;
         INSERT INTO orders VALUES(3, 'c', 3);
         CREATE TABLE kept(k INTEGER PRIMARY KEY);
         RELEASE s;
         INSERT INTO kept VALUES(9)",
    );
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(1, "SELECT * FROM orders"), ["1|a|1.0", "3|c|3.0"]);
    assert_eq!(cluster.rows(1, "SELECT * FROM kept"), ["9"]);
}

#[test]
fn a_statement_that_fails_or_is_refused_changes_nothing_and_the_job_goes_on() {
    let mut cluster = linked(2);
    cluster
        .try_write(0, |tx| {
            tx.execute("INSERT INTO orders VALUES(1, 'a', 1)", ())?;
            for (sql, why) in [
                ("CREATE TABLE orders(k INTEGER PRIMARY KEY)", "already exists"),
                ("ALTER TABLE orders DROP COLUMN missing", "no such column"),
                ("CREATE TABLE t(rowid, oid, _rowid_)", "no primary key"),
                ("CREATE TABLE t AS SELECT 1", "AS SELECT"),
                ("CREATE UNIQUE INDEX u ON cart(item)", "UNIQUE (item)"),
                ("CREATE TABLE littoral_x(k INTEGER PRIMARY KEY)", "littoral_"),
                ("CREATE INDEX i ON littoral_log(seq)", "littoral_"),
                ("DROP TABLE littoral_log", "littoral_"),
                ("CREATE TEMP TABLE t(k INTEGER PRIMARY KEY)", "temporary"),
                ("CREATE TABLE c(k TEXT PRIMARY KEY NOT NULL REFERENCES cart(id))", "foreign key"),
                ("REINDEX", "DROP INDEX and CREATE INDEX"),
                ("PRAGMA optimize", "run ANALYZE instead"),
                ("CREATE TABLE sqlite_stat1(a)", "reserved for internal use"),
                ("INSERT INTO sqlite_stat1 VALUES('orders', 'i', '1 1')", "no such table"),
                ("INSERT INTO sqlite_schema VALUES('table','x','x',0,'')", "may not be modified"),
            ] {
                let error = tx.execute(sql, ()).unwrap_err().to_string();
                assert!(error.contains(why), "{sql}: {error}");
            }
            tx.execute("CREATE TABLE IF NOT EXISTS orders(k)", ())?;
            tx.execute("DROP TABLE IF EXISTS missing", ())?;
            tx.execute("INSERT INTO orders VALUES(2, 'b', 2)", ()).map(drop)
        })
        .unwrap();
    assert_eq!(cluster.replica(0).status().schema.0, 1);
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(1, "SELECT id FROM orders"), ["1", "2"]);
}

#[test]
fn a_group_with_a_change_of_the_schema_in_it_commits_job_by_job() {
    let mut cluster = linked(2);
    let now = cluster.now;
    let tickets: Vec<_> = [
        "INSERT INTO orders VALUES(1, 'a', 1)",
        "ALTER TABLE orders ADD COLUMN more DEFAULT 5",
        "INSERT INTO orders VALUES(2, 'b', 2, 3)",
        "INSERT INTO orders VALUES(3, 'a', 1, 1)",
        "CREATE TABLE late(k INTEGER PRIMARY KEY); INSERT INTO late VALUES(1)",
    ]
    .into_iter()
    .map(|sql| cluster.replica(0).write(now, Box::new(move |tx| tx.execute_batch(sql))))
    .collect();
    cluster.drain(0);
    let ok: Vec<bool> =
        tickets.iter().map(|t| cluster.done.remove(&(0, *t)).unwrap().is_ok()).collect();
    assert_eq!(ok, [true, true, true, false, true]);
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(1, "SELECT * FROM orders"), ["1|a|1.0|5", "2|b|2.0|3"]);
}

#[test]
fn an_edge_is_told_where_the_schema_changes() {
    let mut cluster = linked(2);
    for sql in [
        "CREATE TABLE t(k INTEGER PRIMARY KEY)",
        "DROP TABLE cart",
        "ALTER TABLE cart ADD COLUMN x",
        "CREATE INDEX i ON cart(item)",
        "DROP VIEW IF EXISTS v; CREATE VIEW v AS SELECT 1",
        "SELECT littoral_policy('cart', 'eventual')",
    ] {
        let error = refused(&mut cluster, 1, sql);
        assert!(matches!(error, WriteError::SchemaChange { .. }), "{sql}: {error}");
        assert!(error.to_string().contains("run it there (node n0)"), "{error}");
    }
    let declared = cluster.try_write(1, |tx| tx.declare("cart", TablePolicy::default()));
    assert!(matches!(declared, Err(WriteError::SchemaChange { .. })));
}

#[test]
fn a_row_written_before_a_column_was_heard_of_has_its_default() {
    let mut cluster = linked(2);
    cluster.write(1, "INSERT INTO cart VALUES('a', 'apple', 'x', 1)");
    cluster.settle();
    cluster.cut();
    cluster
        .write(1, "INSERT INTO cart VALUES('b', 'pear', 'y', 2); UPDATE cart SET qty = qty + 10");
    cluster.write(
        0,
        "ALTER TABLE cart ADD COLUMN color TEXT DEFAULT 'red';
         ALTER TABLE cart ADD COLUMN hits INTEGER NOT NULL DEFAULT 0;
         ALTER TABLE cart RENAME COLUMN note TO remark;
         SELECT littoral_policy('cart', 'eventual',
           json('{\"writers\":\"any\",\"columns\":{\"qty\":\"counter\",\"hits\":\"counter\"}}'));
         UPDATE cart SET color = 'green', hits = hits + 1;
         INSERT INTO cart VALUES('b', 'plum', NULL, 0, 'blue', 5)",
    );
    cluster.link(1, 0);
    assert_alike(&mut cluster);
    cluster.write(1, "UPDATE cart SET hits = hits + 1, remark = 'z'");
    assert_alike(&mut cluster);
    let rows = cluster.rows(0, "SELECT id, qty, color, hits, remark FROM cart ORDER BY id");
    assert_eq!(rows, ["a|11|green|2|z", "b|12|blue|6|z"]);
    for node in 0..2 {
        reopen(&mut cluster, node);
    }
    cluster.links.clear();
    cluster.link(1, 0);
    cluster.write(0, "UPDATE cart SET color = 'x'");
    assert_alike(&mut cluster);
}

#[test]
fn a_multi_writer_table_changes_at_once_only_where_nobody_can_notice() {
    let mut cluster = linked(2);
    for sql in [
        "DROP TABLE cart",
        "ALTER TABLE cart DROP COLUMN note",
        "ALTER TABLE cart ADD COLUMN c INTEGER CHECK (c > 0)",
        "ALTER TABLE cart ADD COLUMN c TEXT DEFAULT CURRENT_TIMESTAMP",
        "ALTER TABLE cart ADD COLUMN c TEXT NOT NULL",
        "SELECT littoral_policy('cart', 'eventual')",
        "SELECT littoral_policy('cart', 'local')",
        "SELECT littoral_policy('cart', 'eventual', '{\"writers\":\"any\"}')",
        "ALTER TABLE cart ADD COLUMN c INTEGER NOT NULL DEFAULT 1; SELECT littoral_policy('cart',
           'eventual', '{\"writers\":\"any\",\"columns\":{\"qty\":\"counter\",\"c\":\"counter\"}}')",
    ] {
        let error = refused(&mut cluster, 0, sql);
        assert!(matches!(error, WriteError::NeedsFreeze { .. }), "{sql}: {error}");
    }
    cluster.write(
        0,
        "ALTER TABLE cart ADD COLUMN c TEXT NOT NULL DEFAULT 'x';
         ALTER TABLE cart RENAME TO basket; CREATE INDEX i ON basket(c); DROP INDEX i;
         SELECT littoral_policy('basket', 'eventual', '{\"writers\":\"any\",\"columns\":{\"qty\":\"counter\"}}')",
    );
    assert_alike(&mut cluster);
}

#[test]
fn policies_are_declared_in_sql_and_in_rust() {
    let mut cluster = linked(2);
    cluster.write(0, "CREATE TABLE t(k TEXT PRIMARY KEY NOT NULL, n INTEGER NOT NULL DEFAULT 0)");
    cluster.write(0, "INSERT INTO t VALUES('before', 1)");
    cluster.settle();
    assert!(matches!(
        cluster.try_write(1, |tx| tx.execute("DELETE FROM t", ()).map(drop)),
        Err(WriteError::OriginOnly { .. })
    ));
    cluster.write(
        0,
        "INSERT INTO t VALUES('same entry', 1);
         SELECT littoral_policy('T', 'eventual', json('{\"writers\":\"any\",\"columns\":{\"N\":\"counter\"}}'));
         UPDATE t SET n = n + 1",
    );
    cluster.settle();
    cluster.write(1, "UPDATE t SET n = n + 1");
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(0, "SELECT * FROM t ORDER BY k"), ["before|3", "same entry|3"]);
    let status = cluster.replica(1).status();
    let (_, policy) = status.tables.iter().find(|(name, _)| name == "t").unwrap();
    assert_eq!(policy.consistency, Consistency::Eventual);
    assert_eq!(policy.writers, Writers::Any);
    assert_eq!(policy.columns["n"], ColumnType::Counter);

    for (call, why) in [
        ("SELECT littoral_policy('nothing', 'eventual')", "no table \"nothing\""),
        ("SELECT littoral_policy('t', 'often')", "unknown policy \"often\""),
        ("SELECT littoral_policy('t', 'eventual', '[]')", "must be a JSON object"),
        ("SELECT littoral_policy('t', 'eventual', '{')", "must be a JSON object"),
        (
            "SELECT littoral_policy('t', 'eventual', '{\"max_lag\":1}')",
            "unknown option \"max_lag\"",
        ),
        ("SELECT littoral_policy('t', 'eventual', '{\"writers\":1}')", "must be a string"),
        ("SELECT littoral_policy('t', 'eventual', '{\"key\":\"none\"}')", "expected explicit"),
        ("SELECT littoral_policy('t', 'local', '{\"writers\":\"any\"}')", "leave writers out"),
        ("SELECT littoral_policy('orders', 'eventual', '{\"writers\":\"any\"}')", "UNIQUE (code)"),
        ("SELECT littoral_policy('orders', 'eventual', '{\"writers\":\"any\"}')", "lines"),
        (
            "SELECT littoral_policy('t', 'eventual', '{\"writers\":\"any\",\"columns\":{\"z\":\"max\"}}')",
            "column \"z\"",
        ),
    ] {
        let error = refused(&mut cluster, 0, call).to_string();
        assert!(error.contains(why), "{call}: {error}");
    }
    let policy = TablePolicy { consistency: Consistency::Eventual, ..TablePolicy::default() };
    cluster.try_write(0, move |tx| tx.declare("orders", policy.clone())).unwrap();
    assert_alike(&mut cluster);
}

#[test]
fn a_local_table_is_everywhere_and_its_rows_are_not() {
    let mut cluster = linked(2);
    cluster.write(
        0,
        "CREATE TABLE cache(k TEXT PRIMARY KEY NOT NULL, v); SELECT littoral_policy('cache', 'local');
         INSERT INTO cache VALUES('a', 'origin')",
    );
    cluster.settle();
    cluster.write(1, "INSERT INTO cache VALUES('a', 'edge')");
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(0, "SELECT v FROM cache"), ["origin"]);
    assert_eq!(cluster.rows(1, "SELECT v FROM cache"), ["edge"]);
    cluster.write(0, "ALTER TABLE cache ADD COLUMN at DEFAULT 1");
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(1, "SELECT * FROM cache"), ["a|edge|1"]);
    let error =
        refused(&mut cluster, 0, "CREATE TABLE sub(k INTEGER PRIMARY KEY, c REFERENCES cache(k))");
    assert!(error.to_string().contains("only one of the two is \"local\""), "{error}");
    let error = cluster
        .try_write(0, |tx| tx.execute_batch("SELECT littoral_policy('cache', 'read-after-write')"))
        .unwrap_err();
    assert!(error.to_string().contains("rows of its own"), "{error}");
    cluster.write(0, "DROP TABLE cache");
    assert_alike(&mut cluster);
}

#[test]
fn dropping_a_parent_captures_what_its_cascade_deletes_and_no_more() {
    let mut cluster = linked(2);
    cluster.write(
        0,
        "INSERT INTO orders VALUES(1, 'a', 1); INSERT INTO lines VALUES(1, 1, 5), (2, 1, 6);
         CREATE TABLE tag(id INTEGER PRIMARY KEY, o REFERENCES orders(id) ON DELETE SET NULL);
         INSERT INTO tag VALUES(1, 1)",
    );
    cluster.settle();
    let before = cluster.replica(1).status().counts.rows_applied;
    cluster.write(0, "DROP TABLE orders");
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(1, "SELECT count(*) FROM lines"), ["0"]);
    assert_eq!(cluster.rows(1, "SELECT * FROM tag"), ["1|null"]);
    assert_eq!(cluster.replica(1).status().counts.rows_applied - before, 3);
}

#[test]
fn a_rebuilt_table_passes_its_policy_and_its_ids_on() {
    let mut cluster = linked(2);
    cluster.write(
        0,
        "CREATE TABLE t(k INTEGER PRIMARY KEY, a TEXT, b TEXT);
         SELECT littoral_policy('t', 'eventual'); INSERT INTO t VALUES(1, 'x', 'y')",
    );
    cluster.settle();
    let ids = "SELECT t.id, policy, c.id, c.name FROM littoral_tables t
               JOIN littoral_columns c ON c.table_id = t.id WHERE t.name = 't' ORDER BY c.id";
    assert_eq!(cluster.rows(0, ids), ["4|eventual|1|k", "4|eventual|2|a", "4|eventual|3|b"]);
    cluster.write(
        0,
        "CREATE TABLE new_t(k INTEGER PRIMARY KEY, c INTEGER, b TEXT NOT NULL);
         INSERT INTO new_t SELECT k, 7, b FROM t; DROP TABLE t; ALTER TABLE new_t RENAME TO t;
         UPDATE t SET b = b || '!'",
    );
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(1, "SELECT * FROM t"), ["1|7|y!"]);
    assert_eq!(cluster.rows(1, ids), ["4|eventual|1|k", "4|eventual|3|b", "4|eventual|4|c"]);
}

#[test]
fn a_full_text_index_made_later_is_kept_on_every_node_also_after_a_rename() {
    let mut cluster = linked(2);
    cluster.write(
        0,
        "CREATE TABLE doc(id INTEGER PRIMARY KEY, body TEXT);
         CREATE VIRTUAL TABLE found USING fts5(body, content='doc', content_rowid='id');
         CREATE TRIGGER doc_in AFTER INSERT ON doc BEGIN
           INSERT INTO found(rowid, body) VALUES(new.id, new.body); END;
         SELECT littoral_policy('doc', 'eventual', '{\"writers\":\"any\",\"key\":\"explicit\"}');
         INSERT INTO doc VALUES(1, 'first words')",
    );
    cluster.settle();
    cluster.write(1, "INSERT INTO doc VALUES(2, 'second words')");
    assert_alike(&mut cluster);
    cluster.write(0, "ALTER TABLE doc RENAME COLUMN body TO words");
    cluster.settle();
    cluster.write(1, "INSERT INTO doc VALUES(3, 'third words')");
    cluster.write(0, "INSERT INTO doc VALUES(4, 'fourth words'); DROP TABLE IF EXISTS nowhere");
    assert_alike(&mut cluster);
    for node in 0..2 {
        let found = cluster.rows(node, "SELECT rowid FROM found('words') ORDER BY rowid");
        assert_eq!(found, ["1", "2", "3", "4"], "node {node}");
    }
    let error = refused(
        &mut cluster,
        0,
        "CREATE TRIGGER bad AFTER DELETE ON doc BEGIN
           INSERT INTO found(found, rowid, body) SELECT 'delete', id, words FROM doc; END",
    );
    assert!(error.to_string().contains("cannot fire on every node"), "{error}");
    cluster.write(0, "DROP TRIGGER doc_in; DROP TABLE found");
    assert_alike(&mut cluster);
}

#[test]
fn a_full_text_index_over_rows_that_are_there_finds_them_on_every_node() {
    const KEPT: &str = "
        CREATE TRIGGER doc_in AFTER INSERT ON doc BEGIN
          INSERT INTO found(rowid, body) VALUES(new.id, new.body); END;
        CREATE TRIGGER doc_out AFTER DELETE ON doc BEGIN
          INSERT INTO found(found, rowid, body) VALUES('delete', old.id, old.body); END;
        CREATE VIRTUAL TABLE bare USING fts5(body, content='');
        INSERT INTO found(found) VALUES('rebuild')";
    const FOUND: &str = "SELECT rowid FROM found('alpha') ORDER BY rowid";
    let make = |options: &str| format!("CREATE VIRTUAL TABLE found USING fts5(body, {options});");
    let make = make("content='doc', content_rowid='id'");
    let mut cluster = linked(2);
    cluster.write(
        0,
        "CREATE TABLE doc(id INTEGER PRIMARY KEY, body TEXT);
         INSERT INTO doc VALUES(1, 'alpha'), (2, 'alpha beta'), (3, 'gamma')",
    );
    assert_alike(&mut cluster);
    cluster.write(0, format!("{make}{KEPT}").leak());
    assert_alike(&mut cluster);
    let assert_found = |cluster: &mut Cluster, expected: &[&str]| {
        for node in 0..2 {
            assert_eq!(cluster.rows(node, FOUND), expected, "node {node}");
            assert!(cluster.replica(node).status().stale.is_empty());
        }
    };
    assert_found(&mut cluster, &["1", "2"]);
    cluster.write(0, "DELETE FROM doc WHERE id = 1; INSERT INTO doc VALUES(4, 'alpha delta')");
    assert_alike(&mut cluster);
    assert_found(&mut cluster, &["2", "4"]);
    let again = format!(
        "DROP TRIGGER doc_in; DROP TRIGGER doc_out; DROP TABLE bare; DROP TABLE found;
         INSERT INTO doc VALUES(5, 'alpha epsilon'); {make}{KEPT}"
    );
    cluster.write(0, again.leak());
    assert_alike(&mut cluster);
    assert_found(&mut cluster, &["2", "4", "5"]);
}

#[test]
fn what_the_rows_of_another_node_could_make_fail_in_a_local_table_is_refused() {
    let mut cluster = linked(2);
    cluster.write(
        0,
        "CREATE TABLE cache(k TEXT PRIMARY KEY NOT NULL, v TEXT); SELECT littoral_policy('cache', 'local');
         CREATE TABLE strict(k TEXT PRIMARY KEY NOT NULL, v TEXT) STRICT;
         SELECT littoral_policy('strict', 'local');
         CREATE TABLE other(k INTEGER PRIMARY KEY); SELECT littoral_policy('other', 'local')",
    );
    cluster.settle();
    cluster.write(
        1,
        "INSERT INTO cache VALUES('a', 'not json'), ('b', 'not json'); INSERT INTO strict VALUES('a', 'b')",
    );
    let before = cluster.rows(0, SHAPE);
    for (statement, why) in [
        ("CREATE UNIQUE INDEX u ON cache(v)", "a UNIQUE index fails where a node's own rows"),
        ("CREATE INDEX i ON cache(json(v))", "a condition or an expression"),
        ("CREATE INDEX i ON cache(v) WHERE v ->> 'a' > 1", "a condition or an expression"),
        ("ALTER TABLE cache ADD COLUMN c TEXT NOT NULL", "\"c\" is NOT NULL without a default"),
        ("ALTER TABLE cache ADD COLUMN c DEFAULT CURRENT_TIMESTAMP", "not a constant"),
        ("ALTER TABLE cache ADD COLUMN c DEFAULT (random())", "not a constant"),
        ("ALTER TABLE cache ADD COLUMN c CHECK (v <> 'b')", "has a CHECK"),
        (
            "ALTER TABLE cache ADD COLUMN c INT DEFAULT 7 REFERENCES other(k)",
            "leave the default out",
        ),
        ("ALTER TABLE cache ADD COLUMN c AS (json(v))", "is generated"),
        ("ALTER TABLE strict ADD COLUMN c INT DEFAULT 'word'", "not of its type"),
        ("ALTER TABLE strict ADD COLUMN c INT DEFAULT 1.5", "not of its type"),
        ("ALTER TABLE strict ADD COLUMN c TEXT DEFAULT x'00'", "not of its type"),
        ("ALTER TABLE strict ADD COLUMN c BLOB DEFAULT 'word'", "not of its type"),
        ("ALTER TABLE strict ADD COLUMN c REAL DEFAULT 'word'", "not of its type"),
        (
            "CREATE TABLE new(k TEXT PRIMARY KEY NOT NULL); DROP TABLE cache;
             ALTER TABLE new RENAME TO cache",
            "in the place of every node's own",
        ),
    ] {
        let error = refused(&mut cluster, 0, statement).to_string();
        assert!(error.contains(why), "{statement}: {error}");
        assert_eq!(cluster.rows(0, SHAPE), before, "{statement}");
    }
    cluster.write(
        0,
        "ALTER TABLE cache ADD COLUMN c TEXT NOT NULL DEFAULT 'c'; CREATE INDEX i ON cache(v, c);
         ALTER TABLE cache ADD COLUMN d INT REFERENCES other(k); ALTER TABLE cache RENAME COLUMN v TO w;
         ALTER TABLE cache DROP COLUMN d; ALTER TABLE cache RENAME TO kept;
         ALTER TABLE strict ADD COLUMN i INTEGER DEFAULT '7'; ALTER TABLE strict ADD COLUMN t TEXT DEFAULT 7;
         ALTER TABLE strict ADD COLUMN r REAL NOT NULL DEFAULT 7; ALTER TABLE strict ADD COLUMN a ANY DEFAULT 7;
         ALTER TABLE strict ADD COLUMN b BLOB DEFAULT x'07'",
    );
    // While its rows are the same everywhere, a table may change in any way.
    cluster.write(
        0,
        "CREATE TABLE tags(k TEXT PRIMARY KEY NOT NULL, v); INSERT INTO tags VALUES('a', 1);
         SELECT littoral_policy('tags', 'local'); CREATE UNIQUE INDEX u ON tags(v)",
    );
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(1, "SELECT * FROM kept"), ["a|not json|c", "b|not json|c"]);
    assert_eq!(cluster.rows(1, "SELECT * FROM strict"), ["a|b|7|7|7.0|7|[7]"]);
}

#[test]
fn a_default_that_rows_elsewhere_do_not_take_has_to_wait() {
    let mut cluster = linked(2);
    cluster.write(
        0,
        "CREATE TABLE strict(k TEXT PRIMARY KEY NOT NULL, v TEXT) STRICT;
         SELECT littoral_policy('strict', 'eventual', '{\"writers\":\"any\"}')",
    );
    cluster.settle();
    cluster.cut();
    cluster.write(1, "INSERT INTO strict VALUES('a', 'b')");
    let error = refused(&mut cluster, 0, "ALTER TABLE strict ADD COLUMN c INT DEFAULT 'word'");
    assert!(matches!(error, WriteError::NeedsFreeze { .. }), "{error}");
    cluster.write(0, "ALTER TABLE strict ADD COLUMN c INT DEFAULT '7'");
    cluster.link(1, 0);
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(0, "SELECT * FROM strict"), ["a|b|7"]);
}
