//! [`Streams`]: streams that wait for their next request, each under its baton.
//!
//! Invariants: a baton is used once, and nobody can guess one; a stream that nobody uses for
//! [`IDLE_LIMIT`] is closed, and its transaction rolled back.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use super::{program::BadRequest, stream::Stream};

/// How long a stream waits for its next request.
pub(super) const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// Streams that are open at most, those of WebSockets included.
const STREAMS_MAX: usize = 2048;

/// How often it is looked for streams that nobody uses.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// A request waits so long for the cursor before it to end.
const CURSOR_WAIT: Duration = Duration::from_secs(35);

/// All streams that are kept.
#[derive(Debug)]
pub(crate) struct Streams {
    kept: Mutex<Kept>,
    places: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Kept {
    next: u64,
    entries: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// `None` while a request has it.
    secret: Option<blake3::Hash>,
    used: Instant,
    stream: Arc<AsyncMutex<Stream>>,
    _place: Place,
}

/// Counts a stream among those that are open.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
}

/// A stream in the hands of a request.
pub(super) struct Lease {
    streams: Arc<Streams>,
    /// `None` for one that is not kept so far.
    id: Option<u64>,
    /// Room for it, if it is to be kept.
    place: Option<Place>,
    stream: OwnedMutexGuard<Stream>,
}

impl Streams {
    /// An empty one, swept as long as it is used.
    pub(crate) fn start() -> Arc<Self> {
        let streams = Arc::new(Self {
            kept: Mutex::default(),
            places: Arc::new(Semaphore::new(STREAMS_MAX)),
        });
        let swept = Arc::downgrade(&streams);
        tokio::spawn(async move {
            while let Some(()) = Self::sweep(&swept) {
                tokio::time::sleep(SWEEP_EVERY).await;
            }
        });
        streams
    }

    fn sweep(streams: &Weak<Self>) -> Option<()> {
        let streams = streams.upgrade()?;
        let unused = |entry: &mut Entry| {
            if entry.stream.try_lock().is_err() {
                // A cursor is still being read.
                entry.used = Instant::now();
            }
            entry.secret.is_some() && entry.used.elapsed() >= IDLE_LIMIT
        };
        let expired: Vec<Entry> = {
            let mut kept = streams.kept.lock();
            kept.entries.extract_if(|_, entry| unused(entry)).map(|(_, entry)| entry).collect()
        };
        drop(expired);
        Some(())
    }

    /// Closes all.
    pub(crate) fn close(&self) {
        self.places.close();
        let entries = std::mem::take(&mut self.kept.lock().entries);
        drop(entries);
    }

    /// Room for one more stream.
    pub(super) fn place(&self) -> Result<Place, BadRequest> {
        let permit = Arc::clone(&self.places).try_acquire_owned();
        permit.map(|permit| Place { _permit: permit }).map_err(|_| {
            let message = format!("{STREAMS_MAX} streams are open already; try again later");
            BadRequest::new("TOO_MANY_STREAMS", message)
        })
    }

    /// The stream of a baton; a new one without.
    pub(super) async fn take(self: &Arc<Self>, baton: Option<&str>) -> Result<Lease, BadRequest> {
        let streams = Arc::clone(self);
        let Some(baton) = baton else {
            let stream = Arc::new(AsyncMutex::new(Stream::default()));
            let stream = stream.lock_owned().await;
            return Ok(Lease { streams, id: None, place: None, stream });
        };
        let (id, secret) = read(baton).ok_or_else(unknown)?;
        let stream = {
            let mut kept = self.kept.lock();
            let entry = kept.entries.get_mut(&id).ok_or_else(unknown)?;
            // Compared by their hashes, which takes as long wherever they differ.
            if entry.secret != Some(blake3::hash(&secret)) {
                return Err(unknown());
            }
            entry.secret = None;
            Arc::clone(&entry.stream)
        };
        // Dropped on the way, it would wait for ever with nobody who has its baton.
        let unused = Unused { streams: Arc::clone(self), id };
        let Ok(stream) = tokio::time::timeout(CURSOR_WAIT, stream.lock_owned()).await else {
            return Err(BadRequest::new("STREAM_BUSY", "the cursor before it has not ended"));
        };
        std::mem::forget(unused);
        Ok(Lease { streams, id: Some(id), place: None, stream })
    }

    fn remove(&self, id: u64) {
        let entry = self.kept.lock().entries.remove(&id);
        drop(entry);
    }
}

/// Removes a stream that nobody can come back to.
struct Unused {
    streams: Arc<Streams>,
    id: u64,
}

impl Drop for Unused {
    fn drop(&mut self) {
        self.streams.remove(self.id);
    }
}

