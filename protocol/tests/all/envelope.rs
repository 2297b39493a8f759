use prost::Message as _;
use protocol::envelope::{Certificate, Envelope, EnvelopeError, MAX_REQUEST, seal, seal_message};
use protocol::eve::auth::{AuthBody, AuthContainer};
use protocol::eve::common::{CipherBlock, HashAlgorithm};
use protocol::eve::config::ConfigRequest;
use protocol::eve::register::ZRegisterMsg;
use protocol::eve::uuid::UuidRequest;
use protocol::keys::{
    CertHash, KeyError, SignError, Signer, SoftwareSigner, VerifyingKey, pem_to_der,
};

use crate::support::{Device, Vectors, mutations};

fn open(bytes: &[u8], certificate: &Certificate) -> Result<Vec<u8>, EnvelopeError> {
    Envelope::parse(bytes, MAX_REQUEST)?.open(certificate)
}

#[test]
fn an_eve_devices_registration_opens() {
    let vectors = Vectors::signed_containers();
    let onboarding = vectors
        .text("/registration/onboarding_certificate")
        .as_bytes();
    let envelope = Envelope::parse(&vectors.bytes("/registration/container"), MAX_REQUEST).unwrap();
    assert_eq!(envelope.sender_cert_pem(), Some(onboarding));
    let certificate = Certificate::of_device_pem(envelope.sender_cert_pem().unwrap()).unwrap();
    assert_eq!(envelope.sender(), certificate.hash());
    let message: ZRegisterMsg = envelope.open_message(&certificate, "ZRegisterMsg").unwrap();
    assert_eq!(
        message.encode_to_vec(),
        vectors.bytes("/registration/payload")
    );
    assert_eq!(message.serial, "SER1");
    assert_eq!(message.soft_serial, "soft-1");
}

#[test]
fn an_eve_devices_config_request_opens() {
    let vectors = Vectors::signed_containers();
    let certificate =
        Certificate::of_device_pem(vectors.text("/registration/device_certificate").as_bytes())
            .unwrap();
    let envelope =
        Envelope::parse(&vectors.bytes("/config_request/container"), MAX_REQUEST).unwrap();
    assert_eq!(envelope.sender_cert_pem(), None);
    let message: ConfigRequest = envelope
        .open_message(&certificate, "ConfigRequest")
        .unwrap();
    assert_eq!(message.integrity_token, b"token");
    assert_eq!(
        message.encode_to_vec(),
        vectors.bytes("/config_request/payload")
    );
}

#[test]
fn our_containers_are_byte_for_byte_eves_but_for_the_signature() {
    let vectors = Vectors::signed_containers();
    let theirs =
        AuthContainer::decode(vectors.bytes("/registration/container").as_slice()).unwrap();
    let onboarding = vectors.text("/registration/onboarding_certificate");
    let hash = CertHash::of_der(&pem_to_der(onboarding.as_bytes()).unwrap());
    let ours = seal(
        vectors.bytes("/registration/payload"),
        &hash,
        Some(onboarding),
        &Device::new().signer,
    )
    .unwrap();
    let mut ours = AuthContainer::decode(ours.as_slice()).unwrap();
    assert_eq!(ours.signature_hash.len(), 64);
    ours.signature_hash = theirs.signature_hash.clone();
    assert_eq!(ours, theirs);
    assert_eq!(
        ours.encode_to_vec(),
        vectors.bytes("/registration/container")
    );
}

#[test]
fn what_is_sealed_opens_and_an_empty_payload_is_signed_too() {
    let device = Device::new();
    for payload in [Vec::new(), vec![0], vec![7; 100_000]] {
        let bytes = seal(payload.clone(), &device.hash, None, &device.signer).unwrap();
        assert_eq!(open(&bytes, &device.certificate).unwrap(), payload);
    }
    let bytes = seal_message(&UuidRequest {}, &device.hash, None, &device.signer).unwrap();
    assert_eq!(
        AuthContainer::decode(bytes.as_slice())
            .unwrap()
            .signature_hash
            .len(),
        64
    );
    assert!(open(&bytes, &device.certificate).unwrap().is_empty());
}

#[test]
fn a_short_sender_hash_is_accepted_and_must_fit() {
    let device = Device::new();
    let bytes = seal(b"x".to_vec(), &device.hash.short(), None, &device.signer).unwrap();
    let container = AuthContainer::decode(bytes.as_slice()).unwrap();
    assert_eq!(container.algo(), HashAlgorithm::Sha25616bytes);
    assert_eq!(container.sender_cert_hash.len(), 16);
    assert_eq!(open(&bytes, &device.certificate).unwrap(), b"x");
    assert!(matches!(
        open(&bytes, &Device::new().certificate),
        Err(EnvelopeError::OtherSender { .. })
    ));
}

