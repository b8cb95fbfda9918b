//! [`Recording`]: what each entry did to which row on which machine, to explain a violated invariant.
//!
//! It is kept only in a run that is made once more to be explained; a run is a function of its seed, so
//! that is the same run.

use std::collections::{BTreeMap, BTreeSet};

use littoral::{ColumnId, Dot, Entry, RowsReader, Segment, TableId};

use super::shadow::{Held, Shadow};
use crate::clock::Nanos;

/// The cells of a row outside its key.
pub(crate) type Cells = BTreeMap<ColumnId, Held>;

/// What an entry did to one row.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// The row's table.
    pub(crate) table: TableId,
    /// The row's key.
    pub(crate) key: Vec<u8>,
    /// The row before, if there was one.
    pub(crate) before: Option<Cells>,
    /// The row afterwards, if there is one.
    pub(crate) after: Option<Cells>,
}

/// An entry that a machine has taken into its log.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    /// Which entry.
    pub(crate) dot: Dot,
    /// When.
    pub(crate) at: Nanos,
    /// Whether the machine wrote it itself.
    pub(crate) own: bool,
    /// What it did there.
    pub(crate) changes: Vec<Change>,
}

/// What all machines have taken, in the order of their logs.
#[derive(Debug)]
pub(crate) struct Recording {
    books: Vec<Vec<Taken>>,
    /// So many entries of a log that is read again are known already.
    known: Vec<usize>,
}

impl Recording {
    /// Nothing taken yet.
    pub(crate) fn new(machines: usize) -> Self {
        Self { books: vec![Vec::new(); machines], known: vec![0; machines] }
    }

    /// What a machine has taken.
    pub(crate) fn book(&self, machine: usize) -> &[Taken] {
        &self.books[machine]
    }

    /// Where an entry was written: on which machine, and at which place of its log.
    pub(crate) fn written(&self, dot: Dot) -> Option<(usize, usize)> {
        self.books.iter().enumerate().find_map(|(machine, book)| {
            let place = book.iter().position(|taken| taken.own && taken.dot == dot)?;
            Some((machine, place))
        })
    }

    /// A machine takes an entry: `apply` applies it to the shadow, and what that did is kept.
    ///
    /// # Errors
    /// Those of `apply`.
    pub(crate) fn take(
        &mut self,
        machine: usize,
        at: Nanos,
        entry: &Entry,
        own: bool,
        shadow: &mut Shadow,
        apply: impl FnOnce(&mut Shadow) -> Result<(), String>,
    ) -> Result<(), String> {
        if self.known[machine] > 0 {
            self.known[machine] -= 1;
            return apply(shadow);
        }
        let rows = rows_of(entry);
        let image =
            |shadow: &Shadow, (table, key): &(TableId, Vec<u8>)| shadow.row(*table, key).cloned();
        let before: Vec<Option<Cells>> = rows.iter().map(|row| image(shadow, row)).collect();
        apply(shadow)?;
        let changes = rows.into_iter().zip(before).map(|(row, before)| {
            let after = image(shadow, &row);
            let (table, key) = row;
            Change { table, key, before, after }
        });
        let changes = changes.collect();
        self.books[machine].push(Taken { dot: entry.header.dot, at, own, changes });
        Ok(())
    }

    /// A machine has lost its log behind the first `left` entries, and is read again from the first.
    pub(crate) fn cut(&mut self, machine: usize, left: usize) {
        self.books[machine].truncate(left);
        self.known[machine] = self.books[machine].len();
    }
}

fn rows_of(entry: &Entry) -> BTreeSet<(TableId, Vec<u8>)> {
    let mut rows = BTreeSet::new();
    for segment in entry.segments() {
        let Ok(Segment::Rows(bytes)) = segment else { continue };
        let mut reader = RowsReader::new(bytes);
        // What does not decode is the shadow's business.
        while let Ok(Some(op)) = reader.next() {
            rows.insert((op.table, op.key.to_vec()));
        }
    }
    rows
}
