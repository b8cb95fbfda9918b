//! After a statement failed: what of its rows the file holds, recorded anew.

use super::*;

impl Recorder {
    /// After a statement failed or was rolled back: reads every row captured since `mark` again, and
    /// keeps exactly what the file now holds.
    pub(crate) fn reread(&mut self, mark: Mark, conn: &Connection) -> rusqlite::Result<()> {
        if mark.chapters < self.chapters.len() {
            // SQLite has rolled back to before the schema changed: all of it, not a part.
            self.forget_since(mark);
            return Ok(());
        }
        if self.tape.total() == mark.events || planted(Bug::FailedStatementKept) {
            return Ok(());
        }
        let Some(first) = mark.events.checked_sub(self.tape.spilled) else {
            return self.reread_runs(mark, conn);
        };
        let registry = Arc::clone(&self.registry);
        let suspects = self.suspects(usize::try_from(first).unwrap_or(usize::MAX));
        self.tape.back_to(mark);
        for suspect in suspects {
            let table = &registry.tables()[suspect.table as usize];
            let stored = read_row(conn, table, &suspect.key)?;
            self.push_difference(&suspect, stored.as_deref());
        }
        Ok(())
    }

    /// [`Recorder::reread`] where part of the rows are on disk. What is kept of them is recorded anew.
    fn reread_runs(&mut self, mark: Mark, conn: &Connection) -> rusqlite::Result<()> {
        self.tape.spill(&self.file)?;
        let registry = Arc::clone(&self.registry);
        let Some(runs) = &mut self.tape.runs else { return Ok(()) };
        let mut groups = Groups::new(runs.merge_from(mark.events)?);
        self.tape.back_to(mark);
        while let Some(runs) = &self.tape.runs
            && let Some(group) = groups.next(runs)?
        {
            let table = &registry.tables()[group.table as usize];
            let mut fold = Fold::new(group.events[0].0, table.cells.len());
            for (change, cells) in &group.events {
                fold.add(*change, &group.bytes[cells.clone()]);
            }
            let suspect = Suspect::new(group.table, &group.key, &fold);
            let stored = read_row(conn, table, &suspect.key)?;
            self.push_difference(&suspect, stored.as_deref());
            if self.tape.bytes() >= self.tape_bytes {
                self.tape.spill(&self.file)?;
            }
        }
        Ok(())
    }

    fn suspects(&self, first: usize) -> Vec<Suspect> {
        let mut rows: BTreeMap<(u32, &[u8]), Fold<'_>> = BTreeMap::new();
        for event in &self.tape.events[first..] {
            let cells = self.table_at(event).cells.len();
            rows.entry((event.table, event.key_in(&self.tape.arena)))
                .or_insert_with(|| Fold::new(event.change, cells))
                .add(event.change, event.cells_in(&self.tape.arena));
        }
        rows.into_iter().map(|((table, key), fold)| Suspect::new(table, key, &fold)).collect()
    }

    fn push_difference(&mut self, suspect: &Suspect, stored: Option<&[Vec<u8>]>) {
        let key_start = self.tape.arena.len();
        self.tape.arena.extend_from_slice(&suspect.key);
        let cells_start = self.tape.arena.len();
        let change = match (suspect.existed, stored) {
            (false, None) => None,
            (false, Some(stored)) => {
                stored.iter().for_each(|cell| self.tape.arena.extend_from_slice(cell));
                Some(Change::Insert)
            }
            (true, None) => {
                // A row that is gone was deleted by one of the events, which told all its cells, or
                // left them to be read elsewhere.
                if suspect.old.iter().all(Option::is_some) {
                    suspect
                        .old
                        .iter()
                        .flatten()
                        .for_each(|cell| self.tape.arena.extend_from_slice(cell));
                }
                Some(Change::Delete)
            }
            (true, Some(stored)) => {
                let groups = &self.registry.tables()[suspect.table as usize].groups;
                let differs = |place: usize| {
                    suspect.old[place].as_ref().is_some_and(|old| *old != stored[place])
                };
                let assigned = assigned_with(groups, &differs);
                for (place, (old, new)) in suspect.old.iter().zip(stored).enumerate() {
                    if let Some(old) = old.as_ref().filter(|_| assigned(place)) {
                        put_varint(&mut self.tape.arena, place as u64);
                        self.tape.arena.extend_from_slice(old);
                        self.tape.arena.extend_from_slice(new);
                    }
                }
                (self.tape.arena.len() > cells_start).then_some(Change::Update)
            }
        };
        match change {
            None => self.tape.arena.truncate(key_start),
            Some(change) => {
                let registry = Arc::clone(&self.registry);
                let table = &registry.tables()[suspect.table as usize];
                self.tape.push(table, suspect.table, change, key_start, cells_start);
            }
        }
    }
}

/// A row that a failed statement may or may not have changed.
struct Suspect {
    table: u32,
    key: Vec<u8>,
    existed: bool,
    /// Cells as they were at the mark, where an event told.
    old: Vec<Option<Vec<u8>>>,
}

impl Suspect {
    fn new(table: u32, key: &[u8], fold: &Fold<'_>) -> Self {
        Self {
            table,
            key: key.to_vec(),
            existed: fold.existed(),
            old: fold.old().iter().map(|cell| cell.map(<[u8]>::to_vec)).collect(),
        }
    }
}
