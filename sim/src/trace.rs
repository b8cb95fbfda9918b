//! [`Trace`]: every event of a run, hashed, and on demand a line of text each.
//!
//! Two runs of one seed are the same run exactly if their hashes are equal.

use std::io::{self, Write as _};

/// What is hashed, and printed if asked for.
#[derive(Debug)]
pub(crate) struct Trace {
    hasher: blake3::Hasher,
    events: u64,
    printing: bool,
    names: Vec<String>,
    begun: u64,
}

impl Trace {
    /// An empty trace; `printing` writes each event to standard error, with `names` for machines.
    pub(crate) fn new(printing: bool, names: Vec<String>) -> Self {
        Self { hasher: blake3::Hasher::new(), events: 0, printing, names, begun: 0 }
    }

    /// From this time on lines count from now; those before have negative times.
    pub(crate) const fn begin(&mut self, now: u64) {
        self.begun = now;
    }

    /// Takes an event: when (nanoseconds), on which machine, of what kind, and what else defines it.
    pub(crate) fn event(
        &mut self,
        at: u64,
        machine: usize,
        kind: &'static str,
        fields: &[u64],
        bytes: &[u8],
        text: impl FnOnce() -> String,
    ) {
        self.events += 1;
        self.hasher.update(kind.as_bytes());
        self.hasher.update(&at.to_le_bytes());
        self.hasher.update(&(machine as u64).to_le_bytes());
        for field in fields {
            self.hasher.update(&field.to_le_bytes());
        }
        self.hasher.update(&(bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
        if self.printing {
            self.line(at, machine, kind, &text());
        }
    }

    /// Prints a line that is no event.
    pub(crate) fn line(&self, at: u64, machine: usize, kind: &str, text: &str) {
        let name = self.names.get(machine).cloned().unwrap_or_else(|| format!("m{machine}"));
        print_line(&seconds(at, self.begun), &name, kind, text);
    }

    /// How many events there were.
    pub(crate) const fn events(&self) -> u64 {
        self.events
    }

    /// Whether lines are printed.
    pub(crate) const fn is_printing(&self) -> bool {
        self.printing
    }

    /// The hash of everything so far, and of what `more` adds.
    pub(crate) fn hash(&self, more: impl FnOnce(&mut blake3::Hasher)) -> String {
        let mut hasher = self.hasher.clone();
        more(&mut hasher);
        hasher.finalize().to_hex()[..32].to_owned()
    }
}

fn print_line(at: &str, machine: &str, kind: &str, text: &str) {
    // Whoever read the trace may have seen enough, as `head` has. The run goes on: what it came to is
    // told elsewhere.
    let _ = writeln!(io::stderr(), "{at:>11}  {machine}  {kind:<9} {text}");
}

/// A time in seconds since the run began, to the microsecond.
pub(crate) fn seconds(at: u64, begun: u64) -> String {
    let micros = at.abs_diff(begun) / 1000;
    let sign = if at < begun { "-" } else { "" };
    format!("{sign}{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}
