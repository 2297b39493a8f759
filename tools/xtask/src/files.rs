//! Files and folders: what all parts of this program do with them, with errors that name them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::run;

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Folder,
    Link,
    File { executable: bool },
}

/// Everything below `root`, as paths relative to it, sorted by name, parents first.
pub fn walk(root: &Path) -> Result<Vec<(PathBuf, Kind)>> {
    use std::os::unix::fs::PermissionsExt;
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        let full = root.join(&folder);
        let entries = fs::read_dir(&full).with_context(|| format!("listing {}", full.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("listing {}", full.display()))?;
            let path = folder.join(entry.file_name());
            let kind = entry
                .file_type()
                .with_context(|| format!("looking at {}", entry.path().display()))?;
            if kind.is_dir() {
                open.push(path.clone());
                found.push((path, Kind::Folder));
            } else if kind.is_symlink() {
                found.push((path, Kind::Link));
            } else if kind.is_file() {
                let mode = entry
                    .metadata()
                    .with_context(|| format!("looking at {}", entry.path().display()))?
                    .permissions()
                    .mode();
                found.push((
                    path,
                    Kind::File {
                        executable: mode & 0o111 != 0,
                    },
                ));
            }
        }
    }
    found.sort();
    Ok(found)
}

impl PartialOrd for Kind {
    fn partial_cmp(&self, other: &Kind) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kind {
    fn cmp(&self, _: &Kind) -> std::cmp::Ordering {
        // Paths differ; this only completes the order of pairs.
        std::cmp::Ordering::Equal
    }
}

/// Removes a file, a link or a folder with all in it.
pub fn remove(path: &Path) -> Result<()> {
    let kind = path
        .symlink_metadata()
        .with_context(|| format!("looking at {}", path.display()))?;
    let removed = if kind.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    removed.with_context(|| format!("removing {}", path.display()))
}

/// Makes a symbolic link, and the folders that it lies in.
pub fn link(path: &Path, target: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    std::os::unix::fs::symlink(target, path).with_context(|| format!("linking {}", path.display()))
}

/// Copies a file in the place of whatever is there.
pub fn put(from: &Path, to: &Path) -> Result<()> {
    if to.symlink_metadata().is_ok() {
        remove(to)?;
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    // Shares the blocks where the file system can, and keeps holes.
    run(Command::new("cp")
        .args(["--reflink=auto", "--sparse=auto"])
        .args([from, to]))
    .map(|_| ())
}

/// Writes a file in the place of whatever is there.
pub fn write(to: &Path, bytes: &[u8]) -> Result<()> {
    if to.symlink_metadata().is_ok() {
        remove(to)?;
    }
    fs::write(to, bytes).with_context(|| format!("writing {}", to.display()))
}

/// Makes a folder, or empties it; gives its absolute path.
pub fn empty(dir: &Path) -> Result<PathBuf> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("emptying {}", dir.display()))?;
    }
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    dir.canonicalize()
        .with_context(|| format!("finding {}", dir.display()))
}
