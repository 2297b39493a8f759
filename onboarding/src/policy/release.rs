//! Documents that the image build signs: a DSSE envelope (Dead Simple Signing Envelope, version 1) around JSON.
//!
//! ```text
//! payload bytes --PAE(type, payload)--> what is signed: "DSSEv1 <length> <type> <length> <payload>"
//! envelope: {"payloadType": type, "payload": base64, "signatures": [{"keyid": ..., "sig": base64 of r || s}]}
//! ```
//!
//! The signature is over the exact bytes of the payload, so nothing needs a canonical form of JSON; and over their type, so that no other
//! document that this key ever signs can be taken for this one.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use protocol::cipher::Point;
use protocol::digest::Digest;
use protocol::keys::{SignError, Signer, VerifyingKey};
use serde::{Deserialize, Serialize};

/// Longest envelope, in bytes.
pub const MAX_ENVELOPE: usize = 64 << 10;
/// Longest payload, in bytes.
pub(super) const MAX_PAYLOAD: usize = 16 << 10;
/// Longest name of a key in an envelope, in bytes. It is a hint and never looked at.
const MAX_KEY_ID: usize = 256;

/// The public key of whoever releases images: a point on P-256. As text its uncompressed form in 130 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReleaseKey([u8; 65]);

/// The text or the bytes are no such key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a release key: a point on P-256 in 130 hexadecimal digits that begin with 04 is needed"
)]
pub struct NotAKey(String);

impl ReleaseKey {
    /// Takes an uncompressed point.
    ///
    /// # Errors
    /// [`NotAKey`] if it is anything else, or not on the curve.
    pub fn from_point(point: &[u8]) -> Result<Self, NotAKey> {
        match (<[u8; 65]>::try_from(point), Point::from_sec1(point)) {
            (Ok(bytes), Ok(_)) => Ok(Self(bytes)),
            _ => Err(NotAKey(beginning(&hex::encode(
                point.get(..66.min(point.len())).unwrap_or_default(),
            )))),
        }
    }

    /// The uncompressed point.
    #[must_use]
    pub fn point(&self) -> &[u8; 65] {
        &self.0
    }

    /// Its name: the SHA-256 of its uncompressed point.
    #[must_use]
    pub fn id(&self) -> Digest {
        Digest::of(&self.0)
    }
}

fn beginning(text: &str) -> String {
    text.chars().take(140).collect()
}

impl FromStr for ReleaseKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let mut point = [0; 65];
        hex::decode_to_slice(text, &mut point).map_err(|_| NotAKey(beginning(text)))?;
        Self::from_point(&point)
    }
}

impl TryFrom<String> for ReleaseKey {
    type Error = NotAKey;

    fn try_from(text: String) -> Result<Self, NotAKey> {
        text.parse()
    }
}

impl From<ReleaseKey> for String {
    fn from(key: ReleaseKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for ReleaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ReleaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReleaseKey({})", self.id())
    }
}

/// Why an envelope is not taken.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// It is longer than it may be.
    #[error("it has {size} bytes, at most {limit} are read")]
    TooLong {
        /// Its length.
        size: usize,
        /// The most.
        limit: usize,
    },
    /// It is no envelope.
    #[error("it is no DSSE envelope: {0}")]
    Json(#[from] serde_json::Error),
    /// It holds another kind of document.
    #[error("it holds a {found:?}, not a {wanted:?}")]
    Type {
        /// What it holds.
        found: String,
        /// What is wanted.
        wanted: &'static str,
    },
    /// The base64 of a part is broken.
    #[error("its {0} is not base64")]
    Base64(&'static str),
    /// There is not exactly one signature.
    #[error("it has {0} signatures, exactly one is needed")]
    Signatures(usize),
    /// The signature does not fit.
    #[error("its signature is not that of release key {0}: it was changed after it was signed")]
    Signature(Digest),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wire {
    payload_type: String,
    payload: String,
    signatures: Vec<WireSignature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSignature {
    #[serde(default)]
    keyid: String,
    sig: String,
}

/// An envelope taken apart, its signature not yet checked.
pub(super) struct Envelope {
    pub(super) payload: Vec<u8>,
    kind: &'static str,
    signature: Vec<u8>,
}

impl Envelope {
    pub(super) fn read(bytes: &[u8], kind: &'static str) -> Result<Self, EnvelopeError> {
        within(bytes, MAX_ENVELOPE)?;
        let wire: Wire = serde_json::from_slice(bytes)?;
        if wire.payload_type != kind {
            return Err(EnvelopeError::Type {
                found: wire.payload_type.chars().take(80).collect(),
                wanted: kind,
            });
        }
        let [signature] = wire.signatures.as_slice() else {
            return Err(EnvelopeError::Signatures(wire.signatures.len()));
        };
        within(signature.keyid.as_bytes(), MAX_KEY_ID)?;
        let payload = STANDARD
            .decode(&wire.payload)
            .map_err(|_| EnvelopeError::Base64("payload"))?;
        within(&payload, MAX_PAYLOAD)?;
        let signature = STANDARD
            .decode(&signature.sig)
            .map_err(|_| EnvelopeError::Base64("signature"))?;
        Ok(Self {
            payload,
            kind,
            signature,
        })
    }

    pub(super) fn check(&self, key: &ReleaseKey) -> Result<(), EnvelopeError> {
        let signed = signed_bytes(self.kind, &self.payload);
        if VerifyingKey::P256(key.0).verify(&signed, &self.signature) {
            Ok(())
        } else {
            Err(EnvelopeError::Signature(key.id()))
        }
    }
}

fn within(bytes: &[u8], limit: usize) -> Result<(), EnvelopeError> {
    match bytes.len() {
        size if size > limit => Err(EnvelopeError::TooLong { size, limit }),
        _ => Ok(()),
    }
}

/// The envelope as text, one line.
pub(super) fn seal(
    kind: &'static str,
    payload: &[u8],
    key: &ReleaseKey,
    signer: &dyn Signer,
) -> Result<Vec<u8>, SignError> {
    let signature = signer.sign_p256_sha256(&signed_bytes(kind, payload))?;
    let wire = Wire {
        payload_type: kind.to_owned(),
        payload: STANDARD.encode(payload),
        signatures: vec![WireSignature {
            keyid: key.id().to_string(),
            sig: STANDARD.encode(signature),
        }],
    };
    let mut text = serde_json::to_vec_pretty(&wire).map_err(SignError::new)?;
    text.push(b'\n');
    Ok(text)
}

/// DSSE's pre-authentication encoding.
fn signed_bytes(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_as_in_the_specifications_example() {
        assert_eq!(
            signed_bytes("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        for text in ["", "04", &"04".repeat(65), &"zz".repeat(65)] {
            assert!(text.parse::<ReleaseKey>().is_err(), "{text}");
        }
    }
}
