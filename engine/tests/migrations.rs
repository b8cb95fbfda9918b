//! Migrations as common tools write them, and changes that wait until every node has heard of them.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use littoral::{ColumnType, Committed, Event, NodeId, TablePolicy, WriteError, Writers};

use self::support::Cluster;

const SCHEMA: &str = "
    CREATE TABLE cart(id TEXT PRIMARY KEY NOT NULL, item TEXT, note TEXT, qty INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE \"User\"(\"id\" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, \"name\" TEXT NOT NULL);
    CREATE TABLE \"Post\"(
      \"id\" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, \"title\" TEXT, \"authorId\" INTEGER NOT NULL,
      CONSTRAINT \"Post_authorId_fkey\" FOREIGN KEY (\"authorId\") REFERENCES \"User\" (\"id\")
        ON DELETE CASCADE ON UPDATE CASCADE);
    CREATE INDEX \"Post_title\" ON \"Post\"(\"title\");
";

fn linked(nodes: usize) -> Cluster {
    let columns = [("qty".to_owned(), ColumnType::Counter)].into();
    let cart = TablePolicy { writers: Writers::Any, columns, ..TablePolicy::default() };
    let mut cluster = support::linked(nodes, SCHEMA, &[("cart", cart)]);
    cluster.write(0, "INSERT INTO \"User\" VALUES(1, 'ann'), (2, 'bob')");
    cluster.write(0, "INSERT INTO \"Post\" VALUES(1, 'one', 1), (2, 'two', 2), (7, 'gone', 1)");
    cluster.write(0, "DELETE FROM \"Post\" WHERE id = 7");
    cluster.settle();
    cluster
}

fn migrate(cluster: &mut Cluster, node: usize, script: &str) -> Result<Committed, WriteError> {
    let now = cluster.now;
    let ticket = cluster.replica(node).migrate(now, script);
    cluster.drain(node);
    cluster.done.remove(&(node, ticket)).unwrap()
}

fn assert_alike(cluster: &mut Cluster) {
    cluster.settle();
    const SHAPE: &str = "SELECT type, name, tbl_name, sql FROM sqlite_schema
                         WHERE name NOT LIKE 'littoral%' AND name NOT LIKE 'sqlite%' ORDER BY name";
    const CATALOG: &str = "SELECT t.id, t.name, policy, writers, next_column, c.id, c.name, c.type
                           FROM littoral_tables t JOIN littoral_ids i ON i.table_id = t.id
                           LEFT JOIN littoral_columns c ON c.table_id = t.id
                           ORDER BY t.id, c.id";
    let version = cluster.replica(0).status().schema;
    for node in 0..cluster.replicas.len() {
        let status = cluster.replica(node).status();
        assert_eq!((status.halted, status.schema), (None, version), "node {node}");
        for query in [SHAPE, CATALOG, "SELECT * FROM sqlite_sequence ORDER BY name"] {
            let origin = cluster.rows(0, query);
            assert_eq!(cluster.rows(node, query), origin, "node {node}");
        }
    }
    cluster.assert_equal();
}

/// Long enough for acknowledgements and a frontier.
fn wait(cluster: &mut Cluster) {
    (0..20).for_each(|_| cluster.settle());
}

fn reopen(cluster: &mut Cluster, node: usize) {
    let now = cluster.now;
    let (_, closed) = cluster.replicas[node].take().unwrap().close(now);
    closed.unwrap();
    cluster.open(node);
}

