//! What devices may do, and what not.

use std::collections::HashMap;

use operator_api::{
    App, AppPhase, AttestationConclusion, AttestationLevel, ConditionStatus, Device as Object,
    DevicePhase,
};
use prost::Message as _;
use protocol::envelope;
use protocol::eve::Timestamp;
use protocol::eve::config::{ConfigRequest, VmMode};
use protocol::eve::info::z_info_msg::InfoContent;
use protocol::eve::info::{
    ErrorInfo, ZInfoApp, ZInfoConfigItem, ZInfoConfigItemStatus, ZInfoContentTree, ZInfoDevice,
    ZInfoMsg, ZInfoNetwork, ZSwState,
};
use protocol::eve::metrics::metric_item::MetricItemValue;
use protocol::eve::metrics::z_metric_msg::MetricContent;
use protocol::eve::metrics::{DeviceMetric, MemoryMetric, MetricItem, ZMetricMsg};
use protocol::ids::DeviceId;
use protocol::paths;
use reqwest::StatusCode;

use crate::device::{Device, certificates, post};
use crate::site::{Site, client_config, container};

pub fn now(offset: i64) -> Option<Timestamp> {
    Some(Timestamp {
        seconds: jiff::Timestamp::now().as_second() + offset,
        nanos: 0,
    })
}

pub fn info(content: InfoContent, offset: i64) -> ZInfoMsg {
    ZInfoMsg {
        at_time_stamp: now(offset),
        info_content: Some(content),
        ..ZInfoMsg::default()
    }
}

pub fn app_info(id: &str, state: ZSwState) -> ZInfoApp {
    ZInfoApp {
        app_id: id.to_owned(),
        state: state.into(),
        network: vec![ZInfoNetwork {
            ip_addrs: vec!["10.11.0.5".to_owned()],
            ..ZInfoNetwork::default()
        }],
        ..ZInfoApp::default()
    }
}

#[tokio::test]
async fn apps_move_out_of_the_way_of_an_uplink() {
    let site = Site::start().await;
    let device = Device::attested(&site, "SN").await;
    let subnet = async || {
        let config = device.config(&site, "").await.1.unwrap();
        let network = &config.config.unwrap().network_instances[0];
        (network.ip.clone().unwrap().subnet, config.config_hash)
    };
    let (before, hash) = subnet().await;
    assert_eq!(before, "10.11.0.0/24");
    let told = |address: &str| ZInfoDevice {
        network: vec![ZInfoNetwork {
            dev_name: "eth0".to_owned(),
            ip_addrs: vec![address.to_owned()],
            uplink: true,
            ..ZInfoNetwork::default()
        }],
        ..ZInfoDevice::default()
    };
    let path = paths::info(device.id);
    for (address, offset, wanted) in [
        ("192.0.2.7", -3, "10.11.0.0/24"),
        ("10.11.4.7", -2, "172.27.11.0/24"),
        ("192.0.2.7", -1, "172.27.11.0/24"),
    ] {
        let message = info(InfoContent::Dinfo(told(address)), offset);
        assert_eq!(
            device.send(&site, &path, &message).await.0,
            StatusCode::CREATED
        );
        assert_eq!(subnet().await.0, wanted, "{address}");
        assert_eq!(site.device("box-1").await.status.app_network, wanted);
    }
    assert_eq!(
        device.config(&site, &hash).await.0,
        StatusCode::OK,
        "the device that had the old range is given the new one"
    );
}

