//! Attestation with a TPM, and what an attacker would try.

use onboarding::attest::{QuoteAnswer, StoreKeysAnswer, device as exchange};
use operator_api::{
    AttestationConclusion, AttestationLevel, ConditionStatus, DevicePhase, VerdictOutcome,
};
use protocol::eve::attest::{AttestVolumeKey, AttestVolumeKeyType, ZAttestQuote, ZAttestReq};
use protocol::eve::certs::ZCertType;
use reqwest::StatusCode;

use crate::device::Device;
use crate::machine::EMPTY_LOG;
use crate::site::Site;
use crate::tpm::Emulator;

async fn registered(site: &Site, emulator: &Emulator, serial: &str) -> Device {
    let mut device = Device::new(serial, Some(emulator.connect()));
    assert_eq!(device.register(site).await, StatusCode::CREATED);
    device.learn_id(site).await;
    device
}

#[tokio::test]
async fn a_quote_opens_the_way_to_the_config() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    let mut device = registered(&site, &emulator, "SN").await;
    device.event_log = Some(EMPTY_LOG.to_vec());
    device.attest(&site).await;
    assert_eq!(device.config(&site, "").await.0, StatusCode::OK);
    let seen = site.device("box-1").await;
    assert_eq!(
        (
            seen.status.phase,
            seen.status.attestation.conclusion,
            seen.status.attestation.level
        ),
        (
            DevicePhase::Online,
            AttestationConclusion::Trusted,
            AttestationLevel::Bronze
        )
    );
    let checks: Vec<_> = seen
        .status
        .attestation
        .verdicts
        .iter()
        .map(|verdict| (verdict.check.as_str(), verdict.outcome))
        .collect();
    for check in [
        "attestationKey",
        "signature",
        "nonce",
        "pcrDigest",
        "eventLog",
        "eventLogReplay",
    ] {
        assert!(
            checks.contains(&(check, VerdictOutcome::Passed)),
            "{check} in {checks:?}"
        );
    }
}

#[tokio::test]
async fn a_quote_without_its_event_log_is_unproven_and_everybody_is_told() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    let mut device = registered(&site, &emulator, "SN").await;
    device.attest(&site).await;
    assert_eq!(
        device.config(&site, "").await.0,
        StatusCode::OK,
        "it works all the same"
    );
    let seen = site.list::<operator_api::Device>().await.remove(0);
    let attestation = &seen.status.attestation;
    assert_eq!(
        (attestation.conclusion, attestation.level),
        (AttestationConclusion::Unproven, AttestationLevel::Bronze)
    );
    assert!(attestation.verdicts.iter().any(|verdict| {
        verdict.check == "eventLogReplay" && verdict.outcome == VerdictOutcome::NotChecked
    }));
    let attested = seen
        .status
        .conditions
        .iter()
        .find(|condition| condition.kind == "Attested")
        .unwrap();
    assert_eq!(
        (attested.status, attested.reason.as_str()),
        (ConditionStatus::False, "NoEventLog")
    );
}

#[tokio::test]
async fn a_quote_is_good_once_also_after_a_restart() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    let mut device = registered(&site, &emulator, "SN").await;
    device.show_certificates(&site).await;
    let nonce = device.nonce(&site).await;
    let quote = device.quote(&nonce);
    let QuoteAnswer::Granted {
        integrity_token, ..
    } = device.show_quote(&site, &quote).await
    else {
        panic!()
    };
    device.token = integrity_token;
    assert_eq!(
        device.show_quote(&site, &quote).await,
        QuoteAnswer::NonceMismatch
    );
    assert_eq!(
        device.config(&site, "").await.0,
        StatusCode::FORBIDDEN,
        "a failed attestation takes the token away"
    );
    let seen = site.device("box-1").await;
    assert_eq!(seen.status.phase, DevicePhase::Refused);
    assert!(
        seen.status
            .attestation
            .verdicts
            .iter()
            .any(|verdict| verdict.check == "nonce" && verdict.outcome == VerdictOutcome::Failed)
    );

    let nonce = device.nonce(&site).await;
    let site = site.restart().await;
    assert_eq!(
        device.show_quote(&site, &quote).await,
        QuoteAnswer::NonceMismatch
    );
    assert_eq!(
        device.show_quote(&site, &device.quote(&nonce)).await,
        QuoteAnswer::NonceMismatch,
        "each try uses the nonce up"
    );
    let nonce = device.nonce(&site).await;
    let site = site.restart().await;
    assert!(
        matches!(
            device.show_quote(&site, &device.quote(&nonce)).await,
            QuoteAnswer::Granted { .. }
        ),
        "nonces survive a restart"
    );
}

