//! Entries as bytes and back: format version 1, specified in `docs/format.md`.
//!
//! An entry is the format byte, then fields. A field is a tag, a length and that many bytes. An
//! even tag names a field that a reader must know, an odd one a field that it may pass over.
//! Fields 2 to 12 are the header, in this order, each once; segments follow in the order in which
//! they take effect.
//!
//! Decoding checks every bound before it allocates, and never panics.

use std::sync::Arc;

use crate::{
    entry::{
        Digest, Entry, EntryHeader, Fate, Freeze, Member, Membership, Segment, TableChange,
        TableDeclaration, rows::RowsWriter,
    },
    forward::RequestId,
    hlc::Hlc,
    id::{AuthorId, ColumnId, Incarnation, NodeId, SchemaVersion, Seq, TableId},
    policy::{ColumnType, Consistency, MaxLag, OnStale, OnUnreachable, TablePolicy, Writers},
    value::{ByteReader, DecodeError, put_prefixed, put_varint, put_zigzag},
    version::{Dot, VersionVector},
};

/// The first byte of every entry this version writes; it reads no other.
pub(crate) const FORMAT: u8 = 1;

const TAG_DOT: u64 = 2;
const TAG_HLC: u64 = 4;
const TAG_PREVIOUS: u64 = 6;
const TAG_SCHEMA: u64 = 8;
const TAG_UNDER: u64 = 10;
const TAG_ROWS: u64 = 32;
const TAG_DDL: u64 = 34;
const TAG_POLICY: u64 = 36;
const TAG_MEMBERSHIP: u64 = 38;
const TAG_FRONTIER: u64 = 40;
const TAG_FREEZE: u64 = 42;
const TAG_UNFREEZE: u64 = 44;
const TAG_SEQUENCE: u64 = 46;
const TAG_OUTCOME: u64 = 48;

/// No entry's bytes outside its segments are more than this.
pub(crate) const HEADER_BYTES_MAX: usize = 256;

// --- Writing

/// The segments of an entry, encoded before its header is known.
#[derive(Debug, Default, Clone)]
pub(crate) struct Body {
    fields: Vec<(u64, Vec<u8>)>,
}

impl Body {
    pub(crate) fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.fields.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    pub(crate) fn push_rows(&mut self, rows: RowsWriter) {
        self.field(TAG_ROWS, rows.into_bytes());
    }