/// SQLite prepares the statement against the schema that the connection knew before the migration.
#[test]
fn what_a_migration_made_is_dropped_everywhere_right_after_it() {
    let mut cluster = linked(2);
    let made = "SELECT count(*) FROM sqlite_schema WHERE name IN ('made', 'made_at', 'made_again')";
    for drop in [
        "DROP TRIGGER IF EXISTS made_again",
        "DROP INDEX IF EXISTS made_at",
        "DROP TABLE IF EXISTS made",
    ] {
        let script = "CREATE TABLE IF NOT EXISTS made(id INTEGER PRIMARY KEY, at TEXT);
             CREATE INDEX IF NOT EXISTS made_at ON made(at);
             CREATE TRIGGER IF NOT EXISTS made_again AFTER INSERT ON made BEGIN
               UPDATE made SET at = 'now' WHERE id = new.id; END;";
        migrate(&mut cluster, 0, script).unwrap();
        cluster.settle();
        assert_eq!(cluster.rows(1, made), ["3"]);
        cluster.write(0, drop);
        cluster.settle();
        let left = cluster.rows(0, made);
        assert_ne!(left, ["3"], "{drop}");
        assert_eq!(cluster.rows(1, made), left, "{drop}");
    }
    assert_alike(&mut cluster);
}

#[test]
fn prisma_rebuilds_a_parent_and_its_children_stay() {
    let mut cluster = linked(2);
    cluster.write(0, "SELECT littoral_policy('User', 'eventual')");
    let id = "SELECT id, policy FROM littoral_tables WHERE name = 'User'";
    let before = cluster.rows(0, id);
    migrate(
        &mut cluster,
        0,
        "-- RedefineTables
         PRAGMA defer_foreign_keys=ON;
         PRAGMA foreign_keys=OFF;
         CREATE TABLE \"new_User\" (
             \"id\" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
             \"name\" TEXT NOT NULL,
             \"email\" TEXT NOT NULL DEFAULT ''
         );
         INSERT INTO \"new_User\" (\"id\", \"name\") SELECT \"id\", \"name\" FROM \"User\";
         DROP TABLE \"User\";
         ALTER TABLE \"new_User\" RENAME TO \"User\";
         CREATE UNIQUE INDEX \"User_name_key\" ON \"User\"(\"name\");
         PRAGMA foreign_keys=ON;
         PRAGMA defer_foreign_keys=OFF;",
    )
    .unwrap();
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(0, id), before);
    assert_eq!(cluster.rows(1, "SELECT * FROM \"User\""), ["1|ann|", "2|bob|"]);
    assert_eq!(cluster.rows(1, "SELECT id FROM \"Post\" ORDER BY id"), ["1", "2"]);
    cluster.write(0, "INSERT INTO \"User\"(name) VALUES('cy'); DELETE FROM \"User\" WHERE id = 1");
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(1, "SELECT id FROM \"Post\" ORDER BY id"), ["2"]);
    cluster.write(0, "INSERT INTO \"Post\"(title, authorId) VALUES('new', 2)");
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(1, "SELECT id FROM \"Post\" ORDER BY id"), ["2", "8"]);
}

#[test]
fn drizzle_rebuilds_a_table_between_breakpoints() {
    let mut cluster = linked(2);
    migrate(
        &mut cluster,
        0,
        "PRAGMA foreign_keys=OFF;--> statement-breakpoint
         CREATE TABLE `__new_Post` (
         	`id` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
         	`title` text DEFAULT 'untitled' NOT NULL,
         	`authorId` integer NOT NULL,
         	FOREIGN KEY (`authorId`) REFERENCES `User`(`id`) ON UPDATE no action ON DELETE cascade
         );
         --> statement-breakpoint
         INSERT INTO `__new_Post`(\"id\", \"title\", \"authorId\") SELECT \"id\", \"title\", \"authorId\" FROM `Post`;--> statement-breakpoint
         DROP TABLE `Post`;--> statement-breakpoint
         ALTER TABLE `__new_Post` RENAME TO `Post`;--> statement-breakpoint
         PRAGMA foreign_keys=ON;--> statement-breakpoint
         CREATE UNIQUE INDEX `title_unique` ON `Post` (`title`);",
    )
    .unwrap();
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(1, "SELECT * FROM Post"), ["1|one|1", "2|two|2"]);
}

