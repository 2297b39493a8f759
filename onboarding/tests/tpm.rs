//! The TPM commands against a real emulator.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use onboarding::tpm::template::{EkAlgorithm, KeyUse, certificate_index, endorsement_key, p256};
use onboarding::tpm::{
    Handle, Hierarchy, PcrSelection, Socket, Startup, Tpm, TpmError, Transport, code,
};
use onboarding::wire::EccPoint;
use protocol::cipher::{KeyAgreement as _, Point, SoftwareAgreement};
use protocol::keys::{VerifyingKey, sha256};
use support::{Emulator, loaded};

#[test]
fn it_says_what_it_is_and_can_do() {
    let emulator = Emulator::new();
    let tpm = emulator.connect();
    let properties = tpm.properties().unwrap();
    assert_eq!(properties.manufacturer, "IBM");
    assert!(!properties.in_lockout && !properties.owner_password);
    assert!(properties.failures_allowed > 0, "{properties:?}");
    assert_ne!(properties.firmware, "0.0.0.0");
    let capabilities = tpm.capabilities().unwrap();
    assert_eq!(capabilities.missing(), Vec::<&str>::new());
    assert!(capabilities.rsa && capabilities.aes_cfb && capabilities.activate_credential);
}

#[test]
fn random_bytes_come_in_any_number() {
    let emulator = Emulator::new();
    let tpm = emulator.connect();
    assert_eq!(tpm.random(0).unwrap().len(), 0);
    let (a, b) = (tpm.random(100).unwrap(), tpm.random(100).unwrap());
    assert_eq!((a.len(), b.len()), (100, 100));
    assert_ne!(a, b);
}

#[test]
fn starting_twice_is_an_error_with_a_name() {
    let emulator = Emulator::new();
    let error = emulator.connect().startup(Startup::Clear).unwrap_err();
    assert_eq!(error.code().map(|c| c.base()), Some(code::INITIALIZE));
    assert!(
        error.to_string().starts_with("TPM command Startup: "),
        "{error}"
    );
}

#[test]
fn a_primary_key_comes_again_from_its_template() {
    let emulator = Emulator::new();
    let tpm = emulator.connect();
    let make = |hierarchy, template| {
        tpm.create_primary(hierarchy, template)
            .unwrap()
            .public()
            .clone()
    };
    let store = p256(KeyUse::Store);
    assert_eq!(
        make(Hierarchy::Owner, &store),
        make(Hierarchy::Owner, &store)
    );
    assert_ne!(
        make(Hierarchy::Owner, &store),
        make(Hierarchy::Endorsement, &store)
    );
    for algorithm in [EkAlgorithm::Rsa2048, EkAlgorithm::P256] {
        let template = endorsement_key(algorithm);
        let key = tpm
            .create_primary(Hierarchy::Endorsement, &template)
            .unwrap();
        assert_eq!(key.public().name(), *key.name(), "{algorithm:?}");
        let (public, name) = tpm.read_public(key.handle()).unwrap();
        assert_eq!((&public, &name), (key.public(), key.name()));
    }
    assert_eq!(loaded(&tpm), []);
}

#[test]
fn a_made_key_signs_what_its_public_part_verifies() {
    let emulator = Emulator::new();
    let tpm = emulator.connect();
    let parent = tpm
        .create_primary(Hierarchy::Owner, &p256(KeyUse::Store))
        .unwrap();
    let blob = tpm.create(&parent, &p256(KeyUse::Sign)).unwrap();
    let key = tpm.load(&parent, &blob).unwrap();
    assert_eq!(key.public().name(), *key.name());
    let point = key.public().p256_point().unwrap();
    let verifying = VerifyingKey::P256(point.to_sec1());
    for message in [&b""[..], b"hello", &[7; 10_000]] {
        let signature = tpm.sign(key.handle(), &sha256(message)).unwrap();
        assert!(verifying.verify(message, &signature.to_fixed()));
        assert!(!verifying.verify(b"other", &signature.to_fixed()));
    }
}

#[test]
fn a_restricted_key_does_not_sign_foreign_digests() {
    let emulator = Emulator::new();
    let tpm = emulator.connect();
    let parent = tpm
        .create_primary(Hierarchy::Owner, &p256(KeyUse::Store))
        .unwrap();
    let blob = tpm.create(&parent, &p256(KeyUse::Attest)).unwrap();
    let key = tpm.load(&parent, &blob).unwrap();
    let error = tpm.sign(key.handle(), &[1; 32]).unwrap_err();
    assert!(matches!(error, TpmError::Refused { .. }), "{error}");
}

