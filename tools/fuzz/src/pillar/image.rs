//! Images, as registries give them: documents, layers, and what stands in them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use pillar::domain::desired::ContentKind;
use pillar::reconcile::content::manifest::{self, Document, Packing};
use pillar::reconcile::content::unpack::{Limits, unpack};
use pillar::reconcile::content::{registry, rootfs};
use protocol::image::Repository;
use serde_json::json;

use crate::feed::{join, survives, texts};

pub(super) fn content_manifest(data: &[u8]) {
    for kind in [
        ContentKind::Container,
        ContentKind::MachineRaw,
        ContentKind::MachineQcow2,
    ] {
        let Ok(document) = manifest::parse(data, kind) else {
            continue;
        };
        let blobs = document.blobs();
        assert!(blobs.len() <= 130, "{} blobs", blobs.len());
        for blob in blobs {
            assert!(blob.size <= 1 << 40);
        }
        match document {
            Document::Index(descriptor)
            | Document::Container {
                config: descriptor, ..
            } => {
                assert!(descriptor.size <= manifest::DOCUMENT_LIMIT);
            }
            Document::Machine { .. } => {}
        }
    }
    if let Ok(config) = manifest::parse_config(data) {
        assert!(!config.user.contains('\0') && !config.working_dir.contains('\0'));
    }
}

pub(super) fn content_manifest_seeds() -> Vec<Vec<u8>> {
    let digest = |n: u8| format!("sha256:{}", format!("{n:02x}").repeat(32));
    let descriptor =
        |kind: &str, n: u8| json!({"mediaType": kind, "digest": digest(n), "size": 1000});
    let role = |role: &str, n: u8| {
        json!({"mediaType": "application/octet-stream", "digest": digest(n), "size": 1000,
            "annotations": {"org.lfedge.eci.role": role}})
    };
    let container = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", 1),
        "layers": [
            descriptor("application/vnd.oci.image.layer.v1.tar+gzip", 2),
            descriptor("application/vnd.oci.image.layer.v1.tar+zstd", 3),
        ],
    });
    let machine = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.empty.v1+json", 1),
        "layers": [role("kernel", 2), role("initrd", 3), role("disk-root", 4)],
    });
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", 1);
    entry["platform"] = json!({"os": "linux", "architecture": manifest::architecture()});
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry],
    });
    let config = json!({
        "os": "linux", "architecture": manifest::architecture(),
        "config": {"User": "1000:web", "Env": ["A=b"], "Entrypoint": ["/serve"], "Cmd": null,
            "WorkingDir": "/srv", "StopSignal": "SIGTERM"},
    });
    [container, machine, index, config]
        .iter()
        .map(|value| serde_json::to_vec(value).unwrap())
        .collect()
}

/// Bytes and entries that a layer may unpack to here.
const LAYER_LIMITS: Limits = Limits::new(1 << 20, 64);

pub(super) fn layer(data: &[u8]) {
    let Some((packing, bytes)) = data.split_first() else {
        return;
    };
    let packing = match packing % 3 {
        0 => Packing::Tar,
        1 => Packing::Gzip,
        _ => Packing::Zstd,
    };
    LAYER_PLACE.with(|place| {
        let root = place.path().join("root");
        let victim = place.path().join("victim");
        fs::create_dir(&root).unwrap();
        let mut limits = LAYER_LIMITS;
        let _ = unpack(&root, bytes, packing, &mut limits);
        assert!(limits.bytes <= LAYER_LIMITS.bytes && limits.entries <= LAYER_LIMITS.entries);
        assert_eq!(fs::read(&victim).unwrap(), b"untouched");
        assert_eq!(
            fs::metadata(&victim).unwrap().permissions().mode() & 0o7777,
            0o600
        );
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);
        remove(&root);
    });
}

thread_local! {
    static LAYER_PLACE: tempfile::TempDir = {
        let place = tempfile::tempdir().unwrap();
        let victim = place.path().join("victim");
        fs::write(&victim, "untouched").unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
        place
    };
}

