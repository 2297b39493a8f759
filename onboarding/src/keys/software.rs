//! The device's keys where there is no TPM: in the identity file, marked as such. A copy of the file is the device, so a
//! controller trusts it least (level "none").

use p256::SecretKey;
use p256::pkcs8::DecodePrivateKey as _;
use protocol::cipher::{CipherError, KeyAgreement, Point, SoftwareAgreement};
use protocol::envelope::{SignError, Signer, SoftwareSigner};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

use super::IdentityError;
use super::certificate::{Authority, Purpose};
use super::store::{Stored, StoredCertificates, StoredKeys};
use crate::wire::EccPoint;

/// Keys in this process's memory.
pub(super) struct SoftwareKeys {
    device: SoftwareSigner,
    agreement: SoftwareAgreement,
}

impl SoftwareKeys {
    /// Takes keys in PKCS#8 DER.
    pub(super) fn from_pkcs8(device: &[u8], agreement: &[u8]) -> Result<Self, IdentityError> {
        let software = |error: String| IdentityError::Software(error);
        let agreement =
            SecretKey::from_pkcs8_der(agreement).map_err(|error| software(error.to_string()))?;
        Ok(Self {
            device: SoftwareSigner::from_pkcs8_der(device)
                .map_err(|error| software(error.to_string()))?,
            agreement: SoftwareAgreement::from_scalar(&agreement.to_bytes().into())
                .map_err(|error| software(error.to_string()))?,
        })
    }

    /// The public points of device and agreement key.
    pub(super) fn points(&self) -> Result<[EccPoint; 2], String> {
        let device = EccPoint::from_sec1(self.device.public_point())
            .ok_or("the device key has no point on P-256")?;
        let agreement = self
            .agreement
            .public_point()
            .map_err(|error| error.to_string())?;
        let agreement = EccPoint {
            x: *agreement.x(),
            y: *agreement.y(),
        };
        Ok([device, agreement])
    }
}

impl KeyAgreement for SoftwareKeys {
    fn agree(&self, peer: &Point) -> Result<Point, CipherError> {
        self.agreement.agree(peer)
    }
}

impl Signer for SoftwareKeys {
    fn sign_p256_sha256(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        self.device.sign_p256_sha256(message)
    }
}

/// Makes keys and certificates, to be written down by the caller.
pub(super) fn make() -> Result<(SoftwareKeys, Stored), IdentityError> {
    let random = SystemRandom::new();
    let new = || {
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .map(|key| key.as_ref().to_vec())
            .map_err(|_| IdentityError::Software("the random source failed".to_owned()))
    };
    let (device, agreement) = (new()?, new()?);
    let keys = SoftwareKeys::from_pkcs8(&device, &agreement)?;
    let [device_point, agreement_point] = keys.points().map_err(IdentityError::Software)?;
    let authority = Authority::new(&keys, device_point);
    let certificates = StoredCertificates {
        device: authority
            .certify(Purpose::Device, &device_point)?
            .der()
            .to_vec(),
        agreement: authority
            .certify(Purpose::Agreement, &agreement_point)?
            .der()
            .to_vec(),
        attestation: vec![],
        endorsement: vec![],
    };
    let stored = Stored::new(StoredKeys::Software { device, agreement }, certificates);
    Ok((keys, stored))
}
