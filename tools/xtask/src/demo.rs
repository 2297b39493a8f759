//! `cargo xtask demo`: the main job, for a person to watch, and then to play with.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::leftovers;
use crate::nesting;
use crate::prereq;
use crate::progress::{Step, say};
use crate::site::{Built, LOGIN, Machine, Site, http_get, manifest};

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Leave everything running and return, instead of waiting for Enter and tearing down
    #[arg(long)]
    no_wait: bool,
    /// Tear down what an earlier demo left running
    #[arg(long, conflicts_with = "no_wait")]
    stop: bool,
}

const DIR: &str = "target/demo";
const PATIENCE: Duration = Duration::from_secs(600);

/// A step and how long it took.
type Times = Vec<(&'static str, Duration)>;

pub fn run(options: &Options) -> Result<()> {
    let stopped = stop()?;
    if options.stop {
        say(if stopped {
            "The demo is torn down."
        } else {
            "No demo is running."
        });
        return Ok(());
    }
    leftovers::end_when_interrupted(DIR)?;
    prereq::install()?;
    let mut times = Times::new();
    let start = Instant::now();
    let built = Built::make()?;
    nesting::prove_once(&built.parts, &Path::new(DIR).join("nesting"))?;
    times.push(("build programs and images", start.elapsed()));
    let (site, mut pc, device) = enrol(&built, &mut times)?;
    deploy(&site, &mut pc, &device, &mut times)?;
    report(&site, &mut pc, &device, &times)?;
    if options.no_wait {
        leave_running(site, pc);
        return Ok(());
    }
    let file = waiting_file();
    std::fs::write(&file, std::process::id().to_string())
        .with_context(|| format!("writing {}", file.display()))?;
    say("Press Enter to tear everything down.");
    std::io::stdin()
        .lock()
        .read_line(&mut String::new())
        .context("waiting for Enter")?;
    forget_waiting(&file)
}

/// From nothing to an enrolled box; gives its name.
fn enrol(built: &Built, times: &mut Times) -> Result<(Site, Machine, String)> {
    let step = Step::begin("start the controller and a registry");
    let site = Site::start(built, Path::new(DIR))?;
    times.push(("start the controller and a registry", step.done()));

    let step = Step::begin("write the installer stick");
    let stick = site.make_stick()?;
    times.push(("write the installer stick", step.done()));

    let mut pc = Machine::build("SK-DEMO-1", &site.dir.join("box-1"))?;
    say(&format!("    the PC's processor: {}", pc.pc.accelerator()));
    let step = Step::begin("install from the stick");
    pc.install(&stick, &mut |line| step.detail(line))?;
    times.push(("install from the stick", step.done()));

    let step = Step::begin("power on without the stick, enrol, attest");
    pc.boot(&mut |line| step.detail(line))?;
    let device = until(&step, || {
        let devices = site.operator.list("devices")?;
        let device = devices.first().context("no device is listed yet")?;
        ensure!(
            device["status"]["attestation"]["conclusion"] == "trusted",
            "not attested yet"
        );
        Ok(device["metadata"]["name"]
            .as_str()
            .context("the device has no name")?
            .to_owned())
    })?;
    times.push(("power on, enrol, attest", step.done()));
    Ok((site, pc, device))
}

fn deploy(site: &Site, pc: &mut Machine, device: &str, times: &mut Times) -> Result<()> {
    let step = Step::begin("push a container image and a Debian machine to the registry");
    let container = site
        .operator
        .push_container(&site.registry, "hello", &site.built.container)?;
    let machine =
        site.operator
            .push_machine(&site.registry, "debian", &site.built.machine, "qcow2")?;
    times.push(("push images to the registry", step.done()));

    site.operator.apply(&manifest::datastore(&site.registry)?)?;
    for (name, port, text) in [
        (
            "web",
            8080,
            manifest::container("web", device, &container, "microvm", 8080),
        ),
        (
            "debian",
            8081,
            manifest::machine("debian", device, &machine, "qcow2", 8081),
        ),
    ] {
        let file = site.dir.join(format!("{name}.yaml"));
        std::fs::write(&file, &text).with_context(|| format!("writing {}", file.display()))?;
        let title = if name == "web" {
            "deploy the container"
        } else {
            "deploy the Debian VM"
        };
        let step = Step::begin(format!("{title} (skerry app apply -f {})", file.display()));
        site.operator
            .run(&["app", "apply", "-f", &file.to_string_lossy()])?;
        let address = pc.app_address(port)?;
        let page = until(&step, || http_get(&address))?;
        times.push((title, step.done()));
        say(&format!(
            "    http://{address}/ answers: {}",
            page.lines().last().unwrap_or_default()
        ));
    }
    Ok(())
}

/// Shows the fleet as its operator sees it, and ends with one table.
fn report(site: &Site, pc: &mut Machine, device: &str, times: &Times) -> Result<()> {
    for arguments in [&["get", "devices"][..], &["get", "apps"], &["logs", "web"]] {
        say(&format!("\n$ skerry {}", arguments.join(" ")));
        say(site.operator.run(arguments)?.trim_end());
    }
    say("\n$ skerry console debian    (for a moment; `root` was typed)");
    // The console remembers what was said before; its end is what a person looks at.
    let console = site
        .operator
        .console("debian", &LOGIN, Duration::from_secs(60))?;
    let lines: Vec<_> = console
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    say(&lines[lines.len().saturating_sub(4)..].join("\n"));
    let step = Step::begin("the box reports its memory");
    let (used, total) = until(&step, || {
        let memory = &site.operator.get("device", device)?["status"]["memory"];
        let mib = |name: &str| -> Result<f64> {
            let kib = memory[name].as_f64();
            Ok(kib.with_context(|| format!("no {name} reported yet"))? / 1024.0)
        };
        let total = mib("totalKiB")?;
        Ok((total - mib("availableKiB")?, total))
    })?;
    step.done();

    let row = |what: &str, text: String| println!("  {what:<44} {text}");
    println!("\nWhat runs");
    row(
        &format!("device {device}"),
        format!("{used:.0} of {total:.0} MiB of memory in use, apps included"),
    );
    for (port, name) in [(8080, "web"), (8081, "debian")] {
        let object = site.operator.get("app", name)?;
        let told = |field: &str| object["status"][field].as_str().unwrap_or("?").to_owned();
        row(
            &format!("app {name}"),
            format!("{}, http://{}/", told("phase"), pc.app_address(port)?),
        );
    }
    println!("How long it took");
    for (name, took) in times {
        row(name, format!("{:.1} s", took.as_secs_f64()));
    }
    println!("What next");
    row("use the command line yourself", site.operator.by_hand());
    row("tear everything down", "cargo xtask demo --stop".to_owned());
    Ok(())
}

/// Asks until the answer is there.
fn until<T>(step: &Step, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("not within {} s", PATIENCE.as_secs())));
            }
            Err(error) => {
                step.waiting(&format!("{error:#}"));
                std::thread::sleep(Duration::from_millis(500));
            }
        }
    }
}

