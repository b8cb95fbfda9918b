//! Comparing rows with another replica's, and mending those that differ.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use littoral::{ColumnType, TablePolicy, Verification, Writers};

use self::support::{Cluster, NOTES, any, linked};

const SCHEMA: &str = "
    CREATE TABLE item(name TEXT COLLATE NOCASE, place INTEGER, note TEXT, n INTEGER NOT NULL DEFAULT 0,
      PRIMARY KEY(name, place)) WITHOUT ROWID;
    CREATE TABLE line(text TEXT, weight REAL);
    CREATE TABLE mine(id TEXT PRIMARY KEY NOT NULL, n INTEGER NOT NULL DEFAULT 0, code TEXT);
";

fn cluster(nodes: usize) -> Cluster {
    let columns = [("n".to_owned(), ColumnType::Counter)].into();
    let mine = TablePolicy { writers: Writers::Any, columns, ..TablePolicy::default() };
    let mut cluster = linked(nodes, SCHEMA, &[("mine", mine)]);
    cluster.write(
        0,
        "WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 3000)
         INSERT INTO item SELECT 'Item ' || (n % 700), n, 'note', n FROM i",
    );
    cluster.write(0, "INSERT INTO line VALUES('one', 1), ('two', 2.5), (NULL, NULL)");
    cluster.write(1, "INSERT INTO mine VALUES('a', 1, 'x'), ('b', 2, NULL), ('c', 3, 'z')");
    cluster.settle();
    cluster
}

/// Lets a replica compare, and tells how it went.
fn verify(cluster: &mut Cluster, node: usize) -> Verification {
    let now = cluster.now;
    assert!(cluster.replica(node).verify(now));
    for _ in 0..100 {
        cluster.settle();
        let report = cluster.replica(node).status().verification;
        if !report.running {
            return report;
        }
    }
    panic!("still comparing: {:?}", cluster.replica(node).status().verification);
}

/// Writes a replica's file behind its back.
fn tamper(cluster: &Cluster, node: usize, sql: &str) {
    let file = rusqlite::Connection::open(cluster.path(node)).unwrap();
    file.execute_batch(sql).unwrap();
}

const REPAIRED: &str = "SELECT \"table\", \"row\", kept, lost FROM littoral_conflicts WHERE rule = 'repaired' ORDER BY id";

#[test]
fn equal_rows_are_found_equal_and_the_origin_has_nothing_to_compare_with() {
    let mut cluster = cluster(2);
    let report = verify(&mut cluster, 1);
    assert_eq!((report.rows, report.differing, report.undecided), (3006, 0, 0));
    assert_eq!(report.with, Some(cluster.names[0].clone()));
    assert_eq!(report.problem, None);
    assert!(report.finished.is_some());
    let now = cluster.now;
    assert!(!cluster.replica(0).verify(now));
}

#[test]
fn rows_that_were_changed_lost_or_added_behind_the_back_are_mended_and_listed() {
    let mut cluster = cluster(2);
    tamper(
        &cluster,
        1,
        "UPDATE item SET note = 'tampered' WHERE place = 2500;
         DELETE FROM item WHERE place = 17;
         INSERT INTO item VALUES('zzz', 1, 'of nobody', 7);
         DELETE FROM line WHERE text IS NULL;
         UPDATE mine SET n = 100 WHERE id = 'b';
         UPDATE mine SET id = 'C' WHERE id = 'c';",
    );
    let report = verify(&mut cluster, 1);
    assert_eq!((report.differing, report.repaired, report.undecided), (7, 7, 0), "{report:?}");
    cluster.assert_equal();
    let repaired = cluster.rows(1, REPAIRED);
    assert_eq!(repaired.len(), 7, "{repaired:?}");
    for expected in [
        r#"item|["item 17",17]|{"key spelling":"x'"#,
        r#"item|["zzz",1]|null|{"key spelling":null,"note":"of nobody","n":7}"#,
        r#"line|[3]|{"text":null,"weight":null}|null"#,
        r#"mine|["b"]|{"n":2,"code":null}|{"n":100,"code":null}"#,
        r#"mine|["C"]|null|{"n":3,"code":"z"}"#,
    ] {
        assert!(repaired.iter().any(|row| row.starts_with(expected)), "{expected}: {repaired:?}");
    }
    assert_eq!(verify(&mut cluster, 1).differing, 0);
    // It is a replica like any other.
    cluster.write(1, "UPDATE mine SET n = n + 1");
    cluster.assert_rows("SELECT sum(n) FROM mine", &["9"]);
}

