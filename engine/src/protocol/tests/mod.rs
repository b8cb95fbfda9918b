//! Conversations of two sessions over a pipe in memory.

mod frames;
mod holds;

use proptest::prelude::*;

use super::*;
use crate::{
    driver::CloseCode,
    entry::{
        ChunksId, Digest, EntryHeader, LargeEntry, Logged,
        codec::{Body, Head},
    },
    hlc::Hlc,
    id::{AuthorId, ClusterId, Incarnation, SchemaVersion},
    limits::{
        COMPRESS_FROM_BYTES, ENTRIES_FRAME_BYTES, LARGE_ENTRY_BYTES, MAX_CONTROL_FRAME_BYTES,
    },
    protocol::{
        frame::{FRAME_HEADER_BYTES, chunk_frame, frame_length, large_frame},
        message::Wanted,
    },
    value::put_varint,
    version::Dot,
};

// --- Two sides and a pipe

const START: Instant = Instant(1_000_000_000);

fn identity(name: &str) -> Identity {
    Identity {
        cluster: ClusterId(7),
        node: NodeId::new(name).unwrap(),
        incarnation: Incarnation(u128::from(name.as_bytes()[0])),
    }
}

fn author(counter: u32) -> AuthorId {
    AuthorId { term: 1, counter }
}

/// An entry of about `bytes` bytes that do not compress.
fn entry(counter: u32, seq: u64, bytes: usize) -> Entry {
    let mut noise = blake3::Hasher::new();
    noise.update(&counter.to_be_bytes()).update(&seq.to_be_bytes());
    let mut text = vec![0; bytes / 2];
    noise.finalize_xof().fill(&mut text);
    let text: String = text.iter().map(|byte| format!("{byte:02x}")).collect();
    entry_of(counter, seq, &text)
}

fn entry_of(counter: u32, seq: u64, text: &str) -> Entry {
    let mut body = Body::default();
    body.push_ddl([text].into_iter());
    let previous = if seq == 1 { Digest::NONE } else { Digest([9; 32]) };
    body.into_entry(EntryHeader {
        dot: Dot { author: author(counter), seq },
        hlc: Hlc(seq),
        previous,
        schema: SchemaVersion(1),
        under: 0,
    })
}

/// One replica, as far as its session sees it: a log, all of it durable.
struct Side {
    identity: Identity,
    log: Vec<Entry>,
    session: PeerSession,
    /// Entries that arrived and were not yet taken.
    inbox: Vec<Entry>,
    /// Large entries that were offered, and the bytes that came of them.
    offers: Vec<LargeName>,
    chunks: Vec<u8>,
    /// Entries of at least so many bytes are sent as large ones.
    large: usize,
    /// Takes what arrives at once.
    eager: bool,
}

impl Side {
    fn new(name: &str, peer: &str, log: Vec<Entry>) -> Self {
        let identity = identity(name);
        let hello = hello(&identity, &log);
        let session = PeerSession::new(PeerId(1), NodeId::new(peer).unwrap(), START, hello);
        let (offers, chunks) = (Vec::new(), Vec::new());
        let inbox = Vec::new();
        Self { identity, log, session, inbox, offers, chunks, large: usize::MAX, eager: true }
    }

    fn vector(&self) -> VersionVector {
        vector(&self.log)
    }

    fn receive(
        &mut self,
        now: Instant,
        channel: Channel,
        frame: Vec<u8>,
    ) -> Result<(), ProtocolError> {
        match self.session.handle_frame(now, channel, frame)? {
            Received::Nothing | Received::Acks(_) | Received::Time(..) => {}
            Received::Ping(token) => self.session.answer_ping(token, None),
            Received::Entries(entries) => self.inbox.extend(entries),
            Received::Large(name) => self.offers.push(name),
            Received::Chunk(_, offset, bytes) => {
                assert_eq!(offset, self.chunks.len() as u64);
                self.session.took(bytes.len() as u64);
                self.chunks.extend(bytes);
            }
            Received::Hello(hello) => {
                check_hello(&self.identity, &self.session.node, &hello)?;
                for early in self.session.start_streaming(hello.vector(), Lsn(1))? {
                    match early {
                        Received::Entries(entries) => self.inbox.extend(entries),
                        Received::Large(name) => self.offers.push(name),
                        other => panic!("{other:?} before the hello"),
                    }
                }
            }
            other => panic!("unexpected: {other:?}"),
        }
        if self.eager {
            self.take_all();
        }
        Ok(())
    }

