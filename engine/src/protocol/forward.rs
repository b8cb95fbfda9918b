//! Requests on their way to the origin, as one link knows them: what was asked on it, in both
//! directions, and how far the origin is behind it.
//!
//! Invariant: no more than [`REQUESTS_PER_LINK`] and [`REQUEST_BYTES_PER_LINK`] are asked and
//! unanswered in one direction; a peer that asks more is cut off.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};

use crate::{
    error::ProtocolError,
    id::{PeerId, Seq, Ticket},
    limits::{HOPS_MAX, REQUEST_BYTES_PER_LINK, REQUESTS_PER_LINK},
    protocol::{PeerSession, message::Message},
};

/// A request, as it is carried.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Carried {
    pub(crate) request: u128,
    /// When it was issued, in milliseconds since 1970.
    pub(crate) issued: u64,
    /// What to run; without it, the question what became of the request.
    pub(crate) program: Option<Vec<u8>>,
    /// Entries that the origin must have applied before.
    pub(crate) requires: Vec<(u64, Seq)>,
    /// The origin begins within so many milliseconds, or not at all.
    pub(crate) patience: u64,
    /// Over how many more links it may go.
    pub(crate) hops: u8,
}

/// What is said of a request on its way back.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Reply {
    /// It is committed, in this entry; what it gave, if that was kept.
    Committed(u64, Seq, Option<Vec<u8>>),
    /// It ran and changed nothing; what it gave, and what the origin had applied then.
    Unchanged(Vec<u8>, Vec<(u64, Seq)>),
    /// It ran and failed.
    Failed(Vec<u8>),
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
    /// Those sent to the peer: who waits, if anybody still does, and bytes.
    sent: BTreeMap<u64, (Option<Waiter>, usize)>,
    sent_bytes: usize,
    /// Those of the peer, and their bytes.
    received: BTreeMap<u64, usize>,
    received_bytes: usize,
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
            sent_bytes: 0,
            received: BTreeMap::new(),
            received_bytes: 0,
            distance: HOPS_MAX,
            told: HOPS_MAX,
        }
    }
}

impl Requests {
    /// Who waits for what was sent and has no reply.
    pub(crate) fn into_waiters(self) -> impl Iterator<Item = Waiter> {
        self.sent.into_values().filter_map(|(waiter, _)| waiter)
    }

    /// The same, while the link goes on: a late reply is for nobody.
    pub(crate) fn give_up(&mut self) -> Vec<Waiter> {
        self.sent.values_mut().filter_map(|(waiter, _)| waiter.take()).collect()
    }
}

/// What a request takes of a link's bounds.
fn cost(carried: &Carried) -> usize {
    carried.program.as_ref().map_or(0, Vec::len)
}

impl PeerSession {
    /// Sends a request on; false if no more may be under way on this link.
    pub(crate) fn carry(&mut self, waiter: Waiter, carried: Carried) -> bool {
        let bytes = cost(&carried);
        let requests = &mut self.requests;
        if requests.sent.len() >= REQUESTS_PER_LINK
            || requests.sent_bytes + bytes > REQUEST_BYTES_PER_LINK
        {
            return false;
        }
        let token = requests.next_token;
        requests.next_token += 1;
        requests.sent.insert(token, (Some(waiter), bytes));
        requests.sent_bytes += bytes;
        self.say(&Message::Carry(token, carried));
        true
    }

    /// A reply has come: who waits for it.
    pub(crate) fn replied(&mut self, token: u64) -> Result<Option<Waiter>, ProtocolError> {
        let Some((waiter, bytes)) = self.requests.sent.remove(&token) else {
            return Err(ProtocolError::Malformed("a reply to nothing".to_owned()));
        };
        self.requests.sent_bytes -= bytes;
        Ok(waiter)
    }

    /// The peer has sent a request.
    pub(crate) fn asked_to_carry(
        &mut self,
        token: u64,
        carried: &Carried,
    ) -> Result<(), ProtocolError> {
        let bytes = cost(carried);
        let requests = &mut self.requests;
        if requests.received.contains_key(&token) {
            return Err(ProtocolError::Malformed("a number of a request again".to_owned()));
        }
        if requests.received.len() >= REQUESTS_PER_LINK
            || requests.received_bytes + bytes > REQUEST_BYTES_PER_LINK
        {
            return Err(ProtocolError::Malformed("too many requests under way".to_owned()));
        }
        requests.received.insert(token, bytes);
        requests.received_bytes += bytes;
        Ok(())
    }

    /// Says what became of a request of the peer.
    pub(crate) fn reply(&mut self, token: u64, reply: Reply) {
        if let Some(bytes) = self.requests.received.remove(&token) {
            self.requests.received_bytes -= bytes;
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
