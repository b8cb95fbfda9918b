//! The HTTP server: what is served where, and who is let in.
//!
//! | path | what |
//! | --- | --- |
//! | `POST /v2/pipeline`, `/v3/pipeline`, `/v3/cursor` | SQL, as libSQL clients speak it |
//! | `POST /v1/execute`, `/v1/batch` | the same for older clients |
//! | `GET /v2`, `/v3` | version probes of those clients |
//! | `GET /health` | the process answers |
//! | `GET /ready` | the node can do its work, or 503 and why not |
//! | `GET /status` | what the node knows of itself, as JSON |
//! | `GET /metrics` | the same for Prometheus |
//! | `POST /verify` | compare the rows with a peer's |
//! | `POST /schema/abort` | give up a change of the schema that waits |
//!
//! Clients are not authenticated yet. So the server listens on loopback only, unless the owner says
//! otherwise, and there it refuses what a web page could send on behalf of somebody who visits it:
//! requests with a `Host` that is a name other than localhost, or with a foreign `Origin`.

mod health;
mod hrana;
mod maintenance;
mod metrics;
mod session;
mod status;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
    serve::ListenerExt as _,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};
use tracing::{debug, error, warn};

pub(crate) use self::hrana::statements;
pub use self::session::SealError;
use self::session::Sessions;
use crate::{
    config::{Http, is_loopback},
    runtime::NodeHandle,
};

/// How long stopping waits for requests that are being answered.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// The key of bookmarks cannot be used.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// A running server.
#[derive(Debug)]
pub(crate) struct HttpServer {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// What every handler has.
#[derive(Clone, Debug)]
struct ServerState {
    node: NodeHandle,
}

impl HttpServer {
    pub(crate) async fn start(config: &Http, node: NodeHandle) -> Result<Self, HttpError> {
        let sessions = Sessions::new(node.clone(), config.bookmark_key.as_deref())?;
        let bind = |error| HttpError::Bind { address: config.listen, error };
        let listener = TcpListener::bind(config.listen).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "answers on a connection may be delayed");
            }
        });
        let (stop, mut stopping) = watch::channel(false);
        let router = router(config, ServerState { node }, sessions);
        let serve = axum::serve(listener, router).with_graceful_shutdown(async move {
            // An error says that the server was dropped, which stops it as well.
            let _ = stopping.wait_for(|stop| *stop).await;
        });
        let task = tokio::spawn(async move {
            if let Err(error) = serve.await {
                error!(%error, "the HTTP server ended");
            }
        });
        Ok(Self { address, stop, task })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more connections, and waits for requests under way.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        if timeout(DRAIN_TIMEOUT, &mut self.task).await.is_err() {
            warn!("some requests were still under way when the server stopped");
            self.task.abort();
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

fn router(config: &Http, state: ServerState, sessions: Sessions) -> Router {
    let router = Router::new()
        .route("/v2", get(hrana::probe))
        .route("/v3", get(hrana::probe))
        .route("/v2/pipeline", post(hrana::pipeline))
        .route("/v3/pipeline", post(hrana::pipeline))
        .route("/v3/cursor", post(hrana::cursor))
        .route("/v1/execute", post(hrana::execute_once))
        .route("/v1/batch", post(hrana::batch_once))
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/status", get(status::status))
        .route("/metrics", get(metrics::metrics))
        .route("/verify", post(maintenance::verify))
        .route("/schema/abort", post(maintenance::abort_schema_change))
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(sessions, session::carry))
        .layer(DefaultBodyLimit::max(config.max_body_bytes))
        .with_state(state);
    // With `allow_unauthenticated` the owner vouches for the network, and proxies may use any name.
    if config.allow_unauthenticated && !is_loopback(config.listen.ip()) {
        router
    } else {
        router.layer(middleware::from_fn(only_local))
    }
}

async fn not_found() -> Response {
    hrana::failure(StatusCode::NOT_FOUND, "NOT_FOUND", "there is nothing at this path")
}

/// Lets in only what was sent knowingly to this machine.
async fn only_local(request: Request, next: Next) -> Response {
    match check_local(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(why) => hrana::failure(StatusCode::FORBIDDEN, "FORBIDDEN_HOST", why),
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
