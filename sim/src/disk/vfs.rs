//! The SQLite VFS that lends [`Store`] to SQLite: files, locks, shared memory, clock, randomness.
//!
//! This is the crate's only unsafe code. SQLite's randomness and its default VFS belong to the whole
//! process, so runs take turns: whoever holds a [`Session`] has all disks to itself.
//!
//! Invariants:
//! - a shared-memory region stays where it is until the last connection has unmapped the file;
//! - nothing here blocks, sleeps or reads a real clock.

#![expect(unsafe_code, reason = "a VFS is a table of C functions over raw pointers")]

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ffi::{CStr, c_char, c_int, c_void},
    mem::size_of,
    ops::Range,
    ptr::{self, NonNull},
    slice,
    sync::{Mutex, MutexGuard, Once, PoisonError, atomic},
};

use rusqlite::ffi;

use super::store::{Fault, HandleId, Lock, Store};
use crate::chance::Chance;

/// The name under which the VFS is registered; it is the default as well.
pub(crate) const NAME: &str = "littoral-sim";
const NAME_C: &CStr = c"littoral-sim";

/// Milliseconds from noon of 24 November 4714 BC, where SQLite's time begins, to 1970.
const JULIAN_EPOCH_MS: i64 = 210_866_760_000_000;

const MAX_PATH: c_int = 512;

/// The slot of shared memory that who writes to a WAL has locked.
const WRITE_LOCK: Range<usize> = 0..1;

/// Where in the index of a WAL its last valid page is said, in words of 32 bits, its first salt, and behind two
/// copies of that header how many pages are copied; see "WAL-Index File Format" in SQLite's documentation.
const WAL_LAST_PAGE: usize = 4;
const WAL_SALT: usize = 8;
const WAL_INDEX_WORDS: usize = 25;

static DISKS: Mutex<Option<Disks>> = Mutex::new(None);
static TURN: Mutex<()> = Mutex::new(());

struct Disks {
    store: Store,
    shm: BTreeMap<usize, Vec<Region>>,
}

/// One region of shared memory, allocated as `words` machine words.
struct Region {
    start: NonNull<u64>,
    words: usize,
}

// SAFETY: a region is plain memory that any thread may free; SQLite orders its own accesses.
unsafe impl Send for Region {}

impl Region {
    fn new(bytes: usize) -> Self {
        let memory: Box<[u64]> = vec![0; bytes.div_ceil(8)].into();
        let words = memory.len();
        let start = NonNull::new(Box::into_raw(memory).cast()).expect("a box is never null");
        Self { start, words }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let memory = ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.words);
        // SAFETY: `new` took this very slice out of a box, and it is freed only here.
        drop(unsafe { Box::from_raw(memory) });
    }
}

/// One run's turn with the disks: empty at its beginning, and SQLite's randomness begins anew.
#[derive(Debug)]
pub(crate) struct Session {
    _turn: MutexGuard<'static, ()>,
}

impl Session {
    /// Waits for the turn.
    pub(crate) fn begin(chance: &Chance) -> Self {
        static REGISTER: Once = Once::new();
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        *disks() = Some(Disks { store: Store::new(chance.clone()), shm: BTreeMap::new() });
        REGISTER.call_once(register);
        // SAFETY: a length of 0 only makes SQLite seed its generator again at its next use.
        unsafe { ffi::sqlite3_randomness(0, ptr::null_mut()) };
        Self { _turn: turn }
    }

    /// Whether anybody has the turn.
    pub(crate) fn is_running() -> bool {
        TURN.try_lock().is_err()
    }
}

type Act = Box<dyn FnOnce()>;

thread_local! {
    /// How many transactions that write are still to end before something is done, and what.
    static AFTER_WRITE: RefCell<Option<(u64, Act)>> = const { RefCell::new(None) };
}

/// Has something done as soon as `writes` more transactions that write have ended, whatever their
/// connection is about to do next.
pub(crate) fn after_writes(writes: u64, act: impl FnOnce() + 'static) {
    AFTER_WRITE.set(Some((writes, Box::new(act))));
}

