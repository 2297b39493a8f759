//! The disk of a device, as a plan: which partition lies where, and what is on its ESP
//! (docs/src/internals/contracts.md, "The disk of a device").
//!
//! Nothing here touches a disk. The installer carries the plan out; tests and tools look at it.

use std::path::Path;

use uuid::Uuid;

use crate::Error;
use crate::content::Content;
use crate::fat::{Kind, Volume};
use crate::gpt::{self, Partition, SectorSize, Table};
use crate::parts::{PartName, Parts, RootHash};

/// Number of the EFI system partition.
pub const ESP: u32 = 1;
/// Number of root slot A.
pub const ROOT_A: u32 = 2;
/// Number of root slot B.
pub const ROOT_B: u32 = 3;
/// Number of the partition with the bundle.
pub const CONFIG: u32 = 4;
/// Number of the partition with everything that the device writes.
pub const PERSIST: u32 = 5;

/// Label of the FAT volume on the config partition.
pub const CONFIG_LABEL: &str = "SKERRY-CFG";
/// Label of the FAT volume on the ESP; another than the stick's.
pub const ESP_LABEL: &str = "SKERRY-ESP";

const MIB: u64 = 1 << 20;
/// Partitions begin and end at multiples of this: it suits every disk that exists.
const ALIGNMENT: u64 = MIB;
/// A root slot, bytes.
pub const ROOT_SLOT: u64 = 1024 * MIB;
/// Less than this for persist is not a device that can work.
const MIN_PERSIST: u64 = 1024 * MIB;

/// Plans the partitions of a disk of `size` bytes. Slot A gets the id of `root_hash`; `new_id` makes the other ids, among
/// them slot B's, which must not be one that a UKI could look for.
pub fn plan(
    size: u64,
    sector: SectorSize,
    root_hash: RootHash,
    new_id: &mut dyn FnMut() -> Uuid,
) -> Result<Table, Error> {
    let fixed = gpt::ATTRIBUTE_READ_ONLY | gpt::ATTRIBUTE_NO_AUTO;
    // Number, type, label, size, attributes.
    let wanted = [
        (ESP, gpt::TYPE_ESP, "skerry-esp", Some(512 * MIB), 0),
        (
            ROOT_A,
            gpt::TYPE_ROOT_AMD64,
            "skerry-root-a",
            Some(ROOT_SLOT),
            fixed,
        ),
        (
            ROOT_B,
            gpt::TYPE_ROOT_AMD64,
            "skerry-root-b",
            Some(ROOT_SLOT),
            fixed,
        ),
        (
            CONFIG,
            gpt::TYPE_BASIC_DATA,
            "skerry-config",
            Some(16 * MIB),
            gpt::ATTRIBUTE_NO_AUTO,
        ),
        (
            PERSIST,
            gpt::TYPE_LINUX,
            "skerry-persist",
            None,
            gpt::ATTRIBUTE_NO_AUTO,
        ),
    ];
    let sectors = |bytes: u64| bytes / sector.bytes();
    let needed = wanted.iter().filter_map(|w| w.3).sum::<u64>() + 2 * ALIGNMENT + MIN_PERSIST;
    if size < needed {
        return Err(Error::DiskTooSmall { size, needed });
    }
    let last_usable = gpt::last_usable(sector, size).ok_or(Error::DiskTooSmall { size, needed })?;
    let end = (last_usable + 1) / sectors(ALIGNMENT) * sectors(ALIGNMENT);
    let mut first = sectors(ALIGNMENT);
    let mut table = Table {
        disk: new_id(),
        sector,
        partitions: Default::default(),
    };
    for (number, kind, label, size, attributes) in wanted {
        let next = size.map_or(end, |size| first + sectors(size));
        let id = if number == ROOT_A {
            root_hash.partition_id()
        } else {
            new_id()
        };
        let label = label.to_owned();
        table.partitions.insert(
            number,
            Partition {
                kind,
                id,
                first,
                last: next - 1,
                attributes,
                label,
            },
        );
        first = next;
    }
    Ok(table)
}

