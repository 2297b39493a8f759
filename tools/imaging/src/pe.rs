//! PE files as a firmware measures them: boot loaders, unified kernel images, kernels.
//!
//! ```text
//! | headers, section table | section | section | ... | what no section holds | certificate table |
//!   '- without checksum and the place of the certificate table                  '- not hashed
//! ```
//!
//! The Authenticode digest of a file is what UEFI firmware extends PCR 4 with, and what Secure Boot's signatures are over. It
//! leaves out just what a signature changes. Sources: Microsoft's "Windows Authenticode Portable Executable Signature Format",
//! and the PE Format, as the TCG PC Client Platform Firmware Profile refers to them.
//!
//! The specification counts: whatever lies behind as many bytes as headers and sections have together is "extra data". With a
//! gap between sections that counting takes bytes twice and leaves the gap out, and signing tools do something else. So files
//! with gaps are refused: nobody could say what their digest is, and bytes that no digest covers have no place in an image.
//! Where signing tools pad a file to eight bytes before they sign it, firmware measures an unsigned one as it is, and so does
//! this.

use crate::digest::{Digest, Hasher};

/// Most sections that Windows' loader takes, and more than any file of ours has.
const MAX_SECTIONS: u16 = 96;
/// Size of the COFF header, and of a section's entry.
const COFF: usize = 20;
const ENTRY: usize = 40;
/// Magic number of PE32+, the only kind that 64-bit firmware starts.
const PE32_PLUS: u16 = 0x20b;
/// Places in the optional header of PE32+.
const CHECKSUM: usize = 64;
const DIRECTORIES: usize = 112;
/// Which data directory names the certificate table, and the size of a directory's entry.
const CERTIFICATES: usize = 4;
const DIRECTORY: usize = 8;

/// Why a file is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeError {
    /// It ends too early.
    #[error("it ends before its {0}")]
    Short(&'static str),
    /// It is something else.
    #[error("it is not a PE file: {0}")]
    NotPe(&'static str),
    /// Its parts lie where they cannot.
    #[error("{0}")]
    Layout(String),
}

/// A section.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Section {
    name: [u8; 8],
    /// Size in memory, in bytes.
    size: usize,
    /// Place and size in the file, in bytes; the size is a multiple of the file's alignment.
    place: usize,
    stored: usize,
}

/// A PE file taken apart.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    bytes: &'a [u8],
    /// Where the checksum is.
    checksum: usize,
    /// Where the entry is that names the certificate table, if the header has one.
    certificates: Option<usize>,
    /// End of what is hashed.
    end: usize,
    /// In the order of the table.
    sections: Vec<Section>,
}

impl<'a> Image<'a> {
    /// Takes a file apart.
    ///
    /// # Errors
    /// [`PeError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PeError> {
        if !bytes.starts_with(b"MZ") {
            return Err(PeError::NotPe("it does not begin with MZ"));
        }
        let pe = size(u32_at(bytes, 0x3c, "place of the PE header")?);
        let header = bytes.get(pe..).ok_or(PeError::Short("PE header"))?;
        if !header.starts_with(b"PE\0\0") {
            return Err(PeError::NotPe("it has no PE header where it says"));
        }
        let coff = pe + 4;
        let optional = coff + COFF;
        let count = u16_at(bytes, coff + 2, "number of sections")?;
        let optional_size = usize::from(u16_at(bytes, coff + 16, "optional header's size")?);
        if u16_at(bytes, optional, "optional header")? != PE32_PLUS {
            return Err(PeError::NotPe("it is not for 64-bit firmware (PE32+)"));
        }
        if count == 0 || count > MAX_SECTIONS {
            return Err(layout(format!(
                "it has {count} sections, 1 to {MAX_SECTIONS} are taken"
            )));
        }
        let headers = size(u32_at(bytes, optional + 60, "headers' size")?);
        let directories = size(u32_at(bytes, optional + 108, "number of directories")?);
        let table = optional + optional_size;
        let table_end = table + usize::from(count) * ENTRY;
        if directories > 16 || optional_size < DIRECTORIES + directories * DIRECTORY {
            return Err(layout(format!(
                "its optional header of {optional_size} bytes has no room for {directories} directories"
            )));
        }
        if headers < table_end || headers > bytes.len() {
            return Err(layout(format!(
                "its headers of {headers} bytes do not hold the section table, or are longer than the file"
            )));
        }
        let sections = (0..usize::from(count))
            .map(|index| Section::read(bytes, table + index * ENTRY))
            .collect::<Result<Vec<_>, _>>()?;
        let end_of_sections = end_of(&sections, headers, bytes.len())?;
        let certificates = (directories > CERTIFICATES)
            .then_some(optional + DIRECTORIES + CERTIFICATES * DIRECTORY);
        let end = match certificates {
            Some(entry) => end_of_content(bytes, entry, end_of_sections)?,
            None => bytes.len(),
        };
        Ok(Self {
            bytes,
            checksum: optional + CHECKSUM,
            certificates,
            end,
            sections,
        })
    }

    /// The Authenticode digest, SHA-256.
    #[must_use]
    pub fn authenticode(&self) -> Digest {
        let mut hasher = Hasher::new();
        let mut from = 0;
        let holes = [
            Some((self.checksum, 4)),
            self.certificates.map(|entry| (entry, DIRECTORY)),
        ];
        for (place, length) in holes.into_iter().flatten() {
            hasher.update(self.bytes.get(from..place).unwrap_or_default());
            from = place + length;
        }
        // Without gaps, sections in the order of their places and what follows them are all the rest.
        hasher.update(self.bytes.get(from..self.end).unwrap_or_default());
        hasher.finish()
    }

    /// Whether the file is signed.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        self.end < self.bytes.len()
    }

    /// What a section holds once it is loaded; `None` if there is no section of this name.
    ///
    /// # Errors
    /// [`PeError::Layout`] if there are several, or if not all of it is in the file.
    pub fn section(&self, name: &str) -> Result<Option<&'a [u8]>, PeError> {
        let mut found = self
            .sections
            .iter()
            .filter(|section| section.name() == name.as_bytes());
        let Some(section) = found.next() else {
            return Ok(None);
        };
        if found.next().is_some() {
            return Err(layout(format!("it has more than one section {name}")));
        }
        if section.size > section.stored {
            return Err(layout(format!(
                "its section {name} has {} bytes, and {} of them in the file",
                section.size, section.stored
            )));
        }
        self.bytes
            .get(section.place..section.place + section.size)
            .map(Some)
            .ok_or(PeError::Short("sections' end"))
    }
}

