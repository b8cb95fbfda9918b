//! Links that come and go: an end that closes, and attempts to connect again.

use super::{Cluster, Event};
use crate::{chance::Stream, clock::MS};

impl Cluster {
    pub(super) fn close_link(&mut self, number: usize, peer: littoral::PeerId) {
        if let Some((port, at)) = self.network.close(self.now, number, peer) {
            if let Some(link) = self.network.link_of(port.conn) {
                self.reconnect(link);
            }
            self.schedule(at, Event::LinkDown { port });
        }
        for link in 0..self.network.links.len() {
            if self.network.links[link].plan.ends.contains(&number)
                && !self.network.is_connected(link)
            {
                self.reconnect(link);
            }
        }
    }

    pub(super) fn reconnect(&mut self, link: usize) {
        let state = &mut self.network.links[link];
        if state.connecting {
            return;
        }
        state.connecting = true;
        state.attempts += 1;
        let mut draw = self.chance.draw(Stream::Connect, 1 << 32 | link as u64, state.attempts);
        let at = state.down_until.max(self.now) + draw.between(MS, 500 * MS);
        self.schedule(at, Event::Connect { link });
    }

    pub(super) fn connect(&mut self, link: usize) {
        let state = &mut self.network.links[link];
        state.connecting = false;
        if state.down_until > self.now {
            return self.reconnect(link);
        }
        let attempt = state.attempts;
        let up = state.plan.ends.iter().all(|end| self.machines[*end].engine.is_some());
        if !up || self.network.is_connected(link) {
            return;
        }
        let mut draw = self.chance.draw(Stream::Connect, 2 << 32 | link as u64, attempt);
        // Sometimes both ends dial at the same moment.
        for _ in 0..=u64::from(draw.percent(20)) {
            let peers = [self.next_peer, self.next_peer + 1].map(littoral::PeerId);
            self.next_peer += 2;
            self.tally.connections += 1;
            for (port, at) in self.network.connect(self.now, link, peers) {
                self.schedule(at, Event::LinkUp { port });
            }
        }
    }
}