#[tokio::test]
async fn a_config_that_the_device_refuses_is_seen_by_operators() {
    let site = Site::start().await;
    let device = Device::attested(&site, "SN").await;
    let item = |value: &str, error: &str| ZInfoConfigItem {
        value: value.to_owned(),
        error: error.to_owned(),
    };
    let told = |items: Vec<(&str, ZInfoConfigItem)>| ZInfoDevice {
        config_item_status: Some(ZInfoConfigItemStatus {
            config_items: items
                .into_iter()
                .map(|(key, item)| (key.to_owned(), item))
                .collect(),
            ..ZInfoConfigItemStatus::default()
        }),
        ..ZInfoDevice::default()
    };
    let path = paths::info(device.id);
    // As pillar puts it, with the config before still in force.
    let reason = "config refused: the signature is not the controller's; the last good one stays";
    let refused = told(vec![
        ("skerry.config.hash", item("the one before", "")),
        ("skerry.trouble.config", item("", reason)),
    ]);
    device
        .send(&site, &path, &info(InfoContent::Dinfo(refused), -2))
        .await;
    let site = site.restart().await;
    for seen in [
        site.device("box-1").await,
        site.list::<Object>().await.remove(0),
    ] {
        let errors: Vec<_> = seen
            .status
            .errors
            .iter()
            .map(|error| (error.source.as_str(), error.message.as_str()))
            .collect();
        assert_eq!(errors, [("config", reason)]);
        assert_eq!(seen.status.config.applied, "the one before");
    }
    let healed = told(vec![("skerry.config.hash", item("the one before", ""))]);
    device
        .send(&site, &path, &info(InfoContent::Dinfo(healed), -1))
        .await;
    assert_eq!(
        site.device("box-1").await.status.errors,
        [],
        "what is over is gone"
    );
}

#[tokio::test]
async fn a_device_comes_to_its_config_and_tells_how_it_fares() {
    let site = Site::start().await;
    assert_eq!(
        site.http
            .get(site.url(paths::PING))
            .send()
            .await
            .unwrap()
            .status(),
        StatusCode::OK
    );
    certificates(&site).await;

    let mut device = Device::new("SN-1", None);
    assert_eq!(device.register(&site).await, StatusCode::CREATED);
    assert_eq!(
        device.register(&site).await,
        StatusCode::OK,
        "the answer was lost, so it asks again"
    );
    device.learn_id(&site).await;
    let seen = site.device("box-1").await;
    assert_eq!(seen.metadata.uid, Some(device.id.0));
    assert_eq!(
        (seen.status.phase, seen.status.hardware.serial.as_str()),
        (DevicePhase::Registered, "SN-1")
    );

    assert_eq!(
        device.config(&site, "").await.0,
        StatusCode::FORBIDDEN,
        "no config before attestation"
    );
    device.attest(&site).await;
    let seen = site.device("box-1").await;
    assert_eq!(
        (
            seen.status.phase,
            seen.status.attestation.conclusion,
            seen.status.attestation.level
        ),
        (
            DevicePhase::Online,
            AttestationConclusion::Unproven,
            AttestationLevel::None
        )
    );
    assert!(
        seen.status
            .attestation
            .verdicts
            .iter()
            .any(|verdict| verdict.detail.contains("no TPM")),
        "it is marked"
    );

    let app = site.deploy("web", "box-1", 8080).await;
    assert_eq!(app.status.phase, AppPhase::Pending);
    let (status, answer) = device.config(&site, "").await;
    assert_eq!(status, StatusCode::OK);
    let answer = answer.unwrap();
    let config = answer.config.unwrap();
    assert_eq!(config.id.unwrap().uuid, device.id.to_string());
    assert_eq!(config.apps[0].displayname, "web");
    assert_eq!(
        config.apps[0]
            .fixedresources
            .as_ref()
            .unwrap()
            .virtualization_mode(),
        VmMode::Hvm
    );
    assert_eq!(
        device.config(&site, &answer.config_hash).await.0,
        StatusCode::NOT_MODIFIED
    );

    let app_id = app.metadata.uid.unwrap().to_string();
    let content = ZInfoContentTree {
        uuid: config.content_info[0].uuid.clone(),
        err: Some(ErrorInfo {
            description: "registry is down".to_owned(),
            ..ErrorInfo::default()
        }),
        ..ZInfoContentTree::default()
    };
    let path = paths::info(device.id);
    assert_eq!(
        device
            .send(&site, &path, &info(InfoContent::Cinfo(content.clone()), -9))
            .await
            .0,
        StatusCode::CREATED
    );
    let seen: App = site.get("web").await;
    assert_eq!(
        (seen.status.phase, seen.status.message.as_str()),
        (AppPhase::Failed, "image: registry is down")
    );
    let healed = ZInfoContentTree {
        err: None,
        state: ZSwState::Loaded.into(),
        ..content
    };
    device
        .send(&site, &path, &info(InfoContent::Cinfo(healed), -8))
        .await;
    device
        .send(
            &site,
            &path,
            &info(InfoContent::Ainfo(app_info(&app_id, ZSwState::Running)), -7),
        )
        .await;
    let item = ZInfoConfigItem {
        value: answer.config_hash.clone(),
        error: String::new(),
    };
    let told = ZInfoDevice {
        machine_arch: "x86_64".to_owned(),
        config_item_status: Some(ZInfoConfigItemStatus {
            config_items: HashMap::from([("skerry.config.hash".to_owned(), item)]),
            ..ZInfoConfigItemStatus::default()
        }),
        ..ZInfoDevice::default()
    };
    device
        .send(&site, &path, &info(InfoContent::Dinfo(told), 0))
        .await;
    let metrics = ZMetricMsg {
        metric_content: Some(MetricContent::Dm(DeviceMetric {
            memory: Some(MemoryMetric {
                used_mem: 100,
                avail_mem: 1900,
                ..MemoryMetric::default()
            }),
            metric_items: vec![MetricItem {
                key: format!("skerry.app.{app_id}.restarts"),
                metric_item_value: Some(MetricItemValue::Uint32Value(2)),
                ..MetricItem::default()
            }],
            ..DeviceMetric::default()
        })),
        ..ZMetricMsg::default()
    };
    assert_eq!(
        device
            .send(&site, &paths::metrics(device.id), &metrics)
            .await
            .0,
        StatusCode::CREATED
    );

    let check = async |site: &Site| {
        let seen: App = site.get("web").await;
        assert_eq!(
            (
                seen.status.phase,
                seen.status.restarts,
                seen.status.message.as_str()
            ),
            (AppPhase::Running, 2, "")
        );
        assert_eq!(seen.status.addresses, ["10.11.0.5"]);
        assert_eq!(
            seen.status.image_digest,
            Some(format!("sha256:{}", "ab".repeat(32)))
        );
        let seen = site.device("box-1").await;
        assert_eq!(seen.status.hardware.architecture, "x86_64");
        assert_eq!(
            seen.status.memory.as_ref().unwrap().available_kib,
            1900 * 1024
        );
        assert_eq!(seen.status.config.applied, answer.config_hash);
        seen
    };
    let seen = check(&site).await;
    let applied = seen
        .status
        .conditions
        .iter()
        .find(|condition| condition.kind == "ConfigApplied")
        .unwrap();
    assert_eq!(applied.status, ConditionStatus::True);

    // A restart forgets nothing: the token is still good, the hash is the same, and so is what was told.
    let site = site.restart().await;
    assert_eq!(
        device.config(&site, &answer.config_hash).await.0,
        StatusCode::NOT_MODIFIED
    );
    check(&site).await;
    assert_eq!(device.register(&site).await, StatusCode::OK);
}

