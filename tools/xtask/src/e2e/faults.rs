//! What a device must survive.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use testbed::{Clock, Spec};

use super::Story;
use super::chance::Chance;
use crate::site::{HOST_FROM_BOX, Machine, TimeServer, http_get, manifest};

/// The controller is gone when the device boots: its apps start from the checkpoint.
pub fn offline_boot(story: &Story) -> Result<()> {
    let yard = story.yard;
    let mut pc = story.installed_box("SK-OFFLINE")?;
    let device = story.enrol(&mut pc)?;
    for text in [
        manifest::container("offline-micro", &device, yard.container(), "microvm", 8080),
        manifest::container("offline-native", &device, yard.container(), "native", 8081),
        manifest::machine("offline-debian", &device, yard.machine(), "qcow2", 8082),
    ] {
        yard.site().operator.apply(&text)?;
    }
    story.answers(&mut pc, "offline-micro", 8080, "hello from offline-micro")?;
    story.answers(&mut pc, "offline-native", 8081, "hello from offline-native")?;
    story.answers(&mut pc, "offline-debian", 8082, "Debian")?;

    yard.site_mut().controller.stop()?;
    yard.site_mut().registry.stop()?;
    pc.pc.cut_power();
    story.step("controller and registry are gone, the power was cut; power on");
    pc.pc.serial().skip();
    pc.pc.power_on()?;
    for (app, port, wanted) in [
        ("offline-micro", 8080, "hello from offline-micro"),
        ("offline-native", 8081, "hello from offline-native"),
        ("offline-debian", 8082, "Debian"),
    ] {
        let address = pc.app_address(port)?;
        story.until(&format!("{app} answers without a controller"), || {
            let page = http_get(&address)?;
            ensure!(page.contains(wanted), "{page:?}");
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
    story.delete_apps(&["offline-micro", "offline-native", "offline-debian"])
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
        let status = story.app("wrong")?["status"].clone();
        let message = status["message"].as_str().unwrap_or_default();
        ensure!(
            status["phase"] == "Failed" && message.contains(&"0".repeat(64)),
            "{status}"
        );
        Ok(message.to_owned())
    })?;
    story.step(format!("wrong digest: {text}"));
    asked_again_ever_later(story, "wrong")?;

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
    asked_again_ever_later(story, "late")?;
    story.answers(&mut pc, "good", 8080, "hello from good")?;

    yard.site_mut().registry.resume()?;
    story.step("the registry is back");
    // That the guest then boots and answers is what other tests wait for.
    story.until("the late app runs", || {
        let status = story.app("late")?["status"].clone();
        ensure!(status["phase"] == "Running", "{status}");
        Ok(())
    })?;
    let good = story.app("good")?;
    ensure!(
        good["status"]["restarts"] == 0,
        "the app that had nothing to do with it was started again: {}",
        good["status"]
    );
    story.delete_apps(&["good", "wrong", "late"])
}

/// A try that an app's status announces.
struct Try {
    /// When it will be.
    at: Timestamp,
    /// How long that was ahead when it was seen first, in seconds.
    ahead: i64,
}

/// The image of an app is asked for again and again, each time after a longer delay.
fn asked_again_ever_later(story: &Story, app: &str) -> Result<()> {
    let mut seen = Vec::new();
    story.until(&format!("{app} announces three tries"), || {
        let status = next_try(story, app, &mut seen)?;
        ensure!(seen.len() >= 3, "{} so far; {status}", seen.len());
        Ok(())
    })?;
    let gaps: Vec<i64> = seen
        .windows(2)
        .map(|pair| pair[1].at.duration_since(pair[0].at).as_secs())
        .collect();
    ensure!(
        gaps.is_sorted_by(|one, next| one < next),
        "the delays between tries of {app} do not grow: {gaps:?} s"
    );
    story.step(format!(
        "the registry is asked again for {app}, each time later: {gaps:?} s"
    ));
    Ok(())
}

/// Adds the try that an app's status announces, if it is a new one; gives the status.
fn next_try(story: &Story, app: &str, seen: &mut Vec<Try>) -> Result<Value> {
    let status = story.app(app)?["status"].clone();
    let message = status["message"].as_str().unwrap_or_default();
    if let Some((_, rest)) = message.split_once("tried again at ") {
        let at = rest.split([';', ' ']).next().unwrap_or_default();
        let at: Timestamp = at.parse().with_context(|| format!("{message:?}"))?;
        if seen.last().is_none_or(|last| last.at < at) {
            let ahead = at.duration_since(Timestamp::now()).as_secs();
            seen.push(Try { at, ahead });
        }
    }
    Ok(status)
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
    let machine = manifest::machine("crash-vm", &device, yard.machine(), "qcow2", 8082);
    let machine = machine.replace("console=ttyS0", "console=ttyS0 rdinit=/nonexistent panic=1");
    yard.site().operator.apply(&machine)?;
    // What each says when it ends, as the device tells it: the container's own status; a kernel that panics resets the machine.
    let apps = [
        ("crash-native", ["status 3", "code 3"]),
        ("crash-micro", ["status 3", "code 3"]),
        ("crash-vm", ["restarted itself", "triple fault"]),
    ];
    // While the delays are short; it serves for some seconds each time.
    story.answers(&mut pc, "crash-native", 8081, "hello from crash-native")?;
    let mut seen = [const { Vec::new() }; 3];
    story.until("each app announces four tries", || {
        let mut waiting = Vec::new();
        for ((app, _), seen) in apps.iter().zip(&mut seen) {
            // All three go on meanwhile, so each is looked at each time.
            let status = next_try(story, app, seen)?;
            // Up to the fourth, whose delay of 8 seconds stands out from the first one's.
            if seen.len() < 4 {
                waiting.push(format!("{app}: {} so far; {status}", seen.len()));
            }
        }
        ensure!(waiting.is_empty(), "{}", waiting.join(", "));
        Ok(())
    })?;
    for ((app, reasons), seen) in apps.iter().zip(&seen) {
        let ahead: Vec<i64> = seen.iter().map(|next| next.ahead).collect();
        ensure!(
            ahead[ahead.len() - 1] > ahead[0] + 4,
            "the delays before a start of {app} do not grow: {ahead:?} s"
        );
        let (restarts, message) = story.until(&format!("the reason of {app} is shown"), || {
            let status = story.app(app)?["status"].clone();
            let message = status["message"].as_str().unwrap_or_default().to_owned();
            let restarts = status["restarts"].as_u64().unwrap_or_default();
            ensure!(
                restarts >= 2 && reasons.iter().any(|reason| message.contains(reason)),
                "{status}"
            );
            Ok((restarts, message))
        })?;
        story.step(format!(
            "{app} was started again {restarts} times, each time later ({ahead:?} s): {message}"
        ));
    }
    story.delete_apps(&["crash-micro", "crash-native", "crash-vm"])
}

/// The power is cut at each stage of enrolling and of deploying; everything comes back each time.
pub fn power_cut(story: &Story) -> Result<()> {
    let yard = story.yard;
    let mut pc = story.installed_box("SK-CUT")?;
    for moment in ["skerry: starting", "skerry: uplink"] {
        pc.pc.serial().skip();
        pc.pc.power_on()?;
        pc.wait_for(moment)?;
        pc.pc.cut_power();
        story.step(format!(
            "the power was cut at {moment:?} of the first boots"
        ));
    }
    let device = story.enrol(&mut pc)?;

    // A gigabyte, so that it is seen on its way on any machine.
    let raw = manifest::machine("cut-fetch", &device, yard.raw_machine()?, "raw", 8083);
    yard.site().operator.apply(&raw)?;
    let fetching = || {
        let status = story.app("cut-fetch")?["status"].clone();
        let percent = status["progressPercent"].as_u64().unwrap_or_default();
        ensure!(status["phase"] == "Fetching" && percent > 0, "{status}");
        Ok((percent, status["lastReported"].clone()))
    };
    let (percent, reported) = story.until("the image is on its way", fetching)?;
    pc.pc.cut_power();
    story.step(format!(
        "the power was cut when {percent} % of the image of cut-fetch were there"
    ));
    pc.pc.serial().skip();
    pc.pc.power_on()?;
    let percent = story.until("the image is on its way again", || {
        let (percent, now) = fetching()?;
        ensure!(now != reported, "what it reported before the cut");
        Ok(percent)
    })?;
    story.step(format!("it is on its way again, at {percent} %"));
    story.delete_apps(&["cut-fetch"])?;
    yard.site().operator.apply(&manifest::machine(
        "cut-machine",
        &device,
        yard.machine(),
        "qcow2",
        8080,
    ))?;
    for moment in ["preparing", "starting", "running"] {
        cut_when(story, &mut pc, "cut-machine", moment)?;
    }
    for (name, isolation, port, moments) in [
        ("cut-micro", "microvm", 8081, ["starting", "running"]),
        ("cut-native", "native", 8082, ["preparing", "running"]),
    ] {
        let text = manifest::container(name, &device, yard.container(), isolation, port);
        yard.site().operator.apply(&text)?;
        for moment in moments {
            cut_when(story, &mut pc, name, moment)?;
        }
    }
    story.answers(&mut pc, "cut-machine", 8080, "Debian")?;
    story.answers(&mut pc, "cut-micro", 8081, "hello from cut-micro")?;
    story.answers(&mut pc, "cut-native", 8082, "hello from cut-native")?;
    let apps = [
        ("cut-machine", 8080),
        ("cut-micro", 8081),
        ("cut-native", 8082),
    ];
    story.delete_and_see(&mut pc, &apps)?;

    // What the agent says are moments between its works. Chance also meets the middle of one: a blob, a file system, a copy of a
    // disk, a checkpoint half written. Each deployment begins with nothing.
    let mut chance = Chance::begin(story)?;
    for round in 1..=5 {
        story.step(format!("deployment {round} of 5, cut twice"));
        yard.site().operator.apply(&manifest::machine(
            "cut-machine",
            &device,
            yard.machine(),
            "qcow2",
            8080,
        ))?;
        for (name, isolation, port) in [
            ("cut-micro", "microvm", 8081),
            ("cut-native", "native", 8082),
        ] {
            let text = manifest::container(name, &device, yard.container(), isolation, port);
            yard.site().operator.apply(&text)?;
        }
        cut_twice_by_chance(story, &mut pc, &mut chance, Duration::from_secs(25))?;
        story.answers(&mut pc, "cut-machine", 8080, "Debian")?;
        story.answers(&mut pc, "cut-micro", 8081, "hello from cut-micro")?;
        story.answers(&mut pc, "cut-native", 8082, "hello from cut-native")?;
        story.delete_and_see(&mut pc, &apps)?;
    }
    Ok(())
}

/// The short form of [`power_cut`]: once while enrolling, three times while deploying.
pub fn power_cut_short(story: &Story) -> Result<()> {
    let yard = story.yard;
    let mut pc = story.installed_box("SK-CUT-SHORT")?;
    pc.pc.serial().skip();
    pc.pc.power_on()?;
    pc.wait_for("skerry: uplink")?;
    pc.pc.cut_power();
    story.step("the power was cut while the box enrolled");
    let device = story.enrol(&mut pc)?;
    for (name, isolation, port) in [
        ("cut-micro", "microvm", 8081),
        ("cut-native", "native", 8082),
    ] {
        let text = manifest::container(name, &device, yard.container(), isolation, port);
        yard.site().operator.apply(&text)?;
    }
    // The first ones fall into fetching, unpacking, and what is made of it.
    let mut chance = Chance::begin(story)?;
    cut_twice_by_chance(story, &mut pc, &mut chance, Duration::from_secs(10))?;
    cut_when(story, &mut pc, "cut-micro", "starting")?;
    story.answers(&mut pc, "cut-micro", 8081, "hello from cut-micro")?;
    story.answers(&mut pc, "cut-native", 8082, "hello from cut-native")?;
    story.delete_apps(&["cut-micro", "cut-native"])
}

/// Cuts the power as soon as the agent says that an app is so far, and switches on again.
fn cut_when(story: &Story, pc: &mut Machine, app: &str, moment: &str) -> Result<()> {
    pc.wait_for(&format!("skerry: app {app} {moment}"))?;
    pc.pc.cut_power();
    story.step(format!("the power was cut when {app} was {moment}"));
    pc.pc.serial().skip();
    Ok(pc.pc.power_on()?)
}

/// Cuts the power at two moments that chance chooses, each at most `longest` away: after what was just applied, and after the
/// agent's next start.
fn cut_twice_by_chance(
    story: &Story,
    pc: &mut Machine,
    chance: &mut Chance,
    longest: Duration,
) -> Result<()> {
    for after in ["applying", "the agent's start"] {
        let delay = chance.up_to(longest);
        std::thread::sleep(delay);
        pc.pc.cut_power();
        story.step(format!(
            "the power was cut {:.3} s after {after}",
            delay.as_secs_f64()
        ));
        pc.pc.serial().skip();
        pc.pc.power_on()?;
        pc.wait_for("skerry: starting")?;
    }
    Ok(())
}

/// A box whose clock stands at 1970 gets on.
pub fn clock_1970(story: &Story) -> Result<()> {
    let yard = story.yard;
    let mut spec = Spec::new("SK-1970");
    spec.clock = Clock::At("1970-01-01T00:00:00".to_owned());
    let mut pc = Machine::with_ports(spec, &story.dir().join("SK-1970"))?;
    pc.install(yard.stick(), &mut |_| ())?;
    story.step("installed with the clock at 1970");
    let device = story.enrol(&mut pc)?;
    knows_the_time(story, &mut pc, &device)
}

/// An app of a box whose clock was wrong runs, and what it says bears the right time.
pub(super) fn knows_the_time(story: &Story, pc: &mut Machine, device: &str) -> Result<()> {
    let yard = story.yard;
    let operator = &yard.site().operator;
    let _server = TimeServer::start(&story.dir().join("chrony"))?;
    let mut object = operator.get("device", device)?;
    object["spec"]["timeServers"] = json!([HOST_FROM_BOX]);
    // Whatever was written to it meanwhile.
    object["metadata"]["resourceVersion"] = json!("");
    operator.apply(&object.to_string())?;
    let line = pc.wait_for("the clock goes by ")?;
    story.step(format!("box: {line}"));
    operator.apply(&manifest::container(
        "old-clock",
        device,
        yard.container(),
        "native",
        8080,
    ))?;
    story.answers(pc, "old-clock", 8080, "hello from old-clock")?;
    let line = story.until("the app's log is shown", || {
        let log = yard.site().operator.run(&["logs", "old-clock"])?;
        let line = log.lines().last().context("the log is empty")?;
        Ok(line.to_owned())
    })?;
    let told: Timestamp = line
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .parse()
        .with_context(|| format!("no time in the log line {line:?}"))?;
    let off = Timestamp::now().duration_since(told).as_secs().abs();
    ensure!(off < 3600, "the box has the time {told}, {off} s off");
    story.step(format!("the box has the right time: {told}"));
    story.delete_apps(&["old-clock"])
}

/// Two boxes from one stick have identities of their own.
pub fn second_box(story: &Story) -> Result<()> {
    let mut first = story.installed_box("SK-TWIN-1")?;
    let name = story.enrol(&mut first)?;
    let mut second = Machine::build("SK-TWIN-2", &story.dir().join("SK-TWIN-2"))?;
    second.install(story.yard.stick(), &mut |_| ())?;
    story.step("the second box is installed from the same stick");
    // Both are on: a second box that took the first one's place would put it offline, or the two would be one.
    let enrolled = Timestamp::now();
    let other = story.enrol(&mut second)?;
    ensure!(name != other, "both boxes are called {name}");
    let site = story.yard.site();
    let seen = |name: &str, serial: &str| {
        story.until(&format!("{name} is online beside the other"), || {
            let device = site.operator.get("device", name)?;
            let status = &device["status"];
            let last: Timestamp = status["lastSeen"]
                .as_str()
                .context("it was never seen")?
                .parse()
                .context("when it was seen last")?;
            ensure!(
                status["online"] == true
                    && last > enrolled
                    && status["attestation"]["conclusion"] == "trusted"
                    && status["hardware"]["serial"] == serial,
                "{status}"
            );
            Ok(device["metadata"]["uid"].clone())
        })
    };
    let ids = [seen(&name, "SK-TWIN-1")?, seen(&other, "SK-TWIN-2")?];
    ensure!(ids[0] != ids[1], "both boxes have the id {}", ids[0]);
    story.step(format!(
        "both are online at once, each trusted under an id of its own: {} and {}",
        ids[0], ids[1]
    ));
    Ok(())
}
