//! [`Keeping`]: a connection whose statements stay prepared and borrow their parameters, and the one
//! SQL function that tells what it overwrites.
//!
//! Invariants:
//! - a statement is finalized before its connection is closed, and never while it runs;
//! - what a parameter borrows outlives the run; nothing of it is looked at afterwards.

#![expect(unsafe_code, reason = "SQLite's C interface, where rusqlite has no safe one")]

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ffi::{c_int, c_void},
    marker::PhantomData,
    ops::Deref,
    ptr,
    sync::Arc,
};

use parking_lot::Mutex;
use rusqlite::{Connection, ffi};

use crate::{
    sqlite::{bytes, failure, value_ref},
    value::{ValueRef, put_cell, put_varint},
};

/// A connection that keeps statements of the engine prepared, by name, and lends them their
/// parameters where they lie: rusqlite would look each statement up by its text, and have texts and
/// blobs copied.
#[derive(Debug)]
pub(crate) struct Keeping {
    // Declared first, so dropped first: SQLite closes no connection that has statements.
    statements: RefCell<BTreeMap<Box<[u64]>, Kept>>,
    connection: Connection,
    swapped: Arc<Mutex<Vec<u8>>>,
}

/// A prepared statement.
#[derive(Debug)]
struct Kept(*mut ffi::sqlite3_stmt);

// SAFETY: SQLite lets a statement be used on any thread, by one at a time: whoever has its connection,
// which is not shared between threads either.
unsafe impl Send for Kept {}

impl Drop for Kept {
    fn drop(&mut self) {
        // SAFETY: it was prepared, and is finalized only here, before its connection is closed.
        unsafe { ffi::sqlite3_finalize(self.0) };
    }
}

/// The parameters of a [`Keeping`] statement that is about to run. They are NULL where nothing is set.
#[derive(Debug)]
pub(crate) struct Parameters<'v> {
    db: *mut ffi::sqlite3,
    statement: *mut ffi::sqlite3_stmt,
    lent: PhantomData<&'v [u8]>,
}

/// A row that a [`Keeping`] statement returns.
#[derive(Debug)]
pub(crate) struct Columns<'r> {
    statement: *mut ffi::sqlite3_stmt,
    row: PhantomData<&'r [u8]>,
}

impl<'r> Columns<'r> {
    /// The value of a column, counted from 0; NULL if there is no such column.
    pub(crate) fn value(&self, column: usize) -> ValueRef<'r> {
        let (statement, column) = (self.statement, c_int::try_from(column).unwrap_or(c_int::MAX));
        // SAFETY: the statement stands on a row, whose values live until it steps on, which is longer
        // than `'r`; a column that it does not have is NULL. For the order see `value_ref`.
        unsafe {
            match ffi::sqlite3_column_type(statement, column) {
                ffi::SQLITE_INTEGER => {
                    ValueRef::Integer(ffi::sqlite3_column_int64(statement, column))
                }
                ffi::SQLITE_FLOAT => ValueRef::Real(ffi::sqlite3_column_double(statement, column)),
                ffi::SQLITE_TEXT => {
                    let start = ffi::sqlite3_column_blob(statement, column);
                    let len = ffi::sqlite3_column_bytes(statement, column);
                    ValueRef::Text(bytes(start.cast(), len))
                }
                ffi::SQLITE_BLOB => {
                    let start = ffi::sqlite3_column_blob(statement, column);
                    let len = ffi::sqlite3_column_bytes(statement, column);
                    ValueRef::Blob(bytes(start.cast(), len))
                }
                _ => ValueRef::Null,
            }
        }
    }
}

impl Keeping {
    /// More statements than this are not kept; beyond it all are forgotten, which costs time only.
    const KEPT: usize = 2 * crate::limits::STATEMENT_CACHE;

    pub(crate) fn new(connection: Connection) -> Self {
        Self { statements: RefCell::default(), connection, swapped: Arc::default() }
    }

