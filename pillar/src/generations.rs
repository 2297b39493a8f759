//! Small files that are kept in two generations and checked when they are read.
//!
//! The crate `durable` sees to it that a file outlives a power cut whole. Here is what the agent wants above that: the version
//! before it stays as `NAME.old`, so that a block gone bad costs one generation and not the device's identity, and what is
//! read back is checked against a SHA-256 in the file's first line:
//!
//! ```text
//! skerry-durable-1 <64 hexadecimal digits>\n<payload>
//! ```

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use durable::{beside, fail, with_suffix};
use protocol::digest::Digest;

const MAGIC: &str = "skerry-durable-1 ";
const HEADER: usize = MAGIC.len() + 64 + 1;

/// Largest file that is read back: 64 MiB. A checkpoint is the largest that there is, and a device config is far below.
const MAX: u64 = 64 * 1024 * 1024;

/// Why such a file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("{0}; check the disk and the space left on it")]
    File(#[from] durable::Error),
    /// The content does not have the digest that its first line names, and neither has the generation before it.
    #[error("read {path}: content is damaged and there is no whole older generation")]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
}

/// Writes `payload` to `path`. When this returns, it survives a power cut; when it fails, the file is as it was.
///
/// # Errors
/// When the file system refuses a step.
pub fn write(path: &Path, payload: &[u8]) -> Result<(), Error> {
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(dir).map_err(fail("making the folder", dir))?;
    let header = format!("{MAGIC}{}\n", Digest::of(payload).hex());
    let new = beside(path);
    durable::fill(&new, &[header.as_bytes(), payload].concat(), 0o600)?;

    // A damaged file must not push a whole older generation out.
    if matches!(read_one(path), Ok(Some(_))) {
        let old = older(path);
        durable::remove(&old)?;
        fs::hard_link(path, &old).map_err(fail("linking", &old))?;
    }
    Ok(durable::rename(&new, path)?)
}

/// Reads what [`write()`] left at `path`, or the generation before it if that one is damaged.
///
/// # Errors
/// When the file system refuses, or when no whole generation is there although one was written.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match read_one(path) {
        Ok(found @ Some(_)) => Ok(found),
        // Never written, or the older generation is all that is left.
        Ok(None) => Ok(read_one(&older(path)).unwrap_or(None)),
        Err(error) => match read_one(&older(path)) {
            Ok(Some(old)) => {
                tracing::warn!(path = %path.display(), %error, "took the older generation");
                Ok(Some(old))
            }
            _ => Err(error),
        },
    }
}

/// Removes a file with its older generation; that there is none is fine.
///
/// # Errors
/// When the file system refuses.
pub fn remove(path: &Path) -> Result<(), Error> {
    // The older one first: alone it would be taken for the file.
    durable::remove(&older(path))?;
    Ok(durable::remove(path)?)
}

/// [`write()`] on a thread that may block.
///
/// # Errors
/// As [`write()`].
pub async fn store(path: PathBuf, payload: Vec<u8>) -> Result<(), Error> {
    let name = path.clone();
    tokio::task::spawn_blocking(move || write(&path, &payload))
        .await
        .unwrap_or_else(|error| Err(fail("writing", &name)(io::Error::other(error)).into()))
}

/// Where the generation before the one at `path` is.
fn older(path: &Path) -> PathBuf {
    with_suffix(path, ".old")
}

fn read_one(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail("opening", path)(error).into()),
    };
    let mut bytes = Vec::new();
    file.take(MAX)
        .read_to_end(&mut bytes)
        .map_err(fail("reading", path))?;
    match check(&bytes) {
        Some(payload) => Ok(Some(payload.to_vec())),
        None => Err(Error::Damaged {
            path: path.to_owned(),
        }),
    }
}

/// The payload of a file's bytes, if its digest is the one that its first line names.
#[must_use]
pub fn check(bytes: &[u8]) -> Option<&[u8]> {
    let (header, payload) = bytes.split_at_checked(HEADER)?;
    let digits = header.strip_prefix(MAGIC.as_bytes())?.strip_suffix(b"\n")?;
    let wanted = Digest::from_hex(std::str::from_utf8(digits).ok()?).ok()?;
    (Digest::of(payload) == wanted).then_some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/down/file");
        assert_eq!(read(&path).unwrap(), None);
        write(&path, b"one").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"one");
        write(&path, b"").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"");
    }

    #[test]
    fn any_flipped_or_missing_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write(&path, b"payload").unwrap();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(check(&bad).is_none(), "byte {at}");
            assert!(check(&good[..at]).is_none(), "cut at {at}");
        }
    }

    #[test]
    fn a_damaged_file_yields_the_older_generation_and_never_displaces_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        fs::write(&path, b"rubbish").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"one");
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"rubbish").unwrap();
        write(&path, b"three").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"three");
        fs::remove_file(&path).unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"one");
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }

    #[test]
    fn damage_without_an_older_generation_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, b"rubbish").unwrap();
        assert!(matches!(read(&path), Err(Error::Damaged { .. })));
    }

    #[test]
    fn a_crash_between_write_and_rename_leaves_the_last_good_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write(&path, b"one").unwrap();
        fs::write(beside(&path), b"half a fi").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"one");
        write(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
    }
}
