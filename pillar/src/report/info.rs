//! Info messages, made from what is: pure functions.
//!
//! | here | EVE |
//! |---|---|
//! | device, its uplinks, troubles, attestation | `ZInfoDevice` |
//! | app | `ZInfoApp`; [`AppPhase`] to `ZSwState` by `app_state` |
//! | content tree, volume, network instance | `ZInfoContentTree`, `ZInfoVolume`, `ZInfoNetworkInstance` |
//! | [`Fault`]: an object of the config that cannot be | the object's message with state `ERROR` and the reason |
//!
//! Where EVE has no field, the docs page "Contracts between the parts" names the key in a generic map.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use onboarding::smbios::Machine;
use protocol::eve::Timestamp;
use protocol::eve::config::ZNetworkInstType;
use protocol::eve::info::z_info_msg::InfoContent;
use protocol::eve::info::{
    AttestationInfo, AttestationState, ErrorInfo, HwSecurityModuleStatus, Severity,
    VolumeResources, ZDeviceState, ZInfoApp, ZInfoAppInstance, ZInfoConfigItem,
    ZInfoConfigItemStatus, ZInfoContentTree, ZInfoDevSw, ZInfoDevice, ZInfoDns, ZInfoManufacturer,
    ZInfoMsg, ZInfoNetwork, ZInfoNetworkInstance, ZInfoTypes, ZInfoVolume, ZNetworkInstanceState,
    ZSwState, ZmetIpAssignmentEntry,
};
use protocol::ids::{AppId, ContentId, NetworkInstanceId, VolumeId};
use protocol::items::{self, CONFIG_HASH, ENROLMENT_LEVEL};

use super::procfs::{self, Memory};
use crate::config::InForce;
use crate::config::translate::{Fault, Object};
use crate::context::Attestation;
use crate::domain::observed::{
    AppPhase, AppStatus, ContentPhase, ContentStatus, NetworkStatus, Observed, Trouble,
    VolumeStatus,
};
use crate::grant::Level;
use crate::paths::Paths;
use crate::status::Troubles;
use crate::uplink::Uplink;

const MIB: u64 = 1024 * 1024;

/// Of what a message tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The device.
    Device,
    /// A network instance.
    Network(NetworkInstanceId),
    /// A content tree.
    Content(ContentId),
    /// A volume.
    Volume(VolumeId),
    /// An app.
    App(AppId),
}

/// Everything that info is made of, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// From the reconcilers.
    pub observed: Arc<Observed>,
    /// The config in force.
    pub config: Arc<InForce>,
    /// Interfaces that lead out.
    pub uplinks: Vec<Uplink>,
    /// How far attestation is.
    pub attestation: Attestation,
    /// How much the controller knew of the device when it granted it its id; none: it came by EVE's way.
    pub level: Option<Level>,
    /// What is wrong with the device as a whole.
    pub troubles: Troubles,
}

/// What does not change while the agent runs.
#[derive(Clone, Debug, Default)]
pub struct Hardware {
    manufacturer: ZInfoManufacturer,
    version: String,
    cpus: u32,
    memory_mib: u64,
    storage_mib: u64,
    tpm: bool,
    hostname: String,
}

impl Hardware {
    /// Reads it from the system.
    #[must_use]
    pub fn read(machine: &Machine, version: &str, tpm: bool, paths: &Paths) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let storage = nix::sys::statvfs::statvfs(&paths.persist)
            .map_or(0, |fs| fs.blocks().saturating_mul(fs.fragment_size()));
        Self {
            manufacturer: ZInfoManufacturer {
                manufacturer: machine.manufacturer.clone(),
                product_name: machine.product.clone(),
                serial_number: machine.serial.clone(),
                uuid: machine.uuid.clone(),
                version: machine.version.clone(),
                bios_vendor: machine.firmware_vendor.clone(),
                bios_version: machine.firmware_version.clone(),
                bios_release_date: machine.firmware_date.clone(),
                ..ZInfoManufacturer::default()
            },
            version: version.to_owned(),
            cpus: std::thread::available_parallelism()
                .map_or(0, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            memory_mib: Memory::parse(&read("/proc/meminfo")).total / MIB,
            storage_mib: storage / MIB,
            tpm,
            hostname: read("/proc/sys/kernel/hostname").trim().to_owned(),
        }
    }
}

