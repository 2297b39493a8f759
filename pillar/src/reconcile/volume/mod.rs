//! The volume reconciler: makes the disks of apps, and removes those that nobody wants any more.
//!
//! One volume is made at a time: the disk is the bottleneck. A volume that fails waits for its growing delay, tells its
//! apps why, and leaves the others alone. What is wrong with the folder as a whole is a trouble of the device.

pub mod make;
pub mod plan;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hypervisor_api::config::DiskFormat;
use protocol::ids::VolumeId;
use tokio::sync::watch;
use tokio::time::Instant;

use self::plan::{FileName, Step};
use super::allocation::Allocated;
use super::content::{Contents, sleep_until};
use super::delay::LOCAL;
use crate::domain::desired::Volume;
use crate::domain::observed::{Trouble, VolumeStatus};
use crate::host::files::{self, FileError, fail};
use crate::paths::Paths;
use crate::status::{Status, Topic};

/// How often the room that volumes take is measured.
const MEASURE_EVERY: Duration = Duration::from_secs(60);

/// All volumes.
pub type Volumes = BTreeMap<VolumeId, VolumeState>;

/// A volume, for report and for the workload reconciler.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeState {
    /// For report.
    pub status: VolumeStatus,
    /// How its file's bytes are to be read.
    pub format: DiskFormat,
    /// The generation that the file has; what was wanted when it was looked at, or higher.
    pub generation: i64,
}

impl VolumeState {
    /// A volume that cannot be used yet, or no longer.
    fn not_ready(volume: &Volume, generation: i64, trouble: Option<Trouble>) -> Self {
        Self {
            status: VolumeStatus {
                name: volume.name.clone(),
                ready: false,
                path: None,
                used_bytes: 0,
                size_bytes: volume.size_bytes,
                trouble,
            },
            format: DiskFormat::Raw,
            generation,
        }
    }
}

/// What is remembered of a volume that failed.
struct Failure {
    count: u32,
    retry: Instant,
    trouble: Trouble,
}

/// Follows the desired state and the contents for ever.
pub async fn run(
    mut allocated: watch::Receiver<Arc<Allocated>>,
    mut contents: watch::Receiver<Arc<Contents>>,
    paths: Paths,
    status: Status,
    changed: watch::Sender<Arc<Volumes>>,
) {
    let dir = paths.volumes();
    let mut failures: BTreeMap<VolumeId, Failure> = BTreeMap::new();
    let mut dir_failures = 0;
    loop {
        let (wanted, here) = (
            allocated.borrow_and_update().clone(),
            contents.borrow_and_update().clone(),
        );
        let mut retry = None;
        let outcome = match open(&dir) {
            Ok(listing) => pass(&dir, &listing, &wanted, &here, &mut failures, &changed).await,
            Err(error) => Err(error),
        };
        match outcome {
            // Something was made: look again, the rest may be waiting.
            Ok(true) => continue,
            Ok(false) if dir_failures > 0 => {
                dir_failures = 0;
                status.clear(Topic::Volumes);
            }
            Ok(false) => {}
            Err(error) => {
                dir_failures += 1;
                let delay = LOCAL.after(dir_failures);
                retry = Some(Instant::now() + delay);
                let message = format!("{error}; check the disk that volumes lie on");
                status.raise(Topic::Volumes, &message);
                // Copied first: telling while it is looked at would wait for itself for ever.
                let known = changed.borrow().clone();
                publish(with_trouble(&wanted, &known, &message, delay), &changed);
            }
        }
        let retry = failures
            .values()
            .map(|failure| failure.retry)
            .chain(retry)
            .min();
        tokio::select! {
            result = allocated.changed() => if result.is_err() { return },
            result = contents.changed() => if result.is_err() { return },
            () = sleep_until(retry) => {}
            () = tokio::time::sleep(MEASURE_EVERY), if !wanted.desired.volumes.is_empty() => {}
        }
    }
}

/// The folder's files; made if it is not there.
fn open(dir: &Path) -> Result<Vec<String>, FileError> {
    files::make_dir(dir, 0o711)?;
    list(dir)
}

/// What is told while the folder cannot be looked after: what was known of each volume, and why no more is.
fn with_trouble(allocated: &Allocated, known: &Volumes, message: &str, delay: Duration) -> Volumes {
    let now = SystemTime::now();
    let trouble = Trouble {
        message: message.to_owned(),
        at: now,
        retry_at: Some(now + delay),
    };
    let state = |(id, volume): (&VolumeId, &Volume)| {
        let generation = allocated.ledger.generation(*id, volume.generation);
        let mut state = known
            .get(id)
            .cloned()
            .unwrap_or_else(|| VolumeState::not_ready(volume, generation, None));
        // A trouble of its own says more.
        state.status.trouble.get_or_insert_with(|| trouble.clone());
        (*id, state)
    };
    allocated.desired.volumes.iter().map(state).collect()
}

