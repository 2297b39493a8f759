//! Zero-touch enrolment between devices with real (emulated) TPMs and the verifier: the honest way, and what attackers would try.
//!
//! Each attack asserts that it is refused, by which verdict or error, and that an honest device still enrols afterwards.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use onboarding::enrol::endorsement::Makers;
use onboarding::enrol::verifier::{CookieKey, Proven, read_evidence};
use onboarding::enrol::{EnrolError, MachineId, credential, device, mark};
use onboarding::keys::Identity;
use onboarding::quote::{Check, Conclusion};
use onboarding::tpm::TpmError;
use onboarding::wire::Public;
use prost::Message as _;
use protocol::cipher::{KeyAgreement as _, Point, SoftwareAgreement};
use protocol::enrolment::owner::{self, OwnerError};
use protocol::enrolment::seal::{Flight, open_request, seal_request};
use protocol::enrolment::wire::{
    self, ChallengePayload, Credential, Level, answer, challenge_payload, evidence_body, hello,
};
use protocol::enrolment::{MAX_REQUEST, wire::Answer};
use support::enrol::{
    Device, Forger, LIFETIME, NOW_S, Owner, enrol, evidence, failed, holds, machine, opened,
    payload, refused, still_works,
};
use support::log::{BOOT, boot, event_log};
use support::proxy::{Fault, Proxy};
use support::{Emulator, loaded};

#[test]
fn an_honest_device_is_enrolled_through_sealed_messages() {
    let (device, mut owner) = (Device::new(), Owner::new());
    owner.chain.delegation.as_ref().unwrap();
    let controller = SoftwareAgreement::from_scalar(&[3; 32]).unwrap();
    let address = controller.public_point().unwrap();
    boot(&device.identity, BOOT);

    let session = device::hello(&device.identity, &machine(), "1.2.3").unwrap();
    let (body, key) = seal_request(&address, Flight::Hello, session.bytes()).unwrap();
    let (hello, answer_key) = open_request(&controller, &address, Flight::Hello, &body).unwrap();
    let challenge = owner.challenge(&hello).unwrap();
    let sealed = answer_key
        .seal(&Answer {
            kind: Some(answer::Kind::Challenge(challenge)),
        })
        .unwrap();
    let Some(answer::Kind::Challenge(challenge)) = key.open(&sealed).unwrap().kind else {
        panic!("another answer");
    };
    let answering = session
        .challenged(
            &device.identity,
            &challenge,
            &owner.pinned(),
            NOW_S - 1000,
            Some(&event_log(BOOT)),
        )
        .unwrap();
    assert_eq!(answering.server_time_ms(), owner.now_ms);

    let (body, key) = seal_request(&address, Flight::Evidence, answering.evidence()).unwrap();
    let (shown, answer_key) = open_request(&controller, &address, Flight::Evidence, &body).unwrap();
    owner.now_ms += 1000;
    let read = read_evidence(&shown).unwrap();
    assert_eq!(read.machine_id(), device.id());
    assert_eq!(read.hello().machine, machine());
    assert_eq!(read.hello().image_version, "1.2.3");
    let judged = owner.judge(&shown).unwrap();
    assert_eq!(failed(&judged), []);
    assert_eq!(judged.level, Level::Bronze);
    assert_eq!(judged.report.conclusion(), Conclusion::Trusted);
    let proven = judged.proven.unwrap();
    assert_eq!(proven.machine, device.id());
    assert_eq!(&proven.nonce, read.nonce());
    assert_eq!(proven.pcrs.len(), 16);
    assert_eq!(proven.event_log, Some(event_log(BOOT)));
    assert!(proven.boot.is_some() && proven.maker.is_none());
    let device_point = Point::from_certificate_der(device.identity.device_certificate().der());
    assert_eq!(proven.device_point, device_point.unwrap());

    let sealed = answer_key
        .seal(&Answer {
            kind: Some(answer::Kind::Grant(owner.grant(&proven, &device.identity))),
        })
        .unwrap();
    let Some(answer::Kind::Grant(grant)) = key.open(&sealed).unwrap().kind else {
        panic!("another answer");
    };
    let granted = answering.granted(&device.identity, &grant).unwrap();
    assert_eq!(granted, payload(&device.identity));
    assert_eq!(answering.pinned().delegation, 1);
    let tpm = device.identity.tpm().unwrap();
    mark::write(tpm, &answering.pinned()).unwrap();
    assert_eq!(mark::read(tpm).unwrap(), Some(answering.pinned()));
    // The device key alone stays loaded.
    assert_eq!(loaded(tpm).len(), 1);
}

#[test]
fn a_device_without_a_tpm_is_enrolled_at_level_none() {
    let owner = Owner::new();
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::open_or_create(dir.path(), None).unwrap();
    let answering = evidence(&identity, &owner, None).unwrap();
    let judged = owner.judge(answering.evidence()).unwrap();
    assert_eq!((failed(&judged), judged.level), (vec![], Level::None));
    assert_eq!(judged.report.conclusion(), Conclusion::Unproven);
    let proven = judged.proven.unwrap();
    let point = Point::from_certificate_der(identity.device_certificate().der()).unwrap();
    assert_eq!(proven.machine, MachineId::of_device_key(&point));
    assert!(proven.boot.is_none() && proven.attestation_point.is_none());
    let grant = owner.grant(&proven, &identity);
    assert_eq!(
        answering.granted(&identity, &grant).unwrap(),
        payload(&identity)
    );

    // Another device's keys do not open its challenge, and each changed byte is refused.
    let other_dir = tempfile::tempdir().unwrap();
    let other = Identity::open_or_create(other_dir.path(), None).unwrap();
    let session = device::hello(&identity, &machine(), "1").unwrap();
    let challenge = owner.challenge(session.bytes()).unwrap();
    let error = session
        .challenged(&other, &challenge, &owner.pinned(), 0, None)
        .unwrap_err();
    assert!(matches!(error, EnrolError::Secret(_)), "{error}");
    assert!(answering.granted(&other, &grant).is_err());
    no_change_passes(&owner, answering.evidence());
}

