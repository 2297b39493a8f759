//! Which endorsement key a device uses, and what its TPM holds of certificates for it.
//!
//! ```text
//! P-256 with its maker's certificate, else RSA with its maker's certificate, else P-256
//! ```
//!
//! P-256 comes first because a primary key is made anew each time it is used, and discrete TPMs take seconds to find the primes of an RSA
//! key. All choices lie in the TPM, so a wiped disk makes the same one again.

use x509_parser::oid_registry::asn1_rs::{Oid, oid};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::RSAPublicKey;

use super::Certificate;
use crate::tpm::template::{EkAlgorithm, certificate_index, endorsement_key};
use crate::tpm::{Handle, Hierarchy, Tpm, TpmError};
use crate::wire::{Curve, EccPoint, Public, PublicKind};

/// NV indexes for certificates between an EK certificate and its root (EK Credential Profile, 2.2.1.5.2).
const CHAIN: std::ops::RangeInclusive<u32> = 0x01c0_0100..=0x01c0_01ff;
/// Most bytes of a chain that are read: some five certificates.
const MAX_CHAIN: usize = 16 << 10;

/// rsaEncryption and id-RSAES-OAEP: some makers use the latter, with parameters, for what is an RSA key all the same.
const RSA_KEYS: [Oid<'static>; 2] = [oid!(1.2.840.113549.1.1.1), oid!(1.2.840.113549.1.1.7)];
/// The prime field curve P-256.
const P256: Oid<'static> = oid!(1.2.840.10045.3.1.7);

/// The template that a kept endorsement key was made after.
pub(super) fn algorithm_of(public: &Public) -> EkAlgorithm {
    match public.kind {
        PublicKind::Rsa { .. } => EkAlgorithm::Rsa2048,
        PublicKind::Ecc { .. } => EkAlgorithm::P256,
    }
}

/// The key with its coordinates in full length. Some TPMs leave out leading zeros, and one key must have one name.
pub(super) fn canonical(public: &Public) -> Public {
    let mut public = public.clone();
    if let (
        Some(point),
        PublicKind::Ecc {
            curve: Curve::P256,
            x,
            y,
            ..
        },
    ) = (public.p256_point(), &mut public.kind)
    {
        *x = point.x.to_vec();
        *y = point.y.to_vec();
    }
    public
}

/// Finds the endorsement key for which the TPM's maker left a certificate; without one, the P-256 key.
pub(super) fn find(tpm: &Tpm) -> Result<(Public, Option<Certificate>), TpmError> {
    let _slots = tpm.reserve_slots();
    for algorithm in [EkAlgorithm::P256, EkAlgorithm::Rsa2048] {
        let Some(data) = tpm.nv_read(certificate_index(algorithm))? else {
            continue;
        };
        let public = make(tpm, algorithm)?;
        match certificate_of(&data, &public) {
            Some(certificate) => return Ok((public, Some(certificate))),
            // A changed endorsement seed, or a template of the maker's own.
            None => tracing::warn!(
                "the EK certificate at NV index {:#x} does not belong to the {algorithm:?} endorsement key; left out",
                certificate_index(algorithm)
            ),
        }
    }
    Ok((make(tpm, EkAlgorithm::P256)?, None))
}

fn make(tpm: &Tpm, algorithm: EkAlgorithm) -> Result<Public, TpmError> {
    let key = tpm.create_primary(Hierarchy::Endorsement, &endorsement_key(algorithm))?;
    Ok(canonical(key.public()))
}

/// The certificate at the front of `data` (an index may be larger than its certificate), if it speaks of `public`.
fn certificate_of(data: &[u8], public: &Public) -> Option<Certificate> {
    let (rest, certificate) = X509Certificate::from_der(data).ok()?;
    let length = data.len().checked_sub(rest.len())?;
    is_for(&certificate, public)
        .then(|| data.get(..length))
        .flatten()
        .map(|der| Certificate::from_der(der.to_vec()))
}

/// Whether a certificate is for this key.
#[must_use]
pub fn is_for(certificate: &X509Certificate<'_>, public: &Public) -> bool {
    let info = certificate.public_key();
    let bits = &info.subject_public_key.data;
    match &public.kind {
        PublicKind::Rsa {
            modulus, exponent, ..
        } => {
            let Ok((rest, key)) = RSAPublicKey::from_der(bits) else {
                return false;
            };
            let exponent = match exponent {
                0 => 65_537,
                other => u64::from(*other),
            };
            let digits = key
                .modulus
                .iter()
                .position(|byte| *byte != 0)
                .and_then(|start| key.modulus.get(start..));
            rest.is_empty()
                && RSA_KEYS.contains(&info.algorithm.algorithm)
                && digits == Some(modulus.as_slice())
                && key.try_exponent() == Ok(exponent)
        }
        PublicKind::Ecc { .. } => {
            let curve = info
                .algorithm
                .parameters
                .as_ref()
                .and_then(|p| p.as_oid().ok());
            curve == Some(P256)
                && EccPoint::from_sec1(bits).is_some_and(|p| Some(p) == public.p256_point())
        }
    }
}

/// The certificates that the TPM holds beside that of its endorsement key: one after the other, over as many indexes as it takes.
/// What is no certificate ends the list.
pub(super) fn chain(tpm: &Tpm) -> Result<Vec<Vec<u8>>, TpmError> {
    let mut bytes = vec![];
    for handle in tpm.handles(Handle(*CHAIN.start()))? {
        if !CHAIN.contains(&handle.0) || bytes.len() >= MAX_CHAIN {
            break;
        }
        bytes.extend(tpm.nv_read(handle.0)?.unwrap_or_default());
    }
    let mut certificates = vec![];
    let mut left = bytes.as_slice();
    while let Ok((rest, _)) = X509Certificate::from_der(left) {
        let length = left.len().saturating_sub(rest.len());
        certificates.push(left.get(..length).unwrap_or_default().to_vec());
        left = rest;
    }
    Ok(certificates)
}
