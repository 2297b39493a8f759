//! The controller's keys and certificates: made at the first start, found again at each later one.
//!
//! ```text
//! root (20 years)
//!  |- signing (5 years)  signs every message to a device
//!  |- ecdh (5 years)     the other half of the secrets given to a device
//!  '- tls (2 years)      the server's name on the network
//! onboard (20 years, self-signed)  EVE's onboarding certificate, the same on every image
//! root
//!  '- devices (90 days)  the device keys of machines that enrolled by themselves
//! owner                 see [`owner`]
//! ```
//!
//! All keys are P-256: EVE's device code pins TLS 1.2 suites with ECDSA, and its cipher blocks know only this curve.
//! A certificate is valid from two days before it was made, because devices with a battery-less clock start from the time their
//! image was built. A leaf with less than a third of its life left is renewed when the controller starts; devices notice a new
//! signing certificate by its hash and fetch `/certs` again. The TLS leaf is also renewed when the controller's names change.

mod files;
mod issue;
pub mod owner;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use prost::Message;
use protocol::certs;
use protocol::cipher::{Point, SoftwareAgreement};
use protocol::envelope;
use protocol::eve::certs::ZControllerCert;
use protocol::ids::DeviceId;
use protocol::keys::{CertHash, SoftwareSigner, sha256};
use thiserror::Error;

pub use files::write_secret;
use issue::{DeviceIssuer, Leaf, Pair};
use owner::Owner;

/// Why keys and certificates could not be made or read.
#[derive(Debug, Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{0}; check the data directory's owner, mode and free space")]
    File(#[from] durable::Error),
    /// A certificate or key could not be made.
    #[error("making the {what} certificate: {source}")]
    Issue {
        /// Which one.
        what: &'static str,
        /// Why it failed.
        source: rcgen::Error,
    },
    /// A file does not hold what it should.
    #[error(
        "reading {path}: {reason}; restore it from a backup, or remove it and its key to have a new one made"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The controller was given no name at the first start.
    #[error(
        "making the TLS certificate: no name given; start with --name HOST[:PORT], as devices will call this controller"
    )]
    NoName,
    /// The owner's keys.
    #[error("the owner's keys: {0}")]
    Owner(String),
}

/// Everything the controller proves itself with.
pub struct Pki {
    root: Pair,
    signing: Pair,
    ecdh: Pair,
    tls: Pair,
    onboard: Pair,
    signer: SoftwareSigner,
    sender: CertHash,
    config_hash: String,
    issuer: DeviceIssuer,
    agreement: SoftwareAgreement,
    owner: Owner,
}

/// A device's certificate at this controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceCertificate {
    /// DER.
    pub der: Vec<u8>,
    /// When it ends, in milliseconds since 1970.
    pub ends: i64,
}

impl Pki {
    /// Reads what lies in `directory` and makes what is missing, due for renewal, or names other `hosts`.
    ///
    /// `hosts` are DNS names or IP addresses without a port; if empty, those of the present TLS certificate stay.
    ///
    /// # Errors
    /// [`PkiError`]; nothing that was readable before is changed then.
    pub fn open(directory: &Path, hosts: &[String], now: Timestamp) -> Result<Self, PkiError> {
        files::make_directory(directory)?;
        let root = issue::root(directory, now)?;
        let signing = issue::leaf(directory, &root, Leaf::Signing, now)?;
        let ecdh = issue::leaf(directory, &root, Leaf::Ecdh, now)?;
        let tls = issue::leaf(directory, &root, Leaf::Tls(hosts), now)?;
        let onboard = issue::onboarding(directory, now)?;
        let signer = SoftwareSigner::from_pkcs8_pem(&signing.key_pem).map_err(|error| {
            PkiError::Damaged {
                path: directory.join("signing.key.pem"),
                reason: error.to_string(),
            }
        })?;
        let agreement = SoftwareAgreement::from_pkcs8_pem(&ecdh.key_pem).map_err(|error| {
            PkiError::Damaged {
                path: directory.join("ecdh.key.pem"),
                reason: error.to_string(),
            }
        })?;
        let issuer = issue::issuer(directory, &root)?;
        let owner = Owner::open(&directory.join("owner"), now)?;
        let sender = CertHash::of_pem_text(signing.certificate_pem.as_bytes());
        let mut both = signing.certificate_pem.clone().into_bytes();
        both.extend_from_slice(ecdh.certificate_pem.as_bytes());
        let config_hash = URL_SAFE_NO_PAD.encode(sha256(&both));
        Ok(Self {
            root,
            signing,
            ecdh,
            tls,
            onboard,
            signer,
            sender,
            config_hash,
            issuer,
            agreement,
            owner,
        })
    }

