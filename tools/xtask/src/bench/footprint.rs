//! Sizes of images, and memory of the box, the agent and one microVM's monitor.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Row;
use crate::e2e::{Story, Yard};
use crate::site::{Built, manifest};

/// Metrics come once a minute; this is many of them.
const REPORTED: Duration = Duration::from_secs(600);
const MIB: f64 = 1024.0 * 1024.0;

pub fn run(built: &Built, dir: &Path) -> Result<Vec<Row>> {
    let yard = Yard::open(built, dir)?;
    let story = Story::begin("boxes", &yard, dir)?;
    let size = |path: &Path| -> Result<f64> {
        let metadata =
            std::fs::metadata(path).with_context(|| format!("measuring {}", path.display()))?;
        Ok(metadata.len() as f64 / MIB)
    };
    let mut rows = vec![
        Row::new(
            "host root image, compressed (MiB)",
            size(&built.parts.join("root.img"))?,
            96.0,
        ),
        Row::new("installer image (MiB)", size(yard.stick())?, 192.0),
    ];

    let mut pc = story.installed_box("SK-FOOTPRINT")?;
    let name = story.enrol(&mut pc)?;
    // The figure of an idle box is one that was taken well after the bustle of its start.
    let settle = Duration::from_secs(150);
    let booted = story.seconds();
    let (device, pillar) = story.within(REPORTED, "the idle box reports its memory", || {
        ensure!(
            story.seconds() > booted + settle.as_secs_f64(),
            "the box still settles"
        );
        let device = yard.site().operator.get("device", &name)?;
        memory_of(&device, "pillar", "rssKiB").map(|pillar| (device.clone(), pillar))
    })?;
    let memory = &device["status"]["memory"];
    let used = mib(&memory["totalKiB"])? - mib(&memory["availableKiB"])?;
    rows.push(Row::new(
        "idle box, MemTotal - MemAvailable (MiB)",
        used,
        128.0,
    ));
    rows.push(Row::new("pillar, resident, idle (MiB)", pillar, 16.0));

    // The guest that the budget is for.
    let web = manifest::container("web", &name, yard.container(), "microvm", 8080)
        .replace("memoryMiB: 96", "memoryMiB: 128");
    ensure!(
        web.contains("memoryMiB: 128"),
        "the manifest asks for other memory: {web}"
    );
    yard.site().operator.apply(&web)?;
    let monitor = story.within(REPORTED, "the monitor's memory is reported", || {
        let device = yard.site().operator.get("device", &name)?;
        memory_of(&device, "skerry-vmm", "pssKiB")
    })?;
    rows.push(Row::new(
        "monitor of a 128 MiB microVM, Pss less guest memory (MiB)",
        monitor,
        3.0,
    ));
    story.clean_up();
    Ok(rows)
}

/// Memory of a process that the device reports by name: resident (`rssKiB`) or its proportional share (`pssKiB`).
fn memory_of(device: &Value, process: &str, figure: &str) -> Result<f64> {
    let processes = device["status"]["memory"]["processes"]
        .as_array()
        .context("no process is reported yet")?;
    let process = processes
        .iter()
        .find(|entry| entry["name"] == process)
        .with_context(|| format!("{process} is not among the reported processes"))?;
    mib(&process[figure])
}

fn mib(kib: &Value) -> Result<f64> {
    Ok(kib
        .as_f64()
        .with_context(|| format!("{kib} is no number of KiB"))?
        / 1024.0)
}
