//! Entries as bytes and back: what goes in comes out, and bytes that are no entry are refused.
//!
//! The bytes themselves are held fast by the golden file of `tests/formats.rs`.

use proptest::prelude::*;

use super::{
    change::put_change,
    codec::Body,
    rows::{CellKind, RowsReader, RowsWriter, put_previous},
    *,
};
use crate::{
    policy::{Consistency, MaxLag, OnStale, OnUnreachable, Writers},
    set::{Element, tests::element},
    value::{ByteReader, DecodeError, put_cell, put_prefixed, put_varint, tests::Owned},
};

// --- Bodies to encode

#[derive(Debug, Clone)]
enum Part {
    Rows(Vec<Row>),
    Ddl(Vec<String>),
    Policy(Vec<TableChange>),
    Join(Member),
    Freeze(Freeze),
    Unfreeze(Dot, Option<String>),
    Outcome(RequestId, Fate),
}

#[derive(Debug, Clone)]
struct Row {
    table: TableId,
    kind: RowOpKind,
    key: Vec<u8>,
    epoch: u32,
    cells: Vec<(ColumnId, Write)>,
    saw: Vec<Dot>,
}

#[derive(Debug, Clone)]
enum Write {
    Assign(Owned, Option<Dot>),
    Add(i64),
    Extreme(Owned),
    /// A change of a set, and what it says.
    Set(Vec<u8>, Vec<Element<'static>>, Vec<Removal<'static>>),
}

impl Row {
    fn write(&self, out: &mut RowsWriter) {
        let columns = self.cells.iter().map(|(column, write)| {
            let kind = match write {
                Write::Assign(..) => CellKind::Assign,
                Write::Add(_) => CellKind::Add,
                Write::Extreme(_) => CellKind::Extreme,
                Write::Set(..) => CellKind::Set,
            };
            (*column, kind)
        });
        out.row(self.table, self.kind, columns, &self.key, self.epoch);
        for (_, write) in &self.cells {
            match write {
                Write::Assign(value, previous) => {
                    if self.kind == RowOpKind::Update {
                        let mut bytes = Vec::new();
                        put_previous(&mut bytes, *previous);
                        out.encoded(&bytes);
                    }
                    let mut cell = Vec::new();
                    put_cell(&mut cell, value.as_value());
                    out.encoded(&cell);
                }
                Write::Add(delta) => out.delta(*delta),
                Write::Set(change, ..) => out.encoded(change),
                Write::Extreme(value) => {
                    let mut cell = Vec::new();
                    put_cell(&mut cell, value.as_value());
                    out.encoded(&cell);
                }
            }
        }
        if self.kind == RowOpKind::Delete {
            out.saw(&self.saw);
        }
    }

    fn assert_is(&self, op: &RowOp<'_>) {
        let cells: Vec<Cell<'_>> = self
            .cells
            .iter()
            .map(|(column, write)| Cell {
                column: *column,
                write: match write {
                    Write::Assign(value, previous) => {
                        CellWrite::Assign { value: value.as_value(), previous: *previous }
                    }
                    Write::Add(delta) => CellWrite::Add(*delta),
                    Write::Extreme(value) => CellWrite::Extreme(value.as_value()),
                    Write::Set(bytes, added, removed) => {
                        let change = SetChange::read(&mut ByteReader::new(bytes)).unwrap();
                        assert!(change.added().eq(added.iter().cloned()));
                        assert!(change.removed().eq(removed.iter().cloned()));
                        CellWrite::Set(change)
                    }
                },
            })
            .collect();
        let expected = RowOp {
            table: self.table,
            kind: self.kind,
            key: &self.key,
            epoch: self.epoch,
            cells: &cells,
            saw: &self.saw,
        };
        assert_eq!(*op, expected);
    }
}

