//! What the demo is doing, on stderr: spinners and bars on a terminal, plain lines elsewhere.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const TICK: Duration = Duration::from_millis(80);

/// Shows one step after the other.
#[derive(Debug)]
pub(super) struct Progress {
    terminal: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { terminal: io::stderr().is_terminal() }
    }

    /// Shows `what` while the work goes on, and how long it took when it is done.
    pub(super) async fn step<T>(
        &self,
        what: &str,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let began = Instant::now();
        let spinner = self.show(ProgressBar::new_spinner(), "{spinner} {msg}", what);
        let result = work.await;
        spinner.finish_and_clear();
        if result.is_ok() {
            done(what, began.elapsed());
        }
        result
    }

    /// Shows how many of `total` are done.
    pub(super) fn bar(&self, what: &str, total: usize) -> Bar {
        let bar = ProgressBar::new(u64::try_from(total).unwrap_or(u64::MAX));
        let bar = self.show(bar, "{spinner} {msg} {wide_bar} {pos}/{len}", what);
        Bar { bar, what: what.to_owned(), began: Instant::now() }
    }

    fn show(&self, bar: ProgressBar, template: &str, what: &str) -> ProgressBar {
        if !self.terminal {
            bar.set_draw_target(ProgressDrawTarget::hidden());
            return bar;
        }
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(TICK);
        bar
    }
}

/// A step whose size is known.
#[derive(Debug)]
pub(super) struct Bar {
    bar: ProgressBar,
    what: String,
    began: Instant,
}

impl Bar {
    pub(super) fn advance(&self, by: usize) {
        self.bar.inc(u64::try_from(by).unwrap_or(u64::MAX));
    }

    pub(super) fn finish(self) {
        self.bar.finish_and_clear();
        done(&self.what, self.began.elapsed());
    }
}

fn done(what: &str, took: Duration) {
    // Without stderr the demo goes on; its results are on stdout.
    let _ = writeln!(io::stderr(), "✓ {what} ({} ms)", took.as_millis());
}
