//! Makes unified kernel images: systemd's EFI stub with command line, kernel and initramfs as further sections (UAPI Group,
//! Unified Kernel Image specification).
//!
//! ```text
//! stub:  | DOS, PE headers, section table (with room left) | .text .data ... |
//! image: | the same, four entries more                     | .text .data ... | .osrel | .cmdline | .linux | .initrd |
//! ```
//!
//! What stands behind the stub's sections (its symbols) is left out: no section holds it, and with it in between firmware and signing
//! tools would not agree on the image's Authenticode digest (see `imaging::pe`).
//!
//! The table is extended in place, so the result depends on nothing but its inputs: no times, no tool's version.

use anyhow::{Context, Result, bail};

/// One more section.
pub struct Section<'a> {
    /// At most eight bytes (PE format, section table).
    pub name: &'a str,
    pub bytes: &'a [u8],
}

/// Size of the COFF header and of a section's entry.
const COFF: usize = 20;
const ENTRY: usize = 40;

/// IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ.
const READ_ONLY_DATA: u32 = 0x4000_0040;

/// Adds sections to a PE image behind those it has.
pub fn assemble(stub: &[u8], sections: &[Section<'_>]) -> Result<Vec<u8>> {
    let pe = u32_at(stub, 0x3c)? as usize;
    if stub.get(pe..pe + 4) != Some(b"PE\0\0") {
        bail!("the stub is not a PE image");
    }
    let count = u16_at(stub, pe + 6)? as usize;
    let optional = pe + 4 + COFF;
    let table = optional + u16_at(stub, pe + 20)? as usize;
    let section_alignment = u32_at(stub, optional + 32)?;
    let file_alignment = u32_at(stub, optional + 36)? as usize;
    let headers = u32_at(stub, optional + 60)? as usize;
    if !section_alignment.is_power_of_two() || !file_alignment.is_power_of_two() {
        bail!("the stub's alignments are not powers of two");
    }
    let end_of_table = table + (count + sections.len()) * ENTRY;
    let mut end_in_memory = 0;
    let mut start_of_data = headers;
    let mut end_of_data = headers;
    for index in 0..count {
        let entry = table + index * ENTRY;
        end_in_memory = end_in_memory.max(
            u32_at(stub, entry + 12)? + u32_at(stub, entry + 8)?.max(u32_at(stub, entry + 16)?),
        );
        let data = u32_at(stub, entry + 20)? as usize;
        if data != 0 {
            start_of_data = start_of_data.min(data);
            end_of_data = end_of_data.max(data + u32_at(stub, entry + 16)? as usize);
        }
    }
    if end_of_table > start_of_data {
        bail!(
            "the stub's header has no room for {} more sections",
            sections.len()
        );
    }
    let mut image = stub
        .get(..end_of_data)
        .context("the stub is cut short")?
        .to_vec();
    for (index, section) in sections.iter().enumerate() {
        let address = end_in_memory.next_multiple_of(section_alignment);
        image.resize(image.len().next_multiple_of(file_alignment), 0);
        let offset = image.len();
        let size = u32::try_from(section.bytes.len())
            .with_context(|| format!("{} is too large", section.name))?;
        image.extend_from_slice(section.bytes);
        image.resize(image.len().next_multiple_of(file_alignment), 0);
        let mut entry = [0; ENTRY];
        let name = section.name.as_bytes();
        entry
            .get_mut(..name.len())
            .filter(|_| name.len() <= 8)
            .context("a section's name has at most eight bytes")?
            .copy_from_slice(name);
        let raw = u32::try_from(image.len() - offset).context("the image is too large")?;
        let offset = u32::try_from(offset).context("the image is too large")?;
        for (at, value) in [
            (8, size),
            (12, address),
            (16, raw),
            (20, offset),
            (36, READ_ONLY_DATA),
        ] {
            put(&mut entry, at, &value.to_le_bytes())?;
        }
        put(&mut image, table + (count + index) * ENTRY, &entry)?;
        end_in_memory = address
            .checked_add(size)
            .context("the image is too large")?;
    }
    let all = u16::try_from(count + sections.len()).context("too many sections")?;
    put(&mut image, pe + 6, &all.to_le_bytes())?;
    // No time of linking, and no checksum: firmware looks at neither for applications.
    put(&mut image, pe + 8, &[0; 4])?;
    // No table of symbols: its place and their number.
    put(&mut image, pe + 12, &[0; 8])?;
    put(&mut image, optional + 64, &[0; 4])?;
    put(
        &mut image,
        optional + 56,
        &end_in_memory
            .next_multiple_of(section_alignment)
            .to_le_bytes(),
    )?;
    Ok(image)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Result<()> {
    bytes
        .get_mut(at..at + value.len())
        .context("the stub is cut short")?
        .copy_from_slice(value);
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    Ok(u32::from_le_bytes(*found.context("the stub is cut short")?))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<2>());
    Ok(u16::from_le_bytes(*found.context("the stub is cut short")?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A PE32+ image with one section of 512 bytes and a header of `room` bytes.
    pub(in crate::images) fn stub(room: usize) -> Vec<u8> {
        let mut image = vec![0; room + 512];
        put(&mut image, 0, b"MZ").unwrap();
        put(&mut image, 0x3c, &0x40u32.to_le_bytes()).unwrap();
        put(&mut image, 0x40, b"PE\0\0").unwrap();
        put(&mut image, 0x46, &1u16.to_le_bytes()).unwrap();
        put(&mut image, 0x54, &240u16.to_le_bytes()).unwrap();
        let optional = 0x58;
        for (at, value) in [
            (0, 0x20bu32),
            (108, 16),
            (32, 0x1000),
            (36, 0x200),
            (56, 0x2000),
            (60, room as u32),
        ] {
            put(&mut image, optional + at, &value.to_le_bytes()).unwrap();
        }
        let entry = optional + 240;
        put(&mut image, entry, b".text").unwrap();
        for (at, value) in [(8, 0x123u32), (12, 0x1000), (16, 512), (20, room as u32)] {
            put(&mut image, entry + at, &value.to_le_bytes()).unwrap();
        }
        image
    }

    #[test]
    fn sections_follow_each_other_in_file_and_memory() {
        let kernel = vec![5; 0x1801];
        let sections = [
            Section {
                name: ".cmdline",
                bytes: b"ro",
            },
            Section {
                name: ".linux",
                bytes: &kernel,
            },
        ];
        let image = assemble(&stub(1024), &sections).unwrap();
        assert_eq!(u16_at(&image, 0x46).unwrap(), 3);
        let entry = 0x58 + 240 + 40;
        let field = |index: usize, at: usize| u32_at(&image, entry + index * 40 + at).unwrap();
        assert_eq!(
            (field(0, 8), field(0, 12), field(0, 16), field(0, 20)),
            (2, 0x2000, 512, 1536)
        );
        assert_eq!(
            (field(1, 8), field(1, 12), field(1, 16), field(1, 20)),
            (0x1801, 0x3000, 0x1a00, 2048)
        );
        assert_eq!(&image[2048..2048 + 0x1801], &kernel[..]);
        assert_eq!(u32_at(&image, 0x58 + 56).unwrap(), 0x5000);
        assert_eq!(image.len() % 512, 0);
    }

    #[test]
    fn nothing_lies_between_sections_that_belongs_to_none() {
        let mut with_symbols = stub(1024);
        put(&mut with_symbols, 0x40 + 12, &1536u32.to_le_bytes()).unwrap();
        with_symbols.extend(b"symbols");
        let sections = [Section {
            name: ".linux",
            bytes: b"kernel",
        }];
        let image = assemble(&with_symbols, &sections).unwrap();
        assert_eq!(image, assemble(&stub(1024), &sections).unwrap());
        let read = imaging::pe::Image::parse(&image).unwrap();
        assert_eq!(read.section(".linux"), Ok(Some(&b"kernel"[..])));
    }

    #[test]
    fn a_stub_that_cannot_be_extended_is_refused() {
        let section = || {
            [Section {
                name: ".linux",
                bytes: &[1],
            }]
        };
        assert!(
            assemble(&stub(380), &section())
                .unwrap_err()
                .to_string()
                .contains("no room")
        );
        assert!(assemble(b"MZ", &section()).is_err());
        assert!(
            assemble(&[0; 4096], &section())
                .unwrap_err()
                .to_string()
                .contains("not a PE")
        );
        assert!(
            assemble(
                &stub(1024),
                &[Section {
                    name: ".too-long",
                    bytes: &[]
                }]
            )
            .is_err()
        );
    }
}
