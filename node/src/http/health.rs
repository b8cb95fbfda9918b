//! Whether the process answers, and whether the node can do its work.

use std::{sync::Arc, time::Duration};

use axum::{extract::State, http::StatusCode, response::Response};
use littoral::{Lsn, Status};
use serde_json::json;

use super::{ServerState, hrana};

/// `GET /health`: always 200, as long as anything answers.
pub(super) async fn health() -> &'static str {
    "ok"
}

/// `GET /ready`: 503 and the reason while clients are better served elsewhere; 200 and what is amiss while the
/// node works in part.
pub(super) async fn ready(State(state): State<Arc<ServerState>>) -> Response {
    let (reason, degraded) = match state.node.status().await {
        Some(status) => (not_ready(&status, state.ready_max_lag), degraded(&status)),
        None => (Some("the replica has ended".to_owned()), None),
    };
    match reason {
        None => match degraded {
            None => hrana::json(StatusCode::OK, &json!({ "ready": true })),
            Some(why) => hrana::json(StatusCode::OK, &json!({ "ready": true, "degraded": why })),
        },
        Some(reason) => {
            let body = json!({ "ready": false, "reason": reason });
            hrana::json(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
    }
}

/// Why the node does its work only in part, if that is so: writes are accepted.
pub(super) fn degraded(status: &Status) -> Option<String> {
    let rows = |n| if n == 1 { "1 row".to_owned() } else { format!("{n} rows") };
    let mut reasons = Vec::new();
    if status.is_origin() && status.members.len() > 1 && status.peers.is_empty() {
        reasons
            .push("no link to any node is up: what is written here stays here for now".to_owned());
    }
    if status.foreign.is_some() {
        reasons.push(
            "another program has written this node's file; what it wrote replicates nowhere, and the \
              node may differ from the others"
                .to_owned(),
        );
    }
    if status.parked_rows > 0 {
        let rows = rows(status.parked_rows);
        let why = "could not be stored and cannot be read here; see littoral_conflicts";
        reasons.push(format!("{rows} {why}"));
    }
    let wrong = status.verification.differing - status.verification.repaired;
    if wrong > 0 {
        let with = status.verification.with.as_ref().map_or("a peer", |node| node.as_str());
        reasons.push(format!("{} not as {with} has them; see `littoral verify`", rows(wrong)));
    }
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// Why clients are better served elsewhere, if they are: it is halted, its storage fails, it is not a member
/// yet, or it is not the origin and has no link, or shows what is older than `max_lag`, or may be.
pub(super) fn not_ready(status: &Status, max_lag: Duration) -> Option<String> {
    if let Some(why) = &status.halted {
        return Some(format!("halted: {why}"));
    }
    if let Some(why) = &status.storage_error {
        return Some(format!("storage fails: {why}"));
    }
    if let Some((got, bytes)) = status.receiving {
        return Some(format!("receiving a snapshot: {got} of {bytes} bytes"));
    }
    if status.read_only && status.applied == Lsn(0) {
        return Some("no link to the cluster has brought anything yet".to_owned());
    }
    if !status.read_only && status.author.is_none() {
        let why = "not a member yet: no link to the cluster has brought this node's Join";
        return Some(why.to_owned());
    }
    // What the origin shows is what there is, whether anybody is linked to it or not.
    if status.is_origin() {
        return None;
    }
    if !status.peers.iter().any(|peer| peer.streaming) {
        return Some("no link to any node is up".to_owned());
    }
    match status.lag {
        Some(lag) if lag <= max_lag => None,
        Some(lag) => Some(format!(
            "what this node shows may be {} ms old; http.ready_max_lag_ms allows {}",
            lag.as_millis(),
            max_lag.as_millis()
        )),
        None => {
            Some("it is not known how old what this node shows is: no way to the origin".to_owned())
        }
    }
}
