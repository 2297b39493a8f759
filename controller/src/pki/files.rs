//! Files of keys and certificates.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use durable::fail;

use super::PkiError;

/// Makes a directory for the owner only, with its parents.
pub(super) fn make_directory(path: &Path) -> Result<(), PkiError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(fail("making directory", path))?;
    Ok(())
}

/// Gives a file's text, or nothing if there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fail("reading", path)(error).into()),
    }
}

/// Writes a file that only its owner may read.
///
/// # Errors
/// [`PkiError::File`]; a file that was there before is unchanged then.
pub fn write_secret(path: &Path, text: &str) -> Result<(), PkiError> {
    write(path, text, 0o600)
}

/// Writes a file with a mode, so that it outlives a power cut.
pub(super) fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    Ok(durable::write(path, text.as_bytes(), mode)?)
}
