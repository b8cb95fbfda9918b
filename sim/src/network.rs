//! [`Network`]: links between machines, the connections over them, and the frames under way.
//!
//! A connection has three channels in each direction, and each is an ordered stream, as QUIC's are:
//! frames arrive in order or, once the connection is cut, after some prefix not at all. Loss is
//! therefore delay; duplicates come from new connections and from second paths through the cluster;
//! frames are reordered between channels and links, never within one.
//!
//! The network knows nothing of replicas and of the event queue: it says when a frame arrives, and
//! [`cluster`](crate::cluster) asks for it then.

use std::collections::{BTreeMap, VecDeque};

use littoral::{Channel, PeerId};

use crate::{
    chance::{Chance, Stream},
    clock::{MS, Nanos, SECOND},
};

/// Numbers connections in the order in which they were made.
pub(crate) type ConnId = u64;

/// What a link is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkPlan {
    /// The machines at its two ends.
    pub(crate) ends: [usize; 2],
    /// The least time from end to end.
    pub(crate) latency: Nanos,
    /// What chance adds to it at most.
    pub(crate) jitter: Nanos,
    /// Bytes per second, each way.
    pub(crate) bandwidth: u64,
}

impl LinkPlan {
    /// A link between two machines; everything else is drawn.
    pub(crate) fn draw(chance: &Chance, index: usize, ends: [usize; 2]) -> Self {
        let mut draw = chance.draw(Stream::Link, index as u64, 0);
        let latency = match draw.below(4) {
            0 => draw.between(MS / 10, MS),
            1 | 2 => draw.between(MS, 60 * MS),
            _ => draw.between(50 * MS, 400 * MS),
        };
        let jitter = draw.between(0, latency);
        Self { ends, latency, jitter, bandwidth: draw.spread(200_000, 100_000_000) }
    }
}

/// The state of one link.
#[derive(Debug)]
pub(crate) struct Link {
    /// What it is like.
    pub(crate) plan: LinkPlan,
    /// No connection can be made before.
    pub(crate) down_until: Nanos,
    /// Whether an attempt to connect is in the event queue.
    pub(crate) connecting: bool,
    /// Per direction (from end 0, from end 1): nothing arrives before.
    blocked_until: [Nanos; 2],
    /// How often anything was drawn about its ups and downs.
    pub(crate) attempts: u64,
}

/// What one end of a connection knows of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum EndState {
    /// Its replica will be told that the link is up.
    Pending,
    Open,
    Closed,
}

#[derive(Debug)]
struct End {
    machine: usize,
    peer: PeerId,
    state: EndState,
    ready_at: Nanos,
    opened_at: Nanos,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<(Nanos, Vec<u8>)>,
    last: Nanos,
}

#[derive(Debug)]
struct Connection {
    link: usize,
    ends: [End; 2],
    /// Nothing sent from now on arrives.
    cut: bool,
    /// By receiving end, then channel.
    queues: [[Queue; CHANNELS]; 2],
    /// By sending end, then channel: a long frame of entries does not hold up what is on control,
    /// since a transport interleaves its streams.
    busy_until: [[Nanos; CHANNELS]; 2],
    frames_sent: u64,
}

/// One end of one connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Port {
    /// Which connection.
    pub(crate) conn: ConnId,
    /// Which end of it.
    pub(crate) end: usize,
}

impl Port {
    const fn other(self) -> Self {
        Self { conn: self.conn, end: 1 - self.end }
    }
}

/// A connection as one of its machines sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    /// Which one.
    pub(crate) conn: ConnId,
    /// When the machine learned that it is up.
    pub(crate) opened: Nanos,
    /// The machine at the other end.
    pub(crate) other: usize,
}

/// What has become of a frame at the time when it was to arrive.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// It is there.
    Frame {
        /// Where.
        machine: usize,
        /// By the number its machine knows.
        peer: PeerId,
        /// The frame.
        bytes: Vec<u8>,
    },
    /// Ask again then.
    Later(Nanos),
    /// Cut off, or nobody is listening.
    Gone,
}

/// All links and connections.
#[derive(Debug)]
pub(crate) struct Network {
    chance: Chance,
    /// In the order of the plan.
    pub(crate) links: Vec<Link>,
    conns: BTreeMap<ConnId, Connection>,
    ports: BTreeMap<(usize, PeerId), Port>,
    next: ConnId,
}

/// How many channels a connection has.
const CHANNELS: usize = 3;

const fn channel_index(channel: Channel) -> usize {
    match channel {
        Channel::Control => 0,
        Channel::Entries => 1,
        Channel::Snapshot => 2,
    }
}

