//! [`Seat`]: whoever has it drives the replica.
//!
//! Mostly that is the replica thread, which waits for events and for the time to wake. Whatever waits for it is
//! taken together: first every input, so that no link is judged silent whose frames only wait here, and a
//! drain; then all writes, so that they commit as one group, and another drain.
//!
//! Handing a write to that thread, and the answer back, takes longer than a short write. So whoever brings one
//! that was short the last time does it itself, if nobody drives just then and nobody waits for the writer. Where many
//! come at about the same time, they are better committed together.
//!
//! Invariants: one thread at a time drives, and the replica thread is the next one once it asks to be; after a
//! panic nobody drives any more.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
    time::Duration,
};

use littoral::Input;
use parking_lot::{Mutex, MutexGuard};

use super::{
    replica_thread::{Driver, Event, EventSender},
    writes::{Watchdog, Write},
};

/// Events taken from the channel together at most, so that taking them ends. It is more than all
/// links together have waiting after the longest drain, unless there are very many.
const BATCH_EVENTS: usize = 1 << 16;

/// The driver of the replica, for one thread at a time; `None` once it has ended.
pub(crate) struct Seat(Mutex<Option<Box<Driver>>>);

impl Seat {
    pub(crate) fn new(driver: Driver) -> Self {
        Self(Mutex::new(Some(Box::new(driver))))
    }

    /// The replica thread: runs until it is told to stop, or until nobody is left who could tell it anything.
    pub(crate) fn run(&self, inbox: &mpsc::Receiver<Event>, watchdog: &Watchdog) {
        let mut batch = Vec::new();
        while let Some(wait) = self.round(&mut batch)
            && let Ok(first) = next_event(inbox, wait)
        {
            batch.extend(first);
            while batch.len() < BATCH_EVENTS
                && let Ok(event) = inbox.try_recv()
            {
                batch.push(event);
            }
        }
        watchdog.end();
        let driver = self.0.lock().take();
        drop(driver);
    }

    /// Has the driver handle events and run writes; tells how long it waits for the next event at most, which
    /// may be for ever, or that it has ended (`None`).
    fn round(&self, batch: &mut Vec<Event>) -> Option<Option<Duration>> {
        let mut seat = self.0.lock();
        // If it panics, it is gone.
        let mut driver = seat.take()?;
        let stop = driver.round(batch);
        if driver.has_ended() {
            return None;
        }
        if let Some(reply) = stop {
            driver.stop(reply);
            return None;
        }
        let wait = driver.wait();
        *seat = Some(driver);
        Some(wait)
    }

    /// Does a write on this thread; gives it back if it is not its turn, for the replica thread.
    pub(crate) fn write(&self, write: Write, events: &EventSender) -> Option<Write> {
        let Some(mut seat) = self.0.try_lock() else { return Some(write) };
        let Some(driver) = seat.as_mut().filter(|driver| driver.is_idle()) else {
            return Some(write);
        };
        let wrote = catch_unwind(AssertUnwindSafe(|| driver.write(write)));
        if wrote.is_err() {
            // What it holds is halfway to something; whoever waits for it hears that it has ended.
            *seat = None;
        }
        MutexGuard::unlock_fair(seat);
        if wrote.unwrap_or(true) {
            // An error says that the thread has ended already.
            let _ = events.send(Event::Input(Input::Wake));
        }
        None
    }
}

