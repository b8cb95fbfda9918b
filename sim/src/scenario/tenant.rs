//! [`Tenant`]: a scenario in one run: where its clients are, what they call, and what its readers see.

use std::{collections::BTreeMap, rc::Rc};

use littoral::{Committed, TablePolicy, WriteError};
use rusqlite::types::Value;
use serde::{Deserialize, Serialize};

use super::{
    Block, On, Scenario, When,
    arguments::CallSite,
    story,
    violation::{Found, Violation},
};
use crate::{
    application::{Application, Forwarded, Moment, Sight, Visit},
    chance::{Chance, Stream},
    clock::Nanos,
    fault::Fault,
    oracle::{Check, Failure, Oracle, Promise, broken},
    workload::{Failed, JobId, PlannedJob, describe_value},
    world::World,
};

/// The setup's number; those of calls follow it.
const SETUP: JobId = 0;

/// What became of the calls of one block.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct BlockCounts {
    /// The workload and the block.
    pub(crate) block: String,
    /// Committed.
    pub(crate) done: u64,
    /// Refused by a constraint of the schema, or by one of its triggers.
    pub(crate) constraint: u64,
    /// Of those done: by the origin for a client elsewhere.
    pub(crate) forwarded: u64,
    /// Belonged to the origin, which could not be reached; nothing was run.
    pub(crate) out_of_reach: u64,
    /// Refused for another reason; the last of them.
    pub(crate) refused: u64,
    /// The last of these reasons.
    pub(crate) refused_why: Option<String>,
    /// The node was down.
    pub(crate) unreachable: u64,
    /// The node stopped before it answered.
    pub(crate) unanswered: u64,
}

impl BlockCounts {
    /// Adds those of another run.
    pub(crate) fn add(&mut self, other: &Self) {
        self.done += other.done;
        self.constraint += other.constraint;
        self.forwarded += other.forwarded;
        self.out_of_reach += other.out_of_reach;
        self.refused += other.refused;
        self.unreachable += other.unreachable;
        self.unanswered += other.unanswered;
        if other.refused_why.is_some() {
            self.refused_why.clone_from(&other.refused_why);
        }
    }

    /// Whether it was called, and the cluster never did anything for it. Constraints that refuse each call
    /// are no exception: such a block has written nothing that an invariant could be about.
    pub(crate) const fn is_mute(&self) -> bool {
        let in_vain =
            self.out_of_reach + self.refused + self.constraint + self.unreachable + self.unanswered;
        self.done == 0 && in_vain > 0
    }

    fn refuse(&mut self, failure: &Failed) {
        if failure.constraint {
            self.constraint += 1;
        } else {
            self.refused += 1;
            self.refused_why = Some(failure.why.clone());
        }
    }
}

#[derive(Debug)]
struct Client {
    crowd: usize,
    machine: usize,
    calls: u64,
    waiting: bool,
}

/// A call that was made.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) client: usize,
    pub(super) block: usize,
    /// What was called, for people.
    pub(super) text: String,
}

/// A scenario in one run.
#[derive(Debug)]
pub(crate) struct Tenant {
    scenario: Rc<Scenario>,
    chance: Chance,
    faults: Vec<(Nanos, Fault)>,
    links: Vec<[usize; 2]>,
    clients: Vec<Client>,
    /// By job, from 1 without gaps.
    calls: Vec<Call>,
    /// The blocks of all crowds, one after the other.
    counts: Vec<BlockCounts>,
    /// How many calls of each there were.
    made: Vec<u64>,
    /// Where a crowd's blocks begin in these.
    first_block: Vec<usize>,
    prepared: bool,
    /// When clients began; before that nobody looks.
    begun: Option<Nanos>,
}

impl Tenant {
    /// Places the clients.
    pub(crate) fn new(scenario: Rc<Scenario>, chance: &Chance, world: &World) -> Self {
        let mut counts = Vec::new();
        let mut first_block = Vec::new();
        let mut clients = Vec::new();
        for (crowd, clique) in scenario.crowds.iter().enumerate() {
            first_block.push(counts.len());
            counts.extend(clique.blocks.iter().map(|block| BlockCounts {
                block: format!("{}/{}", clique.name, block.name),
                ..BlockCounts::default()
            }));
            let places = clique.at.iter().cycle().take(clique.clients as usize);
            clients.extend(places.map(|machine| Client {
                crowd,
                machine: *machine,
                calls: 0,
                waiting: false,
            }));
        }
        Self {
            chance: chance.clone(),
            faults: world.faults.clone(),
            links: world.links.iter().map(|link| link.ends).collect(),
            clients,
            calls: Vec::new(),
            made: vec![0; counts.len()],
            counts,
            first_block,
            prepared: scenario.setup.is_empty(),
            begun: None,
            scenario,
        }
    }

