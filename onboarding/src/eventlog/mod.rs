//! The firmware's event log: what was measured into which PCR, in the order in which it happened.
//!
//! ```text
//! bytes --parse--> EventLog --replay--> what the PCRs must be, if the log is true
//!                      '----describe--> what an event says, in words
//! ```
//!
//! The log itself is not protected. It is believed as far as its replay gives the PCR values that a TPM signed; and of
//! an event, only what its digest vouches for (see [`Described::vouched`]).
//!
//! The format is the crypto-agile one of the TCG PC Client Platform Firmware Profile, chapter 10, as Linux shows it in
//! `/sys/kernel/security/tpm0/binary_bios_measurements`. The parser is strict: sizes are bounded, every event must carry a
//! digest of each algorithm that the header names, and nothing may be left over.

mod describe;
mod difference;
mod replay;
pub mod variable;

pub use describe::{Described, data_as_text, describe};
pub use difference::{Change, Difference, difference};
pub use replay::{PCRS, replay};

use std::fmt;

use crate::wire::{Reader, WireError};

/// Where Linux shows the log of the first TPM.
pub const PATH: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";

/// Longest log that is read, in bytes. Real ones have 10 to 60 KiB; a large revocation list adds some 25 KiB.
pub const MAX_LOG: usize = 1 << 20;
/// Most events. Real logs have 30 to 300.
pub const MAX_EVENTS: usize = 16 * 1024;
/// Most digest algorithms that a header may name. Five are defined.
const MAX_ALGORITHMS: usize = 8;
/// Highest PCR that firmware or boot loaders use.
const MAX_PCR: u32 = 23;

/// Signature of the header event.
const SPEC_ID: &[u8; 16] = b"Spec ID Event03\0";

/// A digest algorithm of a PCR bank (TCG Algorithm Registry).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
    /// SM3-256.
    Sm3,
}

impl Algorithm {
    /// Takes an algorithm's id.
    #[must_use]
    pub fn from_id(id: u16) -> Option<Self> {
        Some(match id {
            0x0004 => Self::Sha1,
            0x000b => Self::Sha256,
            0x000c => Self::Sha384,
            0x000d => Self::Sha512,
            0x0012 => Self::Sm3,
            _ => return None,
        })
    }

    /// Length of a digest, in bytes.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 | Self::Sm3 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha1 => "SHA-1",
            Self::Sha256 => "SHA-256",
            Self::Sha384 => "SHA-384",
            Self::Sha512 => "SHA-512",
            Self::Sm3 => "SM3-256",
        })
    }
}

/// What kind of thing was measured (the profile's table of event types).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventType(pub u32);

