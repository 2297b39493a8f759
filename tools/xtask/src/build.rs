//! Builds our own programs. cargo decides what is stale.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Programs that run where no shared library is: initramfs, microVM, a monitor's jail.
pub const STATIC: &[&str] = &["boot", "guest-init", "hypervisor"];

/// Builds the programs of the whole workspace and gives their folder.
///
/// Always the whole: cargo unites the features of what is built together, and another choice of packages would build their
/// dependencies a second time.
pub fn programs() -> Result<PathBuf> {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--quiet", "--workspace", "--bins"])
        .status()
        .context("starting cargo")?;
    if !status.success() {
        bail!("building the workspace's programs failed ({status})");
    }
    Ok(PathBuf::from("target/release"))
}
