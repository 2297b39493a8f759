//! The whole attest exchange between a device with a real (emulated) TPM and the verifier, and what an attacker would try.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use onboarding::attest::verifier::{DeviceCertificates, Request, Submission, refusal, verify};
use onboarding::attest::{QuoteAnswer, StoreKeysAnswer, Versions, device, verifier};
use onboarding::keys::Identity;
use onboarding::quote::{Check, Conclusion, Report};
use prost::Message as _;
use protocol::eve::attest::{AttestVolumeKey, ZAttestReq, ZAttestResponse};
use protocol::keys::sha256;
use support::Emulator;
use support::log::{BOOT, boot, event_log};
use tempfile::TempDir;

/// A device with its own TPM.
struct Device {
    identity: Identity,
    emulator: Emulator,
    dir: TempDir,
}

impl Device {
    fn new() -> Self {
        let emulator = Emulator::new();
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::open_or_create(dir.path(), Some(emulator.connect())).unwrap();
        Self {
            identity,
            emulator,
            dir,
        }
    }

    fn reboot(self) -> Self {
        let Self {
            identity,
            mut emulator,
            dir,
        } = self;
        drop(identity);
        emulator.power_cycle();
        let identity = Identity::open_or_create(dir.path(), Some(emulator.connect())).unwrap();
        Self {
            identity,
            emulator,
            dir,
        }
    }
}

/// Over the wire and back.
fn wire(request: &ZAttestReq) -> ZAttestReq {
    ZAttestReq::decode(request.encode_to_vec().as_slice()).unwrap()
}

fn wire_back(response: &ZAttestResponse) -> ZAttestResponse {
    ZAttestResponse::decode(response.encode_to_vec().as_slice()).unwrap()
}

fn certificates(identity: &Identity) -> DeviceCertificates {
    match verifier::read(&wire(&device::certs_request(identity))).unwrap() {
        Request::Certificates(certificates) => *certificates,
        other => panic!("{other:?}"),
    }
}

fn submission(identity: &Identity, nonce: &[u8], log: Option<&[u8]>) -> Submission {
    let versions = Versions {
        system: "1.2.3".to_owned(),
        firmware: "EDK II 9".to_owned(),
    };
    let request = device::quote_request(identity, nonce, &versions, log).unwrap();
    match verifier::read(&wire(&request)).unwrap() {
        Request::Quote(submission) => *submission,
        other => panic!("{other:?}"),
    }
}

fn failed(report: &Report) -> Vec<Check> {
    report.failures().map(|verdict| verdict.check).collect()
}

#[test]
fn an_honest_device_gets_through_the_whole_exchange() {
    let device = Device::new();
    boot(&device.identity, BOOT);
    let certificates = certificates(&device.identity);
    certificates
        .check(device.identity.device_certificate().der())
        .unwrap();
    let attestation = certificates.attestation.unwrap();
    assert!(attestation.is_tpm && !attestation.is_mutable);
    assert!(certificates.endorsement.is_some());
    assert_eq!(
        certificates.endorsement_public.as_ref(),
        Some(&device.identity.endorsement().unwrap().public)
    );
    assert_eq!(
        certificates.ecdh.unwrap().hash,
        device.identity.ecdh_certificate().short_hash()
    );
    device::read_certs_answer(&wire_back(&verifier::certs_answer())).unwrap();

    assert_eq!(
        verifier::read(&wire(&device::nonce_request())).unwrap(),
        Request::Nonce
    );
    let given = verifier::nonce().unwrap();
    let nonce = device::read_nonce(&wire_back(&verifier::nonce_answer(&given))).unwrap();
    assert_eq!(nonce, given);

    // The running system has extended PCRs of its own since.
    boot(
        &device.identity,
        &[(11, 0, b"enter-initrd"), (15, 0, b"machine-id")],
    );
    let submission = submission(&device.identity, &nonce, Some(&event_log(BOOT)));
    assert_eq!(submission.versions.system, "1.2.3");
    assert_eq!(submission.versions.firmware, "EDK II 9");
    let report = verify(&submission, Some(&attestation.der), Some(&given));
    assert_eq!(failed(&report), []);
    assert_eq!(report.verdicts.len(), 10);
    assert_eq!(report.conclusion(), Conclusion::Trusted);
    assert_eq!(refusal(&report), None);

    let granted = QuoteAnswer::Granted {
        integrity_token: verifier::integrity_token().unwrap().to_vec(),
        keys: vec![],
    };
    let answer = wire_back(&verifier::quote_answer(&granted));
    assert_eq!(device::read_quote_answer(&answer).unwrap(), granted);
}

