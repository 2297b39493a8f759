//! The root file system: the base, and over it what is ours, packed with its hash tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use imaging::parts::{RootHash, Variant, Version};

use super::{Contents, FOLDER, ROOTS, read, squashfs};
use crate::command::run;
use crate::files::{Kind, link, put, remove, walk, write};
use crate::images::store::Store;
use crate::images::{bare, recipe};

/// Where the agent looks for the public certificate authorities.
const ROOTS_AT: &str = "etc/ssl/certs/ca-certificates.crt";

/// A packed root file system.
pub struct Root {
    pub image: PathBuf,
    pub hash: RootHash,
    /// Where in the image the hash tree begins, in bytes.
    pub hash_offset: u64,
}

/// Makes the root file system, or gives the one that was made before of the same.
pub fn make(
    store: &Store,
    base: &Path,
    variant: Variant,
    version: &Version,
    contents: &Contents,
) -> Result<Root> {
    let epoch: u64 = fs::read_to_string(base.join("epoch"))?
        .trim()
        .parse()
        .context("reading the base's epoch")?;
    let section = variant.to_string();
    let mut key = recipe::HOST_ROOT
        .key()?
        .with("base", base.as_os_str().as_encoded_bytes())
        .with("version", version.as_str().as_bytes())
        .with("links", read("links")?.as_bytes())
        .tree(&Path::new(FOLDER).join("overlay"))?
        .file(&contents.pillar)?
        .file(&contents.monitor)?
        .file(&contents.guest_kernel.join("vmlinuz"))?
        .with("guest", &contents.guest_initramfs);
    if variant == Variant::Debug {
        key = key
            .with("links", read("links.debug")?.as_bytes())
            .tree(&Path::new(FOLDER).join("overlay.debug"))?;
    }
    let root = store.step(&format!("host-root-{section}"), key, |made| {
        let scratch = store.scratch("staging")?;
        let staging = scratch.path().join("root");
        stage(base, variant, version, contents, epoch, &staging)?;
        squashfs::pack(&staging, variant, epoch, &made.join("root.img"))?;
        let hash = squashfs::add_hash_tree(&made.join("root.img"))?;
        write(
            &made.join("verity"),
            format!("{} {}", hash.0, hash.1).as_bytes(),
        )
    })?;
    let verity =
        fs::read_to_string(root.join("verity")).context("reading what the hash tree is")?;
    let (hash, offset) = verity
        .split_once(' ')
        .context("the note of the hash tree is not two words")?;
    let hash: RootHash = hash.parse().context("reading the root hash")?;
    let hash_offset: u64 = offset.parse().context("reading where the hash tree is")?;
    Ok(Root {
        image: root.join("root.img"),
        hash,
        hash_offset,
    })
}

/// Puts the tree together: the base, then what is ours over it.
fn stage(
    base: &Path,
    variant: Variant,
    version: &Version,
    contents: &Contents,
    epoch: u64,
    root: &Path,
) -> Result<()> {
    // Hard links: the base is large and stays as it is; what is changed below is replaced, never written into.
    run(Command::new("cp")
        .arg("-al")
        .arg(base.join("tree"))
        .arg(root))?;
    overlay(&Path::new(FOLDER).join("overlay"), root)?;
    let mut links = read("links")?;
    if variant == Variant::Debug {
        overlay(&Path::new(FOLDER).join("overlay.debug"), root)?;
        links.push_str(&read("links.debug")?);
        busybox_links(root)?;
    }
    make_links(&links, root)?;
    for folder in [
        "config", "dev", "persist", "proc", "root", "run", "sys", "tmp", "var",
    ] {
        let path = root.join(folder);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    }
    put(&base.join(ROOTS), &root.join(ROOTS_AT))?;
    let lib = root.join("usr/lib/skerry");
    fs::create_dir_all(lib.join("guest")).with_context(|| format!("making {}", lib.display()))?;
    put(&contents.pillar, &lib.join("pillar"))?;
    put(&contents.monitor, &lib.join("skerry-vmm"))?;
    put(
        &contents.guest_kernel.join("vmlinuz"),
        &lib.join("guest/vmlinuz"),
    )?;
    write(&lib.join("guest/initrd.img"), &contents.guest_initramfs)?;
    write(&lib.join("version"), format!("{version}\n").as_bytes())?;
    write(
        &root.join("usr/lib/os-release"),
        os_release(variant, version).as_bytes(),
    )?;
    // systemd sets a clock that is earlier than this file's time to it, before anything else runs.
    let clock = root.join("usr/lib/clock-epoch");
    write(&clock, b"")?;
    fs::File::open(&clock)?.set_modified(UNIX_EPOCH + Duration::from_secs(epoch))?;
    if variant == Variant::Production {
        bare::check(root)?;
    }
    Ok(())
}

/// What the image says of itself (os-release(5)).
pub fn os_release(variant: Variant, version: &Version) -> String {
    let (name, what) = match variant {
        Variant::Production => (format!("Skerry {version}"), ""),
        Variant::Debug => (
            format!("Skerry {version} DEBUG - root shell on the serial line"),
            "DEBUG_SHELL=ttyS0\n",
        ),
    };
    format!(
        "ID=skerry\nID_LIKE=debian\nNAME=Skerry\nVERSION_ID={version}\nIMAGE_ID=skerry\nIMAGE_VERSION={version}\nVARIANT_ID={variant}\nPRETTY_NAME=\"{name}\"\n{what}"
    )
}

/// Copies a folder's files over the tree. Each is made anew: what it replaces may be a hard link into the base.
fn overlay(from: &Path, root: &Path) -> Result<()> {
    for (path, kind) in walk(from)? {
        match kind {
            Kind::Folder => fs::create_dir_all(root.join(&path))
                .with_context(|| format!("making {}", path.display()))?,
            Kind::File { .. } => put(&from.join(&path), &root.join(&path))?,
            Kind::Link => bail!(
                "{} is a link; links stand in {FOLDER}/links",
                from.join(path).display()
            ),
        }
    }
    Ok(())
}

/// Makes the links of a list, `PATH -> TARGET` a line. The base has the first four of them already.
fn make_links(list: &str, root: &Path) -> Result<()> {
    for line in list
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
    {
        let (path, target) = line
            .split_once(" -> ")
            .with_context(|| format!("not `PATH -> TARGET`: {line}"))?;
        let path = root.join(path);
        if path.symlink_metadata().is_ok() {
            remove(&path)?;
        }
        link(&path, target)?;
    }
    Ok(())
}

/// The debug variant's shell and its commands are one program under many names.
fn busybox_links(root: &Path) -> Result<()> {
    let output = run(Command::new(root.join("usr/bin/busybox")).arg("--list"))?;
    for name in String::from_utf8_lossy(&output).lines() {
        let taken = ["usr/bin", "usr/sbin"]
            .iter()
            .any(|folder| root.join(folder).join(name).symlink_metadata().is_ok());
        if !taken {
            link(&root.join("usr/bin").join(name), "busybox")?;
        }
    }
    Ok(())
}
