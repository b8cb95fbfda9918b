//! [`Published`]: how far the log is committed, for readers on any thread.
//!
//! The bookmark of a read has to cover what its snapshot saw, and SQLite shows a commit to readers before
//! the replica learns that it succeeded. So a reader first has its snapshot, then looks here, and then
//! reads in its snapshot what stands in `littoral_log` behind the position published: usually nothing.
//!
//! - What the snapshot has is published, or stands in the log behind it. Whatever is trimmed was published
//!   before the transaction that trims it began, and so before a snapshot could lack it.
//! - All that is named was committed: what is published was, and a snapshot shows nothing else.
//!
//! While no commit is under way, the log has nothing behind what is published, and need not be read:
//! [`Log::append`](super::Log::append) says so before the commit, and
//! [`Log::keep`](super::Log::keep) after it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rusqlite::{Connection, functions::FunctionFlags};

use crate::{
    bookmark::{Bookmark, BookmarkNotReached},
    contested::Stable,
    id::{AuthorId, Lsn},
    sqlite,
    testing::{Bug, planted},
    time::{Instant, WallTime},
    version::{Dot, VersionVector},
    watermarks::AsOf,
};

/// What has been committed to the log.
#[derive(Debug, Default)]
pub(crate) struct Published {
    state: Mutex<State>,
    /// What the corrected clock says.
    now: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    lsn: Lsn,
    vector: VersionVector,
    /// A commit is under way, and may be visible already.
    unsettled: bool,
    frontier: u64,
    covered: VersionVector,
    is_origin: bool,
    /// The newest moment of the origin's whose state, or a later one, is shown here.
    as_of: Option<AsOf>,
}

impl State {
    fn bookmark(&self, vector: &VersionVector, now: &AtomicU64) -> Bookmark {
        let issued = WallTime(now.load(Ordering::Relaxed));
        Bookmark::new(AuthorId::FIRST.term, (self.frontier, &self.covered), vector, issued)
    }
}

impl Published {
    /// Says where the log stands when it was opened.
    pub(crate) fn begin(&self, lsn: Lsn, vector: VersionVector) {
        let mut state = self.state.lock();
        (state.lsn, state.vector, state.unsettled) = (lsn, vector, false);
    }

    /// Tells the time.
    pub(crate) fn tell(&self, corrected: WallTime) {
        self.now.store(corrected.0, Ordering::Relaxed);
    }

    /// Something is about to be committed.
    pub(super) fn unsettle(&self) {
        self.state.lock().unsettled = true;
    }

    /// It is committed: these entries, the last of them at `lsn`.
    pub(super) fn settle(&self, lsn: Lsn, dots: impl Iterator<Item = Dot>) {
        let mut state = self.state.lock();
        state.lsn = lsn;
        dots.for_each(|dot| {
            let behind = u64::from(planted(Bug::BookmarkBehind));
            state.vector.advance(Dot { seq: dot.seq - behind, ..dot });
        });
        state.unsettled = false;
    }

    /// It is rolled back.
    pub(super) fn settle_as_before(&self) {
        self.state.lock().unsettled = false;
    }

    /// A frontier was applied, and that is committed and published.
    pub(crate) fn stable(&self, stable: &Stable) {
        let mut state = self.state.lock();
        if state.frontier != stable.number {
            state.frontier = stable.number;
            state.covered.clone_from(&stable.covered);
        }
    }

    /// This node is the origin, or is not.
    pub(crate) fn origin(&self, is_origin: bool) {
        self.state.lock().is_origin = is_origin;
    }

    /// This is the newest moment of the origin's that is known to be shown.
    pub(crate) fn fresh(&self, as_of: Option<AsOf>) {
        self.state.lock().as_of = as_of;
    }

    /// How old what is shown may be at most; `None` while that is not known.
    pub(crate) fn lag(&self, now: Instant) -> Option<Duration> {
        let state = self.state.lock();
        if state.is_origin { Some(Duration::ZERO) } else { state.as_of.map(|as_of| as_of.age(now)) }
    }

    /// Whether all that the bookmark names is committed here.
    pub(crate) fn reached(&self, bookmark: &Bookmark) -> Result<(), BookmarkNotReached> {
        let state = self.state.lock();
        if planted(Bug::BookmarkUnwaited) {
            return Ok(());
        }
        match bookmark.missing(AuthorId::FIRST.term, state.frontier, &state.vector) {
            None => Ok(()),
            Some(missing) => Err(BookmarkNotReached { missing }),
        }
    }

    /// The bookmark of all that is committed, unless a commit is under way.
    pub(crate) fn settled(&self) -> Option<Bookmark> {
        let state = self.state.lock();
        (!state.unsettled).then(|| state.bookmark(&state.vector, &self.now))
    }

    /// The bookmark of what another node had applied.
    pub(crate) fn bookmark_of(&self, vector: &VersionVector) -> Bookmark {
        self.state.lock().bookmark(vector, &self.now)
    }

    /// A bookmark that covers all that the connection has seen: its snapshot, if it is in a transaction.
    pub(crate) fn bookmark(&self, conn: &Connection) -> rusqlite::Result<Bookmark> {
        if let Some(bookmark) = self.settled() {
            return Ok(bookmark);
        }
        let snapshot = conn.is_autocommit().then(|| conn.unchecked_transaction()).transpose()?;
        // Nothing may be asked of the lock before the snapshot stands.
        conn.prepare_cached("/*littoral*/ SELECT count(*) FROM littoral_log WHERE lsn < 0")?
            .query_row([], |_| Ok(()))?;
        let (mut bookmark, lsn) = {
            let state = self.state.lock();
            (state.bookmark(&state.vector, &self.now), state.lsn)
        };
        let mut statement =
            conn.prepare_cached("/*littoral*/ SELECT author, seq FROM littoral_log WHERE lsn > ?")?;
        let mut rows = statement.query([lsn.0.cast_signed()])?;
        while let Some(row) = rows.next()? {
            let author = AuthorId::from_u64(row.get::<_, i64>(0)?.cast_unsigned());
            bookmark.include(Dot { author, seq: row.get::<_, i64>(1)?.cast_unsigned() });
        }
        drop(rows);
        drop(statement);
        snapshot.map_or(Ok(()), rusqlite::Transaction::finish)?;
        Ok(bookmark)
    }

    /// Makes the SQL function `littoral_bookmark()` on a connection that reads.
    pub(crate) fn install(self: &Arc<Self>, conn: &Connection) -> rusqlite::Result<()> {
        let published = Arc::clone(self);
        conn.create_scalar_function(FUNCTION, 0, FunctionFlags::SQLITE_UTF8, move |context| {
            let bookmark = sqlite::with_connection(context, |conn| published.bookmark(conn))??;
            Ok(bookmark.to_string())
        })
    }
}

const FUNCTION: &str = "littoral_bookmark";

/// Makes the function on a connection that writes. There is no bookmark to give in the middle of a
/// transaction: what it has written so far may never come to be.
pub(crate) fn refuse(conn: &Connection) -> rusqlite::Result<()> {
    conn.create_scalar_function(FUNCTION, 0, FunctionFlags::SQLITE_UTF8, |_| {
        Err::<String, _>(rusqlite::Error::UserFunctionError(
            "littoral_bookmark(): a transaction that writes has no bookmark before it is committed; \
             ask for it afterwards, in a statement of its own"
                .into(),
        ))
    })
}
