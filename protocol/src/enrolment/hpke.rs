//! Hybrid public key encryption (RFC 9180), one message a context: DHKEM on P-256 with HKDF-SHA256, HKDF-SHA256, AES-256-GCM, in
//! the modes base and PSK.
//!
//! ```text
//! sender: ephemeral key x recipient's point --.
//!                                              >-- shared secret --key schedule (info, PSK)--> key, nonce, exporter
//! recipient: own key x encapsulated point ----'
//! ```
//!
//! It is here and not a library's because the recipient's private key may be in a TPM, which multiplies points but shows no key
//! ([`KeyAgreement`]); published implementations want the key itself. HKDF and AES-GCM are ring's, and so is the sender's ephemeral
//! key. The test vectors are the RFC's.

use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, LessSafeKey, Nonce, UnboundKey};
use ring::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk};
use ring::hmac;
use ring::rand::SystemRandom;
use thiserror::Error;

use crate::cipher::{CipherError, KeyAgreement, Point};

/// Length of an encapsulated key: an uncompressed point.
pub const ENCAPSULATED_BYTES: usize = 65;

/// `"KEM" || 0x0010`.
const KEM_SUITE: &[u8] = b"KEM\x00\x10";

/// Why something could not be sealed or opened.
#[derive(Debug, Error)]
pub enum HpkeError {
    /// Agreeing on the shared point failed.
    #[error("hybrid encryption: {0}")]
    Agreement(#[from] CipherError),
    /// The message is for another key, of another context, or changed on its way.
    #[error("hybrid encryption: the message is not for this key, or was changed on its way")]
    Open,
    /// No random bytes to be had.
    #[error("hybrid encryption: the random source failed")]
    Random,
    /// A length that the primitives do not take; it does not happen with messages within this crate's limits.
    #[error("hybrid encryption: a length is out of range")]
    Length,
}

/// A secret that both ends know beforehand, and its name.
#[derive(Clone, Copy)]
pub struct Psk<'a> {
    /// At least 32 random bytes.
    pub secret: &'a [u8],
    /// What both ends call it; not empty.
    pub id: &'a [u8],
}

/// A sealed message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The encapsulated key.
    pub encapsulated: [u8; ENCAPSULATED_BYTES],
    /// The message and its tag of 16 bytes.
    pub ciphertext: Vec<u8>,
}

/// The AEAD of a suite. Only tests use the shorter key, because the RFC's vectors do.
#[derive(Clone, Copy)]
struct Aead {
    id: u16,
    algorithm: &'static Algorithm,
}

const AES_256: Aead = Aead {
    id: 2,
    algorithm: &AES_256_GCM,
};
#[cfg_attr(not(test), allow(dead_code))]
const AES_128: Aead = Aead {
    id: 1,
    algorithm: &AES_128_GCM,
};

impl Aead {
    /// `"HPKE" || kem || kdf || aead`.
    fn suite(self) -> [u8; 10] {
        let [high, low] = self.id.to_be_bytes();
        [b'H', b'P', b'K', b'E', 0, 0x10, 0, 1, high, low]
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// `LabeledExtract` (section 4).
fn extract(salt: &[u8], suite: &[u8], label: &[u8], ikm: &[u8]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, salt));
    for part in [b"HPKE-v1".as_slice(), suite, label, ikm] {
        context.update(part);
    }
    let mut prk = [0; 32];
    prk.copy_from_slice(context.sign().as_ref());
    prk
}

/// `LabeledExpand` (section 4).
fn expand(
    prk: &[u8; 32],
    suite: &[u8],
    label: &[u8],
    info: &[u8],
    out: &mut [u8],
) -> Result<(), HpkeError> {
    let length = u16::try_from(out.len())
        .map_err(|_| HpkeError::Length)?
        .to_be_bytes();
    Prk::new_less_safe(HKDF_SHA256, prk)
        .expand(
            &[&length, b"HPKE-v1", suite, label, info],
            Length(out.len()),
        )
        .and_then(|okm| okm.fill(out))
        .map_err(|_| HpkeError::Length)
}

/// `ExtractAndExpand` of DHKEM (section 4.1).
fn shared_secret(
    x: &[u8],
    encapsulated: &[u8; ENCAPSULATED_BYTES],
    recipient: &Point,
) -> Result<[u8; 32], HpkeError> {
    let prk = extract(&[], KEM_SUITE, b"eae_prk", x);
    let context = [encapsulated.as_slice(), recipient.to_sec1().as_slice()].concat();
    let mut secret = [0; 32];
    expand(&prk, KEM_SUITE, b"shared_secret", &context, &mut secret)?;
    Ok(secret)
}

/// What both ends have after the key schedule (section 5.1).
struct Context {
    aead: Aead,
    key: LessSafeKey,
    nonce: [u8; 12],
    exporter: [u8; 32],
}

