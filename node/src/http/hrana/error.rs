//! Engine and SQLite errors as clients of the protocol know them: a message and a code by name.

use std::borrow::Cow;

use littoral::WriteError;
use rusqlite::ffi;

use super::wire::HranaError;
use crate::runtime::{ReadError, TransactionError};

impl HranaError {
    /// Whether a statement was stopped because it, or the job it was in, took too long.
    pub(super) fn is_interrupt(&self) -> bool {
        self.code == "SQLITE_INTERRUPT"
    }
}

impl From<&rusqlite::Error> for HranaError {
    fn from(error: &rusqlite::Error) -> Self {
        let (sqlite, message) = match error {
            rusqlite::Error::SqliteFailure(sqlite, message) => (*sqlite, message.clone()),
            rusqlite::Error::SqlInputError { error, msg, .. } => (*error, Some(msg.clone())),
            other => return Self::new("SQLITE_ERROR", other.to_string()),
        };
        let message = message.unwrap_or_else(|| sqlite.to_string());
        let primary = sqlite.extended_code & 0xff;
        if primary == ffi::SQLITE_FULL {
            return Self::from(&WriteError::DiskFull);
        }
        let code = match primary {
            ffi::SQLITE_ERROR if is_syntax_error(&message) => "SQL_PARSE_ERROR",
            ffi::SQLITE_ERROR if message.starts_with("no such column") => "SQL_INPUT_ERROR",
            _ => primary_name(primary),
        };
        let extended_code = extended_name(sqlite.extended_code).map(Cow::Borrowed);
        Self { message, code: code.to_owned(), extended_code }
    }
}

impl From<&WriteError> for HranaError {
    fn from(error: &WriteError) -> Self {
        let code = match error {
            WriteError::Sqlite(error) | WriteError::InMigration { error, .. } => {
                return Self::from(error);
            }
            WriteError::NotAMember => "LITTORAL_NOT_A_MEMBER",
            WriteError::ReadOnly => "LITTORAL_READ_ONLY",
            WriteError::OriginOnly { .. } => "LITTORAL_ORIGIN_ONLY",
            WriteError::SchemaChange { .. } => "LITTORAL_SCHEMA_AT_ORIGIN",
            WriteError::NeedsFreeze { .. } => "LITTORAL_NEEDS_FREEZE",
            WriteError::SchemaChanging { .. } => "LITTORAL_SCHEMA_CHANGING",
            WriteError::SchemaAccepted { .. } => "LITTORAL_SCHEMA_ACCEPTED",
            WriteError::ClockAhead { .. } => "LITTORAL_CLOCK_AHEAD",
            WriteError::Refused(_) => "LITTORAL_TABLE_REFUSED",
            WriteError::Policy(_) | WriteError::NoSuchTable { .. } => "LITTORAL_POLICY",
            WriteError::Forbidden { .. } => "LITTORAL_FORBIDDEN",
            WriteError::NotGranted { .. } => "LITTORAL_NOT_GRANTED",
            WriteError::Value { .. } => "LITTORAL_VALUE",
            WriteError::EntryTooLarge { .. } => "LITTORAL_ENTRY_TOO_LARGE",
            WriteError::ResultTooLarge { .. } => "RESPONSE_TOO_LARGE",
            WriteError::DiskFull => "SQLITE_FULL",
            WriteError::Unavailable(_) => "LITTORAL_UNAVAILABLE",
            _ => "LITTORAL_ABORTED",
        };
        Self::new(code, error.to_string())
    }
}

impl From<&TransactionError> for HranaError {
    fn from(error: &TransactionError) -> Self {
        match error {
            TransactionError::TimedOut => Self::new("TRANSACTION_TIMEOUT", error.to_string()),
            TransactionError::Busy => Self::new("SQLITE_BUSY", error.to_string()),
            TransactionError::Write(error) => Self::from(&**error),
        }
    }
}

impl From<&ReadError> for HranaError {
    fn from(error: &ReadError) -> Self {
        let code = match error {
            ReadError::Open(error) | ReadError::Sqlite(error) => return Self::from(error),
            ReadError::TooStale(_) => "LITTORAL_TOO_STALE",
            ReadError::AtOrigin { .. } => "LITTORAL_ORIGIN_ONLY",
            ReadError::BookmarkNotReached(_) => "LITTORAL_BOOKMARK_NOT_REACHED",
            ReadError::TimedOut => "SQLITE_INTERRUPT",
            ReadError::TooManyHeld => "SQLITE_BUSY",
            ReadError::SnapshotReplaced => "LITTORAL_SNAPSHOT_REPLACED",
            ReadError::Panicked | ReadError::Stopping => "LITTORAL_UNAVAILABLE",
        };
        Self::new(code, error.to_string())
    }
}

