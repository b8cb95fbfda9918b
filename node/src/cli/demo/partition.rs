//! The partition: one edge loses its links, both sides write to the same rows, the links come back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rusqlite::types::Value;

use super::{
    BOARDING,
    cluster::{Cluster, Digests},
    integer,
    progress::Progress,
    texts,
};
use crate::NodeHandle;

/// What was written on both sides and what came of it.
pub(super) struct Merged {
    pub(super) cases: Vec<Case>,
    /// From the moment the links may come back until all files are equal.
    pub(super) healed_after: Duration,
    pub(super) digests: Digests,
    /// The conflicts that the origin lists: rule, row, column, kept, by whom, lost, by whom.
    pub(super) conflicts: Vec<Vec<String>>,
}

/// One row that both sides wrote.
pub(super) struct Case {
    pub(super) what: &'static str,
    pub(super) edge1: &'static str,
    pub(super) edge2: &'static str,
    pub(super) merged: String,
}

pub(super) async fn part_and_merge(
    cluster: &Cluster,
    progress: &Progress,
) -> anyhow::Result<Merged> {
    let flights = flights(cluster.origin()).await?;
    let counted = format!("SELECT boarded FROM boarding WHERE flight = '{}'", flights[2]);
    let before = integer(cluster.edge1(), &counted).await?;
    progress
        .step("cutting edge2 off, then writing on both sides", async {
            cluster.nodes[2].suspend_links();
            cluster.until_alone(cluster.edge2()).await?;
            write_at_edge1(cluster.edge1(), &flights).await?;
            write_at_edge2(cluster.edge2(), &flights).await?;
            let parted = (
                integer(cluster.edge1(), &counted).await? - before,
                integer(cluster.edge2(), &counted).await? - before,
            );
            ensure!(parted == (3, 4), "the sides saw {parted:?} boarders while they were parted");
            Ok(())
        })
        .await?;
    let (digests, healed_after) = progress
        .step("giving edge2 its links back, waiting until all files are equal", async {
            let began = Instant::now();
            cluster.nodes[2].resume_links();
            let (digests, _) = cluster.converge().await?;
            Ok((digests, began.elapsed()))
        })
        .await?;

    let merged = Merges::read(cluster.edge2(), &flights).await?;
    merged.check(before)?;
    let conflicts = texts(
        cluster.origin(),
        "SELECT rule, \"row\", \"column\", kept, kept_by, lost, lost_by FROM littoral_conflicts
         WHERE \"table\" = 'boarding' ORDER BY id",
    )
    .await?;
    Ok(Merged { cases: merged.cases(), healed_after, digests, conflicts })
}

async fn flights(node: &NodeHandle) -> anyhow::Result<Vec<String>> {
    let rows = texts(node, "SELECT flight FROM boarding ORDER BY flight").await?;
    ensure!(rows.len() == BOARDING, "{} flights board, expected {BOARDING}", rows.len());
    Ok(rows.into_iter().flatten().collect())
}

/// The new row that both sides insert under one key.
const NEW: &str = "EXTRA1";

async fn write_at_edge1(node: &NodeHandle, flights: &[String]) -> anyhow::Result<()> {
    run(
        node,
        [
            ("UPDATE boarding SET gate = 'B7' WHERE flight = ?", flights[0].as_str()),
            ("UPDATE boarding SET remark = 'delayed' WHERE flight = ?", &flights[1]),
            ("UPDATE boarding SET boarded = boarded + 3 WHERE flight = ?", &flights[2]),
            ("DELETE FROM boarding WHERE flight = ?", &flights[3]),
            ("INSERT INTO boarding VALUES (?, 'A1', 'first crew', 2)", NEW),
        ],
    )
    .await
}

