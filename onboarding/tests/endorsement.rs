//! Endorsement keys and their certificates: which makers are believed, and which are not.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use onboarding::enrol::endorsement::{Endorsed, Makers, MakersError, form};
use onboarding::keys::{EndorsementMaker, Identity};
use onboarding::tpm::template::{EkAlgorithm, KeyUse, certificate_index, endorsement_key, p256};
use onboarding::tpm::{Hierarchy, NvAttributes, Tpm};
use onboarding::wire::{Public, PublicKind};
use protocol::cipher::SoftwareAgreement;
use protocol::enrolment::wire::Level;
use rcgen::{CustomExtension, ExtendedKeyUsagePurpose, IsCa};
use support::Emulator;
use support::enrol::{Device, Owner, enrol, evidence, still_works};
use support::maker::Authority;

/// An endorsement key on P-256 whose private part nobody needs here.
fn key(scalar: u8) -> Public {
    let point = SoftwareAgreement::from_scalar(&[scalar; 32])
        .unwrap()
        .public_point()
        .unwrap();
    let mut public = endorsement_key(EkAlgorithm::P256);
    if let PublicKind::Ecc { x, y, .. } = &mut public.kind {
        *x = point.x().to_vec();
        *y = point.y().to_vec();
    }
    public
}

fn trust(authorities: &[&Authority]) -> Makers {
    let text: Vec<String> = authorities.iter().map(|a| a.pem()).collect();
    Makers::from_pem(&text.join("text between\n")).unwrap()
}

fn trusted(endorsed: &Endorsed) -> bool {
    matches!(endorsed, Endorsed::Trusted { .. })
}