#[test]
fn every_answer_is_read_as_it_was_meant_and_as_nothing_else() {
    for answer in [
        QuoteAnswer::NonceMismatch,
        QuoteAnswer::NoCertificate,
        QuoteAnswer::Refused,
    ] {
        let response = wire_back(&verifier::quote_answer(&answer));
        assert_eq!(device::read_quote_answer(&response).unwrap(), answer);
        assert!(device::read_nonce(&response).is_err());
    }
    for answer in [StoreKeysAnswer::Stored, StoreKeysAnswer::TokenMismatch] {
        let response = wire_back(&verifier::store_keys_answer(answer));
        assert_eq!(device::read_store_keys_answer(&response).unwrap(), answer);
        assert!(device::read_quote_answer(&response).is_err());
    }
    for length in [0, 11, 33] {
        let response = verifier::nonce_answer(&vec![1; length]);
        assert!(device::read_nonce(&response).is_err(), "{length}");
    }
    assert!(device::read_certs_answer(&ZAttestResponse::default()).is_err());
    let keys = vec![AttestVolumeKey {
        key_type: 1,
        key: vec![1, 2, 3],
        ..AttestVolumeKey::default()
    }];
    let request = device::store_keys_request(vec![7; 32], keys.clone());
    assert_eq!(
        verifier::read(&wire(&request)).unwrap(),
        Request::StoreKeys {
            integrity_token: vec![7; 32],
            keys
        }
    );
}

#[test]
fn a_replayed_quote_is_told_by_its_nonce() {
    let device = Device::new();
    let attestation = certificates(&device.identity).attestation.unwrap();
    let (first, second) = (verifier::nonce().unwrap(), verifier::nonce().unwrap());
    let old = submission(&device.identity, &first, None);
    for nonce in [Some(&second[..]), None] {
        let report = verify(&old, Some(&attestation.der), nonce);
        assert_eq!(failed(&report), [Check::Nonce]);
        assert_eq!(refusal(&report), Some(QuoteAnswer::NonceMismatch));
    }
}

#[test]
fn a_healthy_machines_quote_does_not_help_a_sick_one() {
    let (sick, healthy) = (Device::new(), Device::new());
    let known = certificates(&sick.identity).attestation.unwrap();
    let nonce = verifier::nonce().unwrap();
    let relayed = submission(&healthy.identity, &nonce, None);
    let report = verify(&relayed, Some(&known.der), Some(&nonce));
    assert_eq!(failed(&report), [Check::Signature]);
    assert_eq!(refusal(&report), Some(QuoteAnswer::Refused));
    // Nor does its attestation certificate: another device key signed that.
    let foreign = certificates(&healthy.identity);
    let error = foreign
        .check(sick.identity.device_certificate().der())
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("not signed with the key of the certificate that it should hang on"),
        "{error}"
    );
}

#[test]
fn a_log_that_hides_an_event_does_not_explain_the_pcrs() {
    let device = Device::new();
    boot(&device.identity, BOOT);
    boot(
        &device.identity,
        &[(4, 0x8000_0003, b"another boot loader")],
    );
    let attestation = certificates(&device.identity).attestation.unwrap();
    let nonce = verifier::nonce().unwrap();
    let hiding = submission(&device.identity, &nonce, Some(&event_log(BOOT)));
    let report = verify(&hiding, Some(&attestation.der), Some(&nonce));
    assert_eq!(failed(&report), [Check::EventLogReplay]);
    let verdict = report.failures().next().unwrap().to_string();
    assert!(
        verdict.contains("PCR 4 = ") && !verdict.contains("PCR 7"),
        "{verdict}"
    );

    // Values changed to what the log tells contradict the TPM's signature.
    let mut changed = hiding.clone();
    changed.evidence.as_mut().unwrap().pcrs[4].1 = {
        let mut both = vec![0; 32];
        both.extend(sha256(BOOT[1].2));
        sha256(&both)
    };
    let report = verify(&changed, Some(&attestation.der), Some(&nonce));
    assert_eq!(failed(&report), [Check::PcrDigest]);
}

#[test]
fn boots_are_counted_by_the_tpm() {
    let device = Device::new();
    let attestation = certificates(&device.identity).attestation.unwrap();
    let facts = |device: &Device| {
        let nonce = verifier::nonce().unwrap();
        // Nothing was measured into this TPM, and the log says so.
        let submission = submission(&device.identity, &nonce, Some(&event_log(&[])));
        let report = verify(&submission, Some(&attestation.der), Some(&nonce));
        assert_eq!(report.conclusion(), Conclusion::Trusted);
        report.boot.unwrap()
    };
    let before = facts(&device);
    let device = device.reboot();
    let after = facts(&device);
    assert_eq!(after.reset_count, before.reset_count + 1);
    assert_eq!(after.firmware_version, before.firmware_version);
    // The power went away unannounced: the clock may have gone back, and then the TPM says so.
    assert!(
        after.clock_ms >= before.clock_ms || !after.clock_safe,
        "{before:?} {after:?}"
    );
    // Not blurred, as it would be with a key of the owner's hierarchy.
    assert!(after.reset_count < 1000, "{after:?}");
}

