//! Makes a volume's file: under a name that ends in `.part`, synced, and renamed when it is whole. A power cut leaves the
//! `.part`, which is thrown away.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use hypervisor_api::config::DiskFormat;

use super::plan::Make;
use crate::host::files::{self, FileError, fail};
use crate::host::program::{Program, ProgramError};

/// A volume that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The disk did not take it.
    #[error(transparent)]
    File(#[from] FileError),
    /// mkfs failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The work was cut short.
    #[error("making the volume was interrupted")]
    Interrupted,
}

/// Disks are whole pages, so that none ends in the middle of a sector.
const GRAIN: u64 = 4096;

/// Makes the file `path`.
pub async fn make(path: &Path, how: &Make) -> Result<(), MakeError> {
    let part = files::with_suffix(path, ".part");
    match how {
        Make::Scratch { bytes } => {
            let length = bytes.next_multiple_of(GRAIN);
            let file = part.clone();
            blocking(move || {
                files::remove(&file)?;
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&file)
                    .and_then(|file| file.set_len(length))
                    .map_err(fail("creating", &file))
            })
            .await?;
            Program::new("mkfs.ext4")
                // Tables are initialised by the kernel that mounts it; a file full of holes reads as zeros anyway.
                .args(["-q", "-F", "-m", "0", "-L", "skerry-scratch"])
                .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"])
                .arg(&part)
                .limit(Duration::from_secs(300))
                .run()
                .await?;
        }
        Make::Copy { from, bytes } => {
            let (from, to, bytes) = (from.clone(), part.clone(), *bytes);
            let raw = path.extension().is_some_and(|format| format == "raw");
            blocking(move || {
                files::remove(&to)?;
                let copied = files::copy_sparse(&from, &to, 0o600)?;
                if raw {
                    let length = copied.max(bytes).next_multiple_of(GRAIN);
                    OpenOptions::new()
                        .write(true)
                        .open(&to)
                        .and_then(|file| file.set_len(length))
                        .map_err(fail("setting the length of", &to))?;
                }
                Ok(())
            })
            .await?;
        }
    }
    let to = path.to_owned();
    blocking(move || {
        fs::File::open(&part)
            .and_then(|file| file.sync_all())
            .map_err(fail("syncing", &part))?;
        files::rename(&part, &to)
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, MakeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(MakeError::Interrupted),
    }
}

/// How large a volume is, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// What its file takes on the disk.
    pub used: u64,
    /// What its app sees.
    pub virtual_size: u64,
}

/// How large a volume is.
pub fn measure(path: &Path, format: DiskFormat) -> Result<Sizes, FileError> {
    let about = fs::symlink_metadata(path).map_err(fail("looking at", path))?;
    let virtual_size = match format {
        DiskFormat::Raw => about.len(),
        DiskFormat::Qcow2 => {
            let mut header = [0u8; 32];
            fs::File::open(path)
                .and_then(|mut file| file.read_exact(&mut header))
                .map_err(fail("reading the qcow2 header of", path))?;
            // The virtual size is a big-endian number at byte 24 (QEMU, docs/interop/qcow2.txt).
            header
                .last_chunk::<8>()
                .map_or(0, |size| u64::from_be_bytes(*size))
        }
    };
    Ok(Sizes {
        used: about.blocks() * 512,
        virtual_size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_scratch_disk_is_a_sound_ext4_and_takes_little_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.raw");
        fs::write(files::with_suffix(&path, ".part"), b"left by a power cut").unwrap();
        make(&path, &Make::Scratch { bytes: 1 << 30 })
            .await
            .unwrap();
        let said = Program::new("e2fsck")
            .args(["-f", "-n"])
            .arg(&path)
            .run()
            .await
            .unwrap();
        assert!(said.contains("skerry-scratch"), "{said}");
        let Sizes {
            used,
            virtual_size: size,
        } = measure(&path, DiskFormat::Raw).unwrap();
        assert_eq!(size, 1 << 30);
        assert!(used < 64 << 20, "{used} bytes used");
        assert!(!files::with_suffix(&path, ".part").exists());
    }

    #[tokio::test]
    async fn a_copy_is_enlarged_but_never_cut() {
        let dir = tempfile::tempdir().unwrap();
        let blob = dir.path().join("blob");
        fs::write(&blob, vec![7u8; 5000]).unwrap();
        for (bytes, expected) in [(0, 8192), (100, 8192), (20_000, 20_480)] {
            let path = dir.path().join(format!("v{bytes}.raw"));
            make(
                &path,
                &Make::Copy {
                    from: blob.clone(),
                    bytes,
                },
            )
            .await
            .unwrap();
            let copy = fs::read(&path).unwrap();
            assert_eq!(copy.len(), expected);
            assert!(
                copy[..5000].iter().all(|byte| *byte == 7)
                    && copy[5000..].iter().all(|byte| *byte == 0)
            );
        }
        let path = dir.path().join("v.qcow2");
        make(
            &path,
            &Make::Copy {
                from: blob.clone(),
                bytes: 1 << 40,
            },
        )
        .await
        .unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 5000);
        assert_eq!(
            measure(&path, DiskFormat::Qcow2).unwrap().virtual_size,
            0x0707_0707_0707_0707
        );
    }
}
