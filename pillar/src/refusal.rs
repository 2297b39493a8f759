//! That the controller refuses what this device boots, kept over restarts and power cuts.
//!
//! ```text
//!                  refused: written, then acted on
//!   no file  ----------------------------------------->  file
//!            <-----------------------------------------
//!                  trusted: removed, then acted on
//! ```
//!
//! Without it, whoever holds a refused box need only pull its cable and start it again: from its checkpoint it would run everything that a
//! policy told it to stop. Being started anew is nothing that earns trust; only the controller gives it. Which of a device's boots was
//! refused is no part of the file, since no other boot of it was trusted since.
//!
//! The file says all that it says by being there. So one that is damaged, or cannot be read, counts as a refusal: nothing but a refusal makes
//! the file, and what a mistake costs is small: apps wait until the controller answers, and only those of an owner whose policy wants
//! refused devices to stop. The other way round a bad block would start them.

use std::path::PathBuf;

use crate::generations;
use crate::paths::Paths;
use crate::status::{Status, Topic};

/// For people who look at the disk; nobody reads it.
const WORDS: &[u8] = b"the controller refuses what this device has booted\n";

/// Where it is kept.
#[must_use]
pub fn file(paths: &Paths) -> PathBuf {
    paths.pillar().join("refused")
}

/// Whether the controller has refused this device before this start, and not trusted it since.
#[must_use]
pub fn load(paths: &Paths, status: &Status) -> bool {
    match generations::read(&file(paths)) {
        Ok(None) => false,
        Ok(Some(_)) => true,
        Err(error) => {
            status.raise(
                Topic::AttestationKept,
                &format!("whether the controller refuses this device: {error}; taken for yes until the controller says otherwise"),
            );
            true
        }
    }
}

/// Keeps what the controller says now. What it says is acted on in any case; that it would not outlive a power cut is told.
pub async fn note(paths: &Paths, status: &Status, refused: bool) {
    let place = file(paths);
    let kept = tokio::task::spawn_blocking(move || {
        if refused {
            // A device that is refused is told so every few seconds.
            return match generations::read(&place) {
                Ok(Some(_)) => Ok(()),
                _ => generations::write(&place, WORDS),
            };
        }
        if !place.exists() {
            return Ok(());
        }
        generations::remove(&place)?;
        let folder = place.parent().unwrap_or(&place);
        Ok(durable::sync_folder(folder)?)
    });
    let error = match kept.await {
        Ok(Ok(())) => return status.clear(Topic::AttestationKept),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    let (what, then) = match refused {
        true => ("refuses", "runs its apps, if its controller is away"),
        false => (
            "trusts",
            "stops its apps if its policy says so, until it is trusted again",
        ),
    };
    status.raise(
        Topic::AttestationKept,
        &format!("that the controller {what} this device cannot be kept: {error}; after a power cut the device {then}"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(dir: &std::path::Path) -> Paths {
        Paths {
            persist: dir.to_owned(),
            ..Paths::default()
        }
    }

    #[tokio::test]
    async fn a_refusal_is_kept_until_the_device_is_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let (status, _) = Status::to_memory();
        assert!(!load(&paths, &status));
        // Trust makes no file, and two refusals are one.
        for (refused, there) in [
            (false, false),
            (true, true),
            (true, true),
            (false, false),
            (true, true),
        ] {
            note(&paths, &status, refused).await;
            assert_eq!(load(&paths, &status), refused);
            assert_eq!(file(&paths).exists(), there);
        }
        assert!(status.troubles().borrow().is_empty());
    }

    #[tokio::test]
    async fn a_damaged_refusal_is_one_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let (status, lines) = Status::to_memory();
        note(&paths, &status, true).await;
        for bytes in [&b""[..], b"rubbish"] {
            std::fs::write(file(&paths), bytes).unwrap();
            assert!(load(&paths, &status));
            assert!(
                status
                    .troubles()
                    .borrow()
                    .contains_key(&Topic::AttestationKept)
            );
        }
        assert!(
            lines
                .lock()
                .unwrap()
                .iter()
                .any(|line| line.contains("damaged"))
        );
        // The next word of the controller mends it, whichever it is.
        note(&paths, &status, true).await;
        assert!(generations::read(&file(&paths)).unwrap().is_some());
        std::fs::write(file(&paths), b"rubbish").unwrap();
        note(&paths, &status, false).await;
        assert!(!load(&paths, &status) && status.troubles().borrow().is_empty());
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let (status, lines) = Status::to_memory();
        // A file in the folder's place.
        std::fs::write(paths.pillar(), b"").unwrap();
        note(&paths, &status, true).await;
        let line = lines.lock().unwrap().last().unwrap().clone();
        assert!(
            line.contains("refuses this device cannot be kept"),
            "{line}"
        );
        std::fs::remove_file(paths.pillar()).unwrap();
        note(&paths, &status, true).await;
        assert!(load(&paths, &status) && status.troubles().borrow().is_empty());
    }
}
