//! Where in its life an app is, as it is told.

use tokio::time::Instant;

use super::life::{Life, Want};
use super::run::{Failure, Run};
use crate::domain::observed::AppPhase;

/// The phase that is told.
pub fn phase<S, T>(life: &mut Life<S, Run, Failure>, want: &Want<T>) -> AppPhase {
    match (life, want) {
        (Life::Down, Want::Run(_) | Want::Prepare) => AppPhase::Preparing,
        (Life::Down, Want::Halt | Want::Remove) => AppPhase::Halted,
        (Life::Up { run, .. }, _) if !run.announced => AppPhase::Starting,
        (Life::Up { run, .. }, _) => AppPhase::Running { since: run.since() },
        // Its time has come, and something that it needs is not there.
        (Life::BackOff { until, .. }, Want::Prepare) if *until <= Instant::now() => {
            AppPhase::Preparing
        }
        (Life::BackOff { failure, .. }, _) => AppPhase::BackOff {
            until: failure.retry_at,
        },
        (Life::Stopping { .. }, _) => AppPhase::Stopping,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::reconcile::workload::life::Pressure;

    #[test]
    fn phases() {
        let now = SystemTime::now();
        let (past, later) = (Instant::now(), Instant::now() + Duration::from_secs(9));
        let up = |announced| Life::Up {
            with: 1,
            run: Run::found(None, announced),
        };
        let back_off = |until| Life::BackOff {
            with: 1,
            until,
            failure: Failure {
                ran: true,
                failures: 1,
                message: "it ended".into(),
                at: now,
                retry_at: now,
            },
        };
        let stopping = Life::Stopping {
            run: Run::found(None, true),
            pressure: Pressure::Asked,
            until: later,
        };
        let running = AppPhase::Running { since: now };
        let waiting = AppPhase::BackOff { until: now };
        let table = [
            (Life::Down, Want::Run(1), AppPhase::Preparing),
            (Life::Down, Want::Halt, AppPhase::Halted),
            (up(false), Want::Run(1), AppPhase::Starting),
            (up(true), Want::Prepare, running),
            (back_off(later), Want::Prepare, waiting.clone()),
            (back_off(past), Want::Prepare, AppPhase::Preparing),
            (back_off(later), Want::Run(1), waiting),
            (stopping, Want::Run(1), AppPhase::Stopping),
        ];
        for (mut life, want, expected) in table {
            let told = phase(&mut life, &want);
            match (&told, &expected) {
                // Since when it runs follows from the clocks; that has a test of its own.
                (AppPhase::Running { .. }, AppPhase::Running { .. }) => {}
                _ => assert_eq!(told, expected, "{want:?}"),
            }
        }
    }
}