#[test]
fn rails_copies_through_a_temporary_table_and_django_through_a_new_one() {
    let mut cluster = linked(2);
    let id = "SELECT id, policy FROM littoral_tables WHERE name IN ('User', 'Post') ORDER BY id";
    cluster.write(0, "SELECT littoral_policy('User', 'eventual')");
    let before = cluster.rows(0, id);
    migrate(
        &mut cluster,
        0,
        "PRAGMA defer_foreign_keys = ON;
         PRAGMA foreign_keys = OFF;
         begin transaction;
         CREATE TEMPORARY TABLE \"aUser\" (\"id\" INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, \"name\" varchar NOT NULL);
         INSERT INTO \"aUser\" (\"id\",\"name\") SELECT \"id\",\"name\" FROM \"User\";
         DROP TABLE \"User\";
         CREATE TABLE \"User\" (\"id\" INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, \"name\" varchar(40) DEFAULT 'x' NOT NULL);
         INSERT INTO \"User\" (\"id\",\"name\") SELECT \"id\",\"name\" FROM \"aUser\";
         DROP TABLE \"aUser\";
         commit transaction;
         PRAGMA defer_foreign_keys = OFF;
         PRAGMA foreign_keys = ON;",
    )
    .unwrap();
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(0, id), before);
    migrate(
        &mut cluster,
        0,
        "PRAGMA foreign_keys = OFF;
         BEGIN;
         CREATE TABLE \"new__Post\" (\"id\" integer NOT NULL PRIMARY KEY AUTOINCREMENT, \"authorId\" integer NOT NULL REFERENCES \"User\" (\"id\") DEFERRABLE INITIALLY DEFERRED, \"title\" varchar(99) NULL);
         INSERT INTO \"new__Post\" (\"id\", \"title\", \"authorId\") SELECT \"id\", \"title\", \"authorId\" FROM \"Post\";
         DROP TABLE \"Post\";
         ALTER TABLE \"new__Post\" RENAME TO \"Post\";
         CREATE INDEX \"post_author\" ON \"Post\" (\"authorId\");
         COMMIT;
         PRAGMA foreign_keys = ON;",
    )
    .unwrap();
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(0, id), before);
    assert_eq!(cluster.rows(1, "SELECT * FROM Post"), ["1|1|one", "2|2|two"]);
    assert_eq!(cluster.rows(1, "SELECT * FROM User"), ["1|ann", "2|bob"]);
    let error =
        cluster.try_write(0, |tx| tx.execute("INSERT INTO Post VALUES(9, 9, 'x')", ()).map(drop));
    assert!(error.unwrap_err().to_string().contains("FOREIGN KEY"), "foreign keys are on again");
}

#[test]
fn a_migration_that_cannot_run_changes_nothing_and_says_why() {
    let mut cluster = linked(2);
    let shape = cluster.rows(0, "SELECT * FROM sqlite_schema");
    for (script, why) in [
        ("DROP TABLE User; CREATE TABLE User(id INTEGER PRIMARY KEY)", "refers to no row of User"),
        (
            "CREATE TABLE t(k INTEGER PRIMARY KEY); PRAGMA legacy_alter_table = ON",
            "legacy_alter_table",
        ),
        ("CREATE TABLE t(k INTEGER PRIMARY KEY); PRAGMA writable_schema = 1", "writable_schema"),
        ("CREATE TABLE t(k INTEGER PRIMARY KEY); ROLLBACK", "rolls itself back"),
        ("CREATE TABLE t AS SELECT * FROM User", "AS SELECT"),
        ("CREATE TABLE t(k INTEGER PRIMARY KEY); INSERT INTO nowhere VALUES(1)", "no such table"),
        ("ALTER TABLE cart DROP COLUMN note; INSERT INTO nowhere VALUES(1)", "no such table"),
        ("ALTER TABLE cart DROP COLUMN note; CREATE UNIQUE INDEX u ON cart(item)", "UNIQUE (item)"),
    ] {
        let error = migrate(&mut cluster, 0, script).unwrap_err();
        assert!(error.to_string().contains(why), "{script}: {error}");
        assert_eq!(cluster.rows(0, "SELECT * FROM sqlite_schema"), shape, "{script}");
        assert_eq!(cluster.replica(0).status().freeze, None, "{script}");
    }
    let error = migrate(&mut cluster, 1, "CREATE TABLE t(k INTEGER PRIMARY KEY)").unwrap_err();
    assert!(error.to_string().contains("run it there (node n0)"), "{error}");
    assert_alike(&mut cluster);
}

