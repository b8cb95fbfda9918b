//! Where the database of a node is to be: whether it can be there, and that one process alone uses it.

use std::{
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use littoral::OpenError;

use super::{RuntimeError, builder, io_error};
use crate::config::Config;

/// What is known of a database before a node opens it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// There is none yet.
    Nothing,
    /// There is one, and no node runs on it.
    Closed,
    /// A node runs on it.
    InUse,
}

/// Looks whether a node could run on its database, without changing anything.
pub(crate) fn check(config: &Config) -> Result<Found, RuntimeError> {
    check_place(&config.database)?;
    let in_use = match std::fs::File::open(beside(&config.database, ".lock")) {
        Ok(file) => matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(io_error("cannot look whether a node runs", error)),
    };
    let there = builder(config)
        .check(&config.database, in_use)
        .map_err(|error| RuntimeError::Open { path: config.database.clone(), error })?;
    Ok(match (in_use, there) {
        (true, _) => Found::InUse,
        (false, true) => Found::Closed,
        (false, false) => Found::Nothing,
    })
}

/// For how long a program that has a database locked is waited for.
const LOCKED: Duration = Duration::from_secs(5);

/// Opens a database, which a program that looks into it may have locked for a moment.
pub(super) fn patiently<T>(mut open: impl FnMut() -> Result<T, OpenError>) -> Result<T, OpenError> {
    let began = Instant::now();
    loop {
        match open() {
            Err(OpenError::Sqlite(error)) if is_locked(&error) && began.elapsed() < LOCKED => {
                thread::sleep(Duration::from_millis(20));
            }
            opened => return opened,
        }
    }
}

fn is_locked(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
}

/// Whether a database can be at a path, as far as files and their rights tell.
fn check_place(database: &Path) -> Result<(), RuntimeError> {
    let wrong = |path: &Path, why| Err(RuntimeError::Place { path: path.to_owned(), why });
    let directory = match database.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    if !directory.exists() {
        return wrong(directory, "is not there: make the directory, or mend node.data");
    }
    if !directory.is_dir() {
        return wrong(directory, "is no directory: mend node.data");
    }
    if !may_write(directory) {
        return wrong(
            directory,
            "cannot be written: give the user that runs the node the right to",
        );
    }
    if !database.exists() {
        return Ok(());
    }
    if !database.is_file() {
        return wrong(database, "is no file: node.data names the file of the database itself");
    }
    if !may_write(database) {
        return wrong(database, "cannot be written: give the user that runs the node the right to");
    }
    Ok(())
}

#[cfg(unix)]
fn may_write(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

#[cfg(not(unix))]
fn may_write(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| !found.permissions().readonly())
}

/// Keeps a second process off the database: two replicas of one identity would fork its log.
pub(super) fn take(database: &Path) -> Result<std::fs::File, RuntimeError> {
    check_place(database)?;
    let path = beside(database, ".lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| io_error(&format!("cannot open {}", path.display()), error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(RuntimeError::InUse(database.to_owned())),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(io_error(&format!("cannot lock {}", path.display()), error))
        }
    }
}

/// A file that stands beside the database under its name, with something behind it.
pub(super) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}
