//! Looks after one app: a task for each, so that one that hangs holds up no other. [`super::life`] decides, this does.
//!
//! The process runs in a systemd unit and is watched through a pidfd ([`super::process`]). A record of it tells the agent
//! after its own restart what the process was started with, how it is ended, or when it is started again
//! ([`super::record`]). What is known of a process or of a failure is known in those states of its life only
//! ([`mod@super::run`]). What is told of it stands in [`super::status`]; how it ends, in [`ending`].

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use protocol::ids::AppId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::guest::Guest;
use super::life::{self, Action, Life, Want};
use super::native::{self, NativeError};
use super::process::Process;
use super::record::{Book, Manner, Record, Waits, after_boot};
use super::run::{Failure, News, Run};
use super::start::{Start, StartKind};
use super::status;
use super::vm::{self, VmFiles};
use crate::domain::observed::{AppPhase, AppStatus, Trouble};
use crate::host::files::FileError;
use crate::host::program::ProgramError;
use crate::host::units::{self, UnitState, Units};
use crate::paths::Paths;
use crate::reconcile::content::sleep_until;
use crate::reconcile::delay::{APP, LOCAL};

mod ending;

/// All apps, for report.
pub type Apps = BTreeMap<AppId, AppStatus>;

/// What is wanted of an app.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Name for people.
    pub name: String,
    /// What is wanted.
    pub want: Want<Arc<Start>>,
    /// The trouble of what it waits for.
    pub trouble: Option<Trouble>,
    /// Addresses by interface name.
    pub addresses: BTreeMap<String, Ipv4Addr>,
    /// The host's ends of its interfaces, by interface name.
    pub links: BTreeMap<String, String>,
}

/// What all apps share.
#[derive(Clone)]
pub struct Context {
    /// Where things lie.
    pub paths: Paths,
    /// Where processes run.
    pub units: Arc<dyn Units>,
    /// Where states are told.
    pub apps: watch::Sender<Arc<Apps>>,
}

/// An app that could not be started.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Native(#[from] NativeError),
    #[error("starting was interrupted")]
    Interrupted,
}

/// One app.
pub struct Actor {
    id: AppId,
    unit: String,
    dir: PathBuf,
    context: Context,
    life: Life<String, Run, Failure>,
    book: Book,
    restarts: u32,
}

impl Actor {
    /// An app of which nothing is known yet.
    #[must_use]
    pub fn new(id: AppId, context: Context) -> Self {
        Self {
            id,
            unit: units::app_unit(id),
            dir: context.paths.app(id),
            book: Book::of(id, &context.paths),
            context,
            life: Life::Down,
            restarts: 0,
        }
    }

    /// Looks after the app until it has been taken away, or nobody wants anything any more.
    pub async fn run(mut self, mut input: watch::Receiver<Input>) -> AppId {
        self.find(&input).await;
        loop {
            let wanted = input.borrow_and_update().clone();
            let want = match &wanted.want {
                Want::Run(start) => Want::Run(start.fingerprint()),
                Want::Prepare => Want::Prepare,
                Want::Halt => Want::Halt,
                Want::Remove => Want::Remove,
            };
            let action = life::plan(&self.life, &want, Instant::now());
            let until = match action {
                Action::Rest => None,
                Action::RestUntil(until) => Some(until),
                Action::Start => {
                    if let Want::Run(start) = &wanted.want {
                        self.tell(&wanted, Some(AppPhase::Starting));
                        self.start(start).await;
                    }
                    continue;
                }
                Action::Ask => {
                    self.ask().await;
                    continue;
                }
                Action::End => {
                    self.end().await;
                    continue;
                }
                Action::Kill => {
                    self.kill().await;
                    continue;
                }
                Action::Settle => {
                    self.settle();
                    continue;
                }
                Action::CleanUp => {
                    if self.clean_up().await {
                        return self.id;
                    }
                    Some(Instant::now() + Duration::from_secs(5))
                }
            };
            self.tell(&wanted, None);
            tokio::select! {
                result = input.changed() => if result.is_err() { return self.id },
                news = news(self.life.run_mut()) => match news {
                    News::Ended => self.check().await,
                    News::Guest(event) => if let Some(run) = self.life.run_mut() { run.hear(event) },
                },
                () = sleep_until(until) => {}
            }
        }
    }

