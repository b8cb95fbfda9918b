//! [`Fold`]: many events of one row become what the transaction did to it in all.

use crate::{
    sqlite::Change,
    testing::{Bug, planted},
    value::{ByteReader, DecodeError, put_varint},
};

/// What a transaction did to one row.
#[derive(Debug)]
pub(crate) struct NetRow<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) change: NetChange<'a>,
}

/// The net effect, cells encoded as in an event.
#[derive(Debug)]
pub(crate) enum NetChange<'a> {
    /// All cells.
    Insert(&'a [u8]),
    /// The place, the old and the new value of every cell that changed.
    Update(&'a [u8]),
    Delete,
}

impl<'a> NetChange<'a> {
    pub(crate) const fn new(change: Change, cells: &'a [u8]) -> Self {
        match change {
            Change::Insert => Self::Insert(cells),
            Change::Update => Self::Update(cells),
            Change::Delete => Self::Delete,
        }
    }
}

/// The events of one row so far.
#[derive(Debug)]
pub(crate) struct Fold<'a> {
    existed: bool,
    exists: bool,
    /// Cells as they were before the first event, where an event told.
    old: Vec<Option<&'a [u8]>>,
    /// Cells as they are now, where they are not certainly as before.
    now: Vec<Option<&'a [u8]>>,
    /// It was deleted by an event that did not tell its cells: later ones tell another row's.
    untold: bool,
}

impl<'a> Fold<'a> {
    /// Before the first event, which is `first`, of a row with that many cells.
    pub(crate) fn new(first: Change, cells: usize) -> Self {
        let existed = first != Change::Insert;
        let none = || vec![None; cells];
        Self { existed, exists: existed, old: none(), now: none(), untold: false }
    }

    pub(crate) fn add(&mut self, change: Change, cells: &'a [u8]) {
        match change {
            Change::Insert => {
                self.exists = true;
                self.now.iter_mut().zip(split(cells)).for_each(|(now, cell)| *now = Some(cell));
            }
            Change::Delete => {
                self.exists = false;
                if cells.is_empty() && !self.old.is_empty() {
                    self.untold |= self.existed;
                    self.now.fill(None);
                    return;
                }
                // A cell that no event touched still has the value it had at first.
                for ((old, now), cell) in self.old.iter_mut().zip(&mut self.now).zip(split(cells)) {
                    if self.existed && !self.untold && old.is_none() {
                        *old = Some(cell);
                    }
                    *now = None;
                }
            }
            Change::Update => {
                for (place, before, after) in changes(cells) {
                    if self.existed && !self.untold {
                        self.old[place].get_or_insert(before);
                    }
                    self.now[place] = Some(after);
                }
            }
        }
    }

    /// Whether [`Fold::net`] needs the cells as they were before the transaction.
    pub(crate) fn wants_old(&self) -> bool {
        self.untold && self.exists
    }

    /// The cells as they were before the transaction, encoded.
    pub(crate) fn set_old(&mut self, cells: &'a [Vec<u8>]) {
        self.old = cells.iter().map(|cell| Some(cell.as_slice())).collect();
        self.untold = false;
    }

    pub(crate) fn existed(&self) -> bool {
        self.existed
    }

    pub(crate) fn old(&self) -> &[Option<&'a [u8]>] {
        &self.old
    }

    /// The net effect, its cells appended to `out`; `None` if there is none. `groups` are the places
    /// of cells that are assigned together.
    pub(crate) fn net(self, groups: &[Vec<usize>], out: &mut Vec<u8>) -> Option<Change> {
        debug_assert!(!self.wants_old(), "what was there before is told first");
        match (self.existed, self.exists) {
            (false, false) => None,
            (true, false) => Some(Change::Delete),
            (false, true) => {
                self.now.into_iter().flatten().for_each(|cell| out.extend_from_slice(cell));
                Some(Change::Insert)
            }
            (true, true) => {
                let differs = |place: usize| matches!((self.old[place], self.now[place]), (Some(old), Some(now)) if old != now);
                let assigned = assigned_with(groups, &differs);
                for (place, (old, now)) in self.old.iter().zip(&self.now).enumerate() {
                    if let (Some(old), Some(now)) = (old, now)
                        && assigned(place)
                    {
                        put_varint(out, place as u64);
                        out.extend_from_slice(old);
                        out.extend_from_slice(now);
                    }
                }
                (!out.is_empty()).then_some(Change::Update)
            }
        }
    }
}

/// Whether a cell is assigned: because it differs itself, or because one of its group does.
pub(crate) fn assigned_with(
    groups: &[Vec<usize>],
    differs: &impl Fn(usize) -> bool,
) -> impl Fn(usize) -> bool {
    move |place| {
        let together = |group: &&Vec<usize>| group.contains(&place) && !planted(Bug::GroupSplit);
        differs(place)
            || groups.iter().find(together).is_some_and(|g| g.iter().any(|p| differs(*p)))
    }
}

/// Encoded cells, one after the other.
pub(crate) fn split(cells: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut reader = ByteReader::new(cells);
    std::iter::from_fn(move || {
        (!reader.is_empty()).then(|| reader.cell_bytes().expect("the recorder encoded the cells"))
    })
}

/// The changed cells of an update: place, old, new.
pub(crate) fn changes(cells: &[u8]) -> impl Iterator<Item = (usize, &[u8], &[u8])> {
    let mut reader = ByteReader::new(cells);
    std::iter::from_fn(move || {
        (!reader.is_empty()).then(|| change(&mut reader).expect("the recorder encoded the changes"))
    })
}

fn change<'a>(reader: &mut ByteReader<'a>) -> Result<(usize, &'a [u8], &'a [u8]), DecodeError> {
    let place = usize::try_from(reader.varint()?).map_err(|_| DecodeError::Range)?;
    Ok((place, reader.cell_bytes()?, reader.cell_bytes()?))
}