#[test]
fn a_device_without_a_tpm_is_unproven_and_one_with_cannot_play_it() {
    let dir = tempfile::tempdir().unwrap();
    let software = Identity::open_or_create(dir.path(), None).unwrap();
    let shown = certificates(&software);
    shown.check(software.device_certificate().der()).unwrap();
    assert!(shown.attestation.is_none() && shown.ecdh.is_some());
    let nonce = verifier::nonce().unwrap();
    let plain = submission(&software, &nonce, None);
    assert_eq!(plain.evidence, None);
    let report = verify(&plain, None, Some(&nonce));
    assert_eq!(report.conclusion(), Conclusion::Unproven);
    assert_eq!(refusal(&report), None);

    let device = Device::new();
    let attestation = certificates(&device.identity).attestation.unwrap();
    let report = verify(&plain, Some(&attestation.der), Some(&nonce));
    assert_eq!(failed(&report), [Check::Evidence]);
    assert_eq!(refusal(&report), Some(QuoteAnswer::Refused));
}

#[test]
fn a_quote_before_its_certificate_asks_for_the_certificate() {
    let device = Device::new();
    let nonce = verifier::nonce().unwrap();
    let report = verify(
        &submission(&device.identity, &nonce, None),
        None,
        Some(&nonce),
    );
    assert_eq!(refusal(&report), Some(QuoteAnswer::NoCertificate));
}

#[test]
fn a_log_too_long_for_a_request_is_left_out() {
    let device = Device::new();
    // Random bytes do not pack.
    let long = device.identity.tpm().unwrap().random(70_000).unwrap();
    let request = device::quote_request(
        &device.identity,
        &[1; 32],
        &Versions::default(),
        Some(&long),
    )
    .unwrap();
    assert!(request.encoded_len() <= 62 * 1024);
    assert!(request.quote.unwrap().tpm_binary_event_log.is_empty());
}

#[test]
fn a_log_that_unpacks_without_end_is_refused() {
    let device = Device::new();
    let attestation = certificates(&device.identity).attestation.unwrap();
    let nonce = verifier::nonce().unwrap();
    let bomb = vec![0; 40 << 20];
    let bombed = submission(&device.identity, &nonce, Some(&bomb));
    let kept = bombed.evidence.as_ref().unwrap().event_log.as_ref();
    assert!(kept.unwrap().len() <= (1 << 20) + 1);
    let report = verify(&bombed, Some(&attestation.der), Some(&nonce));
    assert_eq!(failed(&report), [Check::EventLog]);
}

#[test]
fn malformed_requests_are_errors_not_verdicts() {
    let device = Device::new();
    let certs = device::certs_request(&device.identity);
    let quote =
        device::quote_request(&device.identity, &[1; 32], &Versions::default(), None).unwrap();
    let change = |request: &ZAttestReq, change: &dyn Fn(&mut ZAttestReq)| {
        let mut request = request.clone();
        change(&mut request);
        request
    };
    let broken = [
        ("no type", change(&quote, &|r| r.req_type = 0)),
        ("unknown type", change(&quote, &|r| r.req_type = 99)),
        ("no quote", change(&quote, &|r| r.quote = None)),
        (
            "short PCR",
            change(&quote, &|r| {
                r.quote.as_mut().unwrap().pcr_values[0].value.pop();
            }),
        ),
        (
            "SHA-1 PCR",
            change(&quote, &|r| {
                r.quote.as_mut().unwrap().pcr_values[0].hash_algo = 1;
            }),
        ),
        (
            "many PCRs",
            change(&quote, &|r| {
                let quote = r.quote.as_mut().unwrap();
                let first = quote.pcr_values[0].clone();
                quote.pcr_values = vec![first; 160];
            }),
        ),
        (
            "long quote",
            change(&quote, &|r| {
                r.quote.as_mut().unwrap().attest_data = vec![0; 2000];
            }),
        ),
        (
            "log not packed",
            change(&quote, &|r| {
                r.quote.as_mut().unwrap().tpm_binary_event_log = vec![1; 100];
            }),
        ),
        (
            "certificate twice",
            change(&certs, &|r| {
                let first = r.certs[0].clone();
                r.certs.push(first);
            }),
        ),
        (
            "certificate with another hash",
            change(&certs, &|r| r.certs[0].cert_hash[0] ^= 1),
        ),
        (
            "certificate cut",
            change(&certs, &|r| r.certs[0].cert.truncate(80)),
        ),
        (
            "endorsement key unreadable",
            change(&certs, &|r| {
                r.certs[2].meta_data_items[0].meta_data = vec![9]
            }),
        ),
        (
            "keys without end",
            device::store_keys_request(vec![], vec![AttestVolumeKey::default(); 100]),
        ),
    ];
    for (name, request) in broken {
        assert!(verifier::read(&wire(&request)).is_err(), "{name}");
    }
}
