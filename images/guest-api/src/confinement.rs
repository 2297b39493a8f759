//! What no container may see, change or do, however it is isolated: in a microVM by guest-init, natively by crun.

/// Paths that nobody in a container may read: runc's defaults and Docker's together.
pub const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that nobody in a container may write.
pub const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// A capability: its name as the OCI runtime specification has it, its number in `linux/capability.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// `CAP_...`.
    pub name: &'static str,
    /// Bit number.
    pub number: u32,
}

const fn capability(name: &'static str, number: u32) -> Capability {
    Capability { name, number }
}

/// Capabilities that root in a container has: what Docker and containerd give by default.
pub const CAPABILITIES: [Capability; 14] = [
    capability("CAP_CHOWN", 0),
    capability("CAP_DAC_OVERRIDE", 1),
    capability("CAP_FOWNER", 3),
    capability("CAP_FSETID", 4),
    capability("CAP_KILL", 5),
    capability("CAP_SETGID", 6),
    capability("CAP_SETUID", 7),
    capability("CAP_SETPCAP", 8),
    capability("CAP_NET_BIND_SERVICE", 10),
    capability("CAP_NET_RAW", 13),
    capability("CAP_SYS_CHROOT", 18),
    capability("CAP_MKNOD", 27),
    capability("CAP_AUDIT_WRITE", 29),
    capability("CAP_SETFCAP", 31),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dangerous_capabilities_are_not_given() {
        // NET_ADMIN, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, SYS_BOOT, SYS_TIME, BPF.
        for number in [12, 16, 17, 19, 21, 22, 25, 39] {
            assert!(CAPABILITIES.iter().all(|given| given.number != number));
        }
    }

    #[test]
    fn each_is_listed_once() {
        for (index, given) in CAPABILITIES.iter().enumerate() {
            assert!(given.name.starts_with("CAP_"));
            let rest = CAPABILITIES.iter().skip(index + 1);
            assert!(
                rest.clone()
                    .all(|other| other.number > given.number && other.name != given.name)
            );
        }
        for list in [&MASKED[..], &READ_ONLY[..]] {
            assert!(list.is_sorted());
        }
    }
}
