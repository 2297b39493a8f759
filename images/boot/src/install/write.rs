//! The disk, step by step, in an order that survives a power cut at any of them.
//!
//! ```text
//! wipe old tables -> root A, config, head of B and persist, ESP -> read all back -> backup table -> primary header
//!       |                                                                            |
//!       +---- no table: firmware finds nothing here and starts the stick again ------+---- table: it boots
//! ```
//!
//! Without a partition table nothing on the disk can be found, so everything before the tables may be cut off anywhere. The
//! table's backup copy makes the disk whole; by then everything that it speaks of was synced and read back.

use std::io::{self, Write};

use imaging::content::{Content, write_volume};
use imaging::digest::{Digest, Hasher};
use imaging::disk::{self, CONFIG, ESP, PERSIST, ROOT_A, ROOT_B};
use imaging::gpt::{self, Table};

use super::progress::Meter;
use super::target::{CHUNK, Target};
use crate::Error;
use crate::console::Consoles;

/// This much of a partition is cleared so that no old file system is found in it: ext4, LUKS, LVM and RAID all say who
/// they are in their first MiB.
const HEAD: u64 = 1 << 20;

/// What goes onto the disk.
pub struct Job {
    /// The partitions.
    pub table: Table,
    /// Root slot A's content.
    pub root: Content,
    /// The ESP's files.
    pub esp: Vec<Content>,
    /// The config partition's files.
    pub config: Vec<Content>,
}

/// A run of bytes that was written.
struct Written {
    what: &'static str,
    offset: u64,
    len: u64,
    sha256: Digest,
}

/// Writes everything, reads it back, and makes the disk bootable last.
pub fn carry_out(job: &Job, target: &mut dyn Target, consoles: &mut Consoles) -> Result<(), Error> {
    let name = target.name();
    let device = || name.clone();
    wipe(target)?;
    let written = vec![
        write_root(job, target, consoles)?,
        write_fat(job, CONFIG, "config", &job.config, target, consoles)?,
        clear_head(&job.table, ROOT_B, "head of root slot B", target)?,
        clear_head(&job.table, PERSIST, "head of persist", target)?,
        write_fat(job, ESP, "ESP", &job.esp, target, consoles)?,
    ];
    target.sync().map_err(Error::system("sync", device()))?;
    read_back(&written, target, consoles)?;

    let pieces = gpt::encode(&job.table, target.size()).map_err(|source| Error::Gpt {
        device: device(),
        source,
    })?;
    for piece in &pieces {
        // Each piece is useless without those before it.
        target
            .write_at(piece.offset, &piece.bytes)
            .map_err(Error::system("write the partition table of", device()))?;
        target.sync().map_err(Error::system("sync", device()))?;
    }
    for piece in &pieces {
        let mut bytes = vec![0; piece.bytes.len()];
        target
            .read_at(piece.offset, &mut bytes)
            .map_err(Error::system("read", device()))?;
        if bytes != piece.bytes {
            return Err(Error::ReadBack {
                device: device(),
                what: "partition table".to_owned(),
                offset: piece.offset,
            });
        }
    }
    Ok(())
}

/// Clears both partition tables, the primary one first: what the disk held before boots until then and not at all after.
fn wipe(target: &mut dyn Target) -> Result<(), Error> {
    let name = target.name();
    let zeros = vec![0; HEAD as usize];
    let sector = target.sector().bytes();
    let end = (target.size() / sector * sector).saturating_sub(HEAD);
    for offset in [0, end] {
        target
            .write_at(offset, &zeros)
            .map_err(Error::system("clear the partition table of", &name))?;
        target.sync().map_err(Error::system("sync", &name))?;
    }
    Ok(())
}

fn extent(table: &Table, number: u32, device: &str) -> Result<(u64, u64), Error> {
    let missing = || gpt::GptError::Unfit(format!("there is no partition {number}"));
    table.extent(number).ok_or_else(|| Error::Gpt {
        device: device.to_owned(),
        source: missing(),
    })
}

fn write_root(
    job: &Job,
    target: &mut dyn Target,
    consoles: &mut Consoles,
) -> Result<Written, Error> {
    let name = target.name();
    let (offset, len) = extent(&job.table, ROOT_A, &name)?;
    let size = job.root.size();
    if size > len {
        return Err(imaging::Error::DiskTooSmall {
            size: len,
            needed: size,
        }
        .into());
    }
    let mut meter = Meter::start(consoles, "skerry-installer: writing root", size);
    let mut stream = Stream::new(target, offset, len);
    imaging::content::copy(&job.root, &mut stream, &name, &mut |n| meter.add(n))?;
    let (sha256, len) = stream.finish().map_err(Error::system("write", &name))?;
    meter.finish();
    Ok(Written {
        what: "root",
        offset,
        len,
        sha256,
    })
}

