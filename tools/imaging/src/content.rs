//! Files on their way into a FAT volume: from memory or from disk, checked against their digest as they pass.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use crate::Error;
use crate::digest::copy_hashed;
use crate::fat::{self, Volume};
use crate::parts::FileDigest;

/// Where a file's bytes come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// They are here.
    Bytes(Vec<u8>),
    /// They are in a file that must have this size and digest.
    File {
        /// The file.
        path: PathBuf,
        /// What it must be.
        digest: FileDigest,
    },
}

/// A file of a volume.
#[derive(Clone, Debug)]
pub struct Content {
    /// Path in the volume, components divided by `/`.
    pub path: String,
    /// Its bytes.
    pub source: Source,
}

impl Content {
    /// A file whose bytes are here.
    pub fn bytes(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.into(),
            source: Source::Bytes(bytes.into()),
        }
    }

    /// A file copied from `from`, which must be what `digest` says.
    pub fn file(path: impl Into<String>, from: impl Into<PathBuf>, digest: FileDigest) -> Self {
        Self {
            path: path.into(),
            source: Source::File {
                path: from.into(),
                digest,
            },
        }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        match &self.source {
            Source::Bytes(bytes) => bytes.len() as u64,
            Source::File { digest, .. } => digest.size,
        }
    }
}

/// Paths and sizes, as [`fat::plan`] and [`fat::size_for`] want them.
pub fn sizes(contents: &[Content]) -> Vec<(&str, u64)> {
    contents
        .iter()
        .map(|c| (c.path.as_str(), c.size()))
        .collect()
}

/// Plans `volume` with `contents` and writes it to `out` from its first byte on; returns how many bytes that were.
/// `target` names in errors what is written to. `step` is told the size of each piece of content copied.
pub fn write_volume(
    volume: Volume,
    contents: &[Content],
    out: &mut dyn Write,
    target: &str,
    step: &mut dyn FnMut(u64),
) -> Result<u64, Error> {
    let plan = fat::plan(volume, &sizes(contents)).map_err(|source| Error::Fat {
        target: target.to_owned(),
        source,
    })?;
    let written = plan.write::<WriteError>(out, &mut |index, out| {
        let Some(content) = contents.get(index) else {
            return Ok(());
        };
        copy_content(content, out, step)
    });
    written
        .map(|()| plan.written_len())
        .map_err(|error| error.into_error(target))
}

/// Writes one file's bytes to `out`; `target` names in errors what is written to. `step` is told the size of each piece.
pub fn copy(
    content: &Content,
    out: &mut dyn Write,
    target: &str,
    step: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    copy_content(content, out, step).map_err(|error| error.into_error(target))
}

/// Tells a broken source from a broken target.
enum WriteError {
    Content(Error),
    Target(io::Error),
}

impl WriteError {
    fn into_error(self, target: &str) -> Error {
        match self {
            Self::Content(error) => error,
            Self::Target(source) => Error::Io {
                operation: "write",
                path: PathBuf::from(target),
                source,
            },
        }
    }
}

impl From<io::Error> for WriteError {
    fn from(source: io::Error) -> Self {
        Self::Target(source)
    }
}

fn copy_content(
    content: &Content,
    out: &mut dyn Write,
    step: &mut dyn FnMut(u64),
) -> Result<(), WriteError> {
    match &content.source {
        Source::Bytes(bytes) => {
            out.write_all(bytes)?;
            step(bytes.len() as u64);
            Ok(())
        }
        Source::File { path, digest } => {
            let mut file =
                File::open(path).map_err(|e| WriteError::Content(Error::io("read", path)(e)))?;
            let (sha256, size) = copy_hashed(&mut file, out, step)?;
            let found = FileDigest { size, sha256 };
            if found == *digest {
                return Ok(());
            }
            let reason = format!(
                "its SHA-256 is {} over {size} bytes, not {} over {}",
                sha256.hex(),
                digest.sha256.hex(),
                digest.size
            );
            Err(WriteError::Content(Error::WrongPart {
                path: path.clone(),
                reason,
            }))
        }
    }
}
