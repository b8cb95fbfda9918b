//! Whether the process answers, and whether the node can do its work.

use axum::{extract::State, http::StatusCode, response::Response};
use littoral::{Lsn, Status};
use serde_json::json;

use super::{ServerState, hrana};

/// `GET /health`: always 200, as long as anything answers.
pub(super) async fn health() -> &'static str {
    "ok"
}

/// `GET /ready`: 503 and the reason while the node cannot accept writes; 200 and what is amiss while it
/// works in part.
pub(super) async fn ready(State(state): State<ServerState>) -> Response {
    let (reason, degraded) = match state.node.status().await {
        Some(status) => (not_ready(&status), degraded(&status)),
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
    let mut reasons = Vec::new();
    if status.foreign.is_some() {
        reasons.push(
            "another program has written this node's file; what it wrote replicates nowhere, and the \
             node may differ from the others"
                .to_owned(),
        );
    }
    let rows = match status.parked_rows {
        0 => None,
        1 => Some("1 row".to_owned()),
        rows => Some(format!("{rows} rows")),
    };
    reasons.extend(rows.map(|rows| {
        format!("{rows} could not be stored and cannot be read here; see littoral_conflicts")
    }));
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// Why the node cannot do its work, if it cannot.
pub(super) fn not_ready(status: &Status) -> Option<String> {
    if let Some(why) = &status.halted {
        return Some(format!("halted: {why}"));
    }
    if let Some(why) = &status.storage_error {
        return Some(format!("storage fails: {why}"));
    }
    if let Some((got, bytes)) = status.receiving {
        return Some(format!("receiving a snapshot: {got} of {bytes} bytes"));
    }
    if status.read_only {
        let empty = status.applied == Lsn(0);
        return empty.then(|| "no link to the cluster has brought anything yet".to_owned());
    }
    status
        .author
        .is_none()
        .then(|| "not a member yet: no link to the cluster has brought this node's Join".to_owned())
}