    pub(crate) fn push_ddl<'s>(&mut self, statements: impl Iterator<Item = &'s str>) {
        let mut field = Vec::new();
        for statement in statements {
            put_prefixed(&mut field, statement.as_bytes());
        }
        self.field(TAG_DDL, field);
    }

    pub(crate) fn push_policy(&mut self, changes: &[TableChange]) {
        let mut field = Vec::new();
        for change in changes {
            let mut one = Vec::new();
            match change {
                TableChange::Declared(table) => put_table(&mut one, table),
                TableChange::Dropped(id) => put_varint(&mut one, u64::from(id.0)),
            }
            put_prefixed(&mut field, &one);
        }
        self.field(TAG_POLICY, field);
    }

    pub(crate) fn push_sequences(&mut self, sequences: &[(TableId, i64)]) {
        let mut field = Vec::new();
        for (table, last) in sequences {
            put_varint(&mut field, u64::from(table.0));
            put_zigzag(&mut field, *last);
        }
        self.field(TAG_SEQUENCE, field);
    }

    pub(crate) fn push_join(&mut self, member: &Member) {
        let mut field = vec![MEMBERSHIP_JOIN];
        put_author(&mut field, member.author);
        put_prefixed(&mut field, member.node.as_str().as_bytes());
        field.extend_from_slice(&member.incarnation.0.to_be_bytes());
        self.field(TAG_MEMBERSHIP, field);
    }

    pub(crate) fn push_freeze(&mut self, freeze: &Freeze) {
        let mut field = Vec::new();
        put_varint(&mut field, freeze.tables.len() as u64);
        for table in &freeze.tables {
            put_varint(&mut field, u64::from(table.0));
        }
        put_prefixed(&mut field, freeze.script.as_bytes());
        self.field(TAG_FREEZE, field);
    }

    pub(crate) fn push_unfreeze(&mut self, freeze: Dot, failure: Option<&str>) {
        let mut field = Vec::new();
        put_dot(&mut field, freeze);
        if let Some(failure) = failure {
            put_prefixed(&mut field, failure.as_bytes());
        }
        self.field(TAG_UNFREEZE, field);
    }

    pub(crate) fn push_frontier(&mut self, number: u64, covered: &VersionVector) {
        let mut field = Vec::new();
        put_varint(&mut field, number);
        for dot in covered.iter() {
            put_dot(&mut field, dot);
        }
        self.field(TAG_FRONTIER, field);
    }

    pub(crate) fn push_outcome(&mut self, request: RequestId, fate: &Fate) {
        let mut field = request.0.to_be_bytes().to_vec();
        match fate {
            Fate::Committed { program, result } => {
                field.push(if result.is_some() { OUTCOME_WITH_RESULT } else { OUTCOME_COMMITTED });
                field.extend_from_slice(&program.0);
                field.extend_from_slice(result.as_deref().unwrap_or_default());
            }
            Fate::Refused => field.push(OUTCOME_REFUSED),
        }
        self.field(TAG_OUTCOME, field);
    }

    fn field(&mut self, tag: u64, bytes: Vec<u8>) {
        self.fields.push((tag, bytes));
    }

    /// Takes the segments out, each as the bytes before its contents, and its contents.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        let fields = std::mem::take(&mut self.fields).into_iter();
        fields.map(|(tag, contents)| (field_head(tag, contents.len()), contents))
    }

    /// Puts the header in front.
    pub(crate) fn into_entry(self, header: EntryHeader) -> Entry {
        let mut out = encode_header(&header);
        let mut fields = self.fields.into_iter();
        // Rows come alone, and may be many: the header is put before them where they lie.
        let bytes = match (fields.next(), fields.as_slice()) {
            (Some((tag, mut rows)), []) => {
                put_varint(&mut out, tag);
                put_varint(&mut out, rows.len() as u64);
                rows.splice(0..0, out);
                rows
            }
            (first, _) => {
                for (tag, bytes) in first.into_iter().chain(fields) {
                    put_varint(&mut out, tag);
                    put_prefixed(&mut out, &bytes);
                }
                out
            }
        };
        Entry { header, digest: Digest::of(&bytes), bytes: Arc::new(bytes) }
    }
}

/// The bytes of an entry before its segments.
pub(crate) fn encode_header(header: &EntryHeader) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES_MAX);
    out.push(FORMAT);
    let mut field = |tag: u64, write: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Vec::with_capacity(32);
        write(&mut bytes);
        put_varint(&mut out, tag);
        put_prefixed(&mut out, &bytes);
    };
    field(TAG_DOT, &|b| put_dot(b, header.dot));
    field(TAG_HLC, &|b| b.extend_from_slice(&header.hlc.0.to_be_bytes()));
    if header.previous != Digest::NONE {
        field(TAG_PREVIOUS, &|b| b.extend_from_slice(&header.previous.0));
    }
    field(TAG_SCHEMA, &|b| put_varint(b, u64::from(header.schema.0)));
    field(TAG_UNDER, &|b| put_varint(b, header.under));
    out
}

fn field_head(tag: u64, len: usize) -> Vec<u8> {
    let mut head = Vec::with_capacity(FIELD_HEAD_BYTES_MAX);
    put_varint(&mut head, tag);
    put_varint(&mut head, len as u64);
    head
}

/// The bytes before the contents of a `Rows` segment of that length.
pub(crate) fn rows_head(len: usize) -> Vec<u8> {
    field_head(TAG_ROWS, len)
}

/// No field's tag and length together are more than this.
pub(crate) const FIELD_HEAD_BYTES_MAX: usize = 20;

