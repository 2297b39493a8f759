//! Figures from `/proc` and cgroups (proc(5), Documentation/admin-guide/cgroup-v2.rst).
//!
//! Parsing is apart from reading, so that it is tested with text.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Memory of the machine, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What the kernel manages.
    pub total: u64,
    /// What could be handed out without swapping.
    pub available: u64,
}

impl Memory {
    /// From `/proc/meminfo`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self {
            total: kib(text, "MemTotal:"),
            available: kib(text, "MemAvailable:"),
        }
    }

    /// What is in use.
    #[must_use]
    pub fn used(self) -> u64 {
        self.total.saturating_sub(self.available)
    }
}

/// The value of a `Key:   123 kB` line, in bytes; 0 if there is none.
fn kib(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok())
        .map_or(0, |kib| kib.saturating_mul(1024))
}

/// Processor time of the machine since its start.
#[must_use]
pub fn parse_cpu(stat: &str, ticks_per_second: u64) -> Duration {
    // user nice system idle iowait irq softirq steal: all but the two idle ones. Guest time is part of user.
    let ticks: u64 = stat
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))
        .map(|line| {
            line.split_whitespace()
                .take(8)
                .enumerate()
                .filter(|(index, _)| !matches!(index, 3 | 4))
                .filter_map(|(_, number)| number.parse::<u64>().ok())
                .fold(0, u64::saturating_add)
        })
        .unwrap_or(0);
    Duration::from_millis(ticks.saturating_mul(1000) / ticks_per_second.max(1))
}

/// Start of the machine, from `/proc/stat`.
#[must_use]
pub fn parse_boot_time(stat: &str) -> Option<SystemTime> {
    let seconds = stat
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its name.
    pub name: String,
    /// Threads.
    pub threads: u32,
    /// Time in user mode.
    pub user: Duration,
    /// Time in the kernel.
    pub system: Duration,
    /// Since the machine's start.
    pub started: Duration,
    /// Address space, in bytes.
    pub virtual_bytes: u64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
}

impl Process {
    /// From `/proc/PID/stat`. The name stands in parentheses and may hold any byte, parentheses too.
    #[must_use]
    pub fn parse(stat: &str, ticks_per_second: u64, page: u64) -> Option<Self> {
        let (head, tail) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = tail.split_whitespace().collect();
        // Numbered from 3 (state) in proc(5).
        let field = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<u64>().ok();
        let time = |ticks: u64| {
            Duration::from_millis(ticks.saturating_mul(1000) / ticks_per_second.max(1))
        };
        Some(Self {
            name,
            user: time(field(14)?),
            system: time(field(15)?),
            threads: u32::try_from(field(20)?).ok()?,
            started: time(field(22)?),
            virtual_bytes: field(23)?,
            resident_bytes: field(24)?.saturating_mul(page),
        })
    }

    /// Reads it.
    #[must_use]
    pub fn read(pid: u32) -> Option<Self> {
        // SAFETY: sysconf takes a number and gives a number.
        let (ticks, page) = unsafe {
            (
                libc::sysconf(libc::_SC_CLK_TCK),
                libc::sysconf(libc::_SC_PAGESIZE),
            )
        };
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(
            &String::from_utf8_lossy(&stat),
            u64::try_from(ticks).ok()?,
            u64::try_from(page).ok()?,
        )
    }
}

/// Proportional memory of a process, in bytes, from `/proc/PID/smaps_rollup`.
#[must_use]
pub fn pss(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    Some(kib(&text, "Pss:"))
}

/// Proportional memory of a monitor without its guest's RAM, in bytes, from `/proc/PID/smaps`. Guest RAM is what
/// [`guest_ram`] says.
#[must_use]
pub fn monitor_own(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    Some(own_of(&text))
}

fn own_of(smaps: &str) -> u64 {
    let mut counted = true;
    let mut own: u64 = 0;
    for line in smaps.lines() {
        if let Some(mapping) = Mapping::parse(line) {
            counted = !guest_ram(&mapping);
        } else if counted && line.starts_with("Pss:") {
            own = own.saturating_add(kib(line, "Pss:"));
        }
    }
    own
}

/// A header line of `/proc/PID/smaps`.
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    size: u64,
    permissions: &'a str,
    path: &'a str,
}

