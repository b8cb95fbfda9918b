//! [`Bookmark`]: what a session carries from one node to another, so that it sees there what it has
//! written and read here.
//!
//! It names a frontier and, of every author that has written more, the newest entry. A replica satisfies
//! it once it has applied that frontier, and with it all that the frontier covers, and those entries, and
//! with them all before. The bytes are specified in `docs/format.md`.

use std::{fmt, str::FromStr};

use crate::{
    id::{AuthorId, Seq},
    time::WallTime,
    value::{ByteReader, DecodeError, put_varint},
    version::{Dot, VersionVector},
};

/// The format of its bytes: their first one.
const FORMAT: u8 = 1;

/// A point in the history of the database that a read must not be older than.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bookmark {
    term: u32,
    frontier: u64,
    /// Entries that the frontier may not cover, one of each author.
    above: VersionVector,
    issued: WallTime,
}

/// What a replica lacks of a [`Bookmark`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Missing {
    /// The bookmark is of a later term, and so of an origin that this replica has not heard of.
    pub term: Option<u32>,
    /// The frontier, if it was not applied.
    pub frontier: Option<u64>,
    /// Entries that were not applied.
    pub entries: Vec<Dot>,
}

/// A replica does not satisfy a bookmark.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "this node has not applied all that the bookmark names: it lacks {missing}. Read again later, or \
     where the session was before"
)]
pub struct BookmarkNotReached {
    /// What it lacks.
    pub missing: Missing,
}

impl Bookmark {
    /// The bookmark of a replica that has applied `vector`, and frontier `frontier`, which covers
    /// `covered`.
    pub(crate) fn new(
        term: u32,
        (frontier, covered): (u64, &VersionVector),
        vector: &VersionVector,
        issued: WallTime,
    ) -> Self {
        let above = vector.iter().filter(|dot| !covered.covers(*dot)).collect();
        Self { term, frontier, above, issued }
    }

    /// The term in which it was issued.
    pub const fn term(&self) -> u32 {
        self.term
    }

    /// The frontier that must have been applied.
    pub const fn frontier(&self) -> u64 {
        self.frontier
    }

    /// The newest entry of every author that must have been applied beside what the frontier covers.
    pub const fn entries(&self) -> &VersionVector {
        &self.above
    }

    /// When it was issued, by the corrected clock of the node that did.
    pub const fn issued(&self) -> WallTime {
        self.issued
    }

    /// Has it ask for an entry too.
    pub fn include(&mut self, dot: Dot) {
        self.above.advance(dot);
    }

    /// Has it ask for all that another one asks for too.
    pub fn include_all(&mut self, other: &Self) {
        self.term = self.term.max(other.term);
        self.frontier = self.frontier.max(other.frontier);
        self.above.advance_all(&other.above);
        self.issued = self.issued.max(other.issued);
    }

    /// What a replica lacks of it that has applied this; `None` if it lacks nothing.
    pub(crate) fn missing(
        &self,
        term: u32,
        frontier: u64,
        vector: &VersionVector,
    ) -> Option<Missing> {
        let missing = Missing {
            term: (self.term > term).then_some(self.term),
            frontier: (self.frontier > frontier).then_some(self.frontier),
            entries: self.above.iter().filter(|dot| !vector.covers(*dot)).collect(),
        };
        (missing != Missing::default()).then_some(missing)
    }

    /// Its bytes; usually fewer than a hundred.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        put_varint(&mut out, u64::from(self.term));
        put_varint(&mut out, self.frontier);
        put_varint(&mut out, self.issued.0);
        for Dot { author, seq } in self.above.iter() {
            put_varint(&mut out, u64::from(author.counter));
            put_varint(&mut out, u64::from(author.term));
            put_varint(&mut out, seq);
        }
        out
    }

    /// The inverse of [`Bookmark::encode`].
    ///
    /// # Errors
    /// If these are not the bytes of a bookmark.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = ByteReader::new(bytes);
        if reader.byte()? != FORMAT {
            return Err(DecodeError::Unknown("format of a bookmark"));
        }
        let mut bookmark = Self {
            term: reader.varint_u32()?,
            frontier: reader.varint()?,
            issued: WallTime(reader.varint()?),
            above: VersionVector::new(),
        };
        let mut last = None;
        while !reader.is_empty() {
            let (counter, term) = (reader.varint_u32()?, reader.varint_u32()?);
            let author = AuthorId { term, counter };
            let seq: Seq = reader.varint()?;
            if seq == 0 || last >= Some(author) {
                return Err(DecodeError::Invalid("the entries of a bookmark are out of order"));
            }
            last = Some(author);
            bookmark.above.advance(Dot { author, seq });
        }
        Ok(bookmark)
    }
}

