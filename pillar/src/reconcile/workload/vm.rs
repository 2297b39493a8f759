//! Apps that are virtual machines: machines from their images, and containers in microVMs. Makes the files that the
//! monitor reads, and the unit in which it runs.
//!
//! ```text
//! <run>/apps/<id>/            root's, others may only pass through
//!     vm.json                 the machine, readable by its monitor
//!     container.cpio          the container's spec, appended to the guest's initramfs (microVM)
//!     seed.img                cloud-init's seed (machine with user data)
//!     vm/                     the monitor's own: control, console and vsock sockets, last words
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use guest_api::cpio::Archive;
use guest_api::{CONTROL_PORT, SPEC_PATH, VolumeMount};
use hypervisor_api::config::{
    Boot, Console, Disk, DiskFormat, MAX_COMMAND_LINE, Net, VmConfig, Vsock,
};

use super::life::GRACE;
use super::seed;
use super::start::{Start, StartDisk, StartKind, hostname};
use crate::host::files::{self, FileError, fail};
use crate::host::units::UnitSpec;
use crate::paths::Paths;

/// Memory that a monitor may use beside its guest's: 64 MiB, for page tables, buffers and its own code.
const OVERHEAD_MIB: u64 = 64;

/// How long a monitor whose guest had its time may take to bring its disks in order, before systemd kills it.
const STOP_MARGIN: Duration = Duration::from_secs(15);

/// Where the files of an app that is a virtual machine lie.
#[derive(Clone, Debug)]
pub struct VmFiles {
    dir: PathBuf,
}

impl VmFiles {
    /// In an app's run-time directory.
    #[must_use]
    pub fn new(app_dir: &Path) -> Self {
        Self {
            dir: app_dir.to_owned(),
        }
    }

    /// The directory that is the monitor's own.
    #[must_use]
    pub fn own(&self) -> PathBuf {
        self.dir.join("vm")
    }

    /// The description of the machine.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("vm.json")
    }

    /// The monitor's control socket.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.own().join("control.sock")
    }

    /// The first virtio console (`hvc0`).
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.own().join("console.sock")
    }

    /// The serial line (`ttyS0`).
    #[must_use]
    pub fn serial(&self) -> PathBuf {
        self.own().join("serial.sock")
    }

    /// The vsock device's socket.
    #[must_use]
    pub fn vsock(&self) -> PathBuf {
        self.own().join("vsock.sock")
    }

    /// Where guest-init's connection arrives.
    #[must_use]
    pub fn guest_control(&self) -> PathBuf {
        files::with_suffix(&self.vsock(), &format!("_{CONTROL_PORT}"))
    }

    /// Where the socket for it is made before it is moved there; in root's directory.
    #[must_use]
    pub fn guest_workshop(&self) -> PathBuf {
        self.dir.join("guest.sock")
    }

    /// The monitor's last words.
    #[must_use]
    pub fn last_words(&self) -> PathBuf {
        self.own().join("last-words.json")
    }

    fn spec(&self) -> PathBuf {
        self.dir.join("container.cpio")
    }

    fn seed(&self) -> PathBuf {
        self.dir.join("seed.img")
    }
}

/// Which of a machine's consoles people want: the serial line if the command line names only that.
#[must_use]
pub fn console_of(start: &Start, files: &VmFiles) -> Option<PathBuf> {
    match &start.kind {
        StartKind::Machine { cmdline, .. }
            if cmdline.contains("console=ttyS0") && !cmdline.contains("console=hvc0") =>
        {
            Some(files.serial())
        }
        StartKind::Machine { .. } | StartKind::Microvm { .. } => Some(files.console()),
        StartKind::Native { .. } => None,
    }
}