#[test]
fn a_device_with_its_makers_certificate_is_enrolled_at_level_silver() {
    let emulator = Emulator::manufactured();
    let makers = emulator.makers();
    let (tpm, tap) = Proxy::tap(&emulator);
    let device = Device::with(emulator, tpm);
    let mut owner = Owner::new();
    // The owner does not know the maker: nothing is wrong, and the level is bronze.
    let answering = evidence(&device.identity, &owner, None).unwrap();
    let judged = owner.judge(answering.evidence()).unwrap();
    assert_eq!((failed(&judged), judged.level), (vec![], Level::Bronze));
    assert!(!judged.report.passed(Check::EndorsementCertificate));

    owner.makers = Makers::from_pem(&makers).unwrap();
    let (proven, _) = enrol(&device.identity, &owner).unwrap();
    assert!(proven.maker.unwrap().contains("swtpm"));
    let judged = owner.judge(answering.evidence()).unwrap();
    assert_eq!((failed(&judged), judged.level), (vec![], Level::Silver));
    assert!(judged.report.passed(Check::EndorsementCertificate));
    assert!(!tap.lock().unwrap().saw(proven.secret.expose()));

    // Another TPM's certificate, sent by software that controls the device: the hello is the attacker's own choice.
    let healthy = Emulator::manufactured();
    owner.makers = Makers::from_pem(&[makers, healthy.makers()].concat()).unwrap();
    let tpm = healthy.connect();
    let healthy = Device::with(healthy, tpm);
    let foreign = healthy.identity.endorsement().unwrap();
    let judged = owner
        .judge(&with_hello(&device.identity, &owner, |keys| {
            keys.endorsement_certificate = foreign.certificate.as_ref().unwrap().der().to_vec();
        }))
        .unwrap();
    assert_eq!(failed(&judged), [Check::EndorsementCertificate]);
    assert!(judged.proven.is_none());
    still_works(&device.identity, &owner);
}

/// Evidence of a device whose hello was changed before it was sent, by software that goes on honestly from there.
fn with_hello(
    identity: &Identity,
    owner: &Owner,
    change: impl FnOnce(&mut wire::TpmKeys),
) -> Vec<u8> {
    let session = device::hello(identity, &machine(), "1").unwrap();
    let mut message = wire::Hello::decode(session.bytes()).unwrap();
    match message.keys.as_mut().unwrap() {
        hello::Keys::Tpm(keys) => change(keys),
        hello::Keys::Software(_) => panic!("a device without a TPM"),
    }
    let session = device::Session::from_bytes(message.encode_to_vec());
    let challenge = owner.challenge(session.bytes()).unwrap();
    let answering = session
        .challenged(identity, &challenge, &owner.pinned(), 0, None)
        .unwrap();
    answering.evidence().to_vec()
}

#[test]
fn a_quote_relayed_from_a_healthy_machine_is_refused() {
    let (sick, healthy, owner) = (Device::new(), Device::new(), Owner::new());
    let (own, foreign) = (
        evidence(&sick.identity, &owner, None).unwrap(),
        evidence(&healthy.identity, &owner, None).unwrap(),
    );
    let secret = owner.judge(own.evidence()).unwrap().proven.unwrap().secret;
    // The healthy machine's quote of its own session.
    let mut forger = Forger::new(own.evidence(), &secret);
    let mut theirs = Forger::new(foreign.evidence(), &secret);
    let quote = theirs.proof().clone();
    forger.proof().quote = quote.quote.clone();
    forger.proof().pcr_values = quote.pcr_values.clone();
    let checks = [Check::Signature, Check::Transcript];
    refused(&owner, &forger.evidence(), &checks, &secret);

    // And one that it was made to give over the sick machine's session.
    let transcript = *read_evidence(own.evidence()).unwrap().transcript();
    let quoted = healthy.identity.quote(transcript.bytes()).unwrap().unwrap();
    forger.proof().quote = Some(wire::Statement {
        signature: quoted.signature.to_der(),
        attest: quoted.attest,
    });
    refused(&owner, &forger.evidence(), &[Check::Signature], &secret);

    // What is granted to the healthy machine meanwhile is nothing to the sick one, which has seen all of its messages.
    let proven = owner.judge(foreign.evidence()).unwrap().proven.unwrap();
    assert!(!holds(foreign.evidence(), proven.secret.expose()));
    let grant = owner.grant(&proven, &healthy.identity);
    for (answering, identity) in [
        (&own, &sick.identity),
        (&foreign, &sick.identity),
        (&own, &healthy.identity),
    ] {
        assert!(answering.granted(identity, &grant).is_err());
    }
    foreign.granted(&healthy.identity, &grant).unwrap();
    still_works(&sick.identity, &owner);
    still_works(&healthy.identity, &owner);
}

