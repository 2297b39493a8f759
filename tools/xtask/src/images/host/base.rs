//! The base of the root file system: what Debian's packages bring, less what the image does not need, and beside it what
//! boots it. All that changes seldom and takes long.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use imaging::parts::{PartName, Variant};

use super::{LOCK, ROOTS, names_in, read};
use crate::files::{Kind, walk, write};
use crate::images::archive::{self, Versions, parse_list};
use crate::images::store::Store;
use crate::images::{prune, recipe, tree};
use crate::progress::Step;

/// Brings the boot loader and the stub; nothing of it lies in the root file system.
const BOOT_PACKAGE: &str = "systemd-boot-efi";

/// The step that changes seldom: `tree/`, `vmlinuz`, `stub.efi`, `systemd-bootx64.efi`, `epoch`, [`ROOTS`].
pub fn base(store: &Store, variant: Variant, versions: Versions) -> Result<PathBuf> {
    let list = read("packages")?;
    let sections = parse_list(&list);
    // Both variants share one lock, so both are settled together.
    let all: Vec<String> = sections.values().flatten().cloned().collect();
    let section = variant.to_string();
    let mut lock = archive::settle(store, &all, Path::new(LOCK), versions)?;
    let mine: Vec<&String> = ["", &section]
        .iter()
        .filter_map(|name| sections.get(*name))
        .flatten()
        .collect();
    lock.packages
        .retain(|name, _| mine.iter().any(|mine| mine.trim_start_matches('@') == name));
    let mut key = recipe::HOST_BASE.key()?.with("variant", section.as_bytes());
    for package in lock.packages.values() {
        key = key.with("package", package.sha256.bytes());
    }
    for name in ["prune", "modules", "modules.initrd", "modules.installer"] {
        key = key.with(name, read(name)?.as_bytes());
    }
    store.step(&format!("host-base-{section}"), key, |to| {
        let debs = archive::fetch(store, &lock)?;
        let step = Step::begin(format!("base of the {section} root file system"));
        let (boot, debs): (Vec<_>, Vec<_>) = lock
            .packages
            .keys()
            .zip(debs)
            .partition(|(name, _)| *name == BOOT_PACKAGE);
        let paths = |some: Vec<(&String, PathBuf)>| {
            some.into_iter().map(|(_, path)| path).collect::<Vec<_>>()
        };
        let root = to.join("tree");
        let total = debs.len();
        tree::unpack(&paths(debs), &root, &mut |done| {
            if done % 20 == 0 || done == total {
                step.detail(&format!("{done} of {total} packages unpacked"));
            }
        })?;
        write(
            &to.join("epoch"),
            newest_time(&root)?.to_string().as_bytes(),
        )?;
        let kernel = tree::kernel_version(&root)?;
        let image = root.join("boot").join(format!("vmlinuz-{kernel}"));
        fs::copy(&image, to.join("vmlinuz"))
            .with_context(|| format!("keeping {}", image.display()))?;
        let mut wanted = names_in("modules")?;
        wanted.extend(names_in("modules.initrd")?);
        wanted.extend(names_in("modules.installer")?);
        tree::keep_modules(&root, &kernel, &wanted)?;
        write(&to.join(ROOTS), &public_roots(&root)?)?;
        tree::prune(&root, &prune::parse(&read("prune")?, &section))?;
        let scratch = store.scratch("boot")?;
        tree::unpack(&paths(boot), scratch.path(), &mut |_| ())?;
        for (from, name) in [
            ("linuxx64.efi.stub", "stub.efi"),
            ("systemd-bootx64.efi", PartName::Loader.file_name()),
        ] {
            let from = scratch.path().join("usr/lib/systemd/boot/efi").join(from);
            fs::copy(&from, to.join(name))
                .with_context(|| format!("keeping {}", from.display()))?;
        }
        step.done();
        Ok(())
    })
}

/// The authorities of Debian's ca-certificates as one file, as its maintainer script would make it with all of them trusted.
fn public_roots(root: &Path) -> Result<Vec<u8>> {
    let folder = root.join("usr/share/ca-certificates/mozilla");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| format!("listing {}", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    let mut bundle = Vec::new();
    for file in files {
        let text = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        bundle.extend_from_slice(text.trim_ascii_end());
        bundle.push(b'\n');
    }
    if bundle.is_empty() {
        bail!("{} holds no certificate", folder.display());
    }
    Ok(bundle)
}

/// The newest time of any file: when the youngest package was made. Links are not looked at: some are ours, and new.
fn newest_time(root: &Path) -> Result<u64> {
    let mut newest = 0;
    for (path, kind) in walk(root)? {
        if matches!(kind, Kind::File { .. }) {
            let modified = root.join(&path).symlink_metadata()?.modified()?;
            newest = newest.max(
                modified
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |age| age.as_secs()),
            );
        }
    }
    Ok(newest)
}