impl EventType {
    /// Not measured: a remark in the log.
    pub const NO_ACTION: Self = Self(0x0000_0003);
    /// Ends a phase of the boot.
    pub const SEPARATOR: Self = Self(0x0000_0004);
    /// A text says what was done.
    pub const ACTION: Self = Self(0x0000_0005);
    /// A tagged blob; newer boot loaders use it.
    pub const EVENT_TAG: Self = Self(0x0000_0006);
    /// Version of the firmware's root of trust.
    pub const CRTM_VERSION: Self = Self(0x0000_0008);
    /// What a boot loader measures.
    pub const IPL: Self = Self(0x0000_000d);
    /// Boot devices were tried and left out of the log; a text says so.
    pub const OMIT_BOOT_DEVICE_EVENTS: Self = Self(0x0000_0012);
    /// A variable of the driver configuration: Secure Boot, its keys and lists.
    pub const VARIABLE_DRIVER_CONFIG: Self = Self(0x8000_0001);
    /// A boot variable.
    pub const VARIABLE_BOOT: Self = Self(0x8000_0002);
    /// A program that the firmware started: boot loader, UKI.
    pub const BOOT_SERVICES_APPLICATION: Self = Self(0x8000_0003);
    /// A driver that ends with the boot.
    pub const BOOT_SERVICES_DRIVER: Self = Self(0x8000_0004);
    /// A driver that stays.
    pub const RUNTIME_SERVICES_DRIVER: Self = Self(0x8000_0005);
    /// The partition table of the boot disk.
    pub const GPT: Self = Self(0x8000_0006);
    /// A text says what was done, in UEFI.
    pub const EFI_ACTION: Self = Self(0x8000_0007);
    /// A part of the firmware itself.
    pub const FIRMWARE_BLOB: Self = Self(0x8000_0008);
    /// A boot variable, measured as it is without its name.
    pub const VARIABLE_BOOT2: Self = Self(0x8000_000c);
    /// The trusted launch's first measurement: sets PCR 0's first value.
    pub const HCRTM: Self = Self(0x8000_0010);
    /// The entry of the Secure Boot list by which an image was accepted.
    pub const VARIABLE_AUTHORITY: Self = Self(0x8000_00e0);
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0x0000_0000 => "pre-boot certificate",
            0x0000_0001 => "POST code",
            0x0000_0003 => "remark",
            0x0000_0004 => "separator",
            0x0000_0005 | 0x8000_0007 => "action",
            0x0000_0006 => "tagged event",
            0x0000_0007 => "root of trust's contents",
            0x0000_0008 => "root of trust's version",
            0x0000_0009 => "processor microcode",
            0x0000_000a => "platform configuration flags",
            0x0000_000b => "table of devices",
            0x0000_000c => "compact hash",
            0x0000_000d => "boot loader",
            0x0000_000e => "boot loader partition data",
            0x0000_000f => "non-host code",
            0x0000_0010 => "non-host configuration",
            0x0000_0011 => "non-host information",
            0x0000_0012 => "omitted boot device events",
            0x8000_0001 => "driver configuration variable",
            0x8000_0002 | 0x8000_000c => "boot variable",
            0x8000_0003 => "boot application",
            0x8000_0004 => "boot driver",
            0x8000_0005 => "runtime driver",
            0x8000_0006 => "partition table",
            0x8000_0008 | 0x8000_000a => "firmware volume",
            0x8000_0009 | 0x8000_000b => "tables handed off",
            0x8000_000d => "partition table without unique ids",
            0x8000_0010 => "trusted launch",
            0x8000_00e0 => "Secure Boot authority",
            other => return write!(f, "event type {other:#010x}"),
        })
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place in the log, counted from 0 behind the header.
    pub number: usize,
    /// The PCR that it was extended into.
    pub pcr: u32,
    /// What kind of thing was measured.
    pub kind: EventType,
    /// One digest an algorithm of the header, in the header's order.
    pub digests: Vec<(Algorithm, Vec<u8>)>,
    /// What the firmware says about it.
    pub data: Vec<u8>,
}

impl Event {
    /// The digest for one bank.
    #[must_use]
    pub fn digest(&self, algorithm: Algorithm) -> Option<&[u8]> {
        self.digests
            .iter()
            .find(|(a, _)| *a == algorithm)
            .map(|(_, digest)| digest.as_slice())
    }
}

/// A log taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog {
    /// The banks that it speaks of.
    pub algorithms: Vec<Algorithm>,
    /// The events behind the header, in order.
    pub events: Vec<Event>,
}

/// Why a log could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventLogError {
    /// There is nothing in it.
    #[error("the event log is empty: the firmware measured nothing, or the kernel found no log")]
    Empty,
    /// It is longer than [`MAX_LOG`].
    #[error("the event log has {size} bytes, at most {MAX_LOG} are read")]
    TooLong {
        /// Its length in bytes.
        size: usize,
    },
    /// It has more than [`MAX_EVENTS`] events.
    #[error("the event log has more than {MAX_EVENTS} events")]
    TooMany,
    /// It is of the old kind, with SHA-1 only.
    #[error(
        "the event log is of the old kind with SHA-1 only; the firmware must be set to TPM 2.0 measurements with SHA-256"
    )]
    Sha1Only,
    /// The header is malformed.
    #[error("the event log's header: {0}")]
    Header(WireError),
    /// An event is malformed.
    #[error("event {number} of the event log, at byte {offset}: {source}")]
    Event {
        /// The event's place, counted from 0 behind the header.
        number: usize,
        /// Where it begins.
        offset: usize,
        /// What is wrong.
        source: WireError,
    },
}

/// Takes a log apart.
///
/// # Errors
/// [`EventLogError`].
pub fn parse(bytes: &[u8]) -> Result<EventLog, EventLogError> {
    if bytes.is_empty() {
        return Err(EventLogError::Empty);
    }
    if bytes.len() > MAX_LOG {
        return Err(EventLogError::TooLong { size: bytes.len() });
    }
    let mut reader = Reader::new(bytes);
    let algorithms = header(&mut reader)?;
    let mut events = Vec::new();
    while reader.left() > 0 {
        let (number, offset) = (events.len(), reader.offset());
        if number == MAX_EVENTS {
            return Err(EventLogError::TooMany);
        }
        let event =
            event(&mut reader, number, &algorithms).map_err(|source| EventLogError::Event {
                number,
                offset,
                source,
            })?;
        events.push(event);
    }
    Ok(EventLog { algorithms, events })
}

