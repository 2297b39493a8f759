//! Content for devices: what is to be pushed (planned from files, without the network), and the pushing.

pub mod artifact;
pub mod layout;
pub mod registry;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use imaging::digest::{Digest, Hasher};

use crate::failure::Failure;
use crate::progress::Progress;

/// Everything that a push sends: blobs first, then manifests. The last manifest is the image.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Blobs, each once.
    pub blobs: Vec<Blob>,
    /// Manifests and indexes, such that each comes after what it refers to.
    pub manifests: Vec<Manifest>,
}

/// One blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// What it is called by.
    pub digest: Digest,
    /// Its bytes.
    pub source: Source,
    /// For people: what it is.
    pub title: String,
}

/// Where a blob's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Here.
    Bytes(Vec<u8>),
    /// In a file, from start to end.
    File {
        /// Which one.
        path: PathBuf,
        /// Its size in bytes when it was hashed.
        size: u64,
    },
}

impl Source {
    /// How many bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }
}

/// A manifest or an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What it is called by.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Exactly the bytes that the digest is of.
    pub bytes: Vec<u8>,
}

/// Digest and size of a file, with progress.
pub fn digest_of_file(path: &Path, title: &str) -> Result<(Digest, u64), Failure> {
    let mut file = File::open(path).map_err(Failure::io("read", path))?;
    let meta = file.metadata().map_err(Failure::io("read", path))?;
    if !meta.is_file() {
        return Err(Failure::usage(format!("{} is not a file", path.display())));
    }
    let mut progress = Progress::begin(format!("hashing {title}"), meta.len());
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let count = file.read(&mut buffer).map_err(Failure::io("read", path))?;
        let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else {
            break;
        };
        hasher.update(piece);
        size += count as u64;
        progress.reach(size);
    }
    if size == 0 {
        return Err(Failure::usage(format!("{} is empty", path.display())));
    }
    progress.end("done");
    Ok((hasher.finish(), size))
}
