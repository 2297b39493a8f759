//! From a content tree to an image that can be run: what is here, what is missing, and the next step.
//!
//! ```text
//!   Manifest --> (index: the manifest it leads to) --> Blobs --> Rootfs (containers only) --> Ready
//! ```
//!
//! [`look`] reads the store, [`plan`] decides (no disk, no network), [`bring`] does it.

use std::path::PathBuf;

use hypervisor_api::config::DiskFormat;
use protocol::digest::Digest;

use super::manifest::{self, Descriptor, Document, ImageConfig, Layer, ManifestError};
use super::registry::{Registry, RegistryError};
use super::rootfs::{self, Notes, RootfsError};
use super::store::{Progress, Store, StoreError};
use crate::domain::desired::{Content, Datastore};
use crate::host::files::FileError;

/// An image that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// A container image.
    Container {
        /// Its root file system, EROFS.
        rootfs: PathBuf,
        /// What it says of its process.
        config: ImageConfig,
        /// The process's user as numbers.
        notes: Notes,
    },
    /// A machine image.
    Machine {
        /// Kernel file.
        kernel: PathBuf,
        /// Initial RAM file systems.
        initrds: Vec<PathBuf>,
        /// The root disk that volumes start as.
        disk: PathBuf,
        /// Its size in bytes, as a file.
        disk_bytes: u64,
        /// How its bytes are to be read.
        format: DiskFormat,
    },
}

/// A content tree that could not be brought here.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// A manifest or config cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The registry did not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its root file system could not be made.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The disk failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// It goes round in circles.
    #[error("the image index {0} leads to another index; that is not supported")]
    Nested(Digest),
    /// A panic in this agent.
    #[error("bringing it here met a fault of the agent: {0}")]
    Fault(tokio::task::JoinError),
}

/// What is here of a content tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The manifest: the content's own digest, or the one that its index leads to.
    manifest: Digest,
    /// The index on the way there.
    index: Option<Digest>,
    /// The manifest's content, if it is here.
    document: Option<Document>,
    /// The image config, if it is here (containers).
    config: Option<ImageConfig>,
    /// Blobs that are not here, with the bytes of each that are.
    missing: Vec<Descriptor>,
    /// The root file system's notes, if it is ready (containers).
    notes: Option<Notes>,
}

/// The next step towards an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Fetch a manifest.
    Manifest(Digest),
    /// Fetch blobs.
    Blobs(Vec<Descriptor>),
    /// Make the root file system.
    Rootfs(Vec<Layer>, ImageConfig),
    /// All is here: a container.
    Container(ImageConfig, Notes),
    /// All is here: a machine.
    Machine {
        /// The kernel's blob.
        kernel: Descriptor,
        /// The initial RAM file systems' blobs.
        initrds: Vec<Descriptor>,
        /// The root disk's blob.
        disk: Descriptor,
    },
    /// The content leads from index to index.
    Nested,
}

/// Decides the next step.
#[must_use]
pub fn plan(facts: &Facts) -> Step {
    match &facts.document {
        None => Step::Manifest(facts.manifest),
        Some(Document::Index(_)) => Step::Nested,
        Some(_) if !facts.missing.is_empty() => Step::Blobs(facts.missing.clone()),
        Some(Document::Machine {
            kernel,
            initrds,
            disk,
        }) => Step::Machine {
            kernel: kernel.clone(),
            initrds: initrds.clone(),
            disk: disk.clone(),
        },
        Some(Document::Container { config: at, layers }) => match (&facts.config, &facts.notes) {
            // A config blob that was damaged on the disk is fetched again.
            (None, _) => Step::Blobs(vec![at.clone()]),
            (Some(config), None) => Step::Rootfs(layers.clone(), config.clone()),
            (Some(config), Some(notes)) => Step::Container(config.clone(), notes.clone()),
        },
    }
}

/// Looks at what is here of a content tree.
pub fn look(store: &Store, content: &Content) -> Result<Facts, ContentError> {
    let mut facts = Facts {
        manifest: content.digest,
        index: None,
        document: None,
        config: None,
        missing: Vec::new(),
        notes: None,
    };
    let read = |digest: &Digest| -> Result<Option<Document>, ContentError> {
        match store.document(digest)? {
            Some(bytes) => Ok(Some(manifest::parse(&bytes, content.kind)?)),
            None => Ok(None),
        }
    };
    facts.document = read(&facts.manifest)?;
    if let Some(Document::Index(chosen)) = &facts.document {
        facts.index = Some(facts.manifest);
        facts.manifest = chosen.digest;
        facts.document = read(&facts.manifest)?;
    }
    if let Some(document) = &facts.document {
        facts.missing = document
            .blobs()
            .into_iter()
            .filter(|blob| !store.has(blob))
            .cloned()
            .collect();
        if let Document::Container { config, .. } = document {
            if let Some(bytes) = store.document(&config.digest)? {
                facts.config = Some(manifest::parse_config(&bytes)?);
            }
            facts.notes = rootfs::ready(store, &facts.manifest)?;
        }
    }
    Ok(facts)
}

