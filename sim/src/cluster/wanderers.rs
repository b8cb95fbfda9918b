//! Clients that carry nothing from machine to machine: each machine meets the origin before it reads for one,
//! and again before it answers, as a node does for the subject of a token.

use std::time::Duration;

use littoral::{Bookmark, ForwardError, Outcome};

use super::{Cluster, Event, Stage};
use crate::{
    chance::{Draw, Stream},
    clock::{MS, SECOND},
    oracle::{Check, Promise, broken, wanderers::WANDERERS},
};

/// How often it is looked whether a machine has what the origin had.
const LOOKS: u32 = 20;

/// A client.
#[derive(Debug, Default)]
pub(super) struct Wanderer {
    steps: u64,
    stage: Wanders,
}

#[derive(Debug, Default)]
enum Wanders {
    /// It comes to any machine next.
    #[default]
    Free,
    /// Its machine meets the origin before it reads.
    Comes,
    /// The machine, of this life, is to have all that this names.
    Waits { machine: usize, life: u64, need: Bookmark, looks: u32 },
    /// Its machine has read, and meets the origin before it answers.
    Leaves,
}

impl Cluster {
    /// Draws who will wander.
    pub(super) fn plan_wanderers(&mut self) {
        if self.options.scenario.is_some() {
            return;
        }
        let mut draw = self.chance.draw(Stream::Wander, 0, 0);
        let count = *draw.pick(&[0, 1, WANDERERS]);
        self.wanderers.resize_with(count, Wanderer::default);
        for number in 0..count {
            self.wander_on(number);
        }
    }

    fn wander_draw(&mut self, number: usize) -> Draw {
        let wanderer = &mut self.wanderers[number];
        wanderer.steps += 1;
        self.chance.draw(Stream::Wander, 1 + number as u64, wanderer.steps)
    }

    /// One was not answered, or has heard enough, and goes elsewhere after a while.
    pub(super) fn wander_on(&mut self, number: usize) {
        self.oracle.wanderers.answered(number, false);
        self.wanderers[number].stage = Wanders::Free;
        let at = self.now + self.wander_draw(number).between(MS, 500 * MS);
        self.schedule(at, Event::Wander { wanderer: number });
    }

    /// One goes on.
    pub(super) fn wander(&mut self, number: usize) -> Check {
        if self.stage != Stage::Chaos {
            return Ok(());
        }
        let mut draw = self.wander_draw(number);
        match std::mem::take(&mut self.wanderers[number].stage) {
            Wanders::Free => {
                let machine = draw.index(self.machines.len());
                self.meet(machine, number, Wanders::Comes, &mut draw)
            }
            Wanders::Waits { machine, life, need, looks } => {
                let Some(engine) = self.machines[machine].engine.as_ref() else {
                    self.wander_on(number);
                    return Ok(());
                };
                if self.machines[machine].life != life || looks == 0 {
                    self.wander_on(number);
                    return Ok(());
                }
                if engine.replica.db().reached(&need).is_err() {
                    let looks = looks - 1;
                    self.wanderers[number].stage = Wanders::Waits { machine, life, need, looks };
                    let at = self.now + draw.between(MS, 200 * MS);
                    self.schedule(at, Event::Wander { wanderer: number });
                    return Ok(());
                }
                self.oracle.refresh(machine, &engine.eye)?;
                let held = self.oracle.logs.shadow(machine).vector();
                self.note(machine, "wanderer", || format!("{number} reads"));
                self.oracle.wanderers.reads(number, machine, &held)?;
                self.meet(machine, number, Wanders::Leaves, &mut draw)
            }
            // It waits for an answer.
            stage @ (Wanders::Comes | Wanders::Leaves) => {
                self.wanderers[number].stage = stage;
                Ok(())
            }
        }
    }

    fn meet(&mut self, number: usize, wanderer: usize, stage: Wanders, draw: &mut Draw) -> Check {
        let machine = &mut self.machines[number];
        let Some(engine) = &mut machine.engine else {
            self.wander_on(wanderer);
            return Ok(());
        };
        let now = machine.clock.at(self.now);
        let patience = *draw.pick(&[200 * MS, SECOND, 5 * SECOND]);
        let ticket = engine.replica.meet_origin(now, Duration::from_nanos(patience));
        machine.meetings.insert(ticket, wanderer);
        self.wanderers[wanderer].stage = stage;
        self.drain(number)
    }

    /// A machine has met the origin for somebody, or could not.
    pub(super) fn met(
        &mut self,
        number: usize,
        wanderer: usize,
        result: &Result<Outcome, ForwardError>,
    ) -> Check {
        self.note(number, "met", || format!("{wanderer}: {result:?}"));
        let seen = match result {
            Ok(Outcome::Read { seen, .. }) => seen.clone(),
            Err(
                ForwardError::OriginUnreachable { .. }
                | ForwardError::Stopping { .. }
                | ForwardError::TooMany,
            ) => {
                self.wander_on(wanderer);
                return Ok(());
            }
            other => {
                return broken(Promise::Answers, format!("m{number} meets the origin: {other:?}"));
            }
        };
        let life = self.machines[number].life;
        let mut draw = self.wander_draw(wanderer);
        match self.wanderers[wanderer].stage {
            Wanders::Comes => {
                self.wanderers[wanderer].stage =
                    Wanders::Waits { machine: number, life, need: seen, looks: LOOKS };
                let at = self.now + draw.between(1, 20 * MS);
                self.schedule(at, Event::Wander { wanderer });
            }
            Wanders::Leaves => {
                self.oracle.wanderers.answered(wanderer, true);
                self.wander_on(wanderer);
            }
            Wanders::Free | Wanders::Waits { .. } => {
                return broken(Promise::Answers, format!("m{number} meets for nobody"));
            }
        }
        Ok(())
    }
}