/// The description of the machine; `None` for native containers.
#[must_use]
pub fn describe(start: &Start, paths: &Paths, files: &VmFiles) -> Option<VmConfig> {
    let (boot, mut disks, serial, consoles, vsock) = match &start.kind {
        StartKind::Machine {
            kernel,
            initrds,
            cmdline,
            disk,
            user_data,
        } => {
            let boot = Boot::Kernel {
                kernel: kernel.clone(),
                initrds: initrds.clone(),
                cmdline: command_line(cmdline),
            };
            let mut disks = vec![to_disk(disk, "root")];
            disks.extend(user_data.as_ref().map(|_| Disk {
                path: files.seed(),
                format: DiskFormat::Raw,
                readonly: true,
                serial: Some("cidata".into()),
            }));
            // A machine's log is what it says on its consoles.
            let console = |socket| Console {
                socket: Some(socket),
                stdout: true,
            };
            (
                boot,
                disks,
                Some(console(files.serial())),
                vec![console(files.console())],
                None,
            )
        }
        StartKind::Microvm {
            rootfs, scratch, ..
        } => {
            let boot = Boot::Kernel {
                kernel: paths.guest_kernel(),
                initrds: vec![paths.guest_initrd(), files.spec()],
                // A kernel that panics ends, so that the app is started again.
                cmdline: "console=hvc0 quiet panic=-1".into(),
            };
            let raw = |path: &Path, readonly, serial: &str| Disk {
                path: path.to_owned(),
                format: DiskFormat::Raw,
                readonly,
                serial: Some(serial.into()),
            };
            let disks = vec![raw(rootfs, true, "root"), raw(scratch, false, "scratch")];
            let kernel_console = Console {
                socket: Some(files.console()),
                stdout: false,
            };
            let container_output = Console {
                socket: None,
                stdout: true,
            };
            let vsock = Vsock {
                cid: start.number.cid(),
                socket: files.vsock(),
            };
            (
                boot,
                disks,
                None,
                vec![kernel_console, container_output],
                Some(vsock),
            )
        }
        StartKind::Native { .. } => return None,
    };
    for (index, disk) in start.disks.iter().enumerate() {
        disks.push(to_disk(disk, &format!("volume{}", index + 1)));
    }
    let nets = start
        .nets
        .iter()
        .map(|net| Net {
            tap: net.tap.clone(),
            mac: net.mac.to_string(),
            mtu: None,
        })
        .collect();
    Some(VmConfig {
        name: hostname(&start.name),
        vcpus: start.vcpus,
        memory_mib: start.memory_mib,
        boot,
        disks,
        nets,
        serial,
        consoles,
        vsock,
        rng: true,
        control_socket: files.control(),
        last_words: Some(files.last_words()),
        shutdown_grace_seconds: u16::try_from(GRACE.as_secs()).unwrap_or(u16::MAX),
    })
}

/// The command line of a machine as its kernel gets it.
///
/// Many kernels have the driver of virtio consoles as a module, which is loaded when the root file system is there. One
/// that was given no other console has nothing behind /dev/console until then, and Debian's initramfs dies of that. `tty0`,
/// the screen that these machines do not have, stands in: it shows nothing, and the console that is named last takes over.
fn command_line(wanted: &str) -> String {
    let mut consoles = wanted
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("console="))
        .peekable();
    let line = format!("console=tty0 {wanted}");
    let stands_alone =
        consoles.peek().is_some() && consoles.all(|console| console.starts_with("hvc"));
    if stands_alone && line.len() <= MAX_COMMAND_LINE {
        line
    } else {
        wanted.to_owned()
    }
}

fn to_disk(disk: &StartDisk, serial: &str) -> Disk {
    Disk {
        path: disk.path.clone(),
        format: disk.format,
        readonly: disk.readonly,
        serial: Some(serial.into()),
    }
}

/// The container's spec with its further disks; they follow `vda` (root) and `vdb` (scratch).
fn container_archive(start: &Start) -> io::Result<Option<Vec<u8>>> {
    let StartKind::Microvm { container, .. } = &start.kind else {
        return Ok(None);
    };
    let mut container = container.clone();
    container.volumes = start
        .disks
        .iter()
        .zip('c'..='z')
        .filter(|(disk, _)| !disk.mount_dir.is_empty())
        .map(|(disk, letter)| VolumeMount {
            device: format!("/dev/vd{letter}"),
            path: disk.mount_dir.clone(),
            readonly: disk.readonly,
        })
        .collect();
    let mut archive = Archive::default();
    if let Some((dir, _)) = SPEC_PATH.rsplit_once('/') {
        archive.folder(dir, 0o700);
    }
    archive.file(SPEC_PATH, 0o600, serde_json::to_vec(&container)?);
    archive.to_bytes().map(Some).map_err(io::Error::other)
}

/// Writes the files that a monitor needs and makes them, and the app's disks, its own. Blocking.
pub fn prepare(start: &Start, paths: &Paths, app_dir: &Path) -> Result<(), FileError> {
    let uid = start.number.uid();
    let files = VmFiles::new(app_dir);
    files::make_dir(app_dir, 0o711)?;
    // What an earlier run left: sockets without anyone behind them, last words of another life.
    files::remove_tree(&files.own())?;
    files::make_dir(&files.own(), 0o700)?;
    own(&files.own(), uid)?;
    if let Some(config) = describe(start, paths, &files) {
        let text = serde_json::to_vec_pretty(&config)
            .map_err(|error| fail("writing", &files.config())(error.into()))?;
        give(&files.config(), &text, uid)?;
    }
    let archive = container_archive(start).map_err(fail("making", &files.spec()))?;
    if let Some(archive) = archive {
        give(&files.spec(), &archive, uid)?;
    }
    if let StartKind::Machine {
        user_data: Some(user_data),
        ..
    } = &start.kind
    {
        let seed = seed::disk(&start.app.to_string(), &hostname(&start.name), user_data)
            .map_err(fail("making", &files.seed()))?;
        give(&files.seed(), &seed, uid)?;
    }
    for disk in own_disks(start) {
        fs::set_permissions(disk, fs::Permissions::from_mode(0o600))
            .map_err(fail("setting the mode of", disk))?;
        own(disk, uid)?;
    }
    Ok(())
}

