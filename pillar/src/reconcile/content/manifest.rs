//! Reads image manifests, image indexes and image configs (OCI Image Specification 1.1; Docker Image Manifest V2 Schema 2,
//! which differs only in its media types).
//!
//! All of it comes from a registry. The bytes were checked against a digest before they come here, but whoever made the
//! digest may have made the bytes to hurt: counts and sizes are bounded, and what is unknown is refused by name.

use std::collections::BTreeMap;

use protocol::digest::{Digest, DigestError};
use serde::Deserialize;

use crate::domain::desired::ContentKind;

/// Largest manifest, index or config that is read.
pub const DOCUMENT_LIMIT: u64 = protocol::image::MAX_MANIFEST;

/// Most layers in an image. Docker stops at 127.
const LAYER_LIMIT: usize = 128;

/// Largest blob, 1 TiB.
const BLOB_LIMIT: u64 = 1 << 40;

/// The annotation that gives a layer of a machine image its role (LF Edge, Edge Container Images).
const ROLE: &str = "org.lfedge.eci.role";

/// A document that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not the JSON that it should be.
    #[error("the {what} is not valid JSON of its kind: {source}")]
    Json {
        /// Manifest, index or config.
        what: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A digest in it cannot be used.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// It says something that is not supported or makes no sense.
    #[error("{0}")]
    Unsupported(String),
}

fn unsupported<T>(message: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError::Unsupported(message.into()))
}

/// A reference to a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// How a container layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// A plain tar archive.
    Tar,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// A layer of a container image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its blob.
    pub blob: Descriptor,
    /// How it is packed.
    pub packing: Packing,
}

/// What a manifest leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// An index: another manifest, the one for this device's processor.
    Index(Descriptor),
    /// A container image.
    Container {
        /// Its config.
        config: Descriptor,
        /// Its layers, the lowest first.
        layers: Vec<Layer>,
    },
    /// A machine image.
    Machine {
        /// The kernel.
        kernel: Descriptor,
        /// Initial RAM file systems, in order.
        initrds: Vec<Descriptor>,
        /// The root disk.
        disk: Descriptor,
    },
}

