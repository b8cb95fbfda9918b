//! [`Relief`]: a worker of tokio that is at a statement for long keeps nothing else waiting.
//!
//! One worker at a time waits for sockets and timers. If what comes is a single request, that worker leaves
//! its place to answer it and tokio wakes no other one to take it, however many are idle: until the request
//! is answered nothing is heard of links, of clients or of time. Waking one for each statement would take as
//! long as the statement. So a thread looks now and then, and only if a statement goes on from one look to
//! the next it gives tokio something to do: the worker that wakes for that takes the place.
//!
//! Invariant: beginning or ending a statement waits for nobody.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, Thread},
    time::Duration,
};

use tokio::{runtime::Handle, task::JoinHandle};

/// From one look to the next; sockets are left alone for twice as long at most.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// After so many looks at nothing the thread sleeps until it is told.
const IDLE_LOOKS: u32 = 25;

/// Knows of the statements that workers are at.
#[derive(Debug, Default)]
pub(super) struct Relief(Option<Looking>);

/// There is another worker, and a thread that looks.
#[derive(Debug)]
struct Looking {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug, Default)]
struct Shared {
    begun: AtomicU64,
    ended: AtomicU64,
    asleep: AtomicBool,
    over: AtomicBool,
}

impl Relief {
    /// For the workers of this runtime. With one worker alone there is none to take its place, and it had better
    /// be at no statement.
    pub(super) fn start(tokio: Option<Handle>) -> io::Result<Self> {
        let Some(tokio) = tokio.filter(|tokio| tokio.metrics().num_workers() > 1) else {
            return Ok(Self::default());
        };
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("littoral-relief".to_owned())
            .spawn(move || theirs.look(&tokio))?;
        Ok(Self(Some(Looking { shared, thread: thread.thread().clone() })))
    }

    /// This thread is at a statement until what is returned is dropped; `None` if nobody could take its place
    /// meanwhile.
    pub(super) fn begin(&self) -> Option<Busy<'_>> {
        let Looking { shared, thread } = self.0.as_ref()?;
        shared.begun.fetch_add(1, SeqCst);
        if shared.asleep.load(SeqCst) {
            thread.unpark();
        }
        Some(Busy(shared))
    }
}

impl Drop for Relief {
    fn drop(&mut self) {
        if let Some(Looking { shared, thread }) = &self.0 {
            shared.over.store(true, SeqCst);
            thread.unpark();
        }
    }
}

/// A statement that a worker is at.
pub(super) struct Busy<'a>(&'a Shared);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, SeqCst);
    }
}

impl Shared {
    fn look(&self, tokio: &Handle) {
        let (mut begun, mut ended) = (0, 0);
        let mut idle = 0;
        let mut given: Option<JoinHandle<()>> = None;
        while !self.over.load(SeqCst) {
            let goes_on = begun > ended;
            // Those that have ended first, so that no more have than were begun.
            let now_ended = self.ended.load(SeqCst);
            let now_begun = self.begun.load(SeqCst);
            // If one has ended meanwhile, another worker is at work, and waits for sockets next.
            if goes_on && now_ended == ended && given.as_ref().is_none_or(JoinHandle::is_finished) {
                given = Some(tokio.spawn(async {}));
            }
            idle = if now_begun == begun && now_begun == now_ended { idle + 1 } else { 0 };
            (begun, ended) = (now_begun, now_ended);
            if idle < IDLE_LOOKS {
                thread::sleep(LOOK_AGAIN);
                continue;
            }
            self.asleep.store(true, SeqCst);
            if self.begun.load(SeqCst) == begun && !self.over.load(SeqCst) {
                thread::park();
            }
            self.asleep.store(false, SeqCst);
            idle = 0;
        }
    }
}
