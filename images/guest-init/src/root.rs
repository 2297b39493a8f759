//! The container's root: its image, with a layer over it that takes what is written.
//!
//! ```text
//! /image    vda, EROFS, read-only             /scratch   vdb, ext4 (or memory, for a read-only root)
//!        \                                   /
//!         overlay at /container: it becomes /
//! ```
//!
//! A read-only root has the layer too, in memory, until everything is prepared: images do not bring every directory that
//! something must be mounted on.

use std::fs;

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::Error;
use crate::mounts::{Mount, apply, wait_for_device};

const IMAGE: &str = "/dev/vda";
const SCRATCH: &str = "/dev/vdb";
const TARGET: &str = "/container";
const FLAGS: MsFlags = MsFlags::MS_NODEV;

/// The mounts that make the root, in order.
pub fn plan(readonly: bool) -> Vec<Mount> {
    let image = Mount {
        source: IMAGE.to_owned(),
        kind: "erofs",
        target: "/image".to_owned(),
        flags: MsFlags::MS_RDONLY | FLAGS,
        options: "",
    };
    let (source, kind, options) = if readonly {
        ("tmpfs", "tmpfs", "mode=0755")
    } else {
        (SCRATCH, "ext4", "")
    };
    let scratch = Mount {
        source: source.to_owned(),
        kind,
        target: "/scratch".to_owned(),
        flags: FLAGS,
        options,
    };
    let overlay = Mount {
        source: "overlay".to_owned(),
        kind: "overlay",
        target: TARGET.to_owned(),
        flags: FLAGS,
        options: "lowerdir=/image,upperdir=/scratch/upper,workdir=/scratch/work",
    };
    vec![image, scratch, overlay]
}

/// Mounts the root and moves into it. What was the initramfs is gone afterwards, its memory free.
pub fn enter(readonly: bool) -> Result<(), Error> {
    for mount in plan(readonly) {
        if mount.source.starts_with("/dev/") {
            wait_for_device(&mount.source)?;
        }
        if mount.kind == "overlay" {
            for directory in ["/scratch/upper", "/scratch/work"] {
                fs::create_dir_all(directory)
                    .map_err(Error::system("make directory", directory))?;
            }
        }
        apply(&mount)?;
    }
    // There is only this program and, until it was read, the spec.
    let _ = fs::remove_file("/init");
    chdir(TARGET).map_err(Error::system("change into", TARGET))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(Error::system("move mount", format!("{TARGET} to /")))?;
    chroot(".").map_err(Error::system("change root to", TARGET))?;
    chdir("/").map_err(Error::system("change into", "/"))
}

/// Makes the root read-only.
pub fn seal() -> Result<(), Error> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | FLAGS;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(Error::system("make read-only", "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_goes_to_the_scratch_disk_or_nowhere() {
        let writable = plan(false);
        let kinds: Vec<_> = writable
            .iter()
            .map(|m| (m.source.as_str(), m.kind))
            .collect();
        assert_eq!(
            kinds,
            [
                ("/dev/vda", "erofs"),
                ("/dev/vdb", "ext4"),
                ("overlay", "overlay")
            ]
        );
        let readonly = plan(true);
        assert!(readonly.iter().all(|m| m.source != "/dev/vdb"));
        for mount in writable.iter().chain(&readonly) {
            assert!(mount.flags.contains(MsFlags::MS_NODEV), "{}", mount.target);
        }
        assert!(writable[0].flags.contains(MsFlags::MS_RDONLY));
    }
}
