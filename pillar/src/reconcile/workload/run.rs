//! What an app has while its process runs, and what is left of it when that failed: the data of [`super::life::Life`]'s
//! states.

use std::time::{Duration, SystemTime};

use guest_api::FromGuest;

use super::guest::Guest;
use super::process::{Process, ended};
use super::record::{Record, Waits, after_boot};
use crate::domain::observed::Trouble;

/// A process of an app, with all that goes with it.
#[derive(Default)]
pub struct Run {
    /// What is remembered of it. Without it nobody knows what it is, nor how it is asked to end.
    pub record: Option<Record>,
    /// It, watched; nothing between its end and the next look at its unit.
    pub process: Option<Process>,
    /// The guest of a microVM.
    pub guest: Option<Guest>,
    /// Whether the guest said that its container runs; machines and native containers need not say.
    pub announced: bool,
    /// How the container ended, as the guest told it.
    pub said: Option<String>,
    since: Since,
}

/// What is heard of a process.
pub enum News {
    /// It ended, or it is time to look whether it did.
    Ended,
    /// Its guest says something.
    Guest(FromGuest),
}

impl Run {
    /// One of which this is remembered.
    #[must_use]
    pub fn found(record: Option<Record>, announced: bool) -> Self {
        Self {
            record,
            announced,
            ..Self::default()
        }
    }

    /// Failures in a row before it.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.record.as_ref().map_or(0, |record| record.failures)
    }

    /// For how long it has been running.
    #[must_use]
    pub fn age(&self) -> Duration {
        let started = self.record.as_ref().map(|record| record.started);
        let now = after_boot().as_secs();
        Duration::from_secs(started.map_or(0, |started| now.saturating_sub(started)))
    }

    /// Since when it runs, by today's clock.
    pub fn since(&mut self) -> SystemTime {
        let started = self.record.as_ref().map_or(0, |record| record.started);
        self.since.of(started)
    }

    /// Waits for news of it.
    pub async fn news(&mut self) -> News {
        tokio::select! {
            () = ended(self.process.as_ref()) => News::Ended,
            event = event(self.guest.as_mut()) => News::Guest(event),
        }
    }

    /// Takes what its guest says.
    pub fn hear(&mut self, event: FromGuest) {
        match event {
            FromGuest::Started => self.announced = true,
            FromGuest::Exited { code } => {
                self.said = Some(format!("the container ended with status {code}"));
            }
            FromGuest::Failed { message } => {
                let message: String = message
                    .chars()
                    .take(500)
                    .filter(|c| !c.is_control())
                    .collect();
                self.said = Some(format!("the container could not be started: {message}"));
            }
        }
    }
}

async fn event(guest: Option<&mut Guest>) -> FromGuest {
    if let Some(guest) = guest
        && let Some(event) = guest.event().await
    {
        return event;
    }
    std::future::pending().await
}

/// How an app failed: it ended by itself, or could not be started.
pub struct Failure {
    /// Whether it ran, so that the next start counts as a restart.
    pub ran: bool,
    /// Failures in a row, this one included.
    pub failures: u32,
    /// Why.
    pub message: String,
    /// When.
    pub at: SystemTime,
    /// When it is started again, by today's clock.
    pub retry_at: SystemTime,
}

impl Failure {
    /// As it is remembered, with the time in milliseconds after boot at which it is started again.
    #[must_use]
    pub fn waits(&self, until: u64) -> Waits {
        Waits {
            until,
            ran: self.ran,
            message: self.message.clone(),
            at: self.at,
        }
    }

    /// As it is told.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        Trouble {
            message: self.message.clone(),
            at: self.at,
            retry_at: Some(self.retry_at),
        }
    }
}

/// Since when a process runs, by today's clock: the clock may be set while it runs, seconds after boot are right. Both are
/// cut to seconds at different moments; differences that come from that are not told.
#[derive(Debug, Default)]
struct Since(Option<SystemTime>);

impl Since {
    /// For a process that was started so many seconds after boot.
    fn of(&mut self, started: u64) -> SystemTime {
        self.at(started, after_boot().as_secs(), SystemTime::now())
    }

    fn at(&mut self, started: u64, after_boot: u64, now: SystemTime) -> SystemTime {
        let ago = Duration::from_secs(after_boot.saturating_sub(started));
        let since = now.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH);
        let apart = |a: SystemTime, b: SystemTime| {
            a.duration_since(b)
                .or_else(|_| b.duration_since(a))
                .unwrap_or_default()
        };
        match self.0 {
            Some(told) if apart(told, since) < Duration::from_secs(5) => told,
            _ => *self.0.insert(since),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_told_by_the_clock_of_the_day_and_does_not_tremble() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let mut since = Since::default();
        assert_eq!(since.at(100, 160, at(1060)), at(1000));
        assert_eq!(since.at(100, 170, at(1071)), at(1000));
        // The clock was set.
        assert_eq!(since.at(100, 180, at(5080)), at(5000));
    }
}
