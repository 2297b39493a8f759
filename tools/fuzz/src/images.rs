//! What is read before the agent runs and where it does not: at boot, by the installer, in a container's microVM.

use std::io::Cursor;

use boot::install::efi;
use boot::{cmdline, verity};
use guest_api::ToGuest;
use guest_init::control::Lines;
use guest_init::spec;
use imaging::gpt::{self, Partition, SectorSize, Table};
use imaging::{Bundle, Parts, fat};
use protocol::authority::Authority;
use uuid::Uuid;

use crate::Target;
use crate::feed::{Feed, survives};
use crate::protocol::vector_text;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "verity",
        about: "a verity superblock: its data lie before it, and its table counts their sectors",
        run: verity_superblock,
        seeds: verity_seeds,
    },
    Target {
        name: "kernel-arguments",
        about: "a kernel's command line: roothash= and verityoffset=",
        run: kernel_arguments,
        seeds: || {
            vec![format!("quiet roothash={} verityoffset=4096\n", "ab".repeat(32)).into_bytes()]
        },
    },
    Target {
        name: "efi-variables",
        about: "a firmware's boot entries and their order: the new entry is first, and nothing stands there twice because of it",
        run: efi_variables,
        seeds: efi_seeds,
    },
    Target {
        name: "container-spec",
        about: "the spec in a microVM's initramfs: what is accepted is written and read as itself",
        run: container_spec,
        seeds: container_spec_seeds,
    },
    Target {
        name: "agent-request",
        about: "what the agent sends to guest-init: cut into lines the same way, however it arrives",
        run: agent_request,
        seeds: || {
            vec![b"\x05{\"request\":\"stop\",\"signal\":15,\"graceSeconds\":10}\nnoise\n".to_vec()]
        },
    },
    Target {
        name: "gpt",
        about: "a disk's partition table, its checksums set right: partitions lie on the disk; written anew it is the same",
        run: partition_table,
        seeds: gpt_seeds,
    },
    Target {
        name: "fat-label",
        about: "a FAT boot sector: a label of 11 ASCII characters at most",
        run: fat_label,
        seeds: fat_seeds,
    },
    Target {
        name: "parts",
        about: "parts.json: what is accepted is written and read as itself",
        run: parts,
        seeds: parts_seeds,
    },
    Target {
        name: "image-bundle",
        about: "a controller's image bundle: what makes a stick, its device accepts",
        run: image_bundle,
        seeds: image_bundle_seeds,
    },
];

fn verity_superblock(data: &[u8]) {
    let mut feed = Feed::new(data);
    let (offset, size) = (feed.u64(), feed.u64());
    let Ok(superblock) = verity::parse(feed.rest(), offset, size) else {
        return;
    };
    let root = "ab".repeat(32).parse().unwrap();
    let table = verity::table(&superblock, "8:1", offset, &root);
    assert!(
        table
            .sectors
            .checked_mul(512)
            .is_some_and(|bytes| bytes <= offset && offset < size)
    );
    assert!(table.parameters.is_ascii() && !table.parameters.contains('\n'));
}

fn verity_seeds() -> Vec<Vec<u8>> {
    let mut seed = (1_u64 << 20).to_le_bytes().to_vec();
    seed.extend((2_u64 << 20).to_le_bytes());
    seed.extend(b"verity\0\0");
    seed.extend(1_u32.to_le_bytes());
    seed.extend(1_u32.to_le_bytes());
    seed.extend([7; 16]);
    seed.extend(b"sha256");
    seed.resize(16 + 64, 0);
    seed.extend(4096_u32.to_le_bytes());
    seed.extend(4096_u32.to_le_bytes());
    seed.extend(256_u64.to_le_bytes());
    seed.extend(32_u16.to_le_bytes());
    seed.extend([0; 6]);
    seed.extend([9; 32]);
    seed.resize(16 + 512, 0);
    vec![seed]
}

fn kernel_arguments(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(arguments) = cmdline::parse(text)
    {
        let again = format!(
            "roothash={} verityoffset={}",
            arguments.root_hash, arguments.verity_offset
        );
        assert_eq!(cmdline::parse(&again).unwrap(), arguments);
    }
}

fn efi_variables(data: &[u8]) {
    let mut feed = Feed::new(data);
    let order_length = 2 * usize::from(feed.u8());
    let order = efi::parse_order(feed.bytes(order_length));
    let mut entries = Vec::new();
    while !feed.is_empty() && entries.len() < 64 {
        let number = feed.u16();
        let length = usize::from(feed.u8());
        entries.push((number, efi::description(feed.bytes(length))));
    }
    let Some(change) = efi::put_first("Skerry", &entries, &order) else {
        return;
    };
    assert_eq!(change.order.first(), Some(&change.number));
    let times = change
        .order
        .iter()
        .filter(|number| **number == change.number);
    assert_eq!(times.count(), 1);
    assert!(!change.remove.contains(&change.number));
    assert!(
        change
            .order
            .iter()
            .all(|number| !change.remove.contains(number))
    );
    assert!(change.order.len() <= order.len() + 1);
}