/// The header is an event of the old format, so that old readers can step over it.
fn header(reader: &mut Reader<'_>) -> Result<Vec<Algorithm>, EventLogError> {
    let (pcr, kind, data) = old_event(reader).map_err(EventLogError::Header)?;
    if pcr != 0 || kind != EventType::NO_ACTION || !data.starts_with(SPEC_ID) {
        return Err(EventLogError::Sha1Only);
    }
    spec_id(data).map_err(EventLogError::Header)
}

/// TCG_PCClientPCREvent: PCR, event type, SHA-1 digest, data.
fn old_event<'a>(reader: &mut Reader<'a>) -> Result<(u32, EventType, &'a [u8]), WireError> {
    let pcr = reader.le32("header's PCR")?;
    let kind = EventType(reader.le32("header's event type")?);
    reader.bytes("header's digest", 20)?;
    let size = reader.le32("header's size")?;
    let data = reader.bytes("header", usize::try_from(size).unwrap_or(usize::MAX))?;
    Ok((pcr, kind, data))
}

fn spec_id(data: &[u8]) -> Result<Vec<Algorithm>, WireError> {
    let mut reader = Reader::new(data);
    reader.bytes("signature", SPEC_ID.len())?;
    reader.le32("platform class")?;
    reader.bytes("version", 4)?;
    let count = reader.le32("number of algorithms")?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count == 0 || count > MAX_ALGORITHMS {
        return Err(WireError::Limit {
            field: "number of algorithms",
            size: count as u64,
            limit: MAX_ALGORITHMS,
        });
    }
    let mut algorithms = Vec::with_capacity(count);
    for _ in 0..count {
        let id = reader.le16("algorithm")?;
        let size = reader.le16("digest size")?;
        match Algorithm::from_id(id) {
            Some(algorithm)
                if algorithm.size() == usize::from(size) && !algorithms.contains(&algorithm) =>
            {
                algorithms.push(algorithm);
            }
            Some(_) => {
                return Err(WireError::Value {
                    field: "digest size",
                    value: size.into(),
                });
            }
            None => {
                return Err(WireError::Value {
                    field: "algorithm",
                    value: id.into(),
                });
            }
        }
    }
    let vendor = reader.u8("vendor information's size")?;
    reader.bytes("vendor information", usize::from(vendor))?;
    reader.end("header")?;
    Ok(algorithms)
}

fn event(
    reader: &mut Reader<'_>,
    number: usize,
    algorithms: &[Algorithm],
) -> Result<Event, WireError> {
    let pcr = reader.le32("PCR")?;
    let kind = EventType(reader.le32("event type")?);
    // A remark is extended nowhere; some firmwares write all ones for its PCR.
    if pcr > MAX_PCR && kind != EventType::NO_ACTION {
        return Err(WireError::Value {
            field: "PCR",
            value: pcr.into(),
        });
    }
    let count = reader.le32("number of digests")?;
    if usize::try_from(count) != Ok(algorithms.len()) {
        return Err(WireError::Value {
            field: "number of digests",
            value: count.into(),
        });
    }
    let mut digests: Vec<(Algorithm, Vec<u8>)> = Vec::with_capacity(algorithms.len());
    for _ in algorithms {
        let id = reader.le16("digest's algorithm")?;
        // The order is free, but each algorithm of the header comes once.
        let algorithm = Algorithm::from_id(id)
            .filter(|a| algorithms.contains(a) && digests.iter().all(|(seen, _)| seen != a))
            .ok_or(WireError::Value {
                field: "digest's algorithm",
                value: id.into(),
            })?;
        digests.push((
            algorithm,
            reader.bytes("digest", algorithm.size())?.to_vec(),
        ));
    }
    let size = reader.le32("size of event data")?;
    let data = reader
        .bytes("event data", usize::try_from(size).unwrap_or(usize::MAX))?
        .to_vec();
    Ok(Event {
        number,
        pcr,
        kind,
        digests,
        data,
    })
}

#[cfg(test)]
mod tests;
