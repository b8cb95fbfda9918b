//! Entries that no author would write, carried out on a real file.

use rusqlite::Connection;

use super::{
    Aside,
    apply::{Applier, Waiting},
    functions::prepare_connection,
};
use crate::{
    contested::Contested,
    driver::Identity,
    entry::{
        Digest, Entry, EntryHeader, Logged, RowOpKind, Segment,
        codec::Body,
        rows::{CellKind, RowsWriter},
    },
    error::ApplyError,
    genesis::Genesis,
    hlc::Hlc,
    id::{AuthorId, ClusterId, Incarnation, NodeId},
    policy::{ColumnType, TablePolicy, Writers},
    replica::Replica,
    schema::Registry,
    sqlite::Keeping,
    time::{Instant, Now, WallTime},
    value::{Collation, ValueRef, put_key_part},
    version::Dot,
};

/// A file with one table, in which everybody counts.
struct Scene {
    _dir: tempfile::TempDir,
    conn: Keeping,
    registry: Registry,
    contested: Contested,
    aside: Aside,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sqlite");
        let node = NodeId::new("a").unwrap();
        let identity =
            Identity { cluster: ClusterId(1), node: node.clone(), incarnation: Incarnation(1) };
        let count = TablePolicy {
            writers: Writers::Any,
            explicit_key: true,
            columns: [("n".to_owned(), ColumnType::Counter)].into(),
            ..TablePolicy::default()
        };
        let genesis = Genesis {
            members: vec![(node, Incarnation(1))],
            schema: "CREATE TABLE count(id INTEGER PRIMARY KEY, n INTEGER NOT NULL DEFAULT 0)"
                .to_owned(),
            policies: [("count".to_owned(), count)].into(),
        };
        let now = Now { mono: Instant(1), wall: WallTime(1_700_000_000_000) };
        let replica = Replica::builder(identity).genesis(genesis).open(&path, now, 1).unwrap();
        replica.close(now).1.unwrap();
        let conn = Connection::open(&path).unwrap();
        prepare_connection(&conn).unwrap();
        let registry = Registry::load(&conn).unwrap();
        let conn = Keeping::new(conn);
        conn.make_swap().unwrap();
        let (contested, aside) = (Contested::default(), Aside::default());
        Self { _dir: dir, conn, registry, contested, aside }
    }

    /// An insert of rows whose counters begin with 1, by another author.
    fn insert(&self, keys: &[ValueRef<'_>]) -> Entry {
        let table = self.registry.by_name("count").unwrap();
        let mut rows = RowsWriter::default();
        for value in keys {
            let mut key = Vec::new();
            put_key_part(&mut key, *value, Collation::Binary).unwrap();
            let columns = table.cells.iter().map(|column| (column.id, CellKind::Add));
            rows.row(table.id, RowOpKind::Insert, columns, &key, 0);
            rows.delta(1);
        }
        rows.finish();
        let mut body = Body::default();
        body.push_rows(rows);
        body.into_entry(EntryHeader {
            dot: Dot { author: AuthorId { term: 1, counter: 2 }, seq: 1 },
            hlc: Hlc(1),
            previous: Digest::NONE,
            schema: self.registry.version,
            under: 0,
        })
    }

    fn apply(&mut self, entry: Entry) -> Result<(), ApplyError> {
        let entry = Logged::Whole(entry);
        let mut waiting = Waiting::default();
        let mut applier = Applier::new(
            &self.conn,
            &self.registry,
            &mut self.contested,
            &mut self.aside,
            AuthorId::FIRST,
            &[],
            &mut waiting,
        );
        let mut segments = entry.segments();
        while let Some(segment) = segments.next(&self.conn).unwrap() {
            let Segment::Rows(rows) = segment else { continue };
            applier.rows(entry.header(), rows)?;
        }
        applier.settle(&entry)
    }

    fn counts(&self) -> Vec<(i64, i64)> {
        let mut statement = self.conn.prepare("SELECT id, n FROM count ORDER BY id").unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        rows.unwrap().map(Result::unwrap).collect()
    }
}

/// Rows that go into one statement, with that one behind the second.
fn keys(odd: ValueRef<'_>) -> Vec<ValueRef<'_>> {
    let mut keys: Vec<_> = (1..=20).map(ValueRef::Integer).collect();
    keys.insert(2, odd);
    keys
}

#[test]
fn a_rowid_that_is_no_integer_is_undecodable() {
    let mut scene = Scene::new();
    let entry = scene.insert(&keys(ValueRef::Text(b"x")));
    let applied = scene.apply(entry);
    assert!(applied.unwrap_err().to_string().contains("a rowid that is no integer"));
    assert_eq!(scene.counts(), []);
}

#[test]
fn rows_that_collide_in_the_midst_of_a_statement_count_once() {
    let mut scene = Scene::new();
    scene.conn.execute_batch("INSERT INTO count VALUES(3, 10)").unwrap();
    let entry = scene.insert(&(1..=20).map(ValueRef::Integer).collect::<Vec<_>>());
    scene.apply(entry).unwrap();
    let expected = (1..=20).map(|id| (id, if id == 3 { 11 } else { 1 }));
    assert_eq!(scene.counts(), expected.collect::<Vec<_>>());
}
