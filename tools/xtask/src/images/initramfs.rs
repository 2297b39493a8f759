//! The initramfs of the host, of its installer, and of a container's microVM: the program that is init, and what it needs.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use guest_api::cpio::{Archive, FILE, FOLDER, PROGRAM};

use super::store::Store;
use super::{recipe, tree};
use crate::command::run;
use crate::files::write;

/// The host's, or the installer's: init, kernel modules out of the tree `root`, and the order to load them in; packed with
/// zstd.
pub fn host(store: &Store, root: &Path, init: &Path, modules: &[String]) -> Result<Vec<u8>> {
    let kernel = tree::kernel_version(root)?;
    let folder = root.join("usr/lib/modules").join(&kernel);
    let mut archive = Archive::default();
    archive.file("init", PROGRAM, read(init)?);
    for mount_point in ["dev", "proc", "run", "sys", "sysroot", "tmp"] {
        archive.folder(mount_point, FOLDER);
    }
    let mut order = String::new();
    for path in tree::modules(root, &kernel)?.choose(modules)? {
        let name = Path::new(&path)
            .file_name()
            .and_then(|name| name.to_str())
            .context("a module without a name")?;
        let inside = format!("lib/modules/{name}");
        archive.file(&inside, FILE, read(&folder.join(&path))?);
        order.push_str(&format!("/{inside}\n"));
    }
    archive.file("etc/skerry/modules.load", FILE, order.into_bytes());
    let plain = archive.to_bytes()?;
    let key = recipe::INITRAMFS.key()?.with("cpio", &plain);
    let packed = store.step("initramfs", key, |to| {
        let unpacked = to.join("initrd.cpio");
        write(&unpacked, &plain)?;
        run(Command::new("zstd")
            .args(["-q", "-19", "--rm"])
            .arg(&unpacked)
            .arg("-o")
            .arg(to.join("initrd.img")))?;
        Ok(())
    })?;
    read(&packed.join("initrd.img"))
}

/// The guest's: uncompressed, for it is read from memory that the host's squashfs has just decompressed.
pub fn guest(init: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.file("init", PROGRAM, read(init)?);
    for folder in ["dev", "proc", "sys"] {
        archive.folder(folder, FOLDER);
    }
    Ok(archive.to_bytes()?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}
