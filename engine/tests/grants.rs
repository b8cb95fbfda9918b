//! What somebody may not do is refused however it is asked for, and changes nothing.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use std::sync::Arc;

use littoral::{Grants, Reader, TableSet, WriteError};

use self::support::{Cluster, linked};

const SCHEMA: &str = "
    CREATE TABLE a(id INTEGER PRIMARY KEY, v, n INTEGER);
    CREATE TABLE b(id INTEGER PRIMARY KEY, secret, n);
    CREATE TABLE parent(id INTEGER PRIMARY KEY, v);
    CREATE TABLE child(id INTEGER PRIMARY KEY, parent REFERENCES parent ON DELETE CASCADE);
    CREATE TABLE watched(id INTEGER PRIMARY KEY, v);
    CREATE VIEW both AS SELECT a.id, b.secret FROM a JOIN b USING(id);
    CREATE VIEW just_a AS SELECT id, v FROM a;
    CREATE TRIGGER leak AFTER UPDATE OF n ON watched BEGIN
        UPDATE watched SET v = (SELECT secret FROM b) WHERE id = new.id;
    END;
    CREATE TRIGGER spread AFTER INSERT ON watched BEGIN INSERT INTO b(secret) VALUES(new.v); END;
    CREATE TABLE json_notes(id INTEGER PRIMARY KEY, secret);
    CREATE TABLE pragma_notes(id INTEGER PRIMARY KEY, secret);
    CREATE VIRTUAL TABLE words USING fts5(text);";

/// A cluster of one with rows that must not be told.
fn cluster() -> Cluster {
    let schema = SCHEMA
        .replace("watched(id INTEGER PRIMARY KEY, v)", "watched(id INTEGER PRIMARY KEY, v, n)");
    let mut cluster = linked(1, &schema, &[]);
    cluster.write(0, "INSERT INTO a VALUES(1, 'open', 0); INSERT INTO b VALUES(1, 'hidden', 0)");
    cluster.write(0, "INSERT INTO parent VALUES(1, 1); INSERT INTO child VALUES(1, 1)");
    cluster
}

fn on_a() -> Grants {
    let a = || TableSet::named(["a", "JUST_A", "words"]);
    Grants { read: a(), insert: a(), update: a(), delete: a(), ..Grants::default() }
}

fn read(reader: &Reader, sql: &str) -> Result<Vec<String>, String> {
    let result = reader.connection().prepare(sql).and_then(|mut statement| {
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| {
            let cells = (0..columns).map(|column| row.get::<_, rusqlite::types::Value>(column));
            Ok(format!("{:?}", cells.collect::<Result<Vec<_>, _>>()?))
        })?;
        rows.collect()
    });
    result.map_err(|error| reader.missing().unwrap_or_else(|| error.to_string()))
}