impl Context {
    fn new(
        aead: Aead,
        shared: &[u8; 32],
        info: &[u8],
        psk: Option<Psk<'_>>,
    ) -> Result<Self, HpkeError> {
        let suite = aead.suite();
        let (mode, secret, id): (u8, &[u8], &[u8]) = match psk {
            None => (0, &[], &[]),
            Some(psk) => (1, psk.secret, psk.id),
        };
        let mut context = vec![mode];
        context.extend_from_slice(&extract(&[], &suite, b"psk_id_hash", id));
        context.extend_from_slice(&extract(&[], &suite, b"info_hash", info));
        let prk = extract(shared, &suite, b"secret", secret);
        let mut key = vec![0; aead.algorithm.key_len()];
        expand(&prk, &suite, b"key", &context, &mut key)?;
        let mut nonce = [0; 12];
        expand(&prk, &suite, b"base_nonce", &context, &mut nonce)?;
        let mut exporter = [0; 32];
        expand(&prk, &suite, b"exp", &context, &mut exporter)?;
        let key = UnboundKey::new(aead.algorithm, &key).map_err(|_| HpkeError::Length)?;
        Ok(Self {
            aead,
            key: LessSafeKey::new(key),
            nonce,
            exporter,
        })
    }

    /// The first and only message: its nonce is the base nonce.
    fn seal(&self, aad: &[u8], clear: &[u8]) -> Result<Vec<u8>, HpkeError> {
        let mut data = clear.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(self.nonce),
                Aad::from(aad),
                &mut data,
            )
            .map_err(|_| HpkeError::Length)?;
        Ok(data)
    }

    fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, HpkeError> {
        let mut data = sealed.to_vec();
        let clear = self
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(self.nonce),
                Aad::from(aad),
                &mut data,
            )
            .map_err(|_| HpkeError::Open)?
            .len();
        data.truncate(clear);
        Ok(data)
    }
}

/// Gives further secrets of a context (section 5.3).
pub struct Exporter {
    suite: [u8; 10],
    secret: [u8; 32],
}

impl Exporter {
    /// 32 bytes that only the two ends know, one value a `context`.
    ///
    /// # Errors
    /// [`HpkeError::Length`], which does not happen with short contexts.
    pub fn export(&self, context: &[u8]) -> Result<[u8; 32], HpkeError> {
        let mut out = [0; 32];
        expand(&self.secret, &self.suite, b"sec", context, &mut out)?;
        Ok(out)
    }
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exporter(..)")
    }
}

impl From<&Context> for Exporter {
    fn from(context: &Context) -> Self {
        Self {
            suite: context.aead.suite(),
            secret: context.exporter,
        }
    }
}

/// Seals `clear` to whoever has the private key of `recipient`.
///
/// # Errors
/// [`HpkeError::Random`]; [`HpkeError::Agreement`] if the point is unusable.
pub fn seal(
    recipient: &Point,
    info: &[u8],
    psk: Option<Psk<'_>>,
    aad: &[u8],
    clear: &[u8],
) -> Result<(Sealed, Exporter), HpkeError> {
    let random = SystemRandom::new();
    let own = EphemeralPrivateKey::generate(&ECDH_P256, &random).map_err(|_| HpkeError::Random)?;
    let public = own.compute_public_key().map_err(|_| HpkeError::Random)?;
    let encapsulated =
        <[u8; ENCAPSULATED_BYTES]>::try_from(public.as_ref()).map_err(|_| HpkeError::Length)?;
    let peer = UnparsedPublicKey::new(&ECDH_P256, recipient.to_sec1());
    let shared = agree_ephemeral(own, &peer, |x| shared_secret(x, &encapsulated, recipient))
        .map_err(|_| HpkeError::Agreement(CipherError::Point))??;
    let context = Context::new(AES_256, &shared, info, psk)?;
    let sealed = Sealed {
        encapsulated,
        ciphertext: context.seal(aad, clear)?,
    };
    Ok((sealed, Exporter::from(&context)))
}

/// Opens what was sealed to `own`, whose public point is `point`.
///
/// # Errors
/// [`HpkeError::Agreement`] if the encapsulated key is no point or the holder of the key fails; [`HpkeError::Open`].
pub fn open(
    own: &dyn KeyAgreement,
    point: &Point,
    info: &[u8],
    psk: Option<Psk<'_>>,
    aad: &[u8],
    sealed: &Sealed,
) -> Result<(Vec<u8>, Exporter), HpkeError> {
    open_with(AES_256, own, point, info, psk, aad, sealed)
}

fn open_with(
    aead: Aead,
    own: &dyn KeyAgreement,
    point: &Point,
    info: &[u8],
    psk: Option<Psk<'_>>,
    aad: &[u8],
    sealed: &Sealed,
) -> Result<(Vec<u8>, Exporter), HpkeError> {
    let peer = Point::from_sec1(&sealed.encapsulated)?;
    let agreed = own.agree(&peer)?;
    let shared = shared_secret(agreed.x(), &sealed.encapsulated, point)?;
    let context = Context::new(aead, &shared, info, psk)?;
    Ok((
        context.open(aad, &sealed.ciphertext)?,
        Exporter::from(&context),
    ))
}

impl Sealed {
    /// From its parts on the wire; `None` if the encapsulated key has another length.
    #[must_use]
    pub fn from_parts(encapsulated: &[u8], ciphertext: &[u8]) -> Option<Self> {
        Some(Self {
            encapsulated: encapsulated.try_into().ok()?,
            ciphertext: ciphertext.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests;