    fn call_of(&self, id: JobId) -> Option<&Call> {
        self.calls.get(usize::try_from(id.checked_sub(SETUP + 1)?).ok()?)
    }

    /// What the job of a number called, and on which machine.
    pub(super) fn told(&self, id: JobId) -> Option<(usize, &str)> {
        if id == SETUP {
            return Some((0, "setup"));
        }
        let call = self.call_of(id)?;
        Some((self.clients[call.client].machine, &call.text))
    }

    /// The next call of a client.
    fn call(&mut self, number: usize) -> (JobId, PlannedJob) {
        let client = &self.clients[number];
        let crowd = &self.scenario.crowds[client.crowd];
        let mut draw = self.chance.draw(Stream::Call, number as u64, client.calls);
        let choices: Vec<(u64, usize)> =
            crowd.blocks.iter().enumerate().map(|(place, block)| (block.weight, place)).collect();
        let block = *draw.weighted(&choices);
        let place = self.first_block[client.crowd] + block;
        let site =
            CallSite { node: &self.scenario.nodes[client.machine], before: self.made[place] };
        let Block { name, arguments, statements, .. } = &crowd.blocks[block];
        let values: BTreeMap<&str, Value> = arguments
            .iter()
            .map(|(name, source)| (name.as_str(), source.draw(&mut draw, site)))
            .collect();
        let shown: Vec<String> = arguments
            .iter()
            .map(|(name, _)| format!("{name} = {}", describe_value(&values[name.as_str()])))
            .collect();
        let text = format!("{}/{name}({})", crowd.name, shown.join(", "));
        let steps = statements.iter().map(|statement| {
            let bound = statement.parameters.iter().map(|name| values[name.as_str()].clone());
            (statement.sql.clone(), bound.collect())
        });
        let job = PlannedJob::of(steps.collect());
        self.made[place] += 1;
        self.calls.push(Call { client: number, block: place, text });
        self.clients[number].waiting = true;
        (SETUP + self.calls.len() as u64, job)
    }

    fn ended(&mut self, id: JobId) -> Option<&mut BlockCounts> {
        let call = self.call_of(id)?;
        let (client, block) = (call.client, call.block);
        self.clients[client].waiting = false;
        Some(&mut self.counts[block])
    }
}

impl Application for Tenant {
    fn schema(&self) -> (String, BTreeMap<String, TablePolicy>) {
        (self.scenario.schema.clone(), self.scenario.policies.clone())
    }

    fn preparation(&self) -> Option<(JobId, PlannedJob)> {
        let steps = self.scenario.setup.iter().map(|statement| (statement.sql.clone(), Vec::new()));
        (!self.prepared).then(|| (SETUP, PlannedJob::of(steps.collect())))
    }

    fn begin(&mut self, now: Nanos) -> Vec<Nanos> {
        self.begun = Some(now);
        let wait = |(number, client): (usize, &Client)| {
            let (_, most) = self.scenario.crowds[client.crowd].think;
            self.chance.draw(Stream::Call, number as u64, u64::MAX).between(1, most.max(1))
        };
        self.clients.iter().enumerate().map(wait).collect()
    }

    fn visit(&mut self, number: usize, is_up: &dyn Fn(usize) -> bool) -> Visit {
        let client = &mut self.clients[number];
        client.calls += 1;
        let machine = client.machine;
        let (least, most) = self.scenario.crowds[client.crowd].think;
        let mut draw = self.chance.draw(Stream::Think, number as u64, client.calls);
        let again = Some(draw.between(least, most).max(1));
        // A client has one call under way at most.
        if client.waiting {
            return Visit { machine, jobs: Vec::new(), again };
        }
        let call = self.call(number);
        let jobs = if is_up(machine) {
            vec![call]
        } else if let Some(counts) = self.ended(call.0) {
            counts.unreachable += 1;
            Vec::new()
        } else {
            Vec::new()
        };
        Visit { machine, jobs, again }
    }

