//! Endorsement keys and their certificates: which makers are believed, and which are not.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use onboarding::enrol::endorsement::{Endorsed, Makers, MakersError, form};
use onboarding::enrol::revocation::{MAX_LIST, RevocationError};
use onboarding::keys::{EndorsementMaker, Identity};
use onboarding::tpm::Hierarchy;
use onboarding::tpm::template::{EkAlgorithm, KeyUse, certificate_index, endorsement_key, p256};
use onboarding::wire::{Public, PublicKind};
use protocol::cipher::SoftwareAgreement;
use protocol::enrolment::wire::Level;
use rcgen::{
    CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, CustomExtension,
    ExtendedKeyUsagePurpose, IsCa,
};
use support::enrol::{Device, Owner, enrol, evidence, still_works};
use support::maker::Authority;
use support::{Emulator, leave};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

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

fn serial_of(der: &[u8]) -> Vec<u8> {
    let (_, certificate) = X509Certificate::from_der(der).unwrap();
    certificate.raw_serial().to_vec()
}

fn revoking(authorities: &[&Authority], lists: &[&[u8]]) -> Makers {
    let mut makers = trust(authorities);
    for list in lists {
        makers.revoke(list).unwrap();
    }
    makers
}

#[test]
fn what_a_maker_has_revoked_is_refuted_leaf_or_authority() {
    let (root, public) = (Authority::root("Acme TPM root", None), key(1));
    let lower = root.below("Acme TPM lower");
    let leaf = lower.endorse(&public, |_| ());
    let other = lower.endorse(&key(2), |_| ());
    let chain = [lower.der()];
    let by_lower = lower.revoke(&[&serial_of(&leaf)], |_| ());
    let by_root = root.revoke(&[&serial_of(&lower.der())], |_| ());

    // The leaf, by the authority that issued it: another of its certificates still counts.
    let makers = revoking(&[&root, &lower], &[&by_lower]);
    let what = refuted(makers.judge(&public, &leaf, &chain));
    assert!(what.contains("CN=Acme TPM lower revoked"), "{what}");
    assert!(what.contains(&hex::encode(serial_of(&leaf))), "{what}");
    assert!(what.contains("2001-02-03T00:00:00Z"), "{what}");
    assert!(trusted(&makers.judge(&key(2), &other, &chain)));
    // The authority between, whether the TPM brings it along or the owner's list has it.
    for makers in [
        revoking(&[&root], &[&by_root]),
        revoking(&[&root, &lower], &[&by_root]),
    ] {
        let what = refuted(makers.judge(&public, &leaf, &chain));
        assert!(what.contains("CN=Acme TPM root revoked"), "{what}");
    }
    // The same number at another authority is another certificate.
    let elsewhere = Authority::root("Another root", None);
    let list = elsewhere.revoke(&[&serial_of(&leaf)], |_| ());
    let makers = revoking(&[&root, &elsewhere], &[&list]);
    assert!(trusted(&makers.judge(&public, &leaf, &chain)));
    // Lists of several makers count together, and an empty one revokes nothing.
    let mut makers = revoking(&[&root], &[&root.revoke(&[], |_| ())]);
    assert!(trusted(&makers.judge(&public, &leaf, &chain)));
    assert!(makers.revocations()[0].is_empty());
    makers.join(revoking(&[&root], &[&by_root]));
    refuted(makers.judge(&public, &leaf, &chain));
    assert_eq!(makers.revocations().len(), 2);
    // A number with its top bit set has a zero before it in a certificate, and not everywhere else.
    let high = root.endorse(&public, |p| p.serial_number = Some(vec![0x80, 1].into()));
    let makers = revoking(&[&root], &[&root.revoke(&[&[0, 0x80, 1]], |_| ())]);
    assert!(refuted(makers.judge(&public, &high, &[])).contains("8001"));
}

#[test]
fn a_revocation_list_is_taken_from_its_authority_only_and_whole() {
    let root = Authority::root("Acme TPM root", None);
    let good = root.revoke(&[&[1, 2, 3], &[4]], |_| ());
    let take = |list: &[u8]| trust(&[&root]).revoke(list);
    take(&good).unwrap();
    let makers = revoking(&[&root], &[&good]);
    let [list] = makers.revocations() else {
        panic!("{:?}", makers.revocations());
    };
    assert_eq!((list.issuer(), list.len()), ("CN=Acme TPM root", 2));
    assert_eq!(
        (list.made(), list.next()),
        (978_307_200, Some(1_009_843_200))
    );

    let error = take(&Authority::root("Another", None).revoke(&[&[4]], |_| ())).unwrap_err();
    assert!(matches!(error, RevocationError::Issuer { .. }), "{error}");
    let forger = Authority::root("Acme TPM root", None);
    let error = take(&forger.revoke(&[&[4]], |_| ())).unwrap_err();
    assert!(
        matches!(error, RevocationError::Signature { .. }),
        "{error}"
    );
    let partial = root.revoke(&[&[4]], |list| {
        list.issuing_distribution_point = Some(CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint {
                uris: vec!["http://crl.invalid/".to_owned()],
            },
            scope: Some(CrlScope::CaCertsOnly),
        });
    });
    // It names a place and says what it is about: what it names is revoked.
    take(&partial).unwrap();
    // An authority that may not sign lists.
    let unable = Authority::unable_to_revoke("Acme TPM root");
    let error = trust(&[&unable]).revoke(&good).unwrap_err();
    assert!(matches!(error, RevocationError::Issuer { .. }), "{error}");
    // Each changed byte, each cut, and bytes behind it. The algorithm outside what is signed is a copy of the one inside.
    let (_, read) = CertificateRevocationList::from_der(&good).unwrap();
    let inside: &[u8] = read.tbs_cert_list.as_ref();
    let start = good
        .windows(inside.len())
        .position(|w| w == inside)
        .unwrap();
    let copy = start + inside.len()..start + inside.len() + 12;
    for place in 0..good.len() {
        let mut changed = good.clone();
        changed[place] ^= 1;
        assert!(
            copy.contains(&place) || take(&changed).is_err(),
            "byte {place}"
        );
        assert!(take(&good[..place]).is_err(), "cut to {place}");
    }
    assert!(take(&[good, vec![0]].concat()).is_err());
    let error = take(&vec![0x30; MAX_LIST + 1]).unwrap_err();
    assert!(matches!(error, RevocationError::TooLong { .. }), "{error}");
}
