//! The SQL function `littoral_policy(table, policy, options)`: its name, and what its arguments say.
//!
//! SQLite calls it in the middle of a statement, where the schema cannot change. It takes its arguments
//! down; when the statement has run, they are carried out by `db`.

use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::{Connection, functions::FunctionFlags, types::ValueRef};

use crate::{
    error::WriteError,
    policy::{Consistency, TablePolicy, Writers},
};

/// Its name.
pub(crate) const FUNCTION: &str = "littoral_policy";

/// The calls of the statement that runs.
#[derive(Debug, Default, Clone)]
pub(crate) struct Calls(Arc<Mutex<Vec<Call>>>);

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) table: String,
    policy: String,
    /// A JSON object, or nothing.
    options: Option<String>,
}

impl Calls {
    /// Makes the function known to a connection. It returns its first argument.
    pub(crate) fn install(&self, conn: &Connection) -> rusqlite::Result<()> {
        for arguments in [2, 3] {
            let calls = self.clone();
            let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY;
            conn.create_scalar_function(FUNCTION, arguments, flags, move |context| {
                let options = if context.len() < 3 || context.get_raw(2) == ValueRef::Null {
                    None
                } else {
                    Some(context.get(2)?)
                };
                let call = Call { table: context.get(0)?, policy: context.get(1)?, options };
                let table = call.table.clone();
                calls.0.lock().push(call);
                Ok(table)
            })?;
        }
        Ok(())
    }

    /// The calls since this was asked last.
    pub(crate) fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.0.lock())
    }
}

impl Call {
    /// What it declares. Any connection serves to read its JSON.
    ///
    /// # Errors
    /// Which word or option there is not, and which there are.
    pub(crate) fn policy(&self, conn: &Connection) -> Result<TablePolicy, WriteError> {
        let wrong = |what: String| WriteError::Policy(format!("{FUNCTION}(): {what}"));
        let consistency: Consistency =
            self.policy.parse().map_err(|error| wrong(format!("{error}")))?;
        let mut policy = TablePolicy { consistency, ..TablePolicy::default() };
        let Some(options) = &self.options else { return Ok(policy) };
        let is_object: bool = conn.query_row(
            "SELECT CASE WHEN json_valid(?1) THEN json_type(?1) = 'object' ELSE 0 END",
            [options],
            |row| row.get(0),
        )?;
        if !is_object {
            return Err(wrong(format!("its options must be a JSON object, not {options}")));
        }
        let mut statement = conn.prepare("SELECT key, type, atom, value FROM json_each(?)")?;
        let mut rows = statement.query([options])?;
        let (mut max_lag, mut on_stale, mut on_unreachable) = (None, None, None);
        while let Some(row) = rows.next()? {
            let (key, kind): (String, String) = (row.get(0)?, row.get(1)?);
            let word = |index| match row.get_ref(index) {
                Ok(ValueRef::Text(text)) if kind == "text" => {
                    Ok(String::from_utf8_lossy(text).into_owned())
                }
                _ => Err(wrong(format!("option {key:?} must be a string"))),
            };
            match key.as_str() {
                "writers" => {
                    policy.writers = word(2)?.parse().map_err(|error| wrong(format!("{error}")))?;
                }
                "key" => match word(2)?.as_str() {
                    "explicit" => policy.explicit_key = true,
                    other => {
                        return Err(wrong(format!("unknown key {other:?}, expected explicit")));
                    }
                },
                "max_lag_ms" => {
                    let ms = (kind == "integer").then(|| row.get::<_, i64>(2)).transpose()?;
                    let ms = ms.and_then(|ms| u64::try_from(ms).ok());
                    let what = "option \"max_lag_ms\" must be a whole number of milliseconds";
                    max_lag = Some(ms.ok_or_else(|| wrong(what.to_owned()))?);
                }
                "on_stale" => {
                    let word = word(2)?.parse().map_err(|error| wrong(format!("{error}")))?;
                    on_stale = Some(word);
                }
                "on_unreachable" => {
                    let word = word(2)?.parse().map_err(|error| wrong(format!("{error}")))?;
                    on_unreachable = Some(word);
                }
                "columns" if kind == "object" => {
                    let types: Vec<(String, String)> = conn
                        .prepare("SELECT key, CAST(atom AS TEXT) FROM json_each(?)")?
                        .query_map([row.get::<_, String>(3)?], |row| {
                            Ok((row.get(0)?, row.get::<_, Option<String>>(1)?.unwrap_or_default()))
                        })?
                        .collect::<Result<_, _>>()?;
                    for (column, merge) in types {
                        policy
                            .declare_column(&column, &merge)
                            .map_err(|error| wrong(format!("column {column:?}: {error}")))?;
                    }
                }
                "columns" => return Err(wrong("option \"columns\" must be an object".to_owned())),
                _ => {
                    return Err(wrong(format!(
                        "unknown option {key:?}, expected one of writers, key, max_lag_ms, on_stale, \
                         on_unreachable, columns"
                    )));
                }
            }
        }
        policy.declare_max_lag(max_lag, on_stale).map_err(wrong)?;
        policy.declare_on_unreachable(on_unreachable).map_err(wrong)?;
        if consistency == Consistency::OriginStrong && policy.writers == Writers::Any {
            return Err(wrong(
                "\"origin-strong\" implies writers = \"origin\", which \"any\" contradicts"
                    .to_owned(),
            ));
        }
        Ok(policy)
    }
}