/// The disks that belong to the app alone.
fn own_disks(start: &Start) -> Vec<&Path> {
    let first = match &start.kind {
        StartKind::Machine { disk, .. } => disk.path.as_path(),
        StartKind::Microvm { scratch, .. } | StartKind::Native { scratch, .. } => scratch.as_path(),
    };
    std::iter::once(first)
        .chain(start.disks.iter().map(|disk| disk.path.as_path()))
        .collect()
}

/// What it shares with others, to read only.
fn shared_files(start: &Start, paths: &Paths) -> Vec<PathBuf> {
    match &start.kind {
        StartKind::Machine {
            kernel, initrds, ..
        } => std::iter::once(kernel).chain(initrds).cloned().collect(),
        StartKind::Microvm { rootfs, .. } => {
            vec![rootfs.clone(), paths.guest_kernel(), paths.guest_initrd()]
        }
        StartKind::Native { .. } => Vec::new(),
    }
}

fn own(path: &Path, uid: u32) -> Result<(), FileError> {
    std::os::unix::fs::lchown(path, Some(uid), Some(uid)).map_err(fail("giving away", path))
}

/// Writes a file that root owns and the monitor's group may read.
fn give(path: &Path, bytes: &[u8], uid: u32) -> Result<(), FileError> {
    files::write_volatile(path, bytes, 0o640)?;
    std::os::unix::fs::lchown(path, Some(0), Some(uid)).map_err(fail("giving away", path))
}

