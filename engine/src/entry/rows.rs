//! The operations of a `Rows` segment as bytes and back, as `docs/format.md` specifies them.
//!
//! They stand in runs of operations of one shape, so that a table and its columns are named once for
//! many rows. Decoding checks every bound before it allocates, and never panics.

use crate::{
    entry::{
        Cell, CellWrite, RowOp, RowOpKind, SetChange,
        codec::{put_dot, read_dot},
    },
    id::{AuthorId, ColumnId, TableId},
    value::{ByteReader, DecodeError, put_varint, put_zigzag},
    version::Dot,
};

// --- Writing

/// Writes the operations of one `Rows` segment.
#[derive(Debug, Default)]
pub(crate) struct RowsWriter {
    out: Vec<u8>,
    run: Option<(TableId, RowOpKind)>,
    columns: Vec<(ColumnId, CellKind)>,
    /// The columns of the row at hand, before they are compared with the run's.
    shape: Vec<(ColumnId, CellKind)>,
}

/// How the cells of one column in a run are encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum CellKind {
    Assign = 0,
    Add = 1,
    Extreme = 2,
    Set = 3,
}

impl CellKind {
    fn from_bits(bits: u64) -> Result<Self, DecodeError> {
        [Self::Assign, Self::Add, Self::Extreme, Self::Set]
            .into_iter()
            .find(|kind| *kind as u64 == bits)
            .ok_or(DecodeError::Unknown("cell kind"))
    }
}

impl RowsWriter {
    pub(crate) fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.out
    }

    /// The bytes of a segment that is finished.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.out
    }

    /// Begins another segment, in the same buffer.
    pub(crate) fn restart(&mut self) {
        self.out.clear();
    }

    /// Begins a row, and a new run if its shape differs from the row before. Exactly one cell per
    /// column must follow (or the dots seen, for a delete). Says whether the shape is that of the row
    /// before.
    pub(crate) fn row(
        &mut self,
        table: TableId,
        kind: RowOpKind,
        columns: impl Iterator<Item = (ColumnId, CellKind)>,
        key: &[u8],
        epoch: u32,
    ) -> bool {
        self.shape.clear();
        self.shape.extend(columns);
        let like_before = self.is_in_run(table, kind) && self.shape == self.columns;
        if !like_before {
            self.end_run();
            self.begin_run(table, kind);
        }
        self.alike(key, epoch);
        like_before
    }

    /// Whether rows of that kind stand last.
    pub(crate) fn is_in_run(&self, table: TableId, kind: RowOpKind) -> bool {
        self.run == Some((table, kind))
    }

    /// Begins a row of the same shape as the row before.
    pub(crate) fn alike(&mut self, key: &[u8], epoch: u32) {
        debug_assert!(self.run.is_some(), "there is a row before it in the segment");
        put_varint(&mut self.out, key.len() as u64 + 1);
        self.out.extend_from_slice(key);
        put_varint(&mut self.out, u64::from(epoch));
    }

    fn begin_run(&mut self, table: TableId, kind: RowOpKind) {
        self.run = Some((table, kind));
        std::mem::swap(&mut self.columns, &mut self.shape);
        self.out.push(match kind {
            RowOpKind::Insert => 1,
            RowOpKind::Update => 2,
            RowOpKind::Delete => 3,
        });
        put_varint(&mut self.out, u64::from(table.0));
        if kind != RowOpKind::Delete {
            put_varint(&mut self.out, self.columns.len() as u64);
            for (column, kind) in &self.columns {
                put_varint(&mut self.out, u64::from(column.0) << CELL_KIND_BITS | *kind as u64);
            }
        }
    }

    fn end_run(&mut self) {
        if self.run.take().is_some() {
            self.out.push(END_OF_RUN);
        }
    }

    /// Appends cells that are encoded already.
    pub(crate) fn encoded(&mut self, cells: &[u8]) {
        self.out.extend_from_slice(cells);
    }

    pub(crate) fn delta(&mut self, delta: i64) {
        put_zigzag(&mut self.out, delta);
    }

    pub(crate) fn saw(&mut self, dots: &[Dot]) {
        put_varint(&mut self.out, dots.len() as u64);
        for dot in dots {
            put_dot(&mut self.out, *dot);
        }
    }

    pub(crate) fn finish(&mut self) {
        self.end_run();
    }
}

/// Appends which entry's value an assignment overwrites.
pub(crate) fn put_previous(out: &mut Vec<u8>, previous: Option<Dot>) {
    match previous {
        Some(dot) => put_dot(out, dot),
        None => out.push(0),
    }
}

const END_OF_RUN: u8 = 0;