fn body(parts: &[Part]) -> Body {
    let mut body = Body::default();
    for part in parts {
        match part {
            Part::Rows(rows) => {
                let mut writer = RowsWriter::default();
                rows.iter().for_each(|row| row.write(&mut writer));
                writer.finish();
                body.push_rows(writer);
            }
            Part::Ddl(statements) => body.push_ddl(statements.iter().map(String::as_str)),
            Part::Policy(changes) => body.push_policy(changes),
            Part::Join(member) => body.push_join(member),
            Part::Freeze(freeze) => body.push_freeze(freeze),
            Part::Unfreeze(freeze, failure) => body.push_unfreeze(*freeze, failure.as_deref()),
            Part::Outcome(request, fate) => body.push_outcome(*request, fate),
        }
    }
    body
}

fn assert_holds(entry: &Entry, parts: &[Part]) {
    let segments: Vec<Segment<'_>> = entry.segments().map(Result::unwrap).collect();
    assert_eq!(segments.len(), parts.len());
    for (segment, part) in segments.iter().zip(parts) {
        match (segment, part) {
            (Segment::Rows(bytes), Part::Rows(rows)) => {
                let mut reader = RowsReader::new(bytes);
                for row in rows {
                    row.assert_is(&reader.next().unwrap().expect("one more row"));
                }
                assert_eq!(reader.next(), Ok(None));
            }
            (Segment::Ddl(decoded), Part::Ddl(statements)) => assert_eq!(decoded, statements),
            (Segment::Policy(decoded), Part::Policy(changes)) => assert_eq!(decoded, changes),
            (Segment::Freeze(decoded), Part::Freeze(freeze)) => assert_eq!(decoded, freeze),
            (
                Segment::Unfreeze { freeze: decoded, failure: why },
                Part::Unfreeze(freeze, failure),
            ) => assert_eq!((decoded, why), (freeze, failure)),
            (Segment::Outcome { request, fate }, Part::Outcome(sent, expected)) => {
                assert_eq!((request, fate), (sent, expected));
            }
            (Segment::Membership(Membership::Join(decoded)), Part::Join(member)) => {
                assert_eq!(decoded, member);
            }
            _ => panic!("{segment:?} instead of {part:?}"),
        }
    }
}

/// Reads all that can be read of bytes that may be anything.
fn read_to_the_end(bytes: &[u8]) -> Result<u64, DecodeError> {
    let entry = Entry::decode(bytes)?;
    let mut ops = 0;
    for segment in entry.segments() {
        if let Segment::Rows(rows) = segment? {
            let mut reader = RowsReader::new(rows);
            while reader.next()?.is_some() {
                ops += 1;
            }
        }
    }
    Ok(ops)
}

// --- Strategies

/// The greatest epoch that a row may have.
const EPOCH_MAX: u32 = 1 << 30;

fn author() -> impl Strategy<Value = AuthorId> {
    (1..=u32::MAX, 1..=u32::MAX).prop_map(|(term, counter)| AuthorId { term, counter })
}

fn dot() -> impl Strategy<Value = Dot> {
    let seq = prop_oneof![Just(1), Just(2), 1..=u64::MAX];
    (author(), seq).prop_map(|(author, seq)| Dot { author, seq })
}

fn header() -> impl Strategy<Value = EntryHeader> {
    let digest = any::<[u8; 32]>()
        .prop_filter("stands for no entry", |digest| *digest != Digest::NONE.0)
        .prop_map(Digest);
    let hlc = 0..(Hlc::LATEST.0 + 1) << 16;
    (dot(), hlc, digest, any::<u32>(), any::<u64>()).prop_map(
        |(dot, hlc, digest, schema, under)| EntryHeader {
            dot,
            hlc: Hlc(hlc),
            previous: if dot.seq == 1 { Digest::NONE } else { digest },
            schema: SchemaVersion(schema),
            under,
        },
    )
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..20)
}

fn value() -> impl Strategy<Value = Owned> {
    prop_oneof![
        Just(Owned::Null),
        any::<i64>().prop_map(Owned::Integer),
        (-9i64..9).prop_map(Owned::Integer),
        any::<f64>()
            .prop_filter("SQLite stores NaN as NULL", |real| !real.is_nan())
            .prop_map(Owned::Real),
        bytes().prop_map(Owned::Text),
        bytes().prop_map(Owned::Blob),
    ]
}

