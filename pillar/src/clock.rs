//! What time it is, on a machine whose clock may have stopped at 1970.
//!
//! ```text
//!            floor: the latest of {bundle made, time kept on disk}
//!   Floored ------------------------------------------------------> Trusted
//!      ^   system clock set to the floor if it is below             first authenticated answer of the controller: its
//!      |                                                            Date header sets the clock, and the floor rises
//!    boot
//! ```
//!
//! While the clock is only floored, certificates are checked against a time within their validity instead of against the
//! clock: the roots are pinned by the image, so that a validity period says when a certificate is to be replaced, and not
//! whom to trust. Once the clock is trusted, it is used.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::durable;

/// Differences up to this come from the Date header's resolution and the way of the answer, in seconds.
const TOLERANCE: u64 = 3;

/// Once the clock was set, only real drift moves it again, in seconds.
const DRIFT: u64 = 30;

/// How often the floor on the disk is raised.
const KEEP_EVERY: u64 = 3600;

/// The device's clock. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Where the floor is kept, or nowhere in tests.
    file: Option<PathBuf>,
    floor: AtomicU64,
    kept: AtomicU64,
    trusted: AtomicBool,
    /// Whether the system clock may be set at all; not on a build machine.
    may_set: bool,
}

/// What to do about a time that the controller named.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// The clock is right.
    Leave,
    /// Set it to this, seconds since 1970.
    Set(u64),
    /// The named time is before the floor and therefore wrong.
    Refuse,
}

impl Clock {
    /// The clock with a floor of `built_at` and of what lies at `file`. Sets the system clock if that is below.
    #[must_use]
    pub fn start(file: PathBuf, built_at: Option<SystemTime>, may_set: bool) -> Self {
        let kept = match durable::read(&file) {
            Ok(bytes) => bytes.and_then(|bytes| parse_floor(&bytes)).unwrap_or(0),
            Err(error) => {
                tracing::warn!(%error, "time floor");
                0
            }
        };
        let built = built_at.map_or(0, seconds);
        let clock = Self {
            inner: Arc::new(Inner {
                file: Some(file),
                floor: AtomicU64::new(kept.max(built)),
                kept: AtomicU64::new(kept),
                trusted: AtomicBool::new(false),
                may_set,
            }),
        };
        let floor = clock.inner.floor.load(Ordering::Relaxed);
        if seconds(SystemTime::now()) < floor {
            clock.set_system(floor);
        }
        clock
    }

    /// A clock that is not kept, sets nothing, and is floored at `floor`.
    #[must_use]
    pub fn unset(floor: SystemTime) -> Self {
        Self {
            inner: Arc::new(Inner {
                file: None,
                floor: AtomicU64::new(seconds(floor)),
                kept: AtomicU64::new(0),
                trusted: AtomicBool::new(false),
                may_set: false,
            }),
        }
    }

    /// Whether the controller has confirmed the time since the agent started.
    #[must_use]
    pub fn trusted(&self) -> bool {
        self.inner.trusted.load(Ordering::Relaxed)
    }

