//! A device's identity: made once, found again, never silently replaced.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use onboarding::enrol::{EnrolError, MachineId, device};
use onboarding::keys::{EndorsementMaker, Identity, IdentityError, Protection};
use onboarding::quote::Check;
use onboarding::tpm::template::{KeyUse, p256};
use onboarding::tpm::{Hierarchy, KeyBlob, Socket, Tpm, TpmError, Transport};
use onboarding::wire::{Public, PublicKind};
use prost::Message as _;
use protocol::cipher::{KeyAgreement as _, Point, SoftwareAgreement};
use protocol::enrolment::wire;
use protocol::envelope::Signer as _;
use protocol::keys::VerifyingKey;
use support::enrol::{Forger, Owner, enrol, machine, opened, payload, refused};
use support::{Emulator, loaded};
use x509_parser::prelude::{FromDer as _, X509Certificate};

fn file(dir: &Path) -> std::path::PathBuf {
    dir.join("identity.json")
}

/// Everything that an identity must be able to do, whatever protects it.
fn works(identity: &Identity) {
    let key = VerifyingKey::from_certificate_der(identity.device_certificate().der()).unwrap();
    let signature = identity.sign_p256_sha256(b"message").unwrap();
    assert!(key.verify(b"message", &signature));

    let software = SoftwareAgreement::from_scalar(&[9; 32]).unwrap();
    let inside = Point::from_certificate_der(identity.ecdh_certificate().der()).unwrap();
    let here = identity.agree(&software.public_point().unwrap()).unwrap();
    assert!(here == software.agree(&inside).unwrap());
}

#[test]
fn made_once_and_found_again_after_a_power_cut() {
    let mut emulator = Emulator::new();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("deep/down");
    let first = Identity::open_or_create(&dir, Some(emulator.connect())).unwrap();
    assert_eq!(first.protection(), Protection::Tpm);
    works(&first);
    let certificates = |identity: &Identity| {
        (
            identity.device_certificate().clone(),
            identity.ecdh_certificate().clone(),
            identity.attestation_certificate().cloned(),
            identity.endorsement().unwrap().public.clone(),
        )
    };
    let before = certificates(&first);
    drop(first);
    emulator.power_cycle();
    let again = Identity::open_or_create(&dir, Some(emulator.connect())).unwrap();
    assert_eq!(certificates(&again), before);
    works(&again);
}

#[test]
fn certificates_are_signed_by_the_device_key_and_never_expire() {
    let emulator = Emulator::new();
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::open_or_create(dir.path(), Some(emulator.connect())).unwrap();
    let parse = |der| X509Certificate::from_der(der).unwrap().1;
    let device = parse(identity.device_certificate().der());
    for certificate in [
        identity.device_certificate(),
        identity.ecdh_certificate(),
        identity.attestation_certificate().unwrap(),
        identity
            .endorsement()
            .unwrap()
            .certificate
            .as_ref()
            .unwrap(),
    ] {
        let parsed = parse(certificate.der());
        parsed.verify_signature(Some(device.public_key())).unwrap();
        assert_eq!(parsed.issuer(), device.subject());
        assert_eq!(parsed.validity().not_before.timestamp(), 0);
        // 9999-12-31T23:59:59Z
        assert_eq!(parsed.validity().not_after.timestamp(), 253_402_300_799);
        let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.pem().as_bytes()).unwrap();
        assert_eq!(pem.contents, certificate.der());
        assert!(certificate.pem().ends_with("-----\n"));
    }
    assert!(device.is_ca());
    assert!(!parse(identity.ecdh_certificate().der()).is_ca());
}

#[test]
fn the_makers_endorsement_certificate_is_preferred() {
    let emulator = Emulator::manufactured();
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::open_or_create(dir.path(), Some(emulator.connect())).unwrap();
    let endorsement = identity.endorsement().unwrap();
    assert_eq!(endorsement.maker, EndorsementMaker::Manufacturer);
    assert!(matches!(endorsement.public.kind, PublicKind::Rsa { .. }));
    let der = endorsement.certificate.as_ref().unwrap().der();
    let (rest, certificate) = X509Certificate::from_der(der).unwrap();
    assert!(rest.is_empty());
    assert!(certificate.issuer().to_string().contains("swtpm"));

    let plain = Emulator::new();
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::open_or_create(dir.path(), Some(plain.connect())).unwrap();
    assert_eq!(
        identity.endorsement().unwrap().maker,
        EndorsementMaker::Device
    );
}

