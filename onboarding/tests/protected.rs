//! What nobody on the bus may see or change, against a real emulator: salted sessions, credentials made without a TPM, the owner's
//! mark.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use onboarding::enrol::{credential, mark};
use onboarding::quote::{self, GENERATED, Statement};
use onboarding::tpm::template::{EkAlgorithm, KeyUse, endorsement_key, p256};
use onboarding::tpm::{Hierarchy, NvAttributes, Object, Tpm, TpmError, code};
use onboarding::wire::EccPoint;
use protocol::cipher::{KeyAgreement as _, Point, SoftwareAgreement};
use protocol::digest::Digest;
use protocol::enrolment::owner::Pinned;
use protocol::keys::VerifyingKey;
use support::proxy::{Fault, Proxy};
use support::{Emulator, loaded};

fn key(tpm: &Tpm, hierarchy: Hierarchy, key: KeyUse) -> Object {
    let parent = tpm.create_primary(hierarchy, &p256(KeyUse::Store)).unwrap();
    let blob = tpm.create(&parent, &p256(key)).unwrap();
    tpm.load(&parent, &blob).unwrap()
}

fn endorsement(tpm: &Tpm, algorithm: EkAlgorithm) -> Object {
    tpm.create_primary(Hierarchy::Endorsement, &endorsement_key(algorithm))
        .unwrap()
}

#[test]
fn a_tpm_opens_what_was_wrapped_without_one() {
    let emulator = Emulator::new();
    let (tpm, tap) = Proxy::tap(&emulator);
    let secret = [0x42; 32];
    let attestation = key(&tpm, Hierarchy::Endorsement, KeyUse::Attest);
    for algorithm in [EkAlgorithm::Rsa2048, EkAlgorithm::P256] {
        let ek = endorsement(&tpm, algorithm);
        let made = credential::make(ek.public(), attestation.name(), &secret).unwrap();
        let open = |blob: &[u8], seed: &[u8]| {
            tpm.activate_credential(&attestation, &ek, ek.public(), blob, seed)
        };
        assert_eq!(
            open(&made.blob, &made.seed).unwrap(),
            secret,
            "{algorithm:?}"
        );
        // Another each time; each part changed.
        let again = credential::make(ek.public(), attestation.name(), &secret).unwrap();
        assert_ne!(again, made);
        assert!(open(&again.blob, &made.seed).is_err());
        for place in [0, 1, 2, 33, 34, made.blob.len() - 1] {
            let mut changed = made.blob.clone();
            changed[place] ^= 1;
            assert!(open(&changed, &made.seed).is_err(), "{place}");
        }
    }
    assert!(!tap.lock().unwrap().saw(&secret));
    drop(attestation);
    assert_eq!(loaded(&tpm), []);
}

#[test]
fn a_credential_for_another_attestation_key_or_another_tpm_stays_closed() {
    let (mine, other) = (Emulator::new(), Emulator::new());
    let (tpm, foreign) = (mine.connect(), other.connect());
    let attestation = key(&tpm, Hierarchy::Endorsement, KeyUse::Attest);
    let second = key(&tpm, Hierarchy::Endorsement, KeyUse::Attest)
        .name()
        .clone();
    for algorithm in [EkAlgorithm::Rsa2048, EkAlgorithm::P256] {
        let ek = endorsement(&tpm, algorithm);
        let theirs = endorsement(&foreign, algorithm);
        for (public, name) in [
            (ek.public(), &second),
            (theirs.public(), attestation.name()),
        ] {
            let made = credential::make(public, name, &[7; 32]).unwrap();
            let error = tpm
                .activate_credential(&attestation, &ek, ek.public(), &made.blob, &made.seed)
                .unwrap_err();
            assert!(matches!(error, TpmError::Refused { .. }), "{error}");
        }
    }
}

