//! [`Node`]: starts every part in order, and stops them in reverse.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::{info, warn};

pub use crate::runtime::StopError;
use crate::{
    config::{Config, Dial},
    http::{HttpError, HttpServer, PROGRAMS},
    runtime::{NodeHandle, Runtime, RuntimeError},
    transport::{Transport, TransportError},
};

/// Why a node did not start. What had started was stopped again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The replica could not be opened.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The QUIC endpoint could not start.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The HTTP server could not start.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The thread that opened the replica panicked.
    #[error("opening the replica failed by a bug; the log says where")]
    Panicked,
}

/// A running node. Dropping it stops it without waiting; [`Node::stop`] waits.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use littoral_node::{Config, Node};
///
/// let node = Node::start(Config::load("edge1/littoral.toml".as_ref())?).await?;
/// let (id, _) = node
///     .handle()
///     .write(|tx| {
///         tx.execute("INSERT INTO notes (text) VALUES ('hello')", ())?;
///         Ok(tx.last_insert_rowid())
///     })
///     .await?;
/// println!("note {id} is committed");
/// node.stop().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Node {
    // In the order in which they are dropped: from the outside to the inside.
    http: Option<HttpServer>,
    transport: Transport,
    runtime: Runtime,
    links: SocketAddr,
    database: PathBuf,
}

impl Node {
    /// Opens the replica, then links, then serves clients. Call it on a tokio runtime.
    ///
    /// # Errors
    /// Tells which part could not start; nothing is left running.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let Config { identity, database, links, tls, http, .. } = config.clone();
        let runtime = tokio::task::spawn_blocking(move || Runtime::start(&config, PROGRAMS))
            .await
            .map_err(|_| StartError::Panicked)??;
        let transport = match Transport::start(&links, &tls, &identity, runtime.handle()) {
            Ok(transport) => transport,
            Err(error) => return Err(undo(runtime, None, error.into()).await),
        };
        let listen = transport.address();
        let http = match http {
            None => None,
            Some(config) => {
                let trust = Arc::clone(transport.trust());
                match HttpServer::start(&config, runtime.handle().clone(), trust).await {
                    Ok(server) => Some(server),
                    Err(error) => return Err(undo(runtime, Some(transport), error.into()).await),
                }
            }
        };
        info!(node = %identity.node, links = %listen, "started");
        Ok(Self { http, transport, runtime, links: listen, database })
    }

    /// Reads and writes.
    pub fn handle(&self) -> &NodeHandle {
        self.runtime.handle()
    }

    /// Where links are accepted.
    pub fn links_address(&self) -> SocketAddr {
        self.links
    }

    /// Where clients are served, if they are.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(HttpServer::address)
    }

    /// The SQLite file. Nothing but SQLite may open it while the node runs.
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// Dials one more node, now and whenever no link to it is up.
    pub fn dial(&self, dial: Dial) {
        self.transport.dial(dial);
    }

    /// Drops all links, and makes and accepts none until [`Node::resume_links`]. Clients are served on.
    pub fn suspend_links(&self) {
        self.transport.suspend();
    }

    /// Ends what [`Node::suspend_links`] began.
    pub fn resume_links(&self) {
        self.transport.resume();
    }

    /// Stops serving, lets requests end, closes the links and then the database.
    ///
    /// # Errors
    /// If the database was not closed in good order; the node has stopped all the same.
    pub async fn stop(self) -> Result<(), StopError> {
        let Self { http, transport, runtime, .. } = self;
        if let Some(http) = http {
            http.stop().await;
        }
        transport.stop_linking();
        let stopped = runtime.stop().await;
        transport.stop().await;
        stopped
    }
}

/// Stops what had started when something else could not, and gives back why it could not.
async fn undo(runtime: Runtime, transport: Option<Transport>, why: StartError) -> StartError {
    if let Some(transport) = &transport {
        transport.stop_linking();
    }
    if let Err(error) = runtime.stop().await {
        warn!(%error, "stopping after a failed start");
    }
    if let Some(transport) = transport {
        transport.stop().await;
    }
    why
}
