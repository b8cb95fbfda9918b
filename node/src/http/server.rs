//! Accepts connections, with TLS where it is configured, and serves the router on each.
//!
//! Bounds: connections at one time, the time for a handshake and the time for a request's head. Whoever
//! waits for a connection waits in the system's queue.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{Router, extract::Request};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;
use tracing::{debug, error, info, warn};

use super::access::RemoteAddress;
use crate::{
    config::ServerTls,
    watched::{LOOK_EVERY, Watched},
};

/// How long stopping waits for requests that are being answered.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the head of a request may take, the time that a connection is idle before it included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Accepting failed for want of files or memory: time for some to come free.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What a server serves, and how much at one time.
pub(super) struct Server {
    pub(super) listener: TcpListener,
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) router: Router,
    pub(super) connections: usize,
    pub(super) renewals: Renewals,
}

/// Certificate and key of the server, read again when their files change. Connections that are up keep what
/// they began with.
pub(super) struct Renewals(mpsc::Receiver<TlsAcceptor>);

impl Renewals {
    /// Watches the files, if there are any, for as long as this lives.
    pub(super) fn of(files: Option<ServerTls>) -> Self {
        let (send, receive) = mpsc::channel(1);
        if let Some(files) = files {
            // Looked at before they are read, so that no change goes unseen.
            let watched = Watched::new(vec![files.certificate.clone(), files.key.clone()]);
            tokio::spawn(watch_files(files, watched, send));
        }
        Self(receive)
    }

    async fn next(&mut self) -> TlsAcceptor {
        match self.0.recv().await {
            Some(acceptor) => acceptor,
            None => std::future::pending().await,
        }
    }
}

async fn watch_files(files: ServerTls, mut watched: Watched, send: mpsc::Sender<TlsAcceptor>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = send.closed() => return,
        }
        let files = files.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let changed = watched.look();
            (changed.then(|| acceptor(&files)), watched)
        });
        // It ends with an error only when the runtime does.
        let Ok((loaded, again)) = looked.await else { return };
        watched = again;
        match loaded {
            None => {}
            Some(Ok(acceptor)) => {
                info!("certificate and key of the HTTP server were read again");
                if send.send(acceptor).await.is_err() {
                    return;
                }
            }
            Some(Err(error)) => {
                error!(%error, "certificate or key of the HTTP server have changed and cannot be used; \
                    the old ones stay");
            }
        }
    }
}

impl Server {
    /// Serves until `stopping` says so, then waits for requests under way. Dropping the future ends all
    /// connections.
    pub(super) async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        let permits = Arc::new(Semaphore::new(self.connections));
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let accept = async {
                let permit = Arc::clone(&permits).acquire_owned().await;
                (permit, self.listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                // An error says that the server was dropped, which stops it as well.
                _ = stopping.wait_for(|stop| *stop) => break,
                accepted = accept => accepted,
                renewed = self.renewals.next() => {
                    self.tls = Some(renewed);
                    continue;
                }
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "answers on a connection may be delayed");
            }
            let (tls, router, watcher) =
                (self.tls.clone(), self.router.clone(), graceful.watcher());
            connections.spawn(async move {
                let _permit = permit;
                match tls {
                    None => serve(stream, address, router, watcher).await,
                    Some(tls) => match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
                        Ok(Ok(stream)) => serve(stream, address, router, watcher).await,
                        Ok(Err(error)) => debug!(%error, "a TLS handshake failed"),
                        Err(_) => debug!("a TLS handshake took too long"),
                    },
                }
            });
        }
        drop(self.listener);
        if timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
            warn!("some requests were still under way when the server stopped");
        }
    }
}

async fn serve<S>(stream: S, address: SocketAddr, router: Router, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(RemoteAddress(address));
        // A router is always ready.
        router.clone().call(request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        debug!(%error, "a connection broke off");
    }
}

/// Reads certificate and key.
pub(super) fn acceptor(files: &ServerTls) -> Result<TlsAcceptor, TlsFilesError> {
    let broken = |path: &Path, what: String| TlsFilesError { path: path.to_owned(), what };
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| broken(&files.certificate, error.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| broken(&files.key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| broken(&files.certificate, error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| broken(&files.certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Certificate or key of the server are of no use.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub(super) struct TlsFilesError {
    path: PathBuf,
    what: String,
}
