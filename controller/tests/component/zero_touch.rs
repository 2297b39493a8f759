//! Honest machines: by a manifest, by a person, by a rule, with a TPM and without; and what comes after.

use std::time::Duration;

use operator_api::{
    AttestationConclusion, AttestationLevel, Boot, BootOccasion, Device as DeviceObject, List,
    VerdictOutcome, WaitingDecision,
};
use protocol::enrolment::wire::{Level, Reason};
use protocol::eve::config::ConfigRequest;
use protocol::paths;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::machine::{Machine, approve, decide, manifest, waiting};
use crate::site::{Site, container, datastore};
use crate::tpm::Emulator;

#[tokio::test]
async fn a_machine_on_a_manifest_becomes_a_device_without_a_person() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    let machine = Machine::with_tpm(&emulator, "SN-1");
    let id = machine.id();
    manifest(
        &site,
        "spring",
        &format!("ekId,serial,name,label:site\n{id},SN-1,press,hall-3\n"),
    )
    .await;
    let grant = machine.enrol(&site).await.granted();
    assert_eq!(grant.level(), Level::Bronze);
    let mut machine = machine;
    machine.take(&grant);
    let device = site.device("press").await;
    assert_eq!(device.metadata.labels["site"], "hall-3");
    assert_eq!(device.metadata.uid.unwrap(), machine.device.id.0);
    assert_eq!(device.status.machine_id, id.to_string());
    assert_eq!(device.status.machine_words, id.words());
    assert_eq!(device.status.hardware.serial, "SN-1");

    // Afterwards it speaks EVE's API with what it was granted.
    assert_eq!(
        machine.device.config(&site, "").await.0,
        StatusCode::FORBIDDEN,
        "before its boot is proven it gets no config"
    );
    machine.device.attest(&site).await;
    assert_eq!(machine.device.config(&site, "").await.0, StatusCode::OK);
    let device = site.device("press").await;
    assert_eq!(
        (
            device.status.attestation.conclusion,
            device.status.attestation.level
        ),
        (AttestationConclusion::Trusted, AttestationLevel::Bronze)
    );
    let lists: List<Boot> = site
        .ask(Method::GET, "devices/press/boots", None)
        .await
        .json()
        .await
        .unwrap();
    let occasions: Vec<_> = lists
        .items
        .iter()
        .map(|boot| boot.status.occasion)
        .collect();
    assert_eq!(
        occasions,
        [BootOccasion::Attestation, BootOccasion::Enrolment]
    );
    let enrolment = &lists.items[1].status.attestation.verdicts;
    for check in [
        "credential",
        "deviceKey",
        "agreementKey",
        "transcript",
        "nonceUnused",
        "endorsementUnique",
        "serial",
    ] {
        let verdict = enrolment.iter().find(|verdict| verdict.check == check);
        assert_eq!(
            verdict.map(|verdict| verdict.outcome),
            Some(VerdictOutcome::Passed),
            "{check} in {enrolment:?}"
        );
    }
    // The certificate outlives a restart, and so does what is known of the machine.
    let site = site.restart().await;
    assert_eq!(machine.device.config(&site, "").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_machine_that_nobody_knows_waits_until_its_words_are_compared() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    let machine = Machine::with_tpm(&emulator, "SN-2");
    assert!(machine.enrol(&site).await.waits());
    let room = waiting(&site).await;
    let [seen] = room.as_slice() else {
        panic!("{room:?}")
    };
    assert_eq!(seen.status.words, machine.id().words());
    assert_eq!(seen.status.level, AttestationLevel::Bronze);
    assert_eq!(seen.status.hardware.product, "Edge Box 3");
    assert!(site.list::<DeviceObject>().await.is_empty());
    let body = json!({
        "decision": "approve", "machines": [machine.id().words()], "name": "press", "labels": {"site": "hall-3"}
    });
    let (status, answer) = decide(&site, body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(
        waiting(&site).await[0].status.decision,
        WaitingDecision::Approved
    );
    machine.enrol(&site).await.granted();
    assert!(waiting(&site).await.is_empty());
    let device = site.device("press").await;
    assert_eq!(device.metadata.labels["site"], "hall-3");
}

#[tokio::test]
async fn what_a_person_denied_stays_out_until_it_is_forgotten() {
    let site = Site::start().await;
    let machine = Machine::without_tpm("SN-3");
    assert!(machine.enrol(&site).await.waits());
    let name = waiting(&site).await[0].metadata.name.clone();
    let body = json!({"decision": "deny", "machines": [name]});
    assert_eq!(decide(&site, body).await.0, StatusCode::OK);
    machine.enrol(&site).await.refused_for(Reason::Denied);
    let gone = site
        .ask(Method::DELETE, &format!("waiting/{name}"), None)
        .await;
    assert_eq!(gone.status(), StatusCode::OK);
    assert!(machine.enrol(&site).await.waits());
    // Nobody is approved by a word or two, and a name is for one machine.
    for body in [
        json!({"decision": "approve", "machines": ["acid"]}),
        json!({"decision": "approve", "machines": []}),
        json!({"decision": "approve", "match": {"product": "None*"}, "name": "x"}),
    ] {
        let (status, answer) = decide(&site, body).await;
        assert!(status.is_client_error(), "{status} {answer}");
    }
}

#[tokio::test]
async fn without_a_tpm_it_works_at_level_none_and_every_list_shows_it() {
    let site = Site::start().await;
    manifest(&site, "soft", "serial,name\nSOFT-1,soft\n").await;
    let machine = Machine::without_tpm("SOFT-1");
    // A serial number alone, which anybody can say, does not let it in; a person does.
    assert!(machine.enrol(&site).await.waits());
    approve(&site, &machine).await;
    let grant = machine.enrol(&site).await.granted();
    assert_eq!(grant.level(), Level::None);
    let mut machine = machine;
    machine.take(&grant);
    machine.device.attest(&site).await;
    assert_eq!(machine.device.config(&site, "").await.0, StatusCode::OK);
    let devices: Vec<DeviceObject> = site.list().await;
    assert_eq!(
        (
            devices[0].status.attestation.conclusion,
            devices[0].status.attestation.level
        ),
        (AttestationConclusion::Unproven, AttestationLevel::None)
    );
}

#[tokio::test]
async fn rules_let_in_what_has_a_tpm_and_no_other() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    let rule = json!({
        "apiVersion": "skerry.io/v1", "kind": "EnrolmentRule", "metadata": {"name": "edge"},
        "spec": {"effect": "admit", "match": {"product": "Edge Box*"}, "labels": {"line": "a"}}
    });
    assert_eq!(
        site.put("enrolmentrules/edge", &rule).await.0,
        StatusCode::CREATED
    );
    Machine::with_tpm(&emulator, "SN-5")
        .enrol(&site)
        .await
        .granted();
    assert_eq!(site.device("box-1").await.metadata.labels["line"], "a");
    assert!(Machine::without_tpm("SN-6").enrol(&site).await.waits());
}

