//! What binds the flights together: one hash over everything that was said, and keys from the challenge's secret.
//!
//! ```text
//! transcript = SHA-256(name || H(Hello) || H(ChallengePayload) || H(device key) || H(agreement key))
//!                 |-> qualifying data of quote and of both certifications
//!                 '-> with H(EvidenceBody) under the MAC; under the delegate's signature on the grant
//! secret --HKDF--> MAC key
//!        '-------> pre-shared key of the sealed grant
//! ```
//!
//! Because quote, device key and agreement key carry the same transcript, none of them can come from another machine, another session
//! or another challenge than the rest.

use ring::hkdf::{HKDF_SHA256, Salt};
use ring::hmac;

use super::NONCE_BYTES;
use super::hpke::{self, HpkeError, Psk, Sealed};
use crate::cipher::{KeyAgreement, Point};
use crate::digest::Hasher;
use crate::keys::sha256;

const NAME: &[u8] = b"skerry enrolment 1 transcript";
const GRANT: &[u8] = b"skerry enrolment 1 grant";

/// The hash over everything said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Transcript([u8; 32]);

impl Transcript {
    /// Over the Hello and the challenge's payload as they were sent, and the device's two keys: with a TPM their public areas
    /// (TPMT_PUBLIC), without one their points.
    #[must_use]
    pub fn new(hello: &[u8], challenge: &[u8], device: &[u8], agreement: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(NAME);
        for part in [hello, challenge, device, agreement] {
            hasher.update(&sha256(part));
        }
        Self(*hasher.finish().bytes())
    }

    /// Its 32 bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The challenge's secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; NONCE_BYTES]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// Wraps it.
    #[must_use]
    pub fn new(bytes: [u8; NONCE_BYTES]) -> Self {
        Self(bytes)
    }

    /// From what a TPM activated; `None` if it has another length.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The secret itself, to wrap it for a device.
    #[must_use]
    pub fn expose(&self) -> &[u8; NONCE_BYTES] {
        &self.0
    }

    fn derive(&self, what: &[u8], transcript: &Transcript) -> [u8; 32] {
        let mut out = [0; 32];
        // 32 bytes are within what HKDF-SHA256 gives; were they not, zeros would open nothing that the other end sealed.
        if let Ok(okm) = Salt::new(HKDF_SHA256, transcript.bytes())
            .extract(&self.0)
            .expand(&[what], HKDF_SHA256)
        {
            let _ = okm.fill(&mut out);
        }
        out
    }

    fn mac_key(&self, transcript: &Transcript) -> hmac::Key {
        hmac::Key::new(
            hmac::HMAC_SHA256,
            &self.derive(b"skerry enrolment 1 mac", transcript),
        )
    }

    /// The MAC over an EvidenceBody as it is sent.
    #[must_use]
    pub fn mac(&self, transcript: &Transcript, body: &[u8]) -> [u8; 32] {
        let tag = hmac::sign(&self.mac_key(transcript), &signed(transcript, body));
        let mut out = [0; 32];
        out.copy_from_slice(tag.as_ref());
        out
    }

    /// Whether `mac` is the one over `body`. Takes the same time whatever differs.
    #[must_use]
    pub fn mac_fits(&self, transcript: &Transcript, body: &[u8], mac: &[u8]) -> bool {
        hmac::verify(&self.mac_key(transcript), &signed(transcript, body), mac).is_ok()
    }

    /// Seals a grant to this secret and the device's agreement key.
    ///
    /// # Errors
    /// [`HpkeError`].
    pub fn seal_grant(
        &self,
        transcript: &Transcript,
        agreement: &Point,
        grant: &[u8],
    ) -> Result<Sealed, HpkeError> {
        let key = self.derive(GRANT, transcript);
        let psk = Psk {
            secret: &key,
            id: transcript.bytes(),
        };
        hpke::seal(agreement, GRANT, Some(psk), transcript.bytes(), grant).map(|(sealed, _)| sealed)
    }

    /// Opens a grant with the device's agreement key.
    ///
    /// # Errors
    /// [`HpkeError`]: it is of another session, or for another device.
    pub fn open_grant(
        &self,
        transcript: &Transcript,
        own: &dyn KeyAgreement,
        agreement: &Point,
        sealed: &Sealed,
    ) -> Result<Vec<u8>, HpkeError> {
        let key = self.derive(GRANT, transcript);
        let psk = Psk {
            secret: &key,
            id: transcript.bytes(),
        };
        hpke::open(own, agreement, GRANT, Some(psk), transcript.bytes(), sealed)
            .map(|(clear, _)| clear)
    }
}

fn signed(transcript: &Transcript, body: &[u8]) -> [u8; 64] {
    let mut bytes = [0; 64];
    let (head, tail) = bytes.split_at_mut(32);
    head.copy_from_slice(transcript.bytes());
    tail.copy_from_slice(&sha256(body));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cipher::SoftwareAgreement;

    #[test]
    fn each_part_changes_the_transcript() {
        let parts: [&[u8]; 4] = [b"hello", b"challenge", b"device", b"agreement"];
        let of = |p: [&[u8]; 4]| Transcript::new(p[0], p[1], p[2], p[3]);
        let first = of(parts);
        for place in 0..4 {
            let mut changed = parts;
            changed[place] = b"another";
            assert_ne!(of(changed), first);
        }
        // Bytes cannot move from one part to the next.
        assert_ne!(of([b"hell", b"ochallenge", b"device", b"agreement"]), first);
    }

    #[test]
    fn a_mac_fits_its_own_secret_transcript_and_body_only() {
        let (secret, other) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let (first, second) = (
            Transcript::new(b"1", b"", b"", b""),
            Transcript::new(b"2", b"", b"", b""),
        );
        let mac = secret.mac(&first, b"body");
        assert!(secret.mac_fits(&first, b"body", &mac));
        assert!(!secret.mac_fits(&first, b"bodx", &mac));
        assert!(!secret.mac_fits(&second, b"body", &mac));
        assert!(!other.mac_fits(&first, b"body", &mac));
        assert!(!secret.mac_fits(&first, b"body", &mac[..31]));
        assert!(!secret.mac_fits(&first, b"body", &[]));
    }

    #[test]
    fn a_grant_opens_with_both_secrets_only() {
        let key = SoftwareAgreement::from_scalar(&[7; 32]).unwrap();
        let point = key.public_point().unwrap();
        let other = SoftwareAgreement::from_scalar(&[8; 32]).unwrap();
        let secret = Secret::new([1; 32]);
        let transcript = Transcript::new(b"1", b"", b"", b"");
        let sealed = secret.seal_grant(&transcript, &point, b"grant").unwrap();
        let open = |secret: &Secret, transcript: &Transcript, key: &SoftwareAgreement| {
            secret.open_grant(transcript, key, &key.public_point().unwrap(), &sealed)
        };
        assert_eq!(open(&secret, &transcript, &key).unwrap(), b"grant");
        assert!(open(&Secret::new([2; 32]), &transcript, &key).is_err());
        assert!(open(&secret, &transcript, &other).is_err());
        assert!(open(&secret, &Transcript::new(b"2", b"", b"", b""), &key).is_err());
    }
}
