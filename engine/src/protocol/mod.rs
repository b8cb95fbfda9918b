//! [`PeerSession`]: the state machine of one link. It sees frames and entries, never SQLite.
//!
//! ```text
//!   control   Hello ─────────────►          entries   Entries ─────────────►  (what the peer lacks,
//!             ◄───────────── Hello                    ◄───────────── Entries   in log order)
//!             Ack, Credit, Ping ──►
//!             ◄── Ack, Credit, Pong
//! ```
//!
//! Both sides speak at once. `AwaitHello` keeps what arrives on the entries stream before the peer's
//! `Hello`, since the two streams are not ordered among each other; `Streaming` lasts until the link
//! ends. `docs/protocol.md` specifies messages, order and close codes.
//!
//! Invariants:
//! - entries are sent in this node's log order, none left out that the peer lacks;
//! - no more than the credit window is under way, except for a single larger entry.

pub(crate) mod acks;
pub(crate) mod forward;
pub(crate) mod frame;
mod hold;
pub(crate) mod message;
mod push;
pub(crate) mod snapshot;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    time::Duration,
};

use crate::{
    corrected::OriginTime,
    db::Snapshot,
    driver::{Channel, Identity},
    entry::{Digest, Entry, LargeName, codec::FORMAT},
    error::ProtocolError,
    id::{AuthorId, Incarnation, Lsn, NodeId, PeerId, Seq},
    limits::{
        ACK_INTERVAL, CREDIT_WINDOW_BYTES, KEEP_ALIVE, LINK_TIMEOUT, MAX_FRAME_BYTES,
        RELAY_ACK_INTERVAL, UNAPPLIED_BYTES_MAX,
    },
    log::Start,
    protocol::{
        acks::Acks,
        forward::{Carried, Reply, Requests},
        frame::{EntriesFrame, Payload, Piece, control_frame, decode_frame},
        hold::{Offered, Outgoing},
        message::{Answer, FRAME_VERSION, Hello, Message, Question, read_vector, wire_vector},
        snapshot::{Sending, Wish},
    },
    status::PeerStatus,
    time::Instant,
    version::{Dot, VersionVector},
};

/// Bytes of frames that may come before the peer's hello: what a window of credit allows.
#[expect(clippy::cast_possible_truncation, reason = "8 MiB fit")]
const EARLY_BYTES_MAX: usize = CREDIT_WINDOW_BYTES as usize + MAX_FRAME_BYTES;

/// One link.
#[derive(Debug)]
pub(crate) struct PeerSession {
    pub(crate) peer: PeerId,
    pub(crate) node: NodeId,
    pub(crate) since: Instant,
    state: State,
    /// Entries the peer has, or will have once it has taken what is under way.
    known: VersionVector,
    /// What the peer has said to hold on stable storage.
    acknowledged: VersionVector,
    /// The next position of the log to look at.
    cursor: Lsn,
    frame: EntriesFrame,
    /// Bytes of entries sent, and of those taken by the peer.
    entry_bytes_sent: u64,
    entry_bytes_credited: u64,
    /// Bytes of the peer's entries taken, and how many of them it was told.
    entry_bytes_taken: u64,
    entry_bytes_told: u64,
    /// The durable vector told last.
    told: VersionVector,
    ack_due: Instant,
    relay: Relay,
    ping_due: Instant,
    pub(crate) ping_every: Duration,
    /// The vectors of the watermarks told and heard last.
    watermarks: [Option<VersionVector>; 2],
    pub(crate) last_heard: Instant,
    round_trip: Option<Duration>,
    bytes_sent: u64,
    bytes_received: u64,
    outbox: VecDeque<(Channel, Vec<u8>)>,
    /// The large entry at which the stream to the peer stands.
    outgoing: Option<Outgoing>,
    /// The entry behind which the peer wants nothing now.
    held_by_peer: Option<Dot>,
    /// The large entry at which the stream from the peer stands.
    offered: Option<Offered>,
    /// A link to this node existed before in this process.
    pub(crate) is_reconnect: bool,
    /// Which life of the node is at the other end, once it has said hello.
    pub(crate) incarnation: Option<Incarnation>,
    /// The peer has too little for the log: nothing is streamed to it.
    pub(crate) needs_snapshot: bool,
    /// The peer says the same of us.
    pub(crate) says_snapshot_first: bool,
    /// What it had trimmed at its hello.
    pub(crate) trimmed: VersionVector,
    /// A snapshot that it waits for.
    pub(crate) wish: Option<Wish>,
    /// A snapshot on its way.
    pub(crate) sending: Option<Sending>,
    /// Requests to join that it was told, or told us.
    pub(crate) asked: BTreeSet<Incarnation>,
    /// What its entries are signed with, once that is known.
    pub(crate) author: Option<AuthorId>,
    /// The ping in front of the answer to its last question, while it has not answered that.
    unread: Option<u64>,
    /// Requests to the origin that go over this link.
    pub(crate) requests: Requests,
}

