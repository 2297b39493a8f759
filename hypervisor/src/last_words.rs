//! Leaves the last words behind: whole, or not at all.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use hypervisor_api::report::LastWords;

/// The last words could not be left.
#[derive(Debug, thiserror::Error)]
#[error("writing last words to {path}: {source}")]
pub struct LastWordsError {
    path: PathBuf,
    source: io::Error,
}

/// Writes `words` to `path`, by way of a file beside it, so that a reader never sees half of them.
pub fn leave(words: &LastWords, path: &Path) -> Result<(), LastWordsError> {
    let write = || -> io::Result<()> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec(words)?)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|source| LastWordsError {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_replace_older_ones_and_can_be_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last-words.json");
        leave(&LastWords::Reset, &path).unwrap();
        let words = LastWords::Failed {
            message: "no kernel".to_owned(),
        };
        leave(&words, &path).unwrap();
        let read: LastWords = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, words);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
