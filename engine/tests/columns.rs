//! Columns of every type, through real files: what the author stores, what others make of it.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use littoral::{Genesis, TablePolicy, WallTime, WriteError, Writers};
use proptest::prelude::*;
use support::Cluster;

const SCHEMA: &str = "
    CREATE TABLE gauge(
      id TEXT PRIMARY KEY NOT NULL, high, low INTEGER, n INTEGER NOT NULL DEFAULT 0,
      street TEXT, town TEXT, note TEXT, CHECK (high IS NOT 13 OR note IS NOT 'unlucky'));
    CREATE TABLE heard(id TEXT PRIMARY KEY NOT NULL, times INTEGER NOT NULL DEFAULT 0);
    CREATE TRIGGER hear AFTER UPDATE OF high ON gauge BEGIN
      INSERT INTO heard VALUES(new.id, 1) ON CONFLICT DO UPDATE SET times = times + 1;
    END;
    CREATE TRIGGER fight AFTER UPDATE OF high ON gauge WHEN new.note = 'fight' BEGIN
      UPDATE gauge SET high = new.high - 1 WHERE id = new.id;
    END;
";

fn policy(columns: &[(&str, &str)]) -> TablePolicy {
    let mut policy = TablePolicy { writers: Writers::Any, ..TablePolicy::default() };
    for (column, word) in columns {
        policy.declare_column(column, word).unwrap();
    }
    policy
}

fn gauge() -> TablePolicy {
    policy(&[
        ("high", "max"),
        ("low", "min"),
        ("n", "counter"),
        ("street", "group=address"),
        ("town", "group=address"),
    ])
}

/// Replicas in a line, the rows of `gauge` stored everywhere.
fn cluster(nodes: usize, rows: &'static str) -> Cluster {
    let heard = policy(&[("times", "counter")]);
    let mut cluster = support::linked(nodes, SCHEMA, &[("gauge", gauge()), ("heard", heard)]);
    if !rows.is_empty() {
        cluster.write(0, rows);
        cluster.settle();
    }
    cluster
}

fn later(cluster: &mut Cluster) {
    cluster.now.wall = WallTime(cluster.now.wall.0 + 50);
}

/// Links the first two again, and lets them become equal.
fn join(cluster: &mut Cluster) {
    cluster.link(0, 1);
    cluster.settle();
    cluster.assert_equal();
}

const CONFLICTS: &str = "SELECT rule, \"column\", kept, kept_by, lost, lost_by \
                         FROM littoral_conflicts ORDER BY id";

#[test]
fn a_row_that_only_counts_has_no_clock_of_a_row_before() {
    let schema = "CREATE TABLE stock(id TEXT PRIMARY KEY NOT NULL, place TEXT, n INTEGER NOT NULL DEFAULT 0)";
    let mut cluster = support::linked(2, schema, &[("stock", policy(&[("n", "counter")]))]);
    cluster.write(0, "INSERT INTO stock VALUES('1', 'a', 0), ('2', 'b', 0), ('3', 'b', 0)");
    cluster.settle();
    // Until a frontier has passed it, the rows have clocks.
    (0..10).for_each(|_| cluster.wait(1000));
    assert_eq!(cluster.replica(1).status().contested_rows, 0);
    cluster.cut();
    cluster.write(0, "UPDATE stock SET place = 'c' WHERE id = '3'");
    later(&mut cluster);
    // Of three rows one changes its place, and the others count alike.
    cluster.write(1, "UPDATE stock SET place = 'b', n = n + 1");
    join(&mut cluster);
    cluster.assert_rows("SELECT * FROM stock", &["1|b|1", "2|b|1", "3|c|1"]);
}

