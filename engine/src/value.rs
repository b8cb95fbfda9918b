//! SQLite values as bytes: the cell encoding and the canonical encoding of row keys.
//!
//! Together with `entry/codec.rs` and `entry/rows.rs` this is the byte layout that `docs/format.md`
//! specifies. Nothing here knows SQLite's API: values come and go as [`ValueRef`].
//!
//! Invariants:
//! - a cell decodes to the value it was encoded from, bit for bit (a NaN cannot occur in SQLite);
//! - two keys have equal bytes exactly if SQLite calls every part equal under the key's collations:
//!   an INTEGER and a REAL of equal value share one encoding, -0.0 is 0, and text is folded.

use std::{borrow::Cow, cmp::Ordering};

/// A borrowed SQLite value. Text is kept as bytes, since SQLite does not check that it is UTF-8.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum ValueRef<'a> {
    /// NULL.
    Null,
    /// INTEGER.
    Integer(i64),
    /// REAL.
    Real(f64),
    /// TEXT.
    Text(&'a [u8]),
    /// BLOB.
    Blob(&'a [u8]),
}

impl ValueRef<'_> {
    /// A total order of all values: NULL, then numbers, text and blobs. Numbers compare by value,
    /// exactly also beyond 2^53; of equal ones INTEGER comes first, then -0.0. Text and blobs compare
    /// byte by byte. Two values are equal exactly if they are stored alike.
    pub fn total_cmp(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(&b),
            (Self::Real(a), Self::Real(b)) => a.total_cmp(&b),
            (Self::Integer(a), Self::Real(b)) => compare_numbers(a, b),
            (Self::Real(a), Self::Integer(b)) => compare_numbers(b, a).reverse(),
            (Self::Text(a), Self::Text(b)) | (Self::Blob(a), Self::Blob(b)) => a.cmp(b),
            _ => self.class().cmp(&other.class()),
        }
    }

    const fn class(self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Integer(_) | Self::Real(_) => 1,
            Self::Text(_) => 2,
            Self::Blob(_) => 3,
        }
    }
}

/// An INTEGER against a REAL; never equal, since the INTEGER comes first then.
fn compare_numbers(integer: i64, real: f64) -> Ordering {
    // A double at or beyond 2^63 is beyond every integer; below that its whole part is an integer.
    const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;
    if real >= TWO_TO_63 {
        return Ordering::Less;
    }
    match integral(real.floor()) {
        // The whole part decides; what is behind the point only makes the REAL greater.
        Some(floor) if integer <= floor => Ordering::Less,
        _ => Ordering::Greater,
    }
}

/// The start of a blake3 hash: of a key, of a row or of a range of rows.
pub(crate) type Sum = [u8; 16];

/// Bytes that do not follow the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end in the middle of something.
    #[error("truncated")]
    Truncated,
    /// A number has more bits than its field allows.
    #[error("number out of range")]
    Range,
    /// A byte that must name one of several things names none.
    #[error("unknown {0}")]
    Unknown(&'static str),
    /// Something is well-formed but breaks a rule of the format.
    #[error("{0}")]
    Invalid(&'static str),
}

// --- Varints: LEB128, at most ten bytes, the shortest form only.

/// Appends `n`.
#[inline]
pub(crate) fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(low_byte(n) | 0x80);
        n >>= 7;
    }
    out.push(low_byte(n));
}

/// Appends `n` so that small magnitudes of either sign are short.
pub(crate) fn put_zigzag(out: &mut Vec<u8>, n: i64) {
    put_varint(out, ((n << 1) ^ (n >> 63)).cast_unsigned());
}

#[expect(clippy::cast_possible_truncation, reason = "the low byte is what is asked for")]
const fn low_byte(n: u64) -> u8 {
    n as u8
}

/// Reads encoded bytes from front to back; never past the end, never panics.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByteReader<'a> {
    rest: &'a [u8],
}

