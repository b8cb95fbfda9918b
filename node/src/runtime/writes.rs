//! Write jobs on their way to the replica: how long one may run, and how long a drain may.
//!
//! Invariants: a job with a limit is interrupted once all its runs together took that long, and then
//! fails, whatever it made of the interrupt; nothing but a running job is ever interrupted; once a
//! drain took [`TURN`], jobs that have not begun wait for the next one, before which links are served.

use std::{
    io,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use littoral::{Committed, Job, WriteError, WriteTx, limits::LINK_TIMEOUT};
use parking_lot::{Condvar, Mutex};
use rusqlite::{InterruptHandle, ffi};
use tokio::sync::oneshot;

use super::forwards::Errand;

/// How long a write job that came over HTTP may run. While it runs the replica does nothing else, and
/// peers that hear nothing for `LINK_TIMEOUT` give their links up.
pub(crate) const WRITE_TIME_LIMIT: Duration = Duration::from_secs(5);

/// No job but a drain's first begins after the drain took this long.
const TURN: Duration = Duration::from_secs(1);

/// An interrupt that falls between two statements of a job is lost, so it is repeated.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(20);

// A job that begins at the end of a turn, those before it once more if it takes their group with it,
// and a second since the last keep-alive.
const _: () = assert!(
    TURN.as_secs() * 2 + WRITE_TIME_LIMIT.as_secs() + 1 < LINK_TIMEOUT.as_secs(),
    "a drain must end before peers give up"
);

/// What becomes of a job that took too long.
pub(crate) fn out_of_time() -> WriteError {
    let message = format!(
        "the write took longer than {} s and was interrupted; nothing of it stands",
        WRITE_TIME_LIMIT.as_secs()
    );
    let code = ffi::Error::new(ffi::SQLITE_INTERRUPT);
    WriteError::Sqlite(rusqlite::Error::SqliteFailure(code, Some(message)))
}

/// A job that waits, or is before the replica.
pub(crate) struct Write {
    job: Job,
    limit: Option<Duration>,
    /// How long its runs took.
    spent: Duration,
    /// It did not begin in this turn, and is to be handed over again.
    pub(super) postponed: bool,
    /// The program that it is, if it runs for a request.
    pub(super) program: Option<Errand>,
    /// Who waits for the answer; taken to answer.
    pub(super) done: Option<oneshot::Sender<Result<Committed, WriteError>>>,
}

impl Write {
    pub(crate) fn new(
        job: Job,
        limit: Option<Duration>,
        done: oneshot::Sender<Result<Committed, WriteError>>,
    ) -> Self {
        Self {
            job,
            limit,
            spent: Duration::ZERO,
            postponed: false,
            program: None,
            done: Some(done),
        }
    }

    /// One run, of which there are two if the group is lost.
    pub(super) fn run(&mut self, turn: &Turn, first: bool, tx: &mut WriteTx<'_>) -> Outcome {
        self.postponed = !first && turn.began.elapsed() >= TURN;
        if self.postponed {
            return Err(WriteError::Aborted("postponed".to_owned()));
        }
        let Some(limit) = self.limit else { return (self.job)(tx) };
        let began = Instant::now();
        let left = limit.saturating_sub(self.spent);
        if left.is_zero() {
            return Err(out_of_time());
        }
        let timer = turn.watchdog.start(began + left);
        let result = (self.job)(tx);
        let interrupted = timer.stop();
        self.spent += began.elapsed();
        if interrupted {
            self.spent = limit;
            return Err(out_of_time());
        }
        result
    }
}

type Outcome = Result<(), WriteError>;

/// One drain in which jobs are run.
pub(super) struct Turn {
    began: Instant,
    watchdog: Watchdog,
}

impl Turn {
    pub(super) fn begin(watchdog: &Watchdog) -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), watchdog: watchdog.clone() })
    }
}

/// How many writes come at about the same time: as many as the largest group of late had, one less for each
/// that came after it.
#[derive(Debug, Default)]
pub(super) struct Crowd(usize);

/// With more, it is worth waiting for the others: one commit serves all of them.
const FEW: usize = 3;

impl Crowd {
    /// So many were committed together.
    pub(super) fn came(&mut self, writes: usize) {
        self.0 = writes.max(self.0.saturating_sub(1));
    }

    /// Whether each is better done alone.
    pub(super) fn is_small(&self) -> bool {
        self.0 <= FEW
    }
}

/// Interrupts the job that runs, once its time is over.
#[derive(Clone)]
pub(super) struct Watchdog(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Of the connection that runs jobs; one that is closed is interrupted in vain.
    handle: Option<InterruptHandle>,
    running: Option<Running>,
    /// When the thread looks next; `None` if it waits until it is told.
    looks_at: Option<Instant>,
    ended: bool,
}

struct Running {
    ends_at: Instant,
    interrupted: bool,
}

impl Watchdog {
    pub(super) fn start_thread(handle: InterruptHandle) -> io::Result<(Self, JoinHandle<()>)> {
        let state = State { handle: Some(handle), ..State::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("littoral-watchdog".to_owned())
            .spawn(move || theirs.watch())?;
        Ok((Self(shared), thread))
    }

    /// Begins to watch the job that this thread runs.
    pub(super) fn start(&self, ends_at: Instant) -> Timer<'_> {
        let mut state = self.0.state.lock();
        state.running = Some(Running { ends_at, interrupted: false });
        // Jobs are short: the thread mostly sleeps past the end of many, and need not know of them.
        if state.looks_at.is_none_or(|at| at > ends_at) {
            self.0.changed.notify_one();
        }
        Timer(&self.0)
    }

    /// From here on another connection runs the jobs.
    pub(super) fn watch_other(&self, handle: InterruptHandle) {
        self.0.state.lock().handle = Some(handle);
    }

    /// Ends the thread.
    pub(super) fn end(&self) {
        self.0.state.lock().ended = true;
        self.0.changed.notify_one();
    }
}

/// A job that is watched; dropped if it panics.
pub(super) struct Timer<'a>(&'a Shared);

impl Timer<'_> {
    /// Whether the job was interrupted. From here on nothing is.
    pub(super) fn stop(self) -> bool {
        self.0.state.lock().running.take().is_some_and(|running| running.interrupted)
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        self.0.state.lock().running = None;
    }
}

impl Shared {
    fn watch(&self) {
        let mut guard = self.state.lock();
        while !guard.ended {
            let state = &mut *guard;
            let now = Instant::now();
            let looks_at = match &mut state.running {
                None => None,
                Some(running) if now < running.ends_at => Some(running.ends_at),
                Some(running) => {
                    running.interrupted = true;
                    // Under the lock, so that it can hit this job only. SQLite forgets it when the
                    // next statement begins while none runs.
                    if let Some(handle) = &state.handle {
                        handle.interrupt();
                    }
                    Some(now + INTERRUPT_AGAIN)
                }
            };
            state.looks_at = looks_at;
            match looks_at {
                None => self.changed.wait(&mut guard),
                Some(at) => drop(self.changed.wait_until(&mut guard, at)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_small_again_once_as_many_groups_were() {
        let mut crowd = Crowd::default();
        assert!(crowd.is_small());
        for _ in 0..3 {
            crowd.came(10);
            assert!(!crowd.is_small());
        }
        for _ in 0..6 {
            assert!(!crowd.is_small());
            crowd.came(1);
        }
        crowd.came(1);
        assert!(crowd.is_small());
        crowd.came(3);
        assert!(crowd.is_small());
    }
}
