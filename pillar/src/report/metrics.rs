//! Metrics: how much memory and processor time device, apps and agent use.
//!
//! Sizes that EVE has in MB are in units of 2^20 bytes; CPU totals are in seconds, with nanoseconds beside them.

use std::time::{Duration, SystemTime};

use protocol::eve::metrics::metric_item::MetricItemValue;
use protocol::eve::metrics::z_metric_msg::MetricContent;
use protocol::eve::metrics::{
    AppCpuMetric, AppMemoryMetric, AppMetric, DeviceMemoryMetric, DeviceMetric, DiskMetric,
    MemoryMetric, MetricItem, MetricItemType, ZMetricMsg, ZMetricProcess, ZMetricVolume,
};
use protocol::ids::DeviceId;

use super::info::timestamp;
use super::procfs::{self, Memory, Process};
use crate::context::Context;
use crate::domain::desired::Runtime;
use crate::domain::ids::AppId;
use crate::domain::observed::{AppPhase, AppStatus};

const MIB: u64 = 1024 * 1024;

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
            format!("skerry.process.{own_pid}.pssBytes"),
            MetricItemValue::Uint64Value(pss),
        ));
    }
    let mut apps = Vec::new();
    for (id, status) in &observed.apps {
        let wanted = config.desired.apps.get(id);
        apps.push(app(*id, status, wanted.map_or(0, |app| app.memory_mib)));
        items.push(item(
            format!("skerry.app.{id}.restarts"),
            MetricItemValue::Uint32Value(status.restarts),
        ));
        let native = wanted.is_some_and(|app| app.runtime == Runtime::ContainerNative);
        if let (Some(pid), false) = (status.pid, native) {
            processes.push(process(pid, "skerry-vmm", memory, boot));
            if let Some(own) = procfs::monitor_own(pid) {
                // By process for who lists processes, by app for who lists apps.
                for key in [
                    format!("skerry.process.{pid}.pssBytes"),
                    format!("skerry.app.{id}.monitorBytes"),
                ] {
                    items.push(item(key, MetricItemValue::Uint64Value(own)));
                }
            }
        }
    }
    let volumes = observed.volumes.iter().map(|(id, volume)| ZMetricVolume {
        uuid: id.to_string(),
        display_name: volume.name.clone(),
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

fn app(id: AppId, status: &AppStatus, allocated_mib: u32) -> AppMetric {
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
        ..AppMetric::default()
    }
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

fn item(key: String, value: MetricItemValue) -> MetricItem {
    let kind = match value {
        MetricItemValue::Uint32Value(_) => MetricItemType::MetricItemCounter,
        _ => MetricItemType::MetricItemGauge,
    };
    MetricItem {
        key,
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
