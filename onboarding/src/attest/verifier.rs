//! The controller's side of the attest exchange. It needs no TPM and keeps nothing: certificates, nonces, tokens and keys
//! are its caller's to store.

use std::io::Read as _;

use flate2::read::GzDecoder;
use protocol::certs::check_signed_by;
use protocol::eve::attest::{
    AttestVersionType, AttestVolumeKey, TpmHashAlgo, ZAttestNonceResp, ZAttestQuote, ZAttestReq,
    ZAttestReqType, ZAttestRespType, ZAttestResponse,
};
use protocol::eve::certs::{ZCert, ZCertMetaDataType, ZCertType};
use protocol::keys::{CertHash, VerifyingKey, pem_to_der};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::{AttestError, QuoteAnswer, StoreKeysAnswer, Versions};
use crate::eventlog::MAX_LOG;
use crate::quote::{Check, Conclusion, Evidence, Expected, Report};
use crate::wire::Public;

/// Longest certificate that is taken, PEM, in bytes. EK certificates have up to 2 KiB.
const MAX_CERTIFICATE: usize = 10 * 1024;
/// Most certificates in one request.
const MAX_CERTIFICATES: usize = 16;
/// Longest TPMS_ATTEST and longest signature, in bytes.
const MAX_ATTEST: usize = 1024;
const MAX_SIGNATURE: usize = 512;
/// Longest version text, in bytes.
const MAX_VERSION: usize = 256;
/// Most PCR values, most keys, and the longest key, in bytes.
const MAX_PCRS: usize = 24;
const MAX_KEYS: usize = 8;
const MAX_KEY: usize = 4096;

/// What a device asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// It shows its certificates.
    Certificates(Box<DeviceCertificates>),
    /// It asks for a nonce.
    Nonce,
    /// It shows a quote.
    Quote(Box<Submission>),
    /// It gives keys to keep.
    StoreKeys {
        /// The token of its last grant, as it says.
        integrity_token: Vec<u8>,
        /// The keys, opaque.
        keys: Vec<AttestVolumeKey>,
    },
}

/// A certificate as a device sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedCertificate {
    /// The PEM text, byte for byte: its hash names the certificate in cipher contexts.
    pub pem: Vec<u8>,
    /// DER.
    pub der: Vec<u8>,
    /// First 16 bytes of the SHA-256 of the PEM.
    pub hash: CertHash,
    /// Whether the device says that it may send another one later.
    pub is_mutable: bool,
    /// Whether the device says that a TPM holds the key.
    pub is_tpm: bool,
}

/// What a device shows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceCertificates {
    /// Of the attestation key, if it has a TPM.
    pub attestation: Option<ReceivedCertificate>,
    /// Of the key for cipher blocks.
    pub ecdh: Option<ReceivedCertificate>,
    /// Of the endorsement key, if it has a TPM.
    pub endorsement: Option<ReceivedCertificate>,
    /// Public area of the endorsement key, if it was sent along.
    pub endorsement_public: Option<Public>,
}

/// A quote and what stands beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// What the TPM says; `None` if the device says nothing of a TPM.
    pub evidence: Option<Evidence>,
    /// What the device says of its software.
    pub versions: Versions,
}

impl Submission {
    /// The event log that came with it.
    #[must_use]
    pub fn log(&self) -> Option<&[u8]> {
        self.evidence.as_ref()?.event_log.as_deref()
    }
}

/// Reads a request, bounded in every part.
///
/// # Errors
/// [`AttestError`]: the request is malformed. A quote that can be read and proves nothing is no error here; see
/// [`verify`].
pub fn read(request: &ZAttestReq) -> Result<Request, AttestError> {
    match ZAttestReqType::try_from(request.req_type) {
        Ok(ZAttestReqType::AttestReqCert) => Ok(Request::Certificates(Box::new(
            read_certificates(&request.certs)?,
        ))),
        Ok(ZAttestReqType::AttestReqNonce) => Ok(Request::Nonce),
        Ok(ZAttestReqType::AttestReqQuote) => {
            let quote = request
                .quote
                .as_ref()
                .ok_or(AttestError::Missing("the quote"))?;
            Ok(Request::Quote(Box::new(read_quote(quote)?)))
        }
        Ok(ZAttestReqType::StoreKeys) => {
            let keys = request
                .storage_keys
                .as_ref()
                .ok_or(AttestError::Missing("the keys"))?;
            within("the number of keys", keys.keys.len(), MAX_KEYS)?;
            within("the integrity token", keys.integrity_token.len(), MAX_KEY)?;
            for key in &keys.keys {
                within("a key", key.key.len(), MAX_KEY)?;
            }
            Ok(Request::StoreKeys {
                integrity_token: keys.integrity_token.clone(),
                keys: keys.keys.clone(),
            })
        }
        Ok(ZAttestReqType::AttestReqNone) | Err(_) => Err(AttestError::Number {
            what: "type of the request",
            seen: request.req_type,
        }),
    }
}

