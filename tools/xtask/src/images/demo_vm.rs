//! The demo's virtual machine: a minimal Debian 12 as somebody would have it, installed by mmdebstrap, one ext4 file system
//! on a whole disk, started with its own kernel and initramfs.
//!
//! Which packages those are is settled first, by apt with an empty status; mmdebstrap then sees an archive of just these
//! files, so that the lock holds for what their dependencies bring too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use imaging::digest::Digest;

use super::archive::{self, Versions, parse_list};
use super::lock::Lock;
use super::recipe;
use super::store::Store;
use crate::command::{run, run_logged};
use crate::files::write;
use crate::progress::Step;

const FOLDER: &str = "images/demo-vm";
pub const LOCK: &str = "images/demo-vm/packages.lock";

/// Size of the disk in bytes; what is not written takes no room.
const DISK: u64 = 1 << 30;
/// Fixed, so that the same packages give the same file system.
const UUID: &str = "5b0d1d5e-8f4c-4f0e-9a53-5ce11e0000d0";

/// Bytes of mmdebstrap's log when it is done; for the progress figure only.
const LOG_BYTES: u64 = 46_000;

/// Makes `disk.raw`, `disk.qcow2`, `vmlinuz` and `initrd.img`, or gives the folder of those made before.
pub fn build(store: &Store, versions: Versions) -> Result<PathBuf> {
    let list = fs::read_to_string(Path::new(FOLDER).join("packages"))
        .context("reading the machine's package list")?;
    let names = parse_list(&list).remove("").unwrap_or_default();
    let lock = settle(store, &names, versions)?;
    let mut key = recipe::DEMO_VM
        .key()?
        .with("packages", names.join(" ").as_bytes())
        .tree(&Path::new(FOLDER).join("overlay"))?;
    for package in lock.packages.values() {
        key = key.with("package", package.sha256.bytes());
    }
    store.step("demo-vm", key, |to| {
        let debs = archive::fetch(store, &lock)?;
        let step = Step::begin(format!(
            "the demo's virtual machine from {} packages",
            debs.len()
        ));
        let scratch = store.scratch("vm")?;
        let root = scratch.path().join("root.tar");
        install(&lock, &debs, &names, scratch.path(), &root, &step)?;
        disk(scratch.path(), &root, to)?;
        step.detail(&format!(
            "disk.qcow2 {:.0} MB",
            to.join("disk.qcow2").metadata()?.len() as f64 / 1e6
        ));
        step.done();
        Ok(())
    })
}

/// Settles the named packages, the essential ones, and all that they depend on.
fn settle(store: &Store, names: &[String], versions: Versions) -> Result<Lock> {
    let lock_path = Path::new(LOCK);
    let old = Lock::load(lock_path)?;
    if versions == Versions::Locked {
        for name in names {
            if !old.packages.contains_key(name) {
                bail!("{LOCK} does not list {name}; run `cargo xtask image --update`");
            }
        }
        return Ok(old);
    }
    archive::refresh_lists(store)?;
    let mut status = tempfile::NamedTempFile::new().context("making an empty package status")?;
    std::io::Write::flush(&mut status)?;
    // What lies in apt's own cache needs no URI, and apt names none: a package that the machine itself got would be missed.
    let cache = store.scratch("apt-cache")?;
    fs::create_dir_all(cache.path().join("partial")).context("making an empty package cache")?;
    let output = run(Command::new("apt-get")
        .arg("-o")
        .arg(format!("Dir::State::status={}", status.path().display()))
        .arg("-o")
        .arg(format!("Dir::Cache::archives={}", cache.path().display()))
        .args([
            "-o",
            "APT::Install-Recommends=false",
            "-o",
            "Acquire::ForceHash=SHA256",
            "-o",
            "Debug::NoLocking=true",
        ])
        .args(["install", "--print-uris", "-qq", "-y", "?essential"])
        .args(names))?;
    let mut new = Lock::default();
    for package in archive::parse_uris(&String::from_utf8_lossy(&output))? {
        new.packages.insert(package.name.clone(), package);
    }
    archive::tell(&old, &new, lock_path, versions)?;
    Ok(new)
}

