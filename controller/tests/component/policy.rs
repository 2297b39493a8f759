//! Policies: what a machine may have booted. The boots are a recorded one of an emulated PC, measured anew into the emulator, and changes
//! of it.

use std::io::Read as _;

use flate2::read::GzDecoder;
use onboarding::attest::{QuoteAnswer, device as exchange};
use onboarding::eventlog::{self, Algorithm, Event, EventLog, EventType};
use onboarding::policy::stub::command_line_digest;
use onboarding::policy::{Reference, ReleaseKey, SignedReference, Variant};
use operator_api::{AttestationConclusion, AttestationLevel, Boot, List, VerdictOutcome};
use protocol::digest::Digest;
use protocol::eve::attest::{ZAttestQuote, ZAttestReq, ZAttestReqType};
use protocol::eve::certs::ZCertType;
use protocol::keys::{SoftwareSigner, sha256};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::machine::{Machine, an_honest_machine_still_enrols, manifest, waiting};
use crate::site::{Site, container, datastore};
use crate::tpm::Emulator;

/// The command line of the recorded boot. An image's names its root file system besides.
const LINE: &str = "console=ttyS0 quiet panic=-1";

fn line() -> String {
    format!("{LINE} roothash={}", Digest::of(b"root").hex())
}

/// The recorded boot (see `onboarding/tests/data/README.md`) with the image's command line.
fn recorded() -> EventLog {
    with_line(&line())
}

/// The same with another command line.
fn with_line(line: &str) -> EventLog {
    let wide = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    let (old, new) = (wide(LINE), wide(line));
    let mut log = as_it_was();
    let (before, after) = (command_line_digest(LINE), command_line_digest(line));
    let mut lines = 0;
    for event in &mut log.events {
        // The kernel measures it as well, and says no more than that it did.
        if event.digest(Algorithm::Sha256) != Some(before.bytes().as_slice()) {
            continue;
        }
        let found = event
            .data
            .windows(old.len())
            .position(|window| window == old);
        if let Some(at) = found {
            event.data.splice(at..at + old.len(), new.iter().copied());
        }
        event.digests = vec![(Algorithm::Sha256, after.bytes().to_vec())];
        lines += 1;
    }
    assert!(lines > 0, "the recorded boot has a command line");
    log
}

fn as_it_was() -> EventLog {
    let packed = include_bytes!("../../../onboarding/tests/data/ovmf-uki.log.gz");
    let mut log = Vec::new();
    GzDecoder::new(packed.as_slice())
        .read_to_end(&mut log)
        .unwrap();
    eventlog::parse(&log).unwrap()
}

/// The log as bytes, SHA-256 only (TCG PC Client Platform Firmware Profile, section 10).
fn bytes_of(log: &EventLog) -> Vec<u8> {
    let mut spec = b"Spec ID Event03\0".to_vec();
    spec.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0]);
    let mut bytes = vec![0, 0, 0, 0, 3, 0, 0, 0];
    bytes.extend([0; 20]);
    bytes.extend(u32::try_from(spec.len()).unwrap().to_le_bytes());
    bytes.extend(spec);
    for event in &log.events {
        bytes.extend(event.pcr.to_le_bytes());
        bytes.extend(event.kind.0.to_le_bytes());
        bytes.extend([1, 0, 0, 0, 0x0b, 0]);
        bytes.extend(event.digest(Algorithm::Sha256).unwrap());
        bytes.extend(u32::try_from(event.data.len()).unwrap().to_le_bytes());
        bytes.extend(&event.data);
    }
    bytes
}

/// What the build of the recorded image would have known ahead.
fn reference(key: ReleaseKey) -> Reference {
    let digest = |digits: &str| Digest::from_hex(digits).unwrap();
    Reference {
        release_key: key,
        version: "1.2".parse().unwrap(),
        variant: Variant::Production,
        root_hash: Digest::of(b"root"),
        boot_loader: digest("7843e376e57323bcdfebcffc8d5109eb39721c83d8bedab1dfd6431596875c2c"),
        kernel_image: digest("c1bb052e72c430ebbc26b14281df1089a747b8a5989b90d0c6da013815b9b161"),
        kernel: digest("6a5811d6cd13e791d1c16af3d53d7549b2f275b224a37539b2d3faebdb57f968"),
        command_line: line(),
        initramfs: digest("b4b21e36c1b0d42835ea19065d3d85c051539c740b3ac9560fb2f92890e30c3b"),
        kernel_image_pcr: None,
    }
}

/// A machine that boots again and again.
struct Booting {
    emulator: Emulator,
    machine: Machine,
}