impl<'a> Mapping<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split_whitespace();
        let (from, to) = fields.next()?.split_once('-')?;
        let from = u64::from_str_radix(from, 16).ok()?;
        let to = u64::from_str_radix(to, 16).ok()?;
        let permissions = fields.next()?;
        // Offset, device, inode.
        let path = fields.nth(3).unwrap_or("");
        Some(Self {
            size: to.checked_sub(from)?,
            permissions,
            path,
        })
    }
}

/// Whether a mapping of a monitor is guest RAM: writable memory of at least 8 MiB that is no heap, stack or file of the
/// disk. The least guest has 16 MiB, in at most a few pieces; a monitor's own arenas and stacks are far below.
fn guest_ram(mapping: &Mapping<'_>) -> bool {
    let memory = mapping.path.is_empty()
        || mapping.path.starts_with("/memfd:")
        || mapping.path.starts_with("[anon");
    mapping.size >= 8 * 1024 * 1024 && mapping.permissions.starts_with("rw") && memory
}

/// The cgroup of a process below `/sys/fs/cgroup`.
#[must_use]
pub fn cgroup(pid: u32) -> Option<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = parse_cgroup(&text)?;
    Some(Path::new("/sys/fs/cgroup").join(path))
}

/// The unified hierarchy's line is `0::/path`.
fn parse_cgroup(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    (!path.split('/').any(|part| part == "..")).then_some(path)
}