impl Document {
    /// All blobs that it needs.
    #[must_use]
    pub fn blobs(&self) -> Vec<&Descriptor> {
        match self {
            Document::Index(manifest) => vec![manifest],
            Document::Container { config, layers } => std::iter::once(config)
                .chain(layers.iter().map(|layer| &layer.blob))
                .collect(),
            Document::Machine {
                kernel,
                initrds,
                disk,
            } => std::iter::once(kernel)
                .chain(initrds)
                .chain(std::iter::once(disk))
                .collect(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
}

impl RawDescriptor {
    fn checked(&self, limit: u64, what: &str) -> Result<Descriptor, ManifestError> {
        if self.size > limit {
            return unsupported(format!(
                "the {what} {} is said to have {} bytes; at most {limit} are taken",
                self.digest, self.size
            ));
        }
        Ok(Descriptor {
            digest: self.digest.parse()?,
            size: self.size,
        })
    }
}

const IMAGE_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// The media types that are asked for at a registry.
#[must_use]
pub fn accepted_types() -> String {
    [IMAGE_TYPES, INDEX_TYPES].concat().join(", ")
}

/// The processor architecture of this device, as images name it.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Reads a manifest or index of content of the given kind.
pub fn parse(bytes: &[u8], kind: ContentKind) -> Result<Document, ManifestError> {
    let raw: RawDocument = serde_json::from_slice(bytes).map_err(|source| ManifestError::Json {
        what: "manifest",
        source,
    })?;
    if raw.schema_version != 2 {
        return unsupported(format!(
            "manifests of schema version {} are not supported, only 2",
            raw.schema_version
        ));
    }
    // A document that could be read as either kind is refused, whatever type it claims (OCI Image Specification 1.1,
    // manifest.md and image-index.md forbid the other's field for this reason).
    match (raw.manifests, raw.layers) {
        (Some(_), Some(_)) => unsupported("the manifest has both layers and manifests"),
        (None, None) => unsupported("the manifest has neither layers nor manifests"),
        (Some(manifests), None) => {
            check_type(raw.media_type.as_deref(), &INDEX_TYPES)?;
            choose(&manifests)
        }
        (None, Some(layers)) => {
            check_type(raw.media_type.as_deref(), &IMAGE_TYPES)?;
            if layers.len() > LAYER_LIMIT {
                return unsupported(format!(
                    "the image has {} layers; at most {LAYER_LIMIT} are taken",
                    layers.len()
                ));
            }
            match kind {
                ContentKind::Container => container(raw.config.as_ref(), &layers),
                ContentKind::MachineRaw | ContentKind::MachineQcow2 => machine(&layers),
            }
        }
    }
}

fn check_type(found: Option<&str>, expected: &[&str]) -> Result<(), ManifestError> {
    match found {
        // OCI makes the field optional; the structure has already said what it is.
        None | Some("") => Ok(()),
        Some(found) if expected.contains(&found) => Ok(()),
        Some(found) => unsupported(format!(
            "the manifest's media type is {}; expected {}",
            short(found),
            expected.join(" or ")
        )),
    }
}

fn choose(manifests: &[RawDescriptor]) -> Result<Document, ManifestError> {
    let wanted = architecture();
    let fits = |entry: &&RawDescriptor| {
        entry
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os == "linux" && platform.architecture == wanted)
    };
    match manifests.iter().find(fits) {
        Some(entry) => Ok(Document::Index(entry.checked(DOCUMENT_LIMIT, "manifest")?)),
        None => {
            let offered: Vec<String> = manifests
                .iter()
                .filter_map(|entry| entry.platform.as_ref())
                .take(20)
                .map(|platform| short(&format!("{}/{}", platform.os, platform.architecture)))
                .collect();
            unsupported(format!(
                "the image index offers nothing for linux/{wanted}, only: {}",
                offered.join(", ")
            ))
        }
    }
}

fn container(
    config: Option<&RawDescriptor>,
    layers: &[RawDescriptor],
) -> Result<Document, ManifestError> {
    let Some(config) = config else {
        return unsupported("the container image's manifest names no config");
    };
    match config.media_type.as_str() {
        "application/vnd.oci.image.config.v1+json"
        | "application/vnd.docker.container.image.v1+json" => {}
        other => {
            return unsupported(format!(
                "the config's media type is {}: this is not a container image",
                short(other)
            ));
        }
    }
    let layers = layers
        .iter()
        .map(|layer| {
            let packing = match layer.media_type.as_str() {
                "application/vnd.oci.image.layer.v1.tar"
                | "application/vnd.docker.image.rootfs.diff.tar" => Packing::Tar,
                "application/vnd.oci.image.layer.v1.tar+gzip"
                | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Packing::Gzip,
                "application/vnd.oci.image.layer.v1.tar+zstd"
                | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Packing::Zstd,
                other => {
                    return unsupported(format!(
                        "layers of media type {} are not supported; tar, tar+gzip and tar+zstd are",
                        short(other)
                    ));
                }
            };
            Ok(Layer {
                blob: layer.checked(BLOB_LIMIT, "layer")?,
                packing,
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Document::Container {
        config: config.checked(DOCUMENT_LIMIT, "config")?,
        layers,
    })
}

fn machine(layers: &[RawDescriptor]) -> Result<Document, ManifestError> {
    let (mut kernel, mut initrds, mut disk) = (None, Vec::new(), None);
    for layer in layers {
        if layer.media_type.ends_with("+gzip") || layer.media_type.ends_with("+zstd") {
            return unsupported(format!(
                "layers of machine images must not be compressed, but one is {}",
                short(&layer.media_type)
            ));
        }
        let role = layer
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(ROLE))
            .map_or("", String::as_str);
        let blob = layer.checked(BLOB_LIMIT, "layer")?;
        match role {
            "kernel" if kernel.is_none() => kernel = Some(blob),
            "disk-root" if disk.is_none() => disk = Some(blob),
            "initrd" => initrds.push(blob),
            "kernel" | "disk-root" => {
                return unsupported(format!(
                    "the machine image has two layers of the role {role}"
                ));
            }
            "" => {
                return unsupported(format!(
                    "a layer of the machine image has no annotation {ROLE}"
                ));
            }
            other => {
                return unsupported(format!(
                    "layers of the role {} are not supported; kernel, initrd and disk-root are",
                    short(other)
                ));
            }
        }
    }
    match (kernel, disk) {
        (Some(kernel), Some(disk)) => Ok(Document::Machine {
            kernel,
            initrds,
            disk,
        }),
        (None, _) => unsupported(format!("the machine image has no layer with {ROLE}=kernel")),
        (_, None) => unsupported(format!(
            "the machine image has no layer with {ROLE}=disk-root"
        )),
    }
}

/// Text from outside, fit for a message.
fn short(text: &str) -> String {
    text.chars()
        .take(120)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// What a container image says of its process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// User, `name`, `uid`, `name:group` or `uid:gid`; empty is root.
    #[serde(deserialize_with = "nullable")]
    pub user: String,
    /// Environment, `NAME=value`.
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Program and first arguments.
    #[serde(deserialize_with = "nullable")]
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program if there is no entry point.
    #[serde(deserialize_with = "nullable")]
    pub cmd: Vec<String>,
    /// Working directory; empty is `/`.
    #[serde(deserialize_with = "nullable")]
    pub working_dir: String,
    /// Signal that ends it nicely, `SIGTERM` or a number; empty is SIGTERM.
    #[serde(deserialize_with = "nullable")]
    pub stop_signal: String,
}

/// Go writes empty lists as null.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads an image config.
pub fn parse_config(bytes: &[u8]) -> Result<ImageConfig, ManifestError> {
    #[derive(Deserialize)]
    struct Outer {
        #[serde(default)]
        architecture: String,
        #[serde(default)]
        os: String,
        #[serde(default)]
        config: Option<ImageConfig>,
    }
    let outer: Outer = serde_json::from_slice(bytes).map_err(|source| ManifestError::Json {
        what: "image config",
        source,
    })?;
    if outer.os != "linux" || outer.architecture != architecture() {
        return unsupported(format!(
            "the image is for {}, this device needs linux/{}",
            short(&format!("{}/{}", outer.os, outer.architecture)),
            architecture()
        ));
    }
    let config = outer.config.unwrap_or_default();
    let texts = [&config.user, &config.working_dir, &config.stop_signal]
        .into_iter()
        .chain(&config.env)
        .chain(&config.entrypoint)
        .chain(&config.cmd);
    for text in texts {
        if text.contains('\0') {
            return unsupported("a text of the image config contains a zero byte");
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn digest(n: u8) -> String {
        Digest::of(&[n]).to_string()
    }

    fn read(value: &Value, kind: ContentKind) -> Result<Document, ManifestError> {
        parse(value.to_string().as_bytes(), kind)
    }

    fn container_manifest(layer_type: &str) -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(1), "size": 10},
            "layers": [{"mediaType": layer_type, "digest": digest(2), "size": 20}],
        })
    }

    #[test]
    fn container_images_of_both_families_are_read() {
        for (layer_type, packing) in [
            ("application/vnd.oci.image.layer.v1.tar", Packing::Tar),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Packing::Zstd),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                Packing::Gzip,
            ),
        ] {
            let Document::Container { config, layers } =
                read(&container_manifest(layer_type), ContentKind::Container).unwrap()
            else {
                panic!("not a container");
            };
            assert_eq!(
                (config.size, layers.len(), layers[0].packing),
                (10, 1, packing)
            );
        }
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        let good = container_manifest("application/vnd.oci.image.layer.v1.tar");
        let mut cases: Vec<(Value, &str)> = vec![
            (
                container_manifest("application/vnd.oci.image.layer.nondistributable.v1.tar"),
                "nondistributable",
            ),
            (json!({"schemaVersion": 1}), "schema version 1"),
            (json!({"schemaVersion": 2}), "neither"),
            (json!([]), "JSON"),
        ];
        let mut change = |pointer: &str, value: Value, said| {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            cases.push((bad, said));
        };
        change("/mediaType", json!("text/html"), "text/html");
        change(
            "/config/mediaType",
            json!("application/vnd.evil"),
            "not a container image",
        );
        change("/layers/0/digest", json!("md5:00"), "not a digest");
        change("/layers/0/size", json!(u64::MAX), "at most");
        change("/layers/0/size", json!(-1), "JSON");
        change("/config/size", json!(DOCUMENT_LIMIT + 1), "at most");
        change(
            "/layers",
            Value::Array(vec![good["layers"][0].clone(); 129]),
            "129 layers",
        );
        let mut both = good.clone();
        both["manifests"] = json!([]);
        cases.push((both, "both"));
        for (value, said) in cases {
            let error = read(&value, ContentKind::Container)
                .unwrap_err()
                .to_string();
            assert!(error.contains(said), "{error} should contain {said}");
        }
    }

