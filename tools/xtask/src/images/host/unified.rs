//! The two unified kernel images, `host.efi` and `installer.efi`: one kernel, an initramfs and a command line for each. The
//! host's command line holds the root hash, so that whoever measures the image measures the root file system.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use imaging::parts::{PartName, Variant, Version};

use super::root::{Root, os_release};
use super::{Contents, names_in, read};
use crate::files::write;
use crate::images::archive::parse_list;
use crate::images::initramfs;
use crate::images::store::Store;
use crate::images::uki::{self, Section};
use crate::progress::Step;

/// Makes both into the folder `to`.
pub fn make(
    store: &Store,
    base: &Path,
    (variant, version): (Variant, &Version),
    contents: &Contents,
    root: &Root,
    to: &Path,
    step: &Step,
) -> Result<()> {
    let host_modules = names_in("modules.initrd")?;
    let mut installer_modules = host_modules.clone();
    installer_modules.extend(names_in("modules.installer")?);
    let command_line = command_line(variant)?;
    let host_line = format!(
        "{command_line} roothash={} verityoffset={}",
        root.hash, root.hash_offset
    );
    for (part, init, modules, line) in [
        (PartName::Host, &contents.initrd, host_modules, host_line),
        (
            PartName::Installer,
            &contents.installer,
            installer_modules,
            command_line,
        ),
    ] {
        let initrd = initramfs::host(store, &base.join("tree"), init, &modules)?;
        let image = unified(base, variant, version, &line, &initrd)?;
        step.detail(&format!(
            "{part}: {:.1} MB, initramfs {:.1} MB of it",
            image.len() as f64 / 1e6,
            initrd.len() as f64 / 1e6
        ));
        write(&to.join(part.file_name()), &image)?;
    }
    Ok(())
}

fn unified(
    base: &Path,
    variant: Variant,
    version: &Version,
    line: &str,
    initrd: &[u8],
) -> Result<Vec<u8>> {
    let get = |name: &str| {
        fs::read(base.join(name)).with_context(|| format!("reading {}", base.join(name).display()))
    };
    let kernel = get("vmlinuz")?;
    let release = os_release(variant, version);
    let sections = [
        Section {
            name: ".osrel",
            bytes: release.as_bytes(),
        },
        Section {
            name: ".cmdline",
            bytes: line.as_bytes(),
        },
        Section {
            name: ".linux",
            bytes: &kernel,
        },
        Section {
            name: ".initrd",
            bytes: initrd,
        },
    ];
    uki::assemble(&get("stub.efi")?, &sections)
}

/// The command line of a variant, one line.
fn command_line(variant: Variant) -> Result<String> {
    let sections = parse_list(&read("cmdline")?);
    let words: Vec<String> = ["".to_owned(), variant.to_string()]
        .iter()
        .filter_map(|name| sections.get(name))
        .flatten()
        .cloned()
        .collect();
    Ok(words.join(" "))
}
