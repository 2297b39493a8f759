//! The bytes of a FAT volume: boot sector, tables, directories (Microsoft, "FAT: General Overview of On-Disk Format").

use std::io::{self, Write};

use super::{Directory, FatError, Kind, Plan, Run, Target, Volume, name};

/// 1 January 1980, FAT's first day, as a date field; the time beside it is 0.
const DATE: u16 = (1 << 5) | 1;

const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_DIRECTORY: u8 = 0x10;
const ATTRIBUTE_ARCHIVE: u8 = 0x20;

/// Where everything lies, in sectors and clusters.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    sector: u32,
    sectors: u32,
    sectors_a_cluster: u32,
    reserved: u32,
    fat_sectors: u32,
    root_sectors: u32,
    clusters: u32,
}

impl Geometry {
    /// Chooses the cluster size: the largest up to 4 KiB that leaves enough clusters for the kind.
    pub fn new(volume: &Volume) -> Result<Self, FatError> {
        let sector = volume.sector.bytes() as u32;
        let refused = || FatError::Size {
            kind: volume.kind,
            size: volume.size,
            sector: u64::from(sector),
        };
        if !volume.size.is_multiple_of(u64::from(sector)) {
            return Err(refused());
        }
        let sectors = u32::try_from(volume.size / u64::from(sector)).map_err(|_| refused())?;
        // A volume whose number of clusters is near a bound is read differently by different systems, which the
        // specification warns of: FAT32 keeps 16 away; FAT16 begins with smaller clusters.
        let (reserved, entry_len, root_sectors, cluster, bounds) = match volume.kind {
            Kind::Fat16 => (
                1,
                2u64,
                if sector == 512 { 32 } else { 1 },
                2048,
                4085..=65524 - 16,
            ),
            Kind::Fat32 => (32, 4u64, 0, 4096, 65525 + 16..=0x0fff_fff4 - 16),
        };
        let mut sectors_a_cluster = (cluster / sector).max(1);
        loop {
            let most = u64::from(sectors / sectors_a_cluster) + 2;
            let fat_sectors = u32::try_from((most * entry_len).div_ceil(u64::from(sector)))
                .map_err(|_| refused())?;
            let data = sectors
                .checked_sub(reserved + root_sectors)
                .and_then(|n| n.checked_sub(2 * fat_sectors));
            let clusters = data.ok_or_else(refused)? / sectors_a_cluster;
            if bounds.contains(&clusters) {
                return Ok(Self {
                    sector,
                    sectors,
                    sectors_a_cluster,
                    reserved,
                    fat_sectors,
                    root_sectors,
                    clusters,
                });
            }
            if clusters > *bounds.end() || sectors_a_cluster == 1 {
                return Err(refused());
            }
            sectors_a_cluster /= 2;
        }
    }

    /// Cluster size, bytes.
    pub fn cluster(&self) -> u64 {
        u64::from(self.sector) * u64::from(self.sectors_a_cluster)
    }

    /// Number of clusters.
    pub fn clusters(&self) -> u32 {
        self.clusters
    }

    /// Room of FAT16's fixed root directory, bytes.
    pub fn root_bytes(&self) -> u64 {
        u64::from(self.root_sectors) * u64::from(self.sector)
    }

    /// Where the first cluster begins, bytes.
    pub fn data_offset(&self) -> u64 {
        (u64::from(self.reserved) + 2 * u64::from(self.fat_sectors)) * u64::from(self.sector)
            + self.root_bytes()
    }
}

impl Plan {
    /// Writes everything before the first cluster.
    pub(super) fn write_tables(&self, out: &mut dyn Write) -> io::Result<()> {
        let g = &self.geometry;
        let sector = g.sector as usize;
        let mut reserved = vec![0u8; g.reserved as usize * sector];
        let boot = self.boot_sector();
        put(&mut reserved, 0, &boot);
        if self.volume.kind == Kind::Fat32 {
            let info = self.info_sector();
            put(&mut reserved, sector, &info);
            // The copies are where the boot sector's field 50 says, with FSInfo behind.
            put(&mut reserved, 6 * sector, &boot);
            put(&mut reserved, 7 * sector, &info);
        }
        out.write_all(&reserved)?;
        let table = self.allocation_table();
        out.write_all(&table)?;
        out.write_all(&table)?;
        if self.volume.kind == Kind::Fat16 {
            let mut root = self.directory_bytes(self.directory(0));
            root.resize(g.root_bytes() as usize, 0);
            out.write_all(&root)?;
        }
        Ok(())
    }

