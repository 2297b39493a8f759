//! Content on the disk: verified blobs, unfinished ones, and container root file systems.
//!
//! ```text
//!   (nothing) --first bytes--> <hex>.part --all bytes, right digest, synced, renamed--> <hex>
//!                                 |  ^
//!                                 |  +- more bytes after a cut connection or a restart (Range)
//!                                 +---- wrong digest, or more bytes than announced: removed
//! ```
//!
//! A file under its final name has been verified; only its size is looked at again. A power cut can leave a `.part` with
//! a torn end: its bytes are hashed from the disk before more are added, so that a tear shows as a wrong digest.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use protocol::digest::{Digest, Hasher};
use protocol::image::Repository;
use tokio::sync::mpsc;

use super::manifest::{DOCUMENT_LIMIT, Descriptor};
use super::registry::{Registry, RegistryError};
use crate::host::files::{self, FileError, fail};
use crate::paths::Paths;

/// Room that is left on the disk for everything else.
const RESERVE: u64 = 64 * 1024 * 1024;

/// Content that could not be stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The registry did not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The disk did not take it.
    #[error(transparent)]
    File(#[from] FileError),
    /// Something else came than was announced.
    #[error(
        "the blob {expected} arrived with the digest {found}; it was thrown away and is fetched anew"
    )]
    WrongDigest {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// More came than was announced.
    #[error(
        "the blob {digest} is larger than the {size} bytes that the manifest says; it was thrown away"
    )]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// The announced size.
        size: u64,
    },
    /// The connection ended early.
    #[error(
        "the blob {digest} ended after {done} of {size} bytes; it goes on from there at the next attempt"
    )]
    TooShort {
        /// The blob.
        digest: Digest,
        /// Bytes here.
        done: u64,
        /// Bytes announced.
        size: u64,
    },
    /// The disk is too full for it.
    #[error(
        "the blob {digest} needs {needed} bytes on the disk, {free} are free; remove apps or volumes"
    )]
    NoRoom {
        /// The blob.
        digest: Digest,
        /// Bytes that it still needs.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The writer stopped.
    #[error("storing the blob {0} was interrupted")]
    Interrupted(Digest),
}

