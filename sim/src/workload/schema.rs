//! Changes of the schema that the origin makes while everybody writes.
//!
//! Most are made of few names, so that they collide with each other and with what clients write: many
//! fail because a column is there already, or is not. Which ones succeed is a function of the seed all
//! the same.
//!
//! Tables that change much are `stall`, `plot`, `ware` and `extra0` to `extra2`; the others keep what the
//! promises in [`workload`](super) need.

use littoral::{Now, Replica, Ticket};
use rusqlite::types::Value;

use super::{PlannedJob, Step, Talk, author::Author};
use crate::{
    chance::{Chance, Draw, Stream},
    clock::{MS, Nanos, SECOND},
};

/// How a job is given to a replica.
#[derive(Clone, Debug)]
pub(crate) enum Errand {
    /// As a write job.
    Write,
    /// In an interactive transaction.
    Talk {
        /// Its client goes away before the end.
        goes_away: bool,
    },
    /// As the script of a migration.
    Migrate(String),
    /// It gives up a change that waits for other machines.
    GiveUp,
}

/// When the origin changes the schema, or tries to.
pub(crate) fn times(chance: &Chance, chaos: Nanos) -> Vec<Nanos> {
    let mut habit = chance.draw(Stream::Schema, 0, 0);
    if habit.percent(25) {
        return Vec::new();
    }
    let gap = habit.spread(300 * MS, 4 * SECOND);
    let mut times = Vec::new();
    let mut at = 50 * MS;
    for index in 0.. {
        at += chance.draw(Stream::Schema, 1, index).between(1, 2 * gap);
        if at >= chaos {
            break;
        }
        times.push(at);
    }
    times
}

impl PlannedJob {
    /// The change of a number.
    pub(crate) fn change(chance: &Chance, number: u64) -> Self {
        // A seed with many freezes has few other changes, since only one waits at a time.
        let freezes = *chance.draw(Stream::Schema, 2, 0).pick(&[0, 15, 50]);
        let mut draw = chance.draw(Stream::Schema, 3, number);
        if draw.percent(freezes) {
            if draw.percent(20) {
                return Self::errand(Errand::GiveUp, Vec::new());
            }
            let mut script = freezing(&mut draw);
            if draw.percent(15) {
                script.extend(freezing(&mut draw));
            }
            return Self::migration(script);
        }
        let mut statements = at_once(&mut draw, number);
        if draw.percent(20) {
            statements.extend(at_once(&mut draw, number));
        }
        // Rebuilds need foreign keys off.
        if draw.percent(30) || statements.iter().any(|sql| sql.starts_with("DROP TABLE")) {
            return Self::migration(statements);
        }
        let step = |sql| Step { sql, values: Vec::<Value>::new(), tolerant: false, ghost: None };
        Self::errand(Errand::Write, statements.into_iter().map(step).collect())
    }

    fn migration(statements: Vec<String>) -> Self {
        Self::errand(Errand::Migrate(statements.join(";\n")), Vec::new())
    }

    pub(super) fn errand(errand: Errand, steps: Vec<Step>) -> Self {
        Self { errand, steps, aborts: false, in_ledger: false, effects: Default::default() }
    }

    /// Gives the job to a replica; its statements follow if it is an interactive transaction.
    pub(crate) fn queue(self, replica: &mut Replica, now: Now) -> (Ticket, Option<Talk>) {
        let ticket = match &self.errand {
            Errand::Write => replica.write(now, self.into_job()),
            Errand::Talk { goes_away } => {
                let goes_away = *goes_away;
                return (replica.begin(now), Some(Talk::of(self, goes_away)));
            }
            Errand::Migrate(script) => replica.migrate(now, script),
            Errand::GiveUp => replica.abort_schema_change(now),
        };
        (ticket, None)
    }
}

