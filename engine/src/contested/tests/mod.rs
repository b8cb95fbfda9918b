//! A cluster without SQLite, for the laws and the named cases.
//!
//! Three authors write as `capture/encode.rs` does and as `merge/apply.rs` stores, to rows that are
//! maps. What must come of it is said twice more, without clocks: [`specified`] gives the rows from
//! the set of entries alone, [`Replica::concurrent`] the conflicts from what each author had applied.
//! What sets hold is said a third time, by the `Orswot` of the `crdts` crate, which forgets no clock.

use std::{collections::BTreeMap, rc::Rc};

use crdts::{CmRDT, Orswot, orswot};
use proptest::prelude::*;

use super::*;
use crate::{
    entry::{Digest, Removal, change::put_change},
    hlc::Hlc,
    id::{AuthorId, SchemaVersion, TableId},
    set::Element,
    value::{ByteReader, ValueRef},
    version::{Dot, VersionVector},
};

mod cases;
mod frontiers;
mod histories;
mod laws;
mod pages;
mod sets;

use histories::*;
use sets::*;

const TABLE: TableId = TableId(1);
const NAME: ColumnId = ColumnId(2);
const NOTE: ColumnId = ColumnId(3);
const COUNT: ColumnId = ColumnId(4);
/// A set of small numbers. In a row it is a mask: the bit of an element is set if it is in the set.
const TAGS: ColumnId = ColumnId(5);
/// Elements there are at most.
const TAGS_MAX: i64 = 3;
const ASSIGNED: [ColumnId; 2] = [NAME, NOTE];
const AUTHORS: usize = 3;

// --- A cluster of rows that are maps

type Row = BTreeMap<ColumnId, i64>;
type Rows = BTreeMap<Vec<u8>, Row>;

/// What a statement does to one row.
#[derive(Debug, Clone, Copy)]
enum Change {
    Insert {
        name: i64,
        note: i64,
        count: i64,
        tags: i64,
    },
    /// The elements added were not there, those removed were.
    Update {
        name: Option<i64>,
        note: Option<i64>,
        count: i64,
        added: i64,
        removed: i64,
    },
    Delete,
}

#[derive(Debug, Clone)]
enum Write {
    Assign {
        value: i64,
        previous: Option<Dot>,
    },
    Add(i64),
    Set {
        added: i64,
        removed: i64,
        /// As it stands in an entry.
        change: Vec<u8>,
        /// The same, had no frontier ever dropped a clock.
        every: Vec<u8>,
    },
}

#[derive(Debug)]
struct Op {
    kind: RowOpKind,
    key: Vec<u8>,
    epoch: u32,
    /// The epoch, had no frontier ever shifted it.
    absolute: u32,
    writes: Vec<(ColumnId, Write)>,
    saw: Vec<Dot>,
}

#[derive(Debug)]
struct Written {
    header: EntryHeader,
    /// What its author had applied.
    context: VersionVector,
    ops: Vec<Op>,
    frontier: Option<VersionVector>,
    /// What the set of a row, by key and epoch, goes through.
    set_ops: Vec<((Vec<u8>, u32), SetOp)>,
}

type SetOp = orswot::Op<i64, AuthorId>;

impl Written {
    fn stamp(&self) -> Stamp {
        self.header.stamp()
    }
}

/// A replica, and beside it a shadow that never hears of a frontier and so forgets nothing.
#[derive(Debug)]
struct Replica {
    disk: Connection,
    contested: Contested,
    shadow: Contested,
    rows: Rows,
    /// What the rows of each epoch hold in their sets, if they live.
    sets: BTreeMap<(Vec<u8>, u32), Orswot<i64, AuthorId>>,
    vector: VersionVector,
    log: Vec<Rc<Written>>,
    hlc: u64,
}

impl Default for Replica {
    fn default() -> Self {
        let disk = Connection::open_in_memory().unwrap();
        disk.execute_batch(crate::schema::catalog::DDL).unwrap();
        Self {
            disk,
            contested: Contested::default(),
            shadow: Contested::default(),
            rows: Rows::new(),
            sets: BTreeMap::new(),
            vector: VersionVector::new(),
            log: Vec::new(),
            hlc: 0,
        }
    }
}

/// Which column lost a value, and how.
type Lost = Vec<(ColumnId, ConflictKind)>;