/// What is to be done after some write is not done any more.
pub(crate) fn forget_after_writes() {
    AFTER_WRITE.take();
}

/// A transaction that writes has ended.
fn write_ended() {
    let act = match AFTER_WRITE.take() {
        Some((writes, act)) if writes > 1 => {
            AFTER_WRITE.set(Some((writes - 1, act)));
            return;
        }
        due => due,
    };
    if let Some((_, act)) = act {
        act();
    }
}

/// Looks at or changes the disks of the present session.
pub(crate) fn with<R>(act: impl FnOnce(&mut Store) -> R) -> R {
    act(&mut disks().as_mut().expect("a session has begun").store)
}

/// What the index of a WAL, which is in shared memory, says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wal {
    /// Another number each time it begins anew.
    pub(crate) begun: u32,
    /// Pages that are not copied into the file yet.
    pub(crate) left: u32,
}

/// The WAL of a database that is open.
pub(crate) fn wal_of(database: &str) -> Option<Wal> {
    let disks = disks();
    let disks = disks.as_ref().expect("a session has begun");
    let index = disks.shm.get(&disks.store.index_of(database)?)?.first()?;
    // SAFETY: a region is much longer, and nobody writes it meanwhile: a run has one thread.
    let words =
        unsafe { slice::from_raw_parts(index.start.as_ptr().cast::<u32>(), WAL_INDEX_WORDS) };
    let [.., copied] = words else { return None };
    Some(Wal { begun: words[WAL_SALT], left: words[WAL_LAST_PAGE].saturating_sub(*copied) })
}

fn disks() -> MutexGuard<'static, Option<Disks>> {
    DISKS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn register() {
    let vfs = ffi::sqlite3_vfs {
        iVersion: 2,
        szOsFile: c_int::try_from(size_of::<OpenFile>()).expect("a small struct"),
        mxPathname: MAX_PATH,
        pNext: ptr::null_mut(),
        zName: NAME_C.as_ptr(),
        pAppData: ptr::null_mut(),
        xOpen: Some(open),
        xDelete: Some(delete),
        xAccess: Some(access),
        xFullPathname: Some(full_pathname),
        xDlOpen: None,
        xDlError: None,
        xDlSym: None,
        xDlClose: None,
        xRandomness: Some(randomness),
        xSleep: Some(sleep),
        xCurrentTime: Some(current_time),
        xGetLastError: None,
        xCurrentTimeInt64: Some(current_time_ms),
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
    };
    // SAFETY: the table is leaked, so it stays valid for as long as SQLite may use it.
    let code = unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 1) };
    assert_eq!(code, ffi::SQLITE_OK, "SQLite refused the VFS");
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// What SQLite allocates for each open file; it begins with SQLite's own part.
#[repr(C)]
struct OpenFile {
    base: ffi::sqlite3_file,
    handle: HandleId,
}

fn code(result: Result<(), Fault>, io_error: c_int) -> c_int {
    match result {
        Ok(()) => ffi::SQLITE_OK,
        Err(Fault::Io) => io_error,
        Err(Fault::Full) => ffi::SQLITE_FULL,
        Err(Fault::Busy) => ffi::SQLITE_BUSY,
        Err(Fault::Missing) => ffi::SQLITE_IOERR_DELETE_NOENT,
    }
}

/// # Safety
/// `file` was opened by [`open`] and is not closed.
unsafe fn handle(file: *mut ffi::sqlite3_file) -> HandleId {
    // SAFETY: by contract SQLite allocated an `OpenFile` there and `open` filled it in.
    unsafe { (*file.cast::<OpenFile>()).handle }
}

/// # Safety
/// `name` is null or a C string.
unsafe fn text<'a>(name: *const c_char) -> Option<&'a str> {
    if name.is_null() {
        return None;
    }
    // SAFETY: by contract it is a C string; SQLite keeps it alive for the length of the call.
    let name = unsafe { CStr::from_ptr(name) };
    Some(name.to_str().expect("the simulator's paths are ASCII"))
}