/// Whether two messages say the same, whenever they were made.
#[must_use]
pub fn same(one: &ZInfoMsg, other: &ZInfoMsg) -> bool {
    one.info_content == other.info_content
}

impl Snapshot {
    /// One message an object.
    #[must_use]
    pub fn messages(
        &self,
        device: &str,
        hardware: &Hardware,
        now: SystemTime,
    ) -> BTreeMap<Key, ZInfoMsg> {
        let message = |kind: ZInfoTypes, content| ZInfoMsg {
            ztype: kind.into(),
            dev_id: device.to_owned(),
            at_time_stamp: Some(timestamp(now)),
            info_content: Some(content),
        };
        let mut all = BTreeMap::new();
        for fault in &self.config.faults {
            let (key, kind, content) = match fault.object {
                Object::App(id) => (
                    Key::App(id),
                    ZInfoTypes::ZiApp,
                    InfoContent::Ainfo(app_fault(id, fault)),
                ),
                Object::Volume(id) => (
                    Key::Volume(id),
                    ZInfoTypes::ZiVolume,
                    InfoContent::Vinfo(volume_fault(id, fault)),
                ),
                Object::Content(id) => (
                    Key::Content(id),
                    ZInfoTypes::ZiContentTree,
                    InfoContent::Cinfo(content_fault(id, fault)),
                ),
                Object::Network(id) => (
                    Key::Network(id),
                    ZInfoTypes::ZiNetworkInstance,
                    InfoContent::Niinfo(network_fault(id, fault)),
                ),
                // These are on the board of troubles.
                Object::Datastore(_) | Object::Nameless => continue,
            };
            all.insert(key, message(kind, content));
        }
        for (id, status) in &self.observed.networks {
            let content = InfoContent::Niinfo(self.network(*id, status));
            all.entry(Key::Network(*id))
                .or_insert_with(|| message(ZInfoTypes::ZiNetworkInstance, content));
        }
        for (id, status) in &self.observed.contents {
            let content = InfoContent::Cinfo(self.content(*id, status));
            all.entry(Key::Content(*id))
                .or_insert_with(|| message(ZInfoTypes::ZiContentTree, content));
        }
        for (id, status) in &self.observed.volumes {
            let content = InfoContent::Vinfo(self.volume(*id, status));
            all.entry(Key::Volume(*id))
                .or_insert_with(|| message(ZInfoTypes::ZiVolume, content));
        }
        for (id, status) in &self.observed.apps {
            let content = InfoContent::Ainfo(self.app(*id, status));
            // An app that runs from an earlier config shows the fault of the new one.
            all.entry(Key::App(*id))
                .or_insert_with(|| message(ZInfoTypes::ZiApp, content));
        }
        all.insert(
            Key::Device,
            message(
                ZInfoTypes::ZiDevice,
                InfoContent::Dinfo(self.device(hardware)),
            ),
        );
        all
    }

