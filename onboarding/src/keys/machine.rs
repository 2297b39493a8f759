//! What a machine's maker left in the TPM to name the machine: a certificate for the initial attestation key (IAK; TCG, TPM 2.0 Keys for
//! Device Identity and Attestation).
//!
//! ```text
//! NV 0x01c90000 ... --certificates--> make the key after the TCG's template --is one of them for it?--> the maker's word on this machine
//! ```
//!
//! The key is no object that is kept: it is made from the endorsement seed each time it is used, like the endorsement key. At which index
//! of the range the certificate lies differs (the specification gives numbers to policies only; emulators use those for the certificates),
//! so all of them are looked through.

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::endorsement::is_for;
use crate::tpm::template::machine_key;
use crate::tpm::{Attested, Handle, Hierarchy, NvAttributes, Object, Tpm, TpmError};

/// NV indexes for certificates and policies of a machine's keys (TCG, Registry of Reserved TPM 2.0 Handles and Localities).
const INDEXES: std::ops::RangeInclusive<u32> = 0x01c9_0000..=0x01c9_ffff;
/// Most indexes that are read, and most bytes in all.
const MAX_INDEXES: usize = 32;
const MAX_BYTES: usize = 48 << 10;
/// Most certificates that lead from the key's to its root.
const MAX_CHAIN: usize = 5;

/// What proves that a machine's maker knows the TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineStatement {
    /// Public area (TPMT_PUBLIC) of the initial attestation key.
    pub public: Vec<u8>,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// Certificates of authorities beside it, DER.
    pub chain: Vec<Vec<u8>>,
    /// The initial attestation key certifies the device's attestation key.
    pub attestation_certified: Attested,
    /// And is certified by it.
    pub machine_certified: Attested,
}

/// The key that the machine's maker certified, in a slot of the TPM.
pub(super) struct MachineKey {
    pub(super) key: Object,
    pub(super) certificate: Vec<u8>,
    pub(super) chain: Vec<Vec<u8>>,
}

/// The certificates that a machine's maker left in the TPM, one after the other.
pub(super) fn certificates(tpm: &Tpm) -> Result<Vec<Vec<u8>>, TpmError> {
    let (mut certificates, mut bytes) = (vec![], 0_usize);
    let handles = tpm.handles(Handle(*INDEXES.start()))?;
    for handle in handles.into_iter().take(MAX_INDEXES) {
        if !INDEXES.contains(&handle.0) || bytes >= MAX_BYTES {
            break;
        }
        let Some(data) = read(tpm, handle.0)? else {
            continue;
        };
        bytes = bytes.saturating_add(data.len());
        let mut left = data.as_slice();
        // An index may be longer than what is in it, or hold no certificate but a policy.
        while let Ok((rest, _)) = X509Certificate::from_der(left) {
            let length = left.len().saturating_sub(rest.len());
            certificates.push(left.get(..length).unwrap_or_default().to_vec());
            left = rest;
        }
    }
    Ok(certificates)
}

/// Reads an index, unless its maker has closed it: that is no reason not to enrol.
fn read(tpm: &Tpm, index: u32) -> Result<Option<Vec<u8>>, TpmError> {
    let open = NvAttributes::AUTH_READ.0 | NvAttributes::OWNER_READ.0;
    match tpm.nv_read_public(index)? {
        Some(public)
            if public.attributes.0 & open != 0
                && !public.attributes.has(NvAttributes::READ_LOCKED) =>
        {
            tpm.nv_read(index)
        }
        _ => Ok(None),
    }
}

/// Makes the initial attestation key, if one of the certificates is for it. One more slot is needed.
pub(super) fn find(tpm: &Tpm, certificates: Vec<Vec<u8>>) -> Result<Option<MachineKey>, TpmError> {
    let key = tpm.create_primary(Hierarchy::Endorsement, &machine_key())?;
    let (mut own, mut chain) = (None, vec![]);
    for der in certificates {
        let Ok((_, certificate)) = X509Certificate::from_der(&der) else {
            continue;
        };
        if own.is_none() && is_for(&certificate, key.public()) {
            own = Some(der);
        } else if certificate.is_ca() && chain.len() < MAX_CHAIN {
            chain.push(der);
        }
    }
    if own.is_none() {
        // The endorsement seed was changed, the template is the maker's own, or the certificates are for a signing key (IDevID).
        tracing::warn!(
            "no certificate of the machine's maker in the TPM is for its initial attestation key (P-256); left out"
        );
    }
    Ok(own.map(|certificate| MachineKey {
        key,
        certificate,
        chain,
    }))
}
