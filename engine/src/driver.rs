//! What passes between a [`Replica`](crate::Replica) and its driver: [`Input`] in, [`Output`] out.
//!
//! The driver owns everything that touches the world: sockets, clocks, threads, the syncing of the
//! WAL. It hands over what happened and carries out what it is asked to. The node and the simulator
//! are the two drivers of this project.

use crate::{
    db::{Committed, PieceWritten, Snapshot},
    entry::Digest,
    error::WriteError,
    forward::{ForwardError, Outcome, RequestId},
    id::{AuthorId, ClusterId, Incarnation, Lsn, NodeId, PeerId, Ticket},
    protocol::frame::Piece,
    time::Instant,
};

/// Who a replica is. `init` draws it; it never changes in the life of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// This life of the node.
    pub incarnation: Incarnation,
}

/// One of the three ordered byte streams of a link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Channel {
    /// Hello, acknowledgements, credit, keep-alives: never behind entries.
    Control,
    /// Entries.
    Entries,
    /// Pieces of a snapshot.
    Snapshot,
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A link is up. The driver has checked the peer's certificate, which names `node`.
    PeerUp {
        /// A number never used before in this process.
        peer: PeerId,
        /// The node that the certificate names.
        node: NodeId,
    },
    /// The link is gone. Not needed after [`Output::Close`].
    PeerDown {
        /// Which link.
        peer: PeerId,
    },
    /// One whole frame arrived, its header included; see [`frame_length`](crate::frame_length).
    Frame {
        /// On which link.
        peer: PeerId,
        /// On which of its streams.
        channel: Channel,
        /// The frame.
        bytes: Vec<u8>,
    },
    /// Everything up to the LSN is on stable storage, as [`Output::Sync`] asked.
    Synced(Lsn),
    /// The WAL could not be synced. The replica stops: after a failed sync nobody knows what the disk
    /// holds, and only opening the file again finds out.
    SyncFailed(String),
    /// The WAL was copied into the file as [`Output::WalCheckpoint`] asked. The replica copies what was
    /// written meanwhile, so that the next commit begins the WAL anew.
    WalCheckpointed,
    /// A snapshot was taken, as [`Output::TakeSnapshot`] asked, or could not be, and why.
    SnapshotTaken(Result<Snapshot, String>),
    /// A piece of it was read, as [`Output::ReadSnapshot`] asked, or could not be, and why.
    SnapshotRead {
        /// For which link.
        peer: PeerId,
        /// The piece.
        piece: Result<Piece, String>,
    },
    /// A piece was written, as [`Output::WriteSnapshot`] asked, or could not be, and why.
    SnapshotWritten {
        /// Of which link.
        peer: PeerId,
        /// Everything before this offset is written.
        upto: u64,
        /// What became of it.
        result: Result<PieceWritten, String>,
    },
    /// The time of [`Output::WakeAt`] has come. Harmless at any other time.
    Wake,
}

