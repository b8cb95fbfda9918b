//! The laws of merge, held against random causal histories, and the named cases behind them.
//!
//! Three authors write as `capture/encode.rs` does and as `merge/apply.rs` stores, to rows that are
//! maps. What must come of it is said twice more, without clocks: [`specified`] gives the rows from
//! the set of entries alone, [`Replica::concurrent`] the conflicts from what each author had applied.

use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use crate::{hlc::Hlc, id::AuthorId, value::ValueRef, version::VersionVector};

const TABLE: TableId = TableId(1);
const NAME: ColumnId = ColumnId(2);
const NOTE: ColumnId = ColumnId(3);
const COUNT: ColumnId = ColumnId(4);
const ASSIGNED: [ColumnId; 2] = [NAME, NOTE];
const AUTHORS: usize = 3;

// --- A cluster of rows that are maps

type Row = BTreeMap<ColumnId, i64>;
type Rows = BTreeMap<Vec<u8>, Row>;

/// What a statement does to one row.
#[derive(Debug, Clone, Copy)]
enum Change {
    Insert { name: i64, note: i64, count: i64 },
    Update { name: Option<i64>, note: Option<i64>, count: i64 },
    Delete,
}

#[derive(Debug, Clone, Copy)]
enum Write {
    Assign { value: i64, previous: Option<Dot> },
    Add(i64),
}

#[derive(Debug)]
struct Op {
    kind: RowOpKind,
    key: Vec<u8>,
    epoch: u32,
    writes: Vec<(ColumnId, Write)>,
    saw: Vec<Dot>,
}

#[derive(Debug)]
struct Written {
    stamp: Stamp,
    /// What its author had applied.
    context: VersionVector,
    ops: Vec<Op>,
}

#[derive(Debug, Default)]
struct Replica {
    contested: Contested,
    rows: Rows,
    vector: VersionVector,
    log: Vec<Rc<Written>>,
    hlc: u64,
}

/// Which column lost a value, and how.
type Lost = Vec<(ColumnId, ConflictKind)>;

impl Replica {
    /// Commits a transaction: rows change as SQLite changes them, and an entry says so.
    fn write(&mut self, author: AuthorId, wall: u64, changes: &[(Vec<u8>, Change)]) -> Rc<Written> {
        self.hlc = wall.max(self.hlc + 1);
        let stamp = Stamp { hlc: Hlc(self.hlc), author, seq: self.vector.seq(author) + 1 };
        let mut local = LocalWrites::new(&self.contested, stamp);
        let mut ops = Vec::new();
        for (key, change) in changes {
            store(&mut self.rows, key, *change);
            ops.push(captured(&mut local, key, *change));
        }
        let clocks = local.finish();
        self.contested.install(clocks);
        let entry = Rc::new(Written { stamp, context: self.vector.clone(), ops });
        self.vector.advance(stamp.dot());
        self.log.push(Rc::clone(&entry));
        entry
    }

    /// Applies an entry, and checks the conflicts that are found.
    fn take(&mut self, entry: &Rc<Written>) -> Lost {
        assert!(self.vector.covers_all(&entry.context), "not a causal order");
        let mut all = Lost::new();
        for op in &entry.ops {
            let expected = self.concurrent(op, entry);
            let lost = self.apply(op, entry.stamp);
            assert_eq!(lost, expected, "{op:?} of {:?}", entry.stamp);
            all.extend(lost);
        }
        self.vector.advance(entry.stamp.dot());
        self.hlc = self.hlc.max(entry.stamp.hlc.0);
        self.log.push(Rc::clone(entry));
        all
    }

    fn apply(&mut self, op: &Op, stamp: Stamp) -> Lost {
        let mut effects = Effects::default();
        let verdict = with_op(op, |op| self.contested.apply(op, stamp, &ASSIGNED, &mut effects));
        match verdict {
            Verdict::Nothing => {}
            Verdict::Delete => drop(self.rows.remove(&op.key)),
            Verdict::Begin => {
                self.rows.remove(&op.key);
                merge(self.rows.entry(op.key.clone()).or_default(), &op.writes, |_| true);
            }
            Verdict::Merge => {
                let insert = op.kind == RowOpKind::Insert;
                let found = self.rows.contains_key(&op.key);
                assert!(found || insert, "an update without its row");
                let row = self.rows.entry(op.key.clone()).or_default();
                merge(row, &op.writes, |cell| !found || effects.wins[cell]);
            }
        }
        effects.conflicts.iter().map(|lost| (lost.column, lost.kind)).collect()
    }

