//! What a TPM's partner outside computes: key derivation, the mode of encryption, and secrets that only the holder of a key in the TPM
//! can open (TCG TPM 2.0 Library, part 1, 11.4.10, annexes B.10 and C.6).
//!
//! ```text
//! RSA key:   random seed --OAEP(label)--> encrypted secret
//! P-256 key: own ephemeral key x the TPM's point --KDFe(label)--> seed; encrypted secret = the ephemeral point
//! ```
//!
//! All with SHA-256, the name algorithm of every key here.

use std::convert::Infallible;

use aes::Aes128;
use aes::cipher::KeyIvInit as _;
use ring::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use ring::digest::{Context, SHA256};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use rsa::oaep::EncryptingKey;
use rsa::rand_core::{TryCryptoRng, TryRng};
use rsa::sha2::Sha256;
use rsa::traits::RandomizedEncryptor as _;
use rsa::{BoxedUint, PublicKey};

use crate::wire::{EccPoint, Public, PublicKind, Symmetric, Writer};

/// Bytes of a digest, of a seed, and of a session's nonces.
pub(crate) const DIGEST: usize = 32;
/// The public exponent of a key that names none (part 2, 12.2.3.5).
const DEFAULT_EXPONENT: u32 = 65_537;
/// The only modulus length that is taken, in bytes.
const MODULUS: usize = 256;

/// What a secret is shared for; the label goes into it, with the zero byte that ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Label {
    /// The salt of a session.
    Secret,
    /// The seed of a credential.
    Identity,
}

impl Label {
    fn bytes(self) -> &'static [u8] {
        match self {
            Self::Secret => b"SECRET\0",
            Self::Identity => b"IDENTITY\0",
        }
    }
}

/// Why no secret could be shared with the holder of a key.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The key is not one that secrets can be shared with.
    #[error(
        "the key is not a storage key of RSA with 2048 bits or on P-256, with AES-128 in CFB mode: {0}"
    )]
    Key(&'static str),
    /// No random bytes to be had.
    #[error("the random source failed")]
    Random,
}

/// A secret shared with the holder of a key in a TPM.
pub(crate) struct Shared {
    /// The secret itself.
    pub(crate) seed: [u8; DIGEST],
    /// What the TPM gets it from: the contents of a TPM2B_ENCRYPTED_SECRET.
    pub(crate) encrypted: Vec<u8>,
}

/// Fills an array with random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], ShareError> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| ShareError::Random)?;
    Ok(bytes)
}

/// Random bytes drawn beforehand, so that whoever consumes them cannot fail: OAEP wants a generator and takes exactly a digest.
struct Drawn([u8; DIGEST]);

impl TryRng for Drawn {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        // Whoever asks for more gets bytes that follow from these; OAEP does not.
        for chunk in out.chunks_mut(DIGEST) {
            for (to, from) in chunk.iter_mut().zip(self.0) {
                *to = from;
            }
            self.0 = digest(&[&self.0]);
        }
        Ok(())
    }
}

impl TryCryptoRng for Drawn {}

/// Makes a secret that only the holder of `public` learns from what is sent to it.
pub(crate) fn share(public: &Public, label: Label) -> Result<Shared, ShareError> {
    match &public.kind {
        PublicKind::Rsa {
            symmetric: Symmetric::AesCfb { bits: 128 },
            bits: 2048,
            exponent,
            modulus,
            ..
        } => share_rsa(*exponent, modulus, label),
        PublicKind::Ecc {
            symmetric: Symmetric::AesCfb { bits: 128 },
            ..
        } => {
            let point = public
                .p256_point()
                .ok_or(ShareError::Key("its point is not on P-256"))?;
            share_p256(&point, label)
        }
        PublicKind::Rsa { .. } | PublicKind::Ecc { .. } => {
            Err(ShareError::Key("its parameters are others"))
        }
    }
}

fn share_rsa(exponent: u32, modulus: &[u8], label: Label) -> Result<Shared, ShareError> {
    if modulus.len() != MODULUS {
        return Err(ShareError::Key("its modulus has another length"));
    }
    let exponent = match exponent {
        0 => DEFAULT_EXPONENT,
        other => other,
    };
    let number = |bytes: &[u8]| {
        BoxedUint::from_be_slice(bytes, 8 * bytes.len() as u32)
            .map_err(|_| ShareError::Key("its modulus is no number"))
    };
    let key = PublicKey::new(
        number(modulus)?,
        number(&u64::from(exponent).to_be_bytes())?,
    )
    .map_err(|_| ShareError::Key("its modulus or exponent is not that of an RSA key"))?;
    let seed = random()?;
    let encrypted = EncryptingKey::<Sha256>::new_with_label(key, label.bytes())
        .encrypt_with_rng(&mut Drawn(random()?), &seed)
        .map_err(|_| ShareError::Key("nothing can be encrypted to it"))?;
    Ok(Shared { seed, encrypted })
}

