//! The schema that every run uses, and the jobs that clients write.
//!
//! A job is a function of the seed and its number. Most of what it does collides with what others
//! do: few keys, all kinds of statements, some of which fail. Beside that, jobs keep promises that a
//! reader can check on any machine at any time, without knowing how the engine works:
//!
//! - the two rows of a pair in `pair` hold the same token, or both are missing;
//! - the balances in `account` sum to zero;
//! - every `tally` equals the sum of its rows in `ledger`; a job writes its own number there;
//! - rows of `badge` have keys of `littoral_id()`, and no two jobs insert the same;
//! - a row of `ghost` is inserted by one job only, and never comes back once it was deleted;
//! - no two rows of `ticket` ever had the same key, which `stub` remembers;
//! - the sets of `bag` are JSON arrays;
//! - the rows of `seat` are registers that clients read and write from everywhere, and only the origin does;
//! - no request has more than one row of an edition in `parcel`, which programs that run at the origin write,
//!   and one of a guest has all or none.

mod author;
mod bag;
mod request;
mod schema;
mod script;
mod seat;
mod talk;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use littoral::{
    Consistency, Job, OnStale, OnUnreachable, TablePolicy, WriteError, WriteTx, Writers,
};
use rusqlite::{params_from_iter, types::Value};

use self::author::Author;
pub(crate) use self::{
    request::{Kind, Program, RequestNumber, guest_number, rows_of},
    schema::{Errand, times as schema_change_times},
    script::{Failed, Script, decode_values},
    seat::{BOUNDED_READS, SEATS, SeatCall},
    talk::{Progress, Talk},
};
use crate::chance::{Chance, Draw, Stream};

/// Numbers jobs across the cluster; it is the job's key in `ledger`.
pub(crate) type JobId = u64;

/// The number of the first job.
pub(crate) const FIRST_JOB: JobId = 1;

/// What `schema.sql` would hold.
pub(crate) const SCHEMA: &str = "
CREATE TABLE item (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL CHECK (length(name) < 30), note,
  price REAL, stock INTEGER NOT NULL DEFAULT 0, sold INTEGER NOT NULL DEFAULT 0);
CREATE INDEX item_by_name ON item (name);
CREATE TABLE cart (
  owner TEXT NOT NULL, sku TEXT NOT NULL, quantity INTEGER NOT NULL DEFAULT 1, label TEXT,
  PRIMARY KEY (owner, sku)) WITHOUT ROWID;
CREATE TABLE loose (tag, k NOT NULL PRIMARY KEY, weight REAL, seen INTEGER NOT NULL DEFAULT 0);
CREATE TABLE scale (k REAL NOT NULL, part BLOB NOT NULL, v, PRIMARY KEY (part, k)) WITHOUT ROWID;
CREATE TABLE echo (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE pair (id INTEGER PRIMARY KEY, token TEXT NOT NULL);
CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL DEFAULT 0, memo TEXT);
CREATE TABLE ledger (id INTEGER PRIMARY KEY, tally INTEGER NOT NULL, amount INTEGER NOT NULL);
CREATE TABLE tally (id INTEGER PRIMARY KEY, total INTEGER NOT NULL DEFAULT 0);
CREATE TABLE ghost (id INTEGER PRIMARY KEY, state TEXT);
CREATE TABLE badge (id INTEGER PRIMARY KEY, holder TEXT);
CREATE TABLE gauge (
  id INTEGER PRIMARY KEY, high, low, peak REAL NOT NULL DEFAULT 0, turns INTEGER NOT NULL DEFAULT 0,
  street TEXT, town, note TEXT, CHECK (note IS NULL OR street IS NOT note));
CREATE TABLE bag (
  id INTEGER PRIMARY KEY, tags TEXT, marks NOT NULL DEFAULT '[]', label,
  n INTEGER NOT NULL DEFAULT 0);
