//! WAL checkpoints of a machine: the copying on a thread of its own, and what the replica does after it.

use littoral::Input;

use super::{Cluster, Event};
use crate::{
    chance::Stream,
    clock::MS,
    disk::vfs,
    oracle::{Check, Promise, broken},
};

impl Cluster {
    /// The thread copies the WAL; until the replica hears of it, it goes on writing.
    pub(super) fn checkpoint(&mut self, number: usize, life: u64) -> Check {
        let machine = &self.machines[number];
        let Some(engine) = machine.engine.as_ref().filter(|_| machine.life == life) else {
            return Ok(());
        };
        let copied = engine.replica.db().wal_checkpoint().is_ok_and(|all| all);
        let down = vfs::with(|store| store.is_down(&machine.name));
        self.note(number, "checkpt", || format!("{copied:?}"));
        if down {
            return self.stop(number);
        }
        if copied {
            let mut draw = self.chance.draw(Stream::Disk, number as u64, (self.queued << 8) + 1);
            let at = self.now + draw.between(0, 20 * MS);
            self.schedule(at, Event::Checkpointed { machine: number, life });
        }
        Ok(())
    }

    /// The replica hears of it. Nothing is left to copy then, so that the WAL begins anew with the next commit.
    pub(super) fn checkpointed(&mut self, number: usize, life: u64) -> Check {
        let machine = &self.machines[number];
        if machine.life != life || machine.engine.is_none() {
            return Ok(());
        }
        let database = machine.database().display().to_string();
        let before = vfs::wal_of(&database);
        self.handle(number, Input::WalCheckpointed)?;
        let machine = &self.machines[number];
        let Some(engine) = machine.engine.as_ref().filter(|_| machine.life == life) else {
            return Ok(());
        };
        // Whoever reads what was there before is waited for, but not for long.
        let excused = engine.held.is_some()
            || self.is_writer_held(number)
            || engine.replica.status().storage_error.is_some();
        let (Some(before), Some(wal)) = (before, vfs::wal_of(&database)) else { return Ok(()) };
        if wal.left > 0 && wal.begun == before.begun && !excused {
            let left = wal.left;
            let what = format!("{left} pages are left in the WAL of m{number} after a checkpoint");
            return broken(Promise::Bounds, what);
        }
        Ok(())
    }
}
