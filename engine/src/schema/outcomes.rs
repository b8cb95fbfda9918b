//! The table `littoral_outcomes`: what became of the requests that were carried to the origin.
//!
//! Every replica keeps it alike, from the entries that it applies, so that any copy of the file answers a
//! retry, also one that was made of another node's.
//!
//! Invariants:
//! - an outcome is there for at least [`OUTCOME_KEPT`](crate::limits::OUTCOME_KEPT) by the stamps of
//!   entries, the origin's clock;
//! - what is forgotten follows from the entries alone, and not from when they were applied.

use rusqlite::{Connection, OptionalExtension, params};

use crate::{
    entry::{Digest, EntryHeader, Fate},
    forward::RequestId,
    id::AuthorId,
    limits::OUTCOME_FORGOTTEN,
    version::Dot,
};

/// Every outcome that is kept removes so many that are too old: more than one, so that they never pile up.
const REMOVED_AT_ONCE: i64 = 2;

/// Takes down what became of a request, as the entry with this header says.
pub(crate) fn keep(
    conn: &Connection,
    header: &EntryHeader,
    request: RequestId,
    fate: &Fate,
) -> rusqlite::Result<()> {
    let at = header.hlc.wall().0;
    let horizon = at.saturating_sub(millis(OUTCOME_FORGOTTEN));
    conn.prepare_cached(
        "/*littoral*/ DELETE FROM littoral_outcomes WHERE at < ?1 AND n IN
           (SELECT n FROM littoral_outcomes ORDER BY n LIMIT ?2)",
    )?
    .execute(params![horizon.cast_signed(), REMOVED_AT_ONCE])?;
    let (program, result) = match fate {
        Fate::Committed { program, result } => (Some(program.0), result.as_deref()),
        Fate::Refused => (None, None),
    };
    // An id comes back only after its outcome has had its time.
    conn.prepare_cached(
        "/*littoral*/ INSERT OR REPLACE INTO littoral_outcomes(request, at, author, seq, program, result)
           VALUES(?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        request.0.to_be_bytes(),
        at.cast_signed(),
        header.dot.author.to_u64().cast_signed(),
        header.dot.seq.cast_signed(),
        program,
        result
    ])?;
    Ok(())
}

/// What became of a request, and the entry that says so.
pub(crate) fn find(conn: &Connection, request: RequestId) -> rusqlite::Result<Option<(Dot, Fate)>> {
    conn.prepare_cached(
        "SELECT author, seq, program, result FROM littoral_outcomes WHERE request = ?",
    )?
    .query_row([request.0.to_be_bytes()], |row| {
        let author = AuthorId::from_u64(row.get::<_, i64>(0)?.cast_unsigned());
        let dot = Dot { author, seq: row.get::<_, i64>(1)?.cast_unsigned() };
        let fate = match row.get::<_, Option<[u8; 32]>>(2)? {
            Some(program) => Fate::Committed { program: Digest(program), result: row.get(3)? },
            None => Fate::Refused,
        };
        Ok((dot, fate))
    })
    .optional()
}

/// Forgets all of them.
pub(crate) fn forget(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute("DELETE FROM littoral_outcomes", []).map(drop)
}

fn millis(length: std::time::Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hlc::Hlc, id::SchemaVersion, schema::catalog};

    fn header(seq: u64, seconds: u64) -> EntryHeader {
        EntryHeader {
            dot: Dot { author: AuthorId::FIRST, seq },
            hlc: Hlc((seconds * 1000) << 16),
            previous: Digest::NONE,
            schema: SchemaVersion(1),
            under: 0,
        }
    }

    #[test]
    fn outcomes_are_found_for_a_day_and_do_not_pile_up() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(catalog::DDL).unwrap();
        let day = 24 * 3600;
        let fate = Fate::Committed { program: Digest([7; 32]), result: Some(vec![1, 2]) };
        for n in 0..100 {
            keep(&conn, &header(n + 1, 1000 + n), RequestId(n.into()), &fate).unwrap();
        }
        keep(&conn, &header(101, 1099 + day), RequestId(1000), &Fate::Refused).unwrap();
        let dot = Dot { author: AuthorId::FIRST, seq: 1 };
        assert_eq!(find(&conn, RequestId(0)).unwrap(), Some((dot, fate.clone())));
        let dot = Dot { author: AuthorId::FIRST, seq: 101 };
        assert_eq!(find(&conn, RequestId(1000)).unwrap(), Some((dot, Fate::Refused)));
        for n in 0..100 {
            let at = 1100 + day + 3600 + n;
            keep(&conn, &header(102 + n, at), RequestId(2000 + u128::from(n)), &fate).unwrap();
        }
        assert_eq!(find(&conn, RequestId(0)).unwrap(), None);
        let left: i64 =
            conn.query_row("SELECT count(*) FROM littoral_outcomes", [], |row| row.get(0)).unwrap();
        assert_eq!(left, 101);
    }

    #[test]
    fn an_id_may_be_used_again_when_it_was_forgotten() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(catalog::DDL).unwrap();
        let fate = Fate::Committed { program: Digest([7; 32]), result: None };
        keep(&conn, &header(1, 0), RequestId(1), &fate).unwrap();
        keep(&conn, &header(2, 90_000_000), RequestId(1), &Fate::Refused).unwrap();
        let dot = Dot { author: AuthorId::FIRST, seq: 2 };
        assert_eq!(find(&conn, RequestId(1)).unwrap(), Some((dot, Fate::Refused)));
    }
}