impl<'a> ByteReader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What was not read yet.
    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) const fn remaining(&self) -> usize {
        self.rest.len()
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> Result<u8, DecodeError> {
        let (&first, rest) = self.rest.split_first().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(first)
    }

    #[inline]
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u64, DecodeError> {
        // Most are lengths, small numbers and ids.
        match self.rest.split_first() {
            Some((&byte, rest)) if byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, DecodeError> {
        let mut n = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Range);
            }
            n |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(DecodeError::Invalid("varint is not in its shortest form"));
                }
                return Ok(n);
            }
        }
        Err(DecodeError::Range)
    }

    #[inline]
    pub(crate) fn varint_u32(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.varint()?).map_err(|_| DecodeError::Range)
    }

    #[inline]
    pub(crate) fn length(&mut self) -> Result<usize, DecodeError> {
        let len = usize::try_from(self.varint()?).map_err(|_| DecodeError::Range)?;
        if len > self.rest.len() { Err(DecodeError::Truncated) } else { Ok(len) }
    }

    #[inline]
    pub(crate) fn zigzag(&mut self) -> Result<i64, DecodeError> {
        let n = self.varint()?;
        Ok((n >> 1).cast_signed() ^ -(n & 1).cast_signed())
    }

    /// A length and that many bytes.
    #[inline]
    pub(crate) fn prefixed(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.length()?;
        self.bytes(len)
    }

    /// A length and that many bytes of UTF-8.
    pub(crate) fn string(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.prefixed()?).map_err(|_| DecodeError::Invalid("text is not UTF-8"))
    }
}

/// Appends a length and the bytes.
pub(crate) fn put_prefixed(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

// --- Cells: a header varint that holds the class and, for text and blobs, the length.

const CELL_NULL: u64 = 0;
const CELL_INTEGER: u64 = 1;
const CELL_REAL: u64 = 2;
/// From here on the header is `2 * length + (1 if blob)` more.
const CELL_BYTES: u64 = 4;

/// Appends a cell.
#[inline]
pub(crate) fn put_cell(out: &mut Vec<u8>, value: ValueRef<'_>) {
    match value {
        ValueRef::Null => out.push(low_byte(CELL_NULL)),
        ValueRef::Integer(n) => {
            out.push(low_byte(CELL_INTEGER));
            put_zigzag(out, n);
        }
        ValueRef::Real(r) => {
            out.push(low_byte(CELL_REAL));
            out.extend_from_slice(&r.to_bits().to_be_bytes());
        }
        ValueRef::Text(bytes) => {
            put_varint(out, CELL_BYTES + 2 * bytes.len() as u64);
            out.extend_from_slice(bytes);
        }
        ValueRef::Blob(bytes) => {
            put_varint(out, CELL_BYTES + 2 * bytes.len() as u64 + 1);
            out.extend_from_slice(bytes);
        }
    }
}

/// The value of an encoded cell of our own.
pub(crate) fn value(cell: &[u8]) -> ValueRef<'_> {
    ByteReader::new(cell).cell().unwrap_or(ValueRef::Null)
}

impl<'a> ByteReader<'a> {
    /// Reads a cell.
    pub(crate) fn cell(&mut self) -> Result<ValueRef<'a>, DecodeError> {
        Ok(match self.varint()? {
            CELL_NULL => ValueRef::Null,
            CELL_INTEGER => ValueRef::Integer(self.zigzag()?),
            CELL_REAL => ValueRef::Real(f64::from_bits(u64::from_be_bytes(self.array()?))),
            header if header >= CELL_BYTES => {
                let header = header - CELL_BYTES;
                let len = usize::try_from(header / 2).map_err(|_| DecodeError::Range)?;
                let bytes = self.bytes(len)?;
                if header.is_multiple_of(2) { ValueRef::Text(bytes) } else { ValueRef::Blob(bytes) }
            }
            _ => return Err(DecodeError::Unknown("cell class")),
        })
    }

    /// Passes over a cell and returns its bytes.
    pub(crate) fn cell_bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let start = self.rest;
        let contents = match self.varint()? {
            CELL_NULL => 0,
            CELL_INTEGER => {
                self.varint()?;
                0
            }
            CELL_REAL => size_of::<f64>(),
            header if header >= CELL_BYTES => {
                usize::try_from((header - CELL_BYTES) / 2).map_err(|_| DecodeError::Range)?
            }
            _ => return Err(DecodeError::Unknown("cell class")),
        };
        self.bytes(contents)?;
        Ok(&start[..start.len() - self.rest.len()])
    }
}

// --- Keys: parts that compare like their values, each self-delimiting.

