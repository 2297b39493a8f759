//! Log bundles as EVE sends them ("newlogs"): one gzip member, one JSON log entry a line.
//!
//! Whose logs they are stands in the gzip header (RFC 1952 section 2.3.1): device logs carry a JSON object in the
//! *comment* field, an application's logs carry its display name in the *file name* field and no comment. Both fields are
//! Latin-1 by the RFC and end with a zero byte, so every other character of a name is written as a `\u` escape.
//!
//! The JSON is that of Go's `encoding/json`, not protobuf's JSON mapping: empty fields are left out, numbers are numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read as _, Write as _};

use flate2::bufread::GzDecoder;
use flate2::{Compression, GzBuilder};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Largest bundle, in bytes after compression.
pub const MAX_BUNDLE: usize = 65_536;
/// Most bytes that a bundle may unfold to. Log text shrinks to a tenth; what unfolds further is an attack.
pub const MAX_UNFOLDED: usize = 8 << 20;
/// Most entries of a bundle, empty lines included. An entry takes a hundred times the memory of its shortest text (`{}`), so
/// their number is bounded beside their bytes; this many lines of sixty characters fill [`MAX_BUNDLE`] at a tenth.
pub const MAX_ENTRIES: usize = 16_384;
/// Most tags of an entry: each takes ten times the memory of its shortest text.
pub const MAX_TAGS: usize = 16;

/// Why a bundle was not made or not accepted.
#[derive(Debug, Error)]
pub enum LogsError {
    /// A bundle that is too large: compressed, unfolded, or by the number of its entries.
    #[error("{operation} a log bundle: {size} {unit} are more than {limit}")]
    TooLarge {
        /// "writing", "reading" or "unfolding".
        operation: &'static str,
        /// "bytes" or "entries".
        unit: &'static str,
        /// How many, as far as it was read.
        size: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// Not one whole gzip member.
    #[error("reading a log bundle: not one whole gzip member: {0}")]
    Gzip(String),
    /// Neither device logs nor an application's.
    #[error("reading a log bundle: {0}")]
    Header(String),
    /// A line that is no log entry.
    #[error("reading a log bundle: line {line} is no log entry: {source}")]
    Entry {
        /// Which line, counted from one.
        line: usize,
        /// Where the JSON goes wrong.
        source: serde_json::Error,
    },
    /// Compressing failed, which it does not do in memory.
    #[error("writing a log bundle: {0}")]
    Write(#[from] std::io::Error),
    /// An entry could not be written as JSON.
    #[error("writing a log bundle: {0}")]
    Json(serde_json::Error),
}

/// When something was logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTime {
    /// Seconds since the Unix epoch.
    #[serde(default)]
    pub seconds: i64,
    /// Nanoseconds within the second.
    #[serde(default)]
    pub nanos: i32,
}

/// One log entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogEntry {
    /// `emerg`, `alert`, `crit`, `err`, `warning`, `notice`, `info` or `debug`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub severity: String,
    /// Who logged it: a service, or an application's stream.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Instance of the source, such as a process id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub iid: String,
    /// The text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub content: String,
    /// Counts the sender's entries, so that gaps and repeats show.
    #[serde(skip_serializing_if = "is_zero")]
    pub msgid: u64,
    /// Anything else.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "read_tags"
    )]
    pub tags: BTreeMap<String, String>,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<LogTime>,
    /// Source file, if known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filename: String,
    /// Function, if known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub function: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// At most [`MAX_TAGS`], refused while they are read; Go writes an absent map as `null`.
fn read_tags<'de, D: serde::Deserializer<'de>>(
    tags: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    struct Tags;
    impl<'de> Visitor<'de> for Tags {
        type Value = BTreeMap<String, String>;
        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(out, "at most {MAX_TAGS} tags")
        }
        fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }
        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
            let mut tags = BTreeMap::new();
            while let Some((key, value)) = map.next_entry()? {
                tags.insert(key, value);
                if tags.len() > MAX_TAGS {
                    return Err(serde::de::Error::invalid_length(tags.len(), &self));
                }
            }
            Ok(tags)
        }
    }
    tags.deserialize_any(Tags)
}

/// Refuses a number of entries beyond the limit.
fn count(operation: &'static str, entries: usize) -> Result<(), LogsError> {
    if entries <= MAX_ENTRIES {
        return Ok(());
    }
    Err(LogsError::TooLarge {
        operation,
        unit: "entries",
        size: entries,
        limit: MAX_ENTRIES,
    })
}

/// Whose logs a bundle holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The device's own.
    Device(DeviceOrigin),
    /// An application's, by its display name. Which one it is, is said by the URL path.
    App(String),
}

/// What the header of a bundle of device logs says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceOrigin {
    /// The device's id.
    #[serde(rename = "devID", skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// Slot or partition that runs, such as `IMGA`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// Version of the image.
    #[serde(rename = "eveVersion", skip_serializing_if = "String::is_empty")]
    pub version: String,
}

