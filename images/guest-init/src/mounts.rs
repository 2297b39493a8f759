//! What a container finds mounted: the OCI runtime specification's defaults for Linux, with the masks that runc applies.
//!
//! The lists are plain data; [`apply`] carries one mount out.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::time::{Duration, Instant};

use guest_api::confinement::{MASKED, READ_ONLY};
use guest_api::{ContainerSpec, VolumeMount};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::Error;

const NOSUID: MsFlags = MsFlags::MS_NOSUID;
const NOEXEC: MsFlags = MsFlags::MS_NOEXEC;
const NODEV: MsFlags = MsFlags::MS_NODEV;
const RDONLY: MsFlags = MsFlags::MS_RDONLY;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device, or any word where the kind has none.
    pub source: String,
    /// Kind of file system.
    pub kind: &'static str,
    /// Where.
    pub target: String,
    /// Flags.
    pub flags: MsFlags,
    /// The file system's own options.
    pub options: &'static str,
}

impl Mount {
    fn new(kind: &'static str, target: &str, flags: MsFlags, options: &'static str) -> Self {
        Self {
            source: kind.to_owned(),
            kind,
            target: target.to_owned(),
            flags,
            options,
        }
    }
}

/// The kernel's file systems that guest-init itself needs in the initramfs.
pub fn own() -> Vec<Mount> {
    vec![
        Mount::new("devtmpfs", "/dev", NOSUID | NOEXEC, "mode=0755"),
        Mount::new("proc", "/proc", NOSUID | NOEXEC | NODEV, ""),
    ]
}

/// What lies below the container's root before its process starts. `/proc` is missing: it belongs to the process' own PID
/// namespace and is mounted from within ([`proc`]).
pub fn container() -> Vec<Mount> {
    vec![
        Mount::new(
            "tmpfs",
            "/dev",
            NOSUID | MsFlags::MS_STRICTATIME,
            "mode=755,size=65536k",
        ),
        Mount::new(
            "devpts",
            "/dev/pts",
            NOSUID | NOEXEC,
            "newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        Mount::new(
            "tmpfs",
            "/dev/shm",
            NOSUID | NOEXEC | NODEV,
            "mode=1777,size=65536k",
        ),
        Mount::new("mqueue", "/dev/mqueue", NOSUID | NOEXEC | NODEV, ""),
        Mount::new("sysfs", "/sys", NOSUID | NOEXEC | NODEV | RDONLY, ""),
        Mount::new(
            "cgroup2",
            "/sys/fs/cgroup",
            NOSUID | NOEXEC | NODEV | RDONLY,
            "",
        ),
    ]
}

/// The container's view of its processes.
pub fn proc() -> Mount {
    Mount::new("proc", "/proc", NOSUID | NOEXEC | NODEV, "")
}

/// A volume's mount.
pub fn volume(volume: &VolumeMount) -> Mount {
    let readonly = if volume.readonly {
        RDONLY
    } else {
        MsFlags::empty()
    };
    Mount {
        source: volume.device.clone(),
        kind: "ext4",
        target: volume.path.clone(),
        flags: NOSUID | NODEV | readonly,
        options: "",
    }
}

/// Device nodes of a container: name, major, minor (OCI runtime specification, "Default Devices").
pub const NODES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links in /dev: name, target.
pub const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Mounts, making the directory where it is missing.
pub fn apply(wanted: &Mount) -> Result<(), Error> {
    fs::create_dir_all(&wanted.target).map_err(Error::system("make directory", &wanted.target))?;
    let options = (!wanted.options.is_empty()).then_some(wanted.options);
    mount(
        Some(wanted.source.as_str()),
        wanted.target.as_str(),
        Some(wanted.kind),
        wanted.flags,
        options,
    )
    .map_err(Error::system(
        "mount",
        format!("{} ({}) at {}", wanted.source, wanted.kind, wanted.target),
    ))
}

/// Fills the container's /dev.
pub fn fill_dev() -> Result<(), Error> {
    for (name, major, minor) in NODES {
        let path = format!("/dev/{name}");
        mknod(
            path.as_str(),
            SFlag::S_IFCHR,
            Mode::from_bits_truncate(0o666),
            makedev(major, minor),
        )
        .map_err(Error::system("make device", &path))?;
        // mknod's mode went through the umask.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))
            .map_err(Error::system("set mode of", &path))?;
    }
    for (name, target) in LINKS {
        let path = format!("/dev/{name}");
        symlink(target, &path).map_err(Error::system("make link", &path))?;
    }
    Ok(())
}

