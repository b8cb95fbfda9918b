//! `GET /metrics`: the status as a Prometheus page.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use littoral::{Hold, HoldReason, PeerStatus, Status, WallTime};

use super::{ServerState, health::not_ready, hrana, meters};
use crate::transport::Validity;

pub(super) async fn metrics(State(state): State<Arc<ServerState>>) -> Response {
    match state.node.status().await {
        Some(status) => {
            let is_ready = not_ready(&status, state.ready_max_lag).is_none();
            let mut page = page(&status, is_ready, &state.trust.validity());
            meters::add(&mut page, &status, state.node.meter());
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], page.0).into_response()
        }
        None => hrana::failure(
            StatusCode::SERVICE_UNAVAILABLE,
            "LITTORAL_UNAVAILABLE",
            "the replica has ended",
        ),
    }
}

/// Of all links to one node.
#[derive(Default)]
struct Peer {
    streaming: u64,
    behind: u64,
    round_trip: Option<f64>,
    sent: u64,
    received: u64,
}

fn page(status: &Status, is_ready: bool, validity: &Validity) -> Page {
    let mut page = Page::default();
    let counts = &status.counts;
    page.gauge("littoral_ready", "Whether /ready says so", u64::from(is_ready));
    page.gauge("littoral_applied_lsn", "Newest position in the log", status.applied.0);
    page.gauge("littoral_durable_lsn", "Position up to which the log is on disk", status.durable.0);
    page.gauge("littoral_members", "Members of the cluster", count(status.members.len()));
    page.gauge(
        "littoral_contested_rows",
        "Rows that a concurrent write may still meet",
        status.contested_rows,
    );
    if let Some(distance) = status.distance {
        page.gauge(
            "littoral_origin_distance",
            "Links between this node and the origin",
            distance.into(),
        );
    }
    page.gauge(
        "littoral_requests_waiting",
        "Requests of this node's clients that wait for the origin",
        status.requests_waiting,
    );
    page.gauge(
        "littoral_requests_here",
        "Requests that have come to the origin and are not answered",
        status.requests_here,
    );
    page.gauge("littoral_parked_rows", "Rows that could not be stored", status.parked_rows);
    let verified = &status.verification;
    page.gauge(
        "littoral_verify_differing_rows",
        "Rows that differed from a peer's in the last comparison",
        verified.differing,
    );
    page.gauge(
        "littoral_verify_repaired_rows",
        "Rows of these that were mended",
        verified.repaired,
    );
    page.metric(
        "littoral_lag_seconds",
        "How old what this node shows may be at most, as far as is known",
        "gauge",
    );
    if let Some(lag) = status.lag {
        page.line("littoral_lag_seconds", "", format!("{:.6}", lag.as_secs_f64()));
    }
    let clock = &status.clock;
    page.metric(
        "littoral_clock_ahead_seconds",
        "How far the wall clock is ahead of the origin's, as far as is known",
        "gauge",
    );
    if clock.error.is_some() {
        let millis = |wall: WallTime| Duration::from_millis(wall.0).as_secs_f64();
        let ahead = millis(clock.wall) - millis(clock.corrected);
        page.line("littoral_clock_ahead_seconds", "", format!("{ahead:.3}"));
    }
    page.metric(
        "littoral_stamps_ahead_seconds",
        "How far the newest stamp is ahead of the origin's clock",
        "gauge",
    );
    page.line("littoral_stamps_ahead_seconds", "", clock.stamps_ahead.as_secs_f64());
    let future = |peer: &&PeerStatus| {
        matches!(peer.holds, Some(Hold { why: HoldReason::Future { .. }, .. }))
    };
    page.gauge(
        "littoral_links_held_for_time",
        "Links that wait at an entry from the future",
        count(status.peers.iter().filter(future).count()),
    );
    page.gauge(
        "littoral_foreign_writes",
        "Whether another program has written the file since the node was started",
        u64::from(status.foreign.is_some()),
    );
    let stability = &status.stability;
    page.gauge("littoral_frontier", "Number of the newest frontier", stability.frontier);
    page.gauge("littoral_log_bytes", "Bytes of entries in the log", stability.log_bytes);
    for (name, help, value) in [
        ("littoral_jobs_committed_total", "Write jobs committed", counts.jobs_committed),
        ("littoral_jobs_failed_total", "Write jobs refused or failed", counts.jobs_failed),
        ("littoral_groups_total", "SQLite transactions of local jobs", counts.groups),
        ("littoral_entries_authored_total", "Entries written here", counts.entries_authored),
        ("littoral_entries_applied_total", "Entries of others applied", counts.entries_applied),
        ("littoral_entries_duplicate_total", "Entries that came twice", counts.entries_duplicate),
        ("littoral_rows_applied_total", "Row operations of others applied", counts.rows_applied),
        ("littoral_conflicts_total", "Concurrent values discarded", counts.conflicts),
        (
            "littoral_links_refused_total",
            "Links closed for a broken protocol",
            counts.links_refused,
        ),
    ] {
        page.metric(name, help, "counter");
        page.line(name, "", value);
    }
    let mut peers: BTreeMap<&str, Peer> = BTreeMap::new();
    for link in &status.peers {
        let peer = peers.entry(link.node.as_str()).or_default();
        peer.streaming += u64::from(link.streaming);
        peer.behind = peer.behind.max(link.behind);
        peer.round_trip = link.round_trip.map(|d| d.as_secs_f64()).or(peer.round_trip);
        peer.sent += link.bytes_sent;
        peer.received += link.bytes_received;
    }
    page.peers("littoral_peer_streaming", "Links that stream", "gauge", &peers, |p| {
        Some(p.streaming)
    });
    page.peers(
        "littoral_peer_behind_entries",
        "Entries the peer has not acknowledged",
        "gauge",
        &peers,
        |p| Some(p.behind),
    );
    page.peers(
        "littoral_peer_round_trip_seconds",
        "Last measured round trip",
        "gauge",
        &peers,
        |p| p.round_trip,
    );
    page.peers(
        "littoral_peer_sent_bytes",
        "Bytes of frames sent on the links that are up",
        "gauge",
        &peers,
        |p| Some(p.sent),
    );
    page.peers(
        "littoral_peer_received_bytes",
        "Bytes of frames received on the links that are up",
        "gauge",
        &peers,
        |p| Some(p.received),
    );
    page.certificates(validity);
    page
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[derive(Default)]
pub(super) struct Page(String);

impl Page {
    pub(super) fn metric(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}.\n# TYPE {name} {kind}");
    }

    pub(super) fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.metric(name, help, "gauge");
        self.line(name, "", value);
    }

    fn certificates(&mut self, validity: &Validity) {
        let name = "littoral_certificate_not_after_seconds";
        let help = "When the certificates of this node and of its peers expire, since 1970";
        self.metric(name, help, "gauge");
        let mut all = BTreeMap::from([(&validity.own.node, validity.own.not_after)]);
        for peer in validity.peers.values() {
            let not_after = all.entry(&peer.node).or_insert(peer.not_after);
            *not_after = peer.not_after.min(*not_after);
        }
        for (node, not_after) in all {
            self.line(name, &format!("{{node=\"{node}\"}}"), not_after);
        }
        let name = "littoral_authority_not_after_seconds";
        self.metric(name, "When the certificate of the authority expires, since 1970", "gauge");
        self.line(name, "", validity.authority_not_after);
    }

    fn peers<V: std::fmt::Display>(
        &mut self,
        name: &str,
        help: &str,
        kind: &str,
        peers: &BTreeMap<&str, Peer>,
        value: impl Fn(&Peer) -> Option<V>,
    ) {
        self.metric(name, help, kind);
        for (node, peer) in peers {
            if let Some(value) = value(peer) {
                // Node names are made of letters, digits and hyphens: nothing to escape.
                self.line(name, &format!("{{node=\"{node}\"}}"), value);
            }
        }
    }
}
