//! What an app is started with: everything that its process depends on, resolved to paths, names and numbers.
//!
//! Two equal values start equal processes. The fingerprint of the one that a process was started with lies beside it, so
//! that the agent knows after its own restart whether the process is still what is wanted.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use guest_api::{ContainerSpec, Interface};
use hypervisor_api::config::DiskFormat;
use hypervisor_api::mac::MacAddress;
use protocol::digest::Digest;
use protocol::ids::AppId;
use serde::Serialize;

use super::super::allocation::Allocated;
use super::super::content::Contents;
use super::super::content::image::Image;
use super::super::content::manifest::ImageConfig;
use super::super::content::rootfs::Notes;
use super::super::ledger::{AppNumber, Port, mac};
use super::super::network::Networks;
use super::super::volume::Volumes;
use super::life::{GRACE, KILL_GRACE};
use crate::domain::desired::{App, Runtime};
use crate::domain::observed::Trouble;

/// Search path of a process whose image names none.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A disk of an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StartDisk {
    /// Its file.
    pub path: PathBuf,
    /// How its bytes are to be read.
    pub format: DiskFormat,
    /// Not writable.
    pub readonly: bool,
    /// Where a container sees it; empty for machines.
    pub mount_dir: String,
}

/// An interface of an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StartNet {
    /// Tap, or the host's end of the veth pair.
    pub tap: String,
    /// Bridge that it is plugged into.
    pub bridge: String,
    /// The app's hardware address.
    pub mac: MacAddress,
    /// The app's address.
    pub address: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
    /// The device's address on the bridge.
    pub gateway: Ipv4Addr,
}

/// What runs, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum StartKind {
    /// A machine from its image.
    Machine {
        /// Kernel.
        kernel: PathBuf,
        /// Initial RAM file systems.
        initrds: Vec<PathBuf>,
        /// Kernel command line.
        cmdline: String,
        /// The root disk.
        disk: StartDisk,
        /// cloud-init user data.
        user_data: Option<String>,
    },
    /// A container in a microVM.
    Microvm {
        /// Root file system, EROFS.
        rootfs: PathBuf,
        /// Disk of the writable layer.
        scratch: PathBuf,
        /// What guest-init sets up.
        container: ContainerSpec,
        /// Signal that ends it nicely.
        stop_signal: i32,
    },
    /// A container on the host's kernel.
    Native {
        /// Root file system, EROFS.
        rootfs: PathBuf,
        /// Disk of the writable layer.
        scratch: PathBuf,
        /// What it is to be.
        container: ContainerSpec,
        /// Signal that ends it nicely.
        stop_signal: i32,
    },
}

/// What an app is started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Start {
    /// The app.
    pub app: AppId,
    /// Name for people.
    pub name: String,
    /// Its number.
    pub number: AppNumber,
    /// vCPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// What runs.
    pub kind: StartKind,
    /// Further disks.
    pub disks: Vec<StartDisk>,
    /// Interfaces.
    pub nets: Vec<StartNet>,
    /// How often an operator asked for a restart, and for a purge.
    pub counters: (u32, u32),
}

impl Start {
    /// A short text that differs when anything differs.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        // Serialising plain data into memory does not fail; if it did, all fingerprints would be equal and the app would
        // go on as it is.
        Digest::of(&serde_json::to_vec(self).unwrap_or_default()).hex()
    }
}

/// Why an app cannot be started yet: the trouble of what it waits for, if that has one.
pub type NotReady = Option<Trouble>;

/// Resolves what an app is to be started with.
pub fn resolve(
    id: AppId,
    app: &App,
    allocated: &Allocated,
    contents: &Contents,
    volumes: &Volumes,
    networks: &Networks,
) -> Result<Start, NotReady> {
    let number = allocated.ledger.app(id).ok_or(None)?;
    let mut disks = Vec::new();
    let mut image = None;
    for (index, mount) in app.volumes.iter().enumerate() {
        let wanted = allocated.desired.volumes.get(&mount.volume).ok_or(None)?;
        let content = contents.get(&wanted.content).ok_or(None)?;
        let Some(here) = &content.image else {
            return Err(content.status.trouble.clone());
        };
        if index == 0 {
            image = Some(here.clone());
        }
        let volume = volumes.get(&mount.volume).ok_or(None)?;
        let current =
            volume.generation >= allocated.ledger.generation(mount.volume, wanted.generation);
        match &volume.status.path {
            Some(path) if volume.status.ready && current => disks.push(StartDisk {
                path: path.clone(),
                format: volume.format,
                readonly: wanted.readonly,
                mount_dir: mount.mount_dir.clone(),
            }),
            _ => return Err(volume.status.trouble.clone()),
        }
    }
    let mut nets = Vec::new();
    let mut dns = Vec::new();
    for (interface, plug) in app.interfaces.iter().enumerate() {
        let port = Port { app: id, interface };
        let wanted = allocated.desired.networks.get(&plug.network).ok_or(None)?;
        let network = networks.get(&plug.network).ok_or(None)?;
        let address = allocated.ledger.lease(plug.network, port);
        // The lease is told after the tap was made.
        let told = network.leases.contains_key(&id);
        let (Some(address), true, true) = (address, network.up, told) else {
            return Err(network.trouble.clone());
        };
        if wanted.dns.is_empty() {
            dns.push(IpAddr::V4(wanted.gateway));
        } else {
            dns.extend(wanted.dns.iter().copied().map(IpAddr::V4));
        }
        nets.push(StartNet {
            tap: number.tap(interface),
            bridge: network.bridge.clone(),
            mac: plug.mac.unwrap_or_else(|| mac(port)),
            address,
            prefix: wanted.prefix,
            gateway: wanted.gateway,
        });
    }
    let trouble = |message: &str| {
        Some(Trouble {
            message: message.to_owned(),
            at: std::time::SystemTime::now(),
            retry_at: None,
        })
    };
    let Some(image) = image else {
        return Err(trouble(
            "the app has no volume to start from; give it an image",
        ));
    };
    let root = disks.remove(0);
    let kind = match (&*image, &app.runtime) {
        (
            Image::Machine {
                kernel, initrds, ..
            },
            Runtime::Machine { cmdline },
        ) => StartKind::Machine {
            kernel: kernel.clone(),
            initrds: initrds.clone(),
            cmdline: cmdline.clone(),
            disk: root,
            user_data: app.user_data.clone(),
        },
        (
            Image::Container {
                rootfs,
                config,
                notes,
            },
            Runtime::ContainerMicrovm | Runtime::ContainerNative,
        ) => {
            let stop_signal = signal_number(&config.stop_signal);
            let native = app.runtime == Runtime::ContainerNative;
            let container =
                container(app, config, notes, &nets, dns, root.readonly).map_err(trouble)?;
            let (rootfs, scratch) = (rootfs.clone(), root.path);
            if native {
                StartKind::Native {
                    rootfs,
                    scratch,
                    container,
                    stop_signal,
                }
            } else {
                StartKind::Microvm {
                    rootfs,
                    scratch,
                    container,
                    stop_signal,
                }
            }
        }
        (Image::Machine { .. }, _) => {
            return Err(trouble(
                "the image is a machine image, but the app is a container",
            ));
        }
        (Image::Container { .. }, _) => {
            return Err(trouble(
                "the image is a container image, but the app is a machine",
            ));
        }
    };
    Ok(Start {
        app: id,
        name: app.name.clone(),
        number,
        vcpus: app.vcpus.max(1),
        memory_mib: app.memory_mib,
        kind,
        disks,
        nets,
        counters: (app.restart_counter, app.purge_counter),
    })
}

