//! Zero-touch enrolment: the agent against a controller of the test's own. Attacks and faults have the number of their row in the book's
//! page "Enrolment".

use onboarding::enrol::mark;
use pillar::grant::Level;
use prost::Message as _;
use protocol::cipher::{self, BlockKey, Point};
use protocol::enrolment::image::{Enrolment, Home, Way};
use protocol::enrolment::owner::Pinned;
use protocol::eve::common::EncryptionBlock;
use protocol::eve::config::{ConfigItem, DatastoreConfig, DsType, EdgeDevConfig};
use protocol::ids::DatastoreId;
use protocol::keys::CertHash;
use protocol::paths;
use uuid::Uuid;

use crate::device::{Device, Running};
use crate::door::{Admission, Door, Owner};
use crate::site::{Fault, Portal, Site, State};
use crate::{config, device_infos, in_force, names, pki};

const ZERO_TOUCH: &[Way] = &[Way::ZeroTouch];
const BOTH: &[Way] = &[Way::ZeroTouch, Way::Eve];

/// A controller with a zero-touch door, and what an image of its owner says.
pub async fn site(order: &[Way]) -> (Site, Enrolment) {
    site_valid(crate::site::NOW, order).await
}

async fn site_valid(years: (i32, i32), order: &[Way]) -> (Site, Enrolment) {
    let site = Site::start_valid(years).await;
    let door = Door::new();
    let enrolment = door.enrolment(order);
    site.with(|state| {
        state.config = config("one");
        state.door = Some(door);
    });
    (site, enrolment)
}

pub fn with_door<T>(site: &Site, look: impl FnOnce(&mut Door) -> T) -> T {
    site.with(|state| look(state.door.as_mut().unwrap()))
}

fn grant(device: &Device) -> pillar::grant::Grant {
    let bytes = pillar::generations::read(&pillar::grant::file(device.paths()));
    pillar::grant::Grant::parse(&bytes.unwrap().unwrap()).unwrap()
}

/// Nothing lasting was accepted, and nothing was shown.
fn nothing_came_of_it(site: &Site, device: &Device) {
    assert!(!device.has_grant());
    site.with(|state| {
        assert!(state.registered.is_none());
        assert!(
            !state
                .seen
                .iter()
                .any(|request| request.contains("register")),
            "{:?}",
            state.seen
        );
    });
}

/// An honest device still enrols: the same one, as soon as the world is in order.
async fn enrols_now(mut running: Running) -> Running {
    running.line("skerry: enrolled as ").await;
    in_force(&mut running, "one").await;
    running
}

