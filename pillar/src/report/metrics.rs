//! Metrics: how much memory and processor time device, apps and agent use, and what passed through disks and networks.
//!
//! Sizes that EVE has in MB are in units of 2^20 bytes; CPU totals are in seconds, with nanoseconds beside them. Figures of
//! an app's disks and networks are the app's: what it received, what it read. What a virtual machine read is asked of its
//! monitor, and believed only as figures.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hypervisor_api::control::{Answer, Client, Request, Transfer};
use protocol::eve::metrics::metric_item::MetricItemValue;
use protocol::eve::metrics::z_metric_msg::MetricContent;
use protocol::eve::metrics::{
    AppCpuMetric, AppDiskMetric, AppMemoryMetric, AppMetric, DeviceMemoryMetric, DeviceMetric,
    DiskMetric, MemoryMetric, MetricItem, MetricItemType, NetworkMetric, ZMetricMsg,
    ZMetricProcess, ZMetricVolume,
};
use protocol::ids::{AppId, DeviceId, VolumeId};
use protocol::items::{AppFigure, MetricName};

use super::info::timestamp;
use super::procfs::{self, LinkCounters, Memory, Process};
use crate::context::Context;
use crate::domain::desired::{App, Runtime};
use crate::domain::observed::{AppPhase, AppStatus, Observed};
use crate::peer;

const MIB: u64 = 1024 * 1024;

/// Where the kernel shows its network interfaces.
const LINKS: &str = "/sys/class/net";

/// How long a monitor may take to tell its figures: one that does not answer must not hold up those of the others.
const PATIENCE: Duration = Duration::from_millis(500);

/// Everything, read now. Reads many small files.
#[must_use]
pub fn collect(ctx: &Context, device: DeviceId) -> ZMetricMsg {
    let observed = ctx.observed.borrow().clone();
    let config = ctx.config.borrow().clone();
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = procfs::parse_boot_time(&stat);
    let memory = Memory::parse(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default());

    let own_pid = std::process::id();
    let mut processes = vec![process(own_pid, "pillar", memory, boot)];
    let mut items = Vec::new();
    if let Some(pss) = procfs::pss(own_pid) {
        items.push(item(
            MetricName::ProcessPss(own_pid),
            MetricItemValue::Uint64Value(pss),
        ));
    }
    let mut apps = Vec::new();
    let mut moved: BTreeMap<VolumeId, Transfer> = BTreeMap::new();
    for (id, status) in &observed.apps {
        let wanted = config.desired.apps.get(id);
        apps.push(app(*id, status, wanted, &observed));
        let disks = monitor_disks(status);
        if let Some(wanted) = wanted {
            moved.extend(by_volume(wanted, &disks));
        }
        let cgroup = status.pid.and_then(procfs::cgroup);
        let of_app = match (disks.is_empty(), cgroup) {
            (false, _) => Some(disks.iter().fold((0, 0), |(read, written), disk| {
                (
                    disk.rx_bytes.saturating_add(read),
                    disk.tx_bytes.saturating_add(written),
                )
            })),
            (true, Some(cgroup)) => procfs::cgroup_io(&cgroup),
            (true, None) => None,
        };
        if let Some((read, written)) = of_app {
            for (what, bytes) in [
                (AppFigure::DiskReadBytes, read),
                (AppFigure::DiskWriteBytes, written),
            ] {
                items.push(item(
                    MetricName::App(*id, what),
                    MetricItemValue::Uint64Value(bytes),
                ));
            }
        }
        items.push(item(
            MetricName::App(*id, AppFigure::Restarts),
            MetricItemValue::Uint32Value(status.restarts),
        ));
        let native = wanted.is_some_and(|app| app.runtime == Runtime::ContainerNative);
        if let (Some(pid), false) = (status.pid, native) {
            processes.push(process(pid, "skerry-vmm", memory, boot));
            if let Some(own) = procfs::monitor_own(pid) {
                // By process for who lists processes, by app for who lists apps.
                for key in [
                    MetricName::ProcessPss(pid),
                    MetricName::App(*id, AppFigure::MonitorBytes),
                ] {
                    items.push(item(key, MetricItemValue::Uint64Value(own)));
                }
            }
        }
    }
    let volumes = observed.volumes.iter().map(|(id, volume)| ZMetricVolume {
        uuid: id.to_string(),
        display_name: volume.name.clone(),
        read_bytes: moved.get(id).map_or(0, |moved| moved.rx_bytes),
        write_bytes: moved.get(id).map_or(0, |moved| moved.tx_bytes),
        total_bytes: volume.size_bytes,
        used_bytes: volume.used_bytes,
        free_bytes: volume.size_bytes.saturating_sub(volume.used_bytes),
        ..ZMetricVolume::default()
    });
    let allocated: u32 = config
        .desired
        .apps
        .values()
        .map(|app| app.memory_mib)
        .fold(0, u32::saturating_add);
    let dm = DeviceMetric {
        memory: Some(memory_metric(memory.used(), memory.available)),
        cpu_metric: Some(cpu(procfs::parse_cpu(&stat, ticks()), boot)),
        device_memory: Some(DeviceMemoryMetric {
            memory_mb: mib(memory.total),
            allocated_apps_mb: allocated,
            used_eve_mb: mib(memory.used())
                .saturating_sub(apps.iter().map(used_mib).fold(0, u32::saturating_add)),
            ..DeviceMemoryMetric::default()
        }),
        network: ctx
            .uplinks
            .borrow()
            .iter()
            .filter_map(|uplink| {
                let counters = LinkCounters::read(Path::new(LINKS), &uplink.name)?;
                Some(network(&uplink.name, &uplink.name, counters))
            })
            .collect(),
        disk: disk(ctx).into_iter().collect(),
        metric_items: items,
        last_received_config: config.since.map(timestamp),
        last_processed_config: config.since.map(timestamp),
        ..DeviceMetric::default()
    };
    ZMetricMsg {
        dev_id: device.to_string(),
        at_time_stamp: Some(timestamp(ctx.clock.now())),
        am: apps,
        vm: volumes.collect(),
        pr: processes.into_iter().flatten().collect(),
        metric_content: Some(MetricContent::Dm(dm)),
        ..ZMetricMsg::default()
    }
}

