//! Level gold: that the machine's maker knows the TPM. Real (emulated) TPMs with certificates as makers of TPMs and of machines leave them;
//! the honest way, and what attackers would try.
//!
//! Each attack asserts by which verdict it is refused, and that the honest machine still enrols at gold afterwards.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use onboarding::enrol::endorsement::Makers;
use onboarding::enrol::verifier::{Judged, MachineStanding};
use onboarding::keys::Identity;
use onboarding::quote::{Check, Outcome};
use onboarding::smbios::Machine;
use onboarding::tpm::template::{
    EkAlgorithm, KeyUse, certificate_index, endorsement_key, is_machine_key, machine_key, p256,
};
use onboarding::tpm::{Attested, Hierarchy, Tpm};
use onboarding::wire::Public;
use protocol::enrolment::transcript::Secret;
use protocol::enrolment::wire::{Level, MachineProof, Statement};
use protocol::keys::sha256;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, ExtendedKeyUsagePurpose};
use support::enrol::{
    Device, Forger, Owner, evidence, evidence_of, failed, machine, opened, refused, still_works,
};
use support::maker::Authority;
use support::{Emulator, leave, loaded};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Where the certificate lies, as emulators of TPMs have it.
const CERTIFICATE: u32 = 0x01c9_0018;

/// Makers of TPMs and of machines.
struct Factory {
    tpms: Authority,
    machines: Authority,
}

impl Factory {
    fn new() -> Self {
        Self {
            tpms: Authority::root("Acme TPM root", None),
            machines: Authority::root("Acme machines root", None),
        }
    }

    /// A machine as it is sold, with the serial number that it says.
    fn machine(&self) -> Device {
        self.machine_with(|tpm| {
            let public = made(tpm, &machine_key());
            let der = self.machines.name_machine(&public, "B-77", |_| ());
            leave(tpm, CERTIFICATE, &der);
        })
    }

    /// The same, with what the machine's maker leaves in the TPM.
    fn machine_with(&self, leave_behind: impl FnOnce(&Tpm)) -> Device {
        let emulator = Emulator::new();
        let tpm = emulator.connect();
        let public = made(&tpm, &endorsement_key(EkAlgorithm::P256));
        let der = self.tpms.endorse(&public, |_| ());
        leave(&tpm, certificate_index(EkAlgorithm::P256), &der);
        leave_behind(&tpm);
        Device::with(emulator, tpm)
    }

    /// An owner that trusts both.
    fn owner(&self) -> Owner {
        let mut owner = Owner::new();
        owner.makers = trust(&[&self.tpms]);
        owner.machine_makers = trust(&[&self.machines]);
        owner
    }
}

fn trust(authorities: &[&Authority]) -> Makers {
    let text: Vec<String> = authorities.iter().map(|a| a.pem()).collect();
    Makers::from_pem(&text.concat()).unwrap()
}

fn made(tpm: &Tpm, template: &Public) -> Public {
    let key = tpm.create_primary(Hierarchy::Endorsement, template);
    key.unwrap().public().clone()
}

fn judged(identity: &Identity, owner: &Owner) -> Judged {
    let answering = evidence(identity, owner, None).unwrap();
    owner.judge(answering.evidence()).unwrap()
}

fn statement(attested: Attested) -> Statement {
    Statement {
        signature: attested.signature.to_der(),
        attest: attested.attest,
    }
}

fn why_not_checked(judged: &Judged, check: Check) -> &str {
    let verdicts = &judged.report.verdicts;
    match &verdicts.iter().find(|v| v.check == check).unwrap().outcome {
        Outcome::NotApplicable { reason } => reason,
        other => panic!("{check:?}: {other:?}"),
    }
}

fn seen(judged: &Judged, check: Check) -> (&str, &str) {
    let verdict = judged.report.failures().find(|v| v.check == check);
    match &verdict.unwrap().outcome {
        Outcome::Fail { expected, seen } => (expected, seen),
        other => panic!("{check:?}: {other:?}"),
    }
}

/// The machine still enrols, and is known by its maker.
fn still_gold(device: &Device, owner: &Owner) {
    still_works(&device.identity, owner);
    let judged = judged(&device.identity, owner);
    assert_eq!((failed(&judged), judged.level), (vec![], Level::Gold));
}