fn set_change() -> impl Strategy<Value = Write> {
    let known = (prop::collection::vec(dot(), 0..3), any::<bool>());
    let elements = prop::collection::btree_map(element(), prop::option::of(known), 0..5);
    elements.prop_map(|elements| {
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for (element, known) in elements {
            match known {
                None => added.push(element),
                Some((dots, stable)) => {
                    let stable = stable || dots.is_empty();
                    removed.push(Removal { element, dots, stable });
                }
            }
        }
        set_write(added, removed)
    })
}

fn set_write(added: Vec<Element<'static>>, removed: Vec<Removal<'static>>) -> Write {
    let mut bytes = Vec::new();
    put_change(&mut bytes, &added, &removed);
    Write::Set(bytes, added, removed)
}

fn row() -> impl Strategy<Value = Row> {
    let write = prop_oneof![
        3 => (value(), prop::option::of(dot())).prop_map(|(v, previous)| Write::Assign(v, previous)),
        1 => any::<i64>().prop_map(Write::Add),
        1 => value().prop_map(Write::Extreme),
        1 => set_change(),
    ];
    let column = prop_oneof![0u32..6, any::<u32>()].prop_map(ColumnId);
    let cells = prop::collection::btree_map(column, write, 0..4);
    let kind = prop::sample::select(vec![RowOpKind::Insert, RowOpKind::Update, RowOpKind::Delete]);
    let table = prop_oneof![1u32..3, any::<u32>()].prop_map(TableId);
    let epoch = prop_oneof![Just(0), 0..=EPOCH_MAX];
    (table, kind, bytes(), epoch, cells, prop::collection::vec(dot(), 0..4)).prop_map(
        |(table, kind, key, epoch, cells, saw)| {
            let mut row = Row { table, kind, key, epoch, cells: Vec::new(), saw: Vec::new() };
            match kind {
                RowOpKind::Delete => row.saw = saw,
                RowOpKind::Update => row.cells.extend(cells),
                // An insert overwrites nothing.
                RowOpKind::Insert => row.cells.extend(cells.into_iter().map(|(id, write)| {
                    let write = match write {
                        Write::Assign(value, _) => Write::Assign(value, None),
                        Write::Set(_, added, _) => set_write(added, Vec::new()),
                        other => other,
                    };
                    (id, write)
                })),
            }
            row
        },
    )
}

fn table() -> impl Strategy<Value = TableDeclaration> {
    let consistency = prop::sample::select(vec![
        Consistency::Eventual,
        Consistency::ReadAfterWrite,
        Consistency::OriginStrong,
        Consistency::Local,
    ]);
    let writers = prop::sample::select(vec![Writers::Any, Writers::Origin]);
    let word = prop::sample::select(vec![
        "lww",
        "counter",
        "max",
        "min",
        "set",
        "group=a",
        "group=ü",
        "personal",
        "personal counter",
        "personal group=a",
    ]);
    let columns = prop::collection::btree_map(any::<u32>(), word, 0..5);
    let on_stale =
        prop::sample::select(vec![OnStale::Serve, OnStale::Wait, OnStale::Forward, OnStale::Fail]);
    let max_lag = prop::option::of(
        (any::<u64>(), on_stale).prop_map(|(ms, on_stale)| MaxLag { ms, on_stale }),
    );
    let on_unreachable = prop::sample::select(vec![OnUnreachable::Fail, OnUnreachable::Stale]);
    let flags = (any::<bool>(), max_lag, on_unreachable);
    (any::<u32>(), "\\PC{0,12}", consistency, writers, flags, columns).prop_map(
        |(id, name, consistency, writers, (explicit_key, max_lag, on_unreachable), columns)| {
            let name_of = |id: u32| format!("{name}.{id}");
            let mut policy = TablePolicy {
                consistency,
                writers,
                explicit_key,
                max_lag,
                on_unreachable,
                ..TablePolicy::default()
            };
            for (id, word) in &columns {
                policy.declare_column(&name_of(*id), word).unwrap();
            }
            TableDeclaration {
                id: TableId(id),
                policy,
                columns: columns.keys().map(|id| (ColumnId(*id), name_of(*id))).collect(),
                name,
            }
        },
    )
}