#[tokio::test]
async fn a_change_gives_another_config_and_its_reversal_the_first_one() {
    let site = Site::start().await;
    let device = Device::attested(&site, "SN").await;
    site.deploy("web", "box-1", 8080).await;
    let first = device.config(&site, "").await.1.unwrap().config_hash;
    let (status, _) = site.put("apps/web", &container("web", "box-1", 8081)).await;
    assert_eq!(status, StatusCode::OK);
    let (status, second) = device.config(&site, &first).await;
    assert_eq!(status, StatusCode::OK);
    let second = second.unwrap().config_hash;
    assert_ne!(first, second);
    assert_eq!(
        device.config(&site, &second).await.0,
        StatusCode::NOT_MODIFIED
    );
    site.ask(reqwest::Method::DELETE, "apps/web", None).await;
    let (status, third) = device.config(&site, &second).await;
    assert_eq!(status, StatusCode::OK);
    let third = third.unwrap();
    assert_eq!(third.config.unwrap().apps, []);
}

#[tokio::test]
async fn bad_messages_are_refused_with_the_status_that_eve_expects() {
    let site = Site::start().await;
    let device = Device::attested(&site, "SN-1").await;
    let other = Device::attested(&site, "SN-2").await;
    let stranger = Device::new("SN-3", None);
    let path = paths::config(device.id);
    let payload = ConfigRequest {
        integrity_token: device.token.clone(),
        ..ConfigRequest::default()
    }
    .encode_to_vec();

    let mut forged = device.seal(payload.clone());
    // The signature stands last but for the empty fields; a byte of it is turned.
    let position = forged.len() - 1;
    forged[position] ^= 1;
    // The other device's signature under this device's name.
    let impostor = envelope::seal(payload.clone(), &device.hash(), None, &other.identity).unwrap();
    let cases = [
        ("no body", Vec::new(), StatusCode::UNPROCESSABLE_ENTITY),
        (
            "garbage",
            b"\xff\xff\xff garbage".to_vec(),
            StatusCode::BAD_REQUEST,
        ),
        (
            "garbage under a good signature",
            device.seal(b"\xff\xff\xff".to_vec()),
            StatusCode::BAD_REQUEST,
        ),
        (
            "a turned bit in the signature",
            forged,
            StatusCode::UNAUTHORIZED,
        ),
        (
            "somebody else's signature",
            impostor,
            StatusCode::UNAUTHORIZED,
        ),
        (
            "another device on this path",
            other.seal(payload.clone()),
            StatusCode::FORBIDDEN,
        ),
        (
            "nobody",
            stranger.seal(payload.clone()),
            StatusCode::BAD_REQUEST,
        ),
        (
            "too much",
            vec![0; envelope::MAX_REQUEST + 1],
            StatusCode::PAYLOAD_TOO_LARGE,
        ),
    ];
    for (what, body, wanted) in cases {
        assert_eq!(post(&site, &path, body).await.0, wanted, "{what}");
    }
    assert_eq!(
        device.config_with(&site, "", b"wrong").await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        device.config_with(&site, "", &other.token).await.0,
        StatusCode::FORBIDDEN,
        "a token is good for its device only"
    );
    assert_eq!(
        device.config_with(&site, "", b"").await.0,
        StatusCode::FORBIDDEN
    );
    let nowhere = format!("{}/id/not-a-uuid/config", paths::EVE);
    assert_eq!(
        post(&site, &nowhere, device.seal(payload.clone())).await.0,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        post(
            &site,
            &paths::config(DeviceId::random()),
            device.seal(payload)
        )
        .await
        .0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        device.config(&site, "").await.0,
        StatusCode::OK,
        "after all that it is served as before"
    );
}