    /// Makes the SQL function `littoral_swap(old, new, place)`, which gives `new`, and tells what is
    /// overwritten: see [`Keeping::swapped`].
    pub(crate) fn make_swap(&self) -> rusqlite::Result<()> {
        // SAFETY: the connection is open; it gets a count of the Arc, which `let_go` gives back when
        // the connection is closed, or at once if this fails.
        let code = unsafe {
            ffi::sqlite3_create_function_v2(
                self.connection.handle(),
                c"littoral_swap".as_ptr(),
                3,
                ffi::SQLITE_UTF8 | ffi::SQLITE_DIRECTONLY,
                Arc::into_raw(Arc::clone(&self.swapped)).cast_mut().cast::<c_void>(),
                Some(swap),
                None,
                None,
                Some(let_go),
            )
        };
        // SAFETY: the connection is open.
        let db = unsafe { self.connection.handle() };
        if code == ffi::SQLITE_OK { Ok(()) } else { Err(failure(db, code)) }
    }

    /// The values that `littoral_swap` was given to overwrite since this was last emptied: of each the
    /// place, a varint, and the value as a cell.
    pub(crate) fn swapped(&self) -> parking_lot::MutexGuard<'_, Vec<u8>> {
        self.swapped.lock()
    }

    /// Runs the statement with that name to its end and drops the rows it returns. It is prepared from
    /// `sql` at first; the same name must always mean the same text, until [`Keeping::forget`].
    pub(crate) fn run<'v>(
        &self,
        name: &[u64],
        sql: impl FnOnce() -> String,
        set: impl FnOnce(&mut Parameters<'v>) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        self.query(name, sql, set, |_| {})
    }

    /// As [`Keeping::run`], and gives each row that the statement returns.
    pub(crate) fn query<'v>(
        &self,
        name: &[u64],
        sql: impl FnOnce() -> String,
        set: impl FnOnce(&mut Parameters<'v>) -> rusqlite::Result<()>,
        mut each: impl FnMut(&Columns<'_>),
    ) -> rusqlite::Result<()> {
        // Borrowed until the end, so that nobody runs or finalizes a statement that is running.
        let mut statements = self.statements.borrow_mut();
        // SAFETY: the connection is open.
        let db = unsafe { self.connection.handle() };
        let statement = match statements.get(name) {
            Some(kept) => kept.0,
            None => {
                if statements.len() >= Self::KEPT {
                    statements.clear();
                }
                let kept = prepare(db, &sql())?;
                let statement = kept.0;
                statements.insert(name.into(), kept);
                statement
            }
        };
        // SAFETY: prepared, and not finalized while `statements` is borrowed. What a run before lent
        // is gone by now and must not be seen again.
        unsafe { ffi::sqlite3_clear_bindings(statement) };
        set(&mut Parameters { db, statement, lent: PhantomData })?;
        let code = loop {
            // SAFETY: as above. What was lent lives for `'v`, which is longer than this call.
            match unsafe { ffi::sqlite3_step(statement) } {
                ffi::SQLITE_ROW => each(&Columns { statement, row: PhantomData }),
                code => break code,
            }
        };
        let result = if code == ffi::SQLITE_DONE { Ok(()) } else { Err(failure(db, code)) };
        // SAFETY: as above. It tells the same error again.
        unsafe { ffi::sqlite3_reset(statement) };
        result
    }

    /// Finalizes all statements: names may mean something else from here on.
    pub(crate) fn forget(&self) {
        self.statements.borrow_mut().clear();
    }

    /// Closes the connection.
    pub(crate) fn close(self) -> rusqlite::Result<()> {
        self.forget();
        self.connection.close().map_err(|(_, error)| error)
    }
}

