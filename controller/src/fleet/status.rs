//! From what devices tell to what operators see: pure functions.

use jiff::Timestamp;
use operator_api::{
    App, AppPhase, AppStatus, Condition, ConditionStatus, DeviceStatus, Interface, ReportedError,
};
use protocol::eve::info::{
    ErrorInfo, ZInfoApp, ZInfoContentTree, ZInfoDevice, ZInfoNetwork, ZInfoNetworkInstance,
    ZInfoVolume, ZSwState,
};
use protocol::items::{CONFIG_HASH, trouble_topic};

use super::ranges::Range;

/// Longest text that is taken over from a device, in characters.
const MAX_TEXT: usize = 2048;
/// Most entries of a list that are taken over from a device.
const MAX_LIST: usize = 64;

/// A point in time on the wire; none if it is out of range.
#[must_use]
pub fn timestamp(time: &protocol::eve::Timestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}

fn text(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

fn told_at(error: &ErrorInfo, fallback: Timestamp) -> Timestamp {
    error
        .timestamp
        .as_ref()
        .and_then(timestamp)
        .unwrap_or(fallback)
}

/// An error in words, with when it is tried again.
fn words(error: &ErrorInfo) -> String {
    match error.retry_condition.as_str() {
        "" => text(&error.description),
        retry => format!("{}; {}", text(&error.description), text(retry)),
    }
}

/// Takes what a device told of itself into its status. `told` is the message's time, `now` the controller's.
pub fn device(status: &mut DeviceStatus, info: &ZInfoDevice, told: Timestamp) {
    let hardware = &mut status.hardware;
    if let Some(maker) = &info.minfo {
        hardware.manufacturer = text(&maker.manufacturer);
        hardware.product_name = text(&maker.product_name);
        if !maker.serial_number.is_empty() {
            hardware.serial = text(&maker.serial_number);
        }
    }
    hardware.architecture = text(&info.machine_arch);
    hardware.cpus = info.ncpu;
    hardware.storage_mib = info.storage;
    status.image_version = info
        .sw_list
        .iter()
        .find(|software| software.activated)
        .or(info.sw_list.first())
        .map(|software| text(&software.short_version))
        .unwrap_or_default();
    status.booted_at = info.boot_time.as_ref().and_then(timestamp);
    status.interfaces = info.network.iter().take(MAX_LIST).map(interface).collect();
    status.app_network = Range::named(&status.app_network)
        .beside(&status.interfaces)
        .to_string();
    status.errors.clear();
    for network in &info.network {
        if let Some(error) = network
            .network_err
            .as_ref()
            .filter(|error| !error.description.is_empty())
        {
            status.errors.push(ReportedError {
                time: told_at(error, told),
                source: text(&network.dev_name),
                message: words(error),
            });
        }
    }
    for software in &info.sw_list {
        if let Some(error) = software
            .sw_err
            .as_ref()
            .filter(|error| !error.description.is_empty())
        {
            status.errors.push(ReportedError {
                time: told_at(error, told),
                source: "image".to_owned(),
                message: words(error),
            });
        }
    }
    if let Some(error) = info
        .attestation_info
        .as_ref()
        .and_then(|attestation| attestation.error.as_ref())
    {
        status.errors.push(ReportedError {
            time: told_at(error, told),
            source: "attestation".to_owned(),
            message: words(error),
        });
    }
    if let Some(items) = &info.config_item_status {
        if let Some(applied) = items.config_items.get(CONFIG_HASH) {
            status.config.applied = text(&applied.value);
        }
        for (key, item) in items.config_items.iter().chain(&items.unknown_config_items) {
            if !item.error.is_empty() {
                let source = trouble_topic(key).unwrap_or(key);
                status.errors.push(ReportedError {
                    time: told,
                    source: text(source),
                    message: text(&item.error),
                });
            }
        }
    }
    // Maps come in any order; watchers should not see a change where there is none.
    status.errors.sort_by(|one, other| {
        other
            .time
            .cmp(&one.time)
            .then_with(|| one.source.cmp(&other.source))
    });
    status.errors.truncate(MAX_LIST);
}

fn interface(network: &ZInfoNetwork) -> Interface {
    Interface {
        name: text(if network.dev_name.is_empty() {
            &network.local_name
        } else {
            &network.dev_name
        }),
        mac: text(&network.mac_addr),
        addresses: network
            .ip_addrs
            .iter()
            .take(MAX_LIST)
            .map(|address| text(address))
            .collect(),
        uplink: network.uplink,
        routers: network
            .default_routers
            .iter()
            .take(MAX_LIST)
            .map(|address| text(address))
            .collect(),
    }
}

/// What a device told of an app and of what it is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told<'a> {
    /// The app itself.
    pub app: Option<&'a ZInfoApp>,
    /// The volume that it starts from.
    pub volume: Option<&'a ZInfoVolume>,
    /// Its image.
    pub content: Option<&'a ZInfoContentTree>,
    /// Its network.
    pub network: Option<&'a ZInfoNetworkInstance>,
}