#[tokio::test]
async fn another_machines_quote_proves_nothing() {
    let (site, one, two) = (Site::start().await, Emulator::start(), Emulator::start());
    let device = registered(&site, &one, "SN-1").await;
    let healthy = registered(&site, &two, "SN-2").await;
    let nonce = device.nonce(&site).await;
    assert_eq!(
        device.show_quote(&site, &device.quote(&nonce)).await,
        QuoteAnswer::NoCertificate,
        "certificates come first"
    );
    device.show_certificates(&site).await;
    let nonce = device.nonce(&site).await;
    assert_eq!(
        device.show_quote(&site, &healthy.quote(&nonce)).await,
        QuoteAnswer::Refused
    );
    // A machine that has a TPM does not become one without by leaving the quote out.
    let silent = ZAttestReq {
        quote: Some(ZAttestQuote::default()),
        ..device.quote(&nonce)
    };
    assert_eq!(
        device.show_quote(&site, &silent).await,
        QuoteAnswer::Refused
    );
    assert_eq!(device.config(&site, "").await.0, StatusCode::FORBIDDEN);
    // Certificates of another machine's keys are not signed by this device's key.
    let (status, _) = device
        .attest_request(&site, &exchange::certs_request(&healthy.identity))
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn keys_are_kept_and_given_back() {
    let (site, emulator) = (Site::start().await, Emulator::start());
    let mut device = registered(&site, &emulator, "SN").await;
    device.event_log = Some(EMPTY_LOG.to_vec());
    device.attest(&site).await;
    let key = AttestVolumeKey {
        key_type: AttestVolumeKeyType::Vsk.into(),
        key: vec![7; 48],
        ..AttestVolumeKey::default()
    };
    let store = async |token: &[u8]| {
        let request = exchange::store_keys_request(token.to_vec(), vec![key.clone()]);
        let (_, answer) = device.attest_request(&site, &request).await;
        exchange::read_store_keys_answer(&answer.unwrap()).unwrap()
    };
    assert_eq!(store(b"wrong").await, StoreKeysAnswer::TokenMismatch);
    assert_eq!(store(&device.token).await, StoreKeysAnswer::Stored);
    let site = site.restart().await;
    let QuoteAnswer::Granted { keys, .. } = device.attest(&site).await else {
        panic!()
    };
    assert_eq!(keys, [key]);
    // A boot that is not proven gets none of them.
    device.event_log = None;
    let QuoteAnswer::Granted { keys, .. } = device.attest(&site).await else {
        panic!()
    };
    assert_eq!(keys, []);
}

#[tokio::test]
async fn a_device_cannot_say_that_its_attestation_key_may_change() {
    let (site, one, two) = (Site::start().await, Emulator::start(), Emulator::start());
    let mut device = registered(&site, &one, "SN-1").await;
    device.attest(&site).await;
    // The endorsement certificate is signed by nobody who is known here; another one, with the flag, must not take its place.
    let mut request = exchange::certs_request(&device.identity);
    let other = Device::new("SN-2", Some(two.connect()));
    let others = exchange::certs_request(&other.identity);
    let endorsement = others
        .certs
        .into_iter()
        .find(|it| it.r#type() == ZCertType::CertTypeDeviceEndorsementRsa);
    let mut endorsement = endorsement.unwrap();
    endorsement.attributes.as_mut().unwrap().is_mutable = true;
    request
        .certs
        .retain(|it| it.r#type() != ZCertType::CertTypeDeviceEndorsementRsa);
    request.certs.push(endorsement);
    assert_eq!(
        device.attest_request(&site, &request).await.0,
        StatusCode::FORBIDDEN
    );
    device.attest(&site).await;
}
