//! The agent against a controller of the test's own: enrolment, attestation, config, and everything that can be wrong
//! with them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod device;
mod door;
mod enrolment;
mod pki;
mod power_cut;
mod real;
mod refusal;
mod site;
mod telemetry;
mod tpm;

use std::time::SystemTime;

use protocol::eve::common::Ipspec;
use protocol::eve::config::{
    ConfigItem, EdgeDevConfig, NetworkInstanceConfig, UuiDandVersion, ZNetworkInstType,
};
use protocol::eve::info::z_info_msg::InfoContent;
use protocol::eve::info::{AttestationState, ZInfoDevice};
use uuid::Uuid;

use device::{Device, Running};
use site::{Answer, Site, State};

/// A config with one network of the given name: enough to see whether it is in force.
fn config(name: &str) -> EdgeDevConfig {
    EdgeDevConfig {
        network_instances: vec![NetworkInstanceConfig {
            uuidandversion: Some(UuiDandVersion {
                uuid: Uuid::from_u128(7).to_string(),
                version: "1".into(),
            }),
            displayname: name.into(),
            inst_type: ZNetworkInstType::ZnetInstLocal.into(),
            activate: true,
            ip: Some(Ipspec {
                subnet: "10.1.0.0/24".into(),
                ..Ipspec::default()
            }),
            ..NetworkInstanceConfig::default()
        }],
        // The shortest that EVE allows, so that a test without link need not wait long.
        config_items: vec![ConfigItem {
            key: "timer.config.interval".into(),
            value: "5".into(),
        }],
        device_name: "box".into(),
        ..EdgeDevConfig::default()
    }
}

fn names(desired: &pillar::domain::desired::Desired) -> Vec<String> {
    desired
        .networks
        .values()
        .map(|network| network.name.clone())
        .collect()
}

async fn in_force(running: &mut Running, name: &str) {
    running.desires(|desired| names(desired) == [name]).await;
}

fn device_infos(state: &State) -> Vec<ZInfoDevice> {
    let devices = state
        .infos
        .iter()
        .filter_map(|message| match &message.info_content {
            Some(InfoContent::Dinfo(device)) => Some(device.clone()),
            _ => None,
        });
    devices.collect()
}

/// The text of a trouble as the controller was told last.
fn trouble(state: &State, topic: &str) -> Option<String> {
    let items = device_infos(state).pop()?.config_item_status?.config_items;
    items
        .get(&format!("skerry.trouble.{topic}"))
        .map(|item| item.error.clone())
}

