//! What can go wrong while an image is made or read.

use std::io;
use std::path::{Path, PathBuf};

use crate::bundle::BundleError;
use crate::fat::FatError;
use crate::gpt::GptError;
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
    /// A file could not be put in its place whole.
    #[error("cannot leave a file whole: {0}")]
    Durable(#[from] durable::Error),
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
    /// The bundle is not one.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A FAT volume could not be planned.
    #[error("cannot lay out {target}: {source}")]
    Fat {
        /// What the volume is for.
        target: String,
        /// Why.
        source: FatError,
    },
    /// A partition table could not be read or planned.
    #[error("{}: {source}", path.display())]
    Gpt {
        /// File or device.
        path: PathBuf,
        /// Why.
        source: GptError,
    },
    /// A disk has no room for a device's partitions.
    #[error("the disk has {} MiB and at least {} MiB are needed", size >> 20, needed >> 20)]
    DiskTooSmall {
        /// Size of the disk, bytes.
        size: u64,
        /// Needed, bytes.
        needed: u64,
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
