//! What a change of a multi-writer table leaves behind: clocks, ids, parked rows.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use littoral::{ColumnType, TablePolicy, WriteError, Writers};

use self::support::Cluster;

const SCHEMA: &str = "
    CREATE TABLE cart(id TEXT PRIMARY KEY NOT NULL, item TEXT, note TEXT, qty INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE other(id TEXT PRIMARY KEY NOT NULL, n INTEGER);
";

fn cluster(nodes: usize) -> Cluster {
    let columns = [("qty".to_owned(), ColumnType::Counter)].into();
    let cart = TablePolicy { writers: Writers::Any, columns, ..TablePolicy::default() };
    let mut cluster = Cluster::new(nodes, SCHEMA, &[("cart", cart), ("other", support::any())]);
    for node in 1..nodes {
        cluster.link(node, 0);
    }
    cluster.settle();
    cluster
}

fn migrate(cluster: &mut Cluster, script: &str) -> Result<(), WriteError> {
    let now = cluster.now;
    let ticket = cluster.replica(0).migrate(now, script);
    cluster.drain(0);
    cluster.done.remove(&(0, ticket)).unwrap().map(drop)
}

fn assert_done(cluster: &mut Cluster) {
    assert_eq!(cluster.replica(0).status().freeze, None);
    let why = "SELECT value FROM littoral_meta WHERE name = 'last_freeze'";
    assert_eq!(cluster.rows(0, why), [""]);
}

/// Long enough for acknowledgements and a frontier.
fn wait(cluster: &mut Cluster) {
    (0..20).for_each(|_| cluster.settle());
}

/// A node's process ends without a word, and begins again.
fn crash(cluster: &mut Cluster, node: usize) {
    cluster.replicas[node] = None;
    cluster.open(node);
}

fn restart(cluster: &mut Cluster, node: usize) {
    let now = cluster.now;
    cluster.replicas[node].take().unwrap().close(now).1.unwrap();
    cluster.open(node);
}

fn relink(cluster: &mut Cluster) {
    cluster.cut();
    for node in 1..cluster.replicas.len() {
        cluster.link(node, 0);
    }
    cluster.settle();
}

fn contested(cluster: &mut Cluster, node: usize) -> u64 {
    cluster.replica(node).status().contested_rows
}

const MANY: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 15000)
                    INSERT INTO cart(id) SELECT printf('a key that is long %d', i) FROM n";

/// A change happens while clocks of its table are left that no frontier covers, and afterwards one node
/// starts again.
fn change_under_clocks(script: &str) -> Cluster {
    let mut cluster = cluster(3);
    cluster.write(1, MANY);
    wait(&mut cluster);
    cluster.cut();
    cluster.link(1, 0);
    migrate(&mut cluster, script).unwrap_err();
    wait(&mut cluster);
    cluster.cut();
    // Node 1 knows of the freeze and is away; node 2 does not, and writes.
    cluster.write(2, "DELETE FROM cart");
    cluster.write(2, MANY);
    cluster.write(2, "UPDATE other SET n = 1; INSERT INTO other VALUES('x', 1)");
    cluster.link(2, 0);
    wait(&mut cluster);
    assert_done(&mut cluster);
    cluster
}

