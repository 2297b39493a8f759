//! EVE's registration: the image's onboarding key vouches for a new device's certificate and serial number.
//!
//! The key is the same on every image of a fleet, so registration proves little more than "this image was started
//! somewhere"; what follows (attestation, a person's approval) proves the rest. Enrolment without a shared secret will
//! stand beside this module.

use p256::SecretKey;
use p256::pkcs8::EncodePrivateKey as _;
use protocol::envelope::{SignError, Signer, SoftwareSigner};
use protocol::eve::register::ZRegisterMsg;
use protocol::keys::{CertHash, KeyError, VerifyingKey, pem_to_der};
use protocol::registration as told;

use crate::keys::Certificate;
use crate::smbios::{Machine, clean};

/// Why a registration could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// The onboarding certificate or key cannot be used.
    #[error("the image's onboarding certificate or key: {0}")]
    Onboarding(String),
    /// The device's certificate cannot be used.
    #[error("registering: the device's certificate: {0}")]
    Certificate(String),
    /// The message breaks the API's rules.
    #[error(transparent)]
    Rules(#[from] told::RegistrationError),
}

/// The image's onboarding key and certificate.
#[derive(Debug)]
pub struct OnboardingKey {
    pem: String,
    hash: CertHash,
    signer: SoftwareSigner,
}

impl OnboardingKey {
    /// Takes certificate and key as they stand on the image: PEM; the key in PKCS#8 or, as EVE's own tools write it, in
    /// SEC 1 (`EC PRIVATE KEY`).
    ///
    /// # Errors
    /// [`RegistrationError::Onboarding`] if either cannot be read, or they do not belong together.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, RegistrationError> {
        let onboarding = |error: KeyError| RegistrationError::Onboarding(error.to_string());
        let der = pem_to_der(certificate.as_bytes()).map_err(onboarding)?;
        let signer = if key.contains("BEGIN EC PRIVATE KEY") {
            let bad = |error: String| {
                RegistrationError::Onboarding(format!("the key in SEC 1 form: {error}"))
            };
            let pkcs8 = SecretKey::from_sec1_pem(sec1_block(key))
                .map_err(|error| bad(error.to_string()))?
                .to_pkcs8_der()
                .map_err(|error| bad(error.to_string()))?;
            SoftwareSigner::from_pkcs8_der(pkcs8.as_bytes())
        } else {
            SoftwareSigner::from_pkcs8_pem(key)
        }
        .map_err(onboarding)?;
        match VerifyingKey::from_certificate_der(&der).map_err(onboarding)? {
            VerifyingKey::P256(point) if point == signer.public_point() => Ok(Self {
                pem: certificate.to_owned(),
                hash: CertHash::of_der(&der),
                signer,
            }),
            _ => Err(RegistrationError::Onboarding(
                "the certificate is not for this key".to_owned(),
            )),
        }
    }

    /// The certificate's PEM text, byte for byte as on the image: it goes along with the registration.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// How the registration names the certificate.
    #[must_use]
    pub fn hash(&self) -> CertHash {
        self.hash
    }
}

impl Signer for OnboardingKey {
    fn sign_p256_sha256(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        self.signer.sign_p256_sha256(message)
    }
}

/// OpenSSL writes `EC PARAMETERS` in front of the key.
fn sec1_block(pem: &str) -> &str {
    pem.find("-----BEGIN EC PRIVATE KEY")
        .and_then(|start| pem.get(start..))
        .unwrap_or(pem)
}

/// The serial number to register with: the maker's, else the machine's UUID, else the beginning of the device
/// certificate's hash, so that two nameless machines do not take each other for a repeat.
#[must_use]
pub fn serial(machine: &Machine, device: &Certificate) -> String {
    if !machine.serial.is_empty() {
        machine.serial.clone()
    } else if !machine.uuid.is_empty() {
        machine.uuid.clone()
    } else {
        let hash = device.hash().to_string();
        format!("key-{}", hash.get(..16).unwrap_or(&hash))
    }
}

/// Puts a registration together.
///
/// # Errors
/// [`RegistrationError`] if a part breaks the API's rules.
pub fn message(
    device: &Certificate,
    serial: &str,
    soft_serial: &str,
) -> Result<ZRegisterMsg, RegistrationError> {
    let message = told::Registration {
        device_cert_pem: device.pem().as_bytes().to_vec(),
        serial: clean(serial),
        soft_serial: soft_serial.trim().to_owned(),
    }
    .to_wire();
    read(&message)?;
    Ok(message)
}

/// A registration that keeps the API's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The device's certificate, PEM as it was sent.
    pub device_certificate_pem: Vec<u8>,
    /// The same, DER.
    pub device_certificate_der: Vec<u8>,
    /// The maker's serial number; may be empty.
    pub serial: String,
    /// The image's serial number; may be empty.
    pub soft_serial: String,
}

/// Reads a registration, on the controller: the API's rules are `protocol`'s; that the certificate is one, with a key that can
/// check a device's messages, is looked at here.
///
/// # Errors
/// [`RegistrationError`].
pub fn read(message: &ZRegisterMsg) -> Result<Registration, RegistrationError> {
    let certificate = |error: KeyError| RegistrationError::Certificate(error.to_string());
    let told = told::Registration::from_wire(message)?;
    let der = pem_to_der(&told.device_cert_pem).map_err(certificate)?;
    match VerifyingKey::from_certificate_der(&der).map_err(certificate)? {
        VerifyingKey::P256(_) => Ok(Registration {
            device_certificate_pem: told.device_cert_pem,
            device_certificate_der: der,
            serial: told.serial,
            soft_serial: told.soft_serial,
        }),
        VerifyingKey::Rsa(_) => Err(RegistrationError::Certificate(
            "its key is not on P-256".to_owned(),
        )),
    }
}