fn partition(label: &str, first: u64, last: u64) -> Partition {
    Partition {
        kind: gpt::TYPE_LINUX,
        id: Uuid::from_u128(u128::from(first)),
        first,
        last,
        attributes: 0,
        label: label.to_owned(),
    }
}

fn efi_seeds() -> Vec<Vec<u8>> {
    let mut seed = vec![3, 1, 0, 0, 0, 2, 0];
    for (number, name) in [(0_u16, "UiApp"), (1, "Skerry"), (2, "Skerry")] {
        let option = efi::load_option(name, 1, &partition("ESP", 64, 100), "EFI/a");
        seed.extend(number.to_le_bytes());
        seed.push(option.len() as u8);
        seed.extend(option);
    }
    vec![seed]
}

fn container_spec(data: &[u8]) {
    let Ok(read) = spec::parse(data) else {
        return;
    };
    assert!(read.args.first().is_some_and(|program| !program.is_empty()));
    assert!(
        !read
            .args
            .iter()
            .chain(&read.env)
            .any(|word| word.contains('\0'))
    );
    survives(&read);
    let json = serde_json::to_vec(&read).unwrap();
    assert_eq!(spec::parse(&json).unwrap(), read);
}

fn container_spec_seeds() -> Vec<Vec<u8>> {
    vec![
        br#"{"hostname":"web","args":["/serve","-v"],"env":["A=b"],"cwd":"/srv","uid":1000,"gid":1000,
            "additionalGids":[4],"readonlyRoot":true,
            "interfaces":[{"address":"10.1.0.2","prefix":24,"gateway":"10.1.0.1"}],"dns":["10.1.0.1"],
            "volumes":[{"device":"/dev/vdc","path":"/data","readonly":true}],
            "stopSignal":15,"stopGraceSeconds":10}"#
            .to_vec(),
        br#"{"hostname":"a","args":["/a"],"env":[],"cwd":"/","uid":0,"gid":0}"#.to_vec(),
    ]
}

fn agent_request(data: &[u8]) {
    let Some((piece, bytes)) = data.split_first() else {
        return;
    };
    let piece = usize::from(*piece).max(1);
    let mut lines = Lines::default();
    let mut in_pieces = Vec::new();
    for bytes in bytes.chunks(piece) {
        match lines.push(bytes) {
            Some(lines) => in_pieces.extend(lines),
            None => return,
        }
    }
    if let Some(at_once) = Lines::default().push(bytes) {
        assert_eq!(at_once, in_pieces);
    }
    for line in &in_pieces {
        if let Ok(request) = serde_json::from_slice::<ToGuest>(line) {
            survives(&request);
        }
    }
}

const SECTOR: usize = 512;

