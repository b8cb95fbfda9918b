//! What rusqlite does not wrap: the preupdate hook, two connection counters, and, in [`keeping`],
//! statements that stay prepared; and the bridge between its values and ours.
//!
//! The only unsafe code of the engine is in this folder. Everything it exports is safe to use: the
//! hook's context lives as long as the connection it is installed on, because [`Hooked`] owns both.

#![expect(unsafe_code, reason = "SQLite's C interface, where rusqlite has no safe one")]

pub(crate) mod file;
mod keeping;

pub(crate) use keeping::{Columns, Keeping, Parameters};

use std::{
    cell::{RefCell, RefMut},
    ffi::{CStr, CString, c_char, c_int, c_void},
    marker::PhantomData,
    ops::Deref,
    ptr, slice,
};

use rusqlite::{
    Connection, ffi,
    functions::Context,
    types::{ToSql, ToSqlOutput},
};

use crate::value::ValueRef;

/// What a statement does to a row, as the preupdate hook tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    Insert,
    Update,
    Delete,
}

/// A row about to change. Its columns are numbered in declaration order, generated ones included.
#[derive(Debug)]
pub(crate) struct RowEvent<'e> {
    db: *mut ffi::sqlite3,
    pub(crate) change: Change,
    /// The table's name, in the schema `main`.
    pub(crate) table: &'e [u8],
    /// The row is about to be changed by `sqlite3_blob_write`, and the new value is not told.
    pub(crate) blob_write: bool,
    /// Before and after; one of them counts for an insert or a delete, none for a table WITHOUT ROWID.
    rowids: [i64; 2],
    lifetime: PhantomData<&'e ()>,
}

/// A column that SQLite would not tell, with its result code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Untold(pub(crate) c_int);

/// On which side of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Moment {
    Before,
    After,
}

type ReadValue =
    unsafe extern "C" fn(*mut ffi::sqlite3, c_int, *mut *mut ffi::sqlite3_value) -> c_int;

/// What stands for a column's number where the rowid is meant.
pub(crate) const ROWID: usize = usize::MAX;

impl<'e> RowEvent<'e> {
    /// The value before an update or a delete.
    #[inline]
    pub(crate) fn before(&self, column: usize) -> Result<ValueRef<'e>, Untold> {
        self.at(Moment::Before, column)
    }

    /// The value after an insert or an update.
    #[inline]
    pub(crate) fn after(&self, column: usize) -> Result<ValueRef<'e>, Untold> {
        self.at(Moment::After, column)
    }

    /// The value at one of the two moments: before an insert and after a delete there is none.
    // Asked for every cell of every row: kept out of line, it costs more than what it does.
    #[inline(always)]
    pub(crate) fn at(&self, moment: Moment, column: usize) -> Result<ValueRef<'e>, Untold> {
        let (rowid, read): (_, ReadValue) = match moment {
            Moment::Before => (self.rowids[0], ffi::sqlite3_preupdate_old),
            Moment::After => (self.rowids[1], ffi::sqlite3_preupdate_new),
        };
        if column == ROWID {
            return Ok(ValueRef::Integer(rowid));
        }
        // SAFETY: `self` exists only within the hook's call, where SQLite allows this.
        unsafe { self.value(column, read) }
    }

    /// # Safety
    /// `read` is one of the two functions of the hook, called within the hook.
    #[inline(always)]
    unsafe fn value(&self, column: usize, read: ReadValue) -> Result<ValueRef<'e>, Untold> {
        let column = c_int::try_from(column).map_err(|_| Untold(ffi::SQLITE_RANGE))?;
        let mut value: *mut ffi::sqlite3_value = ptr::null_mut();
        // SAFETY: the connection is the one that calls the hook, and `value` is a place to write to.
        let code = unsafe { read(self.db, column, &raw mut value) };
        if code != ffi::SQLITE_OK || value.is_null() {
            return Err(Untold(code));
        }
        // SAFETY: SQLite keeps the value and its bytes until the hook returns, which outlives `'e`.
        Ok(unsafe { value_ref(value) })
    }
}