#[derive(Debug)]
enum State {
    AwaitHello { early: Vec<Vec<u8>>, early_bytes: usize },
    Streaming,
}

/// Which acknowledgements of other members the peer knows.
#[derive(Debug, Default)]
struct Relay {
    told: BTreeMap<AuthorId, VersionVector>,
    /// Up to which change of them it was told.
    version: u64,
    due: Instant,
}

/// What a frame brought.
#[derive(Debug)]
pub(crate) enum Received {
    Nothing,
    Hello(Box<Hello>),
    Entries(Vec<Entry>),
    AskJoin(NodeId, Incarnation),
    SnapshotFirst,
    AskSnapshot,
    /// What follows has this digest and size, and begins at this offset.
    Snapshot(Snapshot, u64),
    Piece(Piece),
    /// The peer offers a large entry, and waits for an answer.
    Large(LargeName),
    /// Bytes of a large entry that were asked for, from an offset on.
    Chunk(Dot, u64, Vec<u8>),
    /// The peer compares its rows with ours.
    Ask(u64, Question),
    /// We compare ours with the peer's.
    Answer(u64, Answer),
    /// The peer asks for a sign of life, and for the time.
    Ping(u64),
    /// What the peer takes the origin's wall clock to say, so long after it was asked.
    Time(Duration, OriginTime),
    /// The peer is so many links away from the origin.
    Distance(u8),
    /// A request to be carried to the origin.
    Carry(u64, Carried),
    /// What became of one.
    Reply(u64, Reply),
    /// What the origin had applied so long before a moment of ours.
    Watermark(Instant, Duration, VersionVector),
    /// What members hold on stable storage; the peer itself is `None`.
    Acks(Vec<(Option<AuthorId>, VersionVector)>),
}

impl PeerSession {
    pub(crate) fn new(peer: PeerId, node: NodeId, now: Instant, hello: Hello) -> Self {
        let mut session = Self {
            peer,
            node,
            since: now,
            state: State::AwaitHello { early: Vec::new(), early_bytes: 0 },
            known: VersionVector::new(),
            acknowledged: VersionVector::new(),
            cursor: Lsn(1),
            frame: EntriesFrame::default(),
            entry_bytes_sent: 0,
            entry_bytes_credited: 0,
            entry_bytes_taken: 0,
            entry_bytes_told: 0,
            told: VersionVector::new(),
            ack_due: now,
            relay: Relay { due: now, ..Relay::default() },
            // The peer is asked for the time as soon as there is somebody to ask.
            ping_due: now,
            ping_every: KEEP_ALIVE,
            watermarks: [None, None],
            last_heard: now,
            round_trip: None,
            bytes_sent: 0,
            bytes_received: 0,
            outbox: VecDeque::new(),
            outgoing: None,
            held_by_peer: None,
            offered: None,
            is_reconnect: false,
            incarnation: None,
            needs_snapshot: false,
            says_snapshot_first: false,
            trimmed: VersionVector::new(),
            wish: None,
            sending: None,
            asked: BTreeSet::new(),
            author: None,
            unread: None,
            requests: Requests::default(),
        };
        session.say(&Message::Hello(Box::new(hello)));
        session
    }

    pub(crate) fn is_streaming(&self) -> bool {
        matches!(self.state, State::Streaming)
    }

    /// Takes a frame.
    pub(crate) fn handle_frame(
        &mut self,
        now: Instant,
        channel: Channel,
        bytes: Vec<u8>,
    ) -> Result<Received, ProtocolError> {
        self.last_heard = now;
        self.bytes_received += bytes.len() as u64;
        if let (State::AwaitHello { early, early_bytes }, Channel::Entries) =
            (&mut self.state, channel)
        {
            *early_bytes += bytes.len();
            if *early_bytes > EARLY_BYTES_MAX {
                return Err(ProtocolError::Malformed("entries without a hello".to_owned()));
            }
            early.push(bytes);
            return Ok(Received::Nothing);
        }
        match decode_frame(channel, &bytes)? {
            Payload::Piece if !self.is_streaming() => {
                Err(ProtocolError::Malformed("a snapshot without a hello".to_owned()))
            }
            Payload::Piece => Ok(Received::Piece(Piece::of_frame(bytes))),
            Payload::Control(message) => self.handle_message(now, Message::decode(message)?),
            payload => self.received(payload),
        }
    }

