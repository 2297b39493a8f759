//! What happens to the machine itself: a spoilt disk, a pulled cable, and a look at the running system from inside.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Story;
use super::disk::Disk;
use super::story::PATIENCE;
use crate::images;
use crate::site::{Machine, manifest};

/// dm-verity: whoever turns bits of the root file system gets a box that does not start, and not one that runs their bits.
pub fn spoilt_root(story: &Story) -> Result<()> {
    let mut pc = story.installed_box("SK-SPOILT")?;
    Disk::open(&pc.pc.drive(0))?.spoil_root()?;
    story.step("a bit in each 64 KiB of the root slot is turned");
    pc.pc.power_on()?;
    // The kernel is told to start anew at the first wrong block. There is one UKI yet, and so nothing to fall back to.
    for _ in 0..2 {
        let line = pc
            .pc
            .serial()
            .expect("dm-verity device corrupted", PATIENCE)?;
        story.step(format!("box: {line}"));
    }
    let text = pc.pc.serial().text();
    ensure!(
        !text.contains("skerry: starting"),
        "the agent of a spoilt root started"
    );
    pc.pc.cut_power();
    Ok(())
}

/// The cable is pulled: apps go on. It is plugged again: the device is back.
pub fn cable(story: &Story) -> Result<()> {
    let site = story.yard.site();
    let mut pc = story.installed_box("SK-CABLE")?;
    let device = story.enrol(&mut pc)?;
    site.operator.apply(&manifest::container(
        "cabled",
        &device,
        story.yard.container(),
        "native",
        8080,
    ))?;
    story.answers(&mut pc, "cabled", 8080, "hello from cabled")?;
    let online = |wanted: bool| -> Result<()> {
        let object = site.operator.get("device", &device)?;
        ensure!(object["status"]["online"] == wanted, "{}", object["status"]);
        Ok(())
    };
    pc.pc.pull_cable(0)?;
    story.step("the cable is pulled");
    story.until("the controller misses the device", || online(false))?;
    story.step("the controller shows the device as offline");
    pc.pc.plug_cable(0)?;
    story.step("the cable is plugged again");
    story.until("the device is online again", || online(true))?;
    story.answers(&mut pc, "cabled", 8080, "hello from cabled")?;
    let app = story.app("cabled")?;
    ensure!(
        app["status"]["restarts"] == 0,
        "the app was started again: {}",
        app["status"]
    );
    story.delete_apps(&["cabled"])
}

/// The debug variant says what it is and has a shell; through it one sees how a monitor is confined.
pub fn debug_variant(story: &Story) -> Result<()> {
    let site = story.yard.site();
    let parts = images::build(&images::Options {
        variant: imaging::parts::Variant::Debug,
        no_demo: true,
        ..images::Options::default()
    })?;
    let stick = site.make_stick_of(&parts, "debug-stick.img")?;
    let mut pc = Machine::build("SK-DEBUG", &story.dir().join("SK-DEBUG"))?;
    pc.install(&stick, &mut |_| ())?;
    story.step("the debug variant is installed");
    let device = story.enrol(&mut pc)?;
    ensure!(
        pc.pc
            .serial()
            .text()
            .contains("*** SKERRY DEBUG VARIANT ***"),
        "the debug variant does not say that it is one"
    );
    ensure!(
        pc.pc.screen()?.shows("*** SKERRY DEBUG VARIANT ***"),
        "the debug variant says on the serial line what it is, and not on the screen"
    );
    site.operator.apply(&manifest::container(
        "confined",
        &device,
        story.yard.container(),
        "microvm",
        8080,
    ))?;
    story.answers(&mut pc, "confined", 8080, "hello from confined")?;

    let seen = ask_shell(
        &mut pc,
        "for p in $(pidof skerry-vmm); do grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' /proc/$p/status; done",
    )?;
    let field = |name: &str| -> Result<Vec<String>> {
        let line = seen.lines().find(|line| line.starts_with(name));
        let line = line.with_context(|| format!("no {name} of the monitor in {seen:?}"))?;
        Ok(line.split_whitespace().skip(1).map(str::to_owned).collect())
    };
    for uid in field("Uid:")? {
        let uid: u32 = uid.parse().with_context(|| format!("uid {uid:?}"))?;
        ensure!(
            (200_000..210_000).contains(&uid),
            "the monitor runs as uid {uid}"
        );
    }
    for (name, wanted) in [
        ("CapEff:", "0000000000000000"),
        ("NoNewPrivs:", "1"),
        ("Seccomp:", "2"),
    ] {
        ensure!(
            field(name)? == [wanted],
            "the monitor has {name} {:?}",
            field(name)?
        );
    }
    story.step("the monitor has a uid of its own, no capabilities, no new privileges, and a system call filter");
    story.delete_apps(&["confined"])
}

/// Types a command at the debug variant's shell and gives what it said.
fn ask_shell(pc: &mut Machine, command: &str) -> Result<String> {
    for _ in 0..3 {
        let before = pc.pc.serial().text().len();
        pc.pc.serial().skip();
        pc.pc
            .serial()
            .type_text(&format!("\n{command}; echo said-$((40+2))\n"))?;
        // The agent's lines come over the same wire, and may fall into the middle of a word.
        if pc
            .pc
            .serial()
            .expect("said-42", Duration::from_secs(30))
            .is_ok()
        {
            let text = pc.pc.serial().text();
            return Ok(text[before..].replace('\r', ""));
        }
    }
    bail!("the shell on the serial line did not answer {command:?}")
}