const MEMBERSHIP_JOIN: u8 = 1;

const OUTCOME_REFUSED: u8 = 0;
const OUTCOME_COMMITTED: u8 = 1;
const OUTCOME_WITH_RESULT: u8 = 2;

fn put_author(out: &mut Vec<u8>, author: AuthorId) {
    put_varint(out, u64::from(author.counter));
    put_varint(out, u64::from(author.term));
}

pub(crate) fn put_dot(out: &mut Vec<u8>, dot: Dot) {
    put_author(out, dot.author);
    put_varint(out, dot.seq);
}

const FLAG_EXPLICIT_KEY: u8 = 1;
const FLAG_MAX_LAG: u8 = 2;
const FLAG_STALE: u8 = 4;

/// Behind this column type stands the group's name.
const LWW_OF_A_GROUP: u8 = 6;

/// Added to the type of a column whose values are personal.
const PERSONAL: u8 = 0x10;

fn put_table(out: &mut Vec<u8>, table: &TableDeclaration) {
    put_varint(out, u64::from(table.id.0));
    put_prefixed(out, table.name.as_bytes());
    out.push(match table.policy.consistency {
        Consistency::Eventual => 1,
        Consistency::ReadAfterWrite => 2,
        Consistency::OriginStrong => 3,
        Consistency::Local => 4,
    });
    out.push(match table.policy.writers {
        Writers::Any => 1,
        Writers::Origin => 2,
    });
    let flags = [
        (table.policy.explicit_key, FLAG_EXPLICIT_KEY),
        (table.policy.max_lag.is_some(), FLAG_MAX_LAG),
        (table.policy.on_unreachable == OnUnreachable::Stale, FLAG_STALE),
    ];
    out.push(flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum());
    if let Some(MaxLag { ms, on_stale }) = table.policy.max_lag {
        put_varint(out, ms);
        out.push(match on_stale {
            OnStale::Serve => 1,
            OnStale::Wait => 2,
            OnStale::Fail => 3,
            OnStale::Forward => 4,
        });
    }
    put_varint(out, table.columns.len() as u64);
    for (id, name) in &table.columns {
        put_varint(out, u64::from(id.0));
        put_prefixed(out, name.as_bytes());
        let personal = if table.policy.personal.contains(name) { PERSONAL } else { 0 };
        if let Some(group) = table.policy.groups.get(name) {
            out.push(personal | LWW_OF_A_GROUP);
            put_prefixed(out, group.as_bytes());
            continue;
        }
        out.push(
            personal
                | match table.policy.columns.get(name).copied().unwrap_or_default() {
                    ColumnType::Lww => 1,
                    ColumnType::Counter => 2,
                    ColumnType::Max => 3,
                    ColumnType::Min => 4,
                    ColumnType::Set => 5,
                },
        );
    }
}

// --- Reading

/// Decodes an entry and computes its digest; checks the segments' framing, not their contents.
pub(crate) fn decode_entry(bytes: Vec<u8>) -> Result<Entry, DecodeError> {
    let mut reader = ByteReader::new(&bytes);
    let header = decode_header(&mut reader)?;
    for segment in (Segments { reader }) {
        segment?;
    }
    Ok(Entry { header, digest: Digest::of(&bytes), bytes: Arc::new(bytes) })
}

