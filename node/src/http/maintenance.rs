//! `POST /verify` and `POST /schema/abort`: what an operator asks of a node.

use axum::{extract::State, http::StatusCode, response::Response};
use littoral::WriteError;
use serde_json::json;

use super::{ServerState, hrana};

/// Begins to compare all rows; `GET /status` tells how far it is.
pub(super) async fn verify(State(state): State<ServerState>) -> Response {
    match state.node.verify().await {
        Some(true) => hrana::json(StatusCode::ACCEPTED, &json!({ "running": true })),
        Some(false) => hrana::failure(
            StatusCode::CONFLICT,
            "LITTORAL_ORIGIN",
            "this node is the origin: the others compare their rows with its",
        ),
        None => hrana::failure(
            StatusCode::SERVICE_UNAVAILABLE,
            "LITTORAL_UNAVAILABLE",
            "the replica has ended",
        ),
    }
}

/// Gives up the change of the schema that waits; the tables take writes again.
pub(super) async fn abort_schema_change(State(state): State<ServerState>) -> Response {
    match state.node.abort_schema_change().await {
        Ok(_) => hrana::json(StatusCode::OK, &json!({ "aborted": true })),
        Err(error) => {
            let (status, code) = match &error {
                WriteError::SchemaChange { .. } => (StatusCode::CONFLICT, "LITTORAL_ORIGIN_ONLY"),
                WriteError::Aborted(_) => (StatusCode::CONFLICT, "LITTORAL_NOTHING_WAITS"),
                _ => (StatusCode::SERVICE_UNAVAILABLE, "LITTORAL_UNAVAILABLE"),
            };
            hrana::failure(status, code, &error.to_string())
        }
    }
}
