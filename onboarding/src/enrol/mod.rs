//! Zero-touch enrolment: a box that nobody has touched becomes a device of its owner, in two flights.
//!
//! ```text
//! device                                          verifier
//! hello(identity) ------ Hello -----------------> read_hello
//!                                                 challenge: a secret for one TPM and one attestation key
//! Session::challenged <- Challenge ---------------
//!   owner checked, credential activated,
//!   keys certified, boot quoted
//! Answering::evidence -- Evidence --------------> read_evidence, verify: one verdict a check
//! Answering::granted <-- SealedGrant ------------ grant
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`device`] | what the device says, and what it makes of the answers |
//! | [`verifier`] | what the controller makes of that; pure: no clock, no store |
//! | `cookie` | the controller's memory of a challenge, which travels with it |
//! | `message` | reading of what devices send |
//! | [`credential`] | TPM2_MakeCredential without a TPM |
//! | `certified` | what a TPM says of the keys in it |
//! | [`endorsement`] | whose TPM it is: templates, certificates, makers |
//! | [`revocation`] | what makers have taken back |
//! | `machine` | which machine is around the TPM |
//! | [`mark`] | the owner's mark in the TPM, which outlives a wiped disk |
//!
//! The messages and their sealing are `protocol::enrolment`'s; the reasons stand in the book's page "Enrolment".

mod certified;
mod cookie;
pub mod credential;
pub mod device;
pub mod endorsement;
mod machine;
pub mod mark;
mod message;
pub mod revocation;
pub mod verifier;

use std::fmt;
use std::str::FromStr;

use protocol::cipher::Point;
use protocol::digest::{Digest, DigestError};
use protocol::enrolment::hpke::HpkeError;
use protocol::enrolment::owner::OwnerError;
use protocol::enrolment::{NONCE_BYTES, wire, words};
use protocol::keys::SignError;
use serde::{Deserialize, Serialize};

use crate::attest::AttestError;
use crate::smbios::Machine;
use crate::tpm::{TpmError, crypto};
use crate::wire::Public;
use credential::CredentialError;

fn random<const N: usize>() -> Result<[u8; N], EnrolError> {
    crypto::random().map_err(|_| EnrolError::Random)
}

/// What the secret of a challenge is sealed for, where there is no TPM.
const SECRET_CONTEXT: &[u8] = b"skerry enrolment 1 secret";

/// What a machine is called: the SHA-256 of its endorsement key's public area (TPMT_PUBLIC), its *EK id*; without a TPM, the SHA-256 of
/// its device key's uncompressed point. As text, 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineId(Digest);

impl MachineId {
    /// Of a machine with a TPM.
    #[must_use]
    pub fn of_endorsement(public: &Public) -> Self {
        Self(Digest::of(&public.to_bytes()))
    }

    /// Of a machine without one.
    #[must_use]
    pub fn of_device_key(point: &Point) -> Self {
        Self(Digest::of(&point.to_sec1()))
    }

    /// From its 32 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Digest::from_bytes(bytes))
    }

    /// Its 32 bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        self.0.bytes()
    }

    /// The eight words that people compare.
    #[must_use]
    pub fn words(&self) -> String {
        words::text(self.0.bytes())
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.hex())
    }
}

impl fmt::Debug for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MachineId({self})")
    }
}

impl FromStr for MachineId {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        Digest::from_hex(text).map(Self)
    }
}

impl TryFrom<String> for MachineId {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<MachineId> for String {
    fn from(id: MachineId) -> Self {
        id.to_string()
    }
}

/// What a device with a TPM shows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmHello {
    /// Public area of the endorsement key.
    pub endorsement: Public,
    /// Its certificate by the TPM's maker, DER, if the TPM holds one.
    pub endorsement_certificate: Option<Vec<u8>>,
    /// Certificates that lead from there to the maker's root, DER; in any order.
    pub endorsement_chain: Vec<Vec<u8>>,
    /// Public area of the attestation key.
    pub attestation: Public,
    /// The maker's four letters.
    pub tpm_maker: String,
    /// Version of the TPM's firmware, in its maker's form.
    pub tpm_firmware: u64,
}

/// How a device can prove itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HelloKeys {
    /// With a TPM.
    Tpm(Box<TpmHello>),
    /// With keys in a file.
    Software {
        /// The device key.
        device: Point,
        /// The key for what is sealed to the device.
        agreement: Point,
    },
}

