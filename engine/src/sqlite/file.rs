//! [`VfsFile`]: a plain file beside the database, through the same VFS as the database.
//!
//! Snapshots under way and the note of the file's identity are kept this way, so that the simulator's
//! disk has its faults in them too. Only rename and the sync of a directory are no part of a VFS.
//!
//! Invariant: SQLite itself never has the file open at the same time.

use std::{
    ffi::{CString, c_int, c_void},
    path::Path,
    ptr,
};

use rusqlite::ffi;

/// As for a super-journal: no locks, and the directory is synced with the file when it is new.
const FLAGS: c_int = ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_SUPER_JOURNAL;

/// SQLite's own VFS takes no more than 128 KiB at a time.
const PIECE: usize = 64 << 10;

/// An open file. Closed when dropped.
#[derive(Debug)]
pub(crate) struct VfsFile {
    /// The VFS's own state, aligned for anything.
    state: Vec<u128>,
    /// The VFS may look at the name as long as the file is open.
    name: CString,
}

fn failed(code: c_int, what: &str, path: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(format!("cannot {what} {path}")))
}

fn vfs(name: Option<&str>) -> rusqlite::Result<*mut ffi::sqlite3_vfs> {
    let c_name = name.map(CString::new).transpose()?;
    // SAFETY: the argument is null or a C string; a VFS that was found stays registered.
    let found =
        unsafe { ffi::sqlite3_vfs_find(c_name.as_ref().map_or(ptr::null(), |n| n.as_ptr())) };
    if found.is_null() {
        return Err(failed(ffi::SQLITE_ERROR, "find the VFS", name.unwrap_or("(default)")));
    }
    Ok(found)
}

/// The path, followed by a second zero, as SQLite promises to every VFS.
fn c_path(path: &Path) -> rusqlite::Result<CString> {
    let text = path.to_str().ok_or_else(|| rusqlite::Error::InvalidPath(path.to_owned()))?;
    Ok(CString::new(text)?)
}

impl VfsFile {
    /// Opens a file, and makes it if `create` says so. `None` if there is none.
    pub(crate) fn open(
        vfs_name: Option<&str>,
        path: &Path,
        create: bool,
    ) -> rusqlite::Result<Option<Self>> {
        let vfs = vfs(vfs_name)?;
        let name = c_path(path)?;
        if !create && !exists(vfs_name, path)? {
            return Ok(None);
        }
        // SAFETY: `vfs` is registered, so its fields are set.
        let (size, open) = unsafe { ((*vfs).szOsFile, (*vfs).xOpen) };
        let words = usize::try_from(size).unwrap_or(0).div_ceil(size_of::<u128>());
        let mut file = Self { state: vec![0; words], name };
        let flags = if create { FLAGS | ffi::SQLITE_OPEN_CREATE } else { FLAGS };
        let Some(open) = open else { return Err(failed(ffi::SQLITE_MISUSE, "open", "a file")) };
        let mut got = 0;
        // SAFETY: `state` has the bytes the VFS asks for and does not move, and `name` lives as long.
        let code = unsafe {
            open(vfs, file.name.as_ptr(), file.state.as_mut_ptr().cast(), flags, &raw mut got)
        };
        if code == ffi::SQLITE_OK { Ok(Some(file)) } else { Err(file.failed(code, "open")) }
    }

    fn failed(&self, code: c_int, what: &str) -> rusqlite::Error {
        failed(code, what, &self.name.to_string_lossy())
    }

    fn raw(&mut self) -> *mut ffi::sqlite3_file {
        self.state.as_mut_ptr().cast()
    }

    /// Calls a method of the open file.
    fn call(
        &mut self,
        what: &str,
        method: impl FnOnce(&ffi::sqlite3_io_methods, *mut ffi::sqlite3_file) -> Option<c_int>,
    ) -> rusqlite::Result<()> {
        let raw = self.raw();
        // SAFETY: `open` succeeded, so the methods are set, and they live as long as the VFS.
        let code = unsafe { (*raw).pMethods.as_ref().and_then(|methods| method(methods, raw)) };
        match code {
            Some(ffi::SQLITE_OK) => Ok(()),
            code => Err(self.failed(code.unwrap_or(ffi::SQLITE_MISUSE), what)),
        }
    }

    /// The file's length in bytes.
    pub(crate) fn size(&mut self) -> rusqlite::Result<u64> {
        let mut size = 0;
        self.call("measure", |methods, raw| {
            // SAFETY: the file is open, and `size` is a place to write to.
            methods.xFileSize.map(|file_size| unsafe { file_size(raw, &raw mut size) })
        })?;
        Ok(size.cast_unsigned())
    }

