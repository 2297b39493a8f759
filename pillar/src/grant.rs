//! What a grant leaves on the disk: who the device is to its controller, how much is known of it, and whom it belongs to.
//!
//! It is written whole before anything of it is used, so that after a power cut the device either has a grant or asks for one again.
//! What is secret in a grant (the token) is not in it. What is read back is checked as if it came from the network: a certificate that is
//! not for this device's key is no grant.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use onboarding::keys::Certificate;
use protocol::enrolment::owner::Pinned;
use protocol::enrolment::wire;
use protocol::ids::DeviceId;
use protocol::keys::{KeyError, VerifyingKey};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::generations;
use crate::paths::Paths;

/// Longest certificate that is kept, in bytes.
const MAX_CERTIFICATE: usize = 16 * 1024;

/// How much the controller knows of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Level {
    /// There is no TPM.
    None,
    /// A person, a rule or a line of the manifest let this TPM in.
    Bronze,
    /// The TPM's maker vouches for it.
    Silver,
    /// So does the machine's maker.
    Gold,
}

impl Level {
    /// From its number on the wire.
    #[must_use]
    pub fn of_wire(number: i32) -> Option<Self> {
        Some(match wire::Level::try_from(number).ok()? {
            wire::Level::Unspecified => return None,
            wire::Level::None => Self::None,
            wire::Level::Bronze => Self::Bronze,
            wire::Level::Silver => Self::Silver,
            wire::Level::Gold => Self::Gold,
        })
    }
}

impl fmt::Display for Level {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::None => "none",
            Self::Bronze => "bronze",
            Self::Silver => "silver",
            Self::Gold => "gold",
        })
    }
}

/// A grant, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The device's id.
    pub device: DeviceId,
    /// The device key's certificate at this controller, DER.
    pub certificate: Vec<u8>,
    /// How much is known of the device.
    pub level: Level,
    /// Whom it belongs to.
    pub owner: Pinned,
    /// From when to when the certificate is good, seconds since 1970.
    validity: (u64, u64),
}

/// Why something is no grant.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// The file holds something else.
    #[error("the kept grant: {0}")]
    Json(#[from] serde_json::Error),
    /// The certificate's bytes.
    #[error("the kept grant: the certificate is not hexadecimal")]
    Hex,
    /// The id is none.
    #[error("the grant's device id {0:?} is not a UUID")]
    Id(String),
    /// The level is none.
    #[error("the grant's level {0} is not known to this version")]
    Level(i32),
    /// The certificate cannot be read.
    #[error("the granted certificate cannot be read: {0}")]
    Certificate(String),
    /// The certificate's key.
    #[error("the granted certificate: {0}")]
    Key(#[from] KeyError),
    /// The certificate is for somebody else.
    #[error("the granted certificate is not for this device's key")]
    OtherKey,
}

/// The file's payload.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    device: DeviceId,
    /// DER, hexadecimal.
    certificate: String,
    level: Level,
    owner: Pinned,
}

/// Where it is kept.
#[must_use]
pub fn file(paths: &Paths) -> PathBuf {
    paths.pillar().join("grant.json")
}

/// The grant of an earlier start, if there is one for the device whose own certificate is `own`. One that is no good is told, and the
/// device enrols anew.
#[must_use]
pub fn load(paths: &Paths, own: &Certificate) -> Option<Grant> {
    let bytes = match generations::read(&file(paths)) {
        Ok(bytes) => bytes?,
        Err(error) => {
            tracing::warn!(%error, "the kept grant");
            return None;
        }
    };
    let grant = Grant::parse(&bytes).and_then(|grant| grant.of(own));
    grant
        .inspect_err(|error| tracing::warn!(%error, "not taken; the device enrols anew"))
        .ok()
}

impl Grant {
    /// Takes what the controller granted, for the device whose own certificate is `own`.
    ///
    /// # Errors
    /// [`GrantError`].
    pub fn take(
        payload: &wire::GrantPayload,
        owner: Pinned,
        own: &Certificate,
    ) -> Result<Self, GrantError> {
        let device = payload
            .device_id
            .parse()
            .map_err(|_| GrantError::Id(payload.device_id.chars().take(64).collect()))?;
        let level = Level::of_wire(payload.level).ok_or(GrantError::Level(payload.level))?;
        Self::new(device, payload.device_certificate.clone(), level, owner)?.of(own)
    }

