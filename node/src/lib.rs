//! A littoral replica as a process: QUIC links to other nodes, the libSQL remote protocol over HTTP,
//! and the `littoral` command.
//!
//! The engine, crate [`littoral`], decides everything and touches nothing; this crate does the IO.
//! Read `runtime` first, which drives the engine, then `transport`, `http`, and last `cli`.
//!
//! [`Node::start`] runs a node within a process, as `littoral serve` does and as tests do. Its [`NodeHandle`]
//! writes by jobs and reads by closures, without blocking the runtime. Policies hold there as they do over HTTP:
//! [`NodeHandle::read`] shows no rows that are older than their table allows, and none of an `origin-strong`
//! table elsewhere than at the origin; [`NodeHandle::read_at`] shows none that are older than a bookmark.

#![forbid(unsafe_code)]

mod authority;
mod cli;
mod clock;
pub mod config;
mod http;
mod node;
mod otlp;
mod pinned;
pub mod pki;
mod runtime;
mod token;
mod transport;
mod watched;

pub use cli::main;
pub use config::Config;
pub use http::{HttpError, SealError};
pub use node::{Node, StartError, StopError};
pub use runtime::{Explanation, NodeHandle, Place, ReadError, RuntimeError, TooStale};
pub use transport::{TlsError, TransportError};
