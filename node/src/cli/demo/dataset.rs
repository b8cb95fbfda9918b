//! The data of the demo, compiled in: see `node/demo/README.md` for where it comes from.

use std::io::Read as _;

use anyhow::{Context as _, bail};
use flate2::read::GzDecoder;
use littoral::{WriteError, WriteTx};
use rusqlite::types::Value;

pub(super) const SCHEMA: &str = include_str!("../../../demo/schema.sql");
pub(super) const POLICIES: &str = include_str!("../../../demo/policies.toml");
const AIRPORTS: &str = include_str!("../../../demo/airports.csv");
const FLIGHTS: &[u8] = include_bytes!("../../../demo/flights.csv.gz");

/// Rows of one table, and the statement that inserts one.
#[derive(Debug)]
pub(super) struct Rows {
    insert: String,
    pub(super) rows: Vec<Vec<Value>>,
}

impl Rows {
    pub(super) fn airports() -> anyhow::Result<Self> {
        Self::parse("airports", AIRPORTS, usize::MAX)
    }

    /// The first `limit` flights.
    pub(super) fn flights(limit: usize) -> anyhow::Result<Self> {
        let mut text = String::new();
        GzDecoder::new(FLIGHTS).read_to_string(&mut text)?;
        Self::parse("flights", &text, limit)
    }

    /// The fields of these files hold neither commas nor quotes.
    fn parse(table: &str, csv: &str, limit: usize) -> anyhow::Result<Self> {
        let mut lines = csv.lines();
        let columns = lines.next().context("the file is empty")?;
        let count = columns.split(',').count();
        let rows: Vec<Vec<Value>> =
            lines.take(limit).map(|line| line.split(',').map(value).collect()).collect();
        if let Some(row) = rows.iter().find(|row| row.len() != count) {
            bail!("a row of {table} has {} fields, {count} are expected", row.len());
        }
        let slots = vec!["?"; count].join(", ");
        Ok(Self { insert: format!("INSERT INTO {table} ({columns}) VALUES ({slots})"), rows })
    }

    /// A write job for each part of at most `size` rows.
    pub(super) fn jobs(
        &self,
        size: usize,
    ) -> impl Iterator<Item = impl FnMut(&mut WriteTx<'_>) -> Result<usize, WriteError> + Send + use<>>
    {
        self.rows.chunks(size.max(1)).map(|rows| {
            let (insert, rows) = (self.insert.clone(), rows.to_vec());
            move |tx: &mut WriteTx<'_>| {
                let mut statement = tx.prepare(&insert)?;
                for row in &rows {
                    statement.execute(rusqlite::params_from_iter(row))?;
                }
                Ok(rows.len())
            }
        })
    }
}

fn value(field: &str) -> Value {
    if field.is_empty() {
        return Value::Null;
    }
    if let Ok(n) = field.parse::<i64>() {
        return Value::Integer(n);
    }
    match field.parse::<f64>() {
        // Tail numbers such as 1E7 or INF would be numbers too.
        Ok(x) if field.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'-') => {
            Value::Real(x)
        }
        _ => Value::Text(field.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_fits_the_schema() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        for (table, rows, expected) in [
            ("airports", Rows::airports().unwrap(), 93),
            ("flights", Rows::flights(usize::MAX).unwrap(), 4334),
        ] {
            for row in &rows.rows {
                connection.execute(&rows.insert, rusqlite::params_from_iter(row)).unwrap();
            }
            let count = format!("SELECT count(*) FROM {table}");
            let count: i64 = connection.query_row(&count, (), |row| row.get(0)).unwrap();
            assert_eq!(count, expected);
        }
        let types: String = connection
            .query_row(
                "SELECT group_concat(DISTINCT typeof(tailnum)) FROM flights ORDER BY 1",
                (),
                |row| row.get(0),
            )
            .unwrap();
        assert!(!types.contains("integer") && !types.contains("real"), "{types}");
    }

    #[test]
    fn the_policies_fit_the_schema() {
        let path = std::path::Path::new("policies.toml");
        let policies = crate::config::parse_policies(POLICIES, path).unwrap();
        for table in policies.keys() {
            assert!(SCHEMA.contains(&format!("CREATE TABLE {table} (")), "{table}");
        }
    }
}
