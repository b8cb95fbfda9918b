//! Stamps and time: entries from the future are held, and peers are told what the origin's clock says.
//!
//! An entry whose stamp is more than [`FUTURE_MAX`] ahead of the corrected
//! clock waits where it stands in its link's stream, and with it everything behind it, so whatever
//! depends on it waits too. The peer is told to send nothing more, until the clock has come near enough.
//! Nothing of this is kept: after a cut link or a restart the entry comes again, and is judged anew.
//!
//! Invariant: a node that is linked to the origin, in whatever way, applies nothing whose stamp is
//! further ahead of the origin's clock than that, beside the error of the estimate.

use std::time::Duration;

use crate::{
    corrected::{OriginTime, latest_stamp},
    id::{AuthorId, PeerId},
    limits::FUTURE_MAX,
    log::Log,
    replica::{
        Replica, Spools,
        holds::{Arrived, Incoming},
    },
    status::{ClockStatus, Hold, HoldReason},
    testing::{Bug, planted},
    time::{Instant, WallTime},
    version::Dot,
};

/// Looks for entries from the future.
#[derive(Debug, Clone, Copy)]
struct Lookout<'r> {
    corrected: WallTime,
    own: Option<AuthorId>,
    log: &'r Log,
    spools: &'r Spools,
}

impl Lookout<'_> {
    /// The entry, and how far beyond the latest stamp its own is, if that is so.
    fn too_early(self, arrived: &Arrived) -> Option<(Dot, Duration)> {
        let (dot, hlc) = match arrived {
            Arrived::Whole(entry) => (entry.header.dot, entry.header.hlc),
            Arrived::Large(name) => (name.dot, self.spools.complete(name)?.header.hlc),
        };
        let beyond = hlc.wall().0.saturating_sub(latest_stamp(self.corrected).0);
        let known = self.log.head(dot.author).seq >= dot.seq;
        // An entry of this node's own that it does not have is a loss of state, whenever it is from.
        let exempt = known || Some(dot.author) == self.own || planted(Bug::FutureApplied);
        (beyond > 0 && !exempt).then_some((dot, Duration::from_millis(beyond)))
    }
}

impl Replica {
    /// What the origin's wall clock says, or this node's own while nobody has told.
    pub(super) fn corrected(&self) -> WallTime {
        if self.is_origin() { self.now.wall } else { self.corrected.at(self.now) }
    }

    /// What this node can tell others of the origin's clock.
    pub(super) fn origin_time(&self) -> Option<OriginTime> {
        if self.is_origin() {
            Some(OriginTime::exact(self.now.wall))
        } else {
            self.corrected.origin(self.now.mono)
        }
    }

    fn lookout(&self) -> Lookout<'_> {
        let (log, spools) = (&self.log, &self.spools);
        Lookout { corrected: self.corrected(), own: self.author, log, spools }
    }

    /// Whether the entry has to wait until the clock has come near it, and for how long.
    pub(super) fn too_early(&self, arrived: &Arrived) -> Option<(Dot, Duration)> {
        self.lookout().too_early(arrived)
    }

    /// Has peers stop at entries from the future, and go on when they are not any more.
    pub(super) fn serve_holds(&mut self) {
        let corrected = self.corrected();
        let (log, spools) = (&self.log, &self.spools);
        let lookout = Lookout { corrected, own: self.author, log, spools };
        for (peer, incoming) in &mut self.incoming {
            let Some(session) = self.sessions.get_mut(peer) else { continue };
            let first = incoming.first().filter(|first| match first {
                Arrived::Whole(_) => true,
                // A link that is held for a spool is told when the entry was applied.
                Arrived::Large(name) => spools.sender(name.dot) == Some(*peer),
            });
            let held = first.and_then(|first| lookout.too_early(first)).map(|(dot, _)| dot);
            if held == incoming.held {
                continue;
            }
            if let Some(dot) = incoming.held {
                session.go_on(dot);
            }
            if let Some(dot) = held {
                session.hold(dot);
            }
            incoming.held = held;
        }
    }

    /// When the first entry from the future can be taken.
    pub(super) fn hold_deadline(&self) -> Option<Instant> {
        if self.halted.is_some() {
            return None;
        }
        let firsts = self.incoming.values().filter_map(Incoming::first);
        let waits = firsts.filter_map(|first| self.too_early(first)).map(|(_, wait)| wait);
        waits.min().map(|wait| self.now.mono + wait)
    }

    /// What a link is held for.
    pub(super) fn hold_of(&self, peer: PeerId) -> Option<Hold> {
        let future = || {
            let incoming = self.incoming.get(&peer)?;
            let (dot, beyond) = self.too_early(incoming.first()?)?;
            let ahead = beyond + FUTURE_MAX;
            Some(Hold { dot, why: HoldReason::Future { ahead } })
        };
        self.spools.hold_of(peer).or_else(future)
    }

    /// What this replica makes of the time.
    pub(super) fn clock(&self) -> ClockStatus {
        let (corrected, origin) = (self.corrected(), self.origin_time());
        let ahead = self.hlc.last().wall().0.saturating_sub(corrected.0);
        ClockStatus {
            wall: self.now.wall,
            corrected,
            error: origin.map(|origin| origin.error),
            age: origin.map(|origin| origin.age),
            stamps_ahead: Duration::from_millis(ahead),
        }
    }
}