impl Booting {
    async fn enrolled(site: &Site, serial: &str) -> Self {
        Self::enrolled_as(site, serial, "Edge Box 3").await
    }

    async fn enrolled_as(site: &Site, serial: &str, product: &str) -> Self {
        manifest(
            site,
            &format!("m-{}", serial.to_ascii_lowercase()),
            &format!("serial,name\n{serial},{}\n", serial.to_ascii_lowercase()),
        )
        .await;
        let emulator = Emulator::start();
        let mut machine = Machine::with_tpm(&emulator, serial);
        machine.smbios.product = product.to_owned();
        Self {
            emulator,
            machine: machine.enrolled(site).await,
        }
    }

    /// Switches it off and on, and measures what the log says.
    fn boot(&mut self, log: &EventLog) {
        self.emulator.power_cycle();
        let tpm = self.emulator.connect();
        for event in log
            .events
            .iter()
            .filter(|it| it.kind != EventType::NO_ACTION)
        {
            let digest = event.digest(Algorithm::Sha256).unwrap();
            tpm.pcr_extend(event.pcr, digest.try_into().unwrap())
                .unwrap();
        }
        self.machine.device.reopen(tpm);
        self.machine.device.event_log = Some(bytes_of(log));
    }

    async fn attest(&self, site: &Site) -> QuoteAnswer {
        let device = &self.machine.device;
        assert_eq!(device.show_certificates(site).await, StatusCode::CREATED);
        let nonce = device.nonce(site).await;
        device.show_quote(site, &device.quote(&nonce)).await
    }

    /// Attests, and gives the checks that failed.
    async fn failed(&mut self, site: &Site) -> Vec<String> {
        let answer = self.attest(site).await;
        let device = site
            .device(&self.machine.smbios.serial.to_ascii_lowercase())
            .await;
        let failed: Vec<String> = device
            .status
            .attestation
            .verdicts
            .iter()
            .filter(|verdict| verdict.outcome == VerdictOutcome::Failed)
            .map(|verdict| verdict.check.clone())
            .collect();
        match answer {
            QuoteAnswer::Granted {
                integrity_token, ..
            } => {
                assert!(failed.is_empty(), "granted, though {failed:?}");
                self.machine.device.token = integrity_token;
            }
            _ => {
                assert!(!failed.is_empty(), "{answer:?}");
                assert_eq!(
                    device.status.attestation.conclusion,
                    AttestationConclusion::Refused
                );
                self.machine.device.token = Vec::new();
            }
        }
        failed
    }

    /// Whether the app in its config comes with its secrets.
    async fn has_secrets(&self, site: &Site) -> bool {
        let (status, config) = self.machine.device.config(site, "").await;
        assert_eq!(status, StatusCode::OK);
        let config = config.unwrap().config.unwrap();
        config.apps.iter().any(|app| app.cipher_data.is_some())
    }

    async fn config(&self, site: &Site) -> StatusCode {
        self.machine.device.config(site, "").await.0
    }
}

/// A policy for the image, its reference, and nothing of firmware.
async fn govern(site: &Site) -> Value {
    let made = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let signer = SoftwareSigner::from_pkcs8_der(&made.serialize_der()).unwrap();
    let key = ReleaseKey::from_point(signer.public_point()).unwrap();
    let signed = SignedReference::sign(reference(key), &signer).unwrap();
    let document = String::from_utf8(signed.bytes().to_vec()).unwrap();
    let object = json!({
        "apiVersion": "skerry.io/v1", "kind": "BootReference", "metadata": {"name": "image-1"},
        "spec": {"document": document}
    });
    let (status, answer) = site.put("bootreferences/image-1", &object).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    assert_eq!(answer["status"]["imageVersion"], "1.2");
    let policy = json!({
        "apiVersion": "skerry.io/v1", "kind": "AttestationPolicy", "metadata": {"name": "edge"},
        "spec": {
            "machines": {"product": "Edge Box*"},
            "references": {"releaseKeys": [answer["status"]["releaseKey"]]},
            "requireSecureBoot": false, "keepRunning": false, "maxAgeMinutes": 30
        }
    });
    let (status, answer) = site.put("attestationpolicies/edge", &policy).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    answer
}

async fn accept(site: &Site, device: &str) -> (StatusCode, Value) {
    let body = json!({"device": device, "name": "as delivered"});
    let path = "attestationpolicies/edge/firmware";
    let answer = site.ask(Method::POST, path, Some(&body)).await;
    (answer.status(), answer.json().await.unwrap())
}

