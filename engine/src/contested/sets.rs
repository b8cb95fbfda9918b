//! [`SetClocks`]: which adds of elements to the sets of one row a concurrent removal may still not know.
//!
//! An observed-remove set after Shapiro and others, "A comprehensive study of convergent and commutative
//! replicated data types" (2011): a removal takes away the adds that its author knew, and an element
//! stays as long as one is left. Adds that a frontier covers are known to whoever may still write, so
//! that they need no names: they are told together, as the *stable* one, and are not remembered at all
//! where there are no others.
//!
//! Invariant: an element has a clock exactly if an add of it is left that no frontier covers. So *absent*
//! means that no add is left, or the stable one alone; which of the two, only the row tells.

use std::collections::BTreeMap;

use crate::{
    hlc::Stamp,
    id::ColumnId,
    value::{ByteReader, DecodeError, put_prefixed, put_varint},
    version::Dot,
};

/// The clocks of the elements of a row's sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SetClocks {
    /// By column and the element's bytes; never empty. Rows without sets, which are most, pay nothing
    /// for it.
    elements: Option<Box<Elements>>,
}

type Elements = BTreeMap<(ColumnId, Box<[u8]>), Adds>;

/// The adds of an element that are left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Adds {
    /// Those that no frontier covers; ascending, never none.
    stamps: Vec<Stamp>,
    /// Whether there is one that a frontier covers.
    stable: bool,
}

/// What a removal names of the adds of its element.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) dots: Vec<Dot>,
    pub(crate) stable: bool,
}

impl SetClocks {
    pub(super) fn is_empty(&self) -> bool {
        self.elements.is_none()
    }

    fn iter(&self) -> impl Iterator<Item = (&(ColumnId, Box<[u8]>), &Adds)> {
        self.elements.iter().flat_map(|elements| elements.iter())
    }

    /// How many stamps stand in it.
    pub(super) fn len(&self) -> usize {
        self.iter().map(|(_, adds)| adds.stamps.len()).sum()
    }

    /// Takes in an add.
    pub(super) fn add(&mut self, column: ColumnId, element: Vec<u8>, stamp: Stamp) {
        let elements = self.elements.get_or_insert_default();
        let adds = elements.entry((column, element.into())).or_default();
        if let Err(place) = adds.stamps.binary_search(&stamp) {
            adds.stamps.insert(place, stamp);
        }
    }

    /// Takes in a removal by somebody who knew these adds; says whether none is left, so that the element
    /// goes.
    pub(super) fn remove(&mut self, column: ColumnId, element: Vec<u8>, known: &Known) -> bool {
        let place = (column, element.into());
        let Some(elements) = &mut self.elements else { return known.stable };
        let Some(adds) = elements.get_mut(&place) else { return known.stable };
        adds.stamps.retain(|stamp| !known.dots.contains(&stamp.dot()));
        adds.stable &= !known.stable;
        if !adds.stamps.is_empty() {
            return false;
        }
        let stable = adds.stable;
        elements.remove(&place);
        self.tidy();
        !stable
    }

    /// Takes in a local removal of an element that is there: it knows every add.
    pub(super) fn take(&mut self, column: ColumnId, element: Vec<u8>) -> Known {
        let taken = self.elements.as_mut().and_then(|all| all.remove(&(column, element.into())));
        self.tidy();
        match taken {
            None => Known { dots: Vec::new(), stable: true },
            Some(adds) => Known {
                dots: adds.stamps.into_iter().map(Stamp::dot).collect(),
                stable: adds.stable,
            },
        }
    }

    /// Forgets adds that a frontier covers.
    pub(super) fn forget(&mut self, gone: impl Fn(Stamp) -> bool) {
        let Some(elements) = &mut self.elements else { return };
        elements.retain(|_, adds| {
            let before = adds.stamps.len();
            adds.stamps.retain(|stamp| !gone(*stamp));
            adds.stable |= adds.stamps.len() < before;
            !adds.stamps.is_empty()
        });
        self.tidy();
    }

    fn tidy(&mut self) {
        self.elements.take_if(|elements| elements.is_empty());
    }

    // --- Packing

    pub(super) fn pack(&self, out: &mut Vec<u8>, mut intern: impl FnMut(Stamp) -> u64) {
        put_varint(out, self.elements.as_ref().map_or(0, |elements| elements.len()) as u64);
        for ((column, element), adds) in self.iter() {
            put_varint(out, u64::from(column.0));
            put_prefixed(out, element);
            put_varint(out, (adds.stamps.len() as u64) << 1 | u64::from(adds.stable));
            for stamp in &adds.stamps {
                put_varint(out, intern(*stamp));
            }
        }
    }

    pub(super) fn unpack<'b>(
        reader: &mut ByteReader<'b>,
        stamp: impl Fn(&mut ByteReader<'b>) -> Result<Stamp, DecodeError>,
    ) -> Result<Self, DecodeError> {
        let mut elements = Elements::new();
        for _ in 0..reader.varint()? {
            let column = ColumnId(reader.varint_u32()?);
            let element = reader.prefixed()?;
            let adds = reader.varint()?;
            let stamps = (0..adds >> 1).map(|_| stamp(reader)).collect::<Result<_, _>>()?;
            let adds = Adds { stamps, stable: adds & 1 == 1 };
            elements.insert((column, element.into()), adds);
        }
        let mut clocks = Self { elements: Some(Box::new(elements)) };
        clocks.tidy();
        Ok(clocks)
    }

    /// Every element's adds, by column and bytes.
    #[cfg(test)]
    pub(super) fn all(&self) -> BTreeMap<(ColumnId, Vec<u8>), (Vec<Stamp>, bool)> {
        let plain = |((column, element), adds): (&(ColumnId, Box<[u8]>), &Adds)| {
            ((*column, element.to_vec()), (adds.stamps.clone(), adds.stable))
        };
        self.iter().map(plain).collect()
    }
}