#[tokio::test]
async fn a_manifest_counts_if_a_trusted_key_signed_it() {
    let site = Site::start().await;
    let key = rcgen_key();
    let text = "serial\nSIGNED-1\n";
    let body = |signature: &str| {
        json!({
            "apiVersion": "skerry.io/v1", "kind": "Manifest", "metadata": {"name": "signed"},
            "spec": {"format": "csv", "text": text, "signature": signature}
        })
    };
    let signature = key.sign(text.as_bytes());
    let (status, answer) = site.put("manifests/signed", &body(&signature)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    let trusted = json!({
        "apiVersion": "skerry.io/v1", "kind": "TrustedKey", "metadata": {"name": "purchasing"},
        "spec": {"publicKey": key.public_pem}
    });
    assert_eq!(
        site.put("trustedkeys/purchasing", &trusted).await.0,
        StatusCode::CREATED
    );
    let (status, answer) = site.put("manifests/signed", &body(&signature)).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    assert_eq!(answer["status"]["signedBy"], "purchasing");
    assert_eq!(answer["status"]["machines"], 1);
    assert!(
        answer["spec"]["text"].is_null(),
        "the text is not given back"
    );
    let other = key.sign(b"serial\nSIGNED-2\n");
    assert_eq!(
        site.put("manifests/signed", &body(&other)).await.0,
        StatusCode::UNPROCESSABLE_ENTITY
    );
    // A mistake is told with its place.
    let bad = json!({
        "apiVersion": "skerry.io/v1", "kind": "Manifest", "metadata": {"name": "bad"},
        "spec": {"format": "csv", "text": "serial,name\nA,Not A Name\n", "unsigned": true}
    });
    let (_, answer) = site.put("manifests/bad", &bad).await;
    assert!(
        answer["errors"][0]["message"]
            .as_str()
            .unwrap()
            .contains("line 2, column 3"),
        "{answer}"
    );
}

struct ManifestKey {
    pair: ring::signature::EcdsaKeyPair,
    public_pem: String,
}

impl ManifestKey {
    fn sign(&self, text: &[u8]) -> String {
        use base64::Engine as _;
        let signature = self
            .pair
            .sign(&ring::rand::SystemRandom::new(), text)
            .unwrap();
        base64::engine::general_purpose::STANDARD.encode(signature.as_ref())
    }
}

fn rcgen_key() -> ManifestKey {
    let made = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    ManifestKey {
        pair: ring::signature::EcdsaKeyPair::from_pkcs8(
            &ring::signature::ECDSA_P256_SHA256_ASN1_SIGNING,
            &made.serialize_der(),
            &ring::rand::SystemRandom::new(),
        )
        .unwrap(),
        public_pem: made.public_key_pem(),
    }
}

#[tokio::test]
async fn secrets_travel_so_that_only_the_device_reads_them() {
    use pillar_secrets::open_all;
    use prost::Message as _;
    let (site, emulator) = (Site::start().await, Emulator::start());
    manifest(&site, "one", "serial,name\nSN-7,press\n").await;
    let mut machine = Machine::with_tpm(&emulator, "SN-7").enrolled(&site).await;
    let mut store = datastore();
    store["spec"]["credentials"] = json!({"user": "puller", "password": "hunter2-secret"});
    let (status, answer) = site.put("datastores/demo", &store).await;
    assert_eq!(status, StatusCode::CREATED);
    assert!(answer["spec"]["credentials"]["password"].is_null());
    // Written back as it was got, the password stays.
    let (status, _) = site.put("datastores/demo", &answer).await;
    assert_eq!(status, StatusCode::OK);
    site.put("apps/web", &container("web", "press", 8080)).await;

    machine.device.attest(&site).await;
    let (_, config) = machine.device.config(&site, "").await;
    let config = config.unwrap().config.unwrap();
    let bytes = config.encode_to_vec();
    for secret in ["hunter2-secret", "puller", "GREETING", "R1JFRVRJTkc"] {
        assert!(
            !bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes()),
            "{secret} stands in the config"
        );
    }
    let opened = open_all(&site, &machine, &config).await;
    assert!(opened.contains(&("puller".to_owned(), "hunter2-secret".to_owned())));
    assert!(opened.iter().any(|(_, data)| data == "GREETING=hello\n"));

    // Without its event log the boot is not proven: no secrets, and what needs them does not run.
    machine.device.event_log = None;
    machine.device.attest(&site).await;
    let (_, config) = machine.device.config(&site, "").await;
    let config = config.unwrap().config.unwrap();
    assert!(config.cipher_contexts.is_empty());
    assert!(config.apps.iter().all(|app| app.cipher_data.is_none()));
    assert!(config.apps.iter().all(|app| !app.activate));
}