    /// The time: the system clock's, but never below the floor.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        let floor = UNIX_EPOCH + Duration::from_secs(self.inner.floor.load(Ordering::Relaxed));
        SystemTime::now().max(floor)
    }

    /// Seconds since 1970 of [`Clock::now`].
    #[must_use]
    pub fn seconds(&self) -> u64 {
        seconds(self.now())
    }

    /// Takes the `Date` header of an authenticated answer (RFC 9110, section 5.6.7). Returns whether the clock was set.
    pub fn learn(&self, date: &str) -> bool {
        let Some(named) = parse_http_date(date) else {
            tracing::warn!(date, "controller's Date header not understood");
            return false;
        };
        let floor = self.inner.floor.load(Ordering::Relaxed);
        let tolerance = if self.trusted() { DRIFT } else { TOLERANCE };
        match plan(seconds(SystemTime::now()), named, floor, tolerance) {
            Step::Refuse => {
                tracing::warn!(
                    date,
                    "controller's time is before this device's image was made; not taken"
                );
                false
            }
            Step::Leave => {
                self.trust(named);
                false
            }
            Step::Set(to) => {
                self.set_system(to);
                self.trust(named);
                true
            }
        }
    }

    fn trust(&self, named: u64) {
        self.inner.trusted.store(true, Ordering::Relaxed);
        self.inner.floor.fetch_max(named, Ordering::Relaxed);
        let kept = self.inner.kept.load(Ordering::Relaxed);
        let Some(file) = self
            .inner
            .file
            .clone()
            .filter(|_| named >= kept.saturating_add(KEEP_EVERY))
        else {
            return;
        };
        self.inner.kept.store(named, Ordering::Relaxed);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = durable::write(&file, named.to_string().as_bytes()) {
                tracing::warn!(%error, "time floor not kept");
            }
        });
    }

    fn set_system(&self, to: u64) {
        if !self.inner.may_set {
            return;
        }
        let Ok(tv_sec) = libc::time_t::try_from(to) else {
            return;
        };
        let time = libc::timespec { tv_sec, tv_nsec: 0 };
        // SAFETY: clock_settime reads one timespec that lives through the call, and changes nothing in this process.
        let result = unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) };
        if result == 0 {
            tracing::info!(to, "clock set");
        } else {
            tracing::warn!(to, error = %std::io::Error::last_os_error(), "clock not set");
        }
    }
}

fn plan(system: u64, named: u64, floor: u64, tolerance: u64) -> Step {
    // A day of slack: the bundle may have been made by a machine whose clock is ahead of the controller's.
    if named.saturating_add(86_400) < floor {
        Step::Refuse
    } else if system.abs_diff(named) <= tolerance {
        Step::Leave
    } else {
        Step::Set(named)
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn parse_floor(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.trim().parse().ok()
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, the only form that a sender may make.
#[must_use]
pub fn parse_http_date(text: &str) -> Option<u64> {
    let time = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(text)
        .ok()?;
    u64::try_from(time.as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "Fri, 20 Nov 2026 20:00:00 GMT";
    const AT: u64 = 1_795_204_800;

    #[test]
    fn dates() {
        assert_eq!(
            parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(784_111_777)
        );
        assert_eq!(parse_http_date(DATE), Some(AT));
        for bad in [
            "",
            "yesterday",
            "Thu, 01 Jan 1960 00:00:00 GMT",
            "Fri, 99 Nov 2026 20:00:00 GMT",
        ] {
            assert_eq!(parse_http_date(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_to_do_about_a_named_time() {
        let table = [
            ("right", AT, AT, 0, Step::Leave),
            ("off by the header's resolution", AT + 2, AT, 0, Step::Leave),
            ("1970", 60, AT, 0, Step::Set(AT)),
            ("in the future", AT + 1_000_000, AT, 0, Step::Set(AT)),
            (
                "controller below the floor",
                AT,
                AT - 200_000,
                AT,
                Step::Refuse,
            ),
            (
                "controller a little below the floor",
                AT + 90,
                AT - 90,
                AT,
                Step::Set(AT - 90),
            ),
        ];
        for (name, system, named, floor, step) in table {
            assert_eq!(plan(system, named, floor, TOLERANCE), step, "{name}");
        }
    }

    #[tokio::test]
    async fn the_floor_is_the_latest_of_bundle_and_disk_and_rises_with_the_controllers_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("clock");
        let far = UNIX_EPOCH + Duration::from_secs(5_000_000_000);
        let clock = Clock::start(file.clone(), Some(far), false);
        assert!(!clock.trusted());
        assert_eq!(clock.seconds(), 5_000_000_000);
        assert!(!clock.learn(DATE), "a time before the floor is refused");
        assert!(!clock.trusted());

        assert!(clock.learn("Tue, 31 Dec 2199 00:00:00 GMT"));
        assert!(clock.trusted());
        for _ in 0..200 {
            if file.exists() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let again = Clock::start(file, None, false);
        assert_eq!(
            again.seconds(),
            parse_http_date("Tue, 31 Dec 2199 00:00:00 GMT").unwrap()
        );
        assert!(!again.trusted());
    }

    #[test]
    fn a_damaged_floor_is_no_floor() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("clock");
        std::fs::write(&file, b"rubbish").unwrap();
        let clock = Clock::start(file, None, false);
        assert!(clock.seconds() < 5_000_000_000);
    }
}
