//! Every check fails by its name when, and only when, its own thing is wrong.

use std::sync::LazyLock;

use protocol::keys::sha256;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rcgen::{PublicKeyData as _, SigningKey as _};

use super::*;
use crate::quote::attest::tests::quote_bytes;
use crate::quote::{Conclusion, GENERATED};

const NONCE: &[u8] = b"a nonce of 20 bytes!";

struct Key {
    pair: KeyPair,
    certificate: Vec<u8>,
}

fn key() -> Key {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = CertificateParams::default()
        .self_signed(&pair)
        .unwrap()
        .der()
        .to_vec();
    Key { pair, certificate }
}

static KEY: LazyLock<Key> = LazyLock::new(key);

/// What [`log`] explains: one event in PCR 7; other values where the running system extends.
fn values() -> Vec<(u32, [u8; 32])> {
    let value = |index: u32| match index {
        7 => sha256(&[[0; 32], sha256(b"event")].concat()),
        10 | 11 | 15 => [index as u8; 32],
        _ => [0; 32],
    };
    (0..16).map(|index| (index, value(index))).collect()
}

/// An event log: the header of the crypto-agile form with the SHA-256 bank alone, and one event.
fn log() -> Vec<u8> {
    let mut log = vec![0, 0, 0, 0, 3, 0, 0, 0];
    log.extend([0; 20]);
    let mut header = b"Spec ID Event03\0".to_vec();
    header.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0]);
    log.extend((header.len() as u32).to_le_bytes());
    log.extend(header);
    log.extend([7, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0x0b, 0]);
    log.extend(sha256(b"event"));
    log.extend([5, 0, 0, 0]);
    log.extend(b"event");
    log
}

fn digest_of(values: &[(u32, [u8; 32])]) -> [u8; 32] {
    sha256(&values.iter().flat_map(|(_, v)| *v).collect::<Vec<u8>>())
}

fn signed(attest: Vec<u8>) -> Evidence {
    Evidence {
        signature: KEY.pair.sign(&attest).unwrap(),
        attest,
        pcrs: values(),
        event_log: Some(log()),
    }
}

fn good() -> Evidence {
    signed(quote_bytes(NONCE, &[0xff, 0xff, 0], &digest_of(&values())))
}

fn expected() -> Expected<'static> {
    Expected {
        attestation_certificate: Some(&KEY.certificate),
        has_tpm: false,
        nonce: Some(NONCE),
    }
}

fn failed(report: &Report) -> Vec<Check> {
    report.failures().map(|verdict| verdict.check).collect()
}

#[test]
fn an_honest_quote_is_trusted() {
    let report = verify(Some(&good()), expected());
    assert_eq!(failed(&report), []);
    assert_eq!(report.conclusion(), Conclusion::Trusted);
    assert!(report.is_of_known_tpm());
    assert_eq!(report.boot.unwrap().reset_count, 7);
    assert_eq!(
        KEY.pair.der_bytes().len(),
        65,
        "the test's key is a P-256 point"
    );
}

#[test]
fn without_its_event_log_a_quote_proves_the_tpm_and_not_the_boot() {
    let silent = Evidence {
        event_log: None,
        ..good()
    };
    let report = verify(Some(&silent), expected());
    assert_eq!(failed(&report), []);
    assert_eq!(report.conclusion(), Conclusion::Unproven);
    assert!(report.is_of_known_tpm());
    let other = Evidence {
        event_log: Some(log()[..log().len() - 55].to_vec()),
        ..good()
    };
    let report = verify(Some(&other), expected());
    assert_eq!(failed(&report), [Check::EventLogReplay]);
    assert_eq!(report.conclusion(), Conclusion::Refused);
    assert!(!report.is_of_known_tpm());
}

