//! The two clocks of this process as the engine's [`Now`]. Nothing else in the crate makes one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use littoral::{Now, WallTime};

/// Reads both clocks. Monotonic time counts from the clock's creation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Duration,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: monotonic() }
    }

    pub(crate) fn now(self) -> Now {
        let elapsed = monotonic().saturating_sub(self.start);
        let mono = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        Now { mono: littoral::Instant(mono), wall: wall_time() }
    }
}

/// Time that passes also while the machine sleeps: the engine's estimate of the origin's clock goes on
/// with it, and links that have slept are dead.
#[cfg(target_os = "linux")]
fn monotonic() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// Time since the first call; whether it passes while the machine sleeps is up to the system.
#[cfg(not(target_os = "linux"))]
fn monotonic() -> Duration {
    use std::{sync::OnceLock, time::Instant};
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// The wall clock alone. A clock set before 1970 counts as 1970.
pub(crate) fn wall_time() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
