//! Finding the root file system and mounting it, so that nothing but the image named on the command line can come of it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use imaging::parts::RootHash;
use nix::mount::MsFlags;
use uuid::Uuid;

use crate::block::{self, PartitionNode};
use crate::cmdline::RootArguments;
use crate::console::Consoles;
use crate::modules::Modules;
use crate::uevent::Uevents;
use crate::{Error, dm, early, verity};

/// How long disks may take to appear.
const DISKS: Duration = Duration::from_secs(30);

/// Name of the device mapper device.
const DM_NAME: &str = "skerry-root";

/// A root partition that was found.
struct Found {
    partition: PartitionNode,
    size: u64,
}

/// Finds the partition, makes the verity device and mounts it at `target`. Modules are loaded until the partition is there:
/// what else the machine has is for the real system to find.
pub fn mount(
    arguments: &RootArguments,
    target: &str,
    modules: &mut Modules,
    consoles: &mut Consoles,
) -> Result<(), Error> {
    let found = find(&arguments.root_hash, modules, consoles)?;
    mount_found(&found, arguments, target).or_else(|error| {
        // One of the modules that this takes may not have had its turn.
        if !modules.load_next() {
            return Err(error);
        }
        modules.load_all();
        mount_found(&found, arguments, target)
    })
}

fn mount_found(found: &Found, arguments: &RootArguments, target: &str) -> Result<(), Error> {
    let node = found.partition.node.display().to_string();
    let mut file = File::open(&found.partition.node).map_err(Error::system("open", &node))?;
    let superblock = read_at(&mut file, arguments.verity_offset, verity::SUPERBLOCK_LEN)
        .map_err(Error::system("read the verity superblock of", &node))?;
    let superblock =
        verity::parse(&superblock, arguments.verity_offset, found.size).map_err(|error| {
            Error::BadRoot {
                device: node.clone(),
                reason: error.to_string(),
            }
        })?;
    let line = verity::table(
        &superblock,
        &found.partition.device,
        arguments.verity_offset,
        &arguments.root_hash,
    );
    let uuid = format!(
        "CRYPT-VERITY-{}-{DM_NAME}",
        arguments.root_hash.partition_id().simple()
    );
    let minor = dm::create_verity(DM_NAME, &uuid, &line)?;

    let device = format!("/dev/dm-{minor}");
    let mut file = File::open(&device).map_err(Error::system("open", &device))?;
    // An image that does not belong to the root hash fails here, in the first block.
    let head =
        read_at(&mut file, 0, 4096).map_err(Error::system("read, through dm-verity,", &node))?;
    let kind = file_system(&head).ok_or_else(|| Error::BadRoot {
        device: node,
        reason: "it is neither squashfs nor EROFS".to_owned(),
    })?;
    early::mount_at(
        &device,
        kind,
        target,
        MsFlags::MS_RDONLY | MsFlags::MS_NODEV,
        "",
    )
}

fn find(
    root_hash: &RootHash,
    modules: &mut Modules,
    consoles: &mut Consoles,
) -> Result<Found, Error> {
    let id = root_hash.partition_id();
    let events = Uevents::listen();
    let mut seen = String::new();
    // Drivers find their disks while the next modules are being loaded.
    let mut found = look(id, &mut seen);
    while found.is_none() && modules.load_next() {
        if events.wait(Duration::ZERO) {
            found = look(id, &mut seen);
        }
    }
    let found = found.or_else(|| {
        events.until(
            DISKS,
            &mut || consoles.say(&format!("skerry: waiting for the disk with partition {id}")),
            &mut || look(id, &mut seen),
        )
    });
    found.ok_or_else(|| Error::NoRoot {
        id: id.to_string(),
        seconds: DISKS.as_secs(),
        seen: if seen.is_empty() {
            "none".to_owned()
        } else {
            seen
        },
    })
}

/// Looks at all disks that there are now. What they hold instead is left in `seen`.
fn look(id: Uuid, seen: &mut String) -> Option<Found> {
    let mut others = Vec::new();
    for disk in block::disks(Path::new("/sys")).unwrap_or_default() {
        let table = match disk.table() {
            Ok(table) => table,
            Err(e) => {
                others.push(format!("{} ({e})", disk.name));
                continue;
            }
        };
        for (number, partition) in &table.partitions {
            if partition.id == id
                && let Some((start, size)) = table.extent(*number)
                && let Some(partition) =
                    block::partition(Path::new("/sys"), &disk.name, *number, start)
            {
                return Some(Found { partition, size });
            }
        }
        others.push(format!(
            "{} ({} other partitions)",
            disk.name,
            table.partitions.len()
        ));
    }
    *seen = others.join("; ");
    None
}

/// Which file system begins with `head`.
fn file_system(head: &[u8]) -> Option<&'static str> {
    // `linux/magic.h`: SQUASHFS_MAGIC, EROFS_SUPER_MAGIC_V1 at byte 1024.
    if head.starts_with(b"hsqs") {
        Some("squashfs")
    } else if head.get(1024..1028)? == 0xe0f5_e1e2u32.to_le_bytes() {
        Some("erofs")
    } else {
        None
    }
}

fn read_at(file: &mut File, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_known_by_their_magic() {
        assert_eq!(file_system(b"hsqs"), Some("squashfs"));
        let mut erofs = vec![0; 4096];
        erofs[1024..1028].copy_from_slice(&[0xe2, 0xe1, 0xf5, 0xe0]);
        assert_eq!(file_system(&erofs), Some("erofs"));
        assert_eq!(file_system(&[0; 4096]), None);
        assert_eq!(file_system(&[]), None);
    }
}
