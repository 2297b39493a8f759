use std::collections::BTreeMap;
use std::time::Duration;

use protocol::ids::DatastoreId;
use uuid::Uuid;

use super::*;
use crate::domain::desired::{
    App, AppInterface, Content, ContentKind, Desired, Runtime, Volume, VolumeMount,
};
use crate::status::Topic;

const APP: AppId = AppId(Uuid::from_u128(1));
const VOLUME: VolumeId = VolumeId(Uuid::from_u128(2));
const CONTENT: ContentId = ContentId(Uuid::from_u128(3));
const NETWORK: NetworkInstanceId = NetworkInstanceId(Uuid::from_u128(4));

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn snapshot(phase: AppPhase, trouble: Option<Trouble>) -> Snapshot {
    let desired = Desired {
        contents: BTreeMap::from([(
            CONTENT,
            Content {
                name: "image".into(),
                datastore: DatastoreId(Uuid::nil()),
                repository: "hello".parse().unwrap(),
                digest: protocol::digest::Digest::from_hex(&"ab".repeat(32)).unwrap(),
                kind: ContentKind::Container,
            },
        )]),
        volumes: BTreeMap::from([(
            VOLUME,
            Volume {
                name: "disk".into(),
                content: CONTENT,
                generation: 5,
                size_bytes: 0,
                readonly: false,
            },
        )]),
        apps: BTreeMap::from([(
            APP,
            App {
                name: "web".into(),
                activate: true,
                vcpus: 1,
                memory_mib: 64,
                runtime: Runtime::ContainerMicrovm,
                volumes: vec![VolumeMount {
                    volume: VOLUME,
                    mount_dir: String::new(),
                }],
                interfaces: vec![AppInterface {
                    name: "eth0".into(),
                    network: NETWORK,
                    mac: None,
                    address: None,
                    port_maps: vec![],
                }],
                env: vec![],
                user_data: None,
                restart_counter: 0,
                purge_counter: 0,
            },
        )]),
        ..Desired::default()
    };
    let observed = Observed {
        contents: BTreeMap::from([(
            CONTENT,
            ContentStatus {
                name: "image".into(),
                phase: ContentPhase::Downloading {
                    done: 50,
                    total: Some(200),
                },
                trouble: None,
            },
        )]),
        volumes: BTreeMap::from([(
            VOLUME,
            VolumeStatus {
                name: "disk".into(),
                ready: false,
                path: None,
                used_bytes: 7,
                size_bytes: 9,
                trouble: None,
            },
        )]),
        networks: BTreeMap::from([(
            NETWORK,
            NetworkStatus {
                name: "local".into(),
                up: true,
                bridge: "bn1".into(),
                leases: BTreeMap::from([(APP, "10.1.0.2".parse().unwrap())]),
                trouble: None,
            },
        )]),
        apps: BTreeMap::from([(
            APP,
            AppStatus {
                name: "web".into(),
                phase,
                restarts: 2,
                addresses: BTreeMap::from([("eth0".into(), "10.1.0.2".parse().unwrap())]),
                links: BTreeMap::new(),
                control: None,
                console: None,
                pid: None,
                unit: None,
                trouble,
            },
        )]),
    };
    Snapshot {
        observed: Arc::new(observed),
        config: Arc::new(InForce {
            desired: Arc::new(desired),
            ..InForce::default()
        }),
        ..Snapshot::default()
    }
}

fn app_of(snapshot: &Snapshot) -> ZInfoApp {
    let messages = snapshot.messages("device", &Hardware::default(), at(1000));
    match messages[&Key::App(APP)].info_content.clone().unwrap() {
        InfoContent::Ainfo(app) => app,
        other => panic!("{other:?}"),
    }
}

#[test]
fn states_of_an_app() {
    let table = [
        (AppPhase::Preparing, ZSwState::DownloadStarted),
        (AppPhase::Starting, ZSwState::Booting),
        (AppPhase::Running { since: at(500) }, ZSwState::Running),
        (AppPhase::BackOff { until: at(500) }, ZSwState::Restarting),
        (AppPhase::Stopping, ZSwState::Halting),
        (AppPhase::Halted, ZSwState::Halted),
    ];
    for (phase, state) in table {
        assert_eq!(
            app_of(&snapshot(phase.clone(), None)).state(),
            state,
            "{phase:?}"
        );
    }
}