/// Where a demo that waits for Enter leaves its process id.
fn waiting_file() -> PathBuf {
    Path::new(DIR).join("waiting.pid")
}

/// Takes the file away; a demo that ends and one that ends it may both do so.
fn forget_waiting(file: &Path) -> Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", file.display()))
        }
        _ => Ok(()),
    }
}

fn leave_running(site: Site, pc: Machine) {
    let Site {
        controller,
        registry,
        ..
    } = site;
    controller.detach();
    registry.detach();
    pc.pc.detach();
}

/// The live process that the file names, if it is a `program`: the number may be somebody else's by now, and a demo that was
/// killed leaves its file.
fn waiting(file: &Path, program: &str) -> Option<Pid> {
    let pid = Pid::from_raw(std::fs::read_to_string(file).ok()?.trim().parse().ok()?);
    let is_ours = std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .is_ok_and(|name| name.trim_end() == program);
    (is_ours && pid != Pid::this()).then_some(pid)
}

/// Ends an earlier demo: the one that waits, and whatever runs in its folder. Says whether there was something.
fn stop() -> Result<bool> {
    let file = waiting_file();
    let waiting = waiting(&file, "xtask");
    if let Some(pid) = waiting {
        // It ends what it started, and itself.
        let _ = kill(pid, Signal::SIGTERM);
    }
    forget_waiting(&file)?;
    let left = leftovers::end(DIR)?;
    Ok(left || waiting.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_live_process_of_the_name_counts_as_a_waiting_demo() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("waiting.pid");
        assert_eq!(waiting(&file, "sleep"), None);
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        std::fs::write(&file, pid.to_string()).unwrap();
        let (found, other) = (waiting(&file, "sleep"), waiting(&file, "xtask"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((found, other), (Some(pid), None));
        assert_eq!(waiting(&file, "sleep"), None, "it has ended");
        forget_waiting(&file).unwrap();
        forget_waiting(&file).unwrap();
        assert!(!file.exists());
    }
}
