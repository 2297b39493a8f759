//! The demo's container image: busybox and a script, as an OCI image layout (OCI Image Format Specification 1.1) that the
//! build writes itself, the same bytes each time.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use imaging::digest::Digest;
use serde_json::{Value, json};

use super::archive::{self, Versions, parse_list};
use super::recipe;
use super::store::Store;
use crate::command::run;
use crate::files::write;

const FOLDER: &str = "images/demo-container";
pub const LOCK: &str = "images/demo-container/packages.lock";

/// Commands of busybox that the script uses.
const COMMANDS: &[&str] = &["httpd", "mkdir", "printf", "sh", "sleep"];

/// A blob's descriptor: what refers to it in another blob or in the index.
struct Descriptor {
    media_type: &'static str,
    digest: Digest,
    size: usize,
}

impl Descriptor {
    fn json(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.size})
    }
}

/// Makes the layout, or gives the folder of the one that was made before.
pub fn build(store: &Store, versions: Versions) -> Result<PathBuf> {
    let folder = Path::new(FOLDER);
    let list = fs::read_to_string(folder.join("packages"))
        .context("reading the container's package list")?;
    let names = parse_list(&list).remove("").unwrap_or_default();
    let lock = archive::settle(store, &names, Path::new(LOCK), versions)?;
    let mut key = recipe::DEMO_CONTAINER.key()?.file(&folder.join("serve"))?;
    for package in lock.packages.values() {
        key = key.with("package", package.sha256.bytes());
    }
    store.step("demo-container", key, |to| {
        let scratch = store.scratch("container")?;
        for deb in archive::fetch(store, &lock)? {
            run(Command::new("dpkg-deb")
                .arg("-x")
                .arg(deb)
                .arg(scratch.path()))?;
        }
        let busybox = fs::read(scratch.path().join("bin/busybox")).context("reading busybox")?;
        let serve = fs::read(folder.join("serve")).context("reading the container's script")?;
        layout(&layer(&busybox, &serve)?, to)
    })
}

/// The image's one layer, not yet packed.
fn layer(busybox: &[u8], serve: &[u8]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind: tar::EntryType, mode: u32, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header
    };
    for (name, mode) in [
        ("bin/", 0o755),
        ("dev/", 0o755),
        ("etc/", 0o755),
        ("proc/", 0o755),
        ("sys/", 0o755),
        ("tmp/", 0o1777),
    ] {
        tar.append_data(
            &mut header(tar::EntryType::Directory, mode, 0),
            name,
            &[][..],
        )?;
    }
    tar.append_data(
        &mut header(tar::EntryType::Regular, 0o755, busybox.len()),
        "bin/busybox",
        busybox,
    )?;
    for command in COMMANDS {
        tar.append_link(
            &mut header(tar::EntryType::Symlink, 0o777, 0),
            format!("bin/{command}"),
            "busybox",
        )?;
    }
    tar.append_data(
        &mut header(tar::EntryType::Regular, 0o755, serve.len()),
        "bin/serve",
        serve,
    )?;
    Ok(tar.into_inner()?)
}

/// Writes blobs, index and marker of the layout.
fn layout(layer: &[u8], to: &Path) -> Result<()> {
    let blobs = to.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("making {}", blobs.display()))?;
    let blob = |media_type: &'static str, bytes: &[u8]| -> Result<Descriptor> {
        let digest = Digest::of(bytes);
        write(&blobs.join(digest.hex()), bytes)?;
        Ok(Descriptor {
            media_type,
            digest,
            size: bytes.len(),
        })
    };
    // A gzip header has room for a time and the system's name; both are left out.
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .operating_system(255)
        .write(Vec::new(), Compression::best());
    gzip.write_all(layer)?;
    let packed = blob(
        "application/vnd.oci.image.layer.v1.tar+gzip",
        &gzip.finish()?,
    )?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/serve"], "Env": ["PATH=/bin", "GREETING=hello"], "WorkingDir": "/", "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(layer)]},
        "history": [{"created_by": "cargo xtask image"}],
    });
    let config = blob(
        "application/vnd.oci.image.config.v1+json",
        &serde_json::to_vec(&config)?,
    )?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.json(),
        "layers": [packed.json()],
    });
    let manifest = blob(
        "application/vnd.oci.image.manifest.v1+json",
        &serde_json::to_vec(&manifest)?,
    )?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest.json()],
    });
    write(&to.join("index.json"), &serde_json::to_vec(&index)?)?;
    write(&to.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_digest_of_the_layout_leads_to_a_blob_of_that_size() {
        let dir = tempfile::tempdir().unwrap();
        let layer = layer(b"busybox", b"script").unwrap();
        layout(&layer, dir.path()).unwrap();
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"]
                .as_str()
                .unwrap()
                .strip_prefix("sha256:")
                .unwrap()
                .to_owned();
            let bytes = fs::read(dir.path().join("blobs/sha256").join(&digest)).unwrap();
            assert_eq!(Digest::of(&bytes).hex(), digest);
            assert_eq!(bytes.len() as u64, descriptor["size"].as_u64().unwrap());
            bytes
        };
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let index = json(&fs::read(dir.path().join("index.json")).unwrap());
        let manifest = json(&blob(&index["manifests"][0]));
        let config = json(&blob(&manifest["config"]));
        let packed = blob(&manifest["layers"][0]);
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut plain)
            .unwrap();
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            Digest::of(&plain).to_string()
        );
        let names: Vec<String> = tar::Archive::new(&plain[..])
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert!(
            names.contains(&"bin/sh".to_owned()) && names.contains(&"bin/serve".to_owned()),
            "{names:?}"
        );
    }

    #[test]
    fn the_same_layout_has_the_same_bytes() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let indexes: Vec<Vec<u8>> = dirs
            .iter()
            .map(|dir| {
                layout(&layer(b"a", b"b").unwrap(), dir.path()).unwrap();
                fs::read(dir.path().join("index.json")).unwrap()
            })
            .collect();
        assert_eq!(indexes[0], indexes[1]);
    }
}