/// An app's status from what its device told. `before` is the status so far, for times that only change with what they are about.
#[must_use]
pub fn app(app: &App, before: &AppStatus, told: Told<'_>, reported: Timestamp) -> AppStatus {
    let content_state = told.content.map(ZInfoContentTree::state);
    let mut errors: Vec<String> = Vec::new();
    if let Some(error) = told
        .content
        .and_then(|content| content.err.as_ref())
        .filter(|error| !error.description.is_empty())
    {
        errors.push(format!("image: {}", words(error)));
    }
    if let Some(error) = told
        .volume
        .and_then(|volume| volume.volume_err.as_ref())
        .filter(|error| !error.description.is_empty())
    {
        errors.push(format!("volume: {}", words(error)));
    }
    for error in told
        .network
        .iter()
        .flat_map(|network| &network.network_err)
        .filter(|error| !error.description.is_empty())
    {
        errors.push(format!("network: {}", words(error)));
    }
    // Devices tell the error of a part again as the app's; it is said once, with the part's name.
    let mut own: Vec<String> = told
        .app
        .iter()
        .flat_map(|app| &app.app_err)
        .filter(|error| !error.description.is_empty())
        .map(words)
        .collect();
    own.retain(|own| {
        !errors
            .iter()
            .any(|part| part.split_once(": ").is_some_and(|(_, part)| part == own))
    });
    let own_errors = own.len();
    own.append(&mut errors);
    let mut errors = own;
    let state = told.app.map_or(ZSwState::Invalid, ZInfoApp::state);
    let phase = phase(state, content_state, !errors.is_empty());
    // An app that runs has overcome what its image or volume complained of before.
    if phase == AppPhase::Running {
        errors.truncate(own_errors);
    }
    errors.truncate(8);
    let digest = app
        .spec
        .image
        .reference
        .split_once('@')
        .map(|(_, digest)| digest.to_owned());
    AppStatus {
        phase,
        message: errors.join("; "),
        addresses: told
            .app
            .iter()
            .flat_map(|app| &app.network)
            .flat_map(|network| &network.ip_addrs)
            .filter(|address| !address.is_empty())
            .take(MAX_LIST)
            .map(|address| text(address))
            .collect(),
        image_digest: digest.filter(|_| phase == AppPhase::Running),
        progress_percent: told
            .content
            .filter(|_| phase == AppPhase::Fetching)
            .map(|content| content.progress_percentage.min(100)),
        started_at: told
            .app
            .and_then(|app| app.boot_time.as_ref())
            .and_then(timestamp),
        last_reported: Some(reported),
        conditions: before.conditions.clone(),
        ..AppStatus::default()
    }
}

/// Where an app stands. Its own state counts, but an app that waits for its image or volume shows what it waits for.
fn phase(state: ZSwState, content: Option<ZSwState>, errors: bool) -> AppPhase {
    match state {
        ZSwState::Running => AppPhase::Running,
        ZSwState::Halting => AppPhase::Stopping,
        ZSwState::Halted => AppPhase::Stopped,
        ZSwState::Error => AppPhase::Failed,
        // Started again after it had ended by itself: the device says why.
        ZSwState::Restarting if errors => AppPhase::Failed,
        ZSwState::Booting | ZSwState::Restarting | ZSwState::Purging => AppPhase::Starting,
        _ if errors => AppPhase::Failed,
        ZSwState::DownloadStarted
        | ZSwState::Downloaded
        | ZSwState::Verifying
        | ZSwState::ResolvingTag => AppPhase::Fetching,
        ZSwState::Invalid if content.is_none() => AppPhase::Pending,
        _ => match content {
            Some(
                ZSwState::DownloadStarted
                | ZSwState::Downloaded
                | ZSwState::Verifying
                | ZSwState::ResolvingTag,
            ) => AppPhase::Fetching,
            Some(ZSwState::Error) => AppPhase::Failed,
            _ => AppPhase::Preparing,
        },
    }
}

