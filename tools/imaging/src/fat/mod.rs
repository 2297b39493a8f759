//! FAT volumes laid down in one pass.
//!
//! Everything that goes into a volume is known before the first byte is written, so nothing has to be allocated: [`plan`]
//! gives every directory and file its run of clusters, and [`Plan::write`] emits the volume from its first byte to the end
//! of the last file, in order. That needs no more than `Write`, is as fast as the device, and makes the same bytes each
//! time (timestamps are FAT's first day). Other systems change the volume later as they like.
//!
//! ```text
//! FAT32: boot sector, FSInfo, copies | FAT | FAT | root directory, directories, files ... (free)
//! FAT16: boot sector                 | FAT | FAT | root directory (fixed) | directories, files ... (free)
//! ```

mod encode;
mod name;
mod probe;

use std::io::{self, Write};

use crate::gpt::SectorSize;
use encode::Geometry;

pub use probe::label;

/// Longest file, in bytes: sizes have 32 bits (Microsoft, FAT32 File System Specification 1.03, `DIR_FileSize`).
pub const MAX_FILE: u64 = u32::MAX as u64;

/// Width of a FAT entry. The number of clusters decides which one a volume has, so each kind has its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 4085 to 65524 clusters: small volumes.
    Fat16,
    /// From 65525 clusters: what UEFI expects of a system partition.
    Fat32,
}

/// What the volume is like.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Size in bytes; whole sectors.
    pub size: u64,
    /// Sector size of the device below.
    pub sector: SectorSize,
    /// FAT16 or FAT32.
    pub kind: Kind,
    /// Label: 1 to 11 of `A-Z 0-9 - _`.
    pub label: &'static str,
    /// Serial number.
    pub serial: u32,
    /// Sectors of the device before this volume.
    pub hidden_sectors: u64,
}

/// A volume cannot be made like this.
#[derive(Debug, thiserror::Error)]
pub enum FatError {
    /// The size does not go with the kind.
    #[error("a {kind:?} volume cannot have {size} bytes in sectors of {sector}")]
    Size {
        /// Kind asked for.
        kind: Kind,
        /// Size asked for, bytes.
        size: u64,
        /// Sector size, bytes.
        sector: u64,
    },
    /// The label is not one.
    #[error("'{0}' is not a volume label: 1 to 11 of A-Z 0-9 - _")]
    Label(String),
    /// A path cannot be a file's.
    #[error("'{0}' cannot be a file on a FAT volume")]
    Path(String),
    /// Two files, or a file and a directory, with one name.
    #[error("'{0}' is there twice")]
    Twice(String),
    /// FAT's own limit.
    #[error("'{path}' has {size} bytes; FAT takes less than 4 GiB")]
    TooLong {
        /// The file.
        path: String,
        /// Its size, bytes.
        size: u64,
    },
    /// The files do not fit.
    #[error("the files need {needed} bytes and the volume has room for {room}")]
    Full {
        /// Bytes in whole clusters.
        needed: u64,
        /// Bytes in whole clusters.
        room: u64,
    },
}

/// What stands in a directory.
#[derive(Clone, Debug)]
enum Target {
    /// Index into [`Plan::directories`].
    Directory(usize),
    /// Index into [`Plan::files`].
    File(usize),
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    short: name::Short,
    long: bool,
    target: Target,
}

impl Entry {
    fn slots(&self) -> usize {
        1 + if self.long {
            name::long_entries(&self.name, &self.short).len()
        } else {
            0
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Directory {
    parent: usize,
    entries: Vec<Entry>,
    run: Run,
}

/// A run of clusters: `count` of them from `first`. Empty files have none and `first` 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Run {
    first: u32,
    count: u32,
}

#[derive(Clone, Debug)]
struct PlannedFile {
    size: u64,
    run: Run,
}

/// A volume, planned to the last cluster.
#[derive(Clone, Debug)]
pub struct Plan {
    volume: Volume,
    geometry: Geometry,
    directories: Vec<Directory>,
    files: Vec<PlannedFile>,
    used_clusters: u32,
}

/// Plans a volume with `files`: paths with `/` between the components, and sizes in bytes.
pub fn plan(volume: Volume, files: &[(&str, u64)]) -> Result<Plan, FatError> {
    let fits = |c: u8| c.is_ascii_uppercase() || c.is_ascii_digit() || b"-_".contains(&c);
    if !(1..=11).contains(&volume.label.len()) || !volume.label.bytes().all(fits) {
        return Err(FatError::Label(volume.label.to_owned()));
    }
    let geometry = Geometry::new(&volume)?;
    let mut plan = Plan {
        volume,
        geometry,
        directories: vec![Directory::default()],
        files: Vec::new(),
        used_clusters: 0,
    };
    for (path, size) in files {
        plan.add(path, *size)?;
    }
    plan.allocate()?;
    Ok(plan)
}

/// Size in bytes, a whole number of MiB, of a FAT32 volume in sectors of 512 bytes that takes `files` and has at least
/// `spare` bytes left.
pub fn size_for(files: &[(&str, u64)], spare: u64) -> u64 {
    const CLUSTER: u64 = 4096;
    const MIB: u64 = 1 << 20;
    // Each path may need its own directories, of one cluster each at most here; two FATs take 8 bytes a cluster of 512.
    let content: u64 = files
        .iter()
        .map(|(path, size)| {
            size.next_multiple_of(CLUSTER)
                .saturating_add(CLUSTER * (1 + path.split('/').count() as u64))
        })
        .fold(spare, u64::saturating_add);
    let with_tables = content.saturating_add(content / 64).saturating_add(MIB);
    // Below 36 MiB there are not enough clusters of 512 bytes to be FAT32.
    with_tables.max(36 * MIB).next_multiple_of(MIB)
}

impl Plan {
    /// Bytes that [`Plan::write`] writes; what lies behind them in the volume is free.
    pub fn written_len(&self) -> u64 {
        self.geometry.data_offset() + u64::from(self.used_clusters) * self.geometry.cluster()
    }

    /// Writes the volume from its first byte on. `content` writes the file of the given index in the list that was
    /// planned; it must write as many bytes as were planned.
    pub fn write<E: From<io::Error>>(
        &self,
        out: &mut dyn Write,
        content: &mut dyn FnMut(usize, &mut dyn Write) -> Result<(), E>,
    ) -> Result<(), E> {
        self.write_tables(out)?;
        for directory in &self.directories {
            if directory.run.count > 0 {
                let mut bytes = self.directory_bytes(directory);
                bytes.resize(
                    (u64::from(directory.run.count) * self.geometry.cluster()) as usize,
                    0,
                );
                out.write_all(&bytes)?;
            }
        }
        for (index, file) in self.files.iter().enumerate() {
            let mut counted = Counted {
                out,
                left: file.size,
            };
            content(index, &mut counted)?;
            if counted.left != 0 {
                let error = format!("a file is {} bytes shorter than it was", counted.left);
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, error).into());
            }
            let padding = u64::from(file.run.count) * self.geometry.cluster() - file.size;
            out.write_all(&vec![0; padding as usize])?;
        }
        Ok(())
    }

