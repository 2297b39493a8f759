//! The main job: from a USB stick to a running VM and a running container.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Story;
use super::disk::Disk;
use super::story::PATIENCE;
use crate::images::bare;
use crate::site::{LOGIN, Machine, manifest};

pub fn run(story: &Story) -> Result<()> {
    let yard = story.yard;
    image_is_bare(story)?;
    let mut pc = Machine::build("SK-MAIN-1", &story.dir().join("box-1"))?;
    story.step(format!(
        "the PC is put together; accelerator: {}",
        pc.pc.accelerator()
    ));
    install(story, &mut pc)?;
    yard.keep_disk(&pc)?;

    let device = story.enrol(&mut pc)?;
    story.until("the boot is marked as good", || {
        let entries = Disk::open(&pc.pc.drive(0))?.boot_entries()?;
        ensure!(
            !entries.is_empty() && entries.iter().all(|name| !name.contains('+')),
            "boot entries on the ESP: {entries:?}"
        );
        Ok(())
    })?;
    story.step("the boot is marked as good: the counter is out of the UKI's name");
    let object = yard.site().operator.get("device", &device)?;
    ensure!(
        object["status"]["hardware"]["serial"] == "SK-MAIN-1",
        "the serial is not shown: {}",
        object["status"]
    );

    let (web, native, debian) = (
        manifest::container("web", &device, yard.container(), "microvm", 8080),
        manifest::container("native", &device, yard.container(), "native", 8081),
        manifest::machine("debian", &device, yard.machine(), "qcow2", 8082),
    );
    for (app, text) in [("web", &web), ("native", &native), ("debian", &debian)] {
        // As an operator does it: from a file.
        let file = story.dir().join(format!("{app}.yaml"));
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        let file = file.to_str().context("a path that is no text")?;
        yard.site().operator.run(&["app", "apply", "-f", file])?;
    }
    for (app, port, wanted) in [
        ("web", 8080, "hello from web"),
        ("native", 8081, "hello from native"),
        ("debian", 8082, "Debian"),
    ] {
        story.answers(&mut pc, app, port, wanted)?;
        story.until(&format!("{app} is shown as running"), || {
            let object = story.app(app)?;
            ensure!(
                object["status"]["phase"] == "Running",
                "{app} answers but is shown as {}",
                object["status"]
            );
            Ok(())
        })?;
    }
    lists(story, &device)?;
    logs(story)?;
    console(story)?;

    // A report that is older than the apps would show no monitor either.
    story.until("the monitors of web and debian are reported", || {
        let count = monitors(story, &device)?;
        ensure!(count > 0, "no monitor among the reported processes");
        Ok(())
    })?;
    yard.site().operator.run(&["app", "delete", "web"])?;
    story.gone(&mut pc, "web", 8080)?;
    story.step("web is deleted, and its port is closed");
    story.answers(&mut pc, "native", 8081, "hello from native")?;
    story.delete_and_see(&mut pc, &[("native", 8081), ("debian", 8082)])?;
    story.until("no monitor runs any more", || {
        let count = monitors(story, &device)?;
        ensure!(count == 0, "{count} of the reported processes are monitors");
        Ok(())
    })?;
    story.step("all apps are gone, and so are their monitors");
    pc.press_power()?;
    story.step("the box powers itself off at a press of its button");
    Ok(())
}

/// How many monitors are among the processes that the device reported last.
fn monitors(story: &Story, device: &str) -> Result<usize> {
    let object = story.yard.site().operator.get("device", device)?;
    let processes = object["status"]["memory"]["processes"]
        .as_array()
        .context("no process is reported yet")?;
    ensure!(
        processes.iter().any(|process| process["name"] == "pillar"),
        "not even the agent is reported: {processes:?}"
    );
    Ok(processes
        .iter()
        .filter(|process| process["name"] == "skerry-vmm")
        .count())
}

/// The same machine from a raw disk: a gigabyte to carry instead of a tenth of it, which is why it has a test of its own.
pub fn raw_disk(story: &Story) -> Result<()> {
    let yard = story.yard;
    let mut pc = story.installed_box("SK-RAW")?;
    let device = story.enrol(&mut pc)?;
    yard.site().operator.apply(&manifest::machine(
        "raw",
        &device,
        yard.raw_machine()?,
        "raw",
        8080,
    ))?;
    story.answers(&mut pc, "raw", 8080, "Debian")?;
    story.delete_apps(&["raw"])
}