/// The length of an integer's big-endian magnitude is added to this if it is positive and
/// subtracted if it is negative (as in FoundationDB's tuple layer), so integers sort as bytes.
const KEY_INTEGER_ZERO: u8 = 0x14;
const KEY_REAL: u8 = 0x21;
const KEY_TEXT: u8 = 0x30;
const KEY_BLOB: u8 = 0x31;
/// Ends text and blobs; a zero byte within them is followed by [`KEY_ESCAPE`].
const KEY_END: u8 = 0x00;
const KEY_ESCAPE: u8 = 0xff;

/// How SQLite compares text in a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Collation {
    /// Byte by byte.
    #[default]
    Binary,
    /// ASCII letters of either case are alike.
    Nocase,
    /// Spaces at the end do not count.
    Rtrim,
}

impl Collation {
    /// The one that SQLite knows by that name; a key cannot use others.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Binary, Self::Nocase, Self::Rtrim]
            .into_iter()
            .find(|collation| collation.as_str().eq_ignore_ascii_case(name))
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Binary => "BINARY",
            Self::Nocase => "NOCASE",
            Self::Rtrim => "RTRIM",
        }
    }

    /// The text that stands for all texts equal to this one.
    fn fold(self, text: &[u8]) -> Cow<'_, [u8]> {
        match self {
            Self::Binary => Cow::Borrowed(text),
            Self::Rtrim => Cow::Borrowed(trimmed(text)),
            Self::Nocase => {
                // SQLite compares up to the first zero byte, and then the lengths only.
                let end = text.iter().position(|&b| b == 0).unwrap_or(text.len());
                let folded = |byte: u8| byte.is_ascii_uppercase();
                if !text[..end].iter().any(|&b| folded(b)) && text[end..].iter().all(|&b| b == 0) {
                    return Cow::Borrowed(text);
                }
                let mut text = text.to_ascii_lowercase();
                text[end..].fill(0);
                Cow::Owned(text)
            }
        }
    }
}

fn trimmed(text: &[u8]) -> &[u8] {
    let kept = text.iter().rposition(|&b| b != b' ').map_or(0, |last| last + 1);
    &text[..kept]
}

/// Whether a key's encoding leads back to the value itself, and not only to one that is equal to it.
/// `real` says that the column has REAL affinity.
pub(crate) fn is_canonical(value: ValueRef<'_>, collation: Collation, real: bool) -> bool {
    match value {
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Blob(_) => true,
        ValueRef::Real(r) => integral(r).is_none() || (real && r.to_bits() != (-0.0f64).to_bits()),
        ValueRef::Text(text) => match collation {
            Collation::Binary => true,
            Collation::Nocase | Collation::Rtrim => *collation.fold(text) == *text,
        },
    }
}

/// Appends one part of a key. NULL is no part of a key: tables with nullable keys are told apart by
/// rowid.
///
/// # Errors
/// [`DecodeError::Invalid`] for NULL.
pub(crate) fn put_key_part(
    out: &mut Vec<u8>,
    value: ValueRef<'_>,
    collation: Collation,
) -> Result<(), DecodeError> {
    match value {
        ValueRef::Null => return Err(DecodeError::Invalid("NULL in a key")),
        ValueRef::Integer(n) => put_key_integer(out, n),
        ValueRef::Real(r) => match integral(r) {
            Some(n) => put_key_integer(out, n),
            None => {
                out.push(KEY_REAL);
                let bits = r.to_bits();
                let ordered = if bits >> 63 == 1 { !bits } else { bits | (1 << 63) };
                out.extend_from_slice(&ordered.to_be_bytes());
            }
        },
        ValueRef::Text(text) => put_key_bytes(out, KEY_TEXT, &collation.fold(text)),
        ValueRef::Blob(bytes) => put_key_bytes(out, KEY_BLOB, bytes),
    }
    Ok(())
}

/// The integer that equals `r` exactly, if there is one in range.
#[expect(clippy::cast_possible_truncation, reason = "the range is checked before")]
pub(crate) fn integral(r: f64) -> Option<i64> {
    const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;
    ((-TWO_TO_63..TWO_TO_63).contains(&r) && r.fract() == 0.0).then_some(r as i64)
}

