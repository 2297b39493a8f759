//! Who the device is: its keys and their certificates, made once and found again at every start.
//!
//! ```text
//! open_or_create:  identity file?  --no-->  make keys in the TPM (or in software), certify, write the file whole
//!                       | yes                                       |
//!                       v                                           v
//!                  load, check that certificates and keys fit  -> Identity
//! ```
//!
//! An identity stays what it was made as: one made in software stays that, also when a TPM turns up later, and one made
//! in a TPM is never replaced by one in software because the TPM does not answer today.

mod certificate;
mod endorsement;
mod error;
mod machine;
mod software;
mod store;
mod tpm_keys;

use std::path::Path;

use protocol::cipher::{CipherError, KeyAgreement, Point};
use protocol::envelope::{SignError, Signer};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub use certificate::{Certificate, CertificateError};
pub use endorsement::is_for;
pub use error::IdentityError;
pub use machine::MachineStatement;

use crate::tpm::{Attested, Tpm, TpmError};
use crate::wire::{EccPoint, Public};
use software::SoftwareKeys;
use store::{Stored, StoredKeys};
use tpm_keys::TpmKeys;

/// What protects the device's private keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Protection {
    /// A TPM: they never leave it.
    Tpm,
    /// Nothing but file permissions.
    Software,
}

/// Who certified the endorsement key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EndorsementMaker {
    /// The TPM's maker, in the TPM's NV memory.
    Manufacturer,
    /// The device key, for want of a better one, as EVE does.
    Device,
    /// Nobody.
    Nobody,
}

/// The TPM's own identity.
#[derive(Debug, Clone)]
pub struct Endorsement {
    /// Public area of the endorsement key. Its SHA-256 is what names this machine.
    pub public: Public,
    /// Its certificate, if anybody made one.
    pub certificate: Option<Certificate>,
    /// Who made the certificate.
    pub maker: EndorsementMaker,
}

#[derive(Debug)]
enum Keys {
    Tpm(TpmKeys),
    Software(SoftwareKeys),
}

impl std::fmt::Debug for SoftwareKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SoftwareKeys")
    }
}

/// The device's keys and certificates. Commands to the TPM run one after the other, so it may be shared by threads.
#[derive(Debug)]
pub struct Identity {
    keys: Keys,
    device: Certificate,
    agreement: Certificate,
    attestation: Option<Certificate>,
    endorsement: Option<Endorsement>,
}

impl Identity {
    /// Opens the identity kept below `dir`, or makes one: in `tpm` if there is one, else in software.
    ///
    /// # Errors
    /// [`IdentityError`]; an identity that is there but cannot be used is never replaced.
    pub fn open_or_create(dir: &Path, tpm: Option<Tpm>) -> Result<Self, IdentityError> {
        if let Some(stored) = store::read(dir)? {
            return Self::from_stored(&store::path(dir), stored, tpm);
        }
        let (keys, stored) = match tpm {
            Some(tpm) => {
                let (keys, stored) = tpm_keys::make(tpm)?;
                (Keys::Tpm(keys), stored)
            }
            None => {
                let (keys, stored) = software::make()?;
                (Keys::Software(keys), stored)
            }
        };
        store::write(dir, &stored)?;
        Self::assemble(&store::path(dir), keys, stored)
    }

    fn from_stored(path: &Path, stored: Stored, tpm: Option<Tpm>) -> Result<Self, IdentityError> {
        let keys = match (&stored.keys, tpm) {
            (
                StoredKeys::Tpm {
                    device,
                    attestation,
                    agreement,
                    storage_public,
                    ..
                },
                Some(tpm),
            ) => {
                let storage = match storage_public.as_slice() {
                    [] => None,
                    kept => Some(Public::parse(kept).map_err(|error| IdentityError::Damaged {
                        path: path.to_path_buf(),
                        what: format!("the storage key: {error}"),
                    })?),
                };
                let keys = TpmKeys::from_parts(
                    tpm,
                    device.clone(),
                    attestation.clone(),
                    agreement.clone(),
                    storage,
                );
                // Loads the device key, so that a TPM that does not know it is found out now.
                keys.sign(b"").map_err(|source| {
                    if source.is_foreign_key() {
                        IdentityError::ForeignTpm {
                            path: path.to_path_buf(),
                            source,
                        }
                    } else {
                        source.into()
                    }
                })?;
                Keys::Tpm(keys)
            }
            (StoredKeys::Tpm { .. }, None) => {
                return Err(IdentityError::TpmMissing {
                    path: path.to_path_buf(),
                });
            }
            (StoredKeys::Software { device, agreement }, _) => {
                Keys::Software(SoftwareKeys::from_pkcs8(device, agreement)?)
            }
        };
        Self::assemble(path, keys, stored)
    }

