//! Leaves the last words behind: whole, or not at all.

use std::path::Path;

use hypervisor_api::report::LastWords;

/// The last words could not be left.
#[derive(Debug, thiserror::Error)]
pub enum LastWordsError {
    /// They cannot be put into JSON.
    #[error("putting last words into JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The file could not be written.
    #[error("last words: {0}")]
    File(#[from] durable::Error),
}

/// Writes `words` to `path`, by way of a file beside it, so that a reader never sees half of them.
pub fn leave(words: &LastWords, path: &Path) -> Result<(), LastWordsError> {
    Ok(durable::write(path, &serde_json::to_vec(words)?, 0o644)?)
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
