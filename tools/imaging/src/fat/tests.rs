use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::process::Command;

use super::*;

const MIB: u64 = 1 << 20;

fn volume(kind: Kind, sector: SectorSize, size: u64) -> Volume {
    Volume {
        size,
        sector,
        kind,
        label: "SKERRY",
        serial: 0x1234_5678,
        hidden_sectors: 2048,
    }
}

fn build(volume: Volume, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let sizes: Vec<_> = files
        .iter()
        .map(|(path, bytes)| (*path, bytes.len() as u64))
        .collect();
    let size = volume.size;
    let plan = plan(volume, &sizes).unwrap();
    let mut out = Vec::new();
    plan.write::<io::Error>(&mut out, &mut |i, out| out.write_all(&files[i].1))
        .unwrap();
    assert_eq!(out.len() as u64, plan.written_len());
    out.resize(size as usize, 0);
    out
}

fn sample() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("EFI/BOOT/BOOTX64.EFI", vec![1; 100_000]),
        ("skerry/payload/parts.json", b"{}".to_vec()),
        (
            "skerry/payload/root.img",
            (0..3_000_000u32).map(|n| (n / 7) as u8).collect(),
        ),
        (
            "skerry/config/v2tlsbaseroot-certificates.pem",
            vec![3; 4096],
        ),
        ("skerry/config/v2tlsbaseroot-certificates.old", vec![]),
        ("größe", vec![4; 1]),
    ]
}

/// Reads the volume with another implementation (crate fatfs).
fn read_all(image: &[u8]) -> (String, BTreeMap<String, Vec<u8>>) {
    let fs = fatfs::FileSystem::new(Cursor::new(image.to_vec()), fatfs::FsOptions::new()).unwrap();
    let mut files = BTreeMap::new();
    let mut todo = vec![(String::new(), fs.root_dir())];
    while let Some((path, dir)) = todo.pop() {
        for entry in dir.iter() {
            let entry = entry.unwrap();
            let path = format!("{path}{}", entry.file_name());
            match entry.file_name().as_str() {
                "." | ".." => {}
                _ if entry.is_dir() => todo.push((format!("{path}/"), entry.to_dir())),
                _ => {
                    let mut bytes = Vec::new();
                    entry.to_file().read_to_end(&mut bytes).unwrap();
                    files.insert(path, bytes);
                }
            }
        }
    }
    (
        fs.read_volume_label_from_root_dir().unwrap().unwrap(),
        files,
    )
}

#[test]
fn another_implementation_reads_what_is_written() {
    for (kind, sector, size) in [
        (Kind::Fat32, SectorSize::B512, 36 * MIB),
        (Kind::Fat32, SectorSize::B512, 64 * MIB),
        (Kind::Fat32, SectorSize::B512, 300 * MIB),
        (Kind::Fat16, SectorSize::B512, 16 * MIB),
        (Kind::Fat16, SectorSize::B4096, 17 * MIB),
        (Kind::Fat32, SectorSize::B4096, 300 * MIB),
    ] {
        let image = build(volume(kind, sector, size), &sample());
        let (label, files) = read_all(&image);
        assert_eq!(label, "SKERRY");
        let wanted: BTreeMap<_, _> = sample()
            .into_iter()
            .map(|(p, b)| (p.to_owned(), b))
            .collect();
        assert!(
            files == wanted,
            "{kind:?} {sector:?} {size}: {:?}",
            files.keys()
        );
    }
}

