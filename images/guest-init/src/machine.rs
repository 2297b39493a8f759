//! What to do when: the life of the container's process as a pure state machine.
//!
//! ```text
//! Running -- Stop, power button --> Stopping -- grace passes --> (SIGKILL) --> Stopping
//!    |                                 |
//!    +----------- process ends --------+--> Over{Exited} -- told, or nobody listens for LAST_WORD --> power off
//!
//! could not be started -----------------> Over{Failed} -----------^
//! ```

use std::time::{Duration, Instant};

use guest_api::{FromGuest, ToGuest};
use nix::libc;

/// How long the last word is offered to an agent that does not take it.
pub const LAST_WORD: Duration = Duration::from_secs(2);

/// Where the container stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its process runs.
    Running,
    /// It was asked to end.
    Stopping {
        /// When it is killed; `None` once it was.
        kill_at: Option<Instant>,
    },
    /// It has ended, or never began.
    Over {
        /// What the agent must hear.
        last_word: FromGuest,
        /// When to stop waiting for the agent.
        power_off_at: Instant,
    },
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The process ended with this code.
    Ended(i32),
    /// The agent asks.
    Asked(ToGuest),
    /// The machine's power button is pressed; this is what it stands for. It may be pressed again and again: only the
    /// first press counts, and none beside what the agent has asked.
    PowerButton(ToGuest),
    /// The agent has heard everything and closed the connection.
    Heard,
    /// Time passes.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell the agent where the container stands.
    Tell,
    /// Send the process a signal, by number.
    Signal(i32),
    /// Write everything out and switch off.
    PowerOff,
}

impl State {
    /// The state of a container that could not be started.
    pub fn failed(message: String, now: Instant) -> Self {
        Self::Over {
            last_word: FromGuest::Failed { message },
            power_off_at: now + LAST_WORD,
        }
    }

    /// What the agent is told of this state, also when it connects anew.
    pub fn word(&self) -> FromGuest {
        match self {
            Self::Running | Self::Stopping { .. } => FromGuest::Started,
            Self::Over { last_word, .. } => last_word.clone(),
        }
    }

    /// When time alone changes something.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Running => None,
            Self::Stopping { kill_at } => *kill_at,
            Self::Over { power_off_at, .. } => Some(*power_off_at),
        }
    }

    /// The next state and what is to be done on the way.
    pub fn step(self, event: Event, now: Instant) -> (Self, Vec<Action>) {
        match (self, event) {
            (Self::Running | Self::Stopping { .. }, Event::Ended(code)) => {
                let last_word = FromGuest::Exited { code };
                (
                    Self::Over {
                        last_word,
                        power_off_at: now + LAST_WORD,
                    },
                    vec![Action::Tell],
                )
            }
            (
                Self::Running,
                Event::Asked(ToGuest::Stop {
                    signal,
                    grace_seconds,
                })
                | Event::PowerButton(ToGuest::Stop {
                    signal,
                    grace_seconds,
                }),
            ) => {
                let kill_at = Some(now + Duration::from_secs(grace_seconds.into()));
                (
                    Self::Stopping { kill_at },
                    vec![Action::Signal(checked(signal))],
                )
            }
            // A second request can shorten the grace, never lengthen it.
            (
                Self::Stopping {
                    kill_at: Some(kill_at),
                },
                Event::Asked(ToGuest::Stop {
                    signal,
                    grace_seconds,
                }),
            ) => {
                let sooner = kill_at.min(now + Duration::from_secs(grace_seconds.into()));
                (
                    Self::Stopping {
                        kill_at: Some(sooner),
                    },
                    vec![Action::Signal(checked(signal))],
                )
            }
            (
                Self::Stopping {
                    kill_at: Some(kill_at),
                },
                Event::Tick,
            ) if now >= kill_at => (
                Self::Stopping { kill_at: None },
                vec![Action::Signal(libc::SIGKILL)],
            ),
            (
                Self::Over {
                    last_word,
                    power_off_at,
                },
                Event::Tick,
            ) if now >= power_off_at => (
                Self::Over {
                    last_word,
                    power_off_at,
                },
                vec![Action::PowerOff],
            ),
            (over @ Self::Over { .. }, Event::Heard) => (over, vec![Action::PowerOff]),
            (state, _) => (state, vec![]),
        }
    }
}