    /// Finds what an earlier run of the agent left: a process, or one that waits to be started again.
    async fn find(&mut self, input: &watch::Receiver<Input>) {
        let record = self.book.read();
        self.restarts = self.book.restarts();
        if let Some(record) = &record {
            self.restarts = self.restarts.max(record.restarts);
        }
        let unit = self.look(input).await;
        // Without a record nobody knows what it is: it is started anew if it is wanted.
        let with = record
            .as_ref()
            .map_or_else(String::new, |record| record.fingerprint.clone());
        match (unit, record) {
            (UnitState::Running { pid }, record) => {
                tracing::info!(app = %self.id, pid, "found running");
                let mut run = Run::found(record, true);
                run.process = Process::watch(pid).ok();
                run.guest = self.listen(run.record.as_ref());
                self.life = Life::Up { with, run };
            }
            (UnitState::Gone | UnitState::Ended { .. }, Some(mut record)) => {
                match record.waits.take() {
                    Some(waits) => self.wait_on(with, record.failures, waits),
                    None => {
                        // It ended while nobody looked.
                        let run = Run::found(Some(record), true);
                        self.life = Life::Up { with, run };
                        self.settle_end().await;
                    }
                }
            }
            (UnitState::Gone | UnitState::Ended { .. }, None) => {}
        }
    }

    /// What has become of the app's unit, asked until there is an answer: an app that runs and is taken for one that does not
    /// would be started over itself, and what it stands on taken away.
    async fn look(&mut self, input: &watch::Receiver<Input>) -> UnitState {
        let mut failures = 0;
        loop {
            let error = match self.context.units.look(&self.unit).await {
                Ok(state) => return state,
                Err(error) => error,
            };
            failures += 1;
            let delay = LOCAL.after(failures);
            let now = SystemTime::now();
            tracing::warn!(app = %self.id, %error, "its unit could not be looked for");
            let trouble = Trouble {
                message: format!("whether it runs could not be found out: {error}"),
                at: now,
                retry_at: Some(now + delay),
            };
            let wanted = input.borrow().clone();
            self.tell_with(&wanted, None, Some(trouble));
            tokio::time::sleep(delay).await;
        }
    }

    /// Goes on waiting where the last run of the agent was.
    fn wait_on(&mut self, with: String, failures: u32, waits: Waits) {
        let until = Duration::from_millis(waits.until);
        let left = until.saturating_sub(after_boot()).min(APP.ceiling);
        self.life = Life::BackOff {
            with,
            until: Instant::now() + left,
            failure: Failure {
                ran: waits.ran,
                failures,
                message: waits.message,
                at: waits.at,
                retry_at: SystemTime::now() + left,
            },
        };
    }

    /// Listens for the guest of a microVM that an earlier run of the agent started.
    fn listen(&self, record: Option<&Record>) -> Option<Guest> {
        let record = record.filter(|record| record.manner == Manner::Microvm)?;
        let files = VmFiles::new(&self.dir);
        Guest::listen(&files.guest_workshop(), &files.guest_control(), record.uid)
            .inspect_err(|error| tracing::warn!(app = %self.id, %error, "its guest cannot report"))
            .ok()
    }

