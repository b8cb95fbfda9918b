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
