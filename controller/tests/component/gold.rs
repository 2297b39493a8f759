//! Level gold, and what makers have revoked: certificates of makers of TPMs and of machines, in the emulator as they would leave them.

use onboarding::tpm::template::{
    EkAlgorithm, KeyUse, certificate_index, endorsement_key, machine_key, p256,
};
use onboarding::tpm::{Hierarchy, NvAttributes, Tpm};
use onboarding::wire::Public;
use operator_api::{
    AttestationLevel, ConditionStatus, Device as DeviceObject, TpmMaker, VerdictOutcome,
    WaitingMachine,
};
use protocol::enrolment::wire::{Level, Reason};
use reqwest::StatusCode;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::machine::{Machine, an_honest_machine_still_enrols, approve, manifest, waiting};
use crate::maker::Authority;
use crate::site::Site;
use crate::tpm::Emulator;

/// Where the machine's maker leaves its certificate.
const NAMED: u32 = 0x01c9_0018;

struct Factory {
    tpms: Authority,
    machines: Authority,
}

/// What was left in a TPM.
struct Made {
    emulator: Emulator,
    /// Serial numbers of the certificates, not of the machine.
    endorsement: Vec<u8>,
    named: Vec<u8>,
}

impl Factory {
    fn new() -> Self {
        Self {
            tpms: Authority::root("Acme TPM root", None),
            machines: Authority::root("Acme machines root", None),
        }
    }

    /// A TPM as it comes with a machine of this serial number.
    fn tpm_for(&self, serial: &str) -> Made {
        let emulator = Emulator::start();
        let tpm = emulator.connect();
        let endorsement = self
            .tpms
            .endorse(&made(&tpm, &endorsement_key(EkAlgorithm::P256)), |_| ());
        leave(&tpm, certificate_index(EkAlgorithm::P256), &endorsement);
        let named = self
            .machines
            .name_machine(&made(&tpm, &machine_key()), serial, |_| ());
        leave(&tpm, NAMED, &named);
        drop(tpm);
        Made {
            emulator,
            endorsement: serial_of(&endorsement),
            named: serial_of(&named),
        }
    }

    /// The owner trusts both, and lets in what the machine's maker has certified.
    async fn trusted(&self, site: &Site) {
        let rule = json!({
            "apiVersion": "skerry.io/v1", "kind": "EnrolmentRule", "metadata": {"name": "gold"},
            "spec": {"effect": "admit", "match": {"machineCertified": true}}
        });
        for (path, body) in [
            ("enrolmentrules/gold", rule),
            ("tpmmakers/tpms", maker("tpms", "tpms", &self.tpms, &[])),
            (
                "tpmmakers/machines",
                maker("machines", "machines", &self.machines, &[]),
            ),
        ] {
            let (status, answer) = site.put(path, &body).await;
            assert_eq!(status, StatusCode::CREATED, "{answer}");
        }
    }
}

fn maker(name: &str, makes: &str, authority: &Authority, lists: &[String]) -> Value {
    json!({
        "apiVersion": "skerry.io/v1", "kind": "TpmMaker", "metadata": {"name": name},
        "spec": {"makes": makes, "certificates": authority.pem(), "revocationLists": lists}
    })
}

fn made(tpm: &Tpm, template: &Public) -> Public {
    let key = tpm.create_primary(Hierarchy::Endorsement, template);
    key.unwrap().public().clone()
}

fn serial_of(der: &[u8]) -> Vec<u8> {
    let (_, certificate) = X509Certificate::from_der(der).unwrap();
    certificate.raw_serial().to_vec()
}

/// A session of the owner's, to write the TPM's memory with.
fn as_owner<T>(tpm: &Tpm, work: impl FnOnce(&onboarding::tpm::Salted) -> T) -> T {
    let key = tpm
        .create_primary(Hierarchy::Owner, &p256(KeyUse::Store))
        .unwrap();
    work(&tpm.start_hmac_session(&key, key.public()).unwrap())
}

