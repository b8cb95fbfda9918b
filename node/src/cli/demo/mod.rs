//! `littoral demo`: three nodes replicate real data, part, write against each other, and merge.
//!
//! Everything is real but the distance: the nodes share this process and its machine, and speak QUIC
//! with mutual TLS over loopback. The demo fails if a promise does not hold.

mod cluster;
mod dataset;
mod partition;
mod progress;

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use rusqlite::types::Value;
use serde_json::json;
use tokio::{sync::broadcast::error::RecvError, task::JoinSet, time::timeout};

use self::{
    cluster::Cluster,
    dataset::Rows,
    partition::{Case, Merged, part_and_merge},
    progress::Progress,
};
use super::{say, serve::Signals, table};
use crate::NodeHandle;

/// Flights per transaction while loading.
const LOAD_ROWS: usize = 250;
/// Flights that board: the counters that both edges increment.
const BOARDING: usize = 8;
/// Clients at each edge that increment at once.
const CLIENTS: usize = 25;
/// Increments by each client, each a transaction.
const INCREMENTS: usize = 8;
/// Writes whose way to the other edge is measured.
const MEASURED: u32 = 300;
/// How long a measured write may take.
const MEASURE_PATIENCE: Duration = Duration::from_secs(10);
/// Conflicts shown at the end.
const SHOWN: usize = 12;

/// Watch three nodes replicate real data, part, write against each other, and merge.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  littoral demo\n  littoral demo --keep\n  \
    littoral demo --rows 500 --json")]
pub(super) struct Demo {
    /// Leave the nodes running at the end, until Ctrl-C, to be tried with curl or a libSQL SDK.
    #[arg(long)]
    keep: bool,
    /// Load only the first N flights, of 4,334.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(100..))]
    rows: Option<u32>,
    /// One JSON object instead of text; with --keep, another one with the addresses of the nodes.
    #[arg(long)]
    json: bool,
}

impl Demo {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut signals = Signals::new()?;
        let directory = tempfile::Builder::new().prefix("littoral-demo-").tempdir()?;
        let began = Instant::now();
        let progress = Progress::new();
        let shown = async {
            let cluster = progress
                .step("starting an origin and two edges", Cluster::start(directory.path()))
                .await?;
            let report = self.show(&cluster, &progress).await?;
            if self.json {
                say(report.to_json(began.elapsed()))?;
            } else {
                report.print(began.elapsed())?;
            }
            anyhow::Ok(cluster)
        };
        let cluster = tokio::select! {
            cluster = shown => cluster?,
            () = signals.next() => bail!("stopped by a signal"),
        };
        if self.keep {
            if self.json {
                say(addresses(&cluster))?;
            } else {
                invite(&cluster)?;
            }
            signals.next().await;
        }
        cluster.stop().await?;
        directory.close().context("the temporary directory could not be removed")?;
        if !self.keep && !self.json {
            say(
                "\nThe nodes are stopped and their files removed; with --keep they stay, to be tried.",
            )?;
        }
        Ok(())
    }

    async fn show(&self, cluster: &Cluster, progress: &Progress) -> anyhow::Result<Report> {
        let limit = match self.rows {
            Some(rows) => usize::try_from(rows)?,
            None => usize::MAX,
        };
        let loaded = load(cluster, progress, limit).await?;
        let counted = progress
            .step("incrementing the same counters at both edges at once", count_together(cluster))
            .await?;
        let latency = measure(cluster, progress).await?;
        let merged = part_and_merge(cluster, progress).await?;
        Ok(Report { loaded, counted, latency, merged })
    }
}

// --- Loading.

struct Loaded {
    airports: usize,
    flights: usize,
    writing: Duration,
    equal_after: Duration,
}