fn refuted(endorsed: Endorsed) -> String {
    match endorsed {
        Endorsed::Refuted(what) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_certificate_leads_to_an_anchor_by_the_tpms_chain_or_the_owners_list() {
    let (root, public) = (Authority::root("Acme TPM root", None), key(1));
    let (upper, lower) = {
        let upper = root.below("Acme TPM upper");
        let lower = upper.below("Acme TPM lower");
        (upper, lower)
    };
    let leaf = lower.endorse(&public, |_| ());
    let chain = [upper.der(), lower.der()];
    // Out of date as it is, in any order.
    for chain in [&chain[..], &[chain[1].clone(), chain[0].clone()]] {
        let endorsed = trust(&[&root]).judge(&public, &leaf, chain);
        assert_eq!(
            endorsed,
            Endorsed::Trusted {
                maker: "CN=Acme TPM root".to_owned()
            }
        );
    }
    assert!(trusted(&trust(&[&lower]).judge(&public, &leaf, &[])));
    assert!(trusted(&trust(&[&upper]).judge(&public, &leaf, &chain)));
    assert!(trusted(&trust(&[&root, &upper, &lower]).judge(
        &public,
        &leaf,
        &[]
    )));
    // The root is in the TPM too.
    let whole = [chain[0].clone(), root.der(), chain[1].clone()];
    assert!(trusted(&trust(&[&root]).judge(&public, &leaf, &whole)));

    // A link is missing; nobody is trusted; another maker is.
    let other = Authority::root("Another root", None);
    for (makers, chain, issuer) in [
        (trust(&[&root]), &chain[..1], "CN=Acme TPM lower"),
        (trust(&[&root]), &chain[1..], "CN=Acme TPM upper"),
        (Makers::none(), &chain[..], "CN=Acme TPM root"),
        (trust(&[&other]), &chain[..], "CN=Acme TPM root"),
    ] {
        assert_eq!(
            makers.judge(&public, &leaf, chain),
            Endorsed::Untrusted {
                issuer: issuer.to_owned()
            }
        );
    }
}

#[test]
fn what_is_not_a_makers_word_on_this_key_is_refuted() {
    let (root, public) = (Authority::root("Acme TPM root", None), key(1));
    let makers = trust(&[&root]);
    let judge = |leaf: &[u8]| makers.judge(&public, leaf, &[]);
    let good = root.endorse(&public, |_| ());
    assert!(trusted(&judge(&good)));
    assert!(refuted(judge(&root.endorse(&key(2), |_| ()))).contains("another key"));
    // An authority of the same name.
    let false_root = Authority::root("Acme TPM root", None);
    let forged = false_root.endorse(&public, |_| ());
    assert!(refuted(judge(&forged)).contains("did not sign it"));
    // A maker that has changed its key under its name is believed for both.
    assert!(trusted(&trust(&[&false_root, &root]).judge(
        &public,
        &good,
        &[]
    )));
    assert!(
        refuted(judge(&root.endorse(&public, |p| p.is_ca =
            IsCa::Ca(rcgen::BasicConstraints::Unconstrained))))
        .contains("authority")
    );
    let unknown = |p: &mut rcgen::CertificateParams| {
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        extension.set_criticality(true);
        p.custom_extensions.push(extension);
    };
    assert!(refuted(judge(&root.endorse(&public, unknown))).contains("1.2.3.4"));
    let server = |p: &mut rcgen::CertificateParams| {
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    assert!(refuted(judge(&root.endorse(&public, server))).contains("not for an endorsement key"));
    // Without any usage, as certificates of the first TPMs.
    let none = root.endorse(&public, |p| p.extended_key_usages.clear());
    assert!(trusted(&judge(&none)));
    // Each changed byte, each cut. The algorithm outside what is signed is a copy of the one inside, and how its tag is written makes
    // no difference.
    let signed = 4 + 4 + usize::from(u16::from_be_bytes([good[6], good[7]]));
    let copy = signed..signed + 12;
    for place in 0..good.len() {
        let mut changed = good.clone();
        changed[place] ^= 1;
        assert!(
            copy.contains(&place) || !trusted(&judge(&changed)),
            "byte {place} of {}",
            hex::encode(&good)
        );
        assert!(!trusted(&judge(&good[..place])), "cut to {place}");
    }
    assert!(!trusted(&judge(&[good, vec![0]].concat())));
    assert!(refuted(judge(&vec![0x30; 9000])).contains("9000 bytes"));
}

#[test]
fn authorities_keep_to_what_they_may_do() {
    let (root, public) = (Authority::root("Acme TPM root", Some(0)), key(1));
    let below = root.below("Acme TPM below");
    let leaf = below.endorse(&public, |_| ());
    // The root may have no authority below it.
    assert!(!trusted(&trust(&[&root]).judge(
        &public,
        &leaf,
        &[below.der()]
    )));
    assert!(trusted(&trust(&[&root]).judge(
        &public,
        &root.endorse(&public, |_| ()),
        &[]
    )));
    // An endorsement key's certificate is no authority's, so it is not taken as one.
    let error = Makers::from_pem(&pem(&root.endorse(&public, |_| ()))).unwrap_err();
    assert!(
        matches!(error, MakersError::Certificate { number: 1, .. }),
        "{error}"
    );
    // Two authorities that sign each other lead nowhere, and to an end.
    let a = Authority::root("A", None);
    let b = a.below("B");
    let chain = vec![b.der(), a.der(), b.der(), a.der()];
    assert!(!trusted(&trust(&[&root]).judge(
        &public,
        &b.endorse(&public, |_| ()),
        &chain
    )));
}

fn pem(der: &[u8]) -> String {
    onboarding::keys::Certificate::from_der(der.to_vec())
        .pem()
        .to_owned()
}

#[test]
fn a_list_of_makers_is_read_whole_or_not_at_all() {
    let root = Authority::root("Acme TPM root", None);
    assert_eq!(trust(&[&root, &root]).len(), 2);
    assert!(Makers::none().is_empty());
    assert!(matches!(Makers::from_pem(""), Err(MakersError::Empty)));
    assert!(matches!(
        Makers::from_pem("# none\n"),
        Err(MakersError::Empty)
    ));
    let good = root.pem();
    for bad in [
        format!("{good}{}", pem(&[0x30, 0x03, 1, 2, 3])),
        format!("{good}{}", &good[..good.len() / 2]),
        format!("{good}{}", pem(&[root.der(), vec![0]].concat())),
    ] {
        let error = Makers::from_pem(&bad).unwrap_err();
        assert!(error.to_string().contains("number 2"), "{error}");
    }
}

#[test]
fn an_endorsement_keys_form_is_exact() {
    assert_eq!(form(&key(1)), Some(EkAlgorithm::P256));
    let mut rsa = endorsement_key(EkAlgorithm::Rsa2048);
    assert_eq!(form(&rsa), None, "a template is no key");
    if let PublicKind::Rsa { modulus, .. } = &mut rsa.kind {
        modulus[0] = 0x80;
    }
    assert_eq!(form(&rsa), Some(EkAlgorithm::Rsa2048));
    // The same exponent written out would be the same key by another name; so would coordinates without their zeros.
    if let PublicKind::Rsa { exponent, .. } = &mut rsa.kind {
        *exponent = 65_537;
    }
    assert_eq!(form(&rsa), None);
    let mut short = key(1);
    if let PublicKind::Ecc { x, .. } = &mut short.kind {
        x.pop();
    }
    assert_eq!(form(&short), None);
    for other in [KeyUse::Store, KeyUse::Sign, KeyUse::Attest, KeyUse::Agree] {
        assert_eq!(form(&p256(other)), None);
    }
}

/// Leaves bytes in the TPM, as its maker would.
fn leave(tpm: &Tpm, index: u32, data: &[u8]) {
    let attributes = NvAttributes::OWNER_WRITE
        .with(NvAttributes::AUTH_READ)
        .with(NvAttributes::NO_DA);
    let key = tpm
        .create_primary(Hierarchy::Owner, &p256(KeyUse::Store))
        .unwrap();
    let session = tpm.start_hmac_session(&key, key.public()).unwrap();
    let size = u16::try_from(data.len()).unwrap();
    tpm.nv_define(index, attributes, size, &session).unwrap();
    tpm.nv_write(index, data, &session).unwrap();
}

#[test]
fn a_p256_key_with_certificate_and_chain_in_the_tpm_is_known_by_its_root() {
    let emulator = Emulator::new();
    let tpm = emulator.connect();
    let public = tpm
        .create_primary(Hierarchy::Endorsement, &endorsement_key(EkAlgorithm::P256))
        .unwrap()
        .public()
        .clone();
    let root = Authority::root("Acme TPM root", None);
    let upper = root.below("Acme TPM upper");
    let lower = upper.below("Acme TPM lower");
    // An index may be longer than what is in it, and a chain lies across two.
    let mut padded = lower.endorse(&public, |_| ());
    padded.resize(1200, 0xff);
    leave(&tpm, certificate_index(EkAlgorithm::P256), &padded);
    let chain = [lower.der(), upper.der()].concat();
    let (first, second) = chain.split_at(700);
    leave(&tpm, 0x01c0_0100, first);
    leave(&tpm, 0x01c0_0101, second);

    let device = Device::with(emulator, tpm);
    let endorsement = device.identity.endorsement().unwrap();
    assert_eq!(endorsement.maker, EndorsementMaker::Manufacturer);
    assert_eq!(endorsement.public, public);
    assert_eq!(
        device.identity.endorsement_chain().unwrap(),
        [lower.der(), upper.der()]
    );
    let mut owner = Owner::new();
    owner.makers = trust(&[&root]);
    let answering = evidence(&device.identity, &owner, None).unwrap();
    assert_eq!(
        owner.judge(answering.evidence()).unwrap().level,
        Level::Silver
    );
    let (proven, _) = enrol(&device.identity, &owner).unwrap();
    assert_eq!(proven.maker.as_deref(), Some("CN=Acme TPM root"));

    still_works(&device.identity, &owner);

    // A wiped disk makes the same machine again, and another device.
    let Device {
        identity, emulator, ..
    } = device;
    let before = identity.device_certificate().clone();
    drop(identity);
    let dir = tempfile::tempdir().unwrap();
    let again = Identity::open_or_create(dir.path(), Some(emulator.connect())).unwrap();
    assert_eq!(again.endorsement().unwrap().public, public);
    assert_ne!(*again.device_certificate(), before);
    still_works(&again, &owner);
}
