//! [`Seats`]: what clients did with the rows of an `origin-strong` table, from every machine, and whether one
//! order explains it.
//!
//! A power cut may take from an origin that is not `synchronous = FULL` what was answered and read there.
//! Then a new history begins with what its file holds; what had no answer yet may have taken effect in the
//! old one, or take effect in the new one.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension};

use super::{
    Check, Promise, broken,
    linear::{Action, Operation, check_linearizable},
    sights::has_schema,
    unreadable,
};
use crate::workload::SEATS;

/// Names an operation; it is the value that the operation writes, if it writes one.
pub(crate) type OperationNumber = i64;

#[derive(Debug)]
struct Record {
    seat: i64,
    operation: Operation,
    /// It was called in an earlier history and answered in none.
    carried: bool,
}

/// Every operation on a seat.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    moments: u64,
    next: OperationNumber,
    records: BTreeMap<OperationNumber, Record>,
    /// What the rows held as the present history began.
    initial: BTreeMap<i64, i64>,
    /// How many were answered.
    answered: u64,
}

impl Seats {
    fn moment(&mut self) -> u64 {
        self.moments += 1;
        self.moments
    }

    /// The number of the next operation.
    pub(crate) const fn next(&mut self) -> OperationNumber {
        self.next += 1;
        self.next
    }

    /// A client calls an operation.
    pub(crate) fn called(
        &mut self,
        number: OperationNumber,
        seat: i64,
        action: Action,
        who: String,
    ) {
        let called = self.moment();
        let operation = Operation { who, action, called, answered: None, saw: None };
        self.records.insert(number, Record { seat, operation, carried: false });
    }

    /// It was answered, and has seen this, or what it has seen is not told.
    pub(crate) fn answered(&mut self, number: OperationNumber, saw: Option<Option<i64>>) {
        let moment = self.moment();
        self.answered += 1;
        if let Some(record) = self.records.get_mut(&number).filter(|record| !record.carried) {
            record.operation.answered = Some(moment);
            record.operation.saw = saw;
        }
    }

    /// It has had no effect, and never will have one.
    pub(crate) fn never(&mut self, number: OperationNumber) {
        self.records.remove(&number);
    }

    /// How many operations were answered.
    pub(crate) const fn count(&self) -> u64 {
        self.answered
    }

    /// The origin has lost the newest part of its log, as it was allowed to.
    pub(crate) fn rolled_back(&mut self, origin: &Connection) -> Check {
        self.explain()?;
        self.records.retain(|_, record| record.operation.answered.is_none());
        for record in self.records.values_mut() {
            record.carried = true;
        }
        self.initial = holders(origin)?;
        Ok(())
    }

    /// In the end: what the origin's file holds was read last.
    pub(crate) fn judge(&mut self, origin: &Connection) -> Check {
        let held = holders(origin)?;
        for seat in 0..SEATS {
            let number = self.next();
            self.called(number, seat, Action::Get, "the origin's file".to_owned());
            self.answered(number, Some(held.get(&seat).copied()));
        }
        self.explain()
    }

    fn explain(&self) -> Check {
        for seat in 0..SEATS {
            let of_it = self.records.values().filter(|record| record.seat == seat);
            let history: Vec<Operation> = of_it.map(|record| record.operation.clone()).collect();
            let initial = self.initial.get(&seat).copied();
            if let Err(contradiction) = check_linearizable(initial, &history) {
                return broken(Promise::Linearizability, format!("seat {seat}: {contradiction}"));
            }
        }
        Ok(())
    }
}

fn holders(origin: &Connection) -> Check<BTreeMap<i64, i64>> {
    let failed = unreadable(0);
    let mut holders = BTreeMap::new();
    if !has_schema(origin).map_err(&failed)? {
        return Ok(holders);
    }
    let mut query =
        origin.prepare_cached("SELECT holder FROM seat WHERE id = ?").map_err(&failed)?;
    for seat in 0..SEATS {
        let holder = query.query_row([seat], |row| row.get(0)).optional().map_err(&failed)?;
        holders.extend(holder.map(|holder| (seat, holder)));
    }
    Ok(holders)
}
