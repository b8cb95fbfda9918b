//! Who is let in, what for, and how often.
//!
//! With `[http.auth]` every request but those of `/health` and `/ready` needs a token, and so does the
//! hello on a WebSocket; what it may do
//! with tables the engine judges, statement by statement. Without, whoever reaches the server may do
//! everything, and it listens on loopback unless its owner says otherwise.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{self, Body, HttpBody as _},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use littoral::Grants;
use parking_lot::Mutex;

use super::hrana;
use crate::{
    config::{Http, HttpLimits},
    token::{KeyError, Refused, Verifier},
};

/// How long a client may take to send a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// So many clients are counted apart at one time.
const CLIENTS_COUNTED: usize = 65_536;

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct RemoteAddress(pub(super) SocketAddr);

/// Who sends a request, and what they may do.
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    /// The token's `sub`.
    pub(crate) subject: Option<Arc<str>>,
    /// What the engine is to allow; `None` for everything, where nobody is asked for a token.
    pub(crate) grants: Option<Arc<Grants>>,
    /// May read status and metrics, and tell the node what to do.
    pub(crate) operates: bool,
}

impl Principal {
    /// Whoever reaches a server that asks for no tokens.
    pub(crate) const fn anybody() -> Self {
        Self { subject: None, grants: None, operates: true }
    }
}

/// The door of a server.
#[derive(Debug)]
pub(crate) struct Access {
    verifier: Option<Verifier>,
    limits: HttpLimits,
    max_body_bytes: usize,
    /// [`BODY_TIMEOUT`], except in tests.
    body_timeout: Duration,
    all: Mutex<Bucket>,
    clients: Mutex<BTreeMap<Client, Bucket>>,
}

/// Whose requests are counted together.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Client {
    Subject(Arc<str>),
    Address(IpAddr),
}

impl Access {
    pub(super) fn new(config: &Http) -> Result<Self, KeyError> {
        let verifier = match &config.auth {
            None => None,
            Some(auth) => Some(Verifier::new(
                auth.keys.clone(),
                auth.issuer.as_deref(),
                auth.audience.as_deref(),
                auth.leeway,
            )?),
        };
        Ok(Self {
            verifier,
            limits: config.limits.clone(),
            max_body_bytes: config.max_body_bytes,
            body_timeout: BODY_TIMEOUT,
            all: Mutex::new(Bucket::full(config.limits.requests_per_second)),
            clients: Mutex::default(),
        })
    }

    /// Who has sent this token.
    pub(crate) fn authenticate(&self, token: Option<&str>) -> Result<Principal, Refused> {
        let Some(verifier) = &self.verifier else { return Ok(Principal::anybody()) };
        let bearer = verifier.verify(token.ok_or(Refused::Missing)?)?;
        Ok(Principal {
            subject: bearer.claims.sub.as_deref().map(Arc::from),
            grants: Some(Arc::clone(&bearer.grants)),
            operates: bearer.claims.littoral.operate,
        })
    }

    /// Counts a request; gives how long its client has to wait if it is one too many.
    pub(super) fn count(
        &self,
        subject: Option<&Arc<str>>,
        address: IpAddr,
    ) -> Result<(), Duration> {
        let now = Instant::now();
        if let Some(rate) = self.limits.requests_per_second_per_client {
            let client = match subject {
                Some(subject) => Client::Subject(Arc::clone(subject)),
                None => Client::Address(address),
            };
            let mut clients = self.clients.lock();
            if clients.len() >= CLIENTS_COUNTED && !clients.contains_key(&client) {
                clients.retain(|_, bucket| !bucket.is_full(rate, now));
                if clients.len() >= CLIENTS_COUNTED {
                    return Err(Duration::from_secs(1));
                }
            }
            clients.entry(client).or_insert_with(|| Bucket::full(Some(rate))).take(rate, now)?;
        }
        match self.limits.requests_per_second {
            None => Ok(()),
            Some(rate) => self.all.lock().take(rate, now),
        }
    }
}