#[test]
fn a_machine_that_its_maker_has_certified_is_enrolled_at_level_gold() {
    let factory = Factory::new();
    let (device, owner) = (factory.machine(), factory.owner());
    let judged = judged(&device.identity, &owner);
    assert_eq!((failed(&judged), judged.level), (vec![], Level::Gold));
    for check in [
        Check::EndorsementCertificate,
        Check::MachineCertificate,
        Check::MachineKey,
        Check::MachineSerial,
    ] {
        assert!(judged.report.passed(check), "{:#?}", judged.report);
    }
    let known = MachineStanding::Known {
        maker: "CN=Acme machines root".to_owned(),
    };
    assert_eq!(judged.proven.unwrap().standing, known);
    still_gold(&device, &owner);
    // Nothing but the device key stays in the TPM's slots.
    assert_eq!(loaded(device.identity.tpm().unwrap()).len(), 1);

    // A wiped disk, and a start later: the key is made again from the TPM's own seed.
    let Device {
        identity,
        mut emulator,
        ..
    } = device;
    drop(identity);
    emulator.power_cycle();
    let tpm = emulator.connect();
    still_gold(&Device::with(emulator, tpm), &owner);
}

#[test]
fn a_certificate_lies_anywhere_in_its_range_among_others_and_with_its_chain() {
    let factory = Factory::new();
    let below = factory.machines.below("Acme machines 2024");
    let device = factory.machine_with(|tpm| {
        // A policy, as at the indexes for recoverable keys; a certificate for a signing key, before the right one; room behind it.
        leave(tpm, 0x01c9_0010, &[0, 0x0b, 1, 2, 3]);
        let signing = made(tpm, &p256(KeyUse::Sign));
        leave(
            tpm,
            0x01c9_0011,
            &below.name_machine(&signing, "B-77", |_| ()),
        );
        let public = made(tpm, &machine_key());
        let mut data = below.name_machine(&public, "B-77", |_| ());
        data.extend(below.der());
        data.resize(data.len() + 100, 0xff);
        leave(tpm, 0x01c9_0100, &data);
    });
    still_gold(&device, &factory.owner());
    // A machine whose maker certified another kind of key shows nothing, and nothing is wrong with it.
    let other = factory.machine_with(|tpm| {
        let signing = made(tpm, &p256(KeyUse::Sign));
        leave(
            tpm,
            CERTIFICATE,
            &below.name_machine(&signing, "B-77", |_| ()),
        );
    });
    let judged = judged(&other.identity, &factory.owner());
    assert_eq!((failed(&judged), judged.level), (vec![], Level::Silver));
    assert_eq!(judged.proven.unwrap().standing, MachineStanding::Silent);
}

#[test]
fn without_both_makers_no_machine_is_gold_and_nothing_is_wrong() {
    let factory = Factory::new();
    let device = factory.machine();
    let mut owner = factory.owner();
    // The machine's maker is not known.
    owner.machine_makers = trust(&[&Authority::root("Another maker", None)]);
    let it = judged(&device.identity, &owner);
    assert_eq!((failed(&it), it.level), (vec![], Level::Silver));
    let reason = why_not_checked(&it, Check::MachineCertificate);
    assert!(reason.contains("CN=Acme machines root"), "{reason}");
    assert!(it.report.passed(Check::MachineKey));
    assert_eq!(it.proven.unwrap().standing, MachineStanding::Unproven);
    // A maker of TPMs is no maker of machines, nor the other way round.
    owner.machine_makers = trust(&[&factory.tpms]);
    assert_eq!(judged(&device.identity, &owner).level, Level::Silver);
    owner = factory.owner();
    owner.makers = trust(&[&factory.machines]);
    let it = judged(&device.identity, &owner);
    assert_eq!((failed(&it), it.level), (vec![], Level::Bronze));
    // A TPM that may be a program says nothing by certifying a machine's key.
    let reason = why_not_checked(&it, Check::MachineKey);
    assert!(reason.contains("proves nothing"), "{reason}");
    assert!(it.report.passed(Check::MachineCertificate));
    // Neither certificate.
    let plain = Device::new();
    let it = judged(&plain.identity, &factory.owner());
    assert_eq!((failed(&it), it.level), (vec![], Level::Bronze));
    still_gold(&device, &factory.owner());
}