#[test]
fn another_machines_device_key_is_refused() {
    let (sick, healthy, owner) = (Device::new(), Device::new(), Owner::new());
    let (own, secret) = opened(&sick.identity, &owner, None);
    let foreign = evidence(&healthy.identity, &owner, None).unwrap();
    let theirs = Forger::new(foreign.evidence(), &secret).proof().clone();
    // Each key, with and without the statement of its own machine: the transcript, and so the quote, are then others too.
    for statement in [false, true] {
        let mut forger = Forger::new(own.evidence(), &secret);
        forger.proof().device_public = theirs.device_public.clone();
        if statement {
            forger.proof().device_certified = theirs.device_certified.clone();
            forger.proof().device_signature = theirs.device_signature.clone();
        }
        let all = [Check::DeviceKey, Check::AgreementKey, Check::Transcript];
        refused(&owner, &forger.evidence(), &all, &secret);

        let mut forger = Forger::new(own.evidence(), &secret);
        forger.proof().agreement_public = theirs.agreement_public.clone();
        if statement {
            forger.proof().agreement_certified = theirs.agreement_certified.clone();
        }
        refused(&owner, &forger.evidence(), &all, &secret);
    }
    // The agreement key in the place of the device key.
    let mut forger = Forger::new(own.evidence(), &secret);
    let proof = forger.proof();
    std::mem::swap(&mut proof.device_public, &mut proof.agreement_public);
    std::mem::swap(&mut proof.device_certified, &mut proof.agreement_certified);
    let all = [Check::DeviceKey, Check::AgreementKey, Check::Transcript];
    refused(&owner, &forger.evidence(), &all, &secret);
    // Left alone, the same evidence is good: it was the key, and the other machine's is not spoilt either.
    assert!(owner.judge(own.evidence()).unwrap().proven.is_some());
    still_works(&healthy.identity, &owner);
    still_works(&sick.identity, &owner);
}

#[test]
fn evidence_replayed_in_another_session_is_refused() {
    let (device, mut owner) = (Device::new(), Owner::new());
    let first = evidence(&device.identity, &owner, None).unwrap();
    let second = evidence(&device.identity, &owner, None).unwrap();
    let secret = |evidence: &[u8]| owner.judge(evidence).unwrap().proven.unwrap().secret;
    let (old, new) = (secret(first.evidence()), secret(second.evidence()));
    assert_ne!(old, new);
    // The first session's statements under the second's challenge.
    let mut forger = Forger::new(second.evidence(), &new);
    *forger.proof() = Forger::new(first.evidence(), &old).proof().clone();
    let all = [Check::DeviceKey, Check::AgreementKey, Check::Transcript];
    refused(&owner, &forger.evidence(), &all, &new);
    // The second session's challenge under the first one's hello, and whole with the other's secret.
    let mut forger = Forger::new(first.evidence(), &new);
    let other = Forger::new(second.evidence(), &new);
    forger.body.challenge = other.body.challenge.clone();
    forger.body.challenge_signature = other.body.challenge_signature.clone();
    let checks = [
        Check::Hello,
        Check::DeviceKey,
        Check::AgreementKey,
        Check::Transcript,
    ];
    refused(&owner, &forger.evidence(), &checks, &new);
    let whole = Forger::new(first.evidence(), &new).evidence();
    refused(&owner, &whole, &[Check::Credential], &old);
    // A grant of one session is closed to the other, to the very same machine.
    let proven = owner.judge(first.evidence()).unwrap().proven.unwrap();
    let grant = owner.grant(&proven, &device.identity);
    assert!(second.granted(&device.identity, &grant).is_err());

    // Too late, too early, at another controller, after a restart with another cookie key.
    let lifetime = i64::try_from(LIFETIME.as_millis()).unwrap();
    for (shift, passes) in [
        (lifetime, true),
        (lifetime + 1, false),
        (-60_000, true),
        (-60_001, false),
    ] {
        owner.now_ms += shift;
        let judged = owner.judge(first.evidence()).unwrap();
        assert_eq!(judged.proven.is_some(), passes, "{shift}");
        let checks: &[Check] = if passes { &[] } else { &[Check::Challenge] };
        assert_eq!(failed(&judged), checks, "{shift}");
        owner.now_ms -= shift;
    }
    refused(&Owner::new(), first.evidence(), &[Check::Challenge], &old);
    owner.cookie_key = CookieKey::random().unwrap();
    refused(&owner, first.evidence(), &[Check::Challenge], &old);
    still_works(&device.identity, &owner);
}

/// A challenge whose credential is for other keys, signed like any other.
fn rewrapped(
    owner: &Owner,
    hello: &[u8],
    endorsement: &Public,
    attestation: &Public,
) -> wire::Challenge {
    let mut challenge = owner.challenge(hello).unwrap();
    let mut payload = ChallengePayload::decode(challenge.payload.as_slice()).unwrap();
    let made = credential::make(endorsement, &attestation.name(), &[7; 32]).unwrap();
    payload.secret = Some(challenge_payload::Secret::Credential(Credential {
        blob: made.blob,
        seed: made.seed,
    }));
    challenge.payload = payload.encode_to_vec();
    challenge.signature = owner::sign_challenge(&owner.delegate, &challenge.payload)
        .unwrap()
        .to_vec();
    challenge
}

