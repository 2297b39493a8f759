//! EVE's attest exchange, without HTTP: what goes into its messages and what is made of them.
//!
//! ```text
//! device                               controller
//! CERT: attestation, ECDH, EK certs -> check that the device key signed them, keep them
//! NONCE                             -> fresh nonce, kept with a deadline, used once
//! QUOTE over that nonce             -> verify: granted (integrity token, keys) | nonce mismatch | no certificate | refused
//! STORE_KEYS (vault key, wrapped)   -> kept, given back with a later grant
//! ```
//!
//! All four travel to one address in one message type, `ZAttestReq`.

pub mod device;
pub mod verifier;

use protocol::eve::attest::{
    AttestStorageKeysResp, AttestStorageKeysResponseCode, AttestVolumeKey, ZAttestQuoteResp,
    ZAttestRespType, ZAttestResponse, ZAttestResponseCode,
};

use crate::tpm::TpmError;

/// Shortest and longest nonce, in bytes, that EVE devices accept.
pub const NONCE_BYTES: std::ops::RangeInclusive<usize> = 12..=32;

/// EVE keeps a whole quote request under this many bytes, and leaves the event log out if it does not fit.
pub const MAX_QUOTE_REQUEST: usize = 62 * 1024;

/// What runs on the device, in its own words: proven by nothing but the quote.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Versions {
    /// The operating system image.
    pub system: String,
    /// The machine's firmware.
    pub firmware: String,
}

/// How a controller answers a quote.
#[derive(Debug, Clone, PartialEq)]
pub enum QuoteAnswer {
    /// Accepted.
    Granted {
        /// To be shown with every config request until the next boot.
        integrity_token: Vec<u8>,
        /// Keys that the device stored earlier, as it stored them.
        keys: Vec<AttestVolumeKey>,
    },
    /// The nonce is not the one given out: the device asks for another.
    NonceMismatch,
    /// The controller has no attestation certificate: the device sends it and starts over.
    NoCertificate,
    /// A check failed.
    Refused,
}

impl QuoteAnswer {
    fn to_wire(&self) -> ZAttestResponse {
        let (response, integrity_token, keys) = match self {
            Self::Granted {
                integrity_token,
                keys,
            } => (
                ZAttestResponseCode::Success,
                integrity_token.clone(),
                keys.clone(),
            ),
            Self::NonceMismatch => (ZAttestResponseCode::NonceMismatch, vec![], vec![]),
            Self::NoCertificate => (ZAttestResponseCode::NoCertFound, vec![], vec![]),
            Self::Refused => (ZAttestResponseCode::QuoteFailed, vec![], vec![]),
        };
        ZAttestResponse {
            resp_type: ZAttestRespType::AttestRespQuoteResp.into(),
            quote_resp: Some(ZAttestQuoteResp {
                response: response.into(),
                integrity_token,
                keys,
            }),
            ..ZAttestResponse::default()
        }
    }

    fn from_wire(response: &ZAttestQuoteResp) -> Result<Self, AttestError> {
        match ZAttestResponseCode::try_from(response.response) {
            Ok(ZAttestResponseCode::Success) => Ok(Self::Granted {
                integrity_token: response.integrity_token.clone(),
                keys: response.keys.clone(),
            }),
            Ok(ZAttestResponseCode::NonceMismatch) => Ok(Self::NonceMismatch),
            Ok(ZAttestResponseCode::NoCertFound) => Ok(Self::NoCertificate),
            Ok(ZAttestResponseCode::QuoteFailed) => Ok(Self::Refused),
            Ok(ZAttestResponseCode::Invalid) | Err(_) => Err(AttestError::Number {
                what: "answer to a quote",
                seen: response.response,
            }),
        }
    }
}

/// How a controller answers when keys are given to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKeysAnswer {
    /// They are kept.
    Stored,
    /// The integrity token is not the one given out: the device attests again.
    TokenMismatch,
}

impl StoreKeysAnswer {
    fn to_wire(self) -> ZAttestResponse {
        let response = match self {
            Self::Stored => AttestStorageKeysResponseCode::Success,
            Self::TokenMismatch => AttestStorageKeysResponseCode::ItokenMismatch,
        };
        ZAttestResponse {
            resp_type: ZAttestRespType::StoreKeys.into(),
            storage_keys_resp: Some(AttestStorageKeysResp {
                response: response.into(),
            }),
            ..ZAttestResponse::default()
        }
    }

    fn from_wire(response: &AttestStorageKeysResp) -> Result<Self, AttestError> {
        match AttestStorageKeysResponseCode::try_from(response.response) {
            Ok(AttestStorageKeysResponseCode::Success) => Ok(Self::Stored),
            Ok(AttestStorageKeysResponseCode::ItokenMismatch) => Ok(Self::TokenMismatch),
            Ok(AttestStorageKeysResponseCode::Invalid) | Err(_) => Err(AttestError::Number {
                what: "answer to keys",
                seen: response.response,
            }),
        }
    }
}

/// Why a message of the exchange could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// A number on the wire means nothing here.
    #[error("attest exchange: {what}: the number {seen} is not known")]
    Number {
        /// Which field.
        what: &'static str,
        /// What stood there.
        seen: i32,
    },
    /// The answer is to another question.
    #[error("attest exchange: expected {expected}, got an answer of type {seen}")]
    OtherAnswer {
        /// What was asked.
        expected: &'static str,
        /// `respType` as it came.
        seen: i32,
    },
    /// A part that must be there is missing.
    #[error("attest exchange: {0} is missing")]
    Missing(&'static str),
    /// A part is shorter or longer than it may be.
    #[error("attest exchange: {what} has {size} bytes")]
    Size {
        /// Which part.
        what: &'static str,
        /// Its length in bytes.
        size: usize,
    },
    /// A certificate cannot be accepted.
    #[error("attest exchange: the {which} certificate: {what}")]
    Certificate {
        /// Which.
        which: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The event log cannot be unpacked.
    #[error("attest exchange: unpacking the event log: {0}")]
    Unpack(std::io::Error),
    /// A PCR value is not one of the SHA-256 bank.
    #[error("attest exchange: value of PCR {index}: not 32 bytes of the SHA-256 bank")]
    Pcr {
        /// The PCR's number as it came.
        index: u32,
    },
    /// The TPM failed.
    #[error("making a quote: {0}")]
    Tpm(#[from] TpmError),
    /// PCRs changed faster than they could be quoted.
    #[error("making a quote: PCRs keep changing between reading and quoting them")]
    Unsteady,
    /// No random bytes to be had.
    #[error("attest exchange: the random source failed")]
    Random,
}