fn within(what: &'static str, size: usize, limit: usize) -> Result<(), AttestError> {
    if size <= limit {
        Ok(())
    } else {
        Err(AttestError::Size { what, size })
    }
}

fn read_certificates(certs: &[ZCert]) -> Result<DeviceCertificates, AttestError> {
    within("the list of certificates", certs.len(), MAX_CERTIFICATES)?;
    let mut read = DeviceCertificates::default();
    for cert in certs {
        let (which, place) = match ZCertType::try_from(cert.r#type) {
            Ok(ZCertType::CertTypeDeviceRestrictedSigning) => {
                ("attestation", &mut read.attestation)
            }
            Ok(ZCertType::CertTypeDeviceEcdhExchange) => ("ECDH", &mut read.ecdh),
            Ok(ZCertType::CertTypeDeviceEndorsementRsa) => {
                let meta = cert
                    .meta_data_items
                    .iter()
                    .find(|item| item.r#type == i32::from(ZCertMetaDataType::Tpm2Public));
                if let Some(meta) = meta {
                    read.endorsement_public =
                        Some(Public::parse_sized(&meta.meta_data).map_err(|error| {
                            AttestError::Certificate {
                                which: "endorsement",
                                what: format!("its public area: {error}"),
                            }
                        })?);
                }
                ("endorsement", &mut read.endorsement)
            }
            // An onboarding certificate may come along; it was seen at registration. What is unknown is of no use.
            _ => continue,
        };
        if place.is_some() {
            return Err(AttestError::Certificate {
                which,
                what: "it comes twice".to_owned(),
            });
        }
        *place = Some(read_certificate(which, cert)?);
    }
    Ok(read)
}

fn read_certificate(which: &'static str, cert: &ZCert) -> Result<ReceivedCertificate, AttestError> {
    let bad = |what: String| AttestError::Certificate { which, what };
    if cert.cert.len() > MAX_CERTIFICATE {
        return Err(bad(format!("it has {} bytes", cert.cert.len())));
    }
    let der = pem_to_der(&cert.cert).map_err(|error| bad(error.to_string()))?;
    let hash = CertHash::of_pem_text(&cert.cert);
    let said = cert.cert_hash.as_slice();
    if said != hash.as_bytes() && said != hash.short().as_bytes() {
        return Err(bad(format!(
            "its hash is {}, the device says {}",
            hash.short(),
            hex::encode(said.get(..said.len().min(32)).unwrap_or_default())
        )));
    }
    let attributes = cert.attributes.unwrap_or_default();
    Ok(ReceivedCertificate {
        pem: cert.cert.clone(),
        der,
        hash: hash.short(),
        is_mutable: attributes.is_mutable,
        is_tpm: attributes.is_tpm,
    })
}

impl DeviceCertificates {
    /// Checks that the device key signed the attestation and the ECDH certificate, and that those have P-256 keys. The
    /// endorsement certificate is the TPM's maker's; which makers to believe is a question of policy.
    ///
    /// # Errors
    /// [`AttestError::Certificate`].
    pub fn check(&self, device_certificate_der: &[u8]) -> Result<(), AttestError> {
        for (which, certificate) in [("attestation", &self.attestation), ("ECDH", &self.ecdh)] {
            let Some(certificate) = certificate else {
                continue;
            };
            let bad = |what: String| AttestError::Certificate { which, what };
            check_signed_by(&certificate.der, device_certificate_der)
                .map_err(|error| bad(error.to_string()))?;
            match VerifyingKey::from_certificate_der(&certificate.der) {
                Ok(VerifyingKey::P256(_)) => {}
                _ => return Err(bad("its key is not on P-256".to_owned())),
            }
        }
        Ok(())
    }
}

fn read_quote(quote: &ZAttestQuote) -> Result<Submission, AttestError> {
    let mut versions = Versions::default();
    for info in &quote.versions {
        within("a version", info.version.len(), MAX_VERSION)?;
        match AttestVersionType::try_from(info.version_type) {
            Ok(AttestVersionType::Eve) => versions.system.clone_from(&info.version),
            Ok(AttestVersionType::Firmware) => versions.firmware.clone_from(&info.version),
            _ => {}
        }
    }
    let nothing =
        quote.attest_data.is_empty() && quote.signature.is_empty() && quote.pcr_values.is_empty();
    if nothing {
        return Ok(Submission {
            evidence: None,
            versions,
        });
    }
    within("the quote", quote.attest_data.len(), MAX_ATTEST)?;
    within("the signature", quote.signature.len(), MAX_SIGNATURE)?;
    within("the list of PCRs", quote.pcr_values.len(), MAX_PCRS)?;
    let mut pcrs = Vec::with_capacity(quote.pcr_values.len());
    for pcr in &quote.pcr_values {
        let value = <[u8; 32]>::try_from(pcr.value.as_slice());
        match (value, pcr.hash_algo == i32::from(TpmHashAlgo::Sha256)) {
            (Ok(value), true) => pcrs.push((pcr.index, value)),
            _ => return Err(AttestError::Pcr { index: pcr.index }),
        }
    }
    // EVE sends them in any order; the TPM's digest is over ascending ones.
    pcrs.sort_by_key(|(index, _)| *index);
    Ok(Submission {
        evidence: Some(Evidence {
            attest: quote.attest_data.clone(),
            signature: quote.signature.clone(),
            pcrs,
            event_log: unpack(&quote.tpm_binary_event_log)?,
        }),
        versions,
    })
}

/// Unpacks an event log, at most [`MAX_LOG`] bytes of it and one more, so that the parser refuses a longer one.
fn unpack(packed: &[u8]) -> Result<Option<Vec<u8>>, AttestError> {
    if packed.is_empty() {
        return Ok(None);
    }
    let mut log = Vec::new();
    GzDecoder::new(packed)
        .take(MAX_LOG as u64 + 1)
        .read_to_end(&mut log)
        .map_err(AttestError::Unpack)?;
    Ok(Some(log))
}

/// Checks a quote: one verdict a check.
///
/// `attestation_certificate` is the one that this device registered, DER; `nonce` the one that was given out to this device
/// last, if its time has not run out. The caller forgets the nonce before it calls, so that it serves once.
#[must_use]
pub fn verify(
    submission: &Submission,
    attestation_certificate: Option<&[u8]>,
    nonce: Option<&[u8]>,
) -> Report {
    crate::quote::verify(
        submission.evidence.as_ref(),
        Expected {
            attestation_certificate,
            has_tpm: false,
            nonce,
        },
    )
}

/// How to tell a device that its quote was not accepted; `None` if nothing failed.
#[must_use]
pub fn refusal(report: &Report) -> Option<QuoteAnswer> {
    if report.conclusion() != Conclusion::Refused {
        None
    } else if report.failed(Check::AttestationKey) {
        Some(QuoteAnswer::NoCertificate)
    } else if report.failed(Check::Nonce) {
        Some(QuoteAnswer::NonceMismatch)
    } else {
        Some(QuoteAnswer::Refused)
    }
}

/// A fresh nonce.
///
/// # Errors
/// [`AttestError::Random`].
pub fn nonce() -> Result<[u8; 32], AttestError> {
    random()
}

/// A fresh integrity token.
///
/// # Errors
/// [`AttestError::Random`].
pub fn integrity_token() -> Result<[u8; 32], AttestError> {
    random()
}

fn random() -> Result<[u8; 32], AttestError> {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| AttestError::Random)?;
    Ok(bytes)
}

/// Says that certificates were taken.
#[must_use]
pub fn certs_answer() -> ZAttestResponse {
    ZAttestResponse {
        resp_type: ZAttestRespType::AttestRespCert.into(),
        ..ZAttestResponse::default()
    }
}

/// Gives a nonce out.
#[must_use]
pub fn nonce_answer(nonce: &[u8]) -> ZAttestResponse {
    ZAttestResponse {
        resp_type: ZAttestRespType::AttestRespNonce.into(),
        nonce: Some(ZAttestNonceResp {
            nonce: nonce.to_vec(),
        }),
        ..ZAttestResponse::default()
    }
}

/// Answers a quote.
#[must_use]
pub fn quote_answer(answer: &QuoteAnswer) -> ZAttestResponse {
    answer.to_wire()
}

/// Answers keys given.
#[must_use]
pub fn store_keys_answer(answer: StoreKeysAnswer) -> ZAttestResponse {
    answer.to_wire()
}
