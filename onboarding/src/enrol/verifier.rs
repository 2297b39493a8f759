//! The controller's side of enrolment. Pure: no clock, no store.

use std::time::Duration;

use protocol::cipher::Point;
use protocol::enrolment::NONCE_BYTES;
use protocol::enrolment::owner::Delegate;
use protocol::enrolment::transcript::{Secret, Transcript};
use protocol::enrolment::wire::{self, GrantPayload, Level, OwnerChain, SealedGrant};
use protocol::keys::Signer;

use super::endorsement::Makers;
use super::{EnrolError, Hello, MachineId};
use crate::quote::{BootFacts, Check, Report};

/// Seals what the controller must remember of a challenge into the challenge itself.
pub struct CookieKey([u8; 32]);

impl CookieKey {
    /// From 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A fresh one.
    ///
    /// # Errors
    /// [`EnrolError::Random`].
    pub fn random() -> Result<Self, EnrolError> {
        Ok(Self([0; 32]))
    }
}

/// In whose name challenges are made.
pub struct Delegation<'a> {
    /// The owner's delegate.
    pub signer: &'a dyn Signer,
    /// Why a device should believe it.
    pub chain: &'a OwnerChain,
}

/// The second flight's message, read; nothing of it is proven.
#[derive(Debug, Clone)]
pub struct Evidence {
    hello: Hello,
    nonce: [u8; NONCE_BYTES],
    transcript: Transcript,
}

impl Evidence {
    /// The Hello of the same session, as the device shows it again.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The machine's name.
    #[must_use]
    pub fn machine_id(&self) -> MachineId {
        self.hello.machine_id()
    }

    /// The challenge's nonce: serves once.
    #[must_use]
    pub fn nonce(&self) -> &[u8; NONCE_BYTES] {
        &self.nonce
    }

    /// The hash over everything said in this session.
    #[must_use]
    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }
}

/// What the verifier knows beforehand.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// The key that the challenge's cookie was made with.
    pub cookie_key: &'a CookieKey,
    /// This controller as the owner's delegate.
    pub delegate: &'a Delegate,
    /// Milliseconds since 1970.
    pub now_ms: i64,
    /// Makers of TPMs that the owner trusts.
    pub makers: &'a Makers,
    /// Checks of the event log that the policy only warns of: their failure does not keep a machine from being proven.
    pub warn: &'a [Check],
}

/// What came of the second flight.
#[derive(Debug, Clone)]
pub struct Judged {
    /// A verdict for each check.
    pub report: Report,
    /// What is known now, if everything that enrolment needs has passed. Before that nothing is to be written down.
    pub proven: Option<Proven>,
    /// How far the machine is known: bronze at most without a trusted maker's certificate.
    pub level: Level,
}

/// A machine that has proven itself.
#[derive(Debug, Clone)]
pub struct Proven {
    /// Its name.
    pub machine: MachineId,
    /// What it said first.
    pub hello: Hello,
    /// The session.
    pub transcript: Transcript,
    /// The session's secret.
    pub secret: Secret,
    /// The challenge's nonce.
    pub nonce: [u8; NONCE_BYTES],
    /// The device key.
    pub device_point: Point,
    /// The key for what is sealed to the device.
    pub agreement_point: Point,
    /// The attestation key; none without a TPM.
    pub attestation_point: Option<Point>,
    /// Clock and counters of the TPM; none without one.
    pub boot: Option<BootFacts>,
    /// Values of the PCRs 0 to 15, ascending; none without a TPM.
    pub pcrs: Vec<(u32, [u8; 32])>,
    /// The firmware's event log, if it was sent.
    pub event_log: Option<Vec<u8>>,
    /// Whose certificate led to a trusted maker: that one's name.
    pub maker: Option<String>,
}

/// Reads a Hello, bounded in every part.
///
/// # Errors
/// [`EnrolError`]: it is malformed.
pub fn read_hello(_bytes: &[u8]) -> Result<Hello, EnrolError> {
    Err(EnrolError::Random)
}

/// Makes a challenge. Nothing of it needs to be kept.
///
/// # Errors
/// [`EnrolError`].
pub fn challenge(
    _hello: &Hello,
    _key: &CookieKey,
    _delegation: &Delegation<'_>,
    _now_ms: i64,
    _lifetime: Duration,
) -> Result<wire::Challenge, EnrolError> {
    Err(EnrolError::Random)
}

/// Reads an Evidence, bounded in every part.
///
/// # Errors
/// [`EnrolError`]: it is malformed.
pub fn read_evidence(_bytes: &[u8]) -> Result<Evidence, EnrolError> {
    Err(EnrolError::Random)
}

/// Checks an Evidence.
#[must_use]
pub fn verify(_evidence: &Evidence, _known: &Known<'_>) -> Judged {
    Judged {
        report: Report {
            verdicts: vec![],
            boot: None,
        },
        proven: None,
        level: Level::None,
    }
}

/// Seals a grant to the machine that has proven itself.
///
/// # Errors
/// [`EnrolError::Sign`], [`EnrolError::Hpke`].
pub fn grant(
    _proven: &Proven,
    _payload: &GrantPayload,
    _signer: &dyn Signer,
) -> Result<SealedGrant, EnrolError> {
    Err(EnrolError::Random)
}
