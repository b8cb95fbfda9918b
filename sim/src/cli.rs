//! The command line: which seeds are run, and what is said about them.
//!
//! Exit codes: 0 all promises kept, 64 wrong usage; and without a scenario 1 a broken promise (or a
//! planted bug that was missed), 3 a crash, 4 no progress; with one 1 a violated invariant, 2 an engine
//! fault, 5 a block that no client ever got done. 141 if the output was closed before all was said.

use std::{
    fmt, fs,
    io::{self, Write as _},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    rc::Rc,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use littoral::testing::{Bug, plant};
use serde::Serialize;

use crate::{
    clock::SECOND,
    oracle::Failure,
    run::{Report, explain, run_seed, run_twice},
    scenario::Scenario,
    selftest::{bug_named, hunt},
    summary::RunSummary,
    world::Options,
};

/// Wrong usage, or a scenario with a mistake in it; `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

/// The output was closed before all was said: what shells show of a process that SIGPIPE has ended.
const READER_GONE: u8 = 141;

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
    /// Run seeds and report every broken promise, and every invariant of a scenario that does not hold.
    #[command(after_long_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Run one seed again, printing every event to standard error.
    #[command(after_long_help = REPLAY_EXAMPLES)]
    Replay {
        /// The seed.
        seed: u64,
        /// The scenario that it belongs to; without it the built-in schema and workload are run.
        scenario: Option<PathBuf>,
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

const RUN_EXAMPLES: &str = "\
Examples:
  littoral-sim run                                the built-in schema and workload, 100 seeds
  littoral-sim run shop.toml                      your own scenario, 100 seeds
  littoral-sim run shop.toml --seeds 1000 --jobs 2
  littoral-sim run shop.toml --seed 17 --trace    one seed, every event on standard error
  littoral-sim run shop.toml --json               for scripts

Exit codes with a scenario: 0 every invariant held; 1 one did not; 2 littoral itself broke a promise;
5 some block was never done, not once, so nothing was shown of it; 64 the command line or the
scenario is wrong.
Without one: 0; 1 a broken promise; 3 a crash; 4 no progress; 64.

docs/simulation.md explains scenarios; sim/scenarios holds examples.";

const REPLAY_EXAMPLES: &str = "\
Examples:
  littoral-sim replay 17                          seed 17 of the built-in run
  littoral-sim replay 17 shop.toml 2> trace.txt   seed 17 of a scenario, its events into a file
  littoral-sim replay 17 shop.toml --quiet        only what it came to";

#[derive(Debug, Args)]
struct RunArgs {
    /// A scenario: your own schema, policies, clients and invariants, in TOML. Without it the built-in
    /// schema and workload are run.
    scenario: Option<PathBuf>,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, visible_alias = "first-seed", default_value_t = 1)]
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
    /// How many nodes; from 3 to 7 as each seed draws it if not told, and those of the scenario with one.
    #[arg(long, value_parser = clap::value_parser!(u64).range(2..=16))]
    nodes: Option<u64>,
    /// How many simulated seconds clients write and faults happen; 20 if not told, and as long as the
    /// scenario says with one.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3600))]
    time: Option<u64>,
    /// Plant this bug in the engine.
    #[arg(long, hide = true)]
    plant: Option<String>,
}

impl ClusterArgs {
    fn options(&self, trace: bool, scenario: Option<&PathBuf>) -> anyhow::Result<Options> {
        if let Some(name) = &self.plant {
            plant(named_bug(name)?);
        }
        let built_in = Options { trace, ..Options::default() };
        let Some(path) = scenario else {
            return Ok(Options {
                nodes: self.nodes.map(usize::try_from).transpose()?,
                chaos: self.time.map_or(built_in.chaos, |seconds| seconds * SECOND),
                ..built_in
            });
        };
        if self.nodes.is_some() || self.time.is_some() {
            anyhow::bail!(
                "--nodes and --time belong to the built-in run\nhint: a scenario says both itself, \
                 as nodes and time in its section [world]"
            );
        }
        let scenario = Scenario::load(path)?;
        Ok(Options {
            nodes: Some(scenario.nodes.len()),
            chaos: scenario.time,
            scenario: Some(Rc::new(scenario)),
            ..built_in
        })
    }