fn position(offset: ffi::sqlite3_int64) -> usize {
    usize::try_from(offset).expect("SQLite's offsets are not negative")
}

fn length(bytes: c_int) -> usize {
    usize::try_from(bytes).expect("SQLite's lengths are not negative")
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes null or a C string.
    let name = unsafe { text(name) };
    let create = name.is_none() || flags & ffi::SQLITE_OPEN_CREATE != 0;
    let opened = with(|store| store.open(name, create));
    let file = file.cast::<OpenFile>();
    // SAFETY: SQLite passes `szOsFile` writable bytes at `file` and null or a writable int.
    unsafe {
        match opened {
            Ok(handle) => {
                file.write(OpenFile {
                    base: ffi::sqlite3_file { pMethods: &raw const METHODS },
                    handle,
                });
                if !out_flags.is_null() {
                    *out_flags = flags;
                }
                ffi::SQLITE_OK
            }
            Err(_) => {
                (*file).base.pMethods = ptr::null();
                ffi::SQLITE_CANTOPEN
            }
        }
    }
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, name: *const c_char, _: c_int) -> c_int {
    // SAFETY: SQLite passes a C string.
    let name = unsafe { text(name) }.unwrap_or_default();
    code(with(|store| store.delete(name)), ffi::SQLITE_IOERR_DELETE)
}

