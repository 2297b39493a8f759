//! The device's keys in a TPM.
//!
//! ```text
//! owner's storage key (primary, from the owner's seed, made anew each time it is needed)
//!   +-- device key       signs what the device says
//!   '-- agreement key    opens cipher blocks
//! endorsement hierarchy's storage key (primary, from the maker's seed, likewise)
//!   '-- attestation key  signs only what the TPM itself says
//! endorsement key (primary, from the maker's seed)
//! ```
//!
//! The attestation key stands in the endorsement hierarchy because a TPM blurs its reset counters and its firmware version
//! in what keys of the owner's hierarchy sign (TPM 2.0 Library, part 1, 36.7).
//!
//! The keys are kept as wrapped blobs in the identity file rather than at persistent handles: the file's rename is then
//! the only moment that decides, the few persistent slots stay free for others, and a wiped disk leaves no key behind. A
//! TPM has three object slots: the device key stays in one, since it signs every message; the others are loaded for a use
//! and flushed, under [`Tpm::reserve_slots`].

use std::sync::{Mutex, PoisonError};

use protocol::envelope::{SignError, Signer};
use protocol::keys::sha256;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::certificate::{Authority, Purpose};
use super::store::{Stored, StoredCertificates, StoredKeys};
use super::{Certificate, EndorsementMaker, IdentityError};
use crate::tpm::template::{
    EkAlgorithm, KeyUse, certificate_index, endorsement_key, matches, p256,
};
use crate::tpm::{Hierarchy, KeyBlob, Object, PcrSelection, Quoted, Tpm, TpmError};
use crate::wire::{EccPoint, Public, PublicKind};

/// Wrapped keys and the TPM that can use them.
#[derive(Debug)]
pub(super) struct TpmKeys {
    tpm: Tpm,
    device: KeyBlob,
    attestation: KeyBlob,
    agreement: KeyBlob,
    /// The device key in its slot.
    loaded: Mutex<Option<Object>>,
}

impl TpmKeys {
    /// Makes new keys.
    fn make(tpm: Tpm) -> Result<Self, IdentityError> {
        let missing = tpm.capabilities()?.missing();
        if !missing.is_empty() {
            return Err(IdentityError::UnsuitableTpm { missing });
        }
        let (device, attestation, agreement) = {
            let _slots = tpm.reserve_slots();
            let parent = |hierarchy| tpm.create_primary(hierarchy, &p256(KeyUse::Store));
            let (owner, endorsement) = (parent(Hierarchy::Owner)?, parent(Hierarchy::Endorsement)?);
            (
                tpm.create(&owner, &p256(KeyUse::Sign))?,
                tpm.create(&endorsement, &p256(KeyUse::Attest))?,
                tpm.create(&owner, &p256(KeyUse::Agree))?,
            )
        };
        Ok(Self::from_parts(tpm, device, attestation, agreement))
    }

    /// Takes keys that were made earlier. Nothing is asked of the TPM yet.
    pub(super) fn from_parts(
        tpm: Tpm,
        device: KeyBlob,
        attestation: KeyBlob,
        agreement: KeyBlob,
    ) -> Self {
        Self {
            tpm,
            device,
            attestation,
            agreement,
            loaded: Mutex::new(None),
        }
    }

    pub(super) fn tpm(&self) -> &Tpm {
        &self.tpm
    }

    /// The public points of device, attestation and agreement key; an error text if one is not such a key.
    pub(super) fn points(&self) -> Result<[EccPoint; 3], String> {
        let point = |blob: &KeyBlob, key: KeyUse| {
            let public = Public::parse(&blob.public).map_err(|error| error.to_string())?;
            match public.p256_point() {
                Some(point) if matches(&public, key) => Ok(point),
                _ => Err(format!("the key kept for {key:?} is another kind of key")),
            }
        };
        Ok([
            point(&self.device, KeyUse::Sign)?,
            point(&self.attestation, KeyUse::Attest)?,
            point(&self.agreement, KeyUse::Agree)?,
        ])
    }

    /// Loads a key under its storage key, which takes two slots for a moment and then one.
    fn load(&self, hierarchy: Hierarchy, blob: &KeyBlob) -> Result<Object, TpmError> {
        let parent = self.tpm.create_primary(hierarchy, &p256(KeyUse::Store))?;
        self.tpm.load(&parent, blob)
    }

    /// Signs with the device key. If the TPM has lost it from its slot (a reset of the TPM under a running system), it is
    /// loaded again, once.
    pub(super) fn sign(&self, message: &[u8]) -> Result<[u8; 64], TpmError> {
        let digest = sha256(message);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = loaded.as_ref() {
            match self.tpm.sign(key.handle(), &digest) {
                Err(error) if error.is_no_such_handle() => {
                    tracing::warn!("the TPM has lost the device key from its slot: {error}");
                }
                done => return done.map(|signature| signature.to_fixed()),
            }
        }
        let _slots = self.tpm.reserve_slots();
        *loaded = None;
        let key = loaded.insert(self.load(Hierarchy::Owner, &self.device)?);
        self.tpm
            .sign(key.handle(), &digest)
            .map(|signature| signature.to_fixed())
    }