/// The unit in which the monitor runs: own uid, no capability, own memory limit, and of the file system only what is this
/// app's.
#[must_use]
pub fn unit(name: String, start: &Start, paths: &Paths, app_dir: &Path) -> UnitSpec {
    let files = VmFiles::new(app_dir);
    let uid = start.number.uid().to_string();
    let limit = u64::from(start.memory_mib) + OVERHEAD_MIB;
    let mut properties: Vec<(String, String)> = [
        ("Slice", "skerry.slice"),
        ("MemoryMax", &format!("{limit}M")),
        ("MemorySwapMax", "0"),
        ("TasksMax", "128"),
        ("LimitCORE", "0"),
        ("UMask", "0077"),
        ("OOMScoreAdjust", "300"),
        ("NoNewPrivileges", "yes"),
        // setpriv needs these to drop everything, these included.
        ("CapabilityBoundingSet", "CAP_SETUID CAP_SETGID CAP_SETPCAP"),
        ("DevicePolicy", "closed"),
        ("DeviceAllow", "/dev/kvm rw"),
        ("DeviceAllow", "/dev/net/tun rw"),
        ("RestrictAddressFamilies", "AF_UNIX"),
        ("RestrictNamespaces", "yes"),
        ("RestrictRealtime", "yes"),
        ("RestrictSUIDSGID", "yes"),
        ("LockPersonality", "yes"),
        ("SystemCallArchitectures", "native"),
        ("PrivateIPC", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("ProtectProc", "invisible"),
        ("ProtectClock", "yes"),
        ("ProtectHostname", "yes"),
        ("ProtectKernelLogs", "yes"),
        ("ProtectKernelModules", "yes"),
        ("ProtectKernelTunables", "yes"),
        ("ProtectControlGroups", "yes"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    let mut property = |name: &str, value: String| properties.push((name.to_owned(), value));
    // The device goes down: the monitor asks its guest to power off, and ends it when its time is over.
    let stop = (GRACE + STOP_MARGIN).as_secs();
    property("TimeoutStopSec", stop.to_string());
    property(
        "TemporaryFileSystem",
        format!("{}:ro", paths.persist.display()),
    );
    property("TemporaryFileSystem", format!("{}:ro", paths.run.display()));
    property("InaccessiblePaths", format!("-{}", paths.config.display()));
    property("BindReadOnlyPaths", app_dir.display().to_string());
    property("BindPaths", files.own().display().to_string());
    for path in shared_files(start, paths) {
        property("BindReadOnlyPaths", path.display().to_string());
    }
    for path in own_disks(start) {
        property("BindPaths", path.display().to_string());
    }
    // /dev/kvm belongs to a group of its own; without one the monitor could not open it.
    let groups = fs::metadata("/dev/kvm").map_or("--clear-groups".to_owned(), |about| {
        format!("--groups={}", about.gid())
    });
    UnitSpec {
        name,
        description: format!("Skerry app {}", hostname(&start.name)),
        program: "/usr/bin/setpriv".into(),
        args: vec![
            format!("--reuid={uid}").into(),
            format!("--regid={uid}").into(),
            groups.into(),
            "--inh-caps=-all".into(),
            "--ambient-caps=-all".into(),
            "--bounding-set=-all".into(),
            "--no-new-privs".into(),
            paths.vmm().into(),
            "run".into(),
            "-f".into(),
            files.config().into(),
        ],
        properties,
    }
}

#[cfg(test)]
mod tests {
    use guest_api::ContainerSpec;
    use protocol::ids::{AppId, VolumeId};
    use uuid::Uuid;

    use super::*;
    use crate::domain::desired::{App, Runtime, VolumeMount as Mount};
    use crate::reconcile::ledger::Ledger;
    use crate::reconcile::workload::start::StartNet;

    #[test]
    fn a_virtio_console_is_never_the_only_one() {
        let long = format!("console=hvc0 {}", "x".repeat(MAX_COMMAND_LINE - 13));
        for (wanted, line) in [
            ("", ""),
            ("root=/dev/vda ro", "root=/dev/vda ro"),
            ("root=/dev/vda console=ttyS0", "root=/dev/vda console=ttyS0"),
            ("console=hvc0", "console=tty0 console=hvc0"),
            (
                "root=/dev/vda console=hvc0 console=hvc1",
                "console=tty0 root=/dev/vda console=hvc0 console=hvc1",
            ),
            ("console=ttyS0 console=hvc0", "console=ttyS0 console=hvc0"),
            ("console=tty0 console=hvc0", "console=tty0 console=hvc0"),
            (&long, &long),
        ] {
            assert_eq!(command_line(wanted), line);
        }
    }

    /// What the config's translation counts is what the monitor is told.
    #[test]
    fn a_machine_has_the_devices_that_were_counted_for_it() {
        let id = AppId(Uuid::from_u128(1));
        let mount = Mount {
            volume: VolumeId(Uuid::nil()),
            mount_dir: "/data".into(),
        };
        let cmdline = String::new();
        for (runtime, user_data) in [
            (
                Runtime::Machine {
                    cmdline: cmdline.clone(),
                },
                None,
            ),
            (
                Runtime::Machine {
                    cmdline: cmdline.clone(),
                },
                Some("#cloud-config".to_owned()),
            ),
            (Runtime::ContainerMicrovm, None),
        ] {
            let app = App {
                name: "a".into(),
                activate: true,
                vcpus: 1,
                memory_mib: 64,
                runtime: runtime.clone(),
                volumes: vec![mount.clone(); 3],
                interfaces: vec![],
                env: vec![],
                user_data: user_data.clone(),
                restart_counter: 0,
                purge_counter: 0,
            };
            let desired = crate::domain::desired::Desired {
                apps: [(id, app.clone())].into(),
                ..Default::default()
            };
            let ledger = Ledger::default().update(&desired, &Default::default());
            let disk = StartDisk {
                path: "/disk".into(),
                format: DiskFormat::Raw,
                readonly: false,
                mount_dir: "/data".into(),
            };
            let kind = match runtime {
                Runtime::Machine { cmdline } => StartKind::Machine {
                    kernel: "/kernel".into(),
                    initrds: vec![],
                    cmdline,
                    disk: disk.clone(),
                    user_data,
                },
                _ => StartKind::Microvm {
                    rootfs: "/rootfs".into(),
                    scratch: "/scratch".into(),
                    container: ContainerSpec {
                        hostname: "a".into(),
                        args: vec![],
                        env: vec![],
                        cwd: "/".into(),
                        stop_signal: 15,
                        stop_grace_seconds: 5,
                        uid: 0,
                        gid: 0,
                        additional_gids: vec![],
                        readonly_root: false,
                        interfaces: vec![],
                        dns: vec![],
                        volumes: vec![],
                    },
                    stop_signal: 15,
                },
            };
            let start = Start {
                app: id,
                name: "a".into(),
                number: ledger.app(id).unwrap(),
                vcpus: 1,
                memory_mib: 64,
                kind,
                disks: vec![disk; 2],
                nets: Vec::<StartNet>::new(),
                counters: (0, 0),
            };
            let files = VmFiles::new(Path::new("/run/app"));
            let vm = describe(&start, &Paths::default(), &files).unwrap();
            assert_eq!(vm.disks.len(), app.disks());
            let devices = vm.disks.len()
                + vm.consoles.len()
                + usize::from(vm.vsock.is_some())
                + usize::from(vm.rng);
            assert_eq!(devices, app.devices());
        }
    }
}
