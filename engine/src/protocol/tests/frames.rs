//! The frames that travel on a link: what they come back as, and which are refused.

use super::*;
use crate::protocol::forward::Asks;

proptest! {
    #[test]
    fn chunk_frames_come_back(seq in 1..u64::MAX, offset in 0..1u64 << 35, bytes in proptest::collection::vec(any::<u8>(), 0..3000), zeros in any::<bool>()) {
        let bytes = if zeros { vec![0; bytes.len()] } else { bytes };
        let dot = Dot { author: author(7), seq };
        let frame = chunk_frame(dot, offset, &bytes);
        let Payload::Chunk(a, b, c) = decode_frame(Channel::Entries, &frame).unwrap() else {
            panic!("not a chunk")
        };
        prop_assert_eq!((a, b, c), (dot, offset, bytes));
    }

    #[test]
    fn offers_come_back(seq in 1..u64::MAX, digest in any::<[u8; 32]>(), length in 0..1u64 << 36) {
        let name = LargeName { dot: Dot { author: author(7), seq }, digest: Digest(digest), length };
        let frame = large_frame(&name);
        let Payload::Large(read) = decode_frame(Channel::Entries, &frame).unwrap() else {
            panic!("not an offer")
        };
        prop_assert_eq!(read, name);
    }
}

#[test]
fn large_payloads_that_compress_travel_compressed() {
    let kind = |frame: &[u8]| frame[FRAME_HEADER_BYTES - 1];
    let small = entry_of(1, 1, "short");
    let plain = entries_frame(&[small]);
    let compressible = entry_of(1, 1, &"row ".repeat(COMPRESS_FROM_BYTES));
    let packed = entries_frame(std::slice::from_ref(&compressible));
    assert!(packed.len() < compressible.bytes.len());
    assert_ne!(kind(&plain), kind(&packed));
    let Payload::Entries(decoded) = decode_frame(Channel::Entries, &packed).unwrap() else {
        panic!("not entries")
    };
    assert_eq!(decoded[0].bytes, compressible.bytes);
}

fn header(payload: &[u8], kind: u8) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_le_bytes().to_vec();
    frame.push(kind);
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn a_decompression_bomb_is_refused() {
    let zeros = vec![0; 32 << 20];
    let compressed = zstd::bulk::compress(&zeros, 1).unwrap();
    assert!(compressed.len() < 16 << 10, "a bomb");
    let claims = [0, 100, zeros.len() as u64 - 1, MAX_FRAME_BYTES as u64 + 1, u64::MAX];
    for claimed in claims {
        let mut payload = Vec::new();
        put_varint(&mut payload, claimed);
        payload.extend_from_slice(&compressed);
        let error = decode_frame(Channel::Entries, &header(&payload, 3)).unwrap_err();
        assert_eq!(error.code(), CloseCode::Malformed, "{claimed}");
    }
}

#[test]
fn a_frame_is_refused_by_its_length_alone() {
    for (channel, max) in
        [(Channel::Control, MAX_CONTROL_FRAME_BYTES), (Channel::Entries, MAX_FRAME_BYTES)]
    {
        let payload = max - FRAME_HEADER_BYTES;
        let header = |bytes: usize| {
            let [a, b, c, d] = u32::try_from(bytes).unwrap().to_le_bytes();
            [a, b, c, d, 1]
        };
        assert_eq!(frame_length(channel, header(payload)), Ok(payload));
        assert!(frame_length(channel, header(payload + 1)).is_err());
        assert!(frame_length(channel, [255; 5]).is_err());
    }
}

#[test]
fn a_frame_that_is_shorter_or_longer_than_it_says_is_refused() {
    let frame = entries_frame(&[entry(1, 1, 50)]);
    for cut in 0..frame.len() {
        assert!(decode_frame(Channel::Entries, &frame[..cut]).is_err(), "{cut}");
    }
    let longer = [&frame[..], &[0]].concat();
    assert!(decode_frame(Channel::Entries, &longer).is_err());
}