/// Evidence of a device that its own software changes before it is sent.
struct Liar {
    forger: Forger,
    secret: Secret,
}

impl Liar {
    fn new(device: &Device, owner: &Owner) -> Self {
        let (answering, secret) = opened(&device.identity, owner, None);
        Self {
            forger: Forger::new(answering.evidence(), &secret),
            secret,
        }
    }

    fn machine(&mut self) -> &mut MachineProof {
        self.forger.proof().machine.as_mut().unwrap()
    }

    /// Refused for these reasons; gives what was expected and seen at the last of them.
    #[track_caller]
    fn is_refused(&self, owner: &Owner, checks: &[Check]) -> (String, String) {
        let evidence = self.forger.evidence();
        refused(owner, &evidence, checks, &self.secret);
        let judged = owner.judge(&evidence).unwrap();
        let (expected, seen) = seen(&judged, checks[checks.len() - 1]);
        (expected.to_owned(), seen.to_owned())
    }
}

#[test]
fn a_machines_certificate_of_another_tpm_is_refused() {
    let factory = Factory::new();
    let (sick, healthy, owner) = (factory.machine(), factory.machine(), factory.owner());
    let theirs = Liar::new(&healthy, &owner).machine().clone();
    // The certificate alone: it is for another key than the one shown.
    let mut liar = Liar::new(&sick, &owner);
    liar.machine().certificate = theirs.certificate.clone();
    let (_, seen) = liar.is_refused(&owner, &[Check::MachineCertificate]);
    assert!(seen.contains("another key"), "{seen}");
    // With its key: the statements are of the sick machine's own.
    liar.machine().public = theirs.public.clone();
    let (_, seen) = liar.is_refused(&owner, &[Check::MachineKey]);
    assert!(seen.contains("by another key"), "{seen}");
    // With everything that the healthy machine said in a session of its own.
    *liar.machine() = theirs;
    liar.is_refused(&owner, &[Check::MachineKey]);
    // A TPM without any certificate of a machine's maker cannot borrow them either.
    let bare = factory.machine_with(|_| ());
    let mut liar = Liar::new(&bare, &owner);
    liar.forger.proof().machine = Some(Liar::new(&healthy, &owner).machine().clone());
    liar.is_refused(&owner, &[Check::MachineKey]);
    still_gold(&sick, &owner);
    still_gold(&healthy, &owner);
}

#[test]
fn a_certification_relayed_from_another_tpms_key_is_refused() {
    let factory = Factory::new();
    let (sick, healthy, owner) = (factory.machine(), factory.machine(), factory.owner());
    let mut liar = Liar::new(&sick, &owner);
    let own = liar.machine().clone();
    // The healthy machine is made to speak over the sick one's session: what it can say is of its own attestation key.
    let evidence = liar.forger.evidence();
    let session = *onboarding::enrol::verifier::read_evidence(&evidence)
        .unwrap()
        .transcript();
    let said = healthy.identity.vouch(session.bytes()).unwrap().unwrap();
    let relayed = MachineProof {
        public: said.public,
        certificate: said.certificate,
        chain: said.chain,
        attestation_certified: Some(statement(said.attestation_certified)),
        machine_certified: Some(statement(said.machine_certified)),
    };
    *liar.machine() = relayed.clone();
    let (_, seen) = liar.is_refused(&owner, &[Check::MachineKey]);
    assert!(seen.contains("on another key"), "{seen}");
    // Each half beside the sick machine's own other half.
    liar.machine().machine_certified = own.machine_certified.clone();
    liar.is_refused(&owner, &[Check::MachineKey]);
    *liar.machine() = own.clone();
    liar.machine().attestation_certified = relayed.attestation_certified;
    liar.is_refused(&owner, &[Check::MachineKey]);
    // Its own statements of another session.
    *liar.machine() = own;
    let before = Liar::new(&sick, &owner).machine().clone();
    liar.machine().machine_certified = before.machine_certified;
    let (expected, _) = liar.is_refused(&owner, &[Check::MachineKey]);
    assert!(expected.contains("this session"), "{expected}");
    still_gold(&sick, &owner);
    still_gold(&healthy, &owner);
}

