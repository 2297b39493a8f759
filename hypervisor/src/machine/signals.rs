//! SIGTERM and SIGINT let the guest power off, and end the machine when it does not; the end of the machine ends the main
//! loop.
//!
//! ```text
//!             first signal: power button                    second signal, or the grace is over
//!  Unasked ---------------------------> Asked(until) -----------------------------------------> Ended
//!                                        |      ^                     (first signal without a grace: at once)
//!                                        +------+ now and then: the button again
//! ```
//!
//! The button is pressed more than once because a press while nobody in the guest listens is lost: a guest that still
//! boots hears a later one. A guest that is powering off already does not care.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hypervisor_api::report::LastWords;
use vmm_sys_util::timerfd::TimerFd;

use crate::event_loop::{Events, READABLE, Registrar, Subscriber};
use crate::lifecycle::Lifecycle;

const SIGNAL: u32 = 0;
const TIMER: u32 = 1;
const ENDED: u32 = 2;

/// Between two presses of the button.
const PRESS_AGAIN: Duration = Duration::from_secs(2);

/// How far the end has got that was asked for from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Unasked,
    Asked { until: Instant },
    Ended,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Signal,
    Tick,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Nothing,
    /// Press the button, and look again soon.
    Press,
    /// End the machine: it was asked to twice, or not to be asked.
    End,
    /// End the machine: the guest had its time.
    GiveUp,
}

impl Stop {
    fn step(self, event: Event, now: Instant, grace: Duration) -> (Stop, Action) {
        match (self, event) {
            (Stop::Unasked, Event::Signal) if grace.is_zero() => (Stop::Ended, Action::End),
            (Stop::Unasked, Event::Signal) => {
                let until = now + grace;
                (Stop::Asked { until }, Action::Press)
            }
            (Stop::Asked { .. }, Event::Signal) => (Stop::Ended, Action::End),
            (Stop::Asked { until }, Event::Tick) if until <= now => (Stop::Ended, Action::GiveUp),
            (Stop::Asked { .. }, Event::Tick) => (self, Action::Press),
            (Stop::Unasked, Event::Tick) | (Stop::Ended, _) => (self, Action::Nothing),
        }
    }

    /// How long until the next tick is due.
    fn next(self, now: Instant) -> Option<Duration> {
        match self {
            // A timer that is set to nothing never fires.
            Stop::Asked { until } => Some(
                until
                    .saturating_duration_since(now)
                    .clamp(Duration::from_millis(1), PRESS_AGAIN),
            ),
            Stop::Unasked | Stop::Ended => None,
        }
    }
}

/// Waits for signals.
pub struct Signals {
    file: File,
    timer: TimerFd,
    lifecycle: Arc<Lifecycle>,
    power_button: Box<dyn Fn() + Send>,
    grace: Duration,
    stop: Stop,
}

impl Signals {
    /// Takes the signals over from their handlers, in this thread and those that it will start. `grace` is how long the
    /// guest has to power off.
    pub fn new(
        lifecycle: Arc<Lifecycle>,
        power_button: Box<dyn Fn() + Send>,
        grace: Duration,
    ) -> io::Result<Self> {
        // SAFETY: the set is initialised by sigemptyset before use, and lives for the length of the calls.
        let fd = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            let error =
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Signals {
            // SAFETY: the descriptor was just opened and belongs to nobody else.
            file: unsafe { File::from_raw_fd(fd) },
            timer: TimerFd::new().map_err(|error| io::Error::from_raw_os_error(error.errno()))?,
            lifecycle,
            power_button,
            grace,
            stop: Stop::Unasked,
        })
    }

    fn happened(&mut self, event: Event) {
        let now = Instant::now();
        let (stop, action) = self.stop.step(event, now, self.grace);
        self.stop = stop;
        match action {
            Action::Nothing => {}
            Action::Press => {
                // A guest that stands still cannot go. Refused if it does not.
                let _ = self.lifecycle.resume();
                (self.power_button)();
            }
            Action::End => self.lifecycle.end(LastWords::Killed),
            Action::GiveUp => {
                eprintln!(
                    "skerry-vmm: the guest did not power off within {} s; it is ended",
                    self.grace.as_secs()
                );
                self.lifecycle.end(LastWords::Killed);
            }
        }
        if let Some(after) = self.stop.next(now)
            && let Err(error) = self.timer.reset(after, None)
        {
            eprintln!("skerry-vmm: no clock for the guest's end ({error}); it is ended");
            self.lifecycle.end(LastWords::Killed);
        }
    }
}

impl Subscriber for Signals {
    fn attach(&mut self, registrar: Registrar) -> io::Result<()> {
        registrar.add(&self.file, SIGNAL, READABLE)?;
        registrar.add(&self.timer, TIMER, READABLE)?;
        // Level-triggered and never read: nothing is missed between two looks at the lifecycle.
        registrar.add(self.lifecycle.ended(), ENDED, READABLE)
    }

    fn ready(&mut self, token: u32, _events: Events) {
        match token {
            SIGNAL => {
                let mut info = [0; size_of::<libc::signalfd_siginfo>()];
                if self.file.read(&mut info).is_ok() {
                    self.happened(Event::Signal);
                }
            }
            // It has fired, so this does not wait.
            TIMER if self.timer.wait().is_ok() => self.happened(Event::Tick),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_asked_until_its_time_is_over() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let grace = Duration::from_secs(30);
        let asked = Stop::Asked { until: at(30) };
        for (stop, event, now, next, action) in [
            (Stop::Unasked, Event::Signal, 0, asked, Action::Press),
            (
                Stop::Unasked,
                Event::Tick,
                0,
                Stop::Unasked,
                Action::Nothing,
            ),
            (asked, Event::Tick, 2, asked, Action::Press),
            (asked, Event::Tick, 30, Stop::Ended, Action::GiveUp),
            (asked, Event::Signal, 1, Stop::Ended, Action::End),
            (Stop::Ended, Event::Signal, 2, Stop::Ended, Action::Nothing),
            (Stop::Ended, Event::Tick, 2, Stop::Ended, Action::Nothing),
        ] {
            assert_eq!(
                stop.step(event, at(now), grace),
                (next, action),
                "{stop:?} {event:?}"
            );
        }
        assert_eq!(
            Stop::Unasked.step(Event::Signal, start, Duration::ZERO),
            (Stop::Ended, Action::End)
        );
    }

    #[test]
    fn ticks_come_now_and_then_and_at_the_end() {
        let start = Instant::now();
        let asked = Stop::Asked {
            until: start + Duration::from_secs(3),
        };
        let second = Duration::from_secs(1);
        assert_eq!(asked.next(start), Some(PRESS_AGAIN));
        assert_eq!(asked.next(start + 2 * second), Some(second));
        assert_eq!(
            asked.next(start + 9 * second),
            Some(Duration::from_millis(1))
        );
        assert_eq!(Stop::Ended.next(start), None);
    }
}