#[test]
fn a_credential_for_another_attestation_key_stays_closed() {
    let (mine, other, owner) = (Device::new(), Device::new(), Owner::new());
    let ek = |device: &Device| device.identity.endorsement().unwrap().public.clone();
    let ak = |device: &Device| Public::parse(device.identity.public_areas().unwrap()[1]).unwrap();
    for (endorsement, attestation) in [(ek(&mine), ak(&other)), (ek(&other), ak(&mine))] {
        let session = device::hello(&mine.identity, &machine(), "1").unwrap();
        let challenge = rewrapped(&owner, session.bytes(), &endorsement, &attestation);
        let error = session
            .challenged(&mine.identity, &challenge, &owner.pinned(), 0, None)
            .unwrap_err();
        assert!(
            matches!(error, EnrolError::Tpm(TpmError::Refused { .. })),
            "{error}"
        );
    }
    // Somebody who shows a healthy machine's endorsement key with an attestation key of his own: no TPM has both.
    let session = device::hello(&mine.identity, &machine(), "1").unwrap();
    let mut message = wire::Hello::decode(session.bytes()).unwrap();
    if let Some(hello::Keys::Tpm(keys)) = &mut message.keys {
        keys.endorsement_public = ek(&other).to_bytes();
    }
    let session = device::Session::from_bytes(message.encode_to_vec());
    let challenge = owner.challenge(session.bytes()).unwrap();
    for device in [&mine, &other] {
        let session = device::Session::from_bytes(session.bytes().to_vec());
        assert!(
            session
                .challenged(&device.identity, &challenge, &owner.pinned(), 0, None)
                .is_err()
        );
    }
    still_works(&mine.identity, &owner);
    still_works(&other.identity, &owner);
}

#[test]
fn a_secret_that_was_not_opened_is_noticed() {
    // Everything is the machine's own but the code: its TPM has not opened this challenge's secret.
    let (device, owner) = (Device::new(), Owner::new());
    let answering = evidence(&device.identity, &owner, None).unwrap();
    let mut message = wire::Evidence::decode(answering.evidence()).unwrap();
    for mac in [vec![], vec![0; 32], message.mac[..31].to_vec()] {
        message.mac = mac;
        let judged = owner.judge(&message.encode_to_vec()).unwrap();
        assert_eq!(failed(&judged), [Check::Credential]);
        assert!(judged.proven.is_none());
    }
    still_works(&device.identity, &owner);
}

#[test]
fn keys_that_could_leave_their_tpm_are_refused() {
    let (device, owner) = (Device::new(), Owner::new());
    let change = |bytes: &mut Vec<u8>, at: usize| bytes[at] ^= 2;
    // Attributes stand in bytes 4 to 7; fixedTPM is bit 1 of the last.
    let (answering, secret) = opened(&device.identity, &owner, None);
    let mut forger = Forger::new(answering.evidence(), &secret);
    change(&mut forger.proof().device_public, 7);
    let judged = owner.judge(&forger.evidence()).unwrap();
    assert!(failed(&judged).contains(&Check::DeviceKey) && judged.proven.is_none());

    // An endorsement key of another form: the TPM will not open what is wrapped for it, and it is named besides.
    let session = device::hello(&device.identity, &machine(), "1").unwrap();
    let message = wire::Hello::decode(session.bytes()).unwrap();
    let Some(hello::Keys::Tpm(keys)) = message.keys.clone() else {
        panic!("a device without a TPM");
    };
    let with = |keys: wire::TpmKeys| {
        let mut message = message.clone();
        message.keys = Some(hello::Keys::Tpm(keys));
        message.encode_to_vec()
    };
    let mut soft = keys.clone();
    change(&mut soft.attestation_public, 7);
    let session = device::Session::from_bytes(with(soft));
    let challenge = owner.challenge(session.bytes()).unwrap();
    assert!(
        session
            .challenged(&device.identity, &challenge, &owner.pinned(), 0, None)
            .is_err()
    );
    // A short hello, a long one, one of another version.
    assert!(owner.challenge(&[]).is_err());
    let mut long = keys.clone();
    long.endorsement_certificate = vec![0x30; 9000];
    let error = owner.challenge(&with(long)).unwrap_err();
    assert!(matches!(error, EnrolError::TooLong { .. }), "{error}");
    let mut long = keys;
    long.endorsement_chain = vec![vec![0x30]; 6];
    assert!(owner.challenge(&with(long)).is_err());
    let mut newer = message.clone();
    newer.version = 2;
    let error = owner.challenge(&newer.encode_to_vec()).unwrap_err();
    assert!(
        matches!(error, EnrolError::Version { found: 2, .. }),
        "{error}"
    );
    assert_eq!(error.reason(), wire::Reason::Malformed);
    still_works(&device.identity, &owner);
}

#[test]
fn a_controller_that_does_not_speak_for_the_owner_learns_nothing() {
    let (emulator, mut owner, thief) = (Emulator::new(), Owner::new(), Owner::new());
    let (tpm, tap) = Proxy::tap(&emulator);
    let device = Device::with(emulator, tpm);
    let session = device::hello(&device.identity, &machine(), "1").unwrap();
    let hello = session.bytes().to_vec();
    let again = || device::Session::from_bytes(hello.clone());
    let answer = |challenge: &wire::Challenge, owner: &Owner| {
        tap.lock().unwrap().arm(None);
        again().challenged(&device.identity, challenge, &owner.pinned(), NOW_S, None)
    };
    let wrong = thief.challenge(&hello).unwrap();
    let error = answer(&wrong, &owner).unwrap_err();
    assert!(
        matches!(error, EnrolError::Owner(OwnerError::OtherRoot { .. })),
        "{error}"
    );
    assert_eq!(tap.lock().unwrap().count, 0, "the TPM was asked");
    // The owner's chain with the thief's signature.
    let mut mixed = wrong.clone();
    mixed.owner = Some(owner.chain.clone());
    let error = answer(&mixed, &owner).unwrap_err();
    assert!(
        matches!(error, EnrolError::Owner(OwnerError::NotSigned(_))),
        "{error}"
    );
    assert_eq!(tap.lock().unwrap().count, 0, "the TPM was asked");
    // Another session's challenge.
    let other = device::hello(&device.identity, &machine(), "1").unwrap();
    let error = answer(&owner.challenge(other.bytes()).unwrap(), &owner).unwrap_err();
    assert!(matches!(error, EnrolError::OtherHello), "{error}");

    // A delegation that was withdrawn: the device has seen a later one.
    owner.delegate_again(5);
    let challenge = owner.challenge(&hello).unwrap();
    let pinned = answer(&challenge, &owner).unwrap().pinned();
    assert_eq!(pinned.delegation, 5);
    owner.delegate_again(4);
    let challenge = owner.challenge(&hello).unwrap();
    let error = again()
        .challenged(&device.identity, &challenge, &pinned, NOW_S, None)
        .unwrap_err();
    assert!(
        matches!(error, EnrolError::Owner(OwnerError::Withdrawn { .. })),
        "{error}"
    );

    // The root is followed by the one that it named, and then no more.
    owner.delegate_again(6);
    let before = owner.challenge(&hello).unwrap();
    owner.rotate();
    let challenge = owner.challenge(&hello).unwrap();
    let pinned = again()
        .challenged(&device.identity, &challenge, &pinned, NOW_S, None)
        .unwrap()
        .pinned();
    assert_eq!((pinned.epoch, pinned.delegation), (2, 1));
    let error = again()
        .challenged(&device.identity, &before, &pinned, NOW_S, None)
        .unwrap_err();
    assert!(
        matches!(error, EnrolError::Owner(OwnerError::OtherRoot { .. })),
        "{error}"
    );
    still_works(&device.identity, &owner);
}

