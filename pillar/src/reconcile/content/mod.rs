//! The content reconciler: brings content trees from registries to the disk, and takes away what nobody wants any more.
//!
//! Each content tree has a job of its own; three may work at a time. One that fails waits for its growing delay while the
//! others go on.
//!
//! ```text
//!                 desired                permit               all here
//!   (unknown) ------------> waiting ------------> downloading ---------> ready
//!                              ^                      | failed
//!                              +------- delay --------+
//! ```

pub mod digest;
pub mod image;
pub mod manifest;
pub mod registry;
pub mod rootfs;
pub mod store;
pub mod unpack;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use self::image::{ContentError, Image};
use self::store::{Progress, Store};
use super::delay::DOWNLOAD;
use crate::domain::desired::{Content, Datastore, Desired};
use crate::domain::ids::ContentId;
use crate::domain::observed::{ContentPhase, ContentStatus, Trouble};

/// Content trees that are worked on at a time.
const AT_A_TIME: usize = 3;

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// A content tree, for report and for the other reconcilers.
#[derive(Clone, Debug, PartialEq)]
pub struct ContentState {
    /// For report.
    pub status: ContentStatus,
    /// The image, once it is ready.
    pub image: Option<Arc<Image>>,
}

/// All content trees.
pub type Contents = BTreeMap<ContentId, ContentState>;

/// What one content tree is to be: a change of any of it starts it anew.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    content: Content,
    datastore: Option<Datastore>,
}

/// One content tree at work.
struct Item {
    wanted: Wanted,
    progress: Arc<Progress>,
    /// Number of its latest job; answers of earlier ones are not listened to.
    job: u64,
    stage: Stage,
    failures: u32,
    trouble: Option<Trouble>,
}

enum Stage {
    /// A job is under way.
    Working(AbortHandle),
    /// The next job starts then.
    Waiting(Instant),
    /// Done.
    Ready(Arc<Image>),
}

/// Follows `desired` for ever. `changed` gets the state after each change.
pub async fn run(
    mut desired: watch::Receiver<Arc<Desired>>,
    store: Store,
    changed: watch::Sender<Arc<Contents>>,
) {
    let permits = Arc::new(Semaphore::new(AT_A_TIME));
    let mut items: BTreeMap<ContentId, Item> = BTreeMap::new();
    let mut jobs: JoinSet<(ContentId, u64, Result<Image, ContentError>)> = JoinSet::new();
    let mut next_job = 0u64;
    // What an earlier run of the agent left is looked through once.
    let mut collect_garbage = true;
    loop {
        let wanted = wanted(&desired.borrow_and_update());
        items.retain(|id, item| {
            let stays = wanted.get(id) == Some(&item.wanted);
            if !stays {
                if let Stage::Working(job) = &item.stage {
                    job.abort();
                }
                collect_garbage = true;
            }
            stays
        });
        for (id, wanted) in wanted {
            items.entry(id).or_insert_with(|| Item {
                wanted,
                progress: Arc::default(),
                job: 0,
                stage: Stage::Waiting(Instant::now()),
                failures: 0,
                trouble: None,
            });
        }
        for (id, item) in &mut items {
            let due = matches!(item.stage, Stage::Waiting(at) if at <= Instant::now());
            if due {
                next_job += 1;
                item.job = next_job;
                let (id, number) = (*id, next_job);
                let (wanted, progress) = (item.wanted.clone(), item.progress.clone());
                let (store, permits) = (store.clone(), permits.clone());
                item.stage = Stage::Working(jobs.spawn(async move {
                    let _permit = permits.acquire_owned().await;
                    (id, number, work(&store, &wanted, &progress).await)
                }));
            }
        }
        // Only while nobody writes: a file that has just been begun is not yet referred to.
        if collect_garbage
            && !items
                .values()
                .any(|item| matches!(item.stage, Stage::Working(_)))
        {
            collect(&store, &items).await;
            collect_garbage = false;
        }
        publish(&items, &changed);

        let retry = items
            .values()
            .filter_map(|item| match item.stage {
                Stage::Waiting(at) => Some(at),
                _ => None,
            })
            .min();
        tokio::select! {
            result = desired.changed() => if result.is_err() { return },
            Some(ended) = jobs.join_next() => {
                // An aborted job's item is gone already.
                let Ok((id, number, result)) = ended else { continue };
                let Some(item) = items.get_mut(&id).filter(|item| item.job == number) else { continue };
                settle(item, result);
                collect_garbage = true;
            }
            () = sleep_until(retry) => {}
            () = tokio::time::sleep(TELL_EVERY), if !jobs.is_empty() => {}
        }
    }
}

