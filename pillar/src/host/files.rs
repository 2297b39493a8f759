//! Files, as the agent handles them: folders with a mode, reading within bounds, copies with holes. What makes a file outlive
//! a power cut comes from the crate `durable` and is offered here with the rest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

pub use durable::{Error as FileError, fail, remove, rename, with_suffix, write, write_volatile};

/// Makes a directory and its parents; the last one gets `mode`.
pub fn make_dir(path: &Path, mode: u32) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(fail("making the directory", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(fail("setting the mode of", path))
}

/// Reads a regular file of at most `limit` bytes, without following a symbolic link at its end. `None`: not there.
pub fn read_limited(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail("opening", path)(error)),
    };
    let about = file.metadata().map_err(fail("looking at", path))?;
    if !about.is_file() {
        return Err(fail("reading", path)(io::Error::other(
            "not a regular file",
        )));
    }
    if about.len() > limit {
        return Err(fail("reading", path)(io::Error::other(format!(
            "{} bytes, more than the {limit} allowed",
            about.len()
        ))));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(about.len()).unwrap_or(0));
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(fail("reading", path))?;
    Ok(Some(bytes))
}

/// Removes a directory with all that is in it; that it is not there is fine.
pub fn remove_tree(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail("removing", path)(error)),
        _ => Ok(()),
    }
}

/// Copies a file, leaving holes where 64 KiB in a row are zero, and syncs it. A disk image from a registry is mostly
/// zeros; on the device's disk they need no room. Holes of the source are skipped without reading them.
pub fn copy_sparse(from: &Path, to: &Path, mode: u32) -> Result<u64, FileError> {
    const BLOCK: usize = 64 * 1024;
    let mut source = File::open(from).map_err(fail("opening", from))?;
    let length = source.metadata().map_err(fail("looking at", from))?.len();
    let mut target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(to)
        .map_err(fail("creating", to))?;
    target
        .set_len(length)
        .map_err(fail("setting the length of", to))?;
    let mut block = vec![0u8; BLOCK];
    let mut at = 0u64;
    while at < length {
        let data = nix::unistd::lseek64(&source, offset(at), nix::unistd::Whence::SeekData);
        match data {
            Ok(data) => at = u64::try_from(data).unwrap_or(at).max(at),
            // No data after `at`: the rest is a hole.
            Err(nix::errno::Errno::ENXIO) => break,
            // A file system that does not know its holes says that all is data.
            Err(_) => {}
        }
        source
            .seek(SeekFrom::Start(at))
            .map_err(fail("seeking in", from))?;
        let want = BLOCK.min(usize::try_from(length - at).unwrap_or(BLOCK));
        let Some(part) = block.get_mut(..want) else {
            break;
        };
        source.read_exact(part).map_err(fail("reading", from))?;
        if part.iter().any(|byte| *byte != 0) {
            target
                .seek(SeekFrom::Start(at))
                .map_err(fail("seeking in", to))?;
            target.write_all(part).map_err(fail("writing", to))?;
        }
        at += want as u64;
    }
    target.sync_all().map_err(fail("syncing", to))?;
    Ok(length)
}

fn offset(at: u64) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn reading_refuses_links_and_large_files() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, b"secret").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&secret, &link).unwrap();
        assert!(read_limited(&link, 100).is_err());
        assert!(read_limited(&secret, 5).is_err());
        assert_eq!(read_limited(&secret, 6).unwrap().unwrap(), b"secret");
        assert!(read_limited(&dir.path().join("none"), 6).unwrap().is_none());
        assert!(read_limited(dir.path(), 6).is_err());
    }

    #[test]
    fn a_sparse_copy_is_equal_and_takes_less_room() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut bytes = vec![0u8; 3 * 1024 * 1024 + 17];
        bytes[5] = 1;
        bytes[2_000_000] = 2;
        *bytes.last_mut().unwrap() = 3;
        fs::write(&from, &bytes).unwrap();
        assert_eq!(copy_sparse(&from, &to, 0o600).unwrap(), bytes.len() as u64);
        assert_eq!(fs::read(&to).unwrap(), bytes);
        assert!(fs::metadata(&to).unwrap().blocks() * 512 <= 4 * 64 * 1024);
        // And a copy of the copy, whose holes are real.
        copy_sparse(&to, &from, 0o600).unwrap();
        assert_eq!(fs::read(&from).unwrap(), bytes);
    }
}
