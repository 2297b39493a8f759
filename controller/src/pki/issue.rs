//! Making certificates, and deciding whether one that is there still serves.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use protocol::cipher::Point;
use protocol::ids::DeviceId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{DeviceCertificate, PkiError, files};

/// How long before its making a certificate is valid, in days.
const BACKDATED_DAYS: i64 = 2;
/// Life of the root and of the onboarding certificate, in days.
const ROOT_DAYS: i64 = 20 * 365;
/// Life of the signing and ECDH leaves, in days.
const LEAF_DAYS: i64 = 5 * 365;
/// Life of the TLS leaf, in days (browsers and some TLS stacks refuse server certificates that live longer than 825 days).
const TLS_DAYS: i64 = 2 * 365;
/// Life of a device's certificate, in days: a device that was not heard from for longer enrols anew.
const DEVICE_DAYS: i64 = 90;

/// A certificate and its key, both PEM without white space at the ends.
pub(super) struct Pair {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// Which leaf to make.
#[derive(Clone, Copy)]
pub(super) enum Leaf<'a> {
    Signing,
    Ecdh,
    /// With the names that the server shall have; none: those that it has.
    Tls(&'a [String]),
}

impl Leaf<'_> {
    fn name(self) -> &'static str {
        match self {
            Self::Signing => "signing",
            Self::Ecdh => "ecdh",
            Self::Tls(_) => "tls",
        }
    }
}

/// What is known of a certificate that lies there.
struct Facts {
    not_before: i64,
    not_after: i64,
    hosts: BTreeSet<String>,
}

/// Whether less than a third of a certificate's life is left.
fn is_due(facts: &Facts, now: Timestamp) -> bool {
    (facts.not_after - now.as_second()) * 3 < facts.not_after - facts.not_before
}

pub(super) fn root(directory: &Path, now: Timestamp) -> Result<Pair, PkiError> {
    if let Some((pair, _)) = load(directory, "root")? {
        return Ok(pair);
    }
    let mut params = params("Skerry root", now, ROOT_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = generate("root")?;
    let certificate = params.self_signed(&key).map_err(|source| PkiError::Issue {
        what: "root",
        source,
    })?;
    save(directory, "root", &certificate.pem(), &key.serialize_pem())
}

pub(super) fn onboarding(directory: &Path, now: Timestamp) -> Result<Pair, PkiError> {
    if let Some((pair, _)) = load(directory, "onboard")? {
        return Ok(pair);
    }
    let key = generate("onboarding")?;
    let certificate = params("Skerry onboarding", now, ROOT_DAYS)
        .self_signed(&key)
        .map_err(|source| PkiError::Issue {
            what: "onboarding",
            source,
        })?;
    save(
        directory,
        "onboard",
        &certificate.pem(),
        &key.serialize_pem(),
    )
}

pub(super) fn leaf(
    directory: &Path,
    root: &Pair,
    leaf: Leaf<'_>,
    now: Timestamp,
) -> Result<Pair, PkiError> {
    let name = leaf.name();
    let present = load(directory, name)?;
    let hosts: BTreeSet<String> = match leaf {
        Leaf::Tls([]) => present
            .as_ref()
            .map(|(_, facts)| facts.hosts.clone())
            .ok_or(PkiError::NoName)?,
        Leaf::Tls(wanted) => wanted.iter().map(|host| canonical(host)).collect(),
        Leaf::Signing | Leaf::Ecdh => BTreeSet::new(),
    };
    if let Some((pair, facts)) = present
        && !is_due(&facts, now)
        && facts.hosts == hosts
    {
        return Ok(pair);
    }
    let issue_error = |source| PkiError::Issue { what: name, source };
    let (title, days) = match leaf {
        Leaf::Signing => ("Skerry controller, signing", LEAF_DAYS),
        Leaf::Ecdh => ("Skerry controller, key exchange", LEAF_DAYS),
        Leaf::Tls(_) => ("Skerry controller", TLS_DAYS),
    };
    let mut params = params(title, now, days);
    params.use_authority_key_identifier_extension = true;
    // EVE verifies with Go's defaults: a leaf has no extended key usage or serverAuth.
    params.key_usages = match leaf {
        Leaf::Ecdh => vec![KeyUsagePurpose::KeyAgreement],
        Leaf::Signing | Leaf::Tls(_) => vec![KeyUsagePurpose::DigitalSignature],
    };
    if let Leaf::Tls(_) = leaf {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    }
    for host in &hosts {
        params.subject_alt_names.push(match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(host.as_str().try_into().map_err(issue_error)?),
        });
    }
    let issuer = issuer(directory, root)?;
    let key = generate(name)?;
    let certificate = params.signed_by(&key, &issuer).map_err(issue_error)?;
    save(directory, name, &certificate.pem(), &key.serialize_pem())
}

