//! [`Store`]: the files of all machines, what of them is on stable storage, and who holds locks.
//!
//! Every change since the last sync is kept in order. A process crash loses none of them; a power
//! cut keeps all, none, a prefix, some, or some sectors of them. Only data is lost that way: a
//! deletion is final at once, since SQLite deletes a WAL only when nothing in it is needed.
//!
//! Nothing here knows SQLite's C interface; [`vfs`](super::vfs) translates.

use std::collections::BTreeMap;

use crate::chance::{Chance, Draw, Stream};

/// What a disk writes as one; a power cut may tear a write between two of them.
const SECTOR: usize = 512;

/// Slots of the shared-memory lock of one file.
const SHM_LOCKS: usize = 8;

/// Why an operation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// The machine is down, or its disk fails.
    Io,
    /// No space is left.
    Full,
    /// Another connection holds a lock in the way.
    Busy,
    /// There is no such file.
    Missing,
}

/// An open file, as SQLite's file object remembers it.
pub(crate) type HandleId = usize;

/// SQLite's five lock levels of a database file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) enum Lock {
    #[default]
    None,
    Shared,
    Reserved,
    Pending,
    Exclusive,
}

/// One change to a file that may not have reached stable storage.
#[derive(Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate(usize),
}

#[derive(Debug, Default)]
struct File {
    machine: String,
    /// What processes read.
    content: Vec<u8>,
    /// What is on stable storage.
    durable: Vec<u8>,
    /// What separates the two, oldest first.
    changes: Vec<Change>,
    /// How many changes were synced before the first of `changes`.
    synced: u64,
    /// Whether the directory entry is on stable storage.
    linked: bool,
    /// Kept only while it is open.
    anonymous: bool,
    /// Shared memory: the regions live in the VFS, the locks here.
    shm_users: u32,
}

#[derive(Debug)]
struct Handle {
    file: usize,
    lock: Lock,
    shm: bool,
    shm_shared: [bool; SHM_LOCKS],
    shm_exclusive: [bool; SHM_LOCKS],
}

/// The state of one machine's disk.
#[derive(Debug, Default)]
struct Drive {
    /// The machine is down: nothing changes any more.
    down: bool,
    /// The machine goes down at the change that finds this at 0.
    changes_left: Option<u64>,
    /// Writes fail for want of space.
    full: bool,
    /// Changes since the run began.
    changes: u64,
}

/// All disks.
#[derive(Debug)]
pub(crate) struct Store {
    files: Vec<Option<File>>,
    names: BTreeMap<String, usize>,
    handles: Vec<Option<Handle>>,
    drives: BTreeMap<String, Drive>,
    chance: Chance,
    entropy_drawn: u64,
    /// What SQLite reads as the wall clock, in milliseconds since 1970.
    pub(crate) wall_ms: u64,
}

/// What a power cut does to the changes that were not synced.
#[derive(Clone, Copy, Debug)]
enum Loss {
    All,
    Nothing,
    AfterPrefix,
    Some,
    Sectors,
}

impl Store {
    /// Empty disks.
    pub(crate) fn new(chance: Chance) -> Self {
        Self {
            files: Vec::new(),
            names: BTreeMap::new(),
            handles: Vec::new(),
            drives: BTreeMap::new(),
            chance,
            entropy_drawn: 0,
            wall_ms: 0,
        }
    }

    // --- What the simulator does to disks

    /// Stops a machine's disk at once.
    pub(crate) fn stop(&mut self, machine: &str) {
        self.drive(machine).down = true;
    }

    /// Stops a machine's disk in the middle of what it will do next, before the change that comes
    /// after `changes` more.
    pub(crate) fn stop_after(&mut self, machine: &str, changes: u64) {
        self.drive(machine).changes_left = Some(changes);
    }

    /// Whether the machine's disk was stopped.
    pub(crate) fn is_down(&self, machine: &str) -> bool {
        self.drives.get(machine).is_some_and(|drive| drive.down)
    }