    fn take_all(&mut self) {
        for entry in self.inbox.drain(..) {
            if !vector(&self.log).covers(entry.header.dot) {
                self.log.push(entry.clone());
            }
            self.session.took(entry.bytes.len() as u64);
        }
    }

    /// Offers what the log holds, then says what is due.
    fn speak(&mut self, now: Instant) -> Result<Vec<(Channel, Vec<u8>)>, ProtocolError> {
        let durable = Lsn(self.log.len() as u64);
        while let Some((ChunksId(place), offset)) = self.session.wants_chunk() {
            let entry = &self.log[usize::try_from(place).unwrap() - 1];
            let rest = &entry.bytes[usize::try_from(offset).unwrap()..];
            self.session.send_chunk(&rest[..rest.len().min(CHUNK)]);
        }
        if let Some(from) = self.session.wants_from(durable) {
            let mut lsn = from;
            for entry in self.log.iter().skip(usize::try_from(from.0).unwrap() - 1) {
                if !self.session.offer(lsn, &logged(entry, lsn, self.large)) {
                    break;
                }
                lsn = lsn.next();
            }
            self.session.flush();
        }
        self.session.tick(now, &self.vector(), &Acks::default())?;
        Ok(std::iter::from_fn(|| self.session.take_frame()).collect())
    }

    fn dots(&self) -> Vec<(u32, u64)> {
        dots(&self.log)
    }
}

/// The bytes of large entries are sent in pieces of this size.
const CHUNK: usize = 300;

fn logged(entry: &Entry, lsn: Lsn, large: usize) -> Logged {
    if entry.bytes.len() < large {
        return Logged::Whole(entry.clone());
    }
    Logged::Large(LargeEntry {
        header: entry.header,
        digest: entry.digest,
        length: entry.bytes.len() as u64,
        chunks: ChunksId(lsn.0.cast_signed()),
    })
}

fn vector(log: &[Entry]) -> VersionVector {
    log.iter().map(|entry| entry.header.dot).collect()
}

fn dots(entries: &[Entry]) -> Vec<(u32, u64)> {
    entries.iter().map(|e| (e.header.dot.author.counter, e.header.dot.seq)).collect()
}

fn hello(identity: &Identity, log: &[Entry]) -> Hello {
    let vector = vector(log);
    let heads = vector.iter().map(|dot| {
        let digest = log.iter().find(|entry| entry.header.dot == dot).unwrap().digest;
        (dot.author, Head { seq: dot.seq, digest })
    });
    Hello::new(identity, heads, None, SchemaVersion(1), &VersionVector::new(), 0)
}

struct Pair {
    a: Side,
    b: Side,
    now: Instant,
}

impl Pair {
    fn new(log_a: Vec<Entry>, log_b: Vec<Entry>) -> Self {
        Self { a: Side::new("a", "b", log_a), b: Side::new("b", "a", log_b), now: START }
    }

    /// Exchanges frames until neither side has more to say. Gives the bytes of entries that went
    /// from `a` to `b`.
    fn talk(&mut self) -> usize {
        let mut entry_bytes = 0;
        loop {
            let to_b = self.a.speak(self.now).unwrap();
            let to_a = self.b.speak(self.now).unwrap();
            if to_a.is_empty() && to_b.is_empty() {
                return entry_bytes;
            }
            for (channel, frame) in to_b {
                entry_bytes += if channel == Channel::Entries { frame.len() } else { 0 };
                self.b.receive(self.now, channel, frame).unwrap();
            }
            for (channel, frame) in to_a {
                self.a.receive(self.now, channel, frame).unwrap();
            }
        }
    }

