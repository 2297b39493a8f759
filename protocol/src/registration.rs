//! The registration message: a device shows the certificate that it made for itself, under the onboarding key.
//!
//! `pemCert` is base64 of PEM text, inside a protobuf `bytes` field; EVE has it so. Limits are those that EVE keeps.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use thiserror::Error;

use crate::eve::register::ZRegisterMsg;

/// Bounds of `pemCert`, in bytes as sent (that is, of the base64).
pub const CERTIFICATE_SIZE: std::ops::RangeInclusive<usize> = 100..=10_240;
/// Longest serial, in characters.
pub const MAX_SERIAL: usize = 256;

/// Why a registration was not accepted.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RegistrationError {
    /// `pemCert` is too short or too long.
    #[error(
        "reading a registration: the device certificate has {0} bytes; from 100 to 10240 are allowed"
    )]
    CertificateSize(usize),
    /// `pemCert` is not base64.
    #[error("reading a registration: the device certificate is not base64 of PEM text")]
    CertificateText,
    /// A serial that is too long or holds what it should not.
    #[error(
        "reading a registration: the {which} {text:?} is longer than 256 characters, or has {beyond}"
    )]
    Serial {
        /// "serial" or "soft serial".
        which: &'static str,
        /// Its beginning.
        text: String,
        /// What it must not have.
        beyond: &'static str,
    },
}

/// A device's application to be registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// PEM text of the device certificate.
    pub device_cert_pem: Vec<u8>,
    /// Serial number of the hardware.
    pub serial: String,
    /// Serial number that the installer gave, or empty: letters, digits, `_` and `-`.
    pub soft_serial: String,
}

impl Registration {
    /// The message for the wire.
    #[must_use]
    pub fn to_wire(&self) -> ZRegisterMsg {
        ZRegisterMsg {
            pem_cert: BASE64.encode(&self.device_cert_pem).into_bytes(),
            serial: self.serial.clone(),
            soft_serial: self.soft_serial.clone(),
            ..Default::default()
        }
    }

    /// Reads and checks the message.
    ///
    /// # Errors
    /// [`RegistrationError`].
    pub fn from_wire(message: &ZRegisterMsg) -> Result<Self, RegistrationError> {
        if !CERTIFICATE_SIZE.contains(&message.pem_cert.len()) {
            return Err(RegistrationError::CertificateSize(message.pem_cert.len()));
        }
        let device_cert_pem = BASE64
            .decode(message.pem_cert.trim_ascii())
            .map_err(|_| RegistrationError::CertificateText)?;
        keeps_to("serial", &message.serial, "control characters", |c| {
            !c.is_control()
        })?;
        keeps_to(
            "soft serial",
            &message.soft_serial,
            "others than letters, digits, _ and -",
            |c| c.is_ascii_alphanumeric() || c == '_' || c == '-',
        )?;
        Ok(Self {
            device_cert_pem,
            serial: message.serial.clone(),
            soft_serial: message.soft_serial.clone(),
        })
    }
}

fn keeps_to(
    which: &'static str,
    text: &str,
    beyond: &'static str,
    allowed: impl Fn(char) -> bool,
) -> Result<(), RegistrationError> {
    if text.chars().take(MAX_SERIAL + 1).count() <= MAX_SERIAL && text.chars().all(allowed) {
        return Ok(());
    }
    Err(RegistrationError::Serial {
        which,
        text: text.chars().take(64).collect(),
        beyond,
    })
}