#[test]
fn rows_are_mended_from_the_origin_only() {
    let mut cluster = cluster(3);
    tamper(&cluster, 1, "UPDATE line SET weight = 9 WHERE text = 'one'");
    tamper(&cluster, 2, "UPDATE line SET weight = 8 WHERE text = 'two'");
    let report = verify(&mut cluster, 2);
    assert_eq!((report.differing, report.repaired), (2, 0));
    assert!(report.problem.unwrap().contains("there is no link to it"));
    assert_eq!(verify(&mut cluster, 1).repaired, 1);
    assert_eq!(verify(&mut cluster, 2).differing, 1, "the relay's row is right again");
    cluster.link(2, 0);
    let report = verify(&mut cluster, 2);
    assert_eq!((report.differing, report.repaired), (1, 1));
    assert_eq!(report.with, Some(cluster.names[0].clone()));
    cluster.assert_equal();
}

#[test]
fn what_is_under_way_is_not_taken_for_a_difference() {
    let mut cluster = cluster(2);
    let now = cluster.now;
    cluster.replica(1).verify(now);
    for _ in 0..60 {
        // Half of these are written while the link is down, so that the vectors differ both ways.
        cluster.cut();
        cluster.write(0, "UPDATE mine SET n = n + 1, code = 'origin'");
        cluster.write(1, "UPDATE mine SET n = n - 1, code = 'edge'");
        cluster.write(0, "UPDATE item SET n = n + 1 WHERE place % 100 = 3");
        cluster.link(1, 0);
        cluster.write(1, "UPDATE mine SET n = n + 2");
        cluster.settle();
    }
    let report = verify(&mut cluster, 1);
    assert_eq!((report.differing, report.undecided), (0, 0), "{report:?}");
    cluster.assert_equal();
}

#[test]
fn a_row_that_is_in_the_way_of_another_goes_first() {
    let schema = "CREATE TABLE user(id INTEGER PRIMARY KEY, mail TEXT NOT NULL UNIQUE)";
    let mut cluster = linked(2, schema, &[]);
    cluster.write(0, "INSERT INTO user VALUES(1, 'a'), (2, 'b')");
    cluster.settle();
    tamper(
        &cluster,
        1,
        "UPDATE user SET mail = 'x' WHERE id = 1; UPDATE user SET mail = 'a' WHERE id = 2;
         UPDATE user SET mail = 'b' WHERE id = 1;",
    );
    assert_eq!(verify(&mut cluster, 1).repaired, 2);
    cluster.assert_rows("SELECT * FROM user", &["1|a", "2|b"]);
}

#[test]
fn a_row_that_is_put_back_does_not_move_the_sequence() {
    let schema = "CREATE TABLE ticket(id INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT)";
    let mut cluster = linked(2, schema, &[]);
    cluster.write(0, "INSERT INTO ticket(what) VALUES('a')");
    cluster.write(0, "UPDATE ticket SET id = 50");
    cluster.settle();
    tamper(&cluster, 1, "DELETE FROM ticket");
    assert_eq!(verify(&mut cluster, 1).repaired, 1);
    cluster.assert_rows("SELECT * FROM ticket", &["50|a"]);
    cluster.assert_rows("SELECT seq FROM sqlite_sequence", &["1"]);
}