    fn device(&self, hardware: &Hardware) -> ZInfoDevice {
        let boot = std::fs::read_to_string("/proc/stat")
            .ok()
            .and_then(|stat| procfs::parse_boot_time(&stat));
        let names = &self.config.names;
        let servers = |uplinks: &[Uplink]| {
            uplinks
                .iter()
                .flat_map(|uplink| uplink.dns.iter().map(IpAddr::to_string))
                .collect::<Vec<_>>()
        };
        ZInfoDevice {
            machine_arch: std::env::consts::ARCH.to_owned(),
            cpu_arch: std::env::consts::ARCH.to_owned(),
            platform: "skerry".to_owned(),
            ncpu: hardware.cpus,
            memory: hardware.memory_mib,
            storage: hardware.storage_mib,
            minfo: Some(hardware.manufacturer.clone()),
            network: self.uplinks.iter().map(uplink).collect(),
            dns: Some(ZInfoDns {
                dn_sservers: servers(&self.uplinks),
                ..ZInfoDns::default()
            }),
            boot_time: boot.map(timestamp),
            sw_list: vec![ZInfoDevSw {
                activated: true,
                status: ZSwState::Installed.into(),
                short_version: hardware.version.clone(),
                long_version: hardware.version.clone(),
                ..ZInfoDevSw::default()
            }],
            host_name: hardware.hostname.clone(),
            hsm_status: if hardware.tpm {
                HwSecurityModuleStatus::Enabled
            } else {
                HwSecurityModuleStatus::Notfound
            }
            .into(),
            config_item_status: Some(self.config_items()),
            app_instances: self
                .observed
                .apps
                .iter()
                .map(|(id, app)| ZInfoAppInstance {
                    uuid: id.to_string(),
                    name: app.name.clone(),
                    domain_name: app.unit.clone().unwrap_or_default(),
                })
                .collect(),
            state: ZDeviceState::ZdeviceStateOnline.into(),
            attestation_info: Some(attestation(&self.attestation)),
            device_name: names.device.clone(),
            project_name: names.project.name.clone(),
            project_id: names.project.id.clone(),
            enterprise_name: names.enterprise.name.clone(),
            enterprise_id: names.enterprise.id.clone(),
            ..ZInfoDevice::default()
        }
    }

    fn config_items(&self) -> ZInfoConfigItemStatus {
        let item = |value: &str, error: &str| ZInfoConfigItem {
            value: value.to_owned(),
            error: error.to_owned(),
        };
        let settings = &self.config.settings;
        let mut config_items: HashMap<String, ZInfoConfigItem> = settings
            .known
            .iter()
            .map(|(key, value)| (key.clone(), item(value, "")))
            .collect();
        config_items.insert(CONFIG_HASH.to_owned(), item(&self.config.hash, ""));
        if let Some(level) = self.level {
            config_items.insert(ENROLMENT_LEVEL.to_owned(), item(&level.to_string(), ""));
        }
        for (topic, trouble) in &self.troubles {
            config_items.insert(items::trouble(topic), item("", &trouble.message));
        }
        let mut unknown_config_items = HashMap::new();
        for (key, (value, reason)) in &settings.refused {
            match config_items.get_mut(key) {
                Some(known) => known.error = format!("{value:?}: {reason}"),
                None => {
                    unknown_config_items.insert(key.clone(), item(value, reason));
                }
            }
        }
        ZInfoConfigItemStatus {
            config_items,
            unknown_config_items,
        }
    }

    fn app(&self, id: AppId, status: &AppStatus) -> ZInfoApp {
        let wanted = self.config.desired.apps.get(&id);
        let network = status.addresses.iter().map(|(name, address)| ZInfoNetwork {
            dev_name: name.clone(),
            local_name: name.clone(),
            ip_addrs: vec![address.to_string()],
            ipv4_up: true,
            ..ZInfoNetwork::default()
        });
        ZInfoApp {
            app_id: id.to_string(),
            app_name: status.name.clone(),
            boot_time: match status.phase {
                AppPhase::Running { since } => Some(timestamp(since)),
                _ => None,
            },
            app_err: status.trouble.iter().map(error_of).collect(),
            state: self.app_state(id, status).into(),
            network: network.collect(),
            volume_refs: wanted
                .map(|app| {
                    app.volumes
                        .iter()
                        .map(|mount| mount.volume.to_string())
                        .collect()
                })
                .unwrap_or_default(),
            ..ZInfoApp::default()
        }
    }

    /// EVE's state of an app. One that is being prepared shows what it waits for.
    fn app_state(&self, id: AppId, status: &AppStatus) -> ZSwState {
        match status.phase {
            AppPhase::Preparing => self.waits_for(id),
            AppPhase::Starting => ZSwState::Booting,
            AppPhase::Running { .. } => ZSwState::Running,
            AppPhase::BackOff { .. } => ZSwState::Restarting,
            AppPhase::Stopping => ZSwState::Halting,
            AppPhase::Halted => ZSwState::Halted,
        }
    }