/// Memory that a cgroup uses, in bytes.
#[must_use]
pub fn cgroup_memory(cgroup: &Path) -> Option<u64> {
    std::fs::read_to_string(cgroup.join("memory.current"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Processor time that a cgroup used.
#[must_use]
pub fn cgroup_cpu(cgroup: &Path) -> Option<Duration> {
    parse_cpu_stat(&std::fs::read_to_string(cgroup.join("cpu.stat")).ok()?)
}

/// Bytes that a cgroup read from and wrote to its loop devices, on which the disks of native containers lie. What those
/// cause on the disk below is counted there once more, and not here.
#[must_use]
pub fn cgroup_io(cgroup: &Path) -> Option<(u64, u64)> {
    Some(parse_io_stat(
        &std::fs::read_to_string(cgroup.join("io.stat")).ok()?,
    ))
}

fn parse_io_stat(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        text.lines()
            // Major number 7: loop devices (Documentation/admin-guide/devices.txt).
            .filter(|line| line.starts_with("7:"))
            .flat_map(str::split_whitespace)
            .filter_map(|field| field.strip_prefix(key)?.parse::<u64>().ok())
            .fold(0, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}

/// What passed through a network interface since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Received.
    pub rx: Passed,
    /// Sent.
    pub tx: Passed,
}

/// One direction of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets that were damaged or could not be sent.
    pub errors: u64,
    /// Packets that were let go.
    pub dropped: u64,
}

impl LinkCounters {
    /// Of the interface `name` below `class` (`/sys/class/net`).
    #[must_use]
    pub fn read(class: &Path, name: &str) -> Option<Self> {
        let dir = class.join(name).join("statistics");
        let counter = |direction: &str, what: &str| -> Option<u64> {
            let path = dir.join(format!("{direction}_{what}"));
            std::fs::read_to_string(path).ok()?.trim().parse().ok()
        };
        let passed = |direction: &str| {
            Some(Passed {
                bytes: counter(direction, "bytes")?,
                packets: counter(direction, "packets")?,
                errors: counter(direction, "errors")?,
                dropped: counter(direction, "dropped")?,
            })
        };
        Some(Self {
            rx: passed("rx")?,
            tx: passed("tx")?,
        })
    }

    /// As whoever is at the other end of the wire counts.
    #[must_use]
    pub fn from_the_other_end(self) -> Self {
        Self {
            rx: self.tx,
            tx: self.rx,
        }
    }
}

fn parse_cpu_stat(text: &str) -> Option<Duration> {
    let microseconds = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_micros(microseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_the_machine() {
        let memory = Memory::parse(
            "MemTotal:        2035000 kB\nMemFree:  100 kB\nMemAvailable:    1900000 kB\n",
        );
        assert_eq!(memory.total, 2_035_000 * 1024);
        assert_eq!(memory.used(), 135_000 * 1024);
        assert_eq!(Memory::parse("rubbish"), Memory::default());
    }

    #[test]
    fn processor_time_of_the_machine() {
        let stat = "cpu  100 0 50 9999 77 1 2 3 0 0\ncpu0 1 2 3 4\nbtime 1795204800\n";
        assert_eq!(parse_cpu(stat, 100), Duration::from_millis(1560));
        assert_eq!(
            parse_boot_time(stat),
            Some(UNIX_EPOCH + Duration::from_secs(1_795_204_800))
        );
        assert_eq!(parse_cpu("", 100), Duration::ZERO);
    }

    #[test]
    fn a_process_with_a_spiteful_name() {
        let stat = "42 (a) R (b) S 1 42 42 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 7 0 1000 20480 25 18446744073709551615";
        let process = Process::parse(stat, 100, 4096).unwrap();
        assert_eq!(process.name, "a) R (b");
        assert_eq!(process.user, Duration::from_millis(1500));
        assert_eq!(process.system, Duration::from_millis(500));
        assert_eq!(process.threads, 7);
        assert_eq!(process.started, Duration::from_secs(10));
        assert_eq!(process.virtual_bytes, 20480);
        assert_eq!(process.resident_bytes, 25 * 4096);
        for cut in 0..stat.len() - 24 {
            assert!(
                Process::parse(&stat[..cut], 100, 4096)
                    .is_none_or(|p| p.resident_bytes < 26 * 4096)
            );
        }
    }

    #[test]
    fn this_process() {
        let own = Process::read(std::process::id()).unwrap();
        assert!(own.resident_bytes > 100_000 && own.threads >= 1, "{own:?}");
        let pss = pss(std::process::id()).unwrap();
        assert!(pss > 100_000, "{pss}");
        let part = monitor_own(std::process::id()).unwrap();
        assert!(part > 100_000, "{part}");
    }

    #[test]
    fn a_monitors_memory_without_its_guests() {
        let smaps = "55d0a0000000-55d0a0100000 r-xp 00000000 fe:00 123 /usr/lib/skerry/skerry-vmm\nPss: 700 kB\n\
                     7f0000000000-7f0008000000 rw-s 00000000 00:01 5 /memfd:guest (deleted)\nPss: 90000 kB\n\
                     7f1000000000-7f1008000000 rw-p 00000000 00:00 0 \nPss: 80000 kB\n\
                     7f2000000000-7f2000021000 rw-p 00000000 00:00 0 \nPss: 100 kB\n\
                     7f3000000000-7f3008000000 ---p 00000000 00:00 0 \nPss: 0 kB\n\
                     7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0 [stack]\nPss: 12 kB\nPss_Dirty: 12 kB\n";
        assert_eq!(own_of(smaps), (700 + 100 + 12) * 1024);
    }

    #[test]
    fn cgroups() {
        assert_eq!(
            parse_cgroup("12:cpu:/x\n0::/system.slice/skerry-app-1.service\n"),
            Some("system.slice/skerry-app-1.service")
        );
        assert_eq!(parse_cgroup("0::/../../x\n"), None);
        assert_eq!(
            parse_cpu_stat("usage_usec 1500000\nuser_usec 1\n"),
            Some(Duration::from_millis(1500))
        );
        assert_eq!(parse_cpu_stat(""), None);
    }

    #[test]
    fn bytes_of_a_cgroups_loop_devices() {
        let stat = "7:0 rbytes=100 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n259:0 rbytes=100 wbytes=20 rios=1\n\
                    7:11 rbytes=5 wbytes=0\n7:1\n";
        assert_eq!(parse_io_stat(stat), (105, 20));
        assert_eq!(parse_io_stat(""), (0, 0));
    }

    #[test]
    fn counters_of_an_interface() {
        let dir = tempfile::tempdir().unwrap();
        let statistics = dir.path().join("tap0-0/statistics");
        std::fs::create_dir_all(&statistics).unwrap();
        assert_eq!(LinkCounters::read(dir.path(), "tap0-0"), None);
        for (direction, base) in [("rx", 10), ("tx", 20)] {
            for (index, what) in ["bytes", "packets", "errors", "dropped"].iter().enumerate() {
                let text = format!("{}\n", base + index);
                std::fs::write(statistics.join(format!("{direction}_{what}")), text).unwrap();
            }
        }
        let counters = LinkCounters::read(dir.path(), "tap0-0").unwrap();
        assert_eq!(
            (counters.rx.bytes, counters.rx.dropped, counters.tx.packets),
            (10, 13, 21)
        );
        let guest = counters.from_the_other_end();
        assert_eq!((guest.tx, guest.rx), (counters.rx, counters.tx));
        // The loopback of this very machine.
        assert!(LinkCounters::read(Path::new("/sys/class/net"), "lo").is_some());
    }
}