impl Lease {
    pub(super) fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// Makes room for the stream, before anything runs that it may have to be kept for.
    pub(super) fn reserve(&mut self) -> Result<(), BadRequest> {
        if self.id.is_none() && self.place.is_none() {
            self.place = Some(self.streams.place()?);
        }
        Ok(())
    }

    /// Ends the request. If the stream is to be kept, this is its next baton.
    pub(super) fn finish(mut self, closes: bool) -> Result<Option<String>, BadRequest> {
        if closes || !self.stream.keeps_something() {
            return Ok(None);
        }
        self.next_baton().map(Some)
    }

    /// A baton for the request after this one, which may come before this one has ended.
    pub(super) fn next_baton(&mut self) -> Result<String, BadRequest> {
        let mut secret = [0; 16];
        getrandom::fill(&mut secret)
            .map_err(|error| BadRequest::new("LITTORAL_UNAVAILABLE", error.to_string()))?;
        let hash = Some(blake3::hash(&secret));
        self.reserve()?;
        let (known, place) = (self.id, self.place.take());
        let mut kept = self.streams.kept.lock();
        let id = match (known, place) {
            (None, Some(place)) => {
                let id = kept.next;
                kept.next += 1;
                let stream = Arc::clone(OwnedMutexGuard::mutex(&self.stream));
                let entry = Entry { secret: hash, used: Instant::now(), stream, _place: place };
                kept.entries.insert(id, entry);
                id
            }
            (known, _) => {
                let id = known.unwrap_or_default();
                // It is gone only if all are closed.
                let entry = kept.entries.get_mut(&id).ok_or_else(unknown)?;
                (entry.secret, entry.used) = (hash, Instant::now());
                id
            }
        };
        drop(kept);
        // Whoever has the baton decides from here on.
        self.id = None;
        let bytes = [&id.to_le_bytes()[..], &secret].concat();
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.streams.remove(id);
        }
    }
}

fn read(baton: &str) -> Option<(u64, Vec<u8>)> {
    let bytes = URL_SAFE_NO_PAD.decode(baton).ok()?;
    let (id, secret) = bytes.split_at_checked(8)?;
    Some((u64::from_le_bytes(id.try_into().ok()?), secret.to_vec()))
}

fn unknown() -> BadRequest {
    let message = format!(
        "the baton is not known: a stream is closed when nobody uses it for {} s, and a baton is used \
         once",
        IDLE_LIMIT.as_secs()
    );
    BadRequest::new("STREAM_EXPIRED", message)
}

#[cfg(test)]
mod tests {
    use super::{super::stream::Open, *};

    async fn keep(streams: &Arc<Streams>, baton: Option<&str>) -> String {
        let mut lease = streams.take(baton).await.unwrap_or_else(|error| panic!("{error:?}"));
        lease.stream().open = Open::Begun { read_only: true, undecided: false };
        lease.finish(false).unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_baton_is_good_for_one_request() {
        let streams = Streams::start();
        let first = keep(&streams, None).await;
        let second = keep(&streams, Some(&first)).await;
        assert_ne!(first, second);
        for wrong in [first.as_str(), "", "nonsense", &second[..second.len() - 2]] {
            assert!(streams.take(Some(wrong)).await.is_err(), "{wrong}");
        }
        let mut lease = streams.take(Some(&second)).await.ok().unwrap();
        assert!(streams.take(Some(&second)).await.is_err(), "it is in use");
        lease.stream().open = Open::No;
        assert_eq!(lease.finish(false), Ok(None), "there is nothing to come back to");
        assert!(streams.kept.lock().entries.is_empty());
    }

    #[tokio::test]
    async fn whoever_finds_no_room_hears_so_before_anything_runs() {
        let streams = Streams::start();
        let mut all = Vec::new();
        for _ in 0..STREAMS_MAX {
            all.push(streams.place().unwrap());
        }
        let mut lease = streams.take(None).await.ok().unwrap();
        assert_eq!(lease.reserve().unwrap_err().0.code, "TOO_MANY_STREAMS");
        all.pop();
        lease.reserve().unwrap();
        assert!(streams.place().is_err(), "it has its place");
        drop(lease);
        assert!(streams.place().is_ok());
    }

    #[tokio::test]
    async fn a_request_that_is_given_up_closes_its_stream() {
        let streams = Streams::start();
        let baton = keep(&streams, None).await;
        drop(streams.take(Some(&baton)).await.ok().unwrap());
        assert!(streams.kept.lock().entries.is_empty());
    }

    #[tokio::test]
    async fn the_next_request_waits_for_a_cursor() {
        let streams = Streams::start();
        let mut lease = streams.take(None).await.ok().unwrap();
        let baton = lease.next_baton().unwrap();
        let next = tokio::spawn({
            let streams = Arc::clone(&streams);
            async move { streams.take(Some(&baton)).await.is_ok() }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!next.is_finished());
        drop(lease);
        assert!(next.await.unwrap());
    }
}
