//! [`Logs`]: what stands in every machine's log, and who holds which entry.
//!
//! Invariants that are checked here:
//! - one dot names one entry, wherever it is found;
//! - a log loses nothing but its newest part, and that only in a power cut;
//! - of what an author's own log loses, no other machine holds anything.

use std::collections::BTreeMap;

use littoral::{
    AuthorId, Digest, Dot, Entry, EntryHeader, Membership, Segment, Seq, VersionVector,
};
use rusqlite::Connection;

use super::{
    Check, Promise, broken, recording::Recording, references, shadow::Shadow, shapes::Shapes,
    sights, spools, unreadable,
};
use crate::clock::Nanos;

/// Which machines hold an entry.
#[derive(Clone, Debug)]
struct Holders {
    entry: Entry,
    /// What its author had applied before it; `None` until its author's log was read.
    seen: Option<VersionVector>,
    machines: u64,
}

/// One machine's log as it was last read.
#[derive(Clone, Debug, Default)]
struct Book {
    /// By LSN, from 1.
    entries: Vec<Dot>,
    /// How many entries were trimmed when it was first seen here that a machine is a member.
    members: BTreeMap<usize, usize>,
    shadow: Shadow,
}

/// All logs.
#[derive(Debug)]
pub(crate) struct Logs {
    books: Vec<Book>,
    /// What each began with: a snapshot, or nothing.
    bases: Vec<Book>,
    entries: BTreeMap<(AuthorId, Seq), Holders>,
    authors: BTreeMap<AuthorId, usize>,
    /// The entry with which each machine joined.
    joins: BTreeMap<usize, Dot>,
    /// The logs that snapshots hold, by their digests.
    copies: BTreeMap<[u8; 32], Book>,
    shapes: Shapes,
    /// Headers of entries that were taken since somebody looked: by which machine, and whether it wrote
    /// them.
    news: Vec<(usize, bool, EntryHeader)>,
    /// The time of what is taken.
    pub(crate) at: Nanos,
    /// Since when each entry of the origin's log has been visible there.
    visible: Vec<Nanos>,
    /// How many of these each machine is known to hold, from the first on.
    caught_up: Vec<usize>,
    /// What happened to which row, if that was asked for.
    pub(crate) recording: Option<Recording>,
}

impl Logs {
    /// Empty logs.
    pub(crate) fn new(machines: usize, shapes: Shapes, recording: bool) -> Self {
        let books = (0..machines).map(|_| Book::default()).collect();
        let authors = BTreeMap::from([(AuthorId::FIRST, 0)]);
        let bases = (0..machines).map(|_| Book::default()).collect();
        let recording = recording.then(|| Recording::new(machines));
        Self {
            books,
            bases,
            entries: BTreeMap::new(),
            authors,
            joins: BTreeMap::new(),
            copies: BTreeMap::new(),
            shapes,
            news: Vec::new(),
            at: 0,
            visible: Vec::new(),
            caught_up: vec![0; machines],
            recording,
        }
    }

    /// What the machine's log leads to.
    pub(crate) fn shadow(&self, machine: usize) -> &Shadow {
        &self.books[machine].shadow
    }

    /// Whether the machine's log holds an entry.
    pub(crate) fn holds(&self, machine: usize, dot: Dot) -> bool {
        self.shadow(machine).heads().get(&dot.author).is_some_and(|head| head.seq >= dot.seq)
    }

    /// How many entries the machine's log has had, as far as it was read.
    pub(crate) fn length(&self, machine: usize) -> usize {
        self.books[machine].entries.len()
    }

    /// Where in the machine's log it says that another machine is a member, and how many entries were
    /// trimmed when that was first seen.
    pub(crate) fn member_since(&self, machine: usize, member: usize) -> Option<(usize, usize)> {
        let join = self.joins.get(&member)?;
        let book = &self.books[machine];
        let place = book.entries.iter().position(|dot| dot == join)?;
        Some((place, *book.members.get(&member)?))
    }

    /// How many entries of the machine's log are trimmed.
    pub(crate) fn trimmed(&self, machine: usize, reader: &Connection) -> Check<usize> {
        let left = reader
            .query_row("SELECT count(*) FROM littoral_log", [], |row| row.get::<_, u32>(0))
            .map_err(unreadable(machine))?;
        Ok(self.books[machine].entries.len().saturating_sub(left as usize))
    }

