//! The golden files of entries: bytes that were written once, and that every later version must read.
//!
//! The files were made from `docs/format.md`, not by the engine. When the format changes, or something
//! is added to it, a file is added; those that are there stay.

use std::collections::BTreeMap;

use littoral::{
    AuthorId, Cell, CellWrite, ColumnId, ColumnType, Consistency, Digest, Dot, Element, Entry,
    EntryHeader, Fate, Freeze, Hlc, Incarnation, MaxLag, Member, Membership, NodeId, OnStale,
    Removal, RequestId, RowOp, RowOpKind, RowsReader, SchemaVersion, Segment, TableChange,
    TableDeclaration, TableId, TablePolicy, ValueRef, Writers,
};

const GOLDEN: &str = include_str!("fixtures/entry-v1.hex");
const GOLDEN_SETS: &str = include_str!("fixtures/entry-v1-sets.hex");
const GOLDEN_LAG: &str = include_str!("fixtures/entry-v1-lag.hex");
const GOLDEN_SCHEMA: &str = include_str!("fixtures/entry-v1-schema.hex");
const GOLDEN_OUTCOMES: &str = include_str!("fixtures/entry-v1-outcomes.hex");
const MS: u64 = 1_700_000_000_000;

/// The bytes and the digest of each entry in a file, by name.
fn golden(file: &'static str) -> BTreeMap<&'static str, (Vec<u8>, String)> {
    let mut entries: BTreeMap<&str, (Vec<u8>, String)> = BTreeMap::new();
    let mut name = "";
    for line in file.lines() {
        let line = line.split('#').next().unwrap().trim();
        if let Some(begun) = line.strip_prefix('[') {
            name = begun.strip_suffix(']').unwrap();
        } else if let Some(digest) = line.strip_prefix("digest ") {
            entries.entry(name).or_default().1 = digest.to_owned();
        } else {
            let bytes = &mut entries.entry(name).or_default().0;
            for place in (0..line.len()).step_by(2) {
                bytes.push(u8::from_str_radix(&line[place..place + 2], 16).unwrap());
            }
        }
    }
    entries.remove("");
    entries
}

fn entry(name: &str) -> Entry {
    entry_of(GOLDEN, name)
}

fn entry_of(file: &'static str, name: &str) -> Entry {
    let (bytes, digest) = golden(file).remove(name).unwrap();
    let entry = Entry::decode(&bytes).unwrap();
    assert_eq!(entry.bytes[..], bytes);
    assert_eq!(entry.digest, Digest::of(&bytes));
    assert_eq!(entry.digest.to_string(), digest, "{name}");
    entry
}

fn segments(entry: &Entry) -> Vec<Segment<'_>> {
    entry.segments().map(Result::unwrap).collect()
}

fn dot(term: u32, counter: u32, seq: u64) -> Dot {
    Dot { author: AuthorId { term, counter }, seq }
}

/// The digest 01, 02, 03 and so on.
fn counted() -> Digest {
    Digest(std::array::from_fn(|place| u8::try_from(place).unwrap() + 1))
}

/// The header of an entry of the first origin.
fn header(seq: u64, hlc: u64, schema: u32) -> EntryHeader {
    EntryHeader {
        dot: dot(1, 1, seq),
        hlc: Hlc(hlc),
        previous: if seq == 1 { Digest::NONE } else { counted() },
        schema: SchemaVersion(schema),
        under: 0,
    }
}

#[test]
fn the_file_has_an_entry_for_each_kind_of_segment() {
    let names: Vec<&str> = golden(GOLDEN).into_keys().collect();
    assert_eq!(names, ["ddl", "membership", "mixed", "policy", "rows", "sequence"]);
}

#[test]
fn membership_is_read() {
    let entry = entry("membership");
    assert_eq!(entry.header, header(1, MS << 16, 0));
    let member = Member {
        author: AuthorId { term: 2, counter: 300 },
        node: NodeId::new("edge-1").unwrap(),
        incarnation: Incarnation(0x0001_0203_0405_0607_0809_0A0B_0C0D_0E0F),
    };
    assert_eq!(segments(&entry), [Segment::Membership(Membership::Join(member))]);
}

