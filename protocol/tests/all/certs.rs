use std::time::{Duration, SystemTime};

use prost::Message as _;
use protocol::certs::{CertsError, ControllerCerts, build, certificate, check_signed_by};
use protocol::envelope::{Envelope, MAX_REPLY};
use protocol::eve::certs::{ZCertType, ZControllerCert};
use protocol::keys::{CertHash, pem_to_der};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};

use crate::support::{Vectors, mutations};

/// In the middle of the vectors' validity.
fn vector_time() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_798_000_000)
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["controller.example".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn authority(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// A controller's certificates: root, intermediate, and two leaves under it.
struct Authority {
    root: String,
    intermediate: String,
    signing: String,
    exchange: String,
}

impl Authority {
    fn new() -> Self {
        let root =
            CertifiedIssuer::self_signed(authority("root"), KeyPair::generate().unwrap()).unwrap();
        let middle =
            CertifiedIssuer::signed_by(authority("middle"), KeyPair::generate().unwrap(), &root)
                .unwrap();
        let leaf = |name| {
            named(name)
                .signed_by(&KeyPair::generate().unwrap(), &middle)
                .unwrap()
                .pem()
        };
        Self {
            root: root.pem(),
            intermediate: middle.pem(),
            signing: leaf("signing"),
            exchange: leaf("exchange"),
        }
    }

    fn set(&self) -> ZControllerCert {
        build(&self.signing, &[&self.exchange], &[&self.intermediate])
    }

    fn verify(&self, set: &ZControllerCert) -> Result<ControllerCerts, CertsError> {
        ControllerCerts::verify(set, self.root.as_bytes(), SystemTime::now())
    }
}

#[test]
fn the_reference_controllers_reply_is_trusted_under_its_root_only() {
    let vectors = Vectors::signed_containers();
    let envelope =
        Envelope::parse(&vectors.bytes("/certificates_reply/container"), MAX_REPLY).unwrap();
    let set = ZControllerCert::decode(envelope.payload_unchecked()).unwrap();
    let root = vectors
        .text("/certificates_reply/root_certificate")
        .as_bytes();
    let certs = ControllerCerts::verify(&set, root, vector_time()).unwrap();

    // The envelope around it was signed by the certificate that came in it.
    assert_eq!(certs.signing().hash(), envelope.sender());
    assert!(envelope.open(certs.signing()).is_ok());
    // The PEM travels without its final newline, and is named so.
    let signing = vectors
        .text("/certificates_reply/signing_certificate")
        .trim();
    assert_eq!(
        certs.signing().hash(),
        &CertHash::of_pem_text(signing.as_bytes())
    );
    let exchange = Vectors::cipher_block().bytes("/controller_certificate_hash");
    assert!(certs.exchange(&exchange).is_some());
    assert!(certs.exchange(&[0; 16]).is_none());
    assert!(certs.exchange(&[]).is_none());

    let stranger = Authority::new();
    let error = ControllerCerts::verify(&set, stranger.root.as_bytes(), vector_time()).unwrap_err();
    assert!(
        matches!(
            error,
            CertsError::Chain {
                what: "signing",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn dates_count_and_the_time_is_the_callers() {
    let vectors = Vectors::signed_containers();
    let envelope =
        Envelope::parse(&vectors.bytes("/certificates_reply/container"), MAX_REPLY).unwrap();
    let set = ZControllerCert::decode(envelope.payload_unchecked()).unwrap();
    let root = vectors
        .text("/certificates_reply/root_certificate")
        .as_bytes();
    let epoch = SystemTime::UNIX_EPOCH;
    for now in [
        epoch,
        epoch - Duration::from_secs(9),
        epoch + Duration::from_secs(4_000_000_000),
    ] {
        assert!(matches!(
            ControllerCerts::verify(&set, root, now),
            Err(CertsError::Chain { .. })
        ));
    }
}

#[test]
fn chains_go_through_intermediates() {
    let authority = Authority::new();
    let certs = authority.verify(&authority.set()).unwrap();
    assert!(certs.same_as(&authority.set()));
    let without = build(&authority.signing, &[&authority.exchange], &[]);
    assert!(matches!(
        authority.verify(&without),
        Err(CertsError::Chain {
            what: "signing",
            ..
        })
    ));
    assert!(!certs.same_as(&without));
    let mut reversed = authority.set();
    reversed.certs.reverse();
    assert!(certs.same_as(&reversed));
}

#[test]
fn each_leaf_is_checked() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let mixed = build(
        &ours.signing,
        &[&ours.exchange, &theirs.exchange],
        &[&ours.intermediate, &theirs.intermediate],
    );
    assert!(matches!(
        ours.verify(&mixed),
        Err(CertsError::Chain {
            what: "key exchange",
            ..
        })
    ));
    let signed_by_them = build(
        &theirs.signing,
        &[&ours.exchange],
        &[&ours.intermediate, &theirs.intermediate],
    );
    assert!(matches!(
        ours.verify(&signed_by_them),
        Err(CertsError::Chain {
            what: "signing",
            ..
        })
    ));
}

#[test]
fn the_make_up_of_the_set_is_checked() {
    let authority = Authority::new();
    let (signing, exchange, middle) = (
        authority.signing.as_str(),
        authority.exchange.as_str(),
        authority.intermediate.as_str(),
    );
    let none = build(signing, &[], &[middle]);
    assert!(matches!(
        authority.verify(&none),
        Err(CertsError::Set {
            signing: 1,
            exchange: 0
        })
    ));
    let mut two = authority.set();
    two.certs.push(certificate(
        ZCertType::CertTypeControllerSigning,
        signing.as_bytes(),
        None,
    ));
    assert!(matches!(
        authority.verify(&two),
        Err(CertsError::Set {
            signing: 2,
            exchange: 1
        })
    ));
    assert!(matches!(
        authority.verify(&ZControllerCert::default()),
        Err(CertsError::Set {
            signing: 0,
            exchange: 0
        })
    ));
    for kind in [0, 10, 13, 99] {
        let mut odd = authority.set();
        odd.certs[1].r#type = kind;
        assert!(
            matches!(authority.verify(&odd), Err(CertsError::Kind { kind: found, .. }) if found == kind)
        );
    }
    let many = build(signing, &[exchange; 32], &[middle]);
    assert!(matches!(
        authority.verify(&many),
        Err(CertsError::Limits(_))
    ));
    let mut long = authority.set();
    long.certs[0].cert.resize(20_000, b'\n');
    assert!(matches!(
        authority.verify(&long),
        Err(CertsError::Limits(_))
    ));
    let mut unnamed = authority.set();
    unnamed.certs[2].cert_hash.clear();
    assert!(matches!(
        authority.verify(&unnamed),
        Err(CertsError::Hash(0))
    ));
    let rootless = ControllerCerts::verify(&authority.set(), b"", SystemTime::now());
    assert!(matches!(rootless, Err(CertsError::Root(_))), "{rootless:?}");
}

#[test]
fn no_change_of_a_signed_certificate_is_accepted() {
    let authority = Authority::new();
    let good = authority.set();
    let der = pem_to_der(&good.certs[0].cert).unwrap();
    mutations(&der, |changed| {
        let mut set = good.clone();
        set.certs[0].cert = pem(changed).into_bytes();
        assert!(authority.verify(&set).is_err(), "{}", hex::encode(changed));
    });
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----",
        lines.join("\n")
    )
}

#[test]
fn a_devices_certificates_hang_on_its_own() {
    let device =
        CertifiedIssuer::self_signed(authority("device"), KeyPair::generate().unwrap()).unwrap();
    let stranger =
        CertifiedIssuer::self_signed(authority("device"), KeyPair::generate().unwrap()).unwrap();
    let attestation = named("attestation")
        .signed_by(&KeyPair::generate().unwrap(), &device)
        .unwrap();
    assert!(check_signed_by(attestation.der(), device.der()).is_ok());
    assert!(check_signed_by(attestation.der(), stranger.der()).is_err());
    assert!(check_signed_by(b"", device.der()).is_err());
    assert!(check_signed_by(attestation.der(), b"0").is_err());
}
