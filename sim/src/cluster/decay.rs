//! Disks that lose rows, and replicas that compare theirs with a peer's and put them back.
//!
//! Replicas compare at any time, under all faults: nothing that is under way may count as a difference.
//! In the end some disks have lost rows, and every replica must have them again.

use rusqlite::{Connection, OpenFlags};

use super::{Cluster, Stage};
use crate::{
    chance::Stream,
    disk::vfs,
    oracle::{Check, Promise, broken, unreadable},
};

/// Of a hundred looks at a machine, so many let it compare its rows.
const COMPARES: u64 = 8;

/// Of a hundred machines, so many lose rows in the end.
const DECAYS: u64 = 20;

impl Cluster {
    /// Lets a machine compare its rows now and then, and looks at what it has found.
    pub(super) fn compare_at_random(&mut self, number: usize, count: u64) -> Check {
        self.judge_verification(number)?;
        let mut draw = self.chance.draw(Stream::Decay, number as u64, count + 1);
        // Over slow links a comparison takes long: those under way must end before rows are lost, and there must be
        // a time at which everybody has done the one that finds what was lost.
        let waits = matches!(self.stage, Stage::Marked { .. } | Stage::Mending { .. });
        if draw.percent(COMPARES) && !waits { self.verify(number) } else { Ok(()) }
    }

    /// Where no disk has lost anything, nothing differs.
    fn judge_verification(&self, number: usize) -> Check {
        let machine = &self.machines[number];
        let Some(engine) = &machine.engine else { return Ok(()) };
        let report = engine.replica.status().verification;
        let decayed = matches!(
            self.stage,
            Stage::Mending { .. } | Stage::Forgetting { .. } | Stage::Silent { .. }
        );
        if report.differing > 0 && !decayed {
            return broken(
                Promise::Convergence,
                format!("m{number} takes rows for wrong that are right: {report:?}"),
            );
        }
        Ok(())
    }

    fn verify(&mut self, number: usize) -> Check {
        let machine = &mut self.machines[number];
        let Some(engine) = &mut machine.engine else { return Ok(()) };
        let now = machine.clock.at(self.now);
        let begins = engine.replica.verify(now);
        self.note(number, "verify", || format!("{begins}"));
        self.drain(number)
    }

    /// Some disks lose a row, and everybody compares.
    pub(super) fn decay(&mut self) -> Check {
        for number in 1..self.machines.len() {
            let mut draw = self.chance.draw(Stream::Decay, number as u64, 0);
            if draw.percent(DECAYS) && self.is_linked_to_origin(number) {
                let (table, row) = (draw.word(), draw.word());
                self.lose_row(number, table, row)?;
            }
            self.verify(number)?;
        }
        Ok(())
    }

    fn lose_row(&mut self, number: usize, table: u64, row: u64) -> Check {
        let machine = &self.machines[number];
        let failed = unreadable(number);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
        let disk = Connection::open_with_flags_and_vfs(machine.database(), flags, vfs::NAME)
            .map_err(&failed)?;
        disk.pragma_update(None, "wal_autocheckpoint", 0).map_err(&failed)?;
        let tables: Vec<String> = disk
            .prepare("SELECT name FROM littoral_tables WHERE policy <> 'local' ORDER BY id")
            .and_then(|mut tables| tables.query_map([], |row| row.get(0))?.collect())
            .map_err(&failed)?;
        let Some(name) = tables.get(usize::try_from(table).unwrap_or(0) % tables.len().max(1))
        else {
            return Ok(());
        };
        let name = name.replace('"', "\"\"");
        let count: i64 = disk
            .query_row(&format!("SELECT count(*) FROM \"{name}\""), [], |row| row.get(0))
            .map_err(&failed)?;
        let count = count.cast_unsigned();
        if count == 0 {
            return Ok(());
        }
        let place = row % count;
        let sql = format!(
            "DELETE FROM \"{name}\" WHERE rowid =
             (SELECT rowid FROM \"{name}\" ORDER BY rowid LIMIT 1 OFFSET {place})"
        );
        // A table without rowids, or a trigger that says no: this disk loses nothing.
        let lost = disk.execute(&sql, []).unwrap_or(0);
        self.note(number, "decay", || format!("{lost} rows of {name}"));
        let machine = &mut self.machines[number];
        (machine.decayed, machine.foreign) = (lost > 0, true);
        Ok(())
    }

    /// Whether somebody compares rows.
    pub(super) fn compares(&self) -> bool {
        let engines = self.machines.iter().filter_map(|machine| machine.engine.as_ref());
        engines.into_iter().any(|engine| engine.replica.status().verification.running)
    }

    /// Only the origin's rows mend others.
    fn is_linked_to_origin(&self, number: usize) -> bool {
        let links = &self.world.links;
        links.iter().any(|link| link.ends == [0, number] || link.ends == [number, 0])
    }

    /// Whether every machine has compared all its rows, and has back what its disk had lost. One that
    /// could not ask the origin does so again.
    pub(super) fn is_mended(&mut self) -> Check<bool> {
        let mut mended = true;
        for number in 1..self.machines.len() {
            let Some(engine) = &self.machines[number].engine else { return Ok(false) };
            let report = engine.replica.status().verification;
            if report.running || report.finished.is_none() {
                mended = false;
            } else if !self.is_linked_to_origin(number) {
                // It has compared with a peer whose disk may have lost rows at that time.
            } else if report.differing > report.repaired || report.undecided > 0 {
                mended = false;
                self.verify(number)?;
            } else {
                self.machines[number].decayed = false;
            }
        }
        Ok(mended)
    }
}
