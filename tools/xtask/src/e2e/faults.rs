//! What a device must survive.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::Clock;

use super::Story;
use crate::site::{http_get, manifest};

/// The controller is gone when the device boots: its apps start from the checkpoint.
pub fn offline_boot(story: &Story) -> Result<()> {
    let yard = story.yard;
    let mut pc = story.installed_box("SK-OFFLINE")?;
    let device = story.enrol(&mut pc)?;
    for text in [
        manifest::container("offline-micro", &device, yard.container(), "microvm", 8080),
        manifest::container("offline-native", &device, yard.container(), "native", 8081),
    ] {
        yard.site().operator.apply(&text)?;
    }
    story.answers(&mut pc, "offline-micro", 8080, "hello from offline-micro")?;
    story.answers(&mut pc, "offline-native", 8081, "hello from offline-native")?;

    yard.site_mut().controller.stop()?;
    yard.site_mut().registry.stop()?;
    pc.pc.cut_power();
    story.step("controller and registry are gone, the power was cut; power on");
    pc.pc.serial().skip();
    pc.pc.power_on()?;
    for (app, port) in [("offline-micro", 8080), ("offline-native", 8081)] {
        let address = pc.app_address(port)?;
        story.until(&format!("{app} answers without a controller"), || {
            let page = http_get(&address)?;
            ensure!(page.contains(&format!("hello from {app}")), "{page:?}");
            Ok(())
        })?;
        story.step(format!("{app} runs without a controller"));
    }

    yard.site_mut().registry.resume()?;
    yard.site_mut().controller.resume()?;
    story.step("controller and registry are back");
    story.until("the device is online again", || {
        let object = yard.site().operator.get("device", &device)?;
        ensure!(object["status"]["online"] == true, "{}", object["status"]);
        Ok(())
    })?;
    story.step("the device is online again");
    story.delete_apps(&["offline-micro", "offline-native"])
}

/// A digest that the registry does not have, and a registry that is down: clear errors, retries, others untouched.
pub fn bad_content(story: &Story) -> Result<()> {
    let yard = story.yard;
    let mut pc = story.installed_box("SK-CONTENT")?;
    let device = story.enrol(&mut pc)?;
    yard.site().operator.apply(&manifest::container(
        "good",
        &device,
        yard.container(),
        "native",
        8080,
    ))?;
    story.answers(&mut pc, "good", 8080, "hello from good")?;

    let (repository, _) = yard
        .container()
        .split_once('@')
        .context("a reference without digest")?;
    let wrong = format!("{repository}@sha256:{}", "0".repeat(64));
    yard.site().operator.apply(&manifest::container(
        "wrong", &device, &wrong, "native", 8081,
    ))?;
    let text = story.until("the wrong digest is reported", || {
        let text = story.app("wrong")?["status"].to_string();
        ensure!(text.contains(&"0".repeat(64)), "{text}");
        Ok(text)
    })?;
    story.step(format!("wrong digest: {text}"));

    yard.site_mut().registry.stop()?;
    yard.site().operator.apply(&manifest::machine(
        "late",
        &device,
        yard.machine(),
        "qcow2",
        8082,
    ))?;
    let text = story.until("the registry that is down is reported", || {
        let object = story.app("late")?;
        let text = object["status"].to_string();
        ensure!(
            text.contains(&yard.site().registry.address_from_box()),
            "{text}"
        );
        ensure!(object["status"]["phase"] != "Running", "{text}");
        Ok(text)
    })?;
    story.step(format!("registry down: {text}"));
    story.answers(&mut pc, "good", 8080, "hello from good")?;

    yard.site_mut().registry.resume()?;
    story.step("the registry is back");
    story.answers(&mut pc, "late", 8082, "Debian")?;
    story.delete_apps(&["good", "wrong", "late"])
}