    fn wait(&mut self, length: Duration) {
        self.now = self.now + length;
    }
}

/// A session that has heard a hello from a peer with an empty log.
fn streaming(log: Vec<Entry>) -> Side {
    let mut side = Side::new("a", "b", log);
    side.receive(START, Channel::Control, said(&hello_message("b"))).unwrap();
    assert!(side.session.is_streaming());
    side
}

fn hello_message(name: &str) -> Message {
    Message::Hello(Box::new(hello(&identity(name), &[])))
}

fn said(message: &Message) -> Vec<u8> {
    control_frame(&message.encode())
}

fn entries_frame(entries: &[Entry]) -> Vec<u8> {
    let mut frame = EntriesFrame::default();
    entries.iter().for_each(|entry| frame.push(entry));
    frame.take()
}

fn refused(result: Result<(), ProtocolError>) -> CloseCode {
    result.expect_err("the frame is refused").code()
}

/// The messages that wait to be sent, hello left out.
fn messages(frames: &[(Channel, Vec<u8>)]) -> Vec<Message> {
    frames
        .iter()
        .filter_map(|(channel, frame)| match decode_frame(*channel, frame).unwrap() {
            Payload::Control(bytes) => Some(Message::decode(bytes).unwrap()),
            Payload::Entries(_) | Payload::Large(..) | Payload::Chunk(..) | Payload::Piece => None,
        })
        .filter(|message| !matches!(message, Message::Hello(_)))
        .collect()
}

// --- Conversations

#[test]
fn nothing_but_a_hello_is_said_before_the_peers_hello() {
    let mut side = Side::new("a", "b", vec![entry(1, 1, 100)]);
    let frames = side.speak(START + KEEP_ALIVE).unwrap();
    assert_eq!(frames.len(), 1);
    let (Channel::Control, frame) = &frames[0] else { panic!("entries before a hello") };
    let Payload::Control(bytes) = decode_frame(Channel::Control, frame).unwrap() else {
        panic!("not a message")
    };
    let Message::Hello(hello) = Message::decode(bytes).unwrap() else { panic!("not a hello") };
    assert_eq!(hello.identity().unwrap(), side.identity);
    assert_eq!(hello.vector(), side.vector());
    assert_eq!(hello.heads().next().unwrap().1, side.log[0].digest.prefix());
}

#[test]
fn each_side_gets_what_it_lacks_in_the_order_of_the_others_log() {
    let ours = vec![entry(1, 1, 50), entry(3, 1, 50), entry(1, 2, 50), entry(1, 3, 50)];
    let theirs = vec![entry(1, 1, 50), entry(2, 1, 50), entry(2, 2, 50)];
    let mut pair = Pair::new(ours, theirs);
    pair.talk();
    assert_eq!(pair.b.dots(), [(1, 1), (2, 1), (2, 2), (3, 1), (1, 2), (1, 3)]);
    assert_eq!(pair.a.dots(), [(1, 1), (3, 1), (1, 2), (1, 3), (2, 1), (2, 2)]);
}

#[test]
fn an_entry_goes_over_a_link_once() {
    let mut pair = Pair::new(vec![entry(1, 1, 50)], Vec::new());
    pair.talk();
    pair.a.log.push(entry(1, 2, 50));
    assert!(pair.talk() > 0);
    assert_eq!(pair.b.dots(), [(1, 1), (1, 2)]);
    for _ in 0..5 {
        pair.wait(KEEP_ALIVE);
        assert_eq!(pair.talk(), 0, "neither again nor back");
    }
    assert_eq!(pair.a.log.len(), 2);
}