/// A node that was just started again writes before a frontier comes, then all of them do; they come to
/// the same.
fn assert_agree(cluster: &mut Cluster, first: usize) {
    cluster.cut();
    crash(cluster, first);
    assert_eq!(contested(cluster, first), 1, "that of the other table stays");
    cluster.write(first, "UPDATE cart SET item = 'early', qty = 3 WHERE id LIKE '%long 7'");
    cluster.write(first, "DELETE FROM cart WHERE id LIKE '%long 6'");
    relink(cluster);
    cluster.assert_rows("SELECT item, qty FROM cart WHERE id LIKE '%long 7'", &["early|3"]);
    cluster.assert_rows("SELECT count(*) FROM cart WHERE id LIKE '%long 6'", &["0"]);
    for (node, qty) in [(0, "5"), (1, "6"), (2, "7")] {
        let sql = format!("UPDATE cart SET qty = {qty}, item = 'i{qty}' WHERE id LIKE '%long 7'");
        cluster.try_write(node, move |tx| tx.execute(&sql, ()).map(drop)).unwrap();
        let row = format!("i{qty}|{qty}");
        cluster.assert_rows("SELECT item, qty FROM cart WHERE id LIKE '%long 7'", &[&row]);
    }
    cluster.write(1, "DELETE FROM cart WHERE id LIKE '%long 8'");
    cluster.assert_rows("SELECT count(*) FROM cart WHERE id LIKE '%long 8'", &["0"]);
    cluster.write(2, "INSERT INTO cart(id) VALUES('a key that is long 8')");
    cluster.assert_rows("SELECT count(*) FROM cart WHERE id LIKE '%long 8'", &["1"]);
    wait(cluster);
    assert_eq!(contested(cluster, 0), 0);
    for node in 0..cluster.replicas.len() {
        restart(cluster, node);
    }
    relink(cluster);
    cluster.assert_equal();
}

const RETYPE: &str =
    "SELECT littoral_policy('cart', 'read-after-write', json('{\"writers\": \"any\"}'))";
const REBUILD: &str = "
    CREATE TABLE new(id TEXT PRIMARY KEY NOT NULL, item TEXT, qty INTEGER NOT NULL DEFAULT 0);
    INSERT INTO new SELECT id, item, qty FROM cart; DROP TABLE cart; ALTER TABLE new RENAME TO cart";
const ORIGIN: &str = "SELECT littoral_policy('cart', 'read-after-write')";

#[test]
fn no_clock_outlives_another_type_whoever_starts_again() {
    for first in [0, 2] {
        let mut cluster = change_under_clocks(RETYPE);
        assert_eq!(contested(&mut cluster, 0), 1, "that of the other table stays");
        assert_agree(&mut cluster, first);
    }
}

#[test]
fn no_clock_outlives_a_rebuild_whoever_starts_again() {
    for first in [0, 2] {
        let mut cluster = change_under_clocks(REBUILD);
        assert_eq!(contested(&mut cluster, 0), 1, "that of the other table stays");
        assert_agree(&mut cluster, first);
    }
}

#[test]
fn no_clock_outlives_a_time_as_a_table_of_the_origin() {
    let mut cluster = change_under_clocks(ORIGIN);
    assert_eq!(contested(&mut cluster, 0), 1, "that of the other table stays");
    cluster.write(0, "DELETE FROM cart WHERE id LIKE '%long 9'; UPDATE cart SET qty = 3");
    cluster.write(0, RETYPE);
    cluster.settle();
    assert_agree(&mut cluster, 2);
    let count = "SELECT count(*) FROM cart WHERE id LIKE '%long 9'";
    cluster.assert_rows(count, &["0"]);
}

/// Freezes, and goes on when nobody is away.
fn migrate_slowly(cluster: &mut Cluster, script: &str) {
    let frozen = migrate(cluster, script);
    assert!(matches!(frozen, Err(WriteError::SchemaAccepted { .. })), "{frozen:?}");
    wait(cluster);
    assert_done(cluster);
}

const IDS: &str =
    "SELECT c.name, c.id FROM littoral_tables t JOIN littoral_columns c ON c.table_id = t.id
                   WHERE t.name = 'cart' ORDER BY c.id";