    async fn start(&mut self, start: &Arc<Start>) {
        let with = start.fingerprint();
        tracing::info!(app = %self.id, name = %start.name, "starting");
        let (ran, failures) = match self.life.take() {
            Life::BackOff { failure, .. } => (failure.ran, failure.failures),
            _ => (false, 0),
        };
        match self.try_start(start, ran, failures).await {
            Ok(run) => {
                if ran {
                    self.book.keep_restarts(self.restarts).await;
                }
                self.life = Life::Up { with, run };
                self.check().await;
            }
            Err(error) => {
                tracing::warn!(app = %self.id, name = %start.name, %error, "could not be started");
                let message = error.to_string();
                if let Err(error) = self.context.units.forget(&self.unit).await {
                    tracing::debug!(app = %self.id, %error, "its unit could not be forgotten");
                }
                self.tear_down().await;
                let record = Record::of(start, &self.dir, self.restarts, failures);
                self.back_off(with, Some(record), ran, failures, message);
            }
        }
    }

    /// Starts it after so many failures in a row. `ran`: it ended by itself, so that this is a restart.
    async fn try_start(
        &mut self,
        start: &Arc<Start>,
        ran: bool,
        failures: u32,
    ) -> Result<Run, StartError> {
        let mut guest = None;
        let unit = if matches!(start.kind, StartKind::Native { .. }) {
            native::prepare(start, &self.context.paths, &self.dir).await?;
            native::unit(self.unit.clone(), start, &self.dir)
        } else {
            let (start_here, paths, dir) =
                (start.clone(), self.context.paths.clone(), self.dir.clone());
            tokio::task::spawn_blocking(move || vm::prepare(&start_here, &paths, &dir))
                .await
                .map_err(|_| StartError::Interrupted)??;
            if matches!(start.kind, StartKind::Microvm { .. }) {
                // The guest's first words must find someone who listens.
                let files = VmFiles::new(&self.dir);
                guest = Some(Guest::listen(
                    &files.guest_workshop(),
                    &files.guest_control(),
                    start.number.uid(),
                )?);
            }
            vm::unit(self.unit.clone(), start, &self.context.paths, &self.dir)
        };
        // Before it runs, so that there is never a process of which nobody knows how it is ended.
        let restarts = self.restarts.saturating_add(u32::from(ran));
        let record = Record::of(start, &self.dir, restarts, failures);
        self.book.write(&record);
        let announced = record.manner != Manner::Microvm;
        let mut run = Run::found(Some(record), announced);
        run.guest = guest;
        self.context.units.start(unit).await?;
        self.restarts = restarts;
        Ok(run)
    }

    /// Tells how it is.
    fn tell(&mut self, wanted: &Input, phase: Option<AppPhase>) {
        let trouble = match &self.life {
            Life::BackOff { failure, .. } => Some(failure.trouble()),
            _ => None,
        };
        self.tell_with(wanted, phase, trouble);
    }

    fn tell_with(&mut self, wanted: &Input, phase: Option<AppPhase>, own: Option<Trouble>) {
        let phase = phase.unwrap_or_else(|| status::phase(&mut self.life, &wanted.want));
        // What it waits for now is of more use than how it ended.
        let trouble = match phase {
            AppPhase::Preparing => wanted.trouble.clone().or(own),
            _ => own.or_else(|| wanted.trouble.clone()),
        };
        let files = VmFiles::new(&self.dir);
        let run = self.life.run().filter(|run| run.process.is_some());
        let record = run.and_then(|run| run.record.as_ref());
        let status = AppStatus {
            name: wanted.name.clone(),
            phase,
            restarts: self.restarts,
            addresses: wanted.addresses.clone(),
            console: record.and_then(|record| record.console.clone()),
            pid: run
                .and_then(|run| run.process.as_ref())
                .map(|process| process.pid),
            unit: Some(self.unit.clone()),
            links: wanted.links.clone(),
            control: record
                .filter(|record| record.manner != Manner::Native)
                .map(|_| files.control()),
            trouble,
        };
        self.context.apps.send_if_modified(|apps| {
            let differs = apps.get(&self.id) != Some(&status);
            if differs {
                Arc::make_mut(apps).insert(self.id, status);
            }
            differs
        });
    }
}

/// Waits for news of a process; without one there are none.
async fn news(run: Option<&mut Run>) -> News {
    match run {
        Some(run) => run.news().await,
        None => std::future::pending().await,
    }
}
