//! What a block device is made of: bytes at offsets, in one format or another.

mod qcow2;
mod raw;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use hypervisor_api::config::{Disk, DiskFormat};

use crate::virtio::queue::Buffers;
pub use qcow2::{HeaderError, check_header};

/// A disk image that is open. Ranges lie within [`Image::size`]; the device has checked that.
pub trait Image: Send {
    /// Size of the disk in bytes, as the guest sees it.
    fn size(&self) -> u64;

    /// Fills `buffers` from `offset` on.
    fn read(&self, buffers: &Buffers<'_>, offset: u64) -> io::Result<()>;

    /// Writes `buffers` from `offset` on.
    fn write(&self, buffers: &Buffers<'_>, offset: u64) -> io::Result<()>;

    /// Brings everything written so far to where a power cut does not reach it.
    fn flush(&self) -> io::Result<()>;

    /// The guest does not need these bytes any more. Best effort.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()>;

    /// These bytes read as zeroes from now on. `unmap`: their space may be given back.
    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()>;
}

/// A disk that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file could not be opened.
    #[error("opening the disk {path}: {source}")]
    Open {
        /// The image.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "the disk {path} is in use by another process; a disk that is written to belongs to one machine alone"
    )]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// The image is not what it was said to be.
    #[error("the disk {path} is no usable qcow2 image: {source}")]
    Header {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        source: HeaderError,
    },
}

/// Opens a disk as configured.
pub fn open(disk: &Disk) -> Result<Box<dyn Image>, ImageError> {
    let path = &disk.path;
    let fail = |source| ImageError::Open {
        path: path.clone(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(!disk.readonly)
        .open(path)
        .map_err(fail)?;
    lock_file(&file, path, disk.readonly)?;
    match disk.format {
        DiskFormat::Raw => Ok(Box::new(raw::Raw::new(file).map_err(fail)?)),
        DiskFormat::Qcow2 => {
            let wrong = |source| ImageError::Header {
                path: path.clone(),
                source,
            };
            let header = read(&file, 0, qcow2::HEADER_LENGTH).map_err(fail)?;
            check_header(&header).map_err(wrong)?;
            let counts = read(&file, qcow2::refcount_table(&header), 8).map_err(fail)?;
            qcow2::check_first_counts(&counts).map_err(wrong)?;
            let image = qcow2::Qcow2Image::new(file, disk.readonly).map_err(fail)?;
            Ok(Box::new(image))
        }
    }
}

/// Two machines that write to one disk destroy it. An advisory lock, gone with the process.
fn lock_file(file: &File, path: &Path, readonly: bool) -> Result<(), ImageError> {
    let how = if readonly {
        libc::LOCK_SH
    } else {
        libc::LOCK_EX
    };
    // SAFETY: the descriptor is open.
    if unsafe { libc::flock(file.as_raw_fd(), how | libc::LOCK_NB) } < 0 {
        let source = io::Error::last_os_error();
        let path = path.to_owned();
        return Err(match source.kind() {
            io::ErrorKind::WouldBlock => ImageError::InUse { path },
            _ => ImageError::Open { path, source },
        });
    }
    Ok(())
}

/// Reads `length` bytes from `offset` on; fewer, if the file ends before.
fn read(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; length];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..)
        && !rest.is_empty()
    {
        match file.read_at(rest, offset.saturating_add(done as u64))? {
            0 => break,
            count => done += count,
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}