fn put_key_integer(out: &mut Vec<u8>, n: i64) {
    let magnitude = n.unsigned_abs();
    let zeros = magnitude.leading_zeros() / u8::BITS;
    let bytes = magnitude.to_be_bytes();
    let digits = &bytes[zeros as usize..];
    let len = low_byte(digits.len() as u64);
    if n < 0 {
        out.push(KEY_INTEGER_ZERO - len);
        out.extend(digits.iter().map(|b| !b));
    } else {
        out.push(KEY_INTEGER_ZERO + len);
        out.extend_from_slice(digits);
    }
}

fn put_key_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    if bytes.contains(&KEY_END) {
        for &byte in bytes {
            out.push(byte);
            if byte == KEY_END {
                out.push(KEY_ESCAPE);
            }
        }
    } else {
        out.extend_from_slice(bytes);
    }
    out.push(KEY_END);
}

/// A value taken out of a key.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum KeyPart<'a> {
    Integer(i64),
    Real(f64),
    Text(Cow<'a, [u8]>),
    Blob(Cow<'a, [u8]>),
}

impl<'a> KeyPart<'a> {
    /// The value, if it stands in the key as it is.
    pub(crate) fn lent(&self) -> Option<ValueRef<'a>> {
        match *self {
            Self::Integer(n) => Some(ValueRef::Integer(n)),
            Self::Real(r) => Some(ValueRef::Real(r)),
            Self::Text(Cow::Borrowed(bytes)) => Some(ValueRef::Text(bytes)),
            Self::Blob(Cow::Borrowed(bytes)) => Some(ValueRef::Blob(bytes)),
            Self::Text(Cow::Owned(_)) | Self::Blob(Cow::Owned(_)) => None,
        }
    }

    pub(crate) fn as_value(&self) -> ValueRef<'_> {
        match self {
            Self::Integer(n) => ValueRef::Integer(*n),
            Self::Real(r) => ValueRef::Real(*r),
            Self::Text(bytes) => ValueRef::Text(bytes),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }
    }
}

impl<'a> ByteReader<'a> {
    /// Reads one part of a key.
    #[inline]
    pub(crate) fn key_part(&mut self) -> Result<KeyPart<'a>, DecodeError> {
        let tag = self.byte()?;
        match tag {
            KEY_REAL => {
                let ordered = u64::from_be_bytes(self.array()?);
                let bits = if ordered >> 63 == 1 { ordered & !(1 << 63) } else { !ordered };
                Ok(KeyPart::Real(f64::from_bits(bits)))
            }
            KEY_TEXT => Ok(KeyPart::Text(self.key_bytes()?)),
            KEY_BLOB => Ok(KeyPart::Blob(self.key_bytes()?)),
            0x0c..=0x1c => self.key_integer(tag).map(KeyPart::Integer),
            _ => Err(DecodeError::Unknown("key class")),
        }
    }

    fn key_integer(&mut self, tag: u8) -> Result<i64, DecodeError> {
        let negative = tag < KEY_INTEGER_ZERO;
        let digits = self.bytes(usize::from(tag.abs_diff(KEY_INTEGER_ZERO)))?;
        let flip = if negative { 0xff } else { 0 };
        let magnitude = digits.iter().fold(0u64, |n, &b| n << 8 | u64::from(b ^ flip));
        if negative {
            0i64.checked_sub_unsigned(magnitude).ok_or(DecodeError::Range)
        } else {
            i64::try_from(magnitude).map_err(|_| DecodeError::Range)
        }
    }

    fn key_bytes(&mut self) -> Result<Cow<'a, [u8]>, DecodeError> {
        let mut unescaped: Option<Vec<u8>> = None;
        loop {
            let end = self.rest.iter().position(|&b| b == KEY_END).ok_or(DecodeError::Truncated)?;
            let chunk = self.bytes(end)?;
            self.byte()?;
            if self.rest.first() == Some(&KEY_ESCAPE) {
                self.byte()?;
                let bytes = unescaped.get_or_insert_default();
                bytes.extend_from_slice(chunk);
                bytes.push(KEY_END);
            } else {
                return Ok(match unescaped {
                    None => Cow::Borrowed(chunk),
                    Some(mut bytes) => {
                        bytes.extend_from_slice(chunk);
                        Cow::Owned(bytes)
                    }
                });
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
