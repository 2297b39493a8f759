//! What time it is, on a machine whose clock may have stopped at 1970.
//!
//! ```text
//!            floor: the later of {image made, time kept on disk}
//!   Floored ------------------------------------------------------> Trusted
//!      ^   system clock set to the floor if it is below             a signed time: that of a challenge or a grant, or the
//!      |                                                            Date header of a signed answer. It sets the clock, and
//!      |                                                            the kept floor rises
//!    boot, or an hour without an answer that confirms the time <-------'
//! ```
//!
//! While the clock is only floored, certificates are checked against a time within their validity instead of against the
//! clock: the roots are pinned by the image, so that a validity period says when a certificate is to be replaced, and not
//! whom to trust. Once the clock is trusted, it is used.
//!
//! A controller's own clock may be wrong for a while, and the device must get over that. So the clock follows what it is
//! told, but the floor that outlives a restart follows slowly: a day an hour at most. A floor that is too high all the
//! same gives way to a controller that names the same earlier time for an hour; only the time at which the image was
//! made stands for good. And trust that no answer renews lapses, so that a device whose clock was set to 2099 does not
//! refuse for ever the certificates of the controller that would tell it better.
//!
//! Between signed times the clock may go by time servers: see [`crate::time_servers`].

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::generations;
use crate::status::{Status, Topic};

/// Differences up to this come from the Date header's resolution and the way of the answer, in seconds.
const TOLERANCE: u64 = 3;

/// Once the clock was set, only real drift moves it again, in seconds.
const DRIFT: u64 = 30;

/// How far a time may lie below a floor, in seconds: a bundle may have been made by a machine whose clock is ahead of
/// the controller's.
const SLACK: u64 = 86_400;

/// How often the kept floor is raised at most.
const RAISE_EVERY: Duration = Duration::from_secs(3600);

/// By how much it is raised at a time, in seconds.
const RAISE_BY: u64 = 86_400;

/// How long a controller has to name times below the kept floor until it is believed.
const INSIST: Duration = Duration::from_secs(3600);

/// How far such times may be from one steady clock, in seconds.
const STEADY: u64 = 300;

/// How long trust lasts that no answer renews.
const TRUST: Duration = Duration::from_secs(3600);

/// The first second that is no time for anybody here: a Date header and a bundle can name years up to 9999.
const END: u64 = 253_402_300_800;

/// The device's clock. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Where the floor is kept, or nowhere in tests.
    file: Option<PathBuf>,
    state: Mutex<State>,
    /// Whether the system clock may be set at all; not on a build machine.
    may_set: bool,
    status: Option<Status>,
}

#[derive(Debug, Default)]
struct State {
    floors: Floors,
    /// What lies on the disk.
    written: u64,
    /// When an answer confirmed the time last.
    confirmed: Option<Instant>,
    /// Whether a signed answer has named a time that was believed, since the agent started.
    heard: bool,
    /// The last time that was believed, seconds since 1970, and when it was named.
    named: Option<(Instant, u64)>,
    /// How often the clock had to be put right by more than it drifts.
    corrections: u64,
    /// How far the system clock is behind, in seconds, where it may not be set.
    behind: i64,
}

/// Below what the time cannot be, in seconds since 1970.
#[derive(Clone, Debug, Default)]
struct Floors {
    /// When the image was made.
    built: u64,
    /// What the controller said, as far as it was believed.
    kept: u64,
    /// When `kept` was moved.
    moved: Option<Instant>,
    /// The first of the times below `kept` that the controller names steadily, and when it did.
    insisted: Option<(Instant, u64)>,
}

/// Which floor a time is below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Floor {
    Image,
    Kept,
}

/// What to do about a time that the controller named.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// The clock is right.
    Leave,
    /// Set it to this, seconds since 1970.
    Set(u64),
    /// The named time is below a floor.
    Refuse(Floor),
}

impl State {
    fn system(&self) -> SystemTime {
        let (now, off) = (
            SystemTime::now(),
            Duration::from_secs(self.behind.unsigned_abs()),
        );
        let put_right = match self.behind {
            0.. => now.checked_add(off),
            _ => now.checked_sub(off),
        };
        put_right.unwrap_or(now)
    }
}

impl Floors {
    fn get(&self) -> u64 {
        self.built.max(self.kept)
    }

