//! How an app is brought to its end, and what is made of an end: of one that was wanted, and of one that was not.

use std::time::{Duration, SystemTime};

use guest_api::ToGuest;
use hypervisor_api::control::{self, Client, Request};
use tokio::time::Instant;

use super::Actor;
use crate::host::files;
use crate::host::units::UnitState;
use crate::reconcile::delay::APP;
use crate::reconcile::workload::guest::Guest;
use crate::reconcile::workload::life::{GRACE, KILL_GRACE, Life, Pressure, WORKS_AFTER};
use crate::reconcile::workload::native;
use crate::reconcile::workload::process::{self, Process};
use crate::reconcile::workload::record::{Manner, Record, after_boot};
use crate::reconcile::workload::run::Failure;
use crate::reconcile::workload::vm::VmFiles;

impl Actor {
    /// Looks whether the process still runs, and settles its end if not.
    pub(super) async fn check(&mut self) {
        match self.context.units.look(&self.unit).await {
            Ok(UnitState::Running { pid }) => {
                let Some(run) = self.life.run_mut() else {
                    return;
                };
                if run
                    .process
                    .as_ref()
                    .is_none_or(|process| process.pid != pid)
                {
                    // A process that is gone by now is found gone by the next look.
                    run.process = Process::watch(pid).ok();
                } else {
                    // The main process has ended, systemd has not noticed yet.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            Ok(_) => self.settle_end().await,
            Err(error) => {
                tracing::warn!(app = %self.id, %error, "its unit could not be looked at");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// Its process has ended: finds out why, and what that means.
    pub(super) async fn settle_end(&mut self) {
        let (mut run, by_itself) = match self.life.take() {
            Life::Up { with, run } => (run, Some(with)),
            Life::Stopping { run, .. } => (run, None),
            without => {
                self.life = without;
                return;
            }
        };
        run.process = None;
        while let Some(event) = run.guest.as_mut().and_then(Guest::pending) {
            run.hear(event);
        }
        let how = match self.context.units.look(&self.unit).await {
            Ok(UnitState::Ended { how }) => Some(how),
            _ => None,
        };
        let message = self.reason(run.said.take(), how);
        if let Err(error) = self.context.units.forget(&self.unit).await {
            tracing::debug!(app = %self.id, %error, "its unit could not be forgotten");
        }
        run.guest = None;
        self.tear_down().await;
        match by_itself {
            Some(with) => {
                tracing::warn!(app = %self.id, message, "ended by itself");
                let failures = if run.age() >= WORKS_AFTER {
                    0
                } else {
                    run.failures()
                };
                self.back_off(with, run.record, true, failures, message);
            }
            None => {
                tracing::info!(app = %self.id, message, "stopped");
                self.settle();
            }
        }
    }

    /// Forgets its process and that it failed.
    pub(super) fn settle(&mut self) {
        self.life = Life::Down;
        self.book.forget();
    }

    /// Waits until it is started again. `failures`: those before this one.
    pub(super) fn back_off(
        &mut self,
        with: String,
        record: Option<Record>,
        ran: bool,
        failures: u32,
        message: String,
    ) {
        let failures = failures.saturating_add(1);
        let delay = APP.after(failures);
        let now = SystemTime::now();
        let failure = Failure {
            ran,
            failures,
            message,
            at: now,
            retry_at: now + delay,
        };
        if let Some(mut record) = record {
            let until = after_boot() + delay;
            record.restarts = self.restarts;
            record.failures = failures;
            record.waits =
                Some(failure.waits(u64::try_from(until.as_millis()).unwrap_or(u64::MAX)));
            self.book.write(&record);
        }
        self.life = Life::BackOff {
            with,
            until: Instant::now() + delay,
            failure,
        };
    }

    /// What is remembered of its process.
    fn record(&self) -> Option<&Record> {
        self.life.run()?.record.as_ref()
    }

    /// Why the process ended, in words.
    fn reason(&self, said: Option<String>, how: Option<String>) -> String {
        if let Some(said) = said {
            return said;
        }
        let words = files::read_limited(&VmFiles::new(&self.dir).last_words(), 64 * 1024)
            .ok()
            .flatten();
        process::reason(words.as_deref(), how)
    }

    /// Asks it to end.
    pub(super) async fn ask(&mut self) {
        tracing::info!(app = %self.id, "asked to stop");
        self.life.stop(Pressure::Asked, Instant::now() + GRACE);
        let Some(run) = self.life.run() else {
            return;
        };
        let Some(record) = &run.record else {
            // Nobody knows how to ask it.
            self.end().await;
            return;
        };
        match record.manner {
            Manner::Machine => self.control(Request::Shutdown).await,
            Manner::Microvm => {
                let grace = GRACE.saturating_sub(KILL_GRACE).as_secs();
                let stop = ToGuest::Stop {
                    signal: record.stop_signal,
                    grace_seconds: u32::try_from(grace).unwrap_or(0),
                };
                if !run.guest.as_ref().is_some_and(|guest| guest.ask(stop)) {
                    self.control(Request::Shutdown).await;
                }
            }
            Manner::Native => {
                if let Err(error) =
                    native::signal(&self.context.paths, self.id, record.stop_signal).await
                {
                    tracing::warn!(app = %self.id, %error, "could not be asked to stop");
                }
            }
        }
    }

    /// Ends it without asking.
    pub(super) async fn end(&mut self) {
        self.life.stop(Pressure::Ended, Instant::now() + KILL_GRACE);
        match self.record().map(|record| record.manner) {
            Some(Manner::Machine | Manner::Microvm) => self.control(Request::Kill).await,
            Some(Manner::Native) => {
                if let Err(error) =
                    native::signal(&self.context.paths, self.id, libc::SIGKILL).await
                {
                    tracing::warn!(app = %self.id, %error, "could not be ended");
                }
            }
            None => self.kill().await,
        }
    }

    /// Kills its processes.
    pub(super) async fn kill(&mut self) {
        tracing::warn!(app = %self.id, "killed");
        self.life
            .stop(Pressure::Killed, Instant::now() + KILL_GRACE);
        if let Err(error) = self
            .context
            .units
            .signal(&self.unit, libc::SIGKILL, true)
            .await
        {
            tracing::warn!(app = %self.id, %error, "could not be killed");
        }
    }

    async fn control(&self, request: Request) {
        let socket = VmFiles::new(&self.dir).control();
        let owner = self.record().map(|record| record.uid);
        let ask = move || {
            let client = Client {
                socket: &socket,
                owner,
                patience: control::PATIENCE,
            };
            client.ask(&request)
        };
        let asked = tokio::task::spawn_blocking(ask).await;
        if let Ok(Err(error)) = asked {
            tracing::warn!(app = %self.id, %error, "the monitor did not obey");
        }
    }

    /// Takes away mounts and namespaces of a native container; nothing if there are none.
    pub(super) async fn tear_down(&self) {
        if let Err(error) = native::tear_down(&self.context.paths, self.id, &self.dir).await {
            tracing::warn!(app = %self.id, %error, "what is left of it could not be taken away");
        }
    }

    /// Takes away what is left of the app. Gives whether all is gone.
    pub(super) async fn clean_up(&mut self) -> bool {
        self.tear_down().await;
        if let Err(error) = self.book.forget_restarts() {
            tracing::warn!(app = %self.id, %error, "the count of its restarts could not be removed");
            return false;
        }
        // Its directory goes last: while it is there, the app's number is not given to another one.
        match files::remove_tree(&self.dir) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(app = %self.id, %error, "its directory could not be removed");
                false
            }
        }
    }
}
