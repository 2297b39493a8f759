//! App instances.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hypervisor_api::config::{
    MAX_COMMAND_LINE, MAX_DEVICES, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB,
};
use protocol::eve::config::{Ace, AppInstanceConfig, NetworkAdapter, VmMode, VolumeRef};

use super::{Object, Work, uuid};
use crate::domain::desired::{
    App, AppInterface, ContentKind, PortMap, Protocol, Runtime, VolumeMount,
};
use crate::domain::ids::{NetworkId, VolumeId};

/// Disks that have a name of one letter, `vda` to `vdz`.
const MAX_DISKS: usize = 26;

/// Device ports given away so far, with the app that has them.
#[derive(Default)]
pub(super) struct Ports(BTreeMap<(bool, u16), String>);

impl Ports {
    fn key(map: &PortMap) -> (bool, u16) {
        (map.protocol == Protocol::Udp, map.device_port)
    }

    /// Gives an app its ports, all or none.
    fn claim(&mut self, app: &str, interfaces: &[AppInterface]) -> Result<(), String> {
        let mut own = BTreeSet::new();
        for map in interfaces.iter().flat_map(|plug| &plug.port_maps) {
            let (key, port) = (Self::key(map), map.device_port);
            if let Some(owner) = self.0.get(&key) {
                return Err(format!(
                    "port {port} of the device is given to app {owner} already"
                ));
            }
            if !own.insert(key) {
                return Err(format!("it wants port {port} of the device twice"));
            }
        }
        self.0
            .extend(own.into_iter().map(|key| (key, app.to_owned())));
        Ok(())
    }
}

pub(super) fn app(
    work: &Work<'_>,
    config: &AppInstanceConfig,
    ports: &mut Ports,
) -> Result<App, String> {
    let vm = config
        .fixedresources
        .as_ref()
        .ok_or("it has no resources")?;
    if !config.adapters.is_empty() {
        return Err("handing devices to apps is not supported".to_owned());
    }
    if config.volume_ref_list.is_empty() {
        let hint = if config.drives.is_empty() {
            ""
        } else {
            "; EVE's old drives are not supported, use volumes"
        };
        return Err(format!("it has no volume to start from{hint}"));
    }
    let memory_mib = vm.memory.div_ceil(1024);
    if memory_mib < MIN_MEMORY_MIB {
        return Err(format!(
            "{} KiB of memory are too few; it needs {MIN_MEMORY_MIB} MiB at least",
            vm.memory
        ));
    }
    if memory_mib > MAX_MEMORY_MIB {
        return Err(format!(
            "{memory_mib} MiB of memory are too many; up to {MAX_MEMORY_MIB} are possible"
        ));
    }
    let vcpus = u8::try_from(vm.vcpus.max(1))
        .ok()
        .filter(|vcpus| *vcpus <= MAX_VCPUS)
        .ok_or_else(|| {
            format!(
                "{} vCPUs are too many; up to {MAX_VCPUS} are possible",
                vm.vcpus
            )
        })?;

    let volumes = config
        .volume_ref_list
        .iter()
        .map(|volume| mount(work, volume))
        .collect::<Result<Vec<_>, _>>()?;
    let native = vm.virtualization_mode() == VmMode::Nohyper;
    let runtime = match (root_kind(work, &volumes)?, native) {
        (ContentKind::Container, true) => Runtime::ContainerNative,
        (ContentKind::Container, false) => Runtime::ContainerMicrovm,
        (_, false) => Runtime::Machine {
            cmdline: vm.extraargs.clone(),
        },
        (_, true) => {
            return Err(
                "a machine image cannot run without a virtual machine (NOHYPER)".to_owned(),
            );
        }
    };
    let interfaces = config
        .interfaces
        .iter()
        .map(|adapter| interface(work, adapter))
        .collect::<Result<Vec<_>, _>>()?;

    let user_data = user_data(work, config)?;
    let (env, user_data) = match runtime {
        Runtime::Machine { .. } => (Vec::new(), user_data),
        _ => (environment(user_data.as_deref().unwrap_or_default())?, None),
    };

    let app = App {
        name: config.displayname.clone(),
        activate: config.activate,
        vcpus,
        memory_mib,
        runtime,
        volumes,
        interfaces,
        env,
        user_data,
        restart_counter: config.restart.as_ref().map_or(0, |command| command.counter),
        purge_counter: config.purge.as_ref().map_or(0, |command| command.counter),
    };
    fits(&app)?;
    ports.claim(&app.name, &app.interfaces)?;
    Ok(app)
}

/// Whether a monitor takes the machine; one that it refuses would be started over and over.
fn fits(app: &App) -> Result<(), String> {
    if let Runtime::Machine { cmdline } = &app.runtime
        && (cmdline.len() > MAX_COMMAND_LINE || cmdline.contains('\0'))
    {
        return Err(format!(
            "its kernel command line has {} bytes; up to {MAX_COMMAND_LINE} without a zero byte are possible",
            cmdline.len()
        ));
    }
    let (disks, devices) = (app.disks(), app.devices());
    if disks > MAX_DISKS || devices > MAX_DEVICES {
        return Err(format!(
            "{} volumes and {} interfaces are too many: with what every machine has they are {devices} devices, \
             {disks} of them disks, and there is room for {MAX_DEVICES}, {MAX_DISKS} of them disks",
            app.volumes.len(),
            app.interfaces.len()
        ));
    }
    Ok(())
}