#[test]
fn an_answer_that_was_changed_on_the_bus_is_noticed() {
    let emulator = Emulator::new();
    let (tpm, tap) = Proxy::tap(&emulator);
    let parent = tpm
        .create_primary(Hierarchy::Owner, &p256(KeyUse::Store))
        .unwrap();
    let blob = tpm.create(&parent, &p256(KeyUse::Agree)).unwrap();
    let agreement = tpm.load(&parent, &blob).unwrap();
    let session = tpm.start_hmac_session(&parent, parent.public()).unwrap();
    let peer = SoftwareAgreement::from_scalar(&[5; 32]).unwrap();
    let public = peer.public_point().unwrap();
    let other = EccPoint {
        x: *public.x(),
        y: *public.y(),
    };
    tap.lock().unwrap().arm(Some((0, Fault::Changed)));
    let error = tpm.ecdh_zgen(&agreement, &session, &other).unwrap_err();
    assert!(matches!(error, TpmError::Tampered { .. }), "{error}");
    drop(session);

    // The same with a fresh session; and the shared point crossed the bus under cover.
    let session = tpm.start_hmac_session(&parent, parent.public()).unwrap();
    let point = agreement.public().p256_point().unwrap();
    let expected = peer
        .agree(&Point::from_coordinates(point.x, point.y).unwrap())
        .unwrap();
    for _ in 0..3 {
        let shared = tpm.ecdh_zgen(&agreement, &session, &other).unwrap();
        assert_eq!((&shared.x, &shared.y), (expected.x(), expected.y()));
    }
    let tap = tap.lock().unwrap();
    assert!(tap.saw(public.x()), "the proxy records");
    assert!(!tap.saw(expected.x()) && !tap.saw(expected.y()));
}

#[test]
fn a_key_put_in_the_place_of_the_known_one_learns_nothing() {
    let (mine, other) = (Emulator::new(), Emulator::new());
    let (tpm, foreign) = (mine.connect(), other.connect());
    let ek = endorsement(&tpm, EkAlgorithm::P256);
    let theirs = endorsement(&foreign, EkAlgorithm::P256);
    let attestation = key(&tpm, Hierarchy::Endorsement, KeyUse::Attest);
    let made = credential::make(ek.public(), attestation.name(), &[7; 32]).unwrap();
    // The device knows another key than the TPM at hand has: the salt is for that one, so no code fits.
    let error = tpm
        .activate_credential(&attestation, &ek, theirs.public(), &made.blob, &made.seed)
        .unwrap_err();
    assert!(
        matches!(error, TpmError::Refused { .. } | TpmError::Tampered { .. }),
        "{error}"
    );
}

#[test]
fn a_certified_key_is_the_one_that_is_named() {
    let emulator = Emulator::new();
    let tpm = emulator.connect();
    let attestation = key(&tpm, Hierarchy::Endorsement, KeyUse::Attest);
    let device = key(&tpm, Hierarchy::Owner, KeyUse::Sign);
    let certified = tpm.certify(&device, &attestation, b"transcript").unwrap();
    let attest = quote::parse(&certified.attest).unwrap();
    assert_eq!(attest.magic, GENERATED);
    assert_eq!(attest.extra_data, b"transcript");
    assert_eq!(
        attest.statement,
        Statement::Certify {
            name: device.name().0.clone()
        }
    );
    let verifying = VerifyingKey::P256(attestation.public().p256_point().unwrap().to_sec1());
    assert!(verifying.verify(&certified.attest, &certified.signature.to_fixed()));
    assert!(tpm.certify(&device, &attestation, &[0; 65]).is_err());
}

fn pinned(epoch: u64) -> Pinned {
    Pinned {
        epoch,
        root: Digest::of(b"root"),
        next: Digest::of(b"next"),
        delegation: 7,
    }
}

