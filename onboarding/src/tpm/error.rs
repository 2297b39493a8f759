//! What can go wrong between this program and a TPM.

use std::io;
use std::path::PathBuf;

use super::command::CommandCode;
use super::crypto::ShareError;
use super::rc::{ResponseCode, code};
use crate::wire::WireError;

/// A TPM command that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// The device or socket could not be opened.
    #[error("opening the TPM at {}: {source}; is there a TPM, is it switched on in the firmware, and may this process open the device?", path.display())]
    Open {
        /// Device, socket or address.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The command could not be sent, or no answer came.
    #[error("TPM command {command}{}: {source}", on(*handle))]
    Transport {
        /// The command.
        command: CommandCode,
        /// Its first handle, if it has one.
        handle: Option<u32>,
        /// What the system said.
        source: io::Error,
    },
    /// The TPM refused the command.
    #[error("TPM command {command}{}: {code}", on(*handle))]
    Refused {
        /// The command.
        command: CommandCode,
        /// Its first handle, if it has one.
        handle: Option<u32>,
        /// What the TPM said.
        code: ResponseCode,
    },
    /// The answer is not one that the specification allows.
    #[error("TPM command {command}{}: malformed answer: {source}", on(*handle))]
    Malformed {
        /// The command.
        command: CommandCode,
        /// Its first handle, if it has one.
        handle: Option<u32>,
        /// What was wrong with it.
        source: WireError,
    },
    /// The answer's code is not the TPM's: somebody on the bus changed the command or the answer, or the TPM behind it is another one.
    #[error("TPM command {command}{}: the answer is not authentic; something between this program and the TPM changes what they say, or the TPM was exchanged", on(*handle))]
    Tampered {
        /// The command.
        command: CommandCode,
        /// Its first handle, if it has one.
        handle: Option<u32>,
    },
    /// A key in the TPM is another one than before.
    #[error(
        "TPM command {command}: the TPM's {key} is not the one that it was; the TPM was exchanged, or its seed was changed"
    )]
    OtherKey {
        /// The command that made or loaded it.
        command: CommandCode,
        /// Which key.
        key: &'static str,
    },
    /// No secret can be shared with a key in the TPM, or no random bytes are to be had.
    #[error("TPM command {command}: sharing a secret with the TPM: {source}")]
    Share {
        /// The command.
        command: CommandCode,
        /// Why.
        source: ShareError,
    },
    /// The command cannot be built: a value is too long for it.
    #[error("TPM command {command}: {what} is {size} bytes long, at most {limit} are allowed")]
    TooLong {
        /// The command.
        command: CommandCode,
        /// The value.
        what: &'static str,
        /// Its length in bytes.
        size: usize,
        /// The most that is allowed, in bytes.
        limit: usize,
    },
}

fn on(handle: Option<u32>) -> String {
    handle.map_or_else(String::new, |handle| format!(" on handle {handle:#010x}"))
}

impl TpmError {
    /// The TPM's own code, if it answered with one.
    #[must_use]
    pub fn code(&self) -> Option<ResponseCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// True if the TPM said that a handle names nothing: no such object, no such NV index, not loaded any more.
    #[must_use]
    pub fn is_no_such_handle(&self) -> bool {
        self.code()
            .is_some_and(|c| matches!(c.base(), code::HANDLE | code::REFERENCE_H0))
    }

    /// True if the TPM does not recognise a wrapped key as its own: it was cleared or replaced.
    #[must_use]
    pub fn is_foreign_key(&self) -> bool {
        self.code().is_some_and(|c| c.base() == code::INTEGRITY)
    }

    /// True if the TPM is locked out.
    #[must_use]
    pub fn is_lockout(&self) -> bool {
        self.code().is_some_and(ResponseCode::is_lockout)
    }
}
