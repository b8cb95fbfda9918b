//! What reaches beyond the file is refused to everybody, on every connection, whatever is granted.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use littoral::{
    ForwardError, Genesis, GenesisError, Grants, Incarnation, NodeId, Outcome, ReadRefused,
    RequestId, TableSet, Ticket, WriteError, WriteTx,
};

use self::support::{Cluster, any, linked};

const SCHEMA: &str = "
    CREATE TABLE t(id TEXT PRIMARY KEY NOT NULL, v TEXT);
    CREATE TABLE other(id TEXT PRIMARY KEY NOT NULL, v TEXT);";

/// A statement, and what of it is told.
const FORBIDDEN: [(&str, &str); 18] = [
    ("SELECT fts3_tokenizer('simple')", "fts3_tokenizer()"),
    ("SELECT hex(fts3_tokenizer(?1))", "addresses in the memory"),
    ("SELECT FTS3_Tokenizer(?1, ?2)", "fts3_tokenizer()"),
    ("SELECT \"fts3_tokenizer\"(?1, x'4141414141414141')", "fts3_tokenizer()"),
    ("WITH x(p) AS (SELECT fts3_tokenizer(?1)) SELECT p FROM x", "fts3_tokenizer()"),
    ("SELECT id FROM t WHERE v = (SELECT fts3_tokenizer(?1))", "fts3_tokenizer()"),
    ("SELECT id FROM t ORDER BY fts3_tokenizer(v)", "fts3_tokenizer()"),
    ("EXPLAIN SELECT fts3_tokenizer(?1)", "fts3_tokenizer()"),
    ("SELECT load_extension('/tmp/x.so')", "load_extension()"),
    ("SELECT load_extension(?1, ?2)", "load_extension()"),
    ("SELECT sqlite_log(1, 'written by a client')", "sqlite_log()"),
    ("ATTACH 'other.sqlite' AS other", "ATTACH"),
    ("ATTACH ?1 AS other", "ATTACH"),
    ("DETACH main", "DETACH"),
    ("DETACH ?1", "DETACH"),
    ("PRAGMA writable_schema = 1", "PRAGMA writable_schema"),
    ("PRAGMA main.writable_schema(ON)", "PRAGMA writable_schema"),
    ("PRAGMA trusted_schema = 0", "PRAGMA trusted_schema"),
];

/// The same in statements that write.
const WRITING: [&str; 4] = [
    "INSERT INTO t VALUES('a', fts3_tokenizer(?1))",
    "UPDATE t SET v = fts3_tokenizer(?1, ?2)",
    "DELETE FROM t WHERE v = load_extension('x')",
    "INSERT INTO t VALUES('a', 'b') RETURNING sqlite_log(1, id)",
];

fn cluster(nodes: usize) -> Cluster {
    let mut cluster = linked(nodes, SCHEMA, &[("t", any())]);
    cluster.write(0, "INSERT INTO t VALUES('x', 'y'); INSERT INTO other VALUES('x', 'y')");
    cluster.settle();
    cluster
}

/// Whoever may do everything, and whoever may read one table.
fn clients() -> [Option<Arc<Grants>>; 3] {
    let one = Grants { read: TableSet::named(["t"]), ..Grants::default() };
    [None, Some(Arc::new(Grants::all())), Some(Arc::new(one))]
}

#[test]
fn readers_refuse_it() {
    let mut cluster = cluster(1);
    let reader = cluster.replica(0).db().reader().unwrap();
    for grants in clients() {
        reader.restrict(grants.clone()).unwrap();
        for (sql, told) in FORBIDDEN {
            let error = reader.connection().prepare(sql).unwrap_err();
            let refused = reader.refused(&error);
            let ReadRefused::Forbidden { what } = &refused else { panic!("{sql}: {refused:?}") };
            assert!(what.contains(told), "{sql}: {what}");
        }
        // It says nothing of the statement after.
        let error = reader.connection().prepare("SELECT * FROM nowhere").unwrap_err();
        assert_eq!(reader.refused(&error), ReadRefused::Failed);
        assert!(reader.connection().prepare("SELECT v FROM t").is_ok());
    }
    // Looking what a statement touches is no way around, and leaves nothing behind.
    assert!(reader.touches("SELECT v, fts3_tokenizer(v) FROM t").is_err());
    reader.restrict(None).unwrap();
    let error = reader.connection().prepare("SELECT * FROM nowhere").unwrap_err();
    assert_eq!(reader.refused(&error), ReadRefused::Failed);
    let copy = cluster.dir.path().join("copy.sqlite");
    let vacuum = format!("VACUUM INTO '{}'", copy.display());
    assert!(reader.connection().execute(&vacuum, ()).is_err());
    assert!(!copy.exists());
}

