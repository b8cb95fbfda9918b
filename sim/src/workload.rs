//! The schema that every run uses, and the jobs that clients write.
//!
//! A job is a function of the seed and its number. Most of what it does collides with what others
//! do: few keys, all kinds of statements, some of which fail. Beside that, jobs keep promises that a
//! reader can check on any machine at any time, without knowing how the engine works:
//!
//! - the two rows of a pair in `pair` hold the same token, or both are missing;
//! - the balances in `account` sum to zero;
//! - every `tally` equals the sum of its rows in `ledger`; a job writes its own number there;
//! - a row of `ghost` is inserted by one job only, and never comes back once it was deleted.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use littoral::{ColumnType, Job, TablePolicy, WriteError, WriteTx, Writers};
use rusqlite::{params_from_iter, types::Value};

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
CREATE TABLE holder (id INTEGER PRIMARY KEY, email TEXT NOT NULL UNIQUE, grade INTEGER);
CREATE TABLE purchase (
  id INTEGER PRIMARY KEY, total INTEGER CHECK (total >= 0),
  holder INTEGER NOT NULL REFERENCES holder (id) ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE refund (
  id INTEGER PRIMARY KEY,
  purchase INTEGER NOT NULL REFERENCES purchase (id) DEFERRABLE INITIALLY DEFERRED);
CREATE TRIGGER item_guard BEFORE INSERT ON item WHEN new.name = 'forbidden'
BEGIN SELECT raise(ABORT, 'forbidden'); END;
CREATE TRIGGER item_echo AFTER UPDATE OF name ON item
BEGIN INSERT INTO echo VALUES (new.id, new.name) ON CONFLICT (id) DO UPDATE SET name = new.name; END;
";

/// A replicated table as the oracles read it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableShape {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its primary key.
    pub(crate) key: &'static [&'static str],
    /// Its counters; `None` if only the origin writes it.
    pub(crate) counters: Option<&'static [&'static str]>,
}

const fn any(
    name: &'static str,
    key: &'static [&'static str],
    counters: &'static [&'static str],
) -> TableShape {
    TableShape { name, key, counters: Some(counters) }
}

const fn origin(name: &'static str) -> TableShape {
    TableShape { name, key: &["id"], counters: None }
}

/// Every replicated table of [`SCHEMA`].
pub(crate) const TABLES: [TableShape; 13] = [
    any("item", &["id"], &["stock", "sold"]),
    any("cart", &["owner", "sku"], &["quantity"]),
    any("loose", &["k"], &["seen"]),
    any("scale", &["part", "k"], &[]),
    any("echo", &["id"], &[]),
    any("pair", &["id"], &[]),
    any("account", &["id"], &["balance"]),
    any("ledger", &["id"], &[]),
    any("tally", &["id"], &["total"]),
    any("ghost", &["id"], &[]),
    origin("holder"),
    origin("purchase"),
    origin("refund"),
];

/// The policies that belong to [`SCHEMA`].
pub(crate) fn policies() -> BTreeMap<String, TablePolicy> {
    TABLES
        .iter()
        .map(|table| {
            let mut policy = TablePolicy::default();
            if let Some(counters) = table.counters {
                policy.writers = Writers::Any;
                policy.explicit_key = table.key == ["id"];
                policy.columns =
                    counters.iter().map(|name| ((*name).to_owned(), ColumnType::Counter)).collect();
            }
            (table.name.to_owned(), policy)
        })
        .collect()
}

/// Queries that count what no reader may ever see, each with what it means.
pub(crate) const FORBIDDEN_SIGHTS: [(&str, &str); 5] = [
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
    Loose,
    Scale,
    Pair,
    Transfer,
    Ghost,
    Savepoint,
    Origin,
    Abort,
}

const ACTS: [Act; 24] = [
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
    Act::Loose,
    Act::Scale,
    Act::Pair,
    Act::Transfer,
    Act::Ghost,
    Act::Savepoint,
    Act::Origin,
    Act::Abort,
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
}