impl Access {
    /// Reads the whole body, so that a client which sends it slowly keeps nothing else busy. A request to be
    /// upgraded has none; one that only says so is held to the same bounds.
    async fn gather(&self, request: Request) -> Result<Request, Response> {
        let limit = self.max_body_bytes;
        let (parts, body) = request.into_parts();
        match tokio::time::timeout(self.body_timeout, body::to_bytes(body, limit)).await {
            Ok(Ok(bytes)) => Ok(Request::from_parts(parts, Body::from(bytes))),
            Ok(Err(_)) => Err(hrana::failure(
                StatusCode::PAYLOAD_TOO_LARGE,
                "BODY_TOO_LARGE",
                &format!(
                    "the body is longer than {limit} bytes (http.max_body_bytes), or broke off"
                ),
            )),
            Err(_) => Err(hrana::failure(
                StatusCode::REQUEST_TIMEOUT,
                "BODY_TIMEOUT",
                &format!("the body did not arrive within {} s", self.body_timeout.as_secs()),
            )),
        }
    }
}

/// What is left of a second's worth of requests.
#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: Option<u32>) -> Self {
        Self { left: rate.map_or(0.0, f64::from), at: Instant::now() }
    }

    fn fill(&mut self, rate: u32, now: Instant) {
        let more = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(rate);
        self.left = (self.left + more).min(f64::from(rate));
        self.at = now;
    }

    fn take(&mut self, rate: u32, now: Instant) -> Result<(), Duration> {
        self.fill(rate, now);
        if self.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.left) / f64::from(rate)));
        }
        self.left -= 1.0;
        Ok(())
    }

    fn is_full(&mut self, rate: u32, now: Instant) -> bool {
        self.fill(rate, now);
        self.left >= f64::from(rate)
    }
}

/// Lets a request pass with its [`Principal`], or answers in its place.
pub(super) async fn enter(
    State(access): State<Arc<Access>>,
    mut request: Request,
    next: Next,
) -> Response {
    let unknown = RemoteAddress(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
    let RemoteAddress(address) = request.extensions().get().copied().unwrap_or(unknown);
    // Clients on a WebSocket say who they are in their hello.
    let upgrades = request.method() == Method::GET
        && request.headers().get(header::UPGRADE).is_some_and(|to| to == "websocket");
    let who = if upgrades || needs_no_token(request.uri().path()) {
        Ok(Principal { operates: false, grants: Some(Arc::default()), ..Principal::anybody() })
    } else {
        access.authenticate(bearer(request.headers()))
    };
    let subject = who.as_ref().ok().and_then(|who| who.subject.as_ref());
    if let Err(wait) = access.count(subject, address.ip().to_canonical()) {
        return unread(&request, too_many(wait));
    }
    let who = match who {
        Ok(who) => who,
        Err(refused) => return unread(&request, unauthorized(&refused)),
    };
    if is_for_operators(request.uri().path()) && !who.operates {
        let response = hrana::failure(
            StatusCode::FORBIDDEN,
            "LITTORAL_NOT_GRANTED",
            "the token's claim \"littoral\" does not say \"operate\": true",
        );
        return unread(&request, response);
    }
    request.extensions_mut().insert(who);
    match access.gather(request).await {
        Ok(request) => next.run(request).await,
        Err(response) => closing(response),
    }
}

/// The answer to a request whose body is left unread: where there is one the connection ends with it, and
/// the client is told.
pub(super) fn unread(request: &Request, response: Response) -> Response {
    if request.body().is_end_stream() { response } else { closing(response) }
}

fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Lets web pages ask that are let in: of any site where whoever asks needs a token, which no browser adds
/// by itself, and else of this machine.
pub(super) async fn cross_origin(request: Request, next: Next) -> Response {
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let is_preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let any = HeaderValue::from_static("*");
    let mut response = if is_preflight {
        let mut response = StatusCode::NO_CONTENT.into_response();
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, any.clone());
        // Named one by one, since "*" does not stand for Authorization.
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or_else(|| any.clone()));
        response
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, any.clone());
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, any);
    response
}

