//! Cipher blocks: secrets inside a configuration, encrypted to one device.
//!
//! ```text
//!  controller's ECDH key  \                                        AES-256 in CFB mode,
//!                          > ECDH point (X, Y) -> SHA-256(X || Y) -> 128-bit feedback,   -> CipherBlock
//!  device's ECDH key      /                                        no padding, 16 bytes IV
//! ```
//!
//! A `CipherContext` in the configuration says which two certificates a block is made with; a block names its context.
//! What is easy to get wrong: the key is the hash of *both* coordinates of the shared point, each padded to 32 bytes,
//! while ordinary ECDH gives X alone (a TPM gives both). CFB does not notice changed bytes, so the hash of the clear
//! text, `clearTextSha256`, is required and checked.
//!
//! The same key derivation and mode, with an IV of zeros, wrap the vault key that a device leaves with its controller
//! (`AttestVolumeKeyData`): [`wrap_volume_key`], [`unwrap_volume_key`].

use std::fmt;

use aes::cipher::KeyIvInit as _;
use p256::elliptic_curve::sec1::{FromSec1Point as _, ToSec1Point as _};
use p256::pkcs8::DecodePrivateKey as _;
use prost::Message;
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use thiserror::Error;

use crate::eve::attest::AttestVolumeKeyData;
use crate::eve::common::{CipherBlock, CipherContext, EncryptionBlock};
use crate::eve::common::{EncryptionScheme, HashAlgorithm, KeyExchangeScheme};
use crate::keys::{CertHash, VerifyingKey, sha256};

/// Why a secret could not be encrypted or decrypted.
#[derive(Debug, Error)]
pub enum CipherError {
    /// The block names a context that the configuration does not hold.
    #[error("decrypting a block: its cipher context {0:?} is not in the configuration")]
    NoContext(String),
    /// The context asks for something else than ECDH and AES-256-CFB, or hashes of another kind.
    #[error(
        "decrypting a block: cipher context {id:?} wants key exchange {exchange}, encryption {encryption}, hash {hash}; only ECDH (1), AES-256-CFB (1) and SHA-256 (1 or 2) are known"
    )]
    Scheme {
        /// `contextId`.
        id: String,
        /// `keyExchangeScheme` as it came.
        exchange: i32,
        /// `encryptionScheme` as it came.
        encryption: i32,
        /// `hashScheme` as it came.
        hash: i32,
    },
    /// The context is made with a certificate that is not, or no longer, the device's.
    #[error(
        "decrypting a block: cipher context {id:?} is made with a certificate of the device, {hash}, that is not its present one"
    )]
    OtherCertificate {
        /// `contextId`.
        id: String,
        /// The hash in the context.
        hash: String,
    },
    /// The IV is not 16 bytes long.
    #[error("decrypting a block: its initial value has {0} bytes instead of 16")]
    InitialValue(usize),
    /// The block says no hash of the clear text, or a wrong one.
    #[error("decrypting a block: the clear text does not have the hash that the block names")]
    ClearText,
    /// The clear bytes are not the message that was expected.
    #[error("decrypting a block: the clear text is no {what}: {source}")]
    Decode {
        /// Name of the message type.
        what: &'static str,
        /// Where decoding stopped.
        source: prost::DecodeError,
    },
    /// A public point that is not on the curve.
    #[error("agreeing on a key: the other end's public key is no point on P-256")]
    Point,
    /// The holder of our private key failed.
    #[error("agreeing on a key: {0}")]
    Agreement(String),
    /// A private key cannot be read.
    #[error("reading an ECDH key: it must be a P-256 key in PKCS#8")]
    PrivateKey,
    /// No random bytes to be had.
    #[error("encrypting a block: the random source failed")]
    Random,
}

/// A point on P-256 other than infinity, in affine coordinates, big-endian, 32 bytes each.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Point {
    x: [u8; 32],
    y: [u8; 32],
}

