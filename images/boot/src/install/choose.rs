//! Which disk to install to. A pure function: nothing is as hard to take back as the wrong answer.
//!
//! The policy so far: the single biggest disk that is built in, big enough and not the stick. Two biggest of one size are
//! refused, never guessed between. A policy that the operator writes (`install.json` beside the bundle on the stick) takes
//! its place in [`choose`] when there is one.

use crate::block::{Bus, Disk};

/// A device needs this much, bytes.
pub const MIN_SIZE: u64 = 8 << 30;

/// Why no disk was chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// None will do.
    #[error("none will do. Seen: {0}")]
    None(String),
    /// Several would do equally well.
    #[error("{0} are equally big")]
    Ambiguous(String),
}

impl Refusal {
    /// What a person before the machine can do.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::None(_) => {
                "Skerry installs to a built-in disk of at least 8 GiB. Put one in, or make it visible in the firmware \
                 (RAID mode often hides disks: switch to AHCI), and start again."
            }
            Self::Ambiguous(_) => {
                "Unplug all disks but the one to install to, and start again. Nothing was changed."
            }
        }
    }
}

/// Chooses among `disks`; `stick` is the name of the disk that the installer came from.
pub fn choose<'a>(disks: &'a [Disk], stick: &str) -> Result<&'a Disk, Refusal> {
    let fit: Vec<&Disk> = disks
        .iter()
        .filter(|disk| unfit(disk, stick).is_none())
        .collect();
    let Some(biggest) = fit.iter().map(|disk| disk.size).max() else {
        let seen: Vec<String> = disks
            .iter()
            .map(|disk| format!("{} ({})", disk.name, unfit(disk, stick).unwrap_or("fits")))
            .collect();
        return Err(Refusal::None(if seen.is_empty() {
            "no disk at all".to_owned()
        } else {
            seen.join(", ")
        }));
    };
    let candidates: Vec<&Disk> = fit
        .into_iter()
        .filter(|disk| disk.size == biggest)
        .collect();
    match candidates.as_slice() {
        [one] => Ok(one),
        several => {
            let names: Vec<&str> = several.iter().map(|disk| disk.name.as_str()).collect();
            Err(Refusal::Ambiguous(names.join(" and ")))
        }
    }
}

/// Why a disk cannot be installed to; `None` if it can.
pub fn unfit(disk: &Disk, stick: &str) -> Option<&'static str> {
    if disk.name == stick {
        Some("the installer stick")
    } else if disk.removable {
        Some("removable")
    } else if disk.bus == Bus::Usb {
        Some("attached by USB")
    } else if disk.bus == Bus::Card {
        Some("a memory card")
    } else if disk.read_only {
        Some("read-only")
    } else if disk.size < MIN_SIZE {
        Some("smaller than 8 GiB")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use imaging::gpt::SectorSize;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn disk(name: &str, size: u64) -> Disk {
        Disk {
            name: name.to_owned(),
            size,
            sector: SectorSize::B512,
            bus: Bus::Internal,
            removable: false,
            read_only: false,
            model: String::new(),
        }
    }

    #[test]
    fn the_table() {
        let stick = disk("sda", 16 * GIB);
        let usb = Disk {
            bus: Bus::Usb,
            ..disk("sdb", 2000 * GIB)
        };
        let card = Disk {
            bus: Bus::Card,
            ..disk("mmcblk1", 500 * GIB)
        };
        let removable = Disk {
            removable: true,
            ..disk("sdc", 500 * GIB)
        };
        let locked = Disk {
            read_only: true,
            ..disk("sdd", 500 * GIB)
        };
        let nvme = disk("nvme0n1", 64 * GIB);
        let twin = disk("nvme1n1", 64 * GIB);
        let big = disk("sde", 128 * GIB);
        let small = disk("mmcblk0", 8 * GIB - 512);
        let least = disk("mmcblk2", 8 * GIB);
        let others = [&stick, &usb, &card, &removable, &locked, &small];
        for (inside, chosen) in [
            (vec![&nvme], Ok("nvme0n1")),
            (vec![&least], Ok("mmcblk2")),
            (vec![&nvme, &big], Ok("sde")),
            (vec![&nvme, &twin, &big], Ok("sde")),
            (
                vec![&nvme, &twin],
                Err("nvme0n1 and nvme1n1 are equally big"),
            ),
            (
                vec![],
                Err(
                    "none will do. Seen: sda (the installer stick), sdb (attached by USB), mmcblk1 (a memory card), \
                     sdc (removable), sdd (read-only), mmcblk0 (smaller than 8 GiB)",
                ),
            ),
        ] {
            let disks: Vec<Disk> = others.iter().copied().chain(inside).cloned().collect();
            let found = choose(&disks, "sda")
                .map(|d| d.name.clone())
                .map_err(|e| e.to_string());
            assert_eq!(found.as_deref().map_err(String::as_str), chosen);
        }
        assert_eq!(
            choose(&[], "sda"),
            Err(Refusal::None("no disk at all".into()))
        );
    }
}
