//! Requests on their way to the origin, as one link knows them: what was asked on it, in both
//! directions, and how far the origin is behind it.
//!
//! Invariant: no more than [`REQUESTS_PER_LINK`] and [`REQUEST_BYTES_PER_LINK`] are asked and
//! unanswered in one direction, and no more than [`STEPS_PER_LINK`] steps of guests; a peer that asks more
//! is cut off. Steps have room of their own: whoever has the origin's writer never waits behind those who
//! wait for it.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};

use crate::{
    error::ProtocolError,
    id::{PeerId, Seq, Ticket},
    limits::{
        HOPS_MAX, PROGRAM_BYTES_MAX, REQUEST_BYTES_PER_LINK, REQUESTS_PER_LINK, STEPS_PER_LINK,
    },
    protocol::{PeerSession, message::Message},
};

/// A request, as it is carried.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Carried {
    pub(crate) request: u128,
    /// When it was issued, in milliseconds since 1970.
    pub(crate) issued: u64,
    pub(crate) asks: Asks,
    /// Entries that the origin must have applied before.
    pub(crate) requires: Vec<(u64, Seq)>,
    /// The origin begins within so many milliseconds, or not at all.
    pub(crate) patience: u64,
    /// Over how many more links it may go.
    pub(crate) hops: u8,
}

/// What is asked of the origin.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Asks {
    /// What became of the request.
    Outcome,
    /// To run this.
    Run(Vec<u8>),
    /// To begin an interactive transaction.
    Begin,
    /// To take a step in one: the number that the origin has given it, the number of the step, and what to run.
    Step(u64, u64, Vec<u8>),
    /// To end it, or not to begin it.
    Leave,
    /// What the origin has applied, once it has what is required.
    Meet,
}

impl Asks {
    /// How many bytes of programs it brings.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Run(program) | Self::Step(_, _, program) => program.len(),
            Self::Outcome | Self::Begin | Self::Leave | Self::Meet => 0,
        }
    }

    /// Whether it is asked by who has the writer already, or frees it.
    const fn is_of_guest(&self) -> bool {
        matches!(self, Self::Step(..) | Self::Leave)
    }
}

/// What is said of a request on its way back.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Reply {
    /// It is committed, in this entry; what it gave, if that was kept.
    Committed(u64, Seq, Option<Vec<u8>>),
    /// It ran and changed nothing; what it gave, and what the origin had applied then.
    Unchanged(Vec<u8>, Vec<(u64, Seq)>),
    /// It ran and failed; what is said of it, and what the origin had applied then.
    Failed(Vec<u8>, Vec<(u64, Seq)>),
    /// It never runs.
    Refused,
    /// Another program has this id.
    OtherProgram,
    /// It is older than outcomes are kept.
    Expired,
    /// It was not begun, and will not be on this way.
    NotBegun,
    /// A link was lost behind which it may have run.
    Lost,
    /// The interactive transaction is open, under this number.
    Begun(u64),
    /// The step ran, and the transaction is still open; what the step gave.
    Stepped(Vec<u8>),
    /// The transaction is not open, and was not committed.
    Gone,
}

/// Who waits for a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// A client of this node.
    Own(Ticket),
    /// A peer, by its link and the number that it has given.
    Peer(PeerId, u64),
}

/// The requests of one link.
#[derive(Debug)]
pub(crate) struct Requests {
    next_token: u64,
    /// Those sent to the peer: who waits, if anybody still does.
    sent: BTreeMap<u64, Option<Waiter>>,
    sent_load: Load,
    /// Those of the peer.
    received: Load,
    /// Links between the peer and the origin; [`HOPS_MAX`] if it does not know a way.
    pub(crate) distance: u8,
    /// What it was told of ours.
    told: u8,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            next_token: 1,
            sent: BTreeMap::new(),
            sent_load: Load::default(),
            received: Load::default(),
            distance: HOPS_MAX,
            told: HOPS_MAX,
        }
    }
}

impl Requests {
    /// Who waits for what was sent and has no reply.
    pub(crate) fn into_waiters(self) -> impl Iterator<Item = Waiter> {
        self.sent.into_values().flatten()
    }

    /// The same, while the link goes on: a late reply is for nobody.
    pub(crate) fn give_up(&mut self) -> Vec<Waiter> {
        self.sent.values_mut().filter_map(Option::take).collect()
    }
}

/// What is under way on a link in one direction.
#[derive(Debug, Default)]
struct Load {
    /// The bytes of requests, and of steps of guests, by their numbers.
    requests: BTreeMap<u64, usize>,
    steps: BTreeMap<u64, usize>,
}

impl Load {
    /// Takes one more, if there is room.
    fn take(&mut self, token: u64, asks: &Asks) -> bool {
        let (of, most, most_bytes) = if asks.is_of_guest() {
            (&mut self.steps, STEPS_PER_LINK, STEPS_PER_LINK * PROGRAM_BYTES_MAX)
        } else {
            (&mut self.requests, REQUESTS_PER_LINK, REQUEST_BYTES_PER_LINK)
        };
        let bytes = of.values().sum::<usize>() + asks.bytes();
        if of.len() >= most || bytes > most_bytes {
            return false;
        }
        of.insert(token, asks.bytes());
        true
    }

    /// It is answered; whether there was such a one.
    fn end(&mut self, token: u64) -> bool {
        self.requests.remove(&token).or_else(|| self.steps.remove(&token)).is_some()
    }

    fn has(&self, token: u64) -> bool {
        self.requests.contains_key(&token) || self.steps.contains_key(&token)
    }
}

impl PeerSession {
    /// Sends a request on; false if no more may be under way on this link.
    pub(crate) fn carry(&mut self, waiter: Waiter, carried: Carried) -> bool {
        let requests = &mut self.requests;
        let token = requests.next_token;
        if !requests.sent_load.take(token, &carried.asks) {
            return false;
        }
        requests.next_token += 1;
        requests.sent.insert(token, Some(waiter));
        self.say(&Message::Carry(token, carried));
        true
    }

    /// A reply has come: who waits for it.
    pub(crate) fn replied(&mut self, token: u64) -> Result<Option<Waiter>, ProtocolError> {
        let Some(waiter) = self.requests.sent.remove(&token) else {
            return Err(ProtocolError::Malformed("a reply to nothing".to_owned()));
        };
        self.requests.sent_load.end(token);
        Ok(waiter)
    }

    /// The peer has sent a request.
    pub(crate) fn asked_to_carry(
        &mut self,
        token: u64,
        carried: &Carried,
    ) -> Result<(), ProtocolError> {
        let received = &mut self.requests.received;
        if received.has(token) {
            return Err(ProtocolError::Malformed("a number of a request again".to_owned()));
        }
        if !received.take(token, &carried.asks) {
            return Err(ProtocolError::Malformed("too many requests under way".to_owned()));
        }
        Ok(())
    }

    /// Says what became of a request of the peer.
    pub(crate) fn reply(&mut self, token: u64, reply: Reply) {
        if self.requests.received.end(token) {
            self.say(&Message::Reply(token, reply));
        }
    }

    /// Says how many links away the origin is, if that is news.
    pub(crate) fn tell_distance(&mut self, distance: u8) {
        if self.is_streaming() && self.requests.told != distance {
            self.requests.told = distance;
            self.say(&Message::Distance(distance));
        }
    }
}