impl Network {
    /// Links without connections.
    pub(crate) fn new(chance: Chance, plans: &[LinkPlan]) -> Self {
        let link = |plan: &LinkPlan| Link {
            plan: *plan,
            down_until: 0,
            connecting: false,
            blocked_until: [0; 2],
            attempts: 0,
        };
        Self {
            chance,
            links: plans.iter().map(link).collect(),
            conns: BTreeMap::new(),
            ports: BTreeMap::new(),
            next: 1,
        }
    }

    /// Makes a connection over a link. Each end will learn of it at the time told with its port.
    pub(crate) fn connect(
        &mut self,
        now: Nanos,
        link: usize,
        peers: [PeerId; 2],
    ) -> [(Port, Nanos); 2] {
        let conn = self.next;
        self.next += 1;
        let plan = self.links[link].plan;
        let mut draw = self.chance.draw(Stream::Connect, conn, 0);
        let dialer = draw.index(2);
        let mut ready = [now + 1; 2];
        ready[1 - dialer] += draw.between(0, plan.latency);
        let end = |end: usize| End {
            machine: plan.ends[end],
            peer: peers[end],
            state: EndState::Pending,
            ready_at: ready[end],
            opened_at: 0,
        };
        let connection = Connection {
            link,
            ends: [end(0), end(1)],
            cut: false,
            queues: Default::default(),
            busy_until: [[now; CHANNELS]; 2],
            frames_sent: 0,
        };
        self.conns.insert(conn, connection);
        [0, 1].map(|end| (Port { conn, end }, ready[end]))
    }

    /// The end learns that the link is up; `None` if it is gone before.
    pub(crate) fn open(&mut self, now: Nanos, port: Port) -> Option<(usize, PeerId)> {
        let end = &mut self.conns.get_mut(&port.conn)?.ends[port.end];
        if end.state != EndState::Pending {
            return None;
        }
        end.state = EndState::Open;
        end.opened_at = now;
        self.ports.insert((end.machine, end.peer), port);
        Some((end.machine, end.peer))
    }

    /// What a machine sees of one of its connections.
    pub(crate) fn side(&self, machine: usize, peer: PeerId) -> Option<Side> {
        let port = *self.ports.get(&(machine, peer))?;
        let ends = &self.conns.get(&port.conn)?.ends;
        let (opened, other) = (ends[port.end].opened_at, ends[1 - port.end].machine);
        Some(Side { conn: port.conn, opened, other })
    }

    /// The machine at the other end of a connection.
    pub(crate) fn opposite(&self, port: Port) -> Option<usize> {
        Some(self.conns.get(&port.conn)?.ends[1 - port.end].machine)
    }

    /// Takes a frame. Returns where and when it arrives, unless it never will.
    pub(crate) fn send(
        &mut self,
        now: Nanos,
        machine: usize,
        peer: PeerId,
        channel: Channel,
        bytes: Vec<u8>,
    ) -> Option<(Port, Nanos)> {
        let port = *self.ports.get(&(machine, peer))?;
        let conn = self.conns.get_mut(&port.conn)?;
        let to = port.other();
        if conn.cut || conn.ends[to.end].state == EndState::Closed {
            return None;
        }
        let link = &self.links[conn.link];
        let mut draw = self.chance.draw(Stream::Frame, port.conn, conn.frames_sent);
        conn.frames_sent += 1;
        let started = conn.busy_until[port.end][channel_index(channel)].max(now);
        let sent = started + bytes.len() as u64 * SECOND / link.plan.bandwidth;
        conn.busy_until[port.end][channel_index(channel)] = sent;
        let queue = &mut conn.queues[to.end][channel_index(channel)];
        let arrives = (sent.max(link.blocked_until[port.end]) + link.plan.latency)
            .saturating_add(draw.between(0, link.plan.jitter))
            .max(conn.ends[to.end].ready_at + 1)
            .max(queue.last);
        queue.last = arrives;
        queue.frames.push_back((arrives, bytes));
        Some((to, arrives))
    }

    /// Takes the next frame of a channel out, if its time has come.
    pub(crate) fn arrive(&mut self, now: Nanos, port: Port, channel: Channel) -> Arrival {
        let Some(conn) = self.conns.get_mut(&port.conn) else { return Arrival::Gone };
        let queue = &mut conn.queues[port.end][channel_index(channel)];
        match queue.frames.front() {
            None => return Arrival::Gone,
            Some((at, _)) if *at > now => return Arrival::Later(*at),
            Some(_) => {}
        }
        let bytes = queue.frames.pop_front().map(|(_, bytes)| bytes).unwrap_or_default();
        let end = &conn.ends[port.end];
        if end.state != EndState::Open {
            return Arrival::Gone;
        }
        Arrival::Frame { machine: end.machine, peer: end.peer, bytes }
    }

