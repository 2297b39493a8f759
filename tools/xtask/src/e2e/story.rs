//! What a test tells while it runs, where it keeps its things, and what every test wants to do.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::yard::Yard;
use crate::files::empty;
use crate::site::{Machine, http_get};

/// Long enough for the slowest thing on a busy build machine.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// One run of one test.
pub struct Story<'a> {
    start: Instant,
    dir: PathBuf,
    pub yard: &'a Yard,
}

impl<'a> Story<'a> {
    /// Makes an empty folder for the test.
    pub fn begin(name: &str, yard: &'a Yard, parent: &Path) -> Result<Story<'a>> {
        Ok(Story {
            start: Instant::now(),
            dir: empty(&parent.join(name))?,
            yard,
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Tells what comes next.
    pub fn step(&self, text: impl AsRef<str>) {
        println!("{:>7.1} s  {}", self.seconds(), text.as_ref());
    }

    /// Asks again and again until the answer is there, and tells the last reason when it never comes.
    pub fn until<T>(&self, what: &str, ask: impl FnMut() -> Result<T>) -> Result<T> {
        self.within(PATIENCE, what, ask)
    }

    /// The same with a patience of one's own.
    pub fn within<T>(
        &self,
        timeout: Duration,
        what: &str,
        mut ask: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            match ask() {
                Ok(answer) => return Ok(answer),
                Err(error) if Instant::now() > deadline => {
                    bail!(
                        "{what}: not within {} s; last: {error:#}",
                        timeout.as_secs()
                    )
                }
                Err(_) => std::thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    /// A box that was installed and never started.
    pub fn installed_box(&self, serial: &str) -> Result<Machine> {
        let pc = self
            .yard
            .installed_box(serial, &self.dir.join(serial), &mut |line| self.step(line))?;
        self.step(format!(
            "{serial} is ready; accelerator: {}",
            pc.pc.accelerator()
        ));
        Ok(pc)
    }

    /// Powers a box on and waits until it is enrolled and the controller shows it as attested; gives its name there.
    pub fn enrol(&self, pc: &mut Machine) -> Result<String> {
        let id = pc.boot(&mut |line| self.step(format!("box: {line}")))?;
        self.attested(&id)
    }

    /// Waits until the controller shows a device as attested; gives its name there.
    pub fn attested(&self, id: &str) -> Result<String> {
        let device = self.until("the device is listed as attested", || {
            let devices = self.yard.site().operator.list("devices")?;
            let device = devices
                .iter()
                .find(|device| device["metadata"]["uid"] == id)
                .with_context(|| format!("{id} is not among {} devices", devices.len()))?;
            ensure!(
                device["status"]["attestation"]["conclusion"] == "trusted",
                "not attested: {}",
                device["status"]
            );
            Ok(device.clone())
        })?;
        let name = device["metadata"]["name"]
            .as_str()
            .context("the device has no name")?
            .to_owned();
        self.step(format!("{name} ({id}) is enrolled and attested"));
        Ok(name)
    }

    /// Waits until an app answers on a port of the box with a page that contains `wanted`.
    pub fn answers(&self, pc: &mut Machine, app: &str, port: u16, wanted: &str) -> Result<String> {
        let address = pc.app_address(port)?;
        let page = self.until(&format!("{app} answers"), || {
            let page = http_get(&address).with_context(|| match self.app(app) {
                Ok(object) => format!("{app} is {}", object["status"]),
                Err(error) => format!("{app}: {error:#}"),
            })?;
            ensure!(page.contains(wanted), "the page of {app} is {page:?}");
            Ok(page)
        });
        let page = page.inspect_err(|_| self.tell_log(app))?;
        self.step(format!(
            "{app} answers: {:?}",
            page.lines().last().unwrap_or_default()
        ));
        Ok(page)
    }

    /// Tells the end of an app's log, for whoever looks for the reason of a failure.
    fn tell_log(&self, app: &str) {
        let log = self
            .yard
            .site()
            .operator
            .run(&["logs", app])
            .unwrap_or_else(|error| format!("{error:#}"));
        let lines: Vec<_> = log.lines().collect();
        for line in lines.iter().skip(lines.len().saturating_sub(40)) {
            self.step(format!("log of {app}: {line}"));
        }
    }

    /// An app, as the controller shows it.
    pub fn app(&self, name: &str) -> Result<Value> {
        self.yard.site().operator.get("app", name)
    }

    /// Deletes apps at the end of a test, so that the next one finds their ports free.
    pub fn delete_apps(&self, names: &[&str]) -> Result<()> {
        for name in names {
            self.yard.site().operator.run(&["delete", "app", name])?;
        }
        Ok(())
    }

    /// Deletes apps, and waits until nothing answers at their ports and none of them is listed.
    pub fn delete_and_see(&self, pc: &mut Machine, apps: &[(&str, u16)]) -> Result<()> {
        for (name, port) in apps {
            self.delete_apps(&[name])?;
            self.gone(pc, name, *port)?;
        }
        Ok(())
    }

    /// Waits until nothing answers at an app's port and it is not listed.
    pub fn gone(&self, pc: &mut Machine, name: &str, port: u16) -> Result<()> {
        let address = pc.app_address(port)?;
        self.until(&format!("nothing answers on port {port} any more"), || {
            ensure!(http_get(&address).is_err(), "{name} still answers");
            let left = self.yard.site().operator.list("apps")?;
            ensure!(
                left.iter().all(|app| app["metadata"]["name"] != name),
                "{name} is still listed"
            );
            Ok(())
        })
    }

    /// Removes disks and images of a test that passed; they are large.
    pub fn clean_up(&self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