/// The bytes in hexadecimal, as SQL gives them.
impl fmt::Display for Bookmark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.encode().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Bookmark {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, DecodeError> {
        let digits = text.as_bytes();
        if !digits.len().is_multiple_of(2) {
            return Err(DecodeError::Truncated);
        }
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => {
                Err(DecodeError::Invalid("a bookmark is written in hexadecimal, in small letters"))
            }
        };
        let byte = |pair: &[u8]| Ok(digit(pair[0])? << 4 | digit(pair[1])?);
        let bytes = digits.chunks_exact(2).map(byte).collect::<Result<Vec<u8>, DecodeError>>()?;
        Self::decode(&bytes)
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.term.map(|term| format!("term {term}")));
        parts.extend(self.frontier.map(|number| format!("frontier {number}")));
        if let Some(first) = self.entries.first() {
            let more = self.entries.len() - 1;
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            parts.push(format!("entry {first}{more}"));
        }
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dot(counter: u32, seq: Seq) -> Dot {
        Dot { author: AuthorId { term: 1, counter }, seq }
    }

    fn vector(dots: &[(u32, Seq)]) -> VersionVector {
        dots.iter().map(|(counter, seq)| dot(*counter, *seq)).collect()
    }

    #[test]
    fn it_names_what_the_frontier_does_not_cover() {
        let covered = vector(&[(1, 10), (2, 5)]);
        let applied = vector(&[(1, 12), (2, 5), (3, 1)]);
        let bookmark = Bookmark::new(1, (4, &covered), &applied, WallTime(0));
        assert_eq!(*bookmark.entries(), vector(&[(1, 12), (3, 1)]));
        assert_eq!(bookmark.missing(1, 4, &applied), None);
        assert_eq!(bookmark.missing(1, 5, &vector(&[(1, 13), (2, 6), (3, 1)])), None);
        let missing = bookmark.missing(1, 3, &vector(&[(1, 12), (2, 9)])).unwrap();
        assert_eq!(missing.to_string(), "frontier 4, entry 1.3:1");
        let missing = bookmark.missing(0, 4, &vector(&[])).unwrap();
        assert_eq!(missing.to_string(), "term 1, entry 1.1:12 and 1 more");
    }

    #[test]
    fn it_is_short() {
        let applied = (1..=8).map(|counter| dot(counter, 1_000_000)).collect();
        let wall = WallTime(1_800_000_000_000);
        let bookmark = Bookmark::new(1, (9_999, &VersionVector::new()), &applied, wall);
        assert!(bookmark.encode().len() < 60, "{} bytes", bookmark.encode().len());
    }

    #[test]
    fn bytes_of_another_kind_are_refused() {
        for (text, why) in [
            ("", "empty"),
            ("02010000", "another format"),
            ("010100", "cut off"),
            ("0101000001010a01010b", "an author twice"),
            ("0101000002010a01010b", "authors out of order"),
            ("01010000010100", "no entry"),
            ("0101000", "half a byte"),
            ("01010000zz", "no digits"),
            ("0101000001010A", "capitals"),
        ] {
            assert!(text.parse::<Bookmark>().is_err(), "{why}");
        }
    }

    #[test]
    fn its_bytes_are_fixed() {
        let text = "0101078cd0c4f60b0101ac02020105";
        let bookmark: Bookmark = text.parse().unwrap();
        let expected = Bookmark {
            term: 1,
            frontier: 7,
            above: vector(&[(1, 300), (2, 5)]),
            issued: WallTime(3_201_378_316),
        };
        assert_eq!(bookmark.to_string(), text);
        assert_eq!(bookmark, expected);
    }

    fn any_bookmark() -> impl Strategy<Value = Bookmark> {
        let dots = proptest::collection::vec((any::<u32>(), any::<u32>(), 1u64..), 0..8);
        (any::<u32>(), any::<u64>(), any::<u64>(), dots).prop_map(|(term, frontier, at, dots)| {
            let dots = dots.into_iter();
            let dots =
                dots.map(|(term, counter, seq)| Dot { author: AuthorId { term, counter }, seq });
            Bookmark { term, frontier, above: dots.collect(), issued: WallTime(at) }
        })
    }

    proptest! {
        #[test]
        fn bytes_give_back_the_bookmark(bookmark in any_bookmark()) {
            prop_assert_eq!(Bookmark::decode(&bookmark.encode()), Ok(bookmark.clone()));
            prop_assert_eq!(bookmark.to_string().parse(), Ok(bookmark));
        }

        #[test]
        fn decoding_never_panics_and_knows_one_spelling(
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
            format in any::<bool>(),
        ) {
            let mut bytes = bytes;
            if format && !bytes.is_empty() {
                bytes[0] = FORMAT;
            }
            if let Ok(bookmark) = Bookmark::decode(&bytes) {
                prop_assert_eq!(bookmark.encode(), bytes);
            }
        }

        #[test]
        fn a_join_of_two_asks_for_both(
            one in any_bookmark(),
            other in any_bookmark(),
            frontier in any::<u64>(),
        ) {
            let mut both = one.clone();
            both.include_all(&other);
            let has = both.entries().clone();
            let lacks = |b: &Bookmark| b.missing(b.term, frontier, &has).and_then(|m| m.frontier);
            prop_assert_eq!(
                both.missing(both.term, frontier, &has).is_none(),
                lacks(&one).is_none() && lacks(&other).is_none()
            );
        }
    }
}
