//! The deterministic simulator of littoral: the shipped engine in a cluster that exists in memory.
//!
//! A run is a function of its seed. The seed decides how many jobs are written where, what they do,
//! how the network and the disks behave and what goes wrong; oracles watch that every promise is
//! kept. A failing seed is replayed by its number.
//!
//! Reading order: `chance` and `clock`, what a run is made of; `disk` and `network`, the world
//! around the engine; `world`, `fault`, `application` and `workload`, what happens; `machine` and
//! `cluster`, who drives the engine; `oracle`, what must hold; `scenario`, the same with a user's
//! schema, clients and invariants; `run`, `summary`, `selftest` and `cli`, how it is used.

mod application;
mod chance;
mod cli;
mod clock;
mod cluster;
mod disk;
mod fault;
mod machine;
mod network;
mod oracle;
mod run;
mod scenario;
mod selftest;
mod summary;
mod trace;
mod workload;
mod world;

use std::process::ExitCode;

pub use oracle::linear::{Action, Contradiction, Operation, check_linearizable};

/// What the binary does: parses the command line, runs, and gives the exit code.
pub fn main() -> ExitCode {
    cli::main()
}
