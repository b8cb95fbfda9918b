//! Large entries: their bytes are whole where the log names them, spools stay within their bound while
//! entries are received, and none is left when all were.

use littoral::limits::Sizes;
use rusqlite::Connection;

use super::{Check, Promise, broken, unreadable};

/// The bytes of a large entry that stands in the log.
pub(crate) fn chunks_of(reader: &Connection, author: i64, seq: i64) -> rusqlite::Result<Vec<u8>> {
    let id: i64 = reader.query_row(
        "SELECT id FROM littoral_large WHERE author = ? AND seq = ?",
        [author, seq],
        |row| row.get(0),
    )?;
    let mut query = reader.prepare_cached(
        "SELECT bytes FROM littoral_chunks WHERE place BETWEEN ?1 << 40 AND (?1 + 1 << 40) - 1
         ORDER BY place",
    )?;
    let chunks = query.query_map([id], |row| row.get::<_, Vec<u8>>(0))?;
    chunks.collect::<rusqlite::Result<Vec<_>>>().map(|chunks| chunks.concat())
}

/// Looks at a machine in the middle of a run.
pub(crate) fn look(machine: usize, reader: &Connection, sizes: &Sizes) -> Check {
    let (count, bytes) = spools(reader).map_err(unreadable(machine))?;
    if count > 1 && bytes > sizes.spool {
        return broken(
            Promise::Bounds,
            format!("m{machine} receives {count} large entries of {bytes} bytes at once"),
        );
    }
    Ok(())
}

/// Looks at a machine that has applied everything.
pub(crate) fn none_left(machine: usize, reader: &Connection) -> Check {
    let failed = unreadable(machine);
    let (count, _) = spools(reader).map_err(&failed)?;
    let lengths = "SELECT coalesce(sum(length), 0) FROM littoral_large";
    let chunks = "SELECT coalesce(sum(length(bytes)), 0) FROM littoral_chunks";
    let sum = |sql| reader.query_row(sql, [], |row| row.get::<_, i64>(0));
    let (told, held) = (sum(lengths).map_err(&failed)?, sum(chunks).map_err(&failed)?);
    if count > 0 || told != held {
        return broken(
            Promise::Bounds,
            format!(
                "m{machine} has applied everything and keeps {count} spools; its chunks have {held} \
                 bytes, its large entries {told}"
            ),
        );
    }
    Ok(())
}

/// How many entries are being received, and the bytes they have or will have.
fn spools(reader: &Connection) -> rusqlite::Result<(u64, u64)> {
    reader.query_row(
        "SELECT count(*), coalesce(sum(length), 0) FROM littoral_large AS spool WHERE NOT EXISTS
         (SELECT 1 FROM littoral_log AS log WHERE log.author = spool.author AND log.seq = spool.seq)",
        [],
        |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?.cast_unsigned())),
    )
}