#[test]
fn a_makers_signing_key_does_not_pass_for_its_attestation_key() {
    let factory = Factory::new();
    let (device, owner) = (factory.machine(), factory.owner());
    let tpm = device.identity.tpm().unwrap();
    let mut liar = Liar::new(&device, &owner);
    // A key that signs anything (an IDevID), certified by the same maker for the same machine, signs what a TPM would have said.
    let attest = liar.machine().attestation_certified.clone().unwrap().attest;
    let (public, signature) = {
        let key = tpm
            .create_primary(Hierarchy::Endorsement, &p256(KeyUse::Sign))
            .unwrap();
        let signature = tpm.sign(key.handle(), &sha256(&attest)).unwrap();
        (key.public().clone(), signature)
    };
    let forged = Statement {
        attest,
        signature: signature.to_der(),
    };
    liar.machine().certificate = factory.machines.name_machine(&public, "B-77", |_| ());
    liar.machine().attestation_certified = Some(forged);
    liar.machine().public = public.to_bytes();
    let (expected, _) = liar.is_refused(&owner, &[Check::MachineKey]);
    assert!(expected.contains("restricted"), "{expected}");
    // Said to be restricted: the TPM would have to say so too.
    let mut lie = public;
    lie.attributes = machine_key().attributes;
    assert!(is_machine_key(&lie));
    liar.machine().public = lie.to_bytes();
    let (_, seen) = liar.is_refused(&owner, &[Check::MachineKey]);
    assert!(seen.contains("on another key"), "{seen}");
    still_gold(&device, &owner);
}

#[test]
fn what_is_not_a_machine_makers_word_is_refuted() {
    let factory = Factory::new();
    let (device, owner) = (factory.machine(), factory.owner());
    let own = Liar::new(&device, &owner).machine().clone();
    let public = Public::parse(&own.public).unwrap();
    let judge = |der: &[u8]| {
        let mut liar = Liar::new(&device, &owner);
        liar.machine().certificate = der.to_vec();
        liar.is_refused(&owner, &[Check::MachineCertificate]).1
    };
    let certify = |change: &dyn Fn(&mut CertificateParams)| {
        factory.machines.name_machine(&public, "B-77", change)
    };
    // An authority that took the trusted maker's name.
    let forger = Authority::root("Acme machines root", None);
    let forged = forger.name_machine(&public, "B-77", |_| ());
    assert!(judge(&forged).contains("did not sign it"));
    let cut = &own.certificate[..own.certificate.len() - 1];
    assert!(judge(cut).contains("cannot be read"));
    assert!(judge(&[]).contains("cannot be read"));
    assert!(judge(&factory.machines.der()).contains("another key"));
    let endorsing = certify(&|p| {
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
    });
    assert!(judge(&endorsing).contains("not for an attestation key"));
    let agreeing = certify(&|p| p.key_usages = vec![rcgen::KeyUsagePurpose::KeyAgreement]);
    assert!(judge(&agreeing).contains("signs"));
    let critical = certify(&|p| {
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        extension.set_criticality(true);
        p.custom_extensions.push(extension);
    });
    assert!(judge(&critical).contains("1.2.3.4"));
    // No usage at all is taken, and so is what the TCG recommends.
    for usages in [
        vec![],
        vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 11, 1, 3])],
    ] {
        let der = certify(&|p| p.extended_key_usages = usages.clone());
        let mut liar = Liar::new(&device, &owner);
        liar.machine().certificate = der;
        let judged = owner.judge(&liar.forger.evidence()).unwrap();
        assert_eq!((failed(&judged), judged.level), (vec![], Level::Gold));
    }
    still_gold(&device, &owner);
}

