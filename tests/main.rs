//! Real processes on real sockets and files, and what holds of the source as a whole.
//!
//! `harness` starts nodes and talks to them; the other modules are the tests, one promise each.
#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

#[allow(dead_code, reason = "the benches of processes use the rest of it")]
mod harness;

mod bookmarks;
mod clients;
mod convergence;
mod crash_recovery;
mod crowds;
mod draining;
mod formats;
mod forwarding;
mod hrana;
mod invitations;
mod joining;
mod linearizability;
mod personal;
mod scenarios;
mod schema_migration;
mod sessions;
mod shop;
mod simulator;
mod sockets;
mod staleness;
mod streams;
mod tidy;
mod visits;
