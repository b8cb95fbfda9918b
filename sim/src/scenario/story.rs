//! The story of a violation: the entries that touched its first row, in the order in which the node took
//! them, who wrote each and when, what its author had not seen, and what went wrong meanwhile.
//!
//! Which rows belong to a violation is told from its columns: those that are called as a key column of a
//! table that the invariant reads. If there is none, everything in these tables belongs to it.

use std::collections::{BTreeMap, BTreeSet};

use littoral::{ColumnId, Dot, TableId};

use super::{
    key,
    tenant::Tenant,
    violation::{Violation, shown},
};
use crate::{
    clock::{MS, Nanos, SECOND},
    fault::{Fault, Stop},
    oracle::{
        Oracle,
        recording::{Cells, Change, Recording, Taken},
        shadow::{Held, ShadowTable},
    },
    trace::seconds,
};

/// So many of the last events are shown, and the first.
const LAST_EVENTS: usize = 12;

/// So many faults are shown, and those this long before the first event too.
const LAST_FAULTS: usize = 10;
const BEFORE: Nanos = 10 * SECOND;

struct Story<'s> {
    tenant: &'s Tenant,
    oracle: &'s Oracle,
    recording: &'s Recording,
    tables: &'s BTreeMap<TableId, ShadowTable>,
}

/// An entry and what it did to the rows in question.
struct Event<'s> {
    taken: &'s Taken,
    changes: Vec<&'s Change>,
}

/// Tells what led to a violation, line by line; nothing if the run was not recorded.
pub(super) fn tell(
    tenant: &Tenant,
    violation: &Violation,
    reads: &[String],
    oracle: &Oracle,
) -> Vec<String> {
    let Some(recording) = &oracle.logs.recording else { return Vec::new() };
    let tables = &oracle.logs.shadow(violation.machine).tables;
    let story = Story { tenant, oracle, recording, tables };
    let wanted = story.identifying(violation, reads);
    let mut events = story.events(violation.machine, reads, &wanted);
    if events.is_empty() {
        events = story.events(violation.machine, reads, &BTreeMap::new());
    }
    let mut lines = Vec::new();
    let hidden = events.len().saturating_sub(LAST_EVENTS + 1);
    for number in 0..events.len() {
        if number == 1 && hidden > 0 {
            lines.push(format!("   … {hidden} more …"));
        }
        if !(1..=hidden).contains(&number) {
            story.event(violation.machine, &events, number, &mut lines);
        }
    }
    let first = events.get(if hidden > 0 { hidden + 1 } else { 0 });
    let from = first.map_or(0, |event| event.taken.at.saturating_sub(tenant.begun() + BEFORE));
    let faults: Vec<String> =
        tenant.faults_between(from, violation.at).map(|fault| story.fault(fault)).collect();
    if !faults.is_empty() {
        lines.push("faults until then:".to_owned());
        lines.extend(faults.iter().skip(faults.len().saturating_sub(LAST_FAULTS)).cloned());
    }
    lines
}

impl<'s> Story<'s> {
    /// The columns of the violation's first row that name a row of a table, with their values.
    fn identifying(&self, violation: &Violation, reads: &[String]) -> BTreeMap<String, Held> {
        let keys: BTreeSet<&String> =
            reads.iter().flat_map(|table| self.tenant.key_columns(table)).collect();
        let Some(row) = violation.rows.first() else { return BTreeMap::new() };
        let named = violation.columns.iter().zip(row).filter(|(name, _)| keys.contains(name));
        named.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    fn events(
        &self,
        machine: usize,
        reads: &[String],
        wanted: &BTreeMap<String, Held>,
    ) -> Vec<Event<'s>> {
        let touches = |change: &&Change| {
            let Some(table) = self.tables.get(&change.table) else { return false };
            reads.contains(&table.name) && self.matches(table, change, wanted)
        };
        let events = self
            .recording
            .book(machine)
            .iter()
            .map(|taken| Event { taken, changes: taken.changes.iter().filter(touches).collect() });
        events.filter(|event| !event.changes.is_empty()).collect()
    }