CREATE TABLE holder (id INTEGER PRIMARY KEY, email TEXT NOT NULL UNIQUE, grade INTEGER);
CREATE TABLE purchase (
  id INTEGER PRIMARY KEY, total INTEGER CHECK (total >= 0),
  holder INTEGER NOT NULL REFERENCES holder (id) ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE refund (
  id INTEGER PRIMARY KEY,
  purchase INTEGER NOT NULL REFERENCES purchase (id) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE handle (
  name TEXT COLLATE NOCASE NOT NULL PRIMARY KEY, mail TEXT, hits INTEGER NOT NULL DEFAULT 0);
CREATE TABLE jotting (line TEXT UNIQUE, at);
CREATE TABLE ticket (id INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT UNIQUE);
CREATE TABLE stub (id INTEGER PRIMARY KEY);
CREATE TABLE parcel (id INTEGER PRIMARY KEY, request INTEGER NOT NULL, edition INTEGER NOT NULL);
CREATE TABLE stall (
  id INTEGER PRIMARY KEY, label TEXT, amount INTEGER NOT NULL DEFAULT 0, rank INTEGER NOT NULL DEFAULT 0);
CREATE TABLE seat (id INTEGER PRIMARY KEY, holder INTEGER NOT NULL);
CREATE VIEW seated AS SELECT id, holder FROM seat;
CREATE TABLE plot (id INTEGER PRIMARY KEY, crop TEXT, seeds INTEGER NOT NULL DEFAULT 0);
CREATE TABLE ware (id INTEGER PRIMARY KEY, title TEXT UNIQUE, weight REAL DEFAULT 1);
CREATE TABLE memo (id INTEGER PRIMARY KEY, line TEXT, body, n INTEGER NOT NULL DEFAULT 0);
CREATE VIRTUAL TABLE memo_words USING fts5(line, body, content = 'memo', content_rowid = 'id');
CREATE TRIGGER memo_in AFTER INSERT ON memo
BEGIN INSERT INTO memo_words (rowid, line, body) VALUES (new.id, new.line, new.body); END;
CREATE TRIGGER memo_out AFTER DELETE ON memo
BEGIN INSERT INTO memo_words (memo_words, rowid, line, body) VALUES ('delete', old.id, old.line, old.body); END;
CREATE TRIGGER memo_again AFTER UPDATE ON memo
BEGIN
  INSERT INTO memo_words (memo_words, rowid, line, body) VALUES ('delete', old.id, old.line, old.body);
  INSERT INTO memo_words (rowid, line, body) VALUES (new.id, new.line, new.body);
END;
CREATE TRIGGER ticket_stub AFTER INSERT ON ticket BEGIN INSERT INTO stub VALUES (new.id); END;
CREATE TRIGGER item_guard BEFORE INSERT ON item WHEN new.name = 'forbidden'
BEGIN SELECT raise(ABORT, 'forbidden'); END;
CREATE TRIGGER item_echo AFTER UPDATE OF name ON item
BEGIN INSERT INTO echo VALUES (new.id, new.name) ON CONFLICT (id) DO UPDATE SET name = new.name; END;
";

/// How old what is read of `gauge` may be.
pub(crate) const GAUGE_LAG_MS: u64 = 500;

/// A replicated table as the oracles read it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableShape {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its primary key.
    pub(crate) key: &'static [&'static str],
    /// Its columns that are not `lww`; `None` if only the origin writes it.
    pub(crate) merges: Option<&'static [(&'static str, &'static str)]>,
    /// Whether its key compares text without regard to case.
    pub(crate) nocase: bool,
    /// Whether equal keys may differ in bytes, and then which parts of the key are REAL.
    pub(crate) spelled: Option<&'static [bool]>,
}

const fn any(
    name: &'static str,
    key: &'static [&'static str],
    merges: &'static [(&'static str, &'static str)],
) -> TableShape {
    TableShape { name, key, merges: Some(merges), nocase: false, spelled: None }
}

const fn origin(name: &'static str) -> TableShape {
    TableShape { name, key: &["id"], merges: None, nocase: false, spelled: None }
}

impl TableShape {
    const fn spelled(mut self, real: &'static [bool]) -> Self {
        self.spelled = Some(real);
        self
    }

    const fn nocase(mut self) -> Self {
        self.nocase = true;
        self
    }

    const fn by_rowid(mut self) -> Self {
        self.key = &["rowid"];
        self
    }
}