impl Author<'_> {
    /// Tables that change: what is named here may be there or not.
    pub(super) fn stall(&mut self) {
        let (key, other, token, number) = (self.key(), self.key(), self.token(), self.number());
        let k = self.draw.below(3);
        let table = *self.draw.pick(&["stall", "stall", "plot", "extra0", "extra1", "extra2"]);
        let names: &[&str] = match table {
            "stall" => &["label", "sign", "rank"],
            "plot" => &["crop", "herb"],
            _ => &["v"],
        };
        let name = *self.draw.pick(names);
        let count = match table {
            "stall" => "amount",
            "plot" => "seeds",
            _ => "n",
        };
        match self.draw.below(10) {
            0..3 => self.try_step(
                &format!(
                    "INSERT INTO {table} (id, {name}, {count}) VALUES (?, ?, ?) ON CONFLICT (id) DO \
                     UPDATE SET {name} = excluded.{name}, {count} = {count} + 1"
                ),
                vec![key, if name == "rank" { number.clone() } else { token }, number],
            ),
            3 => self.try_step(
                &format!("UPDATE {table} SET {name} = ?, {count} = {count} + ? WHERE id <> ?"),
                vec![if name == "rank" { number.clone() } else { token }, number, key],
            ),
            4 => self.try_step(
                "UPDATE stall SET rank = rank + ?, amount = amount - 1 WHERE id = ?",
                vec![number, key],
            ),
            5 => self.try_step(
                &format!("UPDATE {table} SET c{k} = ? WHERE id IN (?, ?)"),
                vec![token, key, other],
            ),
            6 => self.try_step(
                &format!("UPDATE {table} SET k{k} = k{k} + ?, {name} = {name} WHERE id = ?"),
                vec![number, key],
            ),
            7 => self.try_step(
                &format!("INSERT OR REPLACE INTO {table} (id, {count}) VALUES (?, ?)"),
                vec![key, number],
            ),
            8 => self.try_step(
                &format!("UPDATE stall SET m{k} = max(m{k}, ?), label = 'm' WHERE id = ?"),
                vec![number, key],
            ),
            _ => self.try_step(&format!("DELETE FROM {table} WHERE id = ?"), vec![key]),
        }
    }

    /// A table that only the origin writes, and changes at any time.
    pub(super) fn ware(&mut self) {
        let (key, token, number) = (self.key(), self.token(), self.number());
        let k = self.draw.below(3);
        match self.draw.below(5) {
            0 | 1 => self.try_step(
                "INSERT INTO ware (id, title, weight) VALUES (?, ?, ?)",
                vec![key, token, number],
            ),
            2 => self
                .try_step("INSERT OR REPLACE INTO ware (id, title) VALUES (?, 'one')", vec![key]),
            3 => {
                self.try_step(&format!("UPDATE ware SET c{k} = ? WHERE id <= ?"), vec![token, key]);
            }
            _ => self.try_step("DELETE FROM ware WHERE id = ?", vec![key]),
        }
    }
}

/// Declares a table anew: as it is, but for what is said of some columns.
fn declare(table: &str, consistency: &str, columns: &[(&str, &str)]) -> String {
    let said: String = columns
        .iter()
        .filter(|(_, merge)| *merge != "lww")
        .map(|(name, merge)| format!(" UNION ALL SELECT '{name}', '{merge}'"))
        .collect();
    let names: Vec<String> = columns.iter().map(|(name, _)| format!("'{name}'")).collect();
    format!(
        "SELECT littoral_policy('{table}', '{consistency}', (SELECT json_object('writers', 'any', \
         'key', 'explicit', 'columns', json_group_object(name, type)) FROM (SELECT c.name, c.type \
         FROM littoral_columns c JOIN littoral_tables t ON t.id = c.table_id WHERE t.name = '{table}' \
         AND c.type <> 'lww' AND c.name NOT IN ({}){said})))",
        names.join(", ")
    )
}

fn consistency(draw: &mut Draw) -> &'static str {
    if draw.percent(50) { "eventual" } else { "read-after-write" }
}

