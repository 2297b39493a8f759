//! What a machine will measure when it boots an image, computed ahead from the image's parts and signed: `reference.json`.
//!
//! ```text
//! systemd-bootx64.efi --Authenticode--> boot loader           (PCR 4)
//! host.efi            --Authenticode--> kernel image          (PCR 4)
//!    '- .linux        --Authenticode--> kernel                (PCR 4, without Secure Boot)
//!    '- .cmdline      -----------------> command line         (PCR 12, 9)
//!    '- .initrd       --SHA-256--------> initramfs            (PCR 9)
//!    '- all of them   --as the stub----> kernel image's PCR   (PCR 11)
//! ```
//!
//! It is made from the files as they lie there, not from what they were made of: what is installed is what is described. The installer's
//! own UKI is not in it, for what the installer has booted asks nobody for anything.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use imaging::Parts;
use imaging::digest::Digest;
use imaging::parts::{PartName, Variant};
use imaging::pe::Image;
use onboarding::policy::{self, Reference, ReleaseKey, SignedReference, stub as measured};

use super::release_key;
use crate::progress::say;

/// Beside `parts.json`.
const FILE: &str = "reference.json";

/// Sections of a UKI that may matter to whoever starts it.
const SECTIONS: [&str; 7] = [
    ".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey",
];

/// Writes the reference of the parts in `folder`, unless the one that is there says the same.
pub fn write(folder: &Path, parts: &Parts) -> Result<()> {
    let key = release_key::load_or_make()?;
    let read = |part: PartName| {
        let path = folder.join(part.file_name());
        fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    let reference = describe(
        &read(PartName::Loader)?,
        &read(PartName::Host)?,
        parts,
        key.public,
    )?;
    let path = folder.join(FILE);
    // Signatures on P-256 are never the same twice; a file that says the same is left as it is.
    let is_there = fs::read(&path)
        .ok()
        .and_then(|bytes| SignedReference::open(&bytes).ok())
        .is_some_and(|signed| *signed.reference() == reference);
    if !is_there {
        let signed = SignedReference::sign(reference, &key.signer)?;
        durable::write(&path, signed.bytes(), 0o644)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    say(&format!(
        "  {FILE:<22} signed by release key {}",
        key.public.id()
    ));
    Ok(())
}

/// Describes an image by its boot loader and its UKI.
fn describe(loader: &[u8], host: &[u8], parts: &Parts, key: ReleaseKey) -> Result<Reference> {
    let loader = Image::parse(loader).context("reading the boot loader")?;
    let image = Image::parse(host).context("reading the host's UKI")?;
    let section = |name: &str| image.section(name).context("reading the host's UKI");
    let needed = |name: &str| {
        section(name)?.with_context(|| format!("the host's UKI has no section {name}"))
    };
    let kernel = Image::parse(needed(".linux")?).context("reading the kernel in the host's UKI")?;
    let line = std::str::from_utf8(needed(".cmdline")?)
        .context("reading the command line in the host's UKI")?;
    if section(".pcrsig")?.is_some() {
        bail!("the host's UKI has a section .pcrsig, which nothing here makes or describes");
    }
    let mut sections = vec![];
    for name in SECTIONS {
        if let Some(content) = section(name)? {
            sections.push((name, content));
        }
    }
    let is_known_stub = section(".sdmagic")?.is_some_and(|it| it.starts_with(measured::MAGIC));
    Ok(Reference {
        release_key: key,
        version: parts.version.as_str().parse()?,
        variant: match parts.variant {
            Variant::Production => policy::Variant::Production,
            Variant::Debug => policy::Variant::Debug,
        },
        root_hash: *parts.root_hash.digest(),
        boot_loader: loader.authenticode(),
        kernel_image: image.authenticode(),
        kernel: kernel.authenticode(),
        command_line: line.to_owned(),
        initramfs: Digest::of(needed(".initrd")?),
        kernel_image_pcr: is_known_stub.then(|| measured::kernel_image_pcr(&sections)),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use imaging::parts::RootHash;

    use super::super::uki::{self, Section, tests::stub};
    use super::*;

    fn parts() -> Parts {
        Parts {
            version: "1.2~rc1".parse().unwrap(),
            variant: Variant::Debug,
            root_hash: RootHash::new(Digest::of(b"root")),
            verity_offset: 4096,
            files: BTreeMap::new(),
        }
    }

    fn key() -> ReleaseKey {
        let key = rcgen::KeyPair::generate().unwrap();
        ReleaseKey::from_point(key.public_key_raw()).unwrap()
    }

    #[test]
    fn an_image_is_described_by_what_lies_in_it() {
        let line = format!("quiet roothash={}", Digest::of(b"root").hex());
        let kernel = uki::assemble(&stub(1024), &[]).unwrap();
        let sections = |magic: &'static str| {
            [
                (".sdmagic", magic.as_bytes()),
                (".osrel", b"ID=skerry"),
                (".cmdline", line.as_bytes()),
                (".linux", &kernel),
                (".initrd", b"initramfs"),
            ]
            .map(|(name, bytes)| Section { name, bytes })
        };
        let known = "#### LoaderInfo: systemd-stub 252.39-1~deb12u2 ####";
        let host = uki::assemble(&stub(1024), &sections(known)).unwrap();
        let loader = stub(512);
        let key = key();
        let found = describe(&loader, &host, &parts(), key).unwrap();
        let digest = |bytes: &[u8]| Image::parse(bytes).unwrap().authenticode();
        let expected = Reference {
            release_key: key,
            version: "1.2~rc1".parse().unwrap(),
            variant: policy::Variant::Debug,
            root_hash: Digest::of(b"root"),
            boot_loader: digest(&loader),
            kernel_image: digest(&host),
            kernel: digest(&kernel),
            command_line: line.clone(),
            initramfs: Digest::of(b"initramfs"),
            kernel_image_pcr: Some(measured::kernel_image_pcr(&[
                (".linux", &kernel),
                (".osrel", b"ID=skerry"),
                (".cmdline", line.as_bytes()),
                (".initrd", b"initramfs"),
            ])),
        };
        assert_eq!(found, expected);

        // What another stub measures is not known.
        let later = sections("#### LoaderInfo: systemd-stub 258 ####");
        let host = uki::assemble(&stub(1024), &later).unwrap();
        let found = describe(&loader, &host, &parts(), key).unwrap();
        assert_eq!(found.kernel_image_pcr, None);

        for missing in 2..5 {
            let mut some = Vec::from(sections(known));
            let name = some.remove(missing).name;
            let host = uki::assemble(&stub(1024), &some).unwrap();
            let error = describe(&loader, &host, &parts(), key).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("the host's UKI has no section {name}")
            );
        }
    }
}
