//! TPM2_MakeCredential without a TPM: a secret that only one TPM can open, and only if it also holds the attestation key that is named
//! (TCG TPM 2.0 Library, part 1, 24).
//!
//! ```text
//! seed --KDFa("STORAGE", name)--> key:  secret --AES-128-CFB--> encrypted identity
//!      '-KDFa("INTEGRITY")------> key:  HMAC(encrypted identity, name)        '--> blob
//! ```

use crate::tpm::crypto::{self, DIGEST, Label, ShareError};
use crate::wire::{Name, Public, Writer};

/// Why a secret could not be wrapped for a TPM.
#[derive(Debug, thiserror::Error)]
#[error("wrapping a secret for an endorsement key: {0}")]
pub struct CredentialError(#[from] ShareError);

/// A wrapped secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The contents of a TPM2B_ID_OBJECT.
    pub blob: Vec<u8>,
    /// The contents of a TPM2B_ENCRYPTED_SECRET.
    pub seed: Vec<u8>,
}

/// Wraps `secret` for the TPM with this endorsement key and the object named `name` in it.
///
/// # Errors
/// [`CredentialError`] if the key is not RSA-2048 or P-256 with AES-128-CFB, or there is no randomness.
pub fn make(
    endorsement: &Public,
    name: &Name,
    secret: &[u8; DIGEST],
) -> Result<Credential, CredentialError> {
    let shared = crypto::share(endorsement, Label::Identity)?;
    let mut identity = Writer::new();
    identity.sized(secret);
    let mut identity = identity.into_bytes();
    // The seed is fresh, so an initial value of zeros serves once (part 1, 24.4).
    let key = crypto::kdfa(&shared.seed, "STORAGE", &name.0, &[]);
    crypto::encrypt(&key, &[0; 16], &mut identity);
    let key: [u8; DIGEST] = crypto::kdfa(&shared.seed, "INTEGRITY", &[], &[]);
    let mut blob = Writer::new();
    blob.sized(&crypto::mac(&key, &[&identity, &name.0]))
        .bytes(&identity);
    Ok(Credential {
        blob: blob.into_bytes(),
        seed: shared.encrypted,
    })
}