fn app(id: AppId, status: &AppStatus, wanted: Option<&App>, observed: &Observed) -> AppMetric {
    let allocated_mib = wanted.map_or(0, |app| app.memory_mib);
    let cgroup = status.pid.and_then(procfs::cgroup);
    let used = cgroup
        .as_deref()
        .and_then(procfs::cgroup_memory)
        .unwrap_or(0);
    let time = cgroup
        .as_deref()
        .and_then(procfs::cgroup_cpu)
        .unwrap_or_default();
    let since = match status.phase {
        AppPhase::Running { since } => Some(since),
        _ => None,
    };
    let available = (u64::from(allocated_mib) * MIB).saturating_sub(used);
    AppMetric {
        app_id: id.to_string(),
        app_name: status.name.clone(),
        cpu: Some(cpu(time, since)),
        memory: Some(memory_metric(used, available)),
        app_memory: Some(AppMemoryMetric {
            allocated_mb: allocated_mib,
            used_mb: mib(used),
        }),
        network: status
            .links
            .iter()
            .filter_map(|(name, link)| {
                let counters = LinkCounters::read(Path::new(LINKS), link)?;
                Some(network(name, link, counters.from_the_other_end()))
            })
            .collect(),
        disk: wanted
            .into_iter()
            .flat_map(|app| &app.volumes)
            .filter_map(|mount| {
                let volume = observed.volumes.get(&mount.volume)?;
                Some(AppDiskMetric {
                    disk: volume.name.clone(),
                    provisioned: volume.size_bytes / MIB,
                    used: volume.used_bytes / MIB,
                    ..AppDiskMetric::default()
                })
            })
            .collect(),
        ..AppMetric::default()
    }
}

/// What passed through an interface. `link` is its name on the device.
fn network(name: &str, link: &str, counters: LinkCounters) -> NetworkMetric {
    let LinkCounters { rx, tx } = counters;
    NetworkMetric {
        i_name: name.to_owned(),
        alias: name.to_owned(),
        local_name: link.to_owned(),
        rx_bytes: rx.bytes,
        rx_pkts: rx.packets,
        rx_errors: rx.errors,
        rx_drops: rx.dropped,
        tx_bytes: tx.bytes,
        tx_pkts: tx.packets,
        tx_errors: tx.errors,
        tx_drops: tx.dropped,
        ..NetworkMetric::default()
    }
}

/// What a machine moved, disk by disk, as its monitor says; nothing if it has none or does not say.
fn monitor_disks(status: &AppStatus) -> Vec<Transfer> {
    let Some(socket) = &status.control else {
        return Vec::new();
    };
    let Ok(owner) = peer::owner(socket) else {
        return Vec::new();
    };
    let client = Client {
        socket,
        owner: Some(owner),
        patience: PATIENCE,
    };
    match client.ask(&Request::State) {
        Ok(Answer::State(state)) => state.disks,
        Ok(_) => Vec::new(),
        Err(error) => {
            tracing::debug!(app = status.name, %error, "a monitor tells no figures");
            Vec::new()
        }
    }
}

/// Whose disk is which: machines have their volumes, with the user data's disk after the first; microVMs have the image's
/// root file system before them.
fn by_volume(app: &App, disks: &[Transfer]) -> Vec<(VolumeId, Transfer)> {
    let place = |index: usize| match app.runtime {
        Runtime::Machine { .. } if index > 0 => index + usize::from(app.user_data.is_some()),
        Runtime::Machine { .. } => index,
        Runtime::ContainerMicrovm | Runtime::ContainerNative => index + 1,
    };
    app.volumes
        .iter()
        .enumerate()
        .filter_map(|(index, mount)| Some((mount.volume, *disks.get(place(index))?)))
        .collect()
}

