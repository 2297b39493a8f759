//! Content from registries: Debian's docker-registry over TLS, and one of our own that misbehaves on request.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests say what they expect by failing"
)]

mod reconcile_common;

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hypervisor_api::config::DiskFormat;
use pillar::domain::desired::{ContentKind, Desired};
use pillar::domain::observed::ContentPhase;
use pillar::paths::Paths;
use pillar::reconcile::content::image::Image as Ready;
use pillar::reconcile::content::store::Store;
use pillar::reconcile::content::{self, Contents};
use reconcile_common::*;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// A certificate authority and a key pair for 127.0.0.1.
struct Tls {
    ca: String,
    certificate: String,
    key: String,
}

fn tls() -> Tls {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let made =
        rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])
            .unwrap();
    Tls {
        ca: made.cert.pem(),
        certificate: made.cert.pem(),
        key: made.signing_key.serialize_pem(),
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A mounted image.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(image: &Path, place: &'a Path) -> Self {
        assert!(
            Command::new("mount")
                .args(["-o", "loop,ro"])
                .arg(image)
                .arg(place)
                .status()
                .unwrap()
                .success()
        );
        Self(place)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Debian's docker-registry with TLS on loopback.
async fn docker_registry(dir: &Path, tls: &Tls) -> (Killed, String) {
    let port = free_port();
    std::fs::write(dir.join("cert.pem"), &tls.certificate).unwrap();
    std::fs::write(dir.join("key.pem"), &tls.key).unwrap();
    let dir_text = dir.display();
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem:\n    rootdirectory: {dir_text}/registry\n\
         http:\n  addr: 127.0.0.1:{port}\n  tls:\n    certificate: {dir_text}/cert.pem\n    key: {dir_text}/key.pem\n"
    );
    std::fs::write(dir.join("config.yml"), config).unwrap();
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(dir.join("config.yml"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("docker-registry is installed (apt-get install docker-registry)");
    for _ in 0..200 {
        if tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_ok()
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (Killed(child), format!("127.0.0.1:{port}"))
}

async fn push(registry: &str, tls: &Tls, repository: &str, image: &Image) {
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(tls.ca.as_bytes()).unwrap()])
        .build()
        .unwrap();
    let base = format!("https://{registry}/v2/{repository}");
    for blob in &image.blobs {
        let opened = client
            .post(format!("{base}/blobs/uploads/"))
            .send()
            .await
            .unwrap();
        assert!(opened.status().is_success(), "{opened:?}");
        let place = opened.headers()["location"].to_str().unwrap().to_owned();
        let joint = if place.contains('?') { '&' } else { '?' };
        let put = client
            .put(format!("{place}{joint}digest={}", blob.digest))
            .body(blob.bytes.clone());
        let stored = put.send().await.unwrap();
        assert!(stored.status().is_success(), "{stored:?}");
    }
    let stored = client
        .put(format!("{base}/manifests/{}", image.manifest.digest))
        .header("content-type", "application/vnd.oci.image.manifest.v1+json")
        .body(image.manifest.bytes.clone())
        .send()
        .await
        .unwrap();
    assert!(stored.status().is_success(), "{stored:?}");
}

/// The content reconciler on a directory of its own.
struct Device {
    dir: tempfile::TempDir,
    paths: Paths,
    desired: watch::Sender<Arc<Desired>>,
    contents: watch::Receiver<Arc<Contents>>,
    task: tokio::task::JoinHandle<()>,
}

impl Device {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            persist: dir.path().join("persist"),
            run: dir.path().join("run"),
            ..Paths::default()
        };
        Self::start(dir, paths, Desired::default())
    }

    fn start(dir: tempfile::TempDir, paths: Paths, desired: Desired) -> Self {
        let (desired, followed) = watch::channel(Arc::new(desired));
        let (told, contents) = watch::channel(Arc::default());
        let store = Store::open(&paths).unwrap();
        Self {
            dir,
            paths: paths.clone(),
            desired,
            contents,
            task: tokio::spawn(content::run(followed, store, told)),
        }
    }

    /// As after a restart of the agent.
    fn restarted(self) -> Self {
        self.task.abort();
        let desired = (**self.desired.borrow()).clone();
        Self::start(self.dir, self.paths, desired)
    }

    async fn wait(
        &mut self,
        what: &str,
        test: impl FnMut(&Arc<Contents>) -> bool,
    ) -> Arc<Contents> {
        let seen =
            tokio::time::timeout(Duration::from_secs(60), self.contents.wait_for(test)).await;
        match seen.map(|seen| seen.unwrap().clone()) {
            Ok(seen) => seen,
            Err(_) => panic!(
                "not seen within a minute: {what}; the last was {:#?}",
                self.contents.borrow()
            ),
        }
    }

    async fn ready(&mut self, n: u128) -> Arc<Ready> {
        let id = content_id(n);
        let seen = self
            .wait("ready", |all| {
                all.get(&id).is_some_and(|state| state.image.is_some())
            })
            .await;
        assert_eq!(seen[&id].status.phase, ContentPhase::Ready);
        assert_eq!(seen[&id].status.trouble, None);
        seen[&id].image.clone().unwrap()
    }

    async fn trouble(&mut self, n: u128) -> String {
        let id = content_id(n);
        let seen = self
            .wait("trouble", |all| {
                all.get(&id)
                    .is_some_and(|state| state.status.trouble.is_some())
            })
            .await;
        let trouble = seen[&id].status.trouble.clone().unwrap();
        assert!(trouble.retry_at.unwrap() > trouble.at);
        assert_eq!(seen[&id].status.phase, ContentPhase::Waiting);
        trouble.message
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = [self.paths.blobs(), self.paths.rootfs()]
            .iter()
            .flat_map(|dir| std::fs::read_dir(dir).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn with_content(
    registry: &str,
    tls: &Tls,
    contents: &[(u128, &Image, ContentKind, &str)],
) -> Desired {
    let mut desired = Desired::default();
    desired
        .datastores
        .insert(DATASTORE, datastore(registry, &tls.ca));
    for (n, image, kind, repository) in contents {
        desired
            .contents
            .insert(content_id(*n), content(image, *kind, repository));
    }
    desired
}

fn hello() -> Image {
    container_image(
        vec![
            layer(&[
                ("etc/passwd", 0o644, b"web:x:33:34::/:\n"),
                ("gone", 0o644, b"x"),
                ("bin/tool", 0o4755, b"old"),
            ]),
            layer(&[(".wh.gone", 0o644, b""), ("bin/tool", 0o4755, b"new")]),
        ],
        json!({"User": "web", "Cmd": ["/bin/tool"], "Env": ["A=b"]}),
    )
}

#[tokio::test]
async fn a_container_comes_from_a_real_registry_and_goes_when_nobody_wants_it() {
    let tls = tls();
    let dir = tempfile::tempdir().unwrap();
    let (server, registry) = docker_registry(dir.path(), &tls).await;
    let image = hello();
    let machine = machine_image(&[
        ("kernel", b"kernel"),
        ("initrd", b"initrd"),
        ("disk-root", &[7; 100_000]),
    ]);
    push(&registry, &tls, "demo/hello", &image).await;
    push(&registry, &tls, "demo/machine", &machine).await;

    let mut device = Device::new();
    device.desired.send_replace(Arc::new(with_content(
        &registry,
        &tls,
        &[
            (1, &image, ContentKind::Container, "demo/hello"),
            (2, &machine, ContentKind::MachineRaw, "demo/machine"),
        ],
    )));
    let Ready::Container {
        rootfs,
        config,
        notes,
    } = &*device.ready(1).await
    else {
        panic!("no container")
    };
    assert_eq!((notes.uid, notes.gid), (33, 34));
    assert_eq!(config.cmd, ["/bin/tool"]);
    assert!(
        Command::new("fsck.erofs")
            .arg(rootfs)
            .output()
            .unwrap()
            .status
            .success()
    );
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let mounted = Mounted::new(rootfs, &tree);
    assert_eq!(std::fs::read(tree.join("bin/tool")).unwrap(), b"new");
    assert_eq!(
        std::fs::metadata(tree.join("bin/tool")).unwrap().mode() & 0o7777,
        0o4755
    );
    assert!(!tree.join("gone").exists());
    drop(mounted);

    let Ready::Machine {
        kernel,
        initrds,
        disk,
        disk_bytes,
        format,
    } = &*device.ready(2).await
    else {
        panic!("no machine")
    };
    assert_eq!(std::fs::read(kernel).unwrap(), b"kernel");
    assert_eq!(
        (initrds.len(), *disk_bytes, *format),
        (1, 100_000, DiskFormat::Raw)
    );
    assert_eq!(std::fs::read(disk).unwrap(), [7; 100_000]);

    // After a restart everything is there, without the registry.
    drop(server);
    let mut device = device.restarted();
    device.ready(1).await;
    device.ready(2).await;

    // Nobody wants the container any more; the machine stays.
    let before = device.files();
    device.desired.send_modify(|desired| {
        Arc::make_mut(desired).contents.remove(&content_id(1));
    });
    device
        .wait("the container is gone", |all| {
            !all.contains_key(&content_id(1))
        })
        .await;
    let kept: Vec<String> = machine
        .blobs
        .iter()
        .chain([&machine.manifest])
        .map(|blob| blob.digest.hex())
        .collect();
    for _ in 0..100 {
        if device.files().len() < before.len() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let left = device.files();
    assert!(left.iter().all(|name| kept.contains(name)), "{left:?}");
    // The machine image's config is not fetched: its roles say all.
    assert_eq!(left.len(), 4);
}

/// What our own registry does wrong.
#[derive(Clone, Default)]
struct Mischief {
    /// Cut the first answer for a blob after so many bytes.
    cut_once: Option<usize>,
    /// Send other bytes than the ones asked for, of the same length.
    lie: bool,
    /// Ask for a token.
    token: bool,
    /// Ignore ranges.
    no_ranges: bool,
}

/// A registry that serves from memory.
#[derive(Default)]
struct Crooked {
    things: HashMap<String, Vec<u8>>,
    mischief: HashMap<String, Mischief>,
    requests: Vec<String>,
}

async fn crooked(tls: &Tls, images: &[(&Image, Mischief)]) -> (Arc<Mutex<Crooked>>, String) {
    let mut crooked = Crooked::default();
    for (image, mischief) in images {
        for (kind, blob) in image
            .blobs
            .iter()
            .map(|blob| ("blobs", blob))
            .chain([("manifests", &image.manifest)])
        {
            let path = format!("{kind}/{}", blob.digest);
            crooked.things.insert(path.clone(), blob.bytes.clone());
            crooked.mischief.insert(path, mischief.clone());
        }
    }
    let crooked = Arc::new(Mutex::new(crooked));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(serve(
        listener,
        tls.certificate.clone(),
        tls.key.clone(),
        crooked.clone(),
    ));
    (crooked, address)
}

async fn serve(
    listener: TcpListener,
    certificate: String,
    key: String,
    crooked: Arc<Mutex<Crooked>>,
) {
    use rustls_pki_types::pem::PemObject;
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![rustls_pki_types::CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            rustls_pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let address = listener.local_addr().unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, crooked) = (acceptor.clone(), crooked.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let mut stream = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let (answer, cut) = respond(&head, &crooked, &address.to_string());
            let end = cut.unwrap_or(answer.len()).min(answer.len());
            let _ = stream.write_all(&answer[..end]).await;
            if cut.is_none() {
                let _ = stream.shutdown().await;
            }
        });
    }
}

fn respond(head: &str, crooked: &Mutex<Crooked>, address: &str) -> (Vec<u8>, Option<usize>) {
    let mut crooked = crooked.lock().unwrap();
    crooked.requests.push(head.to_owned());
    let lower = head.to_ascii_lowercase();
    let path = head.split(' ').nth(1).unwrap();
    let answer = |status: &str, headers: &str, body: &[u8]| {
        let mut bytes = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
            body.len()
        )
        .into_bytes();
        bytes.extend_from_slice(body);
        bytes
    };
    if path.starts_with("/token") {
        assert!(path.contains("scope=repository%3Ademo%3Apull"), "{path}");
        return (answer("200 OK", "", br#"{"token":"secret"}"#), None);
    }
    let Some(name) = path.strip_prefix("/v2/demo/") else {
        return (answer("404 Not Found", "", b""), None);
    };
    let Some(bytes) = crooked.things.get(name).cloned() else {
        return (answer("404 Not Found", "", b""), None);
    };
    let mischief = crooked.mischief.get_mut(name).unwrap();
    if mischief.token && !lower.contains("authorization: bearer secret") {
        let challenge =
            format!("www-authenticate: Bearer realm=\"https://{address}/token\",service=\"x\"\r\n");
        return (answer("401 Unauthorized", &challenge, b""), None);
    }
    let bytes = if mischief.lie {
        vec![b'!'; bytes.len()]
    } else {
        bytes
    };
    let from = lower
        .split("range: bytes=")
        .nth(1)
        .and_then(|rest| rest.split('-').next()?.parse::<usize>().ok());
    let full = match from {
        Some(from) if !mischief.no_ranges => {
            let range = format!(
                "content-range: bytes {from}-{}/{}\r\n",
                bytes.len() - 1,
                bytes.len()
            );
            answer("206 Partial Content", &range, &bytes[from..])
        }
        _ => answer("200 OK", "", &bytes),
    };
    let cut = if name.starts_with("blobs/") {
        mischief.cut_once.take()
    } else {
        None
    };
    (full, cut)
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_stopped() {
    let tls = tls();
    for no_ranges in [false, true] {
        let disk: Vec<u8> = (0..400_000u32).map(|n| (n % 251) as u8).collect();
        let image = machine_image(&[("kernel", b"k"), ("disk-root", &disk)]);
        let mischief = Mischief {
            cut_once: Some(150_000),
            token: true,
            no_ranges,
            ..Mischief::default()
        };
        let (server, registry) = crooked(&tls, &[(&image, mischief)]).await;
        let mut device = Device::new();
        let desired = with_content(
            &registry,
            &tls,
            &[(1, &image, ContentKind::MachineRaw, "demo")],
        );
        device.desired.send_replace(Arc::new(desired));
        let message = device.trouble(1).await;
        assert!(message.contains("fetching https://127.0.0.1"), "{message}");
        let Ready::Machine { disk: path, .. } = &*device.ready(1).await else {
            panic!("no machine")
        };
        assert_eq!(std::fs::read(path).unwrap(), disk);
        let requests = server
            .lock()
            .unwrap()
            .requests
            .join("\n")
            .to_ascii_lowercase();
        assert!(requests.contains("range: bytes=1"), "{requests}");
    }
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_others_are_untouched() {
    let tls = tls();
    let good = hello();
    let lying_blob = machine_image(&[("kernel", b"kernel"), ("disk-root", b"disk")]);
    let lying_manifest = machine_image(&[("kernel", b"kernel2"), ("disk-root", b"disk2")]);
    let lie = Mischief {
        lie: true,
        ..Mischief::default()
    };
    let (server, registry) = crooked(
        &tls,
        &[
            (&good, Mischief::default()),
            (&lying_blob, lie.clone()),
            (&lying_manifest, lie),
        ],
    )
    .await;
    // This one tells the truth in its manifest.
    let path = format!("manifests/{}", lying_blob.manifest.digest);
    server
        .lock()
        .unwrap()
        .mischief
        .insert(path, Mischief::default());
    let missing = machine_image(&[("kernel", b"never"), ("disk-root", b"pushed")]);

    let mut device = Device::new();
    device.desired.send_replace(Arc::new(with_content(
        &registry,
        &tls,
        &[
            (1, &lying_blob, ContentKind::MachineRaw, "demo"),
            (2, &lying_manifest, ContentKind::MachineRaw, "demo"),
            (3, &missing, ContentKind::MachineRaw, "demo"),
            (4, &good, ContentKind::Container, "demo"),
        ],
    )));
    device.ready(4).await;
    let message = device.trouble(1).await;
    assert!(message.contains("arrived with the digest"), "{message}");
    let message = device.trouble(2).await;
    assert!(message.contains("the manifest has the digest"), "{message}");
    let message = device.trouble(3).await;
    assert!(
        message.contains("404") && message.contains("check repository and digest"),
        "{message}"
    );
    assert!(
        device.files().iter().all(|name| !name.ends_with(".part")),
        "{:?}",
        device.files()
    );
}

#[tokio::test]
async fn a_registry_that_is_down_is_tried_again() {
    let tls = tls();
    let image = hello();
    let port = free_port();
    let registry = format!("127.0.0.1:{port}");
    let mut device = Device::new();
    let desired = with_content(
        &registry,
        &tls,
        &[(1, &image, ContentKind::Container, "demo")],
    );
    device.desired.send_replace(Arc::new(desired));
    let message = device.trouble(1).await;
    assert!(message.contains("refused"), "{message}");

    let (memory, _) = crooked(&tls, &[(&image, Mischief::default())]).await;
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(serve(
        listener,
        tls.certificate.clone(),
        tls.key.clone(),
        memory,
    ));
    device.ready(1).await;
}

#[tokio::test]
async fn a_registry_with_a_strangers_certificate_is_not_trusted() {
    let (ours, strangers) = (tls(), tls());
    let image = hello();
    let (_server, registry) = crooked(&strangers, &[(&image, Mischief::default())]).await;
    let mut device = Device::new();
    let desired = with_content(
        &registry,
        &ours,
        &[(1, &image, ContentKind::Container, "demo")],
    );
    device.desired.send_replace(Arc::new(desired));
    let message = device.trouble(1).await;
    assert!(message.to_lowercase().contains("certificate"), "{message}");
    let left: Vec<PathBuf> = std::fs::read_dir(device.paths.blobs())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