    /// Takes a time that the controller named at `now`.
    fn hear(&mut self, system: u64, named: u64, tolerance: u64, now: Instant) -> Step {
        if named.saturating_add(SLACK) < self.built {
            return Step::Refuse(Floor::Image);
        }
        if named.saturating_add(SLACK) < self.kept {
            let steady = self.insisted.filter(|(since, first)| {
                let passed = now.saturating_duration_since(*since).as_secs();
                first.saturating_add(passed).abs_diff(named) <= STEADY
            });
            let (since, _) = *self.insisted.insert(steady.unwrap_or((now, named)));
            if now.saturating_duration_since(since) < INSIST {
                return Step::Refuse(Floor::Kept);
            }
            self.kept = named;
            self.moved = Some(now);
        }
        self.insisted = None;
        let due = |at: Instant| now.saturating_duration_since(at) >= RAISE_EVERY;
        if self.moved.is_none_or(due) {
            let highest = self.get().saturating_add(RAISE_BY);
            self.kept = self.kept.max(named.min(highest));
            self.moved = Some(now);
        }
        if system.abs_diff(named) <= tolerance {
            Step::Leave
        } else {
            Step::Set(named)
        }
    }
}

impl Clock {
    /// The clock with a floor of `built_at` and of what lies at `file`. Sets the system clock if that is below.
    #[must_use]
    pub fn start(
        file: PathBuf,
        built_at: Option<SystemTime>,
        may_set: bool,
        status: Status,
    ) -> Self {
        let lost = |reason: &str| {
            status.raise(
                Topic::ClockFloor,
                &format!(
                    "the last known time was lost: {reason}; until the controller answers, the clock may be behind"
                ),
            );
            0
        };
        let kept = match generations::read(&file) {
            Ok(None) => 0,
            Ok(Some(bytes)) => parse_floor(&bytes)
                .unwrap_or_else(|| lost(&format!("{} names no possible time", file.display()))),
            Err(error) => lost(&error.to_string()),
        };
        let clock = Self {
            inner: Arc::new(Inner {
                file: Some(file),
                state: Mutex::new(State {
                    floors: Floors {
                        built: built_at.map_or(0, seconds),
                        kept,
                        ..Floors::default()
                    },
                    written: kept,
                    ..State::default()
                }),
                may_set,
                status: Some(status),
            }),
        };
        let floor = clock.state().floors.get();
        if seconds(SystemTime::now()) < floor {
            clock.set_system(floor);
        }
        clock
    }

