//! [`Block`]: the clocks of neighboring rows, packed; the unit that is kept, copied and written.
//!
//! A stamp stands once in a block, rows refer to it by number: the rows that one transaction inserted
//! cost little more than their keys.

use std::{cmp::Ordering, collections::BTreeMap, mem, ops::Range};

use crate::{
    contested::row::{FORGOTTEN, RowClock},
    hlc::{Hlc, Stamp},
    id::AuthorId,
    value::{ByteReader, DecodeError, put_prefixed, put_varint},
    version::Dot,
};

/// A block is split when its rows take more bytes than this.
pub(super) const BLOCK_BYTES: usize = 4 << 10;

/// Clocks of rows of one table, by ascending key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Block {
    pub(super) stamps: Vec<Stamp>,
    /// Where each row begins.
    starts: Vec<u32>,
    /// Per row its key, then its clocks.
    bytes: Vec<u8>,
}

impl Block {
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Whether it should be split.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() > BLOCK_BYTES && self.len() > 1
    }

    /// Whether rows that follow it had better go to a block of their own.
    pub(super) fn is_nearly_full(&self) -> bool {
        self.bytes.len() > BLOCK_BYTES / 8 * 7
    }

    /// Bytes of memory, about.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>()
            + self.stamps.len() * size_of::<Stamp>()
            + self.starts.len() * size_of::<u32>()
            + self.bytes.len()
    }

    /// Of each author the first entry that stamps are of.
    pub(super) fn oldest(&self) -> Vec<Dot> {
        let mut oldest: Vec<Dot> = Vec::new();
        for stamp in self.stamps.iter().filter(|stamp| **stamp != FORGOTTEN) {
            match oldest.iter_mut().find(|dot| dot.author == stamp.author) {
                Some(dot) => dot.seq = dot.seq.min(stamp.seq),
                None => oldest.push(stamp.dot()),
            }
        }
        oldest
    }

    fn end(&self, row: usize) -> usize {
        self.starts.get(row + 1).map_or(self.bytes.len(), |start| *start as usize)
    }

    fn row_bytes(&self, row: usize) -> &[u8] {
        &self.bytes[self.starts[row] as usize..self.end(row)]
    }

    /// The key of a row by its place.
    pub(super) fn key(&self, row: usize) -> &[u8] {
        let mut reader = ByteReader::new(self.row_bytes(row));
        reader.prefixed().expect("a block's rows were packed here or checked when it was read")
    }

    /// The clocks of a row by its place.
    pub(super) fn clock(&self, row: usize) -> RowClock {
        let mut reader = ByteReader::new(self.row_bytes(row));
        reader
            .prefixed()
            .and_then(|_| RowClock::unpack(&mut reader, &self.stamps))
            .expect("a block's rows were packed here or checked when it was read")
    }

    /// The place of a key, or where it would be: mostly at `from`, or behind it.
    pub(super) fn find(&self, key: &[u8], from: usize) -> Result<usize, usize> {
        /// After so many steps halving is cheaper.
        const STEPS: usize = 4;
        let from = match from.min(self.len()) {
            behind if behind > 0 && self.key(behind - 1) >= key => 0,
            from => from,
        };
        for row in from..(from + STEPS).min(self.len()) {
            match self.key(row).cmp(key) {
                Ordering::Less => {}
                Ordering::Equal => return Ok(row),
                Ordering::Greater => return Err(row),
            }
        }
        let (mut low, mut high) = ((from + STEPS).min(self.len()), self.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.key(middle).cmp(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// The place of the first row from `from` on whose key is not before this one.
    pub(super) fn behind(&self, key: &[u8], from: usize) -> usize {
        // Found in strides that grow: what is looked for is mostly near.
        let mut step = 1;
        while from + step < self.len() && self.key(from + step) < key {
            step *= 2;
        }
        let (mut low, mut high) = (from + step / 2, (from + step).min(self.len()));
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle) < key { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// Puts a row behind all others.
    pub(super) fn push(&mut self, key: &[u8], clock: &RowClock) {
        self.starts.push(offset(self.bytes.len()));
        put_prefixed(&mut self.bytes, key);
        pack(clock, &mut self.bytes, &mut self.stamps);
    }

    /// Puts a row behind all others that has the same clocks as the last of them; false if there is none.
    pub(super) fn push_alike(&mut self, key: &[u8]) -> bool {
        let Some(last) = self.len().checked_sub(1) else { return false };
        let mut reader = ByteReader::new(self.row_bytes(last));
        if reader.prefixed().is_err() {
            return false;
        }
        let end = self.bytes.len();
        let clock = end - reader.remaining()..end;
        self.starts.push(offset(end));
        put_prefixed(&mut self.bytes, key);
        self.bytes.extend_from_within(clock);
        true
    }

    /// Puts rows of another block behind all others, as long as it does not become full; gives the
    /// place behind the last one.
    pub(super) fn push_rows(&mut self, other: &Self, from: usize, upto: usize) -> usize {
        let alike = self.stamps.is_empty() || self.stamps == other.stamps;
        let mut row = from;
        if alike {
            self.stamps.clone_from(&other.stamps);
            while row < upto && self.bytes.len() <= BLOCK_BYTES {
                self.starts.push(offset(self.bytes.len()));
                self.bytes.extend_from_slice(other.row_bytes(row));
                row += 1;
            }
        }
        while row < upto && self.bytes.len() <= BLOCK_BYTES {
            self.push(other.key(row), &other.clock(row));
            row += 1;
        }
        row
    }

    /// These rows and some of another block, of which a row takes the place of one with the same key, or
    /// takes it away if it has no clocks, in as many blocks as that takes; one that is empty if no row is
    /// left.
    pub(super) fn merged(&self, other: &Self, others: Range<usize>) -> Vec<Self> {
        let mut blocks = Vec::new();
        let mut block = Self::default();
        let mut push = |from: &Self, row: usize| {
            if block.is_nearly_full() {
                blocks.push(mem::take(&mut block));
            }
            block.push_row(from, row);
        };
        let mut row = 0;
        for newer in others {
            let key = other.key(newer);
            while row < self.len() {
                match self.key(row).cmp(key) {
                    Ordering::Less => push(self, row),
                    Ordering::Equal => {}
                    Ordering::Greater => break,
                }
                row += 1;
            }
            if !other.has_no_clocks(newer) {
                push(other, newer);
            }
        }
        (row..self.len()).for_each(|row| push(self, row));
        blocks.push(block);
        blocks.iter_mut().for_each(Self::tidy);
        blocks
    }

    fn has_stamps_alone(&self, row: usize) -> bool {
        let mut reader = ByteReader::new(self.row_bytes(row));
        reader.prefixed().is_ok() && RowClock::are_stamps_alone(reader.rest())
    }

    fn has_no_clocks(&self, row: usize) -> bool {
        let mut reader = ByteReader::new(self.row_bytes(row));
        // Mostly told by the length.
        reader.prefixed().is_ok() && reader.remaining() == 1 && self.clock(row).is_empty()
    }

    /// Puts a row of another block behind all others.
    fn push_row(&mut self, other: &Self, row: usize) {
        if self.is_empty() {
            self.stamps.clone_from(&other.stamps);
        }
        if self.stamps.starts_with(&other.stamps) {
            self.starts.push(offset(self.bytes.len()));
            self.bytes.extend_from_slice(other.row_bytes(row));
        } else {
            self.push(other.key(row), &other.clock(row));
        }
    }

    /// Replaces the clocks of the row at `place`, or puts a row there. `packed` is a buffer.
    pub(super) fn put(
        &mut self,
        place: Result<usize, usize>,
        key: &[u8],
        clock: &RowClock,
        packed: &mut Vec<u8>,
    ) {
        if place == Err(self.len()) {
            return self.push(key, clock);
        }
        packed.clear();
        put_prefixed(packed, key);
        pack(clock, packed, &mut self.stamps);
        let (row, start, end) = match place {
            Ok(row) => (row, self.starts[row] as usize, self.end(row)),
            Err(row) => (row, self.starts[row] as usize, self.starts[row] as usize),
        };
        let (old, new) = (end - start, packed.len());
        if old == new {
            self.bytes[start..end].copy_from_slice(packed);
            return self.tidy();
        }
        self.bytes.splice(start..end, packed.iter().copied());
        if place.is_err() {
            self.starts.insert(row, offset(start));
        }
        self.shift(row + 1, offset(new).wrapping_sub(offset(old)));
        self.tidy();
    }

    /// Takes out the row at `row`.
    pub(super) fn remove(&mut self, row: usize) {
        let (start, end) = (self.starts[row] as usize, self.end(row));
        self.bytes.drain(start..end);
        self.starts.remove(row);
        self.shift(row, offset(end - start).wrapping_neg());
    }

    /// Rows from `row` on begin by so much later.
    fn shift(&mut self, row: usize, by: u32) {
        // All of them fit, so that wrapping around comes to the same.
        offset(self.bytes.len());
        self.starts[row..].iter_mut().for_each(|start| *start = start.wrapping_add(by));
    }

    /// Forgets stamps that no row refers to, if they may be many.
    fn tidy(&mut self) {
        if self.stamps.len() > 2 * self.len() + 16 {
            *self = self.rows(0, self.len());
        }
    }

    /// Some of the rows, and all stamps.
    fn part(&self, from: usize, upto: usize) -> Self {
        let (start, end) = (self.starts[from], self.end(upto - 1));
        let mut part = Self {
            stamps: self.stamps.clone(),
            starts: self.starts[from..upto].iter().map(|place| place - start).collect(),
            bytes: self.bytes[start as usize..end].to_vec(),
        };
        part.tidy();
        part
    }

    /// Some of the rows, and the stamps they refer to.
    fn rows(&self, from: usize, upto: usize) -> Self {
        let mut block = Self::default();
        for row in from..upto {
            block.push(self.key(row), &self.clock(row));
        }
        block
    }

    /// Takes the later half away, or only the last row if rows come in ascending order.
    pub(super) fn split(&mut self, ascending: bool) -> Self {
        let at = if ascending { self.len() - 1 } else { self.len() / 2 };
        let right = self.part(at, self.len());
        self.bytes.truncate(self.starts[at] as usize);
        self.starts.truncate(at);
        self.tidy();
        right
    }

    /// What is left of it when every row was changed by `change`, which takes away at least the stamps
    /// that are `gone`.
    pub(super) fn rewritten(
        &self,
        gone: impl Fn(Stamp) -> bool,
        mut change: impl FnMut(&mut RowClock),
    ) -> Self {
        let mut block = Self::default();
        let all_gone = self.stamps.iter().all(|stamp| gone(*stamp));
        for row in 0..self.len() {
            if all_gone && self.has_stamps_alone(row) {
                continue;
            }
            let mut clock = self.clock(row);
            change(&mut clock);
            if !clock.is_empty() {
                block.push(self.key(row), &clock);
            }
        }
        block
    }

    // --- On disk

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes.len() + 64);
        put_varint(&mut out, self.stamps.len() as u64);
        for stamp in &self.stamps {
            put_stamp(&mut out, *stamp);
        }
        put_varint(&mut out, self.len() as u64);
        for row in 0..self.len() {
            put_prefixed(&mut out, self.row_bytes(row));
        }
        out
    }

    /// The inverse of [`Block::encode`]; checks every row.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = ByteReader::new(bytes);
        let mut block = Self::default();
        for _ in 0..reader.varint()? {
            block.stamps.push(read_stamp(&mut reader)?);
        }
        for _ in 0..reader.varint()? {
            let row = reader.prefixed()?;
            let mut parts = ByteReader::new(row);
            parts.prefixed()?;
            RowClock::unpack(&mut parts, &block.stamps)?;
            if !parts.is_empty() {
                return Err(DecodeError::Invalid("bytes behind the clocks of a row"));
            }
            block.starts.push(offset(block.bytes.len()));
            block.bytes.extend_from_slice(row);
        }
        if reader.is_empty() {
            Ok(block)
        } else {
            Err(DecodeError::Invalid("bytes behind a block"))
        }
    }
}

