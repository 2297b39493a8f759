//! The device's certificates: the self-signed one of the device key, and those that the device key signs.
//!
//! No clock takes part: they are valid from the beginning of Unix time, because a device may be born with its clock at
//! 1970, and have no well-defined end (RFC 5280, 4.1.2.5), because a device may lie on a shelf for years. What limits a
//! device's admission in time is the controller.

use std::cell::RefCell;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use protocol::envelope::{SignError, Signer};
use protocol::keys::{CertHash, sha256};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey, date_time_ymd,
};

use crate::wire::{EccPoint, ecdsa_to_der};

/// A certificate in both its forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pem: String,
    der: Vec<u8>,
}

impl Certificate {
    /// Takes a certificate's DER and writes its PEM. Whether it is a certificate is for its reader to find out.
    #[must_use]
    pub fn from_der(der: Vec<u8>) -> Self {
        let text = STANDARD.encode(&der);
        let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
        // RFC 7468, 2: lines of 64 characters.
        for (place, letter) in text.chars().enumerate() {
            if place > 0 && place % 64 == 0 {
                pem.push('\n');
            }
            pem.push(letter);
        }
        pem.push_str("\n-----END CERTIFICATE-----\n");
        Self { pem, der }
    }

    /// PEM, with a newline at its end.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// By this hash a device names its certificate in an envelope: SHA-256 over the DER.
    #[must_use]
    pub fn hash(&self) -> CertHash {
        CertHash::of_der(&self.der)
    }

    /// By this hash certificates are named in `ZCert` and in cipher contexts: the first 16 bytes of SHA-256 over the PEM.
    #[must_use]
    pub fn short_hash(&self) -> CertHash {
        CertHash::of_pem_text(self.pem.as_bytes()).short()
    }
}

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The device key could not sign it.
    #[error("signing a certificate: {0}")]
    Sign(SignError),
    /// It could not be put together.
    #[error("putting a certificate together: {0}")]
    Encode(#[from] rcgen::Error),
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Device,
    Attestation,
    Agreement,
    Endorsement,
}

impl Purpose {
    fn params(self, point: &EccPoint) -> CertificateParams {
        let digest = hex::encode(sha256(&point.to_sec1()));
        let short = digest.get(..16).unwrap_or_default();
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "Skerry");
        name.push(
            DnType::CommonName,
            match self {
                Self::Device => format!("device {short}"),
                Self::Attestation => format!("attestation {short}"),
                Self::Agreement => format!("key agreement {short}"),
                Self::Endorsement => format!("endorsement {short}"),
            },
        );
        let mut params = CertificateParams::default();
        params.distinguished_name = name;
        params.not_before = date_time_ymd(1970, 1, 1);
        params.not_after = date_time_ymd(9999, 12, 31) + Duration::from_secs(24 * 3600 - 1);
        (params.is_ca, params.key_usages) = match self {
            // The device key vouches for the device's other keys, so its certificate is a CA's, as EVE's is.
            Self::Device => (
                IsCa::Ca(BasicConstraints::Constrained(0)),
                vec![
                    KeyUsagePurpose::DigitalSignature,
                    KeyUsagePurpose::KeyCertSign,
                ],
            ),
            Self::Attestation => (IsCa::ExplicitNoCa, vec![KeyUsagePurpose::DigitalSignature]),
            Self::Agreement => (IsCa::ExplicitNoCa, vec![KeyUsagePurpose::KeyAgreement]),
            Self::Endorsement => (IsCa::ExplicitNoCa, vec![KeyUsagePurpose::KeyEncipherment]),
        };
        params
    }
}

/// A public key about which a certificate speaks.
struct Subject([u8; 65]);

impl PublicKeyData for Subject {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// The device key as the certificate library wants to see a key. The library's error type has no place for ours, so that
/// one is kept aside.
struct DeviceKey<'a> {
    signer: &'a dyn Signer,
    point: [u8; 65],
    failure: &'a RefCell<Option<SignError>>,
}

impl PublicKeyData for DeviceKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for DeviceKey<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match self.signer.sign_p256_sha256(message) {
            Ok(fixed) => Ok(ecdsa_to_der(&fixed)),
            Err(error) => {
                self.failure.replace(Some(error));
                Err(rcgen::Error::RemoteKeyError)
            }
        }
    }
}

/// Makes certificates with the device key.
pub(super) struct Authority<'a> {
    signer: &'a dyn Signer,
    point: EccPoint,
}

impl<'a> Authority<'a> {
    pub(super) fn new(signer: &'a dyn Signer, point: EccPoint) -> Self {
        Self { signer, point }
    }

    /// Makes a certificate over `point`; over the device key's own point for [`Purpose::Device`].
    pub(super) fn certify(
        &self,
        purpose: Purpose,
        point: &EccPoint,
    ) -> Result<Certificate, CertificateError> {
        let failure = RefCell::new(None);
        let key = DeviceKey {
            signer: self.signer,
            point: self.point.to_sec1(),
            failure: &failure,
        };
        let params = purpose.params(point);
        let made = match purpose {
            Purpose::Device => params.self_signed(&key),
            _ => params.signed_by(
                &Subject(point.to_sec1()),
                &Issuer::new(Purpose::Device.params(&self.point), key),
            ),
        };
        match (made, failure.take()) {
            (Ok(made), _) => Ok(Certificate::from_der(made.der().to_vec())),
            (Err(_), Some(failure)) => Err(CertificateError::Sign(failure)),
            (Err(error), None) => Err(CertificateError::Encode(error)),
        }
    }
}
