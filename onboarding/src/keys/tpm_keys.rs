//! The device's keys in a TPM.
//!
//! ```text
//! owner's storage key (primary, from the owner's seed, made anew each time it is needed)
//!   +-- device key       signs what the device says
//!   '-- agreement key    opens cipher blocks
//! endorsement hierarchy's storage key (primary, from the maker's seed, likewise)
//!   '-- attestation key  signs only what the TPM itself says
//! endorsement key (primary, from the maker's seed)
//! initial attestation key (primary, likewise; only where the machine's maker has certified it)
//! ```
//!
//! The attestation key stands in the endorsement hierarchy because a TPM blurs its reset counters and its firmware version
//! in what keys of the owner's hierarchy sign (TPM 2.0 Library, part 1, 36.7).
//!
//! The keys are kept as wrapped blobs in the identity file rather than at persistent handles: the file's rename is then
//! the only moment that decides, the few persistent slots stay free for others, and a wiped disk leaves no key behind. A
//! TPM has three object slots: the device key stays in one, since it signs every message; the others are loaded for a use
//! and flushed, under [`Tpm::reserve_slots`].
//!
//! What only this program may learn from the TPM (shared points, opened credentials) comes through a salted session. Its salt is
//! encrypted to the storage or endorsement key whose public area was kept with the identity, when nobody had reason yet to sit on the bus.

use std::sync::{Mutex, PoisonError};

use protocol::envelope::{SignError, Signer};
use protocol::keys::sha256;

use super::certificate::{Authority, Purpose};
use super::machine::{self, MachineStatement};
use super::store::{Stored, StoredCertificates, StoredKeys};
use super::{EndorsementMaker, IdentityError, endorsement};
use crate::tpm::template::{KeyUse, endorsement_key, matches, p256};
use crate::tpm::{Attested, CommandCode, Hierarchy, KeyBlob, Object, PcrSelection, Tpm, TpmError};
use crate::wire::{EccPoint, Public};