/// Installs the packages into a tar file.
fn install(
    lock: &Lock,
    debs: &[PathBuf],
    names: &[String],
    scratch: &Path,
    root: &Path,
    step: &Step,
) -> Result<()> {
    let repository = scratch.join("archive");
    fs::create_dir_all(&repository).with_context(|| format!("making {}", repository.display()))?;
    let mut index = String::new();
    for (package, deb) in lock.packages.values().zip(debs) {
        let name = format!("{}.deb", package.sha256.hex());
        fs::hard_link(deb, repository.join(&name))
            .with_context(|| format!("linking {}", deb.display()))?;
        let control = run(Command::new("dpkg-deb").arg("-f").arg(deb))?;
        let size = deb.metadata()?.len();
        index.push_str(String::from_utf8_lossy(&control).trim_end());
        index.push_str(&format!(
            "\nFilename: ./{name}\nSize: {size}\nSHA256: {}\n\n",
            package.sha256.hex()
        ));
    }
    write(&repository.join("Packages"), index.as_bytes())?;
    // mmdebstrap looks for essential packages in the archive of the release that it was asked for.
    let release = format!(
        "Origin: Debian\nSuite: stable\nCodename: bookworm\nArchitectures: amd64\nDate: Thu, 01 Jan 2026 00:00:00 UTC\n\
         SHA256:\n {} {} Packages\n",
        Digest::of(index.as_bytes()).hex(),
        index.len()
    );
    write(&repository.join("Release"), release.as_bytes())?;
    let overlay = fs::canonicalize(Path::new(FOLDER).join("overlay"))
        .context("finding the machine's overlay")?;
    let mut shown = 0;
    run_logged(
        Command::new("mmdebstrap")
            .args(["--verbose", "--mode=root", "--variant=essential", "--format=tar"])
            .arg(format!("--include={}", names.join(",")))
            .arg("--aptopt=APT::Install-Recommends \"false\"")
            .args(["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"])
            .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
            .arg(format!("--customize-hook=cp -r --no-preserve=ownership {}/. \"$1\"", overlay.display()))
            .arg("--customize-hook=chroot \"$1\" passwd -d root")
            .arg(
                "--customize-hook=chroot \"$1\" systemctl enable web.service systemd-networkd.service \
                 serial-getty@hvc0.service serial-getty@ttyS0.service",
            )
            .arg("--customize-hook=rm -rf \"$1\"/var/cache/apt/* \"$1\"/var/lib/apt/lists/* \"$1\"/var/log/*")
            .args(["bookworm"])
            .arg(root)
            .arg(format!("deb [trusted=yes] copy:{} ./", repository.display()))
            .env("SOURCE_DATE_EPOCH", "1700000000")
            // Some machines clear old files out of /tmp, and a file system's files are old.
            .env("TMPDIR", scratch),
        &scratch.join("mmdebstrap.log"),
        &mut |bytes| {
            let percent = (bytes * 100 / LOG_BYTES).min(99) / 20 * 20;
            if percent > shown {
                shown = percent;
                step.detail(&format!("{percent} %"));
            }
        },
    )
}

/// Makes the disks and takes kernel and initramfs out.
fn disk(scratch: &Path, tar: &Path, to: &Path) -> Result<()> {
    let root = scratch.join("root");
    fs::create_dir_all(&root).with_context(|| format!("making {}", root.display()))?;
    run(Command::new("tar")
        .arg("-xpf")
        .arg(tar)
        .arg("-C")
        .arg(&root)
        .args(["--xattrs", "--xattrs-include=*"]))?;
    for (name, link) in [("vmlinuz", "vmlinuz"), ("initrd.img", "initrd.img")] {
        let from = fs::read_dir(root.join("boot"))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| {
                path.file_name()
                    .is_some_and(|file| file.to_string_lossy().starts_with(&format!("{link}-")))
            })
            .with_context(|| format!("the machine has no boot/{link}-*"))?;
        fs::copy(&from, to.join(name)).with_context(|| format!("keeping {}", from.display()))?;
    }
    let raw = to.join("disk.raw");
    let file = fs::File::create(&raw).with_context(|| format!("making {}", raw.display()))?;
    file.set_len(DISK)
        .with_context(|| format!("sizing {}", raw.display()))?;
    drop(file);
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-L", "demo", "-U", UUID, "-m", "0", "-E"])
        .arg(format!(
            "hash_seed={UUID},lazy_itable_init=1,lazy_journal_init=1"
        ))
        .arg("-d")
        .arg(&root)
        .arg(&raw)
        .env("E2FSPROGS_FAKE_TIME", "1700000000"))?;
    run(Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2", "-c"])
        .arg(&raw)
        .arg(to.join("disk.qcow2")))?;
    Ok(())
}