fn member() -> impl Strategy<Value = Member> {
    (author(), "[a-z][a-z0-9-]{0,31}", any::<u128>()).prop_map(|(author, name, incarnation)| {
        let node = NodeId::new(&name).unwrap();
        Member { author, node, incarnation: Incarnation(incarnation) }
    })
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        4 => prop::collection::vec(row(), 0..8).prop_map(Part::Rows),
        1 => prop::collection::vec("\\PC{0,30}", 0..4).prop_map(Part::Ddl),
        1 => prop::collection::vec(
            prop_oneof![
                2 => table().prop_map(TableChange::Declared),
                1 => any::<u32>().prop_map(|id| TableChange::Dropped(TableId(id))),
            ],
            0..3,
        )
        .prop_map(Part::Policy),
        1 => member().prop_map(Part::Join),
        1 => (prop::collection::btree_set(any::<u32>(), 0..3), "\\PC{0,20}").prop_map(
            |(tables, script)| {
                let tables = tables.into_iter().map(TableId).collect();
                Part::Freeze(Freeze { tables, script })
            }
        ),
        1 => (dot(), prop::option::of("\\PC{0,12}"))
            .prop_map(|(freeze, failure)| Part::Unfreeze(freeze, failure)),
        1 => (any::<u128>(), fate()).prop_map(|(id, fate)| Part::Outcome(RequestId(id), fate)),
    ]
}

fn fate() -> impl Strategy<Value = Fate> {
    let committed =
        (any::<[u8; 32]>(), prop::option::of(prop::collection::vec(any::<u8>(), 0..20)));
    prop_oneof![
        Just(Fate::Refused),
        committed
            .prop_map(|(program, result)| Fate::Committed { program: Digest(program), result }),
    ]
}

fn parts() -> impl Strategy<Value = Vec<Part>> {
    prop::collection::vec(part(), 0..4)
}

proptest! {
    #[test]
    fn an_entry_decodes_to_what_it_was_made_of(header in header(), parts in parts()) {
        let entry = body(&parts).into_entry(header);
        let decoded = Entry::decode(&entry.bytes).unwrap();
        prop_assert_eq!(decoded.header, header);
        prop_assert_eq!(decoded.digest, Digest::of(&entry.bytes));
        prop_assert_eq!(decoded.digest, entry.digest);
        assert_holds(&decoded, &parts);
    }

    #[test]
    fn a_body_knows_its_length(header in header(), parts in parts()) {
        let body = body(&parts);
        let len = body.len();
        let empty = Body::default().into_entry(header).bytes.len();
        let entry = body.into_entry(header).bytes.len();
        prop_assert!((empty + len..=empty + len + 16 * parts.len()).contains(&entry));
    }

    #[test]
    fn truncated_entries_never_panic_nor_pass_for_the_whole(
        header in header(), parts in parts(),
    ) {
        let entry = body(&parts).into_entry(header);
        for cut in 0..entry.bytes.len() {
            let part = &entry.bytes[..cut];
            let _ = read_to_the_end(part);
            if let Ok(shorter) = Entry::decode(part) {
                prop_assert_ne!(shorter.digest, entry.digest);
                prop_assert!(shorter.segments().count() < parts.len());
            }
        }
    }

    #[test]
    fn flipped_bits_never_panic_and_show_in_the_digest(
        header in header(), parts in parts(), flips in prop::collection::vec((any::<usize>(), 0u8..8), 1..20),
    ) {
        let entry = body(&parts).into_entry(header);
        for (at, bit) in flips {
            let mut bytes = entry.bytes.to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let _ = read_to_the_end(&bytes);
            if let Ok(other) = Entry::decode(&bytes) {
                prop_assert_ne!(other.digest, entry.digest);
            }
        }
    }

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200), header in header()) {
        let _ = read_to_the_end(&noise);
        let mut reader = RowsReader::new(&noise);
        while let Ok(Some(_)) = reader.next() {}
        let mut bytes = Body::default().into_entry(header).bytes.to_vec();
        bytes.extend_from_slice(&noise);
        let _ = read_to_the_end(&bytes);
    }

    #[test]
    fn rows_of_one_shape_name_their_table_once(rows in 2usize..50) {
        let row = Row {
            table: TableId(u32::MAX),
            kind: RowOpKind::Insert,
            key: vec![1, 2],
            epoch: 0,
            cells: vec![(ColumnId(u32::MAX), Write::Assign(Owned::Null, None))],
            saw: Vec::new(),
        };
        let len = |count| body(&[Part::Rows(vec![row.clone(); count])]).len();
        prop_assert_eq!(len(rows) - len(1), (rows - 1) * (1 + 2 + 1 + 1));
    }
}