/// Sets a condition; its time changes only with its status.
pub fn condition(
    conditions: &mut Vec<Condition>,
    kind: &str,
    status: ConditionStatus,
    words: (&str, &str),
    since: Timestamp,
) {
    let (reason, message) = words;
    let new = |last_transition_time| Condition {
        kind: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time,
    };
    match conditions
        .iter_mut()
        .find(|condition| condition.kind == kind)
    {
        Some(condition) if condition.status == status => {
            *condition = new(condition.last_transition_time)
        }
        Some(condition) => *condition = new(since),
        None => conditions.push(new(since)),
    }
}

/// Adds an app's conditions, which follow from the rest of its status.
pub fn app_conditions(status: &mut AppStatus, now: Timestamp) {
    let ready = status.phase == AppPhase::Running;
    let reason = status.phase.to_string();
    let message = status.message.clone();
    condition(
        &mut status.conditions,
        "Ready",
        ready.into(),
        (&reason, &message),
        now,
    );
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use operator_api::Object as _;
    use protocol::eve::info::{
        ZInfoConfigItem, ZInfoConfigItemStatus, ZInfoDevSw, ZInfoManufacturer,
    };

    use super::*;

    fn object() -> App {
        let spec = serde_json::json!({
            "device": "box-1", "type": "container", "image": {"datastore": "demo", "reference": "hello@sha256:abcd"}
        });
        App::new("web", serde_json::from_value(spec).unwrap())
    }

    fn error(description: &str) -> ErrorInfo {
        ErrorInfo {
            description: description.into(),
            ..ErrorInfo::default()
        }
    }

    fn told_app(state: ZSwState) -> ZInfoApp {
        ZInfoApp {
            state: state.into(),
            ..ZInfoApp::default()
        }
    }

    #[test]
    fn phases() {
        let content = |state: ZSwState| ZInfoContentTree {
            state: state.into(),
            progress_percentage: 40,
            ..ZInfoContentTree::default()
        };
        for (state, image, wanted) in [
            (ZSwState::Running, Some(ZSwState::Loaded), AppPhase::Running),
            (
                ZSwState::Booting,
                Some(ZSwState::Loaded),
                AppPhase::Starting,
            ),
            (
                ZSwState::Restarting,
                Some(ZSwState::Loaded),
                AppPhase::Starting,
            ),
            (
                ZSwState::DownloadStarted,
                Some(ZSwState::DownloadStarted),
                AppPhase::Fetching,
            ),
            (
                ZSwState::Initial,
                Some(ZSwState::DownloadStarted),
                AppPhase::Fetching,
            ),
            (
                ZSwState::Initial,
                Some(ZSwState::Loaded),
                AppPhase::Preparing,
            ),
            (ZSwState::CreatingVolume, None, AppPhase::Preparing),
            (ZSwState::Halting, None, AppPhase::Stopping),
            (ZSwState::Halted, None, AppPhase::Stopped),
            (ZSwState::Error, None, AppPhase::Failed),
            (ZSwState::Initial, Some(ZSwState::Error), AppPhase::Failed),
        ] {
            let (told, image) = (told_app(state), image.map(content));
            let told = Told {
                app: Some(&told),
                content: image.as_ref(),
                ..Told::default()
            };
            let status = app(
                &object(),
                &AppStatus::default(),
                told,
                Timestamp::UNIX_EPOCH,
            );
            assert_eq!(status.phase, wanted, "{state:?} {image:?}");
            assert_eq!(
                status.progress_percent.is_some(),
                wanted == AppPhase::Fetching && image.is_some()
            );
            assert_eq!(status.image_digest.is_some(), wanted == AppPhase::Running);
        }
        let nothing = app(
            &object(),
            &AppStatus::default(),
            Told::default(),
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(nothing.phase, AppPhase::Pending);
    }

    #[test]
    fn an_error_of_the_image_is_the_apps() {
        let told = told_app(ZSwState::Initial);
        let mut refused = error("fetching docker://r/hello: digest is wrong");
        refused.retry_condition = "tried again at 12:00".into();
        let content = ZInfoContentTree {
            err: Some(refused),
            ..ZInfoContentTree::default()
        };
        let volume = ZInfoVolume {
            volume_err: Some(error("disk full")),
            ..ZInfoVolume::default()
        };
        let told = Told {
            app: Some(&told),
            content: Some(&content),
            volume: Some(&volume),
            ..Told::default()
        };
        let status = app(
            &object(),
            &AppStatus::default(),
            told,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(status.phase, AppPhase::Failed);
        assert_eq!(
            status.message,
            "image: fetching docker://r/hello: digest is wrong; tried again at 12:00; volume: disk full"
        );
    }

    #[test]
    fn an_error_that_the_app_repeats_is_said_once() {
        let mut told = told_app(ZSwState::Initial);
        let content = ZInfoContentTree {
            err: Some(error("no such digest")),
            ..ZInfoContentTree::default()
        };
        told.app_err = vec![error("no such digest"), error("no address left")];
        let told = Told {
            app: Some(&told),
            content: Some(&content),
            ..Told::default()
        };
        let status = app(
            &object(),
            &AppStatus::default(),
            told,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(status.message, "no address left; image: no such digest");
    }

    #[test]
    fn a_running_app_does_not_complain_of_what_its_image_said_before() {
        let told = told_app(ZSwState::Running);
        let content = ZInfoContentTree {
            err: Some(error("registry was down")),
            ..ZInfoContentTree::default()
        };
        let told = Told {
            app: Some(&told),
            content: Some(&content),
            ..Told::default()
        };
        assert_eq!(
            app(
                &object(),
                &AppStatus::default(),
                told,
                Timestamp::UNIX_EPOCH
            )
            .message,
            ""
        );
    }

    #[test]
    fn a_device_tells_of_itself() {
        let item = |value: &str, error: &str| ZInfoConfigItem {
            value: value.into(),
            error: error.into(),
        };
        let info = ZInfoDevice {
            machine_arch: "x86_64".into(),
            ncpu: 4,
            storage: 32_000,
            minfo: Some(ZInfoManufacturer {
                manufacturer: "QEMU".into(),
                product_name: "q35".into(),
                ..ZInfoManufacturer::default()
            }),
            sw_list: vec![ZInfoDevSw {
                activated: true,
                short_version: "0.1.0".into(),
                ..ZInfoDevSw::default()
            }],
            network: vec![ZInfoNetwork {
                dev_name: "eth0".into(),
                ip_addrs: vec!["10.0.2.15".into()],
                uplink: true,
                network_err: Some(error("no DNS")),
                ..ZInfoNetwork::default()
            }],
            config_item_status: Some(ZInfoConfigItemStatus {
                config_items: HashMap::from([
                    ("skerry.config.hash".into(), item("abc", "")),
                    (
                        "skerry.trouble.config".into(),
                        item("", "the signature is wrong"),
                    ),
                ]),
                ..ZInfoConfigItemStatus::default()
            }),
            ..ZInfoDevice::default()
        };
        let mut status = DeviceStatus::default();
        device(&mut status, &info, Timestamp::UNIX_EPOCH);
        assert_eq!(status.image_version, "0.1.0");
        assert_eq!(status.config.applied, "abc");
        assert_eq!(status.interfaces[0].addresses, ["10.0.2.15"]);
        let errors: Vec<_> = status
            .errors
            .iter()
            .map(|error| (error.source.as_str(), error.message.as_str()))
            .collect();
        assert_eq!(
            errors,
            [("config", "the signature is wrong"), ("eth0", "no DNS")]
        );
        device(&mut status, &ZInfoDevice::default(), Timestamp::UNIX_EPOCH);
        assert_eq!(status.errors, [], "what is over is gone");
    }

    #[test]
    fn a_conditions_time_changes_with_its_status_only() {
        let mut conditions = Vec::new();
        let time = |seconds| Timestamp::from_second(seconds).unwrap();
        condition(
            &mut conditions,
            "Ready",
            ConditionStatus::False,
            ("Pending", ""),
            time(1),
        );
        condition(
            &mut conditions,
            "Ready",
            ConditionStatus::False,
            ("Fetching", "x"),
            time(2),
        );
        assert_eq!(
            (
                conditions[0].reason.as_str(),
                conditions[0].last_transition_time
            ),
            ("Fetching", time(1))
        );
        condition(
            &mut conditions,
            "Ready",
            ConditionStatus::True,
            ("Running", ""),
            time(3),
        );
        assert_eq!(conditions[0].last_transition_time, time(3));
        assert_eq!(conditions.len(), 1);
    }
}
