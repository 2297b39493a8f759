//! A box's disk, looked at and spoilt from outside, as with the disk in another machine.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use imaging::disk;
use imaging::gpt::{self, SectorSize, Table};
use imaging::window::Window;

/// A disk image that holds an installed box.
pub struct Disk {
    file: File,
    table: Table,
}

impl Disk {
    pub fn open(path: &Path) -> Result<Disk> {
        let mut file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        let size = file.metadata()?.len();
        let table = gpt::read(&mut file, SectorSize::B512, size)
            .with_context(|| format!("reading the partition table of {}", path.display()))?;
        Ok(Disk { file, table })
    }

    /// Names of the UKIs that the boot loader would offer, with their boot counters.
    pub fn boot_entries(&mut self) -> Result<Vec<String>> {
        let (start, len) = self.extent(disk::ESP)?;
        let window = Window::new(&mut self.file, start, len);
        let volume =
            fatfs::FileSystem::new(window, fatfs::FsOptions::new()).context("opening the ESP")?;
        let mut names = Vec::new();
        for entry in volume.root_dir().open_dir("EFI/Linux")?.iter() {
            let entry = entry.context("listing EFI/Linux of the ESP")?;
            if entry.is_file() {
                names.push(entry.file_name());
            }
        }
        Ok(names)
    }

    /// Replaces a text in the UKIs by another of the same length; gives how often.
    pub fn replace_in_boot_entries(&mut self, from: &str, to: &str) -> Result<usize> {
        ensure!(
            from.len() == to.len(),
            "{from:?} and {to:?} differ in length"
        );
        let (start, len) = self.extent(disk::ESP)?;
        let window = Window::new(&mut self.file, start, len);
        let volume =
            fatfs::FileSystem::new(window, fatfs::FsOptions::new()).context("opening the ESP")?;
        let mut count = 0;
        for entry in volume.root_dir().open_dir("EFI/Linux")?.iter() {
            let entry = entry.context("listing EFI/Linux of the ESP")?;
            if !entry.is_file() {
                continue;
            }
            let (mut file, mut bytes) = (entry.to_file(), Vec::new());
            file.read_to_end(&mut bytes).context("reading a UKI")?;
            let places: Vec<usize> = bytes
                .windows(from.len())
                .enumerate()
                .filter_map(|(at, window)| (window == from.as_bytes()).then_some(at))
                .collect();
            for at in &places {
                file.seek(SeekFrom::Start(*at as u64))?;
                file.write_all(to.as_bytes()).context("changing a UKI")?;
            }
            file.flush().context("changing a UKI")?;
            count += places.len();
        }
        Ok(count)
    }

    /// Turns one bit in each 64 KiB of the first root slot's content.
    pub fn spoil_root(&mut self) -> Result<()> {
        const STEP: u64 = 64 * 1024;
        let (start, len) = self.extent(disk::ROOT_A)?;
        let mut byte = [0];
        for at in (start..start + len.min(64 << 20)).step_by(STEP as usize) {
            self.file.seek(SeekFrom::Start(at))?;
            self.file.read_exact(&mut byte)?;
            byte[0] ^= 1;
            self.file.seek(SeekFrom::Start(at))?;
            self.file
                .write_all(&byte)
                .context("spoiling the root slot")?;
        }
        Ok(())
    }

    fn extent(&self, number: u32) -> Result<(u64, u64)> {
        self.table
            .extent(number)
            .with_context(|| format!("the disk has no partition {number}"))
    }
}
