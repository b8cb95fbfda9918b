//! What a client's session carries from one request, and from one node, to the next: the header
//! `X-Littoral-Bookmark`.
//!
//! A request that brings one is run once this node has all that it names; if that takes too long, and it only
//! reads, at the origin, once that has it. Every answer gives one that covers what the session has seen so far,
//! and says how old what it shows may be. The header holds a [`Bookmark`] sealed with a key that all nodes of
//! the cluster share, so that nobody makes a node wait for what there is not.
//!
//! A client that brings none may have a session by its token's subject, which nobody keeps anywhere: before
//! such a request runs, this node gets all that the origin has, and before it is answered, the origin all that
//! this node has shown.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use littoral::Bookmark;

use super::{
    access::Principal,
    hrana::{Notes, failure},
    status::millis_up,
};
use crate::{config::Http, pki, runtime::NodeHandle};

const BOOKMARK: HeaderName = HeaderName::from_static("x-littoral-bookmark");
const LAG: HeaderName = HeaderName::from_static("x-littoral-lag");
const MAX_LAG: HeaderName = HeaderName::from_static("x-littoral-max-lag");
const READ_AT: HeaderName = HeaderName::from_static("x-littoral-read-at");
const SERVED_BY: HeaderName = HeaderName::from_static("x-littoral-served-by");
const STALE: HeaderName = HeaderName::from_static("x-littoral-stale");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// How long a request waits until this node has what its bookmark names, and again until that is as new as
/// it has to be.
const WAIT: Duration = Duration::from_secs(5);

/// How long one waits here that may be answered by the origin.
const WAIT_HERE: Duration = Duration::from_secs(1);

/// It reads nothing.
const OUTCOME: &str = "/v1/outcome";

/// Its answer may begin before all rows are read: then there is no bookmark of them in its header.
const CURSOR: &str = "/v3/cursor";

/// Why the key of bookmarks cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The file could not be read.
    #[error("cannot read {} (http.bookmark_key): {error}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Others than its owner can read it.
    #[error("{} can be read by others than its owner: chmod 600 it", .0.display())]
    Readable(PathBuf),
    /// It is not what `init` wrote.
    #[error("{} holds no key: expected 64 hexadecimal digits, as `init` wrote", .0.display())]
    Malformed(PathBuf),
}

/// Seals bookmarks, and tells those that it has sealed.
struct Seal {
    key: [u8; 32],
}

/// A bookmark that was not sealed with this key, or not as a whole.
#[derive(Debug, PartialEq, Eq)]
struct Broken;

/// Whether a file holds a key that bookmarks can be sealed with.
pub(super) fn check(path: &Path) -> Result<(), SealError> {
    Seal::load(path).map(drop)
}

impl Seal {
    const MAC_BYTES: usize = 16;

    fn load(path: &Path) -> Result<Self, SealError> {
        let read = |error| SealError::Read { path: path.to_owned(), error };
        let text = fs::read_to_string(path).map_err(read)?;
        if pki::others_may_read(path).map_err(read)? {
            return Err(SealError::Readable(path.to_owned()));
        }
        let secret = blake3::Hash::from_hex(text.trim_end())
            .map_err(|_| SealError::Malformed(path.to_owned()))?;
        Ok(Self::new(secret.as_bytes()))
    }

    fn new(secret: &[u8; 32]) -> Self {
        Self { key: blake3::derive_key("littoral 2026 bookmarks of HTTP sessions", secret) }
    }

    fn mac(&self, bytes: &[u8]) -> [u8; Self::MAC_BYTES] {
        let mut mac = [0; Self::MAC_BYTES];
        mac.copy_from_slice(&blake3::keyed_hash(&self.key, bytes).as_bytes()[..Self::MAC_BYTES]);
        mac
    }

    fn seal(&self, bookmark: &Bookmark) -> String {
        let bytes = bookmark.encode();
        let mut sealed = self.mac(&bytes).to_vec();
        sealed.extend(bytes);
        URL_SAFE_NO_PAD.encode(sealed)
    }

    fn open(&self, text: &[u8]) -> Result<Bookmark, Broken> {
        let sealed = URL_SAFE_NO_PAD.decode(text).map_err(|_| Broken)?;
        let (mac, bytes) = sealed.split_at_checked(Self::MAC_BYTES).ok_or(Broken)?;
        // Hashed once more, so that the comparison takes as long wherever they differ.
        let [given, expected] =
            [mac, &self.mac(bytes)].map(|mac| blake3::keyed_hash(&self.key, mac));
        if given != expected {
            return Err(Broken);
        }
        Bookmark::decode(bytes).map_err(|_| Broken)
    }
}

/// What the requests of sessions need.
pub(super) struct Sessions {
    node: NodeHandle,
    name: HeaderValue,
    /// `None` on a node without a key, which gives no bookmarks and takes none.
    seal: Option<Seal>,
    by_subject: bool,
}

