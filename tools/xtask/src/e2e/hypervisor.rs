//! The monitor alone: nested guests in an outer machine that is nothing but the host image's kernel and one program.
//!
//! ```text
//! emulated PC --direct boot--> kernel of host.efi, initramfs made here: init = `hypervisor/examples/nested`
//!                                with skerry-vmm, guest kernel and guest-init out of root.img
//!                              the program runs monitors and guests, and says `probe: ...` for each thing that it found
//! ```
//!
//! Monitor, guest kernel and guest-init are the shipped ones. What is looked at, and what must be seen, stands in the
//! program's `outer.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use testbed::{Accelerator, DirectBoot, Pc, Spec, nested};

use super::Story;
use crate::build;
use crate::images::cpio::Archive;

/// Long enough for a scene on a busy build machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// Programs and files of the image that go into the outer machine.
const SHIPPED: [&str; 3] = ["skerry-vmm", "guest/vmlinuz", "guest/initrd.img"];

pub fn run(story: &Story) -> Result<()> {
    let parts = story.yard.site().built.parts.clone();
    let (kernel, root) = take_apart(&parts, story.dir())?;
    story.step("kernel and root file system of the host image are taken apart");
    let probe = build_probe()?;
    let initrd = story.dir().join("outer.img");
    let archive = outer_archive(story.dir(), &root, &probe)?;
    std::fs::write(&initrd, archive.to_bytes())
        .with_context(|| format!("writing {}", initrd.display()))?;

    let boot = DirectBoot {
        kernel,
        initrd,
        cmdline: "console=ttyS0 quiet panic=-1 role=outer".to_owned(),
        firmware: false,
    };
    let spec = Spec::bare("SK-NESTED", 1024, boot);
    let mut machine = Pc::build(spec, &story.dir().join("outer"))?;
    story.step(format!(
        "the outer machine starts; accelerator: {}",
        machine.accelerator()
    ));
    machine.power_on()?;
    loop {
        let line = machine
            .serial()
            .expect_or("probe: ", &["Kernel panic", "Oops:"], PATIENCE)?;
        let said = line.split_once("probe: ").map_or("", |(_, said)| said);
        story.step(said);
        if let Some(reason) = said.strip_prefix("FAILED ") {
            bail!("{reason}");
        }
        if said == "done" {
            return Ok(machine.wait_off(PATIENCE)?);
        }
    }
}

/// Asserts that guests run in the emulated PC, with nothing of ours between KVM and the guest. `dir` is left empty.
pub fn prove_nesting(parts: &Path, dir: &Path) -> Result<Accelerator> {
    let dir = super::empty(dir)?;
    let (kernel, root) = take_apart(parts, &dir)?;
    let mut archive = Archive::default();
    outer_system(&mut archive, &root, &build_probe()?)?;
    let initrd = dir.join("check.img");
    std::fs::write(&initrd, archive.to_bytes())
        .with_context(|| format!("writing {}", initrd.display()))?;
    let boot = DirectBoot {
        kernel,
        initrd,
        cmdline: "console=ttyS0 quiet panic=-1 role=check".to_owned(),
        firmware: false,
    };
    let accelerator = nested::check(boot, &dir.join("pc"), PATIENCE)?;
    super::empty(&dir)?;
    Ok(accelerator)
}

/// The kernel of a host image's UKI, and the folder into which the interesting part of its root file system was unpacked.
fn take_apart(parts: &Path, dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let kernel = dir.join("vmlinuz");
    run_program(
        Command::new("objcopy")
            .args(["-O", "binary", "--only-section=.linux"])
            .arg(parts.join("host.efi"))
            .arg(&kernel),
    )?;
    let root = dir.join("root");
    run_program(
        Command::new("unsquashfs")
            .args(["-quiet", "-no-progress", "-dest"])
            .args([&root, &parts.join("root.img")])
            .args(["usr/lib/modules", "usr/lib/skerry"]),
    )?;
    Ok((kernel, root))
}

/// Builds the program that is init in the outer machine and in its guests, as the image's own programs are built.
fn build_probe() -> Result<PathBuf> {
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
    run_program(&mut cargo)?;
    Ok(folder.join(TARGET).join("release/examples/nested"))
}

/// The program as init, and the modules that it loads.
fn outer_system(archive: &mut Archive, root: &Path, probe: &Path) -> Result<()> {
    for folder in ["dev", "proc", "sys", "run"] {
        archive.folder(folder);
    }
    archive.program("init", read(probe)?);
    let mut load = String::new();
    for module in modules(root)? {
        let name = module
            .file_name()
            .and_then(|name| name.to_str())
            .context("a module has no name")?;
        let path = format!("modules/{name}");
        load.push_str(&format!("/{path}\n"));
        archive.file(&path, read(&module)?);
    }
    archive.file("modules.load", load.into_bytes());
    Ok(())
}

fn outer_archive(dir: &Path, root: &Path, probe: &Path) -> Result<Archive> {
    let mut archive = Archive::default();
    outer_system(&mut archive, root, probe)?;
    for path in SHIPPED {
        let bytes = read(&root.join("usr/lib/skerry").join(path))?;
        let name = path.rsplit('/').next().unwrap_or(path);
        archive.program(&format!("shipped/{name}"), bytes);
    }

    let mut guest = Archive::default();
    guest.program("init", read(probe)?);
    archive.file("guest.img", guest.to_bytes());

    let qcow2 = dir.join("disk.qcow2");
    run_program(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&qcow2)
            .arg("64M"),
    )?;
    archive.file("disk.qcow2", read(&qcow2)?);

    let image = dir.join("container");
    std::fs::create_dir_all(&image).with_context(|| format!("making {}", image.display()))?;
    std::fs::copy(probe, image.join("probe")).context("putting the container together")?;
    let erofs = dir.join("container.erofs");
    run_program(
        Command::new("mkfs.erofs")
            .args(["--quiet", "-T0"])
            .args([&erofs, &image]),
    )?;
    archive.file("container.erofs", read(&erofs)?);
    let mut spec = Archive::default();
    let text = json!({
        "hostname": "container",
        "args": ["/probe", "container"],
        "env": [],
        "cwd": "/",
        "uid": 1000,
        "gid": 1000,
        "readonlyRoot": true,
        "stopSignal": 15,
        "stopGraceSeconds": 20,
    });
    spec.file("skerry/container.json", text.to_string().into_bytes());
    archive.file("container.cpio", spec.to_bytes());
    Ok(archive)
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
        let output = Command::new("modprobe")
            .arg("--dirname")
            .arg(root.join("usr"))
            .args(["--set-version", &version, "--show-depends", name])
            .output()
            .context("starting modprobe")?;
        ensure!(output.status.success(), "the image has no module {name}");
        for line in String::from_utf8_lossy(&output.stdout).lines() {
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

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn run_program(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("starting {name}"))?;
    ensure!(
        output.status.success(),
        "{name}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