#[test]
fn an_entry_of_a_newer_format_is_not_the_peers_fault() {
    let mut newer = entry(1, 1, 50).bytes.to_vec();
    newer[0] = FORMAT + 1;
    let mut payload = Vec::new();
    put_varint(&mut payload, newer.len() as u64);
    payload.extend_from_slice(&newer);
    let error = decode_frame(Channel::Entries, &header(&payload, 2)).unwrap_err();
    assert_eq!(error.code(), CloseCode::Halted);
}

fn channel() -> impl Strategy<Value = Channel> {
    prop_oneof![Just(Channel::Control), Just(Channel::Entries)]
}

fn message() -> impl Strategy<Value = Message> {
    let vector = || prop::collection::vec((any::<u64>(), any::<u64>()), 0..5);
    let hello = (any::<u128>(), "[ -~]{0,40}", vector(), any::<[u8; 8]>(), any::<u64>()).prop_map(
        |(cluster, node, vector, digest, frontier)| {
            Message::Hello(Box::new(Hello {
                frame_versions: (1, 1),
                entry_formats: vec![1, 2],
                cluster,
                node: node.clone(),
                incarnation: cluster.rotate_left(7),
                vector: vector.iter().map(|(author, seq)| (*author, *seq, digest)).collect(),
                yours: vector.iter().map(|(author, seq)| (cluster, *author, *seq)).collect(),
                trimmed: vector,
                register: Some(message::Register {
                    version: frontier,
                    term: 3,
                    origin: (node.clone(), cluster, frontier),
                    voters: vec![(node, cluster)],
                }),
                frontier,
                schema: 4,
            }))
        },
    );
    prop_oneof![
        hello,
        vector().prop_map(Message::Ack),
        (any::<u64>(), vector()).prop_map(|ack| Message::Acks(vec![ack])),
        any::<u64>().prop_map(Message::Credit),
        any::<u64>().prop_map(Message::Ping),
        any::<(u64, Option<(u64, u64, u64)>)>()
            .prop_map(|(token, told)| Message::Pong(token, told)),
        (any::<(u64, u64)>(), proptest::option::of(vector()))
            .prop_map(|((token, age), vector)| Message::Watermark(token, age, vector)),
        (any::<u64>(), question()).prop_map(|(token, question)| Message::Ask(token, question)),
        (any::<u64>(), answer()).prop_map(|(token, answer)| Message::Answer(token, answer)),
        any::<u8>().prop_map(Message::Distance),
        (any::<u64>(), carried()).prop_map(|(token, carried)| Message::Carry(token, carried)),
        (any::<u64>(), reply()).prop_map(|(token, reply)| Message::Reply(token, reply)),
    ]
}

fn carried() -> impl Strategy<Value = Carried> {
    let program = any::<Vec<u8>>;
    let asks = prop_oneof![
        Just(Asks::Outcome),
        program().prop_map(Asks::Run),
        Just(Asks::Begin),
        (any::<(u64, u64)>(), program())
            .prop_map(|((guest, step), program)| Asks::Step(guest, step, program)),
        Just(Asks::Leave),
        Just(Asks::Meet),
    ];
    (any::<(u128, u64, u64, u8)>(), asks, any::<Vec<(u64, u64)>>()).prop_map(
        |((request, issued, patience, hops), asks, requires)| Carried {
            request,
            issued,
            asks,
            requires,
            patience,
            hops,
        },
    )
}

fn reply() -> impl Strategy<Value = Reply> {
    let bytes = any::<Vec<u8>>;
    prop_oneof![
        any::<(u64, u64, Option<Vec<u8>>)>()
            .prop_map(|(author, seq, result)| Reply::Committed(author, seq, result)),
        (bytes(), any::<Vec<(u64, u64)>>()).prop_map(|(given, had)| Reply::Unchanged(given, had)),
        (bytes(), any::<Vec<(u64, u64)>>()).prop_map(|(answer, had)| Reply::Failed(answer, had)),
        Just(Reply::Refused),
        Just(Reply::OtherProgram),
        Just(Reply::Expired),
        Just(Reply::NotBegun),
        Just(Reply::Lost),
        any::<u64>().prop_map(Reply::Begun),
        bytes().prop_map(Reply::Stepped),
        Just(Reply::Gone),
    ]
}