#[test]
fn a_secret_wrapped_for_this_machine_opens_here() {
    let emulator = Emulator::manufactured();
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::open_or_create(dir.path(), Some(emulator.connect())).unwrap();
    works(&identity);
    // Made by the same TPM here, which any holder of the two public keys could do.
    let tpm = identity.tpm().unwrap().clone();
    let attest = identity.quote(b"nonce").unwrap().unwrap().attest;
    assert!(!attest.is_empty());
    let stored: serde_json::Value =
        serde_json::from_slice(&fs::read(file(dir.path())).unwrap()).unwrap();
    let public = unpacked(&stored["keys"]["attestation"]["public"]);
    let name = onboarding::wire::Public::parse(&public).unwrap().name();
    let (wrapped, seed) = {
        let ek = tpm
            .create_primary(
                onboarding::tpm::Hierarchy::Endorsement,
                &onboarding::tpm::template::endorsement_key(
                    onboarding::tpm::template::EkAlgorithm::Rsa2048,
                ),
            )
            .unwrap();
        tpm.make_credential(ek.handle(), b"the secret", &name)
            .unwrap()
    };
    let opened = identity.activate_credential(&wrapped, &seed).unwrap();
    assert_eq!(opened.unwrap(), b"the secret");
}

#[test]
fn two_boxes_are_two_devices() {
    let (a, b) = (Emulator::new(), Emulator::new());
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let a = Identity::open_or_create(dir_a.path(), Some(a.connect())).unwrap();
    let b = Identity::open_or_create(dir_b.path(), Some(b.connect())).unwrap();
    assert_ne!(a.device_certificate(), b.device_certificate());
    assert_ne!(
        a.endorsement().unwrap().public,
        b.endorsement().unwrap().public
    );
}

#[test]
fn a_cloned_disk_is_of_no_use_in_another_machine() {
    let (mine, other) = (Emulator::new(), Emulator::new());
    let dir = tempfile::tempdir().unwrap();
    drop(Identity::open_or_create(dir.path(), Some(mine.connect())).unwrap());
    let before = fs::read(file(dir.path())).unwrap();
    let error = Identity::open_or_create(dir.path(), Some(other.connect())).unwrap_err();
    assert!(matches!(error, IdentityError::ForeignTpm { .. }), "{error}");
    assert_eq!(fs::read(file(dir.path())).unwrap(), before);

    // Who has the disk does not need our program to say no. He has what was kept, a TPM of his own, and an identity in it.
    let stored: serde_json::Value = serde_json::from_slice(&before).unwrap();
    let key =
        |name: &str| -> KeyBlob { serde_json::from_value(stored["keys"][name].clone()).unwrap() };
    let thief_dir = tempfile::tempdir().unwrap();
    let thief = Identity::open_or_create(thief_dir.path(), Some(other.connect())).unwrap();
    let tpm = thief.tpm().unwrap();
    // The wrapped keys open under no storage key of that TPM, so none of them signs, agrees, certifies or can be certified.
    for hierarchy in [Hierarchy::Owner, Hierarchy::Endorsement] {
        let parent = tpm.create_primary(hierarchy, &p256(KeyUse::Store)).unwrap();
        for name in ["device", "attestation", "agreement"] {
            let error = tpm.load(&parent, &key(name)).unwrap_err();
            assert!(error.is_foreign_key(), "{name}: {error}");
        }
    }
    // He shows the old machine's public keys: what is wrapped for them, his TPM does not open.
    let owner = Owner::new();
    let endorsement = unpacked(&stored["keys"]["endorsementPublic"]);
    let hello = |endorsement: Option<&[u8]>, attestation: Option<&[u8]>| {
        let session = device::hello(&thief, &machine(), "1").unwrap();
        let mut message = wire::Hello::decode(session.bytes()).unwrap();
        let Some(wire::hello::Keys::Tpm(keys)) = &mut message.keys else {
            panic!("a device without a TPM");
        };
        keys.endorsement_public =
            endorsement.map_or(keys.endorsement_public.clone(), <[u8]>::to_vec);
        keys.attestation_public =
            attestation.map_or(keys.attestation_public.clone(), <[u8]>::to_vec);
        message.encode_to_vec()
    };
    let attestation = key("attestation").public;
    for hello in [
        hello(Some(&endorsement), Some(&attestation)),
        hello(Some(&endorsement), None),
        hello(None, Some(&attestation)),
    ] {
        let challenge = owner.challenge(&hello).unwrap();
        let error = device::Session::from_bytes(hello)
            .challenged(&thief, &challenge, &owner.pinned(), 0, None)
            .unwrap_err();
        assert!(
            matches!(error, EnrolError::Tpm(TpmError::Refused { .. })),
            "{error}"
        );
    }
    // He enrols with his own TPM and puts the old device key, or both keys, in the place of his own.
    let (answering, secret) = opened(&thief, &owner, None);
    let all = [Check::DeviceKey, Check::AgreementKey, Check::Transcript];
    for keys in [&["device"][..], &["agreement"], &["device", "agreement"]] {
        let mut forger = Forger::new(answering.evidence(), &secret);
        for name in keys {
            let proof = forger.proof();
            match *name {
                "device" => proof.device_public = key(name).public,
                _ => proof.agreement_public = key(name).public,
            }
        }
        refused(&owner, &forger.evidence(), &all, &secret);
    }
    // Whatever he does honestly, he is another machine.
    let (proven, _) = enrol(&thief, &owner).unwrap();
    let machine_id = MachineId::of_endorsement(&Public::parse(&endorsement).unwrap());
    assert_ne!(proven.machine, machine_id);
    assert_ne!(
        thief.device_certificate().der(),
        unpacked(&stored["certificates"]["device"])
    );

    // The right machine still opens it, and enrols as what it is.
    let identity = Identity::open_or_create(dir.path(), Some(mine.connect())).unwrap();
    works(&identity);
    let (proven, grant) = enrol(&identity, &owner).unwrap();
    assert_eq!((proven.machine, grant), (machine_id, payload(&identity)));
    assert_eq!(fs::read(file(dir.path())).unwrap(), before);
}