#[test]
fn a_grant_is_read_by_its_own_device_in_its_own_session_only() {
    let (mine, other, owner) = (Device::new(), Device::new(), Owner::new());
    let (first, second) = (
        evidence(&mine.identity, &owner, None).unwrap(),
        evidence(&mine.identity, &owner, None).unwrap(),
    );
    let proven = owner.judge(first.evidence()).unwrap().proven.unwrap();
    let grant = owner.grant(&proven, &mine.identity);
    assert!(second.granted(&mine.identity, &grant).is_err());
    assert!(first.granted(&other.identity, &grant).is_err());
    for place in [0, 1, 64] {
        let mut changed = grant.clone();
        changed.encapsulated[place] ^= 1;
        assert!(first.granted(&mine.identity, &changed).is_err());
    }
    for place in [0, grant.ciphertext.len() - 1] {
        let mut changed = grant.clone();
        changed.ciphertext[place] ^= 1;
        assert!(first.granted(&mine.identity, &changed).is_err());
    }
    // Sealed right and signed by somebody else; for another key; of no level; without an id.
    let thief = Owner::new();
    let error = first
        .granted(&mine.identity, &thief.grant(&proven, &mine.identity))
        .unwrap_err();
    assert!(
        matches!(error, EnrolError::Owner(OwnerError::NotSigned(_))),
        "{error}"
    );
    let good = payload(&mine.identity);
    let mut wrong = vec![good.clone(), good.clone(), good.clone(), good];
    wrong[0].device_certificate = other.identity.device_certificate().der().to_vec();
    wrong[1].device_certificate = vec![];
    wrong[2].level = 0;
    wrong[3].device_id = "../../etc".to_owned();
    for payload in wrong {
        let grant = onboarding::enrol::verifier::grant(&proven, &payload, &owner.delegate).unwrap();
        let error = first.granted(&mine.identity, &grant).unwrap_err();
        assert!(matches!(error, EnrolError::Grant(_)), "{error}");
    }
    // The same answer again, because it was lost on its way.
    for _ in 0..2 {
        assert_eq!(
            first.granted(&mine.identity, &grant).unwrap(),
            payload(&mine.identity)
        );
    }
}

#[test]
fn a_tpm_in_lockout_and_without_a_certificate_still_enrols() {
    let emulator = Emulator::new();
    emulator.lock_out();
    let tpm = emulator.connect();
    assert!(tpm.properties().unwrap().in_lockout);
    let (device, owner) = (Device::with(emulator, tpm), Owner::new());
    still_works(&device.identity, &owner);
    let judged = owner
        .judge(evidence(&device.identity, &owner, None).unwrap().evidence())
        .unwrap();
    assert_eq!(judged.level, Level::Bronze);
    mark::write(device.identity.tpm().unwrap(), &owner.pinned()).unwrap();
}

#[test]
fn a_tpm_without_aes_cfb_holds_no_keys_and_its_machine_is_of_level_none() {
    let (emulator, owner) = (Emulator::new(), Owner::new());
    let (tpm, tap) = Proxy::tap(&emulator);
    // TPM_ALG_CFB (TCG Algorithm Registry).
    tap.lock().unwrap().hidden = Some(0x0043);
    let dir = tempfile::tempdir().unwrap();
    let error = Identity::open_or_create(dir.path(), Some(tpm)).unwrap_err();
    assert!(
        error.to_string().contains("it lacks AES in CFB mode"),
        "{error}"
    );
    let keys = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(keys, 0, "something was kept of keys that cannot be used");
    // What the agent does with such a TPM: it goes on as if there were none.
    let identity = Identity::open_or_create(dir.path(), None).unwrap();
    let answering = evidence(&identity, &owner, None).unwrap();
    let judged = owner.judge(answering.evidence()).unwrap();
    assert_eq!(judged.level, Level::None);
    assert!(judged.proven.is_some(), "{:?}", judged.report);

    // The same TPM, with nothing hidden, does.
    let (tpm, _tap) = Proxy::tap(&emulator);
    let device = Device::with(emulator, tpm);
    still_works(&device.identity, &owner);
}

