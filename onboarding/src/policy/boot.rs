//! A boot that can be judged: an event log that explains the PCR values beside it.

use crate::eventlog::{self, Event, EventLog, EventLogError, EventType};
use crate::quote::{Evidence, MEASURED_BY_FIRMWARE};

/// Longest firmware version that a device may state, in characters.
const MAX_STATED: usize = 128;

/// A log, and the PCR values that it explains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    log: EventLog,
    pcrs: [[u8; 32]; 16],
    stated_firmware: String,
}

/// Why there is no boot to be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unbelieved {
    /// There is no TPM that could say anything.
    #[error("the device has no TPM")]
    NoTpm,
    /// What it says is not proven to be this device's, or not of just now.
    #[error("the quote is not this device's, or not a fresh one")]
    NotQuoted,
    /// There is no log.
    #[error("the device sent no event log")]
    NoLog,
    /// The log cannot be read.
    #[error("the event log cannot be read: {0}")]
    Unreadable(#[from] EventLogError),
    /// It does not speak of the bank that was quoted.
    #[error("the event log does not speak of the SHA-256 bank")]
    NoSha256,
    /// The PCRs are not 0 to 15.
    #[error("the values of PCRs 0 to 15 are not there")]
    Pcrs,
    /// It does not lead to the quoted values.
    #[error("the event log does not explain the quoted value of PCR {0}")]
    Unexplained(u32),
}

impl Boot {
    /// Reads and replays a device's log. The caller has checked that the PCR values are those that the TPM signed
    /// ([`quote::Report::is_of_known_tpm`](crate::quote::Report::is_of_known_tpm)). `stated_firmware` is the firmware's version as the
    /// device's system tells it, empty if it does not.
    ///
    /// # Errors
    /// [`Unbelieved`].
    pub fn of(evidence: Option<&Evidence>, stated_firmware: &str) -> Result<Self, Unbelieved> {
        let evidence = evidence.ok_or(Unbelieved::NoTpm)?;
        let mut pcrs = [[0; 32]; 16];
        if evidence.pcrs.len() != pcrs.len() {
            return Err(Unbelieved::Pcrs);
        }
        for ((place, index), (given, value)) in pcrs.iter_mut().zip(0..).zip(&evidence.pcrs) {
            if *given != index {
                return Err(Unbelieved::Pcrs);
            }
            *place = *value;
        }
        let bytes = evidence.event_log.as_ref().ok_or(Unbelieved::NoLog)?;
        let log = eventlog::parse(bytes)?;
        let replayed = eventlog::replay(&log).ok_or(Unbelieved::NoSha256)?;
        for ((quoted, told), index) in pcrs.iter().zip(&replayed).zip(0..) {
            if MEASURED_BY_FIRMWARE.contains(&index) && quoted != told {
                return Err(Unbelieved::Unexplained(index));
            }
        }
        Ok(Self {
            log,
            pcrs,
            stated_firmware: stated_firmware
                .chars()
                .filter(|c| !c.is_control())
                .take(MAX_STATED)
                .collect(),
        })
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> &EventLog {
        &self.log
    }

    /// A quoted PCR of 0 to 15; zeros for others.
    pub(super) fn pcr(&self, index: usize) -> [u8; 32] {
        self.pcrs.get(index).copied().unwrap_or_default()
    }

    /// What was measured into one PCR, in order.
    pub(super) fn measured(&self, pcr: u32) -> impl Iterator<Item = &Event> {
        self.log
            .events
            .iter()
            .filter(move |event| event.pcr == pcr && event.kind != EventType::NO_ACTION)
    }

    /// The firmware's version: what was measured of it, and what the device's system says. Either may be empty.
    #[must_use]
    pub fn firmware_versions(&self) -> [String; 2] {
        let measured = self
            .measured(0)
            .find(|event| {
                event.kind == EventType::CRTM_VERSION
                    && eventlog::describe(event).vouched == Some(true)
            })
            .and_then(eventlog::data_as_text);
        [measured.unwrap_or_default(), self.stated_firmware.clone()]
    }
}
