//! Builds our own programs. cargo decides what is stale.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::Step;

/// Programs that run where no shared library is: initramfs, microVM, a monitor's jail.
pub const STATIC: &[&str] = &["boot", "guest-init", "hypervisor"];

/// The cargo that runs this program, as if it were called by hand.
///
/// `cargo run` tells the program of its package in the environment, and build scripts look there: ring's runs anew when
/// `CARGO_MANIFEST_DIR` changes. Passed on, each step from the outer cargo to an inner one and back would compile ring again, and
/// half of the workspace with it.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let is_of_the_package = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        });
        if is_of_the_package {
            command.env_remove(&name);
        }
    }
    command
}

/// Builds the programs of the whole workspace and gives their folder.
///
/// Always the whole: cargo unites the features of what is built together, and another choice of packages would build their
/// dependencies a second time.
pub fn programs() -> Result<PathBuf> {
    let step = Step::begin("our programs (the first time some minutes)");
    let status = cargo()
        .args(["build", "--release", "--quiet", "--workspace", "--bins"])
        .status()
        .context("starting cargo")?;
    if !status.success() {
        step.failed(&status.to_string());
        bail!("building the workspace's programs failed ({status})");
    }
    step.done();
    Ok(PathBuf::from("target/release"))
}
