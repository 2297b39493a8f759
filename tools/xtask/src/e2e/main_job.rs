//! The main job: from a USB stick to a running VM and a running container.

use std::io::{Read, Write};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::Story;
use crate::site::{Machine, http_get, manifest};

pub fn run(story: &Story) -> Result<()> {
    let yard = story.yard;
    let mut pc = Machine::build("SK-MAIN-1", &story.dir().join("box-1"))?;
    story.step(format!(
        "the PC is put together; accelerator: {}",
        pc.pc.accelerator()
    ));
    install(story, &mut pc)?;
    yard.keep_disk(&pc)?;

    let device = story.enrol(&mut pc)?;
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
    for text in [&web, &native, &debian] {
        yard.site().operator.apply(text)?;
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
    lists(story)?;
    logs(story)?;
    console(story)?;

    story.delete_apps(&["web"])?;
    let address = pc.app_address(8080)?;
    story.until("web is gone", || {
        ensure!(http_get(&address).is_err(), "web still answers");
        Ok(())
    })?;
    story.step("web is deleted, and its port is closed");
    story.answers(&mut pc, "native", 8081, "hello from native")?;
    story.delete_apps(&["native", "debian"])
}

fn install(story: &Story, pc: &mut Machine) -> Result<()> {
    let mut lines = Vec::new();
    pc.install(story.yard.stick(), &mut |line| {
        story.step(format!("installer: {line}"));
        lines.push(line.to_owned());
    })?;
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

fn lists(story: &Story) -> Result<()> {
    for kind in ["devices", "apps"] {
        let table = story.yard.site().operator.run(&["get", kind])?;
        ensure!(
            table.lines().count() > 1,
            "`skerry get {kind}` shows nothing: {table:?}"
        );
        for line in table.lines() {
            story.step(line);
        }
    }
    Ok(())
}

fn logs(story: &Story) -> Result<()> {
    for app in ["web", "native"] {
        let log = story.until("the container's log is shown", || {
            let log = story.yard.site().operator.run(&["logs", app])?;
            ensure!(!log.trim().is_empty(), "the log of {app} is empty");
            Ok(log)
        })?;
        story.step(format!(
            "log of {app}: {:?}",
            log.lines().last().unwrap_or_default()
        ));
    }
    Ok(())
}

fn console(story: &Story) -> Result<()> {
    let mut console = story
        .yard
        .site()
        .operator
        .command(&["console", "debian"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting skerry console")?;
    let mut typed = console.stdin.take().context("the console takes no input")?;
    let mut shown = console.stdout.take().context("the console shows nothing")?;
    let seen = std::thread::spawn(move || {
        let mut seen = String::new();
        let mut buffer = [0; 1024];
        while let Ok(n) = shown.read(&mut buffer)
            && n > 0
        {
            seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
            if seen.contains("login:") {
                break;
            }
        }
        seen
    });
    let found = story.until("the console of debian shows its login", || {
        typed.write_all(b"\n").context("typing on the console")?;
        ensure!(seen.is_finished(), "nothing yet");
        Ok(())
    });
    let _ = console.kill();
    let _ = console.wait();
    found?;
    let seen = seen.join().unwrap_or_default();
    ensure!(seen.contains("login:"), "the console showed {seen:?}");
    story.step("the console of debian asks for a login");
    Ok(())
}
