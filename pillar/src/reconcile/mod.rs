//! The reconcilers: they make the device what it should be, and tell what it is.
//!
//! ```text
//!            +--> allocation (numbers, addresses) --+--------> network --+
//! desired ---+                                      +--> volume --+      +--> workload --+
//!            +--> content ------------------------------^--------------------^           |
//!                    |                                    |       |          |           v
//!                    +------------------------------------+-------+----------+-----> observed
//! ```
//!
//! Each follows what it needs through a channel that holds only the latest value, compares it with what is there, and does
//! the next step; a lost event costs a delay, never a wrong state. Nothing of a running app depends on the agent: VMs and
//! containers run in units of systemd and are found again when the agent starts.

pub mod allocation;
pub mod content;
pub mod delay;
pub mod ledger;
pub mod network;
pub mod volume;
pub mod workload;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use self::allocation::{Allocated, Base};
use self::content::Contents;
use self::content::store::Store;
use self::network::Networks;
use self::volume::Volumes;
use self::workload::app::{Apps, Context};
use crate::domain::desired::Desired;
use crate::domain::observed::Observed;
use crate::host::files::FileError;
use crate::host::units::{Systemd, Units};
use crate::paths::Paths;
use crate::status::Status;

/// Changes that come within this time are told as one.
const COALESCE: Duration = Duration::from_millis(200);

/// Starts the reconcilers on the real device.
///
/// A value that is [`Desired::default`] and has never changed means that nothing is known yet: nothing is touched until
/// the first change. After that everything that is not in the desired state is taken away.
///
/// # Errors
/// When the content store cannot be opened. Everything later is told as trouble and tried again.
pub fn spawn(
    desired: watch::Receiver<Arc<Desired>>,
    paths: Paths,
    status: Status,
) -> Result<watch::Receiver<Arc<Observed>>, FileError> {
    spawn_with(desired, paths, Arc::new(Systemd), status)
}

/// The same with another place for processes to run; for tests.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_with(
    desired: watch::Receiver<Arc<Desired>>,
    paths: Paths,
    units: Arc<dyn Units>,
    status: Status,
) -> Result<watch::Receiver<Arc<Observed>>, FileError> {
    let store = Store::open(&paths)?;
    let (told, observed) = watch::channel(Arc::new(Observed::default()));
    let base = Base {
        paths,
        units,
        status,
    };
    tokio::spawn(run(desired, base, store, told));
    Ok(observed)
}

async fn run(
    mut desired: watch::Receiver<Arc<Desired>>,
    base: Base,
    store: Store,
    told: watch::Sender<Arc<Observed>>,
) {
    let nothing_known =
        !desired.has_changed().unwrap_or(false) && **desired.borrow() == Desired::default();
    if nothing_known && desired.changed().await.is_err() {
        return;
    }
    let (allocated_told, allocated) = watch::channel(Arc::new(Allocated::default()));
    let (contents_told, contents) = watch::channel(Arc::new(Contents::new()));
    let (volumes_told, volumes) = watch::channel(Arc::new(Volumes::new()));
    let (networks_told, networks) = watch::channel(Arc::new(Networks::new()));
    let (apps_told, apps) = watch::channel(Arc::new(Apps::new()));
    let gone = Arc::new(Notify::new());

    // They end together: the set is dropped with this task.
    let mut tasks = JoinSet::new();
    tasks.spawn(content::run(desired.clone(), store, contents_told));
    {
        let (paths, units) = (base.paths.clone(), base.units.clone());
        let status = base.status.clone();
        let (mut allocated, contents) = (allocated.clone(), contents.clone());
        let freed = gone.clone();
        let sources = workload::Sources {
            allocated: allocated.clone(),
            contents: contents.clone(),
            volumes: volumes.clone(),
            networks: networks.clone(),
        };
        tasks.spawn(async move {
            // Nobody acts before the first allocation is there: an empty one would take everything away.
            if allocated.changed().await.is_err() {
                return;
            }
            let context = Context {
                paths: paths.clone(),
                units: units.clone(),
                apps: apps_told,
            };
            tokio::join!(
                network::run(allocated.clone(), paths.clone(), units, networks_told),
                volume::run(allocated.clone(), contents, paths, status, volumes_told),
                workload::run(sources, context, freed),
            );
        });
    }
    tasks.spawn(allocation::run(desired, base, gone, allocated_told));
    tasks.spawn(tell(contents, volumes, networks, apps, told));
    // None of them ends while the desired state has a source.
    tasks.join_next().await;
}

/// Puts the parts together for report.
async fn tell(
    mut contents: watch::Receiver<Arc<Contents>>,
    mut volumes: watch::Receiver<Arc<Volumes>>,
    mut networks: watch::Receiver<Arc<Networks>>,
    mut apps: watch::Receiver<Arc<Apps>>,
    told: watch::Sender<Arc<Observed>>,
) {
    loop {
        let result = tokio::select! {
            result = contents.changed() => result,
            result = volumes.changed() => result,
            result = networks.changed() => result,
            result = apps.changed() => result,
        };
        if result.is_err() {
            return;
        }
        tokio::time::sleep(COALESCE).await;
        let observed = Observed {
            contents: contents
                .borrow_and_update()
                .iter()
                .map(|(id, state)| (*id, state.status.clone()))
                .collect(),
            volumes: volumes
                .borrow_and_update()
                .iter()
                .map(|(id, state)| (*id, state.status.clone()))
                .collect(),
            networks: (**networks.borrow_and_update()).clone(),
            apps: (**apps.borrow_and_update()).clone(),
        };
        told.send_if_modified(|current| {
            let differs = **current != observed;
            if differs {
                *current = Arc::new(observed);
            }
            differs
        });
    }
}
