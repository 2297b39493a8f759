//! What is to be done for a volume; decided without touching the disk.
//!
//! A volume's file is named after its id and generation. The wanted file is the one with the highest generation that is
//! not below the wanted one: generations only go up, so that a higher one on the disk means that our own count of purges
//! was lost, and data is worth more than a count.

use std::path::{Path, PathBuf};

use hypervisor_api::config::DiskFormat;
use protocol::ids::VolumeId;

use crate::domain::desired::{ContentKind, Volume};
use crate::reconcile::content::image::Image;

/// Size of the writable layer of a container that asks for none: 1 GiB, of which only what is written takes room.
pub const SCRATCH_BYTES: u64 = 1 << 30;

/// Smallest ext4 that is made.
const SCRATCH_FLOOR: u64 = 16 << 20;

/// The name of a volume's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileName {
    /// The volume.
    pub volume: VolumeId,
    /// Its generation, purges counted.
    pub generation: i64,
    /// How its bytes are to be read.
    pub format: DiskFormat,
}

impl FileName {
    /// `<volume id>#<generation>.<raw or qcow2>`.
    #[must_use]
    pub fn text(&self) -> String {
        let format = match self.format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        };
        format!("{}#{}.{format}", self.volume, self.generation)
    }

    /// Reads such a name; anything else (unfinished files, too) is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (volume, rest) = text.split_once('#')?;
        let (generation, format) = rest.split_once('.')?;
        Some(Self {
            volume: volume.parse().ok()?,
            generation: generation.parse().ok()?,
            format: match format {
                "raw" => DiskFormat::Raw,
                "qcow2" => DiskFormat::Qcow2,
                _ => return None,
            },
        })
        .filter(|name| name.text() == text)
    }
}

/// How a volume's file is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Make {
    /// An empty ext4 file system of this many bytes.
    Scratch {
        /// Size of the file.
        bytes: u64,
    },
    /// A copy of a machine's root disk, enlarged to this many bytes if it is smaller and raw.
    Copy {
        /// The blob.
        from: PathBuf,
        /// Size that the app is to see; 0: as large as the blob.
        bytes: u64,
    },
}

/// The next step for a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Its content is not here yet.
    Wait,
    /// Make this file.
    Make(FileName, Make),
    /// This file is it.
    Ready(FileName),
}

/// Decides. `generation` counts purges; `there` are the files on the disk; `kind` is that of the volume's content.
#[must_use]
pub fn plan(
    id: VolumeId,
    volume: &Volume,
    generation: i64,
    kind: ContentKind,
    image: Option<&Image>,
    there: &[FileName],
) -> Step {
    let format = kind.disk_format();
    let found = there
        .iter()
        .filter(|file| file.volume == id && file.format == format && file.generation >= generation)
        .max_by_key(|file| file.generation);
    if let Some(found) = found {
        return Step::Ready(*found);
    }
    let name = FileName {
        volume: id,
        generation,
        format,
    };
    match (kind, image) {
        (ContentKind::Container, _) => {
            let bytes = if volume.size_bytes == 0 {
                SCRATCH_BYTES
            } else {
                volume.size_bytes
            };
            Step::Make(
                name,
                Make::Scratch {
                    bytes: bytes.max(SCRATCH_FLOOR),
                },
            )
        }
        (_, Some(Image::Machine { disk, .. })) => Step::Make(
            name,
            Make::Copy {
                from: disk.clone(),
                bytes: volume.size_bytes,
            },
        ),
        _ => Step::Wait,
    }
}

/// The file names that are to be removed: everything that no wanted volume uses. `wanted` are the files in use or about
/// to be made; unfinished files of volumes at work are not listed by the caller.
#[must_use]
pub fn surplus<'a>(listing: &'a [String], wanted: &[FileName]) -> Vec<&'a Path> {
    let keep: Vec<String> = wanted.iter().map(FileName::text).collect();
    listing
        .iter()
        .filter(|name| !keep.contains(name))
        .map(Path::new)
        .collect()
}

#[cfg(test)]
mod tests {
    use protocol::ids::ContentId;
    use uuid::Uuid;

    use super::*;

    const ID: VolumeId = VolumeId(Uuid::from_u128(1));

    fn volume(size_bytes: u64) -> Volume {
        Volume {
            name: "v".into(),
            content: ContentId(Uuid::nil()),
            generation: 2,
            size_bytes,
            readonly: false,
        }
    }

    const RAW: DiskFormat = DiskFormat::Raw;
    const QCOW2: DiskFormat = DiskFormat::Qcow2;

    fn file(id: VolumeId, generation: i64, format: DiskFormat) -> FileName {
        FileName {
            volume: id,
            generation,
            format,
        }
    }

    fn machine() -> Image {
        Image::Machine {
            kernel: "/k".into(),
            initrds: vec![],
            disk: "/d".into(),
            disk_bytes: 5,
            format: DiskFormat::Raw,
        }
    }

    #[test]
    fn steps() {
        let raw = ContentKind::MachineRaw;
        let cases = [
            ("no content yet", volume(0), raw, None, vec![], Step::Wait),
            (
                "a machine's disk is copied",
                volume(9),
                raw,
                Some(machine()),
                vec![
                    file(ID, 1, RAW),
                    file(VolumeId(Uuid::nil()), 2, RAW),
                    file(ID, 2, QCOW2),
                ],
                Step::Make(
                    file(ID, 2, RAW),
                    Make::Copy {
                        from: "/d".into(),
                        bytes: 9,
                    },
                ),
            ),
            (
                "there already, with or without its content",
                volume(0),
                raw,
                None,
                vec![file(ID, 2, RAW)],
                Step::Ready(file(ID, 2, RAW)),
            ),
            (
                "a higher generation is not thrown away",
                volume(0),
                raw,
                None,
                vec![file(ID, 3, RAW), file(ID, 5, RAW), file(ID, 4, RAW)],
                Step::Ready(file(ID, 5, RAW)),
            ),
            (
                "a container's scratch needs no content",
                volume(0),
                ContentKind::Container,
                None,
                vec![],
                Step::Make(
                    file(ID, 2, RAW),
                    Make::Scratch {
                        bytes: SCRATCH_BYTES,
                    },
                ),
            ),
            (
                "and is never too small for ext4",
                volume(1),
                ContentKind::Container,
                None,
                vec![],
                Step::Make(
                    file(ID, 2, RAW),
                    Make::Scratch {
                        bytes: SCRATCH_FLOOR,
                    },
                ),
            ),
        ];
        for (what, volume, kind, image, there, expected) in cases {
            assert_eq!(
                plan(ID, &volume, 2, kind, image.as_ref(), &there),
                expected,
                "{what}"
            );
        }
    }

    #[test]
    fn names_are_read_strictly() {
        let name = file(ID, -3, QCOW2);
        assert_eq!(FileName::parse(&name.text()), Some(name));
        for bad in [
            "",
            "x#1.raw",
            "00000000-0000-0000-0000-000000000001#1.raw.part",
            "00000000-0000-0000-0000-000000000001#01.raw",
            "00000000-0000-0000-0000-000000000001#+1.raw",
            "00000000-0000-0000-0000-000000000001#1.vmdk",
            "00000000000000000000000000000001#1.raw",
        ] {
            assert_eq!(FileName::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_nobody_wants_is_surplus() {
        let listing = vec![
            file(ID, 1, RAW).text(),
            file(ID, 2, RAW).text(),
            "stray.part".to_owned(),
        ];
        let gone = surplus(&listing, &[file(ID, 2, RAW)]);
        assert_eq!(gone, [Path::new(&listing[0]), Path::new("stray.part")]);
    }
}
