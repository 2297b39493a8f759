//! Where in its life an app is, as it is told.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::life::{Life, Want};
use super::record::after_boot;
use crate::domain::observed::{AppPhase, Trouble};

/// The phase that is told. `announced`: its guest said that it runs, or need not say; `since`: when its process started.
pub fn phase<S, T>(
    life: &Life<S>,
    want: &Want<T>,
    announced: bool,
    since: SystemTime,
    trouble: Option<&Trouble>,
) -> AppPhase {
    match (life, want) {
        (Life::Down, Want::Run(_) | Want::Prepare) => AppPhase::Preparing,
        (Life::Down, Want::Halt | Want::Remove) => AppPhase::Halted,
        (Life::Up(_), _) if !announced => AppPhase::Starting,
        (Life::Up(_), _) => AppPhase::Running { since },
        // Its time has come, and something that it needs is not there.
        (Life::BackOff { until, .. }, Want::Prepare) if *until <= Instant::now() => {
            AppPhase::Preparing
        }
        (Life::BackOff { until, .. }, _) => AppPhase::BackOff {
            until: trouble
                .and_then(|trouble| trouble.retry_at)
                .unwrap_or_else(|| {
                    SystemTime::now() + until.saturating_duration_since(Instant::now())
                }),
        },
        (Life::Stopping { .. }, _) => AppPhase::Stopping,
    }
}

/// Since when a process runs, by today's clock: the clock may be set while it runs, seconds after boot are right. Both are
/// cut to seconds at different moments; differences that come from that are not told.
#[derive(Debug, Default)]
pub struct Since(Option<SystemTime>);

impl Since {
    /// For a process that was started so many seconds after boot.
    pub fn of(&mut self, started: u64) -> SystemTime {
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
    fn phases() {
        let now = SystemTime::now();
        let (past, later) = (Instant::now(), Instant::now() + Duration::from_secs(9));
        let back_off = |until| Life::BackOff { with: 1, until };
        let trouble = Trouble {
            message: "it ended".into(),
            at: now,
            retry_at: Some(now),
        };
        let running = AppPhase::Running { since: now };
        let waiting = AppPhase::BackOff { until: now };
        let table = [
            (Life::Down, Want::Run(1), true, AppPhase::Preparing),
            (Life::Down, Want::Halt, true, AppPhase::Halted),
            (Life::Up(1), Want::Run(1), false, AppPhase::Starting),
            (Life::Up(1), Want::Prepare, true, running),
            (back_off(later), Want::Prepare, true, waiting.clone()),
            (back_off(past), Want::Prepare, true, AppPhase::Preparing),
            (back_off(later), Want::Run(1), true, waiting),
        ];
        for (life, want, announced, expected) in table {
            let told = phase(&life, &want, announced, now, Some(&trouble));
            assert_eq!(told, expected, "{life:?} {want:?}");
        }
    }

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