fn question() -> impl Strategy<Value = Question> {
    let upto = any::<Option<Vec<u8>>>;
    let what = prop_oneof![
        Just(Wanted::Sum),
        upto().prop_map(|upto| Wanted::Rows { upto }),
        (upto(), any::<Vec<[u8; 16]>>()).prop_map(|(upto, keys)| Wanted::Images { upto, keys }),
    ];
    (any::<(u32, u32)>(), upto(), what).prop_map(|((table, schema), after, what)| Question {
        table,
        schema,
        after,
        what,
    })
}

fn answer() -> impl Strategy<Value = Answer> {
    let upto = any::<Option<Vec<u8>>>;
    let image = prop_oneof![
        Just(message::Image::Absent),
        Just(message::Image::Parked),
        Just(message::Image::TooLarge),
        any::<(Vec<u8>, Vec<u8>)>().prop_map(|(key, cells)| message::Image::Row(key, cells)),
    ];
    prop_oneof![
        Just(Answer::NotNow),
        (upto(), any::<[u8; 16]>()).prop_map(|(upto, sum)| Answer::Sum { upto, sum }),
        (upto(), any::<Vec<([u8; 16], [u8; 16])>>())
            .prop_map(|(upto, rows)| Answer::Rows { upto, rows }),
        (any::<[u8; 16]>(), image, any::<Vec<(u64, u64)>>()).prop_map(|(key, image, vector)| {
            Answer::Images { vector, images: vec![(key, image)] }
        }),
    ]
}

proptest! {
    #[test]
    fn a_message_decodes_to_itself(message in message()) {
        let frame = said(&message);
        let Payload::Control(bytes) = decode_frame(Channel::Control, &frame).unwrap() else {
            panic!("not a message")
        };
        prop_assert_eq!(&Message::decode(bytes).unwrap(), &message);
        let longer = [bytes, &[0]].concat();
        prop_assert!(Message::decode(&longer).is_err());
        for cut in 0..bytes.len() {
            prop_assert!(Message::decode(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn entries_come_out_of_a_frame_as_they_went_in(
        texts in prop::collection::vec("[a-c]{0,400}", 0..8),
    ) {
        let entries: Vec<Entry> =
            (1..).zip(&texts).map(|(seq, text)| entry_of(1, seq, text)).collect();
        let frame = entries_frame(&entries);
        let Payload::Entries(decoded) = decode_frame(Channel::Entries, &frame).unwrap() else {
            panic!("not entries")
        };
        prop_assert_eq!(decoded.len(), entries.len());
        for (ours, theirs) in entries.iter().zip(&decoded) {
            prop_assert_eq!(&ours.bytes, &theirs.bytes);
            prop_assert_eq!((ours.header, ours.digest), (theirs.header, theirs.digest));
        }
    }

    #[test]
    fn noise_never_panics(
        channel in channel(),
        before_hello: bool,
        framed: bool,
        kind in 0u8..5,
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut side =
            if before_hello { Side::new("a", "b", Vec::new()) } else { streaming(Vec::new()) };
        let frame = if framed { header(&noise, kind) } else { noise };
        let _ = side.receive(START, channel, frame);
        let _ = side.receive(START, Channel::Control, said(&hello_message("b")));
    }

    #[test]
    fn damaged_frames_never_panic(
        texts in prop::collection::vec("[a-c]{0,400}", 1..4), at: usize, bit in 0u8..8,
    ) {
        let entries: Vec<Entry> =
            (1..).zip(&texts).map(|(seq, text)| entry_of(1, seq, text)).collect();
        for (channel, mut frame) in [
            (Channel::Entries, entries_frame(&entries)),
            (Channel::Control, said(&hello_message("b"))),
        ] {
            let at = at % frame.len();
            frame[at] ^= 1 << bit;
            let _ = Side::new("a", "b", Vec::new()).receive(START, channel, frame.clone());
            let _ = streaming(Vec::new()).receive(START, channel, frame);
        }
    }
}
