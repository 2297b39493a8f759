//! Files that are there whole or not at all, also after a power cut.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where the bytes lie until they are complete: the same path with `.part` appended.
pub fn part_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

/// Writes `bytes` beside `path`, syncs, renames and syncs the directory.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = part_path(path);
    let mut file = File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    put_in_place(&part, path)
}

/// Gives a finished and synced file its name.
pub fn put_in_place(part: &Path, path: &Path) -> io::Result<()> {
    std::fs::rename(part, path)?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    File::open(dir)?.sync_all()
}