fn wanted(desired: &Desired) -> BTreeMap<ContentId, Wanted> {
    let pair = |(id, content): (&ContentId, &Content)| {
        let wanted = Wanted {
            content: content.clone(),
            datastore: desired.datastores.get(&content.datastore).cloned(),
        };
        (*id, wanted)
    };
    desired.contents.iter().map(pair).collect()
}

async fn work(store: &Store, wanted: &Wanted, progress: &Progress) -> Result<Image, ContentError> {
    let datastore = wanted
        .datastore
        .as_ref()
        .ok_or_else(|| registry::RegistryError::Settings {
            registry: wanted.content.datastore.to_string(),
            reason: "the config does not describe this data store".into(),
        })?;
    image::bring(store, &wanted.content, datastore, progress).await
}

fn settle(item: &mut Item, result: Result<Image, ContentError>) {
    let name = &item.wanted.content.name;
    match result {
        Ok(image) => {
            tracing::info!(content = %name, digest = %item.wanted.content.digest, "content is ready");
            item.stage = Stage::Ready(Arc::new(image));
            item.failures = 0;
            item.trouble = None;
        }
        Err(error) => {
            item.failures = item.failures.saturating_add(1);
            let delay = DOWNLOAD.roll(item.failures);
            tracing::warn!(content = %name, %error, retry_seconds = delay.as_secs(), "content could not be brought here");
            item.stage = Stage::Waiting(Instant::now() + delay);
            let now = SystemTime::now();
            item.trouble = Some(Trouble {
                message: error.to_string(),
                at: now,
                retry_at: Some(now + delay),
            });
        }
    }
}

async fn collect(store: &Store, items: &BTreeMap<ContentId, Item>) {
    let contents: Vec<Content> = items
        .values()
        .map(|item| item.wanted.content.clone())
        .collect();
    let store = store.clone();
    let done = tokio::task::spawn_blocking(move || {
        let (mut blobs, mut rootfs) = (BTreeSet::new(), BTreeSet::new());
        for content in &contents {
            let (referred, root) = image::references(&store, content);
            blobs.extend(referred);
            rootfs.extend(root);
        }
        store.collect(&blobs, &rootfs)
    })
    .await;
    match done {
        Ok(Ok(0)) | Err(_) => {}
        Ok(Ok(files)) => tracing::info!(files, "content that nobody wants was removed"),
        Ok(Err(error)) => tracing::warn!(%error, "content that nobody wants could not be removed"),
    }
}

fn publish(items: &BTreeMap<ContentId, Item>, changed: &watch::Sender<Arc<Contents>>) {
    let states: Contents = items.iter().map(|(id, item)| (*id, state(item))).collect();
    changed.send_if_modified(|current| {
        let differs = **current != states;
        if differs {
            *current = Arc::new(states);
        }
        differs
    });
}

fn state(item: &Item) -> ContentState {
    let (done, total) = item.progress.get();
    let (phase, image) = match &item.stage {
        Stage::Ready(image) => (ContentPhase::Ready, Some(image.clone())),
        Stage::Working(_) if total.is_some() => (ContentPhase::Downloading { done, total }, None),
        Stage::Working(_) | Stage::Waiting(_) => (ContentPhase::Waiting, None),
    };
    ContentState {
        status: ContentStatus {
            name: item.wanted.content.name.clone(),
            phase,
            trouble: item.trouble.clone(),
        },
        image,
    }
}

/// Sleeps until then; for ever if there is no then.
pub(super) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
