//! Sending what the peer lacks, in this node's log order, within the peer's credit.
//!
//! The session keeps its place in the log and the vector of what the peer has; the replica reads the
//! log from that place and offers entry by entry.

use crate::{
    driver::Channel,
    entry::Logged,
    id::Lsn,
    limits::ENTRIES_FRAME_BYTES,
    protocol::PeerSession,
    testing::{Bug, planted},
};

impl PeerSession {
    /// Where to read the log, if there may be something to send up to `durable`.
    pub(crate) fn wants_from(&self, durable: Lsn) -> Option<Lsn> {
        let free = self.is_streaming() && !self.needs_snapshot && !self.is_stopped();
        (free && self.cursor <= durable && self.has_credit_for(1)).then_some(self.cursor)
    }

    /// Looks at the entry at `lsn`, and sends it if the peer lacks it. False if it has to wait for
    /// credit, or is large: then nothing behind it may be offered.
    pub(crate) fn offer(&mut self, lsn: Lsn, entry: &Logged) -> bool {
        let dot = entry.header().dot;
        if !self.known.covers(dot) {
            if planted(Bug::SkipOnReconnect) && self.is_reconnect {
                self.is_reconnect = false;
                self.known.advance(dot);
                self.cursor = lsn.next();
                return true;
            }
            let entry = match entry {
                Logged::Whole(entry) => entry,
                Logged::Large(large) => {
                    self.cursor = lsn;
                    self.announce(lsn, *large);
                    return false;
                }
            };
            let bytes = entry.bytes.len() as u64;
            if !self.has_credit_for(bytes) {
                return false;
            }
            if !self.frame.is_empty() && self.frame.len() + entry.bytes.len() > ENTRIES_FRAME_BYTES
            {
                self.flush();
            }
            self.frame.push(entry);
            self.entry_bytes_sent += bytes;
            self.known.advance(dot);
        }
        self.cursor = lsn.next();
        true
    }

    /// Everything there is was offered.
    pub(crate) fn flush(&mut self) {
        if !self.frame.is_empty() {
            let frame = self.frame.take();
            self.outbox.push_back((Channel::Entries, frame));
        }
    }
}