fn offset(place: usize) -> u32 {
    u32::try_from(place).expect("a block's rows are bounded by the size of an entry")
}

/// Appends the clocks of a row.
fn pack(clock: &RowClock, out: &mut Vec<u8>, stamps: &mut Vec<Stamp>) {
    /// For more stamps than this, looking each up one by one takes long: a set may have thousands.
    const FEW: usize = 32;
    if clock.stamps() <= FEW {
        return clock.pack(out, |stamp| intern(stamps, stamp));
    }
    let mut numbers: BTreeMap<Stamp, u64> = stamps.iter().copied().zip(0..).collect();
    clock.pack(out, |stamp| {
        *numbers.entry(stamp).or_insert_with(|| {
            stamps.push(stamp);
            stamps.len() as u64 - 1
        })
    });
}

/// The number of a stamp: mostly one of the last.
fn intern(stamps: &mut Vec<Stamp>, stamp: Stamp) -> u64 {
    let found = stamps.iter().rposition(|held| *held == stamp);
    found.unwrap_or_else(|| {
        stamps.push(stamp);
        stamps.len() - 1
    }) as u64
}

pub(super) fn put_stamp(out: &mut Vec<u8>, stamp: Stamp) {
    put_varint(out, stamp.hlc.0);
    put_varint(out, stamp.author.to_u64());
    put_varint(out, stamp.seq);
}

pub(super) fn read_stamp(reader: &mut ByteReader<'_>) -> Result<Stamp, DecodeError> {
    Ok(Stamp {
        hlc: Hlc(reader.varint()?),
        author: AuthorId::from_u64(reader.varint()?),
        seq: reader.varint()?,
    })
}
