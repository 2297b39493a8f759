//! News for those who watch: every change of an object, once it is stored.

use std::sync::Arc;

use operator_api::WatchEventType;
use tokio::sync::broadcast;
use uuid::Uuid;

/// Changes that a watcher may be behind before it is cut off and has to begin again.
const BACKLOG: usize = 1024;

/// A change of an object.
#[derive(Debug)]
pub struct Change {
    /// Kind of the object.
    pub kind: &'static str,
    /// Its uid.
    pub uid: Uuid,
    /// What happened.
    pub what: WatchEventType,
    /// The object, as the operator API shows it.
    pub object: serde_json::Value,
}

/// Tells watchers of changes.
pub struct Events(broadcast::Sender<Arc<Change>>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }
}

impl Events {
    /// Whether anybody watches; if not, nothing needs to be put together.
    pub fn watched(&self) -> bool {
        self.0.receiver_count() > 0
    }

    /// Tells all watchers.
    pub fn tell(&self, change: Change) {
        // An error only says that nobody listens.
        let _ = self.0.send(Arc::new(change));
    }

    /// Changes from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Change>> {
        self.0.subscribe()
    }
}
