//! Logs: from the journal to the controller.
//!
//! ```text
//!   journalctl --follow --output=json --after-cursor=...   (the journal is the store; nothing is kept twice)
//!        | one entry a line
//!        v
//!   window: up to 256 entries or 192 KiB, closed a moment after its first entry
//!        | split by whose log it is: the device's, or an app's (unit skerry-app-ID.service)
//!        v
//!   bundles of at most 64 KiB compressed --POST newlogs--> taken: the cursor moves on and is kept
//!                                                    '---> not taken: tried again; the journal waits meanwhile
//! ```
//!
//! While the controller does not take logs, nothing is read: memory stays bounded, and the journal's own limits decide
//! what is lost. What is sent twice after a power cut is what came since the cursor was kept last.

pub mod journal;
pub mod window;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::ids::{AppId, DeviceId};
use protocol::logs::{Bundle, DeviceOrigin, LogEntry, LogsError, Origin};
use protocol::paths;
use tokio::io::{AsyncBufRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use self::journal::Owner;
use self::window::Window;
use crate::backoff::Backoff;
use crate::context::Context;
use crate::generations;
use crate::paths::Paths;
use crate::status::Topic;

/// How long a window waits for company after its first entry: what an app says is to be seen within two seconds.
const LINGER: Duration = Duration::from_millis(700);
/// How often the cursor is kept at most, for the sake of flash.
const KEEP_CURSOR: Duration = Duration::from_secs(10);
/// Delays after a controller that does not take logs.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(120));
/// Tries of a bundle that the controller does not want before it is let go; EVE gives it ten over hours.
const UNWANTED_TRIES: u32 = 3;

/// Why reading the journal ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// journalctl cannot be started or read.
    #[error("reading the journal with journalctl: {0}")]
    Journal(#[from] std::io::Error),
    /// It went away.
    #[error("reading the journal: journalctl ended")]
    Ended,
}

/// Where the journal's cursor is kept.
#[must_use]
pub fn cursor_file(paths: &Paths) -> PathBuf {
    paths.pillar().join("journal-cursor")
}

/// Ships logs for as long as the agent lives. `program` is journalctl.
///
/// # Errors
/// When the journal cannot be read; the supervisor starts this again.
pub async fn run(ctx: Arc<Context>, program: PathBuf) -> Result<(), Error> {
    let device = ctx.device_id().await;
    let cursor = match kept_cursor(&ctx.paths) {
        Ok(cursor) => {
            ctx.status.clear(Topic::LogsCursor);
            cursor
        }
        Err(error) => {
            ctx.status.raise(
                Topic::LogsCursor,
                &format!(
                    "how far the log was sent is lost: {error}; what came since the device started is sent again"
                ),
            );
            None
        }
    };
    let mut child = journalctl(&program, cursor.as_deref())?;
    let stdout = child.stdout.take().ok_or(Error::Ended)?;
    let shipper = Shipper { ctx, device };
    let result = follow(BufReader::with_capacity(16 * 1024, stdout), shipper).await;
    // Also when this task is aborted: the child is killed on drop.
    let _ = child.start_kill();
    result
}

fn kept_cursor(paths: &Paths) -> Result<Option<String>, generations::Error> {
    let bytes = generations::read(&cursor_file(paths))?;
    Ok(bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .filter(|cursor| journal::good_cursor(cursor)))
}

fn journalctl(program: &Path, cursor: Option<&str>) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command.args([
        "--follow",
        "--no-pager",
        "--quiet",
        "--all",
        "--output=json",
        journal::FIELDS,
    ]);
    match cursor {
        Some(cursor) => command.arg(format!("--after-cursor={cursor}")),
        // The first start: everything since the machine came up.
        None => command.args(["--boot", "--no-tail"]),
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}

async fn follow(mut lines: impl AsyncBufRead + Unpin, mut shipper: Shipper) -> Result<(), Error> {
    let mut kept_at = Instant::now();
    let mut unkept: Option<String> = None;
    let mut window = Window::default();
    let mut line = Vec::new();
    loop {
        let deadline = match (window.opened, &unkept) {
            (Some(opened), _) => opened + LINGER,
            (None, Some(_)) => kept_at + KEEP_CURSOR,
            (None, None) => Instant::now() + Duration::from_secs(3600),
        };
        // Reading up to a line's end is not cancel safe in itself, but what was read so far stays in `line`.
        match tokio::time::timeout_at(deadline, journal::read_line(&mut lines, &mut line)).await {
            Ok(Ok(true)) => {
                if let Some(entry) = journal::parse(&line) {
                    window.push(entry);
                }
                line.clear();
                if !window.is_full() {
                    continue;
                }
            }
            Ok(Ok(false)) => return Err(Error::Ended),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {}
        }
        if window.opened.is_some() {
            let (batches, cursor) = std::mem::take(&mut window).close();
            for (owner, entries) in batches {
                shipper.ship(owner, entries).await;
            }
            unkept = cursor.or(unkept);
        }
        if kept_at.elapsed() >= KEEP_CURSOR
            && let Some(cursor) = unkept.take()
        {
            kept_at = Instant::now();
            let file = cursor_file(&shipper.ctx.paths);
            let status = &shipper.ctx.status;
            match generations::store(file, cursor.into_bytes()).await {
                Ok(()) => status.clear(Topic::LogsCursor),
                Err(error) => status.raise(
                    Topic::LogsCursor,
                    &format!(
                        "how far the log was sent cannot be kept: {error}; after a restart some of it is sent again"
                    ),
                ),
            }
        }
    }
}

/// Sends entries until the controller has them or does not want them.
struct Shipper {
    ctx: Arc<Context>,
    device: DeviceId,
}

impl Shipper {
    async fn ship(&mut self, owner: Owner, entries: Vec<LogEntry>) {
        let mut parts = vec![entries];
        while let Some(entries) = parts.pop() {
            if entries.is_empty() {
                continue;
            }
            let bundle = Bundle {
                origin: self.origin(owner),
                made: self.now(),
                entries,
            };
            match bundle.encode() {
                Ok(bytes) => self.send(owner, bytes).await,
                Err(LogsError::TooLarge { .. }) if bundle.entries.len() > 1 => {
                    let mut first = bundle.entries;
                    let second = first.split_off(first.len() / 2);
                    // The last one is taken first.
                    parts.push(second);
                    parts.push(first);
                }
                Err(error) => self.ctx.status.raise(
                    Topic::Logs,
                    &format!(
                        "a log entry of {} could not be packed and is lost: {error}",
                        self.name(owner)
                    ),
                ),
            }
        }
    }

    async fn send(&self, owner: Owner, bytes: Vec<u8>) {
        let path = match owner {
            Owner::Device => paths::newlogs(self.device),
            Owner::App(app) => paths::app_newlogs(self.device, app),
        };
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut contact = self.ctx.contact.subscribe();
        let mut unwanted = 0;
        loop {
            contact.mark_unchanged();
            match self.ctx.conn.post(&path, bytes.clone()).await {
                Ok(_) => {
                    self.ctx.status.clear(Topic::Logs);
                    return;
                }
                Err(error) if !error.worth_retrying() => {
                    unwanted += 1;
                    if unwanted >= UNWANTED_TRIES {
                        self.ctx.status.raise(
                            Topic::Logs,
                            &format!(
                                "the controller does not take log entries of {}: {error}; they are lost here and stay in the \
                                 device's journal",
                                self.name(owner)
                            ),
                        );
                        return;
                    }
                }
                Err(error) if error.is_away() => self.ctx.doubt_contact(),
                Err(error) => tracing::debug!(%error, "logs not sent yet"),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                _ = contact.wait_for(|contact| contact.up), if !contact.borrow().up => {}
            }
        }
    }

    fn origin(&self, owner: Owner) -> Origin {
        match owner {
            Owner::Device => Origin::Device(DeviceOrigin {
                device: self.device.to_string(),
                version: self.ctx.version.clone(),
                ..DeviceOrigin::default()
            }),
            Owner::App(app) => Origin::App(self.app_name(app)),
        }
    }

    fn name(&self, owner: Owner) -> String {
        match owner {
            Owner::Device => "the device".to_owned(),
            Owner::App(app) => format!("app {}", self.app_name(app)),
        }
    }

    fn app_name(&self, app: AppId) -> String {
        let config = self.ctx.config.borrow();
        config
            .desired
            .apps
            .get(&app)
            .map_or_else(|| app.to_string(), |app| app.name.clone())
    }

    fn now(&self) -> u32 {
        let now: SystemTime = self.ctx.clock.now();
        now.duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|since| u32::try_from(since.as_secs()).ok())
            .unwrap_or(0)
    }
}