/// What the session of a request asks for before it runs, and before it is answered.
#[derive(Clone)]
pub(super) enum Session {
    /// Its client is known by its token only.
    BySubject(BySubject),
    /// This node has not reached the bookmark that it brings.
    Behind(Behind),
}

/// A request whose node does not reach its bookmark at once.
#[derive(Clone)]
pub(super) struct Behind {
    node: NodeHandle,
    pub(super) bookmark: Bookmark,
    /// How old what it reads here may be.
    most: Option<Duration>,
    /// Until when it may wait, here or at the origin.
    pub(super) until: Instant,
}

impl Behind {
    /// Waits here for the rest of the time, as what is to be done can be done nowhere else.
    pub(super) async fn catches_up(&self) -> Result<(), (&'static str, String)> {
        let left = self.until.saturating_duration_since(Instant::now());
        let reached = self.node.reach(&self.bookmark, left).await;
        reached.map_err(|error| (NOT_REACHED, error.to_string()))?;
        match self.most {
            Some(most) => {
                let fresh = self.node.freshen(most, WAIT).await;
                fresh.map_err(|error| (TOO_STALE, error.to_string()))
            }
            None => Ok(()),
        }
    }
}

/// The session of a request whose client is known by its token only.
#[derive(Clone)]
pub(super) struct BySubject(NodeHandle);

impl BySubject {
    pub(super) const fn new(node: NodeHandle) -> Self {
        Self(node)
    }

    /// Before the request runs: waits until this node has all that the client may have seen.
    pub(super) async fn begins(&self) -> Result<(), (&'static str, String)> {
        let seen = match self.0.meet_origin(WAIT).await {
            Ok(seen) => seen,
            Err(error) => {
                let why = format!(
                    "what this client has seen at other nodes cannot be known: {error}; nothing was run"
                );
                return Err((UNREACHABLE, why));
            }
        };
        let reached = self.0.reach(&seen, WAIT).await;
        reached.map_err(|error| (NOT_REACHED, error.to_string()))
    }

    /// Before it is answered: has the origin get all that it can have seen.
    pub(super) async fn ends(&self) -> Result<(), (&'static str, String)> {
        let met = self.0.meet_origin(WAIT).await;
        met.map(drop).map_err(|error| {
            let why = format!(
                "the request has run, and what it wrote stands, but other nodes may not show what it has \
                 seen: {error}"
            );
            (NOT_KEPT, why)
        })
    }
}

const UNREACHABLE: &str = "LITTORAL_ORIGIN_UNREACHABLE";
pub(super) const NOT_REACHED: &str = "LITTORAL_BOOKMARK_NOT_REACHED";
const TOO_STALE: &str = "LITTORAL_TOO_STALE";
const NOT_KEPT: &str = "LITTORAL_SESSION_NOT_KEPT";

/// Whether an error is of a session, and says to come again.
pub(super) fn is_of_session(code: &str) -> bool {
    [UNREACHABLE, NOT_REACHED, TOO_STALE, NOT_KEPT].contains(&code)
}

impl Sessions {
    pub(super) fn new(node: NodeHandle, config: &Http) -> Result<Self, SealError> {
        let seal = config.bookmark_key.as_deref().map(Seal::load).transpose()?;
        let name = HeaderValue::from_str(node.identity().node.as_str())
            .unwrap_or_else(|_| HeaderValue::from_static("?"));
        Ok(Self { node, name, seal, by_subject: config.subject_sessions })
    }

    /// The bookmark that a request brings.
    fn brought(&self, headers: &HeaderMap) -> Result<Option<Bookmark>, &'static str> {
        let Some(value) = headers.get(BOOKMARK) else { return Ok(None) };
        let Some(seal) = &self.seal else {
            return Err(
                "this node has no key for bookmarks: set http.bookmark_key to the file that \
                        the other nodes use",
            );
        };
        let broken = "X-Littoral-Bookmark is none that a node of this cluster has given";
        seal.open(value.as_bytes()).map(Some).map_err(|Broken| broken)
    }

    fn not_now(&self, code: &str, why: &str) -> Response {
        let mut response = failure(StatusCode::SERVICE_UNAVAILABLE, code, why);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        response.headers_mut().insert(SERVED_BY, self.name.clone());
        response
    }

    /// A bookmark of all that the session has seen: here, and before, or elsewhere.
    async fn given(&self, and: [&Option<Bookmark>; 2]) -> Option<HeaderValue> {
        let seal = self.seal.as_ref()?;
        let mut bookmark = self.node.bookmark().await.ok()?;
        for other in and.into_iter().flatten() {
            bookmark.include_all(other);
        }
        HeaderValue::from_str(&seal.seal(&bookmark)).ok()
    }
}

/// How old what a request reads may be.
fn max_lag(headers: &HeaderMap) -> Result<Option<Duration>, &'static str> {
    let Some(value) = headers.get(MAX_LAG) else { return Ok(None) };
    let ms = value.to_str().ok().and_then(|text| text.parse().ok());
    let ms = ms.ok_or("X-Littoral-Max-Lag is a whole number of milliseconds")?;
    Ok(Some(Duration::from_millis(ms)))
}

