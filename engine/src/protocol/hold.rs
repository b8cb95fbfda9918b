//! Stopping a link's stream at an entry, and going on.
//!
//! ```text
//!   sender                                   receiver
//!   Large(dot, length) ─────────────────►    decides: takes it, holds it, or has it already
//!          ◄───────────────── Hold(dot)      the stream stays there; control frames go on
//!          ◄────────── Resume(dot, offset)   the bytes from `offset` on; none if it is the length
//!   Chunk, Chunk, Chunk ────────────────►
//! ```
//!
//! A large entry is never sent unasked: `Resume` is the receiver's credit for it. An entry that is not
//! large may be held too, while it waits at the receiver: then the sender sends nothing behind it.
//!
//! Invariants:
//! - nothing is sent behind a large entry before it was sent whole, or the receiver has said that it
//!   has it;
//! - chunks come in order, without gaps, and only of the entry that was asked for.

use crate::{
    driver::Channel,
    entry::{ChunksId, LargeEntry, LargeName},
    error::ProtocolError,
    id::Lsn,
    protocol::{PeerSession, frame, message::Message},
    testing::{Bug, planted},
    version::{Dot, VersionVector},
};

/// A large entry that is offered to the peer.
#[derive(Debug)]
pub(super) struct Outgoing {
    lsn: Lsn,
    entry: LargeEntry,
    /// What the peer wants next; `None` while it has not said, or holds the link here.
    from: Option<u64>,
}

/// A large entry that the peer has offered.
#[derive(Debug)]
pub(super) struct Offered {
    name: LargeName,
    /// The offset of the next chunk; `None` if none was asked for.
    next: Option<u64>,
    /// It is not wanted any more: chunks that were under way are dropped.
    passed: bool,
}

impl PeerSession {
    /// Offers a large entry, and stops there.
    pub(super) fn announce(&mut self, lsn: Lsn, entry: LargeEntry) {
        self.flush();
        self.outbox.push_back((Channel::Entries, frame::large_frame(&entry.name())));
        self.outgoing = Some(Outgoing { lsn, entry, from: None });
    }

    /// Whether the stream stands at an entry.
    pub(super) fn is_stopped(&self) -> bool {
        self.outgoing.is_some() || self.held_by_peer.is_some()
    }

    /// Where the stream stands because the peer cannot take the entry now.
    pub(crate) fn held_by_peer(&self) -> Option<Dot> {
        let waiting = self.outgoing.as_ref().filter(|outgoing| outgoing.from.is_none());
        self.held_by_peer.or_else(|| waiting.map(|outgoing| outgoing.entry.header.dot))
    }

    /// The chunk to send next, if the peer has asked for one and has credit for it.
    pub(crate) fn wants_chunk(&self) -> Option<(ChunksId, u64)> {
        let outgoing = self.outgoing.as_ref()?;
        let from = outgoing.from?;
        self.has_credit_for(frame::CHUNK_BYTES_MAX as u64).then_some((outgoing.entry.chunks, from))
    }

    /// Sends the bytes that [`PeerSession::wants_chunk`] asked for.
    pub(crate) fn send_chunk(&mut self, bytes: &[u8]) {
        let Some(outgoing) = &mut self.outgoing else { return };
        let Some(from) = outgoing.from else { return };
        let bytes = &bytes[..bytes.len().min(frame::CHUNK_BYTES_MAX)];
        let frame = frame::chunk_frame(outgoing.entry.header.dot, from, bytes);
        self.outbox.push_back((Channel::Entries, frame));
        self.entry_bytes_sent += bytes.len() as u64;
        outgoing.from = Some(from + bytes.len() as u64);
        self.end_if_sent();
    }

    /// What is offered may be trimmed meanwhile: whether to wait for the peer's answer, behind which nothing
    /// may be sent before it has come. If the peer has asked for the bytes, they are gone: the stream goes on
    /// if it is known to have got them elsewhere since. It may not: a node that is joining may have the entry
    /// nowhere, though it counts as a member.
    pub(super) fn offers_trimmed(&mut self, trimmed: &VersionVector) -> Option<bool> {
        let outgoing = self.outgoing.as_ref().filter(|o| trimmed.covers(o.entry.header.dot))?;
        if outgoing.from.is_some() && self.known.covers(outgoing.entry.header.dot) {
            self.end_of_offer();
            return None;
        }
        Some(outgoing.from.is_none())
    }