    #[test]
    fn an_index_leads_to_this_processors_manifest() {
        let entry = |arch: &str, n| json!({"mediaType": IMAGE_TYPES[0], "digest": digest(n), "size": 5, "platform": {"os": "linux", "architecture": arch}});
        let index = json!({"schemaVersion": 2, "manifests": [entry("riscv64", 1), entry(architecture(), 2)]});
        let Document::Index(chosen) = read(&index, ContentKind::Container).unwrap() else {
            panic!("not an index");
        };
        assert_eq!(chosen.digest, Digest::of(&[2]));
        let index = json!({"schemaVersion": 2, "manifests": [entry("riscv64", 1)]});
        let error = read(&index, ContentKind::Container)
            .unwrap_err()
            .to_string();
        assert!(error.contains("linux/riscv64"), "{error}");
    }

    fn machine_layer(role: &str, n: u8) -> Value {
        json!({"mediaType": "application/octet-stream", "digest": digest(n), "size": n, "annotations": {ROLE: role}})
    }

    #[test]
    fn machine_images_are_read_by_role() {
        let image = |layers: Vec<Value>| json!({"schemaVersion": 2, "layers": layers});
        let good = image(vec![
            machine_layer("disk-root", 1),
            machine_layer("kernel", 2),
            machine_layer("initrd", 3),
        ]);
        let Document::Machine {
            kernel,
            initrds,
            disk,
        } = read(&good, ContentKind::MachineRaw).unwrap()
        else {
            panic!("not a machine");
        };
        assert_eq!((kernel.size, initrds.len(), disk.size), (2, 1, 1));
        for (layers, said) in [
            (vec![machine_layer("kernel", 1)], "disk-root"),
            (vec![machine_layer("disk-root", 1)], "kernel"),
            (
                vec![machine_layer("kernel", 1), machine_layer("kernel", 2)],
                "two layers",
            ),
            (vec![machine_layer("disk-additional", 1)], "disk-additional"),
            (
                vec![json!({"mediaType": "x", "digest": digest(1), "size": 1})],
                "no annotation",
            ),
            (
                vec![json!({"mediaType": "x+gzip", "digest": digest(1), "size": 1})],
                "compressed",
            ),
        ] {
            let error = read(&image(layers), ContentKind::MachineQcow2)
                .unwrap_err()
                .to_string();
            assert!(error.contains(said), "{error} should contain {said}");
        }
    }

    #[test]
    fn configs_are_read_with_gos_nulls() {
        let config = parse_config(
            json!({"os": "linux", "architecture": architecture(), "config":
                {"Cmd": ["sh"], "Entrypoint": null, "Env": ["A=b"], "Volumes": {"/data": {}}}})
            .to_string()
            .as_bytes(),
        )
        .unwrap();
        assert_eq!(
            (config.cmd, config.entrypoint, config.env),
            (vec!["sh".into()], vec![], vec!["A=b".into()])
        );
        let error = parse_config(br#"{"os":"windows","architecture":"amd64"}"#)
            .unwrap_err()
            .to_string();
        assert!(error.contains("windows/amd64"), "{error}");
        let zero =
            json!({"os": "linux", "architecture": architecture(), "config": {"Cmd": ["a\0b"]}})
                .to_string();
        assert!(parse_config(zero.as_bytes()).is_err());
    }
}
