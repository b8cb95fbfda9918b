//! [`Set`]: what the set in one cell holds: every add that nobody who knew it has removed.
//!
//! It forgets nothing, and knows from what the author of a removal had applied which adds that takes
//! away. What the removal names must be exactly that.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use littoral::{Dot, Element, SetChange, VersionVector};

use super::Held;

/// The elements of a set, with the entries that added them.
#[derive(Clone, Debug, Default)]
pub(super) struct Set {
    elements: BTreeMap<Member, BTreeSet<Dot>>,
}

/// An element. `true` and `false` come before numbers, and these before texts.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Member {
    Bool(bool),
    Value(Held),
}

impl Ord for Member {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Value(a), Self::Value(b)) => a.order(b),
            (Self::Bool(_), Self::Value(_)) => Ordering::Less,
            (Self::Value(_), Self::Bool(_)) => Ordering::Greater,
        }
    }
}

impl PartialOrd for Member {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl From<Element<'_>> for Member {
    fn from(element: Element<'_>) -> Self {
        match element {
            Element::Bool(value) => Self::Bool(value),
            Element::Integer(n) => Self::Value(Held::Integer(n)),
            Element::Real(r) => Self::Value(Held::Real(r.to_bits())),
            Element::Text(text) => Self::Value(Held::Text(text.as_bytes().to_vec())),
        }
    }
}

impl Set {
    /// An author's own change fits what the author held; adds that a frontier covers have no names.
    pub(super) fn check_own(
        &self,
        change: SetChange<'_>,
        covered: &VersionVector,
    ) -> Result<(), String> {
        if let Some(added) = change.added().find(|e| self.elements.contains_key(&e.clone().into()))
        {
            return Err(format!("it adds {added:?}, which was there"));
        }
        for removal in change.removed() {
            let none = BTreeSet::new();
            let dots = self.elements.get(&removal.element.clone().into()).unwrap_or(&none);
            let named: BTreeSet<Dot> =
                dots.iter().copied().filter(|dot| !covered.covers(*dot)).collect();
            let stable = named.len() < dots.len();
            if removal.dots.iter().copied().collect::<BTreeSet<_>>() != named
                || removal.stable != stable
            {
                return Err(format!("it removes {removal:?}, its author held {dots:?}"));
            }
        }
        Ok(())
    }

    /// Carries out a change by the entry `dot`, whose author had applied `seen`.
    pub(super) fn apply(&mut self, change: SetChange<'_>, dot: Dot, seen: &VersionVector) {
        for element in change.added() {
            self.elements.entry(element.into()).or_default().insert(dot);
        }
        for removal in change.removed() {
            let member = Member::from(removal.element);
            if let Some(dots) = self.elements.get_mut(&member) {
                // Of its own entry its author knew what stands before it.
                dots.retain(|add| !seen.covers(*add) && *add != dot);
                if dots.is_empty() {
                    self.elements.remove(&member);
                }
            }
        }
    }

    /// What the cell holds.
    pub(super) fn held(&self) -> Held {
        let spelled: Vec<String> = self.elements.keys().map(Member::spelled).collect();
        Held::Text(format!("[{}]", spelled.join(",")).into_bytes())
    }
}

impl Member {
    fn spelled(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Value(Held::Integer(n)) => n.to_string(),
            // Clients write none that needs an exponent.
            Self::Value(Held::Real(bits)) => f64::from_bits(*bits).to_string(),
            Self::Value(Held::Text(text)) => {
                serde_json::Value::from(String::from_utf8_lossy(text)).to_string()
            }
            Self::Value(Held::Null | Held::Blob(_)) => "no element".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use littoral::{AuthorId, CellWrite, RowsReader};

    use super::*;

    /// The elements 1 and `true` come.
    const ADD: &[u8] = &[3, 3, 1, 2, 0];

    fn dot(counter: u32, seq: u64) -> Dot {
        Dot { author: AuthorId { term: 1, counter }, seq }
    }

    /// The element 1 goes.
    fn removal(counters: &[u8], stable: bool) -> Vec<u8> {
        let known = u8::try_from(counters.len()).unwrap() << 1 | u8::from(stable);
        let dots: Vec<u8> = counters.iter().flat_map(|counter| [*counter, 1, 1]).collect();
        let length = 3 + u8::try_from(dots.len()).unwrap();
        [&[0, length, 1, 2, known], dots.as_slice()].concat()
    }

    /// Lends a change as it comes: in an update of a row.
    fn with<T>(change: &[u8], take: impl FnOnce(SetChange<'_>) -> T) -> T {
        let rows = [&[2, 1, 1, 1 << 2 | 3, 2, b'k', 0], change].concat();
        let mut reader = RowsReader::new(&rows);
        match reader.next().unwrap().unwrap().cells[0].write {
            CellWrite::Set(change) => take(change),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_add_that_the_author_of_a_removal_did_not_know_stays() {
        let mut set = Set::default();
        let mut apply = |change: &[u8], dot, seen: &[Dot]| {
            let seen = seen.iter().copied().collect();
            with(change, |change| set.apply(change, dot, &seen));
            set.held()
        };
        let held = |text: &str| Held::Text(text.as_bytes().to_vec());
        assert_eq!(apply(ADD, dot(1, 1), &[]), held("[true,1]"));
        assert_eq!(apply(ADD, dot(2, 1), &[]), held("[true,1]"));
        assert_eq!(apply(&removal(&[1], false), dot(3, 1), &[dot(1, 1)]), held("[true,1]"));
        let both = [dot(1, 1), dot(2, 1)];
        assert_eq!(apply(&removal(&[1, 2], false), dot(3, 2), &both), held("[true]"));
        assert_eq!(apply(ADD, dot(1, 2), &both), held("[true,1]"));
    }

    #[test]
    fn a_removal_names_what_its_author_held_and_no_frontier_covers() {
        let mut set = Set::default();
        let nothing = VersionVector::new();
        for counter in [1, 2] {
            with(ADD, |change| set.apply(change, dot(counter, 1), &nothing));
        }
        let covered: VersionVector = [dot(1, 1)].into_iter().collect();
        let check = |change: &[u8]| with(change, |change| set.check_own(change, &covered).is_ok());
        assert!(check(&removal(&[2], true)));
        assert!(!check(&removal(&[2], false)));
        assert!(!check(&removal(&[1, 2], true)));
        assert!(!check(&removal(&[], true)));
        assert!(!check(ADD), "both elements were there");
    }
}
