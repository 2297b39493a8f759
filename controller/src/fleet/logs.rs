//! Logs of devices and apps: which are taken, how much of them is kept, and how they are read.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::Stream;
use jiff::Timestamp;
use operator_api::LogEntry;
use protocol::envelope;
use protocol::eve::logs::{AppInstanceLogBundle, LogBundle};
use protocol::ids::AppId;
use protocol::logs::{Bundle, LogTime, LogsError, Origin};
use tokio::sync::broadcast::error::RecvError;
use uuid::Uuid;

use super::{Fault, Fleet, Opened, Refused};
use crate::store::{StoreError, logs, objects};

/// Most lines that `tail` can ask for.
pub const MAX_TAIL: usize = 100_000;
/// Most bytes of text that `tail` collects before it gives them; older lines are left out then. A line is given however long it is.
const TAIL_BYTES: usize = 8 << 20;

/// What of a log is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The last so many lines; everything if not said.
    pub tail: Option<usize>,
    /// Go on with what comes.
    pub follow: bool,
}

impl Fleet {
    /// Takes a device's own log.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn device_log(&self, opened: Opened) -> Result<(), Refused> {
        let bundle = read(&opened.payload)?;
        let device = opened.device.id;
        match bundle.origin {
            Origin::Device(origin)
                if origin.device.is_empty() || origin.device.parse().ok() == Some(device) => {}
            Origin::Device(origin) => {
                return Err(Refused::Malformed(format!(
                    "log of device {device} says that it is of device {:?}",
                    origin.device
                )));
            }
            Origin::App(name) => {
                return Err(Refused::Malformed(format!(
                    "log of app {name:?} was sent as the log of device {device}"
                )));
            }
        }
        self.append(device.into(), &opened.payload).await
    }

    /// Takes an app's log. That of an app that is not there (any more) is taken and dropped: the device could do nothing about it.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn app_log(&self, opened: Opened, app: AppId) -> Result<(), Refused> {
        read(&opened.payload)?;
        let device = objects::device_of(&mut *self.store.read().await?, app).await?;
        if device != Some(opened.device.id) {
            tracing::debug!(device = %opened.device.id, %app, "log of an app that is not on this device");
            return Ok(());
        }
        self.append(app.into(), &opened.payload).await
    }

    /// Takes a log bundle in EVE's old form, without an app or with one.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn old_log(&self, opened: Opened, app: Option<AppId>) -> Result<(), Refused> {
        let payload = from_old(&opened.payload, app)?
            .encode()
            .map_err(malformed)?;
        let opened = Opened {
            device: opened.device,
            payload,
        };
        match app {
            None => self.device_log(opened).await,
            Some(app) => self.app_log(opened, app).await,
        }
    }

    async fn append(&self, owner: Uuid, body: &[u8]) -> Result<(), Refused> {
        let mut writer = self.store.write().await?;
        let new = logs::append(&mut writer, owner, body, self.settings.log_share).await?;
        writer.commit().await?;
        if new {
            // An error only says that nobody follows.
            let _ = self.log_news.send(owner);
        }
        Ok(())
    }

    /// A log's entries, from the oldest wanted on.
    ///
    /// # Errors
    /// If the store cannot be read at the beginning; later trouble ends the stream with an error.
    pub async fn read_log(
        self: &Arc<Self>,
        owner: Uuid,
        wanted: Wanted,
    ) -> Result<impl Stream<Item = Result<Vec<LogEntry>, Fault>> + Send + use<>, Fault> {
        let news = self.log_news.subscribe();
        let (first, seq) = match wanted.tail {
            None => (Vec::new(), 0),
            Some(lines) => self.tail(owner, lines.min(MAX_TAIL)).await?,
        };
        let state = Reading {
            fleet: self.clone(),
            owner,
            seq,
            first: Some(first),
            follow: wanted.follow,
            news,
        };
        Ok(futures_util::stream::try_unfold(state, Reading::next))
    }

    /// The last lines, and the number of the chunk that they end with.
    async fn tail(&self, owner: Uuid, lines: usize) -> Result<(Vec<LogEntry>, i64), StoreError> {
        let mut reader = self.store.read().await?;
        let mut tail = Tail::new(lines, TAIL_BYTES);
        let (mut before, mut newest) = (i64::MAX, 0);
        // Also with no lines wanted, the newest chunk says where following begins.
        loop {
            let Some(chunk) = logs::newest_before(&mut reader, owner, before).await? else {
                break;
            };
            newest = newest.max(chunk.seq);
            before = chunk.seq;
            if !tail.prepend(entries(&chunk.body)) {
                break;
            }
        }
        Ok((tail.found.into(), newest))
    }
}

/// The end of a log, collected from its newest entry on.
struct Tail {
    found: VecDeque<LogEntry>,
    /// Memory of those found.
    taken: usize,
    /// Most entries.
    lines: usize,
    /// Most memory, but for a single entry.
    bytes: usize,
}

impl Tail {
    fn new(lines: usize, bytes: usize) -> Self {
        Self {
            found: VecDeque::new(),
            taken: 0,
            lines,
            bytes,
        }
    }

