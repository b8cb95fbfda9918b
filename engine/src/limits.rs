//! Every bound in the engine, with compile-time assertions of how they relate.

use std::time::Duration;

/// The largest entry a transaction may become unless the cluster says otherwise, in bytes of its
/// encoding. A transaction that changes more is refused at commit.
pub const MAX_ENTRY_BYTES: u64 = 1 << 30;

/// What the setting for it may be.
pub const MAX_ENTRY_RANGE: std::ops::RangeInclusive<u64> = 1 << 20..=64 << 30;

/// An entry of more bytes is *large*: it is never held in memory whole, but kept, sent and applied
/// in chunks.
pub const LARGE_ENTRY_BYTES: usize = 1 << 20;

/// Large entries are kept and sent in chunks of this many bytes, the last one excepted.
pub const CHUNK_BYTES: usize = 64 << 10;

/// Row events of one transaction are kept in memory up to this many bytes; more go to the scratch
/// file in sorted runs of this size.
pub const TAPE_BYTES: usize = 32 << 20;

/// Bytes of large entries a node receives at the same time; a single larger one is received alone.
pub const SPOOL_BYTES: u64 = 2 << 30;

/// What was received of a large entry is given up when no link has offered the rest for this long.
pub const SPOOL_TIMEOUT: Duration = Duration::from_secs(60);

/// What a frame may hold beside one largest entry that is not large.
pub const MAX_FRAME_OVERHEAD_BYTES: usize = 4 << 10;

/// The largest frame on a link, header included.
pub const MAX_FRAME_BYTES: usize = LARGE_ENTRY_BYTES + MAX_FRAME_OVERHEAD_BYTES;

/// The largest control frame: vectors of some ten thousand authors.
pub const MAX_CONTROL_FRAME_BYTES: usize = 1 << 20;

/// Bytes of entries a sender may have under way to one peer before the peer has taken them.
pub const CREDIT_WINDOW_BYTES: u64 = 8 << 20;

/// Bytes of entries one link may have waiting to be applied: what its credit allows. A peer that
/// sends more is cut off.
pub const UNAPPLIED_BYTES_MAX: u64 = CREDIT_WINDOW_BYTES;

/// A snapshot is read, sent and written in pieces of this many bytes.
pub const SNAPSHOT_CHUNK_BYTES: usize = 1 << 20;

/// Bytes of a snapshot that are under way to one peer before it has written them.
pub const SNAPSHOT_WINDOW_BYTES: u64 = 8 << 20;

/// A snapshot that is being received is synced after this many bytes: what a crash loses of it at most.
pub const SNAPSHOT_SYNC_BYTES: u64 = 16 << 20;

/// A node that has nothing yet is sent the log while it is no longer than this, and a snapshot then.
pub const SNAPSHOT_FROM_ENTRIES: u64 = 64;

/// A snapshot that nobody takes any more is kept this long, so that a cut link can go on with it.
pub const SNAPSHOT_KEPT: Duration = Duration::from_secs(600);

/// Requests to join that one node passes on at a time.
pub const JOIN_REQUESTS_MAX: usize = 1024;

/// The largest program that is carried to the origin, in bytes.
pub const PROGRAM_BYTES_MAX: usize = 512 << 10;

/// The most that a program may give back, in bytes.
pub const RESULT_BYTES_MAX: usize = 512 << 10;

/// What a program gave is kept with its outcome up to this many bytes.
pub const OUTCOME_RESULT_BYTES: usize = 64 << 10;

/// Outcomes are kept at least this long.
pub const OUTCOME_KEPT: Duration = Duration::from_secs(24 * 3600);

/// Older outcomes are forgotten; the clocks of two nodes may differ by less than the rest.
pub const OUTCOME_FORGOTTEN: Duration = Duration::from_secs(25 * 3600);

/// Requests to the origin that are under way on one link at a time, and their bytes.
pub const REQUESTS_PER_LINK: usize = 32;
/// See [`REQUESTS_PER_LINK`].
pub const REQUEST_BYTES_PER_LINK: usize = 4 << 20;

/// Steps of guests that are under way on one link at a time, beside these. Of those that are open, there is
/// one; others are about to hear that theirs is not.
pub const STEPS_PER_LINK: usize = 4;

/// Guests that have ended, and that the origin remembers to say how.
pub const GUESTS_REMEMBERED: usize = 64;

/// Requests of a node's own clients that wait for the origin, and their bytes.
pub const REQUESTS_WAITING: usize = 1024;
/// See [`REQUESTS_WAITING`].
pub const REQUEST_BYTES_WAITING: usize = 16 << 20;

/// No path to the origin has more links.
pub const HOPS_MAX: u8 = 16;

