//! Keys: what signs messages, and what checks them.
//!
//! Private keys of a device live in its TPM, so signing goes through the trait [`Signer`]. The controller's key and the
//! onboarding key are files: [`SoftwareSigner`].

use std::error::Error as StdError;
use std::fmt;

use ring::digest;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey};
use thiserror::Error;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::eve::common::HashAlgorithm;

/// Why a key or the certificate around it cannot be used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// A certificate cannot be read.
    #[error("reading a certificate: {0}")]
    Certificate(String),
    /// A certificate's key is of a kind that signs no messages.
    #[error("reading a certificate: its key is neither ECDSA on P-256 nor RSA")]
    Kind,
    /// A private key cannot be read.
    #[error("reading a private key: {0}; it must be a P-256 key in PKCS#8")]
    Private(String),
}

/// Failure of a [`Signer`].
#[derive(Debug, Error)]
#[error("{0}")]
pub struct SignError(Box<dyn StdError + Send + Sync>);

impl SignError {
    /// Wraps whatever the signer's own error is.
    pub fn new(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// Whoever holds a P-256 private key: a TPM on the device, a file on the controller.
pub trait Signer: Send + Sync {
    /// Signs `message`: ECDSA on P-256 over its SHA-256. The result is `r || s`, big-endian, each padded to 32 bytes.
    ///
    /// # Errors
    /// Whatever keeps the holder of the key from signing.
    fn sign_p256_sha256(&self, message: &[u8]) -> Result<[u8; 64], SignError>;
}

/// A signing key in memory.
pub struct SoftwareSigner {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl SoftwareSigner {
    /// Reads a P-256 key from PKCS#8 in DER.
    ///
    /// # Errors
    /// [`KeyError::Private`] if it is anything else.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let pair =
            EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, der, &random)
                .map_err(|error| KeyError::Private(error.to_string()))?;
        Ok(Self { pair, random })
    }

    /// Reads a P-256 key from PKCS#8 in PEM (`BEGIN PRIVATE KEY`).
    ///
    /// # Errors
    /// [`KeyError::Private`] if it is anything else.
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, KeyError> {
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes())
            .map_err(|error| KeyError::Private(error.to_string()))?;
        if block.label != "PRIVATE KEY" {
            return Err(KeyError::Private(format!("a PEM block {:?}", block.label)));
        }
        Self::from_pkcs8_der(&block.contents)
    }

    /// The public point, uncompressed: `04 || X || Y`, 65 bytes.
    #[must_use]
    pub fn public_point(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }
}

impl fmt::Debug for SoftwareSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SoftwareSigner({})", hex::encode(self.public_point()))
    }
}

impl Signer for SoftwareSigner {
    fn sign_p256_sha256(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        let made = self
            .pair
            .sign(&self.random, message)
            .map_err(|_| SignError::new("the random source failed"))?;
        <[u8; 64]>::try_from(made.as_ref()).map_err(SignError::new)
    }
}

/// The name of a certificate on the wire: SHA-256, whole or its first 16 bytes.
///
/// What is hashed depends on whose certificate it is, and where it is named:
///
/// | certificate | named in | hashed |
/// |---|---|---|
/// | device's, onboarding | `AuthContainer.senderCertHash` | DER |
/// | controller's signing | `AuthContainer.senderCertHash` | PEM text as it stands in `ZCert.cert` |
/// | any | `ZCert.certHash`, cipher contexts | PEM text as it stands in `ZCert.cert`, first 16 bytes |
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CertHash {
    /// All 32 bytes (hash algorithm 2).
    Full([u8; 32]),
    /// The first 16 bytes (hash algorithm 1).
    Short([u8; 16]),
}

impl CertHash {
    /// Whole hash of a certificate's DER.
    #[must_use]
    pub fn of_der(der: &[u8]) -> Self {
        Self::Full(sha256(der))
    }

    /// Whole hash of a certificate's PEM text, byte for byte as it is sent: a final newline counts.
    #[must_use]
    pub fn of_pem_text(pem: &[u8]) -> Self {
        Self::Full(sha256(pem))
    }

    /// Only the first 16 bytes.
    #[must_use]
    pub fn short(&self) -> Self {
        match self {
            Self::Full([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..]) => Self::Short([
                *a, *b, *c, *d, *e, *f, *g, *h, *i, *j, *k, *l, *m, *n, *o, *p,
            ]),
            Self::Short(_) => *self,
        }
    }

