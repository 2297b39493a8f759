//! One virtual machine, as `skerry-vmm run -f vm.json` reads it.
//!
//! All sizes are in the unit that the field's name carries. Unknown fields are refused, so that a typing mistake is an
//! error and not a machine without its disk.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Most vCPUs that a machine can have.
pub const MAX_VCPUS: u8 = 16;
/// Least memory that a machine can have, in MiB.
pub const MIN_MEMORY_MIB: u32 = 16;
/// Most memory that a machine can have, in MiB: 1 TiB.
pub const MAX_MEMORY_MIB: u32 = 1 << 20;
/// Longest kernel command line, in bytes.
pub const MAX_COMMAND_LINE: usize = 2047;
/// Most devices that a machine can have: disks, network interfaces, virtio consoles, vsock and entropy source together.
pub const MAX_DEVICES: usize = 31;

/// What [`VmConfig::shutdown_grace_seconds`] is unless the description says otherwise.
pub const SHUTDOWN_GRACE_SECONDS: u16 = 30;

/// One virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct VmConfig {
    /// Name for messages and the process title; does not reach the guest.
    pub name: String,
    /// Number of vCPUs, 1 to 16.
    pub vcpus: u8,
    /// Guest memory in MiB, at least 16.
    pub memory_mib: u32,
    /// What to start.
    pub boot: Boot,
    /// Disks, in the order in which the guest sees them (`vda`, `vdb`, ...).
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Network interfaces, in the order in which the guest sees them.
    #[serde(default)]
    pub nets: Vec<Net>,
    /// The 16550 UART at 0x3f8 (`ttyS0`). Absent: no UART.
    #[serde(default)]
    pub serial: Option<Console>,
    /// Virtio consoles, one device each (`hvc0`, `hvc1`, ...).
    #[serde(default)]
    pub consoles: Vec<Console>,
    /// Host-guest sockets. Absent: no vsock device.
    #[serde(default)]
    pub vsock: Option<Vsock>,
    /// Whether the guest gets a virtio entropy source.
    #[serde(default = "yes")]
    pub rng: bool,
    /// Unix socket on which the monitor answers [`crate::control`]. Made by the monitor, mode 0600.
    pub control_socket: PathBuf,
    /// File to which the monitor writes a [`crate::report::LastWords`] when the machine has ended.
    #[serde(default)]
    pub last_words: Option<PathBuf>,
    /// Seconds that the guest has to power off by itself once the monitor was told to end (SIGTERM, SIGINT): its power
    /// button is pressed, and what has not gone then is ended. 0: ended at once, the guest is not asked.
    #[serde(default = "shutdown_grace")]
    pub shutdown_grace_seconds: u16,
}

fn yes() -> bool {
    true
}

fn shutdown_grace() -> u16 {
    SHUTDOWN_GRACE_SECONDS
}

/// What a machine starts with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", tag = "kind")]
pub enum Boot {
    /// A Linux kernel, started without firmware. ELF with a PVH note, or bzImage.
    #[serde(rename_all = "camelCase")]
    Kernel {
        /// The kernel file.
        kernel: PathBuf,
        /// Initial RAM file systems; their bytes are handed over one after the other, each padded to 4 bytes, as the
        /// kernel allows (Documentation/driver-api/early-userspace/buffer-format.rst).
        #[serde(default)]
        initrds: Vec<PathBuf>,
        /// Kernel command line, at most 2,047 bytes.
        #[serde(default)]
        cmdline: String,
    },
}

/// A virtio block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Disk {
    /// The image file or block device.
    pub path: PathBuf,
    /// How the bytes in it are to be read. Never guessed: a guest can write any header into its raw disk.
    pub format: DiskFormat,
    /// The guest may not write.
    #[serde(default)]
    pub readonly: bool,
    /// What the guest reads as the disk's serial (`/dev/disk/by-id/virtio-...`), at most 20 bytes of ASCII.
    #[serde(default)]
    pub serial: Option<String>,
}

/// Format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Bytes as they are.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3, without backing files.
    Qcow2,
}

/// A virtio network interface on a tap device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Net {
    /// Name of an existing persistent tap device that the monitor's uid owns (TUNSETOWNER), so that the monitor needs
    /// no capability to attach.
    pub tap: String,
    /// The guest's hardware address, `02:00:00:00:00:01`.
    pub mac: String,
    /// MTU offered to the guest; absent: none is offered.
    #[serde(default)]
    pub mtu: Option<u16>,
}

/// Where a serial line or virtio console leads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Console {
    /// Unix socket for people. Whoever connects first gets the last 64 KiB of output, then everything new; what any
    /// of them sends is typed into the guest. Absent: nothing can be typed.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// Copy the output to the monitor's standard output (from where it reaches the journal).
    #[serde(default)]
    pub stdout: bool,
}

/// A virtio socket device, as Firecracker maps it to the host (a convention that others follow too): a connection of
/// the guest to host port P arrives at the unix socket `<socket>_P`; a host program that wants to reach the guest's
/// port P connects to `<socket>` and writes `CONNECT P\n`, and is answered `OK <host port>\n`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Vsock {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// Path of the unix socket.
    pub socket: PathBuf,
}