#[test]
fn ddl_is_read() {
    let entry = entry("ddl");
    assert_eq!(entry.header, header(2, (MS << 16) + 1, 0));
    let statements = vec!["CREATE TABLE t(a)".to_owned(), "-- é".to_owned()];
    assert_eq!(segments(&entry), [Segment::Ddl(statements)]);
}

#[test]
fn frontiers_are_read() {
    let entry = entry_of(GOLDEN_SCHEMA, "frontier");
    assert_eq!(entry.header, EntryHeader { under: 299, ..header(8, (MS + 5) << 16, 2) });
    let covered = [dot(1, 1, 8), dot(1, 2, 5)].into_iter().collect();
    assert_eq!(segments(&entry), [Segment::Frontier { number: 300, covered }]);
}

#[test]
fn freezes_and_their_ends_are_read() {
    let frozen = entry_of(GOLDEN_SCHEMA, "freeze");
    assert_eq!(frozen.header, EntryHeader { under: 300, ..header(9, (MS + 6) << 16, 2) });
    let script = "DROP TABLE bag".to_owned();
    let freeze = Freeze { tables: vec![TableId(4), TableId(300)], script: script.clone() };
    assert_eq!(segments(&frozen), [Segment::Freeze(freeze)]);

    let freeze = dot(1, 1, 9);
    let happened = Segment::Unfreeze { freeze, failure: None };
    let expected = [Segment::Ddl(vec![script]), happened];
    assert_eq!(segments(&entry_of(GOLDEN_SCHEMA, "unfreeze")), expected);
    let failure = Some("given up".to_owned());
    let expected = [Segment::Unfreeze { freeze, failure }];
    assert_eq!(segments(&entry_of(GOLDEN_SCHEMA, "given-up")), expected);
}

#[test]
fn outcomes_are_read() {
    let request = RequestId(0x0001_0203_0405_0607_0809_0A0B_0C0D_0E0F);
    let outcome = |fate| [Segment::Outcome { request, fate }];
    let entry = entry_of(GOLDEN_OUTCOMES, "refused");
    assert_eq!(entry.header, EntryHeader { under: 300, ..header(11, (MS + 8) << 16, 3) });
    assert_eq!(segments(&entry), outcome(Fate::Refused));
    let program = counted();
    let fate = Fate::Committed { program, result: Some(b"done".to_vec()) };
    assert_eq!(segments(&entry_of(GOLDEN_OUTCOMES, "committed")), outcome(fate));
    let fate = Fate::Committed { program, result: None };
    assert_eq!(segments(&entry_of(GOLDEN_OUTCOMES, "not-kept")), outcome(fate));
}

#[test]
fn policies_are_read() {
    let entry = entry("policy");
    assert_eq!(entry.header, header(3, (MS << 16) + 0xffff, 0));
    let table = |id, name: &str, policy, columns: &[(u32, &str)]| TableDeclaration {
        id: TableId(id),
        name: name.to_owned(),
        policy,
        columns: columns.iter().map(|(id, name)| (ColumnId(*id), (*name).to_owned())).collect(),
    };
    let policy =
        |consistency, writers| TablePolicy { consistency, writers, ..TablePolicy::default() };
    let cart = TablePolicy {
        explicit_key: true,
        columns: [("qty".to_owned(), ColumnType::Counter)].into(),
        ..policy(Consistency::ReadAfterWrite, Writers::Any)
    };
    let seen = TablePolicy {
        columns: [("x".to_owned(), ColumnType::Max), ("y".to_owned(), ColumnType::Min)].into(),
        groups: [("z".to_owned(), "place".to_owned())].into(),
        ..policy(Consistency::Eventual, Writers::Any)
    };
    let tables = vec![
        table(1, "cart", cart, &[(1, "id"), (2, "note"), (200, "qty")]),
        table(2, "news", policy(Consistency::Eventual, Writers::Origin), &[(1, "a")]),
        table(3, "seen", seen, &[(1, "x"), (2, "y"), (3, "z")]),
        table(70_000, "stock", policy(Consistency::OriginStrong, Writers::Origin), &[]),
        table(70_001, "log", policy(Consistency::Local, Writers::Origin), &[]),
    ];
    let dropped = TableChange::Dropped(TableId(5));
    let changes = tables.into_iter().map(TableChange::Declared).chain([dropped]).collect();
    assert_eq!(segments(&entry), [Segment::Policy(changes)]);
}

