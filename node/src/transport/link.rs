//! One task per link: frames from QUIC to events, and from the replica's outbox back to QUIC.
//!
//! The dialer opens three bidirectional streams and begins each with one byte, its tag; from there on
//! both directions of all of them carry frames. The task decides nothing: what a frame means, and
//! when a link is too slow or too silent, is the engine's business.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use littoral::{
    Channel, CloseCode, FRAME_HEADER_BYTES, Input, NodeId, PeerId, frame_length,
    limits::{
        CREDIT_WINDOW_BYTES, MAX_CONTROL_FRAME_BYTES, MAX_FRAME_BYTES, SNAPSHOT_WINDOW_BYTES,
    },
};
use quinn::{Connection, ReadExactError, RecvStream, SendStream, VarInt, WriteError};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{DELIVERY_TIMEOUT, GOODBYE_TIMEOUT, HANDSHAKE_TIMEOUT, Mode, Shared, Trust, chain_of};
use crate::runtime::{Event, EventSender, LinkOutbox, OUTBOX_BYTES_MAX, frame_cost};

/// Bytes of entries that one link may have waiting for the replica, or be receiving: what credit
/// allows its peer, twice.
const ENTRIES_WAITING_BYTES: usize = 16 << 20;
/// The same for control frames.
const CONTROL_WAITING_BYTES: usize = 8 << 20;
/// The same for pieces of a snapshot.
const SNAPSHOT_WAITING_BYTES: usize = 10 << 20;
/// A frame that waits counts for this much at least, which bounds how many do.
const FRAME_COST_MIN: usize = 32 << 10;
/// Frames handed to QUIC together at most.
const SEND_BATCH: usize = 64;
/// A frame's memory is taken in steps of this size as its bytes arrive, whatever its header claims.
const RECEIVE_STEP: usize = 256 << 10;

/// A peer acknowledges within milliseconds, on a long way within a round trip; one that has not by now is not
/// waited for when the link is closed.
const ANSWER_TIME: Duration = Duration::from_millis(300);
const ANSWER_ROUND_TRIPS: u32 = 3;

// A frame that fits into nothing would be waited for for ever.
const _: () = assert!(ENTRIES_WAITING_BYTES >= MAX_FRAME_BYTES);
const _: () = assert!(ENTRIES_WAITING_BYTES as u64 >= CREDIT_WINDOW_BYTES + MAX_FRAME_BYTES as u64);
const _: () = assert!(SNAPSHOT_WAITING_BYTES as u64 > SNAPSHOT_WINDOW_BYTES);
const _: () = assert!(CONTROL_WAITING_BYTES >= 2 * MAX_CONTROL_FRAME_BYTES);

/// Who dialed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    Dialer,
    Accepter,
}