fn used_mib(app: &AppMetric) -> u32 {
    app.app_memory.as_ref().map_or(0, |memory| memory.used_mb)
}

fn process(
    pid: u32,
    name: &str,
    memory: Memory,
    boot: Option<SystemTime>,
) -> Option<ZMetricProcess> {
    let process = Process::read(pid)?;
    Some(ZMetricProcess {
        pid: i32::try_from(pid).ok()?,
        name: name.to_owned(),
        user_process: name != "pillar",
        watched: true,
        num_fds: std::fs::read_dir(format!("/proc/{pid}/fd"))
            .map_or(0, |fds| i32::try_from(fds.count()).unwrap_or(0)),
        num_threads: i32::try_from(process.threads).unwrap_or(0),
        user_time: process.user.as_secs_f64(),
        system_time: process.system.as_secs_f64(),
        create_time: boot
            .and_then(|boot| boot.checked_add(process.started))
            .map(timestamp),
        vm_bytes: process.virtual_bytes,
        rss_bytes: process.resident_bytes,
        memory_percent: percentage(process.resident_bytes, memory.total) as f32,
        ..ZMetricProcess::default()
    })
}

fn disk(ctx: &Context) -> Option<DiskMetric> {
    let fs = nix::sys::statvfs::statvfs(&ctx.paths.persist).ok()?;
    let unit = fs.fragment_size();
    let total = fs.blocks().saturating_mul(unit);
    let free = fs.blocks_available().saturating_mul(unit);
    Some(DiskMetric {
        mount_path: ctx.paths.persist.display().to_string(),
        total: total / MIB,
        used: total.saturating_sub(free) / MIB,
        free: free / MIB,
        ..DiskMetric::default()
    })
}

fn item(name: MetricName, value: MetricItemValue) -> MetricItem {
    let kind = match value {
        MetricItemValue::Uint32Value(_) => MetricItemType::MetricItemCounter,
        _ => MetricItemType::MetricItemGauge,
    };
    MetricItem {
        key: name.to_string(),
        r#type: kind.into(),
        metric_item_value: Some(value),
    }
}

fn cpu(time: Duration, since: Option<SystemTime>) -> AppCpuMetric {
    AppCpuMetric {
        up_time: since.map(timestamp),
        total: time.as_secs(),
        total_ns: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
        ..AppCpuMetric::default()
    }
}

fn memory_metric(used: u64, available: u64) -> MemoryMetric {
    let total = used.saturating_add(available);
    MemoryMetric {
        used_mem: mib(used),
        avail_mem: mib(available),
        used_percentage: percentage(used, total),
        avail_percentage: percentage(available, total),
    }
}

fn percentage(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 * 100.0 / whole as f64
    }
}

fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes / MIB).unwrap_or(u32::MAX)
}

fn ticks() -> u64 {
    // SAFETY: sysconf takes a number and gives a number.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::desired::VolumeMount;

    #[test]
    fn what_a_machine_moved_is_told_of_the_right_volume() {
        let volume = |n| VolumeId(Uuid::from_u128(n));
        let disks: Vec<Transfer> = (0..4)
            .map(|n| Transfer {
                rx_bytes: n,
                tx_bytes: 10 * n,
            })
            .collect();
        let machine = || Runtime::Machine {
            cmdline: String::new(),
        };
        for (runtime, user_data, places) in [
            (machine(), None, [0, 1]),
            (machine(), Some("x".to_owned()), [0, 2]),
            (Runtime::ContainerMicrovm, None, [1, 2]),
        ] {
            let app = App {
                name: "a".into(),
                activate: true,
                vcpus: 1,
                memory_mib: 64,
                runtime,
                volumes: [1, 2]
                    .map(|n| VolumeMount {
                        volume: volume(n),
                        mount_dir: String::new(),
                    })
                    .into(),
                interfaces: vec![],
                env: vec![],
                user_data,
                restart_counter: 0,
                purge_counter: 0,
            };
            let told = by_volume(&app, &disks);
            let expected: Vec<(VolumeId, Transfer)> = places
                .iter()
                .zip(1..)
                .map(|(place, n)| (volume(n), disks[*place]))
                .collect();
            assert_eq!(told, expected);
            assert_eq!(by_volume(&app, &[]), []);
        }
    }

    #[test]
    fn an_apps_traffic_is_told_as_the_app_sees_it() {
        let lo = AppStatus {
            name: "web".into(),
            phase: AppPhase::Halted,
            restarts: 0,
            addresses: BTreeMap::new(),
            links: BTreeMap::from([("eth0".to_owned(), "lo".to_owned())]),
            control: Some("/nowhere/vm/control.sock".into()),
            console: None,
            pid: None,
            unit: None,
            trouble: None,
        };
        let metric = app(AppId(Uuid::nil()), &lo, None, &Observed::default());
        let network = &metric.network[0];
        assert_eq!(
            (network.i_name.as_str(), network.local_name.as_str()),
            ("eth0", "lo")
        );
        assert_eq!(monitor_disks(&lo), []);
    }
}