#[test]
fn the_mark_is_written_locked_and_open_again_after_a_boot() {
    let mut emulator = Emulator::new();
    let tpm = emulator.connect();
    assert_eq!(mark::read(&tpm).unwrap(), None);
    mark::write(&tpm, &pinned(1)).unwrap();
    assert_eq!(mark::read(&tpm).unwrap(), Some(pinned(1)));
    // The same again is nothing to do; another is for the next boot.
    mark::write(&tpm, &pinned(1)).unwrap();
    let error = mark::write(&tpm, &pinned(2)).unwrap_err();
    assert!(matches!(error, mark::MarkError::Locked), "{error}");
    assert_eq!(mark::read(&tpm).unwrap(), Some(pinned(1)));
    assert_eq!(loaded(&tpm), []);
    drop(tpm);

    emulator.power_cycle();
    let tpm = emulator.connect();
    assert_eq!(mark::read(&tpm).unwrap(), Some(pinned(1)));
    // A boot at which nothing changes locks it too.
    mark::write(&tpm, &pinned(1)).unwrap();
    assert!(mark::write(&tpm, &pinned(2)).is_err());
    drop(tpm);

    emulator.power_cycle();
    let tpm = emulator.connect();
    mark::write(&tpm, &pinned(2)).unwrap();
    assert_eq!(mark::read(&tpm).unwrap(), Some(pinned(2)));
    mark::remove(&tpm).unwrap();
    assert_eq!(mark::read(&tpm).unwrap(), None);
    mark::remove(&tpm).unwrap();
    mark::write(&tpm, &pinned(1)).unwrap();
    drop(tpm);

    // Clearing the TPM takes the owner's mark away.
    emulator.clear();
    assert_eq!(mark::read(&emulator.connect()).unwrap(), None);
}

#[test]
fn a_foreign_index_under_our_number_is_replaced() {
    let emulator = Emulator::new();
    let tpm = emulator.connect();
    {
        let parent = tpm
            .create_primary(Hierarchy::Owner, &p256(KeyUse::Store))
            .unwrap();
        let session = tpm.start_hmac_session(&parent, parent.public()).unwrap();
        let attributes = NvAttributes::OWNER_WRITE.with(NvAttributes::OWNER_READ);
        tpm.nv_define(mark::INDEX, attributes, 700, &session)
            .unwrap();
        // Longer than one write.
        tpm.nv_write(mark::INDEX, &[9; 700], &session).unwrap();
        assert_eq!(tpm.nv_read(mark::INDEX).unwrap(), Some(vec![9; 700]));
    }
    assert!(matches!(mark::read(&tpm), Err(mark::MarkError::Form(_))));
    mark::write(&tpm, &pinned(1)).unwrap();
    assert_eq!(mark::read(&tpm).unwrap(), Some(pinned(1)));
}

#[test]
fn the_mark_survives_a_cut_at_each_command() {
    for fault in [Fault::Lost, Fault::AnswerLost, Fault::Code(code::LOCKOUT)] {
        let mut number = 0;
        loop {
            let mut emulator = Emulator::new();
            {
                let (tpm, tap) = Proxy::tap(&emulator);
                tap.lock().unwrap().arm(Some((number, fault)));
                let done = mark::write(&tpm, &pinned(1));
                if tap.lock().unwrap().count <= number {
                    done.unwrap();
                    break;
                }
                // Flushing what was loaded may fail without harm.
                let _ = done;
            }
            emulator.power_cycle();
            let tpm = emulator.connect();
            let seen = mark::read(&tpm).unwrap();
            assert!(seen.is_none() || seen == Some(pinned(1)), "{number}");
            mark::write(&tpm, &pinned(1)).unwrap();
            assert_eq!(mark::read(&tpm).unwrap(), Some(pinned(1)), "{number}");
            number += 1;
        }
        assert!(number > 8, "{number} commands");
    }
}

#[test]
fn no_owner_may_write_without_the_bus_noticing_a_change() {
    // The code is over the data: whoever changes them on their way is refused by the TPM.
    let emulator = Emulator::new();
    let tpm = emulator.connect();
    mark::write(&tpm, &pinned(1)).unwrap();
    let public = tpm.nv_read_public(mark::INDEX).unwrap().unwrap();
    assert!(public.attributes.has(NvAttributes::WRITE_LOCKED));
    assert_eq!(public.size, mark::BYTES);
    let parent = tpm
        .create_primary(Hierarchy::Owner, &p256(KeyUse::Store))
        .unwrap();
    let session = tpm.start_hmac_session(&parent, parent.public()).unwrap();
    let error = tpm.nv_write(mark::INDEX, &[0; 81], &session).unwrap_err();
    assert_eq!(error.code().map(|c| c.base()), Some(code::NV_LOCKED));
}