#[test]
fn rows_are_read() {
    let entry = entry("rows");
    assert_eq!(
        entry.header,
        EntryHeader {
            dot: dot(2, 300, 129),
            hlc: Hlc(((MS + 86_400_000) << 16) + 7),
            previous: Digest(std::array::from_fn(|place| 0xe0 + u8::try_from(place).unwrap())),
            schema: SchemaVersion(1),
            under: 5,
        }
    );
    let stamp = entry.header.stamp();
    assert_eq!((stamp.hlc, stamp.dot()), (entry.header.hlc, entry.header.dot));
    let segments = segments(&entry);
    let [Segment::Rows(rows)] = segments[..] else { panic!("{segments:?}") };
    let mut reader = RowsReader::new(rows);
    let mut expect = |table, kind, key: &[u8], epoch, cells: &[Cell<'_>], saw: &[Dot]| {
        let expected = RowOp { table: TableId(table), kind, key, epoch, cells, saw };
        assert_eq!(reader.next().unwrap(), Some(expected));
    };
    let over = |column, value, previous| Cell {
        column: ColumnId(column),
        write: CellWrite::Assign { value, previous },
    };
    let assign = |column, value| over(column, value, None);
    let add = |column, delta| Cell { column: ColumnId(column), write: CellWrite::Add(delta) };

    let cells = [
        assign(2, ValueRef::Text(b"hi")),
        assign(3, ValueRef::Integer(-300)),
        assign(4, ValueRef::Real(-0.0)),
        assign(5, ValueRef::Blob(&[0, 0xff])),
        assign(6, ValueRef::Null),
        add(200, 3),
    ];
    expect(1, RowOpKind::Insert, b"\x30a\0", 0, &cells, &[]);
    let cells = [
        assign(2, ValueRef::Text(b"")),
        assign(3, ValueRef::Integer(i64::MAX)),
        assign(4, ValueRef::Real(0.1)),
        assign(5, ValueRef::Blob(b"")),
        assign(6, ValueRef::Text("ü".as_bytes())),
        add(200, i64::MIN),
    ];
    expect(1, RowOpKind::Insert, b"\x13\xfd\x31\0\xff\0", 2, &cells, &[]);
    let cells = [
        over(2, ValueRef::Text(b"yo"), Some(dot(1, 1, 4))),
        assign(3, ValueRef::Integer(7)),
        Cell { column: ColumnId(7), write: CellWrite::Extreme(ValueRef::Integer(4)) },
        add(200, -1),
    ];
    expect(1, RowOpKind::Update, b"\x14", 1, &cells, &[]);
    expect(1, RowOpKind::Update, b"\x16\x01\0", 0, &[add(200, 64)], &[]);
    let saw = [dot(1, 1, 4), dot(2, 300, 128)];
    expect(70_000, RowOpKind::Delete, b"\x30a\0", 0, &[], &saw);
    expect(70_000, RowOpKind::Delete, b"\x30b\0\xff\0", 1 << 30, &[], &[]);
    assert_eq!(reader.next().unwrap(), None);
}

#[test]
fn a_real_keeps_its_sign() {
    let entry = entry("rows");
    let segments = segments(&entry);
    let [Segment::Rows(rows)] = segments[..] else { panic!("{segments:?}") };
    let mut reader = RowsReader::new(rows);
    let op = reader.next().unwrap().unwrap();
    let CellWrite::Assign { value: ValueRef::Real(real), .. } = op.cells[2].write else {
        panic!("{op:?}")
    };
    assert!(real == 0.0 && real.is_sign_negative());
}

#[test]
fn segments_come_in_their_order_and_what_is_optional_is_passed_over() {
    let entry = entry("mixed");
    assert_eq!(entry.header, header(4, (MS + 1) << 16, 1));
    assert_eq!(
        segments(&entry),
        [Segment::Ddl(vec!["a".to_owned()]), Segment::Rows(&[]), Segment::Ddl(Vec::new())]
    );
}