/// A request that was not taken is tried again after this long.
pub const REQUEST_RETRY: Duration = Duration::from_millis(100);

/// The origin has this long to say what became of a request with which it began in time.
pub const REQUEST_GRACE: Duration = Duration::from_secs(1);

/// The longest that a request may wait for the origin to begin.
pub const PATIENCE_MAX: Duration = Duration::from_secs(3600);

/// Entries are collected into one frame up to this many bytes, when they are waiting anyway.
pub const ENTRIES_FRAME_BYTES: usize = 256 << 10;

/// A frame of entries below this size is not compressed.
pub const COMPRESS_FROM_BYTES: usize = 512;

/// Remote entries are applied in one SQLite transaction up to this many bytes.
pub const APPLY_BATCH_BYTES: usize = 1 << 20;

/// Write jobs committed together at most.
pub const GROUP_JOBS: usize = 256;

/// Newest entries kept in memory for sending, in bytes.
pub const RECENT_LOG_BYTES: usize = 4 << 20;

/// Rows kept in `littoral_conflicts`; the oldest go first.
pub const MAX_CONFLICTS: u64 = 100_000;

/// Contested clocks kept in memory, in bytes. A transaction that touches more may exceed it until the
/// clock checkpoint that follows.
pub const CLOCK_MEMORY_BYTES: usize = 64 << 20;

/// After a frontier clocks are written to the file, so that the log can be trimmed, if they are no more
/// than this many bytes.
pub const CLOCK_CHECKPOINT_CHEAP_BYTES: usize = 256 << 10;

/// Clocks are written to the file after this many bytes of log in any case, so that opening it does not
/// replay more.
pub const CLOCK_CHECKPOINT_LOG_BYTES: u64 = 64 << 20;

/// The origin writes at most one frontier in this time.
pub const FRONTIER_INTERVAL: Duration = Duration::from_secs(1);

/// What other members have acknowledged is passed on at most this often per link.
pub const RELAY_ACK_INTERVAL: Duration = Duration::from_millis(200);

/// Entries are trimmed from the log in steps of this many.
pub const TRIM_STEP_ENTRIES: u64 = 4096;
/// And of this many bytes, those of large entries not counted.
pub const TRIM_STEP_BYTES: u64 = 4 << 20;

/// Chunks of large entries that are no longer needed are removed in steps of this many bytes.
pub const DISCARD_STEP_BYTES: u64 = 1 << 20;
/// From one step to the next: faster than a log is written, and short enough for writes to come between.
pub const DISCARD_INTERVAL: Duration = Duration::from_millis(5);

/// Rows, and bytes of them, of a range that replicas compare at a time.
pub const COMPARE_ROWS: usize = 1024;
/// See [`COMPARE_ROWS`].
pub const COMPARE_BYTES: usize = 1 << 20;

/// Rows that one answer brings whole, and their bytes.
pub const COMPARE_IMAGES: usize = 64;
/// See [`COMPARE_IMAGES`].
pub const COMPARE_IMAGE_BYTES: usize = 256 << 10;

/// Tables with a longer key, in bytes, are not compared.
pub const COMPARE_KEY_BYTES: usize = 64 << 10;

/// Between two ranges the replica does other things for this long: comparing is slow on purpose.
pub const COMPARE_PAUSE: Duration = Duration::from_millis(10);

/// A range that differs is looked at again after this long: what is under way has arrived by then.
pub const COMPARE_SETTLE: Duration = Duration::from_secs(1);

/// A range that cannot be decided is tried again so often.
pub const COMPARE_TRIES: u32 = 20;

/// A replica compares its rows by itself when it has been open for this long.
pub const VERIFY_FIRST: Duration = Duration::from_secs(600);

/// And then this long after it was done the last time.
pub const VERIFY_EVERY: Duration = Duration::from_secs(24 * 3600);

/// The page cache of the connection that applies, in KiB: a large entry that was just received is read
/// from there when it is checked, applied and trimmed, and not from the disk.
pub const APPLY_CACHE_KIB: i64 = 16 << 10;

/// Prepared statements kept per connection.
pub const STATEMENT_CACHE: usize = 256;

/// A WAL checkpoint is asked for after this many bytes were written to the WAL.
pub const WAL_CHECKPOINT_BYTES: u64 = 8 << 20;

/// A checkpoint copies what was written meanwhile, too, if it may be more pages than this, in so many
/// rounds at most. What is left after it the writer waits for.
pub(crate) const WAL_LEFT_PAGES: i64 = 256;

/// How often a checkpoint copies what was written meanwhile at most.
pub(crate) const WAL_ROUNDS: usize = 4;