    /// What must be repeated on the command line to get the same runs.
    fn repeat(&self) -> Vec<String> {
        let mut words = Vec::new();
        for (flag, value) in [("--nodes", self.nodes), ("--time", self.time)] {
            words.extend(
                value.map(|value| [flag.to_owned(), value.to_string()]).into_iter().flatten(),
            );
        }
        if let Some(bug) = &self.plant {
            words.extend(["--plant".to_owned(), bug.clone()]);
        }
        words
    }

    fn replay_command(&self, seed: u64, scenario: Option<&PathBuf>) -> String {
        let mut words = vec!["littoral-sim replay".to_owned(), seed.to_string()];
        words.extend(scenario.map(|path| path.display().to_string()));
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

/// Writes a line of output.
fn say(line: impl fmt::Display) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

/// Whether whoever read our output has seen enough, as `head` has.
fn is_unread(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Parses the command line, carries it out, and gives the exit code.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version come this way too.
            let code = if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
            return error.print().map_or_else(|_| ExitCode::from(USAGE), |()| code);
        }
    };
    match carry_out(cli.command) {
        Ok(code) => code,
        Err(error) if is_unread(&error) => ExitCode::from(READER_GONE),
        Err(error) => {
            // If stderr is gone there is nobody left to tell.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::from(USAGE)
        }
    }
}

fn carry_out(words: Words) -> anyhow::Result<ExitCode> {
    match words {
        Words::Run(args) => run(&args),
        Words::Replay { seed, scenario, cluster, quiet } => {
            let options = cluster.options(!quiet, scenario.as_ref())?;
            let before = cpu_seconds();
            let mut summary = RunSummary::new(seed, &options);
            let report = explained(run_seed(seed, &options), &summary, &options);
            summary.add(&report, cluster.replay_command(seed, scenario.as_ref()));
            summary.cpu_seconds = cpu_seconds() - before;
            summary.finish();
            summary.failure_lines().into_iter().try_for_each(say)?;
            tell(&summary)?;
            Ok(summary.exit_code())
        }
        Words::Selftest { cluster, first, budget, bug, json } => {
            let bugs = match bug {
                Some(name) => vec![named_bug(&name)?],
                None => Bug::ALL.to_vec(),
            };
            selftest(&bugs, first, budget, &cluster.options(false, None)?, json)
        }
    }
}

fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let scenario = args.scenario.as_ref();
    let options = args.cluster.options(args.trace, scenario)?;
    let (first, seeds) = args.seed.map_or((args.first, args.seeds), |seed| (seed, 1));
    let last = first.checked_add(seeds).context("the seeds end beyond the largest number")?;
    let mut summary = RunSummary::new(first, &options);
    if !args.json {
        say(summary.title(last.saturating_sub(1), &options))?;
    }
    if args.jobs > 1 {
        share(args, first, last, &mut summary)?;
        if !args.json {
            summary.failure_lines().into_iter().try_for_each(say)?;
        }
    } else {
        let before = cpu_seconds();
        for seed in first..last {
            let report = if args.twice || args.seed.is_none() && seed % SAMPLE == 0 {
                run_twice(seed, &options)
            } else {
                run_seed(seed, &options)
            };
            let report = explained(report, &summary, &options);
            let lines = summary.add(&report, args.cluster.replay_command(seed, scenario));
            if !args.json {
                lines.into_iter().try_for_each(say)?;
            }
            if report.failure.is_some() && args.fail_fast {
                break;
            }
        }
        summary.cpu_seconds = cpu_seconds() - before;
    }
    summary.finish();
    if args.json {
        say(serde_json::to_string(&summary)?)?;
    } else {
        tell(&summary)?;
    }
    Ok(summary.exit_code())
}

/// The first violation of each invariant is run once more, to tell what led to it.
fn explained(report: Report, summary: &RunSummary, options: &Options) -> Report {
    match &report.failure {
        Some(Failure::Violated(violation)) if !summary.has_seen(&violation.invariant) => {
            explain(&report, &Options { trace: false, ..options.clone() })
        }
        _ => report,
    }
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
        command.arg("run").args(&args.scenario).args([
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

fn tell(summary: &RunSummary) -> anyhow::Result<()> {
    summary.lines().into_iter().try_for_each(say)
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
            ))?;
        }
        hunts.push(summary);
    }
    let found = hunts.iter().filter(|hunt| hunt.found).count();
    let all = found == hunts.len();
    if json {
        say(serde_json::to_string(&hunts)?)?;
    } else {
        say(format!("{found} of {} planted bugs found, first seed {first}", hunts.len()))?;
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