impl Replica {
    fn header(&mut self, author: AuthorId, wall: u64) -> EntryHeader {
        self.hlc = wall.max(self.hlc + 1);
        EntryHeader {
            dot: Dot { author, seq: self.vector.seq(author) + 1 },
            hlc: Hlc(self.hlc),
            previous: Digest::NONE,
            schema: SchemaVersion(1),
            under: self.contested.stable().number,
        }
    }

    /// Commits a transaction: rows change as SQLite changes them, and an entry says so.
    fn write(&mut self, author: AuthorId, wall: u64, changes: &[(Vec<u8>, Change)]) -> Rc<Written> {
        let header = self.header(author, wall);
        let mut local = LocalWrites::new(&self.contested, &self.disk, header.stamp());
        let mut shadow = LocalWrites::new(&self.shadow, &self.disk, header.stamp());
        let mut ops = Vec::new();
        for (key, change) in changes {
            store(&mut self.rows, key, *change);
            let every = captured(&mut shadow, key, *change);
            let mut op = captured(&mut local, key, *change);
            op.absolute = every.epoch;
            for ((_, write), (_, all)) in op.writes.iter_mut().zip(every.writes) {
                if let (Write::Set { every, .. }, Write::Set { change, .. }) = (write, all) {
                    *every = change;
                }
            }
            ops.push(op);
        }
        let (local, shadow) = (local.finish(), shadow.finish());
        self.contested.install(&self.disk, &local).unwrap();
        self.shadow.install(&self.disk, &shadow).unwrap();
        let set_ops = ops.iter().flat_map(|op| self.set_ops(op, header.dot)).collect();
        let written =
            Written { header, context: self.vector.clone(), ops, frontier: None, set_ops };
        self.apply_to_sets(&written);
        self.check_sets(&written);
        self.written(written)
    }

    /// Writes the next frontier, if there is news.
    fn author_frontier(
        &mut self,
        author: AuthorId,
        applied: &VersionVector,
    ) -> Option<Rc<Written>> {
        let covered = self.contested.next_frontier(applied)?;
        let header = self.header(author, 0);
        let number = self.contested.stable().number + 1;
        self.contested.frontier(&self.disk, number, &covered, header.stamp()).unwrap();
        let (context, frontier) = (self.vector.clone(), Some(covered));
        let (ops, set_ops) = (Vec::new(), Vec::new());
        Some(self.written(Written { header, context, ops, frontier, set_ops }))
    }

    fn written(&mut self, entry: Written) -> Rc<Written> {
        let entry = Rc::new(entry);
        self.vector.advance(entry.header.dot);
        self.log.push(Rc::clone(&entry));
        entry
    }

    /// Applies an entry, and checks the conflicts that are found.
    fn take(&mut self, entry: &Rc<Written>) -> Lost {
        assert!(self.vector.covers_all(&entry.context), "not a causal order");
        let mut all = Lost::new();
        for op in &entry.ops {
            let expected = self.concurrent(op, entry);
            let lost = self.apply(op, &entry.header);
            assert_eq!(lost, expected, "{op:?} of {:?}", entry.header);
            all.extend(lost);
        }
        self.apply_to_sets(entry);
        self.check_sets(entry);
        if let Some(covered) = &entry.frontier {
            let number = self.contested.stable().number + 1;
            self.contested.frontier(&self.disk, number, covered, entry.stamp()).unwrap();
        }
        self.vector.advance(entry.header.dot);
        self.hlc = self.hlc.max(entry.header.hlc.0);
        self.log.push(Rc::clone(entry));
        all
    }

    fn apply(&mut self, op: &Op, header: &EntryHeader) -> Lost {
        let mut effects = Effects::default();
        let verdict = with_op(op, false, |op| {
            self.contested.taking(&self.disk).apply(op, header, &ASSIGNED, &mut effects).unwrap()
        });
        let mut shadow = Effects::default();
        let shadow_verdict = with_op(op, true, |op| {
            self.shadow.taking(&self.disk).apply(op, header, &ASSIGNED, &mut shadow).unwrap()
        });
        // A row begins anew or for the first time: that is one thing where there is no row.
        let begins = |verdict| match verdict {
            Verdict::Begin if !self.rows.contains_key(&op.key) => Verdict::Merge,
            verdict => verdict,
        };
        assert_eq!(begins(verdict), begins(shadow_verdict), "{op:?} of {header:?}");
        if verdict == Verdict::Merge && shadow_verdict == Verdict::Merge {
            assert_eq!(effects.wins, shadow.wins, "{op:?} of {header:?}");
        }
        match verdict {
            Verdict::Nothing => {}
            Verdict::Delete => drop(self.rows.remove(&op.key)),
            Verdict::Begin => {
                self.rows.remove(&op.key);
                merge(self.rows.entry(op.key.clone()).or_default(), op, |_| true, &effects);
            }
            Verdict::Merge => {
                let insert = op.kind == RowOpKind::Insert;
                let found = self.rows.contains_key(&op.key);
                assert!(found || insert, "an update without its row");
                let row = self.rows.entry(op.key.clone()).or_default();
                merge(row, op, |cell| !found || effects.wins[cell], &effects);
            }
        }
        effects.conflicts.iter().map(|lost| (lost.column, lost.kind)).collect()
    }

