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
//!
//! A job that panics has failed like any other.

pub mod archive;
pub mod image;
pub mod manifest;
pub mod registry;
pub mod rootfs;
pub mod store;
pub mod unpack;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use protocol::ids::ContentId;
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;

use self::image::{ContentError, Image};
use self::store::{Progress, Store};
use super::delay::DOWNLOAD;
use crate::domain::desired::{Content, Datastore, Desired};
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
    let mut jobs: JoinSet<Result<Image, ContentError>> = JoinSet::new();
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
                stage: Stage::Waiting(Instant::now()),
                failures: 0,
                trouble: None,
            });
        }
        for item in items.values_mut() {
            let due = matches!(item.stage, Stage::Waiting(at) if at <= Instant::now());
            if due {
                let (wanted, progress) = (item.wanted.clone(), item.progress.clone());
                let (store, permits) = (store.clone(), permits.clone());
                item.stage = Stage::Working(jobs.spawn(async move {
                    let _permit = permits.acquire_owned().await;
                    work(&store, &wanted, &progress).await
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
            Some(ended) = jobs.join_next_with_id() => collect_garbage |= take(&mut items, ended),
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

/// Takes what a job came to. Gives whether somebody waited for it: the item of an aborted one is gone already.
fn take(
    items: &mut BTreeMap<ContentId, Item>,
    ended: Result<(Id, Result<Image, ContentError>), JoinError>,
) -> bool {
    let (job, result) = match ended {
        Ok((job, result)) => (job, result),
        Err(error) => (error.id(), Err(ContentError::Fault(error))),
    };
    let waits =
        |item: &&mut Item| matches!(&item.stage, Stage::Working(handle) if handle.id() == job);
    match items.values_mut().find(waits) {
        Some(item) => {
            settle(item, result);
            true
        }
        None => false,
    }
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
            let delay = DOWNLOAD.after(item.failures);
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

#[cfg(test)]
mod tests {
    use protocol::ids::DatastoreId;
    use uuid::Uuid;

    use protocol::digest::Digest;

    use super::*;
    use crate::domain::desired::ContentKind;

    #[tokio::test]
    async fn a_job_that_panics_is_told_and_tried_again_and_one_that_nobody_wants_is_nothing() {
        let mut jobs: JoinSet<Result<Image, ContentError>> = JoinSet::new();
        let job = jobs.spawn(async { panic!("a bug") });
        let id = ContentId(Uuid::from_u128(1));
        let item = Item {
            wanted: Wanted {
                content: Content {
                    name: "hello".into(),
                    datastore: DatastoreId(Uuid::nil()),
                    repository: "hello".parse().unwrap(),
                    digest: Digest::of(b"manifest"),
                    kind: ContentKind::Container,
                },
                datastore: None,
            },
            progress: Arc::default(),
            stage: Stage::Working(job),
            failures: 0,
            trouble: None,
        };
        let mut items = BTreeMap::from([(id, item)]);
        let ended = jobs.join_next_with_id().await.unwrap();
        assert!(take(&mut items, ended));
        let item = &items[&id];
        assert!(matches!(item.stage, Stage::Waiting(_)));
        assert_eq!(item.failures, 1);
        let trouble = item.trouble.clone().unwrap();
        assert!(trouble.message.contains("a bug"), "{}", trouble.message);
        assert!(trouble.retry_at.is_some());

        jobs.spawn(async { panic!("another bug") });
        let ended = jobs.join_next_with_id().await.unwrap();
        assert!(!take(&mut items, ended));
    }
}
