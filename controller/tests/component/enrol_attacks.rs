//! Attacks on enrolment, and faults in it, as far as they are the controller's to answer; the numbers are the rows of the page "What is
//! defended". Each asserts the refusal, the verdict or the reason, that nothing secret left, and that an honest machine still gets in.

use onboarding::attest::device as exchange;
use onboarding::keys::Identity;
use operator_api::{
    AttestationLevel, ConditionStatus, Device as DeviceObject, VerdictOutcome, WaitingMachine,
};
use prost::Message as _;
use protocol::enrolment::seal::{self, Flight};
use protocol::enrolment::wire::{Evidence, EvidenceBody, Hello, Reason, TpmKeys};
use protocol::eve::attest::ZAttestReq;
use protocol::eve::certs::ZCertType;
use protocol::keys::{CertHash, Signer as _};
use protocol::paths;
use reqwest::StatusCode;
use serde_json::json;

use crate::device::{Device, post};
use crate::machine::{
    Heard, Machine, an_honest_machine_still_enrols, approve, ask, controller, decide, manifest,
    waiting,
};
use crate::site::Site;
use crate::tpm::Emulator;

/// Tables that enrolment writes to.
const TABLES: [&str; 6] = [
    "identities",
    "enrolments",
    "waiting",
    "boots",
    "alarms",
    "objects",
];

async fn rows(site: &Site) -> Vec<i64> {
    let mut rows = Vec::new();
    for table in TABLES {
        rows.push(site.count(table).await);
    }
    rows
}

