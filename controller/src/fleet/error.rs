//! Why something was not done: towards devices, and towards operators. What the store says is put into these words here, so that no
//! door needs to know that there is one.

use onboarding::attest::AttestError;
use operator_api::FieldError;
use protocol::envelope::EnvelopeError;
use protocol::ids::DeviceId;
use thiserror::Error;

use crate::store::StoreError;

/// Why a device's message was not taken.
#[derive(Debug, Error)]
pub enum Refused {
    /// There is no body where one must be.
    #[error("the request has no body")]
    Empty,
    /// It cannot be read.
    #[error("{0}")]
    Malformed(String),
    /// Nobody registered with this certificate.
    #[error("no device is registered with certificate {0}; register first")]
    UnknownDevice(String),
    /// The signature is not the sender's.
    #[error("{0}")]
    Signature(EnvelopeError),
    /// The sender speaks for somebody else.
    #[error("device {sender} must not speak for device {named}")]
    OtherDevice {
        /// Who signed.
        sender: DeviceId,
        /// Whose path it was.
        named: DeviceId,
    },
    /// The integrity token is not that of the present boot.
    #[error("the integrity token is not the one given to this device; attest again")]
    Token,
    /// Its boot was refused; which checks failed, in words for whoever stands before its screen.
    #[error("attestation: {0}")]
    Boot(String),
    /// Its certificate has ended.
    #[error("the certificate of device {0} has ended; enrol again")]
    Ended(DeviceId),
    /// Too many ask at the same time.
    #[error("the controller is busy; try again in a few seconds")]
    Busy,
    /// It may not do this.
    #[error("{0}")]
    NotAllowed(String),
    /// Another device has what this one claims.
    #[error("{0}")]
    Clash(String),
    /// The store has no room for it.
    #[error("{0}")]
    StoreFull(String),
    /// The store did not take it.
    #[error("{0}")]
    Store(String),
    /// The controller failed.
    #[error("{0}")]
    Internal(String),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full { .. } => Self::StoreFull(error.to_string()),
            error => Self::Store(error.to_string()),
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full { .. } => Self::StoreFull(error.to_string()),
            error => Self::Store(error.to_string()),
        }
    }
}

impl From<AttestError> for Refused {
    fn from(error: AttestError) -> Self {
        match error {
            AttestError::Random => Self::Internal(error.to_string()),
            error => Self::Malformed(error.to_string()),
        }
    }
}

impl From<EnvelopeError> for Refused {
    fn from(error: EnvelopeError) -> Self {
        match error {
            EnvelopeError::Signature { .. } | EnvelopeError::OtherSender { .. } => {
                Self::Signature(error)
            }
            EnvelopeError::Sign(_) => Self::Internal(error.to_string()),
            error => Self::Malformed(error.to_string()),
        }
    }
}

/// Why an operator's request was not done.
#[derive(Debug, Error)]
pub enum Fault {
    /// Who are you?
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// It is not there.
    #[error("there is no {kind} `{name}`")]
    NotFound {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Fields are wrong.
    #[error("{detail}")]
    Invalid {
        /// What was tried.
        detail: String,
        /// Which fields, and why.
        errors: Vec<FieldError>,
    },
    /// It does not fit what is there.
    #[error("{0}")]
    Conflict(String),
    /// It cannot be done now.
    #[error("{0}")]
    Unavailable(String),
    /// Too much at once.
    #[error("{0}")]
    TooMany(&'static str),
    /// The store has no room for it.
    #[error("{0}")]
    StoreFull(String),
    /// The store did not take it.
    #[error("{0}")]
    Store(String),
    /// The controller failed.
    #[error("{0}")]
    Internal(String),
}

impl Fault {
    /// One wrong field.
    pub fn field(
        detail: impl Into<String>,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self::Invalid {
            detail: detail.into(),
            errors: vec![FieldError::new(field, message)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_store_is_told_from_one_that_fails() {
        let full = || StoreError::Full { action: "writing" };
        let damaged = || StoreError::Damaged {
            action: "reading",
            what: "x".to_owned(),
            reason: "y".to_owned(),
        };
        assert!(matches!(Refused::from(full()), Refused::StoreFull(_)));
        assert!(matches!(Refused::from(damaged()), Refused::Store(_)));
        assert!(matches!(Fault::from(full()), Fault::StoreFull(_)));
        assert!(matches!(Fault::from(damaged()), Fault::Store(_)));
        assert_eq!(Fault::from(damaged()).to_string(), damaged().to_string());
    }
}
