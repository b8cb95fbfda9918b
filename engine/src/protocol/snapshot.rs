//! Sending a snapshot in pieces: what was asked of the disk, and what the peer has written.
//!
//! Invariant: what is under way never exceeds [`SNAPSHOT_WINDOW_BYTES`].

use crate::{
    driver::Channel,
    error::ProtocolError,
    limits::{SNAPSHOT_CHUNK_BYTES, SNAPSHOT_WINDOW_BYTES},
    protocol::{PeerSession, frame::Piece},
    version::VersionVector,
};

/// What a peer asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    /// The snapshot must hold the peer's own `Join`.
    pub(crate) joins: bool,
    /// Entries that it has already: nobody goes back.
    pub(crate) vector: VersionVector,
    /// Name and number of bytes of what it has of one already.
    pub(crate) has: Option<([u8; 32], u64)>,
}

/// A snapshot on its way to a peer.
#[derive(Debug)]
pub(crate) struct Sending {
    bytes: u64,
    /// The next piece to ask the disk for.
    next: u64,
    /// The next piece to send.
    read: u64,
    written: u64,
}

impl Sending {
    pub(crate) const fn new(bytes: u64, from: u64) -> Self {
        Self { bytes, next: from, read: from, written: from }
    }

    /// The next piece to read: where it begins, and how many bytes it has.
    pub(crate) fn next_piece(&mut self) -> Option<(u64, usize)> {
        let offset = self.next;
        let left = usize::try_from(self.bytes - offset).unwrap_or(usize::MAX);
        let piece = left.min(SNAPSHOT_CHUNK_BYTES);
        let end = offset + piece as u64;
        if piece == 0 || end - self.written > SNAPSHOT_WINDOW_BYTES {
            return None;
        }
        self.next = end;
        Some((offset, piece))
    }

    /// The peer has written so much; true at the end.
    pub(crate) fn written(&mut self, upto: u64) -> Result<bool, ProtocolError> {
        if upto < self.written || upto > self.read {
            return Err(ProtocolError::Malformed("credit for pieces never sent".to_owned()));
        }
        self.written = upto;
        Ok(upto == self.bytes)
    }
}

impl PeerSession {
    /// Sends a piece that was read from the disk.
    pub(crate) fn send_piece(&mut self, piece: Piece) {
        let next = |sending: &&mut Sending| sending.read == piece.offset();
        let Some(sending) = self.sending.as_mut().filter(next) else { return };
        sending.read = piece.end();
        self.outbox.push_back((Channel::Snapshot, piece.into_frame()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_under_way_than_the_window_allows() {
        let size = 3 * SNAPSHOT_WINDOW_BYTES + 5;
        let mut sending = Sending::new(size, 0);
        let mut sent = 0;
        loop {
            while let Some((offset, bytes)) = sending.next_piece() {
                assert_eq!(offset, sent);
                sent += bytes as u64;
                sending.read = sent;
            }
            assert!(sent - sending.written <= SNAPSHOT_WINDOW_BYTES);
            if sending.written(sent).unwrap() {
                break;
            }
        }
        assert_eq!(sent, size);
        assert!(sending.written(size + 1).is_err());
        assert!(sending.written(size - 1).is_err());
    }
}
