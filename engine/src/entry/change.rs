//! [`SetChange`]: what a write did to the set in one cell, as bytes and back.
//!
//! Elements were added, and elements were removed. A removal names every add of its element that the
//! author knew: those that it had clocks of by their entries, the others together.
//! `docs/format.md` specifies the bytes.

use crate::{
    entry::codec::{put_dot, read_dot},
    set::{Element, put_element, read_element},
    value::{ByteReader, DecodeError, put_prefixed, put_varint},
    version::Dot,
};

/// A change of the set in one cell. Its bytes were checked when it was read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SetChange<'a> {
    bytes: &'a [u8],
}

/// An element that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal<'a> {
    /// The element.
    pub element: Element<'a>,
    /// The entries that added it, as far as the author had clocks of them.
    pub dots: Vec<Dot>,
    /// Whether the author knew that an entry had added it of which it had no clock any more.
    pub stable: bool,
}

impl<'a> SetChange<'a> {
    /// Reads a change and checks all of it.
    pub(crate) fn read(reader: &mut ByteReader<'a>) -> Result<Self, DecodeError> {
        let mut start = *reader;
        let mut last = None;
        let mut added = ByteReader::new(reader.prefixed()?);
        while !added.is_empty() {
            follow(&mut last, read_element(&mut added)?)?;
        }
        let mut last = None;
        let mut removed = ByteReader::new(reader.prefixed()?);
        while !removed.is_empty() {
            let Removal { element, dots, stable } = read_removal(&mut removed)?;
            follow(&mut last, element)?;
            if dots.is_empty() && !stable {
                return Err(DecodeError::Invalid("a removal that names no add"));
            }
        }
        Ok(Self { bytes: start.bytes(start.remaining() - reader.remaining())? })
    }

    /// The elements that were added, ascending.
    pub fn added(self) -> impl Iterator<Item = Element<'a>> {
        let [mut added, _] = self.parts();
        std::iter::from_fn(move || {
            (!added.is_empty()).then(|| read_element(&mut added).expect("checked when it was read"))
        })
    }

    /// The elements that were removed, ascending.
    pub fn removed(self) -> impl Iterator<Item = Removal<'a>> {
        let [_, mut removed] = self.parts();
        std::iter::from_fn(move || {
            (!removed.is_empty())
                .then(|| read_removal(&mut removed).expect("checked when it was read"))
        })
    }

    /// Its encoding.
    pub(crate) const fn as_bytes(self) -> &'a [u8] {
        self.bytes
    }

    fn parts(self) -> [ByteReader<'a>; 2] {
        let mut reader = ByteReader::new(self.bytes);
        std::array::from_fn(|_| {
            ByteReader::new(reader.prefixed().expect("checked when it was read"))
        })
    }
}

impl std::fmt::Debug for SetChange<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (added, removed): (Vec<_>, Vec<_>) = (self.added().collect(), self.removed().collect());
        f.debug_struct("SetChange").field("added", &added).field("removed", &removed).finish()
    }
}

fn follow<'a>(last: &mut Option<Element<'a>>, next: Element<'a>) -> Result<(), DecodeError> {
    if last.as_ref().is_some_and(|last| *last >= next) {
        return Err(DecodeError::Invalid("elements do not ascend"));
    }
    *last = Some(next);
    Ok(())
}

fn read_removal<'a>(reader: &mut ByteReader<'a>) -> Result<Removal<'a>, DecodeError> {
    let element = read_element(reader)?;
    let known = reader.varint()?;
    let mut dots = Vec::new();
    for _ in 0..known >> 1 {
        dots.push(read_dot(reader)?);
    }
    Ok(Removal { element, dots, stable: known & 1 == 1 })
}

/// Appends a change; elements ascend.
pub(crate) fn put_change<'e>(
    out: &mut Vec<u8>,
    added: impl IntoIterator<Item = &'e Element<'e>>,
    removed: &[Removal<'_>],
) {
    let mut part = Vec::new();
    added.into_iter().for_each(|element| put_element(&mut part, element));
    put_prefixed(out, &part);
    part.clear();
    for Removal { element, dots, stable } in removed {
        put_element(&mut part, element);
        put_varint(&mut part, (dots.len() as u64) << 1 | u64::from(*stable));
        dots.iter().for_each(|dot| put_dot(&mut part, *dot));
    }
    put_prefixed(out, &part);
}