#[test]
fn the_id_of_a_column_is_not_given_again_after_a_rebuild_without_it() {
    let mut cluster = cluster(2);
    cluster.write(0, "ALTER TABLE cart ADD COLUMN newest TEXT");
    migrate_slowly(&mut cluster, REBUILD);
    assert_eq!(cluster.rows(0, IDS), ["id|1", "item|2", "qty|4"]);
    for node in 0..2 {
        restart(&mut cluster, node);
    }
    relink(&mut cluster);
    cluster.write(0, "ALTER TABLE cart ADD COLUMN color TEXT DEFAULT 'red'");
    cluster.assert_rows(IDS, &["id|1", "item|2", "qty|4", "color|6"]);

    // Nor if it came and went in one transaction.
    migrate_slowly(
        &mut cluster,
        "ALTER TABLE cart ADD COLUMN brief TEXT;
         CREATE TABLE new(id TEXT PRIMARY KEY NOT NULL, item TEXT, qty INTEGER NOT NULL DEFAULT 0, size TEXT);
         INSERT INTO new(id, item, qty) SELECT id, item, qty FROM cart;
         DROP TABLE cart; ALTER TABLE new RENAME TO cart",
    );
    cluster.assert_rows(IDS, &["id|1", "item|2", "qty|4", "size|8"]);

    // Whoever joins goes on where the others are.
    let joiner = cluster.newcomer();
    for _ in 0..2 {
        cluster.link(1, joiner);
        wait(&mut cluster);
    }
    assert_eq!(cluster.installed, 1);
    migrate_slowly(&mut cluster, "ALTER TABLE cart DROP COLUMN size");
    cluster.write(0, "ALTER TABLE cart ADD COLUMN weight INTEGER");
    cluster.assert_rows(IDS, &["id|1", "item|2", "qty|4", "weight|9"]);
    let next = "SELECT table_id, next_column FROM littoral_ids ORDER BY table_id";
    let at_origin = cluster.rows(0, next);
    assert_eq!(cluster.rows(joiner, next), at_origin);
}

/// What a program that knows nothing of littoral does to a node's file.
fn foreign(cluster: &Cluster, node: usize, sql: &str) {
    rusqlite::Connection::open(cluster.path(node)).unwrap().execute_batch(sql).unwrap();
}

fn parked(cluster: &mut Cluster, node: usize) -> u64 {
    cluster.replica(node).status().parked_rows
}

const LISTED: &str = "SELECT rule, \"row\", lost FROM littoral_conflicts ORDER BY id";

#[test]
fn parked_rows_of_a_table_that_is_dropped_stay_in_the_list() {
    let mut cluster = cluster(2);
    foreign(&cluster, 1, "CREATE UNIQUE INDEX in_the_way ON cart(note)");
    cluster.write(0, "INSERT INTO cart(id, note) VALUES('a', 'x'), ('b', 'x')");
    cluster.settle();
    assert_eq!(parked(&mut cluster, 1), 1);
    migrate_slowly(&mut cluster, "DROP TABLE cart");
    let row = "{\"item\":null,\"note\":\"x\",\"qty\":0}";
    for _ in 0..2 {
        assert_eq!(parked(&mut cluster, 1), 0);
        assert_eq!(cluster.rows(1, LISTED), [format!("dropped|[\"b\"]|{row}")]);
        restart(&mut cluster, 1);
    }
}

#[test]
fn a_rebuild_stores_the_rows_that_were_parked_before_it() {
    for script in [
        REBUILD,
        // As Rails does it.
        "CREATE TEMPORARY TABLE old AS SELECT * FROM cart; DROP TABLE cart;
         CREATE TABLE cart(id TEXT PRIMARY KEY NOT NULL, item TEXT, qty INTEGER NOT NULL DEFAULT 0);
         INSERT INTO cart SELECT id, item, qty FROM old; DROP TABLE old",
    ] {
        let mut cluster = cluster(2);
        foreign(&cluster, 1, "CREATE UNIQUE INDEX in_the_way ON cart(note)");
        foreign(&cluster, 0, "CREATE UNIQUE INDEX in_the_way ON cart(item)");
        cluster.write(0, "INSERT INTO cart(id, note, qty) VALUES('a', 'x', 1), ('b', 'x', 2)");
        cluster.write(1, "INSERT INTO cart(id, item) VALUES('c', 'y'), ('d', 'y')");
        cluster.settle();
        assert_eq!((parked(&mut cluster, 0), parked(&mut cluster, 1)), (1, 1));
        migrate_slowly(&mut cluster, script);
        assert_eq!((parked(&mut cluster, 0), parked(&mut cluster, 1)), (0, 0));
        let rows = ["a|1", "b|2", "c|0"];
        cluster.assert_rows("SELECT id, qty FROM cart ORDER BY id", &rows);
        // What the origin itself could not store is gone from the table, and told there.
        let listed = "SELECT rule, \"row\" FROM littoral_conflicts";
        assert_eq!(cluster.rows(0, listed), ["dropped|[\"d\"]"]);
        assert_eq!(cluster.rows(1, listed), ["dropped|[\"b\"]"]);
        // It can be written again.
        cluster.write(0, "INSERT INTO cart(id) VALUES('d'); UPDATE cart SET qty = qty + 1");
        restart(&mut cluster, 0);
        relink(&mut cluster);
        cluster.assert_rows("SELECT sum(qty) FROM cart", &["7"]);
    }
}