    /// Whether a row is the one that was asked for, before the change or after it.
    fn matches(
        &self,
        table: &ShadowTable,
        change: &Change,
        wanted: &BTreeMap<String, Held>,
    ) -> bool {
        let key = self.key(table, change);
        let ids: BTreeMap<&str, ColumnId> =
            table.columns.iter().map(|(id, (name, _))| (name.as_str(), *id)).collect();
        let mut asked =
            wanted.iter().filter(|(name, _)| ids.contains_key(name.as_str())).peekable();
        if asked.peek().is_none() {
            return wanted.is_empty();
        }
        asked.all(|(name, value)| {
            let cell = |cells: &Option<Cells>| {
                cells.as_ref().and_then(|cells| cells.get(&ids[name.as_str()])) == Some(value)
            };
            key.iter().any(|(column, part)| *column == name && part == value)
                || cell(&change.before)
                || cell(&change.after)
        })
    }

    fn key(&self, table: &ShadowTable, change: &Change) -> Vec<(&'s String, Held)> {
        let parts = key::decode(&change.key).unwrap_or_default();
        self.tenant.key_columns(&table.name).iter().zip(parts).collect()
    }

    fn time(&self, at: Nanos) -> String {
        format!("{} s", seconds(at, self.tenant.begun()))
    }