#[test]
fn write_jobs_refuse_it() {
    let mut cluster = cluster(1);
    let before = cluster.replica(0).status().applied;
    let sentences = FORBIDDEN.map(|(sql, _)| sql);
    for grants in clients() {
        // Whoever may not write at all hears that first.
        let writes = grants.as_ref().is_none_or(|grants| grants.insert.holds("t"));
        for sql in sentences.into_iter().chain(WRITING.into_iter().filter(|_| writes)) {
            let (one, two) = (grants.clone(), grants.clone());
            let prepared = cluster.try_write(0, move |tx| {
                restrict(tx, one.as_ref())?;
                tx.prepare(sql).map(drop)
            });
            let script = cluster.try_write(0, move |tx| {
                restrict(tx, two.as_ref())?;
                tx.execute_batch(sql)
            });
            for result in [prepared, script] {
                let error = result.unwrap_err();
                assert!(matches!(error, WriteError::Forbidden { .. }), "{sql}: {error}");
            }
        }
    }
    assert_eq!(cluster.replica(0).status().applied, before);
    let copy = cluster.dir.path().join("copy.sqlite");
    let vacuum = format!("VACUUM INTO '{}'", copy.display());
    let error = cluster.try_write(0, move |tx| tx.execute(&vacuum, ()).map(drop)).unwrap_err();
    assert!(matches!(error, WriteError::Forbidden { .. }), "{error}");
    assert!(!copy.exists());
}

fn restrict(tx: &mut WriteTx<'_>, grants: Option<&Arc<Grants>>) -> Result<(), WriteError> {
    grants.map_or(Ok(()), |grants| tx.restrict(Arc::clone(grants)))
}

#[test]
fn the_origin_refuses_it_to_other_nodes() {
    let mut cluster = cluster(2);
    for (id, (sql, told)) in (10..).zip(FORBIDDEN) {
        let (node, ticket) = cluster.forward(1, id, sql);
        let answer = answered(&mut cluster, node, ticket);
        let Ok(Outcome::Failed { answer, .. }) = answer else { panic!("{sql}: {answer:?}") };
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.contains(told) && answer.contains("not available"), "{sql}: {answer}");
    }
    let now = cluster.now_at(1);
    let patience = Duration::from_secs(5);
    let ticket = cluster.replica(1).begin_at_origin(now, RequestId(1), now.wall, patience);
    let Ok(Outcome::Begun(guest)) = answered(&mut cluster, 1, ticket) else { panic!() };
    for (n, (sql, told)) in (1..).zip(FORBIDDEN) {
        let program = sql.as_bytes().to_vec();
        let ticket = cluster.replica(1).step_at_origin(now, guest, n, program, patience);
        let answer = answered(&mut cluster, 1, ticket).unwrap();
        let Outcome::Stepped { result } = answer else { panic!("{sql}: {answer:?}") };
        let result = String::from_utf8(result).unwrap();
        assert!(result.contains(told) && result.contains("not available"), "{sql}: {result}");
    }
    cluster.replica(1).leave_origin(now, RequestId(1), patience);
    cluster.drain(1);
    cluster.settle();
    cluster.assert_rows("SELECT * FROM t", &["x|y"]);
}