    fn received(&mut self, payload: Payload<'_>) -> Result<Received, ProtocolError> {
        match payload {
            Payload::Control(_) | Payload::Piece => Ok(Received::Nothing),
            Payload::Entries(entries) => {
                self.check_nothing_offered()?;
                for entry in &entries {
                    self.known.advance(entry.header.dot);
                }
                Ok(Received::Entries(entries))
            }
            Payload::Large(name) => {
                self.offered(name)?;
                Ok(Received::Large(name))
            }
            Payload::Chunk(dot, offset, bytes) => {
                let wanted = self.check_chunk(dot, offset, &bytes)?;
                Ok(if wanted { Received::Chunk(dot, offset, bytes) } else { Received::Nothing })
            }
        }
    }

    fn handle_message(
        &mut self,
        now: Instant,
        message: Message,
    ) -> Result<Received, ProtocolError> {
        let streaming = self.is_streaming();
        match message {
            Message::Hello(hello) if !streaming => return Ok(Received::Hello(hello)),
            _ if !streaming => {
                return Err(ProtocolError::Malformed(
                    "another message before the hello".to_owned(),
                ));
            }
            Message::Hello(_) => {
                return Err(ProtocolError::Malformed("a second hello".to_owned()));
            }
            Message::Ack(vector) => {
                self.acknowledged = read_vector(&vector);
                return Ok(Received::Acks(vec![(None, self.acknowledged.clone())]));
            }
            Message::Acks(acks) => {
                let acks = acks.iter().map(|(author, vector)| {
                    (Some(AuthorId::from_u64(*author)), read_vector(vector))
                });
                return Ok(Received::Acks(acks.collect()));
            }
            Message::Credit(taken) => {
                if taken < self.entry_bytes_credited || taken > self.entry_bytes_sent {
                    return Err(ProtocolError::Malformed("credit for bytes never sent".to_owned()));
                }
                self.entry_bytes_credited = taken;
            }
            Message::AskJoin(node, incarnation) => {
                let node = NodeId::new(&node)
                    .map_err(|error| ProtocolError::Malformed(error.to_string()))?;
                return Ok(Received::AskJoin(node, Incarnation(incarnation)));
            }
            Message::SnapshotFirst => {
                self.says_snapshot_first = true;
                return Ok(Received::SnapshotFirst);
            }
            Message::AskSnapshot(joins, vector, has) => {
                self.wish = Some(Wish { joins, vector: read_vector(&vector), has });
                self.sending = None;
                return Ok(Received::AskSnapshot);
            }
            Message::Snapshot(name, bytes, from) => {
                let name = Digest(name);
                return Ok(Received::Snapshot(Snapshot { name, bytes }, from));
            }
            Message::SnapshotCredit(upto) => {
                let Some(sending) = &mut self.sending else {
                    return Err(ProtocolError::Malformed("credit for no snapshot".to_owned()));
                };
                if sending.written(upto)? {
                    self.sending = None;
                }
            }
            Message::Hold(author, seq) => {
                self.hold_said(Dot { author: AuthorId::from_u64(author), seq });
            }
            Message::Resume(author, seq, offset) => {
                self.resume_said(Dot { author: AuthorId::from_u64(author), seq }, offset)?;
            }
            Message::Ask(..) if self.unread.is_some() => {
                return Err(ProtocolError::Malformed(
                    "a question before the answer to the one before it was read".to_owned(),
                ));
            }
            Message::Ask(token, question) => return Ok(Received::Ask(token, question)),
            Message::Answer(token, answer) => return Ok(Received::Answer(token, answer)),
            Message::Distance(distance) => return Ok(Received::Distance(distance)),
            Message::Carry(token, carried) => return Ok(Received::Carry(token, carried)),
            Message::Reply(token, reply) => return Ok(Received::Reply(token, reply)),
            Message::Ping(token) => return Ok(Received::Ping(token)),
            Message::Pong(token, told) => {
                self.unread.take_if(|unread| *unread == token);
                let round_trip = now.since(Instant(token));
                self.round_trip = Some(round_trip);
                if let Some(told) = told {
                    return Ok(Received::Time(round_trip, OriginTime::from_wire(told)));
                }
            }
            Message::Watermark(token, age, vector) => {
                let [_, heard] = &mut self.watermarks;
                if let Some(vector) = vector {
                    *heard = Some(read_vector(&vector));
                }
                let vector = heard.clone().ok_or_else(|| {
                    ProtocolError::Malformed("a watermark without entries".to_owned())
                })?;
                // What was asked in the future is not answered yet.
                let asked = Instant(token.min(now.0));
                return Ok(Received::Watermark(asked, Duration::from_micros(age), vector));
            }
        }
        Ok(Received::Nothing)
    }