    /// The point that the agreement key shares with `other`.
    pub(super) fn agree(&self, other: &EccPoint) -> Result<EccPoint, TpmError> {
        let _slots = self.tpm.reserve_slots();
        let key = self.load(Hierarchy::Owner, &self.agreement)?;
        self.tpm.ecdh_zgen(key.handle(), other)
    }

    /// Quotes the PCRs of the boot.
    pub(super) fn quote(&self, qualifying: &[u8]) -> Result<Quoted, TpmError> {
        let _slots = self.tpm.reserve_slots();
        let key = self.load(Hierarchy::Endorsement, &self.attestation)?;
        self.tpm.quote(key.handle(), qualifying, PcrSelection::BOOT)
    }

    /// Opens a secret that was wrapped for this TPM's endorsement key and this attestation key.
    pub(super) fn activate(
        &self,
        endorsement: &Public,
        wrapped: &[u8],
        seed: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        let algorithm = match endorsement.kind {
            PublicKind::Rsa { .. } => EkAlgorithm::Rsa2048,
            PublicKind::Ecc { .. } => EkAlgorithm::P256,
        };
        let _slots = self.tpm.reserve_slots();
        let key = self.load(Hierarchy::Endorsement, &self.attestation)?;
        let endorsement_key = self
            .tpm
            .create_primary(Hierarchy::Endorsement, &endorsement_key(algorithm))?;
        self.tpm
            .activate_credential(&key, &endorsement_key, wrapped, seed)
    }
}

impl Signer for TpmKeys {
    fn sign_p256_sha256(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        self.sign(message).map_err(SignError::new)
    }
}

/// Makes keys and certificates, to be written down by the caller.
pub(super) fn make(tpm: Tpm) -> Result<(TpmKeys, Stored), IdentityError> {
    let (endorsement_public, made_by_maker) = find_endorsement(&tpm)?;
    let keys = TpmKeys::make(tpm)?;
    let [device, attestation, agreement] = keys.points().map_err(IdentityError::Software)?;
    let authority = Authority::new(&keys, device);
    let (endorsement_maker, endorsement) = match (made_by_maker, endorsement_public.p256_point()) {
        (Some(certificate), _) => (EndorsementMaker::Manufacturer, certificate.der().to_vec()),
        (None, Some(point)) => (
            EndorsementMaker::Device,
            authority
                .certify(Purpose::Endorsement, &point)?
                .der()
                .to_vec(),
        ),
        (None, None) => (EndorsementMaker::Nobody, vec![]),
    };
    let certificates = StoredCertificates {
        device: authority.certify(Purpose::Device, &device)?.der().to_vec(),
        agreement: authority
            .certify(Purpose::Agreement, &agreement)?
            .der()
            .to_vec(),
        attestation: authority
            .certify(Purpose::Attestation, &attestation)?
            .der()
            .to_vec(),
        endorsement,
    };
    let stored = Stored::new(
        StoredKeys::Tpm {
            device: keys.device.clone(),
            attestation: keys.attestation.clone(),
            agreement: keys.agreement.clone(),
            endorsement_public: endorsement_public.to_bytes(),
            endorsement_maker,
        },
        certificates,
    );
    Ok((keys, stored))
}

/// Finds the endorsement key for which the TPM's maker left a certificate; without one, the P-256 key, which every TPM
/// makes quickly.
fn find_endorsement(tpm: &Tpm) -> Result<(Public, Option<Certificate>), TpmError> {
    let _slots = tpm.reserve_slots();
    for algorithm in [EkAlgorithm::P256, EkAlgorithm::Rsa2048] {
        let Some(data) = tpm.nv_read(certificate_index(algorithm))? else {
            continue;
        };
        let public = tpm
            .create_primary(Hierarchy::Endorsement, &endorsement_key(algorithm))?
            .public()
            .clone();
        match certificate_of(&data, &public) {
            Some(certificate) => return Ok((public, Some(certificate))),
            // A changed endorsement seed, or a template of the maker's own.
            None => tracing::warn!(
                "the EK certificate at NV index {:#x} does not belong to the {algorithm:?} endorsement key; left out",
                certificate_index(algorithm)
            ),
        }
    }
    let key = tpm.create_primary(Hierarchy::Endorsement, &endorsement_key(EkAlgorithm::P256))?;
    Ok((key.public().clone(), None))
}

/// The certificate at the front of `data` (an index may be larger than its certificate), if it speaks of `public`.
fn certificate_of(data: &[u8], public: &Public) -> Option<Certificate> {
    let (rest, certificate) = X509Certificate::from_der(data).ok()?;
    let same = match (certificate.public_key().parsed().ok()?, &public.kind) {
        (PublicKey::RSA(key), PublicKind::Rsa { modulus, .. }) => {
            let digits: Vec<u8> = key
                .modulus
                .iter()
                .copied()
                .skip_while(|byte| *byte == 0)
                .collect();
            digits == *modulus
        }
        (PublicKey::EC(point), PublicKind::Ecc { .. }) => {
            EccPoint::from_sec1(point.data()).is_some_and(|p| Some(p) == public.p256_point())
        }
        _ => false,
    };
    let length = data.len().checked_sub(rest.len())?;
    same.then(|| data.get(..length))
        .flatten()
        .map(|der| Certificate::from_der(der.to_vec()))
}