#[test]
fn another_type_leaves_parked_rows_parked() {
    let mut cluster = cluster(2);
    foreign(&cluster, 1, "CREATE UNIQUE INDEX in_the_way ON cart(note)");
    cluster.write(0, "INSERT INTO cart(id, note) VALUES('a', 'x'), ('b', 'x')");
    cluster.settle();
    migrate_slowly(&mut cluster, RETYPE);
    assert_eq!(parked(&mut cluster, 1), 1);
    cluster.write(0, "DELETE FROM cart WHERE id = 'a'; UPDATE cart SET qty = 7");
    cluster.assert_rows("SELECT id, qty FROM cart", &["b|7"]);
    assert_eq!(parked(&mut cluster, 1), 0);
}

#[test]
fn a_parked_row_has_the_default_of_a_column_that_came_later() {
    let mut cluster = cluster(3);
    foreign(&cluster, 1, "CREATE UNIQUE INDEX in_the_way ON cart(note)");
    cluster.write(0, "INSERT INTO cart(id, note) VALUES('a', 'x'), ('b', 'x')");
    cluster.settle();
    assert_eq!(parked(&mut cluster, 1), 1);
    migrate_slowly(&mut cluster, "ALTER TABLE cart ADD COLUMN word DEFAULT bare");
    cluster.cut();
    cluster.link(1, 0);
    cluster.write(
        0,
        "ALTER TABLE cart ADD COLUMN color TEXT NOT NULL DEFAULT 'red';
         ALTER TABLE cart ADD COLUMN size TEXT DEFAULT 5;
         ALTER TABLE cart ADD COLUMN hits INTEGER NOT NULL DEFAULT 0;
         SELECT littoral_policy('cart', 'read-after-write',
           '{\"writers\":\"any\",\"columns\":{\"qty\":\"counter\",\"hits\":\"counter\"}}')",
    );
    // A row whose author has not heard of the columns, and that cannot be stored either.
    cluster.write(2, "INSERT INTO cart(id, note, qty) VALUES('c', 'x', 4)");
    cluster.link(2, 0);
    cluster.settle();
    assert_eq!(parked(&mut cluster, 1), 2);
    cluster.write(0, "UPDATE cart SET hits = hits + 1, qty = qty + 1");
    cluster.write(0, "UPDATE cart SET note = id");
    let rows = ["a|red|5|text|bare|1|1", "b|red|5|text|bare|1|1", "c|red|5|text|bare|1|5"];
    cluster.assert_rows(
        "SELECT id, color, size, typeof(size), word, hits, qty FROM cart ORDER BY id",
        &rows,
    );
    assert_eq!(parked(&mut cluster, 1), 0);
}

