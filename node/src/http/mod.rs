//! The HTTP server: what is served where, and who is let in.
//!
//! | path | what |
//! | --- | --- |
//! | `POST /v2/pipeline`, `/v3/pipeline`, `/v3/cursor` | SQL, as libSQL clients speak it |
//! | `GET` of any path, to be upgraded | a WebSocket of the same |
//! | `POST /v1/execute`, `/v1/batch` | the same for older clients |
//! | `POST /v1/outcome` | what became of a write that the origin was sent |
//! | `GET /v2`, `/v3` | version probes of those clients |
//! | `GET /health` | the process answers |
//! | `GET /ready` | the node can do its work, or 503 and why not |
//! | `GET /status` | what the node knows of itself, as JSON |
//! | `GET /metrics` | the same for Prometheus |
//! | `POST /verify` | compare the rows with a peer's |
//! | `POST /policy/explain` | where a statement would run, and why |
//! | `POST /schema/abort` | give up a change of the schema that waits |
//!
//! A server that asks for no tokens listens on loopback only, unless the owner says otherwise, and there
//! it refuses what a web page could send on behalf of somebody who visits it: requests with a `Host` that
//! is a name other than localhost, or with a foreign `Origin`.

mod access;
mod health;
mod hrana;
mod maintenance;
mod meters;
mod metrics;
mod server;
mod session;
mod status;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tracing::warn;

pub(crate) use self::hrana::{PROGRAMS, sets_foreign_keys, statements};
pub use self::session::SealError;
use self::{
    access::Access,
    hrana::Streams,
    server::{Renewals, Server},
    session::Sessions,
};
use crate::{
    config::{Http, is_loopback},
    otlp::Spans,
    runtime::NodeHandle,
    transport::Trust,
};

/// Why the HTTP server could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} (HTTP): {error}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// Keys of tokens, or the server's certificate or key, are of no use.
    #[error("{0}")]
    Keys(String),
    /// The key of bookmarks cannot be used.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// A running server.
#[derive(Debug)]
pub(crate) struct HttpServer {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    streams: Arc<Streams>,
    task: JoinHandle<()>,
}

/// What every handler has.
#[derive(Debug)]
struct ServerState {
    node: NodeHandle,
    trust: Arc<Trust>,
    access: Arc<Access>,
    streams: Arc<Streams>,
    max_body_bytes: usize,
    ready_max_lag: Duration,
    /// Whether a token's subject has a session.
    subject_sessions: bool,
    stopping: watch::Receiver<bool>,
    spans: Spans,
}

/// Whether keys, certificate and seal of a server would do.
pub(crate) fn check(config: &Http) -> Result<(), HttpError> {
    Access::new(config).map_err(|error| HttpError::Keys(error.to_string()))?;
    if let Some(files) = &config.tls {
        server::acceptor(files).map_err(|error| HttpError::Keys(error.to_string()))?;
    }
    if let Some(key) = &config.bookmark_key {
        session::check(key)?;
    }
    Ok(())
}