/// The judge from outside: fsck.fat finds nothing to repair.
#[test]
fn fsck_accepts_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, sector, size) in [
        (Kind::Fat32, SectorSize::B512, 36 * MIB),
        (Kind::Fat32, SectorSize::B512, 512 * MIB),
        (Kind::Fat32, SectorSize::B4096, 512 * MIB),
        (Kind::Fat16, SectorSize::B512, 16 * MIB),
        (Kind::Fat16, SectorSize::B4096, 16 * MIB),
    ] {
        let path = dir.path().join("volume");
        std::fs::write(&path, build(volume(kind, sector, size), &sample())).unwrap();
        let output = Command::new("/usr/sbin/fsck.fat")
            .arg("-nv")
            .arg(&path)
            .output()
            .expect("fsck.fat is missing: apt-get install dosfstools");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{kind:?} {sector:?} {size}: {said}"
        );
        let bits = if kind == Kind::Fat16 {
            "16 bit entries"
        } else {
            "32 bit entries"
        };
        assert!(said.contains(bits), "{said}");
        for complaint in ["differ", "wrong", "Orphaned", "Bad", "Free cluster summary"] {
            assert!(
                !said.contains(complaint),
                "{kind:?} {sector:?} {size}: {said}"
            );
        }
    }
}

#[test]
fn the_same_tree_makes_the_same_bytes() {
    let one = build(volume(Kind::Fat32, SectorSize::B512, 40 * MIB), &sample());
    let two = build(volume(Kind::Fat32, SectorSize::B512, 40 * MIB), &sample());
    assert!(one == two);
}

#[test]
fn the_size_that_is_computed_suffices_and_wastes_little() {
    for sizes in [
        vec![0],
        vec![1; 500],
        vec![100 * MIB],
        vec![80 * MIB, 40 * MIB, 3, 5_000_000],
        vec![1000 * MIB],
    ] {
        let paths: Vec<String> = (0..sizes.len())
            .map(|n| format!("some/directory/file number {n}"))
            .collect();
        let files: Vec<_> = paths
            .iter()
            .map(String::as_str)
            .zip(sizes.iter().copied())
            .collect();
        let spare = 4 * MIB;
        let size = size_for(&files, spare);
        let plan = plan(volume(Kind::Fat32, SectorSize::B512, size), &files).unwrap();
        let content: u64 = sizes.iter().sum();
        assert!(size >= plan.written_len() + spare, "{sizes:?}: {size}");
        assert!(
            size < (content + content / 50 + 10 * MIB).max(37 * MIB),
            "{content}: {size}"
        );
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let v = || volume(Kind::Fat32, SectorSize::B512, 40 * MIB);
    for (path, word) in [
        ("a//b", "cannot be"),
        ("../x", "cannot be"),
        ("/x", "cannot be"),
        ("x:", "cannot be"),
    ] {
        let error = plan(v(), &[(path, 1)]).unwrap_err().to_string();
        assert!(error.contains(word), "{path}: {error}");
    }
    for twice in [["a/b", "A/B"], ["a", "a/b"], ["a/b", "a"]] {
        let files = [(twice[0], 1), (twice[1], 1)];
        assert!(
            matches!(plan(v(), &files), Err(FatError::Twice(_))),
            "{twice:?}"
        );
    }
    assert!(matches!(
        plan(v(), &[("a", 41 * MIB)]),
        Err(FatError::Full { .. })
    ));
    assert!(matches!(
        plan(v(), &[("a", 1 << 32)]),
        Err(FatError::TooLong { .. })
    ));
    for (kind, size) in [
        (Kind::Fat32, 30 * MIB),
        (Kind::Fat16, MIB),
        (Kind::Fat16, 600 * MIB),
        (Kind::Fat32, 1000),
    ] {
        let error = plan(volume(kind, SectorSize::B512, size), &[]).unwrap_err();
        assert!(
            matches!(error, FatError::Size { .. }),
            "{kind:?} {size}: {error}"
        );
    }
    let label = Volume {
        label: "too long for it",
        ..v()
    };
    assert!(matches!(plan(label, &[]), Err(FatError::Label(_))));
}

#[test]
fn a_file_that_changed_its_size_is_an_error() {
    let plan = plan(
        volume(Kind::Fat32, SectorSize::B512, 40 * MIB),
        &[("a", 10)],
    )
    .unwrap();
    for len in [9, 11] {
        let result =
            plan.write::<io::Error>(&mut io::sink(), &mut |_, out| out.write_all(&vec![0; len]));
        assert!(result.is_err(), "{len}");
    }
}
