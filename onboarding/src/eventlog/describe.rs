//! What an event says, in words for people.
//!
//! Event data is what the firmware chose to write beside the digest. For some kinds of events the digest is that of the
//! data, so the data can be believed as far as the digest; for others (a program, a firmware volume) the digest is that of
//! the thing itself and the data is hearsay. [`Described::vouched`] tells which.

use ring::digest;

use super::variable::Variable;
use super::{Algorithm, Event, EventType};
use crate::wire::Reader;

/// Most characters of a text that are shown.
const MAX_TEXT: usize = 512;
/// Most nodes of a device path that are looked at.
const MAX_NODES: usize = 32;

/// An event in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// What was measured.
    pub text: String,
    /// Whether the SHA-256 digest is that of the event's data: `Some(false)` where it should be and is not (a lie or a
    /// broken firmware), `None` where it is the digest of something else.
    pub vouched: Option<bool>,
}

/// Puts an event into words.
#[must_use]
pub fn describe(event: &Event) -> Described {
    Described {
        text: format!("PCR {}: {}", event.pcr, detail(event)),
        vouched: vouched(event),
    }
}

/// An event in words, without its PCR.
pub(super) fn detail(event: &Event) -> String {
    let data = event.data.as_slice();
    let detail = match event.kind {
        EventType::SEPARATOR => Some(separator(data)),
        EventType::ACTION | EventType::EFI_ACTION | EventType::IPL => text(data),
        EventType::CRTM_VERSION => utf16(data).or_else(|| text(data)),
        EventType::VARIABLE_DRIVER_CONFIG
        | EventType::VARIABLE_BOOT
        | EventType::VARIABLE_BOOT2
        | EventType::VARIABLE_AUTHORITY => variable(data),
        EventType::BOOT_SERVICES_APPLICATION
        | EventType::BOOT_SERVICES_DRIVER
        | EventType::RUNTIME_SERVICES_DRIVER => image(data),
        EventType::EVENT_TAG => tagged(data),
        EventType::NO_ACTION => data.split(|byte| *byte == 0).next().and_then(text),
        _ => None,
    };
    match detail {
        Some(detail) => format!("{}: {detail}", event.kind),
        None => format!("{} ({} bytes of data)", event.kind, data.len()),
    }
}

/// An event's data as text, fit for a screen; `None` if it is none.
#[must_use]
pub fn data_as_text(event: &Event) -> Option<String> {
    utf16(&event.data).or_else(|| text(&event.data))
}

/// What an event is about, so that the same thing is found again in another log: a variable's name, a file, a tag.
pub(super) fn subject(event: &Event) -> Option<String> {
    match event.kind {
        EventType::VARIABLE_DRIVER_CONFIG
        | EventType::VARIABLE_BOOT
        | EventType::VARIABLE_BOOT2
        | EventType::VARIABLE_AUTHORITY => {
            let variable = Variable::parse(&event.data)?;
            Some(format!(
                "{} {}",
                hex::encode(variable.vendor),
                variable.name
            ))
        }
        EventType::BOOT_SERVICES_APPLICATION
        | EventType::BOOT_SERVICES_DRIVER
        | EventType::RUNTIME_SERVICES_DRIVER => Some(image_parts(&event.data)?.0),
        EventType::EVENT_TAG | EventType::IPL => Some(detail(event)),
        EventType::FIRMWARE_BLOB => Some(hex::encode(event.data.get(..8)?)),
        _ => None,
    }
}

/// Compares digest and data for the kinds of which the profile says that the data is what was measured.
fn vouched(event: &Event) -> Option<bool> {
    let measured = match event.kind {
        EventType::SEPARATOR
        | EventType::ACTION
        | EventType::EFI_ACTION
        | EventType::CRTM_VERSION
        | EventType::VARIABLE_DRIVER_CONFIG
        | EventType::VARIABLE_AUTHORITY
        | EventType::GPT => true,
        // Boot variables are measured with their name by some firmwares and without by others: either is the data.
        EventType::VARIABLE_BOOT | EventType::VARIABLE_BOOT2 => {
            let whole = is_digest_of(event, &event.data);
            let alone =
                Variable::parse(&event.data).is_some_and(|it| is_digest_of(event, it.value));
            return Some(whole || alone);
        }
        _ => false,
    };
    measured.then(|| is_digest_of(event, &event.data))
}

fn is_digest_of(event: &Event, data: &[u8]) -> bool {
    event.digest(Algorithm::Sha256) == Some(digest::digest(&digest::SHA256, data).as_ref())
}