#[test]
fn the_author_keeps_the_extreme_and_the_entry_says_nothing_of_the_rest() {
    let mut cluster = cluster(2, "INSERT INTO gauge(id, high, low) VALUES('a', 5, 5)");
    let committed = cluster.try_write(0, |tx| {
        tx.execute("UPDATE gauge SET low = 6", [])?;
        let seen = tx.query_row("SELECT low FROM gauge", [], |row| row.get::<_, i64>(0))?;
        assert_eq!(seen, 6, "within the job the value stands as written");
        Ok(())
    });
    assert_eq!(committed.unwrap().dot, None, "nothing is left of it");
    assert_eq!(cluster.rows(0, "SELECT high, low FROM gauge"), ["5|5"]);
    cluster.write(0, "UPDATE gauge SET high = 5.5, low = 6");
    cluster.write(0, "UPDATE gauge SET high = 'text', low = 4");
    cluster.write(0, "UPDATE gauge SET high = 1e300, low = NULL");
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(1, "SELECT high, low FROM gauge"), ["text|4"]);
}

#[test]
fn a_row_deleted_and_inserted_in_one_job_keeps_its_extremes_and_one_inserted_later_does_not() {
    let mut cluster = cluster(2, "INSERT INTO gauge(id, high, n) VALUES('a', 5, 1)");
    cluster.write(0, "DELETE FROM gauge; INSERT INTO gauge(id, high) VALUES('a', 3)");
    cluster.write(0, "INSERT OR REPLACE INTO gauge(id, high) VALUES('a', 4)");
    assert_eq!(cluster.rows(0, "SELECT high, n FROM gauge"), ["5|0"]);
    cluster.write(0, "DELETE FROM gauge");
    cluster.write(0, "INSERT INTO gauge(id, high) VALUES('a', 2)");
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(1, "SELECT high FROM gauge"), ["2"]);
}

#[test]
fn concurrent_extremes_merge_whatever_their_stamps_and_conflict_with_nothing() {
    let mut cluster = cluster(2, "INSERT INTO gauge(id, high, low) VALUES('a', 5, NULL)");
    cluster.cut();
    cluster.write(0, "UPDATE gauge SET high = 9, low = 3");
    cluster.write(0, "INSERT INTO gauge(id, high, low) VALUES('b', 1, 1)");
    later(&mut cluster);
    cluster.write(1, "UPDATE gauge SET high = 7, low = 4");
    cluster.write(1, "INSERT INTO gauge(id, high, low) VALUES('b', 2, 2)");
    join(&mut cluster);
    assert_eq!(cluster.rows(0, "SELECT high, low FROM gauge ORDER BY id"), ["9|3", "2|1"]);
    assert_eq!(
        cluster.rows(0, "SELECT DISTINCT \"column\" FROM littoral_conflicts ORDER BY 1"),
        ["note", "street", "town"],
        "of the two inserts"
    );
}

#[test]
fn a_value_that_is_put_back_passes_triggers_and_checks() {
    let mut cluster = cluster(1, "INSERT INTO gauge(id, high, note) VALUES('a', 13, 'lucky')");
    cluster.write(0, "UPDATE gauge SET high = 12");
    assert_eq!(cluster.rows(0, "SELECT times FROM heard"), ["2"], "the statement, and the repair");
    let broken = cluster
        .try_write(0, |tx| tx.execute_batch("UPDATE gauge SET high = 12, note = 'unlucky'"))
        .unwrap_err();
    assert!(broken.to_string().contains("CHECK constraint failed"), "{broken}");
    let endless = cluster
        .try_write(0, |tx| tx.execute_batch("UPDATE gauge SET high = 12, note = 'fight'"))
        .unwrap_err();
    assert!(endless.to_string().contains("again and again"), "{endless}");
    assert_eq!(cluster.rows(0, "SELECT high, note FROM gauge"), ["13|lucky"]);
}

#[test]
fn a_group_is_one_register() {
    let rows = "INSERT INTO gauge(id, street, town) VALUES('a', 's0', 't0')";
    let mut cluster = cluster(2, rows);
    cluster.cut();
    cluster.write(0, "UPDATE gauge SET street = 's1', note = 'x'");
    later(&mut cluster);
    cluster.write(1, "UPDATE gauge SET town = 't2'");
    cluster.write(1, "UPDATE gauge SET street = street, n = 1");
    join(&mut cluster);
    assert_eq!(cluster.rows(0, "SELECT street, town, note FROM gauge"), ["s0|t2|x"]);
    let expected = [
        "last writer wins|street|s0|n1|s1|n0".to_owned(),
        "last writer wins|town|t2|n1|t0|n0".to_owned(),
    ];
    for node in 0..2 {
        assert_eq!(cluster.rows(node, CONFLICTS), expected);
    }
}