/// Carries frames until either side closes the link.
pub(super) async fn run_link(
    shared: &Arc<Shared>,
    connection: Connection,
    node: NodeId,
    role: Role,
) {
    let mut suspensions = shared.suspensions.subscribe();
    if *shared.mode.borrow() != Mode::Open {
        close(&connection, CloseCode::Shutdown, "links are suspended");
        return;
    }
    let streams = match role {
        Role::Dialer => open_streams(&connection).await,
        Role::Accepter => accept_streams(&connection).await,
    };
    let streams = match streams {
        Ok(streams) => streams,
        Err(why) => {
            info!(%node, why, "no link was made");
            close(&connection, CloseCode::Malformed, &why);
            return;
        }
    };
    let peer = shared.next_peer();
    let chain = chain_of(&connection);
    shared.trust.linked(peer, &chain);
    let _counted = Counted::new(Arc::clone(shared), node.clone(), peer);
    let (control, control_frames) = mpsc::unbounded_channel();
    let (entries, entry_frames) = mpsc::unbounded_channel();
    let (snapshot, snapshot_frames) = mpsc::unbounded_channel();
    let closing = Arc::new(OnceLock::new());
    let waiting = Arc::new(AtomicUsize::new(0));
    let (overflow, overflowed) = oneshot::channel();
    shared.meter.linked(peer, Arc::clone(&waiting));
    let outbox = LinkOutbox {
        control,
        entries,
        snapshot,
        closing: Arc::clone(&closing),
        waiting: Arc::clone(&waiting),
        overflow,
    };
    if shared.events.send(Event::LinkUp { peer, node: node.clone(), outbox }).is_err() {
        close(&connection, CloseCode::Shutdown, "the node is stopping");
        return;
    }

    let send = async {
        tokio::try_join!(
            send_frames(streams.control.0, control_frames, &waiting),
            send_frames(streams.entries.0, entry_frames, &waiting),
            send_frames(streams.snapshot.0, snapshot_frames, &waiting),
        )
    };
    let receive = async {
        let received = tokio::try_join!(
            receive_frames(&shared.events, peer, Channel::Control, streams.control.1),
            receive_frames(&shared.events, peer, Channel::Entries, streams.entries.1),
            receive_frames(&shared.events, peer, Channel::Snapshot, streams.snapshot.1),
        );
        if let Err(end) = received {
            return end;
        }
        // The peer is closing the link and about to say why, or it answers to our own closing, which
        // is to end first.
        let _ = timeout(GOODBYE_TIMEOUT, connection.closed()).await;
        End::Lost("the peer ended its streams".to_owned())
    };
    let end = tokio::select! {
        sent = send => match sent {
            // Both queues ended, so the replica has closed the link, and said why.
            Ok(_) => End::Closed,
            Err(error) => End::Lost(error.to_string()),
        },
        end = receive => end,
        end = given_up(overflowed, &connection) => end,
        _ = suspensions.changed() => End::Suspended,
        why = distrusted(&shared.trust, &chain) => End::Distrusted(why),
    };
    match end {
        End::Closed => {
            let (code, reason) = closing
                .get()
                .map_or((CloseCode::Shutdown, "shutdown"), |(code, why)| (*code, why.as_str()));
            debug!(peer = peer.0, %node, ?code, reason, "link closed");
            close(&connection, code, reason);
            return;
        }
        End::Broken(why) => {
            info!(peer = peer.0, %node, why, "link closed: the peer broke the framing");
            close(&connection, CloseCode::Malformed, &why);
        }
        End::Overflow => {
            let why = format!(
                "more than {} MiB wait to be sent: the peer does not read",
                OUTBOX_BYTES_MAX >> 20
            );
            warn!(peer = peer.0, %node, why, "link closed");
            close(&connection, CloseCode::TimedOut, &why);
        }
        End::Distrusted(why) => {
            warn!(peer = peer.0, %node, why, "link closed");
            close(&connection, CloseCode::Certificate, &format!("{node}: {why}"));
        }
        End::Suspended => {
            debug!(peer = peer.0, %node, "link dropped");
            close(&connection, CloseCode::Shutdown, "links are suspended");
        }
        End::Lost(why) => {
            // What the peer said when it closed is better to know than which stream noticed it first.
            let why = connection.close_reason().map_or(why, |reason| reason.to_string());
            info!(peer = peer.0, %node, why, "link lost");
            close(&connection, CloseCode::Shutdown, "link lost");
        }
    }
    // An error says that the replica has ended, and its links with it.
    let _ = shared.events.send(Event::Input(Input::PeerDown { peer }));
}

/// How a link ends.
enum End {
    /// The replica closed it, and what it had sent before is delivered.
    Closed,
    /// The connection is gone.
    Lost(String),
    /// The peer sent what is no frame.
    Broken(String),
    /// The peer does not read what it is sent.
    Overflow,
    /// The operator suspended links.
    Suspended,
    /// The peer's certificate is not accepted any more.
    Distrusted(String),
}