    /// Lets writes fail for want of space, or no longer.
    pub(crate) fn set_full(&mut self, machine: &str, full: bool) {
        self.drive(machine).full = full;
    }

    /// Whether writes fail for want of space.
    pub(crate) fn is_full(&self, machine: &str) -> bool {
        self.drives.get(machine).is_some_and(|drive| drive.full)
    }

    /// How often the machine's files were changed.
    pub(crate) fn changes(&self, machine: &str) -> u64 {
        self.drives.get(machine).map_or(0, |drive| drive.changes)
    }

    /// How many files of the machine are open.
    pub(crate) fn open_files(&self, machine: &str) -> usize {
        let of_machine = |handle: &&Handle| self.file(handle.file).machine == machine;
        self.handles.iter().flatten().filter(of_machine).count()
    }

    /// Brings the disk of a stopped machine back with everything written before.
    pub(crate) fn start(&mut self, machine: &str) {
        assert_eq!(self.open_files(machine), 0, "a crashed machine still has open files");
        let drive = self.drive(machine);
        drive.down = false;
        drive.changes_left = None;
    }

    /// Takes from a stopped machine what chance lets a power cut take. Returns whether anything was
    /// lost.
    pub(crate) fn cut_power(&mut self, machine: &str, draw: &mut Draw) -> bool {
        assert_eq!(self.open_files(machine), 0, "a crashed machine still has open files");
        let loss = *draw.weighted(&[
            (40, Loss::All),
            (10, Loss::Nothing),
            (20, Loss::AfterPrefix),
            (15, Loss::Some),
            (15, Loss::Sectors),
        ]);
        let mut lost = false;
        let mut vanished = Vec::new();
        for (name, &index) in &self.names {
            let file = self.files[index].as_mut().expect("a named file exists");
            if file.machine != machine {
                continue;
            }
            lost |= file.lose(loss, draw);
            if !file.linked && draw.percent(50) {
                vanished.push(name.clone());
            }
        }
        for name in vanished {
            lost = true;
            if let Some(index) = self.names.remove(&name) {
                self.files[index] = None;
            }
        }
        lost
    }