    /// Which conflicts an operation meets: the values the shadow holds that its author had not applied.
    fn concurrent(&self, op: &Op, entry: &Written) -> Lost {
        let found = self.shadow.cursor(&self.disk).row(TABLE, &op.key).unwrap();
        let Some(clock) = found else { return Lost::new() };
        let unseen =
            |column| clock.cell(column).filter(|held: &Stamp| !entry.context.covers(held.dot()));
        let assigned = op
            .writes
            .iter()
            .filter(|(_, write)| matches!(write, Write::Assign { .. }))
            .map(|(column, _)| *column);
        let present = op.absolute == clock.epoch && !clock.dead;
        match op.kind {
            RowOpKind::Delete if !present => Lost::new(),
            RowOpKind::Delete => ASSIGNED
                .into_iter()
                .filter(|column| unseen(*column).is_some())
                .map(|column| (column, ConflictKind::StoredDeleted))
                .collect(),
            RowOpKind::Insert if op.absolute > clock.epoch => Lost::new(),
            RowOpKind::Insert | RowOpKind::Update if !present => {
                assigned.map(|column| (column, ConflictKind::RowGone)).collect()
            }
            RowOpKind::Insert | RowOpKind::Update => assigned
                .filter_map(|column| Some((column, unseen(column)?)))
                .map(|(column, held)| {
                    let wins = entry.stamp() > held;
                    let kind =
                        if wins { ConflictKind::StoredLoses } else { ConflictKind::IncomingLoses };
                    (column, kind)
                })
                .collect(),
        }
    }

    fn clocks(&self) -> BTreeMap<Vec<u8>, PlainClock> {
        clocks_of(&self.contested)
    }
}

/// A row's clocks in the one form that does not tell how they came to be.
type PlainClock = (u32, bool, Vec<Option<Stamp>>, PlainSets);

type PlainSets = BTreeMap<(ColumnId, Vec<u8>), (Vec<Stamp>, bool)>;

fn clocks_of(contested: &Contested) -> BTreeMap<Vec<u8>, PlainClock> {
    let plain = |(key, clock): (Vec<u8>, RowClock)| {
        let cells = ASSIGNED.into_iter().map(|column| clock.cell(column)).collect();
        (key, (clock.epoch, clock.dead, cells, clock.sets.all()))
    };
    exact(contested).into_iter().map(plain).collect()
}

/// The clocks as they are, down to the form they have.
fn exact(contested: &Contested) -> Vec<(Vec<u8>, RowClock)> {
    let all: Vec<_> = contested.shelf.all(TABLE);
    assert_eq!(all.len() as u64, contested.rows());
    assert!(all.is_sorted_by(|a, b| a.0 < b.0));
    all
}

/// What SQLite does for a statement.
fn store(rows: &mut Rows, key: &[u8], change: Change) {
    match change {
        Change::Insert { name, note, count, tags } => {
            let row = Row::from([(NAME, name), (NOTE, note), (COUNT, count), (TAGS, tags)]);
            assert!(rows.insert(key.to_vec(), row).is_none(), "inserted twice");
        }
        Change::Update { name, note, count, added, removed } => {
            let row = rows.get_mut(key).expect("an update finds its row");
            row.extend([(NAME, name), (NOTE, note)].into_iter().filter_map(|(c, v)| Some((c, v?))));
            *row.entry(COUNT).or_default() += count;
            let tags = row.entry(TAGS).or_default();
            assert_eq!((*tags & added, *tags & removed), (0, removed));
            *tags = (*tags | added) & !removed;
        }
        Change::Delete => assert!(rows.remove(key).is_some(), "a delete finds its row"),
    }
}