#[test]
fn sequences_are_read() {
    let entry = entry("sequence");
    assert_eq!(entry.header, header(5, (MS + 2) << 16, 1));
    assert_eq!(
        segments(&entry),
        [Segment::Sequence(vec![(TableId(1), 90), (TableId(70_000), -1)])]
    );
}

#[test]
fn a_policy_with_a_set_is_read() {
    let entry = entry_of(GOLDEN_SETS, "policy");
    assert_eq!(entry.header, header(6, (MS + 3) << 16, 1));
    let policy = TablePolicy {
        consistency: Consistency::Eventual,
        writers: Writers::Any,
        columns: [("tags".to_owned(), ColumnType::Set)].into(),
        ..TablePolicy::default()
    };
    let columns = [(1, "id"), (2, "tags")].map(|(id, name)| (ColumnId(id), name.to_owned()));
    let table = TableDeclaration {
        id: TableId(4),
        name: "bag".to_owned(),
        policy,
        columns: columns.into(),
    };
    assert_eq!(segments(&entry), [Segment::Policy(vec![TableChange::Declared(table)])]);
}

#[test]
fn a_policy_with_a_bound_on_lag_is_read() {
    let entry = entry_of(GOLDEN_LAG, "policy");
    assert_eq!(entry.header, header(8, (MS + 5) << 16, 3));
    let policy = TablePolicy {
        consistency: Consistency::Eventual,
        max_lag: Some(MaxLag { ms: 5000, on_stale: OnStale::Fail }),
        ..TablePolicy::default()
    };
    let columns = vec![(ColumnId(1), "id".to_owned())];
    let table = TableDeclaration { id: TableId(4), name: "news".to_owned(), policy, columns };
    assert_eq!(segments(&entry), [Segment::Policy(vec![TableChange::Declared(table)])]);
}

#[test]
fn changes_of_sets_are_read() {
    let entry = entry_of(GOLDEN_SETS, "rows");
    assert_eq!(entry.header, header(7, (MS + 4) << 16, 2));
    let segments = segments(&entry);
    let [Segment::Rows(rows)] = segments[..] else { panic!("{segments:?}") };
    let mut reader = RowsReader::new(rows);
    let mut expect = |kind, key: &[u8], epoch, added: &[Element<'_>], removed: &[Removal<'_>]| {
        let op = reader.next().unwrap().unwrap();
        assert_eq!((op.table, op.kind, op.key, op.epoch), (TableId(4), kind, key, epoch));
        let [Cell { column: ColumnId(2), write: CellWrite::Set(change) }] = op.cells else {
            panic!("{op:?}")
        };
        assert_eq!(change.added().collect::<Vec<_>>(), added);
        assert_eq!(change.removed().collect::<Vec<_>>(), removed);
    };
    let text = |text: &'static str| Element::Text(text.into());
    let added = [
        Element::Bool(false),
        Element::Bool(true),
        Element::Integer(-2),
        Element::Real(0.5),
        Element::Integer(1),
        Element::Real(9_223_372_036_854_775_808.0),
        text(""),
        text("é"),
    ];
    expect(RowOpKind::Insert, b"\x30a\0", 0, &added, &[]);
    expect(RowOpKind::Insert, b"\x30b\0", 0, &[], &[]);
    let removal = |element, dots, stable| Removal { element, dots, stable };
    let removed = [
        removal(Element::Bool(true), vec![dot(1, 1, 6)], false),
        removal(Element::Integer(1), vec![dot(1, 1, 4), dot(2, 300, 128)], true),
        removal(text("é"), Vec::new(), true),
    ];
    expect(RowOpKind::Update, b"\x30a\0", 1, &[text("x")], &removed);
    assert_eq!(reader.next().unwrap(), None);
}

#[test]
fn an_entry_cut_short_is_refused_or_another() {
    for (name, (bytes, digest)) in
        golden(GOLDEN).into_iter().chain(golden(GOLDEN_SETS)).chain(golden(GOLDEN_SCHEMA))
    {
        for cut in 0..bytes.len() {
            if let Ok(shorter) = Entry::decode(&bytes[..cut]) {
                assert_ne!(shorter.digest.to_string(), digest, "{name} cut at {cut}");
            }
        }
    }
}
