//! The main job: from a USB stick to a running VM and a running container.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Story;
use crate::site::{Machine, Site, manifest};

const MINUTES_5: Duration = Duration::from_secs(300);

pub fn run(story: &Story) -> Result<()> {
    let site = Site::start(&story.built, &story.dir().join("site"))?;
    let stick = site.make_stick()?;
    story.step(format!("the stick is made: {} MiB", std::fs::metadata(&stick)?.len() >> 20));
    ensure!(!site.controller.data().join("devices").exists(), "the controller keeps devices in its store only");

    let mut pc = Machine::build("SK-MAIN-1", &story.dir().join("box-1"))?;
    story.step(format!("the PC is put together; accelerator: {}", pc.pc.accelerator()));
    let mut lines = Vec::new();
    pc.install(&stick, &mut |line| {
        story.step(format!("installer: {line}"));
        lines.push(line.to_owned());
    })?;
    ensure!(lines.iter().any(|line| line.contains('%')), "the installer shows no percent: {lines:?}");
    ensure!(
        lines.iter().any(|line| line.contains("svm") || line.contains("vmx")),
        "the installer does not report virtualisation: {lines:?}"
    );

    let id = pc.boot(&mut |line| story.step(format!("box: {line}")))?;
    let device = story.until("the device is listed as attested", MINUTES_5, || {
        let devices = site.operator.list("devices")?;
        ensure!(devices.len() == 1, "{} devices are listed", devices.len());
        ensure!(devices[0]["metadata"]["uid"] == id.as_str(), "another device is listed: {}", devices[0]["metadata"]);
        ensure!(condition(&devices[0], "Attested") == Some("True"), "not attested: {}", devices[0]["status"]);
        Ok(devices[0].clone())
    })?;
    let name = device["metadata"]["name"].as_str().context("the device has no name")?.to_owned();
    ensure!(device["status"]["serial"] == "SK-MAIN-1", "the serial is not shown: {}", device["status"]);
    story.step(format!("{name} is enrolled and attested"));

    let container = site.operator.push_container(&site.registry, "hello", &story.built.container)?;
    let machine = site.operator.push_machine(&site.registry, "debian", &story.built.machine, "qcow2")?;
    story.step(format!("pushed {container} and {machine}"));
    site.operator.apply(&manifest::datastore(&site.registry)?)?;
    site.operator.apply(&manifest::container("web", &name, &container, "microvm", 8080))?;
    site.operator.apply(&manifest::container("native", &name, &container, "native", 8081))?;
    site.operator.apply(&manifest::machine("debian", &name, &machine, "qcow2", 8082))?;
    for (app, port, wanted) in [
        ("web", 8080, "hello from web"),
        ("native", 8081, "hello from native"),
        ("debian", 8082, "Debian"),
    ] {
        let address = pc.app_address(port)?;
        let page = story.until(&format!("{app} answers"), MINUTES_5, || {
            let object = site.operator.get("app", app)?;
            let page = http_get(&address).with_context(|| format!("{app} is {}", object["status"]))?;
            ensure!(page.contains(wanted), "the page of {app} is {page:?}");
            Ok(page)
        })?;
        story.step(format!("{app} answers: {:?}", page.lines().last().unwrap_or_default()));
        let object = site.operator.get("app", app)?;
        ensure!(object["status"]["phase"] == "Running", "{app} answers but is shown as {}", object["status"]);
    }

    for kind in ["devices", "apps"] {
        let table = site.operator.run(&["get", kind])?;
        ensure!(table.lines().count() > 1, "`skerry get {kind}` shows nothing: {table:?}");
        for line in table.lines() {
            story.step(line);
        }
    }
    let log = story.until("the container's log is shown", MINUTES_5, || {
        let log = site.operator.run(&["logs", "web"])?;
        ensure!(!log.trim().is_empty(), "the log of web is empty");
        Ok(log)
    })?;
    story.step(format!("log of web: {:?}", log.lines().last().unwrap_or_default()));

    let mut console = site
        .operator
        .command(&["console", "debian"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting skerry console")?;
    let mut typed = console.stdin.take().context("the console takes no input")?;
    let mut shown = console.stdout.take().context("the console shows nothing")?;
    typed.write_all(b"\n")?;
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
    let found = story.until("the console of debian shows its login", MINUTES_5, || {
        typed.write_all(b"\n")?;
        ensure!(seen.is_finished(), "nothing yet");
        Ok(())
    });
    let _ = console.kill();
    let _ = console.wait();
    found?;
    story.step("the console of debian asks for a login");

    site.operator.run(&["delete", "app", "web"])?;
    let address = pc.app_address(8080)?;
    story.until("web is gone", MINUTES_5, || {
        ensure!(http_get(&address).is_err(), "web still answers");
        Ok(())
    })?;
    story.step("web is deleted, and its port is closed");
    Ok(())
}

/// The status of a condition of an object.
fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == name)
        .and_then(|condition| condition["status"].as_str())
}

/// One page over HTTP, without a library between us and the wire.
pub fn http_get(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: box\r\n\r\n")?;
    let mut page = Vec::new();
    stream.read_to_end(&mut page)?;
    let page = String::from_utf8_lossy(&page).into_owned();
    ensure!(page.starts_with("HTTP/1.") && page.contains(" 200 "), "the answer is {page:?}");
    Ok(page)
}