#[test]
fn a_counter_over_something_else_than_integers_is_refused_before_anything_is_frozen() {
    let mut cluster = cluster(2);
    const COUNTED: &str = "SELECT littoral_policy('loose', 'eventual',
                             '{\"writers\":\"any\",\"columns\":{\"n\":\"counter\"}}')";
    cluster.write(
        0,
        "CREATE TABLE loose(a TEXT, b INTEGER, n INTEGER NOT NULL DEFAULT 0, PRIMARY KEY(a, b)) WITHOUT ROWID;
         INSERT INTO loose VALUES('x', 1, 5), ('it''s', 2, 'many'), ('z', 3, 1.5)",
    );
    cluster.settle();
    let refused = cluster.refused(0, COUNTED);
    let told = "column \"n\": a counter holds 64-bit integers only, and the row with a = 'it''s', b = 2 \
                has a TEXT in it; make that an integer first";
    assert!(refused.contains(told), "{refused}");
    cluster.write(0, "SELECT littoral_policy('loose', 'eventual', '{\"writers\":\"any\"}')");
    cluster.write(0, "UPDATE loose SET n = 2 WHERE n = 'many'");
    cluster.settle();
    let refused = migrate(&mut cluster, COUNTED).unwrap_err().to_string();
    assert!(refused.contains("a = 'z', b = 3 has a REAL"), "{refused}");
    assert_eq!(cluster.replica(0).status().freeze, None);

    // Looked at again when it runs: what has come meanwhile counts too.
    cluster.write(0, "UPDATE loose SET n = 3 WHERE a = 'z'");
    cluster.settle();
    cluster.cut();
    migrate(&mut cluster, COUNTED).unwrap_err();
    cluster.write(1, "UPDATE loose SET n = 'few' WHERE a = 'x'");
    relink(&mut cluster);
    wait(&mut cluster);
    assert_eq!(cluster.replica(0).status().freeze, None);
    let why = cluster.rows(1, "SELECT value FROM littoral_meta WHERE name = 'last_freeze'");
    assert!(why[0].contains("a = 'x', b = 1 has a TEXT"), "{why:?}");
    cluster.write(1, "UPDATE loose SET n = 1 WHERE a = 'x'");
    cluster.settle();
    migrate_slowly(&mut cluster, COUNTED);
    cluster.write(0, "UPDATE loose SET n = n + 1");
    cluster.write(1, "UPDATE loose SET n = n + 1");
    cluster.assert_rows("SELECT a, n FROM loose ORDER BY a", &["it's|4", "x|3", "z|5"]);

    // Nor does a rebuild bring any.
    let rebuild =
        "CREATE TABLE new(a TEXT, b INTEGER, n INTEGER NOT NULL, PRIMARY KEY(a, b)) WITHOUT ROWID;
                   INSERT INTO new SELECT a, b, n || '!' FROM loose; DROP TABLE loose;
                   ALTER TABLE new RENAME TO loose";
    let refused = migrate(&mut cluster, rebuild).unwrap_err().to_string();
    assert!(refused.contains("b = 2 has a TEXT"), "{refused}");
    assert_eq!(cluster.replica(0).status().freeze, None);
}

#[test]
fn a_script_whose_rows_are_refused_freezes_nothing() {
    let mut cluster = cluster(2);
    cluster.write(0, "INSERT INTO cart(id, qty) VALUES('a', 9223372036854775807)");
    cluster.write(0, "CREATE TABLE keyed(k INTEGER, l TEXT, PRIMARY KEY(k, l)) WITHOUT ROWID");
    cluster.settle();
    let vector = cluster.replica(0).status().vector;
    for (script, why) in [
        (
            "ALTER TABLE cart DROP COLUMN note; UPDATE cart SET qty = qty + 1",
            "the counter overflows 64 bits",
        ),
        (
            "ALTER TABLE cart DROP COLUMN note; INSERT INTO keyed VALUES(-9223372036854775808.0, '')",
            "store the INTEGER",
        ),
        (
            "ALTER TABLE cart DROP COLUMN note; INSERT INTO cart(id, qty) VALUES('b', 1.5)",
            "counter",
        ),
    ] {
        let refused = migrate(&mut cluster, script).unwrap_err();
        assert!(matches!(&refused, WriteError::Value { .. }), "{script}: {refused}");
        assert!(refused.to_string().contains(why), "{script}: {refused}");
        assert_eq!(cluster.replica(0).status().freeze, None, "{script}");
        assert_eq!(cluster.rows(0, "SELECT * FROM cart"), ["a|null|null|9223372036854775807"]);
    }
    // Only tried: nothing of it is in the log, and writing goes on.
    assert_eq!(cluster.replica(0).status().vector, vector);
    cluster.write(0, "UPDATE cart SET qty = 1; UPDATE other SET n = 1");
    migrate_slowly(
        &mut cluster,
        "ALTER TABLE cart DROP COLUMN note; UPDATE cart SET qty = qty + 1",
    );
    cluster.assert_rows("SELECT * FROM cart", &["a|null|2"]);
}