#[test]
fn a_serial_number_that_disagrees_is_for_a_person_and_not_gold() {
    let factory = Factory::new();
    let (device, owner) = (factory.machine(), factory.owner());
    // The board with its TPM in another chassis, and one that says nothing of itself.
    for serial in ["OTHER", ""] {
        let says = Machine {
            serial: serial.to_owned(),
            ..machine()
        };
        let answering = evidence_of(&says, &device.identity, &owner, None).unwrap();
        let judged = owner.judge(answering.evidence()).unwrap();
        assert_eq!(failed(&judged), [Check::MachineSerial]);
        let (expected, seen) = seen(&judged, Check::MachineSerial);
        assert_eq!((expected, seen), ("\"B-77\"", &*format!("{serial:?}")));
        assert_eq!(judged.level, Level::Silver);
        let another = MachineStanding::Another {
            maker: "CN=Acme machines root".to_owned(),
            serial: "B-77".to_owned(),
        };
        assert_eq!(judged.proven.unwrap().standing, another);
    }
    still_gold(&device, &owner);
}

/// `[0] { SEQUENCE { hwType, hwSerialNum } }` behind id-on-hardwareModuleName, as alternative name.
fn hardware_module(kind: &[u8], serial: &str) -> CustomExtension {
    let tlv = |tag: u8, parts: &[&[u8]]| {
        let body = parts.concat();
        [&[tag, u8::try_from(body.len()).unwrap()][..], &body].concat()
    };
    let module = tlv(
        0x30,
        &[&tlv(0x06, &[kind]), &tlv(0x04, &[serial.as_bytes()])],
    );
    let id = tlv(0x06, &[&[0x2b, 6, 1, 5, 5, 7, 8, 4]]);
    let name = tlv(0xa0, &[&id, &tlv(0xa0, &[&module])]);
    CustomExtension::from_oid_content(&[2, 5, 29, 17], tlv(0x30, &[&name]))
}

#[test]
fn a_machine_is_named_by_the_subject_or_a_hardware_module_that_is_no_tpm() {
    let factory = Factory::new();
    let (device, owner) = (factory.machine(), factory.owner());
    let own = Liar::new(&device, &owner).machine().clone();
    let public = Public::parse(&own.public).unwrap();
    let judge = |change: &dyn Fn(&mut CertificateParams)| {
        let mut liar = Liar::new(&device, &owner);
        liar.machine().certificate = factory.machines.name_machine(&public, "B-77", change);
        owner.judge(&liar.forger.evidence()).unwrap()
    };
    let nameless = |p: &mut CertificateParams| p.distinguished_name = DistinguishedName::new();
    // A module of the maker's own kind (1.3.6.1.4.1.9999), and the TPM (2.23.133.1.2).
    let (own_kind, tpm_kind) = ([0x2b, 6, 1, 4, 1, 0xce, 0x0f], [0x67, 0x81, 5, 1, 2]);
    let module = |kind: &'static [u8], serial: &'static str| {
        move |p: &mut CertificateParams| {
            nameless(p);
            p.custom_extensions = vec![hardware_module(kind, serial)];
        }
    };
    let named = judge(&module(Vec::leak(own_kind.to_vec()), "B-77"));
    assert_eq!((failed(&named), named.level), (vec![], Level::Gold));
    let other = judge(&module(Vec::leak(own_kind.to_vec()), "B-78"));
    assert_eq!(failed(&other), [Check::MachineSerial]);
    for unnamed in [
        judge(&nameless),
        judge(&module(Vec::leak(tpm_kind.to_vec()), "ACME:00:01")),
        // A filler names half the world.
        judge(&module(Vec::leak(own_kind.to_vec()), "0000000")),
    ] {
        assert_eq!((failed(&unnamed), unnamed.level), (vec![], Level::Silver));
        let reason = why_not_checked(&unnamed, Check::MachineSerial);
        assert!(reason.contains("names no serial number"), "{reason}");
        assert_eq!(unnamed.proven.unwrap().standing, MachineStanding::Unproven);
    }
    still_gold(&device, &owner);
}