fn leave(tpm: &Tpm, index: u32, data: &[u8]) {
    let attributes = NvAttributes::OWNER_WRITE
        .with(NvAttributes::AUTH_READ)
        .with(NvAttributes::NO_DA);
    as_owner(tpm, |session| {
        let size = u16::try_from(data.len()).unwrap();
        tpm.nv_define(index, attributes, size, session).unwrap();
        tpm.nv_write(index, data, session).unwrap();
    });
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn failed(waiting: &WaitingMachine) -> Vec<(&str, &str)> {
    let verdicts = waiting.status.verdicts.iter();
    verdicts
        .filter(|verdict| verdict.outcome == VerdictOutcome::Failed)
        .map(|verdict| (verdict.check.as_str(), verdict.detail.as_str()))
        .collect()
}

#[tokio::test]
async fn a_machine_that_its_maker_has_certified_is_let_in_by_a_rule_and_shown_as_gold() {
    let (site, factory) = (Site::start().await, Factory::new());
    factory.trusted(&site).await;
    let made = factory.tpm_for("SN-AU");
    let mut machine = Machine::with_tpm(&made.emulator, "SN-AU");
    let grant = machine.enrol(&site).await.granted();
    assert_eq!(grant.level(), Level::Gold);
    machine.take(&grant);
    machine.device.attest(&site).await;
    let device = site.device("box-1").await;
    assert_eq!(device.status.attestation.level, AttestationLevel::Gold);
    // Again, by the same flights.
    assert_eq!(machine.enrol(&site).await.granted().level(), Level::Gold);

    // Without the machine's maker it is silver, and the rule does not let it in. One that is in has less to show than before, which a
    // person has to look at.
    assert_eq!(
        site.ask(reqwest::Method::DELETE, "tpmmakers/machines", None)
            .await
            .status(),
        StatusCode::OK
    );
    assert!(machine.enrol(&site).await.waits());
    let [("machineCertificate", _)] = failed(&waiting(&site).await[0])[..] else {
        panic!("{:?}", waiting(&site).await);
    };
    approve(&site, &machine).await;
    assert_eq!(machine.enrol(&site).await.granted().level(), Level::Silver);
    assert_eq!(machine.enrol(&site).await.granted().level(), Level::Silver);
    let other = factory.tpm_for("SN-AG");
    let other = Machine::with_tpm(&other.emulator, "SN-AG");
    assert!(other.enrol(&site).await.waits());
    let room = waiting(&site).await;
    assert_eq!(room[0].status.level, AttestationLevel::Silver);
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn row_4_a_tpm_moved_into_another_machine_does_not_fit_its_makers_certificate() {
    let (site, factory) = (Site::start().await, Factory::new());
    factory.trusted(&site).await;
    let made = factory.tpm_for("CHASSIS-1");
    let machine = Machine::with_tpm(&made.emulator, "CHASSIS-2");
    // Not even by the manifest's line for what it says.
    manifest(&site, "boards", "serial\nCHASSIS-2\n").await;
    machine.enrol(&site).await.refused_for(Reason::Denied);
    let room = waiting(&site).await;
    let [("machineSerial", detail)] = failed(&room[0])[..] else {
        panic!("{:?}", room[0].status.verdicts);
    };
    assert!(
        detail.contains("CHASSIS-1") && detail.contains("CHASSIS-2"),
        "{detail}"
    );
    assert_eq!(room[0].status.level, AttestationLevel::Silver);
    assert!(room[0].status.reason.contains("another serial number"));
    assert!(site.list::<DeviceObject>().await.is_empty());
    // A person looks, and lets it in: not as gold, and for good.
    approve(&site, &machine).await;
    assert_eq!(machine.enrol(&site).await.granted().level(), Level::Silver);
    assert_eq!(machine.enrol(&site).await.granted().level(), Level::Silver);
    assert!(waiting(&site).await.is_empty());
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn row_4_a_device_once_gold_that_shows_no_certificate_any_more_waits() {
    let (site, factory) = (Site::start().await, Factory::new());
    factory.trusted(&site).await;
    let made = factory.tpm_for("SN-AU");
    let machine = Machine::with_tpm(&made.emulator, "SN-AU");
    assert_eq!(machine.enrol(&site).await.granted().level(), Level::Gold);
    let tpm = machine.identity().tpm().unwrap();
    as_owner(tpm, |session| tpm.nv_undefine(NAMED, session).unwrap());
    assert!(machine.enrol(&site).await.waits());
    let room = waiting(&site).await;
    assert_eq!(failed(&room[0])[0].0, "machineCertificate");
    assert_eq!(failed(&room[0]).len(), 1);
    let checks = room[0].status.verdicts.iter();
    let named = checks.filter(|it| it.check == "machineCertificate").count();
    assert_eq!(named, 1, "each check speaks once");
    approve(&site, &machine).await;
    assert_eq!(machine.enrol(&site).await.granted().level(), Level::Silver);
    assert_eq!(machine.enrol(&site).await.granted().level(), Level::Silver);
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn a_revoked_certificate_keeps_its_machine_out_and_no_other() {
    let (site, factory) = (Site::start().await, Factory::new());
    factory.trusted(&site).await;
    let (stolen, honest) = (factory.tpm_for("STOLEN"), factory.tpm_for("HONEST"));
    let (stolen_machine, honest) = (
        Machine::with_tpm(&stolen.emulator, "STOLEN"),
        Machine::with_tpm(&honest.emulator, "HONEST"),
    );
    let lists = [
        (
            "tpms",
            &factory.tpms,
            &stolen.endorsement,
            "endorsementCertificate",
        ),
        (
            "machines",
            &factory.machines,
            &stolen.named,
            "machineCertificate",
        ),
    ];
    for (name, authority, serial, check) in lists {
        let path = format!("tpmmakers/{name}");
        let list = base64(&authority.revoke(&[serial], |_| ()));
        let (status, answer) = site
            .put(&path, &maker(name, name, authority, &[list]))
            .await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let heard = stolen_machine.enrol(&site).await;
        let text = heard.refused_for(Reason::Proof);
        assert!(text.contains(check) || text.contains("certified"), "{text}");
        // Nothing of it is kept, as of every proof that fails.
        assert!(waiting(&site).await.is_empty());
        assert_eq!(site.count("identities").await, 0);
        // The list is long past the time of the next one: it counts, and says so.
        let makers = site.list::<TpmMaker>().await;
        let written = makers.iter().find(|it| it.metadata.name == name).unwrap();
        let [list] = &written.status.revocation_lists[..] else {
            panic!("{:?}", written.status);
        };
        assert_eq!(list.revoked, 1);
        assert_eq!(list.next.unwrap().to_string(), "2002-01-01T00:00:00Z");
        let [condition] = &written.status.conditions[..] else {
            panic!("{:?}", written.status);
        };
        assert_eq!(condition.kind, "RevocationCurrent");
        assert_eq!(condition.status, ConditionStatus::False);
        assert!(
            condition.message.contains("2002-01-01"),
            "{}",
            condition.message
        );
        let (status, _) = site.put(&path, &maker(name, name, authority, &[])).await;
        assert_eq!(status, StatusCode::OK);
    }
    // Taken back, it gets in; the other one does with the lists, too.
    assert_eq!(
        stolen_machine.enrol(&site).await.granted().level(),
        Level::Gold
    );
    let list = base64(&factory.machines.revoke(&[&stolen.named], |_| ()));
    let body = maker("machines", "machines", &factory.machines, &[list]);
    assert_eq!(
        site.put("tpmmakers/machines", &body).await.0,
        StatusCode::OK
    );
    assert_eq!(honest.enrol(&site).await.granted().level(), Level::Gold);
    stolen_machine.enrol(&site).await.refused_for(Reason::Proof);
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn a_revocation_list_is_taken_only_from_the_maker_itself() {
    let (site, factory) = (Site::start().await, Factory::new());
    let good = base64(&factory.tpms.revoke(&[&[7]], |_| ()));
    let impostor = Authority::root("Acme TPM root", None);
    let cases = [
        (
            base64(&factory.machines.revoke(&[&[7]], |_| ())),
            "import that authority's certificate",
        ),
        (base64(&impostor.revoke(&[&[7]], |_| ())), "did not sign it"),
        ("AAAA".to_owned(), "cannot be read"),
        ("not base64".to_owned(), "base64"),
        (factory.tpms.pem(), "CERTIFICATE"),
    ];
    for (bad, why) in cases {
        let lists = [good.clone(), bad];
        let body = maker("tpms", "tpms", &factory.tpms, &lists);
        let (status, answer) = site.put("tpmmakers/tpms", &body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{why}: {answer}");
        let error = &answer["errors"][0];
        assert_eq!(error["field"], "spec.revocationLists[1]", "{answer}");
        assert!(error["message"].as_str().unwrap().contains(why), "{answer}");
    }
    let body = maker("tpms", "tpms", &factory.tpms, &[good]);
    assert_eq!(
        site.put("tpmmakers/tpms", &body).await.0,
        StatusCode::CREATED
    );
}
