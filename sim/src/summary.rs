//! [`RunSummary`]: what the runs of many seeds came to, for people and, as JSON, for scripts.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::{
    clock::SECOND, oracle::Failure, run::Report, scenario::BlockCounts, trace::seconds,
    world::Options,
};

/// So many other seeds that violate an invariant are named.
const OTHER_SEEDS: usize = 20;

/// What `run --json` prints.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct RunSummary {
    /// The scenario's file; `None` for the built-in run.
    pub(crate) scenario: Option<String>,
    first: u64,
    seeds: u64,
    passed: u64,
    failures: Vec<FailedSeed>,
    /// What became of each kind of call of the scenario.
    calls: Vec<BlockCounts>,
    events: u64,
    simulated_seconds: f64,
    /// CPU seconds of the processes that ran the seeds.
    pub(crate) cpu_seconds: f64,
    simulated_seconds_per_cpu_second: f64,
    jobs_done: u64,
    jobs_refused: u64,
    jobs_lost: u64,
    conflicts: u64,
    stops: u64,
    power_cuts_with_loss: u64,
    connections: u64,
    snapshots: u64,
    origin_strong_calls: u64,
    schema_changes: u64,
    freezes: u64,
    freezes_ended_by_change: u64,
    /// Of all runs together.
    hash: String,
    /// Of each run, in the order of the seeds.
    hashes: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct FailedSeed {
    seed: u64,
    kind: Kind,
    what: String,
    /// What is violated, where and when, if it is an invariant of the scenario.
    #[serde(default)]
    violation: Option<Violated>,
    replay: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Violated {
    invariant: String,
    node: String,
    /// Since the clients began.
    at_seconds: String,
    /// The rows, and what led there; of the first seed that violates the invariant only.
    report: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Violation,
    BrokenPromise,
    Crash,
    NoProgress,
}

impl Kind {
    const fn of(failure: &Failure) -> Self {
        match failure {
            Failure::Violated(_) => Self::Violation,
            Failure::Broken { .. } => Self::BrokenPromise,
            Failure::Crash(_) => Self::Crash,
            Failure::NoProgress(_) => Self::NoProgress,
        }
    }

    const fn exit_code(self, scenario: bool) -> u8 {
        match self {
            Self::Violation => 1,
            _ if scenario => 2,
            Self::BrokenPromise => 1,
            Self::Crash => 3,
            Self::NoProgress => 4,
        }
    }
}

impl FailedSeed {
    fn lines(&self, scenario: bool) -> Vec<String> {
        let mut lines = Vec::new();
        match &self.violation {
            Some(violation) => {
                lines.push(format!("seed {}: {}", self.seed, self.what));
                lines.extend(violation.report.iter().map(|line| format!("  {line}")));
            }
            None if scenario => {
                lines.push(format!("seed {}: ENGINE FAULT: {}", self.seed, self.what));
                lines.push(
                    "  this is a bug of littoral, not of your scenario: please report it with the \
                     scenario and the command"
                        .to_owned(),
                );
            }
            None => lines.push(format!("seed {} FAILED: {}", self.seed, self.what)),
        }
        lines.push(format!("  replay: {}", self.replay));
        lines
    }
}

impl RunSummary {
    /// Nothing was run yet.
    pub(crate) fn new(first: u64, options: &Options) -> Self {
        let scenario = options.scenario.as_ref().map(|scenario| scenario.file.clone());
        Self { scenario, first, ..Self::default() }
    }

    /// What will be run.
    pub(crate) fn title(&self, last: u64, options: &Options) -> String {
        match &options.scenario {
            None => {
                let nodes =
                    options.nodes.map_or_else(|| "3 to 7".to_owned(), |nodes| nodes.to_string());
                format!("seeds {} to {last}, {nodes} nodes", self.first)
            }
            Some(scenario) => format!(
                "{}: seeds {} to {last}, nodes {} (the origin is {})",
                scenario.file,
                self.first,
                scenario.nodes.join(", "),
                scenario.nodes[0]
            ),
        }
    }

    /// Whether a seed has violated this invariant already.
    pub(crate) fn has_seen(&self, invariant: &str) -> bool {
        self.violations().any(|violation| violation.invariant == invariant)
    }

    fn violations(&self) -> impl Iterator<Item = &Violated> {
        self.failures.iter().filter_map(|failed| failed.violation.as_ref())
    }

    /// Adds a run. Returns what is to be said of it at once.
    pub(crate) fn add(&mut self, report: &Report, replay: String) -> Vec<String> {
        self.seeds += 1;
        let mut lines = Vec::new();
        match &report.failure {
            None => self.passed += 1,
            Some(failure) => {
                let violation = match failure {
                    Failure::Violated(violation) => Some(Violated {
                        invariant: violation.invariant.clone(),
                        node: violation.node.clone(),
                        at_seconds: seconds(violation.at, 0),
                        report: match self.has_seen(&violation.invariant) {
                            true => Vec::new(),
                            false => violation.report(),
                        },
                    }),
                    _ => None,
                };
                let is_news = violation.as_ref().is_none_or(|known| !known.report.is_empty());
                let failed = FailedSeed {
                    seed: report.seed,
                    kind: Kind::of(failure),
                    what: failure.to_string(),
                    violation,
                    replay,
                };
                if is_news {
                    lines = failed.lines(self.scenario.is_some());
                }
                self.failures.push(failed);
            }
        }
        self.add_calls(&report.counts);
        self.events += report.events;
        self.simulated_seconds += report.simulated as f64 / SECOND as f64;
        self.jobs_done += report.tally.jobs.done;
        self.jobs_refused += report.tally.jobs.refused;
        self.jobs_lost += report.tally.jobs.lost;
        self.conflicts += report.tally.conflicts;
        self.stops += report.tally.stops;
        self.power_cuts_with_loss += report.tally.losses;
        self.connections += report.tally.connections;
        self.snapshots += report.tally.snapshots;
        self.origin_strong_calls += report.tally.strong_calls;
        self.schema_changes += report.tally.changes;
        self.freezes += report.tally.freezes[0];
        self.freezes_ended_by_change += report.tally.freezes[1];
        self.hashes.push(report.hash.clone());
        lines
    }

    fn add_calls(&mut self, calls: &[BlockCounts]) {
        for counts in calls {
            match self.calls.iter_mut().find(|known| known.block == counts.block) {
                Some(known) => known.add(counts),
                None => self.calls.push(counts.clone()),
            }
        }
    }

    /// Adds the runs of another process.
    pub(crate) fn merge(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.passed += other.passed;
        self.failures.extend(other.failures);
        self.add_calls(&other.calls);
        self.events += other.events;
        self.simulated_seconds += other.simulated_seconds;
        self.cpu_seconds += other.cpu_seconds;
        self.jobs_done += other.jobs_done;
        self.jobs_refused += other.jobs_refused;
        self.jobs_lost += other.jobs_lost;
        self.conflicts += other.conflicts;
        self.stops += other.stops;
        self.power_cuts_with_loss += other.power_cuts_with_loss;
        self.connections += other.connections;
        self.snapshots += other.snapshots;
        self.origin_strong_calls += other.origin_strong_calls;
        self.schema_changes += other.schema_changes;
        self.freezes += other.freezes;
        self.freezes_ended_by_change += other.freezes_ended_by_change;
        self.hashes.extend(other.hashes);
    }

    /// No more runs follow.
    pub(crate) fn finish(&mut self) {
        let mut hasher = blake3::Hasher::new();
        for hash in &self.hashes {
            hasher.update(hash.as_bytes());
        }
        self.hash = match self.hashes.as_slice() {
            [only] => only.clone(),
            _ => hasher.finalize().to_hex()[..32].to_owned(),
        };
        self.simulated_seconds_per_cpu_second = self.simulated_seconds / self.cpu_seconds.max(1e-9);
    }

    /// The blocks of the scenario that clients called in vain, each time.
    fn mute_blocks(&self) -> Vec<&str> {
        self.calls.iter().filter(|counts| counts.is_mute()).map(|counts| &*counts.block).collect()
    }

    /// Whether the scenario's clients could not do what they should.
    fn is_vacuous(&self) -> bool {
        let nothing = self.calls.iter().all(|counts| counts.done == 0);
        self.scenario.is_some() && (nothing || !self.mute_blocks().is_empty())
    }

    /// What the command ends with.
    pub(crate) fn exit_code(&self) -> ExitCode {
        let worst = [Kind::Crash, Kind::BrokenPromise, Kind::NoProgress, Kind::Violation]
            .into_iter()
            .find(|kind| self.failures.iter().any(|failed| failed.kind == *kind));
        match worst {
            Some(kind) => ExitCode::from(kind.exit_code(self.scenario.is_some())),
            None if self.is_vacuous() => ExitCode::from(5),
            None => ExitCode::SUCCESS,
        }
    }

    /// What failed, in the order of the seeds: of each invariant the first seed in full.
    pub(crate) fn failure_lines(&self) -> Vec<String> {
        let mut seen: Vec<&str> = Vec::new();
        let mut lines = Vec::new();
        for failed in &self.failures {
            if let Some(violation) = &failed.violation {
                if seen.contains(&violation.invariant.as_str()) {
                    continue;
                }
                seen.push(&violation.invariant);
            }
            lines.extend(failed.lines(self.scenario.is_some()));
        }
        lines
    }

    /// The other seeds that violate each invariant.
    fn other_seeds(&self) -> Vec<String> {
        let mut invariants: Vec<(&str, Vec<String>)> = Vec::new();
        for failed in &self.failures {
            let Some(violation) = &failed.violation else { continue };
            let seed = failed.seed.to_string();
            match invariants.iter_mut().find(|(name, _)| *name == violation.invariant) {
                Some((_, seeds)) => seeds.push(seed),
                None => invariants.push((&violation.invariant, vec![seed])),
            }
        }
        let lines = invariants.into_iter().map(|(name, seeds)| {
            let shown = seeds.len().min(OTHER_SEEDS);
            let dots = if shown < seeds.len() { ", …" } else { "" };
            format!(
                "{name:?} is violated by {} of {} seeds: {}{dots}",
                seeds.len(),
                self.seeds,
                seeds[..shown].join(", ")
            )
        });
        lines.collect()
    }

    fn call_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for counts in &self.calls {
            let parts: Vec<String> = [
                (counts.forwarded, "of them sent to the origin"),
                (counts.constraint, "refused by a constraint"),
                (counts.refused, "refused otherwise"),
                (counts.out_of_reach, "did not reach the origin"),
                (counts.unreachable, "found the node down"),
                (counts.unanswered, "unanswered"),
            ]
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!(", {count} {what}"))
            .collect();
            lines.push(format!("{}: {} done{}", counts.block, counts.done, parts.concat()));
            if let Some(why) = &counts.refused_why {
                lines.push(format!("  refused otherwise, the last time: {why}"));
            }
        }
        lines
    }

    /// What all runs came to.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = if self.seeds > 1 { self.other_seeds() } else { Vec::new() };
        lines.extend(self.call_lines());
        if self.is_vacuous() {
            let blocks = match self.mute_blocks().as_slice() {
                [] => "any block".to_owned(),
                blocks => blocks.join(", "),
            };
            lines.push(format!("no call of {blocks} was ever done: these runs show nothing of it"));
        }
        lines.push(format!(
            "{} jobs done, {} refused, {} lost; {} conflicts, {} stops, {} power cuts with loss, {} \
             connections, {} snapshots",
            self.jobs_done,
            self.jobs_refused,
            self.jobs_lost,
            self.conflicts,
            self.stops,
            self.power_cuts_with_loss,
            self.connections,
            self.snapshots
        ));
        if self.origin_strong_calls > 0 {
            let calls = self.origin_strong_calls;
            lines.push(format!("{calls} reads and writes of an origin-strong table answered"));
        }
        if self.schema_changes > 0 {
            lines.push(format!(
                "{} changes of the schema; {} freezes, {} ended by their change",
                self.schema_changes, self.freezes, self.freezes_ended_by_change
            ));
        }
        lines.push(format!(
            "{:.1} simulated seconds in {:.2} CPU seconds: {:.0} per CPU second, {} events",
            self.simulated_seconds,
            self.cpu_seconds,
            self.simulated_seconds_per_cpu_second,
            self.events
        ));
        lines.push(format!(
            "{} of {} passed from seed {}, event hash {}",
            self.passed, self.seeds, self.first, self.hash
        ));
        lines
    }
}