fn answered(cluster: &mut Cluster, node: usize, ticket: Ticket) -> Result<Outcome, ForwardError> {
    cluster.drain(node);
    cluster.settle();
    cluster.answered.remove(&(node, ticket)).unwrap()
}

/// SQLite looks for what a view or a trigger calls only where it is used.
const SCHEMAS: [&str; 11] = [
    "CREATE VIEW w AS SELECT fts3_tokenizer('simple')",
    "CREATE VIEW w AS SELECT [load_extension] /* as quoted */ ('x') FROM t",
    "CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT fts3_tokenizer(new.id, new.v); END",
    "CREATE TRIGGER x AFTER INSERT ON t WHEN load_extension(new.v) BEGIN SELECT 1; END",
    "CREATE TABLE w(id TEXT PRIMARY KEY NOT NULL, v CHECK (fts3_tokenizer(v)))",
    "CREATE TABLE w(id TEXT PRIMARY KEY NOT NULL, v AS (fts3_tokenizer(id)))",
    "CREATE TABLE w(id TEXT PRIMARY KEY NOT NULL, v DEFAULT (sqlite_log(1, 'x')))",
    "CREATE INDEX w ON t(fts3_tokenizer(v))",
    "CREATE INDEX w ON t(v) WHERE fts3_tokenizer(v)",
    "ALTER TABLE t ADD COLUMN w AS (fts3_tokenizer(id))",
    "ALTER TABLE t ADD COLUMN w CHECK (load_extension(w))",
];

#[test]
fn no_schema_says_it() {
    let mut cluster = cluster(2);
    let shape = "SELECT type, name, sql FROM sqlite_schema ORDER BY name";
    let before = cluster.rows(0, shape);
    for sql in SCHEMAS {
        let error = cluster.try_write(0, move |tx| tx.execute_batch(sql)).unwrap_err();
        assert!(matches!(error, WriteError::Forbidden { .. }), "{sql}: {error}");
        let now = cluster.now;
        let ticket = cluster.replica(0).migrate(now, sql);
        cluster.drain(0);
        let error = cluster.done.remove(&(0, ticket)).unwrap().unwrap_err();
        assert!(matches!(error, WriteError::Forbidden { .. }), "{sql}: {error}");
        let genesis = Genesis {
            members: vec![(NodeId::new("n0").unwrap(), Incarnation(1))],
            schema: format!("{SCHEMA} CREATE TABLE more(id TEXT PRIMARY KEY NOT NULL); {sql}"),
            policies: BTreeMap::new(),
        };
        let error = genesis.check().unwrap_err();
        assert!(matches!(error, GenesisError::Unsupported { .. }), "{sql}: {error}");
    }
    assert_eq!(cluster.rows(0, shape), before);
    // Names are no calls, and what is said in a string is said to nobody.
    cluster.write(
        0,
        "CREATE VIEW w AS SELECT v AS load_extension, 'fts3_tokenizer(1)' AS text FROM t",
    );
    cluster.assert_rows("SELECT load_extension, text FROM w", &["y|fts3_tokenizer(1)"]);
}

#[test]
fn full_text_indexes_have_their_tokenizers() {
    let mut cluster = cluster(2);
    for module in ["fts3(text)", "fts4(text)", "fts3tokenize('simple')", "fts5vocab(t, row)"] {
        let sql = format!("CREATE VIRTUAL TABLE words USING {module}");
        let error = cluster.try_write(0, move |tx| tx.execute_batch(&sql)).unwrap_err();
        assert!(error.to_string().contains("than FTS5"), "{module}: {error}");
    }
    cluster.write(0, "CREATE VIRTUAL TABLE words USING fts5(text, tokenize = 'porter unicode61')");
    cluster.write(0, "INSERT INTO words VALUES('walking home')");
    let found = "SELECT highlight(words, 0, '<', '>') FROM words WHERE words MATCH 'walks'";
    assert_eq!(cluster.rows(0, found), ["<walking> home"]);
    let tokens = "SELECT token FROM fts3tokenize WHERE input = 'a b'";
    assert_eq!(cluster.rows(0, tokens), ["a", "b"]);
}