    /// Completes the handshake. Gives what came before the peer's hello.
    pub(crate) fn start_streaming(
        &mut self,
        has: VersionVector,
        cursor: Lsn,
    ) -> Result<Vec<Received>, ProtocolError> {
        self.known = has;
        self.cursor = cursor;
        let State::AwaitHello { early, .. } = mem::replace(&mut self.state, State::Streaming)
        else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        let mut bytes = 0;
        for frame in early {
            let received = self.received(decode_frame(Channel::Entries, &frame)?)?;
            if let Received::Entries(more) = &received {
                bytes += more.iter().map(|entry| entry.bytes.len() as u64).sum::<u64>();
                if bytes > UNAPPLIED_BYTES_MAX {
                    return Err(ProtocolError::TooMuch);
                }
            }
            all.push(received);
        }
        Ok(all)
    }

    /// Goes on behind what is trimmed, if the peer has all of that; false if it may not have it. `heard` is
    /// what it was heard to have on stable storage, on whatever link.
    pub(crate) fn skip_trimmed(&mut self, start: &Start, heard: Option<&VersionVector>) -> bool {
        if self.cursor > start.upto {
            return true;
        }
        self.known.advance_all(&self.acknowledged);
        if let Some(heard) = heard {
            self.known.advance_all(heard);
        }
        match self.offers_trimmed(&start.vector) {
            Some(true) => return true,
            Some(false) => return false,
            None => {}
        }
        self.cursor = self.cursor.max(start.lsn.next());
        self.known.covers_all(&start.vector)
    }

    /// Whether the peer is a member that may have an entry from this link only, and was not sent it yet.
    /// A node that joins counts as having what was there at its `Join`, and is sent that afterwards.
    pub(crate) fn waits_for(&self, dot: Dot, heard: Option<&VersionVector>) -> bool {
        let streams = self.is_streaming() && !self.needs_snapshot && self.author.is_some();
        let has = |vector: &VersionVector| vector.covers(dot);
        streams && !has(&self.known) && !has(&self.acknowledged) && !heard.is_some_and(has)
    }

    /// The newest entry of an author that the peer has, as far as is known.
    pub(crate) fn known_of(&self, author: AuthorId) -> Seq {
        self.known.seq(author)
    }

    /// An entry of the peer was applied, or dropped as known.
    pub(crate) fn took(&mut self, bytes: u64) {
        self.entry_bytes_taken += bytes;
    }

    /// Says what is due, and closes a link that has gone silent.
    pub(crate) fn tick(
        &mut self,
        now: Instant,
        durable: &VersionVector,
        acks: &Acks,
    ) -> Result<(), ProtocolError> {
        if now >= self.last_heard + LINK_TIMEOUT {
            return Err(ProtocolError::TimedOut);
        }
        if self.is_streaming() {
            let untold = self.entry_bytes_taken - self.entry_bytes_told;
            if untold > 0 {
                self.entry_bytes_told = self.entry_bytes_taken;
                self.say(&Message::Credit(self.entry_bytes_taken));
            }
            if now >= self.ack_due && *durable != self.told {
                self.ack_due = now + ACK_INTERVAL;
                self.told = durable.clone();
                self.say(&Message::Ack(wire_vector(durable)));
            }
            self.relay_acks(now, acks);
            if now >= self.ping_due {
                self.ping_due = now + self.ping_every;
                self.say(&Message::Ping(now.0));
            }
        }
        Ok(())
    }

    /// Passes on what other members have acknowledged.
    fn relay_acks(&mut self, now: Instant, acks: &Acks) {
        if acks.version() == self.relay.version || now < self.relay.due {
            return;
        }
        self.relay.version = acks.version();
        let peer = self.author;
        let news: Vec<_> = acks
            .heard()
            .filter(|(author, _)| Some(*author) != peer)
            .filter(|(author, vector)| self.relay.told.get(author) != Some(vector))
            .map(|(author, vector)| (author, vector.clone()))
            .collect();
        if news.is_empty() {
            return;
        }
        self.relay.due = now + RELAY_ACK_INTERVAL;
        let wire = news.iter().map(|(author, vector)| (author.to_u64(), wire_vector(vector)));
        self.say(&Message::Acks(wire.collect()));
        self.relay.told.extend(news);
    }