fn write_fat(
    job: &Job,
    number: u32,
    what: &'static str,
    contents: &[Content],
    target: &mut dyn Target,
    consoles: &mut Consoles,
) -> Result<Written, Error> {
    let name = target.name();
    let (offset, len) = extent(&job.table, number, &name)?;
    let missing = || gpt::GptError::Unfit(format!("partition {number} has no FAT volume"));
    let volume = disk::volume(&job.table, number).ok_or_else(|| Error::Gpt {
        device: name.clone(),
        source: missing(),
    })?;
    let total = contents.iter().map(Content::size).sum();
    let mut meter = Meter::start(consoles, format!("skerry-installer: writing {what}"), total);
    let mut stream = Stream::new(target, offset, len);
    write_volume(volume, contents, &mut stream, &name, &mut |n| meter.add(n))?;
    let (sha256, len) = stream.finish().map_err(Error::system("write", &name))?;
    meter.finish();
    Ok(Written {
        what,
        offset,
        len,
        sha256,
    })
}

fn clear_head(
    table: &Table,
    number: u32,
    what: &'static str,
    target: &mut dyn Target,
) -> Result<Written, Error> {
    let name = target.name();
    let (offset, len) = extent(table, number, &name)?;
    let len = len.min(HEAD);
    let mut stream = Stream::new(target, offset, len);
    let zeros = vec![0; len as usize];
    stream
        .write_all(&zeros)
        .map_err(Error::system("clear", format!("{what} on {name}")))?;
    let (sha256, len) = stream
        .finish()
        .map_err(Error::system("clear", format!("{what} on {name}")))?;
    Ok(Written {
        what,
        offset,
        len,
        sha256,
    })
}

fn read_back(
    written: &[Written],
    target: &mut dyn Target,
    consoles: &mut Consoles,
) -> Result<(), Error> {
    let name = target.name();
    let total = written.iter().map(|w| w.len).sum();
    let mut meter = Meter::start(consoles, "skerry-installer: reading back", total);
    let mut memory = vec![0; CHUNK];
    for piece in written {
        let mut hasher = Hasher::new();
        let mut done = 0;
        while done < piece.len {
            let len = usize::try_from(piece.len - done)
                .unwrap_or(CHUNK)
                .min(CHUNK);
            let Some(part) = memory.get_mut(..len) else {
                break;
            };
            target
                .read_at(piece.offset + done, part)
                .map_err(Error::system("read", &name))?;
            hasher.update(part);
            done += len as u64;
            meter.add(len as u64);
        }
        if hasher.finish() != piece.sha256 {
            return Err(Error::ReadBack {
                device: name,
                what: piece.what.to_owned(),
                offset: piece.offset,
            });
        }
    }
    meter.finish();
    Ok(())
}

/// Collects a stream of bytes into chunks for the disk, hashing what it writes.
struct Stream<'a> {
    target: &'a mut dyn Target,
    offset: u64,
    left: u64,
    written: u64,
    chunk: Vec<u8>,
    hasher: Hasher,
}

impl<'a> Stream<'a> {
    fn new(target: &'a mut dyn Target, offset: u64, len: u64) -> Self {
        Self {
            target,
            offset,
            left: len,
            written: 0,
            chunk: Vec::with_capacity(CHUNK),
            hasher: Hasher::new(),
        }
    }

    fn write_chunk(&mut self) -> io::Result<()> {
        let len = self.chunk.len() as u64;
        if len > self.left {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.target.write_at(self.offset, &self.chunk)?;
        self.hasher.update(&self.chunk);
        self.offset += len;
        self.left -= len;
        self.written += len;
        self.chunk.clear();
        Ok(())
    }

    /// Writes the rest, filled with zeros to a whole sector; digest and length of everything written.
    fn finish(mut self) -> io::Result<(Digest, u64)> {
        let sector = self.target.sector().bytes() as usize;
        self.chunk
            .resize(self.chunk.len().next_multiple_of(sector), 0);
        if !self.chunk.is_empty() {
            self.write_chunk()?;
        }
        Ok((self.hasher.finish(), self.written))
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes
            .get(..bytes.len().min(CHUNK - self.chunk.len()))
            .unwrap_or_default();
        self.chunk.extend_from_slice(piece);
        if self.chunk.len() == CHUNK {
            self.write_chunk()?;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
