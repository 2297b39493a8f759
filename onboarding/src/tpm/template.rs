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

/// The four ways in which an initial attestation key may be administered (TPM 2.0 Keys for Device Identity and Attestation, 7.3.6, for
/// SHA-256): PolicySecret by the endorsement hierarchy; the same for TPM2_Certify alone, and for TPM2_ActivateCredential alone;
/// PolicyAuthorizeNV by NV index 0x01c90018.
pub(crate) const MACHINE_BRANCHES: [[u8; 32]; 4] = [
    EK_POLICY,
    [
        0xb2, 0xa6, 0x9e, 0x63, 0x91, 0xe2, 0x68, 0x4a, 0x0f, 0xe7, 0x52, 0xd3, 0x9e, 0x14, 0xac,
        0xd2, 0xe5, 0xcb, 0x92, 0x2e, 0x4b, 0xd0, 0x35, 0x83, 0x0e, 0xea, 0x31, 0xf2, 0xaa, 0xbe,
        0x98, 0x70,
    ],
    [
        0xcd, 0x99, 0x17, 0xcf, 0x18, 0xc3, 0x84, 0x8c, 0x3a, 0x2e, 0x60, 0x69, 0x86, 0xa0, 0x66,
        0xc6, 0x81, 0x42, 0xf9, 0xbc, 0x27, 0x10, 0xa2, 0x78, 0x28, 0x7a, 0x65, 0x0c, 0xa3, 0xbb,
        0xf2, 0x45,
    ],
    [
        0x10, 0x1e, 0x68, 0x9d, 0xad, 0xf1, 0x45, 0x22, 0x24, 0x12, 0xc0, 0x5b, 0x76, 0xe1, 0x45,
        0x32, 0xaf, 0x1e, 0x5c, 0x74, 0x20, 0x8e, 0x0a, 0xe7, 0xcd, 0xb0, 0xcf, 0xf1, 0x90, 0x6c,
        0x8a, 0x09,
    ],
];
/// PolicyOR of these: the policy of initial attestation keys that can be made again (same place, table 19). Signing takes none.
const MACHINE_POLICY: [u8; 32] = [
    0x54, 0x37, 0x18, 0x23, 0x26, 0xe4, 0x14, 0xfc, 0xa7, 0x97, 0xd5, 0xf1, 0x74, 0x61, 0x5a, 0x16,
    0x41, 0xf6, 0x12, 0x55, 0x79, 0x7c, 0x3a, 0x2b, 0x22, 0xc2, 0x1d, 0x12, 0x0b, 0x2d, 0x1e, 0x07,
];
/// What the unique field of an initial attestation key's template holds, in both coordinates (same place, table 2).
const MACHINE_UNIQUE: &[u8] = b"IAK";

/// The TCG's template of an initial attestation key (IAK) on P-256: a primary key of the endorsement hierarchy, by which a machine's maker
/// names the machine (same place, 7.3.4.1).
#[must_use]
pub fn machine_key() -> Public {
    Public {
        attributes: INSIDE
            .with(Attributes::USER_WITH_AUTH)
            .with(Attributes::ADMIN_WITH_POLICY)
            .with(Attributes::RESTRICTED)
            .with(Attributes::SIGN),
        policy: MACHINE_POLICY.to_vec(),
        kind: PublicKind::Ecc {
            symmetric: Symmetric::None,
            scheme: EccScheme::EcdsaSha256,
            curve: Curve::P256,
            x: MACHINE_UNIQUE.to_vec(),
            y: MACHINE_UNIQUE.to_vec(),
        },
    }
}

/// True if `public` is a key that signs nothing but what its TPM says, made in that TPM and fixed to it, on P-256. Under which policy a
/// machine's maker put it is the maker's choice.
#[must_use]
pub fn is_machine_key(public: &Public) -> bool {
    let needed = INSIDE.with(Attributes::RESTRICTED).with(Attributes::SIGN);
    let form = matches!(
        public.kind,
        PublicKind::Ecc {
            symmetric: Symmetric::None,
            scheme: EccScheme::EcdsaSha256,
            curve: Curve::P256,
            ..
        }
    );
    form && public.attributes.has(needed)
        && !public.attributes.has(Attributes::DECRYPT)
        && public.p256_point().is_some()
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

    /// From nothing but command codes, handles and attributes (TPM 2.0 Library, part 3, 23).
    #[test]
    fn the_policy_of_a_machine_key_is_what_its_branches_come_to() {
        use crate::tpm::crypto::digest;
        const START: [u8; 32] = [0; 32];
        let word = u32::to_be_bytes;
        let secret = digest(&[&digest(&[&START, &word(0x151), &word(0x4000_000b)])]);
        let alone = |code: u32| digest(&[&secret, &word(0x16c), &word(code)]);
        // Written and read as the document's table 9 says; its policy is the first branch, its size that of a digest with its algorithm.
        let index = [
            &word(0x01c9_0018)[..],
            &[0, 0x0b],
            &word(0x220f_1008),
            &[0, 32],
            &secret,
            &[0, 34],
        ]
        .concat();
        let authorized = digest(&[&START, &word(0x192), &[0, 0x0b], &digest(&[&index])]);
        let branches = [secret, alone(0x148), alone(0x147), authorized];
        assert_eq!(branches, MACHINE_BRANCHES);
        let policy = digest(&[&START, &word(0x171), &branches.concat()]);
        assert_eq!(policy, MACHINE_POLICY);
    }

    #[test]
    fn a_machine_key_is_restricted_fixed_and_signs() {
        let template = machine_key();
        assert_eq!(template.attributes.0, 0x0005_00f2);
        assert!(is_machine_key(&template));
        assert!(is_machine_key(&p256(KeyUse::Attest)));
        for lacking in [
            Attributes::FIXED_TPM,
            Attributes::FIXED_PARENT,
            Attributes::SENSITIVE_DATA_ORIGIN,
            Attributes::RESTRICTED,
            Attributes::SIGN,
        ] {
            let mut other = template.clone();
            other.attributes.0 &= !lacking.0;
            assert!(!is_machine_key(&other), "without {:#x}", lacking.0);
        }
        let mut both = template.clone();
        both.attributes = both.attributes.with(Attributes::DECRYPT);
        assert!(!is_machine_key(&both));
        for other in [KeyUse::Sign, KeyUse::Agree, KeyUse::Store] {
            assert!(!is_machine_key(&p256(other)), "{other:?}");
        }
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