/// # Safety
/// Called by SQLite with three values and what [`Keeping::make_swap`] gave.
unsafe extern "C" fn swap(
    context: *mut ffi::sqlite3_context,
    _count: c_int,
    values: *mut *mut ffi::sqlite3_value,
) {
    // SAFETY: SQLite passes three values that live while the function runs; the function's data is the
    // mutex of an Arc of which the connection has a count.
    unsafe {
        let swapped = &*ffi::sqlite3_user_data(context).cast::<Mutex<Vec<u8>>>();
        let (old, new, place) = (*values, *values.add(1), *values.add(2));
        let mut swapped = swapped.lock();
        put_varint(&mut swapped, ffi::sqlite3_value_int64(place).cast_unsigned());
        put_cell(&mut swapped, value_ref(old));
        ffi::sqlite3_result_value(context, new);
    }
}

/// # Safety
/// Called by SQLite, once, with what [`Keeping::make_swap`] gave.
unsafe extern "C" fn let_go(swapped: *mut c_void) {
    // SAFETY: it came from `Arc::into_raw`, and this gives its count back.
    drop(unsafe { Arc::from_raw(swapped.cast_const().cast::<Mutex<Vec<u8>>>()) });
}

impl Deref for Keeping {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl<'v> Parameters<'v> {
    /// Lends the value to the parameter at `place`, counted from 1.
    pub(crate) fn lend(&mut self, place: usize, value: ValueRef<'v>) -> rusqlite::Result<()> {
        // SAFETY: it lives for `'v`, and the statement does not run longer.
        unsafe { self.set(place, value, ffi::SQLITE_STATIC()) }
    }

    /// Has the value copied into the parameter at `place`, counted from 1.
    pub(crate) fn copy(&mut self, place: usize, value: ValueRef<'_>) -> rusqlite::Result<()> {
        // SAFETY: SQLite makes a copy before it returns.
        unsafe { self.set(place, value, ffi::SQLITE_TRANSIENT()) }
    }

    /// # Safety
    /// The value must live as long as `lifetime` says.
    unsafe fn set(
        &mut self,
        place: usize,
        value: ValueRef<'_>,
        lifetime: ffi::sqlite3_destructor_type,
    ) -> rusqlite::Result<()> {
        let statement = self.statement;
        let place = c_int::try_from(place).unwrap_or(c_int::MAX);
        // SAFETY: the statement was prepared and does not run at present; a place that it does not have
        // is an error. For the lifetime the caller speaks.
        let code = unsafe {
            match value {
                ValueRef::Null => ffi::sqlite3_bind_null(statement, place),
                ValueRef::Integer(n) => ffi::sqlite3_bind_int64(statement, place, n),
                ValueRef::Real(r) => ffi::sqlite3_bind_double(statement, place, r),
                ValueRef::Text(bytes) => ffi::sqlite3_bind_text64(
                    statement,
                    place,
                    bytes.as_ptr().cast(),
                    bytes.len() as u64,
                    lifetime,
                    UTF8,
                ),
                ValueRef::Blob(bytes) => ffi::sqlite3_bind_blob64(
                    statement,
                    place,
                    bytes.as_ptr().cast(),
                    bytes.len() as u64,
                    lifetime,
                ),
            }
        };
        if code == ffi::SQLITE_OK { Ok(()) } else { Err(failure(self.db, code)) }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a small constant")]
const UTF8: u8 = ffi::SQLITE_UTF8 as u8;

fn prepare(db: *mut ffi::sqlite3, sql: &str) -> rusqlite::Result<Kept> {
    let mut statement: *mut ffi::sqlite3_stmt = ptr::null_mut();
    let length = c_int::try_from(sql.len()).expect("the engine's statements are short");
    // SAFETY: the connection is open, `sql` is that long, and `statement` is a place to write to.
    let code = unsafe {
        ffi::sqlite3_prepare_v3(
            db,
            sql.as_ptr().cast(),
            length,
            ffi::SQLITE_PREPARE_PERSISTENT,
            &raw mut statement,
            ptr::null_mut(),
        )
    };
    if code == ffi::SQLITE_OK { Ok(Kept(statement)) } else { Err(failure(db, code)) }
}