/// Reads the bytes of an entry before its segments.
pub(crate) fn decode_header(reader: &mut ByteReader<'_>) -> Result<EntryHeader, DecodeError> {
    if reader.byte()? != FORMAT {
        return Err(DecodeError::Unknown("entry format"));
    }
    let dot = read_whole(header_field(reader, TAG_DOT)?, read_dot)?;
    if dot.seq == 0 || dot.author.counter == 0 || dot.author.term == 0 {
        return Err(DecodeError::Invalid("dot with a zero"));
    }
    let hlc =
        Hlc(u64::from_be_bytes(read_whole(header_field(reader, TAG_HLC)?, ByteReader::array)?));
    if hlc.wall() > Hlc::LATEST {
        return Err(DecodeError::Invalid("timestamp too far in the future"));
    }
    let mut ahead = *reader;
    let previous = if ahead.varint()? == TAG_PREVIOUS {
        Digest(read_whole(header_field(reader, TAG_PREVIOUS)?, ByteReader::array)?)
    } else {
        Digest::NONE
    };
    if (dot.seq == 1) != (previous == Digest::NONE) {
        return Err(DecodeError::Invalid(
            "an author's first entry, and only that, has none before it",
        ));
    }
    let schema = read_whole(header_field(reader, TAG_SCHEMA)?, ByteReader::varint_u32)?;
    let under = read_whole(header_field(reader, TAG_UNDER)?, ByteReader::varint)?;
    Ok(EntryHeader { dot, hlc, previous, schema: SchemaVersion(schema), under })
}

fn header_field<'a>(reader: &mut ByteReader<'a>, tag: u64) -> Result<&'a [u8], DecodeError> {
    if reader.varint()? == tag {
        reader.prefixed()
    } else {
        Err(DecodeError::Invalid("header field missing or out of order"))
    }
}

fn read_whole<'a, T>(
    bytes: &'a [u8],
    read: impl FnOnce(&mut ByteReader<'a>) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let mut reader = ByteReader::new(bytes);
    let value = read(&mut reader)?;
    if reader.is_empty() { Ok(value) } else { Err(DecodeError::Invalid("field is too long")) }
}

fn read_author(reader: &mut ByteReader<'_>) -> Result<AuthorId, DecodeError> {
    let counter = reader.varint_u32()?;
    Ok(AuthorId { term: reader.varint_u32()?, counter })
}

pub(crate) fn read_dot(reader: &mut ByteReader<'_>) -> Result<Dot, DecodeError> {
    Ok(Dot { author: read_author(reader)?, seq: reader.varint()? })
}

impl Entry {
    /// Decodes the bytes of an entry, as they stand in the column `bytes` of `littoral_log`.
    ///
    /// # Errors
    /// Tells how the bytes break the format.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode_entry(bytes.into())
    }

    /// The segments in order. Their framing was checked when the entry was decoded, their contents
    /// are checked as they are read.
    pub fn segments(&self) -> impl Iterator<Item = Result<Segment<'_>, DecodeError>> {
        self.segments_in_order()
    }

    pub(crate) fn segments_in_order(&self) -> Segments<'_> {
        let mut reader = ByteReader::new(&self.bytes);
        let header = decode_header(&mut reader);
        debug_assert!(header.is_ok(), "an entry's header was decoded before");
        Segments { reader }
    }
}

/// Reads the segments of an entry that is in memory.
#[derive(Debug)]
pub(crate) struct Segments<'a> {
    reader: ByteReader<'a>,
}

impl<'a> Iterator for Segments<'a> {
    type Item = Result<Segment<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.reader.is_empty() {
                return None;
            }
            let segment = self.segment().transpose();
            if let Some(Err(_)) = segment {
                self.reader = ByteReader::new(&[]);
            }
            if segment.is_some() {
                return segment;
            }
        }
    }
}

impl<'a> Segments<'a> {
    /// `None` for an optional field that this version does not know.
    fn segment(&mut self) -> Result<Option<Segment<'a>>, DecodeError> {
        let tag = self.reader.varint()?;
        let contents = self.reader.prefixed()?;
        decode_segment(tag, contents)
    }
}