fn mount(work: &Work<'_>, reference: &VolumeRef) -> Result<VolumeMount, String> {
    let volume =
        VolumeId(uuid(&reference.uuid).map_err(|error| format!("a volume of it: {error}"))?);
    let Some(found) = work.out.desired.volumes.get(&volume) else {
        return Err(work.why_missing("volume", Object::Volume(volume), volume.0));
    };
    if found.generation != reference.generation_count {
        return Err(format!(
            "it wants generation {} of volume {volume}, and the config has {}",
            reference.generation_count, found.generation
        ));
    }
    Ok(VolumeMount {
        volume,
        mount_dir: reference.mount_dir.clone(),
    })
}

fn root_kind(work: &Work<'_>, volumes: &[VolumeMount]) -> Result<ContentKind, String> {
    volumes
        .first()
        .and_then(|mount| work.out.desired.volumes.get(&mount.volume))
        .and_then(|volume| work.out.desired.contents.get(&volume.content))
        .map(|content| content.kind)
        .ok_or_else(|| "its first volume has no content".to_owned())
}

fn interface(work: &Work<'_>, adapter: &NetworkAdapter) -> Result<AppInterface, String> {
    let name = &adapter.name;
    let network = NetworkId(
        uuid(&adapter.network_id)
            .map_err(|error| format!("network of interface {name}: {error}"))?,
    );
    if !work.out.desired.networks.contains_key(&network) {
        return Err(work.why_missing("network instance", Object::Network(network), network.0));
    }
    if adapter.access_vlan_id != 0 {
        return Err(format!("interface {name}: VLANs are not supported"));
    }
    let mac = match adapter.mac_address.as_str() {
        "" => None,
        text => Some(
            mac(text)
                .ok_or_else(|| format!("interface {name}: {text:?} is not a hardware address"))?,
        ),
    };
    let address = match adapter.addr.as_str() {
        "" => None,
        text => Some(
            text.parse::<Ipv4Addr>()
                .map_err(|_| format!("interface {name}: {text:?} is not an IPv4 address"))?,
        ),
    };
    let mut port_maps = Vec::new();
    for rule in &adapter.acls {
        port_maps.extend(access_rule(rule).map_err(|error| format!("interface {name}: {error}"))?);
    }
    Ok(AppInterface {
        name: name.clone(),
        network,
        mac,
        address,
        port_maps,
    })
}

/// A port map, or nothing for a rule that only says again what is the case: everything outbound is open. A rule that
/// would close something is refused, since an app that is more open than its owner asked for must not start.
fn access_rule(rule: &Ace) -> Result<Option<PortMap>, String> {
    let matched = |kind: &str| {
        rule.matches
            .iter()
            .find(|m| m.r#type == kind)
            .map(|m| m.value.as_str())
    };
    let Some(action) = rule.actions.iter().find(|action| action.portmap) else {
        let closes = rule
            .actions
            .iter()
            .any(|action| action.drop || action.limit);
        let all = rule.matches.iter().all(|m| match m.r#type.as_str() {
            "ip" => matches!(m.value.as_str(), "0.0.0.0/0" | "::/0"),
            "host" => m.value.is_empty(),
            _ => false,
        });
        return if all && !closes {
            Ok(None)
        } else {
            Err("access rules other than port maps and \"everything\" are not supported".to_owned())
        };
    };
    if rule.actions.len() != 1
        || rule
            .matches
            .iter()
            .any(|m| !matches!(m.r#type.as_str(), "protocol" | "lport"))
    {
        return Err(
            "a port map can have the matches protocol and lport and no further action".to_owned(),
        );
    }
    let protocol = match matched("protocol") {
        Some("tcp") => Protocol::Tcp,
        Some("udp") => Protocol::Udp,
        other => {
            return Err(format!(
                "a port map for protocol {:?}; expected tcp or udp",
                other.unwrap_or("none")
            ));
        }
    };
    let port = |what: &str, number: Option<u16>| {
        number
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("a port map has no usable {what}"))
    };
    Ok(Some(PortMap {
        protocol,
        device_port: port("lport", matched("lport").and_then(|text| text.parse().ok()))?,
        app_port: port("appPort", u16::try_from(action.app_port).ok())?,
    }))
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    // The lowest bit of the first byte marks a group address (IEEE 802), which no interface can have.
    (parts.next().is_none() && mac[0] & 1 == 0).then_some(mac)
}

fn user_data(work: &Work<'_>, config: &AppInstanceConfig) -> Result<Option<String>, String> {
    let encoded = match &config.cipher_data {
        Some(block) => {
            work.open(block)
                .map_err(|error| format!("its user data: {error}"))?
                .protected_user_data
        }
        None => config.user_data.clone(),
    };
    if encoded.trim().is_empty() {
        return Ok(None);
    }
    // Base64 text is sometimes broken into lines.
    let compact: String = encoded.split_ascii_whitespace().collect();
    let bytes = BASE64
        .decode(compact)
        .map_err(|_| "its user data is not base64".to_owned())?;
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| "its user data is not text".to_owned())
}

/// `NAME=value` lines; empty ones and comments are passed over.
fn environment(text: &str) -> Result<Vec<String>, String> {
    text.lines()
        .map(|line| line.trim_end_matches('\r'))
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|(index, line)| match line.split_once('=') {
            Some((name, value))
                if !name.is_empty()
                    && !name.contains(char::is_whitespace)
                    && !value.contains('\0') =>
            {
                Ok(line.to_owned())
            }
            // The line itself may be a secret.
            _ => Err(format!(
                "line {} of its environment is not NAME=value",
                index + 1
            )),
        })
        .collect()
}