unsafe extern "C" fn access(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    _: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes a C string and a writable int.
    unsafe {
        let name = text(name).unwrap_or_default();
        *out = c_int::from(with(|store| store.exists(name)));
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_pathname(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    len: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: SQLite passes a C string and `len` writable bytes.
    unsafe {
        let bytes = CStr::from_ptr(name).to_bytes_with_nul();
        let slash = usize::from(bytes[0] != b'/');
        if bytes.len() + slash > length(len) {
            return ffi::SQLITE_CANTOPEN;
        }
        let out = slice::from_raw_parts_mut(out.cast::<u8>(), bytes.len() + slash);
        out[0] = b'/';
        out[slash..].copy_from_slice(bytes);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn randomness(_: *mut ffi::sqlite3_vfs, len: c_int, out: *mut c_char) -> c_int {
    // SAFETY: SQLite passes `len` writable bytes.
    let out = unsafe { slice::from_raw_parts_mut(out.cast::<u8>(), length(len)) };
    with(|store| store.entropy(out));
    len
}

unsafe extern "C" fn sleep(_: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    microseconds
}

fn julian_ms() -> i64 {
    let wall_ms = with(|store| store.wall_ms);
    JULIAN_EPOCH_MS + i64::try_from(wall_ms).expect("a date before the year 292 million")
}

unsafe extern "C" fn current_time(_: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    // SAFETY: SQLite passes a writable double.
    unsafe { *out = julian_ms() as f64 / 86_400_000.0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn current_time_ms(
    _: *mut ffi::sqlite3_vfs,
    out: *mut ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite passes a writable integer.
    unsafe { *out = julian_ms() };
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes what it opened, once.
    let handle = unsafe { handle(file) };
    let mut disks = disks();
    if let Some(disks) = disks.as_mut() {
        if let Some(file) = disks.store.shm_detach(handle) {
            disks.shm.remove(&file);
        }
        disks.store.close(handle);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    out: *mut c_void,
    len: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite passes an open file and `len` writable bytes.
    let (handle, out) =
        unsafe { (handle(file), slice::from_raw_parts_mut(out.cast::<u8>(), length(len))) };
    let there = with(|store| store.read(handle, position(offset), out));
    if there < out.len() { ffi::SQLITE_IOERR_SHORT_READ } else { ffi::SQLITE_OK }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    bytes: *const c_void,
    len: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite passes an open file and `len` readable bytes.
    let (handle, bytes) =
        unsafe { (handle(file), slice::from_raw_parts(bytes.cast::<u8>(), length(len))) };
    let result = with(|store| store.write(handle, position(offset), bytes));
    code(result, ffi::SQLITE_IOERR_WRITE)
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    // SAFETY: SQLite passes an open file.
    let handle = unsafe { handle(file) };
    code(with(|store| store.truncate(handle, position(size))), ffi::SQLITE_IOERR_TRUNCATE)
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    let handle = unsafe { handle(file) };
    code(with(|store| store.sync(handle)), ffi::SQLITE_IOERR_FSYNC)
}

unsafe extern "C" fn file_size(
    file: *mut ffi::sqlite3_file,
    out: *mut ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite passes an open file and a writable integer.
    unsafe {
        let size = with(|store| store.size(handle(file)));
        *out = i64::try_from(size).expect("a file in memory");
    }
    ffi::SQLITE_OK
}

const fn level(lock: c_int) -> Lock {
    match lock {
        ffi::SQLITE_LOCK_NONE => Lock::None,
        ffi::SQLITE_LOCK_SHARED => Lock::Shared,
        ffi::SQLITE_LOCK_RESERVED => Lock::Reserved,
        ffi::SQLITE_LOCK_PENDING => Lock::Pending,
        _ => Lock::Exclusive,
    }
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, wanted: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    let handle = unsafe { handle(file) };
    code(with(|store| store.lock(handle, level(wanted))), ffi::SQLITE_IOERR_LOCK)
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, wanted: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    let handle = unsafe { handle(file) };
    with(|store| store.unlock(handle, level(wanted)));
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: SQLite passes an open file and a writable int.
    unsafe {
        let reserved = with(|store| store.is_reserved(handle(file)));
        *out = c_int::from(reserved);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(_: *mut ffi::sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_: *mut ffi::sqlite3_file) -> c_int {
    512
}

unsafe extern "C" fn device_characteristics(_: *mut ffi::sqlite3_file) -> c_int {
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    bytes: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: SQLite passes an open file.
    let handle = unsafe { handle(file) };
    let mut disks = disks();
    let disks = disks.as_mut().expect("a session has begun");
    let file = disks.store.shm_attach(handle);
    let regions = disks.shm.entry(file).or_default();
    while extend != 0 && regions.len() <= length(region) {
        regions.push(Region::new(length(bytes)));
    }
    let start = regions.get(length(region)).map_or(ptr::null_mut(), |region| region.start.as_ptr());
    // SAFETY: SQLite passes a writable pointer.
    unsafe { *out = start.cast() };
    ffi::SQLITE_OK
}

fn slots(first: c_int, count: c_int) -> Range<usize> {
    length(first)..length(first + count)
}

unsafe extern "C" fn shm_lock(
    file: *mut ffi::sqlite3_file,
    first: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: SQLite passes an open file.
    let handle = unsafe { handle(file) };
    let slots = slots(first, count);
    let exclusive = flags & ffi::SQLITE_SHM_EXCLUSIVE != 0;
    if flags & ffi::SQLITE_SHM_UNLOCK != 0 {
        let of_write = exclusive && slots == WRITE_LOCK;
        with(|store| store.shm_unlock(handle, slots));
        if of_write {
            write_ended();
        }
        return ffi::SQLITE_OK;
    }
    let result = with(|store| store.shm_lock(handle, slots, exclusive));
    code(result, ffi::SQLITE_IOERR_SHMLOCK)
}

unsafe extern "C" fn shm_barrier(_: *mut ffi::sqlite3_file) {
    atomic::fence(atomic::Ordering::SeqCst);
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    let handle = unsafe { handle(file) };
    let mut disks = disks();
    if let Some(disks) = disks.as_mut()
        && let Some(file) = disks.store.shm_detach(handle)
    {
        disks.shm.remove(&file);
    }
    ffi::SQLITE_OK
}

#[cfg(test)]
mod tests;