#[test]
fn a_counter_that_a_statement_makes_overflow_is_refused_and_named() {
    let mut cluster = cluster(2, "INSERT INTO gauge(id, n) VALUES('a', 9223372036854775807)");
    let refused =
        cluster.try_write(0, |tx| tx.execute_batch("UPDATE gauge SET n = n + 1")).unwrap_err();
    let WriteError::Value { table, column, what } = &refused else { panic!("{refused}") };
    assert_eq!((table.as_str(), column.as_str()), ("gauge", "n"));
    assert!(what.contains("overflows"), "{what}");
    let real = cluster.try_write(0, |tx| tx.execute_batch("UPDATE gauge SET n = 0.5"));
    assert!(real.unwrap_err().to_string().contains("64-bit integers only"));
    cluster
        .write(0, "SAVEPOINT s; UPDATE gauge SET n = n + 1; ROLLBACK TO s; UPDATE gauge SET n = 3");
    cluster.settle();
    assert_eq!(cluster.rows(1, "SELECT n FROM gauge"), ["3"]);
}

#[test]
fn concurrent_increments_that_overflow_wrap_and_are_listed_on_both_nodes() {
    let mut cluster = cluster(2, "INSERT INTO gauge(id, n) VALUES('a', 9223372036854775800)");
    cluster.cut();
    cluster.write(0, "UPDATE gauge SET n = n + 5, street = 's'");
    cluster.write(1, "UPDATE gauge SET n = n + 4, town = 't'");
    join(&mut cluster);
    assert_eq!(cluster.rows(0, "SELECT n FROM gauge"), ["-9223372036854775807"]);
    for node in 0..2 {
        let overflow = cluster.rows(node, CONFLICTS).pop().unwrap();
        let expected = format!(
            "counter overflow|n|-9223372036854775807|null|9223372036854775809|n{}",
            1 - node
        );
        assert_eq!(overflow, expected);
    }
    cluster.write(1, "UPDATE gauge SET n = 0");
    cluster.settle();
    cluster.assert_equal();
    assert_eq!(cluster.rows(0, "SELECT n FROM gauge"), ["0"]);
}

#[test]
fn types_are_refused_where_they_mean_nothing() {
    let check = |policy: TablePolicy| {
        let genesis = Genesis {
            schema: SCHEMA.to_owned(),
            policies: [("gauge".to_owned(), policy)].into(),
            ..Genesis::default()
        };
        genesis.check().unwrap_err().to_string()
    };
    let origin = TablePolicy { writers: Writers::Origin, ..gauge() };
    for word in ["max", "min", "counter", "group=address"] {
        assert!(
            check(origin.clone()).contains(&format!("is declared {word}, but only the origin"))
        );
    }
    assert!(check(policy(&[("id", "max")])).contains("\"id\" is declared max and part of the key"));
    assert!(check(policy(&[("nowhere", "group=a")])).contains("the column \"nowhere\""));
    let mut both = policy(&[("note", "group=a")]);
    both.columns.insert("note".to_owned(), littoral::ColumnType::Max);
    assert!(check(both).contains("is of type max and in a group"));
}