/// A job before it is queued.
#[derive(Debug)]
pub(crate) struct PlannedJob {
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
        if in_ledger && !ledger_first {
            author.ledger();
        }
        let steps = author.steps;
        Self { steps, aborts, in_ledger, effects: Arc::default() }
    }

    /// A job that only writes its number, and must succeed on any healthy member.
    pub(crate) fn mark(chance: &Chance, habits: &Habits, id: JobId, machine: usize) -> Self {
        let mut draw = chance.draw(Stream::Job, machine as u64, id);
        let mut author = Author { draw: &mut draw, habits, id, machine, steps: Vec::new() };
        author.ledger();
        let steps = author.steps;
        Self { steps, aborts: false, in_ledger: true, effects: Arc::default() }
    }

    /// What the job does, for people.
    pub(crate) fn describe(&self) -> String {
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
        for step in &self.steps {
            match tx.execute(&step.sql, params_from_iter(&step.values)) {
                Ok(changed) => effects.ghosts_deleted.extend(step.ghost.filter(|_| changed > 0)),
                Err(_) if step.tolerant => {}
                Err(error) => return Err(error),
            }
        }
        Ok(effects)
    }
}

fn describe_value(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(n) => n.to_string(),
        Value::Real(r) => r.to_string(),
        Value::Text(text) => format!("'{text}'"),
        Value::Blob(bytes) => format!("{} bytes", bytes.len()),
    }
}

/// Writes the steps of one job.
struct Author<'a> {
    draw: &'a mut Draw,
    habits: &'a Habits,
    id: JobId,
    machine: usize,
    steps: Vec<Step>,
}

fn int(n: u64) -> Value {
    Value::Integer(n.cast_signed())
}