/// So long the writer waits for readers of a WAL that is to begin anew.
pub(crate) const WAL_READERS_WAIT: Duration = Duration::from_millis(10);

/// The WAL file is cut back to this size when it is started again.
pub const WAL_SIZE_LIMIT_BYTES: u64 = 64 << 20;

/// An idle link says that it is alive this often.
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// A node that is not the origin asks its peers this often what the origin had applied: how old its own
/// rows may be is known about as exactly.
pub const WATERMARK_INTERVAL: Duration = Duration::from_millis(250);

/// How old a table may let what is read of it be, in milliseconds. Less than a node can know of itself makes
/// no sense.
pub const MAX_LAG_MS: std::ops::RangeInclusive<u64> = 100..=86_400_000;

/// What a node that is behind remembers of that.
pub const WATERMARKS_MAX: usize = 64;

/// A link without any frame for this long is closed.
pub const LINK_TIMEOUT: Duration = Duration::from_secs(10);

/// Acknowledgements are sent at most this often per link.
pub const ACK_INTERVAL: Duration = Duration::from_millis(20);

/// An entry whose stamp is further ahead of the corrected clock is from the future, and held.
pub const FUTURE_MAX: Duration = Duration::from_secs(5);

/// A node whose own stamps are further ahead of its corrected clock than this writes nothing to
/// multi-writer tables.
pub const OWN_STAMPS_AHEAD_MAX: Duration = Duration::from_secs(60);

/// How much faster or slower the clocks of two nodes may run, in millionths: by this the error of an
/// estimate of the origin's clock grows.
pub const CLOCK_DRIFT_PPM: u32 = 500;

/// A failed apply is tried again after this long.
pub const STORAGE_RETRY: Duration = Duration::from_millis(500);

const _: () = assert!(SNAPSHOT_WINDOW_BYTES >= 2 * SNAPSHOT_CHUNK_BYTES as u64);
const _: () = assert!(SNAPSHOT_SYNC_BYTES.is_multiple_of(SNAPSHOT_CHUNK_BYTES as u64));
const _: () = assert!(ENTRIES_FRAME_BYTES <= MAX_FRAME_BYTES);
const _: () = assert!(CREDIT_WINDOW_BYTES >= 2 * ENTRIES_FRAME_BYTES as u64);
const _: () = assert!(KEEP_ALIVE.as_millis() * 3 < LINK_TIMEOUT.as_millis());
const _: () = assert!(FUTURE_MAX.as_millis() < OWN_STAMPS_AHEAD_MAX.as_millis());
const _: () = assert!(1_000_000 % CLOCK_DRIFT_PPM == 0);
const _: () = assert!(MAX_FRAME_BYTES < u32::MAX as usize);
const _: () = assert!(CHUNK_BYTES <= LARGE_ENTRY_BYTES);
const _: () = assert!(COMPARE_ROWS * 64 + 2 * COMPARE_KEY_BYTES < MAX_CONTROL_FRAME_BYTES);
const _: () = assert!(2 * COMPARE_IMAGE_BYTES + COMPARE_KEY_BYTES < MAX_CONTROL_FRAME_BYTES);
const _: () = assert!(PROGRAM_BYTES_MAX + (256 << 10) < MAX_CONTROL_FRAME_BYTES);
const _: () = assert!(RESULT_BYTES_MAX + (256 << 10) < MAX_CONTROL_FRAME_BYTES);
const _: () = assert!(PROGRAM_BYTES_MAX <= REQUEST_BYTES_PER_LINK);
const _: () = assert!(OUTCOME_RESULT_BYTES <= RESULT_BYTES_MAX);
const _: () = assert!(PATIENCE_MAX.as_secs() < OUTCOME_KEPT.as_secs() / 2);
const _: () = assert!(OUTCOME_KEPT.as_secs() < OUTCOME_FORGOTTEN.as_secs());
const _: () = assert!(CREDIT_WINDOW_BYTES >= 2 * LARGE_ENTRY_BYTES as u64);
const _: () = assert!(*MAX_ENTRY_RANGE.start() >= LARGE_ENTRY_BYTES as u64);

/// What is large, and in what pieces it is handled. Only tests and the simulator use others than the
/// default, so that large entries occur with little data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// [`LARGE_ENTRY_BYTES`].
    pub large_entry: usize,
    /// [`CHUNK_BYTES`].
    pub chunk: usize,
    /// [`TAPE_BYTES`].
    pub tape: usize,
    /// [`SPOOL_BYTES`].
    pub spool: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            large_entry: LARGE_ENTRY_BYTES,
            chunk: CHUNK_BYTES,
            tape: TAPE_BYTES,
            spool: SPOOL_BYTES,
        }
    }
}
