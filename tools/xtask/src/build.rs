//! Builds our own programs. cargo decides what is stale.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Programs for people and for tests: linked as usual.
pub const TOOLS: &[&str] = &["controller", "skerry", "pillar"];
/// Programs that run where no shared library is: initramfs, microVM, a monitor's jail.
pub const STATIC: &[&str] = &["boot", "guest-init", "hypervisor"];

/// Builds packages with the workspace's one profile and gives the folder of their binaries.
pub fn dynamic(packages: &[&str]) -> Result<PathBuf> {
    cargo(packages, Path::new("target"), None)
}

/// The same, statically linked.
pub fn statically(packages: &[&str]) -> Result<PathBuf> {
    cargo(
        packages,
        Path::new("target/static"),
        Some("-C target-feature=+crt-static"),
    )
}

fn cargo(packages: &[&str], target: &Path, flags: Option<&str>) -> Result<PathBuf> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--release", "--quiet", "--bins"])
        .env("CARGO_TARGET_DIR", target);
    for package in packages {
        command.args(["--package", package]);
    }
    if let Some(flags) = flags {
        command.env("RUSTFLAGS", flags);
    }
    let status = command.status().context("starting cargo")?;
    if !status.success() {
        bail!("building {} failed ({status})", packages.join(", "));
    }
    Ok(target.join("release"))
}