fn find(log: &EventLog, text: &str) -> usize {
    log.events
        .iter()
        .position(|event| eventlog::describe(event).text.contains(text))
        .unwrap_or_else(|| panic!("{text}"))
}

fn measure(event: &mut Event, bytes: &[u8]) {
    event.digests = vec![(Algorithm::Sha256, sha256(bytes).to_vec())];
}

#[tokio::test]
async fn row_15_firmware_is_learned_from_a_canary_and_accepted_by_a_person() {
    let site = Site::start().await;
    let mut box_1 = Booting::enrolled(&site, "BOX-1").await;
    box_1.machine.device.attest(&site).await;
    assert_eq!(box_1.config(&site).await, StatusCode::OK);
    // A policy is made: every device attests anew.
    govern(&site).await;
    assert_eq!(box_1.config(&site).await, StatusCode::FORBIDDEN);
    box_1.boot(&recorded());
    let failed = box_1.failed(&site).await;
    assert_eq!(failed, ["revocationList", "firmware"]);
    assert_eq!(box_1.config(&site).await, StatusCode::FORBIDDEN);
    let boots: List<Boot> = site
        .ask(Method::GET, "devices/box-1/boots", None)
        .await
        .json()
        .await
        .unwrap();
    assert!(
        boots.items[0].status.firmware.is_some(),
        "its values are listed"
    );
    // One click for the model.
    let (status, answer) = accept(&site, "box-1").await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["spec"]["firmware"].as_array().unwrap().len(), 1);
    assert!(box_1.failed(&site).await.is_empty());
    assert_eq!(box_1.config(&site).await, StatusCode::OK);
    let mut box_2 = Booting::enrolled(&site, "BOX-2").await;
    box_2.boot(&recorded());
    assert!(
        box_2.failed(&site).await.is_empty(),
        "a second box of the model needs no click"
    );
    // A new revocation list: refused until it is accepted, and nothing else is odd.
    let mut updated = recorded();
    let at = find(&updated, "variable: dbx ");
    let event = &mut updated.events[at];
    let name = usize::try_from(u64::from_le_bytes(event.data[16..24].try_into().unwrap())).unwrap();
    event.data[24..32].copy_from_slice(&4_u64.to_le_bytes());
    event.data.truncate(32 + 2 * name);
    event.data.extend(b"list");
    let data = event.data.clone();
    measure(event, &data);
    box_2.boot(&updated);
    assert_eq!(box_2.failed(&site).await, ["revocationList"]);
    let device = site.device("box-2").await;
    let words = device.status.attestation.differences.join("\n");
    assert!(words.contains("dbx"), "{words}");
    assert_eq!(accept(&site, "box-2").await.0, StatusCode::OK);
    assert!(box_2.failed(&site).await.is_empty());
    box_1.boot(&updated);
    assert!(box_1.failed(&site).await.is_empty());
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn row_6_another_command_line_gets_no_config_and_no_secrets() {
    let site = Site::start().await;
    let mut machine = Booting::enrolled(&site, "BOX-3").await;
    govern(&site).await;
    machine.boot(&recorded());
    machine.failed(&site).await;
    assert_eq!(accept(&site, "box-3").await.0, StatusCode::OK);
    assert!(machine.failed(&site).await.is_empty());
    site.put("datastores/demo", &datastore()).await;
    site.put("apps/web", &container("web", "box-3", 8080)).await;
    let (_, config) = machine.machine.device.config(&site, "").await;
    let config = config.unwrap().config.unwrap();
    assert!(config.apps[0].cipher_data.is_some());
    assert_eq!(config.config_items[0].value, "false", "keepRunning");

    machine.boot(&with_line(&format!("{} init=/bin/sh", line())));
    assert_eq!(machine.failed(&site).await, ["commandLine"]);
    let (status, config) = machine.machine.device.config(&site, "").await;
    assert_eq!((status, config), (StatusCode::FORBIDDEN, None));
    let device = site.device("box-3").await;
    let words = device.status.attestation.differences.join("\n");
    assert!(words.contains("init=/bin/sh"), "{words}");
    // The right system again, and all is well.
    machine.boot(&recorded());
    assert!(machine.failed(&site).await.is_empty());
    assert_eq!(machine.config(&site).await, StatusCode::OK);
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn row_14_an_event_log_that_is_missing_cut_huge_or_nonsense_opens_nothing() {
    let site = Site::start().await;
    let mut machine = trusted(&site, "BOX-4").await;
    let whole = bytes_of(&recorded());
    let cut = whole[..whole.len() / 2].to_vec();
    let mut swapped = recorded();
    swapped.events.swap(3, 4);
    // Without a log it is the policy that has nothing to go by.
    for (what, log, check) in [
        ("missing", None, "bootApplications"),
        ("cut", Some(cut), "eventLog"),
        ("nonsense", Some(vec![0xff; 4096]), "eventLog"),
        ("empty", Some(vec![0; 8]), "eventLog"),
        ("other order", Some(bytes_of(&swapped)), "eventLogReplay"),
    ] {
        machine.machine.device.event_log = log;
        let failed = machine.failed(&site).await;
        assert!(failed.iter().any(|it| it == check), "{what}: {failed:?}");
        assert_eq!(machine.config(&site).await, StatusCode::FORBIDDEN, "{what}");
    }
    // One that is longer than any is taken for malformed.
    machine.machine.device.event_log = Some(vec![0; 64 << 20]);
    let nonce = machine.machine.device.nonce(&site).await;
    let quote = machine.machine.device.quote(&nonce);
    let (status, answer) = machine.machine.device.attest_request(&site, &quote).await;
    let granted = answer.is_some_and(|answer| {
        matches!(
            onboarding::attest::device::read_quote_answer(&answer),
            Ok(QuoteAnswer::Granted { .. })
        )
    });
    assert!(!granted, "{status}");
    assert_eq!(machine.config(&site).await, StatusCode::FORBIDDEN);
    machine.machine.device.event_log = Some(whole);
    assert!(machine.failed(&site).await.is_empty());
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn what_a_policy_only_warns_of_is_told_and_refuses_nothing() {
    let site = Site::start().await;
    let mut machine = Booting::enrolled(&site, "BOX-5").await;
    let mut policy = govern(&site).await;
    policy["spec"]["actions"] = json!({"firmware": "warn", "revocationList": "warn"});
    assert_eq!(
        site.put("attestationpolicies/edge", &policy).await.0,
        StatusCode::OK
    );
    machine.boot(&recorded());
    assert!(machine.failed(&site).await.is_empty());
    let device = site.device("box-5").await;
    let warned: Vec<_> = device
        .status
        .attestation
        .verdicts
        .iter()
        .filter(|verdict| verdict.outcome == VerdictOutcome::Warned)
        .map(|verdict| verdict.check.as_str())
        .collect();
    assert_eq!(warned, ["revocationList", "firmware"]);
    assert_eq!(machine.config(&site).await, StatusCode::OK);
    // A policy that makes no sense is not taken.
    for (field, value) in [
        ("maxAgeMinutes", json!(0)),
        ("actions", json!({"signature": "warn"})),
        ("references", json!({"releaseKeys": []})),
    ] {
        let mut bad = policy.clone();
        bad["spec"][field] = value;
        bad["metadata"]["resourceVersion"] = json!("");
        let (status, answer) = site.put("attestationpolicies/edge", &bad).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    }
}

/// A device under a policy that its boot fits, with an app that has a secret.
async fn trusted(site: &Site, serial: &str) -> Booting {
    let name = serial.to_ascii_lowercase();
    let mut machine = Booting::enrolled(site, serial).await;
    govern(site).await;
    machine.boot(&recorded());
    machine.failed(site).await;
    assert_eq!(accept(site, &name).await.0, StatusCode::OK);
    assert!(machine.failed(site).await.is_empty());
    site.put("datastores/demo", &datastore()).await;
    site.put("apps/web", &container("web", &name, 8080)).await;
    assert!(machine.has_secrets(site).await);
    machine
}

/// A boot that no policy lets pass.
fn evil() -> EventLog {
    with_line(&format!("{} init=/bin/sh", line()))
}

#[tokio::test]
async fn row_6_no_quote_at_all_is_no_way_around_the_policy() {
    let site = Site::start().await;
    let mut machine = trusted(&site, "BOX-6").await;
    machine.boot(&evil());
    // It enrols again, which forgets the certificates that it showed, and does not show the one of its attestation key any more.
    let grant = machine.machine.enrol(&site).await.granted();
    machine.machine.take(&grant);
    let device = &machine.machine.device;
    let mut certificates = exchange::certs_request(&device.identity);
    certificates
        .certs
        .retain(|it| it.r#type() == ZCertType::CertTypeDeviceEcdhExchange);
    assert_eq!(certificates.certs.len(), 1);
    let (status, _) = device.attest_request(&site, &certificates).await;
    assert_eq!(status, StatusCode::CREATED);
    device.nonce(&site).await;
    let nothing = ZAttestReq {
        req_type: ZAttestReqType::AttestReqQuote.into(),
        quote: Some(ZAttestQuote::default()),
        ..ZAttestReq::default()
    };
    let answer = device.show_quote(&site, &nothing).await;
    assert!(!matches!(answer, QuoteAnswer::Granted { .. }), "{answer:?}");
    let shown = site.device("box-6").await.status.attestation;
    assert_eq!(shown.conclusion, AttestationConclusion::Refused);
    assert_eq!(shown.level, AttestationLevel::Bronze);
    assert!(
        shown.verdicts.iter().any(|verdict| verdict.check == "evidence"
            && verdict.outcome == VerdictOutcome::Failed),
        "{:?}",
        shown.verdicts
    );
    assert_eq!(machine.config(&site).await, StatusCode::FORBIDDEN);
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn row_6_a_device_cannot_choose_the_policy_that_judges_it() {
    let site = Site::start().await;
    let mut machine = trusted(&site, "BOX-7").await;
    machine.boot(&evil());
    // By no policy's name it would be judged by none.
    machine.machine.smbios.product = "Something Else".to_owned();
    assert!(machine.machine.enrol(&site).await.waits());
    let room = waiting(&site).await;
    assert!(
        room[0]
            .status
            .verdicts
            .iter()
            .any(|verdict| verdict.check == "model" && verdict.outcome == VerdictOutcome::Failed),
        "{:?}",
        room[0].status
    );
    assert_eq!(machine.failed(&site).await, ["commandLine"]);
    // A machine that comes under such a name is a device, and is not trusted with anything.
    let mut stranger = Booting::enrolled_as(&site, "BOX-8", "Something Else").await;
    stranger.boot(&evil());
    assert!(stranger.failed(&site).await.is_empty());
    let shown = site.device("box-8").await.status.attestation;
    assert_eq!(shown.conclusion, AttestationConclusion::Unproven);
    let mut app = container("other", "box-8", 8081);
    app["spec"]["env"] = json!({"SECRET": "hush"});
    site.put("apps/other", &app).await;
    assert!(!stranger.has_secrets(&site).await);
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn row_15_only_a_boot_that_was_proven_is_learned_from() {
    let site = Site::start().await;
    let mut machine = trusted(&site, "BOX-9").await;
    let newest = async || -> Boot {
        let boots: List<Boot> = site
            .ask(Method::GET, "devices/box-9/boots", None)
            .await
            .json()
            .await
            .unwrap();
        boots.items[0].clone()
    };
    let good = newest().await.metadata.name;
    // A quote of before, shown again: its own signature and log hold, and it is nobody's answer to this question.
    machine.boot(&recorded());
    let nonce = machine.machine.device.nonce(&site).await;
    let old = machine.machine.device.quote(&nonce);
    machine.machine.device.nonce(&site).await;
    let answer = machine.machine.device.show_quote(&site, &old).await;
    assert!(matches!(answer, QuoteAnswer::NonceMismatch), "{answer:?}");
    let replayed = newest().await.metadata.name;
    assert_ne!(replayed, good);
    let accept = async |boot: &str| {
        let body = json!({"device": "box-9", "boot": boot});
        let answer = site
            .ask(
                Method::POST,
                "attestationpolicies/edge/firmware",
                Some(&body),
            )
            .await;
        (answer.status(), answer.text().await.unwrap())
    };
    let (status, text) = accept(&replayed).await;
    assert_eq!(status, StatusCode::CONFLICT, "{text}");
    assert!(text.contains("do not hold"), "{text}");
    assert_eq!(accept("box-9-99999").await.0, StatusCode::CONFLICT);
    assert_eq!(accept(&good).await.0, StatusCode::OK);
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn without_any_policy_every_list_says_so() {
    let site = Site::start().await;
    let machine = Booting::enrolled(&site, "BOX-10").await;
    let QuoteAnswer::Granted { .. } = machine.attest(&site).await else {
        panic!("refused")
    };
    let shown = site.device("box-10").await.status.attestation;
    assert_eq!(shown.conclusion, AttestationConclusion::Trusted);
    let verdict = shown.verdicts.iter().find(|it| it.check == "policy");
    let verdict = verdict.unwrap();
    assert_eq!(verdict.outcome, VerdictOutcome::Warned);
    assert!(verdict.detail.contains("none at all"), "{}", verdict.detail);
}

#[tokio::test]
async fn a_policys_age_reaches_the_device() {
    let site = Site::start().await;
    let machine = trusted(&site, "BOX-11").await;
    let (_, config) = machine.machine.device.config(&site, "").await;
    let items = config.unwrap().config.unwrap().config_items;
    let interval = items
        .iter()
        .find(|item| item.key == "skerry.attest.interval")
        .unwrap();
    assert_eq!(interval.value, "1500", "of 30 minutes");
}
