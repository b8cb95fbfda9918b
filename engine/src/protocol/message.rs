//! [`Message`]: everything that is said on a link's control stream, in the order of
//! `docs/protocol.md`.
//!
//! The crate's only bincode: its standard configuration, always with a limit, whole frames only.

use bincode::{Decode, Encode, config};

use crate::{
    driver::Identity,
    entry::{Digest, codec::Head},
    error::ProtocolError,
    id::{AuthorId, ClusterId, Incarnation, NodeId, SchemaVersion, Seq},
    limits::MAX_CONTROL_FRAME_BYTES,
    protocol::forward::{Carried, Reply},
    value::Sum,
    version::{Dot, VersionVector},
};

/// The frame version this engine speaks, and the oldest it understands.
pub(crate) const FRAME_VERSION: u16 = 1;

/// A control message.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Message {
    /// The first message on a link, from both sides.
    Hello(Box<Hello>),
    /// What the sender holds on stable storage.
    Ack(Vec<(u64, Seq)>),
    /// How many bytes of entries the sender has taken from this link since it began.
    Credit(u64),
    /// Answered with the same number.
    Ping(u64),
    /// The answer, and what the sender takes the origin's wall clock to say, if it can tell: the time,
    /// by how much that may be wrong, and how long ago the origin said so, in milliseconds.
    Pong(u64, Option<(u64, u64, u64)>),
    /// What members have said to hold on stable storage, passed on: their author ids and vectors. A
    /// vector is one that its member once held; none is put together from several.
    Acks(Vec<(u64, Vec<(u64, Seq)>)>),
    /// The sender cannot take this entry now, by author and sequence number: nothing behind it may be
    /// sent.
    Hold(u64, Seq),
    /// It can, from this offset of the entry's bytes on.
    Resume(u64, Seq, u64),
    /// An incarnation of a node asks to become a member, itself or through others.
    AskJoin(String, u128),
    /// The sender streams nothing on this link: the receiver must take a snapshot first.
    SnapshotFirst,
    /// Asks for a snapshot: whether it must hold the sender's own `Join`, the entries it must hold
    /// because the sender has them, and name and number of bytes of what the sender has of one already.
    AskSnapshot(bool, Vec<(u64, Seq)>, Option<([u8; 32], u64)>),
    /// The snapshot that follows on its own stream: name, size, and the offset at which it begins.
    Snapshot([u8; 32], u64, u64),
    /// How many bytes of the snapshot the sender has written.
    SnapshotCredit(u64),
    /// Asks what the receiver holds of a table; answered with the same number.
    Ask(u64, Question),
    /// The answer.
    Answer(u64, Answer),
    /// How many links there are between the sender and the origin.
    Distance(u8),
    /// A request to be carried to the origin; answered with the same number.
    Carry(u64, Carried),
    /// What became of it.
    Reply(u64, Reply),
    /// Follows a `Pong` with the same number: the origin had applied these entries so many microseconds
    /// before. Without them they are those that the sender said last on this link.
    Watermark(u64, u64, Option<Vec<(u64, Seq)>>),
}

/// What a replica that compares its rows with the receiver's asks: about a table, by its id under a
/// version of the schema.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Question {
    pub(crate) table: u32,
    pub(crate) schema: u32,
    /// Behind this key, or from the first row on.
    pub(crate) after: Option<Vec<u8>>,
    pub(crate) what: Wanted,
}

/// What is asked of a range.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Wanted {
    /// The sum of as many rows as the receiver likes.
    Sum,
    /// The sums of the rows up to a key, or to the last.
    Rows { upto: Option<Vec<u8>> },
    /// The rows up to a key whose keys have these sums.
    Images { upto: Option<Vec<u8>>, keys: Vec<Sum> },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Answer {
    /// The table cannot be compared now: the schema is another one, or a key is too long.
    NotNow,
    /// The sum of the rows up to a key, or to the last.
    Sum { upto: Option<Vec<u8>>, sum: Sum },
    /// The sums of key and row of the rows up to a key, in their order.
    Rows { upto: Option<Vec<u8>>, rows: Vec<(Sum, Sum)> },
    /// Some of the rows asked for, by the sums of their keys, as they are with these entries applied.
    Images { vector: Vec<(u64, Seq)>, images: Vec<(Sum, Image)> },
}

/// What a replica holds of one row.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Image {
    /// Nothing.
    Absent,
    /// It could not be stored and is parked.
    Parked,
    /// More bytes than fit an answer.
    TooLarge,
    /// Its key and its cells.
    Row(Vec<u8>, Vec<u8>),
}

/// Who a replica is, and what it has.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Hello {
    pub(crate) frame_versions: (u16, u16),
    /// Every entry format it can read.
    pub(crate) entry_formats: Vec<u8>,
    pub(crate) cluster: u128,
    pub(crate) node: String,
    pub(crate) incarnation: u128,
    /// For every author the newest entry it has applied, and the start of its digest.
    pub(crate) vector: Vec<(u64, Seq, [u8; 8])>,
    /// For every author the newest entry it has trimmed.
    pub(crate) trimmed: Vec<(u64, Seq)>,
    pub(crate) register: Option<Register>,
    /// The lives of the receiver's node that it knows as members: incarnation, author id and newest
    /// entry. So a node that has lost its file hears of it before anything is streamed.
    pub(crate) yours: Vec<(u128, u64, Seq)>,
    /// Number of the newest frontier it has applied.
    pub(crate) frontier: u64,
    pub(crate) schema: u32,
}