/// # Safety
/// `value` must be valid, and stay so for `'v`.
#[inline]
unsafe fn value_ref<'v>(value: *mut ffi::sqlite3_value) -> ValueRef<'v> {
    // SAFETY: the accessors are called in the order in which SQLite demands them: type, bytes'
    // address, bytes' count, without a conversion in between.
    unsafe {
        match ffi::sqlite3_value_type(value) {
            ffi::SQLITE_INTEGER => ValueRef::Integer(ffi::sqlite3_value_int64(value)),
            ffi::SQLITE_FLOAT => ValueRef::Real(ffi::sqlite3_value_double(value)),
            ffi::SQLITE_TEXT => {
                // As a blob: asked for text, SQLite copies the value to put a zero behind it. The
                // engine's files are in UTF-8, so no conversion is missed.
                let start = ffi::sqlite3_value_blob(value);
                ValueRef::Text(bytes(start.cast(), ffi::sqlite3_value_bytes(value)))
            }
            ffi::SQLITE_BLOB => {
                let start = ffi::sqlite3_value_blob(value);
                ValueRef::Blob(bytes(start.cast(), ffi::sqlite3_value_bytes(value)))
            }
            _ => ValueRef::Null,
        }
    }
}

/// # Safety
/// `start` is null, or points at `len` bytes that live for `'v`.
unsafe fn bytes<'v>(start: *const u8, len: c_int) -> &'v [u8] {
    match usize::try_from(len) {
        // SAFETY: by the caller's promise.
        Ok(len) if !start.is_null() => unsafe { slice::from_raw_parts(start, len) },
        _ => &[],
    }
}

/// Takes the row changes of a connection.
pub(crate) trait PreupdateSink: Send + 'static {
    /// A row of a table in the schema `main` is about to change.
    fn row(&mut self, event: &RowEvent<'_>);
}

/// A connection with a preupdate hook, installed before anything was prepared on it.
#[derive(Debug)]
pub(crate) struct Hooked<S: PreupdateSink> {
    // Declared first, so dropped first: after that nobody calls the hook.
    connection: Keeping,
    /// In a box of its own: the hook's context is its address. Not a mutex, since connection and
    /// hook are one thread's at a time.
    sink: Box<RefCell<S>>,
}

impl<S: PreupdateSink> Hooked<S> {
    pub(crate) fn new(connection: Connection, sink: S) -> Self {
        let sink = Box::new(RefCell::new(sink));
        // SAFETY: the context is the address of the cell in the box, which `Hooked` keeps alive longer
        // than the connection, and `hook::<S>` expects just that type.
        unsafe {
            ffi::sqlite3_preupdate_hook(
                connection.handle(),
                Some(hook::<S>),
                ptr::from_ref(&*sink).cast_mut().cast::<c_void>(),
            );
        }
        Self { connection: Keeping::new(connection), sink }
    }

    /// The connection, to run statements on that stay prepared.
    pub(crate) fn keeping(&self) -> &Keeping {
        &self.connection
    }

    /// Closes the connection.
    pub(crate) fn close(self) -> rusqlite::Result<()> {
        self.connection.close()
    }

    /// What has been taken so far. Must not be held while a statement runs.
    pub(crate) fn sink(&self) -> RefMut<'_, S> {
        self.sink.borrow_mut()
    }
}