    /// Which conflicts an operation meets: the values held that its author had not applied.
    fn concurrent(&self, op: &Op, entry: &Written) -> Lost {
        let Some(clock) = self.contested.cursor().row(TABLE, &op.key) else { return Lost::new() };
        let unseen =
            |column| clock.cell(column).filter(|held: &Stamp| !entry.context.covers(held.dot()));
        let assigned = op
            .writes
            .iter()
            .filter(|(_, write)| matches!(write, Write::Assign { .. }))
            .map(|(column, _)| *column);
        let present = op.epoch == clock.epoch && !clock.dead;
        match op.kind {
            RowOpKind::Delete if !present => Lost::new(),
            RowOpKind::Delete => ASSIGNED
                .into_iter()
                .filter(|column| unseen(*column).is_some())
                .map(|column| (column, ConflictKind::StoredDeleted))
                .collect(),
            RowOpKind::Insert if op.epoch > clock.epoch => Lost::new(),
            RowOpKind::Insert | RowOpKind::Update if !present => {
                assigned.map(|column| (column, ConflictKind::RowGone)).collect()
            }
            RowOpKind::Insert | RowOpKind::Update => assigned
                .filter_map(|column| Some((column, unseen(column)?)))
                .map(|(column, held)| {
                    let wins = entry.stamp > held;
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
type PlainClock = (u32, bool, Vec<Option<Stamp>>);

fn clocks_of(contested: &Contested) -> BTreeMap<Vec<u8>, PlainClock> {
    let rows = contested.tables.values().flatten();
    let plain = |(key, clock): (&RowKey, &RowClock)| {
        let cells = ASSIGNED.into_iter().map(|column| clock.cell(column)).collect();
        (key.as_bytes().to_vec(), (clock.epoch, clock.dead, cells))
    };
    let all: BTreeMap<_, _> = rows.map(plain).collect();
    assert_eq!(all.len() as u64, contested.rows());
    all
}

/// What SQLite does for a statement.
fn store(rows: &mut Rows, key: &[u8], change: Change) {
    match change {
        Change::Insert { name, note, count } => {
            let row = Row::from([(NAME, name), (NOTE, note), (COUNT, count)]);
            assert!(rows.insert(key.to_vec(), row).is_none(), "inserted twice");
        }
        Change::Update { name, note, count } => {
            let row = rows.get_mut(key).expect("an update finds its row");
            row.extend([(NAME, name), (NOTE, note)].into_iter().filter_map(|(c, v)| Some((c, v?))));
            *row.entry(COUNT).or_default() += count;
        }
        Change::Delete => assert!(rows.remove(key).is_some(), "a delete finds its row"),
    }
}

/// What `capture` writes down of a statement.
fn captured(local: &mut LocalWrites<'_>, key: &[u8], change: Change) -> Op {
    let key = key.to_vec();
    match change {
        Change::Insert { name, note, count } => {
            let assign = |value| Write::Assign { value, previous: None };
            let writes =
                vec![(NAME, assign(name)), (NOTE, assign(note)), (COUNT, Write::Add(count))];
            let epoch = local.insert(TABLE, &key, Some(COUNT));
            Op { kind: RowOpKind::Insert, key, epoch, writes, saw: Vec::new() }
        }
        Change::Update { name, note, count } => {
            let stamp = local.stamp();
            let (epoch, clock) = local.update(TABLE, &key);
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
            Op { kind: RowOpKind::Update, key, epoch, writes, saw: Vec::new() }
        }
        Change::Delete => {
            let mut saw = Vec::new();
            let epoch = local.delete(TABLE, &key, &mut saw);
            Op { kind: RowOpKind::Delete, key, epoch, writes: Vec::new(), saw }
        }
    }
}

fn with_op<T>(op: &Op, take: impl FnOnce(&RowOp<'_>) -> T) -> T {
    let cells: Vec<Cell<'_>> = op
        .writes
        .iter()
        .map(|&(column, write)| Cell {
            column,
            write: match write {
                Write::Assign { value, previous } => {
                    CellWrite::Assign { value: ValueRef::Integer(value), previous }
                }
                Write::Add(delta) => CellWrite::Add(delta),
            },
        })
        .collect();
    take(&RowOp {
        table: TABLE,
        kind: op.kind,
        key: &op.key,
        epoch: op.epoch,
        cells: &cells,
        saw: &op.saw,
    })
}

fn merge(row: &mut Row, writes: &[(ColumnId, Write)], wins: impl Fn(usize) -> bool) {
    for (cell, (column, write)) in writes.iter().enumerate() {
        match *write {
            Write::Assign { value, .. } if wins(cell) => drop(row.insert(*column, value)),
            Write::Assign { .. } => {}
            Write::Add(delta) => *row.entry(*column).or_default() += delta,
        }
    }
}

/// The rows that a set of entries means: no order, no clocks. The newest epoch of a key counts, its
/// row lives unless some delete names that epoch, and of it the greatest stamp and the sum.
fn specified(history: &[Rc<Written>]) -> Rows {
    type Winner = (Option<Stamp>, i64);
    let ops = || history.iter().flat_map(|entry| entry.ops.iter().map(|op| (entry.stamp, op)));
    let mut newest: BTreeMap<&[u8], u32> = BTreeMap::new();
    for (_, op) in ops() {
        let epoch = newest.entry(&op.key).or_default();
        *epoch = op.epoch.max(*epoch);
    }
    let mut rows: BTreeMap<&[u8], BTreeMap<ColumnId, Winner>> = BTreeMap::new();
    for (stamp, op) in ops().filter(|(_, op)| op.epoch == newest[op.key.as_slice()]) {
        let row = rows.entry(&op.key).or_default();
        for (column, write) in &op.writes {
            let (winner, held) = row.entry(*column).or_default();
            match *write {
                Write::Assign { value, .. } if Some(stamp) > *winner => {
                    (*winner, *held) = (Some(stamp), value);
                }
                Write::Assign { .. } => {}
                Write::Add(delta) => *held += delta,
            }
        }
    }
    let dead = |key: &[u8]| {
        ops()
            .any(|(_, op)| op.kind == RowOpKind::Delete && op.key == key && op.epoch == newest[key])
    };
    rows.into_iter()
        .filter(|(key, _)| !dead(key))
        .map(|(key, row)| (key.to_vec(), row.into_iter().map(|(c, (_, v))| (c, v)).collect()))
        .collect()
}

// --- Random histories

#[derive(Debug, Clone)]
enum Step {
    Write {
        author: usize,
        wall: u64,
        rows: Vec<(usize, Wish)>,
    },
    /// The next entries of one replica's log go to another.
    Send {
        from: usize,
        to: usize,
        entries: usize,
    },
}

/// What an author would like to do to a row, as far as the row is there.
#[derive(Debug, Clone)]
enum Wish {
    Put { name: Option<i64>, note: Option<i64>, count: i64 },
    Delete,
}

/// Two that are kept in place, and one that is not.
fn keys() -> [Vec<u8>; 3] {
    [vec![1], vec![1, 0], vec![2; 60]]
}

fn author(index: usize) -> AuthorId {
    AuthorId { term: 1, counter: u32::try_from(index).unwrap() + 1 }
}

fn wish() -> impl Strategy<Value = Wish> {
    let value = || prop::option::of(0i64..100);
    prop_oneof![
        3 => (value(), value(), -5i64..=5)
            .prop_map(|(name, note, count)| Wish::Put { name, note, count }),
        1 => Just(Wish::Delete),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let rows = prop::collection::vec((0..keys().len(), wish()), 1..4);
    prop_oneof![
        (0..AUTHORS, 0u64..40, rows).prop_map(|(author, wall, rows)| Step::Write {
            author,
            wall,
            rows
        }),
        (0..AUTHORS, 0..AUTHORS, 1usize..8).prop_map(|(from, to, entries)| Step::Send {
            from,
            to,
            entries
        }),
    ]
}

fn history() -> impl Strategy<Value = Vec<Rc<Written>>> {
    prop::collection::vec(step(), 1..60).prop_map(|steps| play(&steps).1)
}

/// Carries steps out; gives the replicas and every entry, in an order that is causal.
fn play(steps: &[Step]) -> (Vec<Replica>, Vec<Rc<Written>>) {
    let mut replicas: Vec<Replica> = (0..AUTHORS).map(|_| Replica::default()).collect();
    let mut history = Vec::new();
    for step in steps {
        match step {
            Step::Write { author: index, wall, rows } => {
                let replica = &mut replicas[*index];
                let changes = possible(&replica.rows, rows);
                if !changes.is_empty() {
                    history.push(replica.write(author(*index), *wall, &changes));
                }
            }
            Step::Send { from, to, entries } => {
                let lacking: Vec<_> = replicas[*from]
                    .log
                    .iter()
                    .filter(|entry| !replicas[*to].vector.covers(entry.stamp.dot()))
                    .take(*entries)
                    .cloned()
                    .collect();
                for entry in &lacking {
                    replicas[*to].take(entry);
                }
            }
        }
    }
    (replicas, history)
}

/// One change per key, in key order, as an entry has them.
fn possible(rows: &Rows, wishes: &[(usize, Wish)]) -> Vec<(Vec<u8>, Change)> {
    let wishes: BTreeMap<_, _> =
        wishes.iter().map(|(key, wish)| (keys()[*key].clone(), wish)).collect();
    let change = |(key, wish): (Vec<u8>, &Wish)| {
        let change = match (*wish).clone() {
            Wish::Put { name, note, count } if rows.contains_key(&key) => {
                Change::Update { name, note, count }
            }
            Wish::Put { name, note, count } => {
                let (name, note) = (name.unwrap_or_default(), note.unwrap_or_default());
                Change::Insert { name, note, count }
            }
            Wish::Delete => Change::Delete,
        };
        let nothing = match change {
            Change::Delete => !rows.contains_key(&key),
            Change::Update { name, note, count } => name.or(note).is_none() && count == 0,
            Change::Insert { .. } => false,
        };
        (!nothing).then_some((key, change))
    };
    wishes.into_iter().filter_map(change).collect()
}

/// Applies all entries to an empty replica, in the causal order that `picks` chooses.
fn in_order(history: &[Rc<Written>], picks: &[usize]) -> Replica {
    let mut replica = Replica::default();
    let mut waiting: Vec<_> = history.to_vec();
    for pick in picks.iter().cycle() {
        let ready: Vec<usize> = (0..waiting.len())
            .filter(|&i| {
                let Written { stamp, context, .. } = &*waiting[i];
                replica.vector.covers_all(context)
                    && replica.vector.seq(stamp.author) + 1 == stamp.seq
            })
            .collect();
        let Some(&next) = ready.get(pick % ready.len().max(1)) else { break };
        replica.take(&waiting.remove(next));
    }
    assert!(waiting.is_empty());
    replica
}

fn picks() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0usize..16, 1..32)
}

proptest! {
    #[test]
    fn every_causal_order_ends_in_the_same_clocks_and_rows(
        history in history(), one in picks(), other in picks(),
    ) {
        let (one, other) = (in_order(&history, &one), in_order(&history, &other));
        prop_assert_eq!(one.clocks(), other.clocks());
        prop_assert_eq!(&one.rows, &other.rows);
    }

    #[test]
    fn rows_are_what_the_set_of_entries_means(history in history(), order in picks()) {
        prop_assert_eq!(in_order(&history, &order).rows, specified(&history));
    }

    #[test]
    fn counters_lose_no_increment_and_count_none_twice(
        increments in prop::collection::vec((0..AUTHORS, -9i64..9), 1..20), order in picks(),
    ) {
        let mut cluster = Cluster::with_row();
        for (index, count) in &increments {
            cluster.write(*index, Change::Update { name: None, note: None, count: *count });
        }
        let sum = increments.iter().map(|(_, count)| count).sum::<i64>();
        let row = in_order(&cluster.history, &order).rows.remove(&Cluster::key()).unwrap();
        prop_assert_eq!(row[&COUNT], sum);
    }

    #[test]
    fn replaying_the_log_of_a_replica_gives_its_clocks_and_rows(steps in prop::collection::vec(step(), 1..60)) {
        for replica in play(&steps).0 {
            let mut again = Replica::default();
            for entry in &replica.log {
                again.take(entry);
            }
            prop_assert_eq!(again.clocks(), replica.clocks());
            prop_assert_eq!(again.rows, replica.rows, "own writes take effect whole");
        }
    }

    #[test]
    fn entries_that_come_again_change_no_clock(history in history(), order in picks()) {
        let mut replica = in_order(&history, &order);
        let clocks = replica.clocks();
        for entry in &history {
            for op in &entry.ops {
                replica.apply(op, entry.stamp);
            }
        }
        prop_assert_eq!(replica.clocks(), clocks);
    }

    #[test]
    fn undo_takes_back_exactly_what_came_after_the_mark(history in history(), at in 0usize..60) {
        let (before, after) = history.split_at(at.min(history.len()));
        let mut replica = Replica::default();
        for entry in before {
            replica.take(entry);
        }
        let marked = exact(&replica.contested);
        replica.contested.mark();
        for entry in after {
            replica.take(entry);
        }
        let kept = replica.clocks();
        replica.contested.undo();
        prop_assert_eq!(exact(&replica.contested), marked);

        replica.contested.mark();
        for entry in after {
            for op in &entry.ops {
                let mut effects = Effects::default();
                let contested = &mut replica.contested;
                with_op(op, |op| contested.apply(op, entry.stamp, &ASSIGNED, &mut effects));
            }
        }
        replica.contested.keep();
        replica.contested.undo();
        prop_assert_eq!(replica.clocks(), kept, "what is kept cannot be undone");
    }

    #[test]
    fn undo_takes_back_local_writes(
        history in history(), wishes in prop::collection::vec((0..keys().len(), wish()), 1..4),
    ) {
        let mut replica = in_order(&history, &[0]);
        let marked = exact(&replica.contested);
        let changes = possible(&replica.rows, &wishes);
        replica.contested.mark();
        replica.write(author(0), 0, &changes);
        replica.contested.undo();
        prop_assert_eq!(exact(&replica.contested), marked);
    }

    #[test]
    fn many_rows_are_written_and_found_in_any_order(
        batches in prop::collection::vec(prop::collection::btree_set(0u16..200, 0..80), 1..4),
        asked in prop::collection::vec(0u16..200, 0..40),
    ) {
        let mut replica = Replica::default();
        for batch in &batches {
            let changes: Vec<(Vec<u8>, Change)> = batch
                .iter()
                .map(|key| key.to_be_bytes().to_vec())
                .map(|key| {
                    let present = replica.rows.contains_key(&key);
                    (key, if present { name(1) } else { Change::Insert { name: 0, note: 0, count: 0 } })
                })
                .collect();
            replica.write(author(0), 0, &changes);
        }
        let clocks = replica.clocks();
        let last = |key: u16| {
            (1..).zip(&batches).filter(|(_, batch)| batch.contains(&key)).map(|(seq, _)| seq).last()
        };
        let mut cursor = replica.contested.cursor();
        for key in asked {
            let found = cursor.row(TABLE, &key.to_be_bytes());
            let seq = found.and_then(|clock| clock.cell(NAME)).map(|stamp| stamp.seq);
            prop_assert_eq!(seq, last(key));
            prop_assert_eq!(found.is_some(), clocks.contains_key(&key.to_be_bytes()[..]));
        }
    }
}

/// The clocks as they are, down to the form they have.
fn exact(contested: &Contested) -> (Vec<(RowKey, RowClock)>, u64) {
    let rows = contested.tables.values().flatten();
    (rows.map(|(key, clock)| (key.clone(), clock.clone())).collect(), contested.rows())
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
        cluster.write(0, Change::Insert { name: 1, note: 1, count: 0 });
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
            if !receiver.vector.covers(entry.stamp.dot()) {
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

const fn name(value: i64) -> Change {
    Change::Update { name: Some(value), note: None, count: 0 }
}

const fn note(value: i64) -> Change {
    Change::Update { name: None, note: Some(value), count: 0 }
}

const fn count(delta: i64) -> Change {
    Change::Update { name: None, note: None, count: delta }
}

#[test]
fn concurrent_writes_to_different_columns_both_stand() {
    let mut cluster = Cluster::with_row();
    cluster.write(0, name(5));
    cluster.write(1, note(6));
    assert_eq!(cluster.send(0, 1), []);
    assert_eq!(cluster.send(1, 0), []);
    assert_eq!(cluster.row(), Some([5, 6, 0]));
}

#[test]
fn a_causal_overwrite_is_no_conflict() {
    let mut cluster = Cluster::with_row();
    cluster.write(0, name(5));
    assert_eq!(cluster.send(0, 1), []);
    cluster.write(1, name(6));
    assert_eq!(cluster.send(1, 0), []);
    assert_eq!(cluster.send(1, 2), [], "both arrive, one after the other");
    assert_eq!(cluster.row(), Some([6, 1, 0]));
}

#[test]
fn of_concurrent_writes_the_later_wins_and_both_sides_see_the_conflict() {
    let mut cluster = Cluster::with_row();
    cluster.write(0, name(5));
    cluster.write(1, name(6));
    assert_eq!(cluster.send(0, 1), [(NAME, ConflictKind::IncomingLoses)]);
    assert_eq!(cluster.send(1, 0), [(NAME, ConflictKind::StoredLoses)]);
    assert_eq!(cluster.row(), Some([6, 1, 0]));
}

#[test]
fn the_author_decides_between_equal_times() {
    let mut cluster = Cluster::with_row();
    cluster.write(1, name(6));
    cluster.wall -= 1;
    cluster.write(0, name(5));
    let time = |place: usize| cluster.history[place].stamp.hlc;
    assert_eq!(time(1), time(2));
    assert_eq!(cluster.row(), Some([6, 1, 0]));
}

#[test]
fn a_delete_wins_over_a_concurrent_update_in_either_order() {
    let mut cluster = Cluster::with_row();
    cluster.write(0, Change::Delete);
    cluster.write(1, Change::Update { name: Some(5), note: None, count: 3 });
    let late = cluster.send(1, 0);
    assert_eq!(late, [(NAME, ConflictKind::RowGone)], "increments are no conflict");
    assert_eq!(cluster.send(0, 1), [(NAME, ConflictKind::StoredDeleted)]);
    assert_eq!(cluster.row(), None);
}

#[test]
fn a_delete_of_what_its_author_has_seen_is_no_conflict() {
    let mut cluster = Cluster::with_row();
    cluster.write(1, name(5));
    cluster.send(1, 0);
    cluster.write(0, Change::Delete);
    assert_eq!(cluster.send(0, 1), []);
    assert_eq!(cluster.send(0, 2), []);
    assert_eq!(cluster.row(), None);
}

#[test]
fn an_insert_over_a_tombstone_begins_an_epoch_that_older_writes_do_not_reach() {
    let mut cluster = Cluster::with_row();
    cluster.write(0, Change::Delete);
    cluster.write(0, Change::Insert { name: 8, note: 9, count: 1 });
    cluster.write(1, Change::Update { name: Some(5), note: None, count: 3 });
    assert_eq!(cluster.history[2].ops[0].epoch, 1);
    assert_eq!(cluster.send(1, 0), [(NAME, ConflictKind::RowGone)]);
    assert_eq!(cluster.send(0, 1), [(NAME, ConflictKind::StoredDeleted)]);
    assert_eq!(cluster.row(), Some([8, 9, 1]));
}

#[test]
fn a_delete_of_an_older_epoch_leaves_the_new_row_alone() {
    let mut cluster = Cluster::with_row();
    cluster.write(1, Change::Delete);
    cluster.write(0, Change::Delete);
    cluster.write(0, Change::Insert { name: 8, note: 9, count: 1 });
    assert_eq!(cluster.send(1, 0), []);
    assert_eq!(cluster.send(0, 1), []);
    assert_eq!(cluster.row(), Some([8, 9, 1]));
}

#[test]
fn concurrent_inserts_of_one_key_merge_and_add_up() {
    let mut cluster = Cluster::empty();
    cluster.write(0, Change::Insert { name: 5, note: 6, count: 2 });
    cluster.write(1, Change::Insert { name: 7, note: 8, count: 3 });
    cluster.write(0, note(9));
    assert_eq!(
        cluster.send(1, 0),
        [(NAME, ConflictKind::StoredLoses), (NOTE, ConflictKind::IncomingLoses)]
    );
    assert_eq!(cluster.row(), Some([7, 9, 5]));
}

#[test]
fn concurrent_inserts_after_a_delete_that_both_had_seen_merge_too() {
    let mut cluster = Cluster::with_row();
    cluster.write(2, count(50));
    cluster.spread();
    cluster.write(2, Change::Delete);
    cluster.spread();
    cluster.write(0, Change::Insert { name: 5, note: 6, count: 2 });
    cluster.write(1, Change::Insert { name: 7, note: 8, count: 3 });
    assert_eq!(cluster.row(), Some([7, 8, 5]));
}

#[test]
fn a_row_dies_of_the_first_of_two_concurrent_deletes() {
    let mut cluster = Cluster::with_row();
    cluster.write(0, Change::Delete);
    cluster.write(1, Change::Delete);
    assert_eq!(cluster.send(0, 1), []);
    assert_eq!(cluster.send(1, 0), []);
    assert_eq!(cluster.row(), None);
    cluster.write(2, Change::Insert { name: 1, note: 2, count: 3 });
    assert_eq!(cluster.row(), Some([1, 2, 3]));
}
