//! Sending what the peer lacks, in this node's log order, within the peer's credit.
//!
//! The session keeps its place in the log and the vector of what the peer has; the replica reads the
//! log from that place and offers entry by entry.

use crate::{
    driver::Channel,
    entry::Entry,
    id::Lsn,
    limits::ENTRIES_FRAME_BYTES,
    protocol::PeerSession,
    testing::{Bug, planted},
};

impl PeerSession {
    /// Where to read the log, if there may be something to send up to `durable`.
    pub(crate) fn wants_from(&self, durable: Lsn) -> Option<Lsn> {
        (self.is_streaming()
            && !self.needs_snapshot
            && self.cursor <= durable
            && self.has_credit_for(1))
        .then_some(self.cursor)
    }

    /// Looks at the entry at `lsn`, and sends it if the peer lacks it. False if it has to wait for
    /// credit: then nothing behind it may be offered.
    pub(crate) fn offer(&mut self, lsn: Lsn, entry: &Entry) -> bool {
        if !self.known.covers(entry.header.dot) {
            if planted(Bug::SkipOnReconnect) && self.is_reconnect {
                self.is_reconnect = false;
                self.known.advance(entry.header.dot);
                self.cursor = lsn.next();
                return true;
            }
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
            self.known.advance(entry.header.dot);
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
