//! Secrets on their way to a device: they travel in cipher blocks that only its own key opens, and only once its boot is proven.
//!
//! | the device | gets |
//! |---|---|
//! | boot trusted | everything, encrypted to its key exchange key |
//! | has no TPM | the same: somebody let it in knowing that |
//! | has a TPM, boot not proven | no secrets: datastores without their logins, and apps with secrets are held |
//! | boot refused | no config at all |

use operator_api::{Attestation, AttestationConclusion, AttestationLevel};
use prost::Message as _;
use protocol::cipher::{self, BlockKey, CipherError, KeyAgreement, Point};
use protocol::eve::common::{CipherBlock, CipherContext, EncryptionBlock};
use protocol::ids::DeviceId;
use protocol::keys::{CertHash, pem_to_der};
use uuid::Uuid;

/// Encrypts secrets to one device.
pub struct Envelope {
    context: CipherContext,
    key: BlockKey,
}

impl Envelope {
    /// For the device whose key exchange certificate is `certificate`, PEM as it came.
    ///
    /// # Errors
    /// [`CipherError`] if the certificate is not one that can be used.
    pub fn new(
        own: &dyn KeyAgreement,
        name: &CertHash,
        device: DeviceId,
        certificate: &[u8],
    ) -> Result<Self, CipherError> {
        let der = pem_to_der(certificate).map_err(|_| CipherError::Point)?;
        let peer = Point::from_certificate_der(&der)?;
        Self::between(
            own,
            name,
            device,
            &peer,
            &CertHash::of_pem_text(certificate),
        )
    }

    /// For the device whose key exchange key is `peer`, and whose certificate is called `hash`.
    ///
    /// # Errors
    /// What the holder of our own key gives.
    pub fn between(
        own: &dyn KeyAgreement,
        name: &CertHash,
        device: DeviceId,
        peer: &Point,
        hash: &CertHash,
    ) -> Result<Self, CipherError> {
        // Another certificate on either side is another context.
        let words = format!("cipher/{name}/{}", hash.short());
        let id = Uuid::new_v5(&device.0, words.as_bytes()).to_string();
        Ok(Self {
            context: cipher::context(&id, name, hash),
            key: BlockKey::agree(own, peer)?,
        })
    }

    /// One that is always the same.
    #[cfg(test)]
    pub(super) fn fixed() -> Self {
        let own = cipher::SoftwareAgreement::from_scalar(&[7; 32]).unwrap();
        let peer = cipher::SoftwareAgreement::from_scalar(&[8; 32]).unwrap();
        let name = |byte: u8| CertHash::from_bytes(&[byte; 16]).unwrap();
        let point = peer.public_point().unwrap();
        let device = DeviceId(Uuid::nil());
        Self::between(&own, &name(1), device, &point, &name(2)).unwrap()
    }

    /// Opens a block again.
    #[cfg(test)]
    pub(super) fn open(&self, block: &CipherBlock) -> EncryptionBlock {
        cipher::decrypt_secrets(&self.key, block).unwrap()
    }

    /// What goes into the config beside the blocks.
    #[must_use]
    pub fn context(&self) -> &CipherContext {
        &self.context
    }

    /// Encrypts a secret; `place` is where it stands in the config.
    #[must_use]
    pub fn seal(&self, place: &str, clear: &EncryptionBlock) -> CipherBlock {
        cipher::encrypt_steadily(
            &self.key,
            &self.context.context_id,
            place,
            &clear.encode_to_vec(),
        )
    }
}

/// Whether a device is given secrets.
#[must_use]
pub fn may_have(attestation: &Attestation) -> bool {
    match attestation.conclusion {
        AttestationConclusion::Trusted => true,
        AttestationConclusion::Unproven => {
            attestation.time.is_some() && attestation.level == AttestationLevel::None
        }
        AttestationConclusion::Refused => false,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn who_is_given_secrets() {
        use AttestationConclusion::{Refused, Trusted, Unproven};
        use AttestationLevel::{Bronze, None};
        for (conclusion, level, may) in [
            (Trusted, Bronze, true),
            (Unproven, None, true),
            (Unproven, Bronze, false),
            (Refused, None, false),
            (Refused, Bronze, false),
        ] {
            let attestation = Attestation {
                conclusion,
                level,
                time: Some(Timestamp::UNIX_EPOCH),
                ..Attestation::default()
            };
            assert_eq!(may_have(&attestation), may, "{conclusion} {level}");
        }
        assert!(
            !may_have(&Attestation::default()),
            "nothing was attested yet"
        );
    }
}
