//! `skerry content push` against a real registry: Debian's docker-registry on the loopback address, with TLS under a root
//! that the test makes.

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Registry, Skerry, sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[test]
fn a_machine_image_arrives_whole_and_is_not_sent_twice() {
    let registry = Registry::start();
    let skerry = Skerry::new();
    let disk: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    let files = [
        ("disk.raw", disk.as_slice()),
        ("vmlinuz", b"a kernel"),
        ("initrd.img", b"an initial RAM disk"),
    ];
    for (name, bytes) in files {
        fs::write(skerry.path(name), bytes).unwrap();
    }
    let target = format!("{}/machines/debian:12", registry.address());
    let push = || {
        skerry.run(&[
            "content",
            "push",
            &target,
            "--disk",
            "disk.raw",
            "--format",
            "raw",
            "--kernel",
            "vmlinuz",
            "--initrd",
            "initrd.img",
            "--ca",
            registry.root(),
        ])
    };
    let first = push();
    assert_eq!(first.code, 0, "{first:?}");
    let digest = first
        .out
        .trim()
        .strip_prefix("machines/debian@sha256:")
        .expect(&first.out);
    assert_eq!(digest.len(), 64);
    assert!(first.err.contains("disk.raw"), "{}", first.err);

    // Read back without any of our code in between.
    let manifest = registry.get(
        &format!("machines/debian/manifests/sha256:{digest}"),
        MANIFEST,
    );
    assert_eq!(sha256(&manifest), digest);
    assert_eq!(
        registry.get("machines/debian/manifests/12", MANIFEST),
        manifest
    );
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    for (layer, (name, bytes)) in manifest["layers"].as_array().unwrap().iter().zip(files) {
        assert_eq!(layer["annotations"]["org.opencontainers.image.title"], name);
        let blob = registry.get(
            &format!(
                "machines/debian/blobs/{}",
                layer["digest"].as_str().unwrap()
            ),
            "*/*",
        );
        assert!(blob == bytes, "{name} differs: {} bytes", blob.len());
    }
    let roles: Vec<_> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| &l["annotations"]["org.lfedge.eci.role"])
        .collect();
    assert_eq!(roles, ["disk-root", "kernel", "initrd"]);

    let second = push();
    assert_eq!((second.code, &second.out), (0, &first.out));
    assert_eq!(
        second.err.matches("already there").count(),
        4,
        "{}",
        second.err
    );
}

#[test]
fn an_oci_layout_keeps_its_digest() {
    let registry = Registry::start();
    let skerry = Skerry::new();
    fs::create_dir_all(skerry.path("hello/blobs/sha256")).unwrap();
    let blob = |media_type: &str, bytes: &[u8]| {
        let hex = sha256(bytes);
        fs::write(skerry.path(&format!("hello/blobs/sha256/{hex}")), bytes).unwrap();
        json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()})
    };
    let config = blob(
        "application/vnd.oci.image.config.v1+json",
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#,
    );
    let layer = blob("application/vnd.oci.image.layer.v1.tar", &[7; 10_240]);
    // Spaces that no serialiser of ours would write: the bytes must arrive as they are.
    let manifest = format!(
        "{{ \"schemaVersion\": 2,  \"mediaType\": \"{MANIFEST}\", \"config\": {config}, \"layers\": [ {layer} ] }}\n"
    );
    let image = blob(MANIFEST, manifest.as_bytes());
    fs::write(
        skerry.path("hello/oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    fs::write(
        skerry.path("hello/index.json"),
        json!({"schemaVersion": 2, "manifests": [image]}).to_string(),
    )
    .unwrap();

    let target = format!("{}/hello:latest", registry.address());
    let pushed = skerry.run(&[
        "content",
        "push",
        &target,
        "--oci-layout",
        "hello",
        "--ca",
        registry.root(),
    ]);
    assert_eq!(
        (pushed.code, pushed.out.as_str()),
        (
            0,
            format!("hello@{}\n", image["digest"].as_str().unwrap()).as_str()
        ),
        "{}",
        pushed.err
    );
    assert_eq!(
        registry.get("hello/manifests/latest", MANIFEST),
        manifest.as_bytes()
    );
}

#[test]
fn what_goes_wrong_is_said() {
    let registry = Registry::start();
    let skerry = Skerry::new();
    fs::write(skerry.path("disk.raw"), b"disk").unwrap();
    let target = format!("{}/debian:12", registry.address());
    let push = |more: &[&str]| {
        let mut arguments = vec![
            "content", "push", &target, "--disk", "disk.raw", "--format", "raw",
        ];
        arguments.extend(more);
        skerry.run(&arguments)
    };
    let untrusted = push(&[]);
    assert_eq!(untrusted.code, 1, "{untrusted:?}");
    assert!(untrusted.err.contains("--ca"), "{}", untrusted.err);
    let absent = push(&["--ca", registry.root(), "--kernel", "no-such-file"]);
    assert_eq!(absent.code, 3, "{absent:?}");
    assert!(absent.err.contains("no-such-file"), "{}", absent.err);
    let plain = push(&["--plain-http"]);
    assert_eq!(plain.code, 1, "{plain:?}");

    let gone = registry.address().to_owned();
    drop(registry);
    let unreachable = skerry.run(&[
        "content",
        "push",
        &format!("{gone}/x:1"),
        "--disk",
        "disk.raw",
        "--format",
        "raw",
        "--plain-http",
    ]);
    assert_eq!(unreachable.code, 1, "{unreachable:?}");
    assert!(unreachable.err.contains(&gone), "{}", unreachable.err);
}

#[test]
fn a_registry_with_passwords_lets_only_the_right_one_in() {
    let registry = Registry::start_with_password("carol", "secret");
    let skerry = Skerry::new();
    fs::write(skerry.path("disk.raw"), b"disk").unwrap();
    fs::write(skerry.path("right"), "secret\n").unwrap();
    fs::write(skerry.path("wrong"), "guess\n").unwrap();
    let target = format!("{}/debian:12", registry.address());
    let push = |more: &[&str]| {
        let mut arguments = vec![
            "content",
            "push",
            &target,
            "--disk",
            "disk.raw",
            "--format",
            "raw",
            "--ca",
            registry.root(),
        ];
        arguments.extend(more);
        skerry.run(&arguments)
    };
    for refused in [
        push(&[]),
        push(&["--user", "carol", "--password-file", "wrong"]),
    ] {
        assert_eq!(refused.code, 4, "{refused:?}");
        assert!(refused.err.contains("--password-file"), "{}", refused.err);
    }
    let pushed = push(&["--user", "carol", "--password-file", "right"]);
    assert_eq!(pushed.code, 0, "{pushed:?}");
}