#[test]
fn a_device_of_before_that_sends_no_machines_proof_is_silver() {
    let factory = Factory::new();
    let (device, owner) = (factory.machine(), factory.owner());
    let mut liar = Liar::new(&device, &owner);
    liar.forger.proof().machine = None;
    let judged = owner.judge(&liar.forger.evidence()).unwrap();
    assert_eq!((failed(&judged), judged.level), (vec![], Level::Silver));
    assert_eq!(judged.proven.unwrap().standing, MachineStanding::Silent);
    // What is there is bounded, and whole.
    type Change = fn(&mut MachineProof);
    let changes: [Change; 5] = [
        |m| m.certificate = vec![0; 9000],
        |m| m.chain = vec![vec![0]; 6],
        |m| m.public = vec![0; 2000],
        |m| m.machine_certified = None,
        |m| m.attestation_certified.as_mut().unwrap().attest = vec![0; 2000],
    ];
    for change in changes {
        let mut liar = Liar::new(&device, &owner);
        change(liar.machine());
        assert!(owner.judge(&liar.forger.evidence()).is_err());
    }
    still_gold(&device, &owner);
}

fn serial_of(der: &[u8]) -> Vec<u8> {
    X509Certificate::from_der(der)
        .unwrap()
        .1
        .raw_serial()
        .to_vec()
}

#[test]
fn a_revoked_certificate_of_a_tpm_or_a_machine_keeps_the_machine_out() {
    let factory = Factory::new();
    let (device, healthy) = (factory.machine(), factory.machine());
    let honest = factory.owner();
    let endorsement = device.identity.endorsement().unwrap();
    let endorsement = serial_of(endorsement.certificate.as_ref().unwrap().der());
    let named = serial_of(&Liar::new(&device, &honest).machine().certificate);
    let cases: [(&Authority, &[u8], Check, bool); 2] = [
        (
            &factory.tpms,
            &endorsement,
            Check::EndorsementCertificate,
            false,
        ),
        (&factory.machines, &named, Check::MachineCertificate, true),
    ];
    for (authority, serial, check, of_machines) in cases {
        let mut owner = factory.owner();
        let makers = if of_machines {
            &mut owner.machine_makers
        } else {
            &mut owner.makers
        };
        // Long past the time of the next list: it counts all the same.
        makers.revoke(&authority.revoke(&[serial], |_| ())).unwrap();
        let judged = judged(&device.identity, &owner);
        assert_eq!(failed(&judged), [check]);
        assert!(judged.proven.is_none());
        let (_, seen) = seen(&judged, check);
        let digits = hex::encode(serial);
        assert!(seen.contains(digits.trim_start_matches("00")), "{seen}");
        assert!(seen.contains("2001-02-03T00:00:00Z"), "{seen}");
        still_gold(&healthy, &owner);
    }
    still_gold(&device, &honest);
}

/// Makes the TPM that the recordings of a machine of level gold were made with (`tools/fuzz/seeds/enrolment/README.md`), in the folder that
/// `SKERRY_RECORDING` names, and beside its state what the makers publish.
#[test]
#[ignore = "writes what the seeds of tools/fuzz are recorded with"]
fn make_a_tpm_for_recordings() {
    let folder = std::path::PathBuf::from(std::env::var_os("SKERRY_RECORDING").unwrap());
    let factory = Factory::new();
    let emulator = testbed::Emulator::start(&folder).unwrap();
    let tpm = Tpm::connect_unix(&emulator.socket()).unwrap();
    let public = made(&tpm, &endorsement_key(EkAlgorithm::P256));
    let der = factory.tpms.endorse(&public, |_| ());
    leave(&tpm, certificate_index(EkAlgorithm::P256), &der);
    let public = made(&tpm, &machine_key());
    let der = factory.machines.name_machine(&public, "B-77", |_| ());
    leave(&tpm, CERTIFICATE, &der);
    let list = factory.machines.revoke(&[&[7]], |_| ());
    let text = format!(
        "-----BEGIN X509 CRL-----\n{}\n-----END X509 CRL-----\n",
        STANDARD.encode(&list)
    );
    for (name, bytes) in [
        ("gold-makers.pem", factory.tpms.pem().into_bytes()),
        ("machine-makers.pem", factory.machines.pem().into_bytes()),
        ("revocation-list", list),
        ("revocation-list.pem", text.into_bytes()),
    ] {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}
