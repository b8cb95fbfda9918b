//! The two clocks of this process as the engine's [`Now`]. Nothing else in the crate makes one.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use littoral::{Now, WallTime};

/// Reads both clocks. Monotonic time counts from the clock's creation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn now(self) -> Now {
        let mono = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Now { mono: littoral::Instant(mono), wall: wall_time() }
    }
}

/// The wall clock alone. A clock set before 1970 counts as 1970.
pub(crate) fn wall_time() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