/// The blobs that a content tree refers to, as far as is known here, and the manifest that its root file system is named
/// after.
pub fn references(store: &Store, content: &Content) -> (Vec<Digest>, Option<Digest>) {
    match look(store, content) {
        Ok(facts) => {
            let blobs = facts
                .document
                .iter()
                .flat_map(Document::blobs)
                .map(|blob| blob.digest);
            let all = blobs.chain([facts.manifest]).chain(facts.index).collect();
            (all, Some(facts.manifest))
        }
        // What cannot be read refers to nothing; its own manifest stays, so that it is not fetched in circles.
        Err(_) => (vec![content.digest], None),
    }
}

/// Brings a content tree here, step by step, until it is an image.
pub async fn bring(
    store: &Store,
    content: &Content,
    datastore: &Datastore,
    progress: &Progress,
) -> Result<Image, ContentError> {
    // Made when first needed: what is here already needs no registry and no certificates.
    let mut registry = None;
    loop {
        let facts = {
            let (store, content) = (store.clone(), content.clone());
            tokio::task::spawn_blocking(move || look(&store, &content))
                .await
                .map_err(|_| RootfsError::Interrupted)??
        };
        if let Some(document) = &facts.document {
            let blobs = document.blobs();
            progress.expect(blobs.iter().map(|blob| blob.size).sum());
            progress.set(blobs.iter().map(|blob| store.held(blob)).sum());
        }
        match plan(&facts) {
            Step::Manifest(digest) => {
                let registry = open(&mut registry, datastore)?;
                let bytes = registry.manifest(&content.repository, &digest).await?;
                // Read before it is kept: what cannot be used is not worth its place.
                manifest::parse(&bytes, content.kind)?;
                store.keep_document(&digest, &bytes)?;
            }
            Step::Blobs(blobs) => {
                let registry = open(&mut registry, datastore)?;
                for blob in &blobs {
                    store
                        .fetch(registry, &content.repository, blob, progress)
                        .await?;
                }
            }
            Step::Rootfs(layers, config) => {
                rootfs::build(store, facts.manifest, &layers, &config).await?;
            }
            Step::Container(config, notes) => {
                return Ok(Image::Container {
                    rootfs: store.rootfs(&facts.manifest),
                    config,
                    notes,
                });
            }
            Step::Machine {
                kernel,
                initrds,
                disk,
            } => {
                return Ok(Image::Machine {
                    kernel: store.blob(&kernel.digest),
                    initrds: initrds
                        .iter()
                        .map(|initrd| store.blob(&initrd.digest))
                        .collect(),
                    disk: store.blob(&disk.digest),
                    disk_bytes: disk.size,
                    format: content.kind.disk_format(),
                });
            }
            Step::Nested => {
                return Err(ContentError::Nested(facts.index.unwrap_or(facts.manifest)));
            }
        }
    }
}

fn open<'a>(
    registry: &'a mut Option<Registry>,
    datastore: &Datastore,
) -> Result<&'a Registry, RegistryError> {
    match registry {
        Some(registry) => Ok(registry),
        None => Ok(registry.insert(Registry::new(datastore)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::content::manifest::Packing;

    fn blob(n: u8) -> Descriptor {
        Descriptor {
            digest: Digest::of(&[n]),
            size: u64::from(n),
        }
    }

    fn container() -> Document {
        Document::Container {
            config: blob(1),
            layers: vec![Layer {
                blob: blob(2),
                packing: Packing::Gzip,
            }],
        }
    }

    #[test]
    fn each_step_follows_from_what_is_here() {
        let nothing = Facts {
            manifest: Digest::of(b"m"),
            index: None,
            document: None,
            config: None,
            missing: vec![],
            notes: None,
        };
        assert_eq!(plan(&nothing), Step::Manifest(Digest::of(b"m")));

        let manifest_only = Facts {
            document: Some(container()),
            missing: vec![blob(2), blob(1)],
            ..nothing.clone()
        };
        assert_eq!(plan(&manifest_only), Step::Blobs(vec![blob(2), blob(1)]));

        let damaged_config = Facts {
            document: Some(container()),
            ..nothing.clone()
        };
        assert_eq!(plan(&damaged_config), Step::Blobs(vec![blob(1)]));

        let blobs = Facts {
            config: Some(ImageConfig::default()),
            ..damaged_config.clone()
        };
        assert!(matches!(plan(&blobs), Step::Rootfs(layers, _) if layers.len() == 1));

        let all = Facts {
            notes: Some(Notes::default()),
            ..blobs.clone()
        };
        assert!(matches!(plan(&all), Step::Container(..)));

        let index_to_index = Facts {
            document: Some(Document::Index(blob(3))),
            index: Some(Digest::of(b"i")),
            ..nothing.clone()
        };
        assert_eq!(plan(&index_to_index), Step::Nested);

        let machine = Facts {
            document: Some(Document::Machine {
                kernel: blob(4),
                initrds: vec![],
                disk: blob(5),
            }),
            ..nothing
        };
        assert!(matches!(plan(&machine), Step::Machine { .. }));
    }
}
