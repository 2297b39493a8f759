//! A window of journal entries on their way to the controller.

use std::collections::BTreeMap;

use protocol::logs::LogEntry;
use tokio::time::Instant;

use super::journal::{Entry, Owner};

const MAX_ENTRIES: usize = 256;
const MAX_BYTES: usize = 192 * 1024;

/// Entries by whose log they are.
pub type Batches = BTreeMap<Owner, Vec<LogEntry>>;

/// Entries that are sent together.
#[derive(Debug, Default)]
pub struct Window {
    /// When its first entry came.
    pub opened: Option<Instant>,
    batches: Batches,
    entries: usize,
    bytes: usize,
    cursor: Option<String>,
}

impl Window {
    /// Puts an entry in.
    pub fn push(&mut self, entry: Entry) {
        self.opened.get_or_insert_with(Instant::now);
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.log.content.len() + 128);
        self.cursor = Some(entry.cursor);
        self.batches.entry(entry.owner).or_default().push(entry.log);
    }

    /// Whether it should be sent before anything else is read.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries >= MAX_ENTRIES || self.bytes >= MAX_BYTES
    }

    /// What is in it, and the cursor of its last entry.
    pub fn close(self) -> (impl Iterator<Item = (Owner, Vec<LogEntry>)>, Option<String>) {
        (self.batches.into_iter(), self.cursor)
    }
}
