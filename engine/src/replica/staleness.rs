//! How old this node's rows may be: what the origin had applied when, as peers tell.

use std::time::Duration;

use crate::{
    id::PeerId,
    replica::Replica,
    testing::{Bug, planted},
    time::Instant,
    version::VersionVector,
};

impl Replica {
    /// Answers a peer that asks what the origin had applied, as far as this node has heard.
    pub(super) fn tell_watermark(&mut self, peer: PeerId, token: u64) {
        let Some(session) = self.sessions.get_mut(&peer) else { return };
        if self.register.as_ref().is_some_and(|register| register.is_origin(&self.identity)) {
            // Also what is not on stable storage yet: readers at the origin see it.
            session.tell_watermark(token, Duration::ZERO, &self.log.vector());
        } else if let Some((age, vector)) = self.watermarks.newest(self.now.mono) {
            session.tell_watermark(token, age, vector);
        }
    }

    /// A peer, asked at some moment, says what the origin had applied so long before.
    pub(super) fn hear_watermark(&mut self, asked: Instant, age: Duration, vector: &VersionVector) {
        let (asked, age) = if planted(Bug::WatermarkAgeless) {
            (self.now.mono, Duration::ZERO)
        } else {
            (asked, age)
        };
        self.watermarks.learn(asked, age, vector, &self.log.vector());
        self.db.published().fresh(self.watermarks.counts());
    }

    /// More was applied and committed.
    pub(super) fn settle_watermarks(&mut self) {
        if self.watermarks.wait() {
            self.watermarks.settle(&self.log.vector());
            self.db.published().fresh(self.watermarks.counts());
        }
    }

    /// How old what this node shows may be at most.
    pub(super) fn lag(&self) -> Option<Duration> {
        self.db.lag(self.now.mono)
    }
}