/// What `capture` writes down of a statement.
fn captured(local: &mut LocalWrites<'_>, key: &[u8], change: Change) -> Op {
    let key = key.to_vec();
    match change {
        Change::Insert { name, note, count, tags } => {
            let assign = |value| Write::Assign { value, previous: None };
            let writes = vec![
                (NAME, assign(name)),
                (NOTE, assign(note)),
                (COUNT, Write::Add(count)),
                (TAGS, set_write(tags, &[])),
            ];
            let elements = elements(tags).map(|element| (TAGS, element.to_bytes()));
            let epoch = local.insert(TABLE, &key, Some(TAGS), elements.collect()).unwrap();
            op(RowOpKind::Insert, key, epoch, writes, Vec::new())
        }
        Change::Update { name, note, count, added, removed } => {
            let stamp = local.stamp();
            let held = local.update(TABLE, &key).unwrap();
            let had = held.is_some();
            let mut clock = held.unwrap_or_default();
            let epoch = clock.epoch_for(RowOpKind::Update);
            let mut writes = Vec::new();
            for (column, value) in [(NAME, name), (NOTE, note)] {
                if let Some(value) = value {
                    let previous = clock.overwrite(column, stamp);
                    writes.push((column, Write::Assign { value, previous }));
                }
            }
            if count != 0 {
                writes.push((COUNT, Write::Add(count)));
            }
            if added | removed != 0 {
                let known = |element: Element<'static>| {
                    let Known { dots, stable } = clock.remove(TAGS, element.to_bytes());
                    Removal { element, dots, stable }
                };
                let removed: Vec<_> = elements(removed).map(known).collect();
                for element in elements(added) {
                    clock.add(TAGS, element.to_bytes(), stamp);
                }
                writes.push((TAGS, set_write(added, &removed)));
            }
            local.updated(TABLE, &key, &clock, had);
            op(RowOpKind::Update, key, epoch, writes, Vec::new())
        }
        Change::Delete => {
            let mut saw = Vec::new();
            let epoch = local.delete(TABLE, &key, &mut saw).unwrap();
            op(RowOpKind::Delete, key, epoch, Vec::new(), saw)
        }
    }
}

fn op(
    kind: RowOpKind,
    key: Vec<u8>,
    epoch: u32,
    writes: Vec<(ColumnId, Write)>,
    saw: Vec<Dot>,
) -> Op {
    Op { kind, key, epoch, absolute: epoch, writes, saw }
}

