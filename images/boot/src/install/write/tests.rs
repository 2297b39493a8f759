use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use imaging::digest::Digest;
use imaging::gpt::SectorSize;
use imaging::parts::RootHash;
use uuid::Uuid;

use super::*;
use crate::console::Consoles;

const SIZE: u64 = 8 << 30;

/// A disk in a sparse file that remembers what was done to it.
struct FakeDisk {
    file: File,
    log: Vec<Step>,
    /// Writes that cover this byte go wrong by one bit.
    weak_spot: Option<u64>,
}

enum Step {
    Write(u64, Vec<u8>),
    Sync,
}

impl FakeDisk {
    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        Self {
            file,
            log: Vec::new(),
            weak_spot: None,
        }
    }
}

impl Target for FakeDisk {
    fn size(&self) -> u64 {
        SIZE
    }

    fn sector(&self) -> SectorSize {
        SectorSize::B512
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(
            offset.is_multiple_of(512) && bytes.len().is_multiple_of(512),
            "{offset} {}",
            bytes.len()
        );
        let mut bytes = bytes.to_vec();
        if let Some(at) = self.weak_spot.and_then(|w| w.checked_sub(offset))
            && let Some(byte) = bytes.get_mut(at as usize)
        {
            *byte ^= 4;
        }
        self.file.write_all_at(&bytes, offset)?;
        self.log.push(Step::Write(offset, bytes));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.log.push(Step::Sync);
        Ok(())
    }

    fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    fn name(&self) -> String {
        "/dev/fake".to_owned()
    }
}

fn job(seed: u8) -> Job {
    let root_hash = RootHash::new(Digest::of(&[seed]));
    let mut n = u128::from(seed) << 64;
    let table = disk::plan(SIZE, SectorSize::B512, root_hash, &mut || {
        n += 1;
        Uuid::from_u128(n)
    })
    .unwrap();
    Job {
        table,
        root: Content::bytes("root.img", vec![seed; 3 * 4096 + (1 << 20)]),
        esp: vec![Content::bytes("EFI/BOOT/BOOTX64.EFI", vec![seed; 200_000])],
        config: vec![Content::bytes("server", vec![seed; 20])],
    }
}

/// The parts of the disk that a system which boots needs: offset and digest.
fn vital(job: &Job, disk: &mut (impl Read + Seek)) -> Vec<Digest> {
    let whole = |number| job.table.extent(number).unwrap();
    let (root, _) = whole(ROOT_A);
    let (esp, _) = whole(ESP);
    let (config, _) = whole(CONFIG);
    [(root, job.root.size()), (esp, 2 << 20), (config, 1 << 20)]
        .into_iter()
        .map(|(offset, len)| {
            let mut bytes = vec![0; len as usize];
            disk.seek(SeekFrom::Start(offset)).unwrap();
            disk.read_exact(&mut bytes).unwrap();
            Digest::of(&bytes)
        })
        .collect()
}

/// A disk as it is after a power cut: what was synced, and some of what was not.
struct AfterCut<'a> {
    synced: &'a File,
    survivors: Vec<(u64, &'a [u8])>,
    position: u64,
}

impl Read for AfterCut<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.synced.read_at(buffer, self.position)?;
        for (offset, bytes) in &self.survivors {
            for (i, byte) in buffer[..n].iter_mut().enumerate() {
                let at = self.position + i as u64;
                if at >= *offset && at - offset < bytes.len() as u64 {
                    *byte = bytes[(at - offset) as usize];
                }
            }
        }
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for AfterCut<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let SeekFrom::Start(position) = to else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        self.position = position;
        Ok(position)
    }
}

#[test]
fn a_power_cut_at_any_step_leaves_the_old_system_the_new_one_or_none() {
    let mut consoles = Consoles::none();
    let (old, new) = (job(1), job(2));
    let mut disk = FakeDisk::new();
    carry_out(&old, &mut disk, &mut consoles).unwrap();
    let old_vital = vital(&old, &mut disk.file);
    // The disk before the new installation, onto which its steps are replayed.
    let mut synced = tempfile::tempfile().unwrap();
    synced.set_len(SIZE).unwrap();
    for step in disk.log.drain(..) {
        if let Step::Write(offset, bytes) = step {
            synced.write_all_at(&bytes, offset).unwrap();
        }
    }
    carry_out(&new, &mut disk, &mut consoles).unwrap();
    let new_vital = vital(&new, &mut disk.file);

    let (mut olds, mut nones, mut news) = (0, 0, 0);
    let mut pending: Vec<(u64, Vec<u8>)> = Vec::new();
    for step in disk.log {
        match step {
            Step::Write(offset, bytes) => pending.push((offset, bytes)),
            Step::Sync => {
                for (offset, bytes) in pending.drain(..) {
                    synced.write_all_at(&bytes, offset).unwrap();
                }
            }
        }
        let all: Vec<(u64, &[u8])> = pending.iter().map(|(o, b)| (*o, b.as_slice())).collect();
        let last = all.last().copied().into_iter().collect();
        for survivors in [vec![], all, last] {
            let mut seen = AfterCut {
                synced: &synced,
                survivors,
                position: 0,
            };
            match gpt::read(&mut seen, SectorSize::B512, SIZE) {
                Err(gpt::GptError::None { .. }) => nones += 1,
                Ok(table) if table == old.table => {
                    assert!(
                        vital(&old, &mut seen) == old_vital,
                        "the old system is listed but damaged"
                    );
                    olds += 1;
                }
                Ok(table) if table == new.table => {
                    assert!(
                        vital(&new, &mut seen) == new_vital,
                        "the new system is listed but not whole"
                    );
                    news += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(olds > 0 && nones > 10 && news > 3, "{olds} {nones} {news}");
    assert!(vital(&new, &mut synced) == new_vital);
}

#[test]
fn a_disk_that_stores_wrongly_is_found_out_before_it_can_boot() {
    let job = job(3);
    for (number, what) in [
        (ROOT_A, "root"),
        (CONFIG, "config"),
        (PERSIST, "head of persist"),
        (ESP, "ESP"),
    ] {
        let mut disk = FakeDisk::new();
        let (offset, _) = job.table.extent(number).unwrap();
        disk.weak_spot = Some(offset + 700);
        let error = carry_out(&job, &mut disk, &mut Consoles::none()).unwrap_err();
        let words = error.to_string();
        assert!(
            words.contains("/dev/fake") && words.contains(what),
            "{words}"
        );
        assert!(error.advice().contains("another one"));
        assert!(gpt::read(&mut disk.file, SectorSize::B512, SIZE).is_err());
    }
    let mut disk = FakeDisk::new();
    disk.weak_spot = Some(512 + 40);
    let error = carry_out(&job, &mut disk, &mut Consoles::none())
        .unwrap_err()
        .to_string();
    assert!(error.contains("partition table"), "{error}");
}

#[test]
fn an_image_that_is_too_big_for_its_slot_is_refused() {
    let mut job = job(4);
    let digest = imaging::parts::FileDigest {
        size: disk::ROOT_SLOT + 1,
        sha256: Digest::of(b""),
    };
    job.root = Content::file("root.img", "/nonexistent", digest);
    let error = carry_out(&job, &mut FakeDisk::new(), &mut Consoles::none())
        .unwrap_err()
        .to_string();
    assert!(error.contains("at least"), "{error}");
}