#[test]
fn both_sides_learn_what_the_other_has_on_disk() {
    let mut pair = Pair::new(vec![entry(1, 1, 50)], vec![entry(2, 1, 50)]);
    pair.talk();
    pair.wait(ACK_INTERVAL);
    pair.talk();
    let vector = pair.a.vector();
    for side in [&pair.a, &pair.b] {
        let status = side.session.status(&vector);
        assert!(status.streaming);
        assert_eq!((status.acknowledged, status.behind), (vector.clone(), 0));
    }
}

#[test]
fn acknowledgements_keep_their_distance() {
    let mut side = streaming(Vec::new());
    let acks = |side: &mut Side, now| {
        let frames = side.speak(now).unwrap();
        messages(&frames).iter().filter(|m| matches!(m, Message::Ack(_))).count()
    };
    let mut total = acks(&mut side, START);
    for step in 1..=20u64 {
        side.log.push(entry(1, step, 50));
        let now = START + ACK_INTERVAL / 10 * u32::try_from(step).unwrap();
        total += acks(&mut side, now);
    }
    assert!((1..=3).contains(&total), "{total} in two intervals");
    assert_eq!(acks(&mut side, START + ACK_INTERVAL * 9), 1, "the last state is told");
    assert_eq!(acks(&mut side, START + ACK_INTERVAL * 99), 0, "and told once");
}

#[test]
fn no_more_than_the_window_is_under_way() {
    const ENTRY: usize = LARGE_ENTRY_BYTES - 256;
    let log: Vec<Entry> = (1..=20).map(|seq| entry(1, seq, ENTRY)).collect();
    let mut pair = Pair::new(log, Vec::new());
    pair.b.eager = false;
    let window = usize::try_from(CREDIT_WINDOW_BYTES).unwrap();
    pair.talk();
    let held = |side: &Side| side.inbox.iter().map(|entry| entry.bytes.len()).sum::<usize>();
    assert!(held(&pair.b) <= window && held(&pair.b) + 2 * ENTRY > window, "{}", held(&pair.b));
    assert_eq!(pair.a.session.wants_from(Lsn(20)), Some(Lsn(9)), "the ninth waits for its turn");
    assert_eq!(pair.talk(), 0, "nothing moves without credit");

    let mut arrived = 0;
    while !pair.b.inbox.is_empty() {
        arrived += pair.b.inbox.len();
        assert!(held(&pair.b) <= window);
        pair.b.take_all();
        pair.talk();
    }
    assert_eq!(arrived, 20);
    assert_eq!(pair.b.dots(), pair.a.dots());
}

#[test]
fn a_question_is_answered_only_when_the_answer_before_it_was_read() {
    let mut side = streaming(Vec::new());
    let question = Question { table: 1, schema: 1, after: None, what: Wanted::Sum };
    let ask = |token| said(&Message::Ask(token, question.clone()));
    let receive =
        |side: &mut Side, frame| side.session.handle_frame(START, Channel::Control, frame);
    side.speak(START).unwrap();
    for token in 0..3 {
        assert!(matches!(receive(&mut side, ask(token)), Ok(Received::Ask(..))));
        side.session.answer(START, token, Answer::NotNow);
        let said_to_it = messages(&side.speak(START).unwrap());
        let [.., Message::Ping(ping), Message::Answer(..)] = said_to_it[..] else {
            panic!("{said_to_it:?}")
        };
        receive(&mut side, said(&Message::Pong(ping, None))).unwrap();
    }
    side.session.answer(START, 3, Answer::NotNow);
    let refused = receive(&mut side, ask(4)).map(|_| ());
    assert_eq!(refused.unwrap_err().code(), CloseCode::Malformed);
}

#[test]
fn waiting_entries_share_frames_of_bounded_size() {
    let log: Vec<Entry> = (1..=100).map(|seq| entry(1, seq, 8 << 10)).collect();
    let mut side = streaming(log);
    let frames = side.speak(START).unwrap();
    let sizes: Vec<usize> =
        frames.iter().filter(|(c, _)| *c == Channel::Entries).map(|(_, f)| f.len()).collect();
    assert!((2..=8).contains(&sizes.len()), "{sizes:?}");
    assert!(sizes.iter().all(|bytes| *bytes <= ENTRIES_FRAME_BYTES + 1024), "{sizes:?}");
}

