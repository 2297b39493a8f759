//! Where the tests of one run find what all of them need: a site, a stick, and disks that were installed from it.
//!
//! Installing takes the emulated PC half a minute. A disk that was just installed holds nothing of its machine yet, so the
//! first one that a test installs is kept, and further boxes get a copy of it and a TPM of their own.

use std::cell::{OnceCell, Ref, RefCell, RefMut};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::site::{Built, Machine, Site, manifest, sparse_copy};

pub struct Yard {
    dir: PathBuf,
    site: RefCell<Site>,
    stick: PathBuf,
    container: String,
    machine: String,
    raw_machine: OnceCell<String>,
}

impl Yard {
    /// Starts a site, writes its stick, and pushes the demo's images to its registry.
    pub fn open(built: &Built, dir: &Path) -> Result<Yard> {
        let site = Site::start(built, &dir.join("site"))?;
        let dir = dir
            .canonicalize()
            .with_context(|| format!("finding {}", dir.display()))?;
        let stick = site.make_stick()?;
        let container = site
            .operator
            .push_container(&site.registry, "hello", &built.container)?;
        let machine =
            site.operator
                .push_machine(&site.registry, "debian", &built.machine, "qcow2")?;
        site.operator.apply(&manifest::datastore(&site.registry)?)?;
        Ok(Yard {
            dir,
            site: RefCell::new(site),
            stick,
            container,
            machine,
            raw_machine: OnceCell::new(),
        })
    }

    pub fn site(&self) -> Ref<'_, Site> {
        self.site.borrow()
    }

    /// For tests that stop and resume its servers.
    pub fn site_mut(&self) -> RefMut<'_, Site> {
        self.site.borrow_mut()
    }

    pub fn stick(&self) -> &Path {
        &self.stick
    }

    /// The demo's container, as `repository@digest`.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// The demo's Debian machine, as `repository@digest`.
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// The same with a raw disk; it is large, and pushed when it is first asked for.
    pub fn raw_machine(&self) -> Result<&str> {
        if self.raw_machine.get().is_none() {
            let site = self.site();
            let pushed = site.operator.push_machine(
                &site.registry,
                "debian-raw",
                &site.built.machine,
                "raw",
            )?;
            let _ = self.raw_machine.set(pushed);
        }
        self.raw_machine
            .get()
            .map(String::as_str)
            .context("the raw machine was not pushed")
    }

    fn pristine(&self) -> PathBuf {
        self.dir.join("installed.img")
    }

    /// Keeps the disk of a box that was installed from the stick and has not been started since.
    pub fn keep_disk(&self, pc: &Machine) -> Result<()> {
        sparse_copy(&pc.pc.drive(0), &self.pristine()).map(drop)
    }

    /// A box that was installed and never started.
    pub fn installed_box(
        &self,
        serial: &str,
        dir: &Path,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Machine> {
        if self.pristine().exists() {
            std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
            sparse_copy(&self.pristine(), &dir.join("drive0.img"))?;
            return Machine::build(serial, dir);
        }
        let mut pc = Machine::build(serial, dir)?;
        tell("no installed disk is kept yet: installing one");
        pc.install(&self.stick, &mut |_| ())?;
        self.keep_disk(&pc)?;
        Ok(pc)
    }

    /// After a test that failed in the middle: servers run again, and no app of it is left.
    pub fn recover(&self) -> Result<()> {
        let mut site = self.site.borrow_mut();
        site.registry.stop()?;
        site.registry.resume()?;
        site.controller.stop()?;
        site.controller.resume()?;
        for app in site.operator.list("apps")? {
            if let Some(name) = app["metadata"]["name"].as_str() {
                site.operator.run(&["delete", "app", name])?;
            }
        }
        Ok(())
    }
}