    /// One direction of a link stands still; frames under way wait.
    pub(crate) fn block(&mut self, now: Nanos, link: usize, from: usize, until: Nanos) {
        self.links[link].blocked_until[from] = until;
        for conn in self.conns.values_mut().filter(|conn| conn.link == link) {
            for queue in &mut conn.queues[1 - from] {
                for (at, _) in &mut queue.frames {
                    if *at > now {
                        *at = (*at).max(until);
                    }
                }
                queue.last = queue.last.max(queue.frames.back().map_or(0, |(at, _)| *at));
            }
        }
    }

    /// Ends all blocks and downtimes.
    pub(crate) fn heal(&mut self) {
        for link in &mut self.links {
            link.blocked_until = [0; 2];
            link.down_until = 0;
        }
    }

    /// Cuts a connection: of the frames under way only a prefix per channel arrives. Returns when
    /// each end that is not closed notices.
    pub(crate) fn cut(&mut self, now: Nanos, conn: ConnId) -> Vec<(Port, Nanos)> {
        let Some(connection) = self.conns.get_mut(&conn) else { return Vec::new() };
        if connection.cut {
            return Vec::new();
        }
        connection.cut = true;
        let mut draw = self.chance.draw(Stream::Cut, conn, 0);
        let whole = draw.percent(20);
        for queue in connection.queues.iter_mut().flatten() {
            let kept = draw.index(queue.frames.len() + 1);
            queue.frames.truncate(if whole { 0 } else { kept });
        }
        let mut noticed = Vec::new();
        for end in 0..2 {
            let after = match draw.below(4) {
                0 => 1,
                1 | 2 => draw.between(1, 300 * MS),
                _ => draw.between(1, 3 * SECOND),
            };
            if connection.ends[end].state != EndState::Closed {
                noticed.push((Port { conn, end }, now + after));
            }
        }
        noticed
    }

    /// One end closes: what it sent before still arrives. Returns when the other end notices.
    pub(crate) fn close(
        &mut self,
        now: Nanos,
        machine: usize,
        peer: PeerId,
    ) -> Option<(Port, Nanos)> {
        let port = self.ports.remove(&(machine, peer))?;
        let conn = self.conns.get_mut(&port.conn)?;
        conn.ends[port.end].state = EndState::Closed;
        for queue in &mut conn.queues[port.end] {
            queue.frames.clear();
        }
        let other = port.other();
        let notice = (!conn.cut && conn.ends[other.end].state != EndState::Closed).then(|| {
            let last = conn.queues[other.end].iter().map(|queue| queue.last).max().unwrap_or(now);
            (other, last.max(now + self.links[conn.link].plan.latency) + 1)
        });
        self.forget(port.conn);
        notice
    }

    /// An end notices that the connection is gone. Returns its machine and number, if it did not
    /// know before.
    pub(crate) fn notice(&mut self, port: Port) -> Option<(usize, PeerId)> {
        let conn = self.conns.get_mut(&port.conn)?;
        let end = &mut conn.ends[port.end];
        let was = std::mem::replace(&mut end.state, EndState::Closed);
        let known = (end.machine, end.peer);
        for queue in &mut conn.queues[port.end] {
            queue.frames.clear();
        }
        self.ports.remove(&known);
        self.forget(port.conn);
        (was == EndState::Open).then_some(known)
    }

    /// The link of a connection that exists.
    pub(crate) fn link_of(&self, conn: ConnId) -> Option<usize> {
        self.conns.get(&conn).map(|conn| conn.link)
    }

    /// The connections over a link, or at a machine.
    pub(crate) fn connections(&self, of: Whose) -> Vec<ConnId> {
        let matching = |conn: &Connection| match of {
            Whose::Link(link) => conn.link == link,
            Whose::Machine(machine) => conn.ends.iter().any(|end| end.machine == machine),
        };
        self.conns.iter().filter(|(_, conn)| matching(conn)).map(|(id, _)| *id).collect()
    }

    /// A machine has crashed: its ends are closed, and what it sent may arrive in part.
    pub(crate) fn crash(&mut self, now: Nanos, machine: usize) -> Vec<(Port, Nanos)> {
        let mut noticed = Vec::new();
        for id in self.connections(Whose::Machine(machine)) {
            noticed.extend(self.cut(now, id));
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            for end in 0..2 {
                if conn.ends[end].machine == machine {
                    conn.ends[end].state = EndState::Closed;
                    self.ports.remove(&(machine, conn.ends[end].peer));
                    noticed.retain(|(port, _)| *port != Port { conn: id, end });
                }
            }
        }
        noticed
    }

    /// Whether a connection over a link works, as far as the network knows.
    pub(crate) fn is_connected(&self, link: usize) -> bool {
        self.conns.values().any(|conn| {
            conn.link == link
                && !conn.cut
                && conn.ends.iter().all(|end| end.state != EndState::Closed)
        })
    }