// --- Named cases

fn first() -> EntryHeader {
    EntryHeader {
        dot: Dot { author: AuthorId::FIRST, seq: 1 },
        hlc: Hlc(7),
        previous: Digest::NONE,
        schema: SchemaVersion(0),
        under: 0,
    }
}

fn with_field(tag: u64, contents: &[u8]) -> Vec<u8> {
    let mut bytes = body(&[Part::Ddl(vec!["a".to_owned()])]).into_entry(first()).bytes.to_vec();
    put_varint(&mut bytes, tag);
    put_prefixed(&mut bytes, contents);
    bytes
}

#[test]
fn an_unknown_odd_field_is_passed_over() {
    let bytes = with_field(1001, b"from a later version");
    let entry = Entry::decode(&bytes).unwrap();
    assert_holds(&entry, &[Part::Ddl(vec!["a".to_owned()])]);
    assert_eq!(entry.bytes[..], bytes, "and kept, since others may know it");
}

#[test]
fn an_unknown_even_field_is_refused() {
    let error = Entry::decode(&with_field(1000, b"from a later version")).unwrap_err();
    assert_eq!(error, DecodeError::Unknown("segment"));
}

#[test]
fn a_later_format_is_refused_before_anything_else_is_read() {
    assert_eq!(
        Entry::decode(&[codec::FORMAT + 1]).unwrap_err(),
        DecodeError::Unknown("entry format")
    );
    assert_eq!(Entry::decode(&[]).unwrap_err(), DecodeError::Truncated);
}

#[test]
fn a_header_that_contradicts_itself_is_refused() {
    let dot = |term, counter, seq| Dot { author: AuthorId { term, counter }, seq };
    let digest = Digest([1; 32]);
    let cases = [
        EntryHeader { dot: dot(1, 1, 0), previous: digest, ..first() },
        EntryHeader { dot: dot(0, 1, 1), ..first() },
        EntryHeader { dot: dot(1, 0, 1), ..first() },
        EntryHeader { previous: digest, ..first() },
        EntryHeader { dot: dot(1, 1, 2), ..first() },
    ];
    for header in cases {
        let bytes = Body::default().into_entry(header).bytes;
        let error = Entry::decode(&bytes).unwrap_err();
        assert!(matches!(error, DecodeError::Invalid(_)), "{header:?}: {error}");
    }
}

#[test]
fn header_fields_stand_in_their_order_each_once() {
    let entry = Body::default().into_entry(first());
    let (format, fields) = entry.bytes.split_first().unwrap();
    let dot_field = 2 + usize::from(fields[1]);
    let hlc_field = 2 + 8;
    let (dot, rest) = fields.split_at(dot_field);
    let (hlc, rest) = rest.split_at(hlc_field);
    let built = |parts: &[&[u8]]| Entry::decode(&[&[*format], &parts.concat()[..]].concat());
    assert!(built(&[dot, hlc, rest]).is_ok());
    for wrong in [vec![hlc, dot, rest], vec![dot, dot, hlc, rest], vec![dot, rest], vec![dot, hlc]]
    {
        assert!(built(&wrong).is_err());
    }
}

