//! A site: what a user of Skerry has around, started for real on this machine.
//!
//! ```text
//!   operator ("skerry" command line) --> controller --+-- https --> box 1, box 2 ... (emulated PCs)
//!                                         registry  --+             as 10.0.2.2 on their user network
//! ```
//!
//! Demo, end-to-end tests and benches all use this, so that what is shown is what is tested.

mod certificates;
mod controller;
mod endorsement;
mod http;
mod machine;
pub mod manifest;
mod operator;
mod process;
mod registry;
mod time_server;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use controller::Controller;
pub use endorsement::machine_id;
pub use http::http_get;
pub use machine::{Machine, sparse_copy};
pub use operator::{LOGIN, Operator};
pub use registry::Registry;
pub use time_server::TimeServer;

use crate::build;
use crate::files::empty;

/// The address at which an emulated PC's user network reaches this machine (QEMU's user networking, `-netdev user`).
pub const HOST_FROM_BOX: &str = "10.0.2.2";

/// Folders of the programs and images that a site is made of.
#[derive(Clone, Debug)]
pub struct Built {
    /// Our programs for this machine.
    pub programs: PathBuf,
    /// Parts of the host image.
    pub parts: PathBuf,
    /// The demo's container image, an OCI layout.
    pub container: PathBuf,
    /// The demo's virtual machine: disks, kernel, initrd.
    pub machine: PathBuf,
}

/// A controller, a registry with content in it, and an operator who is logged in.
pub struct Site {
    pub built: Built,
    pub dir: PathBuf,
    pub registry: Registry,
    pub controller: Controller,
    pub operator: Operator,
}

impl Built {
    /// Builds what is missing or stale.
    pub fn make() -> Result<Built> {
        let programs = build::programs()?;
        let parts = crate::images::build(&crate::images::Options::default())?;
        let images = parts
            .parent()
            .context("the parts have no folder above them")?
            .to_owned();
        Ok(Built {
            programs,
            parts,
            container: images.join("demo-container"),
            machine: images.join("demo-vm"),
        })
    }
}

impl Site {
    /// Starts controller and registry with their state in `dir`, which is emptied first.
    pub fn start(built: &Built, dir: &Path) -> Result<Site> {
        let dir = empty(dir)?;
        let registry = Registry::start(&dir.join("registry"))?;
        let controller = Controller::start(&built.programs, &dir.join("controller"))?;
        let operator = Operator::log_in(&built.programs, &dir.join("operator"), &controller)?;
        // Boxes of the testbed need no person; those of the tests of enrolment are of another maker.
        operator.apply(&manifest::admission("testbed", testbed::MANUFACTURER))?;
        Ok(Site {
            built: built.clone(),
            dir,
            registry,
            controller,
            operator,
        })
    }

    /// Writes the installer image for this site's boxes.
    pub fn make_stick(&self) -> Result<PathBuf> {
        self.make_stick_of(&self.built.parts, "stick.img")
    }

    /// The same of other parts, under a name of its own.
    pub fn make_stick_of(&self, parts: &Path, name: &str) -> Result<PathBuf> {
        self.make_stick_with(parts, name, "both")
    }

    /// The same whose boxes enrol in one way only: `zero-touch`, `eve` or `both`.
    pub fn make_stick_enrolling(&self, way: &str) -> Result<PathBuf> {
        self.make_stick_with(&self.built.parts, &format!("{way}-stick.img"), way)
    }

    fn make_stick_with(&self, parts: &Path, name: &str, enrolment: &str) -> Result<PathBuf> {
        let stick = self.dir.join(name);
        self.operator.run(&[
            "image",
            "build",
            "--parts",
            path(parts)?,
            "--enrolment",
            enrolment,
            "-o",
            path(&stick)?,
        ])?;
        Ok(stick)
    }
}

/// A path as an argument of a command line.
pub fn path(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("the path {} is not UTF-8", path.display()))
}

/// A TCP port of the loopback address that nobody uses right now.
pub fn free_port() -> Result<u16> {
    let listener =
        std::net::TcpListener::bind(("127.0.0.1", 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}