#[test]
fn a_personal_column_stays_one_and_its_values_are_not_told() {
    let schema = "
        CREATE TABLE person(
          mail TEXT PRIMARY KEY NOT NULL, name TEXT, seen INTEGER NOT NULL DEFAULT 0,
          short TEXT AS (substr(name, 1, 1)));";
    let mut person = TablePolicy::default();
    for column in ["MAIL", "name"] {
        person.declare_column(column, "personal").unwrap();
    }
    let mut wrong = person.clone();
    wrong.declare_column("short", "personal").unwrap();
    let genesis = Genesis {
        schema: schema.to_owned(),
        policies: [("person".to_owned(), wrong)].into(),
        ..Genesis::default()
    };
    let refused = genesis.check().unwrap_err().to_string();
    assert!(refused.contains("\"short\" is declared personal and generated"), "{refused}");

    let mut cluster = support::linked(2, schema, &[("person", person)]);
    cluster.write(0, "INSERT INTO person VALUES('bob@example.org', 'Bob', 'never')");
    const TAGGED: &str = "SELECT name, type FROM littoral_columns WHERE type LIKE '%personal%'";
    let assert_tagged = |cluster: &mut Cluster, expected: &[&str]| {
        cluster.settle();
        for node in 0..2 {
            assert_eq!(cluster.rows(node, TAGGED), expected, "at {node}");
        }
    };
    assert_tagged(&mut cluster, &["mail|personal", "name|personal"]);
    cluster.write(0, "ALTER TABLE person RENAME COLUMN name TO called");
    assert_tagged(&mut cluster, &["mail|personal", "called|personal"]);

    cluster.write(0, "ALTER TABLE person DROP COLUMN short");
    // The row that is in the way is named by its key, which nobody is told.
    let refused = cluster.refused(
        0,
        "SELECT littoral_policy('person', 'eventual',
           json('{\"writers\": \"any\", \"columns\": {\"mail\": \"personal\", \"seen\": \"counter\"}}'))",
    );
    assert!(!refused.contains("bob") && refused.contains("(personal)"), "{refused}");
    // What is not said again is not so any more; a type may stand behind it.
    cluster.write(0, "UPDATE person SET seen = 0");
    cluster.write(
        0,
        "SELECT littoral_policy('person', 'eventual',
           json('{\"writers\": \"any\", \"columns\": {\"mail\": \"personal\", \"seen\": \"personal counter\"}}'))",
    );
    assert_tagged(&mut cluster, &["mail|personal", "seen|personal counter"]);
    // That changes at once, whoever writes at the time.
    cluster.write(
        0,
        "SELECT littoral_policy('person', 'eventual',
           json('{\"writers\": \"any\", \"columns\": {\"called\": \"personal\", \"seen\": \"counter\"}}'))",
    );
    assert_tagged(&mut cluster, &["called|personal"]);
    cluster.write(1, "UPDATE person SET seen = seen + 1");
    cluster.settle();
    cluster.assert_rows("SELECT seen FROM person", &["1"]);
}

// --- Random histories

/// What a node may do to a row. The values stand in for `?`.
const STATEMENTS: [&str; 9] = [
    "INSERT INTO gauge(id, high, low, n, street) VALUES(?1, ?2, ?2, ?2, ?2) ON CONFLICT DO NOTHING",
    "INSERT OR REPLACE INTO gauge(id, high, low, n, town) VALUES(?1, ?2, ?2, ?2, ?2)",
    "UPDATE gauge SET high = ?2, low = ?2 WHERE id = ?1",
    "UPDATE gauge SET high = NULL, low = NULL, n = n + ?2 WHERE id = ?1",
    "UPDATE gauge SET n = ?2 * 900000000000000000 WHERE id = ?1",
    "UPDATE gauge SET street = ?2 WHERE id = ?1",
    "UPDATE gauge SET town = ?2, note = ?2 WHERE id <> ?1",
    "UPDATE gauge SET high = CAST(?2 AS TEXT), note = ?2 WHERE id = ?1",
    "DELETE FROM gauge WHERE id = ?1",
];

