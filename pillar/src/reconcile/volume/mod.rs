//! The volume reconciler: makes the disks of apps, and removes those that nobody wants any more.
//!
//! One volume is made at a time: the disk is the bottleneck. A volume that fails waits for its growing delay.

pub mod make;
pub mod plan;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hypervisor_api::config::DiskFormat;
use protocol::ids::VolumeId;
use tokio::sync::watch;
use tokio::time::Instant;

use self::make::MakeError;
use self::plan::{FileName, Step};
use super::allocation::Allocated;
use super::content::{Contents, sleep_until};
use super::delay::LOCAL;
use crate::domain::observed::{Trouble, VolumeStatus};
use crate::host::files::{self, FileError, fail};
use crate::paths::Paths;

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
        match pass(&dir, &wanted, &here, &mut failures, &changed).await {
            // Something was made: look again, the rest may be waiting.
            Ok(true) => continue,
            Ok(false) => dir_failures = 0,
            Err(error) => {
                dir_failures += 1;
                tracing::error!(%error, "volumes cannot be looked after");
                retry = Some(Instant::now() + LOCAL.after(dir_failures));
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

/// Looks at everything once, removes what is surplus and makes at most one volume. Gives whether it made or tried one.
async fn pass(
    dir: &PathBuf,
    allocated: &Allocated,
    contents: &Contents,
    failures: &mut BTreeMap<VolumeId, Failure>,
    changed: &watch::Sender<Arc<Volumes>>,
) -> Result<bool, FileError> {
    files::make_dir(dir, 0o711)?;
    let listing = list(dir)?;
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
        let mut state = VolumeState {
            status: VolumeStatus {
                name: volume.name.clone(),
                ready: false,
                path: None,
                used_bytes: 0,
                size_bytes: volume.size_bytes,
                trouble: failures.get(id).map(|failure| failure.trouble.clone()),
            },
            format: DiskFormat::Raw,
            generation,
        };
        let step = kind.map_or(Step::Wait, |kind| {
            plan::plan(*id, volume, generation, kind, image, &there)
        });
        match step {
            // What a volume has stays until it is known what it is to be.
            Step::Wait => keep.extend(there.iter().filter(|file| file.volume == *id)),
            Step::Ready(name) => {
                keep.push(name);
                failures.remove(id);
                let path = dir.join(name.text());
                let sizes = make::measure(&path, name.format)?;
                state.format = name.format;
                state.generation = name.generation;
                state.status = VolumeStatus {
                    ready: true,
                    path: Some(path),
                    used_bytes: sizes.used,
                    size_bytes: sizes.virtual_size,
                    trouble: None,
                    ..state.status
                };
            }
            Step::Make(name, how) => {
                let due = failures
                    .get(id)
                    .is_none_or(|failure| failure.retry <= Instant::now());
                if due && next.is_none() {
                    next = Some((*id, name, how));
                }
            }
        }
        states.insert(*id, state);
    }
    for name in plan::surplus(&listing, &keep) {
        tracing::info!(file = %name.display(), "a volume that nobody wants is removed");
        files::remove(&dir.join(name))?;
    }
    publish(states, changed);
    let Some((id, name, how)) = next else {
        return Ok(false);
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

fn note(failures: &mut BTreeMap<VolumeId, Failure>, id: VolumeId, error: &MakeError) {
    let count = failures
        .get(&id)
        .map_or(0, |failure| failure.count)
        .saturating_add(1);
    let delay = LOCAL.after(count);
    tracing::warn!(volume = %id, %error, retry_seconds = delay.as_secs(), "volume could not be made");
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

fn list(dir: &PathBuf) -> Result<Vec<String>, FileError> {
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