async fn load(cluster: &Cluster, progress: &Progress, limit: usize) -> anyhow::Result<Loaded> {
    let airports = Rows::airports()?;
    for job in airports.jobs(LOAD_ROWS) {
        cluster.origin().write(job).await?;
    }
    let flights = Rows::flights(limit)?;
    let bar = progress.bar("loading flights through edge1", flights.rows.len());
    let began = Instant::now();
    for job in flights.jobs(LOAD_ROWS) {
        let (rows, _) = cluster.edge1().write(job).await?;
        bar.advance(rows);
    }
    let writing = began.elapsed();
    bar.finish();
    let (_, equal_after) =
        progress.step("waiting until all three files are equal", cluster.converge()).await?;
    Ok(Loaded { airports: airports.rows.len(), flights: flights.rows.len(), writing, equal_after })
}

// --- Counting together.

struct Counted {
    total: i64,
    writing: Duration,
}

async fn count_together(cluster: &Cluster) -> anyhow::Result<Counted> {
    let insert = format!(
        "INSERT INTO boarding (flight)
         SELECT DISTINCT carrier || flight FROM flights ORDER BY 1 LIMIT {BOARDING}"
    );
    cluster.edge1().write(move |tx| tx.execute(&insert, ())).await?;
    cluster.converge().await?;
    let began = Instant::now();
    tokio::try_join!(increment(cluster.edge1()), increment(cluster.edge2()))?;
    let writing = began.elapsed();
    cluster.converge().await?;
    let total = integer(cluster.edge2(), "SELECT sum(boarded) FROM boarding").await?;
    let committed = i64::try_from(2 * CLIENTS * INCREMENTS)?;
    ensure!(total == committed, "{committed} increments were committed, {total} arrived");
    Ok(Counted { total, writing })
}