#[test]
fn a_wrapped_key_opens_in_its_own_tpm_only() {
    let (mine, other) = (Emulator::new(), Emulator::new());
    let (mine, other) = (mine.connect(), other.connect());
    let parent = |tpm: &Tpm| {
        tpm.create_primary(Hierarchy::Owner, &p256(KeyUse::Store))
            .unwrap()
    };
    let mut blob = mine.create(&parent(&mine), &p256(KeyUse::Sign)).unwrap();
    let error = other.load(&parent(&other), &blob).unwrap_err();
    assert!(error.is_foreign_key(), "{error}");
    assert!(error.to_string().contains("another TPM"), "{error}");

    let last = blob.private.last_mut().unwrap();
    *last ^= 1;
    assert!(
        mine.load(&parent(&mine), &blob)
            .unwrap_err()
            .is_foreign_key()
    );
}

#[test]
fn a_shared_point_is_the_same_on_both_ends_with_both_coordinates() {
    let emulator = Emulator::new();
    let tpm = emulator.connect();
    let parent = tpm
        .create_primary(Hierarchy::Owner, &p256(KeyUse::Store))
        .unwrap();
    let blob = tpm.create(&parent, &p256(KeyUse::Agree)).unwrap();
    let key = tpm.load(&parent, &blob).unwrap();
    let point = key.public().p256_point().unwrap();
    let inside = Point::from_coordinates(point.x, point.y).unwrap();
    let session = tpm.start_hmac_session(&parent, parent.public()).unwrap();
    for scalar in [[1; 32], [0x5a; 32], [0x77; 32]] {
        let software = SoftwareAgreement::from_scalar(&scalar).unwrap();
        let public = software.public_point().unwrap();
        let other = EccPoint {
            x: *public.x(),
            y: *public.y(),
        };
        let shared = tpm.ecdh_zgen(&key, &session, &other).unwrap();
        let expected = software.agree(&inside).unwrap();
        assert_eq!((&shared.x, &shared.y), (expected.x(), expected.y()));
    }
    // Not on the curve.
    let error = tpm
        .ecdh_zgen(
            &key,
            &session,
            &EccPoint {
                x: [1; 32],
                y: [2; 32],
            },
        )
        .unwrap_err();
    assert!(
        error.to_string().contains("ECDH_ZGen on handle 0x80"),
        "{error}"
    );
}

#[test]
fn pcrs_are_extended_and_read_all_at_one_moment() {
    let emulator = Emulator::new();
    let tpm = emulator.connect();
    tpm.pcr_extend(4, &[0xaa; 32]).unwrap();
    tpm.pcr_extend(15, &[0xbb; 32]).unwrap();
    let values = tpm.pcr_read(PcrSelection::BOOT).unwrap();
    assert_eq!(
        values.iter().map(|(index, _)| *index).collect::<Vec<_>>(),
        (0..16).collect::<Vec<_>>()
    );
    let extended = |with: u8| {
        let mut both = vec![0; 32];
        both.extend([with; 32]);
        sha256(&both)
    };
    for (index, value) in values {
        let expected = match index {
            4 => extended(0xaa),
            15 => extended(0xbb),
            _ => [0; 32],
        };
        assert_eq!(value, expected, "PCR {index}");
    }
}

#[test]
fn a_persistent_key_outlives_a_power_cut_and_can_be_removed() {
    let mut emulator = Emulator::new();
    let place = Handle(0x8100_1234);
    let name = {
        let tpm = emulator.connect();
        assert!(tpm.read_public(place).unwrap_err().is_no_such_handle());
        let key = tpm
            .create_primary(Hierarchy::Owner, &p256(KeyUse::Sign))
            .unwrap();
        tpm.evict_control(key.handle(), place).unwrap();
        let again = tpm.evict_control(key.handle(), place).unwrap_err();
        assert_eq!(again.code().map(|c| c.base()), Some(code::NV_DEFINED));
        key.name().clone()
    };
    emulator.power_cycle();
    let tpm = emulator.connect();
    assert_eq!(tpm.read_public(place).unwrap().1, name);
    tpm.sign(place, &[3; 32]).unwrap();
    tpm.evict_control(place, place).unwrap();
    assert!(tpm.read_public(place).unwrap_err().is_no_such_handle());
}

#[test]
fn the_makers_certificate_is_read_whole_from_nv() {
    let emulator = Emulator::manufactured();
    let tpm = emulator.connect();
    let index = certificate_index(EkAlgorithm::Rsa2048);
    let data = tpm.nv_read(index).unwrap().unwrap();
    assert_eq!(
        data.len(),
        usize::from(tpm.nv_read_public(index).unwrap().unwrap().size)
    );
    // A DER sequence with a two-byte length, longer than one read.
    assert_eq!(data[..2], [0x30, 0x82]);
    assert!(data.len() > 512);
    assert_eq!(tpm.nv_read(0x01c0_7777).unwrap(), None);
}