#[test]
fn each_fault_fails_its_own_check() {
    let digest = digest_of(&values());
    let change = |change: &dyn Fn(&mut Evidence)| {
        let mut evidence = good();
        change(&mut evidence);
        evidence
    };
    let mut forged_magic = quote_bytes(NONCE, &[0xff, 0xff, 0], &digest);
    forged_magic[0] = 0;
    let mut other_kind = quote_bytes(NONCE, &[0xff, 0xff, 0], &digest);
    other_kind[5] = 0x14;
    let other_key = key();
    let mut by_other = good();
    by_other.signature = other_key.pair.sign(&by_other.attest).unwrap();

    let table: Vec<(&str, Evidence, Vec<Check>)> = vec![
        (
            "magic of a foreign structure",
            signed(forged_magic),
            vec![Check::Structure],
        ),
        (
            "a statement on time instead of a quote",
            signed(other_kind),
            vec![Check::Kind],
        ),
        ("signed by another key", by_other, vec![Check::Signature]),
        (
            "signature cut",
            change(&|e| {
                e.signature.pop();
            }),
            vec![Check::Signature],
        ),
        (
            "signature empty",
            change(&|e| e.signature.clear()),
            vec![Check::Signature],
        ),
        (
            "another nonce",
            signed(quote_bytes(b"the nonce before", &[0xff, 0xff, 0], &digest)),
            vec![Check::Nonce],
        ),
        (
            "no nonce in the quote",
            signed(quote_bytes(b"", &[0xff, 0xff, 0], &digest)),
            vec![Check::Nonce],
        ),
        (
            "a part of the PCRs",
            signed(quote_bytes(NONCE, &[0xff, 0x7f, 0], &digest)),
            vec![Check::PcrSelection],
        ),
        (
            "no PCRs",
            signed(quote_bytes(NONCE, &[0, 0, 0], &digest)),
            vec![Check::PcrSelection],
        ),
        (
            "a changed PCR value",
            change(&|e| e.pcrs[15].1[0] ^= 1),
            vec![Check::PcrDigest],
        ),
        (
            "a PCR value twice",
            change(&|e| e.pcrs[11].0 = 10),
            vec![Check::PcrSelection],
        ),
        (
            "PCR values left out",
            change(&|e| e.pcrs.clear()),
            vec![Check::PcrSelection, Check::PcrDigest],
        ),
        (
            "a changed PCR value that the event log explains",
            change(&|e| e.pcrs[7].1[0] ^= 1),
            vec![Check::PcrDigest, Check::EventLogReplay],
        ),
        (
            "garbage as event log",
            change(&|e| e.event_log = Some(b"garbage".to_vec())),
            vec![Check::EventLog],
        ),
        (
            "an empty event log",
            change(&|e| e.event_log = Some(vec![])),
            vec![Check::EventLog],
        ),
        (
            "garbage as quote",
            change(&|e| e.attest = b"garbage".to_vec()),
            vec![Check::Structure],
        ),
        (
            "a changed counter under the signature",
            change(&|e| e.attest[75] ^= 1),
            vec![Check::Signature],
        ),
    ];
    for (name, evidence, checks) in table {
        let report = verify(Some(&evidence), expected());
        assert_eq!(failed(&report), checks, "{name}");
        assert_eq!(report.conclusion(), Conclusion::Refused, "{name}");
    }
}

#[test]
fn what_the_verifier_does_not_know_fails_too() {
    let unknown_key = Expected {
        attestation_certificate: None,
        ..expected()
    };
    let report = verify(Some(&good()), unknown_key);
    assert_eq!(failed(&report), [Check::AttestationKey]);
    let no_nonce = Expected {
        nonce: None,
        ..expected()
    };
    assert_eq!(failed(&verify(Some(&good()), no_nonce)), [Check::Nonce]);
    let bad_certificate = Expected {
        attestation_certificate: Some(b"no certificate"),
        ..expected()
    };
    assert_eq!(
        failed(&verify(Some(&good()), bad_certificate)),
        [Check::AttestationKey]
    );
}

#[test]
fn a_device_with_a_tpm_cannot_become_one_without() {
    let report = verify(None, expected());
    assert_eq!(failed(&report), [Check::Evidence]);
    let never = Expected {
        attestation_certificate: None,
        ..expected()
    };
    // Nor by leaving the certificate out as well, if it proved at enrolment what it has.
    let enrolled = Expected {
        has_tpm: true,
        ..never
    };
    assert_eq!(failed(&verify(None, enrolled)), [Check::Evidence]);
    assert_eq!(
        failed(&verify(Some(&good()), enrolled)),
        [Check::AttestationKey]
    );
    let report = verify(None, never);
    assert_eq!(failed(&report), []);
    assert_eq!(report.conclusion(), Conclusion::Unproven);
    assert!(!report.is_of_known_tpm());
}

#[test]
fn no_flipped_bit_of_the_signed_bytes_is_trusted() {
    let honest = good();
    for bit in 0..honest.attest.len() * 8 {
        let mut evidence = honest.clone();
        evidence.attest[bit / 8] ^= 1 << (bit % 8);
        let report = verify(Some(&evidence), expected());
        assert_eq!(report.conclusion(), Conclusion::Refused, "bit {bit}");
    }
    assert_eq!(honest.attest[..4], GENERATED.to_be_bytes());
}

#[test]
fn a_report_survives_being_kept_as_json() {
    let mut evidence = good();
    evidence.pcrs[11].1[0] ^= 1;
    let report = verify(Some(&evidence), expected());
    let text = serde_json::to_string(&report).unwrap();
    assert!(
        text.contains(r#""check":"pcrDigest","outcome":"fail","expected":"#),
        "{text}"
    );
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    let said = report.failures().next().unwrap().to_string();
    assert!(
        said.starts_with("NO: the PCR values are those that the TPM signed; expected "),
        "{said}"
    );
}
