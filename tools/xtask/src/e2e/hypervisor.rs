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

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use guest_api::cpio::{Archive, FILE, PROGRAM};
use guest_api::{ContainerSpec, SPEC_PATH};
use testbed::{DirectBoot, Pc, Spec};

use super::Story;
use crate::command;
use crate::nesting::{PATIENCE, build_probe, outer_system, read, take_apart};

/// Programs and files of the image that go into the outer machine.
const SHIPPED: [&str; 3] = ["skerry-vmm", "guest/vmlinuz", "guest/initrd.img"];

pub fn run(story: &Story) -> Result<()> {
    let parts = story.yard.site().built.parts.clone();
    let (kernel, root) = take_apart(&parts, story.dir())?;
    story.step("kernel and root file system of the host image are taken apart");
    let probe = build_probe()?;
    let initrd = story.dir().join("outer.img");
    let archive = outer_archive(story.dir(), &root, &probe)?;
    std::fs::write(&initrd, archive.to_bytes()?)
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

fn outer_archive(dir: &Path, root: &Path, probe: &Path) -> Result<Archive> {
    let mut archive = Archive::default();
    outer_system(&mut archive, root, probe)?;
    for path in SHIPPED {
        let bytes = read(&root.join("usr/lib/skerry").join(path))?;
        let name = path.rsplit('/').next().unwrap_or(path);
        archive.file(&format!("shipped/{name}"), PROGRAM, bytes);
    }

    let mut guest = Archive::default();
    guest.file("init", PROGRAM, read(probe)?);
    archive.file("guest.img", FILE, guest.to_bytes()?);

    let qcow2 = dir.join("disk.qcow2");
    command::run(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&qcow2)
            .arg("64M"),
    )?;
    archive.file("disk.qcow2", FILE, read(&qcow2)?);

    let image = dir.join("container");
    std::fs::create_dir_all(&image).with_context(|| format!("making {}", image.display()))?;
    std::fs::copy(probe, image.join("probe")).context("putting the container together")?;
    let erofs = dir.join("container.erofs");
    command::run(
        Command::new("mkfs.erofs")
            .args(["--quiet", "-T0"])
            .args([&erofs, &image]),
    )?;
    archive.file("container.erofs", FILE, read(&erofs)?);
    let mut spec = Archive::default();
    let container = ContainerSpec {
        hostname: "container".to_owned(),
        args: vec!["/probe".to_owned(), "container".to_owned()],
        env: Vec::new(),
        cwd: "/".to_owned(),
        uid: 1000,
        gid: 1000,
        additional_gids: Vec::new(),
        readonly_root: true,
        interfaces: Vec::new(),
        dns: Vec::new(),
        volumes: Vec::new(),
        stop_signal: 15,
        stop_grace_seconds: 20,
    };
    spec.file(SPEC_PATH, FILE, serde_json::to_vec(&container)?);
    archive.file("container.cpio", FILE, spec.to_bytes()?);
    Ok(archive)
}
