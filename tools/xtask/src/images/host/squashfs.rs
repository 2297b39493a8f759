//! Packs a tree into a squashfs with a dm-verity hash tree behind it. The same tree gives the same bytes and the same root
//! hash.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use imaging::parts::Variant;

use crate::command::run;
use crate::progress::Step;

/// Unit of dm-verity, for data and hashes, in bytes.
const BLOCK: u64 = 4096;
/// Salt and id of the hash tree are fixed: the same root file system has the same root hash.
const SALT: &str = "736b657272792d726f6f742d73616c742d312d2d2d2d2d2d2d2d2d2d2d2d2d2d";
const VERITY_UUID: &str = "5b0d1d5e-8f4c-4f0e-9a53-5ce11e000001";

/// Packs the tree. Production is smaller, debug quicker to make; both are made anew with each change of a program, and
/// the highest levels take a minute for two MiB.
pub fn pack(root: &Path, variant: Variant, epoch: u64, to: &Path) -> Result<()> {
    let level = match variant {
        Variant::Production => "12",
        Variant::Debug => "6",
    };
    let step = Step::begin(format!("root file system of the {variant} variant"));
    let epoch = epoch.to_string();
    run(Command::new("mksquashfs")
        .arg(root)
        .arg(to)
        .args([
            "-comp",
            "zstd",
            "-Xcompression-level",
            level,
            "-b",
            "262144",
        ])
        .args([
            "-all-root",
            "-no-xattrs",
            "-noappend",
            "-no-progress",
            "-quiet",
        ])
        .args(["-mkfs-time", &epoch, "-all-time", &epoch])
        .env_remove("SOURCE_DATE_EPOCH"))?;
    let size = to
        .metadata()
        .with_context(|| format!("looking at {}", to.display()))?
        .len();
    step.detail(&format!("{:.1} MiB", size as f64 / 1048576.0));
    step.done();
    Ok(())
}

/// Pads the image to whole blocks and appends its hash tree. Gives root hash and the tree's place in bytes.
pub fn add_hash_tree(image: &Path) -> Result<(String, u64)> {
    let file = fs::OpenOptions::new()
        .write(true)
        .open(image)
        .with_context(|| format!("opening {}", image.display()))?;
    let size = file.metadata()?.len().next_multiple_of(BLOCK);
    file.set_len(size)
        .with_context(|| format!("padding {}", image.display()))?;
    let output = run(Command::new("veritysetup")
        .arg("format")
        .args([
            format!("--hash-offset={size}"),
            format!("--data-blocks={}", size / BLOCK),
        ])
        .args([format!("--salt={SALT}"), format!("--uuid={VERITY_UUID}")])
        .args([image, image]))?;
    let text = String::from_utf8_lossy(&output);
    let hash = text
        .lines()
        .find_map(|line| line.strip_prefix("Root hash:"))
        .with_context(|| format!("veritysetup did not tell the root hash:\n{text}"))?;
    Ok((hash.trim().to_owned(), size))
}
