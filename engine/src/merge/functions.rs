//! The SQL functions that apply statements call: what becomes of one stored value.

use rusqlite::{
    Connection, ffi,
    functions::{Context, FunctionFlags},
    types::{ToSqlOutput, Type, ValueRef as Sql},
};

use crate::{
    entry::SetChange,
    merge::row::unite,
    policy::ColumnType,
    set,
    testing::{Bug, planted},
    value::{ByteReader, ValueRef},
};

/// Makes the functions on the apply connection.
pub(crate) fn prepare_connection(conn: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_UTF8;
    // In SQL, an addition that overflows gives a REAL.
    conn.create_scalar_function("littoral_add", 2, flags, |context| {
        // Nothing but littoral may have written what is no integer.
        let count = if let ValueRef::Integer(n) = argument(context, 0) { n } else { 0 };
        let delta: i64 = context.get(1)?;
        count.checked_add(delta).ok_or_else(overflow)
    })?;
    for (name, merge) in [("littoral_max", ColumnType::Max), ("littoral_min", ColumnType::Min)] {
        conn.create_scalar_function(name, 2, flags, move |context| {
            let takes = merge.takes(argument(context, 0), argument(context, 1));
            Ok(ToSqlOutput::Arg(usize::from(takes || planted(Bug::ExtremeByArrival))))
        })?;
    }
    conn.create_scalar_function("littoral_unite", 2, flags, |context| {
        let ValueRef::Blob(change) = argument(context, 1) else {
            return Err(rusqlite::Error::InvalidParameterType(1, Type::Blob));
        };
        let change = SetChange::read(&mut ByteReader::new(change))
            .map_err(|error| rusqlite::Error::UserFunctionError(error.into()))?;
        Ok(unite(argument(context, 0), change))
    })
}

/// Makes the function `littoral_set(value)`, which spells a set as a column holds it, on a connection of
/// the application.
pub(crate) fn make_spell(conn: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_DETERMINISTIC
        | FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DIRECTONLY;
    conn.create_scalar_function("littoral_set", 1, flags, |context| {
        set::spelled(argument(context, 0)).map_err(|no_set| {
            rusqlite::Error::UserFunctionError(format!("littoral_set(): {no_set}").into())
        })
    })
}

/// The function that gives what stands in a column after a write has met it; `None` if it is the value
/// written.
pub(super) const fn combining(merge: ColumnType) -> Option<&'static str> {
    match merge {
        ColumnType::Lww => None,
        ColumnType::Counter => Some("littoral_add"),
        ColumnType::Max => Some("littoral_max"),
        ColumnType::Min => Some("littoral_min"),
        ColumnType::Set => Some("littoral_unite"),
    }
}

fn argument<'c>(context: &'c Context<'_>, index: usize) -> ValueRef<'c> {
    match context.get_raw(index) {
        Sql::Null => ValueRef::Null,
        Sql::Integer(n) => ValueRef::Integer(n),
        Sql::Real(r) => ValueRef::Real(r),
        Sql::Text(bytes) => ValueRef::Text(bytes),
        Sql::Blob(bytes) => ValueRef::Blob(bytes),
    }
}

/// A rejection, as other constraints give, so that the row is merged in memory instead. SQLite itself
/// never gives this code.
const OVERFLOW: std::ffi::c_int = ffi::SQLITE_CONSTRAINT_FUNCTION;

fn overflow() -> rusqlite::Error {
    // With a message of its own, rusqlite would report the general code instead.
    rusqlite::Error::SqliteFailure(ffi::Error::new(OVERFLOW), None)
}