#[test]
fn an_event_log_that_is_missing_cut_or_huge_proves_nothing() {
    let (device, mut owner) = (Device::new(), Owner::new());
    boot(&device.identity, BOOT);
    let log = event_log(BOOT);
    let judge = |owner: &Owner, log: Option<&[u8]>| {
        let answering = evidence(&device.identity, owner, log).unwrap();
        assert!(answering.evidence().len() < MAX_REQUEST);
        owner.judge(answering.evidence()).unwrap()
    };
    let missing = judge(&owner, None);
    assert_eq!(failed(&missing), []);
    // Let in, and given nothing that a policy wants a proven boot for.
    assert_eq!(missing.report.conclusion(), Conclusion::Unproven);
    assert_eq!(missing.proven.unwrap().event_log, None);
    // Cut within an event, cut between two, one left out, too long, one that packs to more than a request.
    let mut noise = vec![0; 600 << 10];
    let mut state = 1_u64;
    for byte in &mut noise {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    let huge = vec![0; (1 << 20) + 1];
    for (bad, check) in [
        (&log[..log.len() - 3], Some(Check::EventLog)),
        (&event_log(&BOOT[..3])[..], Some(Check::EventLogReplay)),
        (&event_log(&BOOT[1..])[..], Some(Check::EventLogReplay)),
        (&huge[..], Some(Check::EventLog)),
        (&noise[..], None),
    ] {
        let judged = judge(&owner, Some(bad));
        assert_eq!(failed(&judged), Vec::from_iter(check));
        assert_ne!(judged.report.conclusion(), Conclusion::Trusted);
        // Without a proof no grant, and so nothing secret; what does not fit is left out, as if there were no log.
        match (check, judged.proven) {
            (Some(_), proven) => assert!(proven.is_none()),
            (None, proven) => assert_eq!(proven.unwrap().event_log, None),
        }
    }
    // Not gzip at all: only software that controls the device sends that.
    let (answering, secret) = opened(&device.identity, &owner, Some(&log));
    let mut forger = Forger::new(answering.evidence(), &secret);
    forger.proof().event_log = vec![1, 2, 3];
    refused(&owner, &forger.evidence(), &[Check::EventLog], &secret);
    // A gigabyte of zeros in a megabyte is not unpacked.
    let bomb = {
        use std::io::Write as _;
        let mut packer = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
        for _ in 0..256 {
            packer.write_all(&[0; 1 << 20]).unwrap();
        }
        packer.finish().unwrap()
    };
    forger.proof().event_log = bomb;
    refused(&owner, &forger.evidence(), &[Check::EventLog], &secret);
    // A policy that only warns lets the machine through, and the verdict stays.
    owner.warn = vec![Check::EventLogReplay];
    let judged = judge(&owner, Some(&event_log(&BOOT[1..])));
    assert_eq!(failed(&judged), [Check::EventLogReplay]);
    assert!(judged.proven.is_some());
    // It cannot wave a proof through.
    owner.warn = vec![Check::Credential];
    let mut message = wire::Evidence::decode(answering.evidence()).unwrap();
    message.mac[0] ^= 1;
    let checks = [Check::Credential];
    refused(&owner, &message.encode_to_vec(), &checks, &secret);
    let judged = judge(&owner, Some(&log));
    assert_eq!(judged.report.conclusion(), Conclusion::Trusted);
    owner.warn = vec![];
    still_works(&device.identity, &owner);
}

/// Every byte changed in two ways, every cut: an error or a refusal.
fn no_change_passes(owner: &Owner, evidence: &[u8]) {
    for place in 0..evidence.len() {
        for bits in [1, 0x80] {
            let mut changed = evidence.to_vec();
            changed[place] ^= bits;
            if let Ok(judged) = owner.judge(&changed) {
                assert!(judged.proven.is_none(), "byte {place} changed by {bits}");
            }
        }
        if let Ok(judged) = owner.judge(&evidence[..place]) {
            assert!(judged.proven.is_none(), "cut to {place}");
        }
    }
}

#[test]
fn evidence_changed_byte_by_byte_is_refused() {
    let (device, owner) = (Device::new(), Owner::new());
    let answering = evidence(&device.identity, &owner, None).unwrap();
    no_change_passes(&owner, answering.evidence());
    // The same by software that has the run of the device and makes the code anew: the statements hold on their own.
    let secret = owner
        .judge(answering.evidence())
        .unwrap()
        .proven
        .unwrap()
        .secret;
    let forger = Forger::new(answering.evidence(), &secret);
    assert!(owner.judge(&forger.evidence()).unwrap().proven.is_some());
    let Some(evidence_body::Proof::Tpm(proof)) = forger.body.proof.clone() else {
        panic!("a proof without a TPM");
    };
    let bytes = proof.encode_to_vec();
    let mut judged = 0;
    for place in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[place] ^= 1;
        let Ok(proof) = wire::TpmProof::decode(changed.as_slice()) else {
            continue;
        };
        let mut forger = Forger::new(answering.evidence(), &secret);
        *forger.proof() = proof;
        if let Ok(verdicts) = owner.judge(&forger.evidence()) {
            judged += 1;
            assert!(verdicts.proven.is_none(), "byte {place} of the proof");
        }
    }
    assert!(judged > 500, "{judged} of {} changes", bytes.len());
    still_works(&device.identity, &owner);
}

/// The codes of what is looked for on the bus (TPM_CC, TCG TPM 2.0 Library, part 2, 6.5.2).
const CREATE: u32 = 0x153;
const ECDH_ZGEN: u32 = 0x154;
const ACTIVATE_CREDENTIAL: u32 = 0x147;
const QUOTE: u32 = 0x158;
const START_AUTH_SESSION: u32 = 0x176;