/// Bytes in an identity file.
fn unpacked(text: &serde_json::Value) -> Vec<u8> {
    use base64::Engine as _;
    let text = text.as_str().unwrap();
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap()
}

#[test]
fn a_cleared_tpm_is_noticed() {
    let emulator = Emulator::new();
    let dir = tempfile::tempdir().unwrap();
    drop(Identity::open_or_create(dir.path(), Some(emulator.connect())).unwrap());
    emulator.clear();
    let error = Identity::open_or_create(dir.path(), Some(emulator.connect())).unwrap_err();
    assert!(matches!(error, IdentityError::ForeignTpm { .. }), "{error}");
    assert!(error.to_string().contains("cleared"), "{error}");
}

#[test]
fn a_tpm_that_is_gone_is_not_replaced_by_software() {
    let emulator = Emulator::new();
    let dir = tempfile::tempdir().unwrap();
    drop(Identity::open_or_create(dir.path(), Some(emulator.connect())).unwrap());
    let error = Identity::open_or_create(dir.path(), None).unwrap_err();
    assert!(matches!(error, IdentityError::TpmMissing { .. }), "{error}");
}

#[test]
fn without_a_tpm_keys_are_in_software_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let first = Identity::open_or_create(dir.path(), None).unwrap();
    assert_eq!(first.protection(), Protection::Software);
    assert!(first.attestation_certificate().is_none() && first.endorsement().is_none());
    assert_eq!(first.quote(b"nonce").unwrap(), None);
    works(&first);
    let mode = fs::metadata(file(dir.path())).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(
        fs::read_to_string(file(dir.path()))
            .unwrap()
            .contains(r#""protection": "software""#)
    );

    let emulator = Emulator::new();
    let again = Identity::open_or_create(dir.path(), Some(emulator.connect())).unwrap();
    assert_eq!(again.protection(), Protection::Software);
    assert_eq!(again.device_certificate(), first.device_certificate());
    works(&again);
}

