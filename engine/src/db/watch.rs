//! [`Watch`]: notices commits of programs that write the file behind littoral's back.
//!
//! `PRAGMA data_version` of a connection changes whenever another connection has committed. Of the
//! engine's two connections that write, one has written last, and since it began nothing but another
//! program can have committed: so if its version is another one than before it wrote, somebody did.
//! Every write is announced with the connection that is about to write. No commit slips through: what
//! comes before a connection's version is taken is seen by the one that wrote before, and what comes
//! after it by itself. Within a transaction a look takes no locks, so it is taken there.
//!
//! Readers, backups and checkpoints do not change the version, except for a checkpoint that truncates
//! the WAL.
//!
//! While the file is closed there is no such witness: in WAL mode SQLite counts no commits in the file.
//! [`Shape`] is what a look at the header tells: the numbers of pages and free pages and the version of
//! the schema, noted when the replica is closed and compared when it is opened.

use rusqlite::Connection;

use crate::schema::catalog;

/// A connection that writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Who {
    User,
    Apply,
}

/// What was noticed, and who has written last.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The last writer, and its version from before it wrote; `None` if other connections of the engine
    /// may have committed since.
    last: Option<(Who, u32)>,
    /// How often another program was noticed.
    pub(crate) noticed: u64,
}

impl Watch {
    /// `next` is about to write.
    pub(crate) fn writes(
        &mut self,
        next: Who,
        version: impl Fn(Who) -> rusqlite::Result<u32>,
    ) -> rusqlite::Result<()> {
        let of_next = version(next)?;
        if let Some((last, before)) = self.last {
            let now = if last == next { of_next } else { version(last)? };
            self.noticed += u64::from(now != before);
        }
        self.last = Some((next, of_next));
        Ok(())
    }

    /// Looks, though nobody writes.
    pub(crate) fn look(
        &mut self,
        version: impl Fn(Who) -> rusqlite::Result<u32>,
    ) -> rusqlite::Result<()> {
        self.writes(self.last.map_or(Who::User, |(last, _)| last), version)
    }

    /// Other connections of the engine have written, or a connection has lost what it knew of the file.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }
}

/// The connection's version of the file.
pub(crate) fn data_version(conn: &Connection) -> rusqlite::Result<u32> {
    conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
}

/// What the header of a file says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Shape {
    pages: u32,
    free: u32,
    schema: u32,
}

impl Shape {
    fn of(conn: &Connection) -> rusqlite::Result<Self> {
        let number = |sql| conn.query_row(sql, [], |row| row.get(0));
        Ok(Self {
            pages: number("PRAGMA page_count")?,
            free: number("PRAGMA freelist_count")?,
            schema: number("PRAGMA schema_version")?,
        })
    }

    fn encode(self, opened: u64) -> Vec<u8> {
        let numbers = [self.pages, self.free, self.schema].map(u32::to_be_bytes).concat();
        [opened.to_be_bytes().to_vec(), numbers].concat()
    }
}

/// The name of the note in `littoral_meta`.
const CLOSED: &str = "closed";

/// The replica is about to be closed, after it was opened so many times.
pub(crate) fn note_closed(conn: &Connection, opened: u64) -> rusqlite::Result<()> {
    conn.execute_batch("BEGIN IMMEDIATE")?;
    let noted = (|| {
        // The note itself may need a page.
        catalog::set_meta(conn, CLOSED, Shape { pages: 0, free: 0, schema: 0 }.encode(0))?;
        catalog::set_meta(conn, CLOSED, Shape::of(conn)?.encode(opened))?;
        conn.execute_batch("COMMIT")
    })();
    if noted.is_err() && !conn.is_autocommit() {
        conn.execute_batch("ROLLBACK")?;
    }
    noted
}

/// Whether another program has certainly written the file since the replica was closed, which was then
/// opened so many times. Nothing is known of a replica that was not closed in good order.
pub(crate) fn was_changed_closed(conn: &Connection, opened: u64) -> rusqlite::Result<bool> {
    let Some(noted) = catalog::meta::<Vec<u8>>(conn, CLOSED)? else { return Ok(false) };
    let now = Shape::of(conn)?.encode(opened);
    Ok(noted.starts_with(&opened.to_be_bytes()) && noted != now)
}