    /// Puts older entries before those found. Says whether there is room for more.
    fn prepend(&mut self, older: Vec<LogEntry>) -> bool {
        for entry in older.into_iter().rev() {
            let taken = self.taken.saturating_add(weight(&entry));
            if self.found.len() >= self.lines || (taken > self.bytes && !self.found.is_empty()) {
                return false;
            }
            self.taken = taken;
            self.found.push_front(entry);
        }
        self.found.len() < self.lines && self.taken < self.bytes
    }
}

/// Memory of an entry.
fn weight(entry: &LogEntry) -> usize {
    size_of::<LogEntry>() + entry.source.len() + entry.severity.len() + entry.content.len()
}

/// A log that is being read.
struct Reading {
    fleet: Arc<Fleet>,
    owner: Uuid,
    /// The last chunk that was given.
    seq: i64,
    /// Lines that come first.
    first: Option<Vec<LogEntry>>,
    follow: bool,
    news: tokio::sync::broadcast::Receiver<Uuid>,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Vec<LogEntry>, Self)>, Fault> {
        if let Some(first) = self.first.take().filter(|first| !first.is_empty()) {
            return Ok(Some((first, self)));
        }
        loop {
            // The connection is given back before waiting.
            let chunk =
                logs::oldest_after(&mut *self.fleet.store.read().await?, self.owner, self.seq)
                    .await?;
            if let Some(chunk) = chunk {
                self.seq = chunk.seq;
                return Ok(Some((entries(&chunk.body), self)));
            }
            if !self.follow {
                return Ok(None);
            }
            loop {
                match self.news.recv().await {
                    Ok(owner) if owner != self.owner => {}
                    // Behind is no harm: the store is asked anyway.
                    Ok(_) | Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return Ok(None),
                }
            }
        }
    }
}

fn malformed(error: LogsError) -> Refused {
    Refused::Malformed(error.to_string())
}

/// Reads a log bundle in EVE's old form: that of an app, or of a device.
///
/// # Errors
/// [`Refused`] if it cannot be decoded.
pub fn from_old(payload: &[u8], app: Option<AppId>) -> Result<Bundle, Refused> {
    let entries = match app {
        None => envelope::decode::<LogBundle>(payload, "LogBundle")?.log,
        Some(_) => envelope::decode::<AppInstanceLogBundle>(payload, "AppInstanceLogBundle")?.log,
    };
    let entries = entries.into_iter().map(|entry| protocol::logs::LogEntry {
        severity: entry.severity,
        source: entry.source,
        iid: entry.iid,
        content: entry.content,
        msgid: entry.msgid,
        timestamp: entry.timestamp.map(|time| LogTime {
            seconds: time.seconds,
            nanos: time.nanos,
        }),
        ..protocol::logs::LogEntry::default()
    });
    let origin = match app {
        None => Origin::Device(protocol::logs::DeviceOrigin::default()),
        Some(app) => Origin::App(app.to_string()),
    };
    Ok(Bundle {
        origin,
        made: 0,
        entries: entries.collect(),
    })
}

fn read(payload: &[u8]) -> Result<Bundle, Refused> {
    Bundle::decode(payload).map_err(malformed)
}

/// The entries of a stored chunk. It was checked when it came; one that was damaged since is passed over.
#[must_use]
pub fn entries(body: &[u8]) -> Vec<LogEntry> {
    let Ok(bundle) = Bundle::decode(body) else {
        return Vec::new();
    };
    bundle
        .entries
        .into_iter()
        .map(|entry| LogEntry {
            time: entry
                .timestamp
                .and_then(|time| Timestamp::new(time.seconds, time.nanos).ok())
                .unwrap_or(Timestamp::UNIX_EPOCH),
            source: entry.source,
            severity: entry.severity,
            content: entry.content.trim_end_matches('\n').to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(contents: &[&str]) -> Vec<LogEntry> {
        let entry = |content: &&str| LogEntry {
            time: Timestamp::UNIX_EPOCH,
            source: String::new(),
            severity: String::new(),
            content: (*content).to_owned(),
        };
        contents.iter().map(entry).collect()
    }

    #[test]
    fn a_tail_is_bounded_by_lines_and_by_bytes() {
        let one = weight(&lines(&["x"])[0]);
        for (wanted, bytes, kept, more) in [
            (10, usize::MAX, "a b c d", true),
            (4, usize::MAX, "a b c d", false),
            (3, usize::MAX, "b c d", false),
            (0, usize::MAX, "", false),
            (10, 4 * one, "a b c d", false),
            (10, 3 * one, "b c d", false),
            // A line is given, however long it is.
            (10, 1, "d", false),
        ] {
            let mut tail = Tail::new(wanted, bytes);
            let room = tail.prepend(lines(&["c", "d"])) && tail.prepend(lines(&["a", "b"]));
            let text: Vec<_> = tail
                .found
                .iter()
                .map(|entry| entry.content.as_str())
                .collect();
            assert_eq!(
                (text.join(" "), room),
                (kept.to_owned(), more),
                "{wanted} {bytes}"
            );
        }
    }
}
