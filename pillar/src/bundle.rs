//! The bundle of the installer stick, as it lies in `/config`: which controller, whom to trust, since when.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use protocol::authority::Authority;
use protocol::enrolment::image::Enrolment;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;

use crate::paths::Paths;
use crate::tls::SYSTEM_ROOTS;

/// What the bundle says.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The controller.
    pub server: Authority,
    /// Root of the controller's signing and encryption certificates, PEM.
    pub root_pem: Vec<u8>,
    /// Roots for the TLS connection, DER: those of the bundle and the root above, as EVE does.
    pub tls_roots: Vec<CertificateDer<'static>>,
    /// How the device enrols.
    pub enrolment: Enrolment,
    /// EVE's onboarding certificate and key, PEM, if the image carries them.
    pub onboarding: Option<(String, String)>,
    /// Serial set by software (`soft_serial`), for machines whose firmware has none.
    pub soft_serial: Option<String>,
    /// When the bundle was made: no clock of this device can be right and earlier.
    pub built_at: Option<SystemTime>,
}

/// The port of a controller whose bundle names none.
const HTTPS: u16 = 443;

/// Why the bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error(
        "read {path}: {source}; the image was made without it or the config partition is damaged: install again"
    )]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{path}: {reason}; make the installer image again")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Extras {
    built_at: Option<jiff::Timestamp>,
    #[serde(default)]
    enrolment: Enrolment,
}

impl Bundle {
    /// Reads the bundle.
    ///
    /// # Errors
    /// When a file that nothing works without is missing or is not what it should be.
    pub fn read(paths: &Paths) -> Result<Self, Error> {
        let text = |name: &str| {
            let path = paths.bundle(name);
            std::fs::read_to_string(&path).map_err(|source| Error::Read { path, source })
        };
        let content = |name: &str, reason: &str| Error::Content {
            path: paths.bundle(name),
            reason: reason.to_owned(),
        };

        let server = Authority::or_port(text("server")?.trim(), HTTPS)
            .map_err(|error| content("server", &error.to_string()))?;
        let root_name = "root-certificate.pem";
        let root_pem = text(root_name)?.into_bytes();
        let root = certificates(&root_pem)
            .map_err(|error| content(root_name, &error.to_string()))?
            .into_iter()
            .next()
            .ok_or_else(|| content(root_name, "holds no certificate"))?;

        let tls_name = "v2tlsbaseroot-certificates.pem";
        let mut tls_roots = match text(tls_name) {
            Ok(pem) => certificates(pem.as_bytes())
                .map_err(|error| content(tls_name, &error.to_string()))?,
            Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        // EVE trusts both; a device that was told its roots needs no others than those.
        if tls_roots.is_empty() {
            tls_roots = std::fs::read(SYSTEM_ROOTS)
                .ok()
                .and_then(|pem| certificates(&pem).ok())
                .unwrap_or_default();
        }
        if !tls_roots.contains(&root) {
            tls_roots.push(root);
        }

        let onboarding = match (text("onboard.cert.pem"), text("onboard.key.pem")) {
            (Ok(certificate), Ok(key)) => Some((certificate, key)),
            _ => None,
        };
        let soft_serial = text("soft_serial")
            .ok()
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty());
        let extras = match text("skerry.json") {
            Ok(json) => extras(&json).map_err(|error| content("skerry.json", &error))?,
            // A bundle of another EVE controller has no such file.
            Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Extras::default()
            }
            Err(error) => return Err(error),
        };
        let built_at = extras
            .built_at
            .and_then(|at| u64::try_from(at.as_second()).ok())
            .map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        Ok(Self {
            server,
            root_pem,
            tls_roots,
            enrolment: extras.enrolment,
            onboarding,
            soft_serial,
            built_at,
        })
    }
}

fn extras(json: &str) -> Result<Extras, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

/// Reads what `skerry.json` says of enrolment.
///
/// # Errors
/// What is wrong with the file, and where.
pub fn enrolment(json: &str) -> Result<Enrolment, String> {
    extras(json).map(|extras| extras.enrolment)
}

/// A text that should be PEM and is not.
#[derive(Debug, thiserror::Error)]
#[error("not PEM certificates: {0}")]
pub struct PemError(#[from] rustls_pki_types::pem::Error);

/// The certificates of a PEM text.
///
/// # Errors
/// When there is something between the markers that is not base64.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    Ok(CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            config: dir.path().into(),
            ..Paths::default()
        };
        let error = Bundle::read(&paths).unwrap_err().to_string();
        assert!(
            error.contains("server") && error.contains(&dir.path().display().to_string()),
            "{error}"
        );
        std::fs::write(dir.path().join("server"), "localhost:1").unwrap();
        std::fs::write(dir.path().join("root-certificate.pem"), "no pem").unwrap();
        let error = Bundle::read(&paths).unwrap_err().to_string();
        assert!(
            error.contains("root-certificate.pem") && error.contains("no certificate"),
            "{error}"
        );
    }

    #[test]
    fn what_the_image_says_of_enrolment_is_read_strictly() {
        let eve = enrolment(r#"{"builtAt":"2026-11-20T19:50:00Z"}"#).unwrap();
        assert_eq!(eve, Enrolment::default());
        let only_eve = r#"{"enrolment":{"order":["eve"]},"laterVersions":1}"#;
        assert_eq!(enrolment(only_eve).unwrap(), eve);
        let error = enrolment(r#"{"enrolment":{"order":["zeroTouch","eve"]}}"#).unwrap_err();
        assert!(error.contains("enrolment.owner is not"), "{error}");
    }
}
