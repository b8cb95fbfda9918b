//! [`Spans`]: made where requests come in, collected, and sent in batches.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::{Request, State},
    http::HeaderMap,
    middleware::{self, Next},
    response::Response,
};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Bytes,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use littoral::NodeId;
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tracing::{info, warn};

use super::Steps;
use crate::runtime::Meter;

/// Where the collector listens, as OpenTelemetry has it.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// What the spans are said to be of; `littoral` if it is not set.
const SERVICE: &str = "OTEL_SERVICE_NAME";

/// Spans that wait to be sent; more are dropped.
const WAITING_MAX: usize = 4096;

/// Spans of one batch at most.
const BATCH_MAX: usize = 512;

/// A batch waits for more spans for so long.
const BATCH_TIME: Duration = Duration::from_secs(1);

/// The collector may take so long for a batch.
const SEND_TIME: Duration = Duration::from_secs(5);

/// That the collector takes nothing is logged so often at most.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The paths that are named in spans.
const ROUTES: [&str; 13] = [
    "/v2",
    "/v3",
    "/v2/pipeline",
    "/v3/pipeline",
    "/v3/cursor",
    "/v1/execute",
    "/v1/batch",
    "/v1/outcome",
    "/health",
    "/ready",
    "/status",
    "/metrics",
    "/policy/explain",
];

tokio::task_local! {
    /// The request that is being answered.
    static CURRENT: Current;
}

/// Whom to tell of spans; nobody, if no collector is named.
#[derive(Clone, Debug)]
pub(crate) struct Spans(Option<Arc<Outbox>>);

#[derive(Debug)]
struct Outbox {
    spans: mpsc::Sender<Value>,
    meter: Arc<Meter>,
}

/// A span that others are children of.
#[derive(Clone, Debug)]
struct Current {
    outbox: Arc<Outbox>,
    trace: u128,
    span: u64,
}

/// A span's kind, as the protocol numbers it.
#[derive(Clone, Copy)]
enum Kind {
    Internal = 1,
    Server = 2,
}

impl Spans {
    /// Begins to send what it is told, if the environment names a collector.
    pub(crate) fn start(node: &NodeId, meter: &Arc<Meter>) -> Self {
        let Ok(endpoint) = std::env::var(ENDPOINT) else { return Self(None) };
        let Some(collector) = Collector::at(&endpoint, node) else {
            warn!("{ENDPOINT}: expected http://HOST:PORT; no spans are sent");
            return Self(None);
        };
        info!(collector = collector.authority, "spans are sent to a collector");
        let (spans, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(collector.run(waiting, Arc::clone(meter)));
        Self(Some(Arc::new(Outbox { spans, meter: Arc::clone(meter) })))
    }

    /// Has every request told.
    pub(crate) fn of_requests(&self, router: Router) -> Router {
        match &self.0 {
            None => router,
            Some(outbox) => {
                router.layer(middleware::from_fn_with_state(Arc::clone(outbox), of_request))
            }
        }
    }

    /// Runs and tells a request that comes over a WebSocket.
    pub(crate) async fn request<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let Some(outbox) = &self.0 else { return work.await };
        let (trace, span) = (fastrand::u128(1..), fastrand::u64(1..));
        let current = Current { outbox: Arc::clone(outbox), trace, span };
        let began = Instant::now();
        let result = CURRENT.scope(current, work).await;
        outbox.put(span_of(
            trace,
            (span, None),
            (name, Kind::Server),
            began.elapsed(),
            vec![text("network.protocol.name", "websocket")],
            None,
        ));
        result
    }
}