/// Wrapped keys and the TPM that can use them.
#[derive(Debug)]
pub(super) struct TpmKeys {
    tpm: Tpm,
    device: KeyBlob,
    attestation: KeyBlob,
    agreement: KeyBlob,
    /// Public area of the owner's storage key as it was when the keys were made; identities of former versions did not keep it.
    storage: Option<Public>,
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
        let (device, attestation, agreement, storage) = {
            let _slots = tpm.reserve_slots();
            let parent = |hierarchy| tpm.create_primary(hierarchy, &p256(KeyUse::Store));
            let (owner, endorsement) = (parent(Hierarchy::Owner)?, parent(Hierarchy::Endorsement)?);
            (
                tpm.create(&owner, &p256(KeyUse::Sign))?,
                tpm.create(&endorsement, &p256(KeyUse::Attest))?,
                tpm.create(&owner, &p256(KeyUse::Agree))?,
                owner.public().clone(),
            )
        };
        Ok(Self::from_parts(
            tpm,
            device,
            attestation,
            agreement,
            Some(storage),
        ))
    }

    /// Takes keys that were made earlier. Nothing is asked of the TPM yet.
    pub(super) fn from_parts(
        tpm: Tpm,
        device: KeyBlob,
        attestation: KeyBlob,
        agreement: KeyBlob,
        storage: Option<Public>,
    ) -> Self {
        Self {
            tpm,
            device,
            attestation,
            agreement,
            storage,
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
        let parent = self
            .tpm
            .create_primary(Hierarchy::Owner, &p256(KeyUse::Store))?;
        let key = self.tpm.load(&parent, &self.agreement)?;
        let known = self.storage.as_ref().unwrap_or(parent.public());
        let session = self.tpm.start_hmac_session(&parent, known)?;
        self.tpm.ecdh_zgen(&key, &session, other)
    }

    /// Quotes the PCRs of the boot.
    pub(super) fn quote(&self, qualifying: &[u8]) -> Result<Attested, TpmError> {
        let _slots = self.tpm.reserve_slots();
        let key = self.load(Hierarchy::Endorsement, &self.attestation)?;
        self.tpm.quote(key.handle(), qualifying, PcrSelection::BOOT)
    }

    /// Has the attestation key certify device key and agreement key.
    pub(super) fn certify(&self, qualifying: &[u8]) -> Result<[Attested; 2], TpmError> {
        // Three slots: at most two keys here and the storage key from which one of them is loaded.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let _slots = self.tpm.reserve_slots();
        *loaded = None;
        let first = self.load(Hierarchy::Owner, &self.agreement)?;
        let key = self.load(Hierarchy::Endorsement, &self.attestation)?;
        let agreement = self.tpm.certify(&first, &key, qualifying)?;
        drop(first);
        let device = loaded.insert(self.load(Hierarchy::Owner, &self.device)?);
        Ok([self.tpm.certify(device, &key, qualifying)?, agreement])
    }

    /// Has the initial attestation key and the attestation key certify each other, if the machine's maker has certified the former.
    pub(super) fn vouch(&self, qualifying: &[u8]) -> Result<Option<MachineStatement>, TpmError> {
        let _slots = self.tpm.reserve_slots();
        let certificates = machine::certificates(&self.tpm)?;
        if certificates.is_empty() {
            return Ok(None);
        }
        // Three slots: the device key, the attestation key, and the other one once the former's storage key has gone.
        let attestation = self.load(Hierarchy::Endorsement, &self.attestation)?;
        let Some(machine) = machine::find(&self.tpm, certificates)? else {
            return Ok(None);
        };
        let session = self.tpm.start_machine_session()?;
        let machine_certified =
            self.tpm
                .certify_by_policy(&machine.key, &session, &attestation, qualifying)?;
        Ok(Some(MachineStatement {
            public: machine.key.public().to_bytes(),
            attestation_certified: self.tpm.certify(&attestation, &machine.key, qualifying)?,
            machine_certified,
            certificate: machine.certificate,
            chain: machine.chain,
        }))
    }

    /// Opens a secret that was wrapped for this TPM's endorsement key and this attestation key. `endorsement` is that key as it was
    /// when the identity was made.
    pub(super) fn activate(
        &self,
        endorsement: &Public,
        wrapped: &[u8],
        seed: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        let _slots = self.tpm.reserve_slots();
        let key = self.load(Hierarchy::Endorsement, &self.attestation)?;
        let endorsement_key = self.tpm.create_primary(
            Hierarchy::Endorsement,
            &endorsement_key(endorsement::algorithm_of(endorsement)),
        )?;
        if endorsement::canonical(endorsement_key.public()) != *endorsement {
            return Err(TpmError::OtherKey {
                command: CommandCode::CREATE_PRIMARY,
                key: "endorsement key",
            });
        }
        self.tpm
            .activate_credential(&key, &endorsement_key, endorsement, wrapped, seed)
    }

    /// Public areas (TPMT_PUBLIC) of device, attestation and agreement key.
    pub(super) fn publics(&self) -> [&[u8]; 3] {
        [
            &self.device.public,
            &self.attestation.public,
            &self.agreement.public,
        ]
    }
}

impl Signer for TpmKeys {
    fn sign_p256_sha256(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        self.sign(message).map_err(SignError::new)
    }
}

/// Makes keys and certificates, to be written down by the caller.
pub(super) fn make(tpm: Tpm) -> Result<(TpmKeys, Stored), IdentityError> {
    let (endorsement_public, made_by_maker) = endorsement::find(&tpm)?;
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
            storage_public: keys
                .storage
                .as_ref()
                .map(Public::to_bytes)
                .unwrap_or_default(),
            endorsement_public: endorsement_public.to_bytes(),
            endorsement_maker,
        },
        certificates,
    );
    Ok((keys, stored))
}
