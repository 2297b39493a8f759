//! What can go wrong with a device's identity, and what to do about it.

use std::io;
use std::path::PathBuf;

use super::CertificateError;
use crate::tpm::TpmError;

/// Why a device's identity could not be opened or made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file could not be read.
    #[error("reading the device's identity {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file could not be written.
    #[error("keeping the device's identity: {0}")]
    Write(#[from] durable::Error),
    /// The file is not what was written. It is never replaced without being asked: a new identity would be another device
    /// to the controller.
    #[error("reading the device's identity {}: {what}; remove the file to make the device enrol anew, as another one", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The keys are in a TPM, and there is none now.
    #[error("the device's keys in {} live in a TPM, but this machine shows none: switch it on in the firmware", path.display())]
    TpmMissing {
        /// The file.
        path: PathBuf,
    },
    /// The keys were made by another TPM, or this one was cleared since.
    #[error("the device's keys in {} are not of this TPM (cleared, replaced, or the disk comes from another machine): {source}", path.display())]
    ForeignTpm {
        /// The file.
        path: PathBuf,
        /// What the TPM said.
        source: TpmError,
    },
    /// The TPM cannot do what is needed.
    #[error("this TPM cannot hold the device's keys: it lacks {}", missing.join(", "))]
    UnsuitableTpm {
        /// What is missing.
        missing: Vec<&'static str>,
    },
    /// A TPM command failed.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// A certificate could not be made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// A key in software could not be made or read.
    #[error("the device's key in software: {0}")]
    Software(String),
}