/// What the device does with a config's secrets, in short.
mod pillar_secrets {
    use base64::Engine as _;
    use protocol::cipher::{self, BlockKey};
    use protocol::eve::config::EdgeDevConfig;
    use protocol::keys::CertHash;

    use crate::device::certificates;
    use crate::machine::Machine;
    use crate::site::Site;

    pub async fn open_all(
        site: &Site,
        machine: &Machine,
        config: &EdgeDevConfig,
    ) -> Vec<(String, String)> {
        let certs = certificates(site).await;
        let identity = machine.identity();
        let own = CertHash::of_pem_text(identity.ecdh_certificate().pem().as_bytes());
        let blocks = config
            .datastores
            .iter()
            .filter_map(|it| it.cipher_data.as_ref())
            .chain(config.apps.iter().filter_map(|it| it.cipher_data.as_ref()));
        blocks
            .map(|block| {
                let context = cipher::find_context(&config.cipher_contexts, block, &own).unwrap();
                let peer = certs.exchange(&context.controller_cert_hash).unwrap();
                let key = BlockKey::agree(identity, &peer.point).unwrap();
                let clear = cipher::decrypt_secrets(&key, block).unwrap();
                if clear.protected_user_data.is_empty() {
                    return (clear.ds_api_key, clear.ds_password);
                }
                let data = base64::engine::general_purpose::STANDARD
                    .decode(clear.protected_user_data)
                    .unwrap();
                (String::new(), String::from_utf8(data).unwrap())
            })
            .collect()
    }
}

