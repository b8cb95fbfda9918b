//! [`Held`]: values that can be compared bit for bit, and the order of those in `max` and `min` columns.

use std::cmp::Ordering;

use littoral::{ColumnType, ValueRef};

/// A value that can be compared bit for bit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) enum Held {
    /// NULL.
    #[default]
    Null,
    /// INTEGER.
    Integer(i64),
    /// REAL, as its bits.
    Real(u64),
    /// TEXT.
    Text(Vec<u8>),
    /// BLOB.
    Blob(Vec<u8>),
}

impl From<ValueRef<'_>> for Held {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(n) => Self::Integer(n),
            ValueRef::Real(r) => Self::Real(r.to_bits()),
            ValueRef::Text(bytes) => Self::Text(bytes.to_vec()),
            ValueRef::Blob(bytes) => Self::Blob(bytes.to_vec()),
        }
    }
}

impl From<rusqlite::types::ValueRef<'_>> for Held {
    fn from(value: rusqlite::types::ValueRef<'_>) -> Self {
        use rusqlite::types::ValueRef as Sqlite;
        match value {
            Sqlite::Null => Self::Null,
            Sqlite::Integer(n) => Self::Integer(n),
            Sqlite::Real(r) => Self::Real(r.to_bits()),
            Sqlite::Text(bytes) => Self::Text(bytes.to_vec()),
            Sqlite::Blob(bytes) => Self::Blob(bytes.to_vec()),
        }
    }
}

impl Held {
    fn class(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Integer(_) | Self::Real(_) => 1,
            Self::Text(_) => 2,
            Self::Blob(_) => 3,
        }
    }

    /// NULL, numbers, text, blobs; numbers by value, of equal ones the integer first.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(b),
            (Self::Real(a), Self::Real(b)) => f64::from_bits(*a).total_cmp(&f64::from_bits(*b)),
            (Self::Integer(a), Self::Real(b)) => number_order(*a, f64::from_bits(*b)),
            (Self::Real(a), Self::Integer(b)) => number_order(*b, f64::from_bits(*a)).reverse(),
            (Self::Text(a), Self::Text(b)) | (Self::Blob(a), Self::Blob(b)) => a.cmp(b),
            _ => self.class().cmp(&other.class()),
        }
    }

    /// Whether `self` stays where `other` is written to a column of that type, `max` or `min`.
    pub(super) fn beats(&self, other: &Self, merge: ColumnType) -> bool {
        if *other == Self::Null || *self == Self::Null {
            return *other == Self::Null;
        }
        let order = self.order(other);
        if merge == ColumnType::Max { order.is_ge() } else { order.is_le() }
    }
}

/// An integer against a real, which has no bits behind the point where it is beyond 2^53.
fn number_order(n: i64, r: f64) -> Ordering {
    if r.is_infinite() || r.abs() > 1e20 {
        return 0f64.total_cmp(&r);
    }
    #[expect(clippy::cast_possible_truncation, reason = "the bound is checked before")]
    let whole = r.floor() as i128;
    let order = i128::from(n).cmp(&whole);
    if order == Ordering::Equal { Ordering::Less } else { order }
}