/// The control register: who is origin, as the voters agreed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Register {
    pub(crate) version: u64,
    pub(crate) term: u32,
    /// The origin's name, incarnation and author id.
    pub(crate) origin: (String, u128, u64),
    /// Names and incarnations of the voters.
    pub(crate) voters: Vec<(String, u128)>,
}

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        bincode::encode_to_vec(self, config::standard())
            .expect("messages hold nothing that cannot be encoded")
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let config = config::standard().with_limit::<MAX_CONTROL_FRAME_BYTES>();
        let (message, read) = bincode::decode_from_slice(bytes, config)
            .map_err(|error| ProtocolError::Malformed(error.to_string()))?;
        if read == bytes.len() {
            Ok(message)
        } else {
            Err(ProtocolError::Malformed("control message with bytes behind it".to_owned()))
        }
    }
}

impl Hello {
    pub(crate) fn new(
        identity: &Identity,
        heads: impl Iterator<Item = (AuthorId, Head)>,
        register: Option<&Register>,
        schema: SchemaVersion,
        trimmed: &VersionVector,
        frontier: u64,
    ) -> Self {
        Self {
            frame_versions: (FRAME_VERSION, FRAME_VERSION),
            entry_formats: vec![crate::entry::codec::FORMAT],
            cluster: identity.cluster.0,
            node: identity.node.as_str().to_owned(),
            incarnation: identity.incarnation.0,
            vector: heads
                .map(|(author, head)| (author.to_u64(), head.seq, head.digest.prefix()))
                .collect(),
            trimmed: wire_vector(trimmed),
            register: register.cloned(),
            yours: Vec::new(),
            frontier,
            schema: schema.0,
        }
    }

    pub(crate) fn identity(&self) -> Result<Identity, ProtocolError> {
        Ok(Identity {
            cluster: ClusterId(self.cluster),
            node: NodeId::new(&self.node)
                .map_err(|error| ProtocolError::Malformed(error.to_string()))?,
            incarnation: Incarnation(self.incarnation),
        })
    }

    pub(crate) fn vector(&self) -> VersionVector {
        self.heads().map(|(dot, _)| dot).collect()
    }

    /// What its log begins behind.
    pub(crate) fn trimmed(&self) -> VersionVector {
        read_vector(&self.trimmed)
    }

    /// What it knows of the receiver, if that is `incarnation`: its newest entry.
    pub(crate) fn knows_of(&self, incarnation: Incarnation) -> Option<Dot> {
        let found = self.yours.iter().find(|(of, ..)| *of == incarnation.0);
        found.map(|(_, author, seq)| Dot { author: AuthorId::from_u64(*author), seq: *seq })
    }

    /// The newest entry of every author and the start of its digest.
    pub(crate) fn heads(&self) -> impl Iterator<Item = (Dot, [u8; 8])> {
        self.vector.iter().filter(|(_, seq, _)| *seq > 0).map(|(author, seq, prefix)| {
            (Dot { author: AuthorId::from_u64(*author), seq: *seq }, *prefix)
        })
    }
}

impl Register {
    /// Version 0: the first origin, itself the only voter.
    pub(crate) fn first(origin: &Identity) -> Self {
        let node = origin.node.as_str().to_owned();
        let incarnation = origin.incarnation.0;
        Self {
            version: 0,
            term: AuthorId::FIRST.term,
            origin: (node.clone(), incarnation, AuthorId::FIRST.to_u64()),
            voters: vec![(node, incarnation)],
        }
    }

    pub(crate) fn origin_author(&self) -> AuthorId {
        AuthorId::from_u64(self.origin.2)
    }

    pub(crate) fn is_origin(&self, identity: &Identity) -> bool {
        self.origin.0 == identity.node.as_str() && self.origin.1 == identity.incarnation.0
    }

    /// As the file keeps it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        bincode::encode_to_vec(self, config::standard())
            .expect("a register holds nothing that cannot be encoded")
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let config = config::standard().with_limit::<MAX_CONTROL_FRAME_BYTES>();
        bincode::decode_from_slice(bytes, config).ok().map(|(register, _)| register)
    }
}

/// A vector as acknowledgements carry it.
pub(crate) fn wire_vector(vector: &VersionVector) -> Vec<(u64, Seq)> {
    vector.iter().map(|dot| (dot.author.to_u64(), dot.seq)).collect()
}

/// The inverse of [`wire_vector`].
pub(crate) fn read_vector(vector: &[(u64, Seq)]) -> VersionVector {
    vector
        .iter()
        .map(|(author, seq)| Dot { author: AuthorId::from_u64(*author), seq: *seq })
        .collect()
}

/// Whether a digest begins so.
pub(crate) fn begins_with(digest: &Digest, prefix: [u8; 8]) -> bool {
    digest.prefix() == prefix
}