/// Every replicated table of [`SCHEMA`], as a run begins.
pub(crate) const TABLES: [TableShape; 26] = [
    any("item", &["id"], &[("stock", "counter"), ("sold", "counter")]),
    any("cart", &["owner", "sku"], &[("quantity", "counter")]),
    any("loose", &["k"], &[("seen", "counter")]).spelled(&[false]),
    any("scale", &["part", "k"], &[]).spelled(&[false, true]),
    any("handle", &["name"], &[("hits", "counter")]).spelled(&[false]).nocase(),
    any("echo", &["id"], &[]),
    any("memo", &["id"], &[("n", "counter")]),
    any("pair", &["id"], &[]),
    any("account", &["id"], &[("balance", "counter")]),
    any("ledger", &["id"], &[]),
    any("tally", &["id"], &[("total", "counter")]),
    any("ghost", &["id"], &[]),
    any("badge", &["id"], &[]),
    any(
        "gauge",
        &["id"],
        &[
            ("high", "max"),
            ("low", "min"),
            ("peak", "max"),
            ("turns", "counter"),
            ("street", "group=address"),
            ("town", "group=address"),
        ],
    ),
    any("stall", &["id"], &[("amount", "counter")]),
    origin("plot"),
    origin("ware"),
    any("bag", &["id"], &[("tags", "set"), ("marks", "set"), ("n", "counter")]),
    origin("holder"),
    origin("purchase"),
    origin("refund"),
    origin("jotting").by_rowid(),
    origin("ticket"),
    origin("stub"),
    origin("parcel"),
    origin("seat"),
];

/// The policies that belong to [`SCHEMA`].
pub(crate) fn policies() -> BTreeMap<String, TablePolicy> {
    TABLES
        .iter()
        .map(|table| {
            let mut policy = TablePolicy::default();
            if table.name == "seat" {
                policy.consistency = Consistency::OriginStrong;
                policy.on_unreachable = OnUnreachable::Stale;
            }
            if let Some(merges) = table.merges {
                policy.writers = Writers::Any;
                policy.explicit_key = table.key == ["id"];
                if table.name == "gauge" {
                    policy.consistency = Consistency::Eventual;
                    let bound = Some(GAUGE_LAG_MS);
                    policy.declare_max_lag(bound, Some(OnStale::Forward)).expect("within bounds");
                }
                for (column, word) in merges {
                    policy.declare_column(column, word).expect("a word there is");
                }
                // It merges as it would otherwise, and stays so when the table is rebuilt.
                if table.name == "stall" {
                    policy.declare_column("label", "personal").expect("a word there is");
                }
            }
            (table.name.to_owned(), policy)
        })
        .collect()
}

/// Queries that count what no reader may ever see, each with what it means.
pub(crate) const FORBIDDEN_SIGHTS: [(&str, &str); 12] = [
    (
        "a request that ran twice",
        "SELECT count(*) FROM (SELECT 1 FROM parcel
           GROUP BY request, iif(request < 1000000, 0, edition) HAVING count(*) > 1)",
    ),
    (
        "some steps of a guest",
        "SELECT count(*) FROM (SELECT 1 FROM parcel WHERE request >= 1000000 GROUP BY request
           HAVING count(*) <> request % 10)",
    ),
    (
        "an id that two nodes have given",
        "SELECT count(*) FROM littoral_conflicts WHERE \"table\" = 'badge' AND rule <> 'repaired'",
    ),
    (
        "half of a transaction on a pair",
        "SELECT count(*) FROM pair a LEFT JOIN pair b ON b.id = a.id + 1 - 2 * (a.id % 2)
         WHERE b.token IS NOT a.token",
    ),
    ("money out of nothing", "SELECT coalesce(sum(balance), 0) FROM account"),
    (
        "a counter that differs from its increments",
        "SELECT count(*) FROM (SELECT tally, sum(amount) AS due FROM ledger GROUP BY tally)
         LEFT JOIN tally ON tally.id = tally WHERE total IS NOT due",
    ),
    (
        "a purchase without its holder",
        "SELECT count(*) FROM purchase WHERE holder NOT IN (SELECT id FROM holder)",
    ),
    (
        "a refund without its purchase",
        "SELECT count(*) FROM refund WHERE purchase NOT IN (SELECT id FROM purchase)",
    ),
    (
        "a memo that full-text search does not find",
        "SELECT count(*) FROM memo WHERE line IS NOT NULL AND NOT EXISTS
           (SELECT 1 FROM memo_words('line : \"' || memo.line || '\"') f WHERE f.rowid = memo.id)",
    ),
    (
        "words of a memo that is gone",
        "SELECT (SELECT count(*) FROM memo_words_docsize) <> (SELECT count(*) FROM memo)",
    ),
    (
        "a set that is none",
        "SELECT count(*) FROM bag
         WHERE iif(json_valid(tags) AND json_valid(marks),
                   json_type(tags) <> 'array' OR json_type(marks) <> 'array', TRUE)",
    ),
    (
        "a ticket without its stub",
        "SELECT count(*) FROM ticket WHERE id NOT IN (SELECT id FROM stub)",
    ),
];