#[test]
fn a_credential_opens_with_the_right_two_keys_only() {
    let emulator = Emulator::new();
    let tpm = emulator.connect();
    let secret = [0x42; 32];
    let parent = tpm
        .create_primary(Hierarchy::Endorsement, &p256(KeyUse::Store))
        .unwrap();
    let blobs = [(); 2].map(|()| tpm.create(&parent, &p256(KeyUse::Attest)).unwrap());
    let key = tpm.load(&parent, &blobs[0]).unwrap();
    drop(parent);
    for algorithm in [EkAlgorithm::Rsa2048, EkAlgorithm::P256] {
        let ek = tpm
            .create_primary(Hierarchy::Endorsement, &endorsement_key(algorithm))
            .unwrap();
        let (wrapped, seed) = tpm
            .make_credential(ek.handle(), &secret, key.name())
            .unwrap();
        assert_eq!(
            tpm.activate_credential(&key, &ek, ek.public(), &wrapped, &seed)
                .unwrap(),
            secret
        );
        let mut changed = wrapped.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(
            tpm.activate_credential(&key, &ek, ek.public(), &changed, &seed)
                .is_err()
        );
    }
    drop(key);
    let parent = tpm
        .create_primary(Hierarchy::Endorsement, &p256(KeyUse::Store))
        .unwrap();
    let other = tpm.load(&parent, &blobs[1]).unwrap();
    let name = {
        let first = tpm.load(&parent, &blobs[0]).unwrap();
        first.name().clone()
    };
    drop(parent);
    let ek = tpm
        .create_primary(Hierarchy::Endorsement, &endorsement_key(EkAlgorithm::P256))
        .unwrap();
    let (wrapped, seed) = tpm.make_credential(ek.handle(), &secret, &name).unwrap();
    assert!(
        tpm.activate_credential(&other, &ek, ek.public(), &wrapped, &seed)
            .is_err()
    );
    drop((other, ek));
    assert_eq!(loaded(&tpm), [], "keys or sessions stayed behind");
}

/// Answers from a list first, then from the TPM behind it; counts what it is asked.
struct Moody<T> {
    answers: VecDeque<Vec<u8>>,
    behind: T,
    asked: Arc<Mutex<usize>>,
}

impl<T: Transport> Transport for Moody<T> {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        *self.asked.lock().unwrap() += 1;
        match self.answers.pop_front() {
            Some(answer) => Ok(answer),
            None => self.behind.exchange(command),
        }
    }
}

fn moody(emulator: &Emulator, codes: &[u32]) -> (Tpm, Arc<Mutex<usize>>) {
    let asked = Arc::new(Mutex::new(0));
    let refusal = |code: &u32| {
        let mut answer = vec![0x80, 0x01, 0, 0, 0, 10];
        answer.extend(code.to_be_bytes());
        answer
    };
    let tpm = Tpm::over(Moody {
        answers: codes.iter().map(refusal).collect(),
        behind: Socket::unix(&emulator.socket()).unwrap(),
        asked: asked.clone(),
    });
    (tpm, asked)
}

#[test]
fn a_busy_tpm_is_asked_again() {
    let emulator = Emulator::new();
    let (tpm, asked) = moody(&emulator, &[code::RETRY, code::YIELDED, code::TESTING]);
    assert_eq!(tpm.random(8).unwrap().len(), 8);
    assert_eq!(*asked.lock().unwrap(), 4);
}

#[test]
fn a_locked_or_broken_tpm_is_not_asked_again_and_says_so() {
    let emulator = Emulator::new();
    for (number, word) in [
        (code::LOCKOUT, "LOCKED OUT"),
        (code::FAILURE, "failure mode"),
    ] {
        let (tpm, asked) = moody(&emulator, &[number]);
        let error = tpm.random(8).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(error.to_string().contains("GetRandom"), "{error}");
        assert_eq!(error.is_lockout(), number == code::LOCKOUT);
        assert_eq!(*asked.lock().unwrap(), 1);
    }
}

/// Passes everything on, with one bit of one answer changed.
struct Flipping {
    behind: Socket<std::os::unix::net::UnixStream>,
    bit: usize,
}

impl Transport for Flipping {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let mut answer = self.behind.exchange(command)?;
        if let Some(byte) = answer.get_mut(self.bit / 8) {
            *byte ^= 1 << (self.bit % 8);
        }
        Ok(answer)
    }
}

#[test]
fn no_flipped_bit_in_an_answer_makes_a_parser_panic() {
    let emulator = Emulator::new();
    let mut refused = 0;
    for bit in 0..8 * 64 {
        let tpm = Tpm::over(Flipping {
            behind: Socket::unix(&emulator.socket()).unwrap(),
            bit,
        });
        let results = [
            tpm.pcr_read(PcrSelection(0x0003)).is_err(),
            tpm.read_public(Handle(0x8100_0001)).is_err(),
            tpm.capabilities().is_err(),
            tpm.properties().is_err(),
        ];
        refused += results.into_iter().filter(|refused| *refused).count();
    }
    // Every flipped bit in the ten bytes of the header is noticed by every command.
    assert!(refused >= 4 * 80, "{refused}");
}

#[test]
fn a_missing_tpm_is_an_error_that_says_what_to_do() {
    let error = Tpm::open(std::path::Path::new("/nonexistent/tpmrm0")).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("/nonexistent/tpmrm0"), "{text}");
    assert!(text.contains("firmware"), "{text}");
}
