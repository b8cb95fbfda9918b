//! The command line: which seeds are run, and what is said about them.
//!
//! Exit codes: 0 all promises kept, 1 a broken promise (or a planted bug that was missed), 2 wrong
//! usage, 3 a crash, 4 no progress.

use std::{
    fs,
    process::{Command, ExitCode, Stdio},
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use littoral::testing::{Bug, plant};
use serde::{Deserialize, Serialize};

use crate::{
    clock::SECOND,
    oracle::Failure,
    run::{Report, run_seed, run_twice},
    selftest::{bug_named, hunt},
    world::Options,
};

/// Every so manieth seed is run twice, unless all are.
const SAMPLE: u64 = 25;

/// Runs the shipped littoral engine in a simulated cluster: partitions, lag, crashes and power cuts,
/// wrong clocks and failing disks, all drawn from a seed and repeatable from it.
#[derive(Debug, Parser)]
#[command(name = "littoral-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Words,
}

#[derive(Debug, Subcommand)]
enum Words {
    /// Run seeds and report every broken promise.
    Run(RunArgs),
    /// Run one seed again, printing every event to standard error.
    Replay {
        /// The seed.
        seed: u64,
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Say only what the run came to.
        #[arg(long)]
        quiet: bool,
    },
    /// Plant each known bug in the engine and check that it is found.
    Selftest {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// The first seed to try.
        #[arg(long, default_value_t = 1)]
        first: u64,
        /// How many seconds each bug may take.
        #[arg(long, default_value_t = 60)]
        budget: u64,
        /// Only this bug.
        #[arg(long)]
        bug: Option<String>,
        /// One JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Only this seed.
    #[arg(long, conflicts_with_all = ["seeds", "first", "jobs"])]
    seed: Option<u64>,
    /// Print every event to standard error.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Run every seed twice and compare; otherwise every 25th is.
    #[arg(long)]
    twice: bool,
    /// How many processes share the seeds.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    jobs: u64,
    /// Stop at the first failure.
    #[arg(long)]
    fail_fast: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ClusterArgs {
    /// How many nodes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=16))]
    nodes: u64,
    /// How many simulated seconds clients write and faults happen.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    time: u64,
    /// Plant this bug in the engine.
    #[arg(long, hide = true)]
    plant: Option<String>,
}

impl ClusterArgs {
    fn options(&self, trace: bool) -> anyhow::Result<Options> {
        if let Some(name) = &self.plant {
            plant(named_bug(name)?);
        }
        let nodes = usize::try_from(self.nodes)?;
        Ok(Options { nodes, chaos: self.time * SECOND, trace })
    }

    /// What must be repeated on the command line to get the same runs.
    fn repeat(&self) -> Vec<String> {
        let mut words = Vec::new();
        for (flag, value, default) in [("--nodes", self.nodes, 5), ("--time", self.time, 20)] {
            if value != default {
                words.extend([flag.to_owned(), value.to_string()]);
            }
        }
        if let Some(bug) = &self.plant {
            words.extend(["--plant".to_owned(), bug.clone()]);
        }
        words
    }

    fn replay_command(&self, seed: u64) -> String {
        let mut words = vec!["littoral-sim replay".to_owned(), seed.to_string()];
        words.extend(self.repeat());
        words.join(" ")
    }
}

fn named_bug(name: &str) -> anyhow::Result<Bug> {
    bug_named(name).with_context(|| {
        let names: Vec<String> = Bug::ALL.iter().map(|bug| format!("{bug:?}")).collect();
        format!("no bug is called {name:?}\nhint: one of {}", names.join(", "))
    })
}

/// What `run --json` prints.
#[derive(Debug, Default, Serialize, Deserialize)]
struct RunSummary {
    first: u64,
    seeds: u64,
    passed: u64,
    failures: Vec<FailedSeed>,
    events: u64,
    simulated_seconds: f64,
    cpu_seconds: f64,
    simulated_seconds_per_cpu_second: f64,
    jobs_done: u64,
    jobs_refused: u64,
    jobs_lost: u64,
    conflicts: u64,
    stops: u64,
    power_cuts_with_loss: u64,
    connections: u64,
    snapshots: u64,
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
    replay: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    BrokenPromise,
    Crash,
    NoProgress,
}

impl Kind {
    const fn of(failure: &Failure) -> Self {
        match failure {
            Failure::Broken { .. } => Self::BrokenPromise,
            Failure::Crash(_) => Self::Crash,
            Failure::NoProgress(_) => Self::NoProgress,
        }
    }

    const fn exit_code(self) -> u8 {
        match self {
            Self::BrokenPromise => 1,
            Self::Crash => 3,
            Self::NoProgress => 4,
        }
    }
}

impl RunSummary {
    fn add(&mut self, report: &Report, replay: impl FnOnce() -> String) {
        self.seeds += 1;
        match &report.failure {
            None => self.passed += 1,
            Some(failure) => self.failures.push(FailedSeed {
                seed: report.seed,
                kind: Kind::of(failure),
                what: failure.to_string(),
                replay: replay(),
            }),
        }
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
        self.hashes.push(report.hash.clone());
    }

    fn merge(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.passed += other.passed;
        self.failures.extend(other.failures);
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
        self.hashes.extend(other.hashes);
    }

    fn finish(&mut self) {
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

    fn exit_code(&self) -> ExitCode {
        let worst = [Kind::Crash, Kind::BrokenPromise, Kind::NoProgress]
            .into_iter()
            .find(|kind| self.failures.iter().any(|failed| failed.kind == *kind));
        worst.map_or(ExitCode::SUCCESS, |kind| ExitCode::from(kind.exit_code()))
    }
}

#[expect(clippy::print_stdout, reason = "what a command says goes to standard output")]
fn say(line: impl std::fmt::Display) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "errors go to standard error")]
fn complain(line: impl std::fmt::Display) {
    eprintln!("{line}");
}

/// Parses the command line, carries it out, and gives the exit code.
pub(crate) fn main() -> ExitCode {
    match carry_out(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            complain(format!("error: {error:#}"));
            ExitCode::from(2)
        }
    }
}

