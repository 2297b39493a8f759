//! The templates from which this crate's keys are made.
//!
//! Endorsement keys follow the TCG EK Credential Profile (templates L-1 and L-2): the TPM's maker used the same ones, so
//! the same primary seed gives the key that the EK certificate speaks of. The storage key follows the TCG TPM v2.0
//! Provisioning Guidance with P-256. None of our keys has an authorization value; `noDA` keeps them usable while the TPM
//! is locked out because of somebody else's objects.

use crate::wire::{Attributes, Curve, EccScheme, Public, PublicKind, RsaScheme, Symmetric};

/// Policy of the endorsement keys: PolicySecret by the endorsement hierarchy (EK Credential Profile, B.6.2, PolicyA for
/// SHA-256).
pub const EK_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// What every key of this crate is: made inside this TPM, under this parent, never to leave.
const INSIDE: Attributes = Attributes::FIXED_TPM
    .with(Attributes::FIXED_PARENT)
    .with(Attributes::SENSITIVE_DATA_ORIGIN);

/// The kinds of keys that this crate makes, besides the endorsement keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyUse {
    /// Signs anything: the device key.
    Sign,
    /// Signs only what the TPM itself made: the attestation key.
    Attest,
    /// Agrees on shared points: the key for cipher blocks.
    Agree,
    /// Protects the other keys: the storage key, a primary key of the owner hierarchy.
    Store,
}

/// The template for a P-256 key of the given use.
#[must_use]
pub fn p256(key: KeyUse) -> Public {
    let (attributes, symmetric, scheme, unique) = match key {
        KeyUse::Sign => (
            Attributes::SIGN,
            Symmetric::None,
            EccScheme::EcdsaSha256,
            vec![],
        ),
        KeyUse::Attest => (
            Attributes::SIGN.with(Attributes::RESTRICTED),
            Symmetric::None,
            EccScheme::EcdsaSha256,
            vec![],
        ),
        KeyUse::Agree => (Attributes::DECRYPT, Symmetric::None, EccScheme::Any, vec![]),
        KeyUse::Store => (
            Attributes::DECRYPT.with(Attributes::RESTRICTED),
            Symmetric::AesCfb { bits: 128 },
            EccScheme::Any,
            vec![0; 32],
        ),
    };
    Public {
        attributes: INSIDE
            .with(Attributes::USER_WITH_AUTH)
            .with(Attributes::NO_DA)
            .with(attributes),
        policy: vec![],
        kind: PublicKind::Ecc {
            symmetric,
            scheme,
            curve: Curve::P256,
            x: unique.clone(),
            y: unique,
        },
    }
}

/// True if `public` is a key that the TPM made after the template of `key`: same attributes, scheme and curve, and a
/// point. A verifier asks this of an attestation key; the device of a key found again.
#[must_use]
pub fn matches(public: &Public, key: KeyUse) -> bool {
    let template = p256(key);
    match (&public.kind, &template.kind) {
        (
            PublicKind::Ecc {
                symmetric,
                scheme,
                curve,
                ..
            },
            PublicKind::Ecc {
                symmetric: wanted_symmetric,
                scheme: wanted_scheme,
                curve: wanted_curve,
                ..
            },
        ) => {
            public.attributes == template.attributes
                && public.policy == template.policy
                && symmetric == wanted_symmetric
                && scheme == wanted_scheme
                && curve == wanted_curve
                && public.p256_point().is_some()
        }
        _ => false,
    }
}

/// The algorithm of an endorsement key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EkAlgorithm {
    /// RSA with 2048 bits: every TPM 2.0 for PCs has it.
    Rsa2048,
    /// Elliptic curve P-256.
    P256,
}

/// The TCG's default template of an endorsement key.
#[must_use]
pub fn endorsement_key(algorithm: EkAlgorithm) -> Public {
    let symmetric = Symmetric::AesCfb { bits: 128 };
    Public {
        attributes: INSIDE
            .with(Attributes::ADMIN_WITH_POLICY)
            .with(Attributes::RESTRICTED)
            .with(Attributes::DECRYPT),
        policy: EK_POLICY.to_vec(),
        kind: match algorithm {
            EkAlgorithm::Rsa2048 => PublicKind::Rsa {
                symmetric,
                scheme: RsaScheme::Any,
                bits: 2048,
                exponent: 0,
                modulus: vec![0; 256],
            },
            EkAlgorithm::P256 => PublicKind::Ecc {
                symmetric,
                scheme: EccScheme::Any,
                curve: Curve::P256,
                x: vec![0; 32],
                y: vec![0; 32],
            },
        },
    }
}

/// NV index of the EK certificate that belongs to the template (EK Credential Profile, 2.2.1.4).
#[must_use]
pub fn certificate_index(algorithm: EkAlgorithm) -> u32 {
    match algorithm {
        EkAlgorithm::Rsa2048 => 0x01c0_0002,
        EkAlgorithm::P256 => 0x01c0_000a,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_have_the_attributes_of_the_specifications() {
        assert_eq!(
            endorsement_key(EkAlgorithm::Rsa2048).attributes.0,
            0x0003_00b2
        );
        assert_eq!(endorsement_key(EkAlgorithm::P256).attributes.0, 0x0003_00b2);
        assert_eq!(p256(KeyUse::Store).attributes.0, 0x0003_0472);
        assert_eq!(p256(KeyUse::Attest).attributes.0, 0x0005_0472);
        assert_eq!(p256(KeyUse::Sign).attributes.0, 0x0004_0472);
        assert_eq!(p256(KeyUse::Agree).attributes.0, 0x0002_0472);
    }

    #[test]
    fn a_key_matches_its_own_use_only() {
        let uses = [KeyUse::Sign, KeyUse::Attest, KeyUse::Agree, KeyUse::Store];
        for made in uses {
            for asked in uses {
                assert_eq!(
                    matches(&p256(made), asked),
                    made == asked,
                    "{made:?} as {asked:?}"
                );
            }
        }
        let mut exported = p256(KeyUse::Attest);
        exported.attributes.0 &= !Attributes::FIXED_TPM.0;
        assert!(!matches(&exported, KeyUse::Attest));
    }
}