#[tokio::test]
async fn registration_takes_our_onboarding_key_and_no_serial_twice() {
    let site = Site::start().await;
    let elsewhere = Site::start().await;
    let device = Device::new("SN-1", None);
    let (status, _) = post(&site, paths::REGISTER, device.registration(&elsewhere)).await;
    assert_eq!(
        status,
        StatusCode::FORBIDDEN,
        "an image of another controller"
    );
    assert_eq!(device.register(&site).await, StatusCode::CREATED);
    assert_eq!(
        Device::new("SN-1", None).register(&site).await,
        StatusCode::CONFLICT
    );
    assert_eq!(
        Device::new("SN-2", None).register(&site).await,
        StatusCode::CREATED
    );
    let (status, _) = post(&site, paths::REGISTER, Vec::new()).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let mut cut = Device::new("SN-3", None).registration(&site);
    cut.truncate(cut.len() / 2);
    assert_eq!(
        post(&site, paths::REGISTER, cut).await.0,
        StatusCode::BAD_REQUEST
    );
    let names: Vec<String> = site
        .list::<Object>()
        .await
        .into_iter()
        .map(|device| device.metadata.name)
        .collect();
    assert_eq!(names, ["box-1", "box-2"]);

    // Deleted, it is a stranger; then it may come again.
    site.ask(reqwest::Method::DELETE, "devices/box-1", None)
        .await;
    let asked = device
        .send(&site, paths::UUID, &protocol::eve::uuid::UuidRequest {})
        .await;
    assert_eq!(asked.0, StatusCode::BAD_REQUEST);
    assert_eq!(device.register(&site).await, StatusCode::CREATED);
    assert_eq!(site.device("box-3").await.status.hardware.serial, "SN-1");
}

