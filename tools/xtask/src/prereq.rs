//! What the build and the tests need from Debian, and how it gets onto the machine.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::say;

/// Debian packages, each with what it is for.
const PACKAGES: &[(&str, &str)] = &[
    ("bc", "guest kernel build"),
    ("binutils", "stripping, shared libraries of a program"),
    ("bison", "guest kernel build"),
    ("busybox-static", "component tests of containers"),
    ("chrony", "a real time server, for tests"),
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
    (
        "osslsigncode",
        "a second opinion on the digests of boot programs",
    ),
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
    let mut trial = arguments.clone();
    trial.push("--simulate");
    for line in apt(&trial)?.lines() {
        // busybox-static takes the place of busybox, for one.
        if let Some(package) = line.strip_prefix("Remv ") {
            say(&format!(
                "  {package} will be removed: it does not go with them"
            ));
        }
    }
    let quiet = QuietServices::begin(Path::new("/"))?;
    let installed = apt(&arguments);
    quiet.end()?;
    installed.map(drop)
}

/// While it is there, packages that are installed start no services: a registry of everybody's on port 5000 is not what
/// somebody asks for who wants to run tests (Debian policy, `invoke-rc.d` and `policy-rc.d`).
struct QuietServices {
    /// The file that was written; none if the machine has a policy of its own, which is left alone.
    policy: Option<PathBuf>,
}

impl QuietServices {
    /// As `policy-rc.d` answers: the action is not allowed.
    const FORBIDDEN: &str = "#!/bin/sh\n# Of `cargo xtask`, while it installs packages; remove it if it was left.\nexit 101\n";

    fn begin(root: &Path) -> Result<QuietServices> {
        let policy = root.join("usr/sbin/policy-rc.d");
        let written = File::options()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(&policy)
            .and_then(|mut file| file.write_all(Self::FORBIDDEN.as_bytes()));
        match written {
            Ok(()) => Ok(QuietServices {
                policy: Some(policy),
            }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // One that an interrupted run left is ours.
                let ours =
                    std::fs::read(&policy).is_ok_and(|text| text == Self::FORBIDDEN.as_bytes());
                Ok(QuietServices {
                    policy: ours.then_some(policy),
                })
            }
            Err(error) => Err(error).with_context(|| format!("writing {}", policy.display())),
        }
    }

    fn end(self) -> Result<()> {
        match self.policy {
            Some(policy) => std::fs::remove_file(&policy)
                .with_context(|| format!("removing {}", policy.display())),
            None => Ok(()),
        }
    }
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

fn apt(arguments: &[&str]) -> Result<String> {
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
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_stay_quiet_and_a_policy_of_the_machines_own_stays() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("usr/sbin");
        std::fs::create_dir_all(&folder).unwrap();
        let policy = folder.join("policy-rc.d");
        let quiet = QuietServices::begin(root.path()).unwrap();
        let status = Command::new(&policy).status().unwrap();
        assert_eq!(status.code(), Some(101));
        quiet.end().unwrap();
        assert!(!policy.exists());

        std::fs::write(&policy, "theirs").unwrap();
        QuietServices::begin(root.path()).unwrap().end().unwrap();
        assert_eq!(std::fs::read_to_string(&policy).unwrap(), "theirs");
    }
}
