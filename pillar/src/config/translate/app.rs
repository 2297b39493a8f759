//! App instances.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hypervisor_api::config::{
    MAX_COMMAND_LINE, MAX_DEVICES, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB,
};
use hypervisor_api::mac::MacAddress;
use protocol::eve::config::{Ace, AppInstanceConfig, NetworkAdapter, VmMode, VolumeRef};
use protocol::ids::{NetworkInstanceId, VolumeId};

use super::{Object, ObjectError, Work, id};
use crate::domain::desired::{
    App, AppInterface, ContentKind, MAX_DISKS, PortMap, Protocol, Runtime, VolumeMount,
};

/// Device ports given away so far, with the app that has them.
#[derive(Default)]
pub(super) struct Ports(BTreeMap<(bool, u16), String>);

impl Ports {
    fn key(map: &PortMap) -> (bool, u16) {
        (map.protocol == Protocol::Udp, map.device_port)
    }

    /// Gives an app its ports, all or none.
    fn claim(&mut self, app: &str, interfaces: &[AppInterface]) -> Result<(), ObjectError> {
        let mut own = BTreeSet::new();
        for map in interfaces.iter().flat_map(|plug| &plug.port_maps) {
            let (key, port) = (Self::key(map), map.device_port);
            if let Some(owner) = self.0.get(&key) {
                return Err(ObjectError::PortTaken {
                    port,
                    owner: owner.clone(),
                });
            }
            if !own.insert(key) {
                return Err(ObjectError::PortTwice(port));
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
) -> Result<App, ObjectError> {
    let vm = config
        .fixedresources
        .as_ref()
        .ok_or(ObjectError::NoResources)?;
    if !config.adapters.is_empty() {
        return Err(ObjectError::Adapters);
    }
    if config.volume_ref_list.is_empty() {
        return Err(ObjectError::NoVolume {
            drives: !config.drives.is_empty(),
        });
    }
    let memory_mib = vm.memory.div_ceil(1024);
    if memory_mib < MIN_MEMORY_MIB {
        return Err(ObjectError::LittleMemory(vm.memory));
    }
    if memory_mib > MAX_MEMORY_MIB {
        return Err(ObjectError::MuchMemory(memory_mib));
    }
    let vcpus = u8::try_from(vm.vcpus.max(1))
        .ok()
        .filter(|vcpus| *vcpus <= MAX_VCPUS)
        .ok_or(ObjectError::Vcpus(vm.vcpus))?;

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
            return Err(ObjectError::NativeMachine);
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
fn fits(app: &App) -> Result<(), ObjectError> {
    if let Runtime::Machine { cmdline } = &app.runtime
        && (cmdline.len() > MAX_COMMAND_LINE || cmdline.contains('\0'))
    {
        return Err(ObjectError::CommandLine(cmdline.len()));
    }
    let (disks, devices) = (app.disks(), app.devices());
    if disks > MAX_DISKS || devices > MAX_DEVICES {
        return Err(ObjectError::Devices {
            volumes: app.volumes.len(),
            interfaces: app.interfaces.len(),
            devices,
            disks,
        });
    }
    Ok(())
}

fn mount(work: &Work<'_>, reference: &VolumeRef) -> Result<VolumeMount, ObjectError> {
    let volume: VolumeId = id(&reference.uuid).map_err(ObjectError::within("a volume of it"))?;
    let Some(found) = work.out.desired.volumes.get(&volume) else {
        return Err(work.why_missing("volume", Object::Volume(volume), volume.0));
    };
    if found.generation != reference.generation_count {
        return Err(ObjectError::Generation {
            volume,
            wanted: reference.generation_count,
            found: found.generation,
        });
    }
    Ok(VolumeMount {
        volume,
        mount_dir: reference.mount_dir.clone(),
    })
}

fn root_kind(work: &Work<'_>, volumes: &[VolumeMount]) -> Result<ContentKind, ObjectError> {
    volumes
        .first()
        .and_then(|mount| work.out.desired.volumes.get(&mount.volume))
        .and_then(|volume| work.out.desired.contents.get(&volume.content))
        .map(|content| content.kind)
        .ok_or(ObjectError::NoContent)
}

fn interface(work: &Work<'_>, adapter: &NetworkAdapter) -> Result<AppInterface, ObjectError> {
    let name = &adapter.name;
    let here = |error| ObjectError::within(format!("interface {name}"))(error);
    let network: NetworkInstanceId = id(&adapter.network_id)
        .map_err(ObjectError::within(format!("network of interface {name}")))?;
    if !work.out.desired.networks.contains_key(&network) {
        return Err(work.why_missing("network instance", Object::Network(network), network.0));
    }
    if adapter.access_vlan_id != 0 {
        return Err(here(ObjectError::Vlan));
    }
    let mac = match adapter.mac_address.as_str() {
        "" => None,
        text => Some(mac(text).ok_or_else(|| here(ObjectError::Mac(text.to_owned())))?),
    };
    let address = match adapter.addr.as_str() {
        "" => None,
        text => Some(
            text.parse::<Ipv4Addr>()
                .map_err(|_| here(ObjectError::InterfaceAddress(text.to_owned())))?,
        ),
    };
    let mut port_maps = Vec::new();
    for rule in &adapter.acls {
        port_maps.extend(access_rule(rule).map_err(here)?);
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
fn access_rule(rule: &Ace) -> Result<Option<PortMap>, ObjectError> {
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
            Err(ObjectError::AccessRule)
        };
    };
    if rule.actions.len() != 1
        || rule
            .matches
            .iter()
            .any(|m| !matches!(m.r#type.as_str(), "protocol" | "lport"))
    {
        return Err(ObjectError::PortMap);
    }
    let protocol = match matched("protocol") {
        Some("tcp") => Protocol::Tcp,
        Some("udp") => Protocol::Udp,
        other => {
            return Err(ObjectError::PortProtocol(
                other.unwrap_or("none").to_owned(),
            ));
        }
    };
    let port = |what: &'static str, number: Option<u16>| {
        number
            .filter(|port| *port != 0)
            .ok_or(ObjectError::Port(what))
    };
    Ok(Some(PortMap {
        protocol,
        device_port: port("lport", matched("lport").and_then(|text| text.parse().ok()))?,
        app_port: port("appPort", u16::try_from(action.app_port).ok())?,
    }))
}

/// An address that one interface can have.
fn mac(text: &str) -> Option<MacAddress> {
    text.parse::<MacAddress>()
        .ok()
        .filter(|mac| !mac.is_group())
}

fn user_data(work: &Work<'_>, config: &AppInstanceConfig) -> Result<Option<String>, ObjectError> {
    let encoded = match &config.cipher_data {
        Some(block) => work.open("its user data", block)?.protected_user_data,
        None => config.user_data.clone(),
    };
    if encoded.trim().is_empty() {
        return Ok(None);
    }
    // Base64 text is sometimes broken into lines.
    let compact: String = encoded.split_ascii_whitespace().collect();
    let bytes = BASE64
        .decode(compact)
        .map_err(|_| ObjectError::UserDataBase64)?;
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| ObjectError::UserDataText)
}

/// `NAME=value` lines; empty ones and comments are passed over.
fn environment(text: &str) -> Result<Vec<String>, ObjectError> {
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
            _ => Err(ObjectError::Environment(index + 1)),
        })
        .collect()
}
