//! What the device should be, translated from the controller's config by the edge (`config`) and read by the reconcilers.
//!
//! A [`Desired`] is always whole: what is not in it is to be taken away. References between its parts were checked when
//! it was made.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use hypervisor_api::config::DiskFormat;
use hypervisor_api::mac::MacAddress;
use protocol::authority::Authority;
use protocol::digest::Digest;
use protocol::ids::{AppId, ContentId, DatastoreId, NetworkInstanceId, VolumeId};
use protocol::image::Repository;
use serde::{Deserialize, Serialize};

/// Disks of an app that have a name of one letter, `vda` to `vdz`.
pub const MAX_DISKS: usize = 26;

/// Everything that the controller wants of this device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Places to download from.
    pub datastores: BTreeMap<DatastoreId, Datastore>,
    /// Content trees.
    pub contents: BTreeMap<ContentId, Content>,
    /// Volumes.
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// Network instances.
    pub networks: BTreeMap<NetworkInstanceId, NetworkInstance>,
    /// Apps.
    pub apps: BTreeMap<AppId, App>,
}

/// A place to download from. Only OCI registries so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datastore {
    /// Where the registry is; spoken to over TLS.
    pub registry: Authority,
    /// Further certificate authorities to trust there, PEM.
    pub ca_certificates: Vec<String>,
    /// Who to be there, if the registry asks.
    pub login: Option<Login>,
}

/// Who to be at a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Login")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// A content tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Name for people.
    pub name: String,
    /// Where it comes from.
    pub datastore: DatastoreId,
    /// Repository in the registry, without tag or digest.
    pub repository: Repository,
    /// Digest of the image's manifest.
    pub digest: Digest,
    /// What it holds.
    pub kind: ContentKind,
}

/// What a content tree holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentKind {
    /// A container image (OCI image manifest with layers).
    Container,
    /// A machine image: an OCI artifact whose layers carry the annotation `org.lfedge.eci.role` (`kernel`, `initrd`,
    /// `disk-root`); the root disk is raw.
    MachineRaw,
    /// The same with a qcow2 root disk.
    MachineQcow2,
}

impl ContentKind {
    /// Format of the volumes that are made from it.
    #[must_use]
    pub fn disk_format(self) -> DiskFormat {
        match self {
            Self::MachineQcow2 => DiskFormat::Qcow2,
            Self::Container | Self::MachineRaw => DiskFormat::Raw,
        }
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Name for people.
    pub name: String,
    /// The content that it starts as.
    pub content: ContentId,
    /// Counts up when the volume is to be made anew (EVE's purge).
    pub generation: i64,
    /// Size in bytes; 0: as large as its content.
    pub size_bytes: u64,
    /// Not writable for the app.
    pub readonly: bool,
}

/// A network instance. Only local ones (bridge, NAT, DHCP, DNS) so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkInstance {
    /// Name for people.
    pub name: String,
    /// The gateway's address; it is the first of the subnet if the controller names none.
    pub gateway: Ipv4Addr,
    /// Prefix length of the subnet.
    pub prefix: u8,
    /// First and last address given to apps.
    pub range: (Ipv4Addr, Ipv4Addr),
    /// Name servers for apps; empty: the gateway answers.
    pub dns: Vec<Ipv4Addr>,
}

/// An app instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// Name for people.
    pub name: String,
    /// Whether it is to run.
    pub activate: bool,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// How it is run.
    pub runtime: Runtime,
    /// Its volumes; the first is the root disk or the container image.
    pub volumes: Vec<VolumeMount>,
    /// Its interfaces.
    pub interfaces: Vec<AppInterface>,
    /// Environment for containers, `NAME=value`.
    pub env: Vec<String>,
    /// cloud-init user data for VMs, as text.
    pub user_data: Option<String>,
    /// Counts up for each restart that an operator asks for.
    pub restart_counter: u32,
    /// Counts up for each purge (volumes made anew, then restart) that an operator asks for.
    pub purge_counter: u32,
}

impl App {
    /// Disks that its machine has; 0 for a native container.
    #[must_use]
    pub fn disks(&self) -> usize {
        match self.runtime {
            // User data comes on a disk of its own.
            Runtime::Machine { .. } => self.volumes.len() + usize::from(self.user_data.is_some()),
            // The image's root file system, which all of its apps share, and a writable layer in the place of the first
            // volume.
            Runtime::ContainerMicrovm => self.volumes.len() + 1,
            Runtime::ContainerNative => 0,
        }
    }

    /// Devices that its machine has; 0 for a native container.
    #[must_use]
    pub fn devices(&self) -> usize {
        let own = match self.runtime {
            // Console and entropy.
            Runtime::Machine { .. } => 2,
            // Console, output, entropy and vsock.
            Runtime::ContainerMicrovm => 4,
            Runtime::ContainerNative => return 0,
        };
        own + self.disks() + self.interfaces.len()
    }
}

/// How an app is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// A virtual machine with the kernel and initrd of its machine image.
    Machine {
        /// Kernel command line.
        cmdline: String,
    },
    /// A container in a microVM of its own.
    ContainerMicrovm,
    /// A container on the host's kernel.
    ContainerNative,
}

/// A volume and its place in an app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeMount {
    /// The volume.
    pub volume: VolumeId,
    /// Where a container sees it; empty for the first volume and for VMs.
    pub mount_dir: String,
}

/// An interface of an app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppInterface {
    /// Name for people.
    pub name: String,
    /// The network that it is plugged into.
    pub network: NetworkInstanceId,
    /// A fixed hardware address, if the controller wants one.
    pub mac: Option<MacAddress>,
    /// A fixed address, if the controller wants one.
    pub address: Option<Ipv4Addr>,
    /// Ports of the device that lead to the app.
    pub port_maps: Vec<PortMap>,
}

/// A port of the device that leads to a port of an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMap {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Port on the device's uplinks.
    pub device_port: u16,
    /// Port in the app.
    pub app_port: u16,
}

/// Transport protocol of a port map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}