    fn forget(&mut self, id: ConnId) {
        let over = |conn: &Connection| {
            conn.ends.iter().all(|end| end.state == EndState::Closed)
                && conn.queues.iter().flatten().all(|queue| queue.frames.is_empty())
        };
        if self.conns.get(&id).is_some_and(over) {
            self.conns.remove(&id);
        }
    }
}

/// Selects connections.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whose {
    /// Those over a link.
    Link(usize),
    /// Those with an end at a machine.
    Machine(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(seed: u64) -> (Network, [Port; 2]) {
        let chance = Chance::of(seed);
        let plan = LinkPlan { ends: [0, 1], latency: 10 * MS, jitter: 10 * MS, bandwidth: 100_000 };
        let mut network = Network::new(chance, &[plan]);
        let ports = network.connect(0, 0, [PeerId(1), PeerId(2)]).map(|(port, _)| port);
        for port in ports {
            network.open(0, port).unwrap();
        }
        (network, ports)
    }

    fn frame(n: u8) -> Vec<u8> {
        vec![n; usize::from(n % 7) * 40 + 1]
    }

    fn receive(network: &mut Network, port: Port, channel: Channel) -> Vec<u8> {
        let mut got = Vec::new();
        loop {
            match network.arrive(100 * SECOND, port, channel) {
                Arrival::Frame { bytes, .. } => got.push(bytes[0]),
                Arrival::Later(_) | Arrival::Gone => return got,
            }
        }
    }

    #[test]
    fn frames_of_a_channel_arrive_in_order_and_never_early() {
        for seed in 0..20 {
            let (mut network, ports) = network(seed);
            let mut last = [0; 2];
            for n in 0..40u8 {
                let channel = if n % 3 == 0 { Channel::Control } else { Channel::Entries };
                let now = u64::from(n) * MS;
                let (to, at) = network.send(now, 0, PeerId(1), channel, frame(n)).unwrap();
                assert_eq!(to, ports[1]);
                assert!(at >= now + 10 * MS);
                assert!(at >= last[channel_index(channel)]);
                last[channel_index(channel)] = at;
            }
            let control = receive(&mut network, ports[1], Channel::Control);
            assert_eq!(control, (0..40).filter(|n| n % 3 == 0).collect::<Vec<u8>>());
            let entries = receive(&mut network, ports[1], Channel::Entries);
            assert_eq!(entries, (0..40).filter(|n| n % 3 != 0).collect::<Vec<u8>>());
        }
    }

    #[test]
    fn a_cut_keeps_a_prefix_and_nothing_sent_later() {
        let mut shorter = 0;
        for seed in 0..40 {
            let (mut network, ports) = network(seed);
            for n in 0..10 {
                network.send(0, 0, PeerId(1), Channel::Entries, frame(n)).unwrap();
            }
            assert_eq!(network.cut(MS, ports[0].conn).len(), 2);
            assert!(network.send(MS, 0, PeerId(1), Channel::Entries, frame(99)).is_none());
            let got = receive(&mut network, ports[1], Channel::Entries);
            assert_eq!(got, (0..got.len() as u64).map(|n| n.to_le_bytes()[0]).collect::<Vec<u8>>());
            shorter += u32::from(got.len() < 10);
        }
        assert!(shorter > 20);
    }

    #[test]
    fn a_blocked_direction_delays_what_is_under_way_and_not_the_other_one() {
        let (mut network, ports) = network(3);
        network.send(0, 0, PeerId(1), Channel::Entries, frame(1)).unwrap();
        network.send(0, 1, PeerId(2), Channel::Entries, frame(2)).unwrap();
        network.block(MS, 0, 0, 5 * SECOND);
        assert!(matches!(
            network.arrive(SECOND, ports[1], Channel::Entries),
            Arrival::Later(at) if at >= 5 * SECOND
        ));
        assert_eq!(receive(&mut network, ports[0], Channel::Entries), [2]);
        let (_, at) = network.send(SECOND, 0, PeerId(1), Channel::Entries, frame(3)).unwrap();
        assert!(at >= 5 * SECOND);
        assert_eq!(receive(&mut network, ports[1], Channel::Entries), [1, 3]);
    }

    #[test]
    fn what_was_sent_before_a_close_arrives_before_the_other_end_notices() {
        let (mut network, ports) = network(4);
        let (_, at) = network.send(0, 0, PeerId(1), Channel::Control, frame(1)).unwrap();
        let (port, notices) = network.close(MS, 0, PeerId(1)).unwrap();
        assert_eq!(port, ports[1]);
        assert!(notices > at);
        assert_eq!(receive(&mut network, ports[1], Channel::Control), [1]);
        assert_eq!(network.notice(port), Some((1, PeerId(2))));
        assert!(network.conns.is_empty());
    }
}
