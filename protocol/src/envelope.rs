//! The signed envelope: every message of the API, both ways, travels in an `AuthContainer`.
//!
//! Reading is done in two steps, because the key to check with must first be found by the sender's hash:
//!
//! ```text
//! bytes --Envelope::parse--> Envelope --.sender()--> look the certificate up
//!                               |
//!                               '--.open(&Certificate)--> payload, signature checked
//! ```
//!
//! What is easy to get wrong, and is settled here once (EVE, OBJECT-SIGNING.md, and what its code does):
//!
//! - Signed are exactly the bytes of `protectedPayload.payload`; an empty payload is signed too.
//! - A P-256 signature is `r || s`, each padded to 32 bytes, never ASN.1 DER.
//! - `algo` names the length of `senderCertHash`, not the hash under the signature, which is always SHA-256.
//! - The two ends hash different bytes: a device is named by the SHA-256 of its certificate's DER, a controller by that of
//!   its certificate's PEM text exactly as it was sent in `ZCert.cert`. [`CertHash::of_der`], [`CertHash::of_pem_text`].
//! - `senderCert`, in messages signed with the onboarding key, is base64 of the certificate's PEM text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use prost::Message;
use thiserror::Error;

use crate::eve::auth::{AuthBody, AuthContainer};
pub use crate::keys::{
    CertHash, KeyError, SignError, Signer, SoftwareSigner, VerifyingKey, pem_to_der,
};

/// Largest container, in bytes, that a controller takes from a device. Log bundles are at most 64 KiB and attestation
/// requests 62 KiB; device information with a full hardware inventory is the largest message.
pub const MAX_REQUEST: usize = 1 << 20;
/// Largest container, in bytes, that a device takes from its controller. A configuration is always whole.
pub const MAX_REPLY: usize = 16 << 20;

/// Why a container was not made or not accepted.
#[derive(Debug, Error)]
pub enum EnvelopeError {
    /// More bytes than the caller allows.
    #[error("reading a signed message: {size} bytes are more than the limit of {limit}")]
    TooLarge {
        /// Bytes that came.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Not an `AuthContainer`, or not a message of the wanted type inside one.
    #[error("reading a signed message: not a valid {what}: {source}")]
    Decode {
        /// Name of the message type.
        what: &'static str,
        /// Where decoding stopped.
        source: prost::DecodeError,
    },
    /// `protectedPayload` is absent.
    #[error("reading a signed message: it has no protected payload")]
    NoPayload,
    /// The payload is encrypted as a whole, which only EVE's local operator console does.
    #[error(
        "reading a signed message: its payload is encrypted; only clear payloads are accepted here"
    )]
    Encrypted,
    /// `algo` and the length of `senderCertHash` do not fit each other, or `algo` is unknown.
    #[error(
        "reading a signed message: hash algorithm {algo} with a sender hash of {size} bytes (known: 1 with 16, 2 with 32)"
    )]
    SenderHash {
        /// `algo` as it came.
        algo: i32,
        /// Length of `senderCertHash` in bytes.
        size: usize,
    },
    /// `senderCert` is not base64.
    #[error("reading a signed message: its sender certificate is not base64 of PEM text: {0}")]
    SenderCert(base64::DecodeError),
    /// The message names another sender than the certificate that it is checked with.
    #[error("checking a signed message: it was signed by {named}, not by {wanted}")]
    OtherSender {
        /// Hash in the message.
        named: CertHash,
        /// Hash of the certificate at hand.
        wanted: CertHash,
    },
    /// The signature does not fit payload and key.
    #[error("checking a signed message from {sender}: the signature is wrong")]
    Signature {
        /// Hash in the message.
        sender: CertHash,
    },
    /// The signer (a TPM, say) failed.
    #[error("signing a message: {0}")]
    Sign(#[from] SignError),
}

/// A certificate as the envelope needs it: the name that messages give it, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    hash: CertHash,
    key: VerifyingKey,
}

impl Certificate {
    /// A device's or an onboarding certificate, which messages name by its DER.
    ///
    /// # Errors
    /// [`KeyError`] if it cannot be read or its key signs no messages.
    pub fn of_device_der(der: &[u8]) -> Result<Self, KeyError> {
        Ok(Self {
            hash: CertHash::of_der(der),
            key: VerifyingKey::from_certificate_der(der)?,
        })
    }

    /// A device's or an onboarding certificate given as PEM; messages still name it by its DER.
    ///
    /// # Errors
    /// [`KeyError`] if it cannot be read or its key signs no messages.
    pub fn of_device_pem(pem: &[u8]) -> Result<Self, KeyError> {
        Self::of_device_der(&pem_to_der(pem)?)
    }

    /// A controller's signing certificate, which messages name by its PEM text as it was sent.
    ///
    /// # Errors
    /// [`KeyError`] if it cannot be read or its key signs no messages.
    pub fn of_controller_pem(pem: &[u8]) -> Result<Self, KeyError> {
        Ok(Self {
            hash: CertHash::of_pem_text(pem),
            key: VerifyingKey::from_certificate_der(&pem_to_der(pem)?)?,
        })
    }