    fn boot_sector(&self) -> Vec<u8> {
        let g = &self.geometry;
        let fat32 = self.volume.kind == Kind::Fat32;
        let mut b = Vec::with_capacity(512);
        b.extend(if fat32 {
            [0xeb, 0x58, 0x90]
        } else {
            [0xeb, 0x3c, 0x90]
        });
        b.extend(b"SKERRY  ");
        b.extend((g.sector as u16).to_le_bytes());
        b.push(g.sectors_a_cluster as u8);
        b.extend((g.reserved as u16).to_le_bytes());
        b.push(2);
        let root_entries = g.root_bytes() as usize / name::ENTRY_LEN;
        b.extend((root_entries as u16).to_le_bytes());
        // The 16-bit count of sectors is only for FAT16, and only where it suffices.
        let small = u16::try_from(g.sectors).ok().filter(|_| !fat32);
        b.extend(small.unwrap_or(0).to_le_bytes());
        b.push(0xf8);
        b.extend(if fat32 { 0 } else { g.fat_sectors as u16 }.to_le_bytes());
        // Sectors a track and heads: nothing reads them, mkfs.fat writes these too.
        b.extend(63u16.to_le_bytes());
        b.extend(255u16.to_le_bytes());
        b.extend(
            u32::try_from(self.volume.hidden_sectors)
                .unwrap_or(0)
                .to_le_bytes(),
        );
        b.extend(if small.is_some() { 0 } else { g.sectors }.to_le_bytes());
        if fat32 {
            b.extend(g.fat_sectors.to_le_bytes());
            // Flags: both FATs alike; version 0.0; root directory at cluster 2; FSInfo in sector 1; copy in sector 6.
            b.extend([0, 0, 0, 0]);
            b.extend(2u32.to_le_bytes());
            b.extend(1u16.to_le_bytes());
            b.extend(6u16.to_le_bytes());
            b.extend([0; 12]);
        }
        b.extend([0x80, 0, 0x29]);
        b.extend(self.volume.serial.to_le_bytes());
        b.extend(self.label());
        b.extend(if fat32 { b"FAT32   " } else { b"FAT16   " });
        b.resize(510, 0);
        b.extend([0x55, 0xaa]);
        b
    }

    fn info_sector(&self) -> Vec<u8> {
        let mut b = b"RRaA".to_vec();
        b.resize(484, 0);
        b.extend(b"rrAa");
        b.extend((self.geometry.clusters - self.used_clusters).to_le_bytes());
        b.extend((2 + self.used_clusters).to_le_bytes());
        b.resize(508, 0);
        b.extend([0, 0, 0x55, 0xaa]);
        b
    }

    fn allocation_table(&self) -> Vec<u8> {
        let fat32 = self.volume.kind == Kind::Fat32;
        let end = if fat32 { 0x0fff_ffff } else { 0xffff };
        let mut entries: Vec<u32> = vec![end & !7, end];
        // Runs were given out in this order without gaps, so that the table is written straight through.
        let runs = self
            .directories
            .iter()
            .map(|d| d.run)
            .chain(self.files.iter().map(|f| f.run));
        for run in runs.filter(|run| run.count > 0) {
            let last = run.first + run.count - 1;
            entries.extend((run.first..last).map(|cluster| cluster + 1));
            entries.push(end);
        }
        let mut bytes: Vec<u8> = if fat32 {
            entries.into_iter().flat_map(u32::to_le_bytes).collect()
        } else {
            entries
                .into_iter()
                .flat_map(|n| (n as u16).to_le_bytes())
                .collect()
        };
        bytes.resize(
            self.geometry.fat_sectors as usize * self.geometry.sector as usize,
            0,
        );
        bytes
    }

    pub(super) fn directory_bytes(&self, directory: &Directory) -> Vec<u8> {
        let is_root = std::ptr::eq(directory, self.directory(0));
        let mut bytes = Vec::new();
        if is_root {
            bytes.extend(short_entry(
                &self.label(),
                ATTRIBUTE_LABEL,
                Run::default(),
                0,
            ));
        } else {
            // The root directory is called cluster 0 here, whatever cluster it has.
            let parent = if directory.parent == 0 {
                Run::default()
            } else {
                self.directory(directory.parent).run
            };
            bytes.extend(short_entry(
                b".          ",
                ATTRIBUTE_DIRECTORY,
                directory.run,
                0,
            ));
            bytes.extend(short_entry(b"..         ", ATTRIBUTE_DIRECTORY, parent, 0));
        }
        for entry in &directory.entries {
            if entry.long {
                bytes.extend(
                    name::long_entries(&entry.name, &entry.short)
                        .into_iter()
                        .flatten(),
                );
            }
            bytes.extend(match entry.target {
                Target::Directory(index) => short_entry(
                    &entry.short,
                    ATTRIBUTE_DIRECTORY,
                    self.directory(index).run,
                    0,
                ),
                Target::File(index) => {
                    let (run, size) = self
                        .files
                        .get(index)
                        .map_or((Run::default(), 0), |f| (f.run, f.size));
                    short_entry(&entry.short, ATTRIBUTE_ARCHIVE, run, size as u32)
                }
            });
        }
        bytes
    }

    fn label(&self) -> name::Short {
        let mut label = [b' '; 11];
        put(&mut label, 0, self.volume.label.as_bytes());
        label
    }
}

fn short_entry(short: &name::Short, attribute: u8, run: Run, size: u32) -> Vec<u8> {
    let mut b = short.to_vec();
    b.extend([attribute, 0, 0]);
    // Created: time, date; read: date.
    b.extend([0, 0]);
    b.extend(DATE.to_le_bytes());
    b.extend(DATE.to_le_bytes());
    b.extend(((run.first >> 16) as u16).to_le_bytes());
    // Written: time, date.
    b.extend([0, 0]);
    b.extend(DATE.to_le_bytes());
    b.extend((run.first as u16).to_le_bytes());
    b.extend(size.to_le_bytes());
    b
}

fn put(to: &mut [u8], at: usize, from: &[u8]) {
    for (to, from) in to.iter_mut().skip(at).zip(from) {
        *to = *from;
    }
}