/// The first flight's message, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The device's nonce.
    pub nonce: [u8; NONCE_BYTES],
    /// Its keys.
    pub keys: HelloKeys,
    /// What the machine's maker wrote into it, cleaned; nothing of it is proven.
    pub machine: Machine,
    /// The image that it runs, in its own words.
    pub image_version: String,
    /// The message as it was sent.
    pub bytes: Vec<u8>,
}

impl Hello {
    /// The machine's name.
    #[must_use]
    pub fn machine_id(&self) -> MachineId {
        match &self.keys {
            HelloKeys::Tpm(tpm) => MachineId::of_endorsement(&tpm.endorsement),
            HelloKeys::Software { device, .. } => MachineId::of_device_key(device),
        }
    }

    /// The TPM's part, if there is a TPM.
    #[must_use]
    pub fn tpm(&self) -> Option<&TpmHello> {
        match &self.keys {
            HelloKeys::Tpm(tpm) => Some(tpm),
            HelloKeys::Software { .. } => None,
        }
    }
}

/// Why a flight failed. What a verifier finds wrong with a proof is no error but a verdict.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// A message cannot be decoded.
    #[error("enrolment: reading the {what}: {source}")]
    Decode {
        /// Which message.
        what: &'static str,
        /// Where decoding stopped.
        source: prost::DecodeError,
    },
    /// A part of a message has not the form that it should have.
    #[error("enrolment: reading the {what}: {why}")]
    Form {
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A part of a message is longer than it may be.
    #[error("enrolment: reading the {what}: it has {size} bytes, at most {limit} are taken")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// Its length, in bytes.
        size: usize,
        /// The most that is taken.
        limit: usize,
    },
    /// The device speaks another version of the protocol.
    #[error(
        "enrolment: the device speaks version {found} of the protocol, this controller version {known}; bring the older of the two up to date"
    )]
    Version {
        /// What the device says.
        found: u32,
        /// What is known here.
        known: u32,
    },
    /// The challenge answers another Hello.
    #[error("enrolment: the challenge was made for another request; start over")]
    OtherHello,
    /// The challenge asks for what this device does not do.
    #[error("enrolment: the challenge asks for {0}")]
    Asks(&'static str),
    /// The controller does not speak for this device's owner.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// A secret cannot be wrapped for this endorsement key.
    #[error("enrolment: {0}")]
    Credential(#[from] CredentialError),
    /// The secret is not for this device.
    #[error("enrolment: the challenge's secret is not for this device's keys: {0}")]
    Secret(String),
    /// Something sealed cannot be made or opened.
    #[error("enrolment: {0}")]
    Hpke(#[from] HpkeError),
    /// A key that signs for us failed.
    #[error("enrolment: signing: {0}")]
    Sign(#[from] SignError),
    /// The TPM failed.
    #[error("enrolment: {0}")]
    Tpm(#[from] TpmError),
    /// The quote could not be made.
    #[error("enrolment: {0}")]
    Quote(#[from] AttestError),
    /// The grant is not one that the device can use.
    #[error("enrolment: the grant: {0}")]
    Grant(String),
    /// No random bytes to be had.
    #[error("enrolment: the random source failed")]
    Random,
}

impl EnrolError {
    /// What to tell the device, where a controller meets this error.
    #[must_use]
    pub fn reason(&self) -> wire::Reason {
        match self {
            Self::Decode { .. }
            | Self::Form { .. }
            | Self::TooLong { .. }
            | Self::Version { .. }
            | Self::Credential(_)
            | Self::Grant(_) => wire::Reason::Malformed,
            Self::OtherHello | Self::Asks(_) | Self::Owner(_) | Self::Secret(_) => {
                wire::Reason::Challenge
            }
            Self::Hpke(_) | Self::Sign(_) | Self::Tpm(_) | Self::Quote(_) | Self::Random => {
                wire::Reason::Busy
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_name_is_64_digits_and_eight_words() {
        let id = MachineId::from_bytes([0xab; 32]);
        assert_eq!(id.to_string(), "ab".repeat(32));
        assert_eq!(id.to_string().parse::<MachineId>().unwrap(), id);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<MachineId>(&json).unwrap(), id);
        assert_eq!(id.words().split(' ').count(), 8);
        for text in ["", "ab", &"AB".repeat(32), &format!("sha256:{id}")] {
            assert!(text.parse::<MachineId>().is_err(), "{text}");
        }
    }
}
