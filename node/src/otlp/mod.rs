//! Spans of requests and of what they run, for a collector of OpenTelemetry: OTLP over HTTP, in JSON.
//!
//! ```text
//!   request ── span "POST /v3/pipeline", a child of the client's `traceparent`
//!      └──── steps that ran together ── span "a reader", "the writer", "the origin" ...
//! ```
//!
//! Only with the feature `otlp`, and only if `OTEL_EXPORTER_OTLP_ENDPOINT` is set; without the feature it is
//! nothing but what is called. A span says how long, where, how many and what failed, and holds no SQL and no
//! values. Nothing waits for a collector: spans that it does not take are dropped.

#[cfg(not(feature = "otlp"))]
mod off;
#[cfg(feature = "otlp")]
mod on;

use std::time::Duration;

#[cfg(not(feature = "otlp"))]
pub(crate) use self::off::{Spans, is_on, passed_on, tell};
#[cfg(feature = "otlp")]
pub(crate) use self::on::{Spans, is_on, passed_on, tell};

/// What ran together, as its span tells it.
#[derive(Debug)]
#[cfg_attr(not(feature = "otlp"), expect(dead_code, reason = "told to nobody"))]
pub(crate) struct Steps<'a> {
    /// Where it ran last.
    pub(crate) place: &'static str,
    /// How many ran.
    pub(crate) statements: usize,
    /// What they gave.
    pub(crate) rows: usize,
    /// What they wrote.
    pub(crate) affected: u64,
    /// The code of the last error; empty if there is none.
    pub(crate) failed: &'a str,
    /// How long they waited until the node was new enough.
    pub(crate) for_lag: Duration,
}