/// Removes a tree, also one whose directories nobody but root may look into.
fn remove(root: &Path) {
    if fs::remove_dir_all(root).is_ok() {
        return;
    }
    let mut closed = vec![root.to_owned()];
    while let Some(dir) = closed.pop() {
        let _ = fs::set_permissions(&dir, fs::Permissions::from_mode(0o700));
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                closed.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(root).unwrap();
}

pub(super) fn layer_seeds() -> Vec<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |kind: tar::EntryType, name: &str, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, content).unwrap();
    };
    add(tar::EntryType::Directory, "bin/", "", b"");
    add(tar::EntryType::Regular, "bin/sh", "", b"#!");
    add(tar::EntryType::Symlink, "up", "../..", b"");
    add(tar::EntryType::Regular, "up/victim", "", b"x");
    add(tar::EntryType::Link, "bin/bash", "bin/sh", b"");
    add(tar::EntryType::XHeader, "pax", "", b"20 path=long/name-x\n");
    add(tar::EntryType::Regular, "short", "", b"y");
    add(
        tar::EntryType::GNULongName,
        "././@LongLink",
        "",
        b"bin/longer\0",
    );
    add(tar::EntryType::Fifo, "short", "", b"");
    add(tar::EntryType::Regular, "bin/.wh.sh", "", b"");
    add(tar::EntryType::Regular, ".wh..wh..opq", "", b"");
    let tar = builder.into_inner().unwrap();
    let gzip = {
        use std::io::Write as _;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&tar).unwrap();
        gzip.finish().unwrap()
    };
    let zstd = zstd::encode_all(tar.as_slice(), 3).unwrap();
    [(0, tar), (1, gzip), (2, zstd)]
        .into_iter()
        .map(|(packing, bytes)| [&[packing], bytes.as_slice()].concat())
        .collect()
}

pub(super) fn registry_headers(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = registry::parse_challenge(text);
    if let Some(start) = registry::range_start(text) {
        assert_eq!(
            registry::range_start(&format!("bytes {start}-")),
            Some(start)
        );
    }
    if text.parse::<Repository>().is_ok() {
        assert!(!text.contains("..") && !text.starts_with('/') && !text.contains("//"));
        assert!(!text.contains(['?', '#', '%', '@', ':', '\\']) && text.is_ascii());
    }
}

pub(super) fn registry_headers_seeds() -> Vec<Vec<u8>> {
    [
        "Bearer realm=\"https://auth.example/token\",service=\"registry.example\",scope=\"a,b\"",
        "Basic realm=\"x\"",
        "bytes 5-9/10",
        "team/apps/hello",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}

pub(super) fn registry_token(data: &[u8]) {
    let Ok(token) = registry::parse_token(data) else {
        return;
    };
    assert!(token.bytes().all(|byte| (0x21..0x7f).contains(&byte)));
    let again = serde_json::to_vec(&json!({"token": token})).unwrap();
    assert_eq!(registry::parse_token(&again).unwrap(), token);
}

pub(super) fn registry_token_seeds() -> Vec<Vec<u8>> {
    let seeds = [
        r#"{"token":"eyJ0eXAi.b-c_","expires_in":300,"issued_at":"2026-11-20T19:50:00Z"}"#,
        r#"{"access_token":"a\u002fb","scope":"pull"}"#,
        r#"{"token":"","access_token":"x"}"#,
    ];
    for seed in seeds {
        assert_ne!(registry::parse_token(seed.as_bytes()).unwrap(), "");
    }
    seeds.map(|seed| seed.as_bytes().to_vec()).to_vec()
}

pub(super) fn image_user(data: &[u8]) {
    let Some([user, passwd, group]) = texts(data) else {
        return;
    };
    if let Some(notes) = rootfs::resolve_user(user, passwd, group) {
        assert!(notes.uid != u32::MAX && notes.gid != u32::MAX);
        assert!(notes.groups.len() <= 64);
        survives(&notes);
    }
}

pub(super) fn image_user_seeds() -> Vec<Vec<u8>> {
    let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/srv:/bin/false\n";
    let group = "root:x:0:\nweb:x:1000:\nlog:x:4:web,root\n";
    ["web", "1000:log", "", "7:8"]
        .iter()
        .map(|user| join(&[user, passwd, group]))
        .collect()
}