async fn started(site: &Site) -> (Device, Running) {
    site.with(|state| state.config = config("one"));
    let device = Device::new(site);
    let mut running = device.start();
    in_force(&mut running, "one").await;
    // From here on changes are told.
    site.until("the link is open", |state| (state.proofs > 0).then_some(()))
        .await;
    (device, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_a_tpm_enrols_attests_and_is_what_it_should_be() {
    let site = Site::start().await;
    let (_device, running) = started(&site).await;
    let id = site.with(|state| state.device);
    assert_eq!(
        running.line("skerry: starting").await,
        "skerry: starting 1.2.3"
    );
    let enrolled = running.line("skerry: enrolled").await;
    assert_eq!(
        enrolled,
        format!(
            "skerry: enrolled as {id} at localhost:{}",
            site.address.port()
        )
    );
    running.line("skerry: attested").await;
    assert_eq!(
        running.line("skerry: config applied").await,
        "skerry: config applied first"
    );

    let info = site
        .until("device info says so", |state| {
            device_infos(state).into_iter().find(|info| {
                info.device_name == "box"
                    && info.attestation_info.as_ref().unwrap().state() == AttestationState::Complete
            })
        })
        .await;
    assert_eq!(info.sw_list[0].short_version, "1.2.3");
    assert_eq!(
        info.config_item_status.unwrap().config_items["skerry.config.hash"].value,
        "first"
    );
    site.until("the second question finds nothing new", |state| {
        (state.not_modified > 0).then_some(())
    })
    .await;
    site.with(|state| {
        // Without a TPM there is nothing to verify, and versions are told all the same.
        assert_eq!(state.quotes[0].1.system, "1.2.3");
        assert_eq!(
            state.headers["/api/v2/edgedevice/register x-soft-serial"],
            "soft-1"
        );
        assert!(!state.headers["/api/v2/edgedevice/register x-serial-number"].is_empty());
        assert!(
            !state
                .headers
                .contains_key(&format!("/api/v2/edgedevice/id/{id}/config x-soft-serial"))
        );
        assert_eq!(
            state.headers["/api/v2/edgedevice/uuid content-type"],
            "application/x-proto-binary"
        );
    });
    let metrics = site
        .until("metrics come", |state| state.metrics.first().cloned())
        .await;
    assert_eq!(metrics.dev_id, id.to_string());
    assert!(
        metrics
            .pr
            .iter()
            .any(|process| process.name == "pillar" && process.rss_bytes > 1 << 20)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_a_tpm_shows_a_quote_that_holds() {
    let site = Site::start().await;
    site.with(|state| state.config = config("one"));
    let device = Device::new(&site).with_tpm();
    let mut running = device.start();
    in_force(&mut running, "one").await;
    site.with(|state| {
        assert!(state.attestation_certificate.is_some());
        assert_eq!(
            state.quotes.iter().map(|quote| quote.0).collect::<Vec<_>>(),
            [true]
        );
    });
    let before = site.with(|state| state.registered.clone());
    running.cut().await;

    // The second start finds the same keys again and asks nobody for an id first.
    site.with(|state| state.seen.clear());
    let running = device.start();
    running.line("skerry: attested").await;
    assert_eq!(site.with(|state| state.registered.clone()), before);
    let registered = site.with(|state| {
        state
            .seen
            .iter()
            .any(|request| request.contains("register"))
    });
    assert!(!registered, "a device that is known needs no registration");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_is_no_good_is_refused_and_the_last_good_one_stays() {
    let site = Site::start().await;
    let (_device, mut running) = started(&site).await;
    let table = [
        (Answer::BadSignature, "signature is wrong"),
        (Answer::StrangeSigner, "was signed by"),
        (Answer::OtherDevice, "it is for device"),
        (Answer::NotAConfig, "ConfigResponse"),
        (Answer::NotAnEnvelope, "AuthContainer"),
    ];
    for (index, (answer, reason)) in table.into_iter().enumerate() {
        let told = format!("{answer:?}");
        site.with(|state| state.config = config("evil"));
        site.answer_with(answer);
        let text = site
            .until(&format!("{told} is told"), |state| {
                trouble(state, "config").filter(|text| text.contains(reason))
            })
            .await;
        assert!(
            text.starts_with("config refused: ") && text.ends_with("; the last good one stays"),
            "{text}"
        );
        assert!(
            running
                .lines()
                .iter()
                .any(|line| line.starts_with("skerry: trouble: ") && line.contains(reason))
        );
        assert_eq!(
            names(&running.desired.borrow()),
            [if index == 0 {
                "one".to_owned()
            } else {
                format!("good{}", index - 1)
            }]
        );

        let good = format!("good{index}");
        site.configure(&good, config(&good));
        in_force(&mut running, &good).await;
        site.until("the trouble is over", |state| {
            trouble(state, "config").is_none().then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_controller_a_device_starts_from_the_checkpoint() {
    let site = Site::start().await;
    let (device, running) = started(&site).await;
    running.cut().await;

    site.with(|state| state.down = true);
    let mut running = device.start();
    in_force(&mut running, "one").await;
    assert_eq!(
        running.line("skerry: config applied").await,
        "skerry: config applied first from checkpoint"
    );
    running.line("skerry: trouble: controller localhost:").await;

    // Back again: the device finds its controller by itself.
    site.with(|state| {
        state.down = false;
        state.config = config("two");
        state.hash = "second".into();
    });
    in_force(&mut running, "two").await;
    site.until("the trouble is over", |state| {
        trouble(state, "controller").is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_the_controller_did_not_sign_for_this_device_is_not_followed() {
    let site = Site::start().await;
    let (device, running) = started(&site).await;
    running.cut().await;
    site.with(|state| state.down = true);

    let file = pillar::config::checkpoint::file(device.paths());
    let good = pillar::generations::read(&file).unwrap().unwrap();
    let mut bad = good.clone();
    let last = bad.len() - 1;
    bad[last] ^= 1;
    for (content, reason) in [
        (bad, "signature is wrong"),
        (b"garbage".to_vec(), "checkpoint: "),
    ] {
        pillar::generations::write(&file, &content).unwrap();
        let running = device.start();
        let line = running.line("skerry: trouble: checkpoint: ").await;
        assert!(line.contains(reason), "{line}");
        assert!(names(&running.desired.borrow()).is_empty());
        running.cut().await;
    }

    // A file that a dying disk damaged: the generation before it serves.
    pillar::generations::write(&file, &good).unwrap();
    pillar::generations::write(&file, &good).unwrap();
    std::fs::write(&file, b"").unwrap();
    let mut running = device.start();
    in_force(&mut running, "one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_no_longer_good_leads_to_a_new_quote() {
    let site = Site::start().await;
    let (_device, mut running) = started(&site).await;
    let before = site.with(|state| {
        state.token = Some(b"forgotten".to_vec());
        state.quotes.len()
    });
    site.configure("second", config("two"));
    in_force(&mut running, "two").await;
    let quotes = site.with(|state| state.quotes.len());
    assert_eq!(quotes, before + 1, "one new quote and no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_quote_is_told_and_the_device_is_not_configured() {
    let site = Site::start().await;
    site.with(|state| {
        state.config = config("one");
        state.refuse_quotes = true;
    });
    let device = Device::new(&site);
    let running = device.start();
    running
        .line("skerry: trouble: attestation: the controller refuses")
        .await;
    let error = site
        .until("device info tells it", |state| {
            device_infos(state).pop()?.attestation_info?.error
        })
        .await;
    assert!(error.description.contains("refuses"), "{error:?}");
    assert!(names(&running.desired.borrow()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_changes_its_signing_key_is_followed() {
    let site = Site::start().await;
    let (_device, mut running) = started(&site).await;
    let signing = site.root.signing(site::NOW);
    site.with(|state| state.signing = signing);
    site.configure("second", config("two"));
    in_force(&mut running, "two").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_of_somebody_else_is_not_followed() {
    let site = Site::start().await;
    site.with(|state| {
        state.config = config("one");
        std::mem::swap(&mut state.signing, &mut state.stranger);
    });
    let device = Device::new(&site);
    let running = device.start();
    let line = running.line("skerry: trouble: not enrolled").await;
    assert!(line.contains("root-certificate.pem"), "{line}");
    assert!(
        site.with(|state| state.registered.is_none()),
        "nothing was shown to it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_far_off_does_not_keep_a_device_away() {
    // To a clock that says today, certificates from 2100 are what today's are to one that stands at 1970.
    let site = Site::start_valid((2100, 2110)).await;
    let (device, running) = started(&site).await;
    running.cut().await;
    // And the checkpoint, whose certificates are from 2100 too.
    site.with(|state| state.down = true);
    let mut running = device.start();
    in_force(&mut running, "one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn once_the_time_is_known_certificates_must_be_valid_at_it() {
    let site = Site::start_valid((2100, 2110)).await;
    let root = rustls_root(&site);
    let dial = |clock: pillar::clock::Clock| {
        let tls = pillar::tls::client_config(&root, clock).unwrap();
        let address = site.address;
        async move {
            let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            tokio_rustls::TlsConnector::from(tls)
                .connect("localhost".try_into().unwrap(), tcp)
                .await
        }
    };
    let clock = pillar::clock::Clock::unset(SystemTime::now());
    dial(clock.clone()).await.unwrap();
    clock.learn("Fri, 20 Nov 2026 20:00:00 GMT");
    let now = jiff::Timestamp::now()
        .strftime("%a, %d %b %Y %H:%M:%S GMT")
        .to_string();
    clock.learn(&now);
    assert!(clock.trusted());
    let error = dial(clock).await.unwrap_err().to_string();
    assert!(
        error.contains("NotValidYet") || error.contains("not valid yet"),
        "{error}"
    );
    // Another root is refused whatever the time.
    let other = pki::Root::new();
    let other = pillar::bundle::certificates(other.pem.as_bytes()).unwrap();
    let tls =
        pillar::tls::client_config(&other, pillar::clock::Clock::unset(SystemTime::now())).unwrap();
    let tcp = tokio::net::TcpStream::connect(site.address).await.unwrap();
    let refused = tokio_rustls::TlsConnector::from(tls)
        .connect("localhost".try_into().unwrap(), tcp)
        .await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
}

fn rustls_root(site: &Site) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    pillar::bundle::certificates(site.root.pem.as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_its_bundle_says_so_and_goes_on_when_it_is_there() {
    let site = Site::start().await;
    site.with(|state| state.config = config("one"));
    let device = Device::new(&site);
    let file = device.config_file("server");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let mut running = device.start();
    let line = running.line("skerry: trouble: read").await;
    assert!(line.contains("server"), "{line}");
    std::fs::write(&file, text).unwrap();
    in_force(&mut running, "one").await;
}