    /// A clock that is not kept, sets nothing, and is floored at `floor`.
    #[must_use]
    pub fn unset(floor: SystemTime) -> Self {
        let floors = Floors {
            built: seconds(floor),
            ..Floors::default()
        };
        Self {
            inner: Arc::new(Inner {
                file: None,
                state: Mutex::new(State {
                    floors,
                    ..State::default()
                }),
                may_set: false,
                status: None,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the controller has confirmed the time within the last hour.
    #[must_use]
    pub fn trusted(&self) -> bool {
        self.state()
            .confirmed
            .is_some_and(|confirmed| confirmed.elapsed() < TRUST)
    }

    /// The time: the system clock's, put right where that may not be set, but never below the floor.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        let state = self.state();
        let floor = Duration::from_secs(state.floors.get());
        let now = state.system();
        // A floor that is no time is none.
        UNIX_EPOCH
            .checked_add(floor)
            .map_or(now, |floor| now.max(floor))
    }

    /// Seconds since 1970 of [`Clock::now`].
    #[must_use]
    pub fn seconds(&self) -> u64 {
        seconds(self.now())
    }

    /// Takes the `Date` header of a signed answer (RFC 9110, section 5.6.7). Returns whether the clock was set.
    pub fn learn(&self, date: &str) -> bool {
        self.hear_date(date, true)
    }

    /// Takes a time that the owner's delegate signed over a nonce of ours, in milliseconds since 1970: the first that a device hears
    /// which enrols by the zero-touch way. Returns whether the clock was set.
    pub fn learn_signed(&self, milliseconds: i64) -> bool {
        let named = u64::try_from(milliseconds / 1000).ok();
        let Some(named) = named.filter(|named| *named < END) else {
            tracing::warn!(milliseconds, "controller's signed time is no time");
            return false;
        };
        self.hear(named, true)
    }

    /// Whether a signed answer has named a time that was believed, since the agent started.
    #[must_use]
    pub fn has_heard(&self) -> bool {
        self.state().heard
    }

    /// How often the clock had to be put right by more than it drifts: something else has moved it, unless it was the first time.
    #[must_use]
    pub fn corrections(&self) -> u64 {
        self.state().corrections
    }

    /// The earliest time that it can be, seconds since 1970.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.state().floors.get()
    }

    /// The same of an answer that TLS alone vouches for: enough to keep a good clock good and to put a doubtful one
    /// right, not to tell the time first.
    pub fn confirm(&self, date: &str) -> bool {
        self.hear_date(date, false)
    }

    fn hear_date(&self, date: &str, signed: bool) -> bool {
        let Some(named) = parse_http_date(date) else {
            tracing::warn!(date, "controller's Date header not understood");
            return false;
        };
        self.hear(named, signed)
    }

    /// Puts the clock back where the last believed time has it by now, if something moved it further than a clock drifts: half a minute, and
    /// half a second in a thousand. Returns whether it did.
    pub fn hold(&self) -> bool {
        let right = {
            let mut state = self.state();
            let Some((since, named)) = state.named else {
                return false;
            };
            let passed = since.elapsed().as_secs();
            let right = named.saturating_add(passed);
            if seconds(state.system()).abs_diff(right) <= DRIFT + passed / 2000 {
                return false;
            }
            state.corrections += 1;
            right
        };
        self.set_system(right)
    }

    /// Takes a time: a signed one, or another once a signed one was believed.
    fn hear(&self, named: u64, signed: bool) -> bool {
        let tolerance = if self.trusted() { DRIFT } else { TOLERANCE };
        let (step, floors, keep) = {
            let mut state = self.state();
            if !state.heard && !signed {
                return false;
            }
            let system = seconds(state.system());
            let now = Instant::now();
            let step = state.floors.hear(system, named, tolerance, now);
            if !matches!(step, Step::Refuse(_)) {
                state.confirmed = Some(now);
                state.named = Some((now, named));
                state.heard = true;
            }
            if matches!(step, Step::Set(_)) && system.abs_diff(named) > DRIFT {
                state.corrections += 1;
            }
            let kept = state.floors.kept;
            let keep = (std::mem::replace(&mut state.written, kept) != kept).then_some(kept);
            (step, state.floors.clone(), keep)
        };
        if let Some(kept) = keep {
            self.keep(kept);
        }
        match step {
            Step::Refuse(floor) => {
                self.raise(Topic::Clock, &refusal(named, floor, &floors));
                false
            }
            Step::Leave => {
                self.clear(Topic::Clock);
                false
            }
            Step::Set(to) => {
                if self.set_system(to) {
                    self.clear(Topic::Clock);
                }
                true
            }
        }
    }

    fn keep(&self, kept: u64) {
        let Some(file) = self.inner.file.clone() else {
            return;
        };
        let clock = self.clone();
        tokio::task::spawn_blocking(move || {
            match generations::write(&file, kept.to_string().as_bytes()) {
                Ok(()) => clock.clear(Topic::ClockFloor),
                Err(error) => clock.raise(
                    Topic::ClockFloor,
                    &format!(
                        "the time cannot be kept: {error}; after a restart without a battery the clock will be behind"
                    ),
                ),
            }
        });
    }

    /// Sets the system clock; false if it cannot be. Where it may not be set, how far it is off is remembered.
    fn set_system(&self, to: u64) -> bool {
        if !self.inner.may_set {
            let off = i128::from(to) - i128::from(seconds(SystemTime::now()));
            self.state().behind = i64::try_from(off).unwrap_or(0);
            return true;
        }
        let Ok(tv_sec) = libc::time_t::try_from(to) else {
            return false;
        };
        let time = libc::timespec { tv_sec, tv_nsec: 0 };
        // SAFETY: clock_settime reads one timespec that lives through the call, and changes nothing in this process.
        let result = unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) };
        if result == 0 {
            tracing::info!(to, "clock set");
            return true;
        }
        let error = std::io::Error::last_os_error();
        self.raise(
            Topic::Clock,
            &format!(
                "the clock cannot be set to {}: {error}; times that this device tells are wrong",
                date(to)
            ),
        );
        false
    }

    fn raise(&self, topic: Topic, message: &str) {
        match &self.inner.status {
            Some(status) => status.raise(topic, message),
            None => tracing::warn!(%topic, "{message}"),
        }
    }

    fn clear(&self, topic: Topic) {
        if let Some(status) = &self.inner.status {
            status.clear(topic);
        }
    }
}

/// Why a time is not taken, and what will become of it.
fn refusal(named: u64, floor: Floor, floors: &Floors) -> String {
    let named = date(named);
    match floor {
        Floor::Image => format!(
            "the controller's clock says {named}, but this device's image was made at {}; its time is not taken",
            date(floors.built)
        ),
        Floor::Kept => format!(
            "the controller's clock says {named}, but the controller said before that it was {}; its time is taken if it \
             keeps to it for {} minutes",
            date(floors.kept),
            INSIST.as_secs() / 60
        ),
    }
}