#[test]
fn a_damaged_file_is_refused_and_left_alone() {
    let emulator = Emulator::new();
    let dir = tempfile::tempdir().unwrap();
    drop(Identity::open_or_create(dir.path(), Some(emulator.connect())).unwrap());
    let other = tempfile::tempdir().unwrap();
    drop(Identity::open_or_create(other.path(), Some(emulator.connect())).unwrap());
    let good = fs::read(file(dir.path())).unwrap();
    let mut foreign: serde_json::Value =
        serde_json::from_slice(&fs::read(file(other.path())).unwrap()).unwrap();
    let mine: serde_json::Value = serde_json::from_slice(&good).unwrap();
    // Certificates of another device beside the right keys.
    foreign["keys"] = mine["keys"].clone();
    let mut newer = mine.clone();
    newer["version"] = 2.into();
    // The attestation key in the place of the device key.
    let mut swapped = mine.clone();
    swapped["keys"]["device"] = mine["keys"]["attestation"].clone();
    let damaged = [
        Vec::new(),
        good[..good.len() / 2].to_vec(),
        b"{}".to_vec(),
        vec![b' '; 70_000],
        serde_json::to_vec(&foreign).unwrap(),
        serde_json::to_vec(&newer).unwrap(),
    ];
    for text in damaged {
        fs::write(file(dir.path()), &text).unwrap();
        let error = Identity::open_or_create(dir.path(), Some(emulator.connect())).unwrap_err();
        assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("identity.json"), "{error}");
        assert_eq!(fs::read(file(dir.path())).unwrap(), text);
    }
    fs::write(file(dir.path()), serde_json::to_vec(&swapped).unwrap()).unwrap();
    assert!(Identity::open_or_create(dir.path(), Some(emulator.connect())).is_err());
}

#[test]
fn many_threads_share_one_identity() {
    let emulator = Emulator::new();
    let dir = tempfile::tempdir().unwrap();
    let identity =
        Arc::new(Identity::open_or_create(dir.path(), Some(emulator.connect())).unwrap());
    let threads: Vec<_> = (0..6)
        .map(|_| {
            let identity = identity.clone();
            thread::spawn(move || {
                for _ in 0..5 {
                    works(&identity);
                    assert!(identity.quote(b"nonce").unwrap().is_some());
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    // The device key alone stays loaded.
    assert_eq!(loaded(identity.tpm().unwrap()).len(), 1);
}

#[test]
fn a_key_lost_from_its_slot_is_loaded_again() {
    let emulator = Emulator::new();
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::open_or_create(dir.path(), Some(emulator.connect())).unwrap();
    works(&identity);
    let tpm = identity.tpm().unwrap();
    for handle in loaded(tpm) {
        tpm.flush(handle).unwrap();
    }
    works(&identity);
}

/// A TPM whose wire breaks after so many commands, as if the power went away.
struct Breaking {
    behind: Socket<std::os::unix::net::UnixStream>,
    left: usize,
    asked: Arc<AtomicUsize>,
}

impl Transport for Breaking {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| io::Error::other("power cut"))?;
        self.behind.exchange(command)
    }
}

#[test]
fn a_power_cut_at_any_command_leaves_no_half_identity() {
    let mut emulator = Emulator::new();
    let dir = tempfile::tempdir().unwrap();
    let breaking = |emulator: &Emulator, left| {
        let asked = Arc::new(AtomicUsize::new(0));
        let tpm = Tpm::over(Breaking {
            behind: Socket::unix(&emulator.socket()).unwrap(),
            left,
            asked: asked.clone(),
        });
        (tpm, asked)
    };
    let mut cuts = 0;
    let made = loop {
        let (tpm, _) = breaking(&emulator, cuts);
        match Identity::open_or_create(dir.path(), Some(tpm)) {
            Ok(identity) => break identity.device_certificate().clone(),
            Err(error) => {
                assert!(error.to_string().contains("power cut"), "{error}");
                assert!(!file(dir.path()).exists(), "after {cuts} commands");
                // A cut while the file is written leaves this; it must not stand in the way.
                fs::write(dir.path().join("identity.json.new"), "half").unwrap();
                cuts += 1;
                emulator.power_cycle();
            }
        }
    };
    assert!(cuts > 10, "{cuts}");
    emulator.power_cycle();
    let found = Identity::open_or_create(dir.path(), Some(emulator.connect())).unwrap();
    assert_eq!(*found.device_certificate(), made);
    assert!(!dir.path().join("identity.json.new").exists());
}
