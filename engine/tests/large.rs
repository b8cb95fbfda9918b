//! Entries larger than memory, made to occur with little data: kept in chunks, sent in chunks,
//! applied whole.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use littoral::{
    Channel, CloseCode, ClusterId, Genesis, HoldReason, Identity, Incarnation, Input, Instant,
    NodeId, Now, Output, PeerId, Replica, TablePolicy, Ticket, WallTime, WriteError, WriteTx,
    Writers,
    limits::{DISCARD_INTERVAL, DISCARD_STEP_BYTES, SPOOL_TIMEOUT, Sizes},
};

const SCHEMA: &str = "
    CREATE TABLE cart(id TEXT PRIMARY KEY NOT NULL, note TEXT, qty INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE orders(id INTEGER PRIMARY KEY, code INTEGER NOT NULL UNIQUE, note TEXT);
";

const SIZES: Sizes = Sizes { large_entry: 2000, chunk: 500, tape: 3000, spool: 60_000 };

/// Replicas with links that carry frames one by one, when they are told to.
struct Net {
    dir: tempfile::TempDir,
    replicas: Vec<Option<Replica>>,
    links: BTreeMap<(usize, PeerId), (usize, PeerId)>,
    frames: VecDeque<(usize, PeerId, Channel, Vec<u8>)>,
    next_peer: u64,
    now: Now,
    done: BTreeMap<(usize, Ticket), Result<(), WriteError>>,
    closed: Vec<(usize, CloseCode)>,
    max_entry: u64,
    /// What is large; `None`: what is large elsewhere.
    sizes: Option<Sizes>,
}

fn name(node: usize) -> NodeId {
    NodeId::new(&format!("n{node}")).unwrap()
}

impl Net {
    fn new(nodes: usize) -> Self {
        Self::with_sizes(nodes, Some(SIZES))
    }

    fn with_sizes(nodes: usize, sizes: Option<Sizes>) -> Self {
        let mut net = Self {
            dir: tempfile::tempdir().unwrap(),
            replicas: (0..nodes).map(|_| None).collect(),
            links: BTreeMap::new(),
            frames: VecDeque::new(),
            next_peer: 1,
            now: Now { mono: Instant(1_000_000_000), wall: WallTime(1_700_000_000_000) },
            done: BTreeMap::new(),
            closed: Vec::new(),
            max_entry: 1 << 30,
            sizes,
        };
        (0..nodes).for_each(|node| net.open(node));
        net
    }

    fn open(&mut self, node: usize) {
        let identity = Identity {
            cluster: ClusterId(7),
            node: name(node),
            incarnation: Incarnation(100 + node as u128),
        };
        let cart = TablePolicy { writers: Writers::Any, ..TablePolicy::default() };
        let mut builder = Replica::builder(identity).max_entry(self.max_entry);
        builder = match self.sizes {
            Some(sizes) => builder.verify_capture().sizes(sizes),
            None => builder,
        };
        if node == 0 {
            let nodes = self.replicas.len();
            builder = builder.genesis(Genesis {
                members: (0..nodes).map(|n| (name(n), Incarnation(100 + n as u128))).collect(),
                schema: SCHEMA.to_owned(),
                policies: [("cart".to_owned(), cart)].into(),
            });
        }
        let path = self.dir.path().join(format!("{node}.sqlite"));
        self.replicas[node] = Some(builder.open(&path, self.now, 0).unwrap());
    }

    fn restart(&mut self, node: usize) {
        let links: Vec<_> = self.links.keys().copied().filter(|(n, _)| *n == node).collect();
        links.into_iter().for_each(|end| self.cut(end));
        drop(self.replicas[node].take());
        self.open(node);
    }

    /// Links two replicas; gives the end at `a`.
    fn link(&mut self, a: usize, b: usize) -> (usize, PeerId) {
        let (x, y) = (PeerId(self.next_peer), PeerId(self.next_peer + 1));
        self.next_peer += 2;
        self.links.insert((a, x), (b, y));
        self.links.insert((b, y), (a, x));
        self.handle(a, Input::PeerUp { peer: x, node: name(b) });
        self.handle(b, Input::PeerUp { peer: y, node: name(a) });
        (a, x)
    }

    fn cut(&mut self, end: (usize, PeerId)) {
        let Some(other) = self.links.remove(&end) else { return };
        self.links.remove(&other);
        self.frames.retain(|(node, peer, ..)| (*node, *peer) != end && (*node, *peer) != other);
        for (node, peer) in [end, other] {
            if self.replicas[node].is_some() {
                self.handle(node, Input::PeerDown { peer });
            }
        }
    }

    fn replica(&mut self, node: usize) -> &mut Replica {
        self.replicas[node].as_mut().unwrap()
    }

    fn handle(&mut self, node: usize, input: Input) {
        let now = self.now;
        self.replica(node).handle(now, input);
        self.drain(node);
    }

    fn drain(&mut self, node: usize) {
        loop {
            match self.replica(node).poll() {
                Output::WakeAt(at) => {
                    if at.is_none_or(|at| at > self.now.mono) {
                        return;
                    }
                }
                Output::Send { peer, channel, bytes } => {
                    if let Some(&(to, at)) = self.links.get(&(node, peer)) {
                        self.frames.push_back((to, at, channel, bytes));
                    }
                }
                Output::Close { peer, code, .. } => {
                    self.closed.push((node, code));
                    self.cut((node, peer));
                }
                Output::Sync(lsn) => self.handle(node, Input::Synced(lsn)),
                Output::Done { ticket, result } => {
                    self.done.insert((node, ticket), result.map(drop));
                }
                Output::WalCheckpoint | Output::Event(_) => {}
                other => panic!("nobody joins here: {other:?}"),
            }
        }
    }

    /// Delivers up to so many frames; false if there were fewer.
    fn deliver(&mut self, frames: usize) -> bool {
        for _ in 0..frames {
            let Some((node, peer, channel, bytes)) = self.frames.pop_front() else { return false };
            self.handle(node, Input::Frame { peer, channel, bytes });
        }
        true
    }

    fn settle(&mut self) {
        assert!(!self.deliver(100_000), "there is no end");
    }

    fn wait(&mut self, length: Duration) {
        self.now.mono = self.now.mono + length;
        self.now.wall.0 += u64::try_from(length.as_millis()).unwrap();
        for node in 0..self.replicas.len() {
            if self.replicas[node].is_some() {
                self.handle(node, Input::Wake);
            }
        }
    }

    fn write(
        &mut self,
        node: usize,
        mut job: impl FnMut(&mut WriteTx<'_>) -> Result<(), WriteError> + Send + 'static,
    ) -> Result<(), WriteError> {
        let now = self.now;
        let ticket = self.replica(node).write(now, Box::new(move |tx| job(tx)));
        self.drain(node);
        self.done.remove(&(node, ticket)).unwrap()
    }

    fn sql(&mut self, node: usize, sql: &'static str) {
        self.write(node, move |tx| tx.execute_batch(sql)).unwrap();
    }

    fn value(&mut self, node: usize, sql: &str) -> i64 {
        let reader = self.replica(node).db().reader().unwrap();
        reader.connection().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn digest(&mut self, node: usize) -> littoral::Digest {
        self.replica(node).db().reader().unwrap().digest().unwrap().all
    }

    fn assert_equal(&mut self) {
        let first = self.digest(0);
        for node in 1..self.replicas.len() {
            assert_eq!(self.digest(node), first, "node {node}");
        }
        assert_eq!(self.closed, []);
    }
}

const ORDERS: &str = "
    WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 500)
    INSERT INTO orders SELECT (x * 7919) % 100003, x, 'order number ' || x FROM c";
const CARTS: &str = "
    WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 500)
    INSERT INTO cart SELECT 'cart ' || ((x * 7919) % 100003), 'note ' || x, x FROM c";

fn chunks(net: &mut Net, node: usize) -> i64 {
    net.value(node, "SELECT count(*) FROM littoral_chunks")
}

#[test]
fn a_large_entry_reaches_the_others_and_can_be_read_again_at_open() {
    let mut net = Net::new(3);
    net.link(0, 1);
    net.link(1, 2);
    net.settle();
    net.sql(0, ORDERS);
    net.sql(0, CARTS);
    net.sql(
        0,
        "DELETE FROM cart WHERE qty % 3 = 0; UPDATE cart SET note = note || '!', qty = qty * 2",
    );
    net.settle();
    net.assert_equal();
    assert!(chunks(&mut net, 2) > 50);
    assert_eq!(chunks(&mut net, 2), chunks(&mut net, 0));
    net.sql(2, "UPDATE cart SET note = 'by another' WHERE qty < 100");
    (0..3).for_each(|node| net.restart(node));
    net.link(0, 2);
    net.link(2, 1);
    net.settle();
    net.assert_equal();
    assert_eq!(net.value(0, "SELECT count(*) FROM cart"), 334);
    assert_eq!(net.value(1, "SELECT count(*) FROM cart WHERE note = 'by another'"), 33);
    net.sql(1, "DELETE FROM cart");
    net.settle();
    net.assert_equal();
    assert_eq!(net.value(0, "SELECT count(*) FROM cart"), 0);
    assert_eq!(net.value(0, "SELECT count(*) FROM littoral_conflicts"), 0);
}

#[test]
fn what_a_failed_statement_did_is_not_in_the_entry_though_it_was_on_disk() {
    let mut net = Net::new(2);
    net.link(0, 1);
    net.settle();
    net.sql(0, ORDERS);
    net.write(0, |tx| {
        tx.execute_batch("UPDATE orders SET note = 'changed' WHERE code <= 100")?;
        // It fails at its last row, when many are on disk.
        let failed = tx.execute_batch(
            "UPDATE OR FAIL orders SET note = 'kept', \
             code = CASE WHEN id = (SELECT max(id) FROM orders) THEN NULL ELSE code + 1000 END",
        );
        assert!(failed.is_err());
        tx.execute_batch(
            "SAVEPOINT s; UPDATE orders SET note = 'x' || note; DELETE FROM orders WHERE id % 2; \
             ROLLBACK TO s; RELEASE s;",
        )?;
        let failed = tx
            .execute_batch("INSERT INTO orders SELECT id + 1000000, code % 100, note FROM orders");
        assert!(failed.is_err());
        tx.execute_batch("DELETE FROM orders WHERE code BETWEEN 1000 AND 1100")
    })
    .unwrap();
    net.settle();
    net.assert_equal();
}

#[test]
fn an_entry_above_the_bound_is_refused_and_leaves_nothing() {
    let mut net = Net::new(2);
    net.max_entry = 1 << 20;
    net.restart(0);
    net.link(0, 1);
    net.settle();
    let before = (chunks(&mut net, 0), net.digest(0));
    let result = net.write(0, |tx| {
        tx.execute_batch(ORDERS)?;
        tx.execute("INSERT INTO orders VALUES(1, -1, hex(zeroblob(600000)))", [])?;
        Ok(())
    });
    let Err(WriteError::EntryTooLarge { bytes, max }) = result else { panic!("{result:?}") };
    assert!(bytes > max && max == 1 << 20);
    assert_eq!((chunks(&mut net, 0), net.digest(0)), before);
    net.sql(0, ORDERS);
    net.settle();
    net.assert_equal();
}

#[test]
fn a_large_entry_offered_by_two_links_is_received_once() {
    let mut net = Net::new(4);
    for edge in [1, 2] {
        net.link(0, edge);
    }
    net.settle();
    net.sql(0, ORDERS);
    net.settle();
    let (first, second) = (net.link(1, 3), net.link(2, 3));
    while chunks(&mut net, 3) < 10 {
        assert!(net.deliver(1));
    }
    let status = net.replica(3).status();
    assert_eq!(status.peers.iter().filter(|peer| peer.holds.is_some()).count(), 1);
    assert_eq!(net.value(3, "SELECT count(*) FROM orders"), 0, "nothing is half visible");
    // The sender dies: the other one goes on where it stopped.
    let before = chunks(&mut net, 3);
    let holds = |status: &littoral::Status, peer| {
        status.peers.iter().find(|p| p.peer == peer).unwrap().holds.is_some()
    };
    let ends = [first, second].map(|end| (end, net.links[&end].1));
    let (end, _) = ends.into_iter().find(|(_, peer)| !holds(&status, *peer)).unwrap();
    net.cut(end);
    net.settle();
    net.assert_equal();
    assert!(before >= 10);
    let received: u64 = net.replica(3).status().peers.iter().map(|peer| peer.bytes_received).sum();
    assert!(received < 100_000, "{received}");
    assert_eq!(net.replica(3).status().spools, 0);
}

#[test]
fn what_was_received_is_found_again_after_a_restart() {
    let mut net = Net::new(2);
    net.link(0, 1);
    net.settle();
    net.sql(0, ORDERS);
    while chunks(&mut net, 1) < 10 {
        assert!(net.deliver(1));
    }
    net.restart(1);
    let before = chunks(&mut net, 1);
    assert!(before >= 10);
    assert_eq!(net.replica(1).status().spools, 1);
    net.link(0, 1);
    net.settle();
    net.assert_equal();
    let total = net.value(0, "SELECT length FROM littoral_large");
    let received = net.replica(1).status().peers[0].bytes_received;
    assert!(received < u64::try_from(total).unwrap(), "{received} of {total}, compressed");
}

#[test]
fn a_spool_that_nobody_fills_gives_way() {
    let mut net = Net::new(2);
    net.link(0, 1);
    net.settle();
    net.sql(0, ORDERS);
    while chunks(&mut net, 1) < 10 {
        assert!(net.deliver(1));
    }
    net.restart(1);
    net.wait(SPOOL_TIMEOUT / 2);
    assert!(chunks(&mut net, 1) >= 10);
    net.wait(SPOOL_TIMEOUT);
    assert_eq!(net.value(1, "SELECT count(*) FROM littoral_large"), 0);
    net.wait(DISCARD_INTERVAL);
    assert_eq!(chunks(&mut net, 1), 0);
    assert_eq!(net.replica(1).status().spools, 0);
    net.link(0, 1);
    net.settle();
    net.assert_equal();
}

#[test]
fn large_entries_wait_for_room() {
    let mut net = Net::new(4);
    let links = [net.link(0, 1), net.link(0, 2), net.link(0, 3)];
    net.settle();
    links.into_iter().for_each(|end| net.cut(end));
    // Each alone fits, both together do not.
    for node in [1, 2] {
        let prefix = node.to_string();
        net.write(node, move |tx| {
            tx.execute(
                "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 1000)
                 INSERT INTO cart SELECT ?1 || x, 'some words for a note', x FROM c",
                [&prefix],
            )?;
            Ok(())
        })
        .unwrap();
        net.link(node, 3);
    }
    let mut waited = false;
    while net.deliver(1) {
        let status = net.replica(3).status();
        waited |= status.peers.iter().any(|p| p.holds.is_some_and(|h| h.why == HoldReason::NoRoom));
        assert!(status.spools <= 1);
    }
    assert!(waited);
    net.link(0, 3);
    net.settle();
    net.assert_equal();
    assert_eq!(net.value(0, "SELECT count(*) FROM cart"), 2000);
}

/// `LITTORAL_LARGE_ROWS` asks for another number of rows, and what they take is printed.
#[test]
fn many_rows_in_one_transaction_replicate_as_one_entry() {
    let asked = std::env::var("LITTORAL_LARGE_ROWS").ok();
    let rows: i64 = asked.as_deref().map_or(200_000, |rows| rows.parse().unwrap());
    let mut net = Net::with_sizes(2, None);
    net.link(0, 1);
    net.settle();
    let report = |what: &str| {
        if asked.is_some() {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
            eprintln!("{what}: {peak}");
        }
    };
    report("before");
    net.write(0, move |tx| {
        tx.execute(
            "WITH RECURSIVE c(x) AS (SELECT 0 UNION ALL SELECT x + 1 FROM c LIMIT ?1)
             INSERT INTO orders SELECT x * 7919 % 10000019, x,
               printf('%020d %040d', x, x) || hex(randomblob(32)) FROM c",
            [rows],
        )?;
        Ok(())
    })
    .unwrap();
    report("written");
    let before = net.replica(1).status().applied;
    net.settle();
    report("applied");
    net.assert_equal();
    assert_eq!(net.value(1, "SELECT count(*) FROM orders"), rows);
    let status = net.replica(1).status();
    assert_eq!(status.spools, 0);
    assert!(status.applied.0 - before.0 <= 3, "one entry, and frontiers");
}

#[test]
fn a_large_entry_from_the_future_waits_whole_whoever_offers_it() {
    let mut net = Net::new(3);
    net.link(0, 1);
    net.link(0, 2);
    net.settle();
    // What they know of the origin's clock is gone, and so is what they sent.
    (0..3).for_each(|node| net.restart(node));
    let right = net.now;
    net.now.wall.0 += 60_000;
    net.sql(1, CARTS);
    net.link(1, 2);
    net.settle();
    net.now.wall = right.wall;
    let first = net.link(0, 1);
    net.settle();
    net.link(0, 2);
    net.settle();
    let reasons = |net: &mut Net| -> Vec<HoldReason> {
        let status = net.replica(0).status();
        status.peers.iter().filter_map(|peer| peer.holds).map(|hold| hold.why).collect()
    };
    let held = reasons(&mut net);
    assert!(
        matches!(held[..], [HoldReason::Future { .. }, HoldReason::ReceivedElsewhere]),
        "{held:?}"
    );
    assert_eq!(net.value(0, "SELECT count(*) FROM cart"), 0);
    net.cut(first);
    net.settle();
    let held = reasons(&mut net);
    assert!(matches!(held[..], [HoldReason::Future { .. }]), "{held:?}");
    for _ in 0..54 {
        net.wait(Duration::from_secs(1));
        net.settle();
    }
    assert_eq!(net.value(0, "SELECT count(*) FROM cart"), 0);
    net.wait(Duration::from_secs(1));
    net.settle();
    assert_eq!(net.value(0, "SELECT count(*) FROM cart"), 500);
    net.assert_equal();
    assert_eq!(reasons(&mut net), []);
}

#[test]
fn chunks_that_nobody_needs_go_little_by_little_also_after_a_crash() {
    const CHUNKS: &str = "SELECT coalesce(sum(length(bytes)), 0) FROM littoral_chunks";
    let mut net = Net::new(1);
    net.write(0, |tx| {
        let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
                   INSERT INTO cart(id, note) SELECT i, hex(zeroblob(500)) FROM n";
        tx.execute(sql, []).map(drop)
    })
    .unwrap();
    // Its only member has it: the log is trimmed at once.
    assert_eq!(net.value(0, "SELECT count(*) FROM littoral_large"), 0);
    let mut left = net.value(0, CHUNKS);
    assert!(left > 3_000_000, "a write need not wait until {left} bytes are removed");
    net.wait(DISCARD_INTERVAL);
    net.restart(0);
    let step = i64::try_from(DISCARD_STEP_BYTES).unwrap();
    for _ in 0..3 {
        let now = net.value(0, CHUNKS);
        assert!((1..=step + 500).contains(&(left - now)), "{left} bytes are {now} at once");
        left = now;
        net.wait(DISCARD_INTERVAL);
    }
    net.wait(DISCARD_INTERVAL);
    assert_eq!(net.value(0, CHUNKS), 0);
}