fn container(
    app: &App,
    config: &ImageConfig,
    notes: &Notes,
    nets: &[StartNet],
    dns: Vec<IpAddr>,
    readonly_root: bool,
) -> Result<ContainerSpec, &'static str> {
    let args: Vec<String> = config
        .entrypoint
        .iter()
        .chain(&config.cmd)
        .cloned()
        .collect();
    if args.is_empty() {
        return Err("the image names no program to run; give it an ENTRYPOINT or CMD");
    }
    let interfaces = nets
        .iter()
        .enumerate()
        .map(|(index, net)| Interface {
            address: IpAddr::V4(net.address),
            prefix: net.prefix,
            // One default route: the first interface's.
            gateway: (index == 0).then_some(IpAddr::V4(net.gateway)),
        })
        .collect();
    Ok(ContainerSpec {
        hostname: hostname(&app.name),
        args,
        env: environment(&config.env, &app.env),
        cwd: if config.working_dir.starts_with('/') {
            config.working_dir.clone()
        } else {
            format!("/{}", config.working_dir)
        },
        uid: notes.uid,
        gid: notes.gid,
        additional_gids: notes.groups.clone(),
        readonly_root,
        interfaces,
        dns,
        // Filled in by who knows the devices' names.
        volumes: Vec::new(),
        stop_signal: signal_number(&config.stop_signal),
        stop_grace_seconds: u32::try_from(GRACE.saturating_sub(KILL_GRACE).as_secs()).unwrap_or(0),
    })
}

/// A host name out of an app's name: letters, digits and hyphens, at most 63 (RFC 1123, 2.1).
#[must_use]
pub fn hostname(name: &str) -> String {
    let text: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(63)
        .collect();
    let text = text.trim_matches('-');
    if text.is_empty() {
        "app".to_owned()
    } else {
        text.to_owned()
    }
}

/// The image's environment with the app's over it.
fn environment(image: &[String], app: &[String]) -> Vec<String> {
    let name = |line: &str| line.split('=').next().unwrap_or_default().to_owned();
    let mut lines: Vec<String> = vec![PATH.to_owned()];
    for line in image.iter().chain(app) {
        if line.starts_with('=') || !line.contains('=') {
            continue;
        }
        lines.retain(|other| name(other) != name(line));
        lines.push(line.clone());
    }
    lines
}

/// A signal by the name or number that an image config gives; SIGTERM if it gives none that is known.
fn signal_number(text: &str) -> i32 {
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) {
            number
        } else {
            libc::SIGTERM
        };
    }
    let name = if text.starts_with("SIG") {
        text.to_owned()
    } else {
        format!("SIG{text}")
    };
    name.parse::<nix::sys::signal::Signal>()
        .map_or(libc::SIGTERM, |signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apps_environment_goes_over_the_images() {
        let lines = |lines: &[&str]| {
            lines
                .iter()
                .map(|line| (*line).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            environment(
                &lines(&["A=1", "B=2", "junk", "=x"]),
                &lines(&["A=3=4", "C="])
            ),
            lines(&[PATH, "B=2", "A=3=4", "C="])
        );
        assert_eq!(environment(&lines(&["PATH=/x"]), &[]), lines(&["PATH=/x"]));
    }

    #[test]
    fn signals_and_host_names() {
        for (text, number) in [
            ("", 15),
            ("SIGQUIT", 3),
            ("QUIT", 3),
            ("9", 9),
            ("99", 15),
            ("SIGNOTHING", 15),
        ] {
            assert_eq!(signal_number(text), number, "{text}");
        }
        assert_eq!(hostname("Web Shop_1"), "web-shop-1");
        assert_eq!(hostname("--"), "app");
        assert_eq!(hostname(&"x".repeat(100)).len(), 63);
    }
}