/// What the machinery around a node asks before it has any token.
fn needs_no_token(path: &str) -> bool {
    matches!(path, "/health" | "/ready")
}

fn is_for_operators(path: &str) -> bool {
    matches!(path, "/status" | "/metrics" | "/verify" | "/schema/abort" | "/policy/explain")
}

/// The token of `Authorization: Bearer TOKEN`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn unauthorized(refused: &Refused) -> Response {
    let mut response =
        hrana::failure(StatusCode::UNAUTHORIZED, "LITTORAL_UNAUTHORIZED", &refused.to_string());
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

fn too_many(wait: Duration) -> Response {
    let mut response = hrana::failure(
        StatusCode::TOO_MANY_REQUESTS,
        "LITTORAL_RATE_LIMITED",
        "more requests than http.limits allows; Retry-After says when to come again",
    );
    let seconds = wait.as_secs() + 1;
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, pin::Pin, task};

    use axum::{Router, body::Bytes, middleware, routing::post};
    use tower_service::Service as _;

    use super::*;

    /// A body of which something comes from time to time, and never the end.
    struct Slow(tokio::time::Interval);

    impl body::HttpBody for Slow {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut task::Context<'_>,
        ) -> task::Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
            let tick = self.0.poll_tick(context);
            tick.map(|_| Some(Ok(hyper::body::Frame::data(Bytes::from_static(b" ")))))
        }
    }

    #[tokio::test]
    async fn a_body_that_comes_too_slowly_is_not_waited_for() {
        let anywhere = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let mut access = Access::new(&Http::on(anywhere)).unwrap();
        assert_eq!(access.body_timeout, BODY_TIMEOUT);
        access.body_timeout = Duration::from_millis(300);
        let mut router = Router::new()
            .route("/", post(|body: Bytes| async move { body.len().to_string() }))
            .layer(middleware::from_fn_with_state(Arc::new(access), enter));
        for upgrade in [None, Some("websocket"), Some("h2c")] {
            let slow = Slow(tokio::time::interval(Duration::from_millis(50)));
            let mut request = Request::post("/");
            if let Some(to) = upgrade {
                request = request.header(header::UPGRADE, to);
            }
            let began = Instant::now();
            let response = router.call(request.body(Body::new(slow)).unwrap()).await.unwrap();
            assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT, "{upgrade:?}");
            assert!(began.elapsed() >= Duration::from_millis(300));
            assert_eq!(response.headers()[header::CONNECTION], "close");
            let said = body::to_bytes(response.into_body(), 1000).await.unwrap();
            let said = String::from_utf8_lossy(&said).into_owned();
            assert!(said.contains("\"BODY_TIMEOUT\""), "{said}");
        }
        let quick = Request::post("/").body(Body::from("quick")).unwrap();
        let response = router.call(quick).await.unwrap();
        assert_eq!(body::to_bytes(response.into_body(), 1000).await.unwrap(), "5");
    }

    #[test]
    fn a_bucket_gives_a_seconds_worth_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket { left: 10.0, at: start };
        for _ in 0..10 {
            assert_eq!(bucket.take(10, start), Ok(()));
        }
        let wait = bucket.take(10, start).unwrap_err();
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
        assert_eq!(bucket.take(10, start + Duration::from_millis(101)), Ok(()));
        assert!(bucket.take(10, start + Duration::from_millis(102)).is_err());
        assert!(bucket.is_full(10, start + Duration::from_secs(5)));
    }

    #[test]
    fn tokens_are_found_whatever_the_case_of_their_scheme() {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, "bearer a.b.c".parse().unwrap());
        assert_eq!(bearer(&headers), Some("a.b.c"));
        headers.insert(header::AUTHORIZATION, "Basic a".parse().unwrap());
        assert_eq!(bearer(&headers), None);
    }
}