impl HttpServer {
    pub(crate) async fn start(
        config: &Http,
        node: NodeHandle,
        trust: Arc<Trust>,
    ) -> Result<Self, HttpError> {
        let sessions = Arc::new(Sessions::new(node.clone(), config)?);
        let access = Access::new(config).map_err(|error| HttpError::Keys(error.to_string()))?;
        let renewals = Renewals::of(config.tls.clone());
        let tls = match &config.tls {
            None => None,
            Some(files) => {
                Some(server::acceptor(files).map_err(|error| HttpError::Keys(error.to_string()))?)
            }
        };
        if config.auth.is_some() && tls.is_none() && !is_loopback(config.listen.ip()) {
            warn!(
                listen = %config.listen,
                "tokens arrive unencrypted: set [http.tls], or let a proxy on this machine do TLS"
            );
        }
        let bind = |error| HttpError::Bind { address: config.listen, error };
        let listener = TcpListener::bind(config.listen).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let (stop, stopping) = watch::channel(false);
        let access = Arc::new(access);
        let streams = Streams::start();
        let spans = Spans::start(&node.identity().node, node.meter());
        let state = Arc::new(ServerState {
            node,
            trust,
            access,
            streams: Arc::clone(&streams),
            max_body_bytes: config.max_body_bytes,
            ready_max_lag: config.ready_max_lag,
            subject_sessions: config.subject_sessions,
            stopping: stopping.clone(),
            spans,
        });
        let router = router(config, state, sessions);
        let connections = config.limits.connections;
        let server = Server { listener, tls, router, connections, renewals };
        let task = tokio::spawn(server.run(stopping));
        Ok(Self { address, stop, streams, task })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more connections, and waits for requests under way.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Err(error) = (&mut self.task).await {
            warn!(%error, "the HTTP server ended by a bug");
        }
        self.streams.close();
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

fn router(config: &Http, state: Arc<ServerState>, sessions: Arc<Sessions>) -> Router {
    let spans = state.spans.clone();
    let router = Router::new()
        .route("/v2", get(hrana::probe))
        .route("/v3", get(hrana::probe))
        .route("/v2/pipeline", post(hrana::pipeline))
        .route("/v3/pipeline", post(hrana::pipeline))
        .route("/v3/cursor", post(hrana::cursor))
        .route("/v1/execute", post(hrana::execute_once))
        .route("/v1/batch", post(hrana::batch_once))
        .route("/v1/outcome", post(hrana::outcome))
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/status", get(status::status))
        .route("/metrics", get(metrics::metrics))
        .route("/verify", post(maintenance::verify))
        .route("/schema/abort", post(maintenance::abort_schema_change))
        .route("/policy/explain", post(maintenance::explain))
        .fallback(hrana::upgrade)
        .layer(middleware::from_fn_with_state(sessions, session::carry))
        // It was measured when it was gathered.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(Arc::clone(&state.access), access::enter))
        .with_state(state);
    let router = spans.of_requests(router);
    // With `allow_unauthenticated` the owner vouches for the network, and proxies may use any name.
    let vouched = config.allow_unauthenticated && !is_loopback(config.listen.ip());
    if config.auth.is_some() {
        router.layer(middleware::from_fn(access::cross_origin))
    } else if vouched {
        router
    } else {
        let open_to_pages = router.layer(middleware::from_fn(access::cross_origin));
        open_to_pages.layer(middleware::from_fn(only_local))
    }
}

fn not_found() -> Response {
    hrana::failure(StatusCode::NOT_FOUND, "NOT_FOUND", "there is nothing at this path")
}

/// Lets in only what was sent knowingly to this machine.
async fn only_local(request: Request, next: Next) -> Response {
    match check_local(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(why) => {
            let response = hrana::failure(StatusCode::FORBIDDEN, "FORBIDDEN_HOST", why);
            access::unread(&request, response)
        }
    }
}

fn check_local(headers: &HeaderMap) -> Result<(), &'static str> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(host) = text(header::HOST)
        && !names_this_machine(host)
    {
        return Err(
            "the Host header is neither localhost nor an IP address: names could be pointed \
             here by anybody",
        );
    }
    if let Some(origin) = text(header::ORIGIN)
        && !origin.split_once("://").is_some_and(|(_, host)| is_local_origin(host))
    {
        return Err("the request comes from a web page of another site");
    }
    Ok(())
}

fn names_this_machine(authority: &str) -> bool {
    let host = host_of(authority);
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
}

fn is_local_origin(authority: &str) -> bool {
    let host = host_of(authority);
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(is_loopback)
}

/// `HOST`, `HOST:PORT`, `[V6]` and `[V6]:PORT` without what is not the host.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: header::HeaderName, value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        check_local(&headers).is_ok()
    }

    #[test]
    fn names_that_could_be_pointed_here_are_refused() {
        for host in ["localhost:8080", "127.0.0.1:80", "[::1]:80", "[::1]", "10.0.0.1"] {
            assert!(check(header::HOST, host), "{host}");
        }
        for host in ["evil.example", "evil.example:80", "localhost.evil.example", ""] {
            assert!(!check(header::HOST, host), "{host}");
        }
    }

    #[test]
    fn web_pages_of_other_sites_are_refused() {
        assert!(check(header::ORIGIN, "http://localhost:3000"));
        assert!(check(header::ORIGIN, "http://[::1]:3000"));
        for origin in ["null", "https://evil.example", "http://10.0.0.1", "localhost"] {
            assert!(!check(header::ORIGIN, origin), "{origin}");
        }
    }
}
