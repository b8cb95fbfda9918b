//! [`Verifier`]: the keys that sign tokens, and what a token that arrives is worth.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse},
};
use littoral::Grants;
use parking_lot::Mutex;

use super::{Claims, crypto};

/// How often the key files are looked at for a change.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// So many tokens are remembered with what they are worth.
const REMEMBERED: usize = 4096;

/// Longer ones are refused unread.
const TOKEN_BYTES_MAX: usize = 8 << 10;

/// A file has no more keys: a token that nobody has signed is tried with all of them.
const KEYS_PER_FILE_MAX: usize = 64;

/// Why keys or a token could not be made or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("cannot read {}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error(
        "{}: expected public keys in PEM (Ed25519, P-256 or RSA of 2048 bits and more) or a JSON Web \
         Key Set: {what}",
        path.display()
    )]
    Format { path: PathBuf, what: String },
    #[error("{0}")]
    Key(String),
}

/// Why a token is worth nothing. What it says is not repeated.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("no token was sent: the header Authorization: Bearer TOKEN is needed")]
    Missing,
    #[error("the token is not a JSON Web Token that this node can read")]
    Malformed,
    #[error("the token's algorithm is none of EdDSA, ES256 and RS256, or no key is for it")]
    Algorithm,
    #[error("no key of this node has signed the token")]
    Signature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the token was issued by somebody else than this node expects")]
    Issuer,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token's claims cannot be read: {0}")]
    Claims(String),
}

/// Whom tokens are taken from.
pub(crate) struct Verifier {
    files: Vec<PathBuf>,
    validation: Validation,
    state: Mutex<State>,
}

struct State {
    keys: Vec<Key>,
    /// Length and time of change of each file when it was read.
    files_were: Vec<Option<(u64, SystemTime)>>,
    looked: Instant,
    /// What tokens are worth that were checked before, by their hash.
    known: BTreeMap<[u8; 32], Arc<Bearer>>,
}

/// A valid token.
#[derive(Debug)]
pub(crate) struct Bearer {
    pub(crate) claims: Claims,
    /// What the engine is to allow.
    pub(crate) grants: Arc<Grants>,
}

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Verifier {
    /// Reads the keys.
    pub(crate) fn new(
        files: Vec<PathBuf>,
        issuer: Option<&str>,
        audience: Option<&str>,
        leeway: Duration,
    ) -> Result<Self, KeyError> {
        crypto::install();
        let files_were = files.iter().map(|file| changed(file)).collect();
        let keys = read_all(&files)?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = leeway.as_secs();
        validation.validate_nbf = true;
        // A token that names an audience is for that one only.
        validation.validate_aud = true;
        let mut required = vec!["exp"];
        if let Some(issuer) = issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if let Some(audience) = audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        let state = State { keys, files_were, looked: Instant::now(), known: BTreeMap::new() };
        Ok(Self { files, validation, state: Mutex::new(state) })
    }

    /// What a token says, if it is valid now.
    pub(crate) fn verify(&self, token: &str) -> Result<Arc<Bearer>, Refused> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refused::Malformed);
        }
        let hash = *blake3::hash(token.as_bytes()).as_bytes();
        let mut state = self.state.lock();
        self.look_at_files(&mut state);
        if let Some(bearer) = state.known.get(&hash) {
            let now = jsonwebtoken::get_current_timestamp();
            if bearer.claims.exp.saturating_add(self.validation.leeway) > now {
                return Ok(Arc::clone(bearer));
            }
            state.known.remove(&hash);
            return Err(Refused::Expired);
        }
        let claims = self.check(&state.keys, token)?;
        let grants = Arc::new(claims.littoral.grants());
        let bearer = Arc::new(Bearer { claims, grants });
        if state.known.len() >= REMEMBERED {
            state.known.clear();
        }
        state.known.insert(hash, Arc::clone(&bearer));
        Ok(bearer)
    }

    fn check(&self, keys: &[Key], token: &str) -> Result<Claims, Refused> {
        let header = jsonwebtoken::decode_header(token).map_err(|error| match error.kind() {
            // Also "none".
            ErrorKind::Json(_) | ErrorKind::InvalidAlgorithmName => Refused::Algorithm,
            _ => Refused::Malformed,
        })?;
        let named = |key: &&Key| match (&header.kid, &key.id) {
            (Some(wanted), Some(id)) => wanted == id,
            _ => true,
        };
        let mut refused = Refused::Algorithm;
        let validation = Validation { algorithms: vec![header.alg], ..self.validation.clone() };
        for key in keys.iter().filter(|key| key.algorithm == header.alg).filter(named) {
            match jsonwebtoken::decode::<Claims>(token, &key.key, &validation) {
                Ok(token) => return Ok(token.claims),
                Err(error) => refused = why(error.kind()),
            }
            if refused != Refused::Signature {
                break;
            }
        }
        Err(refused)
    }

    /// Reads the keys again if their files have changed. Keys that cannot be read leave the old ones.
    fn look_at_files(&self, state: &mut State) {
        if state.looked.elapsed() < LOOK_EVERY {
            return;
        }
        state.looked = Instant::now();
        let files_are: Vec<_> = self.files.iter().map(|file| changed(file)).collect();
        if files_are == state.files_were {
            return;
        }
        match read_all(&self.files) {
            Ok(keys) => {
                state.keys = keys;
                state.known.clear();
                tracing::info!("the keys of tokens were read again");
            }
            Err(error) => {
                tracing::error!(%error, "the keys of tokens have changed and cannot be read; the old ones stay");
            }
        }
        state.files_were = files_are;
    }
}