    /// Whether both name the same certificate; a short hash matches a full one that begins with it.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self == other || (self.short() == other.short() && (self.is_short() || other.is_short()))
    }

    fn is_short(&self) -> bool {
        matches!(self, Self::Short(_))
    }

    /// The hash's bytes, 16 or 32.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Full(bytes) => bytes,
            Self::Short(bytes) => bytes,
        }
    }

    /// How the wire calls a hash of this length.
    #[must_use]
    pub fn algorithm(&self) -> HashAlgorithm {
        match self {
            Self::Full(_) => HashAlgorithm::Sha25632bytes,
            Self::Short(_) => HashAlgorithm::Sha25616bytes,
        }
    }

    /// Reads a hash whose algorithm (1 or 2) fits its length (16 or 32 bytes).
    #[must_use]
    pub fn from_wire(algorithm: i32, bytes: &[u8]) -> Option<Self> {
        match HashAlgorithm::try_from(algorithm) {
            Ok(HashAlgorithm::Sha25632bytes) => bytes.try_into().ok().map(Self::Full),
            Ok(HashAlgorithm::Sha25616bytes) => bytes.try_into().ok().map(Self::Short),
            _ => None,
        }
    }

    /// Reads a hash by its length alone, where the wire names no algorithm.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes
            .try_into()
            .map(Self::Full)
            .or_else(|_| bytes.try_into().map(Self::Short))
            .ok()
    }
}

impl fmt::Display for CertHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.as_bytes()))
    }
}

/// A public key that checks messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyingKey {
    /// Uncompressed point on P-256: `04 || X || Y`.
    P256([u8; 65]),
    /// PKCS#1 `RSAPublicKey` in DER, 2048 to 8192 bits. Foreign controllers may have one; we never do.
    Rsa(Vec<u8>),
}

impl VerifyingKey {
    /// The key in a certificate.
    ///
    /// # Errors
    /// [`KeyError::Certificate`], [`KeyError::Kind`].
    pub fn from_certificate_der(der: &[u8]) -> Result<Self, KeyError> {
        let (rest, certificate) = X509Certificate::from_der(der)
            .map_err(|error| KeyError::Certificate(error.to_string()))?;
        if !rest.is_empty() {
            return Err(KeyError::Certificate(format!(
                "{} bytes follow it",
                rest.len()
            )));
        }
        let info = certificate.public_key();
        let bits: &[u8] = &info.subject_public_key.data;
        match info.algorithm.algorithm.to_id_string().as_str() {
            // RFC 5480 section 2.1.1: id-ecPublicKey with the named curve secp256r1.
            "1.2.840.10045.2.1" => {
                let curve = info
                    .algorithm
                    .parameters
                    .as_ref()
                    .and_then(|any| any.as_oid().ok());
                if curve.map(|oid| oid.to_id_string()).as_deref() != Some("1.2.840.10045.3.1.7") {
                    return Err(KeyError::Kind);
                }
                match <[u8; 65]>::try_from(bits) {
                    Ok(point) if point.first() == Some(&4) => Ok(Self::P256(point)),
                    _ => Err(KeyError::Kind),
                }
            }
            // RFC 8017 appendix A.1: rsaEncryption.
            "1.2.840.113549.1.1.1" => Ok(Self::Rsa(bits.to_vec())),
            _ => Err(KeyError::Kind),
        }
    }

    /// Checks `signature` over the SHA-256 of `message`. Gives whether it fits.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::P256(point) => UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                .verify(message, signature)
                .is_ok(),
            Self::Rsa(key) => UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, key)
                .verify(message, signature)
                .is_ok(),
        }
    }
}

/// The DER of the first PEM block in a text, which must be a certificate.
///
/// # Errors
/// [`KeyError::Certificate`] if there is none.
pub fn pem_to_der(pem: &[u8]) -> Result<Vec<u8>, KeyError> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem)
        .map_err(|error| KeyError::Certificate(error.to_string()))?;
    if block.label != "CERTIFICATE" {
        return Err(KeyError::Certificate(format!(
            "a PEM block {:?} is no certificate",
            block.label
        )));
    }
    Ok(block.contents)
}

/// SHA-256 of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}
