//! Looks after one app: a task for each, so that one that hangs holds up no other. [`super::life`] decides, this does.
//!
//! The process runs in a systemd unit and is watched through a pidfd ([`super::process`]). A record of it tells the agent
//! after its own restart what the process was started with, how it is ended, or when it is started again
//! ([`super::record`]). What is told of it stands in [`super::status`]; how it ends, in [`ending`].

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use guest_api::FromGuest;
use protocol::ids::AppId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::guest::Guest;
use super::life::{self, Action, Life, Want};
use super::native::{self, NativeError};
use super::process::{Process, ended};
use super::record::{Book, Manner, Record, Waits, after_boot};
use super::start::{Start, StartKind};
use super::status::{self, Since};
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
    life: Life<String>,
    book: Book,
    record: Option<Record>,
    process: Option<Process>,
    guest: Option<Guest>,
    /// Whether the guest said that its container runs; machines and native containers need not say.
    announced: bool,
    /// How the container ended, as the guest told it.
    said: Option<String>,
    restarts: u32,
    failures: u32,
    ended_by_itself: bool,
    trouble: Option<Trouble>,
    since: Since,
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
            record: None,
            process: None,
            guest: None,
            announced: false,
            said: None,
            restarts: 0,
            failures: 0,
            ended_by_itself: false,
            trouble: None,
            since: Since::default(),
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
                    self.life = Life::Down;
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
                () = ended(self.process.as_ref()) , if matches!(self.life, Life::Up(_) | Life::Stopping { .. }) => self.check().await,
                event = event(self.guest.as_mut()) => self.hear(event),
                () = sleep_until(until) => {}
            }
        }
    }

    /// Finds what an earlier run of the agent left: a process, or one that waits to be started again.
    async fn find(&mut self, input: &watch::Receiver<Input>) {
        self.record = self.book.read();
        self.restarts = self.book.restarts();
        if let Some(record) = &self.record {
            self.restarts = self.restarts.max(record.restarts);
            self.failures = record.failures;
        }
        // Without a record nobody knows what it is: it is started anew if it is wanted.
        let fingerprint = self
            .record
            .as_ref()
            .map_or_else(String::new, |record| record.fingerprint.clone());
        match self.look(input).await {
            UnitState::Running { pid } => {
                tracing::info!(app = %self.id, pid, "found running");
                self.process = Process::watch(pid).ok();
                self.life = Life::Up(fingerprint);
                self.announced = true;
                self.listen();
            }
            UnitState::Gone | UnitState::Ended { .. } => {
                match self.record.as_ref().map(|record| record.waits.clone()) {
                    Some(Some(waits)) => self.wait_on(fingerprint, waits),
                    Some(None) => {
                        // It ended while nobody looked.
                        self.life = Life::Up(fingerprint);
                        self.settle_end().await;
                    }
                    None => {}
                }
            }
        }
    }

    /// What has become of the app's unit, asked until there is an answer: an app that runs and is taken for one that does not
    /// would be started over itself, and what it stands on taken away.
    async fn look(&mut self, input: &watch::Receiver<Input>) -> UnitState {
        let mut failures = 0;
        loop {
            let error = match self.context.units.look(&self.unit).await {
                Ok(state) => {
                    self.trouble = None;
                    return state;
                }
                Err(error) => error,
            };
            failures += 1;
            let delay = LOCAL.after(failures);
            let now = SystemTime::now();
            tracing::warn!(app = %self.id, %error, "its unit could not be looked for");
            self.trouble = Some(Trouble {
                message: format!("whether it runs could not be found out: {error}"),
                at: now,
                retry_at: Some(now + delay),
            });
            let wanted = input.borrow().clone();
            self.tell(&wanted, None);
            tokio::time::sleep(delay).await;
        }
    }

    /// Goes on waiting where the last run of the agent was.
    fn wait_on(&mut self, with: String, waits: Waits) {
        let until = Duration::from_millis(waits.until);
        let left = until.saturating_sub(after_boot()).min(APP.ceiling);
        self.ended_by_itself = waits.ran;
        self.life = Life::BackOff {
            with,
            until: Instant::now() + left,
        };
        self.trouble = Some(Trouble {
            message: waits.message,
            at: waits.at,
            retry_at: Some(SystemTime::now() + left),
        });
    }

    /// Listens for the guest of a microVM.
    fn listen(&mut self) {
        self.guest = None;
        let Some(record) = self
            .record
            .as_ref()
            .filter(|record| record.manner == Manner::Microvm)
        else {
            return;
        };
        let files = VmFiles::new(&self.dir);
        match Guest::listen(&files.guest_workshop(), &files.guest_control(), record.uid) {
            Ok(guest) => self.guest = Some(guest),
            Err(error) => tracing::warn!(app = %self.id, %error, "its guest cannot report"),
        }
    }

    async fn start(&mut self, start: &Arc<Start>) {
        let fingerprint = start.fingerprint();
        tracing::info!(app = %self.id, name = %start.name, "starting");
        match self.try_start(start).await {
            Ok(()) => {
                self.trouble = None;
                if std::mem::take(&mut self.ended_by_itself) {
                    self.book.keep_restarts(self.restarts).await;
                }
                self.life = Life::Up(fingerprint);
                self.check().await;
            }
            Err(error) => {
                tracing::warn!(app = %self.id, name = %start.name, %error, "could not be started");
                let message = error.to_string();
                if let Err(error) = self.context.units.forget(&self.unit).await {
                    tracing::debug!(app = %self.id, %error, "its unit could not be forgotten");
                }
                self.guest = None;
                self.tear_down().await;
                let (restarts, failures) = (self.restarts, self.failures);
                self.record = Some(Record::of(start, &self.dir, restarts, failures));
                self.back_off(fingerprint, message);
            }
        }
    }

    async fn try_start(&mut self, start: &Arc<Start>) -> Result<(), StartError> {
        self.said = None;
        self.process = None;
        self.guest = None;
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
                self.guest = Some(Guest::listen(
                    &files.guest_workshop(),
                    &files.guest_control(),
                    start.number.uid(),
                )?);
            }
            vm::unit(self.unit.clone(), start, &self.context.paths, &self.dir)
        };
        // Before it runs, so that there is never a process of which nobody knows how it is ended.
        let restarts = self
            .restarts
            .saturating_add(u32::from(self.ended_by_itself));
        let record = Record::of(start, &self.dir, restarts, self.failures);
        self.announced = record.manner != Manner::Microvm;
        self.book.write(&record);
        self.record = Some(record);
        self.context.units.start(unit).await?;
        self.restarts = restarts;
        Ok(())
    }

    fn hear(&mut self, event: FromGuest) {
        match event {
            FromGuest::Started => self.announced = true,
            FromGuest::Exited { code } => {
                self.said = Some(format!("the container ended with status {code}"))
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

    fn tell(&mut self, wanted: &Input, phase: Option<AppPhase>) {
        let since = self
            .since
            .of(self.record.as_ref().map_or(0, |record| record.started));
        let phase = phase.unwrap_or_else(|| {
            status::phase(
                &self.life,
                &wanted.want,
                self.announced,
                since,
                self.trouble.as_ref(),
            )
        });
        // What it waits for now is of more use than how it ended.
        let trouble = match phase {
            AppPhase::Preparing => wanted.trouble.as_ref().or(self.trouble.as_ref()),
            _ => self.trouble.as_ref().or(wanted.trouble.as_ref()),
        };
        let trouble = trouble.cloned();
        let files = VmFiles::new(&self.dir);
        let running = self.process.is_some();
        let status = AppStatus {
            name: wanted.name.clone(),
            phase,
            restarts: self.restarts,
            addresses: wanted.addresses.clone(),
            console: self
                .record
                .as_ref()
                .and_then(|record| record.console.clone())
                .filter(|_| running),
            pid: self.process.as_ref().map(|process| process.pid),
            unit: Some(self.unit.clone()),
            links: wanted.links.clone(),
            control: self
                .record
                .as_ref()
                .filter(|record| running && record.manner != Manner::Native)
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

async fn event(guest: Option<&mut Guest>) -> FromGuest {
    if let Some(guest) = guest
        && let Some(event) = guest.event().await
    {
        return event;
    }
    std::future::pending().await
}
