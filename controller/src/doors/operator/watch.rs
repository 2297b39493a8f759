//! Watching a collection: a line of JSON for every object there is, then one for each change.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use operator_api::{Object, WatchEventType};
use serde_json::json;
use tokio::sync::broadcast::Receiver;
use uuid::Uuid;

use super::problem::Answer;
use crate::fleet::Fleet;
use crate::fleet::events::Change;
use crate::fleet::objects::Governed;

struct Watching {
    kind: &'static str,
    changes: Receiver<Arc<Change>>,
    known: HashSet<Uuid>,
    first: Option<Vec<u8>>,
}

pub(super) async fn watch<T: Governed>(fleet: &Fleet) -> Result<Response, Answer> {
    // Subscribed first, so that nothing between the list and the first change is missed.
    let changes = fleet.watch();
    let (items, _) = fleet.list::<T>().await?;
    let known = items
        .iter()
        .filter_map(|item| item.metadata().uid)
        .collect();
    let mut first = Vec::new();
    for item in &items {
        first.extend(line(WatchEventType::Added, &json!(item)));
    }
    let watching = Watching {
        kind: <T as Object>::KIND,
        changes,
        known,
        first: Some(first),
    };
    let stream = futures_util::stream::unfold(watching, |mut watching| async move {
        let bytes = watching.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(bytes)), watching))
    });
    Ok((
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(stream),
    )
        .into_response())
}

impl Watching {
    /// The next lines; nothing when the watcher is so far behind that it has to begin again.
    async fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            let change = self.changes.recv().await.ok()?;
            if change.kind != self.kind {
                continue;
            }
            // An object may have been in the list already when the news of its making came.
            let what = match change.what {
                WatchEventType::Deleted => {
                    self.known.remove(&change.uid);
                    WatchEventType::Deleted
                }
                _ if self.known.insert(change.uid) => WatchEventType::Added,
                _ => WatchEventType::Modified,
            };
            return Some(line(what, &change.object));
        }
    }
}

fn line(what: WatchEventType, object: &serde_json::Value) -> Vec<u8> {
    let mut line = json!({"type": what, "object": object})
        .to_string()
        .into_bytes();
    line.push(b'\n');
    line
}
