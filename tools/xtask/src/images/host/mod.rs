//! The host's image: root file system with its hash tree, the two unified kernel images, the boot loader.
//!
//! ```text
//! packages, prune, modules --> base tree, kernel, initramfs modules     (base: a step, kept by content; minutes)
//! base tree + overlay + our programs + guest --> staging                (root: a step, kept by content; seconds)
//!     --> squashfs --> dm-verity --> root.img                           (squashfs, called by root)
//! stub + command line (root hash) + kernel + initramfs --> host.efi, installer.efi                (unified; a second)
//! ```

mod base;
mod root;
mod squashfs;
mod unified;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use imaging::digest::Digest;
use imaging::parts::{PartName, Parts, Variant, Version};

use super::archive::parse_list;
use super::store::Store;
use crate::files::put;
use crate::progress::{Step, say};

pub use base::base;

const FOLDER: &str = "images/host";
/// The packages of both variants.
pub const LOCK: &str = "images/host/packages.lock";
/// The public certificate authorities, as the base holds them.
const ROOTS: &str = "ca-certificates.crt";

/// What is put into the root file system besides packages.
pub struct Contents {
    pub pillar: PathBuf,
    pub monitor: PathBuf,
    pub initrd: PathBuf,
    pub installer: PathBuf,
    /// Folder with `vmlinuz` and `vmlinux` of the guest.
    pub guest_kernel: PathBuf,
    pub guest_initramfs: Vec<u8>,
}

/// Packs the image into `to` and describes it.
pub fn pack(
    store: &Store,
    base: &Path,
    variant: Variant,
    version: &Version,
    contents: &Contents,
    to: &Path,
) -> Result<Parts> {
    let root = root::make(store, base, variant, version, contents)?;
    let step = Step::begin("unified kernel images");
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    put(&root.image, &to.join(PartName::Root.file_name()))?;
    put(
        &base.join(PartName::Loader.file_name()),
        &to.join(PartName::Loader.file_name()),
    )?;
    unified::make(store, base, (variant, version), contents, &root, to, &step)?;
    let parts = Parts::measure(to, version.clone(), variant, root.hash, root.hash_offset)?;
    parts.write(to)?;
    step.done();
    Ok(parts)
}

fn names_in(file: &str) -> Result<Vec<String>> {
    Ok(parse_list(&read(file)?).remove("").unwrap_or_default())
}

fn read(name: &str) -> Result<String> {
    let path = Path::new(FOLDER).join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// Says how large the parts are.
pub fn tell_sizes(parts: &Parts) {
    for (name, file) in &parts.files {
        say(&format!(
            "  {name:<22} {:>7.1} MiB  {}",
            file.size as f64 / 1048576.0,
            short(&file.sha256)
        ));
    }
}

fn short(digest: &Digest) -> String {
    digest.hex().chars().take(16).collect()
}
