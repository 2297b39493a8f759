//! The device's side of enrolment.

use protocol::enrolment::owner::Pinned;
use protocol::enrolment::wire::{self, GrantPayload, SealedGrant};

use super::EnrolError;
use crate::keys::Identity;
use crate::smbios::Machine;

/// A Hello that was made, and waits for its challenge.
#[derive(Debug)]
pub struct Session {
    bytes: Vec<u8>,
}

/// Evidence that was made, and waits for its grant.
#[derive(Debug)]
pub struct Answering {
    evidence: Vec<u8>,
    pinned: Pinned,
    server_time_ms: i64,
}

/// Makes the first flight's message.
///
/// # Errors
/// [`EnrolError`].
pub fn hello(
    _identity: &Identity,
    _machine: &Machine,
    _image_version: &str,
) -> Result<Session, EnrolError> {
    Err(EnrolError::Random)
}

impl Session {
    /// The Hello, to be sealed and sent.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Answers the challenge. `pinned` is the owner as far as the device knows ([`super::mark::effective`]), `floor` the earliest
    /// time that it can be, in seconds since 1970.
    ///
    /// # Errors
    /// [`EnrolError`].
    pub fn challenged(
        self,
        _identity: &Identity,
        _challenge: &wire::Challenge,
        _pinned: &Pinned,
        _floor: i64,
        _event_log: Option<&[u8]>,
    ) -> Result<Answering, EnrolError> {
        Err(EnrolError::Random)
    }
}

impl Answering {
    /// The Evidence, to be sealed and sent; the same bytes again if the answer was lost.
    #[must_use]
    pub fn evidence(&self) -> &[u8] {
        &self.evidence
    }

    /// The owner as it is known now; to be kept once a grant was read.
    #[must_use]
    pub fn pinned(&self) -> Pinned {
        self.pinned
    }

    /// The controller's clock when it made the challenge, signed; milliseconds since 1970.
    #[must_use]
    pub fn server_time_ms(&self) -> i64 {
        self.server_time_ms
    }

    /// Opens the grant and checks it.
    ///
    /// # Errors
    /// [`EnrolError`].
    pub fn granted(
        &self,
        _identity: &Identity,
        _grant: &SealedGrant,
    ) -> Result<GrantPayload, EnrolError> {
        Err(EnrolError::Random)
    }
}