/// Takes the contents of a field apart; `None` for an optional one that this version does not know.
pub(crate) fn decode_segment(
    tag: u64,
    contents: &[u8],
) -> Result<Option<Segment<'_>>, DecodeError> {
    Ok(Some(match tag {
        TAG_ROWS => Segment::Rows(contents),
        TAG_DDL => Segment::Ddl(read_ddl(contents)?),
        TAG_POLICY => Segment::Policy(read_policy(contents)?),
        TAG_MEMBERSHIP => Segment::Membership(read_whole(contents, read_membership)?),
        TAG_FRONTIER => read_frontier(contents)?,
        TAG_FREEZE => Segment::Freeze(read_whole(contents, read_freeze)?),
        TAG_UNFREEZE => read_whole(contents, read_unfreeze)?,
        TAG_SEQUENCE => Segment::Sequence(read_sequences(contents)?),
        TAG_OUTCOME => read_outcome(contents)?,
        _ if tag % 2 == 1 => return Ok(None),
        _ => return Err(DecodeError::Unknown("segment")),
    }))
}

fn read_frontier<'a>(bytes: &[u8]) -> Result<Segment<'a>, DecodeError> {
    let mut reader = ByteReader::new(bytes);
    let number = reader.varint()?;
    let mut covered = VersionVector::new();
    let mut last = None;
    while !reader.is_empty() {
        let dot = read_dot(&mut reader)?;
        if dot.seq == 0 || last >= Some(dot.author) {
            return Err(DecodeError::Invalid("authors of a frontier do not ascend"));
        }
        last = Some(dot.author);
        covered.advance(dot);
    }
    Ok(Segment::Frontier { number, covered })
}

fn read_ddl(bytes: &[u8]) -> Result<Vec<String>, DecodeError> {
    let mut reader = ByteReader::new(bytes);
    let mut statements = Vec::new();
    while !reader.is_empty() {
        statements.push(reader.string()?.to_owned());
    }
    Ok(statements)
}

fn read_sequences(bytes: &[u8]) -> Result<Vec<(TableId, i64)>, DecodeError> {
    let mut reader = ByteReader::new(bytes);
    let mut sequences = Vec::new();
    while !reader.is_empty() {
        sequences.push((TableId(reader.varint_u32()?), reader.zigzag()?));
    }
    Ok(sequences)
}

fn read_freeze(reader: &mut ByteReader<'_>) -> Result<Freeze, DecodeError> {
    let mut tables: Vec<TableId> = Vec::new();
    for _ in 0..reader.varint()? {
        let table = TableId(reader.varint_u32()?);
        if tables.last().is_some_and(|last| *last >= table) {
            return Err(DecodeError::Invalid("table ids do not ascend"));
        }
        tables.push(table);
    }
    Ok(Freeze { tables, script: reader.string()?.to_owned() })
}

fn read_unfreeze<'a>(reader: &mut ByteReader<'_>) -> Result<Segment<'a>, DecodeError> {
    let freeze = read_dot(reader)?;
    let failure = if reader.is_empty() { None } else { Some(reader.string()?.to_owned()) };
    Ok(Segment::Unfreeze { freeze, failure })
}

fn read_outcome<'a>(bytes: &[u8]) -> Result<Segment<'a>, DecodeError> {
    let mut reader = ByteReader::new(bytes);
    let request = RequestId(u128::from_be_bytes(reader.array()?));
    let kind = reader.byte()?;
    let fate = match kind {
        OUTCOME_REFUSED => Fate::Refused,
        OUTCOME_COMMITTED | OUTCOME_WITH_RESULT => {
            let program = Digest(reader.array()?);
            let result = (kind == OUTCOME_WITH_RESULT)
                .then(|| reader.bytes(reader.remaining()).map(<[u8]>::to_vec))
                .transpose()?;
            Fate::Committed { program, result }
        }
        _ => return Err(DecodeError::Unknown("outcome")),
    };
    if !reader.is_empty() {
        return Err(DecodeError::Invalid("field is too long"));
    }
    Ok(Segment::Outcome { request, fate })
}

fn read_policy(bytes: &[u8]) -> Result<Vec<TableChange>, DecodeError> {
    let mut reader = ByteReader::new(bytes);
    let mut changes = Vec::new();
    while !reader.is_empty() {
        changes.push(read_whole(reader.prefixed()?, read_table_change)?);
    }
    Ok(changes)
}