#[test]
fn entries_that_overtake_the_hello_are_kept() {
    let mut side = Side::new("a", "b", Vec::new());
    let early = [entry(2, 1, 700), entry(2, 2, 50)];
    for one in &early {
        side.receive(START, Channel::Entries, entries_frame(std::slice::from_ref(one))).unwrap();
    }
    assert!(side.log.is_empty() && !side.session.is_streaming());
    side.receive(START, Channel::Control, said(&hello_message("b"))).unwrap();
    assert_eq!(side.dots(), [(2, 1), (2, 2)]);
    let frames = side.speak(START).unwrap();
    assert!(frames.iter().all(|(channel, _)| *channel == Channel::Control), "nothing goes back");
    let taken = early.iter().map(|entry| entry.bytes.len() as u64).sum();
    assert!(messages(&frames).contains(&Message::Credit(taken)));
}

#[test]
fn early_entries_are_bounded_and_still_checked() {
    let mut side = Side::new("a", "b", Vec::new());
    side.receive(START, Channel::Entries, vec![2, 0, 0, 0, 2, 9, 9]).unwrap();
    let result = side.receive(START, Channel::Control, said(&hello_message("b")));
    assert_eq!(refused(result), CloseCode::Malformed);

    let mut side = Side::new("a", "b", Vec::new());
    let frame = vec![0; MAX_FRAME_BYTES];
    let result = (0..12).try_for_each(|_| side.receive(START, Channel::Entries, frame.clone()));
    assert_eq!(refused(result), CloseCode::Malformed);
}

#[test]
fn early_entries_are_bounded_unpacked_too() {
    let mut side = Side::new("a", "b", Vec::new());
    for seq in 1..=10 {
        let frame = entries_frame(&[entry_of(2, seq, &"a".repeat(900 << 10))]);
        assert!(frame.len() < 1 << 20);
        side.receive(START, Channel::Entries, frame).unwrap();
    }
    let result = side.receive(START, Channel::Control, said(&hello_message("b")));
    assert_eq!(refused(result), CloseCode::Malformed);
    assert!(side.inbox.is_empty());
}

#[test]
fn a_second_hello_is_refused() {
    let mut side = streaming(Vec::new());
    let result = side.receive(START, Channel::Control, said(&hello_message("b")));
    assert_eq!(refused(result), CloseCode::Malformed);
}

#[test]
fn a_message_before_the_hello_is_refused() {
    for message in
        [Message::Ack(Vec::new()), Message::Credit(0), Message::Ping(1), Message::Pong(1, None)]
    {
        let mut side = Side::new("a", "b", Vec::new());
        let result = side.receive(START, Channel::Control, said(&message));
        assert_eq!(refused(result), CloseCode::Malformed, "{message:?}");
        assert!(!side.session.is_streaming());
    }
}

#[test]
fn frames_on_the_wrong_stream_are_refused() {
    let mut side = streaming(Vec::new());
    let frame = entries_frame(&[entry(2, 1, 50)]);
    assert_eq!(refused(side.receive(START, Channel::Control, frame)), CloseCode::Malformed);
    let mut side = streaming(Vec::new());
    let frame = said(&Message::Ping(1));
    assert_eq!(refused(side.receive(START, Channel::Entries, frame)), CloseCode::Malformed);
}

