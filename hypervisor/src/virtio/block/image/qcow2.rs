//! qcow2 images, by the `imago` crate.
//!
//! Before `imago` sees an image, [`check_header`] reads its header (QEMU's docs/interop/qcow2.txt) and refuses what
//! this monitor does not do, with words that say what it is: backing files (a guest must not choose which of the
//! host's files it reads), external data files, encryption, images that were not closed cleanly.

use std::fs::File;
use std::io;

use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions,
    io_buffers::{IoVector, IoVectorMut},
};

use super::Image;
use crate::virtio::queue::Buffers;

/// Bytes of the header that are looked at; version 2 headers have 72.
pub const HEADER_LENGTH: usize = 104;

const INCOMPATIBLE_DIRTY: u64 = 1;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;

/// A header that promises something the monitor does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The file is shorter than a header.
    #[error("it is only {0} bytes long")]
    Short(usize),
    /// Another kind of file.
    #[error("it does not begin with the qcow2 magic number; if it is a raw image, say format raw")]
    Magic,
    /// Neither version 2 nor 3.
    #[error("it has version {0}; versions 2 and 3 are known")]
    Version(u32),
    /// It is a layer over another image.
    #[error("it has a backing file; merge them first (qemu-img convert)")]
    Backing,
    /// Its contents are encrypted.
    #[error("it is encrypted (method {0})")]
    Encrypted(u32),
    /// Its data lies in another file.
    #[error("its data lies in an external file; merge them first (qemu-img convert)")]
    DataFile,
    /// It was marked as corrupt.
    #[error("it is marked as corrupt; repair it first (qemu-img check -r all)")]
    Corrupt,
    /// Its reference counts may be wrong.
    #[error(
        "it was not closed cleanly by a program with lazy reference counts; repair it first (qemu-img check -r all)"
    )]
    Dirty,
    /// It was compressed in another way than deflate.
    #[error(
        "its clusters are compressed by a method other than deflate; convert it first (qemu-img convert)"
    )]
    Compression,
    /// It needs something newer.
    #[error("it needs features that are not known (incompatible feature bits {0:#x})")]
    Features(u64),
    /// It does not count its own first clusters.
    #[error(
        "it has no reference counts for its own header; repair it first (qemu-img check -r all)"
    )]
    Uncounted,
    /// The cluster size is out of bounds.
    #[error("its cluster size of 2^{0} bytes is not between 2^9 and 2^21")]
    Clusters(u32),
}

/// Looks at the first bytes of an image: whether it is qcow2, of a kind that can be used.
pub fn check_header(bytes: &[u8]) -> Result<(), HeaderError> {
    let short = HeaderError::Short(bytes.len());
    let u32_at = |at: usize| {
        bytes
            .get(at..at + 4)
            .and_then(|part| part.try_into().ok())
            .map(u32::from_be_bytes)
            .ok_or(short)
    };
    let u64_at = |at: usize| {
        Ok::<u64, HeaderError>(u64::from(u32_at(at)?) << 32 | u64::from(u32_at(at + 4)?))
    };

    if bytes.get(..4) != Some(b"QFI\xfb") {
        return Err(if bytes.len() < 4 {
            short
        } else {
            HeaderError::Magic
        });
    }
    let version = u32_at(4)?;
    if !(2..=3).contains(&version) {
        return Err(HeaderError::Version(version));
    }
    if u64_at(8)? != 0 {
        return Err(HeaderError::Backing);
    }
    let cluster_bits = u32_at(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(HeaderError::Clusters(cluster_bits));
    }
    match u32_at(32)? {
        0 => {}
        method => return Err(HeaderError::Encrypted(method)),
    }
    // The last field of a version 2 header.
    u64_at(64)?;
    if version == 2 {
        return Ok(());
    }
    let features = u64_at(72)?;
    for (bit, error) in [
        (INCOMPATIBLE_CORRUPT, HeaderError::Corrupt),
        (INCOMPATIBLE_DIRTY, HeaderError::Dirty),
        (INCOMPATIBLE_DATA_FILE, HeaderError::DataFile),
        (INCOMPATIBLE_COMPRESSION, HeaderError::Compression),
    ] {
        if features & bit != 0 {
            return Err(error);
        }
    }
    if features != 0 {
        return Err(HeaderError::Features(features));
    }
    Ok(())
}

/// Where the reference count table begins, in the header of an image that has passed [`check_header`].
pub fn refcount_table(header: &[u8]) -> u64 {
    header
        .get(48..56)
        .and_then(|field| field.try_into().ok())
        .map_or(0, u64::from_be_bytes)
}