    /// One entry, and what it did.
    fn event(&self, machine: usize, events: &[Event<'s>], number: usize, lines: &mut Vec<String>) {
        let Event { taken, changes } = &events[number];
        let written = self.recording.written(taken.dot);
        let (author, at) = match written {
            Some((author, place)) => (author, self.recording.book(author)[place].at),
            None => (machine, taken.at),
        };
        let call = match self.oracle.jobs.job_of(taken.dot).and_then(|id| self.tenant.told(id)) {
            Some((_, text)) => text.to_owned(),
            None => "a call whose answer was lost".to_owned(),
        };
        lines.push(format!(
            "{:2} {:>12}  {}  {call}",
            number + 1,
            self.time(at),
            self.tenant.name(author)
        ));
        if author != machine {
            let unseen = self.unseen(events, number);
            let unseen = match unseen.as_slice() {
                [] => String::new(),
                numbers => {
                    format!("; {} had not seen {}", self.tenant.name(author), numbers.join(", "))
                }
            };
            lines.push(format!("{:16} arrived here at {}{unseen}", "", self.time(taken.at)));
        } else if let unseen = self.unseen(events, number)
            && !unseen.is_empty()
        {
            lines.push(format!("{:16} not having seen {}", "", unseen.join(", ")));
        }
        for change in changes {
            let here = self.change(change);
            let there = self.change_at_author(written, change).filter(|there| *there != here);
            let there = there.map_or_else(String::new, |there| {
                format!(" (on {}: {there})", self.tenant.name(author))
            });
            let row = self.row(change);
            lines.push(format!("{:16} {row}: {here}{there}", ""));
        }
    }

    /// The earlier ones of these events that the author of one had not applied when it wrote it.
    fn unseen(&self, events: &[Event<'s>], number: usize) -> Vec<String> {
        let Some((author, place)) = self.recording.written(events[number].taken.dot) else {
            return Vec::new();
        };
        let known: BTreeSet<(u64, u64)> =
            self.recording.book(author)[..place].iter().map(|taken| name(taken.dot)).collect();
        let earlier = events[..number].iter().enumerate();
        earlier
            .filter(|(_, event)| !known.contains(&name(event.taken.dot)))
            .map(|(earlier, _)| (earlier + 1).to_string())
            .collect()
    }

    fn change_at_author(&self, written: Option<(usize, usize)>, change: &Change) -> Option<String> {
        let (author, place) = written?;
        let theirs = &self.recording.book(author)[place];
        let is_it = |own: &&Change| own.table == change.table && own.key == change.key;
        theirs.changes.iter().find(is_it).map(|own| self.change(own))
    }

    fn row(&self, change: &Change) -> String {
        let Some(table) = self.tables.get(&change.table) else { return String::new() };
        let key = self.key(table, change);
        let parts: Vec<String> =
            key.iter().map(|(name, value)| format!("{name} = {}", shown(value))).collect();
        format!("{} {}", table.name, parts.join(", "))
    }

    fn change(&self, change: &'s Change) -> String {
        let Some(table) = self.tables.get(&change.table) else { return String::new() };
        // What is no column of the schema is the spelling of the key.
        let named = |cells: &'s Cells| {
            let name = |(id, value)| Some((&table.columns.get(id)?.0, id, value));
            cells.iter().filter_map(name)
        };
        match (&change.before, &change.after) {
            (None, None) => "no effect, the row is gone".to_owned(),
            (Some(_), None) => "deleted".to_owned(),
            (None, Some(after)) => {
                let cells: Vec<String> = named(after)
                    .map(|(name, _, value)| format!("{name} = {}", shown(value)))
                    .collect();
                format!("inserted {}", cells.join(", ")).trim_end().to_owned()
            }
            (Some(before), Some(after)) => {
                let cells: Vec<String> = named(after)
                    .filter(|(_, id, value)| before.get(id) != Some(value))
                    .map(|(name, id, value)| {
                        let was = before.get(id).map_or_else(|| "NULL".to_owned(), shown);
                        format!("{name} {was} → {}", shown(value))
                    })
                    .collect();
                if cells.is_empty() { "no effect".to_owned() } else { cells.join(", ") }
            }
        }
    }

    fn fault(&self, (at, fault): &(Nanos, Fault)) -> String {
        let name = |machine: usize| self.tenant.name(machine);
        let long = |length: Nanos| format!("for {}", span(length));
        let text = match fault {
            Fault::Crash { machine, stop, down, .. } => {
                let how = match stop {
                    Stop::Clean => "stops",
                    Stop::Kill => "is killed",
                    Stop::PowerCut => "loses power",
                };
                format!("{} {how}, and is down {}", name(*machine), long(*down))
            }
            Fault::Cut { link, down } => {
                let [a, b] = self.tenant.link(*link);
                format!("the link of {} and {} is cut {}", name(a), name(b), long(*down))
            }
            Fault::Block { link, from, length } => {
                let ends = self.tenant.link(*link);
                let (a, b) = (ends[*from], ends[1 - *from]);
                format!("{} does not hear {} {}", name(b), name(a), long(*length))
            }
            Fault::Partition { group, length, silent } => {
                let side = |first: bool| {
                    let names: Vec<&str> = (0..group.len())
                        .filter(|machine| group[*machine] == first)
                        .map(name)
                        .collect();
                    names.join(", ")
                };
                let how = if *silent { "do not hear each other" } else { "are parted" };
                format!("{} and {} {how} {}", side(true), side(false), long(*length))
            }
            Fault::ClockJump { machine, .. } => format!("the clock of {} jumps", name(*machine)),
            Fault::DiskFull { machine, length } => {
                format!("the disk of {} is full {}", name(*machine), long(*length))
            }
            Fault::SlowDisk { machine, length, .. } => {
                format!("the disk of {} is slow {}", name(*machine), long(*length))
            }
            Fault::ForeignWrite { machine } => {
                format!("another program writes the file of {}", name(*machine))
            }
            Fault::SyncFails { machine } => format!("a sync fails on {}", name(*machine)),
        };
        format!("   {:>12}  {text}", self.time(at + self.tenant.begun()))
    }
}

fn name(dot: Dot) -> (u64, u64) {
    (dot.author.to_u64(), dot.seq)
}

fn span(length: Nanos) -> String {
    if length < SECOND {
        format!("{} ms", length / MS)
    } else {
        format!("{}.{} s", length / SECOND, length % SECOND / (100 * MS))
    }
}