#[test]
fn a_change_that_writes_under_way_would_notice_waits_for_every_node() {
    let mut cluster = linked(3);
    cluster.write(1, "INSERT INTO cart VALUES('a', 'apple', 'x', 1)");
    wait(&mut cluster);
    cluster.cut();
    let script = "ALTER TABLE cart DROP COLUMN note;
                  ALTER TABLE cart ADD COLUMN at TEXT NOT NULL DEFAULT 'now' CHECK (at <> '')";
    let error = migrate(&mut cluster, 0, script).unwrap_err();
    let nodes = ["n1", "n2"].map(|name| NodeId::new(name).unwrap()).to_vec();
    assert!(matches!(&error, WriteError::SchemaAccepted { table, waiting_for }
        if table == "cart" && *waiting_for == nodes));
    assert!(!error.is_retryable(), "it is accepted, and not to be run again");
    let refused = cluster.try_write(0, |tx| tx.execute("DELETE FROM cart", ()).map(drop));
    assert!(matches!(refused, Err(WriteError::SchemaChanging { .. })));
    cluster.write(0, "INSERT INTO User VALUES(3, 'cy')");
    // Another change has to wait until this one is done.
    let other = cluster.try_write(0, |tx| tx.execute_batch("ALTER TABLE User ADD COLUMN x"));
    assert!(matches!(other, Err(WriteError::SchemaChanging { .. })));
    // Whoever has not heard of it goes on writing, and nothing of it is lost.
    cluster.write(2, "INSERT INTO cart VALUES('b', 'pear', 'y', 2); UPDATE cart SET qty = qty + 5");
    reopen(&mut cluster, 0);
    cluster.link(1, 0);
    wait(&mut cluster);
    let refused = cluster.try_write(1, |tx| tx.execute("UPDATE cart SET item = 'z'", ()).map(drop));
    assert!(matches!(refused, Err(WriteError::SchemaChanging { .. })));
    let freeze = cluster.replica(0).status().freeze.unwrap();
    assert_eq!(freeze.tables, ["cart"]);
    assert_eq!(freeze.waiting_for, [NodeId::new("n2").unwrap()]);
    assert_eq!(freeze.script, script);
    let carried_out = |cluster: &Cluster| {
        cluster
            .events
            .iter()
            .filter(|(node, event)| (*node, event) == (0, &Event::SchemaChanged))
            .count()
    };
    assert_eq!(carried_out(&cluster), 0);
    cluster.link(2, 1);
    wait(&mut cluster);
    assert_eq!(carried_out(&cluster), 1);
    assert_alike(&mut cluster);
    assert_eq!(cluster.replica(0).status().freeze, None);
    let rows = ["a|apple|6|now", "b|pear|7|now"];
    assert_eq!(cluster.rows(0, "SELECT * FROM cart ORDER BY id"), rows);
    for node in 0..3 {
        reopen(&mut cluster, node);
    }
    cluster.links.clear();
    cluster.link(1, 0);
    cluster.link(2, 1);
    cluster.write(2, "UPDATE cart SET qty = qty + 1, at = 'later'");
    wait(&mut cluster);
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(0, "SELECT DISTINCT at FROM cart"), ["later"]);
}

