//! A boot's state, signed by a TPM: what the device sends, and what the verifier makes of it.
//!
//! ```text
//! device:    nonce --> TPM2_Quote by the attestation key, PCR values, event log --> Evidence
//! verifier:  Evidence, attestation certificate, nonce --> verify --> Report: one verdict a check
//! ```

mod attest;
mod verdict;
mod verify;

pub use attest::{Attest, BankSelection, BootFacts, CERTIFY, GENERATED, QUOTE, Statement, parse};
pub(crate) use verdict::Bench;
pub use verdict::{Check, Conclusion, Outcome, Report, Verdict};
pub(crate) use verify::Question;
pub use verify::{Expected, MEASURED_BY_FIRMWARE, verify};

/// What a device shows of its boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// TPMS_ATTEST: the signed bytes.
    pub attest: Vec<u8>,
    /// ECDSA signature over their SHA-256 digest, DER.
    pub signature: Vec<u8>,
    /// Values of PCRs of the SHA-256 bank, ascending.
    pub pcrs: Vec<(u32, [u8; 32])>,
    /// The firmware's event log; left out where there is none or where it is too long to be sent.
    pub event_log: Option<Vec<u8>>,
}