#[test]
fn other_tables_cannot_be_read_in_any_way() {
    let mut cluster = cluster();
    let reader = cluster.replica(0).db().reader().unwrap();
    reader.restrict(Some(Arc::new(on_a()))).unwrap();
    for sql in [
        "SELECT v FROM a",
        "SELECT count(*) FROM A",
        "SELECT * FROM just_a",
        "WITH x AS (SELECT v FROM a) SELECT * FROM x",
        "SELECT value FROM json_each('[1]')",
        "SELECT text FROM words WHERE words MATCH 'nothing'",
        "SELECT 1",
    ] {
        let answer = read(&reader, sql);
        assert!(answer.is_ok(), "{sql}: {answer:?}");
    }
    for (sql, missing) in [
        ("SELECT * FROM b", "reading b"),
        ("SELECT count(*) FROM b", "reading b"),
        ("SELECT 1 FROM b", "reading b"),
        ("SELECT EXISTS(SELECT 1 FROM B)", "reading b"),
        ("SELECT (SELECT max(secret) FROM main.b)", "reading b"),
        ("SELECT * FROM both", "reading"),
        ("WITH x AS (SELECT secret FROM b) SELECT * FROM x", "reading b"),
        ("WITH a AS (SELECT secret FROM b) SELECT * FROM a", "reading b"),
        ("SELECT a.v FROM a ORDER BY (SELECT secret FROM b)", "reading b"),
        ("SELECT v FROM a UNION SELECT secret FROM b", "reading b"),
        (
            "SELECT sql FROM sqlite_schema",
            "reading sqlite_master, which takes the right to read \"sqlite_schema\"",
        ),
        ("SELECT sql FROM sqlite_master", "reading sqlite_master, which takes"),
        (
            "PRAGMA table_info(b)",
            "PRAGMA table_info, which takes the right to read \"sqlite_schema\"",
        ),
        ("PRAGMA table_list", "PRAGMA table_list"),
        ("SELECT * FROM pragma_table_info('b')", "pragma_table_info"),
        ("SELECT secret FROM json_notes", "reading json_notes"),
        ("SELECT secret FROM pragma_notes", "reading pragma_notes"),
        ("SELECT bytes FROM littoral_log", "reading littoral_log"),
        (
            "SELECT * FROM littoral_conflicts",
            "reading littoral_conflicts, which takes the right \"engine\"",
        ),
    ] {
        let refused = read(&reader, sql).unwrap_err();
        assert!(refused.to_lowercase().contains(&missing.to_lowercase()), "{sql}: {refused}");
    }
    // Statements kept prepared for somebody else do not come back.
    reader.restrict(None).unwrap();
    drop(reader.connection().prepare_cached("SELECT secret FROM b").unwrap());
    reader.restrict(Some(Arc::new(on_a()))).unwrap();
    assert!(reader.connection().prepare_cached("SELECT secret FROM b").is_err());
    // The schema is no table of that name.
    let schema = Grants { read: TableSet::named(["sqlite_schema"]), ..Grants::default() };
    reader.restrict(Some(Arc::new(schema))).unwrap();
    assert!(read(&reader, "SELECT name FROM pragma_table_info('b')").is_ok());
    assert!(read(&reader, "SELECT secret FROM pragma_notes").is_err());
    let by_old_name = Grants { read: TableSet::named(["SQLITE_master"]), ..Grants::default() };
    reader.restrict(Some(Arc::new(by_old_name))).unwrap();
    assert!(read(&reader, "SELECT sql FROM sqlite_master").is_ok());
    reader.restrict(Some(Arc::new(Grants::default()))).unwrap();
    assert_eq!(read(&reader, "SELECT v FROM a").unwrap_err(), "reading a");
    reader.restrict(Some(Arc::new(Grants::all()))).unwrap();
    assert!(read(&reader, "SELECT secret, (SELECT count(*) FROM littoral_log) FROM b").is_ok());
}

fn write(cluster: &mut Cluster, grants: &Grants, sql: &'static str) -> Result<(), WriteError> {
    let grants = Arc::new(grants.clone());
    let job = move |tx: &mut littoral::WriteTx<'_>| {
        tx.restrict(Arc::clone(&grants))?;
        tx.execute_batch(sql)?;
        // One statement at a time, too, where it may have been kept prepared.
        if !sql.contains(';') {
            tx.execute(sql, [])?;
        }
        Ok(())
    };
    cluster.try_write(0, job).map(drop)
}

#[test]
fn other_tables_cannot_be_written_in_any_way() {
    let mut cluster = cluster();
    let watched = TableSet::named(["watched"]);
    let on_watched = Grants {
        read: watched.clone(),
        insert: watched.clone(),
        update: watched.clone(),
        delete: watched,
        ..Grants::default()
    };
    let before = cluster.replica(0).status().applied;
    for (grants, sql, missing) in [
        (on_a(), "INSERT INTO b(secret) VALUES('x')", "inserting into b"),
        (on_a(), "UPDATE a SET v = (SELECT secret FROM b)", "reading b"),
        (on_a(), "INSERT INTO a(v) SELECT secret FROM b", "reading b"),
        (on_a(), "INSERT INTO a(v) VALUES(1) RETURNING (SELECT secret FROM b)", "reading b"),
        (on_a(), "UPDATE b SET n = 1", "updating b"),
        (on_a(), "DELETE FROM b", "deleting from b"),
        (on_a(), "CREATE TABLE c(id INTEGER PRIMARY KEY)", "changing the schema"),
        (on_a(), "DROP TABLE b", "changing the schema"),
        (on_a(), "SELECT littoral_policy('b', 'eventual')", "changing a policy"),
        (on_a(), "PRAGMA table_info(b)", "PRAGMA table_info"),
        (on_watched.clone(), "INSERT INTO watched(v) VALUES(1)", "inserting into b"),
        (on_watched, "UPDATE watched SET n = 1", "reading b"),
        (Grants::default(), "INSERT INTO a(v) VALUES(1)", "inserting into a"),
    ] {
        let error = write(&mut cluster, &grants, sql).unwrap_err();
        let WriteError::NotGranted { what } = error else { panic!("{sql}: {error}") };
        assert!(what.contains(missing), "{sql}: {what}");
    }
    assert_eq!(cluster.replica(0).status().applied, before);
    // What a job may not do, the next one may.
    cluster.write(0, "UPDATE b SET n = 2");
    write(&mut cluster, &on_a(), "UPDATE a SET v = 'mine'").unwrap();
    write(&mut cluster, &on_a(), "INSERT INTO words(text) VALUES('some words')").unwrap();
}