impl Section {
    fn read(bytes: &[u8], entry: usize) -> Result<Self, PeError> {
        let short = PeError::Short("section table's end");
        let name = bytes
            .get(entry..)
            .and_then(|rest| rest.first_chunk())
            .ok_or(short)?;
        let field = |at| Ok(size(u32_at(bytes, entry + at, "section table's end")?));
        Ok(Self {
            name: *name,
            size: field(8)?,
            stored: field(16)?,
            place: field(20)?,
        })
    }

    /// The name, without the zeros that fill it up.
    fn name(&self) -> &[u8] {
        let end = self.name.iter().rposition(|byte| *byte != 0);
        self.name
            .get(..end.map_or(0, |last| last + 1))
            .unwrap_or_default()
    }
}

/// Checks that sections follow the headers and each other without gaps. Gives where they end.
fn end_of(sections: &[Section], headers: usize, length: usize) -> Result<usize, PeError> {
    let mut stored: Vec<&Section> = sections.iter().filter(|it| it.stored > 0).collect();
    stored.sort_by_key(|section| section.place);
    let mut end = headers;
    for section in stored {
        if section.place != end {
            return Err(layout(format!(
                "its section {} lies at byte {}, but what is before it ends at {end}",
                String::from_utf8_lossy(section.name()),
                section.place
            )));
        }
        // Both are 32-bit numbers, and usize has 64 bits.
        end = section.place + section.stored;
        if end > length {
            return Err(PeError::Short("sections' end"));
        }
    }
    Ok(end)
}

/// Where the certificate table begins, or the file ends. The table must be the last thing in the file, or it would hide what follows.
fn end_of_content(bytes: &[u8], entry: usize, sections: usize) -> Result<usize, PeError> {
    let place = size(u32_at(bytes, entry, "directories' end")?);
    let length = size(u32_at(bytes, entry + 4, "directories' end")?);
    if length == 0 && place == 0 {
        return Ok(bytes.len());
    }
    if length == 0 || place < sections || place + length != bytes.len() || !place.is_multiple_of(8)
    {
        return Err(layout(format!(
            "its certificate table, {length} bytes at {place}, is not the last thing in the file ({} bytes)",
            bytes.len()
        )));
    }
    Ok(place)
}

fn layout(what: String) -> PeError {
    PeError::Layout(what)
}

/// A 32-bit number as a size. This program is for 64-bit machines.
fn size(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn u32_at(bytes: &[u8], at: usize, what: &'static str) -> Result<u32, PeError> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    Ok(u32::from_le_bytes(*found.ok_or(PeError::Short(what))?))
}

fn u16_at(bytes: &[u8], at: usize, what: &'static str) -> Result<u16, PeError> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<2>());
    Ok(u16::from_le_bytes(*found.ok_or(PeError::Short(what))?))
}

#[cfg(test)]
mod tests;