#[test]
fn a_waiting_change_is_given_up_by_command_or_because_it_fails() {
    let mut cluster = linked(2);
    cluster.write(1, "INSERT INTO cart VALUES('a', 'apple', 'x', 1)");
    wait(&mut cluster);
    cluster.cut();
    migrate(&mut cluster, 0, "ALTER TABLE cart DROP COLUMN note").unwrap_err();
    let now = cluster.now;
    let ticket = cluster.replica(0).abort_schema_change(now);
    cluster.drain(0);
    cluster.done.remove(&(0, ticket)).unwrap().unwrap();
    cluster.write(0, "UPDATE cart SET item = 'pear'");
    cluster.link(1, 0);
    wait(&mut cluster);
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(1, "SELECT * FROM cart"), ["a|pear|x|1"]);

    // What an edge writes while it does not know yet is in the way of the change.
    cluster.cut();
    migrate(
        &mut cluster,
        0,
        "SELECT littoral_policy('cart', 'eventual');
        CREATE UNIQUE INDEX one_each ON cart(item)",
    )
    .unwrap_err();
    cluster.write(1, "INSERT INTO cart VALUES('b', 'pear', 'y', 2)");
    cluster.link(1, 0);
    wait(&mut cluster);
    assert_alike(&mut cluster);
    let status = cluster.replica(1).status();
    assert_eq!(status.freeze, None);
    let why = "SELECT value LIKE '%UNIQUE constraint failed: cart.item%' FROM littoral_meta
               WHERE name = 'last_freeze'";
    assert_eq!(cluster.rows(1, why), ["1"]);
    cluster.write(1, "DELETE FROM cart WHERE id = 'b'");
    wait(&mut cluster);
    migrate(
        &mut cluster,
        0,
        "SELECT littoral_policy('cart', 'eventual');
        CREATE UNIQUE INDEX one_each ON cart(item)",
    )
    .unwrap_err();
    wait(&mut cluster);
    assert_alike(&mut cluster);
    let refused = cluster.try_write(1, |tx| tx.execute("DELETE FROM cart", ()).map(drop));
    assert!(matches!(refused, Err(WriteError::OriginOnly { .. })));
    cluster.write(0, "UPDATE cart SET qty = 9");
    assert_alike(&mut cluster);
}

#[test]
fn a_freeze_ends_with_a_change_of_several_statements() {
    let mut cluster = linked(2);
    cluster.write(1, "INSERT INTO cart VALUES('a', 'apple', 'x', 1)");
    // Two changes of the schema, which are told in one segment.
    migrate(
        &mut cluster,
        0,
        "ALTER TABLE cart ADD COLUMN peak INTEGER DEFAULT 1;
         SELECT littoral_policy('cart', 'eventual',
           json('{\"writers\": \"any\", \"columns\": {\"qty\": \"counter\", \"peak\": \"max\"}}'))",
    )
    .unwrap_err();
    wait(&mut cluster);
    assert_alike(&mut cluster);
    assert_eq!(cluster.replica(0).status().freeze, None);
    let why = "SELECT value FROM littoral_meta WHERE name = 'last_freeze'";
    assert_eq!(cluster.rows(0, why), [""], "it happened once");
    cluster.write(0, "UPDATE cart SET peak = 7");
    assert_alike(&mut cluster);
    assert_eq!(cluster.rows(1, "SELECT * FROM cart"), ["a|apple|x|1|7"]);
}

#[test]
fn a_migration_that_writes_nothing_is_answered_at_once() {
    let mut cluster = linked(2);
    cluster.held_syncs = true;
    cluster.write(1, "INSERT INTO cart VALUES('a', 'apple', 'x', 1)");
    wait(&mut cluster);
    let status = cluster.replica(0).status();
    assert!(status.durable < status.applied, "its disk is slow");
    let nothing = "CREATE TABLE IF NOT EXISTS cart(id TEXT PRIMARY KEY NOT NULL)";
    assert_eq!(migrate(&mut cluster, 0, nothing).unwrap().dot, None);
}
