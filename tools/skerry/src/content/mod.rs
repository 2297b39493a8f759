//! Content for devices: what is to be pushed (planned from files, without the network), and the pushing.

pub mod artifact;
pub mod layout;
pub mod registry;

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

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
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
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
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// Exactly the bytes that the digest is of.
    pub bytes: Vec<u8>,
}

/// Digest of some bytes as registries write it.
pub fn digest_of(bytes: &[u8]) -> String {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    text(context)
}

/// Digest and size of a file, with progress.
pub fn digest_of_file(path: &Path, title: &str) -> Result<(String, u64), Failure> {
    let mut file = File::open(path).map_err(Failure::io("read", path))?;
    let meta = file.metadata().map_err(Failure::io("read", path))?;
    if !meta.is_file() {
        return Err(Failure::usage(format!("{} is not a file", path.display())));
    }
    let mut progress = Progress::begin(format!("hashing {title}"), meta.len());
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let count = file.read(&mut buffer).map_err(Failure::io("read", path))?;
        let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else {
            break;
        };
        context.update(piece);
        size += count as u64;
        progress.reach(size);
    }
    if size == 0 {
        return Err(Failure::usage(format!("{} is empty", path.display())));
    }
    progress.end("done");
    Ok((text(context), size))
}

fn text(context: Context) -> String {
    let mut out = "sha256:".to_owned();
    for byte in context.finish().as_ref() {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}