    /// The first entry of the origin's log that a machine lacks, and since when the origin has had it.
    pub(crate) fn oldest_missing(&mut self, machine: usize) -> Option<(Dot, Nanos)> {
        let mut place = self.caught_up[machine];
        while let Some(dot) = self.books[0].entries.get(place).copied() {
            if !self.holds(machine, dot) {
                return Some((dot, self.visible[place]));
            }
            place += 1;
            self.caught_up[machine] = place;
        }
        None
    }

    /// A snapshot was taken of a machine's file, whose log was just read.
    pub(crate) fn copied(&mut self, machine: usize, snapshot: Digest) {
        self.copies.insert(snapshot.0, self.books[machine].clone());
    }

    /// A snapshot has become a machine's file: its log is that of the machine it was taken from.
    pub(crate) fn adopted(&mut self, machine: usize, snapshot: Digest) -> Check {
        let Some(mut book) = self.copies.get(&snapshot.0).cloned() else {
            return broken(
                Promise::Causality,
                format!("m{machine} has opened a snapshot that nobody has taken"),
            );
        };
        for holders in self.entries.values_mut() {
            holders.machines &= !(1 << machine);
        }
        for dot in &book.entries {
            let Some(holders) = self.entries.get_mut(&(dot.author, dot.seq)) else {
                return broken(
                    Promise::DurableFirst,
                    format!("m{machine} has a snapshot with {dot}, which its author has lost"),
                );
            };
            holders.machines |= 1 << machine;
        }
        book.members.clear();
        self.bases[machine] = book.clone();
        self.books[machine] = book;
        self.caught_up[machine] = 0;
        Ok(())
    }

    /// What was taken since this was asked last.
    pub(crate) fn take_news(&mut self) -> Vec<(usize, bool, EntryHeader)> {
        std::mem::take(&mut self.news)
    }

    /// Takes what is new in a machine's log.
    pub(crate) fn refresh(&mut self, machine: usize, reader: &Connection) -> Check {
        let known = self.books[machine].entries.len();
        let failed = unreadable(machine);
        let mut query = reader
            .prepare_cached(
                "SELECT lsn, author, seq, bytes FROM littoral_log WHERE lsn > ? ORDER BY lsn",
            )
            .map_err(&failed)?;
        let mut rows = query.query([count_of(known)]).map_err(&failed)?;
        while let Some(row) = rows.next().map_err(&failed)? {
            let lsn: i64 = row.get(0).map_err(&failed)?;
            let author: i64 = row.get(1).map_err(&failed)?;
            let seq: i64 = row.get(2).map_err(&failed)?;
            let mut bytes: Vec<u8> = row.get(3).map_err(&failed)?;
            if bytes.is_empty() {
                bytes = spools::chunks_of(reader, author, seq).map_err(&failed)?;
            }
            let entry = match Entry::decode(&bytes) {
                Ok(entry) => entry,
                Err(error) => {
                    return broken(
                        Promise::Causality,
                        format!(
                            "m{machine} holds an entry at LSN {lsn} that does not decode: {error}"
                        ),
                    );
                }
            };
            let columns = Dot {
                author: AuthorId::from_u64(author.cast_unsigned()),
                seq: seq.cast_unsigned(),
            };
            if columns != entry.header.dot || lsn != count_of(self.books[machine].entries.len()) + 1
            {
                return broken(
                    Promise::Causality,
                    format!(
                        "m{machine} holds {columns} at LSN {lsn}, which is {} at place {}",
                        entry.header.dot,
                        self.books[machine].entries.len() + 1
                    ),
                );
            }
            self.take(machine, &entry)?;
        }
        self.note_members(machine, reader)
    }

    fn note_members(&mut self, machine: usize, reader: &Connection) -> Check {
        let book = &self.books[machine];
        let new = |(member, join): &(&usize, &Dot)| {
            !book.members.contains_key(member) && self.holds(machine, **join)
        };
        let new: Vec<usize> = self.joins.iter().filter(new).map(|(member, _)| *member).collect();
        if !new.is_empty() {
            let trimmed = self.trimmed(machine, reader)?;
            self.books[machine].members.extend(new.into_iter().map(|member| (member, trimmed)));
        }
        Ok(())
    }