impl Point {
    /// A point from its coordinates.
    ///
    /// # Errors
    /// [`CipherError::Point`] if it is not on the curve.
    pub fn from_coordinates(x: [u8; 32], y: [u8; 32]) -> Result<Self, CipherError> {
        let mut encoded = [4; 65];
        let (head, tail) = encoded.split_at_mut(33);
        if let Some(slot) = head.get_mut(1..) {
            slot.copy_from_slice(&x);
        }
        tail.copy_from_slice(&y);
        p256::PublicKey::from_sec1_bytes(&encoded).map_err(|_| CipherError::Point)?;
        Ok(Self { x, y })
    }

    /// The point in a certificate's public key.
    ///
    /// # Errors
    /// [`CipherError::Point`] if the certificate cannot be read or its key is not on P-256.
    pub fn from_certificate_der(der: &[u8]) -> Result<Self, CipherError> {
        match VerifyingKey::from_certificate_der(der) {
            Ok(VerifyingKey::P256(encoded)) => Self::from_sec1(&encoded),
            _ => Err(CipherError::Point),
        }
    }

    /// A point from its SEC 1 encoding, compressed or not.
    ///
    /// # Errors
    /// [`CipherError::Point`] if it is not on the curve.
    pub fn from_sec1(encoded: &[u8]) -> Result<Self, CipherError> {
        let key = p256::PublicKey::from_sec1_bytes(encoded).map_err(|_| CipherError::Point)?;
        Self::from_public_key(&key)
    }

    fn from_public_key(key: &p256::PublicKey) -> Result<Self, CipherError> {
        let encoded = key.to_sec1_point(false);
        match (encoded.x(), encoded.y()) {
            (Some(x), Some(y)) => Ok(Self {
                x: (*x).into(),
                y: (*y).into(),
            }),
            _ => Err(CipherError::Point),
        }
    }

    /// The SEC 1 encoding, uncompressed: `04 || X || Y`.
    #[must_use]
    pub fn to_sec1(&self) -> [u8; 65] {
        let mut encoded = [4; 65];
        let (head, tail) = encoded.split_at_mut(33);
        if let Some(slot) = head.get_mut(1..) {
            slot.copy_from_slice(&self.x);
        }
        tail.copy_from_slice(&self.y);
        encoded
    }

    /// X, big-endian.
    #[must_use]
    pub fn x(&self) -> &[u8; 32] {
        &self.x
    }

    /// Y, big-endian.
    #[must_use]
    pub fn y(&self) -> &[u8; 32] {
        &self.y
    }
}

impl fmt::Debug for Point {
    /// Says nothing of the coordinates: a shared point is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Point(..)")
    }
}

/// Whoever holds an ECDH private key on P-256: a TPM on the device (`TPM2_ECDH_ZGen`), a file on the controller.
pub trait KeyAgreement: Send + Sync {
    /// Multiplies `peer` with the private scalar and gives the whole resulting point.
    ///
    /// # Errors
    /// [`CipherError::Agreement`] with whatever keeps the holder of the key from doing it.
    fn agree(&self, peer: &Point) -> Result<Point, CipherError>;
}

/// An ECDH key in memory.
pub struct SoftwareAgreement(p256::SecretKey);

impl SoftwareAgreement {
    /// Reads a P-256 key from PKCS#8 in PEM.
    ///
    /// # Errors
    /// [`CipherError::PrivateKey`] if it is anything else.
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, CipherError> {
        p256::SecretKey::from_pkcs8_pem(pem)
            .map(Self)
            .map_err(|_| CipherError::PrivateKey)
    }

    /// Takes the private scalar, big-endian.
    ///
    /// # Errors
    /// [`CipherError::PrivateKey`] if it is zero or not below the group's order.
    pub fn from_scalar(scalar: &[u8; 32]) -> Result<Self, CipherError> {
        p256::SecretKey::from_slice(scalar)
            .map(Self)
            .map_err(|_| CipherError::PrivateKey)
    }

    /// The public point.
    ///
    /// # Errors
    /// [`CipherError::Point`], which does not happen with a valid key.
    pub fn public_point(&self) -> Result<Point, CipherError> {
        Point::from_public_key(&self.0.public_key())
    }
}

impl fmt::Debug for SoftwareAgreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SoftwareAgreement(..)")
    }
}

