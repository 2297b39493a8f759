//! The common ground of the reconcilers: the desired state together with the numbers and addresses given out for it, so
//! that network, volume and workload speak of the same tap and the same file.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::ledger::{Ledger, LedgerFile};
use crate::domain::desired::Desired;
use crate::domain::ids::AppId;
use crate::paths::Paths;

/// The desired state and what was given out for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ground {
    /// What is wanted.
    pub desired: Arc<Desired>,
    /// What was given out for it; on the disk before it is told.
    pub ledger: Ledger,
}

/// Follows `desired` for ever. `gone` tells of apps whose last traces were taken away, so that their numbers are free.
pub async fn run(
    mut desired: watch::Receiver<Arc<Desired>>,
    paths: Paths,
    gone: Arc<Notify>,
    changed: watch::Sender<Arc<Ground>>,
) {
    let file = LedgerFile::at(&paths);
    let mut known: Option<Ledger> = None;
    let mut first = true;
    loop {
        let wanted = desired.borrow_and_update().clone();
        match step(&file, &paths, known.clone(), &wanted).await {
            Ok(ledger) => {
                known = Some(ledger.clone());
                let ground = Ground {
                    desired: wanted,
                    ledger,
                };
                changed.send_if_modified(|current| {
                    // Also if it is equal the first time: it is not the value that the channel was made with, but known.
                    let differs = first || **current != ground;
                    *current = Arc::new(ground);
                    differs
                });
                first = false;
                tokio::select! {
                    result = desired.changed() => if result.is_err() { return },
                    () = gone.notified() => {}
                }
            }
            Err(error) => {
                // Numbers that are not on the disk must not be used. What runs goes on; nothing new starts.
                tracing::error!(%error, "the ledger of numbers and addresses could not be kept; trying again in 10 s");
                tokio::time::sleep(Duration::from_secs(10)).await;
            }
        }
    }
}

async fn step(
    file: &LedgerFile,
    paths: &Paths,
    known: Option<Ledger>,
    wanted: &Arc<Desired>,
) -> Result<Ledger, crate::durable::Error> {
    let (file, paths, wanted) = (file.clone(), paths.clone(), wanted.clone());
    let work = move || {
        let before = match known {
            Some(ledger) => ledger,
            None => file.read()?,
        };
        let after = before.update(&wanted, &apps_with_a_directory(&paths));
        if after != before {
            file.write(&after)?;
        }
        Ok(after)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // The task neither panics nor is aborted while the runtime lives; wait with it for its end.
        Err(_) => std::future::pending().await,
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
