//! What devices and controllers send each other.

use std::time::{Duration, SystemTime};

use prost::Message as _;
use protocol::certs::ControllerCerts;
use protocol::cipher::{
    BlockKey, KeyAgreement as _, SoftwareAgreement, decrypt_secrets, find_context,
    unwrap_volume_key,
};
use protocol::envelope::{self, Certificate, Envelope, MAX_REQUEST, decode};
use protocol::eve::attest::AttestVolumeKeyData;
use protocol::eve::certs::ZControllerCert;
use protocol::eve::config::ConfigResponse;
use protocol::eve::register::ZRegisterMsg;
use protocol::ids::{AppId, DeviceId, SessionId};
use protocol::keys::{CertHash, SignError, Signer};
use protocol::link::{MAX_MESSAGE, Nonce, Proof, ServerMessage};
use protocol::logs::{Bundle, DeviceOrigin, LogEntry, LogTime, Origin};
use protocol::registration::{CERTIFICATE_SIZE, MAX_SERIAL, Registration};
use serde_json::Value;
use uuid::Uuid;

use crate::Target;
use crate::feed::survives;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "envelope",
        about: "a signed container: refused or opened; what is inside is read before and after the check",
        run: envelope,
        seeds: envelope_seeds,
    },
    Target {
        name: "config",
        about: "a ConfigResponse: what is understood encodes and decodes to itself; its cipher blocks are tried",
        run: config,
        seeds: config_seeds,
    },
    Target {
        name: "link",
        about: "messages of the push channel, both ways: what is understood is written and read as itself",
        run: link,
        seeds: link_seeds,
    },
    Target {
        name: "log-bundle",
        about: "a gzip bundle of log entries: bounded when unfolded; what is understood is written and read as itself",
        run: log_bundle,
        seeds: log_seeds,
    },
    Target {
        name: "registration",
        about: "a ZRegisterMsg: accepted serials are short and plain",
        run: registration,
        seeds: || vec![vector("signed-containers", "/registration/payload")],
    },
    Target {
        name: "controller-certs",
        about: "a ZControllerCert against its root: what is trusted has one signing certificate and names each exchange",
        run: controller_certs,
        seeds: controller_certs_seeds,
    },
    Target {
        name: "volume-key",
        about: "an AttestVolumeKeyData: only the very key that was wrapped comes out",
        run: volume_key,
        seeds: volume_key_seeds,
    },
];

const SIGNED_CONTAINERS: &str =
    include_str!("../../../protocol/tests/vectors/signed-containers.json");
const MESSAGES: &str = include_str!("../../../protocol/tests/vectors/messages.json");
const OPENSSL: &str = include_str!("../../../protocol/tests/vectors/openssl.json");

/// A text of the protocol crate's test vectors.
pub(crate) fn vector_text(file: &str, pointer: &str) -> String {
    let text = match file {
        "signed-containers" => SIGNED_CONTAINERS,
        "openssl" => OPENSSL,
        _ => MESSAGES,
    };
    let vectors: Value = serde_json::from_str(text).unwrap();
    vectors
        .pointer(pointer)
        .unwrap()
        .as_str()
        .unwrap()
        .to_owned()
}

/// A byte string of the protocol crate's test vectors.
pub(crate) fn vector(file: &str, pointer: &str) -> Vec<u8> {
    hex::decode(vector_text(file, pointer)).unwrap()
}

/// In the middle of the validity of the vectors' certificates.
fn vector_time() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_798_000_000)
}