/// A run names a column by its id, and behind it in so many bits how its cells were written.
const CELL_KIND_BITS: u32 = 2;

/// No row is deleted and inserted again that often; so that an epoch can always be counted up.
const EPOCH_MAX: u32 = 1 << 30;

// --- Reading

fn read_previous(reader: &mut ByteReader<'_>) -> Result<Option<Dot>, DecodeError> {
    let counter = reader.varint_u32()?;
    if counter == 0 {
        return Ok(None);
    }
    let author = AuthorId { term: reader.varint_u32()?, counter };
    Ok(Some(Dot { author, seq: reader.varint()? }))
}

/// Reads the operations of a `Rows` segment one after the other, lending each.
#[derive(Debug)]
pub struct RowsReader<'a> {
    reader: ByteReader<'a>,
    run: Option<(TableId, RowOpKind)>,
    columns: Vec<(ColumnId, CellKind)>,
    key: &'a [u8],
    cells: Vec<Cell<'a>>,
    saw: Vec<Dot>,
}

impl<'a> RowsReader<'a> {
    /// Reads the bytes of [`Segment::Rows`](crate::Segment::Rows).
    pub const fn new(rows: &'a [u8]) -> Self {
        Self {
            reader: ByteReader::new(rows),
            run: None,
            columns: Vec::new(),
            key: &[],
            cells: Vec::new(),
            saw: Vec::new(),
        }
    }

    /// Key and cells of the operation that was read last; their bytes live as long as the segment's.
    pub(crate) fn last(&self) -> (&'a [u8], &[Cell<'a>]) {
        (self.key, &self.cells)
    }

    /// The next operation, or `None` at the end.
    ///
    /// # Errors
    /// Tells how the bytes break the format; nothing may be read after that.
    #[expect(clippy::should_implement_trait, reason = "an operation borrows from the reader")]
    pub fn next(&mut self) -> Result<Option<RowOp<'_>>, DecodeError> {
        let (table, kind, key) = loop {
            match self.run {
                None if self.reader.is_empty() => return Ok(None),
                None => self.read_run()?,
                Some((table, kind)) => match self.reader.varint()? {
                    0 => self.run = None,
                    len => {
                        let len = usize::try_from(len - 1).map_err(|_| DecodeError::Range)?;
                        break (table, kind, self.reader.bytes(len)?);
                    }
                },
            }
        };
        self.key = key;
        let epoch = self.reader.varint_u32()?;
        if epoch > EPOCH_MAX {
            return Err(DecodeError::Range);
        }
        self.cells.clear();
        self.saw.clear();
        if kind == RowOpKind::Delete {
            for _ in 0..self.reader.varint()? {
                self.saw.push(read_dot(&mut self.reader)?);
            }
        }
        for &(column, cell) in &self.columns {
            let write = match cell {
                CellKind::Add => CellWrite::Add(self.reader.zigzag()?),
                CellKind::Assign => {
                    let previous = match kind {
                        RowOpKind::Update => read_previous(&mut self.reader)?,
                        RowOpKind::Insert | RowOpKind::Delete => None,
                    };
                    CellWrite::Assign { value: self.reader.cell()?, previous }
                }
                CellKind::Extreme => CellWrite::Extreme(self.reader.cell()?),
                CellKind::Set => {
                    let change = SetChange::read(&mut self.reader)?;
                    if kind == RowOpKind::Insert && change.removed().next().is_some() {
                        return Err(DecodeError::Invalid("an insert that removes elements"));
                    }
                    CellWrite::Set(change)
                }
            };
            self.cells.push(Cell { column, write });
        }
        Ok(Some(RowOp { table, kind, key, epoch, cells: &self.cells, saw: &self.saw }))
    }

    fn read_run(&mut self) -> Result<(), DecodeError> {
        let kind = match self.reader.byte()? {
            1 => RowOpKind::Insert,
            2 => RowOpKind::Update,
            3 => RowOpKind::Delete,
            _ => return Err(DecodeError::Unknown("row operation")),
        };
        self.run = Some((TableId(self.reader.varint_u32()?), kind));
        self.columns.clear();
        if kind != RowOpKind::Delete {
            for _ in 0..self.reader.varint()? {
                let column = self.reader.varint()?;
                let cell = CellKind::from_bits(column & ((1 << CELL_KIND_BITS) - 1))?;
                let id = u32::try_from(column >> CELL_KIND_BITS).map_err(|_| DecodeError::Range)?;
                if self.columns.last().is_some_and(|(last, _)| last.0 >= id) {
                    return Err(DecodeError::Invalid("column ids do not ascend"));
                }
                self.columns.push((ColumnId(id), cell));
            }
        }
        Ok(())
    }
}