    fn add(&mut self, path: &str, size: u64) -> Result<(), FatError> {
        if size > MAX_FILE {
            return Err(FatError::TooLong {
                path: path.to_owned(),
                size,
            });
        }
        let mut at = 0;
        let mut components = path.split('/').peekable();
        while let Some(component) = components.next() {
            if !name::is_valid(component) {
                return Err(FatError::Path(path.to_owned()));
            }
            let is_file = components.peek().is_none();
            let known = self
                .directory(at)
                .entries
                .iter()
                .find(|e| e.name.eq_ignore_ascii_case(component));
            match known.map(|e| e.target.clone()) {
                Some(Target::Directory(next)) if !is_file => at = next,
                Some(_) => return Err(FatError::Twice(path.to_owned())),
                None => {
                    let target = if is_file {
                        self.files.push(PlannedFile {
                            size,
                            run: Run::default(),
                        });
                        Target::File(self.files.len() - 1)
                    } else {
                        self.directories.push(Directory {
                            parent: at,
                            ..Directory::default()
                        });
                        Target::Directory(self.directories.len() - 1)
                    };
                    let next = if let Target::Directory(next) = target {
                        next
                    } else {
                        at
                    };
                    let taken: Vec<_> =
                        self.directory(at).entries.iter().map(|e| e.short).collect();
                    let exact = name::exact_short(component).filter(|s| !taken.contains(s));
                    let short = match exact {
                        Some(short) => short,
                        None => name::made_short(component, &taken)
                            .ok_or_else(|| FatError::Path(path.to_owned()))?,
                    };
                    let entry = Entry {
                        name: component.to_owned(),
                        short,
                        long: exact.is_none(),
                        target,
                    };
                    if let Some(directory) = self.directories.get_mut(at) {
                        directory.entries.push(entry);
                    }
                    at = next;
                }
            }
        }
        Ok(())
    }

    fn directory(&self, index: usize) -> &Directory {
        // Indices come from `add` alone and nothing is ever removed; the root is always there.
        const EMPTY: &Directory = &Directory {
            parent: 0,
            entries: Vec::new(),
            run: Run { first: 0, count: 0 },
        };
        self.directories.get(index).unwrap_or(EMPTY)
    }

    fn allocate(&mut self) -> Result<(), FatError> {
        let cluster = self.geometry.cluster();
        let mut next = 2u64;
        let mut take = |bytes: u64| {
            let count = bytes.div_ceil(cluster);
            let first = if count == 0 { 0 } else { next };
            next += count;
            // Cut here only when the volume is full, which is an error below.
            Run {
                first: first as u32,
                count: count as u32,
            }
        };
        let fixed_root = self.volume.kind == Kind::Fat16;
        for (index, directory) in self.directories.iter_mut().enumerate() {
            // The label, or "." and ".."; then every name; at least one cluster.
            let extra = if index == 0 { 1 } else { 2 };
            let slots = extra + directory.entries.iter().map(Entry::slots).sum::<usize>();
            let bytes = (slots * name::ENTRY_LEN) as u64;
            if index == 0 && fixed_root {
                if bytes > self.geometry.root_bytes() {
                    return Err(FatError::Full {
                        needed: bytes,
                        room: self.geometry.root_bytes(),
                    });
                }
            } else {
                directory.run = take(bytes);
            }
        }
        for file in &mut self.files {
            file.run = take(file.size);
        }
        let used = next - 2;
        let room = u64::from(self.geometry.clusters());
        if used > room {
            return Err(FatError::Full {
                needed: used * cluster,
                room: room * cluster,
            });
        }
        self.used_clusters = used as u32;
        Ok(())
    }
}

struct Counted<'a> {
    out: &'a mut dyn Write,
    left: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a file is longer than it was",
            ));
        }
        let n = self.out.write(bytes)?;
        self.left -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests;