fn be16(bytes: &[u8]) -> usize {
    usize::from(u16::from_be_bytes(bytes[..2].try_into().unwrap()))
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

/// The contents of the sized buffer at the front, and what follows.
fn sized(bytes: &[u8]) -> (&[u8], &[u8]) {
    bytes[2..].split_at(be16(bytes))
}

/// A command's authorizations as session and attributes, and its parameters; `handles` stand before them.
fn authorizations(command: &[u8], handles: usize) -> (Vec<(u32, u8)>, &[u8]) {
    let area = &command[10 + 4 * handles..];
    let (mut left, parameters) = area[4..].split_at(be32(area) as usize);
    let mut found = vec![];
    while !left.is_empty() {
        let session = be32(left);
        let (_, rest) = sized(&left[4..]);
        let (attributes, rest) = rest.split_first().unwrap();
        found.push((session, *attributes));
        (_, left) = sized(rest);
    }
    (found, parameters)
}

/// What a recorded bus must look like, whatever went wrong on it: a session's key cannot be worked out from what was seen, because its salt
/// is encrypted to a key in the TPM; what only the device may learn comes back encrypted in such a session; and a key is made with
/// nothing put into it from outside. Counts what it checked.
fn shows_nothing(record: &[Vec<u8>]) -> [usize; 4] {
    // TPM_RH_NULL, TPM_RS_PW; TPMA_SESSION's bit "encrypt".
    const NULL: u32 = 0x4000_0007;
    const PASSWORD: u32 = 0x4000_0009;
    const ENCRYPT: u8 = 0x40;
    let mut counts = [0; 4];
    for command in record {
        match be32(&command[6..]) {
            START_AUTH_SESSION => {
                let (_, rest) = sized(&command[18..]);
                let (salt, _) = sized(rest);
                assert!(be32(&command[10..]) != NULL && salt.len() > 64);
                counts[0] += 1;
            }
            code @ (ACTIVATE_CREDENTIAL | ECDH_ZGEN) => {
                let activate = code == ACTIVATE_CREDENTIAL;
                let (sessions, _) = authorizations(command, if activate { 2 } else { 1 });
                let encrypted = |(session, attributes): &(u32, u8)| {
                    *session != PASSWORD && attributes & ENCRYPT != 0
                };
                assert!(sessions.iter().any(encrypted), "{code:#x}: {sessions:x?}");
                counts[if activate { 1 } else { 2 }] += 1;
            }
            CREATE => {
                let (_, parameters) = authorizations(command, 1);
                // TPM2B_SENSITIVE_CREATE: no authorization value, no data.
                assert_eq!(parameters[..6], [0, 4, 0, 0, 0, 0]);
                counts[3] += 1;
            }
            _ => {}
        }
    }
    counts
}

/// What nobody on the bus may learn of an enrolment: the challenge's secret, the point that the agreement key shares with the grant's
/// sender, and what was in the grant.
fn secrets(identity: &Identity, proven: &Proven, grant: &wire::SealedGrant) -> Vec<Vec<u8>> {
    let sender = Point::from_sec1(&grant.encapsulated).unwrap();
    let shared = identity.agree(&sender).unwrap();
    let given = payload(identity);
    vec![
        proven.secret.expose().to_vec(),
        shared.x().to_vec(),
        shared.y().to_vec(),
        given.integrity_token,
        given.vault_share,
    ]
}

/// Both flights with this log, and the grant as it was sealed; what the report says is wrong, if there is no grant.
fn attempt(
    identity: &Identity,
    owner: &Owner,
    log: Option<&[u8]>,
) -> Result<Result<(Proven, wire::SealedGrant), Vec<Check>>, EnrolError> {
    let answering = evidence(identity, owner, log)?;
    let judged = owner.judge(answering.evidence())?;
    let Some(proven) = judged.proven else {
        return Ok(Err(judged.report.failures().map(|v| v.check).collect()));
    };
    let grant = owner.grant(&proven, identity);
    assert_eq!(answering.granted(identity, &grant)?, payload(identity));
    Ok(Ok((proven, grant)))
}

/// The files of a device, each with its contents.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

#[test]
fn a_sniffed_and_broken_bus_shows_no_secret_and_stops_nothing() {
    let emulator = Emulator::new();
    let (tpm, tap) = Proxy::tap(&emulator);
    let (device, owner) = (Device::with(emulator, tpm), Owner::new());
    let (identity, kept) = (&device.identity, files(device.dir.path()));
    let silent = |proven: &Proven, grant: &wire::SealedGrant, when: &str| {
        let secrets = secrets(identity, proven, grant);
        let tap = tap.lock().unwrap();
        assert!(tap.saw(&grant.encapsulated[1..33]), "the proxy records");
        for secret in secrets {
            assert!(!tap.saw(&secret), "{when}");
            let written = files(device.dir.path());
            assert!(!written.iter().any(|(_, bytes)| holds(bytes, &secret)));
        }
        shows_nothing(&tap.record)
    };
    let (proven, grant) = attempt(identity, &owner, None).unwrap().unwrap();
    // Every kind of command that is looked at has been: three keys were made, a credential opened, points agreed upon.
    let counts = silent(&proven, &grant, "undisturbed");
    assert!(counts[0] >= 3 && counts[1] >= 1 && counts[2] >= 2 && counts[3] == 3);
    // Each command goes wrong in each way, once; the device says so or does without, and the next try succeeds.
    let mut commands = 0;
    for fault in [
        Fault::Lost,
        Fault::AnswerLost,
        Fault::Changed,
        Fault::Code(0x101),
        Fault::Code(0x921),
        Fault::Code(0x922),
    ] {
        for number in 0.. {
            tap.lock().unwrap().arm(Some((number, fault)));
            let hit = enrol(identity, &owner);
            let reached = tap.lock().unwrap().count > number;
            tap.lock().unwrap().arm(None);
            if !reached {
                hit.unwrap();
                commands = number;
                break;
            }
            let text = match hit {
                Ok(_) => String::new(),
                Err(error) => error.to_string(),
            };
            // Busy (0x922) is asked again.
            assert!(
                fault != Fault::Code(0x922) || text.is_empty(),
                "{number}: {text}"
            );
            let (proven, grant) = attempt(identity, &owner, None)
                .unwrap_or_else(|error| panic!("after {fault:?} at {number} ({text}): {error}"))
                .unwrap();
            silent(&proven, &grant, &format!("{fault:?} at {number}"));
            // What is left of a session whose handle was lost goes with the device file; here nobody closes one.
            let tpm = identity.tpm().unwrap();
            for handle in loaded(tpm) {
                if handle.0 >> 24 != 0x80 {
                    tpm.flush(handle).unwrap();
                }
            }
            tap.lock().unwrap().record.clear();
        }
        assert!(commands > 25, "{commands} commands");
    }
    assert_eq!(files(device.dir.path()), kept, "nothing was written");
}

/// The TPM is reset before each command of an enrolment: by the power going, or by a wire at its reset line, whose holder starts it again and
/// could extend the PCRs as he likes. What does not matter to the device (a key that is not to be flushed any more) does not end the try.
#[test]
fn a_tpm_that_is_reset_in_the_middle_proves_nothing_and_enrols_afterwards() {
    let emulator = Arc::new(Mutex::new(Emulator::new()));
    let (tpm, tap) = Proxy::at_reset_line(&emulator);
    let (dir, owner) = (tempfile::tempdir().unwrap(), Owner::new());
    let identity = Identity::open_or_create(dir.path(), Some(tpm)).unwrap();
    let (kept, log) = (files(dir.path()), event_log(BOOT));
    boot(&identity, BOOT);
    let in_order = |when: &str| {
        // The machine starts again; its firmware measures.
        boot(&identity, BOOT);
        let (proven, grant) = attempt(&identity, &owner, Some(&log))
            .unwrap_or_else(|error| panic!("{when}: {error}"))
            .unwrap_or_else(|checks| panic!("{when}: {checks:?}"));
        for secret in secrets(&identity, &proven, &grant) {
            assert!(!tap.lock().unwrap().saw(&secret), "{when}");
        }
        let tpm = identity.tpm().unwrap();
        // Nothing half: one key in its slot, no session, no mark, and on the disk what was there before.
        assert_eq!(loaded(tpm).len(), 1, "{when}");
        assert_eq!(mark::read(tpm).unwrap(), None);
        assert_eq!(files(dir.path()), kept);
        shows_nothing(&tap.lock().unwrap().record);
        tap.lock().unwrap().record.clear();
    };
    for fault in [Fault::PowerCut, Fault::Reset] {
        // Between the flights.
        let session = device::hello(&identity, &machine(), "1").unwrap();
        let challenge = owner.challenge(session.bytes()).unwrap();
        tap.lock().unwrap().arm(Some((0, fault)));
        let answered = session.challenged(&identity, &challenge, &owner.pinned(), 0, Some(&log));
        tap.lock().unwrap().arm(None);
        match (fault, answered) {
            (Fault::PowerCut, Err(error)) => {
                let error = error.to_string();
                assert!(error.contains("the bus was cut"), "{error}");
            }
            (Fault::Reset, Ok(answering)) => {
                // Its keys are loaded again, and its PCRs say nothing of the boot that the log tells.
                let judged = owner.judge(answering.evidence()).unwrap();
                assert_eq!(failed(&judged), [Check::EventLogReplay]);
                assert!(judged.proven.is_none());
            }
            (_, answered) => panic!("{fault:?}: {answered:?}"),
        }
        in_order("between the flights");

        // In the middle of one.
        let mut broken = 0;
        for number in 0.. {
            tap.lock().unwrap().arm(Some((number, fault)));
            let hit = attempt(&identity, &owner, Some(&log));
            let sent = tap.lock().unwrap().sent.clone();
            tap.lock().unwrap().arm(None);
            if sent.len() <= number {
                hit.unwrap().unwrap();
                assert!(number > 25, "{number} commands");
                break;
            }
            let when = format!("{fault:?} at {number} ({:#x})", sent[number]);
            match hit {
                Err(
                    EnrolError::Tpm(_)
                    | EnrolError::Sign(_)
                    | EnrolError::Hpke(_)
                    | EnrolError::Quote(_),
                ) => broken += 1,
                Err(error) => panic!("{when}: {error}"),
                // What was quoted before stays true of the time before.
                Ok(Ok(_)) => assert!(sent[..number].contains(&QUOTE), "{when}"),
                // The PCRs are those of no boot; and a handle from before may stand for another key, which is then the one that is
                // certified.
                Ok(Err(checks)) => {
                    let keys = [Check::DeviceKey, Check::AgreementKey];
                    let (replay, others): (Vec<Check>, _) = checks
                        .into_iter()
                        .partition(|check| *check == Check::EventLogReplay);
                    assert_eq!(replay, [Check::EventLogReplay], "{when}");
                    let mixed_up = |check: &Check| keys.contains(check);
                    assert!(others.iter().all(mixed_up), "{when}: {others:?}");
                }
            }
            in_order(&when);
        }
        assert!(broken > 10, "{fault:?}: {broken}");
    }
}