/// Runs a request where it sees all that its session has seen.
pub(super) async fn carry(
    State(sessions): State<Arc<Sessions>>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let runs_sql = request.method() == Method::POST
        && ["/v1/", "/v2/", "/v3/"].iter().any(|version| path.starts_with(version));
    let streams = path == CURSOR;
    if !runs_sql {
        return next.run(request).await;
    }
    let brought = match sessions.brought(request.headers()) {
        Ok(brought) => brought,
        Err(why) => return failure(StatusCode::BAD_REQUEST, "LITTORAL_BOOKMARK", why),
    };
    let most = match max_lag(request.headers()) {
        Ok(most) => most,
        Err(why) => return failure(StatusCode::BAD_REQUEST, "LITTORAL_MAX_LAG", why),
    };
    let began = Instant::now();
    // The origin's own reads have nowhere else to go.
    let runs_there = path != OUTCOME && sessions.node.lag() != Some(Duration::ZERO);
    let mut behind = None;
    if let Some(bookmark) = &brought
        && let Err(error) =
            sessions.node.reach(bookmark, if runs_there { WAIT_HERE } else { WAIT }).await
    {
        if !runs_there {
            return sessions.not_now(NOT_REACHED, &error.to_string());
        }
        let (node, bookmark) = (sessions.node.clone(), bookmark.clone());
        behind = Some(Behind { node, bookmark, most, until: began + WAIT });
    }
    if behind.is_none()
        && let Some(most) = most
        && let Err(error) = sessions.node.freshen(most, WAIT).await
    {
        return sessions.not_now(TOO_STALE, &error.to_string());
    }
    let who = request.extensions().get::<Principal>();
    let by_subject = sessions.by_subject && brought.is_none();
    if let Some(behind) = behind {
        request.extensions_mut().insert(Session::Behind(behind));
    } else if by_subject && who.is_some_and(|who| who.subject.is_some()) {
        let session = BySubject::new(sessions.node.clone());
        request.extensions_mut().insert(Session::BySubject(session));
    }
    let lag = sessions.node.lag();
    let waited = began.elapsed();
    let mut response = next.run(request).await;
    let ran = began.elapsed() - waited;
    let notes = response.extensions_mut().remove::<Notes>();
    let goes_on = streams && notes.is_none();
    let notes = notes.unwrap_or_default();
    let bookmark =
        if goes_on { None } else { sessions.given([&brought, &notes.seen_at_origin]).await };
    let comes_again = response.status() == StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    if comes_again {
        headers.entry(header::RETRY_AFTER).or_insert(HeaderValue::from_static("1"));
    }
    if notes.seen_at_origin.is_some() {
        headers.insert(READ_AT, HeaderValue::from_static("origin"));
    }
    if let Some(bookmark) = bookmark {
        headers.insert(BOOKMARK, bookmark);
    }
    if !notes.stale.is_empty() {
        let tables = notes.stale.into_iter().collect::<Vec<_>>().join(", ");
        // Names may have bytes that headers must not.
        let tables = HeaderValue::try_from(tables.into_bytes());
        headers.insert(STALE, tables.unwrap_or_else(|_| HeaderValue::from_static("?")));
    }
    headers.insert(SERVED_BY, sessions.name.clone());
    // What was read may be so old now: it was read after that was known.
    if let Some(lag) = lag {
        headers.insert(LAG, HeaderValue::from(millis_up(lag + ran)));
    }
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
    let timing = format!("wait;dur={:.3}, run;dur={:.3}", milliseconds(waited), milliseconds(ran));
    if let Ok(timing) = HeaderValue::from_str(&timing) {
        headers.insert(SERVER_TIMING, timing);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_that_is_not_the_clusters_is_told() {
        let (seal, other) = (Seal::new(&[1; 32]), Seal::new(&[2; 32]));
        let bookmark: Bookmark = "0101078cd0c4f60b0101ac02020105".parse().unwrap();
        let sealed = seal.seal(&bookmark);
        assert!(sealed.len() < 100, "{sealed}");
        assert_eq!(seal.open(sealed.as_bytes()), Ok(bookmark));
        assert_eq!(other.open(sealed.as_bytes()), Err(Broken));
        for place in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
            assert_eq!(seal.open(&changed), Err(Broken), "{place}");
            assert_eq!(seal.open(&changed[..place]), Err(Broken), "{place}");
        }
        assert_eq!(seal.open(b""), Err(Broken));
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_none_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bookmark.key");
        assert!(matches!(Seal::load(&path), Err(SealError::Read { .. })));
        pki::write_private(&path, &format!("{}\n", "ab".repeat(32))).unwrap();
        assert!(Seal::load(&path).is_ok());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            assert!(matches!(Seal::load(&path), Err(SealError::Readable(_))));
        }
        fs::remove_file(&path).unwrap();
        pki::write_private(&path, "ab").unwrap();
        assert!(matches!(Seal::load(&path), Err(SealError::Malformed(_))));
    }
}
