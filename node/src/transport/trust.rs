//! [`Trust`]: which certificates are accepted now, and the files that say so, which are read again when
//! they change.
//!
//! A link lives as long as its peer's certificate would be accepted: when files change, and every
//! [`LOOK_EVERY`] for the sake of those that expire, each link is judged anew.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use littoral::{Identity, PeerId};
use parking_lot::{Mutex, RwLock};
use quinn::{ClientConfig, Endpoint, ServerConfig, TransportConfig};
use rustls::{pki_types::CertificateDer, server::danger::ClientCertVerifier};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::tls::{self, Loaded, Refused, TlsError};
use crate::{
    config::Tls,
    pki::{self, Facts},
    watched::{LOOK_EVERY, Watched},
};

/// A certificate that expires within this time is warned of, once it has lived for two thirds of its life.
const WARN_BEFORE: i64 = 30 * 24 * 60 * 60;

/// How often it is warned of.
const WARN_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// Which certificates are accepted now.
pub(crate) struct Trust {
    files: Tls,
    me: Identity,
    transport: Arc<TransportConfig>,
    current: RwLock<Current>,
    /// Says that links are to be judged.
    judge: watch::Sender<()>,
    /// The certificates of the peers of the links that are up.
    peers: Mutex<BTreeMap<PeerId, Facts>>,
}

struct Current {
    client: ClientConfig,
    verifier: Arc<dyn ClientCertVerifier>,
    own: Facts,
    authority_not_after: i64,
    /// Of what was warned, and when.
    warned: BTreeMap<String, Instant>,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust").field("files", &self.files).finish_non_exhaustive()
    }
}

/// Until when certificates are valid, in seconds since 1970.
#[derive(Clone, Debug)]
pub(crate) struct Validity {
    pub(crate) own: Facts,
    pub(crate) authority_not_after: i64,
    pub(crate) peers: BTreeMap<PeerId, Facts>,
}

impl Trust {
    /// Reads the files, and makes what an endpoint needs to accept connections.
    pub(super) fn load(
        files: &Tls,
        me: &Identity,
        transport: Arc<TransportConfig>,
    ) -> Result<(Self, ServerConfig, Watched), TlsError> {
        let Tls { ca, certificate, key, revoked } = files.clone();
        // Looked at before they are read, so that no change goes unseen.
        let watched = Watched::new([ca, certificate, key].into_iter().chain(revoked).collect());
        let loaded = tls::load(files, me)?;
        if let Some(why) = &loaded.own_refused {
            error!(why, "no link will be made: peers refuse this node");
        }
        let (current, server) = configure(loaded, &transport);
        let this = Self {
            files: files.clone(),
            me: me.clone(),
            transport,
            current: RwLock::new(current),
            judge: watch::Sender::new(()),
            peers: Mutex::default(),
        };
        Ok((this, server, watched))
    }

    /// How connections are made.
    pub(super) fn client(&self) -> ClientConfig {
        self.current.read().client.clone()
    }