fn envelope(data: &[u8]) {
    let Ok(envelope) = Envelope::parse(data, MAX_REQUEST) else {
        return;
    };
    // The two replies and requests that are looked into before, or without, a signature check.
    if let Ok(set) = decode::<ZControllerCert>(envelope.payload_unchecked(), "ZControllerCert") {
        let _ = ControllerCerts::verify(&set, data, SystemTime::UNIX_EPOCH);
    }
    if let Ok(message) = decode(envelope.payload_unchecked(), "ZRegisterMsg")
        && let Ok(registration) = Registration::from_wire(&message)
    {
        let _ = Certificate::of_device_pem(&registration.device_cert_pem);
    }
    let _ = Bundle::decode(envelope.payload_unchecked());
    if let Some(Ok(certificate)) = envelope.sender_cert_pem().map(Certificate::of_device_pem) {
        let payload = envelope.payload_unchecked().to_vec();
        if let Ok(opened) = envelope.open(&certificate) {
            assert_eq!(opened, payload);
        }
    }
}

fn envelope_seeds() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../seeds/registration").to_vec(),
        include_bytes!("../seeds/certificates-reply").to_vec(),
        include_bytes!("../seeds/config-request").to_vec(),
    ]
}

fn config(data: &[u8]) {
    let Ok(response) = decode::<ConfigResponse>(data, "ConfigResponse") else {
        return;
    };
    let bytes = response.encode_to_vec();
    let again: ConfigResponse = decode(&bytes, "ConfigResponse").expect("what was encoded decodes");
    // Compared by size, because NaN is not equal to itself, and maps may come in another order.
    assert_eq!(again.encoded_len(), bytes.len());

    let Some(config) = response.config else {
        return;
    };
    let own = SoftwareAgreement::from_scalar(&[1; 32]).expect("a valid scalar");
    let point = own.public_point().expect("a valid key");
    let key = BlockKey::from_shared(&own.agree(&point).expect("a valid point"));
    for block in config
        .datastores
        .iter()
        .filter_map(|store| store.cipher_data.as_ref())
    {
        let _ = find_context(&config.cipher_contexts, block, &CertHash::Short([0; 16]));
        let _ = decrypt_secrets(&key, block);
    }
}

pub(crate) fn config_seeds() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../seeds/config-response").to_vec(),
        vector("messages", "/config_response"),
    ]
}

/// Signs everything with the same bytes.
struct Stamp;

impl Signer for Stamp {
    fn sign_p256_sha256(&self, _message: &[u8]) -> Result<[u8; 64], SignError> {
        Ok([7; 64])
    }
}

fn link(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(message) = ServerMessage::from_text(text)
    {
        let text = message.to_text().unwrap();
        assert!(text.len() <= MAX_MESSAGE, "{text}");
        assert_eq!(ServerMessage::from_text(&text).unwrap(), message);
    }
    let Ok(envelope) = Proof::parse(data) else {
        return;
    };
    if let Ok(proof) = serde_json::from_slice::<Proof>(envelope.payload_unchecked()) {
        survives(&proof);
    }
    let certificate = vector_text("openssl", "/device_certificate");
    let certificate = Certificate::of_device_pem(certificate.as_bytes()).unwrap();
    let nonce: Nonce = "00112233445566778899aabbccddeeff".parse().unwrap();
    // Nobody here has the certificate's key.
    assert!(Proof::check(envelope, &certificate, DeviceId(Uuid::nil()), nonce).is_err());
}

fn link_seeds() -> Vec<Vec<u8>> {
    let nonce: Nonce = "00112233445566778899aabbccddeeff".parse().unwrap();
    let messages = [
        ServerMessage::Hello { nonce },
        ServerMessage::ConfigChanged,
        ServerMessage::OpenConsole {
            session: SessionId(Uuid::nil()),
            app: AppId(Uuid::nil()),
        },
        ServerMessage::Unknown,
    ];
    let mut seeds: Vec<Vec<u8>> = messages
        .iter()
        .map(|message| message.to_text().unwrap().into_bytes())
        .collect();
    let proof = Proof {
        device: DeviceId(Uuid::nil()),
        time: 1_798_000_000,
        nonce,
    };
    let certificate = vector_text("openssl", "/device_certificate");
    let certificate = Certificate::of_device_pem(certificate.as_bytes()).unwrap();
    seeds.push(proof.seal(certificate.hash(), &Stamp).unwrap());
    seeds
}

