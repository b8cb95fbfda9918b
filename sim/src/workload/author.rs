//! [`Author`]: writes the steps of one job, act by act.
//!
//! Acts collide on purpose: few keys, and every way in which SQLite can change a row or fail to.

use rusqlite::types::Value;

use super::{Act, Habits, JobId, Step};
use crate::chance::Draw;

/// Writes the steps of one job.
pub(super) struct Author<'a> {
    pub(super) draw: &'a mut Draw,
    pub(super) habits: &'a Habits,
    pub(super) id: JobId,
    pub(super) machine: usize,
    pub(super) steps: Vec<Step>,
}

pub(super) fn int(n: u64) -> Value {
    Value::Integer(n.cast_signed())
}

impl Author<'_> {
    pub(super) fn step(&mut self, sql: &str, values: Vec<Value>) {
        self.steps.push(Step { sql: sql.to_owned(), values, tolerant: false, ghost: None });
    }

    /// A step that may fail; the job often goes on after it.
    pub(super) fn try_step(&mut self, sql: &str, values: Vec<Value>) {
        let tolerant = self.draw.percent(85);
        self.steps.push(Step { sql: sql.to_owned(), values, tolerant, ghost: None });
    }

    pub(super) fn key(&mut self) -> Value {
        int(self.draw.below(self.habits.keys))
    }

    /// A value that nobody else writes.
    pub(super) fn token(&mut self) -> Value {
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

    pub(super) fn number(&mut self) -> Value {
        Value::Integer(self.draw.below(41).cast_signed() - 20)
    }

    pub(super) fn ledger(&mut self) {
        let (tally, amount) = (int(self.draw.below(3)), self.number());
        let id = int(self.id);
        self.step(
            "INSERT INTO ledger (id, tally, amount) VALUES (?, ?, ?)",
            vec![id, tally.clone(), amount.clone()],
        );
        self.step(
            "INSERT INTO tally (id, total) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET total = total + excluded.total",
            vec![tally, amount],
        );
    }

    pub(super) fn act(&mut self, act: Act, depth: u32) {
        match act {
            Act::Insert => self.insert(),
            Act::InsertMany => self.insert_many(),
            Act::InsertCrowd => self.insert_crowd(),
            Act::Update => self.update(),
            Act::UpdateSeveral => self.update_several(),
            Act::Count => self.count(),
            Act::Delete => self.delete(),
            Act::DeleteSeveral => self.delete_several(),
            Act::DeleteAndInsert => self.delete_and_insert(),
            Act::Replace => self.replace(),
            Act::Upsert => self.upsert(),
            Act::Rekey => self.rekey(),
            Act::NothingAfterAll => self.nothing_after_all(),
            Act::BreakRule => self.break_rule(),
            Act::CartAdd => self.cart_add(),
            Act::CartChange => self.cart_change(),
            Act::Handle => self.handle(),
            Act::Loose => self.loose(),
            Act::Scale => self.scale(),
            Act::Memo => self.memo(),
            Act::Pair => self.pair(),
            Act::Transfer => self.transfer(),
            Act::Ghost => self.ghost(depth),
            Act::Gauge => self.gauge(),
            Act::Stall => self.stall(),
            Act::Bag => self.bag(),
            Act::Savepoint if depth < 2 => self.savepoint(depth),
            Act::Origin if self.machine == 0 || self.draw.percent(10) => self.origin_act(),
            Act::Savepoint | Act::Origin | Act::Abort => {}
        }
    }

    fn owner(&mut self) -> Value {
        Value::Text((*self.draw.pick(&["ada", "bob", "cyd"])).to_owned())
    }

    /// A key of any class. Some are one key and differ all the same.
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
            _ if self.draw.percent(40) => Value::Real(2.0),
            _ => Value::Integer(2),
        }
    }

    fn sku(&mut self) -> Value {
        Value::Text((*self.draw.pick(&["x", "y", "z\0z", ""])).to_owned())
    }

    fn origin_act(&mut self) {
        let (key, other) = (self.key(), self.key());
        match self.draw.below(22) {
            9..12 => return self.jotting(),
            12..18 => return self.ticket(),
            18..22 => return self.ware(),
            _ => {}
        }
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

    /// A full row, which may exist.
    fn insert(&mut self) {
        let values = vec![
            self.key(),
            self.token(),
            self.anything(),
            self.number(),
            self.number(),
            self.number(),
        ];
        self.try_step(
            "INSERT INTO item (id, name, note, price, stock, sold) VALUES (?, ?, ?, ?, ?, ?)",
            values,
        );
    }

    /// Several rows at once, which may fail in the middle.
    fn insert_many(&mut self) {
        let clause = *self.draw.pick(&[
            "",
            "",
            "OR FAIL",
            "OR IGNORE",
            "OR ABORT",
            "OR REPLACE",
            "OR ROLLBACK",
        ]);
        let values =
            vec![self.key(), self.token(), self.key(), self.token(), self.key(), self.token()];
        let sql = format!("INSERT {clause} INTO item (id, name) VALUES (?, ?), (?, ?), (?, ?)");
        self.try_step(&sql, values);
    }

    /// Many rows of one shape.
    fn insert_crowd(&mut self) {
        let values = vec![int(self.draw.spread(5, 120)), self.token()];
        self.try_step(
            "INSERT OR REPLACE INTO item (id, name)
                     WITH RECURSIVE crowd (n) AS
                       (SELECT 1 UNION ALL SELECT n + 1 FROM crowd WHERE n < ?1)
                     SELECT 1000 + n, ?2 FROM crowd",
            values,
        );
    }

    /// One cell.
    fn update(&mut self) {
        let (token, key) = (self.token(), self.key());
        let sql = match self.draw.below(3) {
            0 => "UPDATE item SET name = ? WHERE id = ?",
            1 => "UPDATE item SET note = ? WHERE id = ?",
            _ => "UPDATE echo SET name = ? WHERE id = ?",
        };
        self.try_step(sql, vec![token, key]);
    }

    /// Several cells of several rows.
    fn update_several(&mut self) {
        let values = vec![self.anything(), self.number(), self.number(), self.number()];
        self.try_step(
            "UPDATE item SET note = ?, stock = stock + ?, price = ? WHERE id % 3 <> abs(?) % 3",
            values,
        );
    }

    /// Counters, by increments and by absolute values.
    fn count(&mut self) {
        let sql = match self.draw.below(3) {
            0 => "UPDATE item SET stock = ? WHERE id = ?",
            1 => "UPDATE item SET sold = sold - ? WHERE id = ?",
            _ => "UPDATE item SET stock = stock + ?1, sold = sold - ?1 WHERE id = ?2",
        };
        let values = vec![self.number(), self.key()];
        self.try_step(sql, values);
    }

    /// One row.
    fn delete(&mut self) {
        let key = self.key();
        let sql = *self.draw.pick(&[
            "DELETE FROM item WHERE id = ?",
            "DELETE FROM item WHERE id = ?",
            "DELETE FROM echo WHERE id = ?",
        ]);
        self.step(sql, vec![key]);
    }

    /// Many rows, or all of them.
    fn delete_several(&mut self) {
        match self.draw.below(3) {
            0 => self.step("DELETE FROM item", vec![]),
            1 => {
                let key = self.key();
                self.step("DELETE FROM item WHERE id <= ?", vec![key]);
            }
            _ => self.step("DELETE FROM cart", vec![]),
        }
    }

    /// A row that goes and comes within the job.
    fn delete_and_insert(&mut self) {
        let (key, token, number) = (self.key(), self.token(), self.number());
        self.step("DELETE FROM item WHERE id = ?", vec![key.clone()]);
        self.step("INSERT INTO item (id, name, stock) VALUES (?, ?, ?)", vec![key, token, number]);
    }

    /// A row whose old self is deleted unseen.
    fn replace(&mut self) {
        let values = vec![self.key(), self.token(), self.number()];
        self.try_step("INSERT OR REPLACE INTO item (id, name, sold) VALUES (?, ?, ?)", values);
    }

    /// A row that is inserted or changed.
    fn upsert(&mut self) {
        let values = vec![self.key(), self.token(), self.number()];
        self.try_step(
            "INSERT INTO item (id, name, stock) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE
                     SET stock = stock + excluded.stock, name = excluded.name",
            values,
        );
    }

    /// Keys that change, and may be taken.
    fn rekey(&mut self) {
        match self.draw.below(3) {
            0 => {
                let values = vec![self.key(), self.key()];
                let clause = *self.draw.pick(&["", "", "OR REPLACE", "OR IGNORE", "OR ROLLBACK"]);
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
        }
    }

    /// Statements that change nothing in the end.
    fn nothing_after_all(&mut self) {
        match self.draw.below(3) {
            0 => {
                let key = self.key();
                self.try_step("UPDATE item SET name = name, stock = stock WHERE id = ?", vec![key]);
            }
            1 => {
                let (key, token) = (int(1_000_000 + self.id), self.token());
                self.step("INSERT INTO item (id, name) VALUES (?, ?)", vec![key.clone(), token]);
                self.step("DELETE FROM item WHERE id = ?", vec![key]);
            }
            _ => {
                let (key, number) = (self.key(), self.number());
                let values = vec![number, key];
                self.try_step("UPDATE item SET stock = stock + ? WHERE id = ?", values.clone());
                self.try_step("UPDATE item SET stock = stock - ? WHERE id = ?", values);
            }
        }
    }

    /// Statements that must fail.
    fn break_rule(&mut self) {
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

    /// A counter under a composite key.
    fn cart_add(&mut self) {
        let values = vec![self.owner(), self.sku(), self.number()];
        self.try_step(
            "INSERT INTO cart (owner, sku, quantity) VALUES (?, ?, ?) ON CONFLICT DO UPDATE
                     SET quantity = quantity + excluded.quantity",
            values,
        );
    }

    /// Rows under a composite key.
    fn cart_change(&mut self) {
        match self.draw.below(4) {
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
                        "INSERT OR REPLACE INTO cart (owner, sku, quantity, label) SELECT owner, ?, quantity, label FROM cart WHERE sku = ?",
                        values,
                    );
            }
            _ => {
                let values = vec![self.owner(), self.sku(), self.token()];
                self.try_step("INSERT INTO cart (owner, sku, label) VALUES (?, ?, ?)", values);
            }
        }
    }

    /// A name as somebody may spell it.
    fn name(&mut self) -> Value {
        let name =
            *self.draw.pick(&["ada", "Ada", "ADA", "bob", "BoB", "z\0Q", "Z\0r", "", "é", "É"]);
        Value::Text(name.to_owned())
    }

    /// Rows whose keys are spelled in several ways.
    fn handle(&mut self) {
        let (name, other, mail) = (self.name(), self.name(), self.token());
        match self.draw.below(7) {
            0 | 1 => self.try_step(
                "INSERT INTO handle VALUES (?, ?, 1) ON CONFLICT DO UPDATE
                         SET name = excluded.name, hits = hits + 1",
                vec![name, mail],
            ),
            2 => self.try_step("UPDATE handle SET name = ?1 WHERE name = ?1", vec![name]),
            3 => self.try_step(
                "UPDATE OR REPLACE handle SET name = ?, mail = ? WHERE name = ?",
                vec![name, mail, other],
            ),
            4 => self.try_step("REPLACE INTO handle (name, mail) VALUES (?, ?)", vec![name, mail]),
            5 => self.step("DELETE FROM handle WHERE name = ?", vec![name]),
            _ => self.try_step("UPDATE handle SET name = upper(name), hits = hits + 1", vec![]),
        }
    }

    /// Rows without a key of their own.
    fn jotting(&mut self) {
        let (line, at, key) = (self.sku(), self.number(), self.key());
        match self.draw.below(7) {
            0 | 1 => self.try_step("INSERT INTO jotting VALUES (?, ?)", vec![line, at]),
            2 => self.try_step("INSERT INTO jotting (at) VALUES (?1), (?1)", vec![at]),
            3 => {
                self.try_step(
                    "UPDATE OR REPLACE jotting SET line = ? WHERE at = ?",
                    vec![line, at],
                );
            }
            4 => self.try_step("UPDATE jotting SET rowid = ? WHERE at > ?", vec![key, at]),
            5 => self.step("DELETE FROM jotting WHERE at = ? OR rowid = ?", vec![at, key]),
            _ => self.try_step("REPLACE INTO jotting (rowid, line) VALUES (?, ?)", vec![key, line]),
        }
    }

    /// A child whose parent is missing, or the parent that the job before may have missed.
    pub(super) fn refund(&mut self) {
        let (own, before, key, number) =
            (int(self.id), int(self.id.saturating_sub(1)), self.key(), self.number());
        match self.draw.below(6) {
            0 | 1 => self.step("INSERT INTO refund VALUES (?1, ?1)", vec![own]),
            2 | 3 => self.try_step(
                "INSERT INTO purchase SELECT ?, ?, id FROM holder ORDER BY id LIMIT 1",
                vec![before, number],
            ),
            4 => self.step("DELETE FROM refund WHERE id % 5 = ?", vec![key]),
            _ => self.step("DELETE FROM purchase WHERE id % 5 = ?", vec![key]),
        }
    }

    /// Rows that a full-text index on every machine must follow.
    fn memo(&mut self) {
        let (key, other, line, body) = (self.key(), self.key(), self.token(), self.anything());
        match self.draw.below(10) {
            0..3 => self.try_step(
                "INSERT INTO memo (id, line, body) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE
                         SET line = excluded.line, n = n + 1",
                vec![key, line, body],
            ),
            3 => self.try_step("UPDATE memo SET line = ? WHERE id = ?", vec![line, key]),
            4 => {
                self.try_step("UPDATE memo SET body = ?, n = n + 1 WHERE id <> ?", vec![body, key]);
            }
            5 => self.step("DELETE FROM memo WHERE id = ?", vec![key]),
            6 => self.try_step("UPDATE memo SET id = ? WHERE id = ?", vec![key, other]),
            7 => self
                .try_step("INSERT INTO memo (id, line) VALUES (?1, ?2), (?1, ?2)", vec![key, line]),
            8 => self.step("DELETE FROM memo", vec![]),
            _ => self.try_step("REPLACE INTO memo (id, line) VALUES (?, ?)", vec![key, line]),
        }
    }

    /// Rows whose keys are handed out once. What was handed out stands in `stub`, so that a key given
    /// twice fails.
    fn ticket(&mut self) {
        let what = self.token();
        match self.draw.below(5) {
            0 | 1 => self.step("INSERT INTO ticket (what) VALUES (?)", vec![what]),
            2 => self.step("DELETE FROM ticket WHERE id = (SELECT max(id) FROM ticket)", vec![]),
            3 => {
                self.step("INSERT INTO ticket (what) VALUES (?1), (?1 || 'x')", vec![what]);
                self.step("DELETE FROM ticket", vec![]);
            }
            _ => self.try_step(
                "INSERT OR FAIL INTO ticket (what) VALUES (?1 || 'y'), (?1), (?1)",
                vec![what],
            ),
        }
    }

    /// Rows whose keys are of any class.
    fn loose(&mut self) {
        let (key, value, number) = (self.loose_key(), self.anything(), self.number());
        match self.draw.below(6) {
            0 => {
                self.try_step(
                    "INSERT INTO loose VALUES (?2, ?1, ?3, ?3)",
                    vec![key, value, number],
                );
            }
            1 => self.try_step(
                "INSERT INTO loose (k, tag) VALUES (?, ?) ON CONFLICT (k) DO UPDATE
                         SET tag = excluded.tag, seen = seen + 1",
                vec![key, value],
            ),
            2 => self.try_step("REPLACE INTO loose (k, tag) VALUES (?, ?)", vec![key, value]),
            3 => {
                let other = self.loose_key();
                self.try_step("UPDATE OR REPLACE loose SET k = ? WHERE k = ?", vec![other, key]);
            }
            4 => self.step("DELETE FROM loose WHERE k = ?", vec![key]),
            _ => self.try_step(
                "UPDATE loose SET seen = seen + ?, weight = ? WHERE k <> ?",
                vec![number.clone(), number, key],
            ),
        }
    }

    /// Rows whose keys are real numbers and blobs.
    fn scale(&mut self) {
        let key = Value::Real(*self.draw.pick(&[0.0, -0.0, 1.0, 0.1, -2.5, 4e18, 1e19]));
        let part = Value::Blob(self.draw.pick(&[&b""[..], b"\0", b"\0\xff", b"p"]).to_vec());
        let value = self.anything();
        match self.draw.below(4) {
            0 => self.try_step("INSERT INTO scale VALUES (?, ?, ?)", vec![key, part, value]),
            1 => self.try_step("REPLACE INTO scale VALUES (?, ?, ?)", vec![key, part, value]),
            2 => self
                .try_step("UPDATE scale SET k = k * 2, v = ?2 WHERE part = ?1", vec![part, value]),
            _ => self.step("DELETE FROM scale WHERE k = ? AND part = ?", vec![key, part]),
        }
    }

    /// Two rows that always go together.
    fn pair(&mut self) {
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

    /// Money from one account to another.
    fn transfer(&mut self) {
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

    /// Columns of every type but `lww`, in rows that come and go.
    fn gauge(&mut self) {
        let (key, one, other) = (int(self.draw.below(4)), self.anything(), self.anything());
        let number = self.number();
        let token = self.token();
        self.step("INSERT INTO badge VALUES (littoral_id(), ?)", vec![token]);
        match self.draw.below(10) {
            0 => self.try_step(
                "INSERT INTO gauge (id, high, low, peak, turns) VALUES (?1, ?2, ?3, ?4, ?4)",
                vec![key, one, other, number],
            ),
            1 => self.try_step(
                "INSERT OR REPLACE INTO gauge (id, high, low, town) VALUES (?, ?, ?, ?)",
                vec![key, number, one, other],
            ),
            2 => self.try_step(
                "UPDATE gauge SET high = ?2, low = ?3, peak = ?4 WHERE id <> ?1",
                vec![key, one, other, number],
            ),
            3 => {
                let note = self.place();
                self.try_step(
                    "UPDATE gauge SET high = ?2, peak = peak + ?2, note = ?3 WHERE id = ?1",
                    vec![key, number, note],
                );
            }
            4 => self.try_step("UPDATE gauge SET low = high, high = low", vec![]),
            5 => {
                let token = self.place();
                self.try_step(
                    "UPDATE gauge SET street = ?2, town = ?2 WHERE id = ?1",
                    vec![key, token],
                );
            }
            6 => {
                let (column, token) = (*self.draw.pick(&["street", "town", "note"]), self.place());
                self.try_step(
                    &format!("UPDATE gauge SET {column} = ?2, low = ?3 WHERE id = ?1"),
                    vec![key, token, one],
                );
            }
            7 => {
                let far = *self.draw.pick(&[i64::MAX, i64::MAX - 9, i64::MIN, i64::MIN + 9, 0]);
                self.try_step(
                    "UPDATE gauge SET turns = ?2 WHERE id = ?1",
                    vec![key, Value::Integer(far)],
                );
            }
            // Refused where the sum is a REAL already at its author.
            8 => self
                .try_step("UPDATE gauge SET turns = turns + ?2 WHERE id = ?1", vec![key, number]),
            _ => self.try_step("DELETE FROM gauge WHERE id = ?", vec![key]),
        }
    }

    /// One of few, so that two columns come to hold the same.
    fn place(&mut self) -> Value {
        Value::Text((*self.draw.pick(&["here", "there"])).to_owned())
    }

    /// A row that only one job ever inserts.
    fn ghost(&mut self, depth: u32) {
        let other = self.id.saturating_sub(self.draw.below(30)).max(1);
        let (own, token) = (int(self.id), self.token());
        match self.draw.below(4) {
            0 | 1 => {
                self.step("INSERT OR IGNORE INTO ghost VALUES (?, ?)", vec![own, token]);
            }
            2 => self.step("UPDATE ghost SET state = ? WHERE id >= ?", vec![token, int(other)]),
            _ if other < self.id => {
                self.step("DELETE FROM ghost WHERE id = ?", vec![int(other)]);
                if let Some(step) = self.steps.last_mut().filter(|_| depth == 0) {
                    step.ghost = Some(other.cast_signed());
                }
            }
            _ => {}
        }
    }

    /// Other acts, taken back or kept.
    fn savepoint(&mut self, depth: u32) {
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
}