impl<S: PreupdateSink> Deref for Hooked<S> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// # Safety
/// Called by SQLite with the context that [`Hooked::new`] gave.
unsafe extern "C" fn hook<S: PreupdateSink>(
    context: *mut c_void,
    db: *mut ffi::sqlite3,
    op: c_int,
    schema: *const c_char,
    table: *const c_char,
    old_rowid: ffi::sqlite3_int64,
    new_rowid: ffi::sqlite3_int64,
) {
    // SAFETY: SQLite passes names that end in a zero and live while the hook runs.
    let (schema, table) = unsafe { (CStr::from_ptr(schema), CStr::from_ptr(table)) };
    if schema != c"main" {
        return;
    }
    let change = match op {
        ffi::SQLITE_INSERT => Change::Insert,
        ffi::SQLITE_UPDATE => Change::Update,
        _ => Change::Delete,
    };
    let blob_write = change == Change::Delete
        // SAFETY: called within the hook.
        && unsafe { ffi::sqlite3_preupdate_blobwrite(db) } >= 0;
    // SAFETY: `context` is the cell of a `Hooked<S>` that is alive, since its connection is.
    let sink = unsafe { &*context.cast::<RefCell<S>>() };
    let rowids = [old_rowid, new_rowid];
    let table = table.to_bytes();
    let event = RowEvent { db, change, table, blob_write, rowids, lifetime: PhantomData };
    sink.borrow_mut().row(&event);
}

/// Whether a foreign key that is deferred to the commit is violated at present.
pub(crate) fn has_deferred_violations(connection: &Connection) -> bool {
    db_status(connection, ffi::SQLITE_DBSTATUS_DEFERRED_FKS) != 0
}

/// Runs something on the connection that calls an SQL function.
pub(crate) fn with_connection<T>(
    context: &Context<'_>,
    run: impl FnOnce(&Connection) -> T,
) -> rusqlite::Result<T> {
    // SAFETY: the connection is the one that makes the call, so it is open, and it is not closed before
    // the call returns: whoever could close it is waiting for that.
    let connection = unsafe { context.get_connection() }?;
    Ok(run(&connection))
}

/// Takes the count of pages written to the WAL by this connection, and starts it again at zero.
pub(crate) fn take_pages_written(connection: &Connection) -> u64 {
    let pages = db_status(connection, ffi::SQLITE_DBSTATUS_CACHE_WRITE);
    u64::try_from(pages).unwrap_or(0)
}

fn db_status(connection: &Connection, what: c_int) -> c_int {
    let (mut current, mut highest) = (0, 0);
    let reset = c_int::from(what == ffi::SQLITE_DBSTATUS_CACHE_WRITE);
    // SAFETY: the connection is open, and both results are places to write to.
    let code = unsafe {
        ffi::sqlite3_db_status(connection.handle(), what, &raw mut current, &raw mut highest, reset)
    };
    debug_assert_eq!(code, ffi::SQLITE_OK, "both counters exist in the bundled SQLite");
    current
}

/// Runs an INSERT whose parameters are integers and, last, a large blob, which is lent to SQLite
/// where it lies: rusqlite would have it copied first.
pub(crate) fn insert_large_blob(
    connection: &Connection,
    sql: &str,
    integers: &[i64],
    blob: &[u8],
) -> rusqlite::Result<()> {
    // SAFETY: the connection is open.
    let db = unsafe { connection.handle() };
    let mut statement: *mut ffi::sqlite3_stmt = ptr::null_mut();
    let length = c_int::try_from(sql.len()).expect("the engine's statements are short");
    // SAFETY: `sql` is that long, and `statement` is a place to write to.
    let prepared = unsafe {
        ffi::sqlite3_prepare_v2(
            db,
            sql.as_ptr().cast(),
            length,
            &raw mut statement,
            ptr::null_mut(),
        )
    };
    if prepared != ffi::SQLITE_OK {
        return Err(failure(db, prepared));
    }
    let mut place = 0;
    let mut code = ffi::SQLITE_OK;
    for integer in integers {
        place += 1;
        // SAFETY: the statement was prepared and is not finalized before the end.
        code = code.max(unsafe { ffi::sqlite3_bind_int64(statement, place, *integer) });
    }
    // SAFETY: as above; the blob outlives the statement, so SQLite need not copy it.
    code = code.max(unsafe {
        ffi::sqlite3_bind_blob64(
            statement,
            place + 1,
            blob.as_ptr().cast(),
            blob.len() as u64,
            ffi::SQLITE_STATIC(),
        )
    });
    if code == ffi::SQLITE_OK {
        // SAFETY: as above.
        code = unsafe { ffi::sqlite3_step(statement) };
    }
    let result = if code == ffi::SQLITE_DONE { Ok(()) } else { Err(failure(db, code)) };
    // SAFETY: finalized once, and not used after.
    unsafe { ffi::sqlite3_finalize(statement) };
    result
}