/// Looks at the first entry of the reference count table, as much of it as the file has. It leads to the counts of the
/// header's own cluster, so every sound image has one; `imago` would seek room for a missing one until its stack is full.
pub fn check_first_counts(entry: &[u8]) -> Result<(), HeaderError> {
    // The lowest nine bits are reserved.
    match <[u8; 8]>::try_from(entry).map(u64::from_be_bytes) {
        Ok(entry) if entry >> 9 != 0 => Ok(()),
        _ => Err(HeaderError::Uncounted),
    }
}

/// A qcow2 image whose header has passed [`check_header`], and whose reference counts [`check_first_counts`].
pub struct Qcow2Image {
    access: FormatAccess<ImagoFile>,
    readonly: bool,
}

impl Qcow2Image {
    /// Takes the open file.
    pub fn new(file: File, readonly: bool) -> io::Result<Self> {
        let options = StorageOpenOptions::new().write(!readonly);
        let storage = ImagoFile::from_open_file(file, options)?;
        let image = Qcow2::<ImagoFile>::builder(storage)
            .write(!readonly)
            .open(DenyImplicitOpenGate::default())?;
        Ok(Qcow2Image {
            access: FormatAccess::new(image),
            readonly,
        })
    }
}

impl Image for Qcow2Image {
    fn size(&self) -> u64 {
        self.access.size()
    }

    fn read(&self, buffers: &Buffers<'_>, offset: u64) -> io::Result<()> {
        let (vector, _guard) = IoVectorMut::from_volatile_slice(buffers.slices());
        self.access.readv(vector, offset)
    }

    fn write(&self, buffers: &Buffers<'_>, offset: u64) -> io::Result<()> {
        let (vector, _guard) = IoVector::from_volatile_slice(buffers.slices());
        self.access.writev(vector, offset)
    }

    fn flush(&self) -> io::Result<()> {
        if self.readonly {
            return Ok(());
        }
        // First what is cached of the tables, then all of the file.
        self.access.flush()?;
        self.access.sync()
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.access.discard_to_any(offset, length)
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        if unmap {
            self.access.discard_to_zero(offset, length)
        } else {
            self.access.write_zeroes(offset, length)
        }
    }
}

impl Drop for Qcow2Image {
    fn drop(&mut self) {
        // The device has flushed at its end; this is for a device that never lived.
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: u32) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LENGTH];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[4..8].copy_from_slice(&version.to_be_bytes());
        bytes[20..24].copy_from_slice(&16_u32.to_be_bytes());
        bytes
    }

    #[test]
    fn plain_images_of_both_versions_pass() {
        assert_eq!(check_header(&header(2)), Ok(()));
        assert_eq!(check_header(&header(3)), Ok(()));
        assert_eq!(check_header(&header(2)[..72]), Ok(()));
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        let with = |at: usize, bytes: &[u8]| {
            let mut header = header(3);
            header[at..at + bytes.len()].copy_from_slice(bytes);
            check_header(&header).unwrap_err()
        };
        assert_eq!(with(0, b"\x7fELF"), HeaderError::Magic);
        assert_eq!(with(4, &[0, 0, 0, 4]), HeaderError::Version(4));
        assert_eq!(with(15, &[1]), HeaderError::Backing);
        assert_eq!(with(20, &[0, 0, 0, 40]), HeaderError::Clusters(40));
        assert_eq!(with(35, &[2]), HeaderError::Encrypted(2));
        assert_eq!(with(79, &[1]), HeaderError::Dirty);
        assert_eq!(with(79, &[2]), HeaderError::Corrupt);
        assert_eq!(with(79, &[4]), HeaderError::DataFile);
        assert_eq!(with(79, &[8]), HeaderError::Compression);
        assert_eq!(with(72, &[1]), HeaderError::Features(1 << 56));
    }

    #[test]
    fn an_image_must_count_its_own_header() {
        let mut header = header(3);
        header[48..56].copy_from_slice(&0x1_0000_u64.to_be_bytes());
        assert_eq!(refcount_table(&header), 0x1_0000);
        assert_eq!(check_first_counts(&0x2_0000_u64.to_be_bytes()), Ok(()));
        for entry in [&[][..], &[0; 7], &[0; 8], &[0, 0, 0, 0, 0, 0, 1, 0xff]] {
            assert_eq!(check_first_counts(entry), Err(HeaderError::Uncounted));
        }
    }

    #[test]
    fn a_header_cut_anywhere_is_an_error_not_a_crash() {
        let whole = header(3);
        for length in 0..80 {
            let error = check_header(&whole[..length]).unwrap_err();
            assert_eq!(error, HeaderError::Short(length), "{length} bytes");
        }
    }
}