/// Ends, with the reason, when the peer's certificate is not accepted any more.
async fn distrusted(trust: &Trust, chain: &[CertificateDer<'static>]) -> String {
    let mut judgements = trust.judgements();
    loop {
        if let Err(why) = trust.judge(chain) {
            return why.to_string();
        }
        // The sender lives in `trust`, so the wait cannot fail.
        let _ = judgements.changed().await.is_ok();
    }
}

/// Ends when the replica has closed the link and what it had sent before is not delivered in time, or
/// cannot be, or when too much waits.
async fn given_up(overflow: oneshot::Receiver<()>, connection: &Connection) -> End {
    if overflow.await.is_ok() {
        return End::Overflow;
    }
    tokio::select! {
        () = sleep(DELIVERY_TIMEOUT) => {}
        () = unanswered(connection) => info!("the peer does not answer: it is not waited for"),
    }
    End::Closed
}

/// Ends when the peer was sent something and then nothing at all has come from it: it was killed, or is cut
/// off. One that does not read is not meant, since it is sent nothing more.
async fn unanswered(connection: &Connection) {
    let datagrams = || {
        let stats = connection.stats();
        (stats.udp_tx.datagrams, stats.udp_rx.datagrams)
    };
    loop {
        let pause = ANSWER_TIME.max(connection.rtt() * ANSWER_ROUND_TRIPS);
        let (sent, heard) = datagrams();
        sleep(pause).await;
        let is_sent = datagrams().0 > sent;
        sleep(pause).await;
        if is_sent && datagrams().1 == heard {
            return;
        }
    }
}

struct Streams {
    control: (SendStream, RecvStream),
    entries: (SendStream, RecvStream),
    snapshot: (SendStream, RecvStream),
}

const fn tag(channel: Channel) -> u8 {
    match channel {
        Channel::Control => 0,
        Channel::Entries => 1,
        Channel::Snapshot => 2,
    }
}

/// Acknowledgements overtake entries where both wait, and entries overtake snapshots.
const fn priority(channel: Channel) -> i32 {
    match channel {
        Channel::Control => 1,
        Channel::Entries => 0,
        Channel::Snapshot => -1,
    }
}

async fn open_streams(connection: &Connection) -> Result<Streams, String> {
    let open = async |channel| {
        let (mut send, receive) = connection.open_bi().await.map_err(|e| e.to_string())?;
        send.write_all(&[tag(channel)]).await.map_err(|e| e.to_string())?;
        send.set_priority(priority(channel)).map_err(|e| e.to_string())?;
        Ok::<_, String>((send, receive))
    };
    let all = async {
        Ok(Streams {
            control: open(Channel::Control).await?,
            entries: open(Channel::Entries).await?,
            snapshot: open(Channel::Snapshot).await?,
        })
    };
    in_time(all).await
}

async fn accept_streams(connection: &Connection) -> Result<Streams, String> {
    let accept = async || {
        let (send, mut receive) = connection.accept_bi().await.map_err(|e| e.to_string())?;
        let mut tag = [0];
        receive.read_exact(&mut tag).await.map_err(|e| e.to_string())?;
        Ok::<_, String>((tag[0], (send, receive)))
    };
    let all = async { Ok([accept().await?, accept().await?, accept().await?]) };
    let mut streams = in_time(all).await?;
    streams.sort_by_key(|(tag, _)| *tag);
    let tags = streams.each_ref().map(|(tag, _)| *tag);
    let channels = [Channel::Control, Channel::Entries, Channel::Snapshot];
    if tags != channels.map(tag) {
        return Err(format!("the streams have tags {tags:?}, expected 0, 1 and 2"));
    }
    for ((_, (send, _)), channel) in streams.iter().zip(channels) {
        send.set_priority(priority(channel)).map_err(|e| e.to_string())?;
    }
    let [control, entries, snapshot] = streams.map(|(_, stream)| stream);
    Ok(Streams { control, entries, snapshot })
}

async fn in_time<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    timeout(HANDSHAKE_TIMEOUT, work)
        .await
        .map_err(|_| "the streams were not opened in time".to_owned())
        .flatten()
}

/// Sends until the replica drops the outbox, then waits until the peer has it all.
async fn send_frames(
    mut stream: SendStream,
    mut frames: mpsc::UnboundedReceiver<Bytes>,
    waiting: &AtomicUsize,
) -> Result<(), WriteError> {
    let mut batch = Vec::with_capacity(SEND_BATCH);
    while frames.recv_many(&mut batch, SEND_BATCH).await > 0 {
        let cost = batch.iter().map(frame_cost).sum();
        stream.write_all_chunks(&mut batch).await?;
        waiting.fetch_sub(cost, Ordering::Relaxed);
        batch.clear();
    }
    if stream.finish().is_ok() && timeout(GOODBYE_TIMEOUT, stream.stopped()).await.is_err() {
        debug!("the peer did not acknowledge the end of a stream");
    }
    Ok(())
}

async fn receive_frames(
    events: &EventSender,
    peer: PeerId,
    channel: Channel,
    mut stream: RecvStream,
) -> Result<(), End> {
    let waiting = Arc::new(Semaphore::new(match channel {
        Channel::Control => CONTROL_WAITING_BYTES,
        Channel::Entries => ENTRIES_WAITING_BYTES,
        Channel::Snapshot => SNAPSHOT_WAITING_BYTES,
    }));
    loop {
        let mut header = [0; FRAME_HEADER_BYTES];
        match stream.read_exact(&mut header).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(0)) => return Ok(()),
            Err(error) => return Err(End::Lost(error.to_string())),
        }
        let length = frame_length(channel, header).map_err(|e| End::Broken(e.to_string()))?;
        let cost = u32::try_from((FRAME_HEADER_BYTES + length).max(FRAME_COST_MIN))
            .map_err(|error| End::Broken(error.to_string()))?;
        let permit = Arc::clone(&waiting).acquire_many_owned(cost).await;
        let Ok(permit) = permit else { return Ok(()) };
        let bytes = receive_body(&mut stream, header, length).await?;
        let frame = Event::Frame { peer, channel, bytes, permit };
        if events.send(frame).is_err() {
            return Err(End::Lost("the node is stopping".to_owned()));
        }
    }
}