impl KeyAgreement for SoftwareAgreement {
    fn agree(&self, peer: &Point) -> Result<Point, CipherError> {
        let peer = p256::AffinePoint::from_sec1_point(&p256::Sec1Point::from_affine_coordinates(
            &peer.x.into(),
            &peer.y.into(),
            false,
        ))
        .into_option()
        .ok_or(CipherError::Point)?;
        let shared = p256::ProjectivePoint::from(peer) * *self.0.to_nonzero_scalar();
        let shared =
            p256::PublicKey::from_affine(shared.to_affine()).map_err(|_| CipherError::Point)?;
        Point::from_public_key(&shared)
    }
}

/// The AES key of a pair of ends.
#[derive(Clone)]
pub struct BlockKey([u8; 32]);

impl BlockKey {
    /// Agrees on the key with the other end.
    ///
    /// # Errors
    /// What [`KeyAgreement::agree`] gives.
    pub fn agree(own: &dyn KeyAgreement, peer: &Point) -> Result<Self, CipherError> {
        Ok(Self::from_shared(&own.agree(peer)?))
    }

    /// The key that follows from a shared point: SHA-256(X || Y).
    #[must_use]
    pub fn from_shared(point: &Point) -> Self {
        let mut both = [0; 64];
        let (x, y) = both.split_at_mut(32);
        x.copy_from_slice(&point.x);
        y.copy_from_slice(&point.y);
        Self(sha256(&both))
    }

    fn encrypt(&self, iv: &[u8; 16], bytes: &mut [u8]) {
        cfb_mode::Encryptor::<aes::Aes256>::new(&self.0.into(), &(*iv).into()).encrypt(bytes);
    }

    fn decrypt(&self, iv: &[u8; 16], bytes: &mut [u8]) {
        cfb_mode::Decryptor::<aes::Aes256>::new(&self.0.into(), &(*iv).into()).decrypt(bytes);
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockKey(..)")
    }
}

/// The context of blocks between two ends, as it goes into `EdgeDevConfig.cipherContexts`.
///
/// The hashes are the `certHash` values under which the two ECDH certificates were exchanged.
#[must_use]
pub fn context(id: &str, controller: &CertHash, device: &CertHash) -> CipherContext {
    CipherContext {
        context_id: id.to_owned(),
        hash_scheme: HashAlgorithm::Sha25616bytes.into(),
        key_exchange_scheme: KeyExchangeScheme::KeaEcdh.into(),
        encryption_scheme: EncryptionScheme::SaAes256Cfb.into(),
        device_cert_hash: device.short().as_bytes().to_vec(),
        controller_cert_hash: controller.short().as_bytes().to_vec(),
    }
}

/// Finds the context that a block names and checks that it is one we can work with.
///
/// # Errors
/// [`CipherError::NoContext`], [`CipherError::Scheme`], [`CipherError::OtherCertificate`] if it is made with another
/// certificate of the device than `device`.
pub fn find_context<'a>(
    contexts: &'a [CipherContext],
    block: &CipherBlock,
    device: &CertHash,
) -> Result<&'a CipherContext, CipherError> {
    let context = contexts
        .iter()
        .find(|context| context.context_id == block.cipher_context_id)
        .ok_or_else(|| CipherError::NoContext(block.cipher_context_id.clone()))?;
    if context.key_exchange_scheme() != KeyExchangeScheme::KeaEcdh
        || context.encryption_scheme() != EncryptionScheme::SaAes256Cfb
        || context.hash_scheme() == HashAlgorithm::Invalid
    {
        return Err(CipherError::Scheme {
            id: context.context_id.clone(),
            exchange: context.key_exchange_scheme,
            encryption: context.encryption_scheme,
            hash: context.hash_scheme,
        });
    }
    let named = CertHash::from_bytes(&context.device_cert_hash);
    if !named.is_some_and(|named| named.matches(device)) {
        return Err(CipherError::OtherCertificate {
            id: context.context_id.clone(),
            hash: hex::encode(&context.device_cert_hash),
        });
    }
    Ok(context)
}