    fn take(&mut self, machine: usize, entry: &Entry) -> Check {
        let dot = entry.header.dot;
        for segment in entry.segments() {
            if let Ok(Segment::Membership(Membership::Join(member))) = segment
                && let Some(number) = machine_number(member.node.as_str())
            {
                self.authors.insert(member.author, number);
                self.joins.insert(number, dot);
            }
        }
        let holders = self.entries.entry((dot.author, dot.seq)).or_insert_with(|| Holders {
            entry: entry.clone(),
            seen: None,
            machines: 0,
        });
        if holders.entry.digest != entry.digest {
            return broken(
                Promise::DurableFirst,
                format!(
                    "m{machine} holds another entry as {dot} than machines {}: its author's log forked",
                    machine_list(holders.machines)
                ),
            );
        }
        holders.machines |= 1 << machine;
        let own = self.authors.get(&dot.author) == Some(&machine);
        let book = &mut self.books[machine];
        if own {
            holders.seen.get_or_insert_with(|| book.shadow.vector());
        }
        let Some(seen) = &holders.seen else {
            let what = format!("m{machine} holds {dot}, which its author has not written");
            return broken(Promise::DurableFirst, what);
        };
        book.entries.push(dot);
        if machine == 0 && self.visible.len() < book.entries.len() {
            self.visible.push(self.at);
        }
        self.news.push((machine, own, entry.header));
        let taken = match &mut self.recording {
            Some(recording) => {
                let take = |shadow: &mut Shadow| shadow.apply(entry, own, seen);
                recording.take(machine, self.at, entry, own, &mut book.shadow, take)
            }
            None => book.shadow.apply(entry, own, seen),
        };
        taken.or_else(|what| {
            let promise = if own { Promise::Merge } else { Promise::Causality };
            let whose = if own { "its own" } else { "a received" };
            broken(
                promise,
                format!("m{machine} took {whose} entry {dot} that breaks a rule: {what}"),
            )
        })?;
        match self.shapes {
            Shapes::BuiltIn => references::hold(machine, &book.shadow),
            Shapes::Asked => Ok(()),
        }
    }

    /// A machine has started again. Returns the entries of its own that it has lost.
    pub(crate) fn reopened(
        &mut self,
        machine: usize,
        power_cut: bool,
        reader: &Connection,
    ) -> Check<Vec<Dot>> {
        let left = usize::try_from(sights::log_end(machine, reader)?).expect("LSNs begin at 1");
        let known = self.books[machine].entries.len();
        if left >= known {
            return Ok(Vec::new());
        }
        if !power_cut {
            return broken(
                Promise::Durability,
                format!("m{machine} lost its log from LSN {} on without a power cut", left + 1),
            );
        }
        let lost = self.books[machine].entries.split_off(left);
        self.caught_up[machine] = 0;
        if machine == 0 {
            self.visible.truncate(left);
            self.caught_up.fill(0);
        }
        if let Some(recording) = &mut self.recording {
            recording.cut(machine, left);
        }
        let base = self.bases[machine].clone();
        let mut rest = std::mem::replace(&mut self.books[machine], base).entries;
        rest.drain(..self.books[machine].entries.len().min(rest.len()));
        let mut own = Vec::new();
        for dot in lost {
            let Some(holders) = self.entries.get_mut(&(dot.author, dot.seq)) else { continue };
            holders.machines &= !(1 << machine);
            if self.authors.get(&dot.author) != Some(&machine) {
                continue;
            }
            if holders.machines != 0 {
                return broken(
                    Promise::DurableFirst,
                    format!(
                        "a power cut took {dot} from its author m{machine}, but machines {} hold it",
                        machine_list(holders.machines)
                    ),
                );
            }
            self.entries.remove(&(dot.author, dot.seq));
            own.push(dot);
        }
        // What is trimmed cannot be read again.
        for dot in rest {
            let known = self.entries.get(&(dot.author, dot.seq)).map(|held| held.entry.clone());
            if let Some(entry) = known {
                self.take(machine, &entry)?;
            }
        }
        self.refresh(machine, reader)?;
        Ok(own)
    }
}

fn count_of(entries: usize) -> i64 {
    i64::try_from(entries).expect("a log that fits into memory")
}

fn machine_number(node: &str) -> Option<usize> {
    node.strip_prefix('m')?.parse().ok()
}

fn machine_list(machines: u64) -> String {
    let names: Vec<String> =
        (0..64).filter(|bit| machines >> bit & 1 == 1).map(|bit| format!("m{bit}")).collect();
    names.join(", ")
}
