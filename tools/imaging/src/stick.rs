//! The installer stick: one GPT disk image with one FAT partition, made from parts and a bundle.
//!
//! The image is as small as its content allows and the same bytes for the same input: ids are derived from the content,
//! times are fixed. It is written beside its path and renamed when complete and synced.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use durable::beside;
use uuid::{Uuid, uuid};

use crate::Error;
use crate::bundle::Bundle;
use crate::content::{Content, sizes, write_volume};
use crate::digest::Hasher;
use crate::fat::{self, Kind, Volume};
use crate::gpt::{self, Partition, SectorSize, Table};
use crate::parts::{PARTS_FILE, PartName, Parts};

/// Label of the stick's volume, by which the installer knows it.
pub const LABEL: &str = "SKERRY";
/// Directory of the payload on the stick.
pub const PAYLOAD_DIR: &str = "skerry/payload";
/// Directory of the bundle's files on the stick.
pub const CONFIG_DIR: &str = "skerry/config";

/// Room that is left on the stick for the installer's reports, bytes.
const SPARE: u64 = 4 << 20;
const ALIGNMENT: u64 = 1 << 20;
/// Namespace of the ids that are derived from a stick's content.
const NAMESPACE: Uuid = uuid!("5b1c3a52-0f67-4c0e-9d7e-4f2d8f3f9a60");

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stick {
    /// Size of the image in bytes: the least size of a stick that takes it.
    pub size: u64,
}