    fn end_of_offer(&mut self) {
        if let Some(outgoing) = self.outgoing.take() {
            self.known.advance(outgoing.entry.header.dot);
            self.cursor = outgoing.lsn.next();
        }
    }

    fn end_if_sent(&mut self) {
        if self.outgoing.as_ref().is_some_and(|o| o.from == Some(o.entry.length)) {
            self.end_of_offer();
        }
    }

    /// The peer cannot take an entry now.
    pub(super) fn hold_said(&mut self, dot: Dot) {
        match &mut self.outgoing {
            Some(outgoing) if outgoing.entry.header.dot == dot && planted(Bug::HoldSkipped) => {
                outgoing.from = Some(outgoing.entry.length);
                self.end_if_sent();
            }
            Some(outgoing) if outgoing.entry.header.dot == dot => outgoing.from = None,
            _ => self.held_by_peer = Some(dot),
        }
    }

    /// The peer can take it from an offset on.
    pub(super) fn resume_said(&mut self, dot: Dot, offset: u64) -> Result<(), ProtocolError> {
        if self.held_by_peer.take_if(|held| *held == dot).is_some() {
            return Ok(());
        }
        match &mut self.outgoing {
            Some(outgoing)
                if outgoing.entry.header.dot == dot && offset <= outgoing.entry.length =>
            {
                outgoing.from = Some(offset);
                self.end_if_sent();
                Ok(())
            }
            // It crossed the last chunk.
            _ if self.known.covers(dot) => Ok(()),
            _ => Err(ProtocolError::Malformed(format!(
                "a resume of entry {dot} from {offset} on, which is not offered"
            ))),
        }
    }

    // --- Receiving

    /// The peer offers a large entry.
    pub(super) fn offered(&mut self, name: LargeName) -> Result<(), ProtocolError> {
        self.check_nothing_offered()?;
        if name.length == 0 {
            return Err(ProtocolError::Malformed(format!("an empty entry {}", name.dot)));
        }
        self.known.advance(name.dot);
        self.offered = Some(Offered { name, next: None, passed: false });
        Ok(())
    }

    /// Nothing may come behind a large entry that was not received.
    pub(super) fn check_nothing_offered(&mut self) -> Result<(), ProtocolError> {
        self.offered.take_if(|offered| offered.passed);
        match &self.offered {
            None => Ok(()),
            Some(offered) => Err(ProtocolError::Malformed(format!(
                "an entry behind {}, which was not sent",
                offered.name.dot
            ))),
        }
    }

    /// A chunk must be the one that was asked for. False if it is not wanted any more.
    pub(super) fn check_chunk(
        &mut self,
        dot: Dot,
        offset: u64,
        bytes: &[u8],
    ) -> Result<bool, ProtocolError> {
        let wrong = || Err(ProtocolError::Malformed(format!("a chunk of {dot} out of order")));
        let Some(offered) = &mut self.offered else { return wrong() };
        let end = offset + bytes.len() as u64;
        let wanted = offered.name.dot == dot && offered.next == Some(offset);
        if !wanted || bytes.is_empty() || end > offered.name.length {
            return wrong();
        }
        offered.next = Some(end);
        let wanted = !offered.passed;
        if end == offered.name.length {
            self.offered = None;
        }
        if !wanted {
            self.took(bytes.len() as u64);
        }
        Ok(wanted)
    }

    /// Has the peer wait with an entry.
    pub(crate) fn hold(&mut self, dot: Dot) {
        self.say(&Message::Hold(dot.author.to_u64(), dot.seq));
    }

    /// Has the peer go on behind an entry that was received and held.
    pub(crate) fn go_on(&mut self, dot: Dot) {
        self.say(&Message::Resume(dot.author.to_u64(), dot.seq, 0));
    }

    /// Has the peer go on with an entry, from an offset on; if that is its length, behind it.
    pub(crate) fn resume(&mut self, dot: Dot, offset: u64) {
        if let Some(offered) = self.offered.as_mut().filter(|offered| offered.name.dot == dot) {
            if offset < offered.name.length {
                offered.next = Some(offset);
            } else if offered.next.is_some() {
                offered.passed = true;
            } else {
                self.offered = None;
            }
        }
        self.say(&Message::Resume(dot.author.to_u64(), dot.seq, offset));
    }
}
