//! An OCI image layout (OCI Image Specification 1.1, image-layout.md): a folder with `index.json` and blobs by digest.
//!
//! Its image is pushed as it is, byte for byte, so that the digest stays what the builder said. Every manifest on the way
//! is checked against its digest before anything is sent; blobs are checked by the registry.

use std::path::{Path, PathBuf};

use imaging::digest::Digest;
use operator_api::MAX_MANIFEST;
use serde::Deserialize;

use super::{Blob, Manifest, Plan, Source};
use crate::failure::Failure;

/// How deep indexes may lie in each other.
const MAX_DEPTH: usize = 4;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
}

/// The parts of an index or a manifest that refer to others.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// Reads the layout in `dir`, which must hold one image. That may be an index of images for several processors.
pub fn plan(dir: &Path) -> Result<Plan, Failure> {
    let index = dir.join("index.json");
    let bytes = read(&index).map_err(|failure| match index.exists() {
        true => failure,
        false => Failure::not_found(format!(
            "{} is no OCI image layout: it has no index.json",
            dir.display()
        )),
    })?;
    let document: Document = serde_json::from_slice(&bytes).map_err(Failure::content(&index))?;
    let [image] = document.manifests.as_slice() else {
        return Err(Failure::usage(format!(
            "{} names {} images; exactly one can be pushed",
            index.display(),
            document.manifests.len()
        )));
    };
    let mut plan = Plan {
        blobs: Vec::new(),
        manifests: Vec::new(),
    };
    collect(dir, image, 0, &mut plan)?;
    Ok(plan)
}

fn collect(
    dir: &Path,
    descriptor: &Descriptor,
    depth: usize,
    plan: &mut Plan,
) -> Result<(), Failure> {
    let digest = read_digest(dir, &descriptor.digest)?;
    let path = blob_path(dir, &digest);
    // Once is enough: indexes that name each other many times over would take for ever.
    if plan
        .manifests
        .iter()
        .any(|manifest| manifest.digest == digest)
    {
        return Ok(());
    }
    if depth > MAX_DEPTH {
        return Err(Failure::error(format!(
            "{}: indexes lie in each other too deep",
            path.display()
        )));
    }
    let bytes = read(&path)?;
    if Digest::of(&bytes) != digest {
        return Err(Failure::error(format!(
            "{} does not have the digest that it is named by",
            path.display()
        )));
    }
    let document: Document = serde_json::from_slice(&bytes).map_err(Failure::content(&path))?;
    for inner in &document.manifests {
        collect(dir, inner, depth + 1, plan)?;
    }
    for blob in document.config.iter().chain(&document.layers) {
        add_blob(dir, blob, plan)?;
    }
    let media_type = document
        .media_type
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| descriptor.media_type.clone());
    if media_type.is_empty() {
        return Err(Failure::error(format!(
            "{} has no media type, neither in itself nor in index.json",
            path.display()
        )));
    }
    plan.manifests.push(Manifest {
        digest,
        media_type,
        bytes,
    });
    Ok(())
}

fn add_blob(dir: &Path, blob: &Descriptor, plan: &mut Plan) -> Result<(), Failure> {
    let digest = read_digest(dir, &blob.digest)?;
    if plan.blobs.iter().any(|known| known.digest == digest) {
        return Ok(());
    }
    let path = blob_path(dir, &digest);
    let size = std::fs::metadata(&path)
        .map_err(Failure::io("read", &path))?
        .len();
    if size != blob.size {
        return Err(Failure::error(format!(
            "{} has {size} bytes and should have {}",
            path.display(),
            blob.size
        )));
    }
    let title = blob.digest.get(..19).unwrap_or(&blob.digest).to_owned();
    plan.blobs.push(Blob {
        digest,
        source: Source::File { path, size },
        title,
    });
    Ok(())
}

fn read_digest(dir: &Path, text: &str) -> Result<Digest, Failure> {
    text.parse().map_err(|_| {
        Failure::error(format!(
            "the layout in {} names `{text}`, which is no sha256 digest",
            dir.display()
        ))
    })
}