fn why(error: &ErrorKind) -> Refused {
    match error {
        ErrorKind::InvalidSignature | ErrorKind::InvalidKeyFormat => Refused::Signature,
        ErrorKind::ExpiredSignature => Refused::Expired,
        ErrorKind::ImmatureSignature => Refused::NotYet,
        ErrorKind::InvalidIssuer => Refused::Issuer,
        ErrorKind::InvalidAudience => Refused::Audience,
        ErrorKind::InvalidAlgorithm => Refused::Algorithm,
        ErrorKind::MissingRequiredClaim(claim) => Refused::Claims(format!("{claim} is missing")),
        ErrorKind::InvalidClaimFormat(claim) => Refused::Claims(format!("{claim} is malformed")),
        // Its text may hold a value, but none that the client has not sent.
        ErrorKind::Json(error) => Refused::Claims(error.to_string()),
        _ => Refused::Malformed,
    }
}

fn changed(file: &Path) -> Option<(u64, SystemTime)> {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

fn read_all(files: &[PathBuf]) -> Result<Vec<Key>, KeyError> {
    let mut keys = Vec::new();
    for path in files {
        let bytes = fs::read(path).map_err(|error| KeyError::Read { path: path.clone(), error })?;
        let read = parse(&bytes).map_err(|what| KeyError::Format { path: path.clone(), what })?;
        keys.extend(read);
    }
    Ok(keys)
}

/// The keys of a file.
fn parse(bytes: &[u8]) -> Result<Vec<Key>, String> {
    let keys = match bytes.trim_ascii_start().starts_with(b"{") {
        true => parse_set(bytes)?,
        false => parse_pem(bytes)?,
    };
    if keys.len() > KEYS_PER_FILE_MAX {
        let found = keys.len();
        return Err(format!("it has {found} keys, and {KEYS_PER_FILE_MAX} are allowed"));
    }
    Ok(keys)
}

/// Several keys may follow one another, as `cat old.pem new.pem` puts them.
fn parse_pem(bytes: &[u8]) -> Result<Vec<Key>, String> {
    if bytes.windows(11).any(|part| part == b"PRIVATE KEY") {
        return Err("it is a private key; tokens are checked with the public one".to_owned());
    }
    let text = String::from_utf8_lossy(bytes);
    let parts = pem_parts(&text)?;
    let keys = parts.iter().enumerate().map(|(n, part)| {
        from_pem(part.as_bytes()).map_err(|what| match parts.len() {
            1 => what,
            all => format!("part {} of {all}: {what}", n + 1),
        })
    });
    keys.collect()
}

/// Each `BEGIN` up to its `END`. Files that are put together may lack the line's end between them.
fn pem_parts(text: &str) -> Result<Vec<&str>, String> {
    let (begin, end, dashes) = ("-----BEGIN ", "-----END ", "-----");
    let starts: Vec<usize> = text.match_indices(begin).map(|(at, _)| at).collect();
    if starts.is_empty() {
        return Err("it is none of them".to_owned());
    }
    let until = starts[1..].iter().copied().chain([text.len()]);
    let parts = starts.iter().zip(until).enumerate().map(|(n, (&start, until))| {
        let part = &text[start..until];
        let label = part.find(end).map(|at| at + end.len());
        let stop = label.and_then(|label| Some(label + part[label..].find(dashes)?));
        stop.map(|stop| &part[..stop + dashes.len()])
            .ok_or_else(|| format!("part {} of {} has no END line", n + 1, starts.len()))
    });
    parts.collect()
}

fn from_pem(part: &[u8]) -> Result<Key, String> {
    type Read = fn(&[u8]) -> jsonwebtoken::errors::Result<DecodingKey>;
    let kinds: [(Algorithm, Read); 3] = [
        (Algorithm::EdDSA, DecodingKey::from_ed_pem),
        (Algorithm::ES256, DecodingKey::from_ec_pem),
        (Algorithm::RS256, DecodingKey::from_rsa_pem),
    ];
    for (algorithm, read) in kinds {
        if let Ok(key) = read(part) {
            return checked(Key { id: None, algorithm, key });
        }
    }
    Err("it is none of them".to_owned())
}

fn parse_set(bytes: &[u8]) -> Result<Vec<Key>, String> {
    let set: JwkSet = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let mut keys = Vec::new();
    for (n, jwk) in set.keys.iter().enumerate() {
        let key = from_jwk(jwk).map_err(|what| format!("key {n} of the set: {what}"))?;
        keys.extend(key);
    }
    if keys.is_empty() {
        Err("no key of the set checks EdDSA, ES256 or RS256".to_owned())
    } else {
        Ok(keys)
    }
}

/// A key of a set; `None` for one that is of no use here, such as one that encrypts.
fn from_jwk(jwk: &Jwk) -> Result<Option<Key>, String> {
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return Ok(None);
    }
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        _ => return Ok(None),
    };
    let fits = match jwk.common.key_algorithm {
        None => true,
        Some(KeyAlgorithm::EdDSA) => algorithm == Algorithm::EdDSA,
        Some(KeyAlgorithm::ES256) => algorithm == Algorithm::ES256,
        Some(KeyAlgorithm::RS256) => algorithm == Algorithm::RS256,
        Some(_) => false,
    };
    if !fits {
        return Ok(None);
    }
    let key = DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?;
    checked(Key { id: jwk.common.key_id.clone(), algorithm, key }).map(Some)
}

/// The lengths of keys, which are looked at only when a signature is checked.
fn checked(key: Key) -> Result<Key, String> {
    let bytes = key.key.try_get_as_bytes().map_or(0, <[u8]>::len);
    match key.algorithm {
        Algorithm::ES256 if bytes != 65 => Err("the curve is another than P-256".to_owned()),
        Algorithm::EdDSA if bytes != 32 => Err("it is no Ed25519 key".to_owned()),
        _ => Ok(key),
    }
}