/// Something to do, or to know.
#[derive(Debug)]
pub enum Output {
    /// Send a frame. Frames of one channel arrive in order, or the link is closed.
    Send {
        /// On which link.
        peer: PeerId,
        /// On which of its streams.
        channel: Channel,
        /// The frame, header included.
        bytes: Vec<u8>,
    },
    /// Close the link, after what was sent on it; the replica has forgotten it already.
    Close {
        /// Which link.
        peer: PeerId,
        /// What to tell the peer.
        code: CloseCode,
        /// For people.
        reason: String,
    },
    /// Sync the WAL file, then answer [`Input::Synced`] with this LSN. Requests may be merged: a
    /// sync begun after a request answers it and all before.
    Sync(Lsn),
    /// Run [`Db::wal_checkpoint`](crate::Db::wal_checkpoint) on a thread that may block, then answer
    /// [`Input::WalCheckpointed`], unless it failed or said that a reader holds it up. Requests may be merged.
    WalCheckpoint,
    /// Run [`Db::take_snapshot`](crate::Db::take_snapshot) on a thread that may block, under this name,
    /// then answer [`Input::SnapshotTaken`].
    TakeSnapshot(Digest),
    /// Run [`Db::read_snapshot`](crate::Db::read_snapshot), then answer [`Input::SnapshotRead`].
    /// Requests are carried out in their order.
    ReadSnapshot {
        /// For which link.
        peer: PeerId,
        /// From where on.
        offset: u64,
        /// How many bytes.
        bytes: usize,
    },
    /// Run [`Db::discard_snapshot`](crate::Db::discard_snapshot).
    DiscardSnapshot,
    /// Run [`Db::write_incoming`](crate::Db::write_incoming), then answer [`Input::SnapshotWritten`].
    /// Requests are carried out in their order.
    WriteSnapshot {
        /// From which link it came.
        peer: PeerId,
        /// The piece.
        piece: Piece,
        /// Whether to sync.
        sync: bool,
    },
    /// A snapshot was received and is to become this node's file:
    /// close every reader and then the replica, run [`Db::verify_incoming`](crate::Db::verify_incoming), if
    /// that is true empty the WAL with [`Db::empty_wal`](crate::Db::empty_wal) if there still is one, remove
    /// it and the `-shm` file, rename [`Db::incoming_path`](crate::Db::incoming_path) to
    /// [`Db::path`](crate::Db::path) and sync the directory, and in any case open the replica again.
    /// If the process ends anywhere in between, opening the file as always goes on from there.
    InstallSnapshot(Snapshot),
    /// An interactive transaction is open: its statements may come.
    Begun {
        /// Which one.
        ticket: Ticket,
    },
    /// A write job or an interactive transaction ended.
    Done {
        /// Which one.
        ticket: Ticket,
        /// How.
        result: Result<Committed, WriteError>,
    },
    /// A request of a client of this node was answered, or is given up.
    Answered {
        /// Which one.
        ticket: Ticket,
        /// What became of it.
        result: Result<Outcome, ForwardError>,
    },
    /// At the origin: make a job of the program and hand it to [`Replica::run`](crate::Replica::run). Once
    /// that has failed, or if there is no job to be made,
    /// [`Replica::run_failed`](crate::Replica::run_failed) has the last word; or run it again.
    Run {
        /// Whose program it is.
        request: RequestId,
        /// The program, as the driver of another node wrote it.
        program: Vec<u8>,
    },
    /// At the origin: a client of another node wants an interactive transaction. When the writer's turn comes
    /// to it, call [`Replica::begin_guest`](crate::Replica::begin_guest).
    GuestArrived {
        /// The request that it is.
        request: RequestId,
    },
    /// At the origin: run the program within the guest's transaction, with
    /// [`Replica::step`](crate::Replica::step), and then say what it came to: with
    /// [`Replica::guest_stepped`](crate::Replica::guest_stepped), or
    /// [`Replica::commit_guest`](crate::Replica::commit_guest) if the client commits, or
    /// [`Replica::abandon`](crate::Replica::abandon).
    GuestStep {
        /// The request that it is.
        request: RequestId,
        /// Its transaction.
        ticket: Ticket,
        /// The program, as the driver of another node wrote it.
        program: Vec<u8>,
    },
    /// News.
    Event(Event),
    /// The replica is quiet until then, or until the next input if `None`. Always the last output.
    WakeAt(Option<Instant>),
}

/// News for logs and for whoever waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// This node's own `Join` was applied: it may write.
    Joined(AuthorId),
    /// A node has become a member: its `Join` was applied.
    Member {
        /// Its name.
        node: NodeId,
        /// What its entries are signed with.
        author: AuthorId,
    },
    /// The handshake with a peer is complete.
    Streaming {
        /// On which link.
        peer: PeerId,
        /// With whom.
        node: NodeId,
    },
    /// Remote entries were applied, and are visible to readers.
    Applied {
        /// The newest of them.
        lsn: Lsn,
        /// How many.
        entries: u64,
    },
    /// A change of the schema that waited for other nodes was carried out. Told at the origin.
    SchemaChanged,
    /// Storage fails: local writes fail as long as it does, and applying is tried again.
    StorageFailed(String),
    /// Another program has written the file. What it wrote replicates nowhere, and nodes may differ from
    /// here on. Told once until the file is opened again.
    ForeignWrites,
    /// Storage works again.
    StorageRecovered,
    /// The replica has stopped its links, and after a loss of state or a failed sync all writing too.
    /// Only an operator helps.
    Halted(String),
}

/// Why a link was closed, as the peer is told. The numbers are part of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum CloseCode {
    /// The replica was closed in good order.
    Shutdown = 0,
    /// A frame broke the format.
    Malformed = 1,
    /// No frame or entry version in common.
    Incompatible = 2,
    /// The other cluster.
    WrongCluster = 3,
    /// The certificate and the hello name different nodes, or a node linked to itself.
    WrongNode = 4,
    /// A gap or a wrong order in the stream.
    Gap = 5,
    /// Two different entries under one dot.
    Fork = 6,
    /// The peer knows entries of this node that this node has lost.
    LostState = 7,
    /// Nothing was heard for too long.
    TimedOut = 8,
    /// A newer link to the same node took over.
    Replaced = 9,
    /// The replica cannot go on without an operator.
    Halted = 10,
    /// Storage fails at present; the link may be tried again.
    Storage = 11,
    /// One of the two lacks entries that the other has trimmed from its log.
    TooOld = 12,
    /// The peer's certificate is not accepted any more: it is revoked, it has expired, or its authority is
    /// another than by now. The replica never says this; the driver does.
    Certificate = 13,
}

impl CloseCode {
    /// The number on the wire.
    pub const fn to_u32(self) -> u32 {
        self as u32
    }
}

/// The rows of one replica, hashed in key order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DatabaseDigest {
    /// All tables.
    pub all: Digest,
    /// Each replicated table by name.
    pub tables: Vec<(String, Digest)>,
}