#[tokio::test]
async fn row_1_evidence_replayed_in_the_same_session_in_another_and_after_a_restart() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    manifest(&site, "one", "serial\nSN-1\n").await;
    let machine = Machine::with_tpm(&emulator, "SN-1");
    let first = machine.ready(&site).await;
    let granted = machine.show(&site, &first).await.granted();
    let before = rows(&site).await;
    // The same bytes get the same answer, which only the machine itself reads, and nothing is written.
    let again = machine.show(&site, &first).await.granted();
    assert_eq!(again, granted);
    assert_eq!(rows(&site).await, before);
    // The same quote in another session: the transcript is another.
    let other = machine.hello();
    let Heard::Challenge(challenge) = machine.challenge(&site, &other).await else {
        panic!("no challenge")
    };
    let mut evidence = Evidence::decode(first.answering.evidence()).unwrap();
    let mut body = EvidenceBody::decode(evidence.body.as_slice()).unwrap();
    body.hello = other.bytes().to_vec();
    body.challenge = challenge.payload.clone();
    body.challenge_signature = challenge.signature.clone();
    evidence.body = body.encode_to_vec();
    let heard = ask(&site, Flight::Evidence, &evidence.encode_to_vec()).await;
    heard.refused_for(Reason::Proof);
    // Other evidence over the used nonce.
    let mut forged = Evidence::decode(first.answering.evidence()).unwrap();
    forged.mac = vec![0; 32];
    let heard = ask(&site, Flight::Evidence, &forged.encode_to_vec()).await;
    heard.refused_for(Reason::Challenge);
    assert_eq!(rows(&site).await, before);
    // After a restart the same bytes still get the same answer, and others none.
    let site = site.restart().await;
    assert_eq!(machine.show(&site, &first).await.granted(), granted);
    let heard = ask(&site, Flight::Evidence, &forged.encode_to_vec()).await;
    heard.refused_for(Reason::Challenge);
    assert_eq!(rows(&site).await, before);
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn row_3_a_second_endorsement_key_under_one_serial_number() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    manifest(&site, "one", "serial,name\nSN-3,press\n").await;
    let genuine = Machine::with_tpm(&emulator, "SN-3").enrolled(&site).await;
    let other_tpm = Emulator::start();
    let clone = Machine::with_tpm(&other_tpm, "SN-3");
    clone.enrol(&site).await.refused_for(Reason::Denied);
    // The operator is told, and sees both keys.
    let device = site.device("press").await;
    let [alarm] = device.status.alarms.as_slice() else {
        panic!("{:?}", device.status.alarms)
    };
    assert_eq!(alarm.own, genuine.id().to_string());
    assert_eq!(alarm.other, clone.id().to_string());
    let unique = device
        .status
        .conditions
        .iter()
        .find(|condition| condition.kind == "Unique")
        .unwrap();
    assert_eq!(unique.status, ConditionStatus::False);
    let room = waiting(&site).await;
    assert_eq!(room[0].status.resembles, ["press"]);
    let failed: Vec<_> = room[0]
        .status
        .verdicts
        .iter()
        .filter(|verdict| verdict.outcome == VerdictOutcome::Failed)
        .map(|verdict| verdict.check.as_str())
        .collect();
    assert_eq!(failed, ["endorsementUnique"]);
    assert_eq!(site.list::<DeviceObject>().await.len(), 1);
    // The genuine one is not disturbed; the word of a person ends the alarm.
    let mut genuine = genuine;
    genuine.device.attest(&site).await;
    assert_eq!(genuine.device.config(&site, "").await.0, StatusCode::OK);
    let body = json!({"decision": "deny", "machines": [clone.id().to_string()]});
    assert_eq!(decide(&site, body).await.0, StatusCode::OK);
    assert!(site.device("press").await.status.alarms.is_empty());
    clone.enrol(&site).await.refused_for(Reason::Denied);
    assert!(site.device("press").await.status.alarms.is_empty());
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn row_4_a_board_that_was_moved_does_not_fit_its_manifest() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    let machine = Machine::with_tpm(&emulator, "CHASSIS-2");
    let text = format!("ekId,serial,name\n{},CHASSIS-1,press\n", machine.id());
    manifest(&site, "boards", &text).await;
    machine.enrol(&site).await.refused_for(Reason::Denied);
    let room = waiting(&site).await;
    let serial = room[0]
        .status
        .verdicts
        .iter()
        .find(|verdict| verdict.check == "serial")
        .unwrap();
    assert_eq!(serial.outcome, VerdictOutcome::Failed);
    assert!(serial.detail.contains("CHASSIS-1") && serial.detail.contains("CHASSIS-2"));
    assert!(site.list::<DeviceObject>().await.is_empty());
    // A person may approve it all the same.
    approve(&site, &machine).await;
    machine.enrol(&site).await.granted();
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn row_4_a_device_whose_board_is_found_in_another_chassis_waits() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    let mut machine = Machine::with_tpm(&emulator, "OLD");
    approve_after_waiting(&site, &machine).await;
    let granted = site.count("enrolments").await;
    machine.smbios.serial = "NEW".to_owned();
    assert!(machine.enrol(&site).await.waits());
    let room = waiting(&site).await;
    assert_eq!(failed(&room[0]), ["serial"]);
    assert!(room[0].status.reason.contains("mainboard"));
    // It was told to wait, and no more: no certificate was given for it.
    assert_eq!(site.count("enrolments").await, granted + 1);
    assert_eq!(site.device("box-1").await.status.hardware.serial, "OLD");
    approve(&site, &machine).await;
    machine.enrol(&site).await.granted();
    assert_eq!(site.list::<DeviceObject>().await.len(), 1);
    an_honest_machine_still_enrols(&site).await;
}

/// The checks that failed, of a machine that waits.
fn failed(waiting: &WaitingMachine) -> Vec<&str> {
    let verdicts = waiting.status.verdicts.iter();
    verdicts
        .filter(|verdict| verdict.outcome == VerdictOutcome::Failed)
        .map(|verdict| verdict.check.as_str())
        .collect()
}

async fn approve_after_waiting(site: &Site, machine: &Machine) {
    assert!(machine.enrol(site).await.waits());
    approve(site, machine).await;
    machine.enrol(site).await.granted();
}