    /// Reads the file's payload.
    ///
    /// # Errors
    /// [`GrantError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, GrantError> {
        let kept: Kept = serde_json::from_slice(bytes)?;
        let certificate = hex::decode(&kept.certificate).map_err(|_| GrantError::Hex)?;
        Self::new(kept.device, certificate, kept.level, kept.owner)
    }

    /// The file's payload.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let kept = Kept {
            device: self.device,
            certificate: hex::encode(&self.certificate),
            level: self.level,
            owner: self.owner,
        };
        // These types serialise always; an empty file would be no grant.
        serde_json::to_vec(&kept).unwrap_or_default()
    }

    fn new(
        device: DeviceId,
        certificate: Vec<u8>,
        level: Level,
        owner: Pinned,
    ) -> Result<Self, GrantError> {
        let bad = |what: &str| GrantError::Certificate(what.to_owned());
        if certificate.len() > MAX_CERTIFICATE {
            return Err(bad("it is too long"));
        }
        let (rest, parsed) =
            X509Certificate::from_der(&certificate).map_err(|error| bad(&error.to_string()))?;
        if !rest.is_empty() {
            return Err(bad("something follows it"));
        }
        let second = |time: &x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).ok();
        let validity = second(&parsed.validity().not_before)
            .zip(second(&parsed.validity().not_after))
            .filter(|(from, until)| from < until)
            .ok_or_else(|| bad("its time of validity is none"))?;
        Ok(Self {
            device,
            certificate,
            level,
            owner,
            validity,
        })
    }

    /// Itself, if its certificate is for the key of the certificate `own`.
    fn of(self, own: &Certificate) -> Result<Self, GrantError> {
        let key = VerifyingKey::from_certificate_der(&self.certificate)?;
        if key == VerifyingKey::from_certificate_der(own.der())? {
            Ok(self)
        } else {
            Err(GrantError::OtherKey)
        }
    }

    /// When a third of the certificate's life is left: it is to be renewed then.
    #[must_use]
    pub fn renew_at(&self) -> SystemTime {
        let (from, until) = self.validity;
        let at = until.saturating_sub(until.saturating_sub(from) / 3);
        UNIX_EPOCH
            .checked_add(Duration::from_secs(at))
            .unwrap_or(UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use protocol::digest::Digest;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn certificate(key: &KeyPair, years: (i32, i32)) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        params.self_signed(key).unwrap().der().to_vec()
    }

    fn owner() -> Pinned {
        Pinned {
            epoch: 1,
            root: Digest::of(b"1"),
            next: Digest::of(b"2"),
            delegation: 4,
        }
    }

    fn payload(key: &KeyPair) -> wire::GrantPayload {
        wire::GrantPayload {
            device_id: "3f2504e0-4f89-41d3-9a0c-0305e82c3301".into(),
            device_certificate: certificate(key, (2026, 2029)),
            level: wire::Level::Silver.into(),
            integrity_token: b"secret".to_vec(),
            ..wire::GrantPayload::default()
        }
    }

    #[test]
    fn what_is_kept_is_read_back_and_holds_no_secret() {
        let key = KeyPair::generate().unwrap();
        let own = Certificate::from_der(certificate(&key, (2000, 2090)));
        let grant = Grant::take(&payload(&key), owner(), &own).unwrap();
        assert_eq!(grant.level, Level::Silver);
        let bytes = grant.to_bytes();
        assert_eq!(Grant::parse(&bytes).unwrap(), grant);
        let text = String::from_utf8(bytes).unwrap();
        assert!(!text.contains(&hex::encode("secret")) && !text.contains("secret"));
        // Two thirds of three years, the last of which is a leap year.
        let at = grant.renew_at().duration_since(UNIX_EPOCH).unwrap();
        let want = jiff::Timestamp::from_second(i64::try_from(at.as_secs()).unwrap()).unwrap();
        assert_eq!(want.strftime("%Y-%m-%d").to_string(), "2028-01-01");
    }

    #[test]
    fn a_grant_for_somebody_else_or_without_sense_is_refused() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let own = Certificate::from_der(certificate(&key, (2000, 2090)));
        let good = payload(&key);
        type Change<'a> = &'a dyn Fn(&mut wire::GrantPayload);
        let refused = |change: Change<'_>| {
            let mut bad = good.clone();
            change(&mut bad);
            Grant::take(&bad, owner(), &own).unwrap_err().to_string()
        };
        let table: [(&str, Change<'_>); 6] = [
            ("not for this device's key", &|p| {
                p.device_certificate = certificate(&other, (2026, 2029));
            }),
            ("time of validity", &|p| {
                p.device_certificate = certificate(&key, (2029, 2026));
            }),
            ("cannot be read", &|p| p.device_certificate.truncate(30)),
            ("something follows", &|p| p.device_certificate.push(0)),
            ("not a UUID", &|p| p.device_id = "box".into()),
            ("level 9", &|p| p.level = 9),
        ];
        for (reason, change) in table {
            let error = refused(change);
            assert!(error.contains(reason), "{reason}: {error}");
        }
    }
}