    /// What the peer has said to hold on stable storage.
    pub(crate) const fn acknowledged(&self) -> &VersionVector {
        &self.acknowledged
    }

    /// The peer knows of these acknowledgements.
    pub(crate) fn knows_ack(&mut self, author: AuthorId, vector: &VersionVector) {
        let told = self.relay.told.entry(author).or_default();
        told.advance_all(vector);
    }

    /// When [`PeerSession::tick`] has something to do next.
    pub(crate) fn deadline(&self, durable: &VersionVector, acks: &Acks) -> Instant {
        let timeout = self.last_heard + LINK_TIMEOUT;
        if !self.is_streaming() {
            return timeout;
        }
        let ack = if *durable == self.told { timeout } else { self.ack_due };
        let relay = if acks.version() == self.relay.version { timeout } else { self.relay.due };
        timeout.min(self.ping_due).min(ack).min(relay)
    }

    /// The next frame to send.
    pub(crate) fn take_frame(&mut self) -> Option<(Channel, Vec<u8>)> {
        let (channel, bytes) = self.outbox.pop_front()?;
        self.bytes_sent += bytes.len() as u64;
        Some((channel, bytes))
    }

    pub(crate) fn status(&self, ours: &VersionVector) -> PeerStatus {
        PeerStatus {
            peer: self.peer,
            node: self.node.clone(),
            streaming: self.is_streaming(),
            acknowledged: self.acknowledged.clone(),
            behind: ours.missing_from(&self.acknowledged),
            round_trip: self.round_trip,
            holds: None,
            held_by_peer: self.held_by_peer(),
            bytes_sent: self.bytes_sent,
            bytes_received: self.bytes_received,
        }
    }

    /// Answers a ping.
    pub(crate) fn answer_ping(&mut self, token: u64, origin: Option<OriginTime>) {
        self.say(&Message::Pong(token, origin.map(OriginTime::to_wire)));
    }

    /// Answers a question. Answers have no credit, so the next question may come only when this one is
    /// read: the pong to the ping in front of it says so.
    pub(crate) fn answer(&mut self, now: Instant, token: u64, answer: Answer) {
        self.say(&Message::Ping(now.0));
        self.unread = Some(now.0);
        self.say(&Message::Answer(token, answer));
    }

    /// Says what the origin had applied so long ago, as the answer to a ping.
    pub(crate) fn tell_watermark(&mut self, token: u64, age: Duration, vector: &VersionVector) {
        let age = age.as_nanos().div_ceil(1000);
        let [told, _] = &mut self.watermarks;
        let news = told.as_ref() != Some(vector);
        if news {
            *told = Some(vector.clone());
        }
        let age = u64::try_from(age).unwrap_or(u64::MAX);
        self.say(&Message::Watermark(token, age, news.then(|| wire_vector(vector))));
    }

    pub(crate) fn say(&mut self, message: &Message) {
        self.outbox.push_back((Channel::Control, control_frame(&message.encode())));
    }

    fn has_credit_for(&self, bytes: u64) -> bool {
        let under_way = self.entry_bytes_sent - self.entry_bytes_credited;
        under_way == 0 || under_way + bytes <= CREDIT_WINDOW_BYTES
    }
}

/// What can be said of a hello without looking at the log.
pub(crate) fn check_hello(
    us: &Identity,
    certificate: &NodeId,
    hello: &Hello,
) -> Result<Identity, ProtocolError> {
    let (oldest, newest) = hello.frame_versions;
    if !(oldest..=newest).contains(&FRAME_VERSION) || !hello.entry_formats.contains(&FORMAT) {
        return Err(ProtocolError::Incompatible(format!(
            "the peer speaks frame versions {oldest} to {newest} and entry formats {:?}, this node \
             speaks {FRAME_VERSION} and [{FORMAT}]",
            hello.entry_formats
        )));
    }
    let them = hello.identity()?;
    if them.cluster != us.cluster {
        return Err(ProtocolError::WrongCluster(them.cluster));
    }
    if them.node != *certificate {
        return Err(ProtocolError::WrongNode { certificate: certificate.clone(), said: them.node });
    }
    if them.node == us.node {
        return Err(ProtocolError::LinkedToSelf);
    }
    Ok(them)
}

#[cfg(test)]
mod tests;