fn log_bundle(data: &[u8]) {
    let Ok(bundle) = Bundle::decode(data) else {
        return;
    };
    // Written anew it may be larger than allowed, if somebody else packed it tighter.
    if let Ok(bytes) = bundle.encode() {
        assert_eq!(Bundle::decode(&bytes).unwrap(), bundle);
    }
}

pub(crate) fn log_seeds() -> Vec<Vec<u8>> {
    let entry = |content: &str| LogEntry {
        severity: "info".to_owned(),
        source: "pillar".to_owned(),
        iid: "1".to_owned(),
        content: content.to_owned(),
        msgid: 7,
        timestamp: Some(LogTime {
            seconds: 1_798_000_000,
            nanos: 5,
        }),
        ..LogEntry::default()
    };
    let bundle = |origin| Bundle {
        origin,
        made: 1_798_000_000,
        entries: vec![entry("one"), entry("two \u{1f980}")],
    };
    let device = DeviceOrigin {
        device: DeviceId(Uuid::nil()).to_string(),
        image: "IMGA".to_owned(),
        version: "1.0 \u{20ac} \u{1} \\u0041".to_owned(),
    };
    [
        Origin::Device(device),
        Origin::App("web \u{20ac} \\u0041".to_owned()),
    ]
    .map(|origin| bundle(origin).encode().unwrap())
    .to_vec()
}

fn registration(data: &[u8]) {
    let Ok(message) = decode::<ZRegisterMsg>(data, "ZRegisterMsg") else {
        return;
    };
    let Ok(registration) = Registration::from_wire(&message) else {
        return;
    };
    for serial in [&registration.serial, &registration.soft_serial] {
        assert!(serial.chars().count() <= MAX_SERIAL);
        assert!(!serial.chars().any(char::is_control));
    }
    let again = registration.to_wire();
    if CERTIFICATE_SIZE.contains(&again.pem_cert.len()) {
        assert_eq!(Registration::from_wire(&again), Ok(registration));
    }
}

fn controller_certs(data: &[u8]) {
    let Ok(set) = decode::<ZControllerCert>(data, "ZControllerCert") else {
        return;
    };
    let root = vector_text("signed-containers", "/certificates_reply/root_certificate");
    let Ok(certs) = ControllerCerts::verify(&set, root.as_bytes(), vector_time()) else {
        return;
    };
    assert!(certs.same_as(&set));
    let signing = set
        .certs
        .iter()
        .filter(|cert| CertHash::of_pem_text(&cert.cert) == *certs.signing().hash());
    assert!(signing.count() >= 1);
}

fn controller_certs_seeds() -> Vec<Vec<u8>> {
    let container = vector("signed-containers", "/certificates_reply/container");
    let envelope = Envelope::parse(&container, envelope::MAX_REPLY).unwrap();
    vec![envelope.payload_unchecked().to_vec()]
}

fn volume_key_of() -> BlockKey {
    let own = SoftwareAgreement::from_scalar(&[1; 32]).expect("a valid scalar");
    let point = own.public_point().expect("a valid key");
    BlockKey::from_shared(&own.agree(&point).expect("a valid point"))
}

fn volume_key(data: &[u8]) {
    let Ok(wrapped) = decode::<AttestVolumeKeyData>(data, "AttestVolumeKeyData") else {
        return;
    };
    if let Ok(clear) = unwrap_volume_key(&volume_key_of(), &wrapped) {
        assert_eq!(clear.len(), wrapped.encrypted_key.len());
        let again = protocol::cipher::wrap_volume_key(&volume_key_of(), &clear);
        assert_eq!(again.encrypted_key, wrapped.encrypted_key);
    }
}

fn volume_key_seeds() -> Vec<Vec<u8>> {
    vec![protocol::cipher::wrap_volume_key(&volume_key_of(), &[9; 32]).encode_to_vec()]
}