/// A signal that exists; what does not is taken for SIGTERM.
fn checked(signal: i32) -> i32 {
    if (1..=64).contains(&signal) {
        signal
    } else {
        libc::SIGTERM
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop(signal: i32, grace_seconds: u32) -> Event {
        Event::Asked(ToGuest::Stop {
            signal,
            grace_seconds,
        })
    }

    fn button(signal: i32, grace_seconds: u32) -> Event {
        Event::PowerButton(ToGuest::Stop {
            signal,
            grace_seconds,
        })
    }

    #[test]
    fn the_table() {
        let t0 = Instant::now();
        let after = |seconds| t0 + Duration::from_secs(seconds);
        let stopping = |at: u64| State::Stopping {
            kill_at: Some(after(at)),
        };
        let killed = State::Stopping { kill_at: None };
        let over = |code, at: u64| State::Over {
            last_word: FromGuest::Exited { code },
            power_off_at: after(at),
        };
        for (state, event, now, next, actions) in [
            (State::Running, Event::Tick, 5, State::Running, vec![]),
            (State::Running, Event::Heard, 5, State::Running, vec![]),
            (
                State::Running,
                Event::Ended(3),
                5,
                over(3, 7),
                vec![Action::Tell],
            ),
            (
                State::Running,
                stop(15, 10),
                0,
                stopping(10),
                vec![Action::Signal(15)],
            ),
            (
                State::Running,
                stop(0, 10),
                0,
                stopping(10),
                vec![Action::Signal(15)],
            ),
            (
                State::Running,
                stop(99, u32::MAX),
                0,
                stopping(u32::MAX.into()),
                vec![Action::Signal(15)],
            ),
            (
                State::Running,
                button(3, 25),
                0,
                stopping(25),
                vec![Action::Signal(3)],
            ),
            (stopping(10), button(3, 5), 1, stopping(10), vec![]),
            (over(0, 7), button(3, 5), 6, over(0, 7), vec![]),
            (
                stopping(10),
                stop(2, 60),
                1,
                stopping(10),
                vec![Action::Signal(2)],
            ),
            (
                stopping(10),
                stop(2, 1),
                1,
                stopping(2),
                vec![Action::Signal(2)],
            ),
            (stopping(10), Event::Tick, 9, stopping(10), vec![]),
            (
                stopping(10),
                Event::Tick,
                10,
                killed.clone(),
                vec![Action::Signal(9)],
            ),
            (
                stopping(10),
                Event::Ended(143),
                3,
                over(143, 5),
                vec![Action::Tell],
            ),
            (killed.clone(), Event::Tick, 60, killed.clone(), vec![]),
            (killed.clone(), stop(15, 0), 60, killed.clone(), vec![]),
            (
                killed,
                Event::Ended(137),
                61,
                over(137, 63),
                vec![Action::Tell],
            ),
            (over(0, 7), Event::Tick, 6, over(0, 7), vec![]),
            (
                over(0, 7),
                Event::Tick,
                7,
                over(0, 7),
                vec![Action::PowerOff],
            ),
            (
                over(0, 7),
                Event::Heard,
                6,
                over(0, 7),
                vec![Action::PowerOff],
            ),
            (over(0, 7), stop(15, 0), 6, over(0, 7), vec![]),
        ] {
            let shown = format!("{state:?} {event:?}");
            assert_eq!(state.step(event, after(now)), (next, actions), "{shown}");
        }
    }

    #[test]
    fn deadlines_and_words() {
        let now = Instant::now();
        assert_eq!(
            (State::Running.deadline(), State::Running.word()),
            (None, FromGuest::Started)
        );
        let failed = State::failed("no".into(), now);
        assert_eq!(failed.deadline(), Some(now + LAST_WORD));
        assert_eq!(
            failed.word(),
            FromGuest::Failed {
                message: "no".into()
            }
        );
    }
}