/// How one seed's clients differ from another's.
#[derive(Clone, Debug)]
pub(crate) struct Habits {
    acts: Vec<(u64, Act)>,
    keys: u64,
    with_ledger: u64,
    /// Per hundred values that may be anything.
    large_values: u64,
}

impl Habits {
    /// Draws what clients like to do.
    pub(crate) fn draw(draw: &mut Draw) -> Self {
        let mut acts: Vec<(u64, Act)> =
            ACTS.iter().map(|act| (*draw.pick(&[0, 1, 1, 2, 5]), *act)).collect();
        acts.push((1, Act::Update));
        Self {
            acts,
            keys: draw.between(2, 9),
            with_ledger: draw.between(30, 90),
            large_values: *draw.pick(&[0, 0, 0, 4]),
        }
    }
}

/// One thing that a job does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    Insert,
    InsertMany,
    InsertCrowd,
    Update,
    UpdateSeveral,
    Count,
    Delete,
    DeleteSeveral,
    DeleteAndInsert,
    Replace,
    Upsert,
    Rekey,
    NothingAfterAll,
    BreakRule,
    CartAdd,
    CartChange,
    Handle,
    Loose,
    Scale,
    Memo,
    Pair,
    Transfer,
    Ghost,
    Gauge,
    Stall,
    Savepoint,
    Origin,
    Abort,
    Bag,
}

const ACTS: [Act; 29] = [
    Act::Insert,
    Act::InsertMany,
    Act::InsertCrowd,
    Act::Update,
    Act::UpdateSeveral,
    Act::Count,
    Act::Delete,
    Act::DeleteSeveral,
    Act::DeleteAndInsert,
    Act::Replace,
    Act::Upsert,
    Act::Rekey,
    Act::NothingAfterAll,
    Act::BreakRule,
    Act::CartAdd,
    Act::CartChange,
    Act::Handle,
    Act::Loose,
    Act::Scale,
    Act::Memo,
    Act::Pair,
    Act::Transfer,
    Act::Ghost,
    Act::Gauge,
    Act::Stall,
    Act::Savepoint,
    Act::Origin,
    Act::Abort,
    Act::Bag,
];

/// One statement of a job.
#[derive(Clone, Debug)]
struct Step {
    sql: String,
    values: Vec<Value>,
    /// The job goes on if the statement fails.
    tolerant: bool,
    /// The ghost that it deletes, if there is one.
    ghost: Option<i64>,
}

/// What a job did in its last execution.
#[derive(Clone, Debug, Default)]
pub(crate) struct Effects {
    /// Rows of `ghost` that it deleted.
    pub(crate) ghosts_deleted: Vec<i64>,
    /// Tables to which it may not write now, as statements said whose failure it put up with.
    pub(crate) frozen: Vec<String>,
}

/// A job before it is queued.
#[derive(Debug)]
pub(crate) struct PlannedJob {
    errand: Errand,
    steps: Vec<Step>,
    aborts: bool,
    /// Whether it inserts its number into `ledger`.
    pub(crate) in_ledger: bool,
    /// Filled each time the job runs.
    pub(crate) effects: Arc<Mutex<Effects>>,
}

