//! What jobs do to the sets of `bag`.

use rusqlite::types::Value;

use super::author::{Author, int};

impl Author<'_> {
    /// An element of a set as somebody may write it, as JSON.
    fn element(&mut self) -> String {
        const ELEMENTS: [&str; 12] = [
            "\"a\"",
            "\"a\"",
            "\"b\"",
            "\"\\u0062\"",
            "\"\"",
            "1",
            "1.0",
            "-2",
            "0.5",
            "true",
            "false",
            "\"é\\n\"",
        ];
        (*self.draw.pick(&ELEMENTS)).to_owned()
    }

    /// A set as somebody may write it.
    fn set(&mut self) -> Value {
        if self.draw.percent(5) {
            return Value::Text((*self.draw.pick(&["", "[null]", "a, b"])).to_owned());
        }
        if self.draw.percent(10) {
            return Value::Null;
        }
        let elements: Vec<String> = (0..self.draw.below(4)).map(|_| self.element()).collect();
        Value::Text(format!("[{}]", elements.join(", ")))
    }

    /// Sets in rows that come and go: whole, or an element at a time.
    pub(super) fn bag(&mut self) {
        let (key, one, other) = (int(self.draw.below(3)), self.set(), self.set());
        let element = Value::Text(self.element());
        let column = *self.draw.pick(&["tags", "marks"]);
        match self.draw.below(12) {
            0 => self.try_step(
                "INSERT INTO bag (id, tags, marks) VALUES (?, ?, coalesce(?, '[]'))",
                vec![key, one, other],
            ),
            1 => self.try_step(
                "INSERT OR REPLACE INTO bag (id, marks) VALUES (?, coalesce(?, '[]'))",
                vec![key, one],
            ),
            2 => self.try_step(
                "INSERT INTO bag (id, tags) VALUES (?, ?) ON CONFLICT (id) DO UPDATE
                         SET tags = excluded.tags, n = n + 1",
                vec![key, one],
            ),
            3..6 => self.try_step(
                &format!("UPDATE bag SET {column} = json_insert({column}, '$[#]', json(?2)) WHERE id = ?1"),
                vec![key, element],
            ),
            6..9 => self.try_step(
                &format!(
                    "UPDATE bag SET {column} =
                       (SELECT json_group_array(json({column} -> fullkey)) FROM json_each({column})
                        WHERE {column} -> fullkey <> json_array(json(?2)) -> 0)
                     WHERE id = ?1"
                ),
                vec![key, element],
            ),
            9 => self.try_step(
                "UPDATE bag SET tags = marks, marks = coalesce(tags, '[]'), label = ?2 WHERE id <> ?1",
                vec![key, one],
            ),
            10 => self.try_step(&format!("UPDATE bag SET {column} = '[]'"), vec![]),
            _ => self.step("DELETE FROM bag WHERE id = ?", vec![key]),
        }
    }
}