#[tokio::test]
async fn row_8_who_has_the_image_alone_ends_in_the_waiting_room() {
    let site = Site::start().await;
    // The bundle of a zero-touch image: no key in it.
    let answer = site
        .ask(
            reqwest::Method::GET,
            "imagebundle?enrolment=zeroTouch",
            None,
        )
        .await;
    let text = answer.text().await.unwrap();
    assert!(!text.contains("PRIVATE KEY"), "{text}");
    assert!(!text.contains("onboard"), "{text}");
    // A thief with that image and a TPM of his own.
    let emulator = Emulator::start();
    let thief = Machine::with_tpm(&emulator, "THIEF");
    assert!(thief.enrol(&site).await.waits());
    // Nothing about it is wrong; it is only that nobody knows it.
    let room = waiting(&site).await;
    assert_eq!(failed(&room[0]), Vec::<&str>::new());
    assert_eq!(room[0].status.reason, "no manifest and no rule lets it in");
    assert_eq!(site.count("identities").await, 0);
    assert!(site.list::<DeviceObject>().await.is_empty());
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn row_9_a_flood_of_unknown_machines_stays_within_bounds() {
    let site = Site::start().await;
    let before = rows(&site).await;
    // Before the proof: no row, however many ask.
    let machine = Machine::without_tpm("X");
    for _ in 0..300 {
        let session = machine.hello();
        let heard = machine.challenge(&site, &session).await;
        assert!(matches!(heard, Heard::Challenge(_)), "{heard:?}");
    }
    let garbage = ask(&site, Flight::Evidence, b"garbage").await;
    garbage.refused_for(Reason::Malformed);
    let mut forged = machine.ready(&site).await.answering.evidence().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert!(!ask(&site, Flight::Evidence, &forged).await.waits());
    assert_eq!(rows(&site).await, before, "a row before the proof");
    // With proofs, by keys that cost nothing: as many enter as may in a minute, the rest are told to come again.
    let (mut waits, mut busy) = (0, 0);
    for number in 0..160 {
        match Machine::without_tpm(&format!("F-{number}"))
            .enrol(&site)
            .await
        {
            Heard::Wait => waits += 1,
            Heard::Refused(Reason::Busy, _) => busy += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(busy > 0, "{waits} were let in");
    assert_eq!(site.count("waiting").await, waits);
    assert_eq!(site.count("enrolments").await, waits);
    assert!(site.list::<DeviceObject>().await.is_empty());
    // Machines with a TPM have places of their own, and those on a manifest need none.
    let emulator = Emulator::start();
    assert!(Machine::with_tpm(&emulator, "T").enrol(&site).await.waits());
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_9_more_at_once_than_are_worked_on_are_told_to_come_again() {
    let site = Site::start_tuned(|settings| settings.enrolments_at_once = 1).await;
    let sessions: Vec<_> = (0..200)
        .map(|number| Machine::without_tpm(&format!("P-{number}")).hello())
        .collect();
    let asked = sessions
        .iter()
        .map(|session| ask(&site, Flight::Hello, session.bytes()));
    let (mut challenged, mut busy) = (0, 0);
    for heard in futures_util::future::join_all(asked).await {
        match heard {
            Heard::Challenge(_) => challenged += 1,
            Heard::Refused(Reason::Busy, _) | Heard::Status(StatusCode::SERVICE_UNAVAILABLE) => {
                busy += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(challenged > 0 && busy > 0, "{challenged} {busy}");
    // A challenge is no secret of anybody's, and nothing was written for any of them.
    assert_eq!(rows(&site).await, [0; 6]);
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn row_12_an_answer_that_was_lost_is_given_again() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    manifest(&site, "one", "serial,name\nSN-12,press\n").await;
    let machine = Machine::with_tpm(&emulator, "SN-12");
    let ready = machine.ready(&site).await;
    // The request arrives, and the answer does not.
    let (body, _lost) = seal::seal_request(
        &controller(&site),
        Flight::Evidence,
        ready.answering.evidence(),
    )
    .unwrap();
    assert_eq!(
        post(&site, paths::ENROL_EVIDENCE, body).await.0,
        StatusCode::OK
    );
    assert_eq!(site.list::<DeviceObject>().await.len(), 1);
    let site = site.restart().await;
    let first = machine.show(&site, &ready).await.granted();
    let second = machine.show(&site, &ready).await.granted();
    assert_eq!(first, second);
    assert_eq!(site.list::<DeviceObject>().await.len(), 1);
    assert_eq!(site.count("enrolments").await, 1);
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn row_13_a_tpm_without_its_makers_certificate_gets_in_at_bronze_and_no_higher() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    // A rule for certified machines does not let it in, whatever it says of itself.
    let rule = json!({
        "apiVersion": "skerry.io/v1", "kind": "EnrolmentRule", "metadata": {"name": "certified"},
        "spec": {"effect": "admit", "match": {"certified": true}}
    });
    assert_eq!(
        site.put("enrolmentrules/certified", &rule).await.0,
        StatusCode::CREATED
    );
    let machine = Machine::with_tpm(&emulator, "SN-13");
    assert!(machine.enrol(&site).await.waits());
    let room = waiting(&site).await;
    assert_eq!(room[0].status.level, AttestationLevel::Bronze);
    let certificate = room[0].status.verdicts.iter();
    let certificate = certificate
        .clone()
        .find(|verdict| verdict.check == "endorsementCertificate")
        .unwrap();
    assert_eq!(certificate.outcome, VerdictOutcome::NotChecked);
    assert_eq!(site.count("identities").await, 0);
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn row_16_a_controller_that_fails_in_the_middle_leaves_nothing_half() {
    let mut site = Site::start().await;
    let before = rows(&site).await;
    for (number, table) in ["objects", "identities", "boots", "enrolments"]
        .into_iter()
        .enumerate()
    {
        let emulator = Emulator::start();
        let serial = format!("SN-16-{number}");
        manifest(
            &site,
            &format!("m-{number}"),
            &format!("serial\n{serial}\n"),
        )
        .await;
        let devices = site.list::<DeviceObject>().await.len();
        let machine = Machine::with_tpm(&emulator, &serial);
        let ready = machine.ready(&site).await;
        // The transaction breaks off at this very write, as it does when the process is killed there.
        site.sql(&format!(
            "CREATE TRIGGER broken BEFORE INSERT ON {table} WHEN '{table}' <> 'objects' OR NEW.kind = 'Device' \
             BEGIN SELECT RAISE(ABORT, 'killed'); END"
        ))
        .await;
        let heard = machine.show(&site, &ready).await;
        assert!(
            matches!(heard, Heard::Status(StatusCode::SERVICE_UNAVAILABLE)),
            "{table}: {heard:?}"
        );
        assert_eq!(site.list::<DeviceObject>().await.len(), devices, "{table}");
        assert_eq!(site.count("enrolments").await, devices as i64, "{table}");
        site.sql("DROP TRIGGER broken").await;
        if number % 2 == 0 {
            // The same evidence is good as long as its challenge is.
            machine.show(&site, &ready).await.granted();
        } else {
            // A controller that was started again makes new challenges; the machine starts over.
            site = site.restart().await;
            machine.enrol(&site).await.granted();
        }
        assert_eq!(
            site.list::<DeviceObject>().await.len(),
            devices + 1,
            "{table}"
        );
        assert_eq!(site.count("identities").await, devices as i64 + 1);
    }
    assert_ne!(rows(&site).await, before);
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn row_17_a_machine_that_was_wiped_and_reinstalled_is_recognised() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    manifest(&site, "one", "serial,name\nSN-17,press\n").await;
    let mut before = Machine::with_tpm(&emulator, "SN-17").enrolled(&site).await;
    before.device.attest(&site).await;
    assert_eq!(before.device.config(&site, "").await.0, StatusCode::OK);
    let uid = site.device("press").await.metadata.uid;
    // What the old keys would say later; a TPM has one user at a time here.
    let request = protocol::eve::config::ConfigRequest {
        integrity_token: before.device.token.clone(),
        ..Default::default()
    };
    let said = before.device.seal(request.encode_to_vec());
    let (id, path) = (before.id(), paths::config(before.device.id));
    let old = before.device.id;
    drop(before);
    // New keys in the same TPM.
    let mut after = Machine::with_tpm(&emulator, "SN-17").enrolled(&site).await;
    assert_eq!(after.id(), id);
    assert_eq!(after.device.id, old);
    assert_eq!(site.device("press").await.metadata.uid, uid);
    assert_eq!(site.list::<DeviceObject>().await.len(), 1);
    // The old certificate is good for nothing any more, at once and after a restart.
    assert_eq!(
        post(&site, &path, said.clone()).await.0,
        StatusCode::BAD_REQUEST
    );
    let site = site.restart().await;
    assert_eq!(post(&site, &path, said).await.0, StatusCode::BAD_REQUEST);
    after.device.attest(&site).await;
    assert_eq!(after.device.config(&site, "").await.0, StatusCode::OK);
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn row_17_other_keys_than_the_proven_ones_cannot_be_slipped_in_afterwards() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    manifest(&site, "one", "serial,name\nSN-18,press\n").await;
    let machine = Machine::with_tpm(&emulator, "SN-18").enrolled(&site).await;
    // Certificates of other keys, though the device's own key has signed them: those of a second machine with the first one's name.
    let other_tpm = Emulator::start();
    let mut other = Machine::with_tpm(&other_tpm, "OTHER");
    other.device.id = machine.device.id;
    other.device.granted.clone_from(&machine.device.granted);
    assert_eq!(
        other.device.show_certificates(&site).await,
        StatusCode::UNAUTHORIZED,
        "it cannot even speak for it"
    );
    // The machine's own software, taken over, can have its device key sign certificates for keys outside the TPM.
    for kind in [
        ZCertType::CertTypeDeviceEcdhExchange,
        ZCertType::CertTypeDeviceRestrictedSigning,
    ] {
        let request = with_a_key_of_its_own(&machine.device, kind);
        let body = machine.device.seal(request.encode_to_vec());
        let (status, text) = post(&site, &paths::attest(machine.device.id), body).await;
        let text = String::from_utf8_lossy(&text).into_owned();
        assert_eq!(status, StatusCode::FORBIDDEN, "{kind:?}: {text}");
        assert!(text.contains("for another key than the one"), "{text}");
    }
    assert_eq!(
        machine.device.show_certificates(&site).await,
        StatusCode::CREATED
    );
    an_honest_machine_still_enrols(&site).await;
}

/// The device's certificates, but one is for a key that is not in its TPM, and EVE's flag says that it may change.
fn with_a_key_of_its_own(device: &Device, kind: ZCertType) -> ZAttestReq {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let signer = DeviceKey(&device.identity);
    let params = rcgen::CertificateParams::default();
    let issuer = rcgen::Issuer::from_params(&params, &signer);
    let pem = params.signed_by(&key, &issuer).unwrap().pem();
    let mut request = exchange::certs_request(&device.identity);
    let certificates = request.certs.iter_mut();
    for certificate in certificates.filter(|certificate| certificate.r#type() == kind) {
        certificate.cert_hash = CertHash::of_pem_text(pem.as_bytes())
            .short()
            .as_bytes()
            .to_vec();
        certificate.cert = pem.clone().into_bytes();
        certificate.attributes.as_mut().unwrap().is_mutable = true;
    }
    request
}

/// The device key as an authority of certificates.
struct DeviceKey<'a>(&'a Identity);

impl rcgen::PublicKeyData for DeviceKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        panic!("an authority without a certificate of its own")
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for DeviceKey<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.0.sign_p256_sha256(message).unwrap();
        let integer = |bytes: &[u8]| {
            let digits: Vec<u8> = bytes.iter().copied().skip_while(|it| *it == 0).collect();
            let sign = usize::from(digits.first().is_some_and(|first| *first >= 0x80));
            let mut der = vec![2, u8::try_from(digits.len() + sign).unwrap()];
            der.extend(std::iter::repeat_n(0, sign));
            der.extend(digits);
            der
        };
        let both = [integer(&signature[..32]), integer(&signature[32..])].concat();
        Ok([vec![0x30, u8::try_from(both.len()).unwrap()], both].concat())
    }
}

#[tokio::test]
async fn row_18_no_endorsement_key_and_no_serial_number_stands_on_the_wire() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    let machine = Machine::with_tpm(&emulator, "SERIAL-18");
    let session = machine.hello();
    let hello = Hello::decode(session.bytes()).unwrap();
    let Some(protocol::enrolment::wire::hello::Keys::Tpm(TpmKeys {
        endorsement_public, ..
    })) = hello.keys
    else {
        panic!("no TPM's keys")
    };
    let (body, _) = seal::seal_request(&controller(&site), Flight::Hello, session.bytes()).unwrap();
    let (_, answer) = post(&site, paths::ENROL_HELLO, body.clone()).await;
    for wire in [body, answer] {
        for clear in [endorsement_public.as_slice(), b"SERIAL-18"] {
            for piece in clear.windows(8.min(clear.len())) {
                assert!(!wire.windows(piece.len()).any(|window| window == piece));
            }
        }
    }
    // Sealed to another controller's key, nothing is answered.
    let other = Site::start().await;
    let (body, _) =
        seal::seal_request(&controller(&other), Flight::Hello, session.bytes()).unwrap();
    let (status, text) = post(&site, paths::ENROL_HELLO, body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(String::from_utf8_lossy(&text).contains("controller key"));
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn a_tpm_whose_counters_have_gone_back_is_not_believed() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    manifest(&site, "one", "serial,name\nSN-20,press\n").await;
    let mut machine = Machine::with_tpm(&emulator, "SN-20").enrolled(&site).await;
    machine.device.attest(&site).await;
    // As if a later boot had been seen: this quote is of one before it.
    site.sql("UPDATE identities SET reset_count = reset_count + 5")
        .await;
    machine.device.show_certificates(&site).await;
    let nonce = machine.device.nonce(&site).await;
    let quote = machine.device.quote(&nonce);
    let answer = machine.device.show_quote(&site, &quote).await;
    assert!(
        !matches!(answer, onboarding::attest::QuoteAnswer::Granted { .. }),
        "{answer:?}"
    );
    let device = site.device("press").await;
    let failed: Vec<_> = device
        .status
        .attestation
        .verdicts
        .iter()
        .filter(|verdict| verdict.outcome == VerdictOutcome::Failed)
        .map(|verdict| verdict.check.as_str())
        .collect();
    assert_eq!(failed, ["resetCount"]);
    // It is told why, for its screen.
    let request = protocol::eve::config::ConfigRequest::default();
    let path = paths::config(machine.device.id);
    let (status, text) = machine.device.send(&site, &path, &request).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("attestation: resetCount: "), "{text}");
    assert!(machine.enrol(&site).await.waits(), "a person has to look");
    an_honest_machine_still_enrols(&site).await;
}

#[tokio::test]
async fn an_attestation_that_is_too_old_is_asked_for_anew() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    manifest(&site, "one", "serial,name\nSN-21,press\n").await;
    let mut machine = Machine::with_tpm(&emulator, "SN-21").enrolled(&site).await;
    machine.device.attest(&site).await;
    assert_eq!(machine.device.config(&site, "").await.0, StatusCode::OK);
    site.sql("UPDATE identities SET token_ends = 1").await;
    let site = site.restart().await;
    assert_eq!(
        machine.device.config(&site, "").await.0,
        StatusCode::FORBIDDEN
    );
    machine.device.attest(&site).await;
    assert_eq!(machine.device.config(&site, "").await.0, StatusCode::OK);
    an_honest_machine_still_enrols(&site).await;
}