impl PlannedJob {
    /// The job of a number, as the client at `machine` writes it.
    pub(crate) fn draw(chance: &Chance, habits: &Habits, id: JobId, machine: usize) -> Self {
        let mut draw = chance.draw(Stream::Job, machine as u64, id);
        let mut author = Author { draw: &mut draw, habits, id, machine, steps: Vec::new() };
        let mut aborts = false;
        let in_ledger = author.draw.percent(habits.with_ledger);
        let ledger_first = author.draw.percent(50);
        if in_ledger && ledger_first {
            author.ledger();
        }
        for _ in 0..author.draw.between(1, 5) {
            let act = *author.draw.weighted(&habits.acts);
            aborts |= act == Act::Abort && author.draw.percent(20);
            author.act(act, 0);
        }
        // The origin's jobs often come close behind each other: one may repair what another broke.
        if machine == 0 && author.draw.percent(30) {
            author.refund();
        }
        if in_ledger && !ledger_first {
            author.ledger();
        }
        let steps = author.steps;
        let errand = match draw.below(100) {
            0..12 => Errand::Talk { goes_away: draw.percent(10) },
            _ => Errand::Write,
        };
        Self { errand, steps, aborts, in_ledger, effects: Arc::default() }
    }

    /// A job of these statements with their parameters, all of which must succeed.
    pub(crate) fn of(statements: Vec<(String, Vec<Value>)>) -> Self {
        let step = |(sql, values)| Step { sql, values, tolerant: false, ghost: None };
        let steps = statements.into_iter().map(step).collect();
        Self::errand(Errand::Write, steps)
    }

    /// A job that only writes its number, and must succeed on any healthy member.
    pub(crate) fn mark(chance: &Chance, habits: &Habits, id: JobId, machine: usize) -> Self {
        let mut draw = chance.draw(Stream::Job, machine as u64, id);
        let mut author = Author { draw: &mut draw, habits, id, machine, steps: Vec::new() };
        author.ledger();
        let steps = author.steps;
        Self { in_ledger: true, ..Self::errand(Errand::Write, steps) }
    }

    /// What the job does, for people.
    pub(crate) fn describe(&self) -> String {
        match &self.errand {
            Errand::Write => {}
            Errand::Talk { .. } => return format!("talk: {}", self.describe_steps()),
            Errand::Migrate(script) => return format!("migration: {script}"),
            Errand::GiveUp => return "give the waiting change up".to_owned(),
        }
        self.describe_steps()
    }

    fn describe_steps(&self) -> String {
        let steps: Vec<String> = self
            .steps
            .iter()
            .map(|step| {
                let values: Vec<String> = step.values.iter().map(describe_value).collect();
                format!("{} [{}]", step.sql, values.join(", "))
            })
            .collect();
        format!("{}{}", steps.join("; "), if self.aborts { "; gives up" } else { "" })
    }

    /// Its statements, to be run at the origin.
    pub(crate) fn script(&self) -> Script {
        Script::of(self.steps.iter().map(|step| (step.sql.clone(), step.values.clone())).collect())
    }

    /// The closure that the engine runs.
    pub(crate) fn into_job(self) -> Job {
        Box::new(move |tx| {
            let effects = self.run(tx)?;
            *self.effects.lock().unwrap_or_else(PoisonError::into_inner) = effects;
            if self.aborts {
                Err(WriteError::Aborted("the client gave up".to_owned()))
            } else {
                Ok(())
            }
        })
    }

    fn run(&self, tx: &mut WriteTx<'_>) -> Result<Effects, WriteError> {
        let mut effects = Effects::default();
        self.steps.iter().try_for_each(|step| step.run(tx, &mut effects))?;
        Ok(effects)
    }
}

impl Step {
    fn run(&self, tx: &mut WriteTx<'_>, effects: &mut Effects) -> Result<(), WriteError> {
        match tx.execute(&self.sql, params_from_iter(&self.values)) {
            Ok(changed) => effects.ghosts_deleted.extend(self.ghost.filter(|_| changed > 0)),
            Err(WriteError::SchemaChanging { table, .. }) if self.tolerant => {
                effects.frozen.push(table);
            }
            Err(_) if self.tolerant => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// A value, for people.
pub(crate) fn describe_value(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(n) => n.to_string(),
        Value::Real(r) => r.to_string(),
        Value::Text(text) => format!("'{text}'"),
        Value::Blob(bytes) => format!("{} bytes", bytes.len()),
    }
}