    /// Root of the signing, encryption and TLS certificates, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root.certificate_pem
    }

    /// EVE's onboarding certificate and its key, PEM. Not a secret of one device: every image carries it.
    pub fn onboarding(&self) -> (&str, &str) {
        (&self.onboard.certificate_pem, &self.onboard.key_pem)
    }

    /// The TLS server's certificate and key, PEM.
    pub fn tls(&self) -> (&str, &str) {
        (&self.tls.certificate_pem, &self.tls.key_pem)
    }

    /// Changes whenever a device should fetch `/certs` again: `EdgeDevConfig.controllercert_confighash`.
    pub fn certificates_hash(&self) -> &str {
        &self.config_hash
    }

    /// Answer to `/certs`, not yet sealed.
    pub fn controller_certificates(&self) -> ZControllerCert {
        certs::build(
            &self.signing.certificate_pem,
            &[&self.ecdh.certificate_pem],
            &[],
        )
    }

    /// The owner's keys.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The key for what is encrypted to devices, and its certificate's name in cipher contexts.
    pub fn agreement(&self) -> (&SoftwareAgreement, CertHash) {
        let name = CertHash::of_pem_text(self.ecdh.certificate_pem.as_bytes());
        (&self.agreement, name.short())
    }

    /// Certifies the key of a device.
    ///
    /// # Errors
    /// [`PkiError::Issue`].
    pub fn certify_device(
        &self,
        device: DeviceId,
        key: &Point,
        now: Timestamp,
    ) -> Result<DeviceCertificate, PkiError> {
        issue::device(&self.issuer, device, key, now)
    }

    /// Signs a message to a device.
    ///
    /// # Errors
    /// If the random source fails.
    pub fn seal(&self, message: &impl Message) -> Result<Vec<u8>, envelope::EnvelopeError> {
        envelope::seal_message(message, &self.sender, None, &self.signer)
    }

    /// Configuration of the TLS server: TLS 1.2 and 1.3 by ring's suites, HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    /// [`PkiError::Damaged`] if rustls does not take the certificate or its key.
    pub fn tls_config(&self) -> Result<Arc<rustls::ServerConfig>, PkiError> {
        issue::tls_config(&self.tls).map_err(|reason| PkiError::Damaged {
            path: PathBuf::from("tls.pem"),
            reason,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn what_was_made_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let first = Pki::open(directory.path(), &hosts(&["localhost", "127.0.0.1"]), now).unwrap();
        let second = Pki::open(directory.path(), &[], now).unwrap();
        assert_eq!(first.root_pem(), second.root_pem());
        assert_eq!(first.tls().0, second.tls().0);
        assert_eq!(first.onboarding(), second.onboarding());
        assert_eq!(first.certificates_hash(), second.certificates_hash());
        first.tls_config().unwrap();
    }

    #[test]
    fn other_names_get_another_tls_certificate_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let first = Pki::open(directory.path(), &hosts(&["localhost"]), now).unwrap();
        let second = Pki::open(directory.path(), &hosts(&["localhost", "::1"]), now).unwrap();
        assert_ne!(first.tls().0, second.tls().0);
        assert_eq!(first.certificates_hash(), second.certificates_hash());
    }

    #[test]
    fn a_first_start_needs_a_name() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(
            Pki::open(directory.path(), &[], Timestamp::now()),
            Err(PkiError::NoName)
        ));
    }

    #[test]
    fn leaves_are_renewed_in_the_last_third_of_their_life() {
        let directory = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let first = Pki::open(directory.path(), &hosts(&["localhost"]), now).unwrap();
        let later = |days: i64| now + jiff::SignedDuration::from_hours(24 * days);
        let third_year = Pki::open(directory.path(), &[], later(3 * 365)).unwrap();
        assert_eq!(first.certificates_hash(), third_year.certificates_hash());
        assert_ne!(
            first.tls().0,
            third_year.tls().0,
            "the TLS certificate lives two years"
        );
        let fourth_year = Pki::open(directory.path(), &[], later(4 * 365)).unwrap();
        assert_ne!(first.certificates_hash(), fourth_year.certificates_hash());
        assert_eq!(first.root_pem(), fourth_year.root_pem());
    }

    #[test]
    fn keys_are_for_the_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        Pki::open(directory.path(), &hosts(&["localhost"]), Timestamp::now()).unwrap();
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().ends_with(".key.pem") {
                assert_eq!(
                    entry.metadata().unwrap().permissions().mode() & 0o777,
                    0o600,
                    "{:?}",
                    entry.file_name()
                );
            }
        }
    }

    #[test]
    fn a_devices_other_certificates_hang_on_the_one_that_it_is_given() {
        let directory = tempfile::tempdir().unwrap();
        let keys = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let pki = Pki::open(directory.path(), &hosts(&["localhost"]), now).unwrap();
        let identity = onboarding::keys::Identity::open_or_create(keys.path(), None).unwrap();
        let point = Point::from_certificate_der(identity.device_certificate().der()).unwrap();
        let made = pki.certify_device(DeviceId::random(), &point, now).unwrap();
        protocol::certs::check_signed_by(identity.ecdh_certificate().der(), &made.der).unwrap();
        let root = protocol::keys::pem_to_der(pki.root_pem().as_bytes()).unwrap();
        protocol::certs::check_signed_by(&made.der, &root).unwrap();
        let days = (made.ends - now.as_millisecond()) / 86_400_000;
        assert!((89..=90).contains(&days), "{days}");
    }

    #[test]
    fn a_damaged_certificate_is_named() {
        let directory = tempfile::tempdir().unwrap();
        Pki::open(directory.path(), &hosts(&["localhost"]), Timestamp::now()).unwrap();
        std::fs::write(directory.path().join("signing.pem"), "garbage").unwrap();
        let error = Pki::open(directory.path(), &[], Timestamp::now())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("signing.pem"), "{error}");
    }
}