/// The FAT volume that goes on partition `number` of `table`: the ESP or the config partition.
pub fn volume(table: &Table, number: u32) -> Option<Volume> {
    let partition = table.partitions.get(&number)?;
    let (kind, label) = match number {
        ESP => (Kind::Fat32, ESP_LABEL),
        CONFIG => (Kind::Fat16, CONFIG_LABEL),
        _ => return None,
    };
    let (_, size) = table.extent(number)?;
    let serial = partition.id.as_fields().0;
    Some(Volume {
        size,
        sector: table.sector,
        kind,
        label,
        serial,
        hidden_sectors: partition.first,
    })
}

/// Path of the boot loader on the ESP that a boot entry names.
pub const LOADER_PATH: &str = "EFI/systemd/systemd-bootx64.efi";

/// What is on the ESP of a device with the image in `payload`. The loader lies twice: where the boot entry names it, and
/// where firmware looks that has lost its entries.
pub fn esp_contents(parts: &Parts, payload: &Path) -> Result<Vec<Content>, Error> {
    let file = |path: String, name: PartName| -> Result<Content, Error> {
        Ok(Content::file(
            path,
            payload.join(name.file_name()),
            parts.file(name)?,
        ))
    };
    Ok(vec![
        file("EFI/BOOT/BOOTX64.EFI".to_owned(), PartName::Loader)?,
        file(LOADER_PATH.to_owned(), PartName::Loader)?,
        Content::bytes("loader/loader.conf", "timeout 0\neditor no\n"),
        file(format!("EFI/Linux/{}", parts.uki_name()), PartName::Host)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    const GIB: u64 = 1 << 30;

    fn ids() -> impl FnMut() -> Uuid {
        let mut n = 0;
        move || {
            n += 1;
            Uuid::from_u128(n)
        }
    }

    #[test]
    fn disks_of_every_kind_get_the_partitions_of_the_contract() {
        let hash = RootHash::new(Digest::of(b"root"));
        for (size, sector) in [
            (8 * GIB, SectorSize::B512),
            (8 * GIB + 512, SectorSize::B512),
            (4000 * GIB + 4096, SectorSize::B4096),
        ] {
            let table = plan(size, sector, hash, &mut ids()).unwrap();
            let labels: Vec<_> = table
                .partitions
                .values()
                .map(|p| p.label.as_str())
                .collect();
            assert_eq!(
                labels,
                [
                    "skerry-esp",
                    "skerry-root-a",
                    "skerry-root-b",
                    "skerry-config",
                    "skerry-persist"
                ]
            );
            let extents: Vec<_> = (1..=5).map(|n| table.extent(n).unwrap()).collect();
            assert!(
                extents
                    .iter()
                    .all(|(at, len)| at % MIB == 0 && len % MIB == 0),
                "{extents:?}"
            );
            assert!(
                extents.windows(2).all(|w| w[0].0 + w[0].1 == w[1].0),
                "{extents:?}"
            );
            assert_eq!(
                extents
                    .iter()
                    .map(|e| e.1 / MIB)
                    .take(4)
                    .collect::<Vec<_>>(),
                [512, 1024, 1024, 16]
            );
            let end = extents[4].0 + extents[4].1;
            assert!(end < size && size - end <= 2 * MIB, "{end} of {size}");
            assert_eq!(table.partitions[&ROOT_A].id, hash.partition_id());
            gpt::encode(&table, size).unwrap();
            for number in [ESP, CONFIG] {
                crate::fat::plan(volume(&table, number).unwrap(), &[]).unwrap();
            }
            assert!(volume(&table, ROOT_A).is_none());
        }
    }

    #[test]
    fn a_small_disk_is_refused() {
        let hash = RootHash::new(Digest::of(b"root"));
        let error = plan(3 * GIB, SectorSize::B512, hash, &mut ids()).unwrap_err();
        assert!(matches!(error, Error::DiskTooSmall { .. }), "{error}");
    }
}