/// Sets the checksums right that the header's numbers lead to, so that changes get past them.
fn set_checksums(disk: &mut [u8], lba: usize) -> Option<()> {
    let number = |disk: &[u8], at: usize| {
        let bytes = disk.get(lba * SECTOR + at..)?.first_chunk::<4>()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    let entries = number(disk, 72)?.checked_mul(SECTOR)?;
    let length = number(disk, 80)?.checked_mul(number(disk, 84)?)?;
    let crc = gpt::crc32(disk.get(entries..entries.checked_add(length)?)?);
    let header = disk.get_mut(lba * SECTOR..)?;
    header.get_mut(88..92)?.copy_from_slice(&crc.to_le_bytes());
    header.get_mut(16..20)?.fill(0);
    let size = usize::try_from(u32::from_le_bytes(*header.get(12..)?.first_chunk()?)).ok()?;
    let crc = gpt::crc32(header.get(..size)?);
    header.get_mut(16..20)?.copy_from_slice(&crc.to_le_bytes());
    Some(())
}

fn partition_table(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else {
        return;
    };
    let mut disk = bytes.to_vec();
    disk.resize(
        bytes
            .len()
            .next_multiple_of(SECTOR)
            .clamp(72 * SECTOR, 256 * SECTOR),
        0,
    );
    let size = disk.len() as u64;
    if how & 1 != 0 {
        set_checksums(&mut disk, 1);
    }
    if how & 2 != 0 {
        let last = disk.len() / SECTOR - 1;
        set_checksums(&mut disk, last);
    }
    let sector = if how & 4 != 0 {
        SectorSize::B4096
    } else {
        SectorSize::B512
    };
    let Ok(table) = gpt::read(&mut Cursor::new(&disk), sector, size) else {
        return;
    };
    for number in table.partitions.keys() {
        let (start, length) = table.extent(*number).unwrap();
        assert!(length > 0 && start + length <= size, "{table:?}");
    }
    // A table of ours has 128 entries and no overlaps; another one may not fit.
    if let Ok(pieces) = gpt::encode(&table, size) {
        let mut again = vec![0; disk.len()];
        for piece in pieces {
            let at = usize::try_from(piece.offset).unwrap();
            again
                .get_mut(at..at + piece.bytes.len())
                .unwrap()
                .copy_from_slice(&piece.bytes);
        }
        let read = gpt::read(&mut Cursor::new(&again), sector, size).unwrap();
        assert_eq!(read, table);
    }
}

fn gpt_seeds() -> Vec<Vec<u8>> {
    let size = 80 * SECTOR;
    let table = Table {
        disk: Uuid::from_u128(7),
        sector: SectorSize::B512,
        partitions: [
            (1, partition("ESP", 34, 36)),
            (3, partition("config", 40, 45)),
        ]
        .into(),
    };
    let mut disk = vec![0; size];
    for piece in gpt::encode(&table, size as u64).unwrap() {
        let at = usize::try_from(piece.offset).unwrap();
        disk[at..at + piece.bytes.len()].copy_from_slice(&piece.bytes);
    }
    let mut seeds = Vec::new();
    for how in [0, 1] {
        let mut seed = vec![how];
        seed.extend(&disk);
        seeds.push(seed);
    }
    // Without the first copy the second one counts.
    let mut seed = vec![2];
    seed.extend(&disk);
    seed[1 + SECTOR] = 0;
    seeds.push(seed);
    seeds
}

fn fat_label(data: &[u8]) {
    if let Some(label) = fat::label(data) {
        assert!(label.len() <= 11 && label.is_ascii() && !label.ends_with(' '));
    }
}

fn fat_seeds() -> Vec<Vec<u8>> {
    [
        (fat::Kind::Fat16, 16_u64 << 20),
        (fat::Kind::Fat32, 40 << 20),
    ]
    .into_iter()
    .map(|(kind, size)| {
        let volume = fat::Volume {
            size,
            sector: SectorSize::B512,
            kind,
            label: "SKERRY-CFG",
            serial: 0,
            hidden_sectors: 0,
        };
        let mut out = Vec::new();
        fat::plan(volume, &[])
            .unwrap()
            .write::<std::io::Error>(&mut out, &mut |_, _| Ok(()))
            .unwrap();
        out.truncate(SECTOR);
        out
    })
    .collect()
}

fn parts(data: &[u8]) {
    let Ok(read) = Parts::parse(data) else {
        return;
    };
    assert_eq!(Parts::parse(&read.to_json()).unwrap(), read);
    // Who makes or checks a stick adds the sizes up.
    let total = read
        .files
        .values()
        .try_fold(0u64, |sum, file| sum.checked_add(file.size));
    assert!(total.is_some(), "sizes that overflow: {:?}", read.files);
    assert!(
        !read.uki_name().contains(['/', '\\', '\0']),
        "{}",
        read.uki_name()
    );
}

fn parts_seeds() -> Vec<Vec<u8>> {
    let mut files = serde_json::Map::new();
    for name in imaging::parts::PartName::ALL {
        files.insert(
            name.to_string(),
            serde_json::json!({"size": 9001, "sha256": "ab".repeat(32)}),
        );
    }
    let parts = serde_json::json!({
        "version": "1.2.3-rc1", "variant": "production", "rootHash": "cd".repeat(32),
        "verityOffset": 4096, "files": files,
    });
    vec![serde_json::to_vec(&parts).unwrap()]
}

fn image_bundle(data: &[u8]) {
    let Ok(bundle) = Bundle::parse(data) else {
        return;
    };
    assert!(
        bundle.server.parse::<Authority>().is_ok(),
        "{:?}",
        bundle.server
    );
    assert!(
        bundle.built_at.parse::<jiff::Timestamp>().is_ok(),
        "{:?}",
        bundle.built_at
    );
    assert_eq!(bundle.files().len(), 6);
}

fn image_bundle_seeds() -> Vec<Vec<u8>> {
    let certificate = vector_text("openssl", "/device_certificate");
    let bundle = serde_json::json!({
        "server": "controller.example:8443", "rootCertificate": certificate,
        "tlsRootCertificates": certificate, "onboardCertificate": certificate,
        "onboardKey": vector_text("openssl", "/device_key"), "builtAt": "2026-11-20T19:50:00Z",
    });
    vec![serde_json::to_vec(&bundle).unwrap()]
}