impl Outbox {
    fn put(&self, span: Value) {
        if self.spans.try_send(span).is_err() {
            self.meter.spans_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn of_request(State(outbox): State<Arc<Outbox>>, request: Request, next: Next) -> Response {
    let (trace, parent) = parent(request.headers())
        .map_or_else(|| (fastrand::u128(1..), None), |(trace, parent)| (trace, Some(parent)));
    let method = request.method().clone();
    // Another path may be any text.
    let known = ROUTES.into_iter().find(|route| *route == request.uri().path());
    let route = known.unwrap_or("(any)");
    let span = fastrand::u64(1..);
    let current = Current { outbox: Arc::clone(&outbox), trace, span };
    let began = Instant::now();
    let response = CURRENT.scope(current, next.run(request)).await;
    let status = response.status();
    let attributes = vec![
        text("http.request.method", method.as_str()),
        text("http.route", route),
        integer("http.response.status_code", status.as_u16().into()),
    ];
    let failed = status.is_server_error().then(|| status.as_str().to_owned());
    let name = format!("{method} {route}");
    let kind = Kind::Server;
    outbox.put(span_of(
        trace,
        (span, parent),
        (&name, kind),
        began.elapsed(),
        attributes,
        failed.as_deref(),
    ));
    response
}

/// Trace and span of the header `traceparent`, as W3C has it, if they are there and are wanted.
fn parent(headers: &HeaderMap) -> Option<(u128, u64)> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let mut parts = text.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lengths = [version, trace, span, flags].map(str::len);
    if lengths != [2, 32, 16, 2] || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let (trace, span) =
        (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(span, 16).ok()?);
    (trace != 0 && span != 0).then_some((trace, span))
}

/// Has what is run in another task told as of the request that is being answered here.
pub(crate) fn passed_on<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let current = CURRENT.try_with(Clone::clone).ok();
    async move {
        match current {
            Some(current) => CURRENT.scope(current, work).await,
            None => work.await,
        }
    }
}

/// Whether anybody is told of what runs here.
pub(crate) fn is_on() -> bool {
    CURRENT.try_with(|_| ()).is_ok()
}

/// Tells what has just run for the request that is being answered.
pub(crate) fn tell(steps: &Steps<'_>, took: Duration) {
    // Outside of a request there is nobody to tell.
    let _ = CURRENT.try_with(|current| {
        let mut attributes = vec![
            text("db.system.name", "littoral"),
            number("littoral.statements", steps.statements),
            number("db.response.returned_rows", steps.rows),
            integer("littoral.affected_rows", i64::try_from(steps.affected).unwrap_or(i64::MAX)),
        ];
        if !steps.for_lag.is_zero() {
            let waited = i64::try_from(steps.for_lag.as_micros()).unwrap_or(i64::MAX);
            attributes.push(integer("littoral.waited_for_lag_us", waited));
        }
        let failed = (!steps.failed.is_empty()).then_some(steps.failed);
        if let Some(code) = failed {
            attributes.push(text("db.response.status_code", code));
        }
        current.outbox.put(span_of(
            current.trace,
            (fastrand::u64(1..), Some(current.span)),
            (steps.place, Kind::Internal),
            took,
            attributes,
            failed,
        ));
    });
}

/// A span that ends now, as the protocol has it.
fn span_of(
    trace: u128,
    (span, parent): (u64, Option<u64>),
    (name, kind): (&str, Kind),
    took: Duration,
    attributes: Vec<Value>,
    failed: Option<&str>,
) -> Value {
    let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let start = end.saturating_sub(took);
    let mut told = json!({
        "traceId": format!("{trace:032x}"),
        "spanId": format!("{span:016x}"),
        "name": name,
        "kind": kind as u8,
        "startTimeUnixNano": start.as_nanos().to_string(),
        "endTimeUnixNano": end.as_nanos().to_string(),
        "attributes": attributes,
    });
    if let Some(parent) = parent {
        told["parentSpanId"] = format!("{parent:016x}").into();
    }
    if let Some(message) = failed {
        told["status"] = json!({ "code": 2, "message": message });
    }
    told
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn integer(key: &str, value: i64) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}

fn number(key: &str, value: usize) -> Value {
    integer(key, i64::try_from(value).unwrap_or(i64::MAX))
}

/// Where spans are sent.
struct Collector {
    /// `HOST:PORT`.
    authority: String,
    path: String,
    /// What all spans are of.
    resource: Value,
}

impl Collector {
    fn at(endpoint: &str, node: &NodeId) -> Option<Self> {
        let rest = endpoint.strip_prefix("http://")?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        // Who brings a name and a password needs more than this can do.
        let (_, port) = authority.rsplit_once(':').filter(|_| !authority.contains('@'))?;
        port.parse::<u16>().ok()?;
        let base = path.trim_end_matches('/');
        let path =
            if base.is_empty() { "/v1/traces".to_owned() } else { format!("/{base}/v1/traces") };
        let service = std::env::var(SERVICE).unwrap_or_else(|_| "littoral".to_owned());
        let resource = json!({ "attributes": [
            text("service.name", &service),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("service.instance.id", node.as_str()),
        ]});
        Some(Self { authority: authority.to_owned(), path, resource })
    }

