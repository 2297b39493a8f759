//! What the build and the tests need from Debian, and how it gets onto the machine.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::say;

/// Debian packages, each with what it is for.
const PACKAGES: &[(&str, &str)] = &[
    ("bc", "guest kernel build"),
    ("binutils", "stripping, shared libraries of a program"),
    ("bison", "guest kernel build"),
    ("busybox-static", "component tests of containers"),
    ("crun", "component tests of containers"),
    ("cpio", "a second opinion on our initramfs archives"),
    ("cryptsetup-bin", "dm-verity"),
    ("curl", "a second client of the operator API"),
    ("dnsmasq-base", "component tests of networks"),
    ("docker-registry", "a real OCI registry"),
    ("dosfstools", "a second opinion on our FAT volumes"),
    ("e2fsprogs", "the demo's virtual machine disk"),
    ("erofs-utils", "container root file systems"),
    ("flex", "guest kernel build"),
    ("gdisk", "a second opinion on our partition tables"),
    ("gcc", "linking, crates that hold C"),
    ("iproute2", "tests in network namespaces"),
    ("kmod", "choosing kernel modules"),
    ("libc6-dev", "linking"),
    ("libelf-dev", "guest kernel build"),
    (
        "libssl-dev",
        "guest kernel build (its scripts only; nothing of ours links it)",
    ),
    ("lz4", "packing the guest kernel"),
    ("make", "guest kernel build"),
    ("mmdebstrap", "root file systems from Debian packages"),
    ("nftables", "component tests of networks"),
    ("ovmf", "UEFI firmware of the emulated PC"),
    ("qemu-system-x86", "the emulated PC"),
    ("qemu-utils", "disk images"),
    ("squashfs-tools", "the host's root file system"),
    ("swtpm", "the emulated PC's TPM"),
    ("swtpm-tools", "making the emulated PC's TPM"),
    ("xz-utils", "guest kernel source"),
    ("zstd", "root file system archives"),
];

/// Installs what is missing, after saying what.
pub fn install() -> Result<()> {
    let missing: Vec<_> = PACKAGES
        .iter()
        .filter(|(name, _)| !installed(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!(
        "These Debian packages are missing and will be installed ({}):",
        missing.len()
    ));
    for (name, purpose) in &missing {
        say(&format!("  {name:<20} {purpose}"));
    }
    if !nix::unistd::geteuid().is_root() {
        let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
        bail!(
            "installing packages needs root; run `apt-get install {}` as root, or start this as root",
            names.join(" ")
        );
    }
    apt(&["update", "-qq"])?;
    let mut arguments = vec!["install", "-qq", "-y", "--no-install-recommends"];
    arguments.extend(missing.iter().map(|(name, _)| *name));
    apt(&arguments)?;
    Ok(())
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

fn apt(arguments: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .context("starting apt-get; this needs Debian 12")?;
    if !output.status.success() {
        bail!(
            "apt-get {}: {}\n{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
