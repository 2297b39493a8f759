//! Whether guests run in the emulated PC at all, before anything that needs them is started and fails in the middle.
//!
//! End-to-end tests have it proved in each run. Demo and benches take the proof of an earlier run for as long as nothing has
//! changed that it depends on: it is kept as steps of image builds are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use guest_api::cpio::{Archive, FILE, FOLDER, PROGRAM};
use testbed::{Accelerator, DirectBoot, nested};

use crate::build;
use crate::command::run;
use crate::files;
use crate::images::recipe::Recipe;
use crate::images::store::Store;
use crate::progress::Step;

/// Long enough for a scene on a busy build machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// QEMU's version is among the testbed's conditions.
const RECIPE: Recipe = Recipe {
    name: "nesting",
    sources: &[("nesting.rs", include_str!("nesting.rs"))],
    tools: &[],
};

/// Asserts that guests run in the emulated PC, with nothing of ours between KVM and the guest. `dir` is left empty.
pub fn prove(parts: &Path, dir: &Path) -> Result<Accelerator> {
    let dir = files::empty(dir)?;
    let boot = proof(parts, &dir)?;
    let accelerator = nested::check(boot, &dir.join("pc"), PATIENCE)?;
    files::empty(&dir)?;
    Ok(accelerator)
}

/// The same, unless this machine has proved it with the same kernel, program, QEMU and processor before.
pub fn prove_once(parts: &Path, dir: &Path) -> Result<()> {
    let dir = files::empty(dir)?;
    let boot = proof(parts, &dir)?;
    let key = RECIPE
        .key()?
        .with("conditions", nested::conditions()?.as_bytes())
        .with("cmdline", boot.cmdline.as_bytes())
        .file(&boot.kernel)?
        .file(&boot.initrd)?;
    Store::open()?.step("nesting", key, |_| {
        let step = Step::begin("whether guests run in the emulated PC (once a machine)");
        nested::check(boot, &dir.join("pc"), PATIENCE)?;
        step.done();
        Ok(())
    })?;
    files::empty(&dir)?;
    Ok(())
}

/// What the proof boots: the image's kernel, and the program as init that starts the smallest of guests.
fn proof(parts: &Path, dir: &Path) -> Result<DirectBoot> {
    let (kernel, root) = take_apart(parts, dir)?;
    let mut archive = Archive::default();
    outer_system(&mut archive, &root, &build_probe()?)?;
    let initrd = dir.join("check.img");
    std::fs::write(&initrd, archive.to_bytes()?)
        .with_context(|| format!("writing {}", initrd.display()))?;
    Ok(DirectBoot {
        kernel,
        initrd,
        cmdline: "console=ttyS0 quiet panic=-1 role=check".to_owned(),
        firmware: false,
    })
}

/// The kernel of a host image's UKI, and the folder into which the interesting part of its root file system was unpacked.
pub fn take_apart(parts: &Path, dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let kernel = dir.join("vmlinuz");
    run(Command::new("objcopy")
        .args(["-O", "binary", "--only-section=.linux"])
        .arg(parts.join("host.efi"))
        .arg(&kernel))?;
    let root = dir.join("root");
    run(Command::new("unsquashfs")
        .args(["-quiet", "-no-progress", "-dest"])
        .args([&root, &parts.join("root.img")])
        .args(["usr/lib/modules", "usr/lib/skerry"]))?;
    Ok((kernel, root))
}

/// Builds the program that is init in the outer machine and in its guests, as the image's own programs are built.
pub fn build_probe() -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let folder = Path::new("target/static");
    let mut cargo = build::cargo();
    cargo
        .args(["build", "--release", "--quiet", "--target", TARGET])
        .args(["--example", "nested"]);
    for package in build::STATIC {
        cargo.args(["--package", package]);
    }
    cargo
        .env("CARGO_TARGET_DIR", folder)
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    run(&mut cargo)?;
    Ok(folder.join(TARGET).join("release/examples/nested"))
}

/// The program as init, and the modules that it loads.
pub fn outer_system(archive: &mut Archive, root: &Path, probe: &Path) -> Result<()> {
    for folder in ["dev", "proc", "sys", "run"] {
        archive.folder(folder, FOLDER);
    }
    archive.file("init", PROGRAM, read(probe)?);
    let mut load = String::new();
    for module in modules(root)? {
        let name = module
            .file_name()
            .and_then(|name| name.to_str())
            .context("a module has no name")?;
        let path = format!("modules/{name}");
        load.push_str(&format!("/{path}\n"));
        archive.file(&path, FILE, read(&module)?);
    }
    archive.file("modules.load", FILE, load.into_bytes());
    Ok(())
}

/// Modules that the outer machine needs, each after what it needs itself.
fn modules(root: &Path) -> Result<Vec<PathBuf>> {
    let folder = root.join("usr/lib/modules");
    let version = std::fs::read_dir(&folder)
        .with_context(|| format!("reading {}", folder.display()))?
        .find_map(|entry| entry.ok()?.file_name().into_string().ok())
        .context("the image has no kernel modules")?;
    let mut found = Vec::new();
    for name in ["kvm-amd", "kvm-intel", "tun"] {
        let output = run(Command::new("modprobe")
            .arg("--dirname")
            .arg(root.join("usr"))
            .args(["--set-version", &version, "--show-depends", name]))
        .with_context(|| format!("looking for the image's module {name}"))?;
        for line in String::from_utf8_lossy(&output).lines() {
            if let Some(path) = line.strip_prefix("insmod ") {
                let path = PathBuf::from(path.trim());
                if !found.contains(&path) {
                    found.push(path);
                }
            }
        }
    }
    Ok(found)
}

/// Reads a file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}