/// Looks at everything once, removes what is surplus and makes at most one volume. Gives whether it made or tried one; the
/// error, of a file that nobody wants and that cannot be removed, comes when there is nothing left to make.
async fn pass(
    dir: &Path,
    listing: &[String],
    allocated: &Allocated,
    contents: &Contents,
    failures: &mut BTreeMap<VolumeId, Failure>,
    changed: &watch::Sender<Arc<Volumes>>,
) -> Result<bool, FileError> {
    let there: Vec<FileName> = listing
        .iter()
        .filter_map(|name| FileName::parse(name))
        .collect();
    let desired = &allocated.desired;
    failures.retain(|id, _| desired.volumes.contains_key(id));
    let mut states = Volumes::new();
    let mut keep = Vec::new();
    let mut next = None;
    for (id, volume) in &desired.volumes {
        let generation = allocated.ledger.generation(*id, volume.generation);
        let kind = desired
            .contents
            .get(&volume.content)
            .map(|content| content.kind);
        let image = contents
            .get(&volume.content)
            .and_then(|content| content.image.as_deref());
        let due = failures
            .get(id)
            .is_none_or(|failure| failure.retry <= Instant::now());
        let mut measured = None;
        let step = kind.map_or(Step::Wait, |kind| {
            plan::plan(*id, volume, generation, kind, image, &there)
        });
        match step {
            // What a volume has stays until it is known what it is to be.
            Step::Wait => keep.extend(there.iter().filter(|file| file.volume == *id)),
            Step::Ready(name) => {
                keep.push(name);
                if due {
                    let path = dir.join(name.text());
                    match make::measure(&path, name.format) {
                        Ok(sizes) => {
                            failures.remove(id);
                            measured = Some((name, path, sizes));
                        }
                        Err(error) => note(failures, *id, &error),
                    }
                }
            }
            Step::Make(name, how) => {
                if due && next.is_none() {
                    next = Some((*id, name, how));
                }
            }
        }
        let trouble = failures.get(id).map(|failure| failure.trouble.clone());
        let mut state = VolumeState::not_ready(volume, generation, trouble);
        if let Some((name, path, sizes)) = measured {
            state.format = name.format;
            state.generation = name.generation;
            state.status.ready = true;
            state.status.path = Some(path);
            state.status.used_bytes = sizes.used;
            state.status.size_bytes = sizes.virtual_size;
        }
        states.insert(*id, state);
    }
    let mut stuck = None;
    for name in plan::surplus(listing, &keep) {
        tracing::info!(file = %name.display(), "a volume that nobody wants is removed");
        if let Err(error) = files::remove(&dir.join(name)) {
            stuck.get_or_insert(error);
        }
    }
    publish(states, changed);
    let Some((id, name, how)) = next else {
        return stuck.map_or(Ok(false), Err);
    };
    match make::make(&dir.join(name.text()), &how).await {
        Ok(()) => {
            tracing::info!(volume = %id, file = %name.text(), "volume made");
            failures.remove(&id);
        }
        Err(error) => note(failures, id, &error),
    }
    Ok(true)
}

fn note(failures: &mut BTreeMap<VolumeId, Failure>, id: VolumeId, error: &dyn Display) {
    let count = failures
        .get(&id)
        .map_or(0, |failure| failure.count)
        .saturating_add(1);
    let delay = LOCAL.after(count);
    tracing::warn!(volume = %id, %error, retry_seconds = delay.as_secs(), "a volume cannot be made or used");
    let now = SystemTime::now();
    failures.insert(
        id,
        Failure {
            count,
            retry: Instant::now() + delay,
            trouble: Trouble {
                message: error.to_string(),
                at: now,
                retry_at: Some(now + delay),
            },
        },
    );
}

fn list(dir: &Path) -> Result<Vec<String>, FileError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail("listing", dir))? {
        let entry = entry.map_err(fail("listing", dir))?;
        // Directories are not ours (lost+found).
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

fn publish(states: Volumes, changed: &watch::Sender<Arc<Volumes>>) {
    changed.send_if_modified(|current| {
        let differs = **current != states;
        if differs {
            *current = Arc::new(states);
        }
        differs
    });
}

#[cfg(test)]
mod tests;
