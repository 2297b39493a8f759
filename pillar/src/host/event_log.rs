//! The firmware's event log of this boot, as the kernel shows it.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use onboarding::eventlog::{MAX_LOG, PATH};

/// The log, if there is one of a sensible size.
#[must_use]
pub fn read() -> Option<Vec<u8>> {
    read_at(Path::new(PATH))
}

fn read_at(path: &Path) -> Option<Vec<u8>> {
    let mut log = Vec::new();
    let file = File::open(path).ok()?;
    // What is larger than the controller takes is of no use to it.
    file.take(MAX_LOG as u64 + 1).read_to_end(&mut log).ok()?;
    (!log.is_empty() && log.len() <= MAX_LOG).then_some(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_if_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(read_at(&path), None);
        std::fs::write(&path, b"").unwrap();
        assert_eq!(read_at(&path), None);
        std::fs::write(&path, b"log").unwrap();
        assert_eq!(read_at(&path).unwrap(), b"log");
        let file = File::create(&path).unwrap();
        file.set_len(MAX_LOG as u64).unwrap();
        assert_eq!(read_at(&path).unwrap().len(), MAX_LOG);
        file.set_len(MAX_LOG as u64 + 1).unwrap();
        assert_eq!(read_at(&path), None);
    }
}