async fn write_at_edge2(node: &NodeHandle, flights: &[String]) -> anyhow::Result<()> {
    run(
        node,
        [
            ("UPDATE boarding SET remark = 'boarding' WHERE flight = ?", flights[0].as_str()),
            ("UPDATE boarding SET remark = 'on time' WHERE flight = ?", &flights[1]),
            ("UPDATE boarding SET boarded = boarded + 4 WHERE flight = ?", &flights[2]),
            ("UPDATE boarding SET gate = 'C3' WHERE flight = ?", &flights[3]),
            ("INSERT INTO boarding VALUES (?, 'D4', 'second crew', 5)", NEW),
        ],
    )
    .await
}

/// Each statement is a transaction of its own.
async fn run(node: &NodeHandle, statements: [(&'static str, &str); 5]) -> anyhow::Result<()> {
    for (sql, flight) in statements {
        let flight = flight.to_owned();
        let (rows, _) = node.write(move |tx| tx.execute(sql, [&flight])).await?;
        ensure!(rows == 1, "{rows} rows changed: {sql}");
    }
    Ok(())
}

/// The rows after the merge.
struct Merges {
    columns: (Value, Value),
    register: Value,
    counter: i64,
    deleted: bool,
    inserted: (Value, Value, i64),
}

impl Merges {
    async fn read(node: &NodeHandle, flights: &[String]) -> anyhow::Result<Self> {
        let flights = flights.to_owned();
        let read = node.read(move |reader| {
            let mut query = reader
                .connection()
                .prepare("SELECT gate, remark, boarded FROM boarding WHERE flight = ?")?;
            let mut row = |flight: &str| {
                query.query_row([flight], |row| {
                    Ok((row.get::<_, Value>(0)?, row.get::<_, Value>(1)?, row.get::<_, i64>(2)?))
                })
            };
            let (gate, remark, _) = row(&flights[0])?;
            Ok::<_, rusqlite::Error>(Self {
                columns: (gate, remark),
                register: row(&flights[1])?.1,
                counter: row(&flights[2])?.2,
                deleted: matches!(row(&flights[3]), Err(rusqlite::Error::QueryReturnedNoRows)),
                inserted: row(NEW)?,
            })
        });
        read.await?.context("reading the merged rows")
    }

    /// What the merge rules promise whatever the order in which writes arrived.
    fn check(&self, before: i64) -> anyhow::Result<()> {
        let text = |text: &str| Value::Text(text.to_owned());
        ensure!(self.columns == (text("B7"), text("boarding")), "two columns: {:?}", self.columns);
        ensure!(
            self.register == text("delayed") || self.register == text("on time"),
            "one column: {:?}",
            self.register
        );
        ensure!(self.counter == before + 7, "the counter is {}, not {before} + 7", self.counter);
        ensure!(self.deleted, "the deleted row is back");
        ensure!(self.inserted.2 == 7, "the counter of the new row is {}", self.inserted.2);
        Ok(())
    }

    fn cases(&self) -> Vec<Case> {
        let shown = super::shown;
        vec![
            Case {
                what: "two columns of a row",
                edge1: "gate = B7",
                edge2: "remark = boarding",
                merged: format!(
                    "both: gate = {}, remark = {}",
                    shown(&self.columns.0),
                    shown(&self.columns.1)
                ),
            },
            Case {
                what: "one column",
                edge1: "remark = delayed",
                edge2: "remark = on time",
                merged: format!("the later: remark = {}", shown(&self.register)),
            },
            Case {
                what: "one counter",
                edge1: "boarded + 3",
                edge2: "boarded + 4",
                merged: format!("the sum: + 7, boarded = {}", self.counter),
            },
            Case {
                what: "delete and update",
                edge1: "DELETE",
                edge2: "gate = C3",
                merged: "the delete".to_owned(),
            },
            Case {
                what: "one new key",
                edge1: "A1, first crew, 2",
                edge2: "D4, second crew, 5",
                merged: format!(
                    "one row: {}, {}, {}",
                    shown(&self.inserted.0),
                    shown(&self.inserted.1),
                    self.inserted.2
                ),
            },
        ]
    }
}
