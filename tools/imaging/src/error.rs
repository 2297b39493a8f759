//! What can go wrong while an image is made or read.

use std::io;
use std::path::{Path, PathBuf};

use crate::parts::PartName;

/// An image could not be made, or something is wrong with what it should be made of.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// `read`, `write`, ...
        operation: &'static str,
        /// File or device.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// `parts.json` is not one.
    #[error("{} does not describe an image: {reason}. Build the image again: cargo xtask image", path.display())]
    BadParts {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file is not the one that `parts.json` speaks of.
    #[error("{} is not the file that parts.json describes: {reason}. Build or copy the image again", path.display())]
    WrongPart {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// `parts.json` has no such file.
    #[error("parts.json does not list {name}. Build the image again: cargo xtask image")]
    PartNotListed {
        /// The file.
        name: PartName,
    },
}

impl Error {
    /// For `map_err`: names the operation and the thing.
    pub fn io<'a>(
        operation: &'static str,
        path: &'a (impl AsRef<Path> + ?Sized),
    ) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io {
            operation,
            path: path.as_ref().to_owned(),
            source,
        }
    }
}
