//! Frames of real links, damaged: a replica refuses them in words and goes on, or takes what they say for
//! what it is. It never panics, never reserves memory for what a length merely says, and never answers
//! without end.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use littoral::{
    Channel, Event, Input, Output, PeerId,
    testing::fuzz::{Fuzz, cases, within_memory},
};

use support::{Cluster, any, explicit, linked};

const SCHEMA: &str = "
    CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, n INTEGER NOT NULL DEFAULT 0, note BLOB);
    CREATE TABLE shop (name TEXT PRIMARY KEY NOT NULL, tags TEXT);
    CREATE TABLE holder (id INTEGER PRIMARY KEY AUTOINCREMENT, email TEXT UNIQUE);
    CREATE TABLE stall (id INTEGER PRIMARY KEY, label TEXT);";

/// Replicas are made anew after so many cases, since damaged entries that can be read are kept.
const CASES_PER_CLUSTER: usize = 100;

/// No frame asks for more.
const OUTPUTS_PER_FRAME: usize = 10_000;

/// All that a test reserves, for whatever lengths are claimed.
const MEMORY_MAX: u64 = 1 << 30;

/// What two replicas say to each other: rows of every kind of table, a large entry, a change of the schema
/// with a freeze, a program for the origin, a comparison, a snapshot for a newcomer.
fn conversation() -> (Cluster, Vec<(Channel, Vec<u8>)>) {
    let mut item = explicit();
    item.declare_column("n", "counter").unwrap();
    let mut shop = any();
    shop.declare_column("tags", "set").unwrap();
    let mut cluster = linked(2, SCHEMA, &[("item", item), ("shop", shop), ("stall", explicit())]);
    cluster.recorded = Some(Vec::new());
    cluster.write(0, "INSERT INTO item (id, name) VALUES (1, 'tea'), (2, 'salt')");
    cluster.write(1, "UPDATE item SET n = n + 3, name = 'green tea' WHERE id = 1");
    cluster.write(1, "INSERT INTO shop VALUES ('quay', littoral_set('[\"a\", 1]'))");
    cluster.write(0, "DELETE FROM item WHERE id = 2");
    cluster.write(0, "INSERT INTO holder (email) VALUES ('a@example'), ('b@example')");
    cluster.write(1, "INSERT INTO item (id, note) VALUES (9, randomblob(200000))");
    cluster.forward(1, 7, "INSERT INTO holder (email) VALUES ('c@example')");
    cluster.forward(1, 8, "=>SELECT 'nothing changes'");
    cluster.ask(1, 9);
    cluster.write(0, "ALTER TABLE stall ADD COLUMN size INTEGER");
    let now = cluster.now;
    cluster.replica(1).verify(now);
    cluster.drain(1);
    cluster.settle();
    (0..6).for_each(|_| cluster.wait(1000));
    let newcomer = cluster.newcomer();
    cluster.link(0, newcomer);
    cluster.settle();
    cluster.cut();
    // The last thing said is how a link begins now.
    cluster.link(0, 1);
    cluster.cut();
    let frames = cluster.recorded.take().unwrap();
    (cluster, frames)
}

#[test]
fn a_damaged_frame_is_refused_in_words_or_taken_for_what_it_says() {
    let test =
        concat!(module_path!(), "::a_damaged_frame_is_refused_in_words_or_taken_for_what_it_says");
    within_memory(test, MEMORY_MAX, check_frames);
}

fn check_frames() {
    let mut fuzz = Fuzz::new(1);
    let mut state = None;
    let (mut refused, mut taken) = (0, 0);
    for case in 0..cases(1500) {
        if case % CASES_PER_CLUSTER == 0 {
            state = None;
        }
        let (cluster, frames) = state.get_or_insert_with(conversation);
        let corpora = [Channel::Control, Channel::Entries, Channel::Snapshot].map(|wanted| {
            let of_it = frames.iter().filter(|(channel, _)| *channel == wanted);
            (wanted, of_it.map(|(_, bytes)| bytes.clone()).collect::<Vec<_>>())
        });
        assert!(corpora.iter().all(|(_, corpus)| !corpus.is_empty()), "a channel was silent");
        let victim = fuzz.below(2);
        let peer = PeerId(1_000_000 + case as u64);
        let node = cluster.names[1 - victim].clone();
        let now = cluster.now_at(victim);
        let replica = cluster.replica(victim);
        replica.handle(now, Input::PeerUp { peer, node });
        let mut hello = None;
        let mut closed = drain(replica, peer, |bytes| {
            hello.get_or_insert(bytes);
        });
        // The peer's own hello is the newest of the recorded ones, which name their node.
        let name = cluster.names[1 - victim].as_str().as_bytes().to_vec();
        let is_hello = |bytes: &Vec<u8>| {
            hello.as_ref().is_some_and(|own: &Vec<u8>| own.get(4..6) == bytes.get(4..6))
                && bytes.windows(name.len()).take(80).any(|window| window == name)
        };
        let theirs = corpora[0].1.iter().rev().find(|bytes| is_hello(bytes)).cloned();
        let greeted = fuzz.below(10) > 0;
        let mut inputs: Vec<(Channel, Vec<u8>)> = Vec::new();
        inputs.extend(theirs.filter(|_| greeted).map(|bytes| (Channel::Control, bytes)));
        for _ in 0..=fuzz.below(3) {
            let (channel, corpus) = &corpora[*fuzz.pick(&[0, 0, 1, 1, 1, 2])];
            let bytes = fuzz.bytes(corpus);
            let channel = if fuzz.below(20) == 0 { Channel::Control } else { *channel };
            inputs.push((channel, bytes));
        }
        let replica = cluster.replica(victim);
        for (channel, bytes) in inputs {
            if closed {
                break;
            }
            replica.handle(now, Input::Frame { peer, channel, bytes });
            closed = drain(replica, peer, |_| {});
        }
        if closed {
            refused += 1;
        } else {
            taken += 1;
            replica.handle(now, Input::PeerDown { peer });
            drain(replica, peer, |_| {});
        }
        if replica.status().halted.is_some() {
            // An operator is needed; the next replicas begin anew.
            state = None;
            continue;
        }
        if case % 10 == 0 {
            let sql = "INSERT INTO item (id, name) VALUES (littoral_id(), 'goes on')";
            cluster.write(victim, sql);
        }
    }
    assert!(refused > 10 && taken > 10, "{refused} links were closed, {taken} were not");
}

/// Carries out what a replica wants after a frame; whether it has closed the link.
fn drain(replica: &mut littoral::Replica, peer: PeerId, mut sent: impl FnMut(Vec<u8>)) -> bool {
    let mut closed = false;
    for _ in 0..OUTPUTS_PER_FRAME {
        match replica.poll() {
            Output::WakeAt(_) => return closed,
            Output::Close { peer: which, code, reason } => {
                assert_eq!(which, peer);
                assert!(!reason.is_empty(), "{code:?} without a reason");
                closed = true;
            }
            Output::Send { bytes, .. } => sent(bytes),
            Output::Event(Event::Halted(why)) => assert!(!why.is_empty()),
            // A driver would carry these out; that they are wanted is what a frame can bring about.
            _ => {}
        }
    }
    panic!("a frame was answered without end");
}