    fn waits_for(&self, id: AppId) -> ZSwState {
        let Some(app) = self.config.desired.apps.get(&id) else {
            return ZSwState::Initial;
        };
        for mount in &app.volumes {
            if self
                .observed
                .volumes
                .get(&mount.volume)
                .is_some_and(|volume| volume.ready)
            {
                continue;
            }
            let content = self
                .config
                .desired
                .volumes
                .get(&mount.volume)
                .map(|volume| volume.content);
            return match content
                .and_then(|content| self.observed.contents.get(&content))
                .map(|c| &c.phase)
            {
                Some(ContentPhase::Downloading { .. }) => ZSwState::DownloadStarted,
                Some(ContentPhase::Ready) => ZSwState::CreatingVolume,
                _ => ZSwState::Initial,
            };
        }
        let networks_up = app.interfaces.iter().all(|interface| {
            self.observed
                .networks
                .get(&interface.network)
                .is_some_and(|network| network.up)
        });
        if networks_up {
            ZSwState::Initial
        } else {
            ZSwState::Awaitnetworkinstance
        }
    }

    fn content(&self, id: ContentId, status: &ContentStatus) -> ZInfoContentTree {
        let digest = self
            .config
            .desired
            .contents
            .get(&id)
            .map_or_else(String::new, |content| content.digest.hex());
        let (state, progress) = match status.phase {
            ContentPhase::Waiting => (ZSwState::Initial, 0),
            ContentPhase::Downloading { done, total } => {
                (ZSwState::DownloadStarted, percent(done, total))
            }
            ContentPhase::Ready => (ZSwState::Loaded, 100),
        };
        ZInfoContentTree {
            uuid: id.to_string(),
            display_name: status.name.clone(),
            sha256: digest,
            state: state.into(),
            progress_percentage: progress,
            err: status.trouble.as_ref().map(error_of),
            ..ZInfoContentTree::default()
        }
    }

    fn volume(&self, id: VolumeId, status: &VolumeStatus) -> ZInfoVolume {
        let wanted = self.config.desired.volumes.get(&id);
        let state = if status.ready {
            ZSwState::CreatedVolume
        } else {
            ZSwState::CreatingVolume
        };
        ZInfoVolume {
            uuid: id.to_string(),
            display_name: status.name.clone(),
            resources: Some(VolumeResources {
                max_size_bytes: status.size_bytes,
                cur_size_bytes: status.used_bytes,
            }),
            state: state.into(),
            progress_percentage: if status.ready { 100 } else { 0 },
            volume_err: status.trouble.as_ref().map(error_of),
            generation_count: wanted.map_or(0, |volume| volume.generation),
            ..ZInfoVolume::default()
        }
    }

    fn network(&self, id: NetworkInstanceId, status: &NetworkStatus) -> ZInfoNetworkInstance {
        let wanted = self.config.desired.networks.get(&id);
        let state = match (&status.trouble, status.up) {
            (_, true) => ZNetworkInstanceState::ZnetinstStateOnline,
            (Some(_), false) => ZNetworkInstanceState::ZnetinstStateError,
            (None, false) => ZNetworkInstanceState::ZnetinstStateInit,
        };
        ZInfoNetworkInstance {
            network_id: id.to_string(),
            inst_type: ZNetworkInstType::ZnetInstLocal as u32,
            displayname: status.name.clone(),
            activated: status.up,
            ports: self
                .uplinks
                .iter()
                .map(|uplink| uplink.name.clone())
                .collect(),
            bridge_name: status.bridge.clone(),
            bridge_num: status
                .bridge
                .trim_start_matches(|c: char| !c.is_ascii_digit())
                .parse()
                .unwrap_or(0),
            bridge_ip_addr: wanted
                .map(|network| network.gateway.to_string())
                .unwrap_or_default(),
            ip_assignments: status
                .leases
                .values()
                .map(|address| ZmetIpAssignmentEntry {
                    ip_address: vec![address.to_string()],
                    ..ZmetIpAssignmentEntry::default()
                })
                .collect(),
            network_err: status.trouble.iter().map(error_of).collect(),
            state: state.into(),
            ..ZInfoNetworkInstance::default()
        }
    }
}