#[test]
fn credit_neither_shrinks_nor_exceeds_what_was_sent() {
    let log = vec![entry(1, 1, 50), entry(1, 2, 50)];
    let sent: u64 = log.iter().map(|entry| entry.bytes.len() as u64).sum();
    for (credits, fine) in
        [(vec![0, 1, sent], true), (vec![sent + 1], false), (vec![sent, sent - 1], false)]
    {
        let mut side = streaming(log.clone());
        side.speak(START).unwrap();
        let result = credits.iter().try_for_each(|taken| {
            side.receive(START, Channel::Control, said(&Message::Credit(*taken)))
        });
        if fine {
            result.unwrap();
        } else {
            assert_eq!(refused(result), CloseCode::Malformed, "{credits:?}");
        }
    }
}

type Spoil = fn(&mut Hello);

#[test]
fn a_hello_is_checked() {
    let us = identity("a");
    let them = NodeId::new("b").unwrap();
    let good = hello(&identity("b"), &[]);
    assert_eq!(check_hello(&us, &them, &good).unwrap(), identity("b"));
    let cases: [(Spoil, CloseCode); 7] = [
        (|hello| hello.frame_versions = (2, 3), CloseCode::Incompatible),
        (|hello| hello.frame_versions = (0, 0), CloseCode::Incompatible),
        (|hello| hello.entry_formats = vec![2, 3], CloseCode::Incompatible),
        (|hello| hello.cluster = 8, CloseCode::WrongCluster),
        (|hello| hello.node = "c".to_owned(), CloseCode::WrongNode),
        (|hello| hello.node = "a".to_owned(), CloseCode::WrongNode),
        (|hello| hello.node = "No Name".to_owned(), CloseCode::Malformed),
    ];
    for (spoil, code) in cases {
        let mut hello = good.clone();
        spoil(&mut hello);
        assert_eq!(check_hello(&us, &them, &hello).unwrap_err().code(), code, "{hello:?}");
    }
    let itself = check_hello(&us, &us.node, &hello(&us, &[]));
    assert_eq!(itself.unwrap_err().code(), CloseCode::WrongNode, "a node does not link to itself");
    let mut newer = good;
    newer.frame_versions = (FRAME_VERSION, FRAME_VERSION + 1);
    newer.entry_formats.push(FORMAT + 1);
    check_hello(&us, &them, &newer).unwrap();
}

#[test]
fn a_silent_link_times_out_in_either_state() {
    let end = START + LINK_TIMEOUT;
    let before = Instant(end.0 - 1);
    for mut side in [Side::new("a", "b", Vec::new()), streaming(Vec::new())] {
        side.speak(before).unwrap();
        assert!(side.session.deadline(&side.vector(), &Acks::default()) <= end);
        assert_eq!(side.speak(end).unwrap_err().code(), CloseCode::TimedOut);
    }
}

#[test]
fn a_link_that_only_pings_lives() {
    let mut pair = Pair::new(Vec::new(), Vec::new());
    pair.talk();
    for _ in 0..30 {
        pair.wait(KEEP_ALIVE);
        pair.talk();
    }
    assert!(pair.now > START + LINK_TIMEOUT + LINK_TIMEOUT);
    assert_eq!(pair.a.session.status(&VersionVector::new()).round_trip, Some(Duration::ZERO));
}

#[test]
fn a_pong_tells_how_long_the_way_was() {
    let mut side = streaming(Vec::new());
    let asked = START + Duration::from_millis(3);
    let frames = side.speak(asked).unwrap();
    let [.., Message::Ping(token)] = messages(&frames)[..] else { panic!("a ping is due") };
    let way = Duration::from_millis(30);
    side.receive(asked + way, Channel::Control, said(&Message::Pong(token, None))).unwrap();
    assert_eq!(side.session.status(&VersionVector::new()).round_trip, Some(way));
}

#[test]
fn a_session_wakes_when_something_is_due_and_not_before() {
    let mut side = streaming(Vec::new());
    side.speak(START).unwrap();
    assert_eq!(side.session.deadline(&VersionVector::new(), &Acks::default()), START + KEEP_ALIVE);
    side.log.push(entry(1, 1, 50));
    assert!(
        side.session.deadline(&side.vector(), &Acks::default()) <= START + ACK_INTERVAL,
        "an ack is due"
    );
}
