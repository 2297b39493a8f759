//! The journal's JSON lines (systemd, docs/JOURNAL_EXPORT_FORMATS.md, "Journal JSON Format").
//!
//! A field is a string, or `null` if it is too large, or an array of numbers if its bytes are not UTF-8, or an array of
//! these if the entry has the field more than once.

use protocol::ids::AppId;
use protocol::logs::{LogEntry, LogTime};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};

use crate::host::units::app_of;

/// The fields that are asked for; `__CURSOR` and the timestamps always come.
pub const FIELDS: &str =
    "--output-fields=MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,_SYSTEMD_UNIT,UNIT,_PID,_TRANSPORT";

/// Longest line that is looked at. The journal cuts what a service prints at 48 KiB (`LineMax=`), and JSON may write a
/// byte with six.
const MAX_LINE: usize = 512 * 1024;
/// Longest text that is sent of one entry; a bundle has 64 KiB.
const MAX_CONTENT: usize = 32 * 1024;

/// Whose log an entry belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The device's.
    Device,
    /// An app's.
    App(AppId),
}

/// An entry of the journal on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands in the journal.
    pub cursor: String,
    /// Whose log it belongs to.
    pub owner: Owner,
    /// What is sent.
    pub log: LogEntry,
}

#[derive(Deserialize)]
struct Fields {
    #[serde(rename = "__CURSOR")]
    cursor: String,
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    microseconds: String,
    #[serde(rename = "MESSAGE")]
    message: Option<Value>,
    #[serde(rename = "PRIORITY")]
    priority: Option<Value>,
    #[serde(rename = "SYSLOG_IDENTIFIER")]
    identifier: Option<Value>,
    #[serde(rename = "_SYSTEMD_UNIT")]
    unit: Option<Value>,
    #[serde(rename = "_PID")]
    pid: Option<Value>,
    #[serde(rename = "_TRANSPORT")]
    transport: Option<Value>,
}

/// Appends bytes of `lines` to `line` up to and with the next line feed. False at the end of the stream. A line that is
/// too long is read and its surplus forgotten, so that it does not parse and the next one does.
///
/// # Errors
/// When the stream fails.
pub async fn read_line(
    lines: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
) -> std::io::Result<bool> {
    loop {
        let bytes = lines.fill_buf().await?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        let room = MAX_LINE.saturating_sub(line.len());
        line.extend_from_slice(bytes.get(..taken.min(room)).unwrap_or_default());
        lines.consume(taken);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// Reads one line of the journal; `None` for what is no entry.
#[must_use]
pub fn parse(line: &[u8]) -> Option<Entry> {
    let fields: Fields = serde_json::from_slice(line).ok()?;
    if !good_cursor(&fields.cursor) {
        return None;
    }
    let text = |value: &Option<Value>| value.as_ref().and_then(text).unwrap_or_default();
    let microseconds: i64 = fields.microseconds.parse().unwrap_or(0);
    let unit = text(&fields.unit);
    let owner = app_of(&unit).map_or(Owner::Device, Owner::App);
    let mut content = text(&fields.message);
    truncate(&mut content, MAX_CONTENT);
    let identifier = text(&fields.identifier);
    let source = match owner {
        Owner::App(_) => text(&fields.transport),
        Owner::Device if identifier.is_empty() => unit,
        Owner::Device => identifier,
    };
    Some(Entry {
        cursor: fields.cursor,
        owner,
        log: LogEntry {
            severity: severity(&text(&fields.priority)).to_owned(),
            source,
            iid: text(&fields.pid),
            content,
            timestamp: Some(LogTime {
                seconds: microseconds.div_euclid(1_000_000),
                nanos: i32::try_from(microseconds.rem_euclid(1_000_000) * 1000).unwrap_or(0),
            }),
            ..LogEntry::default()
        },
    })
}

/// A cursor goes onto a command line.
#[must_use]
pub fn good_cursor(cursor: &str) -> bool {
    (1..=512).contains(&cursor.len())
        && cursor
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "=;-_".contains(c))
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(items) if items.iter().all(Value::is_u64) => {
            let bytes: Vec<u8> = items
                .iter()
                .filter_map(|n| u8::try_from(n.as_u64()?).ok())
                .collect();
            Some(String::from_utf8_lossy(&bytes).into_owned())
        }
        // The first of several values.
        Value::Array(items) => items.first().and_then(Value::as_str).map(str::to_owned),
        _ => None,
    }
}