    /// Sends batches until nobody can tell anything more.
    async fn run(self, mut waiting: mpsc::Receiver<Value>, meter: Arc<Meter>) {
        let mut warned: Option<Instant> = None;
        while let Some(first) = waiting.recv().await {
            let mut batch = vec![first];
            let until = tokio::time::Instant::now() + BATCH_TIME;
            while batch.len() < BATCH_MAX {
                match tokio::time::timeout_at(until, waiting.recv()).await {
                    Ok(Some(span)) => batch.push(span),
                    Ok(None) | Err(_) => break,
                }
            }
            let count = batch.len() as u64;
            let sent = timeout(SEND_TIME, self.send(batch)).await;
            let why = match sent {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => format!("no answer within {} s", SEND_TIME.as_secs()),
            };
            let dropped = meter.spans_dropped.fetch_add(count, Ordering::Relaxed) + count;
            if warned.is_none_or(|at| at.elapsed() > WARN_EVERY) {
                warned = Some(Instant::now());
                warn!(collector = self.authority, why, dropped, "spans were not sent");
            }
        }
    }

    async fn send(&self, spans: Vec<Value>) -> anyhow::Result<()> {
        let scope = json!({ "name": "littoral", "version": env!("CARGO_PKG_VERSION") });
        let body = json!({ "resourceSpans": [{
            "resource": self.resource,
            "scopeSpans": [{ "scope": scope, "spans": spans }],
        }]});
        let stream = TcpStream::connect(&self.authority).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = hyper::Request::post(&self.path)
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_string())))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            // Read to its end, so that the collector is not cut off.
            response.into_body().collect().await?;
            drop(sender);
            Ok::<_, hyper::Error>(status)
        };
        let (status, connection) = tokio::join!(exchange, connection);
        let status = status?;
        connection?;
        anyhow::ensure!(status.is_success(), "it answered {status}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_span_is_found_in_its_header() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", text.parse().unwrap());
            parent(&headers)
        };
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let known = Some((0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331));
        assert_eq!(of(&format!("00-{trace}-{span}-01")), known);
        assert_eq!(of(&format!("01-{trace}-{span}-01-more")), known);
        for wrong in [
            String::new(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", &trace[1..]),
            format!("00-{}é-{span}-01", &trace[2..]),
        ] {
            assert_eq!(of(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_collector_is_named_by_a_url() {
        let node = NodeId::new("edge1").unwrap();
        let at = |endpoint: &str| Collector::at(endpoint, &node).map(|c| (c.authority, c.path));
        let expected = |path: &str| Some(("127.0.0.1:4318".to_owned(), path.to_owned()));
        assert_eq!(at("http://127.0.0.1:4318"), expected("/v1/traces"));
        assert_eq!(at("http://127.0.0.1:4318/"), expected("/v1/traces"));
        assert_eq!(at("http://127.0.0.1:4318/otlp/"), expected("/otlp/v1/traces"));
        for wrong in ["", "127.0.0.1:4318", "https://127.0.0.1:4318", "http://127.0.0.1"] {
            assert_eq!(at(wrong), None, "{wrong}");
        }
    }
}
