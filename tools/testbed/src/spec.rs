//! What a machine is made of.

use std::path::PathBuf;

use crate::accel::Accelerator;

/// SMBIOS manufacturer of a usual machine.
pub const MANUFACTURER: &str = "Skerry Testbed";

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Spec {
    /// SMBIOS system serial number.
    pub serial: String,
    /// SMBIOS manufacturer.
    pub manufacturer: String,
    /// SMBIOS product name.
    pub product: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u8,
    /// Internal drives; made as empty files when the machine is built.
    pub drives: Vec<Drive>,
    /// Network cards.
    pub nics: Vec<Nic>,
    /// Whether there is a TPM 2.0.
    pub tpm: bool,
    /// Folder of the certificate authority of the TPM's maker, made by the first TPM; none: swtpm's own.
    pub tpm_maker: Option<PathBuf>,
    /// Where the real-time clock stands at power-on.
    pub clock: Clock,
    /// Start this kernel instead of the firmware; for machines that test one program and not an image.
    pub direct: Option<DirectBoot>,
    /// Ports of the machine that are reached at the build machine, on 127.0.0.1.
    pub forwards: Vec<Forward>,
}

/// A port of the machine and the port of 127.0.0.1 at which it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Port on the build machine's loopback address.
    pub host: u16,
    /// TCP port of the machine.
    pub machine: u16,
}

impl Spec {
    /// Nothing but processor, memory and serial line, for a kernel that QEMU starts itself.
    pub fn bare(serial: &str, memory_mib: u32, boot: DirectBoot) -> Spec {
        Spec {
            tpm: false,
            drives: Vec::new(),
            nics: Vec::new(),
            memory_mib,
            direct: Some(boot),
            ..Spec::new(serial)
        }
    }

    /// Whether the machine has UEFI firmware.
    pub(crate) fn has_firmware(&self) -> bool {
        self.direct.as_ref().is_none_or(|boot| boot.firmware)
    }

    /// A usual rugged PC: as many processors as its accelerator runs reliably, 2 GiB, one 16 GiB NVMe disk, one network card, a TPM, the right time.
    pub fn new(serial: &str) -> Spec {
        Spec {
            serial: serial.to_owned(),
            manufacturer: MANUFACTURER.to_owned(),
            product: "Rugged PC".to_owned(),
            memory_mib: 2048,
            cpus: Accelerator::detect().processors(),
            drives: vec![Drive {
                bus: Bus::Nvme,
                gib: 16,
            }],
            nics: vec![Nic { model: "e1000e" }],
            tpm: true,
            tpm_maker: None,
            clock: Clock::Now,
            direct: None,
            forwards: Vec::new(),
        }
    }
}

/// An internal drive.
#[derive(Clone, Copy, Debug)]
pub struct Drive {
    /// How it is connected.
    pub bus: Bus,
    /// Size in GiB.
    pub gib: u32,
}

/// How a drive is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// NVMe.
    Nvme,
    /// SATA.
    Sata,
    /// virtio-blk.
    Virtio,
}

/// A network card.
#[derive(Clone, Copy, Debug)]
pub struct Nic {
    /// QEMU's name of the card (`e1000e`, `igb`, `virtio-net-pci`).
    pub model: &'static str,
}

/// Where the real-time clock stands at power-on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The build machine's time.
    Now,
    /// A fixed UTC time, `1970-01-01T00:00:00`.
    At(String),
}

/// A kernel started by QEMU itself.
#[derive(Clone, Debug)]
pub struct DirectBoot {
    /// Kernel.
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub initrd: PathBuf,
    /// Kernel command line.
    pub cmdline: String,
    /// Whether UEFI firmware starts it, as it would from a disk, and not QEMU's own short way.
    pub firmware: bool,
}