    /// Puts keys and certificates together, and checks that they fit.
    fn assemble(path: &Path, keys: Keys, stored: Stored) -> Result<Self, IdentityError> {
        let damaged = |what: String| IdentityError::Damaged {
            path: path.to_path_buf(),
            what,
        };
        let certificate = |der: Vec<u8>, point: &EccPoint, what: &str| match certified_point(&der) {
            Some(certified) if certified == *point => Ok(Certificate::from_der(der)),
            Some(_) => Err(damaged(format!(
                "the {what} certificate is for another key"
            ))),
            None => Err(damaged(format!("the {what} certificate cannot be read"))),
        };
        let certificates = stored.certificates;
        match (&keys, stored.keys) {
            (
                Keys::Tpm(inside),
                StoredKeys::Tpm {
                    endorsement_public,
                    endorsement_maker,
                    ..
                },
            ) => {
                let [device, attestation, agreement] = inside.points().map_err(damaged)?;
                let public = Public::parse(&endorsement_public)
                    .map_err(|error| damaged(format!("the endorsement key: {error}")))?;
                let endorsement = Endorsement {
                    public,
                    certificate: (!certificates.endorsement.is_empty())
                        .then(|| Certificate::from_der(certificates.endorsement)),
                    maker: endorsement_maker,
                };
                Ok(Self {
                    device: certificate(certificates.device, &device, "device")?,
                    agreement: certificate(certificates.agreement, &agreement, "agreement")?,
                    attestation: Some(certificate(
                        certificates.attestation,
                        &attestation,
                        "attestation",
                    )?),
                    endorsement: Some(endorsement),
                    keys,
                })
            }
            (Keys::Software(inside), _) => {
                let [device, agreement] = inside.points().map_err(damaged)?;
                Ok(Self {
                    device: certificate(certificates.device, &device, "device")?,
                    agreement: certificate(certificates.agreement, &agreement, "agreement")?,
                    attestation: None,
                    endorsement: None,
                    keys,
                })
            }
            (Keys::Tpm(_), StoredKeys::Software { .. }) => {
                Err(damaged("its keys are of two kinds".to_owned()))
            }
        }
    }

    /// What protects the private keys.
    #[must_use]
    pub fn protection(&self) -> Protection {
        match self.keys {
            Keys::Tpm(_) => Protection::Tpm,
            Keys::Software(_) => Protection::Software,
        }
    }

    /// The TPM that holds the keys.
    #[must_use]
    pub fn tpm(&self) -> Option<&Tpm> {
        match &self.keys {
            Keys::Tpm(keys) => Some(keys.tpm()),
            Keys::Software(_) => None,
        }
    }

    /// The device key's self-signed certificate: the device's name at a controller.
    #[must_use]
    pub fn device_certificate(&self) -> &Certificate {
        &self.device
    }

    /// The agreement key's certificate, signed by the device key.
    #[must_use]
    pub fn ecdh_certificate(&self) -> &Certificate {
        &self.agreement
    }

    /// The attestation key's certificate, signed by the device key; none without a TPM.
    #[must_use]
    pub fn attestation_certificate(&self) -> Option<&Certificate> {
        self.attestation.as_ref()
    }

    /// The TPM's own identity; none without a TPM.
    #[must_use]
    pub fn endorsement(&self) -> Option<&Endorsement> {
        self.endorsement.as_ref()
    }