/// Waits for an event, no longer than it is worth.
fn next_event(
    inbox: &mpsc::Receiver<Event>,
    wait: Option<Duration>,
) -> Result<Option<Event>, mpsc::RecvError> {
    match wait {
        None => inbox.recv().map(Some),
        Some(Duration::ZERO) => Ok(None),
        Some(wait) => match inbox.recv_timeout(wait) {
            Ok(event) => Ok(Some(event)),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(mpsc::RecvError),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        thread::{self, ThreadId},
        time::Instant,
    };

    use littoral::{ClusterId, Genesis, Identity, Incarnation, NodeId, WriteError, WriteTx};

    use super::{super::Runtime, *};
    use crate::{
        config::{Config, Links, Storage, Tls},
        http::PROGRAMS,
        runtime::NodeHandle,
    };

    const LIMIT: Duration = Duration::from_secs(5);

    async fn start(directory: &Path) -> Runtime {
        let pem = directory.join("none.pem");
        let (ca, certificate, key) = (pem.clone(), pem.clone(), pem);
        let (cluster, incarnation) = (ClusterId(1), Incarnation(2));
        let identity = Identity { cluster, node: NodeId::new("a").unwrap(), incarnation };
        let members = vec![(identity.node.clone(), incarnation)];
        let genesis = Genesis { members, ..Genesis::default() };
        let config = Config {
            identity,
            database: directory.join("data.sqlite"),
            links: Links { listen: ([127, 0, 0, 1], 0).into(), dial: Vec::new() },
            tls: Tls { ca, certificate, key, revoked: None },
            http: None,
            storage: Storage::default(),
            read_only: false,
            genesis: Some(genesis),
        };
        let started = tokio::task::spawn_blocking(move || Runtime::start(&config, PROGRAMS));
        started.await.unwrap().unwrap()
    }

    /// Which thread does a write that is thought to be short.
    async fn thread_of_short(node: &NodeHandle) -> ThreadId {
        let here = &node.here;
        here.known.took(here.known.name("short"), Duration::ZERO);
        let job = |_: &mut WriteTx<'_>| Ok(thread::current().id());
        node.write_within(LIMIT, Some("short"), job).await.unwrap().0
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_short_write_is_done_by_who_brings_it_unless_others_have_the_writer() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = start(directory.path()).await;
        let node = runtime.handle();
        let here = thread::current().id();

        let unknown = |_: &mut WriteTx<'_>| Ok(thread::current().id());
        assert_ne!(node.write_within(LIMIT, Some("other"), unknown).await.unwrap().0, here);
        assert_ne!(node.write(unknown).await.unwrap().0, here);
        // The replica thread may be at something just then.
        while thread_of_short(node).await != here {}

        let transaction = node.begin().await.unwrap();
        let waits = tokio::spawn({
            let node = node.clone();
            async move { thread_of_short(&node).await }
        });
        transaction.step(|_| ()).await.unwrap();
        assert!(!waits.is_finished());
        transaction.commit().await.unwrap();
        waits.await.unwrap();
        while thread_of_short(node).await != here {}
        runtime.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_lone_worker_is_at_no_statement() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = start(directory.path()).await;
        let node = runtime.handle();
        let here = thread::current().id();
        for _ in 0..3 {
            assert_ne!(thread_of_short(node).await, here);
            let read = node.read_known(None, "read", |_| thread::current().id()).await.unwrap();
            assert_ne!(read, here);
        }
        runtime.stop().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_ends_if_a_write_panics_that_who_brings_it_does() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = start(directory.path()).await;
        let node = runtime.handle();
        while thread_of_short(node).await != thread::current().id() {}
        let panics = |_: &mut WriteTx<'_>| -> Result<(), WriteError> { panic!("by a test") };
        while node.here.seat.0.lock().is_some() {
            node.here.known.took(node.here.known.name("panics"), Duration::ZERO);
            let failed = node.write_within(LIMIT, Some("panics"), panics).await;
            assert!(matches!(failed, Err(WriteError::Unavailable(_))), "{failed:?}");
        }
        node.ended().await;
        assert!(runtime.stop().await.is_err());
    }

    /// The longest that a timer was late while the work ran in a task of its own.
    async fn latest_beside(work: impl Future<Output = bool> + Send + 'static) -> (Duration, bool) {
        const TICK: Duration = Duration::from_millis(5);
        let work = tokio::spawn(async move {
            // The worker that waits for timers has it from here on.
            tokio::time::sleep(TICK).await;
            work.await
        });
        let mut latest = Duration::ZERO;
        while !work.is_finished() {
            let began = Instant::now();
            tokio::time::sleep(TICK).await;
            latest = latest.max(began.elapsed());
        }
        (latest, work.await.unwrap())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_statement_that_takes_long_where_it_comes_from_keeps_no_timer_waiting() {
        const LONG: Duration = Duration::from_secs(1);
        let directory = tempfile::tempdir().unwrap();
        let runtime = start(directory.path()).await;
        let latest = |work: fn(NodeHandle) -> Work| {
            let node = runtime.handle().clone();
            async move {
                loop {
                    let (latest, was_here) = latest_beside(work(node.clone())).await;
                    if was_here {
                        return latest;
                    }
                }
            }
        };
        let writes = latest(|node| {
            Box::pin(async move {
                let here = thread::current().id();
                node.here.known.took(node.here.known.name("write"), Duration::ZERO);
                let job = move |_: &mut WriteTx<'_>| Ok(sleep_on(here, LONG));
                node.write_within(LIMIT, Some("write"), job).await.unwrap().0
            })
        });
        let writes = writes.await;
        assert!(writes < LONG / 2, "{writes:?}");
        let reads = latest(|node| {
            Box::pin(async move {
                node.read_known(None, "read", |_| ()).await.unwrap();
                let here = thread::current().id();
                node.read_known(None, "read", move |_| sleep_on(here, LONG)).await.unwrap()
            })
        });
        let reads = reads.await;
        assert!(reads < LONG / 2, "{reads:?}");
        runtime.stop().await.unwrap();
    }

    type Work = std::pin::Pin<Box<dyn Future<Output = bool> + Send>>;

    /// Sleeps if this is the thread; tells whether it is.
    fn sleep_on(which: ThreadId, how_long: Duration) -> bool {
        let is_it = thread::current().id() == which;
        if is_it {
            thread::sleep(how_long);
        }
        is_it
    }
}
