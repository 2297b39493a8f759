//! What is remembered of an app, so that an agent that is started again goes on where the last one was.
//!
//! ```text
//! <run>/apps/<id>/state.json        of its process, or of the one that it waits to start again: for as long as the device
//!                                   runs
//! <persist>/pillar/apps/<id>        how often it was started again: for as long as the device wants it
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use protocol::ids::AppId;
use serde::{Deserialize, Serialize};

use super::start::{Start, StartKind};
use super::vm::{self, VmFiles};
use crate::generations;
use crate::host::files;
use crate::paths::Paths;

/// How an app's process is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Manner {
    /// A machine: ACPI power button.
    Machine,
    /// A container in a microVM: guest-init.
    Microvm,
    /// A native container: signals.
    Native,
}

/// What is remembered of an app's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Of what it was started with.
    pub fingerprint: String,
    /// How it is spoken to.
    pub manner: Manner,
    /// Signal that ends it nicely.
    pub stop_signal: i32,
    /// uid of its monitor.
    pub uid: u32,
    /// Its console, if it has one.
    pub console: Option<PathBuf>,
    /// When it was started, in seconds after boot.
    pub started: u64,
    /// How often it was started again after it had ended by itself.
    pub restarts: u32,
    /// Failures in a row.
    pub failures: u32,
    /// It does not run, and waits to be started again.
    #[serde(default)]
    pub waits: Option<Waits>,
}

/// A process that ended by itself, or did not start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waits {
    /// Until then, in milliseconds after boot.
    pub until: u64,
    /// Whether it ran, so that the next start counts as a restart.
    pub ran: bool,
    /// Why it ended.
    pub message: String,
    /// When it ended.
    pub at: SystemTime,
}

impl Record {
    /// Of a process that is about to be started.
    #[must_use]
    pub fn of(start: &Start, dir: &Path, restarts: u32, failures: u32) -> Self {
        let (manner, stop_signal) = match &start.kind {
            StartKind::Machine { .. } => (Manner::Machine, libc::SIGTERM),
            StartKind::Microvm { stop_signal, .. } => (Manner::Microvm, *stop_signal),
            StartKind::Native { stop_signal, .. } => (Manner::Native, *stop_signal),
        };
        Self {
            fingerprint: start.fingerprint(),
            manner,
            stop_signal,
            uid: start.number.uid(),
            console: vm::console_of(start, &VmFiles::new(dir)),
            started: after_boot().as_secs(),
            restarts,
            failures,
            waits: None,
        }
    }
}

/// Where an app's records lie.
#[derive(Clone, Debug)]
pub struct Book {
    app: AppId,
    record: PathBuf,
    counter: PathBuf,
}

impl Book {
    /// An app's.
    #[must_use]
    pub fn of(app: AppId, paths: &Paths) -> Self {
        Self {
            app,
            record: paths.app(app).join("state.json"),
            counter: paths.app_counter(app),
        }
    }

    /// The record, if there is one that can be read.
    #[must_use]
    pub fn read(&self) -> Option<Record> {
        let text = files::read_limited(&self.record, 64 * 1024).ok()??;
        serde_json::from_slice(&text).ok()
    }

    /// Writes the record.
    pub fn write(&self, record: &Record) {
        // Plain data goes into memory without fail.
        let text = serde_json::to_vec(record).unwrap_or_default();
        if let Err(error) = files::write_volatile(&self.record, &text, 0o600) {
            tracing::warn!(app = %self.app, %error, "its record could not be written");
        }
    }

    /// Removes the record.
    pub fn forget(&self) {
        if let Err(error) = files::remove(&self.record) {
            tracing::warn!(app = %self.app, %error, "its record could not be removed");
        }
    }

    /// How often it was started again, as far as that was kept.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        match generations::read(&self.counter) {
            Ok(bytes) => bytes
                .and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse().ok())
                .unwrap_or(0),
            Err(error) => {
                tracing::warn!(app = %self.app, %error, "its restarts are counted from 0");
                0
            }
        }
    }

    /// Keeps how often it was started again.
    pub async fn keep_restarts(&self, restarts: u32) {
        let text = restarts.to_string().into_bytes();
        if let Err(error) = generations::store(self.counter.clone(), text).await {
            tracing::warn!(app = %self.app, %error, "its restarts could not be kept");
        }
    }

    /// Forgets how often it was started again.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn forget_restarts(&self) -> Result<(), generations::Error> {
        generations::remove(&self.counter)
    }
}

/// Apps of which it is kept how often they were started again.
#[must_use]
pub fn counted(paths: &Paths) -> Vec<AppId> {
    let Ok(entries) = std::fs::read_dir(paths.app_counters()) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Time since the device started, sleep included.
#[must_use]
pub fn after_boot() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn records_are_read_back_and_counters_outlive_the_run_directory() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            persist: dir.path().join("persist"),
            run: dir.path().join("run"),
            ..Paths::default()
        };
        let app = AppId(Uuid::from_u128(7));
        std::fs::create_dir_all(paths.app(app)).unwrap();
        let book = Book::of(app, &paths);
        assert_eq!((book.read(), book.restarts()), (None, 0));
        let record = Record {
            fingerprint: "f".into(),
            manner: Manner::Native,
            stop_signal: 2,
            uid: 200_000,
            console: None,
            started: 5,
            restarts: 3,
            failures: 2,
            waits: Some(Waits {
                until: 9,
                ran: true,
                message: "it ended".into(),
                at: SystemTime::UNIX_EPOCH,
            }),
        };
        book.write(&record);
        book.keep_restarts(3).await;
        book.keep_restarts(4).await;
        assert_eq!(book.read(), Some(record));
        std::fs::remove_dir_all(&paths.run).unwrap();
        assert_eq!((book.read(), book.restarts()), (None, 4));
        assert_eq!(counted(&paths), [app]);
        book.forget_restarts().unwrap();
        assert_eq!(book.restarts(), 0);
        assert_eq!(counted(&paths), []);
    }
}
