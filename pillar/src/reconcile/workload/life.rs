//! The life of one app, decided without touching anything.
//!
//! ```text
//!                wanted                       ended by itself
//!   Down ----------------------> Up --------------------------------> BackOff
//!     ^                          | not wanted, or wanted otherwise        |
//!     |                          v                                        |
//!     +---- its process ended -- Stopping --- grace over: killed --+      |
//!     ^                             ^------------------------------+      |
//!     +------------ not wanted, wanted otherwise, or the delay is over ---+
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// How long an app may take to end after it was asked to.
pub const GRACE: Duration = Duration::from_secs(30);

/// How long a monitor may take to end its machine before its process is killed.
pub const KILL_GRACE: Duration = Duration::from_secs(5);

/// An app that ran this long works: its next failure counts as the first.
pub const WORKS_AFTER: Duration = Duration::from_secs(600);

/// What is wanted of an app. `S` is what it is to be started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want<S> {
    /// It runs, started with this.
    Run(S),
    /// It is to run, but something that it needs is not there. What runs already goes on: it may be only its successor
    /// that waits for its image.
    Prepare,
    /// It does not run.
    Halt,
    /// It is taken away.
    Remove,
}

/// How the end of an app is being brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// It was asked.
    Asked,
    /// Its monitor was told to end it.
    Ended,
    /// Its processes were killed.
    Killed,
}

/// Where in its life an app is. `S` is what it was started with, `R` its process with all that goes with it, `F` how it
/// failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life<S, R, F> {
    /// No process.
    Down,
    /// Its process runs.
    Up {
        /// What it was started with.
        with: S,
        /// Its process.
        run: R,
    },
    /// It ended by itself, or could not be started with this.
    BackOff {
        /// What it was started with.
        with: S,
        /// When it is started again.
        until: Instant,
        /// How it failed.
        failure: F,
    },
    /// Its process is to end.
    Stopping {
        /// Its process.
        run: R,
        /// What was done about it.
        pressure: Pressure,
        /// When more is done.
        until: Instant,
    },
}

impl<S, R, F> Life<S, R, F> {
    /// Its process, if there is one.
    pub fn run(&self) -> Option<&R> {
        match self {
            Self::Up { run, .. } | Self::Stopping { run, .. } => Some(run),
            Self::Down | Self::BackOff { .. } => None,
        }
    }

    /// Its process, if there is one.
    pub fn run_mut(&mut self) -> Option<&mut R> {
        match self {
            Self::Up { run, .. } | Self::Stopping { run, .. } => Some(run),
            Self::Down | Self::BackOff { .. } => None,
        }
    }

    /// Leaves [`Life::Down`] behind.
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Down)
    }

    /// Its process is to end from now on; without a process there is nothing to end.
    pub fn stop(&mut self, pressure: Pressure, until: Instant) {
        *self = match self.take() {
            Self::Up { run, .. } | Self::Stopping { run, .. } => Self::Stopping {
                run,
                pressure,
                until,
            },
            without => without,
        };
    }
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing until something changes.
    Rest,
    /// Nothing until then.
    RestUntil(Instant),
    /// Start it.
    Start,
    /// Ask it to end.
    Ask,
    /// Have its monitor end it.
    End,
    /// Kill its processes.
    Kill,
    /// Forget that it failed.
    Settle,
    /// Take away what is left of it, and end looking after it.
    CleanUp,
}

/// Decides. What it was started with and what it is to be started with are compared by `S`'s equality.
pub fn plan<S: PartialEq, R, F>(life: &Life<S, R, F>, want: &Want<S>, now: Instant) -> Action {
    match (life, want) {
        (Life::Down, Want::Run(_)) => Action::Start,
        (Life::Down, Want::Prepare | Want::Halt) => Action::Rest,
        (Life::Down | Life::BackOff { .. }, Want::Remove) => Action::CleanUp,

        (Life::Up { with, .. }, Want::Run(wanted)) if with == wanted => Action::Rest,
        (Life::Up { .. }, Want::Prepare) => Action::Rest,
        (Life::Up { .. }, Want::Run(_) | Want::Halt | Want::Remove) => Action::Ask,

        (Life::BackOff { with, until, .. }, Want::Run(wanted)) => {
            if with != wanted || *until <= now {
                Action::Start
            } else {
                Action::RestUntil(*until)
            }
        }
        // Also while the agent has just been started and does not know yet what is there.
        (Life::BackOff { until, .. }, Want::Prepare) => {
            if *until <= now {
                Action::Rest
            } else {
                Action::RestUntil(*until)
            }
        }
        (Life::BackOff { .. }, Want::Halt) => Action::Settle,

        (
            Life::Stopping {
                pressure, until, ..
            },
            _,
        ) if *until <= now => match pressure {
            Pressure::Asked => Action::End,
            Pressure::Ended | Pressure::Killed => Action::Kill,
        },
        (Life::Stopping { until, .. }, _) => Action::RestUntil(*until),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_its_next_action() {
        let now = Instant::now();
        let later = now + Duration::from_secs(7);
        let up = || Life::Up { with: 1, run: () };
        let back_off = |until| Life::BackOff {
            with: 1,
            until,
            failure: (),
        };
        let stopping = |pressure, until| Life::Stopping {
            run: (),
            pressure,
            until,
        };
        let cases = [
            (Life::Down, Want::Run(1), Action::Start),
            (Life::Down, Want::Prepare, Action::Rest),
            (Life::Down, Want::Halt, Action::Rest),
            (Life::Down, Want::Remove, Action::CleanUp),
            (up(), Want::Run(1), Action::Rest),
            (up(), Want::Run(2), Action::Ask),
            (up(), Want::Prepare, Action::Rest),
            (up(), Want::Halt, Action::Ask),
            (up(), Want::Remove, Action::Ask),
            (back_off(later), Want::Run(1), Action::RestUntil(later)),
            (back_off(now), Want::Run(1), Action::Start),
            (back_off(later), Want::Run(2), Action::Start),
            (back_off(later), Want::Prepare, Action::RestUntil(later)),
            (back_off(now), Want::Prepare, Action::Rest),
            (back_off(later), Want::Halt, Action::Settle),
            (back_off(later), Want::Remove, Action::CleanUp),
            (
                stopping(Pressure::Asked, later),
                Want::Run(1),
                Action::RestUntil(later),
            ),
            (
                stopping(Pressure::Asked, later),
                Want::Remove,
                Action::RestUntil(later),
            ),
            (stopping(Pressure::Asked, now), Want::Run(1), Action::End),
            (stopping(Pressure::Asked, now), Want::Halt, Action::End),
            (stopping(Pressure::Ended, now), Want::Remove, Action::Kill),
            (stopping(Pressure::Killed, now), Want::Run(1), Action::Kill),
            (
                stopping(Pressure::Killed, later),
                Want::Halt,
                Action::RestUntil(later),
            ),
        ];
        for (life, want, expected) in cases {
            assert_eq!(plan(&life, &want, now), expected, "{life:?} {want:?}");
        }
    }
}