    /// The name that messages give it.
    #[must_use]
    pub fn hash(&self) -> &CertHash {
        &self.hash
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> &VerifyingKey {
        &self.key
    }
}

/// Puts `payload` into a signed container and gives its bytes, as they go into an HTTP body.
///
/// `sender` names the certificate of `signer`'s key. `sender_cert_pem` is given with the onboarding key only: the
/// receiver has not seen that certificate before.
///
/// # Errors
/// [`EnvelopeError::Sign`] if the signer fails.
pub fn seal(
    payload: Vec<u8>,
    sender: &CertHash,
    sender_cert_pem: Option<&str>,
    signer: &dyn Signer,
) -> Result<Vec<u8>, EnvelopeError> {
    let signature = signer.sign_p256_sha256(&payload)?;
    let container = AuthContainer {
        protected_payload: Some(AuthBody { payload }),
        algo: sender.algorithm().into(),
        sender_cert_hash: sender.as_bytes().to_vec(),
        signature_hash: signature.to_vec(),
        sender_cert: sender_cert_pem
            .map(|pem| BASE64.encode(pem).into_bytes())
            .unwrap_or_default(),
        cipher_context: None,
        cipher_data: None,
    };
    Ok(container.encode_to_vec())
}

/// Like [`seal`], for a message.
///
/// # Errors
/// [`EnvelopeError::Sign`] if the signer fails.
pub fn seal_message(
    message: &impl Message,
    sender: &CertHash,
    sender_cert_pem: Option<&str>,
    signer: &dyn Signer,
) -> Result<Vec<u8>, EnvelopeError> {
    seal(message.encode_to_vec(), sender, sender_cert_pem, signer)
}

/// A container that was read and whose signature has not been checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    payload: Vec<u8>,
    sender: CertHash,
    signature: Vec<u8>,
    sender_cert: Option<Vec<u8>>,
}

impl Envelope {
    /// Reads a container of at most `limit` bytes.
    ///
    /// # Errors
    /// Everything that can be wrong with its form; see [`EnvelopeError`].
    pub fn parse(bytes: &[u8], limit: usize) -> Result<Self, EnvelopeError> {
        if bytes.len() > limit {
            return Err(EnvelopeError::TooLarge {
                size: bytes.len(),
                limit,
            });
        }
        Self::from_container(decode(bytes, "AuthContainer")?)
    }

    /// Takes a container that came inside another message.
    ///
    /// # Errors
    /// Everything that can be wrong with its form; see [`EnvelopeError`].
    pub fn from_container(container: AuthContainer) -> Result<Self, EnvelopeError> {
        if container.cipher_data.is_some() || container.cipher_context.is_some() {
            return Err(EnvelopeError::Encrypted);
        }
        let sender = CertHash::from_wire(container.algo, &container.sender_cert_hash).ok_or(
            EnvelopeError::SenderHash {
                algo: container.algo,
                size: container.sender_cert_hash.len(),
            },
        )?;
        let sender_cert = match container.sender_cert.as_slice() {
            [] => None,
            text => Some(
                BASE64
                    .decode(text.trim_ascii())
                    .map_err(EnvelopeError::SenderCert)?,
            ),
        };
        Ok(Self {
            payload: container
                .protected_payload
                .ok_or(EnvelopeError::NoPayload)?
                .payload,
            sender,
            signature: container.signature_hash,
            sender_cert,
        })
    }

    /// Who claims to have signed it.
    #[must_use]
    pub fn sender(&self) -> &CertHash {
        &self.sender
    }

    /// The PEM text of the certificate that came along, if one did. It proves nothing by itself: the caller decides
    /// whether to trust it, and then opens the envelope with it.
    #[must_use]
    pub fn sender_cert_pem(&self) -> Option<&[u8]> {
        self.sender_cert.as_deref()
    }

    /// Checks that `certificate` is the one named and that its key made the signature; gives the payload.
    ///
    /// # Errors
    /// [`EnvelopeError::OtherSender`], [`EnvelopeError::Signature`].
    pub fn open(self, certificate: &Certificate) -> Result<Vec<u8>, EnvelopeError> {
        if !self.sender.matches(&certificate.hash) {
            return Err(EnvelopeError::OtherSender {
                named: self.sender,
                wanted: certificate.hash,
            });
        }
        if !certificate.key.verify(&self.payload, &self.signature) {
            return Err(EnvelopeError::Signature {
                sender: self.sender,
            });
        }
        Ok(self.payload)
    }

    /// Like [`Envelope::open`], and decodes the payload. `what` names the message in errors.
    ///
    /// # Errors
    /// [`EnvelopeError::OtherSender`], [`EnvelopeError::Signature`], [`EnvelopeError::Decode`].
    pub fn open_message<M: Message + Default>(
        self,
        certificate: &Certificate,
        what: &'static str,
    ) -> Result<M, EnvelopeError> {
        decode(&self.open(certificate)?, what)
    }

    /// The payload without any check of the signature: for replies whose content proves itself, as the certificate
    /// chains in the answer to `/certs` do.
    #[must_use]
    pub fn payload_unchecked(&self) -> &[u8] {
        &self.payload
    }
}

/// Decodes a message; `what` names it in errors.
///
/// # Errors
/// [`EnvelopeError::Decode`].
pub fn decode<M: Message + Default>(bytes: &[u8], what: &'static str) -> Result<M, EnvelopeError> {
    M::decode(bytes).map_err(|source| EnvelopeError::Decode { what, source })
}