#[tokio::test]
async fn a_revoked_device_is_turned_away_at_its_next_word_and_cannot_come_back() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    manifest(&site, "one", "serial,name\nSN-8,press\n").await;
    let mut machine = Machine::with_tpm(&emulator, "SN-8").enrolled(&site).await;
    machine.device.attest(&site).await;
    let revoke = async |site: &Site, revoked: bool| {
        let mut device = serde_json::to_value(site.device("press").await).unwrap();
        device["spec"]["revoked"] = json!(revoked);
        assert_eq!(site.put("devices/press", &device).await.0, StatusCode::OK);
    };
    revoke(&site, true).await;
    assert_eq!(
        machine.device.config(&site, "").await.0,
        StatusCode::FORBIDDEN
    );
    machine.enrol(&site).await.refused_for(Reason::Denied);
    let site = site.restart().await;
    assert_eq!(
        machine.device.config(&site, "").await.0,
        StatusCode::FORBIDDEN
    );
    revoke(&site, false).await;
    let grant = machine.enrol(&site).await.granted();
    machine.take(&grant);
    machine.device.attest(&site).await;
    assert_eq!(machine.device.config(&site, "").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_device_that_is_revoked_while_it_enrols_again_stays_out() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    manifest(&site, "one", "serial,name\nSN-9,press\n").await;
    let mut machine = Machine::with_tpm(&emulator, "SN-9").enrolled(&site).await;
    let ready = machine.ready(&site).await;
    let mut device = serde_json::to_value(site.device("press").await).unwrap();
    device["spec"]["revoked"] = json!(true);
    // Both wait for the same writer, the machine before the operator, and are told at the same moment that they are through.
    let held = site.hold_writes().await;
    let soon = |milliseconds| tokio::time::sleep(Duration::from_millis(milliseconds));
    let (heard, revoked, ()) = tokio::join!(
        machine.show(&site, &ready),
        async {
            soon(300).await;
            site.put("devices/press", &device).await
        },
        async {
            soon(600).await;
            drop(held);
        },
    );
    assert_eq!(revoked.0, StatusCode::OK, "{}", revoked.1);
    machine.take(&heard.granted());
    let request = ConfigRequest::default();
    let (status, said) = machine
        .device
        .send(&site, &paths::config(machine.device.id), &request)
        .await;
    let said = String::from_utf8_lossy(&said);
    assert_eq!(status, StatusCode::FORBIDDEN, "{said}");
    assert!(said.contains("revoked by an operator"), "{said}");
}

#[tokio::test]
async fn approving_all_or_by_what_they_are() {
    let site = Site::start().await;
    let machines: Vec<Machine> = ["A-1", "A-2", "B-1"]
        .into_iter()
        .map(Machine::without_tpm)
        .collect();
    for machine in &machines {
        assert!(machine.enrol(&site).await.waits());
    }
    let body = json!({"decision": "approve", "match": {"serial": "A-*"}});
    let (_, answer) = decide(&site, body).await;
    assert_eq!(answer["machines"].as_array().unwrap().len(), 2);
    machines[0].enrol(&site).await.granted();
    machines[1].enrol(&site).await.granted();
    approve(&site, &machines[2]).await;
    machines[2].enrol(&site).await.granted();
}