fn is_syntax_error(message: &str) -> bool {
    message.contains("syntax error")
        || message == "incomplete input"
        || message.starts_with("unrecognized token")
}

const fn primary_name(code: i32) -> &'static str {
    match code {
        ffi::SQLITE_INTERNAL => "SQLITE_INTERNAL",
        ffi::SQLITE_PERM => "SQLITE_PERM",
        ffi::SQLITE_ABORT => "SQLITE_ABORT",
        ffi::SQLITE_BUSY => "SQLITE_BUSY",
        ffi::SQLITE_LOCKED => "SQLITE_LOCKED",
        ffi::SQLITE_NOMEM => "SQLITE_NOMEM",
        ffi::SQLITE_READONLY => "SQLITE_READONLY",
        ffi::SQLITE_INTERRUPT => "SQLITE_INTERRUPT",
        ffi::SQLITE_IOERR => "SQLITE_IOERR",
        ffi::SQLITE_CORRUPT => "SQLITE_CORRUPT",
        ffi::SQLITE_NOTFOUND => "SQLITE_NOTFOUND",
        ffi::SQLITE_FULL => "SQLITE_FULL",
        ffi::SQLITE_CANTOPEN => "SQLITE_CANTOPEN",
        ffi::SQLITE_PROTOCOL => "SQLITE_PROTOCOL",
        ffi::SQLITE_SCHEMA => "SQLITE_SCHEMA",
        ffi::SQLITE_TOOBIG => "SQLITE_TOOBIG",
        ffi::SQLITE_CONSTRAINT => "SQLITE_CONSTRAINT",
        ffi::SQLITE_MISMATCH => "SQLITE_MISMATCH",
        ffi::SQLITE_MISUSE => "SQLITE_MISUSE",
        ffi::SQLITE_NOLFS => "SQLITE_NOLFS",
        ffi::SQLITE_AUTH => "SQLITE_AUTH",
        ffi::SQLITE_RANGE => "SQLITE_RANGE",
        ffi::SQLITE_NOTADB => "SQLITE_NOTADB",
        _ => "SQLITE_ERROR",
    }
}

const fn extended_name(code: i32) -> Option<&'static str> {
    Some(match code {
        ffi::SQLITE_CONSTRAINT_CHECK => "SQLITE_CONSTRAINT_CHECK",
        ffi::SQLITE_CONSTRAINT_COMMITHOOK => "SQLITE_CONSTRAINT_COMMITHOOK",
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY => "SQLITE_CONSTRAINT_FOREIGNKEY",
        ffi::SQLITE_CONSTRAINT_FUNCTION => "SQLITE_CONSTRAINT_FUNCTION",
        ffi::SQLITE_CONSTRAINT_NOTNULL => "SQLITE_CONSTRAINT_NOTNULL",
        ffi::SQLITE_CONSTRAINT_PRIMARYKEY => "SQLITE_CONSTRAINT_PRIMARYKEY",
        ffi::SQLITE_CONSTRAINT_TRIGGER => "SQLITE_CONSTRAINT_TRIGGER",
        ffi::SQLITE_CONSTRAINT_UNIQUE => "SQLITE_CONSTRAINT_UNIQUE",
        ffi::SQLITE_CONSTRAINT_ROWID => "SQLITE_CONSTRAINT_ROWID",
        ffi::SQLITE_CONSTRAINT_DATATYPE => "SQLITE_CONSTRAINT_DATATYPE",
        ffi::SQLITE_BUSY_SNAPSHOT => "SQLITE_BUSY_SNAPSHOT",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_errors_have_the_codes_that_clients_test() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE t (a PRIMARY KEY); INSERT INTO t VALUES (1)")
            .unwrap();
        for (sql, code, extended) in [
            ("INSERT INTO t VALUES (1)", "SQLITE_CONSTRAINT", Some("SQLITE_CONSTRAINT_PRIMARYKEY")),
            ("SELEC 1", "SQL_PARSE_ERROR", None),
            ("SELECT missing FROM t", "SQL_INPUT_ERROR", None),
            ("SELECT * FROM nowhere", "SQLITE_ERROR", None),
        ] {
            let error = connection.execute(sql, ()).unwrap_err();
            let error = HranaError::from(&error);
            let found = (error.code.as_str(), error.extended_code.as_deref());
            assert_eq!(found, (code, extended), "{error:?}");
        }
    }
}