#[tokio::test]
async fn what_is_late_or_replayed_changes_nothing() {
    let site = Site::start().await;
    let device = Device::attested(&site, "SN").await;
    let app = site.deploy("web", "box-1", 8080).await;
    let id = app.metadata.uid.unwrap().to_string();
    let path = paths::info(device.id);
    let phase = async || site.get::<App>("web").await.status.phase;
    let old = device
        .seal(info(InfoContent::Ainfo(app_info(&id, ZSwState::Booting)), -60).encode_to_vec());
    assert_eq!(post(&site, &path, old.clone()).await.0, StatusCode::CREATED);
    assert_eq!(phase().await, AppPhase::Starting);
    device
        .send(
            &site,
            &path,
            &info(InfoContent::Ainfo(app_info(&id, ZSwState::Running)), -30),
        )
        .await;
    assert_eq!(phase().await, AppPhase::Running);
    assert_eq!(
        post(&site, &path, old).await.0,
        StatusCode::CREATED,
        "the sender need not keep it"
    );
    assert_eq!(phase().await, AppPhase::Running);
    // A clock that was far ahead, then put right, does not freeze what is shown.
    device
        .send(
            &site,
            &path,
            &info(InfoContent::Ainfo(app_info(&id, ZSwState::Halted)), 86_400),
        )
        .await;
    assert_eq!(phase().await, AppPhase::Stopped);
    device
        .send(
            &site,
            &path,
            &info(InfoContent::Ainfo(app_info(&id, ZSwState::Running)), 0),
        )
        .await;
    assert_eq!(phase().await, AppPhase::Running);
}

#[tokio::test]
async fn a_device_speaks_for_its_own_apps_only() {
    let site = Site::start().await;
    let device = Device::attested(&site, "SN-1").await;
    let other = Device::attested(&site, "SN-2").await;
    let app = site.deploy("web", "box-1", 8080).await;
    let id = app.metadata.uid.unwrap().to_string();
    other
        .send(
            &site,
            &paths::info(other.id),
            &info(InfoContent::Ainfo(app_info(&id, ZSwState::Running)), 0),
        )
        .await;
    assert_eq!(site.get::<App>("web").await.status.phase, AppPhase::Pending);
    device
        .send(
            &site,
            &paths::info(device.id),
            &info(InfoContent::Ainfo(app_info(&id, ZSwState::Running)), 0),
        )
        .await;
    assert_eq!(site.get::<App>("web").await.status.phase, AppPhase::Running);
}

#[tokio::test]
async fn the_rest_of_eves_messages_is_taken() {
    let site = Site::start().await;
    let device = Device::attested(&site, "SN").await;
    let flows = protocol::eve::flowlog::FlowMessage::default();
    assert_eq!(
        device
            .send(&site, &paths::flowlog(device.id), &flows)
            .await
            .0,
        StatusCode::CREATED
    );
    let health = protocol::eve::hardwarehealth::ZHardwareHealth {
        dev_id: device.id.to_string(),
        ..Default::default()
    };
    assert_eq!(
        device
            .send(&site, &paths::hardware_health(device.id), &health)
            .await
            .0,
        StatusCode::CREATED
    );
    let foreign = ZInfoMsg {
        dev_id: DeviceId::random().to_string(),
        ..info(InfoContent::Dinfo(ZInfoDevice::default()), 0)
    };
    assert_eq!(
        device
            .send(&site, &paths::info(device.id), &foreign)
            .await
            .0,
        StatusCode::BAD_REQUEST
    );
}

/// EVE's own client pins the suite ECDHE-ECDSA-AES256-GCM-SHA384 under TLS 1.2.
#[tokio::test]
async fn eves_tls_suite_is_offered() {
    let site = Site::start().await;
    let config = client_config(&site.bundle, &[&rustls::version::TLS12]);
    let provider = rustls::crypto::CryptoProvider {
        cipher_suites: vec![
            rustls::crypto::ring::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        ],
        ..rustls::crypto::ring::default_provider()
    };
    let mut roots = rustls::RootCertStore::empty();
    let root = site.bundle.tls_root_certificates.as_bytes();
    roots
        .add(rustls_pki_types::pem::PemObject::from_pem_slice(root).unwrap())
        .unwrap();
    let pinned = rustls::ClientConfig::builder_with_provider(std::sync::Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    for config in [(*config).clone(), pinned] {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .build()
            .unwrap();
        assert_eq!(
            http.get(site.url(paths::PING))
                .send()
                .await
                .unwrap()
                .status(),
            StatusCode::OK
        );
    }
    let by_address = format!("https://127.0.0.1:{}{}", site.address.port(), paths::PING);
    assert_eq!(
        site.http.get(by_address).send().await.unwrap().status(),
        StatusCode::OK
    );
}