async fn receive_body(
    stream: &mut RecvStream,
    header: [u8; FRAME_HEADER_BYTES],
    length: usize,
) -> Result<Vec<u8>, End> {
    let mut bytes = Vec::with_capacity(FRAME_HEADER_BYTES + length.min(RECEIVE_STEP));
    bytes.extend_from_slice(&header);
    let whole = FRAME_HEADER_BYTES + length;
    while bytes.len() < whole {
        match stream.read_chunk(whole - bytes.len(), true).await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk.bytes),
            Ok(None) => return Err(End::Lost("the stream ended within a frame".to_owned())),
            Err(error) => return Err(End::Lost(error.to_string())),
        }
    }
    Ok(bytes)
}

pub(super) fn close(connection: &Connection, code: CloseCode, reason: &str) {
    connection.close(VarInt::from_u32(code.to_u32()), reason.as_bytes());
}

/// Counts a link as up, for dialers and for who waits until all are closed.
struct Counted {
    shared: Arc<Shared>,
    node: NodeId,
    peer: PeerId,
}

impl Counted {
    fn new(shared: Arc<Shared>, node: NodeId, peer: PeerId) -> Self {
        shared.links.send_modify(|links| *links.entry(node.clone()).or_default() += 1);
        Self { shared, node, peer }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.trust.unlinked(self.peer);
        self.shared.meter.unlinked(self.peer);
        self.shared.links.send_modify(|links| {
            if let Some(count) = links.get_mut(&self.node) {
                *count -= 1;
                if *count == 0 {
                    links.remove(&self.node);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::TryRecvError;

    use littoral::{ClusterId, Identity, Incarnation};
    use quinn::{ClientConfig, Endpoint, ServerConfig};

    use super::*;
    use crate::{
        config::Tls,
        pki::{self, Authority},
        transport::tls,
    };

    /// A connection of a node to itself: what is sent on the first stream arrives on the second.
    async fn loopback() -> (Connection, Connection) {
        let home = tempfile::tempdir().unwrap();
        let authority = Authority::create(ClusterId(1)).unwrap();
        let node = NodeId::new("a").unwrap();
        let issued = authority.issue(&node).unwrap();
        let files = Tls {
            ca: home.path().join("ca.pem"),
            certificate: home.path().join("node.pem"),
            key: home.path().join("node.key"),
            revoked: None,
        };
        std::fs::write(&files.ca, authority.certificate()).unwrap();
        std::fs::write(&files.certificate, issued.certificate).unwrap();
        pki::write_private(&files.key, &issued.key).unwrap();
        let me =
            Identity { cluster: ClusterId(1), node: node.clone(), incarnation: Incarnation(1) };
        let configs = tls::load(&files, &me).unwrap();
        let server = ServerConfig::with_crypto(configs.server);
        let endpoint = Endpoint::server(server, ([127, 0, 0, 1], 0).into()).unwrap();
        let address = endpoint.local_addr().unwrap();
        let name = pki::dns_name(&node, ClusterId(1));
        let client = ClientConfig::new(configs.client);
        let dialing = endpoint.connect_with(client, address, &name).unwrap();
        let accepting = async { endpoint.accept().await.unwrap().await.unwrap() };
        let (dialed, accepted) = tokio::join!(dialing, accepting);
        (dialed.unwrap(), accepted)
    }

    #[tokio::test]
    async fn what_a_peer_sends_waits_outside_once_enough_waits_here() {
        const BODY: usize = 1 << 20;
        let (dialed, accepted) = loopback().await;
        let sending = tokio::spawn(async move {
            let (mut send, _receive) = dialed.open_bi().await.unwrap();
            let mut frame = u32::try_from(BODY).unwrap().to_le_bytes().to_vec();
            frame.push(2);
            frame.resize(FRAME_HEADER_BYTES + BODY, 0);
            while send.write_all(&frame).await.is_ok() {}
        });
        let (_send, receive) = accepted.accept_bi().await.unwrap();
        let (events, inbox) = std::sync::mpsc::channel();
        let receiving = tokio::spawn(async move {
            receive_frames(&events, PeerId(1), Channel::Entries, receive).await.is_ok()
        });
        let mut waiting = Vec::new();
        let take = async |waiting: &mut Vec<Event>, upto: usize| {
            for _ in 0..2000 {
                match inbox.try_recv() {
                    Ok(event) => waiting.push(event),
                    Err(TryRecvError::Empty) if waiting.len() < upto => {
                        sleep(Duration::from_millis(10)).await;
                    }
                    Err(_) => break,
                }
            }
            assert_eq!(waiting.len(), upto);
        };
        let most = ENTRIES_WAITING_BYTES / (BODY + FRAME_HEADER_BYTES);
        take(&mut waiting, most).await;
        sleep(Duration::from_millis(500)).await;
        take(&mut waiting, most).await;
        waiting.pop();
        take(&mut waiting, most).await;
        receiving.abort();
        sending.abort();
    }
}