/// What other machines need not have heard of.
fn at_once(draw: &mut Draw, number: u64) -> Vec<String> {
    let k = draw.below(3);
    match draw.below(16) {
        0..4 => {
            let table = *draw
                .pick(&["stall", "stall", "plot", "ware", "item", "cart", "account", "ledger"]);
            let form = *draw.pick(&[
                "TEXT DEFAULT 'plain'",
                "INTEGER DEFAULT 7",
                "",
                "BLOB NOT NULL DEFAULT x'00ff'",
                "REAL DEFAULT -1.5",
                "TEXT NOT NULL DEFAULT 12",
            ]);
            let mut statements = vec![format!("ALTER TABLE {table} ADD COLUMN c{k} {form}")];
            if draw.percent(40) {
                statements.push(format!("UPDATE {table} SET c{k} = 'new{number}' WHERE rowid % 2"));
            }
            statements.retain(|sql| table != "cart" || !sql.contains("rowid"));
            statements
        }
        4 | 5 => {
            let table = *draw.pick(&["stall", "plot", "account"]);
            let column = format!("k{k}");
            vec![
                format!("ALTER TABLE {table} ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0"),
                declare(table, consistency(draw), &[(&column, "counter")]),
                format!("UPDATE {table} SET {column} = {column} + {number} WHERE id < 2"),
            ]
        }
        6 | 7 => {
            let create = format!(
                "CREATE TABLE extra{k} (id INTEGER PRIMARY KEY, v, n INTEGER NOT NULL DEFAULT 0)"
            );
            let insert =
                format!("INSERT INTO extra{k} (id, v, n) VALUES (0, 'first', 1), (7, {number}, 2)");
            let policy = declare(&format!("extra{k}"), consistency(draw), &[("n", "counter")]);
            match draw.below(4) {
                // Its rows are older than its policy.
                0 => vec![create, insert, policy],
                1 => vec![create, insert],
                _ => vec![create, policy, insert],
            }
        }
        8 => {
            let create = "CREATE TABLE stall (id INTEGER PRIMARY KEY, label TEXT, \
                          amount INTEGER NOT NULL DEFAULT 0, rank INTEGER NOT NULL DEFAULT 0)";
            vec![create.to_owned(), declare("stall", consistency(draw), &[("amount", "counter")])]
        }
        9 => {
            let table = *draw.pick(&["plot", "extra0", "extra1", "extra2"]);
            let columns: &[(&str, &str)] =
                if table == "plot" { &[("seeds", "counter")] } else { &[] };
            vec![
                format!("DROP INDEX IF EXISTS {table}_once"),
                declare(table, consistency(draw), columns),
            ]
        }
        10 | 11 => {
            let (index, on) = *draw.pick(&[
                ("stall_by", "stall (label, rank)"),
                ("item_by_note", "item (note)"),
                ("ledger_by", "ledger (tally)"),
                ("ware_by", "ware (weight)"),
            ]);
            match draw.below(3) {
                0 => vec![format!("DROP INDEX {index}")],
                _ => vec![format!("CREATE INDEX {index} ON {on}")],
            }
        }
        12 => {
            let (kind, name, form) = *draw.pick(&[
                ("VIEW", "stalls", "AS SELECT id, label FROM stall"),
                (
                    "TRIGGER",
                    "stall_guard",
                    "BEFORE INSERT ON stall WHEN new.label = 'forbidden' BEGIN SELECT raise(ABORT, 'forbidden'); END",
                ),
                (
                    "TRIGGER",
                    "stall_echo",
                    "AFTER UPDATE OF label ON stall BEGIN INSERT INTO echo VALUES (new.id, new.label) \
                     ON CONFLICT (id) DO UPDATE SET name = new.name; END",
                ),
            ]);
            match draw.below(2) {
                0 => vec![format!("DROP {kind} IF EXISTS {name}")],
                _ => vec![format!("CREATE {kind} {name} {form}")],
            }
        }
        13 => {
            let (table, one, other) = *draw.pick(&[
                ("ware", "title", "name"),
                ("stall", "label", "sign"),
                ("plot", "crop", "herb"),
            ]);
            let (from, to) = if draw.percent(50) { (one, other) } else { (other, one) };
            vec![format!("ALTER TABLE {table} RENAME COLUMN {from} TO {to}")]
        }
        _ => origin_written(draw, k, number),
    }
}