/// Many clients at once, so that the node commits in groups.
async fn increment(node: &NodeHandle) -> anyhow::Result<()> {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let node = node.clone();
        clients.spawn(async move {
            for i in 0..INCREMENTS {
                let place = (client + i) % BOARDING;
                let update = format!(
                    "UPDATE boarding SET boarded = boarded + 1 WHERE flight =
                     (SELECT flight FROM boarding ORDER BY flight LIMIT 1 OFFSET {place})"
                );
                node.write(move |tx| tx.execute(&update, ())).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    Ok(())
}

// --- Measuring.

/// All sorted.
struct Latency {
    /// From the call at edge1 to its answer.
    answered: Vec<Duration>,
    /// From the call at edge1 until a query at edge2 returned the value.
    visible: Vec<Duration>,
}

/// One write after the other at edge1; the way leads over the origin to edge2.
async fn measure(cluster: &Cluster, progress: &Progress) -> anyhow::Result<Latency> {
    let bar =
        progress.bar("measuring the way from edge1 over the origin to edge2", MEASURED as usize);
    let (mut answered, mut visible) = (Vec::new(), Vec::new());
    for round in 1..=MEASURED {
        let mut news = cluster.edge2().news();
        let gate = format!("M{round}");
        let called = Instant::now();
        let write = async {
            let gate = gate.clone();
            let job = move |tx: &mut littoral::WriteTx<'_>| {
                tx.execute(
                    "UPDATE boarding SET gate = ? WHERE flight = (SELECT min(flight) FROM boarding)",
                    [&gate],
                )
            };
            cluster.edge1().write(job).await?;
            anyhow::Ok(called.elapsed())
        };
        let seen = async {
            while !gate_is(cluster.edge2(), &gate).await? {
                // Woken by the next applied entries; after missed news it is time to look, too.
                if let Err(RecvError::Closed) = news.recv().await {
                    bail!("edge2 has ended");
                }
            }
            Ok(called.elapsed())
        };
        let both = async { tokio::try_join!(write, seen) };
        let (one, other) =
            timeout(MEASURE_PATIENCE, both).await.context("a write did not arrive in time")??;
        answered.push(one);
        visible.push(other);
        bar.advance(1);
    }
    bar.finish();
    answered.sort_unstable();
    visible.sort_unstable();
    Ok(Latency { answered, visible })
}

async fn gate_is(node: &NodeHandle, gate: &str) -> anyhow::Result<bool> {
    let gate = gate.to_owned();
    let found = node.read(move |reader| {
        let mut query = reader
            .connection()
            .prepare_cached("SELECT gate IS ? FROM boarding ORDER BY flight LIMIT 1")?;
        query.query_row([&gate], |row| row.get(0))
    });
    Ok(found.await??)
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().unwrap_or_default()
}

// --- Reading.

async fn integer(node: &NodeHandle, sql: &str) -> anyhow::Result<i64> {
    let sql = sql.to_owned();
    let read = node.read(move |reader| reader.connection().query_row(&sql, (), |row| row.get(0)));
    Ok(read.await??)
}

async fn texts(node: &NodeHandle, sql: &'static str) -> anyhow::Result<Vec<Vec<String>>> {
    let read = node.read(move |reader| {
        let mut query = reader.connection().prepare(sql)?;
        let columns = query.column_count();
        let rows = query.query_map((), |row| {
            (0..columns).map(|column| Ok(shown(&row.get::<_, Value>(column)?))).collect()
        })?;
        rows.collect::<Result<Vec<Vec<String>>, rusqlite::Error>>()
    });
    Ok(read.await??)
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(n) => n.to_string(),
        Value::Real(x) => x.to_string(),
        Value::Text(text) => text.clone(),
        Value::Blob(bytes) => format!("{} bytes", bytes.len()),
    }
}

// --- The report.

struct Report {
    loaded: Loaded,
    counted: Counted,
    latency: Latency,
    merged: Merged,
}

impl Report {
    fn print(&self, took: Duration) -> anyhow::Result<()> {
        self.print_loaded()?;
        self.print_latency()?;
        self.print_merged()?;
        self.print_conflicts()?;
        self.print_digests()?;
        say(format_args!("\nall of it took {:.1} s", took.as_secs_f64()))
    }

    fn to_json(&self, took: Duration) -> serde_json::Value {
        let times = |sorted: &[Duration]| json!({ "p50_ms": in_ms(percentile(sorted, 50)), "p99_ms": in_ms(percentile(sorted, 99)) });
        let case = |case: &Case| {
            json!({
                "what": case.what, "edge1": case.edge1, "edge2": case.edge2, "merged": case.merged,
            })
        };
        let merged = &self.merged;
        let [origin, edge1, edge2] = &merged.digests;
        json!({
            "airports": self.loaded.airports,
            "flights": self.loaded.flights,
            "flights_ms": in_ms(self.loaded.writing),
            "increments": self.counted.total,
            "increments_ms": in_ms(self.counted.writing),
            "answered": times(&self.latency.answered),
            "visible": times(&self.latency.visible),
            "merged": merged.cases.iter().map(case).collect::<Vec<_>>(),
            "healed_ms": in_ms(merged.healed_after),
            "conflicts": merged.conflicts.len(),
            "equal": origin.all == edge1.all && edge1.all == edge2.all,
            "took_ms": in_ms(took),
        })
    }

    fn print_loaded(&self) -> anyhow::Result<()> {
        let Loaded { airports, flights, writing, equal_after } = &self.loaded;
        let rate = *flights as f64 / writing.as_secs_f64();
        say(format_args!(
            "\n{airports} airports written at the origin, {flights} flights at edge1 in transactions of \
             {LOAD_ROWS}: {rate:.0} rows/s, each commit on disk before its answer; all three files \
             equal {} after the last of them.",
            ms(*equal_after)
        ))?;
        let Counted { total, writing } = &self.counted;
        say(format_args!(
            "{total} increments of {BOARDING} counters, half of them at each edge by {CLIENTS} clients \
             at once: {:.0} transactions/s, every one of them counted once on every node.",
            *total as f64 / writing.as_secs_f64()
        ))
    }

    fn print_latency(&self) -> anyhow::Result<()> {
        say(format_args!(
            "\nFrom a write at edge1 to edge2, over the origin: {MEASURED} writes, one after the other"
        ))?;
        let row = |what: &str, sorted: &[Duration]| {
            vec![what.to_owned(), ms(percentile(sorted, 50)), ms(percentile(sorted, 99))]
        };
        print_table(
            &["from the call until", "p50", "p99"],
            &[
                row("edge1 answers: committed and synced to disk", &self.latency.answered),
                row("a query at edge2 returns the value", &self.latency.visible),
            ],
        )?;
        say(
            "Three nodes in one process on one machine: what the software costs, with QUIC, TLS and syncs \
             to the disk of the temporary directory, and without a network's distance.",
        )
    }

    fn print_merged(&self) -> anyhow::Result<()> {
        say(format_args!(
            "\nWhile edge2 was cut off; all files were equal {} after its links could come back",
            ms(self.merged.healed_after)
        ))?;
        let rows: Vec<Vec<String>> = self
            .merged
            .cases
            .iter()
            .map(|case| {
                vec![
                    case.what.to_owned(),
                    case.edge1.to_owned(),
                    case.edge2.to_owned(),
                    case.merged.clone(),
                ]
            })
            .collect();
        print_table(&["both wrote", "edge1", "edge2", "merged to"], &rows)
    }

    fn print_conflicts(&self) -> anyhow::Result<()> {
        let conflicts = &self.merged.conflicts;
        say(format_args!(
            "\n{} discarded values, listed in littoral_conflicts, so that nothing is lost silently",
            conflicts.len()
        ))?;
        let shown = &conflicts[..conflicts.len().min(SHOWN)];
        print_table(&["rule", "row", "column", "kept", "by", "lost", "by"], shown)
    }

    fn print_digests(&self) -> anyhow::Result<()> {
        say("\nRows of all replicated tables, hashed in key order")?;
        let [origin, edge1, edge2] = &self.merged.digests;
        let rows: Vec<Vec<String>> = origin
            .tables
            .iter()
            .zip(edge1.tables.iter().zip(&edge2.tables))
            .map(|((name, a), ((_, b), (_, c)))| {
                let equal = if a == b && b == c { "equal" } else { "DIFFERENT" };
                vec![name.clone(), short(a), short(b), short(c), equal.to_owned()]
            })
            .collect();
        print_table(&["table", "origin", "edge1", "edge2", ""], &rows)
    }
}

fn short(digest: &littoral::Digest) -> String {
    digest.0.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn ms(duration: Duration) -> String {
    format!("{:.2} ms", in_ms(duration))
}

fn in_ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn print_table(heading: &[&str], rows: &[Vec<String>]) -> anyhow::Result<()> {
    let heading: Vec<String> = heading.iter().map(|cell| (*cell).to_owned()).collect();
    for line in table::lines(&heading, rows) {
        say(format_args!("  {line}"))?;
    }
    Ok(())
}

/// Where the nodes are while they run.
fn addresses(cluster: &Cluster) -> serde_json::Value {
    let address = |node: &crate::Node| {
        json!({
            "node": node.handle().identity().node.as_str(),
            "http": node.http_address().map(|address| format!("http://{address}")),
        })
    };
    cluster.nodes.iter().map(address).collect()
}

/// What can be done with the nodes while they run.
fn invite(cluster: &Cluster) -> anyhow::Result<()> {
    say("\nThe nodes are running; Ctrl-C ends them and removes their files.")?;
    let mut first = None;
    for node in &cluster.nodes {
        let Some(address) = node.http_address() else { continue };
        say(format_args!("  {:<7} http://{address}", node.handle().identity().node.as_str()))?;
        if node.handle().identity().node.as_str() == "edge1" {
            first = Some(address);
        }
    }
    let address = first.context("edge1 serves clients")?;
    say(format_args!(
        "\n  littoral sql --url http://{address} -c \"SELECT * FROM boarding\"\n  \
         littoral status --url http://{address}\n  \
         curl -s http://{address}/v2/pipeline -d '{{\"requests\":[{{\"type\":\"execute\",\
         \"stmt\":{{\"sql\":\"SELECT count(*) FROM flights\"}}}},{{\"type\":\"close\"}}]}}'\n\n  \
         import {{ createClient }} from \"@libsql/client\";\n  \
         const edge = createClient({{ url: \"http://{address}\" }});\n  \
         console.log(await edge.execute(\"SELECT * FROM boarding\"));"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_taken_from_the_sorted() {
        let sorted: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&sorted, 50), Duration::from_millis(51));
        assert_eq!(percentile(&sorted, 99), Duration::from_millis(100));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}