fn carry_out(words: Words) -> anyhow::Result<ExitCode> {
    match words {
        Words::Run(args) => run(&args),
        Words::Replay { seed, cluster, quiet } => {
            let options = cluster.options(!quiet)?;
            let before = cpu_seconds();
            let mut summary = RunSummary { first: seed, ..RunSummary::default() };
            summary.add(&run_seed(seed, &options), || cluster.replay_command(seed));
            summary.cpu_seconds = cpu_seconds() - before;
            summary.finish();
            tell(&summary);
            Ok(summary.exit_code())
        }
        Words::Selftest { cluster, first, budget, bug, json } => {
            let bugs = match bug {
                Some(name) => vec![named_bug(&name)?],
                None => Bug::ALL.to_vec(),
            };
            selftest(&bugs, first, budget, &cluster.options(false)?, json)
        }
    }
}

fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let options = args.cluster.options(args.trace)?;
    let (first, seeds) = args.seed.map_or((args.first, args.seeds), |seed| (seed, 1));
    let last = first.checked_add(seeds).context("the seeds end beyond the largest number")?;
    let mut summary = RunSummary { first, ..RunSummary::default() };
    if !args.json {
        say(format!("seeds {first} to {}, {} nodes", last.saturating_sub(1), args.cluster.nodes));
    }
    if args.jobs > 1 {
        share(args, first, last, &mut summary)?;
    } else {
        let before = cpu_seconds();
        for seed in first..last {
            let report = if args.twice || args.seed.is_none() && seed % SAMPLE == 0 {
                run_twice(seed, &options)
            } else {
                run_seed(seed, &options)
            };
            summary.add(&report, || args.cluster.replay_command(seed));
            if report.failure.is_some() {
                if !args.json {
                    tell_failures(&summary.failures[summary.failures.len() - 1..]);
                }
                if args.fail_fast {
                    break;
                }
            }
        }
        summary.cpu_seconds = cpu_seconds() - before;
    }
    summary.finish();
    if args.json {
        say(serde_json::to_string(&summary)?);
    } else {
        if args.jobs > 1 {
            tell_failures(&summary.failures);
        }
        tell(&summary);
    }
    Ok(summary.exit_code())
}