    /// Which file has the name.
    pub(crate) fn index_of(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// Where a sync of the file begins; `None` if there is no such file.
    pub(crate) fn begin_sync(&self, name: &str) -> Option<u64> {
        let file = self.file(*self.names.get(name)?);
        Some(file.synced + file.changes.len() as u64)
    }

    /// Ends a sync that began at `mark`: what was written before is on stable storage.
    pub(crate) fn end_sync(&mut self, name: &str, mark: u64) {
        if let Some(&index) = self.names.get(name) {
            self.file_mut(index).sync_to(mark);
        }
    }

    /// Hashes every named file, what is not synced included.
    pub(crate) fn hash_into(&self, hasher: &mut blake3::Hasher) {
        for (name, &index) in &self.names {
            let file = self.file(index);
            hasher.update(name.as_bytes());
            hasher.update(&(file.content.len() as u64).to_le_bytes());
            hasher.update(&file.content);
            hasher.update(&(file.durable.len() as u64).to_le_bytes());
        }
    }

    // --- What SQLite does

    /// Fills `out` with the run's randomness.
    pub(crate) fn entropy(&mut self, out: &mut [u8]) {
        let mut draw = self.chance.draw(Stream::Entropy, 0, self.entropy_drawn);
        self.entropy_drawn += 1;
        for chunk in out.chunks_mut(8) {
            let word = draw.word().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// Opens a file, or one without a name that lives as long as it is open.
    pub(crate) fn open(&mut self, name: Option<&str>, create: bool) -> Result<HandleId, Fault> {
        let existing = name.and_then(|name| self.names.get(name).copied());
        let file = match existing {
            Some(index) => index,
            None if !create => return Err(Fault::Missing),
            None => {
                let machine = name.map_or("", machine_of).to_owned();
                if self.is_down(&machine) {
                    return Err(Fault::Io);
                }
                let anonymous = name.is_none();
                let index = put(&mut self.files, File { machine, anonymous, ..File::default() });
                if let Some(name) = name {
                    self.names.insert(name.to_owned(), index);
                }
                index
            }
        };
        let handle = Handle {
            file,
            lock: Lock::None,
            shm: false,
            shm_shared: [false; SHM_LOCKS],
            shm_exclusive: [false; SHM_LOCKS],
        };
        Ok(put(&mut self.handles, handle))
    }

    /// Closes a file. Returns true if nobody uses its shared memory any more.
    pub(crate) fn close(&mut self, id: HandleId) {
        self.shm_detach(id);
        let file = self.handle(id).file;
        self.handles[id] = None;
        let named = !self.file(file).anonymous;
        if !named && !self.handles.iter().flatten().any(|handle| handle.file == file) {
            self.files[file] = None;
        }
    }

    /// Removes a name; the file goes once nobody has it open.
    pub(crate) fn delete(&mut self, name: &str) -> Result<(), Fault> {
        let Some(&index) = self.names.get(name) else { return Err(Fault::Missing) };
        self.change(index)?;
        self.names.remove(name);
        if self.handles.iter().flatten().any(|handle| handle.file == index) {
            self.file_mut(index).anonymous = true;
        } else {
            self.files[index] = None;
        }
        Ok(())
    }

    /// Gives a file another name, and removes the one that had it. With the sync of the directory that
    /// follows in a node, so it is final at once.
    pub(crate) fn rename(&mut self, from: &str, to: &str) -> Result<(), Fault> {
        let Some(&index) = self.names.get(from) else { return Err(Fault::Missing) };
        self.change(index)?;
        self.names.remove(from);
        if let Some(replaced) = self.names.insert(to.to_owned(), index) {
            self.files[replaced] = None;
        }
        self.file_mut(index).linked = true;
        Ok(())
    }

    /// What processes read of a file, if there is one.
    pub(crate) fn content(&self, name: &str) -> Option<Vec<u8>> {
        Some(self.file(*self.names.get(name)?).content.clone())
    }

    /// Makes a closed file hold that, on stable storage.
    pub(crate) fn restore(&mut self, name: &str, content: &[u8]) {
        let index = *self.names.get(name).expect("only files that exist are restored");
        let file = self.file_mut(index);
        file.content = content.to_vec();
        file.durable = content.to_vec();
        file.synced += file.changes.len() as u64;
        file.changes.clear();
    }

    /// Whether there is a file of that name.
    pub(crate) fn exists(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// The size of a file.
    pub(crate) fn size(&self, id: HandleId) -> usize {
        self.file(self.handle(id).file).content.len()
    }

    /// Reads; bytes beyond the end are zero. Returns how many were there.
    pub(crate) fn read(&self, id: HandleId, offset: usize, out: &mut [u8]) -> usize {
        let content = &self.file(self.handle(id).file).content;
        let there = content.len().saturating_sub(offset).min(out.len());
        out[..there].copy_from_slice(&content[offset.min(content.len())..][..there]);
        out[there..].fill(0);
        there
    }

    /// Writes.
    pub(crate) fn write(&mut self, id: HandleId, offset: usize, bytes: &[u8]) -> Result<(), Fault> {
        let index = self.handle(id).file;
        self.change(index)?;
        if self.is_full(&self.file(index).machine) {
            return Err(Fault::Full);
        }
        let file = self.file_mut(index);
        write_at(&mut file.content, offset, bytes);
        if !file.anonymous {
            file.changes.push(Change::Write { offset, bytes: bytes.to_vec() });
        }
        Ok(())
    }

    /// Cuts a file.
    pub(crate) fn truncate(&mut self, id: HandleId, size: usize) -> Result<(), Fault> {
        let index = self.handle(id).file;
        self.change(index)?;
        let file = self.file_mut(index);
        file.content.resize(size, 0);
        if !file.anonymous {
            file.changes.push(Change::Truncate(size));
        }
        Ok(())
    }

    /// Puts everything written to a file on stable storage.
    pub(crate) fn sync(&mut self, id: HandleId) -> Result<(), Fault> {
        let index = self.handle(id).file;
        self.change(index)?;
        let file = self.file_mut(index);
        file.sync_to(u64::MAX);
        Ok(())
    }

    /// Raises a connection's lock.
    pub(crate) fn lock(&mut self, id: HandleId, wanted: Lock) -> Result<(), Fault> {
        let Handle { file, lock: held, .. } = *self.handle(id);
        if held >= wanted {
            return Ok(());
        }
        let others = self.others(id, file).map(|handle| handle.lock).max().unwrap_or_default();
        match wanted {
            Lock::None => {}
            Lock::Shared if others >= Lock::Pending => return Err(Fault::Busy),
            Lock::Reserved | Lock::Pending if others >= Lock::Reserved => return Err(Fault::Busy),
            Lock::Exclusive if others >= Lock::Reserved => return Err(Fault::Busy),
            Lock::Exclusive if others >= Lock::Shared => {
                self.handle_mut(id).lock = Lock::Pending;
                return Err(Fault::Busy);
            }
            Lock::Shared | Lock::Reserved | Lock::Pending | Lock::Exclusive => {}
        }
        self.handle_mut(id).lock = wanted;
        Ok(())
    }

    /// Lowers a connection's lock.
    pub(crate) fn unlock(&mut self, id: HandleId, wanted: Lock) {
        let handle = self.handle_mut(id);
        handle.lock = handle.lock.min(wanted);
    }

    /// Whether any connection means to write.
    pub(crate) fn is_reserved(&self, id: HandleId) -> bool {
        let file = self.handle(id).file;
        self.handles.iter().flatten().any(|h| h.file == file && h.lock >= Lock::Reserved)
    }

    /// Joins the users of a file's shared memory, and names the file.
    pub(crate) fn shm_attach(&mut self, id: HandleId) -> usize {
        let file = self.handle(id).file;
        if !self.handle(id).shm {
            self.handle_mut(id).shm = true;
            self.file_mut(file).shm_users += 1;
        }
        file
    }

    /// Leaves the users of a file's shared memory. Returns the file if nobody is left.
    pub(crate) fn shm_detach(&mut self, id: HandleId) -> Option<usize> {
        let handle = self.handle_mut(id);
        if !handle.shm {
            return None;
        }
        handle.shm = false;
        handle.shm_shared = [false; SHM_LOCKS];
        handle.shm_exclusive = [false; SHM_LOCKS];
        let file = handle.file;
        self.file_mut(file).shm_users -= 1;
        (self.file(file).shm_users == 0).then_some(file)
    }

    /// Takes shared-memory locks, all or none.
    pub(crate) fn shm_lock(
        &mut self,
        id: HandleId,
        slots: std::ops::Range<usize>,
        exclusive: bool,
    ) -> Result<(), Fault> {
        let file = self.handle(id).file;
        let taken = |handle: &Handle| {
            slots
                .clone()
                .any(|slot| handle.shm_exclusive[slot] || exclusive && handle.shm_shared[slot])
        };
        if self.others(id, file).any(taken) {
            return Err(Fault::Busy);
        }
        let handle = self.handle_mut(id);
        let held = if exclusive { &mut handle.shm_exclusive } else { &mut handle.shm_shared };
        held[slots].fill(true);
        Ok(())
    }

    /// Gives shared-memory locks back.
    pub(crate) fn shm_unlock(&mut self, id: HandleId, slots: std::ops::Range<usize>) {
        let handle = self.handle_mut(id);
        handle.shm_exclusive[slots.clone()].fill(false);
        handle.shm_shared[slots].fill(false);
    }

    // --- Helpers

    fn drive(&mut self, machine: &str) -> &mut Drive {
        if !self.drives.contains_key(machine) {
            self.drives.insert(machine.to_owned(), Drive::default());
        }
        self.drives.get_mut(machine).expect("it was just put there")
    }

    /// Counts a change to a file, and fails if its machine is down or goes down at this change.
    fn change(&mut self, file: usize) -> Result<(), Fault> {
        let machine = &self.files[file].as_ref().expect("an open file exists").machine;
        let Some(drive) = self.drives.get_mut(machine) else {
            let machine = machine.clone();
            self.drive(&machine).changes = 1;
            return Ok(());
        };
        match &mut drive.changes_left {
            Some(0) => drive.down = true,
            Some(left) => *left -= 1,
            None => {}
        }
        if drive.down {
            return Err(Fault::Io);
        }
        drive.changes += 1;
        Ok(())
    }

    fn others(&self, id: HandleId, file: usize) -> impl Iterator<Item = &Handle> {
        let other = move |(at, handle): (usize, &'_ Option<Handle>)| {
            at != id && handle.as_ref().is_some_and(|handle| handle.file == file)
        };
        self.handles
            .iter()
            .enumerate()
            .filter(move |(at, h)| other((*at, h)))
            .filter_map(|(_, h)| h.as_ref())
    }

    fn file(&self, index: usize) -> &File {
        self.files[index].as_ref().expect("an open or named file exists")
    }

    fn file_mut(&mut self, index: usize) -> &mut File {
        self.files[index].as_mut().expect("an open or named file exists")
    }

    fn handle(&self, id: HandleId) -> &Handle {
        self.handles[id].as_ref().expect("SQLite uses only files it has open")
    }

    fn handle_mut(&mut self, id: HandleId) -> &mut Handle {
        self.handles[id].as_mut().expect("SQLite uses only files it has open")
    }
}

impl File {
    fn sync_to(&mut self, mark: u64) {
        let count = mark.saturating_sub(self.synced).min(self.changes.len() as u64);
        let count = usize::try_from(count).expect("no more than there are");
        for change in self.changes.drain(..count) {
            change.apply(&mut self.durable);
        }
        self.synced += count as u64;
        self.linked = true;
    }

    fn lose(&mut self, loss: Loss, draw: &mut Draw) -> bool {
        let changes = std::mem::take(&mut self.changes);
        self.synced += changes.len() as u64;
        let prefix = match loss {
            Loss::AfterPrefix => draw.index(changes.len() + 1),
            Loss::All | Loss::Nothing | Loss::Some | Loss::Sectors => 0,
        };
        let mut lost = false;
        for (at, change) in changes.iter().enumerate() {
            let kept = match loss {
                Loss::All => false,
                Loss::Nothing => true,
                Loss::AfterPrefix => at < prefix,
                Loss::Some => draw.percent(50),
                Loss::Sectors => {
                    lost |= change.apply_some_sectors(&mut self.durable, draw);
                    continue;
                }
            };
            if kept {
                change.apply(&mut self.durable);
            } else {
                lost = true;
            }
        }
        self.content.clone_from(&self.durable);
        lost
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => write_at(content, *offset, bytes),
            Self::Truncate(size) => content.resize(*size, 0),
        }
    }

    /// Returns whether any sector was left out.
    fn apply_some_sectors(&self, content: &mut Vec<u8>, draw: &mut Draw) -> bool {
        let Self::Write { offset, bytes } = self else {
            self.apply(content);
            return false;
        };
        let mut lost = false;
        let mut at = 0;
        while at < bytes.len() {
            let end = (at + SECTOR - (offset + at) % SECTOR).min(bytes.len());
            if draw.percent(70) {
                write_at(content, offset + at, &bytes[at..end]);
            } else {
                lost = true;
            }
            at = end;
        }
        lost
    }
}

/// The machine whose disk holds the file: the first part of its path.
fn machine_of(name: &str) -> &str {
    name.trim_start_matches('/').split('/').next().unwrap_or_default()
}

fn write_at(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

fn put<T>(slots: &mut Vec<Option<T>>, value: T) -> usize {
    match slots.iter().position(Option::is_none) {
        Some(index) => {
            slots[index] = Some(value);
            index
        }
        None => {
            slots.push(Some(value));
            slots.len() - 1
        }
    }
}
