//! The OCI runtime bundle of a native container (OCI Runtime Specification 1.1, config.md), made from what it is to be.
//!
//! The container has a user namespace of its own: its root is nobody on the host. It gets the capabilities that container
//! engines give by default, which count only inside its namespaces, and no way to get more (`noNewPrivileges`).

use std::path::Path;

use guest_api::ContainerSpec;
use guest_api::confinement::{CAPABILITIES, MASKED, READ_ONLY};
use serde_json::{Value, json};

use super::start::Start;

/// Ids that a container has: 0 to 65535.
pub const IDS: u32 = 65_536;

/// System calls that no application needs and that reach far into the kernel.
const FORBIDDEN: &[&str] = &[
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "name_to_handle_at",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "quotactl",
    "reboot",
    "request_key",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "umount2",
    "unshare",
    "userfaultfd",
    "vhangup",
    "vmsplice",
];

/// The places of a native container that the bundle refers to.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// The mounted root file system.
    pub root: &'a Path,
    /// Its user namespace.
    pub user_namespace: &'a Path,
    /// Its network namespace.
    pub network_namespace: &'a Path,
    /// Its /etc/resolv.conf.
    pub resolv_conf: &'a Path,
    /// Its /etc/hosts.
    pub hosts: &'a Path,
}

/// The bundle's config.json.
#[must_use]
pub fn config(
    start: &Start,
    container: &ContainerSpec,
    places: &Places<'_>,
    volumes: &[(String, String, bool)],
) -> Value {
    let file = |source: &Path, destination: &str| json!({"destination": destination, "type": "bind", "source": source, "options": ["bind", "ro", "nosuid", "nodev", "noexec"]});
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
        file(places.resolv_conf, "/etc/resolv.conf"),
        file(places.hosts, "/etc/hosts"),
    ];
    for (source, destination, readonly) in volumes {
        let mode = if *readonly { "ro" } else { "rw" };
        mounts.push(json!({"destination": destination, "type": "bind", "source": source, "options": ["bind", mode, "nosuid", "nodev"]}));
    }
    let ids = json!([{"containerID": 0, "hostID": start.number.subordinate_ids(), "size": IDS}]);
    let capabilities = CAPABILITIES.map(|capability| capability.name);
    // Only root has them from the start, as with other engines.
    let from_the_start = if container.uid == 0 {
        &capabilities[..]
    } else {
        &[]
    };
    json!({
        "ociVersion": "1.0.2",
        "hostname": container.hostname,
        "process": {
            "terminal": false,
            "user": {"uid": container.uid, "gid": container.gid, "additionalGids": container.additional_gids},
            "args": container.args,
            "env": container.env,
            "cwd": container.cwd,
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": capabilities,
                "effective": from_the_start,
                "permitted": from_the_start,
            },
        },
        "root": {"path": places.root, "readonly": container.readonly_root},
        "mounts": mounts,
        "linux": {
            "uidMappings": ids,
            "gidMappings": ids,
            "namespaces": [
                {"type": "user", "path": places.user_namespace},
                {"type": "network", "path": places.network_namespace},
                {"type": "pid"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
                {"type": "cgroup"},
            ],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": FORBIDDEN, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM}],
            },
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    })
}
