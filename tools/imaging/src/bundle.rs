//! The bundle: what a device must know of its controller before the first word is spoken.
//!
//! It comes as JSON from the controller's `GET /apis/skerry.io/v1/imagebundle` and travels as files under EVE's names, so
//! that an EVE controller's files can be used as they are (docs/src/internals/contracts.md). It carries no secret of any one
//! device; `onboard.key.pem` is the same on every stick, and is on none whose devices enrol by the zero-touch way alone.

use std::fmt;

use protocol::authority::Authority;
use protocol::enrolment::image::{Enrolment, Way};
use serde::{Deserialize, Serialize};

/// The controller's address and trust roots. JSON fields in camelCase; unknown ones are ignored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bundle {
    /// `host:port` of the controller.
    pub server: String,
    /// Root of the controller's signing and encryption certificates, PEM.
    pub root_certificate: String,
    /// Roots for the TLS connection, PEM, at least one.
    pub tls_root_certificates: String,
    /// EVE's onboarding certificate, PEM; needed if the order of enrolment has `eve`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onboard_certificate: Option<String>,
    /// Its key, PKCS#8 PEM; likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onboard_key: Option<String>,
    /// How devices enrol; EVE's way if nothing is said.
    #[serde(default)]
    pub enrolment: Enrolment,
    /// When the bundle was made, RFC 3339 in UTC: floor of the device's clock.
    pub built_at: String,
}

/// What is wrong with a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Not the JSON that it should be.
    #[error("the image bundle is not what a controller gives: {0}")]
    Json(#[from] serde_json::Error),
    /// A field has not the form that it should have.
    #[error(
        "the image bundle's {field} is not {wanted}. Ask the controller again: GET /apis/skerry.io/v1/imagebundle"
    )]
    Field {
        /// JSON name of the field.
        field: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
}

impl Bundle {
    /// Reads and checks the controller's JSON.
    pub fn parse(json: &[u8]) -> Result<Self, BundleError> {
        let bundle: Self = serde_json::from_slice(json)?;
        bundle.check()?;
        Ok(bundle)
    }

    /// Checks the form of every field. What the certificates are worth is for the device to say.
    pub fn check(&self) -> Result<(), BundleError> {
        let wrong = |field, wanted| Err(BundleError::Field { field, wanted });
        if self.server.parse::<Authority>().is_err() {
            return wrong("server", "host:port");
        }
        for (field, text) in [
            ("rootCertificate", &self.root_certificate),
            ("tlsRootCertificates", &self.tls_root_certificates),
        ] {
            if !has_pem(text, "CERTIFICATE") {
                return wrong(field, "a certificate in PEM");
            }
        }
        for (field, text, label, wanted) in [
            (
                "onboardCertificate",
                &self.onboard_certificate,
                "CERTIFICATE",
                "a certificate in PEM",
            ),
            (
                "onboardKey",
                &self.onboard_key,
                "PRIVATE KEY",
                "a PKCS#8 private key in PEM",
            ),
        ] {
            let good = match text {
                Some(text) => has_pem(text, label),
                None => !self.enrolment.has(Way::Eve),
            };
            if !good {
                return wrong(field, wanted);
            }
        }
        if !is_utc_time(&self.built_at) {
            return wrong("builtAt", "a time such as 2026-11-20T19:50:00Z");
        }
        Ok(())
    }

    /// The files of the bundle: name and bytes.
    pub fn files(&self) -> Vec<(&'static str, Vec<u8>)> {
        let text = |text: &str| format!("{}\n", text.trim_end()).into_bytes();
        let facts =
            serde_json::json!({ "builtAt": self.built_at, "enrolment": self.enrolment.to_json() });
        let mut files = vec![
            ("server", text(&self.server)),
            ("root-certificate.pem", text(&self.root_certificate)),
            (
                "v2tlsbaseroot-certificates.pem",
                text(&self.tls_root_certificates),
            ),
            ("skerry.json", text(&facts.to_string())),
        ];
        // A key that no device of this stick uses is not put where a thief finds it, whoever gave it.
        if self.enrolment.has(Way::Eve) {
            let onboarding = [
                ("onboard.cert.pem", &self.onboard_certificate),
                ("onboard.key.pem", &self.onboard_key),
            ];
            for (name, pem) in onboarding {
                files.extend(pem.as_deref().map(|pem| (name, text(pem))));
            }
        }
        files
    }
}

/// Without the key: errors and logs must not carry it.
impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle")
            .field("server", &self.server)
            .field("built_at", &self.built_at)
            .finish_non_exhaustive()
    }
}

fn has_pem(text: &str, label: &str) -> bool {
    let begin = text.find(&format!("-----BEGIN {label}-----"));
    let end = text.rfind(&format!("-----END {label}-----"));
    matches!((begin, end), (Some(begin), Some(end)) if begin < end)
}