#[test]
fn algorithm_and_length_of_the_sender_hash_must_agree() {
    let device = Device::new();
    let good = AuthContainer::decode(
        seal(b"x".to_vec(), &device.hash, None, &device.signer)
            .unwrap()
            .as_slice(),
    )
    .unwrap();
    for (algo, size) in [
        (0, 32),
        (1, 32),
        (2, 16),
        (2, 31),
        (2, 33),
        (2, 0),
        (3, 32),
        (-1, 32),
    ] {
        let mut container = good.clone();
        container.algo = algo;
        container.sender_cert_hash.resize(size, 0);
        match open(&container.encode_to_vec(), &device.certificate) {
            Err(EnvelopeError::SenderHash { algo: a, size: s }) => assert_eq!((a, s), (algo, size)),
            other => panic!("{algo} with {size} bytes: {other:?}"),
        }
    }
}

#[test]
fn no_changed_byte_yields_another_message() {
    let device = Device::new();
    let payload = b"what was signed".to_vec();
    let bytes = seal(payload.clone(), &device.hash, None, &device.signer).unwrap();
    let mut refused = 0;
    mutations(&bytes, |changed| match open(changed, &device.certificate) {
        Ok(opened) => panic!(
            "accepted {} for {}: {opened:?}",
            hex::encode(changed),
            hex::encode(&bytes)
        ),
        Err(_) => refused += 1,
    });
    assert!(refused > 1000);
}

#[test]
fn a_registration_does_not_open_after_any_change_that_matters() {
    let vectors = Vectors::signed_containers();
    let payload = vectors.bytes("/registration/payload");
    mutations(&vectors.bytes("/registration/container"), |changed| {
        // As a controller does it: with whatever certificate the message carries.
        let Ok(envelope) = Envelope::parse(changed, MAX_REQUEST) else {
            return;
        };
        let Some(Ok(certificate)) = envelope.sender_cert_pem().map(Certificate::of_device_pem)
        else {
            return;
        };
        if let Ok(opened) = envelope.open(&certificate) {
            // Base64 and PEM have bits that mean nothing; what was signed must be the same all the same.
            assert_eq!(opened, payload);
        }
    });
}

#[test]
fn another_key_and_another_name_are_told_apart() {
    let (device, other) = (Device::new(), Device::new());
    let bytes = seal(b"x".to_vec(), &device.hash, None, &device.signer).unwrap();
    assert!(matches!(
        open(&bytes, &other.certificate),
        Err(EnvelopeError::OtherSender { .. })
    ));
    let forged = seal(b"x".to_vec(), &device.hash, None, &other.signer).unwrap();
    assert!(matches!(
        open(&forged, &device.certificate),
        Err(EnvelopeError::Signature { .. })
    ));
}

#[test]
fn device_and_controller_are_named_by_different_bytes() {
    let device = Device::new();
    let by_text = seal(
        b"x".to_vec(),
        &CertHash::of_pem_text(device.pem.as_bytes()),
        None,
        &device.signer,
    )
    .unwrap();
    assert!(matches!(
        open(&by_text, &device.certificate),
        Err(EnvelopeError::OtherSender { .. })
    ));
    let controller = Certificate::of_controller_pem(device.pem.as_bytes()).unwrap();
    assert_eq!(open(&by_text, &controller).unwrap(), b"x");
    let with_newline =
        Certificate::of_controller_pem(format!("{}\n", device.pem).as_bytes()).unwrap();
    assert!(matches!(
        open(&by_text, &with_newline),
        Err(EnvelopeError::OtherSender { .. })
    ));
}

#[test]
fn a_der_signature_is_refused() {
    let device = Device::new();
    let bytes = seal(b"x".to_vec(), &device.hash, None, &device.signer).unwrap();
    let mut container = AuthContainer::decode(bytes.as_slice()).unwrap();
    let (r, s) = container.signature_hash.split_at(32);
    let mut der = vec![0x30, 70, 2, 33, 0];
    der.extend_from_slice(r);
    der.extend_from_slice(&[2, 33, 0]);
    der.extend_from_slice(s);
    container.signature_hash = der;
    assert!(matches!(
        open(&container.encode_to_vec(), &device.certificate),
        Err(EnvelopeError::Signature { .. })
    ));
}

