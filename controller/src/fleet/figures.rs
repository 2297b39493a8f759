//! What a device measured: from a metrics message to the numbers that the operator API shows.

use std::collections::BTreeMap;

use operator_api::{MemoryStatus, ProcessMemory};
use protocol::eve::metrics::ZMetricMsg;
use protocol::eve::metrics::metric_item::MetricItemValue;
use protocol::eve::metrics::z_metric_msg::MetricContent;
use protocol::ids::AppId;
use protocol::items::{AppFigure, MetricName};
use serde::{Deserialize, Serialize};

use super::status::timestamp;

/// Most programs and apps that are kept of one message.
const MAX_ITEMS: usize = 512;

/// What a device measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Memory of the device.
    pub memory: Option<MemoryStatus>,
    /// Its apps.
    pub apps: BTreeMap<AppId, AppFigures>,
}

/// What a device measured of an app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AppFigures {
    /// How often it was started again.
    pub restarts: u32,
    /// Memory in use, in KiB.
    pub memory_kib: Option<u64>,
    /// Memory of its monitor itself, in KiB.
    pub monitor_kib: Option<u64>,
}

/// Reads a metrics message.
#[must_use]
pub fn read(message: &ZMetricMsg) -> Figures {
    let mut figures = Figures::default();
    for app in message.am.iter().take(MAX_ITEMS) {
        if let Ok(id) = app.app_id.parse() {
            let used = app
                .app_memory
                .as_ref()
                .map(|memory| u64::from(memory.used_mb) * 1024);
            figures.apps.entry(id).or_default().memory_kib = used;
        }
    }
    let mut processes: Vec<ProcessMemory> = message
        .pr
        .iter()
        .take(MAX_ITEMS)
        .map(|process| ProcessMemory {
            name: process.name.chars().take(64).collect(),
            pid: u32::try_from(process.pid).unwrap_or(0),
            rss_kib: process.rss_bytes / 1024,
            pss_kib: None,
        })
        .collect();
    if let Some(MetricContent::Dm(device)) = &message.metric_content {
        for item in device.metric_items.iter().take(4 * MAX_ITEMS) {
            let value = match item.metric_item_value {
                Some(MetricItemValue::Uint32Value(value)) => u64::from(value),
                Some(MetricItemValue::Uint64Value(value)) => value,
                _ => continue,
            };
            match MetricName::read(&item.key) {
                Some(MetricName::ProcessPss(pid)) => {
                    for process in processes.iter_mut().filter(|process| process.pid == pid) {
                        process.pss_kib = Some(value / 1024);
                    }
                }
                Some(MetricName::App(id, metric)) => {
                    let app = figures.apps.entry(id).or_default();
                    match metric {
                        AppFigure::Restarts => {
                            app.restarts = u32::try_from(value).unwrap_or(u32::MAX);
                        }
                        AppFigure::MonitorBytes => app.monitor_kib = Some(value / 1024),
                        AppFigure::DiskReadBytes | AppFigure::DiskWriteBytes => {}
                    }
                }
                None => {}
            }
        }
        if let Some(memory) = &device.memory {
            let (used, available) = (u64::from(memory.used_mem), u64::from(memory.avail_mem));
            let total = device
                .device_memory
                .as_ref()
                .map_or(used + available, |all| u64::from(all.memory_mb));
            processes.sort_by_key(|process| std::cmp::Reverse(process.rss_kib));
            figures.memory = Some(MemoryStatus {
                total_kib: total * 1024,
                available_kib: available * 1024,
                processes,
                time: message.at_time_stamp.as_ref().and_then(timestamp),
            });
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use protocol::eve::metrics::{
        AppMemoryMetric, AppMetric, DeviceMetric, MemoryMetric, MetricItem, ZMetricProcess,
    };
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_message_of_our_device() {
        let app = AppId(Uuid::from_u128(7));
        let item = |key: String, value| MetricItem {
            key,
            metric_item_value: Some(value),
            ..MetricItem::default()
        };
        let message = ZMetricMsg {
            am: vec![AppMetric {
                app_id: app.to_string(),
                app_memory: Some(AppMemoryMetric {
                    allocated_mb: 128,
                    used_mb: 40,
                }),
                ..AppMetric::default()
            }],
            pr: vec![
                ZMetricProcess {
                    pid: 9,
                    name: "pillar".into(),
                    rss_bytes: 12 << 20,
                    ..ZMetricProcess::default()
                },
                ZMetricProcess {
                    pid: 10,
                    name: "skerry-vmm".into(),
                    rss_bytes: 50 << 20,
                    ..ZMetricProcess::default()
                },
            ],
            metric_content: Some(MetricContent::Dm(DeviceMetric {
                memory: Some(MemoryMetric {
                    used_mem: 100,
                    avail_mem: 1900,
                    ..MemoryMetric::default()
                }),
                metric_items: vec![
                    item(
                        format!("skerry.app.{app}.restarts"),
                        MetricItemValue::Uint32Value(3),
                    ),
                    item(
                        format!("skerry.app.{app}.monitorBytes"),
                        MetricItemValue::Uint64Value(3 << 20),
                    ),
                    item(
                        "skerry.process.9.pssBytes".into(),
                        MetricItemValue::Uint64Value(8 << 20),
                    ),
                    item(
                        "skerry.process.10.pssBytes".into(),
                        MetricItemValue::Uint64Value(2 << 20),
                    ),
                    item(
                        "skerry.process.x.pssBytes".into(),
                        MetricItemValue::Uint64Value(5 << 20),
                    ),
                    item(
                        "skerry.app.nonsense.restarts".into(),
                        MetricItemValue::Uint32Value(3),
                    ),
                    item("else".into(), MetricItemValue::StringValue("x".into())),
                ],
                ..DeviceMetric::default()
            })),
            ..ZMetricMsg::default()
        };
        let figures = read(&message);
        let wanted = AppFigures {
            restarts: 3,
            memory_kib: Some(40 * 1024),
            monitor_kib: Some(3 * 1024),
        };
        assert_eq!(figures.apps, BTreeMap::from([(app, wanted)]));
        let memory = figures.memory.unwrap();
        assert_eq!(
            (memory.total_kib, memory.available_kib),
            (2000 * 1024, 1900 * 1024)
        );
        let names: Vec<_> = memory
            .processes
            .iter()
            .map(|process| (process.name.as_str(), process.pss_kib))
            .collect();
        assert_eq!(
            names,
            [("skerry-vmm", Some(2 * 1024)), ("pillar", Some(8 * 1024))]
        );
    }
}