/// Overwrites a part of a stored text or blob in place. The authorizer is not asked, no trigger fires, and
/// the preupdate hook is told of a row that is deleted.
pub(crate) fn write_blob(
    connection: &Connection,
    table: &str,
    column: &str,
    rowid: i64,
    offset: usize,
    bytes: &[u8],
) -> rusqlite::Result<()> {
    let (table, column) = (CString::new(table)?, CString::new(column)?);
    let offset = c_int::try_from(offset).unwrap_or(c_int::MAX);
    let length = c_int::try_from(bytes.len()).unwrap_or(c_int::MAX);
    let mut blob: *mut ffi::sqlite3_blob = ptr::null_mut();
    // SAFETY: the connection is open, the names end in a zero, and `blob` is a place to write to.
    let (db, opened) = unsafe {
        let db = connection.handle();
        let (table, column) = (table.as_ptr(), column.as_ptr());
        (db, ffi::sqlite3_blob_open(db, c"main".as_ptr(), table, column, rowid, 1, &raw mut blob))
    };
    if opened != ffi::SQLITE_OK {
        return Err(failure(db, opened));
    }
    // SAFETY: the blob is open, and `bytes` has that many bytes. SQLite refuses to write past its end.
    let code = unsafe { ffi::sqlite3_blob_write(blob, bytes.as_ptr().cast(), length, offset) };
    let result = if code == ffi::SQLITE_OK { Ok(()) } else { Err(failure(db, code)) };
    // SAFETY: closed once, and not used after.
    unsafe { ffi::sqlite3_blob_close(blob) };
    result
}

fn failure(db: *mut ffi::sqlite3, code: c_int) -> rusqlite::Error {
    // SAFETY: the connection is open; the message lives until its next call, and is copied before.
    let message = unsafe { CStr::from_ptr(ffi::sqlite3_errmsg(db)) };
    // SAFETY: as above.
    let extended = unsafe { ffi::sqlite3_extended_errcode(db) };
    let code = if extended == ffi::SQLITE_OK { code } else { extended };
    let message = message.to_string_lossy().into_owned();
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(message))
}

/// One of our values as a parameter.
#[derive(Debug)]
pub(crate) struct Param<'v>(pub(crate) ValueRef<'v>);

impl ToSql for Param<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        use rusqlite::types::ValueRef as Sql;
        Ok(ToSqlOutput::Borrowed(match self.0 {
            ValueRef::Null => Sql::Null,
            ValueRef::Integer(n) => Sql::Integer(n),
            ValueRef::Real(r) => Sql::Real(r),
            ValueRef::Text(bytes) => Sql::Text(bytes),
            ValueRef::Blob(bytes) => Sql::Blob(bytes),
        }))
    }
}

/// A column of a result as one of our values.
pub(crate) fn column<'r>(
    row: &'r rusqlite::Row<'_>,
    index: usize,
) -> rusqlite::Result<ValueRef<'r>> {
    use rusqlite::types::ValueRef as Sql;
    Ok(match row.get_ref(index)? {
        Sql::Null => ValueRef::Null,
        Sql::Integer(n) => ValueRef::Integer(n),
        Sql::Real(r) => ValueRef::Real(r),
        Sql::Text(bytes) => ValueRef::Text(bytes),
        Sql::Blob(bytes) => ValueRef::Blob(bytes),
    })
}

/// `name` as an SQL identifier.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