    /// Fills `out` from `offset` on; an error if the file ends before.
    pub(crate) fn read(&mut self, mut offset: u64, out: &mut [u8]) -> rusqlite::Result<()> {
        for piece in out.chunks_mut(PIECE) {
            let len = c_int::try_from(piece.len()).unwrap_or(c_int::MAX);
            let at = offset.cast_signed();
            self.call("read", |methods, raw| {
                let start = piece.as_mut_ptr().cast::<c_void>();
                // SAFETY: the file is open, and `piece` is `len` bytes to write to.
                methods.xRead.map(|read| unsafe { read(raw, start, len, at) })
            })?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes at `offset`.
    pub(crate) fn write(&mut self, mut offset: u64, bytes: &[u8]) -> rusqlite::Result<()> {
        for piece in bytes.chunks(PIECE) {
            let len = c_int::try_from(piece.len()).unwrap_or(c_int::MAX);
            let at = offset.cast_signed();
            self.call("write", |methods, raw| {
                let start = piece.as_ptr().cast::<c_void>();
                // SAFETY: the file is open, and `piece` is `len` bytes to read from.
                methods.xWrite.map(|write| unsafe { write(raw, start, len, at) })
            })?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Cuts the file, or makes it longer.
    pub(crate) fn truncate(&mut self, size: u64) -> rusqlite::Result<()> {
        self.call("cut", |methods, raw| {
            // SAFETY: the file is open.
            methods.xTruncate.map(|truncate| unsafe { truncate(raw, size.cast_signed()) })
        })
    }

    /// Puts the file on stable storage, and its directory entry if it is new.
    pub(crate) fn sync(&mut self) -> rusqlite::Result<()> {
        self.call("sync", |methods, raw| {
            // SAFETY: the file is open.
            methods.xSync.map(|sync| unsafe { sync(raw, ffi::SQLITE_SYNC_NORMAL) })
        })
    }
}

impl Drop for VfsFile {
    fn drop(&mut self) {
        let raw = self.raw();
        // SAFETY: the methods are null if `open` failed; else the file is open and closed once.
        unsafe {
            if let Some(close) = (*raw).pMethods.as_ref().and_then(|methods| methods.xClose) {
                close(raw);
            }
        }
    }
}

/// Whether there is such a file.
pub(crate) fn exists(vfs_name: Option<&str>, path: &Path) -> rusqlite::Result<bool> {
    let vfs = vfs(vfs_name)?;
    let name = c_path(path)?;
    let mut found = 0;
    // SAFETY: the VFS is registered, the name a C string, `found` a place to write to.
    let code = unsafe {
        (*vfs)
            .xAccess
            .map(|access| access(vfs, name.as_ptr(), ffi::SQLITE_ACCESS_EXISTS, &raw mut found))
    };
    match code {
        Some(ffi::SQLITE_OK) => Ok(found != 0),
        code => {
            Err(failed(code.unwrap_or(ffi::SQLITE_MISUSE), "look for", &name.to_string_lossy()))
        }
    }
}

/// Removes a file, if it is there.
pub(crate) fn remove(vfs_name: Option<&str>, path: &Path) -> rusqlite::Result<()> {
    let vfs = vfs(vfs_name)?;
    let name = c_path(path)?;
    // SAFETY: the VFS is registered, and the name a C string.
    let code = unsafe { (*vfs).xDelete.map(|delete| delete(vfs, name.as_ptr(), 0)) };
    match code {
        Some(ffi::SQLITE_OK | ffi::SQLITE_IOERR_DELETE_NOENT) => Ok(()),
        code => Err(failed(code.unwrap_or(ffi::SQLITE_MISUSE), "remove", &name.to_string_lossy())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plain");
        assert!(VfsFile::open(None, &path, false).unwrap().is_none());
        let mut file = VfsFile::open(None, &path, true).unwrap().unwrap();
        file.write(0, b"hello, world").unwrap();
        file.write(7, b"there").unwrap();
        file.sync().unwrap();
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), b"hello, there");
        let mut file = VfsFile::open(None, &path, false).unwrap().unwrap();
        assert_eq!(file.size().unwrap(), 12);
        let mut out = [0; 5];
        file.read(7, &mut out).unwrap();
        assert_eq!(&out, b"there");
        assert!(file.read(8, &mut out).is_err(), "it ends before");
        file.truncate(5).unwrap();
        assert_eq!(file.size().unwrap(), 5);
        drop(file);
        assert!(exists(None, &path).unwrap());
        remove(None, &path).unwrap();
        remove(None, &path).unwrap();
        assert!(!exists(None, &path).unwrap());
    }

    #[test]
    fn errors_name_the_file_and_what_was_tried() {
        let error = VfsFile::open(None, Path::new("/nowhere/at/all"), true).unwrap_err();
        assert!(error.to_string().contains("cannot open /nowhere/at/all"), "{error}");
        assert!(exists(Some("no such vfs"), Path::new("a")).is_err());
    }
}