    /// Whether a peer's certificates are accepted now.
    pub(super) fn judge(&self, chain: &[CertificateDer<'static>]) -> Result<(), Refused> {
        let verifier = Arc::clone(&self.current.read().verifier);
        tls::judge(&*verifier, chain)
    }

    /// Says when links are to be judged.
    pub(super) fn judgements(&self) -> watch::Receiver<()> {
        self.judge.subscribe()
    }

    /// A link is up.
    pub(super) fn linked(&self, peer: PeerId, chain: &[CertificateDer<'static>]) {
        let facts = chain.first().and_then(|first| pki::facts(first, self.me.cluster).ok());
        if let Some(facts) = facts {
            self.peers.lock().insert(peer, facts);
        }
    }

    /// A link is down.
    pub(super) fn unlinked(&self, peer: PeerId) {
        self.peers.lock().remove(&peer);
    }

    /// Until when certificates are valid.
    pub(crate) fn validity(&self) -> Validity {
        let current = self.current.read();
        Validity {
            own: current.own.clone(),
            authority_not_after: current.authority_not_after,
            peers: self.peers.lock().clone(),
        }
    }

    /// Looks at the files and the clock for as long as it is polled.
    pub(super) async fn keep(self: Arc<Self>, mut watched: Watched, endpoint: Endpoint) {
        loop {
            self.warn_of_expiry();
            tokio::time::sleep(LOOK_EVERY).await;
            let this = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || {
                let changed = watched.look();
                (changed.then(|| tls::load(&this.files, &this.me)), watched)
            });
            // It ends with an error only when the runtime does.
            let Ok((loaded, again)) = looked.await else { return };
            watched = again;
            match loaded {
                None => {}
                Some(Ok(loaded)) => self.take(loaded, &endpoint),
                Some(Err(error)) => {
                    error!(%error, "the certificates have changed and cannot be used; the old ones stay");
                }
            }
            self.judge.send_replace(());
        }
    }

    fn take(&self, loaded: Loaded, endpoint: &Endpoint) {
        match &loaded.own_refused {
            Some(why) => error!(why, "no link will be made: peers refuse this node"),
            None => info!(serial = loaded.own.serial, "certificates and key were read again"),
        }
        let (mut current, server) = configure(loaded, &self.transport);
        endpoint.set_server_config(Some(server));
        let mut old = self.current.write();
        current.warned = std::mem::take(&mut old.warned);
        *old = current;
    }

    fn warn_of_expiry(&self) {
        let now = now();
        let mut current = self.current.write();
        let mut all = vec![("this node".to_owned(), current.own.not_before, current.own.not_after)];
        all.push(("the authority".to_owned(), i64::MIN, current.authority_not_after));
        for facts in self.peers.lock().values() {
            all.push((facts.node.to_string(), facts.not_before, facts.not_after));
        }
        for (whose, not_before, not_after) in all {
            if !expires_soon(not_before, not_after, now) {
                current.warned.remove(&whose);
                continue;
            }
            let warned = current.warned.get(&whose);
            if warned.is_some_and(|at| at.elapsed() < WARN_EVERY) {
                continue;
            }
            let (hours, when) = ((not_after - now) / 3600, not_after);
            if hours < 0 {
                error!(whose, not_after = when, "a certificate has expired: renew it");
            } else {
                warn!(whose, hours, not_after = when, "a certificate expires soon: renew it");
            }
            current.warned.insert(whose, Instant::now());
        }
    }
}

/// A certificate that lives for days only is not warned of from its first day on.
fn expires_soon(not_before: i64, not_after: i64, now: i64) -> bool {
    let life = not_after.saturating_sub(not_before);
    not_after.saturating_sub(now) < WARN_BEFORE.min(life / 3)
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn configure(loaded: Loaded, transport: &Arc<TransportConfig>) -> (Current, ServerConfig) {
    let mut server = ServerConfig::with_crypto(loaded.server);
    server.transport_config(Arc::clone(transport)).migration(false);
    let mut client = ClientConfig::new(loaded.client);
    client.transport_config(Arc::clone(transport));
    let current = Current {
        client,
        verifier: loaded.verifier,
        own: loaded.own,
        authority_not_after: loaded.authority_not_after,
        warned: BTreeMap::new(),
    };
    (current, server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_warned_well_before_and_not_all_the_time() {
        const DAY: i64 = 24 * 60 * 60;
        assert!(!expires_soon(0, 3650 * DAY, 3600 * DAY));
        assert!(expires_soon(0, 3650 * DAY, 3621 * DAY));
        assert!(expires_soon(0, 3650 * DAY, 3651 * DAY));
        assert!(!expires_soon(0, 3 * DAY, DAY));
        assert!(expires_soon(0, 3 * DAY, 2 * DAY + 1));
        assert!(!expires_soon(i64::MIN, 3650 * DAY, 0), "an authority without a beginning");
    }
}