/// RFC 3339 in UTC, to the second or finer, by its shape and the range of each number.
fn is_utc_time(text: &str) -> bool {
    let Some((date, time)) = text.strip_suffix('Z').and_then(|t| t.split_once('T')) else {
        return false;
    };
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let numbers = |text: &str, divider: char, wanted: [(usize, u32, u32); 3]| {
        let fields: Vec<&str> = text.split(divider).collect();
        fields.len() == 3
            && fields.iter().zip(wanted).all(|(field, (len, low, high))| {
                field.len() == len
                    && field.bytes().all(|b| b.is_ascii_digit())
                    && field.parse().is_ok_and(|n: u32| (low..=high).contains(&n))
            })
    };
    numbers(date, '-', [(4, 1970, 9999), (2, 1, 12), (2, 1, 31)])
        && numbers(time, ':', [(2, 0, 23), (2, 0, 59), (2, 0, 60)])
        && !fraction.is_empty()
        && fraction.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A bundle with the right form.
    pub fn sample() -> Bundle {
        let pem = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
        Bundle {
            server: "controller.example:8443".to_owned(),
            root_certificate: pem("CERTIFICATE"),
            tls_root_certificates: pem("CERTIFICATE").repeat(2),
            onboard_certificate: Some(pem("CERTIFICATE")),
            onboard_key: Some(pem("PRIVATE KEY")),
            enrolment: Enrolment::default(),
            built_at: "2026-11-20T19:50:00Z".to_owned(),
        }
    }

    fn zero_touch() -> Enrolment {
        serde_json::from_value(serde_json::json!({
            "order": ["zeroTouch"],
            "owner": {
                "epoch": 1,
                "root": format!("sha256:{}", "ab".repeat(32)),
                "next": format!("sha256:{}", "cd".repeat(32)),
            },
            // The base point of P-256 (SEC 2, section 2.4.2).
            "controllerKey": "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c2964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5",
        }))
        .unwrap()
    }

    #[test]
    fn a_good_bundle_passes_and_makes_the_files_of_the_contract() {
        let json = serde_json::to_vec(&sample()).unwrap();
        let bundle = Bundle::parse(&json).unwrap();
        let files = bundle.files();
        let names: Vec<_> = files.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            names,
            [
                "server",
                "root-certificate.pem",
                "v2tlsbaseroot-certificates.pem",
                "skerry.json",
                "onboard.cert.pem",
                "onboard.key.pem"
            ]
        );
        assert_eq!(files[0].1, b"controller.example:8443\n");
        assert_eq!(
            files[3].1,
            b"{\"builtAt\":\"2026-11-20T19:50:00Z\",\"enrolment\":{\"order\":[\"eve\"]}}\n"
        );
    }

    #[test]
    fn a_stick_of_the_zero_touch_way_alone_holds_no_private_key() {
        let mut bundle = sample();
        bundle.enrolment = zero_touch();
        for given in [true, false] {
            if !given {
                (bundle.onboard_certificate, bundle.onboard_key) = (None, None);
            }
            let json = serde_json::to_vec(&bundle).unwrap();
            let bundle = Bundle::parse(&json).unwrap();
            let files = bundle.files();
            assert_eq!(files.len(), 4);
            for (name, bytes) in files {
                assert!(
                    !name.starts_with("onboard")
                        && !String::from_utf8(bytes).unwrap().contains("PRIVATE")
                );
            }
        }
    }

    #[test]
    fn what_is_wrong_with_enrolment_is_named() {
        let mut json = serde_json::to_value(sample()).unwrap();
        json["enrolment"] = zero_touch().to_json();
        json["enrolment"]["owner"]["next"] = "sha256:1".into();
        let error = Bundle::parse(json.to_string().as_bytes())
            .unwrap_err()
            .to_string();
        assert!(error.contains("enrolment.owner.next is not"), "{error}");
    }

    #[test]
    fn each_field_is_checked() {
        type Spoil = fn(&mut Bundle);
        let cases: [(&str, Spoil); 16] = [
            ("server", |b| b.server = "controller".into()),
            ("server", |b| b.server = "controller:0".into()),
            ("server", |b| b.server = "controller:70000".into()),
            ("server", |b| b.server = "a b:443".into()),
            ("server", |b| b.server = "https://a:443".into()),
            ("server", |b| b.server = "a:8b:443".into()),
            ("server", |b| b.server = "[a]:443".into()),
            ("rootCertificate", |b| b.root_certificate.clear()),
            ("tlsRootCertificates", |b| {
                b.tls_root_certificates = "x".into()
            }),
            ("onboardCertificate", |b| {
                b.onboard_certificate = Some("-----END CERTIFICATE-----".into())
            }),
            ("onboardCertificate", |b| b.onboard_certificate = None),
            ("onboardKey", |b| {
                b.onboard_key = b.onboard_certificate.clone()
            }),
            ("onboardKey", |b| b.onboard_key = None),
            ("builtAt", |b| b.built_at = "yesterday".into()),
            ("builtAt", |b| b.built_at = "2026-13-20T19:50:00Z".into()),
            ("builtAt", |b| {
                b.built_at = "2026-11-20T19:50:00+01:00".into()
            }),
        ];
        for (field, spoil) in cases {
            let mut bundle = sample();
            spoil(&mut bundle);
            let error = bundle.check().unwrap_err().to_string();
            assert!(error.contains(&format!("bundle's {field} ")), "{error}");
        }
        for server in [
            "192.0.2.1:8443",
            "[2001:db8::1]:443",
            "controller.example:443",
        ] {
            Bundle {
                server: server.into(),
                ..sample()
            }
            .check()
            .unwrap();
        }
        Bundle {
            built_at: "2026-11-20T19:50:00.123Z".into(),
            ..sample()
        }
        .check()
        .unwrap();
    }

    #[test]
    fn the_key_is_not_in_debug_output() {
        let text = format!("{:?}", sample());
        assert!(
            !text.contains("PRIVATE") && text.contains("controller.example"),
            "{text}"
        );
    }
}
