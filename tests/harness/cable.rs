//! A cable between two nodes: it carries the datagrams of a link, late, not all, or for a while none at all.
//!
//! A node is told to dial the cable's address instead of the other node's. Whatever comes there goes on to the
//! node at the far end, and what that answers goes back to whoever sent last. One cable serves one dialing
//! node.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    net::{SocketAddr, UdpSocket},
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::Node;

/// What a cable does to every datagram, in both directions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weather {
    /// How many milliseconds late it comes, drawn anew for each, so that some overtake others.
    pub(crate) late_ms: Range<u64>,
    /// How many of a thousand are lost.
    pub(crate) lost_of_1000: u64,
}

/// A cable; it ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Cable {
    ends: Arc<Ends>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Ends {
    /// The socket that is dialed.
    near: UdpSocket,
    /// The socket that the node at the far end answers to.
    far: UdpSocket,
    /// Who dials, and what is dialed.
    dialer: Mutex<Option<SocketAddr>>,
    target: Mutex<SocketAddr>,
    weather: Weather,
    is_cut: AtomicBool,
    is_over: AtomicBool,
    carried: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
enum Direction {
    Out,
    Back,
}

/// How long a thread waits for a datagram before it looks whether the cable is over.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl Cable {
    /// One that leads to a node. `seed` draws delays and losses.
    pub(crate) fn to(node: &Node, weather: Weather, seed: u64) -> Self {
        let ends = Arc::new(Ends {
            near: UdpSocket::bind("127.0.0.1:0").unwrap(),
            far: UdpSocket::bind("127.0.0.1:0").unwrap(),
            dialer: Mutex::new(None),
            target: Mutex::new(node.links().parse().unwrap()),
            weather,
            is_cut: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            carried: AtomicU64::new(0),
        });
        let carry = |direction, seed| {
            let ends = Arc::clone(&ends);
            thread::spawn(move || ends.carry(direction, Random(seed)))
        };
        let threads =
            vec![carry(Direction::Out, 2 * seed + 1), carry(Direction::Back, 2 * seed + 2)];
        Self { ends, threads }
    }

    /// Where it is to be dialed.
    pub(crate) fn address(&self) -> String {
        self.ends.near.local_addr().unwrap().to_string()
    }

    /// Has it lead to a node that takes links at another address now.
    pub(crate) fn lead_to(&self, node: &Node) {
        *locked(&self.ends.target) = node.links().parse().unwrap();
    }

    /// Lets nothing through from now on, in either direction, also nothing that is on its way.
    pub(crate) fn cut(&self) {
        self.ends.is_cut.store(true, Ordering::SeqCst);
    }

    /// Ends [`Cable::cut`].
    pub(crate) fn mend(&self) {
        self.ends.is_cut.store(false, Ordering::SeqCst);
    }

    /// How many datagrams have come through.
    pub(crate) fn carried(&self) -> u64 {
        self.ends.carried.load(Ordering::SeqCst)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.ends.is_over.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Ends {
    /// Carries what comes in one direction until the cable is over.
    fn carry(&self, direction: Direction, mut random: Random) {
        let (from, to) = match direction {
            Direction::Out => (&self.near, &self.far),
            Direction::Back => (&self.far, &self.near),
        };
        let mut bytes = vec![0; 65_536];
        // The next one due comes out first; of two due at once, the one that came first.
        let mut waiting: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>> = BinaryHeap::new();
        let mut came = 0;
        while !self.is_over.load(Ordering::SeqCst) {
            let due = waiting.peek().map(|Reverse((due, ..))| *due);
            let wait = due.map_or(LOOK_AGAIN, |due| due.saturating_duration_since(Instant::now()));
            // None at all would be to wait forever.
            from.set_read_timeout(Some(wait.clamp(Duration::from_micros(1), LOOK_AGAIN))).unwrap();
            // That nobody takes links at the far end just now comes back as an error of the socket.
            if let Ok((length, sender)) = from.recv_from(&mut bytes) {
                if let Direction::Out = direction {
                    *locked(&self.dialer) = Some(sender);
                }
                if random.below(1000) >= self.weather.lost_of_1000 {
                    let late = Duration::from_millis(random.within(&self.weather.late_ms));
                    waiting.push(Reverse((Instant::now() + late, came, bytes[..length].to_vec())));
                    came += 1;
                }
            }
            let now = Instant::now();
            while waiting.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
                let Some(Reverse((.., datagram))) = waiting.pop() else { break };
                let receiver = match direction {
                    Direction::Out => Some(*locked(&self.target)),
                    Direction::Back => *locked(&self.dialer),
                };
                let receiver = receiver.filter(|_| !self.is_cut.load(Ordering::SeqCst));
                if receiver.is_some_and(|receiver| to.send_to(&datagram, receiver).is_ok()) {
                    self.carried.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers that follow from a seed other than zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below a bound.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The low bits of the first few are the seed's.
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }

    /// A number in a range, or its start if that is empty.
    pub(crate) fn within(&mut self, range: &Range<u64>) -> u64 {
        let width = range.end.saturating_sub(range.start);
        range.start + if width == 0 { 0 } else { self.below(width) }
    }
}
