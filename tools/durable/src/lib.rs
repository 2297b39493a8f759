//! Files that are there whole or not at all, also after a power cut.
//!
//! ```text
//! make beside --> write --> sync the file --> rename into place --> sync the folder
//! ```
//!
//! A reader finds the old file or the new one, since rename(2) replaces a name in one step. That the new one is there after
//! a power cut takes two syncs: fsync(2) of the file before the rename, or the name could come to stand for a file whose
//! bytes never reached the disk; and fsync(2) of the folder after it, since "calling fsync() does not necessarily ensure
//! that the entry in the directory containing the file has also reached disk".
//!
//! What lies beside is always made anew, never opened: what a power cut left there may have another mode, and a new file
//! has the wanted one from its first byte.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// A step on a file that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {source}", path.display())]
pub struct Error {
    /// What was attempted, `writing`.
    pub operation: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// For `map_err`: names the operation and the file.
pub fn fail<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// Writes a file. When this returns, it outlives a power cut; when it fails, the file is as it was.
///
/// Two at a time on one path get in each other's way: then use [`write_by_way_of`].
///
/// # Errors
/// The first step that the system refused.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    write_by_way_of(&beside(path), path, bytes, mode)
}

/// [`write()`] by way of a file whose name the caller chooses, in the same folder.
///
/// # Errors
/// The first step that the system refused.
pub fn write_by_way_of(beside: &Path, path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    fill(beside, bytes, mode)?;
    clear_up(beside, rename(beside, path))
}

/// Writes a file on a file system in memory: whole, and not synced, since nothing there outlives a power cut.
///
/// # Errors
/// The first step that the system refused.
pub fn write_volatile(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let beside = beside(path);
    make(&beside, bytes, mode)?;
    clear_up(&beside, move_into_place(&beside, path))
}

/// The first half of [`write()`]: makes a file anew at `beside`, and syncs it. [`rename`] is the other half.
///
/// # Errors
/// The first step that the system refused; nothing is left at `beside` then.
pub fn fill(beside: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let synced = make(beside, bytes, mode)?
        .sync_all()
        .map_err(fail("syncing", beside));
    clear_up(beside, synced)
}

/// Gives a file its name, for good: renames within a file system and syncs the folder. The caller has synced the file.
///
/// # Errors
/// The step that the system refused; a file that could not be renamed stays where it was.
pub fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    move_into_place(from, to)?;
    sync_folder(match to.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    })
}

/// Makes last which names there are in a folder.
///
/// # Errors
/// What the system said.
pub fn sync_folder(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(fail("syncing the folder", path))
}

/// Removes a file; that it is not there is fine.
///
/// # Errors
/// What the system said.
pub fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail("removing", path)(error)),
        _ => Ok(()),
    }
}

/// Where [`write()`] makes what is to replace `path`: `path.new`.
#[must_use]
pub fn beside(path: &Path) -> PathBuf {
    with_suffix(path, ".new")
}

/// `path` with `suffix` after its last name.
#[must_use]
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn make(path: &Path, bytes: &[u8], mode: u32) -> Result<File, Error> {
    remove(path)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(fail("creating", path))?;
    let written = file.write_all(bytes).map_err(fail("writing", path));
    clear_up(path, written.map(|()| file))
}

fn move_into_place(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(fail("renaming to", to))
}

/// Half a file is of use to nobody, and takes room that may be what was lacking.
fn clear_up<T>(path: &Path, outcome: Result<T, Error>) -> Result<T, Error> {
    if outcome.is_err() {
        // The error at hand says more than one about the clearing up would.
        let _ = fs::remove_file(path);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_write_replaces_the_whole_file_whatever_a_power_cut_left() {
        for write in [write, write_volatile] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("state.json");
            write(&path, b"a long first version", 0o600).unwrap();
            fs::write(beside(&path), b"left by a power cut, and readable by all").unwrap();
            write(&path, b"second", 0o640).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"second");
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
            assert_eq!(names(folder.path()), ["state.json"]);
        }
    }

    #[test]
    fn a_link_left_beside_is_replaced_and_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, victim) = (folder.path().join("state"), folder.path().join("victim"));
        fs::write(&victim, b"precious").unwrap();
        symlink(&victim, beside(&path)).unwrap();
        write(&path, b"state", 0o600).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
    }

    #[test]
    fn a_write_that_fails_leaves_nothing_beside_and_says_where_it_failed() {
        let folder = tempfile::tempdir().unwrap();
        // A folder that is not empty cannot be replaced by a file.
        let path = folder.path().join("taken");
        fs::create_dir_all(path.join("inside")).unwrap();
        for write in [write, write_volatile] {
            let error = write(&path, b"bytes", 0o600).unwrap_err();
            assert_eq!((error.operation, &error.path), ("renaming to", &path));
            assert_eq!(names(folder.path()), ["taken"]);
        }
        let nowhere = folder.path().join("no/such/folder");
        let error = write(&nowhere, b"bytes", 0o600).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "creating {}.new: No such file or directory (os error 2)",
                nowhere.display()
            )
        );
    }

    #[test]
    fn two_with_names_of_their_own_do_not_meet() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let (one, two) = (with_suffix(&path, ".1"), with_suffix(&path, ".2"));
        fill(&one, b"one", 0o600).unwrap();
        write_by_way_of(&two, &path, b"two", 0o600).unwrap();
        rename(&one, &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(names(folder.path()), ["config"]);
    }

    #[test]
    fn removing_what_is_not_there_is_fine() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, b"", 0o600).unwrap();
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(remove(folder.path()).is_err());
    }
}
