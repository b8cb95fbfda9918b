//! `POST /verify`, `POST /schema/abort` and `POST /policy/explain`: what an operator asks of a node.

use std::sync::Arc;

use axum::{body::Bytes, extract::State, http::StatusCode, response::Response};
use littoral::{Consistency, WriteError};
use serde::Deserialize;
use serde_json::json;

use super::{ServerState, hrana, status::millis_up};
use crate::runtime::ReadError;

/// Begins to compare all rows; `GET /status` tells how far it is.
pub(super) async fn verify(State(state): State<Arc<ServerState>>) -> Response {
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
pub(super) async fn abort_schema_change(State(state): State<Arc<ServerState>>) -> Response {
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

/// Says what policies make of a statement, which is not run.
pub(super) async fn explain(State(state): State<Arc<ServerState>>, body: Bytes) -> Response {
    #[derive(Deserialize)]
    struct Request {
        sql: String,
    }
    let Ok(Request { sql }) = serde_json::from_slice(&body) else {
        let what = "expected a JSON object with the statement as \"sql\"";
        return hrana::failure(StatusCode::BAD_REQUEST, "BAD_JSON", what);
    };
    if hrana::changes_schema(&sql) {
        let what = "it changes the schema, which the origin alone does; what is explained are statements \
                    that read or write rows";
        return hrana::failure(StatusCode::BAD_REQUEST, "LITTORAL_SCHEMA_CHANGE", what);
    }
    let explanation = match state.node.explain(sql).await {
        Ok(explanation) => explanation,
        Err(ReadError::Sqlite(error)) => {
            return hrana::failure(StatusCode::BAD_REQUEST, "SQLITE_ERROR", &error.to_string());
        }
        Err(error) => {
            let code = "LITTORAL_UNAVAILABLE";
            return hrana::failure(StatusCode::SERVICE_UNAVAILABLE, code, &error.to_string());
        }
    };
    let tables = explanation.tables.iter().map(|touched| {
        json!({
            "table": touched.table,
            "policy": touched.policy.consistency.as_str(),
            "writers": touched.policy.writers.as_str(),
            "max_lag_ms": touched.policy.max_lag.map(|bound| bound.ms),
            "on_stale": touched.policy.max_lag.map(|bound| bound.on_stale.as_str()),
            "on_unreachable": (touched.policy.consistency == Consistency::OriginStrong)
                .then(|| touched.policy.on_unreachable.as_str()),
            "reads": touched.reads,
            "writes": touched.writes,
        })
    });
    let body = json!({
        "tables": tables.collect::<Vec<_>>(),
        "policy": explanation.policy.map(Consistency::as_str),
        "runs_here": explanation.runs_here,
        "why": explanation.why,
        "lag_ms": explanation.lag.map(millis_up),
    });
    hrana::json(StatusCode::OK, &body)
}
