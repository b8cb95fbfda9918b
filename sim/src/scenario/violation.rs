//! [`Violation`]: an invariant that does not hold: where, when, which rows, and what led there.

use std::fmt;

use rusqlite::{Connection, types::ValueRef};

use super::Invariant;
use crate::{clock::Nanos, oracle::shadow::Held, trace::seconds};

/// More rows are counted, but not shown.
const MAX_ROWS: usize = 10;

/// An invariant that does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Violation {
    /// Which one.
    pub(crate) invariant: String,
    /// Its place among the scenario's invariants.
    pub(super) number: usize,
    /// The machine, and what it is called.
    pub(super) machine: usize,
    pub(crate) node: String,
    /// When, since the clients began.
    pub(crate) at: Nanos,
    /// The moment, for people.
    pub(super) moment: &'static str,
    /// The names of the query's columns.
    pub(super) columns: Vec<String>,
    /// The first rows that it returned.
    pub(super) rows: Vec<Vec<Held>>,
    /// How many more there are.
    pub(super) more: usize,
    /// What led there, line by line; empty until the run was made once more to be explained.
    pub(crate) story: Vec<String>,
}

/// What a query returned.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<Vec<Held>>,
    pub(super) more: usize,
}

impl Found {
    /// Asks whether an invariant holds; what comes back is what violates it.
    pub(super) fn ask(invariant: &Invariant, reader: &Connection) -> rusqlite::Result<Self> {
        let mut statement = reader.prepare_cached(&invariant.sql)?;
        let columns = statement.column_names().map(str::to_owned).collect();
        let mut found = Self { columns, ..Self::default() };
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if found.rows.len() == MAX_ROWS {
                found.more += 1;
                continue;
            }
            let cells = (0..found.columns.len())
                .map(|place| row.get_ref(place).map(|value: ValueRef<'_>| Held::from(value)));
            found.rows.push(cells.collect::<Result<_, _>>()?);
        }
        Ok(found)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.rows.len() + self.more;
        let plural = if rows == 1 { "row" } else { "rows" };
        write!(
            f,
            "invariant {:?} violated on {} at {} s ({}): {rows} {plural}",
            self.invariant,
            self.node,
            seconds(self.at, 0),
            self.moment
        )
    }
}

impl Violation {
    /// The rows and the story, as lines.
    pub(crate) fn report(&self) -> Vec<String> {
        let mut table = vec![self.columns.clone()];
        table.extend(self.rows.iter().map(|row| row.iter().map(shown).collect()));
        let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max();
        let widths: Vec<usize> =
            (0..self.columns.len()).map(|column| width(column).unwrap_or(0)).collect();
        let mut lines = vec!["rows:".to_owned()];
        for row in &table {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            lines.push(format!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end()));
        }
        if self.more > 0 {
            lines.push(format!("  and {} more", self.more));
        }
        if !self.story.is_empty() {
            lines.push("what led there:".to_owned());
            lines.extend(self.story.iter().map(|line| format!("  {line}")));
        }
        lines
    }
}

/// A value as SQL would write it, cut short if it is long.
pub(super) fn shown(value: &Held) -> String {
    const LONGEST: usize = 40;
    match value {
        Held::Null => "NULL".to_owned(),
        Held::Integer(n) => n.to_string(),
        Held::Real(bits) => format!("{:?}", f64::from_bits(*bits)),
        Held::Text(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            let short: String = text.chars().take(LONGEST).collect();
            let dots = if short.len() < text.len() { "…" } else { "" };
            format!("'{}{dots}'", short.escape_debug())
        }
        Held::Blob(bytes) => format!("a blob of {} bytes", bytes.len()),
    }
}
