//! The sections `[http]`, `[http.auth]`, `[http.tls]` and `[http.limits]`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{ConfigError, bounded, is_loopback, socket_address};

/// The HTTP server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Http {
    /// Where clients connect; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Whether addresses other than loopback may be served although clients need no token.
    pub allow_unauthenticated: bool,
    /// The largest request body, in bytes.
    pub max_body_bytes: usize,
    /// `/ready` says no while what this node shows may be older than this.
    pub ready_max_lag: Duration,
    /// A statement that takes this long is logged, without values; `None` for none.
    pub slow_statement: Option<Duration>,
    /// The key with which bookmarks are sealed, the same at all nodes; nobody but its owner may be able to
    /// read the file. Without it sessions get no bookmarks.
    pub bookmark_key: Option<PathBuf>,
    /// Whether clients without a bookmark have a session by the subject of their token.
    pub subject_sessions: bool,
    /// Whose tokens let clients in; `None` for a server that asks for none.
    pub auth: Option<Auth>,
    /// Certificate and key of the server; `None` for plain HTTP.
    pub tls: Option<ServerTls>,
    /// How much clients may ask for.
    pub limits: HttpLimits,
}

/// Whose tokens let clients in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Auth {
    /// Public keys in PEM, and JSON Web Key Sets. They are read again when they change.
    pub keys: Vec<PathBuf>,
    /// What the claim `iss` must say.
    pub issuer: Option<String>,
    /// What the claim `aud` must say, or hold.
    pub audience: Option<String>,
    /// How much clocks may differ when `exp` and `nbf` are judged.
    pub leeway: Duration,
}

/// Certificate and key of the HTTP server, as PEM files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerTls {
    /// The certificate, and those that lead from it to a root.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// How much clients may ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpLimits {
    /// Connections at one time; others wait.
    pub connections: usize,
    /// Requests per second of all clients together; `None` for no bound.
    pub requests_per_second: Option<u32>,
    /// Requests per second of one token's subject, or of one address without a token; `None` for no bound.
    pub requests_per_second_per_client: Option<u32>,
}

impl Http {
    /// The default of `max_body_bytes`.
    pub const DEFAULT_MAX_BODY_BYTES: usize = 32 << 20;
    const MAX_BODY_BYTES_BOUNDS: (i64, i64) = (64 << 10, 1 << 30);

    /// The default of `ready_max_lag`: an origin may be restarted, and no edge sends its clients away.
    pub const DEFAULT_READY_MAX_LAG: Duration = Duration::from_secs(60);
    const READY_MAX_LAG_MS_BOUNDS: (i64, i64) = (100, 86_400_000);

    /// The default of `slow_statement`.
    pub const DEFAULT_SLOW_STATEMENT: Duration = Duration::from_secs(1);
    const SLOW_STATEMENT_MS_BOUNDS: (i64, i64) = (0, 3_600_000);

    /// A server with the defaults.
    pub fn on(listen: SocketAddr) -> Self {
        Self {
            listen,
            allow_unauthenticated: false,
            max_body_bytes: Self::DEFAULT_MAX_BODY_BYTES,
            ready_max_lag: Self::DEFAULT_READY_MAX_LAG,
            slow_statement: Some(Self::DEFAULT_SLOW_STATEMENT),
            bookmark_key: None,
            subject_sessions: false,
            auth: None,
            tls: None,
            limits: HttpLimits::default(),
        }
    }
}

impl Auth {
    const DEFAULT_LEEWAY_S: usize = 30;
    const LEEWAY_S_BOUNDS: (i64, i64) = (0, 600);
}