fn uplink(uplink: &Uplink) -> ZInfoNetwork {
    ZInfoNetwork {
        mac_addr: uplink.mac.clone(),
        dev_name: uplink.name.clone(),
        local_name: uplink.name.clone(),
        alias: uplink.name.clone(),
        ip_addrs: uplink.addresses.iter().map(IpAddr::to_string).collect(),
        default_routers: uplink.routers.iter().map(ToString::to_string).collect(),
        dns: Some(ZInfoDns {
            dn_sservers: uplink.dns.iter().map(IpAddr::to_string).collect(),
            dn_sdomain: uplink.domain.clone(),
            ..ZInfoDns::default()
        }),
        ipv4_up: uplink.addresses.iter().any(IpAddr::is_ipv4),
        uplink: true,
        ..ZInfoNetwork::default()
    }
}

fn attestation(attestation: &Attestation) -> AttestationInfo {
    match attestation {
        Attestation::Trying { .. } => AttestationInfo {
            state: AttestationState::AttestWait.into(),
            error: None,
        },
        Attestation::Granted { .. } => AttestationInfo {
            state: AttestationState::Complete.into(),
            error: None,
        },
        Attestation::Failed { reason, at, .. } => AttestationInfo {
            state: AttestationState::RestartWait.into(),
            error: Some(error_info(reason, *at, None)),
        },
    }
}

fn app_fault(id: AppId, fault: &Fault) -> ZInfoApp {
    ZInfoApp {
        app_id: id.to_string(),
        app_name: fault.name.clone(),
        app_err: vec![error_info(&fault.message, None, None)],
        state: ZSwState::Error.into(),
        ..ZInfoApp::default()
    }
}

fn volume_fault(id: VolumeId, fault: &Fault) -> ZInfoVolume {
    ZInfoVolume {
        uuid: id.to_string(),
        display_name: fault.name.clone(),
        volume_err: Some(error_info(&fault.message, None, None)),
        state: ZSwState::Error.into(),
        ..ZInfoVolume::default()
    }
}

fn content_fault(id: ContentId, fault: &Fault) -> ZInfoContentTree {
    ZInfoContentTree {
        uuid: id.to_string(),
        display_name: fault.name.clone(),
        err: Some(error_info(&fault.message, None, None)),
        state: ZSwState::Error.into(),
        ..ZInfoContentTree::default()
    }
}

fn network_fault(id: NetworkInstanceId, fault: &Fault) -> ZInfoNetworkInstance {
    ZInfoNetworkInstance {
        network_id: id.to_string(),
        displayname: fault.name.clone(),
        network_err: vec![error_info(&fault.message, None, None)],
        state: ZNetworkInstanceState::ZnetinstStateError.into(),
        ..ZInfoNetworkInstance::default()
    }
}

fn error_of(trouble: &Trouble) -> ErrorInfo {
    error_info(&trouble.message, Some(trouble.at), trouble.retry_at)
}

fn error_info(message: &str, at: Option<SystemTime>, retry_at: Option<SystemTime>) -> ErrorInfo {
    // What is tried again by itself is a warning; what waits for somebody is an error.
    let severity = if retry_at.is_some() {
        Severity::Warning
    } else {
        Severity::Error
    };
    ErrorInfo {
        description: message.to_owned(),
        timestamp: at.map(timestamp),
        severity: severity.into(),
        retry_condition: retry_at
            .and_then(|at| jiff::Timestamp::try_from(at).ok())
            .map(|at| format!("tried again at {}", at.strftime("%Y-%m-%dT%H:%M:%SZ")))
            .unwrap_or_default(),
        ..ErrorInfo::default()
    }
}

fn percent(done: u64, total: Option<u64>) -> u32 {
    let total = u128::from(total.unwrap_or(0));
    // Complete is what has been verified, so the last percent stays open.
    (u128::from(done) * 100)
        .checked_div(total)
        .map_or(0, |percent| u32::try_from(percent.min(99)).unwrap_or(99))
}

/// A point in time as it goes over the wire.
#[must_use]
pub fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests;