/// A bundle that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Whose logs.
    pub origin: Origin,
    /// When the bundle was made, in seconds since the Unix epoch; zero if it does not say.
    pub made: u32,
    /// The entries in their order.
    pub entries: Vec<LogEntry>,
}

impl Bundle {
    /// Writes the bundle.
    ///
    /// # Errors
    /// [`LogsError::TooLarge`] if it comes out larger than [`MAX_BUNDLE`] or has more than [`MAX_ENTRIES`]: the caller
    /// splits it.
    pub fn encode(&self) -> Result<Vec<u8>, LogsError> {
        count("writing", self.entries.len())?;
        let header = GzBuilder::new().mtime(self.made);
        let header = match &self.origin {
            Origin::Device(device) => header.comment(escape(
                &serde_json::to_string(device).map_err(LogsError::Json)?,
            )),
            // What only looks like an escape in a name must not be taken for one.
            Origin::App(name) => header.filename(escape(&name.replace("\\u", "\\u005cu"))),
        };
        let mut gzip = header.write(Vec::new(), Compression::default());
        for entry in &self.entries {
            serde_json::to_writer(&mut gzip, entry).map_err(LogsError::Json)?;
            gzip.write_all(b"\n")?;
        }
        let bytes = gzip.finish()?;
        if bytes.len() > MAX_BUNDLE {
            return Err(LogsError::TooLarge {
                operation: "writing",
                unit: "bytes",
                size: bytes.len(),
                limit: MAX_BUNDLE,
            });
        }
        Ok(bytes)
    }

    /// Reads a bundle, unfolding at most [`MAX_UNFOLDED`] bytes and [`MAX_ENTRIES`].
    ///
    /// # Errors
    /// [`LogsError`]; nothing of a bad bundle is accepted.
    pub fn decode(bytes: &[u8]) -> Result<Self, LogsError> {
        if bytes.len() > MAX_BUNDLE {
            return Err(LogsError::TooLarge {
                operation: "reading",
                unit: "bytes",
                size: bytes.len(),
                limit: MAX_BUNDLE,
            });
        }
        let mut gzip = GzDecoder::new(bytes);
        let mut text = Vec::new();
        // One byte more than allowed tells a bundle at the limit from one beyond it.
        let mut bounded = gzip.by_ref().take(MAX_UNFOLDED as u64 + 1);
        bounded
            .read_to_end(&mut text)
            .map_err(|error| LogsError::Gzip(error.to_string()))?;
        if text.len() > MAX_UNFOLDED {
            return Err(LogsError::TooLarge {
                operation: "unfolding",
                unit: "bytes",
                size: text.len(),
                limit: MAX_UNFOLDED,
            });
        }
        let header = gzip
            .header()
            .ok_or_else(|| LogsError::Gzip("it has no header".into()))?;
        let made = header.mtime();
        let origin = match (header.comment(), header.filename()) {
            (Some(comment), _) => {
                // The escapes are those of JSON, whose own reader knows them from its other ones.
                let json: String = comment.iter().copied().map(char::from).collect();
                Origin::Device(serde_json::from_str(&json).map_err(|error| {
                    LogsError::Header(format!(
                        "the comment in its gzip header is not the expected JSON: {error}"
                    ))
                })?)
            }
            (None, Some(name)) => Origin::App(unescape(name)),
            (None, None) => {
                return Err(LogsError::Header(
                    "its gzip header holds neither a comment (device logs) nor a name".into(),
                ));
            }
        };
        let rest = gzip.into_inner();
        if !rest.is_empty() {
            return Err(LogsError::Gzip(format!("{} bytes follow it", rest.len())));
        }
        // Counted before the first one is parsed.
        let ends = text.iter().filter(|byte| **byte == b'\n').count();
        let unended = !matches!(text.last(), None | Some(b'\n'));
        count("unfolding", ends + usize::from(unended))?;
        let entries = text
            .split(|byte| *byte == b'\n')
            .enumerate()
            .filter(|(_, line)| !line.trim_ascii().is_empty())
            .map(|(index, line)| {
                serde_json::from_slice(line).map_err(|source| LogsError::Entry {
                    line: index + 1,
                    source,
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            origin,
            made,
            entries,
        })
    }
}

/// Latin-1 bytes of a header field; everything else, and zero, becomes `\uXXXX` (surrogate pairs beyond 16 bits).
fn escape(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for c in text.chars() {
        match u8::try_from(u32::from(c)) {
            Ok(byte) if byte != 0 => out.push(byte),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
                }
            }
        }
    }
    out
}

/// The reverse of [`escape`]. What only looks like an escape stays as it is.
fn unescape(bytes: &[u8]) -> String {
    let mut units: Vec<u16> = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = rest
            .strip_prefix(b"\\u")
            .and_then(|digits| digits.get(..4))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u16::from_str_radix(digits, 16).ok());
        match escaped {
            Some(unit) => {
                units.push(unit);
                rest = rest.get(6..).unwrap_or_default();
            }
            None => {
                units.push(u16::from(*first));
                rest = tail;
            }
        }
    }
    String::from_utf16_lossy(&units)
}