#[test]
fn limits_and_forms() {
    let device = Device::new();
    let bytes = seal(vec![1; 1000], &device.hash, None, &device.signer).unwrap();
    assert!(Envelope::parse(&bytes, bytes.len()).is_ok());
    assert!(matches!(
        Envelope::parse(&bytes, bytes.len() - 1),
        Err(EnvelopeError::TooLarge { size, limit }) if size == bytes.len() && limit == size - 1
    ));
    let good = AuthContainer::decode(bytes.as_slice()).unwrap();
    let no_payload = AuthContainer {
        protected_payload: None,
        ..good.clone()
    };
    assert!(matches!(
        Envelope::from_container(no_payload),
        Err(EnvelopeError::NoPayload)
    ));
    let encrypted = AuthContainer {
        cipher_data: Some(CipherBlock::default()),
        ..good.clone()
    };
    assert!(matches!(
        Envelope::from_container(encrypted),
        Err(EnvelopeError::Encrypted)
    ));
    let odd_cert = AuthContainer {
        sender_cert: b"!".to_vec(),
        ..good
    };
    assert!(matches!(
        Envelope::from_container(odd_cert),
        Err(EnvelopeError::SenderCert(_))
    ));
    assert!(matches!(
        Envelope::parse(&[0xff; 40], MAX_REQUEST),
        Err(EnvelopeError::Decode { .. })
    ));
    let body = AuthContainer {
        protected_payload: Some(AuthBody::default()),
        ..Default::default()
    };
    assert!(matches!(
        Envelope::from_container(body),
        Err(EnvelopeError::SenderHash { algo: 0, size: 0 })
    ));
}

#[test]
fn a_payload_of_another_type_is_named() {
    let device = Device::new();
    let bytes = seal(vec![0xff; 9], &device.hash, None, &device.signer).unwrap();
    let error = Envelope::parse(&bytes, MAX_REQUEST)
        .unwrap()
        .open_message::<ConfigRequest>(&device.certificate, "ConfigRequest")
        .unwrap_err();
    assert!(error.to_string().contains("ConfigRequest"), "{error}");
}

#[test]
fn openssl_agrees_on_rsa_and_on_certificates() {
    let vectors = Vectors::openssl();
    let der = pem_to_der(vectors.text("/certificate").as_bytes()).unwrap();
    let key = VerifyingKey::from_certificate_der(&der).unwrap();
    assert!(matches!(key, VerifyingKey::Rsa(_)));
    let (message, mut signature) = (vectors.bytes("/message"), vectors.bytes("/signature"));
    assert!(key.verify(&message, &signature));
    assert!(!key.verify(b"another message", &signature));
    signature[0] ^= 1;
    assert!(!key.verify(&message, &signature));

    let p384 = Certificate::of_device_pem(vectors.text("/p384_certificate").as_bytes());
    assert!(matches!(p384, Err(KeyError::Kind)), "{p384:?}");

    let signer = SoftwareSigner::from_pkcs8_pem(vectors.text("/device_key")).unwrap();
    let certificate =
        Certificate::of_device_pem(vectors.text("/device_certificate").as_bytes()).unwrap();
    let bytes = seal(message.clone(), certificate.hash(), None, &signer).unwrap();
    assert_eq!(open(&bytes, &certificate).unwrap(), message);
}

#[test]
fn no_change_of_a_certificate_panics() {
    let device = Device::new();
    let der = pem_to_der(device.pem.as_bytes()).unwrap();
    mutations(&der, |changed| {
        if let Ok(certificate) = Certificate::of_device_der(changed) {
            assert_ne!(certificate.hash(), device.certificate.hash());
        }
    });
    mutations(device.pem.as_bytes(), |changed| {
        drop(Certificate::of_device_pem(changed))
    });
    assert!(SoftwareSigner::from_pkcs8_pem(&device.pem).is_err());
    assert!(SoftwareSigner::from_pkcs8_der(&der).is_err());
}

#[test]
fn a_failing_signer_is_reported() {
    struct Broken;
    impl Signer for Broken {
        fn sign_p256_sha256(&self, _: &[u8]) -> Result<[u8; 64], SignError> {
            Err(SignError::new("TPM2_Sign: lockout"))
        }
    }
    let error = seal(Vec::new(), &CertHash::of_der(b""), None, &Broken).unwrap_err();
    assert_eq!(error.to_string(), "signing a message: TPM2_Sign: lockout");
}