/// What signs with the root's key.
pub(super) type DeviceIssuer = Issuer<'static, KeyPair>;

pub(super) fn issuer(directory: &Path, root: &Pair) -> Result<DeviceIssuer, PkiError> {
    let root_key = KeyPair::from_pem(&root.key_pem).map_err(|error| PkiError::Damaged {
        path: directory.join("root.key.pem"),
        reason: error.to_string(),
    })?;
    Issuer::from_ca_cert_pem(&root.certificate_pem, root_key).map_err(|error| PkiError::Damaged {
        path: directory.join("root.pem"),
        reason: error.to_string(),
    })
}

/// A device's key as the certificate library wants to see a key.
struct DeviceKey([u8; 65]);

impl rcgen::PublicKeyData for DeviceKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

pub(super) fn device(
    issuer: &DeviceIssuer,
    device: DeviceId,
    key: &Point,
    now: Timestamp,
) -> Result<DeviceCertificate, PkiError> {
    let mut params = params(&device.to_string(), now, DEVICE_DAYS);
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Skerry");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let ends = params.not_after.unix_timestamp() * 1000;
    let certificate = params
        .signed_by(&DeviceKey(key.to_sec1()), issuer)
        .map_err(|source| PkiError::Issue {
            what: "device",
            source,
        })?;
    Ok(DeviceCertificate {
        der: certificate.der().to_vec(),
        ends,
    })
}

/// The TLS server's configuration; errors in words.
pub(super) fn tls_config(pair: &Pair) -> Result<Arc<rustls::ServerConfig>, String> {
    let certificate = CertificateDer::from_pem_slice(pair.certificate_pem.as_bytes())
        .map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes())
        .map_err(|error| error.to_string())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

pub(super) fn generate(what: &'static str) -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|source| PkiError::Issue { what, source })
}

fn params(name: &str, now: Timestamp, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    params.distinguished_name = distinguished;
    let day = |offset: i64| {
        let date = (now + SignedDuration::from_hours(24 * offset))
            .to_zoned(TimeZone::UTC)
            .date();
        rcgen::date_time_ymd(
            i32::from(date.year()),
            date.month().unsigned_abs(),
            date.day().unsigned_abs(),
        )
    };
    params.not_before = day(-BACKDATED_DAYS);
    params.not_after = day(days);
    params
}

/// One spelling for each name, as it comes back out of a certificate.
fn canonical(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => host.to_ascii_lowercase(),
    }
}

/// Saves the key first: a certificate whose key is there is complete.
fn save(directory: &Path, name: &str, certificate: &str, key: &str) -> Result<Pair, PkiError> {
    // The old certificate must not be found beside the new key after a power cut.
    let path = directory.join(format!("{name}.pem"));
    durable::remove(&path)?;
    files::write_secret(&directory.join(format!("{name}.key.pem")), key)?;
    // EVE hashes the PEM text byte for byte; without white space at its ends there is one way only to spell it.
    files::write(&path, certificate.trim(), 0o644)?;
    Ok(Pair {
        certificate_pem: certificate.trim().to_owned(),
        key_pem: key.trim().to_owned(),
    })
}

fn load(directory: &Path, name: &str) -> Result<Option<(Pair, Facts)>, PkiError> {
    let path = directory.join(format!("{name}.pem"));
    let Some(certificate) = files::read(&path)? else {
        return Ok(None);
    };
    let key_path = directory.join(format!("{name}.key.pem"));
    let Some(key) = files::read(&key_path)? else {
        return Err(PkiError::Damaged {
            path: key_path,
            reason: "it is missing, but its certificate is there".to_owned(),
        });
    };
    let facts =
        facts(certificate.as_bytes()).map_err(|reason| PkiError::Damaged { path, reason })?;
    let pair = Pair {
        certificate_pem: certificate.trim().to_owned(),
        key_pem: key.trim().to_owned(),
    };
    Ok(Some((pair, facts)))
}

fn facts(pem: &[u8]) -> Result<Facts, String> {
    let der = CertificateDer::from_pem_slice(pem).map_err(|error| error.to_string())?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
    let mut hosts = BTreeSet::new();
    if let Some(names) = certificate
        .subject_alternative_name()
        .map_err(|error| error.to_string())?
    {
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(name) => hosts.insert((*name).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    let address = <[u8; 4]>::try_from(*bytes)
                        .map(IpAddr::from)
                        .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                    address.is_ok_and(|address| hosts.insert(address.to_string()))
                }
                _ => false,
            };
        }
    }
    let validity = certificate.validity();
    Ok(Facts {
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
        hosts,
    })
}
