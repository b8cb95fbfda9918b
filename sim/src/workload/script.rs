//! [`Script`]: statements that a client wants run as one transaction, here or, as bytes, at the origin.

use littoral::{ProgramJob, WriteError, WriteTx};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params_from_iter, types::Value};

use super::describe_value;

/// Its bytes begin with this; those of a [`Program`](super::Program) begin with its kind.
const TAG: u8 = 0xf0;

/// Statements with their parameters. A SELECT gives the first value of its first row, or NULL.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Script {
    steps: Vec<(String, Vec<Value>)>,
}

impl Script {
    /// These statements.
    pub(crate) const fn of(steps: Vec<(String, Vec<Value>)>) -> Self {
        Self { steps }
    }

    /// Whether it can do nothing but read, so that a client tries it on a reader.
    pub(crate) fn may_read(&self) -> bool {
        self.steps.iter().all(|(sql, _)| is_select(sql))
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        let step = |(sql, values): &(String, Vec<Value>)| {
            let values: Vec<String> = values.iter().map(describe_value).collect();
            format!("{sql} [{}]", values.join(", "))
        };
        self.steps.iter().map(step).collect::<Vec<_>>().join("; ")
    }

    /// Runs it on a reader, statement by statement.
    pub(crate) fn read(&self, reader: &Connection) -> rusqlite::Result<Vec<Value>> {
        let step = |(sql, values): &(String, Vec<Value>)| {
            let mut query = reader.prepare_cached(sql)?;
            let found = query.query_row(params_from_iter(values.iter()), |row| row.get(0));
            Ok(found.optional()?.unwrap_or(Value::Null))
        };
        self.steps.iter().map(step).collect()
    }

    /// Runs it in a transaction that writes.
    pub(crate) fn run(&self, tx: &mut WriteTx<'_>) -> Result<Vec<Value>, WriteError> {
        let mut given = Vec::new();
        for (sql, values) in &self.steps {
            let values = params_from_iter(values.iter());
            if is_select(sql) {
                given.push(match tx.query_row(sql, values, |row| row.get(0)) {
                    Err(WriteError::Sqlite(rusqlite::Error::QueryReturnedNoRows)) => Value::Null,
                    found => found?,
                });
            } else {
                tx.execute(sql, values)?;
            }
        }
        Ok(given)
    }

    /// The job that the origin makes of it.
    pub(crate) fn into_program_job(self) -> ProgramJob {
        Box::new(move |tx: &mut WriteTx<'_>| Ok(encode_values(&self.run(tx)?)))
    }

    /// As it is sent.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![TAG];
        for (sql, values) in &self.steps {
            put_bytes(&mut bytes, sql.as_bytes());
            put_bytes(&mut bytes, &encode_values(values));
        }
        bytes
    }

    /// As it was sent; `None` if it is something else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(&[TAG])?;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let sql = String::from_utf8(take_bytes(&mut rest)?.to_vec()).ok()?;
            steps.push((sql, decode_values(take_bytes(&mut rest)?)?));
        }
        Some(Self { steps })
    }
}

/// Why a job or a program has failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failed {
    /// A constraint of the schema, or one of its triggers, has refused it.
    pub(crate) constraint: bool,
    /// For people.
    pub(crate) why: String,
}

impl Failed {
    /// What an error says.
    pub(crate) fn of(error: &WriteError) -> Self {
        let constraint = matches!(error, WriteError::Sqlite(error)
            if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation));
        Self { constraint, why: error.to_string() }
    }

    /// As the origin says it to who has sent the program.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.constraint)];
        bytes.extend(self.why.as_bytes());
        bytes
    }

    /// As it was said.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let (constraint, why) = bytes.split_first().unwrap_or((&0, &[]));
        Self { constraint: *constraint == 1, why: String::from_utf8_lossy(why).into_owned() }
    }
}

fn is_select(sql: &str) -> bool {
    sql.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("SELECT"))
}

/// Values, as an answer carries them.
fn encode_values(values: &[Value]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in values {
        let (kind, payload) = match value {
            Value::Null => (0, Vec::new()),
            Value::Integer(n) => (1, n.to_be_bytes().to_vec()),
            Value::Real(r) => (2, r.to_bits().to_be_bytes().to_vec()),
            Value::Text(text) => (3, text.clone().into_bytes()),
            Value::Blob(blob) => (4, blob.clone()),
        };
        bytes.push(kind);
        put_bytes(&mut bytes, &payload);
    }
    bytes
}

/// The values that an answer carries; `None` if it is something else.
pub(crate) fn decode_values(mut rest: &[u8]) -> Option<Vec<Value>> {
    let mut values = Vec::new();
    while let Some((kind, after)) = rest.split_first() {
        rest = after;
        let payload = take_bytes(&mut rest)?;
        values.push(match kind {
            0 => Value::Null,
            1 => Value::Integer(i64::from_be_bytes(payload.try_into().ok()?)),
            2 => Value::Real(f64::from_bits(u64::from_be_bytes(payload.try_into().ok()?))),
            3 => Value::Text(String::from_utf8(payload.to_vec()).ok()?),
            4 => Value::Blob(payload.to_vec()),
            _ => return None,
        });
    }
    Some(values)
}

fn put_bytes(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend((part.len() as u64).to_be_bytes());
    bytes.extend(part);
}

fn take_bytes<'b>(rest: &mut &'b [u8]) -> Option<&'b [u8]> {
    let (length, after) = rest.split_at_checked(8)?;
    let length = u64::from_be_bytes(length.try_into().ok()?);
    let (part, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = after;
    Some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_comes_as_it_was_sent() {
        let values = vec![
            Value::Null,
            Value::Integer(i64::MIN),
            Value::Real(-0.0),
            Value::Text("zwölf".to_owned()),
            Value::Blob(vec![0, 255]),
        ];
        let script = Script::of(vec![
            ("select ?".to_owned(), values.clone()),
            ("DELETE FROM t".to_owned(), Vec::new()),
        ]);
        let bytes = script.encode();
        assert_eq!(Script::decode(&bytes), Some(script.clone()));
        assert!(!script.may_read());
        assert_eq!(decode_values(&encode_values(&values)), Some(values));
        for end in 0..bytes.len() {
            let cut = Script::decode(&bytes[..end]);
            assert!(cut.is_none() || cut.is_some_and(|cut| cut.steps.len() < 2), "{end}");
        }
    }
}