fn share_p256(point: &EccPoint, label: Label) -> Result<Shared, ShareError> {
    let own = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new())
        .map_err(|_| ShareError::Random)?;
    let public = own.compute_public_key().map_err(|_| ShareError::Random)?;
    let ephemeral = EccPoint::from_sec1(public.as_ref()).ok_or(ShareError::Random)?;
    let peer = UnparsedPublicKey::new(&ECDH_P256, point.to_sec1());
    let seed = agree_ephemeral(own, &peer, |z| kdfe(z, label, &ephemeral.x, &point.x))
        .map_err(|_| ShareError::Key("its point is not on P-256"))?;
    let mut writer = Writer::new();
    ephemeral.write(&mut writer);
    Ok(Shared {
        seed,
        encrypted: writer.into_bytes(),
    })
}

/// SHA-256 over parts.
pub(crate) fn digest(parts: &[&[u8]]) -> [u8; DIGEST] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    array(context.finish().as_ref())
}

/// HMAC-SHA256 over parts.
pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; DIGEST] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    array(context.sign().as_ref())
}

/// Whether `seen` is the code over `parts`. Takes the same time whatever differs.
pub(crate) fn mac_fits(key: &[u8], parts: &[&[u8]], seen: &[u8]) -> bool {
    hmac::verify(
        &hmac::Key::new(hmac::HMAC_SHA256, key),
        &parts.concat(),
        seen,
    )
    .is_ok()
}

fn array(bytes: &[u8]) -> [u8; DIGEST] {
    let mut out = [0; DIGEST];
    for (to, from) in out.iter_mut().zip(bytes) {
        *to = *from;
    }
    out
}

/// KDFe for one digest's length (11.4.10.3).
fn kdfe(z: &[u8], label: Label, u: &[u8], v: &[u8]) -> [u8; DIGEST] {
    digest(&[&1_u32.to_be_bytes(), z, label.bytes(), u, v])
}

/// KDFa for at most one digest's length: the first `N` bytes (11.4.10.2). `label` without its zero byte.
pub(crate) fn kdfa<const N: usize>(key: &[u8], label: &str, u: &[u8], v: &[u8]) -> [u8; N] {
    const { assert!(N <= DIGEST) };
    let bits = (N as u32).saturating_mul(8).to_be_bytes();
    let made = mac(
        key,
        &[&1_u32.to_be_bytes(), label.as_bytes(), &[0], u, v, &bits],
    );
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(made) {
        *to = from;
    }
    out
}

/// Encrypts in place: AES-128 in CFB mode.
pub(crate) fn encrypt(key: &[u8; 16], iv: &[u8; 16], data: &mut [u8]) {
    cfb_mode::Encryptor::<Aes128>::new(key.into(), iv.into()).encrypt(data);
}

/// Decrypts in place.
pub(crate) fn decrypt(key: &[u8; 16], iv: &[u8; 16], data: &mut [u8]) {
    cfb_mode::Decryptor::<Aes128>::new(key.into(), iv.into()).decrypt(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpm::template::{EkAlgorithm, KeyUse, endorsement_key, p256};

    #[test]
    fn keys_that_nothing_can_be_shared_with_are_refused() {
        // Templates: a modulus of zeros, a point of zeros; a key that signs.
        for public in [
            endorsement_key(EkAlgorithm::Rsa2048),
            endorsement_key(EkAlgorithm::P256),
            p256(KeyUse::Sign),
        ] {
            assert!(share(&public, Label::Identity).is_err(), "{public:?}");
        }
        let mut long = endorsement_key(EkAlgorithm::Rsa2048);
        if let PublicKind::Rsa { modulus, .. } = &mut long.kind {
            *modulus = vec![0xff; 257];
        }
        assert!(share(&long, Label::Identity).is_err());
        // An exponent of 1 would encrypt nothing.
        let mut open = endorsement_key(EkAlgorithm::Rsa2048);
        if let PublicKind::Rsa {
            modulus, exponent, ..
        } = &mut open.kind
        {
            *modulus = vec![0xff; 256];
            *exponent = 1;
        }
        assert!(share(&open, Label::Identity).is_err());
    }

    #[test]
    fn what_was_encrypted_is_decrypted() {
        let mut data = b"a text longer than one block of the cipher".to_vec();
        let clear = data.clone();
        encrypt(&[1; 16], &[2; 16], &mut data);
        assert_ne!(data, clear);
        decrypt(&[1; 16], &[2; 16], &mut data);
        assert_eq!(data, clear);
    }

    #[test]
    fn derived_keys_differ_by_label_and_context() {
        let first: [u8; 16] = kdfa(&[1], "STORAGE", b"u", b"");
        assert_ne!(first, kdfa(&[1], "INTEGRITY", b"u", b""));
        assert_ne!(first, kdfa(&[1], "STORAGE", b"v", b""));
        assert_ne!(first, kdfa(&[2], "STORAGE", b"u", b""));
    }

    #[test]
    fn drawn_bytes_do_not_repeat() {
        let mut drawn = Drawn([7; 32]);
        let (mut a, mut b) = ([0; 32], [0; 40]);
        drawn.try_fill_bytes(&mut a).unwrap();
        drawn.try_fill_bytes(&mut b).unwrap();
        assert_eq!(a, [7; 32]);
        assert_ne!(a[..], b[..32]);
        assert_ne!(b[..8], b[32..]);
    }
}
