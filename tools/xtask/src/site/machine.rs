//! A box of the site: an emulated PC with Skerry's own milestones.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use testbed::{Forward, Pc, Spec};

use super::free_port;

/// Long enough for the slowest step on a build machine that is busy; no test measures time by failing.
const PATIENCE: Duration = Duration::from_secs(600);

/// What ends any wait at once, because nothing good comes after it.
const DISASTERS: &[&str] = &[
    "Kernel panic",
    "skerry-installer: failed",
    "skerry-initrd: failed",
];

/// Ports of a box that its apps are mapped to, and that are reached at this machine.
const APP_PORTS: [u16; 4] = [8080, 8081, 8082, 8083];

pub struct Machine {
    pub pc: Pc,
}

impl Machine {
    /// Puts a box together; nothing is on its disk yet.
    pub fn build(serial: &str, dir: &Path) -> Result<Machine> {
        Machine::with_ports(Spec::new(serial), dir)
    }

    /// The same for a machine of one's own choice, with its apps' ports forwarded.
    pub fn with_ports(mut spec: Spec, dir: &Path) -> Result<Machine> {
        for machine in APP_PORTS {
            spec.forwards.push(Forward {
                host: free_port()?,
                machine,
            });
        }
        Machine::of(spec, dir)
    }

    fn of(spec: Spec, dir: &Path) -> Result<Machine> {
        let name = spec.serial.clone();
        Ok(Machine {
            pc: Pc::build(spec, dir).with_context(|| format!("building the PC {name}"))?,
        })
    }

    /// Where an app's port of the box is reached at this machine.
    pub fn app_address(&mut self, port: u16) -> Result<String> {
        let forwards = &self.pc.spec_mut().forwards;
        let forward = forwards.iter().find(|forward| forward.machine == port);
        let forward =
            forward.with_context(|| format!("port {port} of the box is not forwarded"))?;
        Ok(format!("127.0.0.1:{}", forward.host))
    }

    /// Installs from a stick, and takes it out when the machine has powered itself off. `tell` gets each line of progress.
    pub fn install(&mut self, stick: &Path, tell: &mut dyn FnMut(&str)) -> Result<Duration> {
        self.install_watched(stick, &mut |_, line| {
            tell(line);
            Ok(())
        })
    }

    /// The same for who also wants to look at the machine at each line.
    pub fn install_watched(
        &mut self,
        stick: &Path,
        tell: &mut dyn FnMut(&mut Pc, &str) -> Result<()>,
    ) -> Result<Duration> {
        let start = Instant::now();
        // The stick is written to (its report), and the same image serves other boxes.
        let own = self.pc.dir().join("stick.img");
        sparse_copy(stick, &own)?;
        self.pc.plug_stick(&own);
        self.pc.power_on()?;
        loop {
            let line = self.wait_for("skerry-installer: ")?;
            tell(
                &mut self.pc,
                line.split_once("skerry-installer: ")
                    .map_or(line.as_str(), |(_, text)| text),
            )?;
            if line.contains("skerry-installer: done") {
                break;
            }
        }
        self.pc.wait_off(PATIENCE)?;
        self.pc.unplug_stick();
        Ok(start.elapsed())
    }

    /// Presses the power button until the box has gone down by itself; a box that has just started may not hear the first.
    pub fn press_power(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.pc.power_off(Duration::from_secs(20)) {
                Err(testbed::Error::StaysOn(_)) if Instant::now() < deadline => {}
                outcome => return Ok(outcome?),
            }
        }
    }

    /// Waits for a line of the serial console.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        Ok(self.pc.serial().expect_or(text, DISASTERS, PATIENCE)?)
    }

    /// Powers on and waits until the agent says that it is enrolled and attested; gives the device's id.
    pub fn boot(&mut self, tell: &mut dyn FnMut(&str)) -> Result<String> {
        self.pc.serial().skip();
        self.pc.power_on()?;
        self.wait_enrolled(tell)
    }

    /// Waits until the agent says that it is enrolled and attested; gives the device's id.
    pub fn wait_enrolled(&mut self, tell: &mut dyn FnMut(&str)) -> Result<String> {
        let line = self.wait_for("skerry: enrolled as ")?;
        tell(&line);
        let id = line
            .split_once("enrolled as ")
            .and_then(|(_, rest)| rest.split_whitespace().next())
            .with_context(|| format!("no device id in {line:?}"))?
            .to_owned();
        tell(&self.wait_for("skerry: attested")?);
        Ok(id)
    }
}

/// Copies an image without filling its holes.
pub fn sparse_copy(from: &Path, to: &Path) -> Result<PathBuf> {
    let status = std::process::Command::new("cp")
        .args(["--sparse=always", "--reflink=auto"])
        .args([from, to])
        .status()
        .context("starting cp")?;
    anyhow::ensure!(
        status.success(),
        "copying {} to {}: {status}",
        from.display(),
        to.display()
    );
    Ok(to.to_owned())
}