/// Hides what [`MASKED`] lists. What this kernel does not have needs no mask.
pub fn mask() -> io::Result<()> {
    for path in MASKED {
        let hidden = match fs::symlink_metadata(path) {
            Ok(about) if about.is_dir() => mount(
                Some("tmpfs"),
                path,
                Some("tmpfs"),
                RDONLY | NOSUID | NODEV | NOEXEC,
                Some("size=0"),
            ),
            Ok(_) => mount(
                Some("/dev/null"),
                path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            ),
            Err(_) => continue,
        };
        hidden?;
    }
    Ok(())
}

/// Makes read-only what [`READ_ONLY`] lists: a bind mount of it on itself, then the flag.
pub fn make_read_only() -> io::Result<()> {
    for path in READ_ONLY {
        match mount(
            Some(path),
            path,
            None::<&str>,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            None::<&str>,
        ) {
            Ok(()) => {}
            Err(Errno::ENOENT) => continue,
            Err(e) => return Err(e.into()),
        }
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | RDONLY | NOSUID | NODEV | NOEXEC;
        mount(None::<&str>, path, None::<&str>, flags, None::<&str>)?;
    }
    Ok(())
}

/// Mounts volumes. Their device nodes are seen only while it runs: the container's /dev comes over them.
///
/// A volume that nobody has written to yet takes owner and mode of the directory that it covers, or belongs to the
/// container's user where the image has no such directory; otherwise only root could ever write to it.
pub fn mount_volumes(spec: &ContainerSpec) -> Result<(), Error> {
    if spec.volumes.is_empty() {
        return Ok(());
    }
    apply(&Mount::new("devtmpfs", "/dev", NOSUID | NOEXEC, ""))?;
    for wanted in &spec.volumes {
        let path = wanted.path.as_str();
        if fs::metadata(path).is_err() {
            fs::create_dir_all(path)
                .and_then(|()| chown(path, Some(spec.uid), Some(spec.gid)))
                .map_err(Error::system("make directory", path))?;
        }
        let covered = fs::metadata(path).map_err(Error::system("read", path))?;
        wait_for_device(&wanted.device)?;
        apply(&volume(wanted))?;
        if !wanted.readonly && is_fresh(path).map_err(Error::system("read", path))? {
            chown(path, Some(covered.uid()), Some(covered.gid()))
                .and_then(|()| fs::set_permissions(path, covered.permissions()))
                .map_err(Error::system("set the owner of", path))?;
        }
    }
    umount2("/dev", MntFlags::MNT_DETACH).map_err(Error::system("unmount", "/dev"))
}

/// Whether a file system holds nothing but what mkfs.ext4 puts there, and is root's.
fn is_fresh(path: &str) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        if entry?.file_name() != "lost+found" {
            return Ok(false);
        }
    }
    let about = fs::metadata(path)?;
    Ok(about.uid() == 0 && about.gid() == 0)
}

/// Devices appear while the kernel is already running its init.
pub fn wait_for_device(path: &str) -> Result<(), Error> {
    const LIMIT: Duration = Duration::from_secs(2);
    let start = Instant::now();
    loop {
        match File::open(path) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound && start.elapsed() < LIMIT => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return Err(Error::system("open", path)(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_stand_in_an_order_that_works_and_can_do_no_harm() {
        let list = container();
        for (i, mount) in list.iter().enumerate() {
            assert!(mount.flags.contains(NOSUID), "{}", mount.target);
            // Nothing mounted later may cover something mounted before.
            assert!(
                !list
                    .iter()
                    .take(i)
                    .any(|earlier| earlier.target.starts_with(&mount.target)),
                "{}",
                mount.target
            );
        }
        let with_devices: Vec<_> = list
            .iter()
            .filter(|m| !m.flags.contains(NODEV))
            .map(|m| m.target.as_str())
            .collect();
        assert_eq!(with_devices, ["/dev", "/dev/pts"]);
    }

    #[test]
    fn volumes_are_writable_unless_said_otherwise() {
        let mut wanted = VolumeMount {
            device: "/dev/vdc".into(),
            path: "/data".into(),
            readonly: false,
        };
        assert!(!volume(&wanted).flags.contains(RDONLY));
        wanted.readonly = true;
        let mount = volume(&wanted);
        assert!(mount.flags.contains(RDONLY | NODEV | NOSUID));
        assert_eq!(
            (mount.source.as_str(), mount.target.as_str()),
            ("/dev/vdc", "/data")
        );
    }

    #[test]
    fn only_an_untouched_volume_is_given_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        // A test that does not run as root sees no directory of root's.
        let is_root = fs::metadata(path).unwrap().uid() == 0;
        assert_eq!(is_fresh(path).unwrap(), is_root);
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        assert_eq!(is_fresh(path).unwrap(), is_root);
        fs::write(dir.path().join("data"), "x").unwrap();
        assert!(!is_fresh(path).unwrap());
    }
}