fn separator(data: &[u8]) -> String {
    match data {
        [0, 0, 0, 0] => "end of the firmware's phase".to_owned(),
        [0xff, 0xff, 0xff, 0xff] => "end of the firmware's phase (ones)".to_owned(),
        [1, 0, 0, 0] => "the firmware met an ERROR while measuring".to_owned(),
        _ => format!("unusual separator {}", shown_bytes(data)),
    }
}

/// Text in ASCII, UTF-8 or UTF-16, with or without a terminating zero.
fn text(data: &[u8]) -> Option<String> {
    // Boot loaders write UTF-16 (systemd-stub: the command line) as well as ASCII (systemd-stub: section names).
    let looks_wide = data.len() >= 4 && data.iter().skip(1).step_by(2).all(|byte| *byte == 0);
    if looks_wide {
        return utf16(data);
    }
    let end = data
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    let text = std::str::from_utf8(data.get(..end)?).ok()?;
    printable(text)
}

fn utf16(data: &[u8]) -> Option<String> {
    let (units, rest) = data.as_chunks::<2>();
    if !rest.is_empty() || units.is_empty() {
        return None;
    }
    let text: String = char::decode_utf16(
        units
            .iter()
            .map(|unit| u16::from_le_bytes(*unit))
            .take_while(|unit| *unit != 0),
    )
    .collect::<Result<_, _>>()
    .ok()?;
    printable(&text)
}

/// Text fit for a screen and a log: nothing that moves a cursor, not without end.
fn printable(text: &str) -> Option<String> {
    if text.is_empty()
        || text
            .chars()
            .any(|c| c.is_control() && c != '\n' && c != '\t')
    {
        return None;
    }
    let mut shown: String = text.chars().take(MAX_TEXT).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    Some(shown.replace(['\n', '\t'], " "))
}

fn shown_bytes(data: &[u8]) -> String {
    let shown = hex::encode(data.get(..data.len().min(16)).unwrap_or_default());
    if data.len() > 16 {
        format!("{shown}... ({} bytes)", data.len())
    } else {
        shown
    }
}

fn variable(data: &[u8]) -> Option<String> {
    let variable = Variable::parse(data)?;
    let (name, value) = (printable(&variable.name)?, variable.value);
    Some(match (name.as_str(), value) {
        ("SecureBoot", [1]) => "SecureBoot is ON".to_owned(),
        ("SecureBoot", [0] | []) => "SecureBoot is OFF".to_owned(),
        (_, []) => format!("{name} is not set"),
        _ if value.len() <= 16 => format!("{name} = {}", hex::encode(value)),
        _ => format!(
            "{name} ({} bytes, SHA-256 {})",
            value.len(),
            hex::encode(digest::digest(&digest::SHA256, value))
        ),
    })
}

fn image(data: &[u8]) -> Option<String> {
    let (name, length) = image_parts(data)?;
    Some(format!("{name} ({length} bytes in memory)"))
}

/// UEFI_IMAGE_LOAD_EVENT: place, length, link address, then the device path it was loaded from. Gives what to call it, and length.
fn image_parts(data: &[u8]) -> Option<(String, u64)> {
    let mut reader = Reader::new(data);
    reader.le64("place").ok()?;
    let length = reader.le64("length").ok()?;
    reader.le64("link address").ok()?;
    let size = usize::try_from(reader.le64("path's length").ok()?).ok()?;
    let path = reader.bytes("path", size).ok()?;
    let name =
        file_path(path).unwrap_or_else(|| format!("no file, device path {}", shown_bytes(path)));
    Some((name, length))
}

/// The file path nodes (type 4, subtype 4) of a device path (UEFI Specification, 10.3).
fn file_path(path: &[u8]) -> Option<String> {
    let mut reader = Reader::new(path);
    let mut file = String::new();
    for _ in 0..MAX_NODES {
        let [kind, subtype] = reader.array("node").ok()?;
        let length = usize::from(reader.le16("node's length").ok()?);
        let body = reader.bytes("node", length.checked_sub(4)?).ok()?;
        match (kind, subtype) {
            (0x04, 0x04) => file.push_str(&utf16(body)?),
            (0x7f, 0xff) => break,
            _ => {}
        }
    }
    (!file.is_empty()).then_some(file)
}

/// TCG_PCClientTaggedEvent: an id, a length, and what the boot loader says.
fn tagged(data: &[u8]) -> Option<String> {
    let mut reader = Reader::new(data);
    let id = reader.le32("tag").ok()?;
    let size = usize::try_from(reader.le32("size").ok()?).ok()?;
    let body = reader.bytes("tagged data", size).ok()?;
    let said = text(body).unwrap_or_else(|| shown_bytes(body));
    Some(format!("tag {id:#010x}: {said}"))
}