#[derive(Debug, Clone)]
enum Step {
    Write { node: usize, statement: usize, id: u8, value: i64 },
    Link { a: usize, b: usize },
    Cut,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3usize, 0..STATEMENTS.len(), 0..3u8, -10..10i64)
            .prop_map(|(node, statement, id, value)| Step::Write { node, statement, id, value }),
        1 => (0..3usize, 1..3usize).prop_map(|(a, d)| Step::Link { a, b: (a + d) % 3 }),
        1 => Just(Step::Cut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn nodes_that_took_the_same_entries_in_different_orders_hold_the_same_rows(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut cluster = cluster(3, "INSERT INTO gauge(id, high) VALUES('0', 1), ('1', 2)");
        cluster.cut();
        for step in steps {
            match step {
                Step::Write { node, statement, id, value } => {
                    later(&mut cluster);
                    // Some are refused, and leave nothing behind.
                    let _ = cluster.try_write(node, move |tx| {
                        tx.execute(STATEMENTS[statement], (id.to_string(), value)).map(drop)
                    });
                }
                Step::Link { a, b } => {
                    // A second link between two nodes would replace the first.
                    cluster.cut();
                    cluster.link(a, b);
                    cluster.settle();
                }
                Step::Cut => cluster.cut(),
            }
        }
        cluster.cut();
        for (a, b) in [(0, 1), (1, 2), (2, 0)] {
            cluster.link(a, b);
        }
        cluster.settle();
        cluster.assert_equal();
        prop_assert!(cluster.closed.is_empty(), "{:?}", cluster.closed);
    }
}

#[test]
fn littoral_id_is_unique_ascends_and_survives_a_restart_with_the_clock_set_back() {
    let mut cluster = cluster(2, "");
    let sql = "INSERT INTO gauge(id, n) VALUES(littoral_id(), littoral_id())";
    for _ in 0..3 {
        cluster.write(0, sql);
        cluster.write(1, sql);
    }
    let newest = "SELECT max(n) FROM gauge WHERE n & 4095 = 1";
    let before: i64 = cluster.rows(0, newest)[0].parse().unwrap();
    let read: i64 = cluster.rows(0, "SELECT littoral_id()")[0].parse().unwrap();
    assert!(read > before && read < 1 << 53);
    cluster.write(0, sql);
    let before: i64 = cluster.rows(0, newest)[0].parse().unwrap();
    cluster.cut();
    let now = cluster.now;
    cluster.replicas[0].take().unwrap().close(now).1.unwrap();
    cluster.now.wall = WallTime(now.wall.0 - 50_000);
    cluster.open(0);
    cluster.write(0, sql);
    let after: i64 = cluster.rows(0, newest)[0].parse().unwrap();
    assert!(after > before);
    cluster.now.wall = now.wall;
    join(&mut cluster);
    assert_eq!(cluster.rows(1, "SELECT count(*), count(DISTINCT n) FROM gauge"), ["8|8"]);
}

/// Discarded values are written many at once, with what they have in common said once.
#[test]
fn each_of_many_discarded_values_is_listed_with_its_row() {
    let schema = "CREATE TABLE pair(id TEXT PRIMARY KEY NOT NULL, a INTEGER, b TEXT)";
    let mut cluster = support::linked(2, schema, &[("pair", support::any())]);
    cluster.write(
        0,
        "INSERT INTO pair
         WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 300)
         SELECT printf('%04d \"quoted\"', n), 0, 'none' FROM n",
    );
    cluster.settle();
    cluster.cut();
    cluster.write(0, "UPDATE pair SET a = CAST(substr(id, 1, 4) AS INTEGER), b = 'old ' || id");
    cluster.wait(10);
    cluster.write(1, "UPDATE pair SET a = -CAST(substr(id, 1, 4) AS INTEGER), b = 'new ' || id");
    cluster.link(0, 1);
    cluster.settle();
    cluster.assert_equal();
    let right = "SELECT count(*) FROM littoral_conflicts c JOIN pair p ON c.\"row\" = json_array(p.id)
         WHERE rule = 'last writer wins' AND \"table\" = 'pair' AND kept_by = 'n1' AND lost_by = 'n0'
           AND kept_at = kept_hlc >> 16 AND lost_at = lost_hlc >> 16 AND kept_seq + lost_seq > 0
           AND (\"column\" = 'a' AND kept = p.a AND lost = -p.a
                OR \"column\" = 'b' AND kept = p.b AND lost = replace(p.b, 'new', 'old'))";
    for node in 0..2 {
        assert_eq!(cluster.rows(node, "SELECT count(*) FROM littoral_conflicts"), ["600"]);
        assert_eq!(cluster.rows(node, right), ["600"]);
    }
}
