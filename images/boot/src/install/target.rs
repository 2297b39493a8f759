//! The disk that is written: past the page cache, so that "written" means the device has it and "read back" means the
//! device gave it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use imaging::gpt::SectorSize;
use nix::libc;

/// A disk, seen by the installer. Offsets and lengths are multiples of the sector size.
pub trait Target {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Sector size.
    fn sector(&self) -> SectorSize;
    /// Writes; what was written may still be lost until [`Target::sync`].
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Returns when everything written is on the medium.
    fn sync(&mut self) -> io::Result<()>;
    /// Reads from the medium, not from a cache of the system.
    fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Name for messages.
    fn name(&self) -> String;
}

/// Bytes moved at once.
pub const CHUNK: usize = 1 << 20;

/// O_DIRECT wants memory aligned to the sector; 4096 suits every device.
const MEMORY_ALIGNMENT: usize = 4096;

/// A block device opened for itself alone.
pub struct BlockTarget {
    file: File,
    path: PathBuf,
    size: u64,
    sector: SectorSize,
    memory: Vec<u8>,
}

impl BlockTarget {
    /// Opens `path`. Fails with "busy" if anything on the disk is in use.
    pub fn open(path: &Path, size: u64, sector: SectorSize) -> io::Result<Self> {
        let flags = libc::O_DIRECT | libc::O_EXCL;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            size,
            sector,
            memory: vec![0; CHUNK + MEMORY_ALIGNMENT],
        })
    }
}

/// The aligned part of `memory`, `len` bytes long.
fn aligned(memory: &mut [u8], len: usize) -> io::Result<&mut [u8]> {
    let start = memory.as_ptr().align_offset(MEMORY_ALIGNMENT);
    memory
        .get_mut(start..)
        .and_then(|m| m.get_mut(..len))
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

impl Target for BlockTarget {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector(&self) -> SectorSize {
        self.sector
    }

    fn write_at(&mut self, mut offset: u64, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(CHUNK) {
            let memory = aligned(&mut self.memory, chunk.len())?;
            memory.copy_from_slice(chunk);
            self.file.write_all_at(memory, offset)?;
            offset += chunk.len() as u64;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn read_at(&mut self, mut offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        for chunk in bytes.chunks_mut(CHUNK) {
            let memory = aligned(&mut self.memory, chunk.len())?;
            self.file.read_exact_at(memory, offset)?;
            chunk.copy_from_slice(memory);
            offset += chunk.len() as u64;
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}
