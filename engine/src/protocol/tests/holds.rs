//! Streams that stand at an entry: large ones, which are sent when they are asked for, and held ones.

use super::*;

/// Two small entries around a large one.
fn pair_with_a_large_entry() -> (Pair, Dot) {
    let log = vec![entry(1, 1, 50), entry(1, 2, 2000), entry(1, 3, 50)];
    let mut pair = Pair::new(log, Vec::new());
    pair.a.large = 1000;
    pair.talk();
    (pair, Dot { author: author(1), seq: 2 })
}

#[test]
fn a_large_entry_is_offered_and_nothing_is_sent_behind_it() {
    let (mut pair, dot) = pair_with_a_large_entry();
    assert_eq!(pair.b.dots(), [(1, 1)]);
    let large = pair.a.log[1].clone();
    let name = LargeName { dot, digest: large.digest, length: large.bytes.len() as u64 };
    assert_eq!(pair.b.offers, [name]);
    assert_eq!(pair.a.session.held_by_peer(), Some(dot));
    assert!(pair.b.chunks.is_empty(), "it was not asked for");

    pair.b.session.resume(dot, 0);
    pair.talk();
    assert_eq!(pair.b.chunks, **large.bytes);
    assert_eq!(pair.b.dots(), [(1, 1), (1, 3)], "what is behind follows");
    assert_eq!(pair.a.session.held_by_peer(), None);
}

#[test]
fn a_large_entry_is_sent_from_the_offset_asked_for() {
    let (mut pair, dot) = pair_with_a_large_entry();
    let bytes = pair.a.log[1].bytes.to_vec();
    pair.b.session.hold(dot);
    pair.talk();
    assert_eq!(pair.a.session.held_by_peer(), Some(dot));
    pair.b.chunks = bytes[..700].to_vec();
    pair.b.session.resume(dot, 700);
    pair.talk();
    assert_eq!(pair.b.chunks, bytes);
}

#[test]
fn a_large_entry_that_the_peer_has_is_passed_over() {
    let (mut pair, dot) = pair_with_a_large_entry();
    let length = pair.a.log[1].bytes.len() as u64;
    pair.b.session.resume(dot, length);
    pair.talk();
    assert!(pair.b.chunks.is_empty());
    assert_eq!(pair.b.dots(), [(1, 1), (1, 3)]);
}

#[test]
fn a_held_entry_stops_the_stream_and_nothing_else() {
    let mut pair = Pair::new(vec![entry(1, 1, 50)], Vec::new());
    pair.talk();
    let dot = Dot { author: author(1), seq: 1 };
    pair.b.session.hold(dot);
    pair.talk();
    pair.a.log.push(entry(1, 2, 50));
    pair.talk();
    assert_eq!(pair.b.dots(), [(1, 1)]);
    pair.wait(KEEP_ALIVE);
    assert_eq!(pair.talk(), 0);
    assert!(pair.a.session.status(&pair.a.vector()).round_trip.is_some(), "pings go on");
    pair.b.session.resume(dot, 0);
    pair.talk();
    assert_eq!(pair.b.dots(), [(1, 1), (1, 2)]);
}

#[test]
fn chunks_that_were_not_asked_for_are_refused() {
    let (pair, dot) = pair_with_a_large_entry();
    let other = Dot { author: author(1), seq: 3 };
    let length = pair.a.log[1].bytes.len();
    let too_long = vec![0; length - 99];
    let cases: [(Dot, u64, &[u8]); 5] = [
        (other, 100, b"abc"),
        (dot, 0, b"abc"),
        (dot, 101, b"abc"),
        (dot, 100, b""),
        (dot, 100, &too_long),
    ];
    for (dot_said, offset, bytes) in cases {
        let (mut pair, dot) = pair_with_a_large_entry();
        pair.b.session.resume(dot, 100);
        let frame = chunk_frame(dot_said, offset, bytes);
        let result = pair.b.receive(pair.now, Channel::Entries, frame);
        assert_eq!(refused(result), CloseCode::Malformed, "{dot_said} {offset} {}", bytes.len());
    }
    let (mut pair, dot) = pair_with_a_large_entry();
    let result = pair.b.receive(pair.now, Channel::Entries, chunk_frame(dot, 0, b"abc"));
    assert_eq!(refused(result), CloseCode::Malformed, "before it was asked for");
    let (mut pair, _) = pair_with_a_large_entry();
    let result = pair.b.receive(pair.now, Channel::Entries, entries_frame(&[entry(1, 3, 50)]));
    assert_eq!(refused(result), CloseCode::Malformed, "an entry behind it");
}

#[test]
fn resuming_what_is_not_offered_is_refused() {
    for (seq, offset) in [(2, 5000), (3, 0)] {
        let (mut pair, _) = pair_with_a_large_entry();
        let message = Message::Resume(author(1).to_u64(), seq, offset);
        let result = pair.a.receive(pair.now, Channel::Control, said(&message));
        assert_eq!(refused(result), CloseCode::Malformed, "{seq} {offset}");
    }
}

#[test]
fn what_the_peer_got_elsewhere_may_be_trimmed_though_it_asked_for_it_here() {
    for has_it in [false, true] {
        let (mut pair, dot) = pair_with_a_large_entry();
        pair.a.session.resume_said(dot, 0).unwrap();
        let (mut vector, mut heard) = (VersionVector::new(), VersionVector::new());
        vector.advance(dot);
        heard.advance(Dot { seq: if has_it { dot.seq } else { dot.seq - 1 }, ..dot });
        let start = Start { lsn: Lsn(dot.seq), upto: Lsn(dot.seq), vector };
        assert_eq!(pair.a.session.skip_trimmed(&start, Some(&heard)), has_it);
    }
}

#[test]
fn an_offer_that_is_trimmed_is_answered_before_anything_follows() {
    let (mut pair, dot) = pair_with_a_large_entry();
    let mut vector = VersionVector::new();
    vector.advance(dot);
    let start = Start { lsn: Lsn(dot.seq), upto: Lsn(dot.seq), vector: vector.clone() };
    assert!(pair.a.session.skip_trimmed(&start, Some(&vector)));
    assert_eq!(
        pair.a.session.held_by_peer(),
        Some(dot),
        "what comes behind could overtake the answer"
    );
    let length = pair.a.log[1].bytes.len() as u64;
    pair.a.session.resume_said(dot, length).unwrap();
    assert_eq!(pair.a.session.held_by_peer(), None);
}