#[test]
fn an_app_in_preparation_shows_what_it_waits_for() {
    type Change = fn(&mut Observed);
    let table: [(&str, Change, ZSwState); 4] = [
        ("content", |_| (), ZSwState::DownloadStarted),
        (
            "volume",
            |o| o.contents.get_mut(&CONTENT).unwrap().phase = ContentPhase::Ready,
            ZSwState::CreatingVolume,
        ),
        (
            "network",
            |o| {
                o.volumes.get_mut(&VOLUME).unwrap().ready = true;
                o.networks.get_mut(&NETWORK).unwrap().up = false;
            },
            ZSwState::Awaitnetworkinstance,
        ),
        (
            "nothing",
            |o| o.volumes.get_mut(&VOLUME).unwrap().ready = true,
            ZSwState::Initial,
        ),
    ];
    for (name, change, state) in table {
        let mut snapshot = snapshot(AppPhase::Preparing, None);
        change(Arc::make_mut(&mut snapshot.observed));
        assert_eq!(app_of(&snapshot).state(), state, "{name}");
    }
}

#[test]
fn a_running_app_shows_address_and_start_and_its_last_trouble() {
    let trouble = Trouble {
        message: "ended with status 1".into(),
        at: at(400),
        retry_at: Some(at(600)),
    };
    let app = app_of(&snapshot(
        AppPhase::Running { since: at(500) },
        Some(trouble),
    ));
    assert_eq!(app.app_id, APP.to_string());
    assert_eq!(app.boot_time.unwrap().seconds, 500);
    assert_eq!(app.network[0].ip_addrs, ["10.1.0.2"]);
    assert_eq!(app.volume_refs, [VOLUME.to_string()]);
    let error = &app.app_err[0];
    assert_eq!(error.description, "ended with status 1");
    assert_eq!(error.severity(), Severity::Warning);
    assert_eq!(error.retry_condition, "tried again at 1970-01-01T00:10:00Z");
}

#[test]
fn every_object_has_a_message_of_its_kind() {
    let messages =
        snapshot(AppPhase::Preparing, None).messages("device", &Hardware::default(), at(1000));
    let kinds: Vec<_> = messages.values().map(ZInfoMsg::ztype).collect();
    assert_eq!(
        kinds,
        [
            ZInfoTypes::ZiDevice,
            ZInfoTypes::ZiNetworkInstance,
            ZInfoTypes::ZiContentTree,
            ZInfoTypes::ZiVolume,
            ZInfoTypes::ZiApp
        ]
    );
    let Some(InfoContent::Cinfo(content)) = &messages[&Key::Content(CONTENT)].info_content else {
        panic!()
    };
    assert_eq!(
        (content.progress_percentage, content.sha256.as_str()),
        (25, "ab".repeat(32).as_str())
    );
    let Some(InfoContent::Vinfo(volume)) = &messages[&Key::Volume(VOLUME)].info_content else {
        panic!()
    };
    assert_eq!(volume.generation_count, 5);
    let Some(InfoContent::Niinfo(network)) = &messages[&Key::Network(NETWORK)].info_content else {
        panic!()
    };
    assert_eq!(
        (network.bridge_num, network.state()),
        (1, ZNetworkInstanceState::ZnetinstStateOnline)
    );
}

#[test]
fn what_a_config_asks_for_and_the_device_cannot_do_is_told_at_the_object() {
    let mut snapshot = Snapshot::default();
    Arc::make_mut(&mut snapshot.config).faults = vec![Fault {
        object: Object::App(APP),
        name: "web".into(),
        message: "no volume".into(),
    }];
    let app = app_of(&snapshot);
    assert_eq!(
        (app.state(), app.app_err[0].description.as_str()),
        (ZSwState::Error, "no volume")
    );
}

#[test]
fn troubles_and_hash_travel_in_the_config_items() {
    let mut snapshot = Snapshot::default();
    Arc::make_mut(&mut snapshot.config).hash = "abc".into();
    let trouble = Trouble {
        message: "config refused: bad signature".into(),
        at: at(1),
        retry_at: None,
    };
    snapshot.troubles.insert(Topic::Config, trouble);
    let messages = snapshot.messages("device", &Hardware::default(), at(1000));
    let Some(InfoContent::Dinfo(device)) = &messages[&Key::Device].info_content else {
        panic!()
    };
    let items = &device.config_item_status.as_ref().unwrap().config_items;
    assert_eq!(
        items["skerry.trouble.config"].error,
        "config refused: bad signature"
    );
    assert_eq!(items["skerry.config.hash"].value, "abc");
    assert_eq!(items["timer.config.interval"].value, "60");
}

#[test]
fn a_message_is_the_same_whenever_it_was_made() {
    let snapshot = snapshot(AppPhase::Halted, None);
    let early = snapshot.messages("device", &Hardware::default(), at(1));
    let late = snapshot.messages("device", &Hardware::default(), at(2));
    for (key, message) in early {
        assert!(same(&message, &late[&key]), "{key:?}");
    }
}

#[test]
fn percents() {
    for (done, total, percent) in [
        (0, None, 0),
        (5, Some(0), 0),
        (1, Some(3), 33),
        (9, Some(3), 99),
        (u64::MAX, Some(u64::MAX), 99),
    ] {
        assert_eq!(super::percent(done, total), percent);
    }
}
