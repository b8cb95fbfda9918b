//! Snapshots as a driver handles them, and copies of files that must not be taken for the original.

use littoral::{Input, OpenError, Snapshot};

use super::{Cluster, Event};
use crate::{
    chance::Stream,
    clock::MS,
    disk::vfs,
    machine::SnapshotWork,
    oracle::{Check, Promise, broken},
};

impl Cluster {
    pub(super) fn queue_snapshot_work(&mut self, number: usize, work: SnapshotWork) {
        let machine = &mut self.machines[number];
        machine.snapshot_work.push_back(work);
        if machine.snapshot_work.len() == 1 {
            self.schedule_snapshot_work(number);
        }
    }

    fn schedule_snapshot_work(&mut self, number: usize) {
        let life = self.machines[number].life;
        let mut draw = self.chance.draw(Stream::Disk, number as u64, self.queued << 8 | 1);
        let at = self.now + draw.between(1, 20 * MS);
        self.schedule(at, Event::SnapshotWork { machine: number, life });
    }

    pub(super) fn work_on_snapshot(&mut self, number: usize, life: u64) -> Check {
        let machine = &mut self.machines[number];
        let Some(engine) = machine.engine.as_ref().filter(|_| machine.life == life) else {
            return Ok(());
        };
        let Some(work) = machine.snapshot_work.pop_front() else { return Ok(()) };
        let more = !machine.snapshot_work.is_empty();
        let db = engine.replica.db().clone();
        let why = |error: rusqlite::Error| error.to_string();
        let input = match work {
            SnapshotWork::Take(name) => {
                // What a copy holds is known by what its source held at that time.
                self.oracle.refresh(number, &engine.eye)?;
                let taken = db.take_snapshot(name).map_err(why);
                if let Ok(snapshot) = &taken {
                    self.oracle.logs.copied(number, snapshot.name);
                }
                Some(Input::SnapshotTaken(taken))
            }
            SnapshotWork::Read { peer, offset, bytes } => {
                let piece = db.read_snapshot(offset, bytes).map_err(why);
                Some(Input::SnapshotRead { peer, piece })
            }
            SnapshotWork::Discard => {
                // It stays, and is written over by the next one.
                let _ = db.discard_snapshot();
                None
            }
            SnapshotWork::Write { peer, piece, sync } => {
                let upto = piece.end();
                let result = db.write_incoming(&piece, sync).map_err(why);
                Some(Input::SnapshotWritten { peer, upto, result })
            }
        };
        // It holds the file that arrives, and the machine may stop from here on.
        drop(db);
        if vfs::with(|store| store.is_down(&self.machines[number].name)) {
            return self.stop(number);
        }
        self.note(number, "snapshot", || match &input {
            Some(Input::SnapshotTaken(taken)) => format!("taken {taken:?}"),
            other => format!("{other:?}"),
        });
        if more {
            self.schedule_snapshot_work(number);
        }
        match input {
            Some(input) => self.handle(number, input),
            None => Ok(()),
        }
    }

    /// A snapshot was received: the machine closes its file and puts that in its place. Its disk may
    /// stop in the middle.
    pub(super) fn install_snapshot(&mut self, number: usize, snapshot: &Snapshot) -> Check {
        let now = self.now;
        let machine = &mut self.machines[number];
        let Some(engine) = machine.engine.take() else { return Ok(()) };
        vfs::forget_after_writes();
        self.oracle.refresh(number, &engine.eye)?;
        let db = engine.replica.db().clone();
        let closing = machine.clock.at(now);
        drop((engine.held, engine.reader, engine.eye, engine.passer));
        // An error leaves what a crash would leave.
        let (outputs, _) = engine.replica.close(closing);
        for output in outputs {
            self.carry_out(number, output)?;
        }
        let verified = db.verify_incoming(snapshot);
        let machine = &mut self.machines[number];
        let name = machine.name.clone();
        self.tally.snapshots += 1;
        if matches!(verified, Ok(true)) {
            let (from, to) =
                (format!("/{name}/replica.db-incoming"), format!("/{name}/replica.db"));
            if vfs::with(|store| store.rename(&from, &to)).is_ok() {
                machine.adopted = Some(snapshot.name);
            }
        }
        machine.life += 1;
        machine.tickets.clear();
        machine.talks.clear();
        self.errands_lost(number);
        let machine = &mut self.machines[number];
        machine.syncing = false;
        machine.sync_wanted = None;
        machine.wake_at = None;
        machine.snapshot_work.clear();
        if vfs::with(|store| store.is_down(&name)) {
            return self.stop_while_starting(number);
        }
        machine.stopping = None;
        let life = machine.life;
        vfs::with(|store| store.stop(&name));
        self.note(number, "install", || format!("{verified:?}"));
        self.schedule(now + 1, Event::Start { machine: number, life });
        Ok(())
    }

    /// A machine has opened the snapshot that took the place of its file.
    pub(super) fn opened_snapshot(&mut self, number: usize) -> Check {
        let machine = &mut self.machines[number];
        let Some(digest) = machine.adopted.take() else { return Ok(()) };
        machine.durable_told = littoral::Lsn(0);
        machine.acknowledged = littoral::VersionVector::new();
        // A copy of the file that was there before says nothing any more.
        machine.copy = None;
        let Some(engine) = &machine.engine else { return Ok(()) };
        if engine.replica.status().author.is_none() && !machine.plan.read_only {
            return broken(
                Promise::Availability,
                format!("m{number} was given a snapshot that does not hold its join"),
            );
        }
        self.oracle.logs.adopted(number, digest)
    }

    /// Between a clean stop and the next start somebody may put an older copy in the place of the file,
    /// or a copy without the note beside it: that must be noticed before anything of it is told.
    pub(super) fn try_restored(&mut self, number: usize) -> Check {
        let machine = &mut self.machines[number];
        let database = format!("/{}/replica.db", machine.name);
        let full = vfs::with(|store| store.is_full(&machine.name));
        let Some(present) = vfs::with(|store| store.content(&database)).filter(|_| !full) else {
            return Ok(());
        };
        let Some(older) = machine.copy.replace(present.clone()) else { return Ok(()) };
        if machine.adopted.is_some() || vfs::with(|store| store.is_down(&machine.name)) {
            return Ok(());
        }
        vfs::with(|store| store.restore(&database, &older));
        let opened = machine.open(self.now, None, 0);
        let wal = format!("{database}-wal");
        vfs::with(|store| store.restore(&database, &present));
        match opened {
            Err(OpenError::CopiedFile { .. }) => {
                if vfs::with(|store| store.exists(&wal)) {
                    return broken(
                        Promise::Availability,
                        format!("an older copy of the file of m{number} was changed"),
                    );
                }
                Ok(())
            }
            Ok(_) => broken(
                Promise::Causality,
                format!("m{number} took an older copy of its file for the file itself"),
            ),
            Err(error) => broken(
                Promise::Availability,
                format!("an older copy of the file of m{number} is refused with: {error}"),
            ),
        }
    }
}
