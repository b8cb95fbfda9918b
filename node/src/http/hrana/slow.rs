//! The log of slow statements: which one, on which tables, how long it ran and where it waited. It shows no
//! values. What is measured for it goes into spans, too.

use std::{
    collections::BTreeSet,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use littoral::Reader;
use parking_lot::Mutex;
use tracing::warn;

use super::{execute::Run, outcome::Outcome, program::Action, redact::without_values};
use crate::otlp::{self, Steps};

/// Where the time of a step goes.
#[derive(Debug, Default)]
pub(super) struct Spent(Mutex<Parts>);

#[derive(Debug, Default, Clone, Copy)]
struct Parts {
    /// Where it ran last.
    place: &'static str,
    /// How long it waited until this node was new enough.
    for_lag: Duration,
}

impl Spent {
    /// It runs here.
    pub(super) fn at(&self, place: &'static str) {
        self.0.lock().place = place;
    }

    /// It waited since then until this node was new enough.
    pub(super) fn waited_for_lag(&self, since: Instant) {
        self.0.lock().for_lag += since.elapsed();
    }
}

impl Run<'_> {
    /// Logs the steps from `first` on, which ran together, if they were slow, and tells them to a collector of
    /// spans.
    pub(super) fn account(&mut self, first: usize, took: Duration) {
        let parts = std::mem::take(&mut *self.spent.0.lock());
        let is_slow = self.node.slow().is_some_and(|slow| took >= slow);
        if is_slow {
            self.node.meter().slow_statements.fetch_add(1, Ordering::Relaxed);
        } else if !otlp::is_on() {
            return;
        }
        let mut slowest: Option<(&str, f64)> = None;
        let (mut statements, mut rows, mut affected, mut ran_ms) = (0, 0, 0, 0.0);
        let mut failed = "";
        for (step, outcome) in self.outcomes.iter().enumerate().skip(first) {
            let Action::Run(statement) = &self.program.steps[step].action else { continue };
            let mut own = 0.0;
            match outcome {
                Outcome::Skipped => continue,
                Outcome::Rows(result) => {
                    rows += result.rows.len();
                    affected += result.affected_row_count;
                    own = result.query_duration_ms;
                }
                Outcome::Error(error) => failed = &error.code,
                Outcome::Sent | Outcome::Described(_) | Outcome::Autocommit(_) => {}
            }
            statements += 1;
            ran_ms += own;
            // A word like COMMIT tells less than what it commits.
            if slowest.is_none_or(|(_, slowest)| own > slowest) {
                slowest = Some((&statement.sql, own));
            }
        }
        let Some((sql, _)) = slowest else { return };
        let steps = Steps {
            place: parts.place,
            statements,
            rows,
            affected,
            failed,
            for_lag: parts.for_lag,
        };
        otlp::tell(&steps, took);
        if !is_slow {
            return;
        }
        let took_ms = took.as_secs_f64() * 1e3;
        let lag_ms = parts.for_lag.as_secs_f64() * 1e3;
        let line = Line {
            place: parts.place,
            statements,
            rows,
            affected,
            failed: failed.to_owned(),
            took_ms,
            ran_ms,
            lag_ms,
        };
        // What it touches is looked up beside the client's request.
        let (node, sql) = (self.node.clone(), sql.to_owned());
        tokio::spawn(async move {
            let looked = node.read_as(None, move |reader| describe(reader, &sql)).await;
            // Without a connection there is no telling names from values.
            let (statement, tables) = looked.unwrap_or_default();
            line.log(&statement, &tables);
        });
    }
}

struct Line {
    place: &'static str,
    statements: usize,
    rows: usize,
    affected: u64,
    failed: String,
    took_ms: f64,
    ran_ms: f64,
    lag_ms: f64,
}

impl Line {
    fn log(&self, statement: &str, tables: &str) {
        let waited_ms = (self.took_ms - self.ran_ms - self.lag_ms).max(0.0);
        warn!(
            statement,
            tables,
            statements = self.statements,
            rows = self.rows,
            affected = self.affected,
            failed = self.failed,
            took_ms = format_args!("{:.1}", self.took_ms),
            ran_ms = format_args!("{:.1}", self.ran_ms),
            waited_ms = format_args!("{waited_ms:.1}"),
            waited_for_lag_ms = format_args!("{:.1}", self.lag_ms),
            at = self.place,
            "a slow statement"
        );
    }
}

/// The statement without its values, and the tables that it touches. In one that cannot be prepared nobody
/// can tell which words are values.
fn describe(reader: &Reader, sql: &str) -> (String, String) {
    let Ok(touched) = reader.touches(sql) else {
        return ("(one that cannot be prepared)".to_owned(), String::new());
    };
    let mut known: BTreeSet<String> =
        touched.iter().map(|touched| touched.table.to_lowercase()).collect();
    for touched in &touched {
        let mut names = || -> rusqlite::Result<()> {
            let mut asked = reader
                .connection()
                .prepare_cached("SELECT lower(name) FROM pragma_table_xinfo(?)")?;
            let mut rows = asked.query([&touched.table])?;
            while let Some(row) = rows.next()? {
                known.insert(row.get(0)?);
            }
            Ok(())
        };
        // What is not known is left out.
        if names().is_err() {
            break;
        }
    }
    let tables: Vec<&str> = touched.iter().map(|touched| touched.table.as_str()).collect();
    (without_values(sql, &known), tables.join(", "))
}
