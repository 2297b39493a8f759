//! A machine image as an OCI artifact: disk, kernel and initial RAM disks as layers with the annotations and media types
//! of LF Edge's Edge Container Images, so that EVE devices understand it, too.

use std::path::{Path, PathBuf};

use imaging::digest::Digest;
use operator_api::DiskFormat;
use serde_json::{Value, json};

use super::{Blob, Manifest, Plan, Source, digest_of_file};
use crate::failure::Failure;

/// What a layer is for: `disk-root`, `kernel`, `initrd`.
const ROLE: &str = "org.lfedge.eci.role";
/// The layer's media type once more, for registries that allow standard ones only.
const MEDIA_TYPE: &str = "org.lfedge.eci.mediaType";
/// Name of the file that the layer was made from.
const TITLE: &str = "org.opencontainers.image.title";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// First bytes of a qcow2 image (QEMU, docs/interop/qcow2.txt).
const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";

/// The files of a machine image.
pub struct Machine {
    /// Root disk.
    pub disk: PathBuf,
    /// Format of the disk.
    pub format: DiskFormat,
    /// Kernel to start it with.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disks, in order.
    pub initrds: Vec<PathBuf>,
}

/// Hashes the files and makes the manifest.
pub fn plan(machine: &Machine) -> Result<Plan, Failure> {
    check_format(machine)?;
    let disk_type = match machine.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    };
    let mut files = vec![(
        &machine.disk,
        "disk-root",
        format!("application/vnd.lfedge.disk.layer.v1+{disk_type}"),
    )];
    files.extend(
        machine
            .kernel
            .iter()
            .map(|path| (path, "kernel", layer_type("kernel"))),
    );
    files.extend(
        machine
            .initrds
            .iter()
            .map(|path| (path, "initrd", layer_type("initrd"))),
    );

    let mut blobs: Vec<Blob> = Vec::new();
    let mut layers = Vec::new();
    for (path, role, media_type) in files {
        let title = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let (digest, size) = digest_of_file(path, &title)?;
        layers.push(json!({
            "mediaType": media_type,
            "digest": digest,
            "size": size,
            "annotations": {ROLE: role, MEDIA_TYPE: media_type, TITLE: title},
        }));
        if !blobs.iter().any(|blob| blob.digest == digest) {
            blobs.push(Blob {
                digest,
                source: Source::File {
                    path: path.clone(),
                    size,
                },
                title,
            });
        }
    }
    // Registries want a config that is an image's; what is in it comes from nowhere but the processor it is for.
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| layer["digest"].clone()).collect::<Vec<Value>>()},
    })
    .to_string()
    .into_bytes();
    let config_digest = Digest::of(&config);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config_digest, "size": config.len()},
        "layers": layers,
    })
    .to_string()
    .into_bytes();
    blobs.push(Blob {
        digest: config_digest,
        source: Source::Bytes(config),
        title: "config".to_owned(),
    });
    let digest = Digest::of(&manifest);
    Ok(Plan {
        blobs,
        manifests: vec![Manifest {
            digest,
            media_type: MANIFEST.to_owned(),
            bytes: manifest,
        }],
    })
}

fn layer_type(role: &str) -> String {
    format!("application/vnd.lfedge.eci.{role}.layer.v1.tar")
}

/// Only catches slips: a qcow2 file that is called raw would reach the guest as a disk full of rubbish. The format that
/// counts is the one that the operator states, since a guest can write any first bytes into a raw disk.
fn check_format(machine: &Machine) -> Result<(), Failure> {
    let looks_like_qcow2 = first_bytes(&machine.disk)? == *QCOW2_MAGIC;
    match (machine.format, looks_like_qcow2) {
        (DiskFormat::Qcow2, false) => Err(Failure::usage(format!(
            "{} is not qcow2: it does not begin as one; is it raw?",
            machine.disk.display()
        ))),
        (DiskFormat::Raw, true) => Err(Failure::usage(format!(
            "{} begins as qcow2 does; push it with --format qcow2, or convert it: qemu-img convert -O raw",
            machine.disk.display()
        ))),
        _ => Ok(()),
    }
}

fn first_bytes(path: &Path) -> Result<[u8; 4], Failure> {
    use std::io::Read as _;
    let mut file = std::fs::File::open(path).map_err(Failure::io("read", path))?;
    let mut bytes = [0; 4];
    match file.read_exact(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok([0; 4]),
        Err(error) => Err(Failure::io("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    fn machine(dir: &Path, disk: &[u8], format: DiskFormat) -> Machine {
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        Machine {
            disk: file("disk.img", disk),
            format,
            kernel: Some(file("vmlinuz", b"kernel")),
            initrds: vec![
                file("a.img", b"first"),
                file("b.img", b"second"),
                file("c.img", b"first"),
            ],
        }
    }

    #[test]
    fn the_manifest_names_every_file_with_its_role() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(&machine(
            dir.path(),
            b"QFI\xfb and so on",
            DiskFormat::Qcow2,
        ))
        .unwrap();
        let [manifest] = plan.manifests.as_slice() else {
            panic!("one manifest")
        };
        assert_eq!(manifest.digest, Digest::of(&manifest.bytes));
        let json: Value = serde_json::from_slice(&manifest.bytes).unwrap();
        assert_eq!(json["mediaType"], MANIFEST);
        let layers: Vec<_> = json["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| {
                let note = |key: &str| layer["annotations"][key].as_str().unwrap();
                assert_eq!(note(MEDIA_TYPE), layer["mediaType"].as_str().unwrap());
                (note(ROLE), note(TITLE), layer["size"].as_u64().unwrap())
            })
            .collect();
        assert_eq!(
            layers,
            [
                ("disk-root", "disk.img", 14),
                ("kernel", "vmlinuz", 6),
                ("initrd", "a.img", 5),
                ("initrd", "b.img", 6),
                ("initrd", "c.img", 5)
            ]
        );
        assert_eq!(
            json["layers"][0]["mediaType"],
            "application/vnd.lfedge.disk.layer.v1+qcow2"
        );
        assert_eq!(
            json["layers"][1]["digest"],
            Digest::of(b"kernel").to_string()
        );
        // The same bytes twice are one blob; the config is a blob, too.
        assert_eq!(plan.blobs.len(), 5);
        let config = plan.blobs.last().unwrap();
        assert_eq!(json["config"]["digest"], config.digest.to_string());
        assert_eq!(json["config"]["size"], config.source.size());
    }

    #[test]
    fn the_same_files_make_the_same_image() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path(), b"bytes of a disk", DiskFormat::Raw);
        assert_eq!(plan(&machine).unwrap(), plan(&machine).unwrap());
    }

    #[test]
    fn slips_are_caught() {
        let dir = tempfile::tempdir().unwrap();
        let exit = |machine: &Machine| plan(machine).unwrap_err().exit();
        assert_eq!(
            exit(&machine(dir.path(), b"QFI\xfb", DiskFormat::Raw)),
            Exit::Usage
        );
        assert_eq!(
            exit(&machine(dir.path(), b"raw", DiskFormat::Qcow2)),
            Exit::Usage
        );
        assert_eq!(
            exit(&machine(dir.path(), b"", DiskFormat::Raw)),
            Exit::Usage
        );
        let mut absent = machine(dir.path(), b"disk", DiskFormat::Raw);
        absent.kernel = Some(dir.path().join("nothing"));
        assert_eq!(exit(&absent), Exit::NotFound);
        absent.disk = dir.path().to_owned();
        assert!(plan(&absent).is_err());
    }
}
