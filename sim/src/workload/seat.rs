//! What clients do with the rows of `seat`, an `origin-strong` table: each row is a register.

use rusqlite::types::Value;

use super::Script;
use crate::{chance::Draw, oracle::linear::Action};

/// So many rows there are.
pub(crate) const SEATS: i64 = 2;

/// One thing that a client does with a seat.
#[derive(Clone, Debug)]
pub(crate) struct SeatCall {
    /// The row.
    pub(crate) seat: i64,
    /// What it does to the row.
    pub(crate) action: Action,
    /// The statements.
    pub(crate) script: Script,
}

impl SeatCall {
    /// Draws one; `holder` is a value that nobody else writes.
    pub(crate) fn draw(draw: &mut Draw, holder: i64) -> Self {
        let seat = draw.below(SEATS.cast_unsigned()).cast_signed();
        let find = ("SELECT (SELECT holder FROM seat WHERE id = ?)", vec![Value::Integer(seat)]);
        let take = (
            "INSERT INTO seat VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET holder = excluded.holder",
            vec![Value::Integer(seat), Value::Integer(holder)],
        );
        let (action, steps) = match draw.below(10) {
            0..3 => (Action::Get, vec![find]),
            // Through a view.
            3 | 4 => {
                let sql = "SELECT (SELECT holder FROM seated WHERE id = ?)";
                (Action::Get, vec![(sql, vec![Value::Integer(seat)])])
            }
            // In a transaction that writes what any machine may write.
            5 => {
                let note = "INSERT INTO badge VALUES (littoral_id(), ?)";
                (Action::Get, vec![find, (note, vec![Value::Text(format!("seat {seat}"))])])
            }
            6 | 7 => (Action::Put(holder), vec![take]),
            8 => (Action::Swap(holder), vec![find, take]),
            _ => {
                let leave = "DELETE FROM seat WHERE id = ?";
                (Action::Clear, vec![(leave, vec![Value::Integer(seat)])])
            }
        };
        let steps = steps.into_iter().map(|(sql, values)| (sql.to_owned(), values));
        Self { seat, action, script: Script::of(steps.collect()) }
    }
}

/// Reads of a table that bounds how old its rows may be, also through another one's.
pub(crate) const BOUNDED_READS: [&str; 2] = [
    "SELECT count(*) FROM gauge",
    "SELECT item.id FROM item JOIN gauge USING (id) WHERE item.name IS NOT NULL",
];
