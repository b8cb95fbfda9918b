//! `GET /status`: what the node knows of itself and its peers, as JSON.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{extract::State, http::StatusCode, response::Response};
use littoral::{Consistency, HoldReason, NodeId, Status, VersionVector};
use serde_json::{Value, json};

use super::{
    ServerState,
    health::{degraded, not_ready},
    hrana,
};
use crate::transport::Validity;

pub(super) async fn status(State(state): State<Arc<ServerState>>) -> Response {
    match state.node.status().await {
        Some(status) => {
            let not_ready = not_ready(&status, state.ready_max_lag);
            let body = to_json(&status, not_ready, &state.trust.validity());
            hrana::json(StatusCode::OK, &body)
        }
        None => hrana::failure(
            StatusCode::SERVICE_UNAVAILABLE,
            "LITTORAL_UNAVAILABLE",
            "the replica has ended",
        ),
    }
}

fn to_json(status: &Status, not_ready: Option<String>, validity: &Validity) -> Value {
    json!({
        "node": status.identity.node.as_str(),
        "incarnation": status.identity.incarnation.to_string(),
        "cluster": status.identity.cluster.to_string(),
        "author": status.author.map(|author| author.to_string()),
        "read_only": status.read_only,
        "receiving": status.receiving.map(|(got, bytes)| json!({ "bytes": got, "of": bytes })),
        "origin": status.origin.as_ref().map(|node| node.as_str()),
        "origin_distance": status.distance,
        "certificate": {
            "serial": validity.own.serial,
            "not_after_ms": validity.own.not_after.saturating_mul(1000),
            "authority_not_after_ms": validity.authority_not_after.saturating_mul(1000),
        },
        "requests_waiting": status.requests_waiting,
        "requests_here": status.requests_here,
        "ready": not_ready.is_none(),
        "not_ready": not_ready,
        "applied": status.applied.0,
        "durable": status.durable.0,
        "vector": vector(&status.vector),
        "schema": status.schema.0,
        "members": status.members.iter().map(|member| json!({
            "node": member.node.as_str(),
            "incarnation": member.incarnation.to_string(),
            "author": member.author.to_string(),
        })).collect::<Vec<_>>(),
        "tables": status.tables.iter().map(|(name, policy)| json!({
            "name": name,
            "policy": policy.consistency.as_str(),
            "writers": policy.writers.as_str(),
            "key": policy.explicit_key.then_some("explicit"),
            "max_lag_ms": policy.max_lag.map(|bound| bound.ms),
            "on_stale": policy.max_lag.map(|bound| bound.on_stale.as_str()),
            "on_unreachable": (policy.consistency == Consistency::OriginStrong)
                .then(|| policy.on_unreachable.as_str()),
            "columns": policy.declared_columns().into_iter()
                .map(|column| (column.clone(), policy.column_word(column)))
                .collect::<BTreeMap<_, _>>(),
        })).collect::<Vec<_>>(),
        "triggers": status.triggers.iter().map(|trigger| json!({
            "name": trigger.name,
            "table": trigger.table,
            "class": trigger.class.as_str(),
        })).collect::<Vec<_>>(),
        "stale": status.stale,
        "freeze": status.freeze.as_ref().map(|freeze| json!({
            "tables": freeze.tables,
            "since_ms": freeze.since.0,
            "script": freeze.script,
            "waiting_for": freeze.waiting_for.iter().map(NodeId::as_str).collect::<Vec<_>>(),
        })),
        "peers": status.peers.iter().map(|peer| json!({
            "node": peer.node.as_str(),
            "link": peer.peer.0,
            "streaming": peer.streaming,
            "behind": peer.behind,
            "acknowledged": vector(&peer.acknowledged),
            "round_trip_us": peer.round_trip.map(|d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX)),
            "holds": peer.holds.map(|hold| json!({
                "entry": hold.dot.to_string(),
                "why": match hold.why {
                    HoldReason::ReceivedElsewhere => "it is being received on another link",
                    HoldReason::NoRoom => "other large entries are being received",
                    HoldReason::Future { .. } => "its stamp is in the future",
                },
                "ahead_ms": match hold.why {
                    HoldReason::Future { ahead } => Some(millis(ahead)),
                    HoldReason::ReceivedElsewhere | HoldReason::NoRoom => None,
                },
            })),
            "held_by_peer": peer.held_by_peer.map(|dot| dot.to_string()),
            "certificate_not_after_ms": validity.peers.get(&peer.peer)
                .map(|facts| facts.not_after.saturating_mul(1000)),
            "bytes_sent": peer.bytes_sent,
            "bytes_received": peer.bytes_received,
        })).collect::<Vec<_>>(),
        "contested_rows": status.contested_rows,
        "spools": status.spools,
        "parked_rows": status.parked_rows,
        "degraded": degraded(status),
        "stability": {
            "frontier": status.stability.frontier,
            "covered": vector(&status.stability.covered),
            "held_back_by": status.stability.held_back_by.iter().map(|held| json!({
                "node": held.node.as_str(),
                "missing": held.missing,
                "since_ms": held.since.map(|at| at.0),
                "heard_ms": held.heard.map(|at| at.0),
            })).collect::<Vec<_>>(),
            "log_bytes": status.stability.log_bytes,
            "contested_bytes": status.stability.contested_bytes,
        },
        "verification": {
            "running": status.verification.running,
            "with": status.verification.with.as_ref().map(NodeId::as_str),
            "table": status.verification.table,
            "rows": status.verification.rows,
            "differing": status.verification.differing,
            "repaired": status.verification.repaired,
            "undecided": status.verification.undecided,
            "problem": status.verification.problem,
            "finished_ms": status.verification.finished.map(|at| at.0),
        },
        "clock": {
            "wall_ms": status.clock.wall.0,
            "corrected_ms": status.clock.corrected.0,
            "error_ms": status.clock.error.map(millis),
            "age_ms": status.clock.age.map(millis),
            "stamps_ahead_ms": millis(status.clock.stamps_ahead),
        },
        "lag_ms": status.lag.map(millis_up),
        "counts": {
            "jobs_committed": status.counts.jobs_committed,
            "jobs_failed": status.counts.jobs_failed,
            "groups": status.counts.groups,
            "entries_authored": status.counts.entries_authored,
            "entries_applied": status.counts.entries_applied,
            "entries_duplicate": status.counts.entries_duplicate,
            "rows_applied": status.counts.rows_applied,
            "conflicts": status.counts.conflicts,
            "links_refused": status.counts.links_refused,
        },
        "foreign_writes": status.foreign.map(|foreign| json!({
            "since_ms": foreign.since.0,
            "noticed": foreign.noticed,
            "while_closed": foreign.while_closed,
        })),
        "storage_error": status.storage_error,
        "halted": status.halted,
    })
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// Rounded up: what is shown is no older.
pub(super) fn millis_up(length: Duration) -> u64 {
    u64::try_from(length.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn vector(vector: &VersionVector) -> BTreeMap<String, u64> {
    vector.iter().map(|dot| (dot.author.to_string(), dot.seq)).collect()
}