fn level(state: &State) -> Option<String> {
    let items = device_infos(state).pop()?.config_item_status?.config_items;
    items
        .get("skerry.enrolment.level")
        .map(|item| item.value.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_enrols_without_a_secret_and_needs_no_second_quote() {
    let (site, enrolment) = site(ZERO_TOUCH).await;
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    let mut running = device.start();
    let line = running.line("skerry: enrolled as ").await;
    let id = site.with(|state| state.device);
    assert!(line.contains(&id.to_string()), "{line}");
    in_force(&mut running, "one").await;
    site.until("the level is told", |state| {
        level(state).filter(|level| level == "bronze")
    })
    .await;
    site.with(|state| {
        assert!(
            state.quotes.is_empty(),
            "the grant's token stands for a quote"
        );
        assert!(
            state
                .headers
                .keys()
                .all(|name| !name.ends_with("x-serial-number"))
        );
        let granted = CertHash::of_der(state.registered.as_ref().unwrap());
        assert!(state.senders.iter().all(|sender| *sender == granted));
    });
    let owner = grant(&device).owner;
    assert_eq!(
        (grant(&device).device, owner.epoch, owner.delegation),
        (id, 1, 1)
    );
    running.cut().await;
    let marked = mark::read(&device.tpm.as_ref().unwrap().connect()).unwrap();
    assert_eq!(
        marked.map(|mark| (mark.epoch, mark.root)),
        Some((1, owner.root))
    );

    // The next boot asks nobody who it is, and quotes.
    site.with(|state| state.seen.clear());
    let running = device.start();
    running.line("skerry: attested").await;
    site.until("it has quoted", |state| {
        (state.quotes.len() == 1).then_some(())
    })
    .await;
    site.with(|state| {
        assert!(!state.seen.iter().any(|request| request.contains("enrol")));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_waits_with_its_words_until_it_is_approved() {
    let (site, enrolment) = site(BOTH).await;
    with_door(&site, |door| door.admission = Admission::Wait);
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    let running = device.start();
    let line = running.line("skerry: waiting for approval: ").await;
    site.until("it has asked again", |state| {
        (state.door.as_ref()?.hellos > 1).then_some(())
    })
    .await;
    let words = with_door(&site, |door| {
        door.judged[0].proven.as_ref().unwrap().machine.words()
    });
    assert_eq!(line, format!("skerry: waiting for approval: {words}"));
    assert_eq!(words.split(' ').count(), 8);
    // It may wait for hours, and does not try EVE's way meanwhile.
    nothing_came_of_it(&site, &device);
    with_door(&site, |door| door.admission = Admission::Grant);
    let running = enrols_now(running).await;
    assert!(!running.lines().iter().any(|line| line.contains("trouble")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_machine_says_why_and_keeps_asking() {
    let (site, enrolment) = site(BOTH).await;
    with_door(&site, |door| {
        door.admission = Admission::Deny("it was reported stolen");
    });
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    let running = device.start();
    let line = running.line("skerry: trouble: not enrolled: ").await;
    assert!(
        line.contains("keeps this machine out") && line.ends_with("it was reported stolen"),
        "{line}"
    );
    running.line("skerry: not enrolled: ").await;
    nothing_came_of_it(&site, &device);
    with_door(&site, |door| door.admission = Admission::Grant);
    enrols_now(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_leads_to_eves_way_at_a_controller_that_knows_no_other() {
    let (site, enrolment) = site(BOTH).await;
    site.with(|state| state.door = None);
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    let running = enrols_now(device.start()).await;
    site.with(|state| {
        let at = |path: &str| state.seen.iter().position(|seen| seen.contains(path));
        assert!(at("enrol/hello").unwrap() < at("register").unwrap());
    });
    assert!(!device.has_grant());
    running.cut().await;
    // A device that a fleet knows by EVE's way goes on by it, also at a controller that learned the other.
    site.with(|state| {
        state.door = Some(Door::new());
        state.seen.clear();
    });
    let running = device.start();
    running.line("skerry: attested").await;
    assert_eq!(with_door(&site, |door| door.hellos), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_eves_way_never_registers() {
    let (site, enrolment) = site(ZERO_TOUCH).await;
    let door = site.with(|state| state.door.take());
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    let running = device.start();
    let line = running.line("skerry: trouble: not enrolled: ").await;
    assert!(
        line.contains("does not enrol without an onboarding key"),
        "{line}"
    );
    nothing_came_of_it(&site, &device);
    site.with(|state| state.door = door);
    enrols_now(running).await;
}

/// Its certificate is good, it even has the sealing key (somebody sold a backup), but no root of the owner speaks for it.
#[tokio::test(flavor = "multi_thread")]
async fn row_7_a_rogue_controller_with_a_valid_web_certificate() {
    let (site, enrolment) = site(ZERO_TOUCH).await;
    let honest = with_door(&site, |door| {
        std::mem::replace(&mut door.owner, Owner::new())
    });
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    let running = device.start();
    let line = running.line("skerry: trouble: not enrolled: ").await;
    assert!(line.contains("this device belongs to"), "{line}");
    nothing_came_of_it(&site, &device);
    assert!(
        with_door(&site, |door| door.judged.is_empty()),
        "no evidence was shown"
    );

    // Without the sealing key it cannot even read the Hello.
    let first = site.with(|state| state.door.replace(Door::new())).unwrap();
    site.with(|state| state.seen.clear());
    site.until("it has asked the other rogue", |state| {
        (!state.seen.is_empty()).then_some(())
    })
    .await;
    nothing_came_of_it(&site, &device);
    assert!(with_door(&site, |door| door.inside.is_empty()));

    let mut door = first;
    door.owner = honest;
    site.with(|state| state.door = Some(door));
    let running = enrols_now(running).await;
    running.cut().await;

    // A thief's stick, whose owner claims to be a later one: the TPM knows better.
    device.wipe();
    let mut thief = Door::new();
    thief.owner.pinned.epoch = 900;
    device.set_image(&thief.enrolment(ZERO_TOUCH), "2026-01-01T00:00:00Z");
    let ours = site.with(|state| {
        state.registered = None;
        state.seen.clear();
        state.door.replace(thief)
    });
    let running = device.start();
    let line = running.line("skerry: trouble: not enrolled: ").await;
    assert!(line.contains("this device belongs to"), "{line}");
    nothing_came_of_it(&site, &device);
    running.cut().await;
    site.with(|state| state.door = ours);
    device.set_image(&enrolment, "2026-01-01T00:00:00Z");
    enrols_now(device.start()).await;
}

/// The owner's next root has taken over while the box stood on its shelf.
#[tokio::test(flavor = "multi_thread")]
async fn a_succession_of_the_owner_is_followed_and_never_taken_back() {
    let (site, enrolment) = site(ZERO_TOUCH).await;
    let before = with_door(&site, |door| {
        let before = door.owner.chain.clone();
        door.owner.succeed();
        before
    });
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    let running = enrols_now(device.start()).await;
    assert_eq!(grant(&device).owner.epoch, 2);
    running.cut().await;
    // Disk and image are of yesterday; the mark is not.
    device.wipe();
    let now = with_door(&site, |door| {
        std::mem::replace(&mut door.owner.chain, before)
    });
    let running = device.start();
    let line = running.line("skerry: trouble: not enrolled: ").await;
    assert!(line.contains("root key"), "{line}");
    with_door(&site, |door| door.owner.chain = now);
    enrols_now(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_behind_the_image_is_not_followed() {
    let (site, enrolment) = site(ZERO_TOUCH).await;
    let home = enrolment.home().unwrap();
    // An image of the second root, on a machine that the first one marked.
    let second = with_door(&site, |door| Pinned {
        epoch: 2,
        root: protocol::enrolment::owner::root_hash(&door.owner.next.point),
        next: home.owner.root,
        delegation: 0,
    });
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    enrols_now(device.start()).await.cut().await;
    device.wipe();
    let newer = Home {
        owner: second,
        controller: home.controller,
    };
    let newer = Enrolment::new(ZERO_TOUCH.to_vec(), Some(newer)).unwrap();
    device.set_image(&newer, "2026-01-01T00:00:00Z");
    let running = device.start();
    let line = running.line("skerry: trouble: not enrolled: ").await;
    assert!(line.contains("this image is of epoch 2"), "{line}");
    assert!(!device.has_grant());
    with_door(&site, |door| door.owner.succeed());
    enrols_now(running).await;
}

/// To a clock that says today, a world in another year is what today's world is to a clock in another year: 1970, 2018, 2038, 2099.
async fn enrols_in_a_world_of(years: (i32, i32), built_at: &str, now: &str) {
    let (site, enrolment) = site_valid(years, ZERO_TOUCH).await;
    let now: jiff::Timestamp = now.parse().unwrap();
    let date = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    site.with(|state| {
        state.date = Some(date);
        state.granted_years = years;
    });
    with_door(&site, |door| door.now_ms = now.as_millisecond());
    let device = Device::new(&site).with_tpm();
    device.set_image(&enrolment, built_at);
    let running = enrols_now(device.start()).await;
    running.cut().await;
    // And from what it kept.
    let running = device.start();
    running.line("skerry: attested").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_10_a_clock_at_1970() {
    enrols_in_a_world_of((2080, 2090), "2080-06-01T00:00:00Z", "2082-11-20T20:00:00Z").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_10_a_clock_at_2018() {
    enrols_in_a_world_of((2033, 2036), "2033-06-01T00:00:00Z", "2034-11-20T20:00:00Z").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_10_a_clock_at_2038() {
    enrols_in_a_world_of((2013, 2016), "2013-06-01T00:00:00Z", "2014-11-20T20:00:00Z").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_10_a_clock_at_2099() {
    enrols_in_a_world_of((1971, 1975), "1971-06-01T00:00:00Z", "1972-11-20T20:00:00Z").await;
}

/// A box that stood on a shelf until its certificate was long over is let in again after a fresh quote, under its old name.
#[tokio::test(flavor = "multi_thread")]
async fn row_10_a_certificate_that_expired_on_the_shelf() {
    let (site, enrolment) = site(ZERO_TOUCH).await;
    site.with(|state| state.granted_years = (2020, 2021));
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    let running = device.start();
    running.line("skerry: enrolled as ").await;
    let (before, id) = (grant(&device), site.with(|state| state.device));
    running.cut().await;
    site.with(|state| {
        state.granted_years = (2026, 2090);
        state.registered = None;
    });
    let running = device.start();
    let old = CertHash::of_der(&before.certificate);
    site.until("it speaks under another certificate", |state| {
        (*state.senders.last()? != old).then_some(())
    })
    .await;
    enrols_now(running).await;
    assert_ne!(grant(&device).certificate, before.certificate);
    assert_eq!(
        (grant(&device).device, site.with(|state| state.device)),
        (id, id)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_by_the_same_flights() {
    let (site, enrolment) = site(ZERO_TOUCH).await;
    // Two thirds of its life are over.
    site.with(|state| state.granted_years = (2020, 2028));
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    let running = enrols_now(device.start()).await;
    let before = grant(&device);
    running.cut().await;
    site.with(|state| {
        state.granted_years = (2026, 2090);
        state.senders.clear();
    });
    let running = device.start();
    let old = CertHash::of_der(&before.certificate);
    site.until("it speaks under another certificate", |state| {
        (*state.senders.last()? != old).then_some(())
    })
    .await;
    let after = grant(&device);
    assert_ne!(after.certificate, before.certificate);
    assert_eq!(after.device, before.device);
    let mut running = enrols_now(running).await;
    site.configure("second", config("two"));
    in_force(&mut running, "two").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_11_a_captive_portal() {
    for portal in [Portal::Redirect, Portal::Page] {
        let (site, enrolment) = site(BOTH).await;
        site.with(|state| state.portal = Some(portal));
        let device = Device::new(&site).enrolling(&enrolment).with_tpm();
        let running = device.start();
        let line = running.line("skerry: trouble: controller ").await;
        assert!(line.contains("captive portal"), "{line}");
        nothing_came_of_it(&site, &device);
        site.with(|state| state.portal = None);
        enrols_now(running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_11_a_proxy_that_opens_tls() {
    let (site, enrolment) = site(BOTH).await;
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    // The image trusts another root than the one that is shown.
    let put = |name: &str, text: &str| std::fs::write(device.config_file(name), text).unwrap();
    let other = pki::Root::new().pem;
    put("v2tlsbaseroot-certificates.pem", &other);
    put("root-certificate.pem", &other);
    let running = device.start();
    let line = running.line("skerry: trouble: controller ").await;
    assert!(line.contains("something in between opens TLS"), "{line}");
    nothing_came_of_it(&site, &device);
    assert_eq!(with_door(&site, |door| door.hellos), 0);
    running.cut().await;
    // The proxy's root is put into the image: it carries what it cannot read.
    put("v2tlsbaseroot-certificates.pem", &site.root.pem);
    put("root-certificate.pem", &site.root.pem);
    enrols_now(device.start()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_11_no_name_server() {
    let (site, enrolment) = site(BOTH).await;
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    let server = device.config_file("server");
    let good = std::fs::read_to_string(&server).unwrap();
    // RFC 6761, section 6.4: nobody has such a name.
    std::fs::write(&server, "controller.invalid:443\n").unwrap();
    let running = device.start();
    let line = running
        .line("skerry: trouble: controller controller.invalid")
        .await;
    assert!(line.contains("name servers do not know it"), "{line}");
    running.cut().await;
    std::fs::write(&server, good).unwrap();
    enrols_now(device.start()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_12_a_request_or_an_answer_lost_at_each_flight() {
    for path in [paths::ENROL_HELLO, paths::ENROL_EVIDENCE] {
        for fault in [Fault::Request, Fault::Answer] {
            let (site, enrolment) = site(ZERO_TOUCH).await;
            site.with(|state| state.faults.push((path, fault)));
            let device = Device::new(&site).enrolling(&enrolment).with_tpm();
            enrols_now(device.start()).await;
            site.with(|state| {
                assert!(state.faults.is_empty());
                let door = state.door.as_ref().unwrap();
                assert_eq!(door.devices.len(), 1);
                // The same evidence is judged once, however often it is sent.
                assert_eq!(door.judged.len(), 1, "{path} {fault:?}");
            });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_13_a_machine_without_a_tpm_is_of_level_none() {
    let (site, enrolment) = site(ZERO_TOUCH).await;
    with_door(&site, |door| door.admission = Admission::Wait);
    let device = Device::new(&site).enrolling(&enrolment);
    let running = device.start();
    running.line("skerry: waiting for approval: ").await;
    with_door(&site, |door| door.admission = Admission::Grant);
    enrols_now(running).await;
    assert_eq!(grant(&device).level, Level::None);
    site.until("the level is told", |state| {
        level(state).filter(|level| level == "none")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_13_a_tpm_in_lockout() {
    let (site, enrolment) = site(ZERO_TOUCH).await;
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    device.tpm.as_ref().unwrap().lock_out();
    // None of our keys counts wrong passwords, so somebody else's do not keep us out.
    enrols_now(device.start()).await.cut().await;
    let marked = mark::read(&device.tpm.as_ref().unwrap().connect()).unwrap();
    assert_eq!(marked.map(|mark| mark.epoch), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn row_17_a_wiped_machine_enrols_again_under_its_name() {
    let (site, enrolment) = site(ZERO_TOUCH).await;
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    let running = enrols_now(device.start()).await;
    let (before, first) = (grant(&device), site.with(|state| state.registered.clone()));
    running.cut().await;
    device.wipe();
    enrols_now(device.start()).await;
    let after = grant(&device);
    assert_eq!(after.device, before.device);
    assert_ne!(after.certificate, before.certificate);
    site.with(|state| assert_ne!(state.registered, first));
}

/// What a proxy sees that opens TLS: none of the names by which the machine could be known again.
#[tokio::test(flavor = "multi_thread")]
async fn row_18_the_endorsement_key_does_not_stand_on_the_wire() {
    let (site, enrolment) = site(ZERO_TOUCH).await;
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    let mut running = enrols_now(device.start()).await;
    site.configure("second", config("two"));
    in_force(&mut running, "two").await;
    running.cut().await;
    let running = device.start();
    site.until("it has quoted", |state| {
        (!state.quotes.is_empty()).then_some(())
    })
    .await;
    running.line("skerry: attested").await;
    site.with(|state| {
        let door = state.door.as_ref().unwrap();
        let proven = door.judged[0].proven.as_ref().unwrap();
        let hello = proven.hello.tpm().unwrap();
        let endorsement = hello.endorsement.to_bytes();
        // The key's own numbers: what stands before them is the same in every TPM.
        let number = &endorsement[endorsement.len() - 32..];
        let holds = |bytes: &[u8], wanted: &[u8]| bytes.windows(wanted.len()).any(|w| w == wanted);
        assert!(
            door.inside.iter().any(|inside| holds(inside, number)),
            "the search finds it where it is"
        );
        let id = proven.machine.to_string();
        for (what, bytes) in [
            ("the endorsement key", number),
            ("its name", proven.machine.bytes().as_slice()),
            ("its name in digits", id.as_bytes()),
            ("the secret", proven.secret.expose().as_slice()),
        ] {
            assert!(!holds(&state.wire, bytes), "{what} stands on the wire");
        }
        for text in [hex::encode(number), proven.machine.words()] {
            assert!(
                !holds(&state.wire, text.as_bytes()),
                "{text} stands on the wire"
            );
        }
    });
}

/// A password for a registry, encrypted to the key that the enrolment certified.
fn config_with_a_secret(state: &State, password: &str) -> EdgeDevConfig {
    let device = state.ecdh.as_ref().unwrap();
    let point = Point::from_certificate_der(&device.der).unwrap();
    let key = BlockKey::agree(&state.signing.exchange, &point).unwrap();
    let clear = EncryptionBlock {
        ds_api_key: "robot".into(),
        ds_password: password.into(),
        ..EncryptionBlock::default()
    };
    let block = cipher::encrypt(&key, "secrets", &clear.encode_to_vec()).unwrap();
    let mut config = config("two");
    config.cipher_contexts = vec![cipher::context(
        "secrets",
        &state.signing.exchange_name,
        &CertHash::of_pem_text(&device.pem),
    )];
    config.datastores = vec![DatastoreConfig {
        id: Uuid::from_u128(9).to_string(),
        d_type: DsType::DsContainerRegistry.into(),
        fqdn: "docker://registry.example".into(),
        cipher_data: Some(block),
        ..DatastoreConfig::default()
    }];
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_come_encrypted_to_the_devices_own_key() {
    let (site, enrolment) = site(ZERO_TOUCH).await;
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    let mut running = enrols_now(device.start()).await;
    let password = "correct horse battery staple";
    let secret = site.with(|state| config_with_a_secret(state, password));
    site.configure("second", secret.clone());
    let id = DatastoreId(Uuid::from_u128(9));
    let desired = running
        .desires(|desired| desired.datastores.contains_key(&id))
        .await;
    let login = desired.datastores[&id].login.clone().unwrap();
    assert_eq!(
        (login.user.as_str(), login.password.as_str()),
        ("robot", password)
    );
    site.with(|state| {
        let bytes = password.as_bytes();
        assert!(
            !state
                .wire
                .windows(bytes.len())
                .any(|window| window == bytes)
        );
    });
    // It is opened from the checkpoint, too, and it lies there as it came.
    running.cut().await;
    site.with(|state| state.down = true);
    let mut running = device.start();
    running
        .desires(|desired| desired.datastores.contains_key(&id))
        .await;
    let kept = std::fs::read(pillar::config::checkpoint::file(device.paths())).unwrap();
    assert!(
        !kept
            .windows(password.len())
            .any(|window| window == password.as_bytes())
    );
    site.with(|state| state.down = false);

    // One that is not for this device's key is told, and the rest of the config is followed.
    let mut other = secret;
    other.cipher_contexts[0].device_cert_hash = vec![7; 16];
    site.configure("third", other);
    let line = running.line("skerry: trouble: a part of the config").await;
    assert!(line.contains("credentials of the datastore"), "{line}");
    in_force(&mut running, "two").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_attests_again_and_again_and_apps_do_not_notice() {
    let (site, enrolment) = site(ZERO_TOUCH).await;
    let mut config = config("one");
    config.config_items.push(ConfigItem {
        key: "skerry.attest.interval".into(),
        value: "5".into(),
    });
    site.with(|state| state.config = config.clone());
    let device = Device::new(&site).enrolling(&enrolment).with_tpm();
    let running = enrols_now(device.start()).await;
    let mut desired = running.desired.clone();
    desired.mark_unchanged();
    site.until("it has attested twice by itself", |state| {
        (state.quotes.len() > 1).then_some(())
    })
    .await;
    assert!(
        !desired.has_changed().unwrap(),
        "what the device is to be was touched"
    );
    assert!(
        !running.lines().iter().any(|line| line.contains("trouble")),
        "{:#?}",
        running.lines()
    );

    // Now it fails: what runs goes on, nothing new comes, and everybody is told.
    site.with(|state| {
        state.refuse_quotes = true;
        state.refusal = "attestation: Secure Boot is off";
    });
    running.line("skerry: trouble: attestation: ").await;
    site.with(|state| state.token = Some(b"another".to_vec()));
    site.configure("second", crate::config("two"));
    site.until("it has asked in vain", |state| {
        let refused = device_infos(state).pop()?.attestation_info?.error;
        refused.map(drop)
    })
    .await;
    site.until("the reason stands on the board", |state| {
        crate::trouble(state, "attestation").filter(|text| text.ends_with(": Secure Boot is off"))
    })
    .await;
    assert_eq!(names(&running.desired.borrow()), ["one"]);
    let mut running = running;
    site.with(|state| state.refuse_quotes = false);
    in_force(&mut running, "two").await;
}
