//! What the device tells: apps, logs; and consoles.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillar::domain::observed::{AppPhase, AppStatus, Observed};
use protocol::eve::info::z_info_msg::InfoContent;
use protocol::eve::info::{ZInfoApp, ZSwState};
use protocol::eve::metrics::metric_item::MetricItemValue;
use protocol::eve::metrics::z_metric_msg::MetricContent;
use protocol::ids::AppId;
use protocol::logs::Origin;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use uuid::Uuid;

use crate::device::Device;
use crate::site::{Site, State};
use crate::{config, started};

fn app(phase: AppPhase, restarts: u32) -> AppStatus {
    AppStatus {
        name: "web".into(),
        phase,
        restarts,
        addresses: BTreeMap::new(),
        links: BTreeMap::new(),
        control: None,
        console: None,
        pid: None,
        unit: None,
        trouble: None,
    }
}

fn app_infos(state: &State) -> Vec<ZInfoApp> {
    let apps = state
        .infos
        .iter()
        .filter_map(|message| match &message.info_content {
            Some(InfoContent::Ainfo(app)) => Some(app.clone()),
            _ => None,
        });
    apps.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_apps_do_is_told_at_once_and_after_an_outage() {
    let site = Site::start().await;
    let (_device, running) = started(&site).await;
    let id = AppId(Uuid::from_u128(1));
    let show = |phase: AppPhase, restarts| {
        let apps = BTreeMap::from([(id, app(phase, restarts))]);
        running.observed.send_replace(Arc::new(Observed {
            apps,
            ..Observed::default()
        }));
    };
    show(
        AppPhase::Running {
            since: SystemTime::now(),
        },
        0,
    );
    site.until("it runs", |s| {
        app_infos(s)
            .pop()
            .filter(|app| app.state() == ZSwState::Running)
    })
    .await;
    running.line("skerry: app web running").await;

    site.with(|state| state.down = true);
    show(
        AppPhase::BackOff {
            until: SystemTime::now(),
        },
        1,
    );
    running.line("skerry: app web restarting").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    site.with(|state| state.down = false);
    // Contact comes back with the next config question, and with it all that was not told.
    site.until("it restarts", |s| {
        app_infos(s)
            .pop()
            .filter(|app| app.state() == ZSwState::Restarting)
    })
    .await;

    show(
        AppPhase::BackOff {
            until: SystemTime::now(),
        },
        2,
    );
    site.until("restarts are counted", |state| {
        let MetricContent::Dm(device) = state.metrics.last()?.metric_content.as_ref()?;
        let item = device
            .metric_items
            .iter()
            .find(|item| item.key == format!("skerry.app.{id}.restarts"))?;
        (item.metric_item_value == Some(MetricItemValue::Uint32Value(2))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_leads_to_the_app_and_back() {
    let site = Site::start().await;
    let (device, running) = started(&site).await;
    let path = device.dir().join("console.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let id = AppId(Uuid::from_u128(1));
    let status = AppStatus {
        console: Some(path),
        ..app(
            AppPhase::Running {
                since: SystemTime::now(),
            },
            0,
        )
    };
    running.observed.send_replace(Arc::new(Observed {
        apps: BTreeMap::from([(id, status)]),
        ..Observed::default()
    }));
    site.open_console(protocol::ids::AppId(id.0));
    let (mut console, _) = tokio::time::timeout(Duration::from_secs(20), listener.accept())
        .await
        .unwrap()
        .unwrap();
    console.write_all(b"login: ").await.unwrap();
    assert_eq!(site.read_console().await, b"login: ");
    site.type_on_console(b"root\r");
    let mut typed = [0; 5];
    console.read_exact(&mut typed).await.unwrap();
    assert_eq!(&typed, b"root\r");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_reach_the_controller_once_each_under_their_owner() {
    let app = Uuid::from_u128(9);
    let entry = |index: u32, unit: &str, text: &str| {
        format!(
            "{{\"__CURSOR\":\"s=x;i={index}\",\"__REALTIME_TIMESTAMP\":\"1795204800000000\",\"_SYSTEMD_UNIT\":\"{unit}\",\
             \"PRIORITY\":\"6\",\"MESSAGE\":\"{text}\"}}\n"
        )
    };
    let site = Site::start().await;
    site.with(|state| {
        state.config = config("one");
        // Not taken at first: tried again.
        state.log_status.extend([503, 429]);
    });
    let mut device = Device::new(&site);
    let unit = format!("skerry-app-{app}.service");
    device.journal(
        &(entry(1, "pillar.service", "starting") + &entry(2, &unit, "hello") + "rubbish\n"),
    );
    let running = device.start();
    let texts = |state: &State, path_end: &str| -> Vec<String> {
        let bundles = state
            .logs
            .iter()
            .filter(|(path, _)| path.ends_with(path_end));
        bundles
            .flat_map(|(_, bundle)| bundle.entries.iter().map(|entry| entry.content.clone()))
            .collect()
    };
    let app_path = format!("apps/instanceid/{app}/newlogs");
    site.until("the app's line is there", |state| {
        (texts(state, &app_path) == ["hello"]).then_some(())
    })
    .await;
    site.with(|state| {
        let id = state.device;
        assert_eq!(texts(state, &format!("{id}/newlogs")), ["starting"]);
        let device_bundle = state
            .logs
            .iter()
            .find(|(path, _)| !path.contains("instanceid"))
            .unwrap();
        let Origin::Device(origin) = &device_bundle.1.origin else {
            panic!("{:?}", device_bundle.1.origin)
        };
        assert_eq!(
            (origin.device.as_str(), origin.version.as_str()),
            (id.to_string().as_str(), "1.2.3")
        );
    });

    // A line that comes now is there within two seconds.
    let written = std::time::Instant::now();
    let more = entry(3, &unit, "again");
    std::io::Write::write_all(
        &mut std::fs::OpenOptions::new()
            .append(true)
            .open(device.journal_file())
            .unwrap(),
        more.as_bytes(),
    )
    .unwrap();
    site.until("the next line is there", |state| {
        (texts(state, &app_path) == ["hello", "again"]).then_some(())
    })
    .await;
    let took = written.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");

    // The cursor moves on, so that the next start does not send all again.
    let file = pillar::logs::cursor_file(device.paths());
    for _ in 0..1500 {
        if pillar::generations::read(&file).unwrap().as_deref() == Some(b"s=x;i=3") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    running.cut().await;
    let running = device.start();
    running.line("skerry: attested").await;
    for _ in 0..500 {
        if device
            .journalctl_arguments()
            .contains("--after-cursor=s=x;i=3")
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{}", device.journalctl_arguments());
}

/// Budget of the architecture, idle: 16 MiB resident.
#[tokio::test(flavor = "multi_thread")]
async fn the_program_itself_enrols_stays_small_and_ends_when_told() {
    let site = Site::start().await;
    let mut config = config("one");
    // Nothing that needs a whole machine.
    config.network_instances.clear();
    config.config_items.push(protocol::eve::config::ConfigItem {
        key: "timer.metric.interval".into(),
        value: "5".into(),
    });
    site.with(|state| state.config = config);
    let device = Device::new(&site).with_tpm();
    let mut program = device.start_program();
    site.until("the config is confirmed", |state| {
        (state.not_modified > 1).then_some(())
    })
    .await;
    site.with(|state| state.metrics.clear());
    let metrics = site
        .until("it tells its size", |state| state.metrics.last().cloned())
        .await;
    let pillar = metrics
        .pr
        .iter()
        .find(|process| process.name == "pillar")
        .unwrap();
    assert_eq!(pillar.pid, i32::try_from(program.child.id()).unwrap());
    let mib = pillar.rss_bytes as f64 / f64::from(1 << 20);
    println!(
        "pillar: {mib:.1} MiB resident, {} threads",
        pillar.num_threads
    );
    assert!(mib < 16.0, "{mib} MiB");
    let lines = std::fs::read_to_string(&program.status).unwrap();
    assert!(
        lines.contains("skerry: attested\nskerry: config applied first\n"),
        "{lines}"
    );

    // SAFETY: kill takes two numbers, and the process is our own child, which has not been waited for.
    let sent = unsafe { libc::kill(pillar.pid, libc::SIGTERM) };
    assert_eq!(sent, 0);
    let ended = tokio::task::spawn_blocking(move || program.child.wait())
        .await
        .unwrap()
        .unwrap();
    assert!(ended.success(), "{ended}");
}