/// An app that ends by itself is started again, each time later, and its restarts are counted.
pub fn crash(story: &Story) -> Result<()> {
    let yard = story.yard;
    let mut pc = story.installed_box("SK-CRASH")?;
    let device = story.enrol(&mut pc)?;
    for (name, isolation, port) in [
        ("crash-micro", "microvm", 8080),
        ("crash-native", "native", 8081),
    ] {
        let text = manifest::container(name, &device, yard.container(), isolation, port);
        let text = text.replace("  env:\n", "  env:\n    CRASH_AFTER: \"4\"\n");
        yard.site().operator.apply(&text)?;
    }
    for app in ["crash-micro", "crash-native"] {
        let restarts = story.until(&format!("{app} was started again twice"), || {
            let status = story.app(app)?["status"].clone();
            let restarts = status["restarts"].as_u64().unwrap_or_default();
            ensure!(restarts >= 2, "{status}");
            Ok(restarts)
        })?;
        story.step(format!("{app} was started again {restarts} times"));
        story.until(&format!("the reason of {app} is shown"), || {
            let status = story.app(app)?["status"].to_string();
            ensure!(
                status.contains("status 3") || status.contains("code 3"),
                "{status}"
            );
            Ok(())
        })?;
    }
    story.answers(&mut pc, "crash-native", 8081, "hello from crash-native")?;
    story.delete_apps(&["crash-micro", "crash-native"])
}

/// The power is cut at several moments of deploying; everything comes back each time.
pub fn power_cut(story: &Story) -> Result<()> {
    let yard = story.yard;
    let mut pc = story.installed_box("SK-CUT")?;
    let device = story.enrol(&mut pc)?;
    let mut apps = Vec::new();
    for (i, milliseconds) in [300, 2500, 6000].into_iter().enumerate() {
        let (name, port) = (format!("cut-{i}"), 8080 + u16::try_from(i)?);
        let isolation = if i % 2 == 0 { "microvm" } else { "native" };
        yard.site().operator.apply(&manifest::container(
            &name,
            &device,
            yard.container(),
            isolation,
            port,
        ))?;
        apps.push((name, port));
        std::thread::sleep(Duration::from_millis(milliseconds));
        pc.pc.cut_power();
        story.step(format!(
            "the power was cut {milliseconds} ms after the config changed"
        ));
        pc.boot(&mut |line| story.step(format!("box: {line}")))?;
        for (name, port) in &apps {
            story.answers(&mut pc, name, *port, &format!("hello from {name}"))?;
        }
    }
    story.delete_apps(
        &apps
            .iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>(),
    )
}

/// A box whose clock stands at 1970 gets on.
pub fn clock_1970(story: &Story) -> Result<()> {
    let yard = story.yard;
    let mut pc = story.installed_box("SK-1970")?;
    pc.pc.spec_mut().clock = Clock::At("1970-01-01T00:00:00".to_owned());
    let device = story.enrol(&mut pc)?;
    yard.site().operator.apply(&manifest::container(
        "old-clock",
        &device,
        yard.container(),
        "native",
        8080,
    ))?;
    story.answers(&mut pc, "old-clock", 8080, "hello from old-clock")?;
    story.delete_apps(&["old-clock"])
}

/// Two boxes from one stick have identities of their own.
pub fn second_box(story: &Story) -> Result<()> {
    let mut first = story.installed_box("SK-TWIN-1")?;
    let name = story.enrol(&mut first)?;
    first.press_power()?;
    story.step("the first box powers itself off at a press of its button");
    let mut second = crate::site::Machine::build("SK-TWIN-2", &story.dir().join("SK-TWIN-2"))?;
    second.install(story.yard.stick(), &mut |_| ())?;
    story.step("the second box is installed from the same stick");
    let other = story.enrol(&mut second)?;
    ensure!(name != other, "both boxes are called {name}");
    let site = story.yard.site();
    let (first, second) = (
        site.operator.get("device", &name)?,
        site.operator.get("device", &other)?,
    );
    ensure!(
        first["metadata"]["uid"] != second["metadata"]["uid"],
        "both boxes have one id"
    );
    ensure!(
        first["status"]["hardware"]["serial"] == "SK-TWIN-1",
        "{}",
        first["status"]
    );
    ensure!(
        second["status"]["hardware"]["serial"] == "SK-TWIN-2",
        "{}",
        second["status"]
    );
    Ok(())
}