#[test]
fn a_row_that_cannot_be_put_back_keeps_no_other_one_wrong() {
    let schema = "CREATE TABLE user(id INTEGER PRIMARY KEY, mail TEXT UNIQUE)";
    let mut cluster = linked(2, schema, &[]);
    cluster.write(
        0,
        "WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 2000)
         INSERT INTO user SELECT n, 'mail ' || n FROM i",
    );
    cluster.settle();
    // Two rows far apart are in each other's way.
    tamper(
        &cluster,
        1,
        "UPDATE user SET mail = NULL WHERE id IN (1, 2, 2000);
         UPDATE user SET mail = 'mail 2000' WHERE id = 1; UPDATE user SET mail = 'mail 1' WHERE id = 2000;",
    );
    let report = verify(&mut cluster, 1);
    assert_eq!((report.differing, report.repaired), (3, 1), "{report:?}");
    assert!(report.problem.unwrap().contains("UNIQUE"));
    assert_eq!(cluster.rows(1, "SELECT mail FROM user WHERE id = 2"), ["mail 2"]);
}

#[test]
fn a_parked_row_is_mended_from_the_origin_as_soon_as_it_can_be_stored() {
    let schema = "CREATE TABLE user(id INTEGER PRIMARY KEY, mail TEXT, n INTEGER)";
    let mut cluster = linked(2, schema, &[]);
    tamper(&cluster, 1, "CREATE UNIQUE INDEX in_the_way ON user(mail)");
    cluster.write(0, "INSERT INTO user VALUES(1, 'a', 1), (2, 'a', 2), (3, 'a', 3)");
    (0..5).for_each(|_| cluster.wait(1000));
    let parked = "SELECT \"row\", lost FROM littoral_conflicts WHERE cells IS NOT NULL ORDER BY 1";
    let rows = [r#"[2]|{"mail":"a","n":2}"#, r#"[3]|{"mail":"a","n":3}"#];
    assert_eq!(cluster.rows(1, parked), rows);

    // What is in the way stays there: the parked rows become what they have to be, and count as parked.
    tamper(
        &cluster,
        1,
        "UPDATE littoral_conflicts SET (lost, cells) =
           (SELECT lost, cells FROM littoral_conflicts WHERE \"row\" = '[3]') WHERE \"row\" = '[2]'",
    );
    let report = verify(&mut cluster, 1);
    assert_eq!((report.differing, report.repaired, report.undecided), (0, 0, 0), "{report:?}");
    assert_eq!(cluster.rows(1, parked), rows);
    assert_eq!(cluster.rows(1, REPAIRED).len(), 1);

    tamper(&cluster, 1, "DROP INDEX in_the_way");
    assert_eq!(cluster.replica(1).status().parked_rows, 2);
    let report = verify(&mut cluster, 1);
    assert_eq!((report.differing, report.repaired, report.undecided), (2, 2, 0), "{report:?}");
    assert_eq!(cluster.replica(1).status().parked_rows, 0);
    cluster.assert_rows("SELECT * FROM user ORDER BY id", &["1|a|1", "2|a|2", "3|a|3"]);
}

#[test]
fn full_text_search_learns_of_mended_rows() {
    let mut cluster = linked(2, NOTES, &[]);
    cluster.write(0, "INSERT INTO note VALUES(1, 'tide', 'low', 0), (2, 'wave', 'high', 0)");
    cluster.assert_found("tide", &["1"]);
    tamper(&cluster, 1, "DELETE FROM note WHERE id = 1");
    assert_eq!(verify(&mut cluster, 1).repaired, 1);
    cluster.assert_found("tide", &["1"]);
}

#[test]
fn a_replica_compares_by_itself() {
    let mut cluster = linked(2, SCHEMA, &[("mine", any())]);
    cluster.write(1, "INSERT INTO mine VALUES('a', 1, 'x')");
    cluster.settle();
    tamper(&cluster, 1, "UPDATE mine SET code = 'y'");
    for _ in 0..3000 {
        cluster.settle();
    }
    let report = cluster.replica(1).status().verification;
    assert_eq!((report.repaired, report.running), (1, false));
    cluster.assert_equal();
}
