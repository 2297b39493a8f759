//! Files of keys and certificates: written whole, synced and renamed, so that a power cut leaves the old one or the new one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::PkiError;

/// Makes a directory for the owner only, with its parents.
pub(super) fn make_directory(path: &Path) -> Result<(), PkiError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| PkiError::File {
            action: "making directory",
            path: path.to_owned(),
            source,
        })
}

/// Gives a file's text, or nothing if there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File {
            action: "reading",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Writes a file that only its owner may read.
///
/// # Errors
/// [`PkiError::File`]; a file that was there before is unchanged then.
pub fn write_secret(path: &Path, text: &str) -> Result<(), PkiError> {
    write(path, text, 0o600)
}

/// Writes a file with a mode: temporary name, sync, rename, sync of the directory.
pub(super) fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let fault = |action: &'static str| {
        move |source: io::Error| PkiError::File {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    // A left-over from a power cut may have another mode; a new file has the wanted one from its first byte.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(fault("replacing")(error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(fault("making"))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(fault("writing"))?;
    fs::rename(&temporary, path).map_err(fault("renaming to"))?;
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(fault("syncing the directory of"))
}