/// Lends an operation as it stands in its entry, or, `absolute`, as it would had there been no frontier.
fn with_op<T>(op: &Op, absolute: bool, take: impl FnOnce(&RowOp<'_>) -> T) -> T {
    let epoch = if absolute { op.absolute } else { op.epoch };
    let cells: Vec<Cell<'_>> = op
        .writes
        .iter()
        .map(|(column, write)| Cell {
            column: *column,
            write: match write {
                Write::Assign { value, previous } => {
                    CellWrite::Assign { value: ValueRef::Integer(*value), previous: *previous }
                }
                Write::Add(delta) => CellWrite::Add(*delta),
                Write::Set { change, every, .. } => {
                    let bytes = if absolute { every } else { change };
                    CellWrite::Set(SetChange::read(&mut ByteReader::new(bytes)).unwrap())
                }
            },
        })
        .collect();
    take(&RowOp { table: TABLE, kind: op.kind, key: &op.key, epoch, cells: &cells, saw: &op.saw })
}

fn merge(row: &mut Row, op: &Op, wins: impl Fn(usize) -> bool, effects: &Effects) {
    for (cell, (column, write)) in op.writes.iter().enumerate() {
        match *write {
            Write::Assign { value, .. } if wins(cell) => drop(row.insert(*column, value)),
            Write::Assign { .. } => {}
            Write::Add(delta) => *row.entry(*column).or_default() += delta,
            Write::Set { added, removed, .. } => {
                let gone = elements(removed)
                    .filter(|element| !effects.outlived.contains(&(*column, element.to_bytes())));
                let tags = row.entry(*column).or_default();
                *tags = (*tags | added) & !gone.map(|element| bit(&element)).sum::<i64>();
            }
        }
    }
}

/// The rows that a set of entries means: no order, no clocks. The newest epoch of a key counts, its
/// row lives unless some delete names that epoch, and of it the greatest stamp and the sum.
fn specified(history: &[Rc<Written>]) -> Rows {
    type Winner = (Option<Stamp>, i64);
    let ops = || history.iter().flat_map(|entry| entry.ops.iter().map(|op| (entry.stamp(), op)));
    let mut newest: BTreeMap<&[u8], u32> = BTreeMap::new();
    for (_, op) in ops() {
        let epoch = newest.entry(&op.key).or_default();
        *epoch = op.absolute.max(*epoch);
    }
    let mut rows: BTreeMap<&[u8], BTreeMap<ColumnId, Winner>> = BTreeMap::new();
    for (stamp, op) in ops().filter(|(_, op)| op.absolute == newest[op.key.as_slice()]) {
        let row = rows.entry(&op.key).or_default();
        for (column, write) in &op.writes {
            let (winner, held) = row.entry(*column).or_default();
            match *write {
                Write::Assign { value, .. } if Some(stamp) > *winner => {
                    (*winner, *held) = (Some(stamp), value);
                }
                Write::Assign { .. } => {}
                Write::Add(delta) => *held += delta,
                Write::Set { added, .. } => *held |= added_to_stay(history, op, stamp, added),
            }
        }
    }
    let dead = |key: &[u8]| {
        ops().any(|(_, op)| {
            op.kind == RowOpKind::Delete && op.key == key && op.absolute == newest[key]
        })
    };
    rows.into_iter()
        .filter(|(key, _)| !dead(key))
        .map(|(key, row)| (key.to_vec(), row.into_iter().map(|(c, (_, v))| (c, v)).collect()))
        .collect()
}

// --- Named cases

/// Replicas that write and send when they are told to, and one row that all of them know.
#[derive(Debug)]
struct Cluster {
    replicas: Vec<Replica>,
    history: Vec<Rc<Written>>,
    wall: u64,
}

impl Cluster {
    fn key() -> Vec<u8> {
        vec![7]
    }

    fn empty() -> Self {
        let replicas = (0..AUTHORS).map(|_| Replica::default()).collect();
        Self { replicas, history: Vec::new(), wall: 100 }
    }

    fn with_row() -> Self {
        let mut cluster = Self::empty();
        cluster.write(0, insert(1, 1, 0));
        cluster.spread();
        cluster
    }

    /// Later calls write later.
    fn write(&mut self, index: usize, change: Change) {
        self.wall += 1;
        let changes = [(Self::key(), change)];
        let entry = self.replicas[index].write(author(index), self.wall, &changes);
        self.history.push(entry);
    }

    /// What `to` loses by taking all that it lacks from `from`.
    fn send(&mut self, from: usize, to: usize) -> Lost {
        let log = self.replicas[from].log.clone();
        let receiver = &mut self.replicas[to];
        let mut lost = Lost::new();
        for entry in log {
            if !receiver.vector.covers(entry.header.dot) {
                lost.extend(receiver.take(&entry));
            }
        }
        lost
    }

    /// Brings everybody everything.
    fn spread(&mut self) {
        for (from, to) in [(1, 0), (2, 0), (0, 1), (0, 2)] {
            self.send(from, to);
        }
    }

    /// The set of the row that all have in the end.
    fn tags(&mut self) -> i64 {
        self.row();
        self.replicas[0].rows[&Self::key()][&TAGS]
    }

    /// The row that all have in the end: name, note, count.
    fn row(&mut self) -> Option<[i64; 3]> {
        self.spread();
        for replica in &self.replicas[1..] {
            assert_eq!(replica.rows, self.replicas[0].rows);
            assert_eq!(replica.clocks(), self.replicas[0].clocks());
        }
        let row = self.replicas[0].rows.get(&Self::key())?;
        Some([row[&NAME], row[&NOTE], row[&COUNT]])
    }
}

const fn insert(name: i64, note: i64, count: i64) -> Change {
    Change::Insert { name, note, count, tags: 0 }
}

const fn put(name: Option<i64>, note: Option<i64>, count: i64) -> Change {
    Change::Update { name, note, count, added: 0, removed: 0 }
}

const fn tag(added: i64, removed: i64) -> Change {
    Change::Update { name: None, note: None, count: 0, added, removed }
}

const fn name(value: i64) -> Change {
    put(Some(value), None, 0)
}

const fn note(value: i64) -> Change {
    put(None, Some(value), 0)
}

const fn count(delta: i64) -> Change {
    put(None, None, delta)
}