/// How far the download of a content tree is. Shared with who tells of it.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Sets the total, once known.
    pub fn expect(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// Sets the bytes that are here.
    pub fn set(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
    }

    fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn sub(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes here, and bytes in all once known.
    #[must_use]
    pub fn get(&self) -> (u64, Option<u64>) {
        let total = self.total.load(Ordering::Relaxed);
        (
            self.done.load(Ordering::Relaxed),
            (total > 0).then_some(total),
        )
    }
}

/// Where content lies.
#[derive(Clone, Debug)]
pub struct Store {
    blobs: PathBuf,
    rootfs: PathBuf,
    /// One lock a blob, so that two content trees that share it fetch it once.
    locks: Arc<Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>>,
    /// Held while a root file system is unpacked: one at a time is enough for the disk and the memory.
    pub(super) unpacking: Arc<tokio::sync::Mutex<()>>,
}

impl Store {
    /// Opens the store, making its directories.
    pub fn open(paths: &Paths) -> Result<Self, FileError> {
        let store = Self {
            blobs: paths.blobs(),
            rootfs: paths.rootfs(),
            locks: Arc::default(),
            unpacking: Arc::default(),
        };
        files::make_dir(&store.blobs, 0o711)?;
        files::make_dir(&store.rootfs, 0o711)?;
        Ok(store)
    }

    /// Where a verified blob lies.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// Where a container's root file system lies.
    #[must_use]
    pub fn rootfs(&self, manifest: &Digest) -> PathBuf {
        self.rootfs.join(format!("{}.erofs", manifest.hex()))
    }

    /// Where the notes on a container's root file system lie.
    #[must_use]
    pub fn rootfs_notes(&self, manifest: &Digest) -> PathBuf {
        self.rootfs.join(format!("{}.json", manifest.hex()))
    }

    /// Where layers are unpacked.
    #[must_use]
    pub fn rootfs_work(&self, manifest: &Digest) -> PathBuf {
        self.rootfs.join(format!("{}.tmp", manifest.hex()))
    }

    /// Whether a blob is here, verified and whole.
    #[must_use]
    pub fn has(&self, blob: &Descriptor) -> bool {
        fs::symlink_metadata(self.blob(&blob.digest))
            .is_ok_and(|about| about.is_file() && about.len() == blob.size)
    }

    /// Bytes of a blob that are here, verified or not yet.
    #[must_use]
    pub fn held(&self, blob: &Descriptor) -> u64 {
        if self.has(blob) {
            return blob.size;
        }
        fs::symlink_metadata(self.part(&blob.digest)).map_or(0, |about| about.len().min(blob.size))
    }

    /// Reads a manifest or config whole and verifies it again. One that turns out damaged is removed and is `None`, as
    /// one that is not here.
    pub fn document(&self, digest: &Digest) -> Result<Option<Vec<u8>>, FileError> {
        let path = self.blob(digest);
        let Some(bytes) = files::read_limited(&path, DOCUMENT_LIMIT)? else {
            return Ok(None);
        };
        if Digest::of(&bytes) == *digest {
            return Ok(Some(bytes));
        }
        tracing::warn!(path = %path.display(), "a stored document was damaged; it is fetched again");
        files::remove(&path)?;
        Ok(None)
    }

    /// Stores a document that was verified.
    pub fn keep_document(&self, digest: &Digest, bytes: &[u8]) -> Result<(), FileError> {
        files::write(&self.blob(digest), bytes, 0o644)
    }

    /// Fetches a blob unless it is here, going on where an earlier attempt stopped.
    pub async fn fetch(
        &self,
        registry: &Registry,
        repository: &Repository,
        blob: &Descriptor,
        progress: &Progress,
    ) -> Result<(), StoreError> {
        let lock = self
            .locks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(blob.digest)
            .or_default()
            .clone();
        let alone = Arc::new(lock.lock_owned().await);
        let result = if self.has(blob) {
            Ok(())
        } else {
            self.fetch_alone(registry, repository, blob, progress, &alone)
                .await
        };
        drop(alone);
        // Locks that nobody holds or waits for are forgotten.
        self.locks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, lock| Arc::strong_count(lock) > 1);
        result
    }

    async fn fetch_alone(
        &self,
        registry: &Registry,
        repository: &Repository,
        blob: &Descriptor,
        progress: &Progress,
        alone: &Arc<tokio::sync::OwnedMutexGuard<()>>,
    ) -> Result<(), StoreError> {
        let part = self.part(&blob.digest);
        let mut held = fs::metadata(&part).map_or(0, |about| about.len());
        if held > blob.size {
            files::remove(&part)?;
            held = 0;
        }
        let free = free_bytes(&self.blobs)?;
        let needed = blob.size - held;
        if needed.saturating_add(RESERVE) > free {
            return Err(StoreError::NoRoom {
                digest: blob.digest,
                needed,
                free,
            });
        }
        // Writing and hashing block; they live on a thread of their own, fed through a short queue: memory stays bounded
        // by a few pieces whatever the size of the blob.
        let stream = if held < blob.size {
            let stream = registry.blob(repository, &blob.digest, held).await?;
            if stream.from == 0 {
                progress.sub(held.min(progress.get().0));
            }
            Some(stream)
        } else {
            None
        };
        let from = stream.as_ref().map_or(held, |stream| stream.from);
        let (feed, pieces) = mpsc::channel::<Bytes>(4);
        let target = blob.clone();
        let path = part.clone();
        // The thread holds the lock as well: when this download is given up, it may still be writing for a moment.
        let alone = alone.clone();
        let writer = tokio::task::spawn_blocking(move || {
            let result = write_part(&path, from, &target, pieces);
            drop(alone);
            result
        });
        let mut cut = None;
        if let Some(mut stream) = stream {
            while let Some(piece) = stream.bytes.next().await {
                match piece {
                    Ok(piece) => {
                        let length = piece.len() as u64;
                        // The writer stops early only with an error, which it tells below.
                        if feed.send(piece).await.is_err() {
                            break;
                        }
                        progress.add(length);
                    }
                    Err(error) => {
                        cut = Some(error);
                        break;
                    }
                }
            }
        }
        drop(feed);
        let written = writer
            .await
            .map_err(|_| StoreError::Interrupted(blob.digest))?;
        match (written, cut) {
            // The cause of a short blob is the cut, if there was one.
            (Err(StoreError::TooShort { .. }), Some(cut)) => Err(cut.into()),
            (Err(error), _) => {
                if matches!(
                    error,
                    StoreError::WrongDigest { .. } | StoreError::TooLarge { .. }
                ) {
                    files::remove(&part)?;
                }
                Err(error)
            }
            (Ok(()), _) => {
                files::rename(&part, &self.blob(&blob.digest))?;
                Ok(())
            }
        }
    }

    fn part(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(format!("{}.part", digest.hex()))
    }

    /// Removes everything that is not kept, and gives the number of files removed. `keep_blobs` covers `.part` files,
    /// too; `keep_rootfs` names manifests. Work directories of root file systems in `keep_rootfs` stay.
    pub fn collect(
        &self,
        keep_blobs: &BTreeSet<Digest>,
        keep_rootfs: &BTreeSet<Digest>,
    ) -> Result<usize, FileError> {
        let mut removed = 0;
        for (dir, keep) in [(&self.blobs, keep_blobs), (&self.rootfs, keep_rootfs)] {
            for entry in fs::read_dir(dir).map_err(fail("listing", dir))? {
                let entry = entry.map_err(fail("listing", dir))?;
                let name = entry.file_name();
                let stem = name.to_str().and_then(|name| name.split('.').next());
                if stem
                    .and_then(|name| Digest::from_hex(name).ok())
                    .is_some_and(|digest| keep.contains(&digest))
                {
                    continue;
                }
                let path = entry.path();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    files::remove_tree(&path)?;
                } else {
                    files::remove(&path)?;
                }
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Bytes that an ordinary writer can still use on the file system of `path`.
pub fn free_bytes(path: &Path) -> Result<u64, FileError> {
    let about = nix::sys::statvfs::statvfs(path)
        .map_err(|error| fail("asking for the free space at", path)(error.into()))?;
    Ok(about
        .blocks_available()
        .saturating_mul(about.fragment_size()))
}

/// Writes pieces after the first `from` bytes of a part, which are hashed again, and checks the whole.
fn write_part(
    path: &Path,
    from: u64,
    blob: &Descriptor,
    mut pieces: mpsc::Receiver<Bytes>,
) -> Result<(), StoreError> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(fail("opening", path))?;
    file.set_len(from)
        .map_err(fail("setting the length of", path))?;
    let mut hasher = Hasher::new();
    hash_whole(&mut file, &mut hasher).map_err(fail("reading", path))?;
    let mut done = from;
    while let Some(piece) = pieces.blocking_recv() {
        done += piece.len() as u64;
        if done > blob.size {
            return Err(StoreError::TooLarge {
                digest: blob.digest,
                size: blob.size,
            });
        }
        file.write_all(&piece).map_err(fail("writing", path))?;
        hasher.update(&piece);
    }
    file.sync_all().map_err(fail("syncing", path))?;
    if done < blob.size {
        return Err(StoreError::TooShort {
            digest: blob.digest,
            done,
            size: blob.size,
        });
    }
    let found = hasher.finish();
    if found != blob.digest {
        return Err(StoreError::WrongDigest {
            expected: blob.digest,
            found,
        });
    }
    Ok(())
}

fn hash_whole(file: &mut File, hasher: &mut Hasher) -> std::io::Result<()> {
    let mut buffer = vec![0u8; 128 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            count => hasher.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &Path) -> Store {
        Store::open(&Paths {
            persist: dir.to_owned(),
            ..Paths::default()
        })
        .unwrap()
    }

    fn descriptor(bytes: &[u8]) -> Descriptor {
        Descriptor {
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
        }
    }

    fn write(
        path: &Path,
        from: u64,
        blob: &Descriptor,
        pieces: &[&'static [u8]],
    ) -> Result<(), StoreError> {
        let (feed, receiver) = mpsc::channel(16);
        for piece in pieces {
            feed.try_send(Bytes::from_static(piece)).unwrap();
        }
        drop(feed);
        write_part(path, from, blob, receiver)
    }

    #[test]
    fn a_part_goes_on_where_it_stopped_and_is_verified_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.part");
        let blob = descriptor(b"hello world");
        assert!(matches!(
            write(&path, 0, &blob, &[b"hel", b"lo"]),
            Err(StoreError::TooShort { done: 5, .. })
        ));
        write(&path, 5, &blob, &[b" world"]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello world");
        // A registry that starts anew.
        write(&path, 0, &blob, &[b"hello world"]).unwrap();
        // A torn part.
        fs::write(&path, b"hel\0\0").unwrap();
        assert!(matches!(
            write(&path, 5, &blob, &[b" world"]),
            Err(StoreError::WrongDigest { .. })
        ));
        assert!(matches!(
            write(&path, 0, &blob, &[b"hello world", b"!"]),
            Err(StoreError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_damaged_document_counts_as_missing() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let digest = Digest::of(b"manifest");
        assert!(store.document(&digest).unwrap().is_none());
        store.keep_document(&digest, b"manifest").unwrap();
        assert_eq!(store.document(&digest).unwrap().unwrap(), b"manifest");
        fs::write(store.blob(&digest), b"manifesT").unwrap();
        assert!(store.document(&digest).unwrap().is_none());
        assert!(!store.blob(&digest).exists());
    }

    #[test]
    fn collection_keeps_what_is_named_and_takes_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let (keep, lose) = (Digest::of(b"keep"), Digest::of(b"lose"));
        for digest in [keep, lose] {
            fs::write(store.blob(&digest), b"x").unwrap();
            fs::write(store.part(&digest), b"x").unwrap();
            fs::write(store.rootfs(&digest), b"x").unwrap();
            fs::create_dir_all(store.rootfs_work(&digest).join("etc")).unwrap();
        }
        fs::write(dir.path().join("content/blobs/sha256/stray"), b"x").unwrap();
        let removed = store
            .collect(&BTreeSet::from([keep]), &BTreeSet::from([keep]))
            .unwrap();
        assert_eq!(removed, 5);
        assert!(
            store.blob(&keep).exists()
                && store.part(&keep).exists()
                && store.rootfs_work(&keep).exists()
        );
        assert!(
            !store.blob(&lose).exists()
                && !store.part(&lose).exists()
                && !store.rootfs_work(&lose).exists()
        );
    }
}