impl HttpLimits {
    /// The default of `connections`.
    pub const DEFAULT_CONNECTIONS: usize = 1024;
    const CONNECTIONS_BOUNDS: (i64, i64) = (1, 65_536);
    const REQUESTS_BOUNDS: (i64, i64) = (1, 10_000_000);
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: Self::DEFAULT_CONNECTIONS,
            requests_per_second: None,
            requests_per_second_per_client: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHttp {
    listen: String,
    #[serde(default)]
    allow_unauthenticated: bool,
    max_body_bytes: Option<i64>,
    ready_max_lag_ms: Option<i64>,
    slow_statement_ms: Option<i64>,
    #[serde(default)]
    subject_sessions: bool,
    bookmark_key: Option<PathBuf>,
    auth: Option<RawAuth>,
    tls: Option<RawServerTls>,
    limits: Option<RawLimits>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAuth {
    keys: Vec<PathBuf>,
    issuer: Option<String>,
    audience: Option<String>,
    leeway_s: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawServerTls {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    connections: Option<i64>,
    requests_per_second: Option<i64>,
    requests_per_second_per_client: Option<i64>,
}

impl RawHttp {
    pub(super) fn resolve(self, directory: &Path) -> Result<Http, ConfigError> {
        let listen = socket_address("http.listen", &self.listen)?;
        let auth = self.auth.map(|auth| auth.resolve(directory)).transpose()?;
        if auth.is_some() && self.allow_unauthenticated {
            return Err(ConfigError::Contradiction(
                "http.allow_unauthenticated = true with [http.auth], which lets nobody in without a \
                 token: leave one of them out"
                    .to_owned(),
            ));
        }
        if self.subject_sessions && auth.is_none() {
            return Err(ConfigError::Contradiction(
                "http.subject_sessions = true without [http.auth]: it is by their tokens that clients are \
                 known"
                    .to_owned(),
            ));
        }
        if !is_loopback(listen.ip()) && auth.is_none() && !self.allow_unauthenticated {
            return Err(ConfigError::Contradiction(format!(
                "http.listen = {listen} is not a loopback address, and without [http.auth] whoever \
                 reaches the port could read and write everything. Say in [http.auth] whose tokens let \
                 clients in, listen on 127.0.0.1, or set http.allow_unauthenticated = true where the \
                 network itself keeps strangers out"
            )));
        }
        let max_body_bytes = match self.max_body_bytes {
            None => Http::DEFAULT_MAX_BODY_BYTES,
            Some(n) => bounded("http.max_body_bytes", n, Http::MAX_BODY_BYTES_BOUNDS)?,
        };
        let ready_max_lag = match self.ready_max_lag_ms {
            None => Http::DEFAULT_READY_MAX_LAG,
            Some(n) => Duration::from_millis(bounded(
                "http.ready_max_lag_ms",
                n,
                Http::READY_MAX_LAG_MS_BOUNDS,
            )? as u64),
        };
        let slow_statement = match self.slow_statement_ms {
            None => Some(Http::DEFAULT_SLOW_STATEMENT),
            Some(0) => None,
            Some(n) => Some(Duration::from_millis(bounded(
                "http.slow_statement_ms",
                n,
                Http::SLOW_STATEMENT_MS_BOUNDS,
            )? as u64)),
        };
        Ok(Http {
            listen,
            allow_unauthenticated: self.allow_unauthenticated,
            max_body_bytes,
            ready_max_lag,
            slow_statement,
            bookmark_key: self.bookmark_key.map(|path| directory.join(path)),
            subject_sessions: self.subject_sessions,
            auth,
            tls: self.tls.map(|tls| ServerTls {
                certificate: directory.join(tls.certificate),
                key: directory.join(tls.key),
            }),
            limits: self.limits.unwrap_or_default().resolve()?,
        })
    }
}

impl RawAuth {
    fn resolve(self, directory: &Path) -> Result<Auth, ConfigError> {
        if self.keys.is_empty() {
            return Err(ConfigError::value("http.auth.keys", "[]", "at least one file"));
        }
        let leeway = match self.leeway_s {
            None => Auth::DEFAULT_LEEWAY_S,
            Some(n) => bounded("http.auth.leeway_s", n, Auth::LEEWAY_S_BOUNDS)?,
        };
        Ok(Auth {
            keys: self.keys.into_iter().map(|key| directory.join(key)).collect(),
            issuer: self.issuer,
            audience: self.audience,
            leeway: Duration::from_secs(leeway as u64),
        })
    }
}

impl RawLimits {
    fn resolve(self) -> Result<HttpLimits, ConfigError> {
        let rate = |key: &str, n: Option<i64>| -> Result<Option<u32>, ConfigError> {
            let Some(n) = n else { return Ok(None) };
            let n = bounded(&format!("http.limits.{key}"), n, HttpLimits::REQUESTS_BOUNDS)?;
            Ok(u32::try_from(n).ok())
        };
        Ok(HttpLimits {
            connections: match self.connections {
                None => HttpLimits::DEFAULT_CONNECTIONS,
                Some(n) => bounded("http.limits.connections", n, HttpLimits::CONNECTIONS_BOUNDS)?,
            },
            requests_per_second: rate("requests_per_second", self.requests_per_second)?,
            requests_per_second_per_client: rate(
                "requests_per_second_per_client",
                self.requests_per_second_per_client,
            )?,
        })
    }
}
