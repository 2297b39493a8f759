//! The machine's disks, as sysfs shows them (`Documentation/ABI/stable/sysfs-block`).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use imaging::gpt::{self, GptError, SectorSize, Table};

/// A whole disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name, `nvme0n1`.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Logical sector size.
    pub sector: SectorSize,
    /// How it is attached.
    pub bus: Bus,
    /// Whether its medium can be taken out.
    pub removable: bool,
    /// Whether it refuses to be written.
    pub read_only: bool,
    /// Maker's name of the model, if it says one.
    pub model: String,
}

/// How a disk is attached, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// Anything that a machine keeps inside: NVMe, SATA, SAS, eMMC, virtio.
    Internal,
    /// USB.
    Usb,
    /// An SD card.
    Card,
}

impl Disk {
    /// Its device node.
    pub fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Its partition table.
    pub fn table(&self) -> Result<Table, GptError> {
        let mut file = File::open(self.node())?;
        gpt::read(&mut file, self.sector, self.size)
    }
}

/// A partition as the kernel sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionNode {
    /// Device node, `/dev/nvme0n1p2`.
    pub node: PathBuf,
    /// `major:minor`.
    pub device: String,
}

/// Everything below `/sys/block` that is a real disk with a medium in it, in the order of names.
pub fn disks(sys: &Path) -> io::Result<Vec<Disk>> {
    let mut disks = Vec::new();
    for entry in std::fs::read_dir(sys.join("block"))? {
        let entry = entry?;
        if let Some(name) = entry.file_name().to_str()
            && let Some(disk) = disk(&entry.path(), name)
        {
            disks.push(disk);
        }
    }
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(disks)
}

fn disk(dir: &Path, name: &str) -> Option<Disk> {
    // Without a device below it is the kernel's own: loop, ram, zram, device mapper. Drives for CDs take seconds to say
    // that they are empty and are never meant.
    if !dir.join("device").exists() || name.starts_with("sr") || name.starts_with("fd") {
        return None;
    }
    // The kernel counts in 512 bytes here whatever the sector size.
    let size = number(&dir.join("size"))?
        .checked_mul(512)
        .filter(|size| *size > 0)?;
    let sector = SectorSize::from_bytes(number(&dir.join("queue/logical_block_size"))?)?;
    // The link leads through the tree of buses: .../usb2/2-1/.../block/sda
    let real = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let over_usb = real
        .components()
        .any(|c| c.as_os_str().to_str().is_some_and(|c| c.starts_with("usb")));
    let bus = if over_usb {
        Bus::Usb
    } else if text(&dir.join("device/type")).as_deref() == Some("SD") {
        Bus::Card
    } else {
        Bus::Internal
    };
    Some(Disk {
        name: name.to_owned(),
        size,
        sector,
        bus,
        removable: number(&dir.join("removable")) != Some(0),
        read_only: number(&dir.join("ro")) != Some(0),
        model: text(&dir.join("device/model")).unwrap_or_default(),
    })
}

/// The kernel's node of partition `number` of `disk`, if it agrees that the partition begins at byte `start`.
pub fn partition(sys: &Path, disk: &str, wanted: u32, start: u64) -> Option<PartitionNode> {
    for entry in std::fs::read_dir(sys.join("block").join(disk)).ok()? {
        let dir = entry.ok()?.path();
        if number(&dir.join("partition")) == Some(u64::from(wanted))
            && number(&dir.join("start")).and_then(|n| n.checked_mul(512)) == Some(start)
        {
            let node = Path::new("/dev").join(dir.file_name()?);
            return Some(PartitionNode {
                node,
                device: text(&dir.join("dev"))?,
            });
        }
    }
    None
}

/// A file's text without the white space around it; `None` when it cannot be read or is empty.
pub fn text(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Makes a file and the directories above it.
    pub fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn put_disk(sys: &Path, bus: &str, name: &str, size: u64) {
        let dir = format!("devices/{bus}/block/{name}");
        for (file, text) in [
            ("size", (size / 512).to_string()),
            ("queue/logical_block_size", "512\n".to_owned()),
            ("removable", "0".to_owned()),
            ("ro", "0".to_owned()),
            ("device/model", "Disk \n".to_owned()),
        ] {
            put(sys, &format!("{dir}/{file}"), &text);
        }
        std::fs::create_dir_all(sys.join("block")).unwrap();
        std::os::unix::fs::symlink(sys.join(&dir), sys.join("block").join(name)).unwrap();
    }

    #[test]
    fn real_disks_are_told_from_others() {
        let sys = tempfile::tempdir().unwrap();
        put_disk(sys.path(), "pci0000:00/nvme", "nvme0n1", 1 << 33);
        put_disk(sys.path(), "pci0000:00/usb2/2-1", "sda", 1 << 30);
        put_disk(sys.path(), "mmc", "mmcblk0", 1 << 30);
        put(sys.path(), "devices/mmc/block/mmcblk0/device/type", "SD\n");
        put_disk(sys.path(), "pci0000:00/ata1", "sr0", 1 << 30);
        put_disk(sys.path(), "pci0000:00/ata2", "sdb", 0);
        put(sys.path(), "block/loop0/size", "100");
        let disks = disks(sys.path()).unwrap();
        let seen: Vec<_> = disks.iter().map(|d| (d.name.as_str(), d.bus)).collect();
        assert_eq!(
            seen,
            [
                ("mmcblk0", Bus::Card),
                ("nvme0n1", Bus::Internal),
                ("sda", Bus::Usb)
            ]
        );
        assert_eq!(
            (disks[1].size, disks[1].model.as_str(), disks[1].removable),
            (1 << 33, "Disk", false)
        );
    }

    #[test]
    fn the_kernel_must_agree_on_a_partitions_start() {
        let sys = tempfile::tempdir().unwrap();
        put_disk(sys.path(), "x", "nvme0n1", 1 << 33);
        for (file, text) in [("partition", "2"), ("start", "2048"), ("dev", "259:2\n")] {
            put(
                sys.path(),
                &format!("devices/x/block/nvme0n1/nvme0n1p2/{file}"),
                text,
            );
        }
        let found = partition(sys.path(), "nvme0n1", 2, 2048 * 512).unwrap();
        assert_eq!(
            found,
            PartitionNode {
                node: "/dev/nvme0n1p2".into(),
                device: "259:2".into()
            }
        );
        assert_eq!(partition(sys.path(), "nvme0n1", 2, 4096), None);
        assert_eq!(partition(sys.path(), "nvme0n1", 3, 2048 * 512), None);
    }
}
