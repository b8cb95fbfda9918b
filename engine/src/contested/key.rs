//! [`RowKey`]: a row's canonical key, kept in place if it is short.
//!
//! Clocks are looked up by the hundred thousand in key order. A key that lies beside its clock costs
//! no memory access of its own.

use std::{borrow::Borrow, cmp::Ordering, fmt};

/// The longest key that is kept in place, in bytes.
const INLINE_BYTES: usize = 46;

/// The bytes of a key.
#[derive(Clone)]
pub(crate) enum RowKey {
    /// How many of the bytes count.
    Inline(u8, [u8; INLINE_BYTES]),
    Heap(Box<[u8]>),
}

impl RowKey {
    #[expect(clippy::cast_possible_truncation, reason = "the length is checked before")]
    pub(crate) fn new(key: &[u8]) -> Self {
        if key.len() > INLINE_BYTES {
            return Self::Heap(key.into());
        }
        let mut bytes = [0; INLINE_BYTES];
        bytes[..key.len()].copy_from_slice(key);
        Self::Inline(key.len() as u8, bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Inline(len, bytes) => &bytes[..usize::from(*len)],
            Self::Heap(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for RowKey {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl PartialEq for RowKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for RowKey {}

impl PartialOrd for RowKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RowKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl fmt::Debug for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().fmt(f)
    }
}