    /// Has the TPM quote the PCRs 0 to 15 with the attestation key; `None` without a TPM.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn quote(&self, qualifying: &[u8]) -> Result<Option<Attested>, TpmError> {
        match &self.keys {
            Keys::Tpm(keys) => keys.quote(qualifying).map(Some),
            Keys::Software(_) => Ok(None),
        }
    }

    /// Has the attestation key certify the device key and the agreement key, in this order; `None` without a TPM.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn certify(&self, qualifying: &[u8]) -> Result<Option<[Attested; 2]>, TpmError> {
        match &self.keys {
            Keys::Tpm(keys) => keys.certify(qualifying).map(Some),
            Keys::Software(_) => Ok(None),
        }
    }

    /// Public areas (TPMT_PUBLIC) of device, attestation and agreement key, as the TPM gave them; `None` without a TPM.
    #[must_use]
    pub fn public_areas(&self) -> Option<[&[u8]; 3]> {
        match &self.keys {
            Keys::Tpm(keys) => Some(keys.publics()),
            Keys::Software(_) => None,
        }
    }

    /// The public points of device key and agreement key.
    #[must_use]
    pub fn points(&self) -> Option<[EccPoint; 2]> {
        Some([
            certified_point(self.device.der())?,
            certified_point(self.agreement.der())?,
        ])
    }

    /// Certificates, DER, that the TPM's maker left in the TPM beside that of the endorsement key; none without a TPM.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn endorsement_chain(&self) -> Result<Vec<Vec<u8>>, TpmError> {
        match &self.keys {
            Keys::Tpm(keys) => endorsement::chain(keys.tpm()),
            Keys::Software(_) => Ok(vec![]),
        }
    }

    /// Has the key by which the machine's maker names the machine and the attestation key certify each other; `None` without a TPM, or if
    /// the maker left no certificate for such a key in it.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn vouch(&self, qualifying: &[u8]) -> Result<Option<MachineStatement>, TpmError> {
        match &self.keys {
            Keys::Tpm(keys) => match keys.vouch(qualifying) {
                // It costs the level, and is no reason not to enrol.
                Err(error @ TpmError::Refused { .. }) => {
                    tracing::warn!(%error, "the TPM does not say what its machine's maker knows; left out");
                    Ok(None)
                }
                said => said,
            },
            Keys::Software(_) => Ok(None),
        }
    }

    /// Opens a secret that was wrapped for this TPM's endorsement key and this device's attestation key
    /// (TPM2_MakeCredential); `None` without a TPM.
    ///
    /// # Errors
    /// [`TpmError`]; the TPM refuses a secret that was wrapped for others.
    pub fn activate_credential(
        &self,
        wrapped: &[u8],
        seed: &[u8],
    ) -> Result<Option<Vec<u8>>, TpmError> {
        match (&self.keys, &self.endorsement) {
            (Keys::Tpm(keys), Some(endorsement)) => {
                keys.activate(&endorsement.public, wrapped, seed).map(Some)
            }
            _ => Ok(None),
        }
    }
}

impl Signer for Identity {
    fn sign_p256_sha256(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        match &self.keys {
            Keys::Tpm(keys) => keys.sign_p256_sha256(message),
            Keys::Software(keys) => keys.sign_p256_sha256(message),
        }
    }
}

impl KeyAgreement for Identity {
    /// Agrees with the agreement key, for cipher blocks.
    fn agree(&self, peer: &Point) -> Result<Point, CipherError> {
        match &self.keys {
            Keys::Tpm(keys) => {
                let peer = EccPoint {
                    x: *peer.x(),
                    y: *peer.y(),
                };
                let shared = keys
                    .agree(&peer)
                    .map_err(|error| CipherError::Agreement(error.to_string()))?;
                Point::from_coordinates(shared.x, shared.y)
            }
            Keys::Software(keys) => keys.agree(peer),
        }
    }
}

/// The P-256 point in a certificate.
fn certified_point(der: &[u8]) -> Option<EccPoint> {
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    EccPoint::from_sec1(&certificate.public_key().subject_public_key.data)
}