/// `blobs/sha256/<hex>`.
fn blob_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs/sha256").join(digest.hex())
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(Failure::io("read", path))?;
    let mut bytes = Vec::new();
    file.take(MAX_MANIFEST + 1)
        .read_to_end(&mut bytes)
        .map_err(Failure::io("read", path))?;
    if bytes.len() as u64 > MAX_MANIFEST {
        return Err(Failure::error(format!(
            "{} is larger than {MAX_MANIFEST} bytes",
            path.display()
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::failure::Exit;

    /// A layout in the making.
    struct Layout(tempfile::TempDir);

    impl Layout {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
            Self(dir)
        }

        fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
            let digest = Digest::of(bytes);
            std::fs::write(blob_path(self.0.path(), &digest), bytes).unwrap();
            json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
        }

        fn image(&self, layer: &[u8]) -> Value {
            let config = self.blob("config", b"{}");
            let layer = self.blob("layer", layer);
            let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer, layer]});
            self.blob("manifest", manifest.to_string().as_bytes())
        }

        fn index(&self, images: &[Value]) {
            std::fs::write(
                self.0.path().join("index.json"),
                json!({"manifests": images}).to_string(),
            )
            .unwrap();
        }

        fn plan(&self) -> Result<Plan, Failure> {
            plan(self.0.path())
        }
    }

    #[test]
    fn an_image_is_planned_as_it_is() {
        let layout = Layout::new();
        let image = layout.image(b"layer");
        layout.index(std::slice::from_ref(&image));
        let plan = layout.plan().unwrap();
        assert_eq!(
            plan.blobs
                .iter()
                .map(|blob| blob.source.size())
                .collect::<Vec<_>>(),
            [2, 5]
        );
        let [manifest] = plan.manifests.as_slice() else {
            panic!("one manifest")
        };
        assert_eq!(
            manifest.digest.to_string(),
            image["digest"].as_str().unwrap()
        );
        assert_eq!(manifest.media_type, "manifest");
    }

    #[test]
    fn an_index_comes_after_its_images() {
        let layout = Layout::new();
        let (one, two) = (layout.image(b"one"), layout.image(b"two"));
        let inner = json!({"mediaType": "index", "manifests": [one, two]});
        let index = layout.blob("index", inner.to_string().as_bytes());
        layout.index(std::slice::from_ref(&index));
        let plan = layout.plan().unwrap();
        assert_eq!(plan.blobs.len(), 3);
        let digests: Vec<_> = plan
            .manifests
            .iter()
            .map(|manifest| manifest.digest.to_string())
            .collect();
        assert_eq!(
            digests,
            [&one, &two, &index].map(|descriptor| descriptor["digest"].as_str().unwrap())
        );
        assert_eq!(plan.manifests[2].media_type, "index");
    }

    #[test]
    fn an_index_that_is_named_many_times_is_read_once() {
        let layout = Layout::new();
        let mut inner = layout.image(b"one");
        for _ in 0..MAX_DEPTH {
            let index = json!({"mediaType": "index", "manifests": vec![inner; 1000]});
            inner = layout.blob("index", index.to_string().as_bytes());
        }
        layout.index(&[inner]);
        assert_eq!(layout.plan().unwrap().manifests.len(), 1 + MAX_DEPTH);
    }

    #[test]
    fn bad_layouts_are_refused() {
        let layout = Layout::new();
        assert_eq!(layout.plan().unwrap_err().exit(), Exit::NotFound);
        layout.index(&[]);
        assert_eq!(layout.plan().unwrap_err().exit(), Exit::Usage);
        for digest in [
            "sha256:../../../etc/passwd",
            "sha512:00",
            "",
            &format!("sha256:{}", "A".repeat(64)),
        ] {
            layout.index(&[json!({"mediaType": "manifest", "digest": digest, "size": 1})]);
            assert!(
                layout
                    .plan()
                    .unwrap_err()
                    .to_string()
                    .contains("no sha256 digest")
            );
        }
        let image = layout.image(b"layer");
        layout.index(std::slice::from_ref(&image));
        let path = blob_path(
            layout.0.path(),
            &image["digest"].as_str().unwrap().parse().unwrap(),
        );
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&good[..], b" "].concat()).unwrap();
        assert!(
            layout
                .plan()
                .unwrap_err()
                .to_string()
                .contains("does not have the digest")
        );
        std::fs::write(&path, good).unwrap();
        std::fs::write(blob_path(layout.0.path(), &Digest::of(b"layer")), b"cut").unwrap();
        assert!(
            layout
                .plan()
                .unwrap_err()
                .to_string()
                .contains("has 3 bytes and should have 5")
        );
    }
}
