//! EVE's registration, as the device makes it and as the controller reads it.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use onboarding::keys::Identity;
use onboarding::registration::{OnboardingKey, message, read, serial};
use onboarding::smbios::Machine;
use p256::pkcs8::DecodePrivateKey as _;
use protocol::envelope::{Certificate, Envelope, seal_message};
use protocol::eve::register::ZRegisterMsg;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

fn onboarding() -> (String, String) {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = CertificateParams::default().self_signed(&pair).unwrap();
    (certificate.pem(), pair.serialize_pem())
}

fn identity() -> Identity {
    let dir = tempfile::tempdir().unwrap();
    Identity::open_or_create(dir.path(), None).unwrap()
}

#[test]
fn a_registration_says_the_certificate_and_the_serials_and_is_signed_by_the_image() {
    let (certificate, key) = onboarding();
    let onboarding = OnboardingKey::from_pem(&certificate, &key).unwrap();
    let identity = identity();
    let message = message(identity.device_certificate(), " SN\t0001\n", "soft-1").unwrap();
    let bytes = seal_message(
        &message,
        &onboarding.hash(),
        Some(onboarding.certificate_pem()),
        &onboarding,
    )
    .unwrap();

    let envelope = Envelope::parse(&bytes, 1 << 20).unwrap();
    let shown = Certificate::of_device_pem(envelope.sender_cert_pem().unwrap()).unwrap();
    let received: ZRegisterMsg = envelope.open_message(&shown, "ZRegisterMsg").unwrap();
    let registration = read(&received).unwrap();
    assert_eq!(registration.serial, "SN 0001");
    assert_eq!(registration.soft_serial, "soft-1");
    assert_eq!(
        registration.device_certificate_der,
        identity.device_certificate().der()
    );
    assert_eq!(
        registration.device_certificate_pem,
        identity.device_certificate().pem().as_bytes()
    );
}

#[test]
fn the_onboarding_key_may_stand_in_either_form() {
    let (certificate, key) = onboarding();
    let sec1 = p256::SecretKey::from_pkcs8_pem(&key)
        .unwrap()
        .to_sec1_pem(p256::pkcs8::LineEnding::LF)
        .unwrap();
    assert!(sec1.contains("BEGIN EC PRIVATE KEY"));
    OnboardingKey::from_pem(&certificate, &sec1).unwrap();
    let with_parameters = format!(
        "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{}",
        sec1.as_str()
    );
    OnboardingKey::from_pem(&certificate, &with_parameters).unwrap();
}

#[test]
fn a_certificate_and_a_key_that_do_not_belong_together_are_refused() {
    let ((certificate, _), (_, key)) = (onboarding(), onboarding());
    for (certificate, key) in [
        (certificate.as_str(), key.as_str()),
        ("", key.as_str()),
        (certificate.as_str(), ""),
        (certificate.as_str(), certificate.as_str()),
    ] {
        let error = OnboardingKey::from_pem(certificate, key).unwrap_err();
        assert!(error.to_string().contains("onboarding"), "{error}");
    }
}

#[test]
fn the_rules_of_the_api_hold_on_both_ends() {
    let identity = identity();
    let device = identity.device_certificate();
    let good = message(device, "SN", "").unwrap();
    read(&good).unwrap();
    assert!(message(device, "SN", "white space").is_err());
    assert!(message(device, "SN", &"x".repeat(257)).is_err());
    // Longer ones of the maker are cut.
    assert_eq!(
        message(device, &"ab".repeat(200), "").unwrap().serial.len(),
        256
    );
    let with = |change: &dyn Fn(&mut ZRegisterMsg)| {
        let mut message = good.clone();
        change(&mut message);
        read(&message)
    };
    let encoded = |text: &[u8]| STANDARD.encode(text).into_bytes();
    assert!(with(&|m| m.serial = "x".repeat(257)).is_err());
    assert!(with(&|m| m.serial = "a\nb".into()).is_err());
    assert!(with(&|m| m.soft_serial = "a.b".into()).is_err());
    assert!(with(&|m| m.pem_cert.clear()).is_err());
    assert!(with(&|m| m.pem_cert = vec![b'A'; 10_241]).is_err());
    assert!(with(&|m| m.pem_cert = vec![b'!'; 500]).is_err());
    assert!(with(&|m| m.pem_cert = encoded(&[b'x'; 500])).is_err());
    assert!(with(&|m| m.pem_cert = device.pem().as_bytes().to_vec()).is_err());
}

#[test]
fn a_machine_without_a_serial_still_has_its_own() {
    let (a, b) = (identity(), identity());
    let mut machine = Machine::default();
    assert_ne!(
        serial(&machine, a.device_certificate()),
        serial(&machine, b.device_certificate())
    );
    machine.uuid = "8f1e33a0-0000-4b1d-9c55-0a0b0c0d0e0f".into();
    assert_eq!(serial(&machine, a.device_certificate()), machine.uuid);
    machine.serial = "SN-1".into();
    assert_eq!(serial(&machine, a.device_certificate()), "SN-1");
}