fn read_table_change(reader: &mut ByteReader<'_>) -> Result<TableChange, DecodeError> {
    let id = TableId(reader.varint_u32()?);
    if reader.is_empty() {
        return Ok(TableChange::Dropped(id));
    }
    Ok(TableChange::Declared(read_table(id, reader)?))
}

fn read_table(id: TableId, reader: &mut ByteReader<'_>) -> Result<TableDeclaration, DecodeError> {
    let name = reader.string()?.to_owned();
    let consistency = match reader.byte()? {
        1 => Consistency::Eventual,
        2 => Consistency::ReadAfterWrite,
        3 => Consistency::OriginStrong,
        4 => Consistency::Local,
        _ => return Err(DecodeError::Unknown("policy")),
    };
    let writers = match reader.byte()? {
        1 => Writers::Any,
        2 => Writers::Origin,
        _ => return Err(DecodeError::Unknown("writers")),
    };
    let flags = reader.byte()?;
    if flags & !(FLAG_EXPLICIT_KEY | FLAG_MAX_LAG | FLAG_STALE) != 0 {
        return Err(DecodeError::Unknown("table flags"));
    }
    let explicit_key = flags & FLAG_EXPLICIT_KEY != 0;
    let max_lag = if flags & FLAG_MAX_LAG == 0 {
        None
    } else {
        let ms = reader.varint()?;
        let on_stale = match reader.byte()? {
            1 => OnStale::Serve,
            2 => OnStale::Wait,
            3 => OnStale::Fail,
            4 => OnStale::Forward,
            _ => return Err(DecodeError::Unknown("on_stale")),
        };
        Some(MaxLag { ms, on_stale })
    };
    let on_unreachable =
        if flags & FLAG_STALE == 0 { OnUnreachable::Fail } else { OnUnreachable::Stale };
    let mut policy = TablePolicy {
        consistency,
        writers,
        explicit_key,
        max_lag,
        on_unreachable,
        ..TablePolicy::default()
    };
    let mut columns: Vec<(ColumnId, String)> = Vec::new();
    for _ in 0..reader.varint()? {
        let column = ColumnId(reader.varint_u32()?);
        if columns.last().is_some_and(|(last, _)| *last >= column) {
            return Err(DecodeError::Invalid("column ids do not ascend"));
        }
        let name = reader.string()?.to_owned();
        let kind = reader.byte()?;
        if kind & PERSONAL != 0 {
            policy.personal.insert(name.clone());
        }
        let merge = match kind & !PERSONAL {
            1 => ColumnType::Lww,
            2 => ColumnType::Counter,
            3 => ColumnType::Max,
            4 => ColumnType::Min,
            5 => ColumnType::Set,
            LWW_OF_A_GROUP => {
                policy.groups.insert(name.clone(), reader.string()?.to_owned());
                ColumnType::Lww
            }
            _ => return Err(DecodeError::Unknown("column type")),
        };
        if merge != ColumnType::Lww {
            policy.columns.insert(name.clone(), merge);
        }
        columns.push((column, name));
    }
    Ok(TableDeclaration { id, name, policy, columns })
}

fn read_membership(reader: &mut ByteReader<'_>) -> Result<Membership, DecodeError> {
    match reader.byte()? {
        MEMBERSHIP_JOIN => {
            let author = read_author(reader)?;
            let node = NodeId::new(reader.string()?)
                .map_err(|_| DecodeError::Invalid("not a node name"))?;
            let incarnation = Incarnation(u128::from_be_bytes(reader.array()?));
            Ok(Membership::Join(Member { author, node, incarnation }))
        }
        _ => Err(DecodeError::Unknown("membership change")),
    }
}

/// Where the author's next entry stands: its sequence number and the digest before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Head {
    pub(crate) seq: Seq,
    pub(crate) digest: Digest,
}

impl Head {
    pub(crate) const START: Self = Self { seq: 0, digest: Digest::NONE };
}