/// Writes the disk image of an installer stick to `out`. `progress` is told bytes copied and bytes in all.
pub fn build_stick(
    parts_dir: &Path,
    bundle: &Bundle,
    out: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<Stick, Error> {
    bundle.check()?;
    let parts = Parts::load(parts_dir)?;
    let contents = stick_contents(&parts, parts_dir, bundle)?;
    let volume_size = fat::size_for(&sizes(&contents), SPARE);
    let size = volume_size + 2 * ALIGNMENT;
    let id = content_id(&parts, bundle);
    let table = stick_table(volume_size, id);
    let total = contents.iter().map(Content::size).sum();

    let part = beside(out);
    let made = write_image(&part, &table, size, &contents, &mut progress, total)
        .and_then(|()| Ok(durable::rename(&part, out)?));
    if let Err(error) = made {
        // The error at hand says more than one about the clearing up would.
        let _ = std::fs::remove_file(&part);
        return Err(error);
    }
    Ok(Stick { size })
}

fn stick_contents(parts: &Parts, dir: &Path, bundle: &Bundle) -> Result<Vec<Content>, Error> {
    let mut contents = vec![
        Content::file(
            "EFI/BOOT/BOOTX64.EFI",
            dir.join(PartName::Installer.file_name()),
            parts.file(PartName::Installer)?,
        ),
        Content::bytes(format!("{PAYLOAD_DIR}/{PARTS_FILE}"), parts.to_json()),
    ];
    for name in PartName::PAYLOAD {
        let path = format!("{PAYLOAD_DIR}/{name}");
        contents.push(Content::file(
            path,
            dir.join(name.file_name()),
            parts.file(name)?,
        ));
    }
    for (name, bytes) in bundle.files() {
        contents.push(Content::bytes(format!("{CONFIG_DIR}/{name}"), bytes));
    }
    Ok(contents)
}

/// An id that changes when anything on the stick does.
fn content_id(parts: &Parts, bundle: &Bundle) -> Uuid {
    let mut hasher = Hasher::new();
    hasher.update(&parts.to_json());
    for (name, bytes) in bundle.files() {
        hasher.update(name.as_bytes());
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(&bytes);
    }
    Uuid::new_v5(&NAMESPACE, hasher.finish().bytes())
}

fn stick_table(volume_size: u64, id: Uuid) -> Table {
    let sector = SectorSize::B512;
    let first = ALIGNMENT / sector.bytes();
    let partition = Partition {
        kind: gpt::TYPE_ESP,
        id: Uuid::new_v5(&id, b"partition"),
        first,
        last: first + volume_size / sector.bytes() - 1,
        attributes: 0,
        label: "skerry-installer".to_owned(),
    };
    Table {
        disk: id,
        sector,
        partitions: BTreeMap::from([(1, partition)]),
    }
}

fn write_image(
    path: &Path,
    table: &Table,
    size: u64,
    contents: &[Content],
    progress: &mut dyn FnMut(u64, u64),
    total: u64,
) -> Result<(), Error> {
    let file = File::create(path).map_err(Error::io("create", path))?;
    // Sparse: what is free on the volume takes no room here.
    file.set_len(size)
        .map_err(Error::io("set the size of", path))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    for piece in gpt::encode(table, size).map_err(|source| Error::Gpt {
        path: path.to_owned(),
        source,
    })? {
        out.seek(SeekFrom::Start(piece.offset))
            .map_err(Error::io("write", path))?;
        out.write_all(&piece.bytes)
            .map_err(Error::io("write", path))?;
    }
    let (start, volume_size) = table.extent(1).unwrap_or((ALIGNMENT, 0));
    let volume = Volume {
        size: volume_size,
        sector: table.sector,
        kind: Kind::Fat32,
        label: LABEL,
        serial: table.disk.as_fields().0,
        hidden_sectors: start / table.sector.bytes(),
    };
    out.seek(SeekFrom::Start(start))
        .map_err(Error::io("write", path))?;
    let mut done = 0;
    write_volume(
        volume,
        contents,
        &mut out,
        &path.display().to_string(),
        &mut |n| {
            done += n;
            progress(done, total);
        },
    )?;
    let file = out
        .into_inner()
        .map_err(|e| Error::io("write", path)(e.into_error()))?;
    file.sync_all().map_err(Error::io("sync", path))
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read};

    use super::*;
    use crate::bundle::tests::sample as bundle;
    use crate::digest::Digest;
    use crate::parts::{RootHash, Variant};
    use crate::window::Window;

    fn parts(dir: &Path) -> Parts {
        for (i, name) in PartName::ALL.into_iter().enumerate() {
            std::fs::write(dir.join(name.file_name()), vec![i as u8 + 1; 2_000_000 + i]).unwrap();
        }
        let hash = RootHash::new(Digest::of(b"root"));
        let parts = Parts::measure(
            dir,
            "0.1.0".parse().unwrap(),
            Variant::Production,
            hash,
            8192,
        )
        .unwrap();
        parts.write(dir).unwrap();
        parts
    }

    #[test]
    fn a_stick_has_everything_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let parts = parts(dir.path());
        let out = dir.path().join("stick.img");
        let mut last = (0, 0);
        let stick = build_stick(dir.path(), &bundle(), &out, |done, total| {
            last = (done, total)
        })
        .unwrap();
        assert_eq!(last.0, last.1);
        assert!(last.0 > 8_000_000);
        assert!(!beside(&out).exists());

        let image = std::fs::read(&out).unwrap();
        assert_eq!(image.len() as u64, stick.size);
        let mut disk = Cursor::new(image);
        let table = gpt::read(&mut disk, SectorSize::B512, stick.size).unwrap();
        assert_eq!(table.partitions[&1].kind, gpt::TYPE_ESP);
        let (start, len) = table.extent(1).unwrap();
        let fs =
            fatfs::FileSystem::new(Window::new(&mut disk, start, len), fatfs::FsOptions::new())
                .unwrap();
        assert_eq!(fs.volume_label(), LABEL);
        let read = |path: &str| {
            let mut bytes = Vec::new();
            fs.root_dir()
                .open_file(path)
                .unwrap()
                .read_to_end(&mut bytes)
                .unwrap();
            bytes
        };
        assert_eq!(
            read("EFI/BOOT/BOOTX64.EFI"),
            std::fs::read(dir.path().join("installer.efi")).unwrap()
        );
        assert_eq!(
            Parts::parse(&read("skerry/payload/parts.json")).unwrap(),
            parts
        );
        for name in PartName::PAYLOAD {
            assert_eq!(
                Digest::of(&read(&format!("skerry/payload/{name}"))),
                parts.file(name).unwrap().sha256
            );
        }
        for (name, bytes) in bundle().files() {
            assert_eq!(read(&format!("skerry/config/{name}")), bytes);
        }
        assert!(fs.stats().unwrap().free_clusters() as u64 * u64::from(fs.cluster_size()) >= SPARE);
    }

    #[test]
    fn the_same_input_makes_the_same_stick_and_another_bundle_another() {
        let dir = tempfile::tempdir().unwrap();
        parts(dir.path());
        let build = |name: &str, bundle: &Bundle| {
            let out = dir.path().join(name);
            build_stick(dir.path(), bundle, &out, |_, _| ()).unwrap();
            std::fs::read(out).unwrap()
        };
        let one = build("one", &bundle());
        assert!(one == build("two", &bundle()));
        let other = Bundle {
            server: "192.0.2.9:443".into(),
            ..bundle()
        };
        assert!(one != build("three", &other));
    }

    #[test]
    fn a_spoilt_part_makes_no_stick() {
        let dir = tempfile::tempdir().unwrap();
        parts(dir.path());
        let root = dir.path().join("root.img");
        let mut bytes = std::fs::read(&root).unwrap();
        bytes[1_000_000] ^= 1;
        std::fs::write(&root, bytes).unwrap();
        let out = dir.path().join("stick.img");
        let error = build_stick(dir.path(), &bundle(), &out, |_, _| ())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("root.img") && error.contains("SHA-256"),
            "{error}"
        );
        assert!(!out.exists() && !beside(&out).exists());
    }
}