/// syslog(3)'s names by number.
fn severity(priority: &str) -> &'static str {
    match priority {
        "0" => "emerg",
        "1" => "alert",
        "2" => "crit",
        "3" => "err",
        "4" => "warning",
        "5" => "notice",
        "7" => "debug",
        _ => "info",
    }
}

fn truncate(text: &mut String, max: usize) {
    if text.len() > max {
        let mut end = max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(" [cut]");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: &str = "11111111-2222-4333-8444-555555555555";

    fn line(extra: &str) -> String {
        format!(
            "{{\"__CURSOR\":\"s=a;i=1\",\"__REALTIME_TIMESTAMP\":\"1795204800123456\"{extra}}}\n"
        )
    }

    #[test]
    fn an_entry_of_the_device() {
        let text = line(
            r#","MESSAGE":"Started","PRIORITY":"5","SYSLOG_IDENTIFIER":"systemd","_PID":"1","_SYSTEMD_UNIT":"init.scope""#,
        );
        let entry = parse(text.as_bytes()).unwrap();
        assert_eq!(entry.owner, Owner::Device);
        assert_eq!(entry.cursor, "s=a;i=1");
        assert_eq!(
            entry.log,
            LogEntry {
                severity: "notice".into(),
                source: "systemd".into(),
                iid: "1".into(),
                content: "Started".into(),
                timestamp: Some(LogTime {
                    seconds: 1_795_204_800,
                    nanos: 123_456_000
                }),
                ..LogEntry::default()
            }
        );
    }

    #[test]
    fn an_entry_of_an_app_goes_by_its_unit_and_nothing_else() {
        let unit = format!(
            r#","_SYSTEMD_UNIT":"skerry-app-{APP}.service","_TRANSPORT":"stdout","MESSAGE":"hello""#
        );
        let entry = parse(line(&unit).as_bytes()).unwrap();
        assert_eq!(entry.owner, Owner::App(APP.parse().unwrap()));
        assert_eq!(
            (entry.log.source.as_str(), entry.log.content.as_str()),
            ("stdout", "hello")
        );
        // What systemd says of the unit is the device's log; a service cannot set a field that begins with `_`.
        let about = format!(
            r#","_SYSTEMD_UNIT":"init.scope","UNIT":"skerry-app-{APP}.service","MESSAGE":"Started""#
        );
        assert_eq!(parse(line(&about).as_bytes()).unwrap().owner, Owner::Device);
    }

    #[test]
    fn odd_messages() {
        let table = [
            (r#","MESSAGE":null"#, ""),
            ("", ""),
            (r#","MESSAGE":[104,105,255]"#, "hi\u{fffd}"),
            (r#","MESSAGE":["first","second"]"#, "first"),
            (r#","MESSAGE":[[104]]"#, ""),
            (r#","MESSAGE":{"a":1}"#, ""),
        ];
        for (extra, content) in table {
            assert_eq!(
                parse(line(extra).as_bytes()).unwrap().log.content,
                content,
                "{extra}"
            );
        }
        let long = line(&format!(r#","MESSAGE":"{}""#, "\u{e9}".repeat(MAX_CONTENT)));
        assert!(parse(long.as_bytes()).unwrap().log.content.len() <= MAX_CONTENT + 6);
    }

    #[test]
    fn what_is_no_entry_is_passed_over() {
        for text in [
            "",
            "\n",
            "{}",
            "[1]",
            "garbage",
            r#"{"__CURSOR":"--root=/x y","__REALTIME_TIMESTAMP":"1"}"#,
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_takes_only_itself_away() {
        let mut stream = "x".repeat(MAX_LINE * 2);
        stream.push('\n');
        stream.push_str(&line(""));
        let mut lines = std::io::Cursor::new(stream.into_bytes());
        let mut read = Vec::new();
        assert!(read_line(&mut lines, &mut read).await.unwrap());
        assert_eq!(read.len(), MAX_LINE);
        assert_eq!(parse(&read), None);
        read.clear();
        assert!(read_line(&mut lines, &mut read).await.unwrap());
        assert!(parse(&read).is_some());
        read.clear();
        assert!(!read_line(&mut lines, &mut read).await.unwrap());
    }
}
