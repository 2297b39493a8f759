//! The contract between the agent and `guest-init`, PID 1 in a container's microVM.
//!
//! The agent writes a [`ContainerSpec`] as JSON into an archive ([`cpio`], [`SPEC_PATH`]) that it appends to the guest's
//! initramfs, so that no secret ever lies on a disk. The guest connects to vsock port [`CONTROL_PORT`] of the host
//! (context id 2) and exchanges one JSON message a line: it sends [`FromGuest`], and obeys [`ToGuest`]. The container's
//! standard output and error go to `/dev/hvc1`, the kernel's and guest-init's own words to `/dev/hvc0`.
//!
//! ```text
//! boot -> mount root (vda, EROFS, read-only) + overlay (vdb, ext4) -> network -> start process -> Started
//!                                                          process ends  -> Exited -> sync -> power off
//!       Stop{signal, grace}, power button -> signal -> grace passes -> SIGKILL -> Exited -> sync -> power off
//! ```
//!
//! After `Exited` or `Failed` the guest shuts its side of the connection and waits until the agent closes its own, at most
//! two seconds: an agent that closes what has ended lets the guest power off at once.
//!
//! The root file system is an overlay in both cases; with [`ContainerSpec::readonly_root`] its upper layer is memory that is
//! sealed before the process starts, and there need be no `vdb`. The process is number 1 in a PID namespace of its own.
//!
//! The machine's power button, which the monitor presses when nobody is there to say `Stop`, means the same as that with
//! the spec's signal and grace. What a container may not see, change or do is said in [`confinement`], once for those in
//! microVMs and native ones.

pub mod confinement;
pub mod cpio;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Where the spec lies in the guest's initramfs.
pub const SPEC_PATH: &str = "/skerry/container.json";

/// vsock port on the host at which the agent listens for the guest's control connection.
pub const CONTROL_PORT: u32 = 1024;

/// What guest-init has to set up and start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ContainerSpec {
    /// Host name inside the container.
    pub hostname: String,
    /// Program and arguments, never empty.
    pub args: Vec<String>,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; made if missing.
    pub cwd: String,
    /// User id of the process.
    pub uid: u32,
    /// Group id of the process.
    pub gid: u32,
    /// Supplementary groups.
    #[serde(default)]
    pub additional_gids: Vec<u32>,
    /// Whether the root file system is read-only to the process (no overlay).
    #[serde(default)]
    pub readonly_root: bool,
    /// Interfaces in the order of the virtio network devices (`eth0`, `eth1`, ...).
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Name servers for /etc/resolv.conf.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Further block devices (`vdc`, `vdd`, ...), ext4, and where they are mounted.
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
    /// The signal that asks the process to end when the machine's power button is pressed.
    #[serde(default = "stop_signal")]
    pub stop_signal: i32,
    /// Seconds from then until it is killed.
    #[serde(default = "stop_grace_seconds")]
    pub stop_grace_seconds: u32,
}

/// SIGTERM.
fn stop_signal() -> i32 {
    15
}

fn stop_grace_seconds() -> u32 {
    25
}

/// One network interface of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Interface {
    /// Address.
    pub address: IpAddr,
    /// Prefix length.
    pub prefix: u8,
    /// Default route, if this interface has it.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
}

/// A volume and its place in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct VolumeMount {
    /// Device in the guest, `/dev/vdc`.
    pub device: String,
    /// Absolute path in the container.
    pub path: String,
    /// Not writable.
    #[serde(default)]
    pub readonly: bool,
}

/// What the guest reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
pub enum FromGuest {
    /// The container's process runs.
    Started,
    /// The container's process has ended; the guest powers off next.
    Exited {
        /// Exit status, 128 + signal number if a signal ended it.
        code: i32,
    },
    /// The container could not be started; the guest powers off next.
    Failed {
        /// Operation, thing and reason, in words.
        message: String,
    },
}

/// What the agent asks of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "request")]
pub enum ToGuest {
    /// Send the process a signal, and kill it when it has not ended after the grace time.
    #[serde(rename_all = "camelCase")]
    Stop {
        /// Signal number, usually 15.
        signal: i32,
        /// Seconds until SIGKILL.
        grace_seconds: u32,
    },
}