/// Changes of a table that only the origin writes.
fn origin_written(draw: &mut Draw, k: u64, number: u64) -> Vec<String> {
    match draw.below(5) {
        0 => vec![format!("ALTER TABLE ware DROP COLUMN c{k}")],
        1 => {
            vec![format!(
                "ALTER TABLE ware ADD COLUMN c{k} TEXT CHECK (c{k} <> 'bad') DEFAULT 'w{number}'"
            )]
        }
        2 => vec![
            format!(
                "CREATE TABLE new_ware (id INTEGER PRIMARY KEY, title TEXT UNIQUE, weight REAL DEFAULT {number})"
            ),
            "INSERT INTO new_ware (id, title, weight) SELECT id, title, weight FROM ware"
                .to_owned(),
            "DROP TABLE ware".to_owned(),
            "ALTER TABLE new_ware RENAME TO ware".to_owned(),
        ],
        // By name, through a temporary table.
        3 => vec![
            "CREATE TEMPORARY TABLE kept AS SELECT id, title, weight FROM ware".to_owned(),
            "DROP TABLE ware".to_owned(),
            "CREATE TABLE ware (id INTEGER PRIMARY KEY, title TEXT UNIQUE, weight REAL DEFAULT 1)"
                .to_owned(),
            "INSERT INTO ware (id, title, weight) SELECT id, title, weight FROM kept".to_owned(),
            "DROP TABLE kept".to_owned(),
        ],
        _ => vec![
            "ALTER TABLE ware RENAME TO goods".to_owned(),
            format!("INSERT OR REPLACE INTO goods (id, title) VALUES ({k}, 'moved{number}')"),
            "ALTER TABLE goods RENAME TO ware".to_owned(),
        ],
    }
}

/// What must not meet writes under way.
fn freezing(draw: &mut Draw) -> Vec<String> {
    let k = draw.below(3);
    match draw.below(11) {
        0..2 => {
            let merge = *draw.pick(&["lww", "counter", "counter"]);
            vec![declare("stall", consistency(draw), &[("rank", merge)])]
        }
        2 => {
            let table = *draw.pick(&["stall", "plot", "item", "account"]);
            vec![format!("ALTER TABLE {table} DROP COLUMN {}{k}", draw.pick(&["c", "k"]))]
        }
        3 => {
            let label = *draw.pick(&["sign", "none", "here"]);
            rebuild(
                "stall",
                &format!(
                    "id INTEGER PRIMARY KEY, label TEXT DEFAULT '{label}' CHECK (length(label) < 60), \
                     amount INTEGER NOT NULL DEFAULT {k}, rank INTEGER NOT NULL DEFAULT 0"
                ),
                "id, label, amount, rank",
            )
        }
        4 => vec![format!("DROP TABLE {}", draw.pick(&["stall", "extra0", "extra1", "extra2"]))],
        5 | 6 => match draw.below(4) {
            0 => rebuild(
                "account",
                "id INTEGER PRIMARY KEY, balance INTEGER NOT NULL DEFAULT 0, memo TEXT",
                "id, balance, memo",
            ),
            1 => rebuild(
                "ledger",
                "id INTEGER PRIMARY KEY, tally INTEGER NOT NULL, amount INTEGER NOT NULL",
                "id, tally, amount",
            ),
            2 => rebuild("pair", "id INTEGER PRIMARY KEY, token TEXT NOT NULL", "id, token"),
            _ => rebuild("ghost", "id INTEGER PRIMARY KEY, state TEXT", "id, state"),
        },
        7 | 8 => {
            let table = *draw.pick(&["plot", "extra0", "extra1"]);
            let mut script =
                vec![format!("SELECT littoral_policy('{table}', '{}')", consistency(draw))];
            // What somebody writes until the freeze has arrived may break it.
            if draw.percent(40) {
                let column = if table == "plot" { "seeds" } else { "v" };
                script.push(format!("CREATE UNIQUE INDEX {table}_once ON {table} ({column})"));
            }
            script
        }
        9 => vec![format!(
            "ALTER TABLE stall ADD COLUMN c{k} TEXT CHECK (c{k} IS NULL OR length(c{k}) < 50)"
        )],
        _ => vec![
            format!("ALTER TABLE stall ADD COLUMN m{k} INTEGER DEFAULT {k}"),
            declare("stall", consistency(draw), &[(&format!("m{k}"), "max")]),
            format!("UPDATE stall SET m{k} = id"),
        ],
    }
}

fn rebuild(table: &str, columns: &str, names: &str) -> Vec<String> {
    vec![
        format!("CREATE TABLE new_{table} ({columns})"),
        format!("INSERT INTO new_{table} ({names}) SELECT {names} FROM {table}"),
        format!("DROP TABLE {table}"),
        format!("ALTER TABLE new_{table} RENAME TO {table}"),
    ]
}