    fn answered(&mut self, id: JobId, result: &Result<Committed, WriteError>) -> Check {
        if id == SETUP {
            self.prepared = true;
            return match result {
                Ok(_) => Ok(()),
                Err(error) => broken(
                    Promise::Answers,
                    format!("the setup was done in the rehearsal, and refused now: {error}"),
                ),
            };
        }
        let Some(counts) = self.ended(id) else { return Ok(()) };
        match result {
            Ok(_) => counts.done += 1,
            Err(error) => counts.refuse(&Failed::of(error)),
        }
        Ok(())
    }

    fn forwarded(&mut self, id: JobId, told: Forwarded<'_>) {
        let Some(counts) = self.ended(id) else { return };
        match told {
            Forwarded::Done => {
                counts.done += 1;
                counts.forwarded += 1;
            }
            Forwarded::Failed(failed) => counts.refuse(failed),
            Forwarded::OutOfReach => counts.out_of_reach += 1,
            Forwarded::Unanswered => counts.unanswered += 1,
        }
    }

    fn unanswered(&mut self, id: JobId) {
        if let Some(counts) = self.ended(id) {
            counts.unanswered += 1;
        }
    }

    fn waits_for_convergence(&self) -> bool {
        let waits = |when| when == When::Converged;
        self.begun.is_some() && self.scenario.invariants.iter().any(|one| waits(one.when))
    }

    fn look(&mut self, sight: Sight<'_>) -> Check {
        let Some(begun) = self.begun else { return Ok(()) };
        for (number, invariant) in self.scenario.invariants.iter().enumerate() {
            let now = match invariant.when {
                When::Always => true,
                When::Converged => sight.moment != Moment::Passing,
                When::Final => sight.moment == Moment::Final,
            };
            if !now || invariant.on != On::Every && invariant.on != On::Node(sight.machine) {
                continue;
            }
            let found = Found::ask(invariant, sight.reader);
            let found = found.map_err(crate::oracle::unreadable(sight.machine))?;
            if found.rows.is_empty() {
                continue;
            }
            return Err(Failure::Violated(Box::new(Violation {
                invariant: invariant.name.clone(),
                number,
                machine: sight.machine,
                node: self.scenario.nodes[sight.machine].clone(),
                at: sight.at - begun,
                moment: match sight.moment {
                    Moment::Passing if sight.at - begun > self.scenario.time => {
                        "while everything settles"
                    }
                    Moment::Passing => "while clients write",
                    Moment::Converged => "all nodes having the same entries",
                    Moment::Final => "after everything has settled",
                },
                columns: found.columns,
                rows: found.rows,
                more: found.more,
                story: Vec::new(),
            })));
        }
        Ok(())
    }

    fn explain(&self, violation: &mut Violation, oracle: &Oracle) {
        let reads = &self.scenario.invariants[violation.number].reads;
        violation.story = story::tell(self, violation, reads, oracle);
    }

    fn counts(&self) -> Vec<BlockCounts> {
        self.counts.clone()
    }

    fn names(&self) -> Vec<String> {
        self.scenario.nodes.clone()
    }

    fn describe(&self) -> String {
        format!("{} clients", self.clients.len())
    }
}

impl Tenant {
    /// When clients began.
    pub(super) fn begun(&self) -> Nanos {
        self.begun.unwrap_or(0)
    }

    /// What a machine is called.
    pub(super) fn name(&self, machine: usize) -> &str {
        &self.scenario.nodes[machine]
    }

    /// The two ends of a link.
    pub(super) fn link(&self, link: usize) -> [usize; 2] {
        self.links[link]
    }

    /// The columns of a table's key, in its order.
    pub(super) fn key_columns(&self, table: &str) -> &[String] {
        self.scenario.keys.get(table).map_or(&[], Vec::as_slice)
    }

    /// The faults that struck between two times, both since the clients began.
    pub(super) fn faults_between(
        &self,
        from: Nanos,
        to: Nanos,
    ) -> impl Iterator<Item = &(Nanos, Fault)> {
        self.faults.iter().filter(move |(at, _)| (from..=to).contains(at))
    }
}
