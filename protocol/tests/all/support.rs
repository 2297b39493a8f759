//! What several tests need: vectors, keys and certificates.

use protocol::envelope::Certificate;
use protocol::keys::{CertHash, SoftwareSigner, pem_to_der};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::Value;

/// One file of `tests/vectors`.
pub struct Vectors(Value);

impl Vectors {
    pub fn signed_containers() -> Self {
        Self::parse(include_str!("../vectors/signed-containers.json"))
    }

    pub fn cipher_block() -> Self {
        Self::parse(include_str!("../vectors/cipher-block.json"))
    }

    pub fn openssl() -> Self {
        Self::parse(include_str!("../vectors/openssl.json"))
    }

    pub fn messages() -> Self {
        Self::parse(include_str!("../vectors/messages.json"))
    }

    fn parse(text: &str) -> Self {
        Self(serde_json::from_str(text).unwrap())
    }

    /// The text at a JSON pointer.
    pub fn text(&self, pointer: &str) -> &str {
        self.0
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_else(|| panic!("no vector {pointer}"))
    }

    /// The byte string at a JSON pointer.
    pub fn bytes(&self, pointer: &str) -> Vec<u8> {
        hex::decode(self.text(pointer)).unwrap()
    }

    pub fn array<const N: usize>(&self, pointer: &str) -> [u8; N] {
        self.bytes(pointer).try_into().unwrap()
    }
}

/// A device made up for a test: its key in software, its certificate signed by itself.
pub struct Device {
    pub signer: SoftwareSigner,
    pub pem: String,
    pub hash: CertHash,
    pub certificate: Certificate,
}

impl Device {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "a device");
        let pem = params.self_signed(&key).unwrap().pem();
        let der = pem_to_der(pem.as_bytes()).unwrap();
        Self {
            signer: SoftwareSigner::from_pkcs8_pem(&key.serialize_pem()).unwrap(),
            hash: CertHash::of_der(&der),
            certificate: Certificate::of_device_der(&der).unwrap(),
            pem,
        }
    }
}

/// Calls `check` with every one-bit change of `bytes`, every byte replaced by 0 and 255, every prefix, and a byte more.
pub fn mutations(bytes: &[u8], mut check: impl FnMut(&[u8])) {
    let mut changed = bytes.to_vec();
    for index in 0..bytes.len() {
        for bit in 0..8 {
            changed[index] = bytes[index] ^ (1 << bit);
            check(&changed);
        }
        for value in [0, 255] {
            if bytes[index] != value {
                changed[index] = value;
                check(&changed);
            }
        }
        changed[index] = bytes[index];
        check(&bytes[..index]);
    }
    changed.push(0);
    check(&changed);
}
