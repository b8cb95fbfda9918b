//! The part of `GET /metrics` that the node counts itself: how long things take, what waits, how far peers and
//! tables are.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use littoral::{Consistency, MaxLag, OnStale, OnUnreachable, Status, TablePolicy};

use super::metrics::Page;
use crate::runtime::{BOUNDS_US, Histogram, LinkMeter, Meter};

/// Adds it to the page.
pub(super) fn add(page: &mut Page, status: &Status, meter: &Meter) {
    for (name, help, histogram) in [
        (
            "littoral_commit_seconds",
            "How long write jobs took to be committed and durable, waiting included",
            &meter.commits,
        ),
        ("littoral_read_seconds", "How long reads took, waiting included", &meter.reads),
        (
            "littoral_forwarded_seconds",
            "How long requests to the origin took until they were answered or given up",
            &meter.forwarded,
        ),
        ("littoral_sync_seconds", "How long syncs of the WAL took", &meter.syncs),
    ] {
        add_histogram(page, name, help, histogram);
    }
    let name = "littoral_slow_statements_total";
    page.metric(name, "Statements that took longer than http.slow_statement_ms", "counter");
    page.line(name, "", meter.slow_statements.load(Ordering::Relaxed));
    let name = "littoral_spans_dropped_total";
    page.metric(name, "Spans that no collector of OpenTelemetry was told of", "counter");
    page.line(name, "", meter.spans_dropped.load(Ordering::Relaxed));
    page.gauge(
        "littoral_writes_waiting",
        "Write jobs that are not done",
        meter.writes_waiting.now(),
    );
    page.gauge(
        "littoral_reads_waiting",
        "Reads that wait for a connection",
        meter.reads_waiting.now(),
    );
    page.gauge(
        "littoral_frontier_held_seconds",
        "How long ago the oldest entry was written that a member has not acknowledged",
        held(status).as_secs(),
    );
    add_links(page, status, meter);
    add_tables(page, status);
}

fn add_histogram(page: &mut Page, name: &str, help: &str, histogram: &Histogram) {
    page.metric(name, help, "histogram");
    let counts = histogram.cumulative();
    let bucket = format!("{name}_bucket");
    for (bound, count) in BOUNDS_US.iter().zip(counts) {
        let bound = Duration::from_micros(*bound).as_secs_f64();
        page.line(&bucket, &format!("{{le=\"{bound}\"}}"), count);
    }
    let all = counts[BOUNDS_US.len()];
    page.line(&bucket, "{le=\"+Inf\"}", all);
    page.line(&format!("{name}_sum"), "", histogram.sum());
    page.line(&format!("{name}_count"), "", all);
}

/// For how long members have kept old changes from being forgotten.
fn held(status: &Status) -> Duration {
    let since = status.stability.held_back_by.iter().filter_map(|held| held.since).min();
    let since = since.unwrap_or(status.clock.wall);
    Duration::from_millis(status.clock.wall.0.saturating_sub(since.0))
}

fn add_links(page: &mut Page, status: &Status, meter: &Meter) {
    let links = meter.links();
    let mut nodes: BTreeMap<&str, LinkMeter> = BTreeMap::new();
    for peer in &status.peers {
        let Some(link) = links.get(&peer.peer) else { continue };
        nodes
            .entry(peer.node.as_str())
            .and_modify(|node| {
                node.outbox += link.outbox;
                node.lag = node.lag.max(link.lag);
            })
            .or_insert(*link);
    }
    let name = "littoral_peer_lag_seconds";
    page.metric(name, "The peer has acknowledged all that this node had so long ago", "gauge");
    for (node, link) in &nodes {
        page.line(name, &label("node", node), format!("{:.3}", link.lag.as_secs_f64()));
    }
    let name = "littoral_peer_outbox_bytes";
    page.metric(name, "Bytes of frames that wait to be sent to the peer", "gauge");
    for (node, link) in &nodes {
        page.line(name, &label("node", node), link.outbox);
    }
}

fn add_tables(page: &mut Page, status: &Status) {
    let replicated =
        || status.tables.iter().filter(|(_, policy)| policy.consistency != Consistency::Local);
    let name = "littoral_table_lag_seconds";
    page.metric(name, "How old rows may be at most that a read of the table is answered", "gauge");
    for (table, policy) in replicated() {
        if let Some(lag) = table_lag(policy, status.lag) {
            page.line(name, &label("table", table), format!("{:.3}", lag.as_secs_f64()));
        }
    }
    let name = "littoral_table_too_stale";
    page.metric(name, "Whether the node's lag is more than the table's max_lag_ms", "gauge");
    for (table, policy) in replicated() {
        let Some(bound) = policy.max_lag else { continue };
        let is_new = status.lag.is_some_and(|lag| lag <= Duration::from_millis(bound.ms));
        page.line(name, &label("table", table), u8::from(!is_new));
    }
}

/// How old rows of a table may be that a read is answered on a node of that lag. What an entry touches that has
/// not come yet, nobody knows, so the lag is the same for all tables; what is answered depends on the policy.
fn table_lag(policy: &TablePolicy, lag: Option<Duration>) -> Option<Duration> {
    if policy.consistency == Consistency::OriginStrong
        && policy.on_unreachable == OnUnreachable::Fail
    {
        // Reads are answered by the origin, or not at all.
        return Some(Duration::ZERO);
    }
    match policy.max_lag {
        Some(MaxLag { ms, on_stale }) if on_stale != OnStale::Serve => {
            let most = Duration::from_millis(ms);
            Some(lag.map_or(most, |lag| lag.min(most)))
        }
        _ => lag,
    }
}

/// A label whose value may be anything.
fn label(name: &str, value: &str) -> String {
    let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{{{name}=\"{escaped}\"}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_answered_of_a_table_is_no_older_than_its_policy_allows() {
        let ms = Duration::from_millis;
        let bounded = |on_stale| TablePolicy {
            consistency: Consistency::Eventual,
            max_lag: Some(MaxLag { ms: 500, on_stale }),
            ..TablePolicy::default()
        };
        for (lag, any, most) in [
            (Some(ms(200)), Some(ms(200)), Some(ms(200))),
            (Some(ms(900)), Some(ms(900)), Some(ms(500))),
            (None, None, Some(ms(500))),
        ] {
            assert_eq!(table_lag(&TablePolicy::default(), lag), any);
            assert_eq!(table_lag(&bounded(OnStale::Serve), lag), any);
            for on_stale in [OnStale::Wait, OnStale::Forward, OnStale::Fail] {
                assert_eq!(table_lag(&bounded(on_stale), lag), most);
            }
            let strong =
                TablePolicy { consistency: Consistency::OriginStrong, ..TablePolicy::default() };
            assert_eq!(table_lag(&strong, lag), Some(Duration::ZERO));
            let stale = TablePolicy { on_unreachable: OnUnreachable::Stale, ..strong };
            assert_eq!(table_lag(&stale, lag), any);
        }
    }

    #[test]
    fn names_of_tables_do_not_break_the_page() {
        assert_eq!(label("table", "a\"b\\c\nd"), r#"{table="a\"b\\c\nd"}"#);
    }
}
