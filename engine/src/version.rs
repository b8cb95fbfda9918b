//! [`Dot`] and [`VersionVector`]: which entries a replica has applied.
//!
//! Both are those of the `crdts` crate, with the few words the engine needs on top.

use std::fmt;

use crdts::{CmRDT, VClock};

use crate::{
    id::{AuthorId, Seq},
    value::{ByteReader, DecodeError, put_varint},
};

/// Names one entry: its author and its position in that author's sequence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    /// Who wrote the entry.
    pub author: AuthorId,
    /// Its position in the author's sequence.
    pub seq: Seq,
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.author, self.seq)
    }
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// For every author the highest contiguous sequence number applied.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct VersionVector(VClock<AuthorId>);

impl VersionVector {
    /// The vector of a replica that has applied nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The highest sequence number applied of `author`; 0 if none.
    pub fn seq(&self, author: AuthorId) -> Seq {
        self.0.get(&author)
    }

    /// Whether the entry named by `dot` was applied.
    pub fn covers(&self, dot: Dot) -> bool {
        self.seq(dot.author) >= dot.seq
    }

    /// Whether everything in `other` was applied.
    pub fn covers_all(&self, other: &Self) -> bool {
        other.iter().all(|dot| self.covers(dot))
    }

    /// Raises the author of `dot` to its sequence number; never lowers it.
    pub fn advance(&mut self, dot: Dot) {
        self.0.apply(crdts::Dot::new(dot.author, dot.seq));
    }

    /// Raises every author to what `other` has of it.
    pub fn advance_all(&mut self, other: &Self) {
        for dot in other.iter() {
            self.advance(dot);
        }
    }

    /// The newest dot of every author, in author order.
    pub fn iter(&self) -> impl Iterator<Item = Dot> + '_ {
        self.0.iter().map(|dot| Dot { author: *dot.actor, seq: dot.counter })
    }

    /// Lowers every author to what `other` has of it.
    pub fn lower_to(&mut self, other: &Self) {
        self.0.glb(&other.0);
    }

    /// How many entries this vector has that `other` lacks.
    pub fn missing_from(&self, other: &Self) -> u64 {
        self.iter().map(|dot| dot.seq.saturating_sub(other.seq(dot.author))).sum()
    }
}

impl FromIterator<Dot> for VersionVector {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        let mut vector = Self::new();
        for dot in dots {
            vector.advance(dot);
        }
        vector
    }
}

impl fmt::Display for VersionVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, dot) in self.iter().enumerate() {
            write!(f, "{}{dot}", if i == 0 { "" } else { " " })?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for VersionVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Appends dots as the file keeps them.
pub(crate) fn put_dots(out: &mut Vec<u8>, dots: impl Iterator<Item = Dot>) {
    let dots: Vec<Dot> = dots.collect();
    put_varint(out, dots.len() as u64);
    for dot in dots {
        put_varint(out, dot.author.to_u64());
        put_varint(out, dot.seq);
    }
}

/// The inverse of [`put_dots`].
pub(crate) fn read_dots(reader: &mut ByteReader<'_>) -> Result<Vec<Dot>, DecodeError> {
    let mut dots = Vec::new();
    for _ in 0..reader.varint()? {
        let author = AuthorId::from_u64(reader.varint()?);
        dots.push(Dot { author, seq: reader.varint()? });
    }
    Ok(dots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(counter: u32, seq: Seq) -> Dot {
        Dot { author: AuthorId { term: 1, counter }, seq }
    }

    #[test]
    fn a_vector_never_goes_back() {
        let mut vector = VersionVector::from_iter([dot(1, 5)]);
        vector.advance(dot(1, 3));
        assert_eq!(vector.seq(dot(1, 0).author), 5);
    }

    #[test]
    fn what_is_missing_is_counted_per_author() {
        let ours = VersionVector::from_iter([dot(1, 5), dot(2, 2)]);
        let theirs = VersionVector::from_iter([dot(1, 3), dot(3, 9)]);
        assert_eq!(ours.missing_from(&theirs), 4);
        assert!(!ours.covers_all(&theirs));
    }
}