#[test]
fn a_length_beyond_the_end_is_refused_without_an_allocation() {
    let mut bytes = Body::default().into_entry(first()).bytes.to_vec();
    put_varint(&mut bytes, 32);
    put_varint(&mut bytes, u64::MAX);
    assert!(Entry::decode(&bytes).is_err());
    for count in [u64::MAX, 1 << 40] {
        let mut rows = vec![3, 1, 2, b'k', 0];
        put_varint(&mut rows, count);
        assert!(RowsReader::new(&rows).next().is_err(), "dots");
        let mut rows = vec![1, 1];
        put_varint(&mut rows, count);
        assert!(RowsReader::new(&rows).next().is_err(), "columns");
    }
}

#[test]
fn columns_ascend_in_a_run() {
    let run = |first: u8, second: u8| [1, 1, 2, first << 2, second << 2, 2, b'k', 0, 0, 0, 0];
    assert!(RowsReader::new(&run(1, 2)).next().is_ok());
    assert!(RowsReader::new(&run(2, 2)).next().is_err());
    assert!(RowsReader::new(&run(2, 1)).next().is_err());
}

#[test]
fn an_epoch_can_always_be_counted_up() {
    let rows = |epoch: u32| {
        let mut rows = vec![3, 1, 2, b'k'];
        put_varint(&mut rows, u64::from(epoch));
        rows.extend([0, 0]);
        rows
    };
    assert!(RowsReader::new(&rows(EPOCH_MAX)).next().is_ok());
    assert_eq!(RowsReader::new(&rows(EPOCH_MAX + 1)).next(), Err(DecodeError::Range));
}

#[test]
fn a_timestamp_always_has_a_later_one() {
    let at = |hlc| Body::default().into_entry(EntryHeader { hlc: Hlc(hlc), ..first() });
    let latest = (Hlc::LATEST.0 << 16) | 0xffff;
    assert!(Entry::decode(&at(latest).bytes).is_ok());
    assert!(matches!(Entry::decode(&at(latest + 1).bytes), Err(DecodeError::Invalid(_))));
}

#[test]
fn a_change_of_a_set_has_one_encoding_only() {
    // An update of column 1, the key "k", in epoch 0; then the change.
    let read = |change: &[u8]| {
        let rows = [&[2, 1, 1, 1 << 2 | 3, 2, b'k', 0], change].concat();
        let mut reader = RowsReader::new(&rows);
        reader.next().map(|op| format!("{:?}", op.unwrap().cells[0].write))
    };
    let read_error = |change: &[u8]| read(change).unwrap_err();
    let added = read(&[4, 0, 3, 1, 2, 0]).unwrap();
    assert!(added.contains("[Bool(false), Bool(true), Integer(1)], removed: []"), "{added}");
    let removed = read(&[0, 8, 6, b'a', 3, 1, 1, 9, 0, 1]).unwrap_err();
    assert_eq!(removed, DecodeError::Invalid("elements do not ascend"), "false behind \"a\"");
    let removed = read(&[0, 6, 6, b'a', 3, 1, 1, 9]).unwrap();
    assert!(removed.contains("stable: true"), "{removed}");
    for twice in [&[2, 3, 3, 0][..], &[2, 3, 0, 0], &[4, 1, 2, 1, 0, 0]] {
        assert_eq!(read_error(twice), DecodeError::Invalid("elements do not ascend"));
    }
    let no_element = DecodeError::Invalid("not an element of a set");
    assert_eq!(read_error(&[9, 2, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0, 0]), no_element, "1.0 is 1");
    assert_eq!(read_error(&[9, 2, 0x7f, 0xf0, 0, 0, 0, 0, 0, 0, 0]), no_element, "infinity");
    assert_eq!(read_error(&[2, 7, b'a', 0]), no_element, "a blob");
    assert_eq!(read_error(&[2, 6, 0xff, 0]), DecodeError::Invalid("text is not UTF-8"));
    let nothing = DecodeError::Invalid("a removal that names no add");
    assert_eq!(read_error(&[0, 2, 3, 0]), nothing);
    let insert = [1, 1, 1, 1 << 2 | 3, 2, b'k', 0, 0, 2, 3, 1];
    let error = RowsReader::new(&insert).next().unwrap_err();
    assert_eq!(error, DecodeError::Invalid("an insert that removes elements"));
}