fn date(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(
            || format!("{seconds} s after 1970"),
            |at| at.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        )
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Seconds since 1970 as they are kept on the disk; none if that is no time that anybody can have named.
#[must_use]
pub fn parse_floor(bytes: &[u8]) -> Option<u64> {
    let seconds = std::str::from_utf8(bytes).ok()?.trim().parse().ok()?;
    (seconds < END).then_some(seconds)
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
    const HOUR: u64 = 3600;

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
    fn what_moves_the_clock_away_is_put_right_and_counted() {
        let clock = Clock::unset(UNIX_EPOCH);
        let now = seconds(SystemTime::now());
        assert!(!clock.hold(), "nothing was named yet");
        assert!(!clock.confirm(DATE) && !clock.has_heard());
        clock.learn_signed(1000 * i64::try_from(now).unwrap());
        assert!(clock.has_heard() && !clock.hold());
        let before = clock.corrections();
        // A time server from the future, while nobody answers.
        clock.state().behind = 1_000_000;
        assert!(clock.hold());
        assert_eq!(clock.corrections(), before + 1);
        assert!(clock.seconds().abs_diff(now) <= 2 && !clock.hold());
        // And one that is found out by an answer after trust has lapsed.
        clock.state().behind = -1_000_000;
        clock.state().confirmed = None;
        clock.learn_signed(1000 * i64::try_from(now).unwrap());
        assert_eq!(clock.corrections(), before + 2);
        // What a clock drifts is nobody's lie.
        clock.state().behind = 10;
        assert!(!clock.hold());
        assert_eq!(clock.corrections(), before + 2);
    }

    #[test]
    fn a_time_below_the_floor_is_not_heard() {
        let clock = Clock::unset(SystemTime::now());
        clock.learn_signed(1000);
        assert!(!clock.has_heard() && !clock.trusted());
    }

    #[test]
    fn what_to_do_about_a_named_time() {
        let built = |built| Floors {
            built,
            ..Floors::default()
        };
        let kept = |kept| Floors {
            kept,
            ..Floors::default()
        };
        let none = Floors::default;
        let table = [
            ("right", AT, AT, none(), Step::Leave),
            (
                "off by the header's resolution",
                AT + 2,
                AT,
                none(),
                Step::Leave,
            ),
            ("1970", 60, AT, none(), Step::Set(AT)),
            ("in the future", AT + 1_000_000, AT, none(), Step::Set(AT)),
            (
                "before the image was made",
                AT,
                AT - 200_000,
                built(AT),
                Step::Refuse(Floor::Image),
            ),
            (
                "before the time that was kept",
                AT,
                AT - 200_000,
                kept(AT),
                Step::Refuse(Floor::Kept),
            ),
            (
                "a little below a floor",
                AT + 90,
                AT - 90,
                built(AT),
                Step::Set(AT - 90),
            ),
        ];
        for (name, system, named, mut floors, step) in table {
            assert_eq!(
                floors.hear(system, named, TOLERANCE, Instant::now()),
                step,
                "{name}"
            );
        }
    }

    #[test]
    fn a_controller_from_2099_moves_the_floor_by_a_day_an_hour_and_the_floor_heals() {
        let far = parse_http_date("Thu, 31 Dec 2099 00:00:00 GMT").unwrap();
        let begun = Instant::now();
        let after = |seconds: u64| begun + Duration::from_secs(seconds);
        let mut floors = Floors {
            built: AT,
            ..Floors::default()
        };
        // Ten hours of answers, one a minute.
        for minute in 0..600 {
            let step = floors.hear(AT, far + minute * 60, TOLERANCE, after(minute * 60));
            assert_eq!(step, Step::Set(far + minute * 60));
        }
        let kept = floors.kept;
        assert_eq!(kept, AT + 10 * RAISE_BY);

        // Then it is put right. It is refused while it could be a slip, and believed when it keeps to it.
        let right = |second: u64| AT + 10 * HOUR + second;
        let then = |second: u64| after(10 * HOUR + second);
        let refused = Step::Refuse(Floor::Kept);
        for second in [0, 600, 3540] {
            assert_eq!(
                floors.hear(far, right(second), TOLERANCE, then(second)),
                refused
            );
        }
        // A time that jumps about is no steady clock: it begins anew.
        assert_eq!(
            floors.hear(far, right(0) - 7200, TOLERANCE, then(3600)),
            refused
        );
        for second in [3660, 7200] {
            assert_eq!(
                floors.hear(far, right(second), TOLERANCE, then(second)),
                refused
            );
        }
        let at = 3660 + 3600;
        assert_eq!(
            floors.hear(far, right(at), TOLERANCE, then(at)),
            Step::Set(right(at))
        );
        assert!(floors.kept < kept);
        // Never below the image.
        for second in 0..10 {
            let step = floors.hear(AT, AT - 100_000, TOLERANCE, then(at + second * 3600));
            assert_eq!(step, Step::Refuse(Floor::Image));
        }
    }

    #[tokio::test]
    async fn the_floor_is_the_latest_of_bundle_and_disk_and_the_trouble_names_which_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("clock");
        let far = UNIX_EPOCH + Duration::from_secs(5_000_000_000);
        let (status, _) = Status::to_memory();
        let clock = Clock::start(file.clone(), Some(far), false, status.clone());
        let trouble = || {
            let board = status.troubles();
            let board = board.borrow();
            board
                .get(&Topic::Clock)
                .map(|trouble| trouble.message.clone())
        };
        assert!(!clock.trusted());
        assert_eq!(clock.seconds(), 5_000_000_000);
        assert!(!clock.learn(DATE), "a time before the floor is refused");
        assert!(!clock.trusted());
        let text = trouble().unwrap();
        assert!(
            text.contains("says 2026-11-20 20:00 UTC") && text.contains("image was made at 2128"),
            "{text}"
        );

        assert!(clock.learn("Tue, 31 Dec 2199 00:00:00 GMT"));
        assert!(clock.trusted());
        assert_eq!(trouble(), None);
        for _ in 0..200 {
            if file.exists() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let again = Clock::start(file, None, false, status.clone());
        assert_eq!(again.seconds(), 5_000_000_000 + RAISE_BY);
        assert!(!again.trusted());
        assert!(!again.confirm(DATE), "nothing was signed yet");
        assert_eq!(trouble(), None);
        again.learn(DATE);
        let text = trouble().unwrap();
        assert!(text.contains("said before"), "{text}");
    }

    #[test]
    fn an_impossible_floor_is_no_floor_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("clock");
        for text in [
            u64::MAX.to_string(),
            i64::MAX.to_string(),
            END.to_string(),
            "-1".to_owned(),
            "rubbish".to_owned(),
        ] {
            generations::write(&file, text.as_bytes()).unwrap();
            let (status, _) = Status::to_memory();
            let clock = Clock::start(file.clone(), None, false, status.clone());
            assert!(clock.seconds() < 5_000_000_000, "{text}");
            let troubles = status.troubles();
            let troubles = troubles.borrow();
            let message = &troubles.get(&Topic::ClockFloor).unwrap().message;
            assert!(message.contains("no possible time"), "{message}");
        }
        generations::write(&file, (END - 1).to_string().as_bytes()).unwrap();
        let (status, _) = Status::to_memory();
        let clock = Clock::start(file, None, false, status.clone());
        assert_eq!(clock.seconds(), END - 1);
        assert!(status.troubles().borrow().is_empty());
    }

    #[test]
    fn a_damaged_floor_is_no_floor_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("clock");
        std::fs::write(&file, b"rubbish").unwrap();
        let (status, _) = Status::to_memory();
        let clock = Clock::start(file, None, false, status.clone());
        assert!(clock.seconds() < 5_000_000_000);
        assert!(status.troubles().borrow().contains_key(&Topic::ClockFloor));
    }

    #[test]
    fn a_signed_time_is_the_first_that_is_believed() {
        let clock = Clock::unset(UNIX_EPOCH + Duration::from_secs(AT));
        assert_eq!(clock.floor(), AT);
        // A header that TLS alone vouches for tells nobody the time first.
        assert!(!clock.confirm(DATE) && !clock.trusted());
        let told = i64::try_from(AT + HOUR).unwrap() * 1000 + 999;
        assert!(clock.learn_signed(told) && clock.trusted());
        // The floor follows by a day at most, and what is no time, or lies below, moves nothing.
        assert_eq!(clock.floor(), AT + HOUR);
        let clock = Clock::unset(UNIX_EPOCH + Duration::from_secs(AT));
        for bad in [-1, i64::MIN, i64::MAX, 1000] {
            assert!(!clock.learn_signed(bad) && !clock.trusted(), "{bad}");
        }
        assert_eq!(clock.floor(), AT);
    }
}
