//! Keeps the agent's tasks going.
//!
//! A task that ends, fails or panics is started again after a growing delay, and the board of troubles says so. One
//! broken part must not take the others with it, least of all the one that could fetch its repair.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::backoff::Backoff;
use crate::status::{Status, Topic};

/// How fast a task is started again.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// First delay.
    pub floor: Duration,
    /// Longest delay.
    pub ceiling: Duration,
    /// A run of this length counts as working: its trouble is taken off the board and the delays start anew.
    pub works_after: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            floor: Duration::from_millis(500),
            ceiling: Duration::from_secs(60),
            works_after: Duration::from_secs(60),
        }
    }
}

/// Starts `make()` now and whenever it ended, for as long as `tasks` lives.
pub fn spawn<F, T, E>(
    tasks: &mut JoinSet<()>,
    status: Status,
    pace: Pace,
    name: &'static str,
    mut make: F,
) where
    F: FnMut() -> T + Send + 'static,
    T: Future<Output = Result<(), E>> + Send + 'static,
    E: Display + Send + 'static,
{
    tasks.spawn(async move {
        let topic = Topic::Task(name);
        let mut backoff = Backoff::new(pace.floor, pace.ceiling);
        loop {
            // A task of its own, so that a panic in it ends it and not this loop. The set aborts it when this ends.
            let mut inner = JoinSet::new();
            inner.spawn(make());
            let ended = match tokio::time::timeout(pace.works_after, inner.join_next()).await {
                Ok(ended) => ended,
                Err(_) => {
                    status.clear(topic);
                    backoff.reset();
                    inner.join_next().await
                }
            };
            let reason = match ended {
                Some(Ok(Ok(()))) => "ended".to_owned(),
                Some(Ok(Err(error))) => error.to_string(),
                Some(Err(panic)) => format!("stopped unexpectedly: {panic}"),
                None => "never ran".to_owned(),
            };
            status.raise(
                topic,
                &format!("task {name}: {reason}; it is started again"),
            );
            tokio::time::sleep(backoff.next_delay()).await;
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_task_that_fails_or_panics_is_started_again_and_told_of_until_it_works() {
        let (status, lines) = Status::to_memory();
        let runs = Arc::new(AtomicU32::new(0));
        let mut tasks = JoinSet::new();
        let counter = runs.clone();
        let pace = Pace {
            floor: Duration::from_millis(1),
            ceiling: Duration::from_millis(5),
            works_after: Duration::from_millis(50),
        };
        let mut board = status.troubles();
        spawn(&mut tasks, status.clone(), pace, "demo", move || {
            let run = counter.fetch_add(1, Ordering::SeqCst);
            async move {
                match run {
                    0 => Err("no disk"),
                    1 => panic!("a bug"),
                    _ => std::future::pending().await,
                }
            }
        });
        board
            .wait_for(|board| board.contains_key(&Topic::Task("demo")))
            .await
            .unwrap();
        tokio::time::timeout(
            Duration::from_secs(10),
            board.wait_for(|board| board.is_empty()),
        )
        .await
        .unwrap()
        .unwrap();
        assert_eq!(runs.load(Ordering::SeqCst), 3);
        let told = lines.lock().unwrap().join("\n");
        assert!(told.contains("task demo: no disk"), "{told}");
        assert!(told.contains("a bug"), "{told}");
    }
}