/// Child processes, because SQLite's randomness and default VFS belong to a process.
fn share(args: &RunArgs, first: u64, last: u64, summary: &mut RunSummary) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find the program itself")?;
    let share = (last - first).div_ceil(args.jobs).max(1);
    let mut children = Vec::new();
    let mut from = first;
    while from < last {
        let count = share.min(last - from);
        let mut command = Command::new(&program);
        command.args([
            "run",
            "--json",
            "--first",
            &from.to_string(),
            "--seeds",
            &count.to_string(),
        ]);
        command.args(args.cluster.repeat());
        command.args(args.twice.then_some("--twice"));
        command.args(args.fail_fast.then_some("--fail-fast"));
        let child =
            command.stdout(Stdio::piped()).spawn().context("cannot start a child process")?;
        children.push((from, child));
        from += count;
    }
    for (from, child) in children {
        let output = child.wait_with_output().context("cannot wait for a child process")?;
        let part = serde_json::from_slice(&output.stdout).with_context(|| {
            format!("the process for the seeds from {from} ended with {}", output.status)
        })?;
        summary.merge(part);
    }
    Ok(())
}

fn tell_failures(failures: &[FailedSeed]) {
    for failed in failures {
        say(format!("seed {} FAILED: {}", failed.seed, failed.what));
        say(format!("  replay: {}", failed.replay));
    }
}

fn tell(summary: &RunSummary) {
    if summary.seeds == 1 {
        tell_failures(&summary.failures);
    }
    say(format!(
        "{} jobs done, {} refused, {} lost; {} conflicts, {} stops, {} power cuts with loss, {} connections, {} snapshots",
        summary.jobs_done,
        summary.jobs_refused,
        summary.jobs_lost,
        summary.conflicts,
        summary.stops,
        summary.power_cuts_with_loss,
        summary.connections,
        summary.snapshots
    ));
    say(format!(
        "{:.1} simulated seconds in {:.2} CPU seconds: {:.0} per CPU second, {} events",
        summary.simulated_seconds,
        summary.cpu_seconds,
        summary.simulated_seconds_per_cpu_second,
        summary.events
    ));
    say(format!(
        "{} of {} passed from seed {}, event hash {}",
        summary.passed, summary.seeds, summary.first, summary.hash
    ));
}

/// What `selftest --json` prints of each bug.
#[derive(Debug, Serialize)]
struct HuntSummary {
    bug: String,
    found: bool,
    seeds: u64,
    seconds: f64,
    seed: Option<u64>,
    what: Option<String>,
}

fn selftest(
    bugs: &[Bug],
    first: u64,
    budget: u64,
    options: &Options,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let mut hunts = Vec::new();
    for &bug in bugs {
        let watch = StopWatch::start();
        let hunt = hunt(bug, first, options, || watch.seconds() > budget as f64);
        let (seed, what) = hunt.found.map(|(seed, failure)| (seed, failure.to_string())).unzip();
        let summary = HuntSummary {
            bug: format!("{:?}", hunt.bug),
            found: seed.is_some(),
            seeds: hunt.seeds,
            seconds: watch.seconds(),
            seed,
            what,
        };
        if !json {
            let verdict = if summary.found { "found" } else { "MISSED" };
            say(format!(
                "{:20} {verdict:6} {:4} seeds {:6.1} s  {}",
                summary.bug,
                summary.seeds,
                summary.seconds,
                summary.what.as_deref().unwrap_or_default()
            ));
        }
        hunts.push(summary);
    }
    let found = hunts.iter().filter(|hunt| hunt.found).count();
    let all = found == hunts.len();
    if json {
        say(serde_json::to_string(&hunts)?);
    } else {
        say(format!("{found} of {} planted bugs found, first seed {first}", hunts.len()));
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Real time, for budgets and reports; no run ever sees it.
#[derive(Debug)]
struct StopWatch(std::time::Instant);

impl StopWatch {
    #[expect(clippy::disallowed_methods, reason = "a budget of real seconds, outside every run")]
    fn start() -> Self {
        Self(std::time::Instant::now())
    }

    fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}

/// CPU time of this process's only working thread, for the report; 0 where it is not told.
fn cpu_seconds() -> f64 {
    let spent = fs::read_to_string("/proc/self/schedstat").ok();
    let nanos = spent.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    nanos.unwrap_or(0.0) / SECOND as f64
}