impl Author<'_> {
    fn step(&mut self, sql: &str, values: Vec<Value>) {
        self.steps.push(Step { sql: sql.to_owned(), values, tolerant: false, ghost: None });
    }

    /// A step that may fail; the job often goes on after it.
    fn try_step(&mut self, sql: &str, values: Vec<Value>) {
        let tolerant = self.draw.percent(85);
        self.steps.push(Step { sql: sql.to_owned(), values, tolerant, ghost: None });
    }

    fn key(&mut self) -> Value {
        int(self.draw.below(self.habits.keys))
    }

    /// A value that nobody else writes.
    fn token(&mut self) -> Value {
        Value::Text(format!("j{}.{}", self.id, self.steps.len()))
    }

    fn anything(&mut self) -> Value {
        if self.draw.percent(self.habits.large_values) {
            let len = self.draw.spread(1000, 100_000);
            return Value::Blob((0..len).map(|_| self.draw.word().to_le_bytes()[0]).collect());
        }
        match self.draw.below(7) {
            0 => Value::Null,
            1 => Value::Integer(self.draw.word().cast_signed()),
            2 => Value::Integer(*self.draw.pick(&[0, 1, -1, i64::MIN, i64::MAX])),
            3 => Value::Real(*self.draw.pick(&[0.0, -0.0, 1.5, 3.0, 1e300, f64::INFINITY])),
            4 => {
                let len = self.draw.spread(1, 40) - 1;
                Value::Blob((0..len).map(|_| self.draw.word().to_le_bytes()[0]).collect())
            }
            5 => Value::Text("same for everybody".to_owned()),
            _ => self.token(),
        }
    }

    fn number(&mut self) -> Value {
        Value::Integer(self.draw.below(41).cast_signed() - 20)
    }

    fn ledger(&mut self) {
        let (tally, amount) = (int(self.draw.below(3)), self.number());
        let id = int(self.id);
        self.step("INSERT INTO ledger VALUES (?, ?, ?)", vec![id, tally.clone(), amount.clone()]);
        self.step(
            "INSERT INTO tally VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET total = total + excluded.total",
            vec![tally, amount],
        );
    }

    fn act(&mut self, act: Act, depth: u32) {
        match act {
            Act::Insert => {
                let values = vec![
                    self.key(),
                    self.token(),
                    self.anything(),
                    self.number(),
                    self.number(),
                    self.number(),
                ];
                self.try_step("INSERT INTO item VALUES (?, ?, ?, ?, ?, ?)", values);
            }
            Act::InsertMany => {
                let clause = *self.draw.pick(&[
                    "",
                    "",
                    "OR FAIL",
                    "OR IGNORE",
                    "OR ABORT",
                    "OR REPLACE",
                    "OR ROLLBACK",
                ]);
                let values = vec![
                    self.key(),
                    self.token(),
                    self.key(),
                    self.token(),
                    self.key(),
                    self.token(),
                ];
                let sql =
                    format!("INSERT {clause} INTO item (id, name) VALUES (?, ?), (?, ?), (?, ?)");
                self.try_step(&sql, values);
            }
            Act::InsertCrowd => {
                let values = vec![int(self.draw.spread(5, 120)), self.token()];
                self.try_step(
                    "INSERT OR REPLACE INTO item (id, name)
                     WITH RECURSIVE crowd (n) AS
                       (SELECT 1 UNION ALL SELECT n + 1 FROM crowd WHERE n < ?1)
                     SELECT 1000 + n, ?2 FROM crowd",
                    values,
                );
            }
            Act::Update => {
                let (token, key) = (self.token(), self.key());
                let sql = match self.draw.below(3) {
                    0 => "UPDATE item SET name = ? WHERE id = ?",
                    1 => "UPDATE item SET note = ? WHERE id = ?",
                    _ => "UPDATE echo SET name = ? WHERE id = ?",
                };
                self.try_step(sql, vec![token, key]);
            }
            Act::UpdateSeveral => {
                let values = vec![self.anything(), self.number(), self.number(), self.number()];
                self.try_step(
                    "UPDATE item SET note = ?, stock = stock + ?, price = ? WHERE id % 3 <> abs(?) % 3",
                    values,
                );
            }
            Act::Count => {
                let sql = match self.draw.below(3) {
                    0 => "UPDATE item SET stock = ? WHERE id = ?",
                    1 => "UPDATE item SET sold = sold - ? WHERE id = ?",
                    _ => "UPDATE item SET stock = stock + ?1, sold = sold - ?1 WHERE id = ?2",
                };
                let values = vec![self.number(), self.key()];
                self.try_step(sql, values);
            }
            Act::Delete => {
                let key = self.key();
                let sql = *self.draw.pick(&[
                    "DELETE FROM item WHERE id = ?",
                    "DELETE FROM item WHERE id = ?",
                    "DELETE FROM echo WHERE id = ?",
                ]);
                self.step(sql, vec![key]);
            }
            Act::DeleteSeveral => match self.draw.below(3) {
                0 => self.step("DELETE FROM item", vec![]),
                1 => {
                    let key = self.key();
                    self.step("DELETE FROM item WHERE id <= ?", vec![key]);
                }
                _ => self.step("DELETE FROM cart", vec![]),
            },
            Act::DeleteAndInsert => {
                let (key, token, number) = (self.key(), self.token(), self.number());
                self.step("DELETE FROM item WHERE id = ?", vec![key.clone()]);
                self.step(
                    "INSERT INTO item (id, name, stock) VALUES (?, ?, ?)",
                    vec![key, token, number],
                );
            }
            Act::Replace => {
                let values = vec![self.key(), self.token(), self.number()];
                self.try_step(
                    "INSERT OR REPLACE INTO item (id, name, sold) VALUES (?, ?, ?)",
                    values,
                );
            }
            Act::Upsert => {
                let values = vec![self.key(), self.token(), self.number()];
                self.try_step(
                    "INSERT INTO item (id, name, stock) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE
                     SET stock = stock + excluded.stock, name = excluded.name",
                    values,
                );
            }
            Act::Rekey => match self.draw.below(3) {
                0 => {
                    let values = vec![self.key(), self.key()];
                    let clause =
                        *self.draw.pick(&["", "", "OR REPLACE", "OR IGNORE", "OR ROLLBACK"]);
                    self.try_step(&format!("UPDATE {clause} item SET id = ? WHERE id = ?"), values);
                }
                1 => {
                    let clause = *self.draw.pick(&["", "OR FAIL", "OR IGNORE"]);
                    let key = self.key();
                    self.try_step(
                        &format!("UPDATE {clause} item SET id = id + 1 WHERE id >= ?"),
                        vec![key],
                    );
                }
                _ => {
                    let values = vec![self.sku(), self.owner(), self.sku()];
                    self.try_step("UPDATE cart SET sku = ? WHERE owner = ? AND sku = ?", values);
                }
            },
            Act::NothingAfterAll => match self.draw.below(3) {
                0 => {
                    let key = self.key();
                    self.try_step(
                        "UPDATE item SET name = name, stock = stock WHERE id = ?",
                        vec![key],
                    );
                }
                1 => {
                    let (key, token) = (int(1_000_000 + self.id), self.token());
                    self.step(
                        "INSERT INTO item (id, name) VALUES (?, ?)",
                        vec![key.clone(), token],
                    );
                    self.step("DELETE FROM item WHERE id = ?", vec![key]);
                }
                _ => {
                    let (key, number) = (self.key(), self.number());
                    let values = vec![number, key];
                    self.try_step("UPDATE item SET stock = stock + ? WHERE id = ?", values.clone());
                    self.try_step("UPDATE item SET stock = stock - ? WHERE id = ?", values);
                }
            },
            Act::BreakRule => {
                let (key, token) = (self.key(), self.token());
                match self.draw.below(5) {
                    0 => self.try_step("UPDATE item SET name = NULL WHERE id = ?", vec![key]),
                    1 => self.try_step(
                        "UPDATE item SET name = name || ' and far too long for the check constraint'",
                        vec![],
                    ),
                    2 => self.try_step("INSERT INTO item (id, name) VALUES (?, 'forbidden')", vec![key]),
                    3 => self.try_step(
                        "INSERT INTO item (id, name) VALUES (?1, ?2), (?1 + 100, NULL)",
                        vec![key, token],
                    ),
                    _ => self.try_step("INSERT INTO nowhere VALUES (?)", vec![key]),
                }
            }
            Act::CartAdd => {
                let values = vec![self.owner(), self.sku(), self.number()];
                self.try_step(
                    "INSERT INTO cart (owner, sku, quantity) VALUES (?, ?, ?) ON CONFLICT DO UPDATE
                     SET quantity = quantity + excluded.quantity",
                    values,
                );
            }
            Act::CartChange => match self.draw.below(4) {
                0 => {
                    let values = vec![self.token(), self.owner()];
                    self.try_step("UPDATE cart SET label = ? WHERE owner = ?", values);
                }
                1 => {
                    let values = vec![self.owner(), self.sku()];
                    self.step("DELETE FROM cart WHERE owner = ? AND sku = ?", values);
                }
                2 => {
                    let values = vec![self.sku(), self.sku()];
                    self.try_step(
                        "INSERT OR REPLACE INTO cart SELECT owner, ?, quantity, label FROM cart WHERE sku = ?",
                        values,
                    );
                }
                _ => {
                    let values = vec![self.owner(), self.sku(), self.token()];
                    self.try_step("INSERT INTO cart (owner, sku, label) VALUES (?, ?, ?)", values);
                }
            },
            Act::Loose => {
                let (key, value, number) = (self.loose_key(), self.anything(), self.number());
                match self.draw.below(6) {
                    0 => self.try_step(
                        "INSERT INTO loose VALUES (?2, ?1, ?3, ?3)",
                        vec![key, value, number],
                    ),
                    1 => self.try_step(
                        "INSERT INTO loose (k, tag) VALUES (?, ?) ON CONFLICT (k) DO UPDATE
                         SET tag = excluded.tag, seen = seen + 1",
                        vec![key, value],
                    ),
                    2 => {
                        self.try_step("REPLACE INTO loose (k, tag) VALUES (?, ?)", vec![key, value])
                    }
                    3 => {
                        let other = self.loose_key();
                        self.try_step(
                            "UPDATE OR REPLACE loose SET k = ? WHERE k = ?",
                            vec![other, key],
                        );
                    }
                    4 => self.step("DELETE FROM loose WHERE k = ?", vec![key]),
                    _ => self.try_step(
                        "UPDATE loose SET seen = seen + ?, weight = ? WHERE k <> ?",
                        vec![number.clone(), number, key],
                    ),
                }
            }
            Act::Scale => {
                let key = Value::Real(*self.draw.pick(&[0.0, -0.0, 1.0, 0.1, -2.5, 4e18, 1e19]));
                let part =
                    Value::Blob(self.draw.pick(&[&b""[..], b"\0", b"\0\xff", b"p"]).to_vec());
                let value = self.anything();
                match self.draw.below(4) {
                    0 => {
                        self.try_step("INSERT INTO scale VALUES (?, ?, ?)", vec![key, part, value])
                    }
                    1 => {
                        self.try_step("REPLACE INTO scale VALUES (?, ?, ?)", vec![key, part, value])
                    }
                    2 => self.try_step(
                        "UPDATE scale SET k = k * 2, v = ?2 WHERE part = ?1",
                        vec![part, value],
                    ),
                    _ => self.step("DELETE FROM scale WHERE k = ? AND part = ?", vec![key, part]),
                }
            }
            Act::Pair => {
                let (first, token) = (2 * self.draw.below(3), self.token());
                if self.draw.percent(15) {
                    self.step("DELETE FROM pair WHERE id IN (?1, ?1 + 1)", vec![int(first)]);
                } else {
                    for id in [first, first + 1] {
                        self.step(
                            "INSERT INTO pair VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET token = excluded.token",
                            vec![int(id), token.clone()],
                        );
                    }
                }
            }
            Act::Transfer => {
                let amount = self.draw.below(100);
                for (account, amount) in [
                    (self.draw.below(4), amount.cast_signed()),
                    (self.draw.below(4), -amount.cast_signed()),
                ] {
                    self.step(
                        "INSERT INTO account (id, balance) VALUES (?, ?) ON CONFLICT (id) DO UPDATE
                         SET balance = balance + excluded.balance",
                        vec![int(account), Value::Integer(amount)],
                    );
                }
            }
            Act::Ghost => {
                let other = self.id.saturating_sub(self.draw.below(30)).max(1);
                let (own, token) = (int(self.id), self.token());
                match self.draw.below(4) {
                    0 | 1 => {
                        self.step("INSERT OR IGNORE INTO ghost VALUES (?, ?)", vec![own, token]);
                    }
                    2 => self
                        .step("UPDATE ghost SET state = ? WHERE id >= ?", vec![token, int(other)]),
                    _ if other < self.id => {
                        self.step("DELETE FROM ghost WHERE id = ?", vec![int(other)]);
                        if let Some(step) = self.steps.last_mut().filter(|_| depth == 0) {
                            step.ghost = Some(other.cast_signed());
                        }
                    }
                    _ => {}
                }
            }
            Act::Savepoint if depth < 2 => {
                self.step("SAVEPOINT inner_one", vec![]);
                for _ in 0..self.draw.between(1, 3) {
                    let act = *self.draw.weighted(&self.habits.acts);
                    self.act(act, depth + 1);
                }
                if self.draw.percent(60) {
                    self.try_step("ROLLBACK TO inner_one", vec![]);
                }
                if self.draw.percent(80) {
                    self.try_step("RELEASE inner_one", vec![]);
                }
            }
            Act::Origin if self.machine == 0 || self.draw.percent(10) => self.origin_act(),
            Act::Savepoint | Act::Origin | Act::Abort => {}
        }
    }

    fn owner(&mut self) -> Value {
        Value::Text((*self.draw.pick(&["ada", "bob", "cyd"])).to_owned())
    }

    /// A key of any class. The last one is refused: it is a REAL whose key would be an INTEGER's.
    fn loose_key(&mut self) -> Value {
        match self.draw.below(9) {
            0 => Value::Integer(1),
            1 => Value::Integer(i64::MIN),
            2 => Value::Integer(self.draw.below(70_000).cast_signed() - 300),
            3 => Value::Real(1.5),
            4 => Value::Real(f64::NEG_INFINITY),
            5 => Value::Text("1".to_owned()),
            6 => Value::Blob(b"1".to_vec()),
            7 => Value::Text("\0".to_owned()),
            _ if self.draw.percent(20) => Value::Real(2.0),
            _ => Value::Integer(2),
        }
    }

    fn sku(&mut self) -> Value {
        Value::Text((*self.draw.pick(&["x", "y", "z\0z", ""])).to_owned())
    }

    fn origin_act(&mut self) {
        let (key, other) = (self.key(), self.key());
        match self.draw.below(9) {
            0 | 1 => {
                let email = Value::Text(format!("{}@example", self.draw.below(8)));
                self.try_step("INSERT INTO holder VALUES (?, ?, 1)", vec![key, email]);
            }
            2 => {
                let email = Value::Text(format!("{}@example", self.draw.below(8)));
                self.try_step(
                    "UPDATE OR REPLACE holder SET email = ? WHERE id = ?",
                    vec![email, key],
                );
            }
            3 => self.try_step("DELETE FROM holder WHERE id = ?", vec![key]),
            4 => self.try_step("UPDATE holder SET id = ? WHERE id = ?", vec![key, other]),
            5 | 6 => {
                let values = vec![int(self.id * 10 + self.draw.below(10)), self.number(), key];
                self.try_step("INSERT INTO purchase VALUES (?, ?, ?)", values);
            }
            7 => self.try_step(
                "INSERT OR IGNORE INTO refund SELECT id, id FROM purchase ORDER BY id LIMIT 1",
                vec![],
            ),
            _ => self
                .try_step("DELETE FROM purchase WHERE id = (SELECT min(id) FROM purchase)", vec![]),
        }
    }
}