/// Encrypts `clear` into a block of context `context_id`, with a random IV.
///
/// # Errors
/// [`CipherError::Random`].
pub fn encrypt(key: &BlockKey, context_id: &str, clear: &[u8]) -> Result<CipherBlock, CipherError> {
    let mut iv = [0; 16];
    SystemRandom::new()
        .fill(&mut iv)
        .map_err(|_| CipherError::Random)?;
    Ok(encrypt_with(key, context_id, clear, iv))
}

/// Encrypts `clear` into a block of context `context_id` so that the same secret always gives the same block: a configuration with
/// nothing new in it then stays byte for byte what it was. The IV follows from key, `place` and `clear` (as in SIV, RFC 5297), so two
/// different secrets under one key do not share one; whoever sees two blocks learns no more than whether they are the same. `place` says
/// where the secret stands, so that even that shows of one place only.
#[must_use]
pub fn encrypt_steadily(
    key: &BlockKey,
    context_id: &str,
    place: &str,
    clear: &[u8],
) -> CipherBlock {
    let own = hmac::Key::new(hmac::HMAC_SHA256, &key.0);
    let mut context = hmac::Context::with_key(&own);
    context.update(b"skerry cipher block 1 iv\0");
    context.update(&sha256(place.as_bytes()));
    context.update(clear);
    let mut iv = [0; 16];
    for (to, from) in iv.iter_mut().zip(context.sign().as_ref()) {
        *to = *from;
    }
    encrypt_with(key, context_id, clear, iv)
}

fn encrypt_with(key: &BlockKey, context_id: &str, clear: &[u8], iv: [u8; 16]) -> CipherBlock {
    let mut data = clear.to_vec();
    key.encrypt(&iv, &mut data);
    CipherBlock {
        cipher_context_id: context_id.to_owned(),
        initial_value: iv.to_vec(),
        cipher_data: data,
        clear_text_sha256: sha256(clear).to_vec(),
    }
}

/// Decrypts a block and checks the hash of the clear text.
///
/// # Errors
/// [`CipherError::InitialValue`], [`CipherError::ClearText`].
pub fn decrypt(key: &BlockKey, block: &CipherBlock) -> Result<Vec<u8>, CipherError> {
    let iv = <[u8; 16]>::try_from(block.initial_value.as_slice())
        .map_err(|_| CipherError::InitialValue(block.initial_value.len()))?;
    let mut data = block.cipher_data.clone();
    key.decrypt(&iv, &mut data);
    if sha256(&data).as_slice() != block.clear_text_sha256.as_slice() {
        return Err(CipherError::ClearText);
    }
    Ok(data)
}

/// Decrypts the kind of block that holds credentials or user data.
///
/// # Errors
/// Those of [`decrypt`], and [`CipherError::Decode`].
pub fn decrypt_secrets(
    key: &BlockKey,
    block: &CipherBlock,
) -> Result<EncryptionBlock, CipherError> {
    EncryptionBlock::decode(decrypt(key, block)?.as_slice()).map_err(|source| CipherError::Decode {
        what: "EncryptionBlock",
        source,
    })
}

/// Wraps a vault key so that only this device can unwrap it: what goes, serialised, into `AttestVolumeKey.key`.
///
/// `key` is agreed between the TPM's ECDH key and the public point of the device certificate. The IV of zeros is
/// harmless because a pair of keys ever wraps one random vault key.
#[must_use]
pub fn wrap_volume_key(key: &BlockKey, vault_key: &[u8]) -> AttestVolumeKeyData {
    let mut data = vault_key.to_vec();
    key.encrypt(&[0; 16], &mut data);
    AttestVolumeKeyData {
        encrypted_key: data,
        digest_sha256: sha256(vault_key).to_vec(),
        ..Default::default()
    }
}

/// Unwraps what [`wrap_volume_key`] made.
///
/// # Errors
/// [`CipherError::ClearText`] if it was wrapped with another key, or changed.
pub fn unwrap_volume_key(
    key: &BlockKey,
    wrapped: &AttestVolumeKeyData,
) -> Result<Vec<u8>, CipherError> {
    let mut data = wrapped.encrypted_key.clone();
    key.decrypt(&[0; 16], &mut data);
    if sha256(&data).as_slice() != wrapped.digest_sha256.as_slice() {
        return Err(CipherError::ClearText);
    }
    Ok(data)
}
