//! Programs that write the file behind littoral's back: found, and told once.
//!
//! [`watch`](crate::db::watch) notices them whenever this replica writes, when somebody asks for its
//! status, and once a second while it is awake.

use std::time::Duration;

use crate::{
    driver::{Event, Output},
    replica::Replica,
    status::ForeignWrites,
    time::{Instant, Now, WallTime},
};

/// How often it is looked while nothing is written.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    since: Option<WallTime>,
    while_closed: bool,
    told: bool,
    due: Instant,
}

impl Foreign {
    pub(super) fn at_open(while_closed: bool, now: Now) -> Self {
        Self { since: while_closed.then_some(now.wall), while_closed, ..Self::default() }
    }
}

impl Replica {
    /// Tells the driver of another program that writes, once.
    pub(super) fn look_for_foreign(&mut self) {
        if self.now.mono < self.foreign.due || self.foreign.told {
            return;
        }
        self.foreign.due = self.now.mono + LOOK_EVERY;
        let noticed = match self.writer.noticed() {
            Ok(noticed) => noticed > 0,
            Err(error) => return self.storage_fails(error.to_string()),
        };
        if noticed || self.foreign.while_closed {
            self.foreign.since.get_or_insert(self.now.wall);
            self.foreign.told = true;
            self.outputs.push_back(Output::Event(Event::ForeignWrites));
        }
    }

    /// What is known of other programs that write the file.
    pub(super) fn foreign(&self) -> Option<ForeignWrites> {
        // If storage fails, `status` says so elsewhere.
        let noticed = self.writer.noticed().unwrap_or_default();
        let Foreign { since, while_closed, .. } = self.foreign;
        (noticed > 0 || since.is_some()).then(|| ForeignWrites {
            since: since.unwrap_or(self.now.wall),
            noticed,
            while_closed,
        })
    }
}
