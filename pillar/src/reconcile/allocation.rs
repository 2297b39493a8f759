//! What the reconcilers stand on: the desired state together with the numbers and addresses given out for it, so
//! that network, volume and workload speak of the same tap and the same file.
//!
//! ```text
//!            whole, or its copy is                               kept
//!   (start) ----------------------> known ---- desired changes -------> told
//!      | lost                         ^            | the disk refuses
//!      v                              |            v
//!   apps that run are killed ---------'         trouble, again in 10 s
//! ```
//!
//! The rule for a lost ledger stands in [`super::ledger`]. Numbers that are not on the disk are never told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use protocol::ids::AppId;
use tokio::sync::{Notify, watch};

use super::ledger::{Found, Ledger, LedgerFile};
use crate::domain::desired::Desired;
use crate::generations;
use crate::host::program::ProgramError;
use crate::host::units::{self, APP_UNITS, UnitState, Units};
use crate::paths::Paths;
use crate::status::{Status, Topic};

/// How long it waits after a failure.
const AGAIN: Duration = Duration::from_secs(10);

/// The desired state and what was given out for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocated {
    /// What is wanted.
    pub desired: Arc<Desired>,
    /// What was given out for it; on the disk before it is told.
    pub ledger: Ledger,
}

/// Why nothing could be allocated.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The disk.
    #[error(transparent)]
    File(#[from] generations::Error),
    /// The units.
    #[error("ending the apps whose numbers are lost: {0}")]
    Units(#[from] ProgramError),
    /// A unit that does not end.
    #[error("ending the apps whose numbers are lost: {0} was killed and is still there")]
    StillThere(String),
    /// A panic in this agent.
    #[error("a fault of the agent: {0}")]
    Fault(#[from] tokio::task::JoinError),
}

/// What allocating needs.
pub struct Base {
    /// Where things lie.
    pub paths: Paths,
    /// Where apps run.
    pub units: Arc<dyn Units>,
    /// Where troubles are told.
    pub status: Status,
}

/// Follows `desired` for ever. `gone` tells of apps whose last traces were taken away, so that their numbers are free.
pub async fn run(
    mut desired: watch::Receiver<Arc<Desired>>,
    base: Base,
    gone: Arc<Notify>,
    changed: watch::Sender<Arc<Allocated>>,
) {
    let file = LedgerFile::at(&base.paths);
    let mut known: Option<Ledger> = None;
    let mut first = true;
    loop {
        let wanted = desired.borrow_and_update().clone();
        match base.step(&file, known.clone(), &wanted).await {
            Ok(ledger) => {
                base.status.clear(Topic::Ledger);
                known = Some(ledger.clone());
                let allocated = Allocated {
                    desired: wanted,
                    ledger,
                };
                changed.send_if_modified(|current| {
                    // Also if it is equal the first time: it is not the value that the channel was made with, but known.
                    let differs = first || **current != allocated;
                    *current = Arc::new(allocated);
                    differs
                });
                first = false;
                tokio::select! {
                    result = desired.changed() => if result.is_err() { return },
                    () = gone.notified() => {}
                }
            }
            Err(error) => {
                base.status.raise(
                    Topic::Ledger,
                    &format!(
                        "the ledger of numbers and addresses cannot be kept: {error}; what runs goes on, nothing new starts"
                    ),
                );
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

impl Base {
    async fn step(
        &self,
        file: &LedgerFile,
        known: Option<Ledger>,
        wanted: &Arc<Desired>,
    ) -> Result<Ledger, Error> {
        let (first, before) = match known {
            Some(ledger) => (false, ledger),
            None => (true, self.begin(file).await?),
        };
        let (file, paths, wanted) = (file.clone(), self.paths.clone(), wanted.clone());
        let work = move || -> Result<Ledger, Error> {
            let after = before.update(&wanted, &apps_with_a_directory(&paths));
            if after != before {
                file.write(&after)?;
            } else if first {
                file.write_copy(&after)?;
            }
            Ok(after)
        };
        tokio::task::spawn_blocking(work).await?
    }

    /// The ledger to begin with.
    async fn begin(&self, file: &LedgerFile) -> Result<Ledger, Error> {
        let reader = file.clone();
        let found = tokio::task::spawn_blocking(move || reader.read()).await??;
        let ledger = match found {
            Found::Whole(ledger) => return Ok(ledger),
            Found::Copy { ledger, reason } => {
                self.status.raise(
                    Topic::LedgerLost,
                    &format!(
                        "the ledger of numbers and addresses was lost: {reason}; it was made again from its copy in memory, \
                         nothing changed; check the disk"
                    ),
                );
                ledger
            }
            Found::None if apps_with_a_directory(&self.paths).is_empty() => Ledger::default(),
            Found::None => self.anew("its file is gone").await?,
            Found::Lost { reason } => self.anew(&reason).await?,
        };
        let (writer, written) = (file.clone(), ledger.clone());
        tokio::task::spawn_blocking(move || writer.write(&written)).await??;
        Ok(ledger)
    }

    /// A new ledger, when nothing runs any more that has a number of the old one.
    async fn anew(&self, reason: &str) -> Result<Ledger, Error> {
        let mut ended = 0;
        for unit in self.units.list(APP_UNITS).await? {
            let runs = matches!(self.units.look(&unit).await?, UnitState::Running { .. });
            if runs {
                if let UnitState::Running { .. } = units::kill(self.units.as_ref(), &unit).await? {
                    return Err(Error::StillThere(unit));
                }
                ended += 1;
            }
        }
        self.status.raise(
            Topic::LedgerLost,
            &format!(
                "the ledger of numbers and addresses was lost: {reason}; a new one was begun after {ended} running apps were \
                 ended; addresses of apps may have changed, and files that native containers wrote may belong to nobody; \
                 check the disk"
            ),
        );
        Ok(Ledger::default())
    }
}

/// Apps that have a run-time directory: they run, or something of them is still to be taken away.
#[must_use]
pub fn apps_with_a_directory(paths: &Paths) -> BTreeSet<AppId> {
    let Ok(entries) = std::fs::read_dir(paths.run.join("apps")) else {
        return BTreeSet::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(AppId))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::future::BoxFuture;
    use uuid::Uuid;

    use super::*;
    use crate::domain::desired::{App, Runtime};
    use crate::host::units::UnitSpec;

    /// Units that run until they are killed; the stubborn one not even then.
    #[derive(Default)]
    struct Running {
        units: Mutex<Vec<String>>,
        killed: Mutex<Vec<String>>,
    }

    impl Units for Running {
        fn start(&self, unit: UnitSpec) -> BoxFuture<'_, Result<(), ProgramError>> {
            self.units.lock().unwrap().push(unit.name);
            Box::pin(async { Ok(()) })
        }

        fn look<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<UnitState, ProgramError>> {
            let runs = self.units.lock().unwrap().iter().any(|unit| unit == name);
            Box::pin(async move {
                Ok(if runs {
                    UnitState::Running { pid: 1 }
                } else {
                    UnitState::Gone
                })
            })
        }

        fn signal<'a>(
            &'a self,
            name: &'a str,
            _: i32,
            _: bool,
        ) -> BoxFuture<'a, Result<(), ProgramError>> {
            self.killed.lock().unwrap().push(name.to_owned());
            self.units.lock().unwrap().retain(|unit| unit != name);
            Box::pin(async { Ok(()) })
        }

        fn forget<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), ProgramError>> {
            Box::pin(async { Ok(()) })
        }

        fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, ProgramError>> {
            let names = self.units.lock().unwrap().clone();
            let names = names
                .into_iter()
                .filter(|name| name.starts_with(prefix))
                .collect();
            Box::pin(async { Ok(names) })
        }
    }

    struct Place {
        _dir: tempfile::TempDir,
        base: Base,
        units: Arc<Running>,
        file: LedgerFile,
        wanted: Arc<Desired>,
    }

    impl Place {
        /// A device on which two apps run.
        async fn new() -> (Self, Ledger) {
            let dir = tempfile::tempdir().unwrap();
            let paths = Paths {
                persist: dir.path().join("persist"),
                run: dir.path().join("run"),
                ..Paths::default()
            };
            let mut wanted = Desired::default();
            let units = Arc::new(Running::default());
            for n in [7, 3] {
                let id = AppId(Uuid::from_u128(n));
                wanted.apps.insert(
                    id,
                    App {
                        name: "a".into(),
                        activate: true,
                        vcpus: 1,
                        memory_mib: 64,
                        runtime: Runtime::ContainerMicrovm,
                        volumes: vec![],
                        interfaces: vec![],
                        env: vec![],
                        user_data: None,
                        restart_counter: 0,
                        purge_counter: 0,
                    },
                );
                std::fs::create_dir_all(paths.app(id)).unwrap();
                let unit = units::app_unit(id);
                units.units.lock().unwrap().push(unit);
            }
            let file = LedgerFile::at(&paths);
            let place = Self {
                base: Base {
                    paths,
                    units: units.clone(),
                    status: Status::to_memory().0,
                },
                units,
                file,
                wanted: Arc::new(wanted),
                _dir: dir,
            };
            // The numbers are not those that a new ledger would give.
            let seven = AppId(Uuid::from_u128(7));
            let mut only = (*place.wanted).clone();
            only.apps.retain(|id, _| *id == seven);
            let ledger = Ledger::default().update(&only, &BTreeSet::new());
            let ledger = ledger.update(&place.wanted, &BTreeSet::new());
            place.file.write(&ledger).unwrap();
            place.file.write(&ledger).unwrap();
            (place, ledger)
        }

        fn spoil(&self, dir: &std::path::Path) {
            for name in ["ledger.json", "ledger.json.old"] {
                std::fs::write(dir.join(name), b"rubbish").unwrap();
            }
        }

        async fn step(&self) -> Result<Ledger, Error> {
            self.base.step(&self.file, None, &self.wanted).await
        }

        fn trouble(&self) -> Option<String> {
            let board = self.base.status.troubles();
            let board = board.borrow();
            board
                .get(&Topic::LedgerLost)
                .map(|trouble| trouble.message.clone())
        }
    }

    #[tokio::test]
    async fn a_lost_ledger_is_taken_from_its_copy_and_nothing_changes() {
        let (place, ledger) = Place::new().await;
        assert_eq!(place.step().await.unwrap(), ledger);
        assert_eq!(place.trouble(), None);
        place.spoil(&place.base.paths.pillar());
        assert_eq!(place.step().await.unwrap(), ledger);
        assert!(place.units.killed.lock().unwrap().is_empty());
        assert!(place.trouble().unwrap().contains("copy"));
        assert_eq!(place.file.read().unwrap(), Found::Whole(ledger));
    }

    #[tokio::test]
    async fn without_a_copy_a_new_one_is_begun_when_nothing_runs_any_more() {
        let (place, ledger) = Place::new().await;
        place.spoil(&place.base.paths.pillar());
        place.spoil(&place.base.paths.run);
        let new = place.step().await.unwrap();
        assert_ne!(new, ledger);
        assert_eq!(place.units.killed.lock().unwrap().len(), 2);
        assert!(place.units.units.lock().unwrap().is_empty());
        let trouble = place.trouble().unwrap();
        assert!(
            trouble.contains("damaged") && trouble.contains("2 running apps"),
            "{trouble}"
        );
        assert_eq!(place.file.read().unwrap(), Found::Whole(new));
    }
}