/// SQLite checks a foreign key, and carries out what it says, with the rights of whoever writes.
#[test]
fn foreign_keys_lend_no_rights() {
    let mut cluster = cluster();
    let parent = || TableSet::named(["parent"]);
    let grants = Grants { read: parent(), insert: parent(), delete: parent(), ..Grants::default() };
    write(&mut cluster, &grants, "INSERT INTO parent(v) VALUES(2)").unwrap();
    let error = write(&mut cluster, &grants, "DELETE FROM parent").unwrap_err().to_string();
    assert!(error.contains("reading child"), "{error}");
    let read = TableSet::named(["parent", "child"]);
    let grants = Grants { read, ..grants };
    let error = write(&mut cluster, &grants, "DELETE FROM parent").unwrap_err().to_string();
    assert!(error.contains("deleting from child"), "{error}");
}

#[test]
fn rows_that_must_stay_cannot_be_replaced() {
    let mut cluster = cluster();
    let a = || TableSet::named(["a"]);
    let grants = Grants { read: a(), insert: a(), update: a(), ..Grants::default() };
    for sql in [
        "INSERT OR REPLACE INTO a(id, v) VALUES(1, 'new')",
        "INSERT OR \u{feff}REPLACE \u{feff}INTO a(id, v) VALUES(1, 'new')",
        "REPLACE INTO a(id, v) VALUES(1, 'new')",
        "UPDATE OR REPLACE a SET id = 1",
        "EXPLAIN QUERY PLAN REPLACE INTO a(id, v) VALUES(1, 'new')",
    ] {
        let error = write(&mut cluster, &grants, sql).unwrap_err();
        assert!(error.to_string().contains("replacing rows of a"), "{sql}: {error}");
    }
    write(&mut cluster, &grants, "INSERT INTO a(v) VALUES(replace('x', 'x', 'y'))").unwrap();
    write(
        &mut cluster,
        &grants,
        "INSERT INTO a(id, v) VALUES(1, 'x') ON CONFLICT DO UPDATE SET v = 'z'",
    )
    .unwrap();
}

/// The engine's own changes of a row are nobody's: whoever may insert need not be able to update.
#[test]
fn a_row_is_normalised_whoever_writes_it() {
    let mut cluster = linked(
        1,
        "CREATE TABLE m(id INTEGER PRIMARY KEY, high INTEGER)",
        &[(
            "m",
            littoral::TablePolicy {
                columns: [("high".to_owned(), littoral::ColumnType::Max)].into(),
                ..support::explicit()
            },
        )],
    );
    cluster.write(0, "INSERT INTO m VALUES(1, 10)");
    let m = || TableSet::named(["m"]);
    let grants = Grants { insert: m(), update: m(), ..Grants::default() };
    write(&mut cluster, &grants, "UPDATE m SET high = 5").unwrap();
    assert_eq!(cluster.rows(0, "SELECT high FROM m"), ["10"]);
}

#[test]
fn indexes_that_come_and_go_are_known_to_a_reader_that_was_there_before() {
    let mut cluster = cluster();
    let reader = cluster.replica(0).db().reader().unwrap();
    let on_later = Grants { read: TableSet::named(["later"]), ..Grants::default() };
    let grants = Some(Arc::new(on_later));
    reader.restrict(grants.clone()).unwrap();
    assert!(read(&reader, "SELECT 1").is_ok());
    cluster.write(0, "CREATE VIRTUAL TABLE later USING fts5(text)");
    cluster.write(0, "INSERT INTO later VALUES('found')");
    reader.restrict(grants.clone()).unwrap();
    let found = read(&reader, "SELECT text FROM later WHERE later MATCH 'found'");
    assert_eq!(found.unwrap().len(), 1);
    cluster.write(0, "DROP TABLE later");
    cluster.write(0, "CREATE TABLE later_data(id INTEGER PRIMARY KEY, secret)");
    reader.restrict(grants).unwrap();
    assert_eq!(read(&reader, "SELECT secret FROM later_data").unwrap_err(), "reading later_data");
}