/// Reads the list of the image that is installed below, file by file.
fn image_is_bare(story: &Story) -> Result<()> {
    let image = story.yard.site().built.parts.join("root.img");
    let output = Command::new("unsquashfs")
        .arg("-l")
        .arg(&image)
        .output()
        .context("starting unsquashfs")?;
    ensure!(output.status.success(), "unsquashfs: {}", output.status);
    let list = String::from_utf8_lossy(&output.stdout);
    let names: Vec<&str> = list
        .lines()
        .filter_map(|path| path.rsplit('/').next())
        .collect();
    for wanted in ["pillar", "skerry-vmm", "ca-certificates.crt"] {
        ensure!(
            names.contains(&wanted),
            "{} lacks {wanted}; it has {} files",
            image.display(),
            names.len()
        );
    }
    let found: Vec<_> = names
        .iter()
        .filter(|name| bare::is_forbidden(Path::new(name)))
        .collect();
    ensure!(found.is_empty(), "the host image has {found:?}");
    story.step(format!(
        "the host image has no shell, no ssh, no package manager among its {} files",
        names.len()
    ));
    Ok(())
}

fn install(story: &Story, pc: &mut Machine) -> Result<()> {
    let mut lines: Vec<String> = Vec::new();
    let mut progress_on_screen = false;
    pc.install_watched(story.yard.stick(), &mut |pc, line| {
        story.step(format!("installer: {line}"));
        lines.push(line.to_owned());
        // What it said before this line has been drawn by now; a line with percent is drawn over by the next.
        let screen = pc.screen()?;
        if line.contains("done") {
            pc.screenshot(&story.dir().join("installer.png"))?;
            for said in ["installing to nvme0n1", "written and read back"] {
                ensure!(
                    screen.shows(said),
                    "{said:?} is on the serial line and not on the screen"
                );
            }
        }
        progress_on_screen |= screen.shows("writing root 100 % (");
        Ok(())
    })?;
    ensure!(progress_on_screen, "the screen shows no percent");
    ensure!(
        lines.iter().any(|line| line.contains('%')),
        "the installer shows no percent: {lines:?}"
    );
    let virtualisation = lines.iter().any(|line| {
        line.contains("virtualisation: AMD-V") || line.contains("virtualisation: VT-x")
    });
    ensure!(
        virtualisation,
        "the installer does not find nested virtualisation: {lines:?}"
    );
    Ok(())
}

fn lists(story: &Story, device: &str) -> Result<()> {
    let tables = [
        ("devices", vec![vec![device, "Online"]]),
        (
            "apps",
            vec![
                vec!["debian", device, "vm", "Running", "8082->80/tcp"],
                vec![
                    "native",
                    device,
                    "container/native",
                    "Running",
                    "8081->80/tcp",
                ],
                vec![
                    "web",
                    device,
                    "container/microvm",
                    "Running",
                    "8080->80/tcp",
                ],
            ],
        ),
    ];
    for (kind, rows) in tables {
        let table = story.yard.site().operator.run(&["get", kind])?;
        for line in table.lines() {
            story.step(line);
        }
        if kind == "apps" {
            let same = story.yard.site().operator.run(&["app", "list"])?;
            ensure!(
                same.lines().count() == table.lines().count(),
                "`skerry app list` shows something else than `skerry get apps`:\n{same}"
            );
        }
        for row in rows {
            let shown = table.lines().any(|line| {
                row.iter()
                    .all(|cell| line.split_whitespace().any(|c| c == *cell))
            });
            ensure!(
                shown,
                "`skerry get {kind}` has no row with {row:?}:\n{table}"
            );
        }
    }
    Ok(())
}

fn logs(story: &Story) -> Result<()> {
    // What each app says by itself: the container's start line, and the VM's boot.
    for (command, app, wanted) in [
        (["logs"].as_slice(), "web", "hello from web"),
        (&["app", "logs"], "native", "hello from native"),
        (&["logs"], "debian", "Linux version"),
    ] {
        let line = story.until(&format!("the log of {app} is shown"), || {
            let arguments = [command, &[app, "--tail", "5000"]].concat();
            let log = story.yard.site().operator.run(&arguments)?;
            let line = log.lines().find(|line| line.contains(wanted));
            Ok(line
                .with_context(|| format!("no {wanted:?} in the log of {app}: {log:?}"))?
                .to_owned())
        })?;
        story.step(format!("log of {app}: {line:?}"));
    }
    Ok(())
}

fn console(story: &Story) -> Result<()> {
    story
        .yard
        .site()
        .operator
        .console("debian", &LOGIN, PATIENCE)?;
    story.step("the console of debian asks for a login and takes one");
    Ok(())
}
