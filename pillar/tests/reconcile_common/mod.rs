//! What the tests of the reconcilers share: images made on the spot, and a place for units without systemd.

#![allow(dead_code, reason = "each test uses its part")]

use std::collections::HashMap;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use pillar::domain::desired::{
    App, AppInterface, Content, ContentKind, Datastore, Desired, NetworkInstance, Runtime, Volume,
    VolumeMount,
};
use pillar::domain::observed::Observed;
use pillar::host::program::ProgramError;
use pillar::host::units::{UnitSpec, UnitState, Units};
use protocol::digest::Digest;
use protocol::ids::{AppId, ContentId, DatastoreId, NetworkInstanceId, VolumeId};
use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

/// A blob: digest and bytes.
#[derive(Clone)]
pub struct Blob {
    pub digest: Digest,
    pub bytes: Vec<u8>,
}

impl Blob {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            digest: Digest::of(&bytes),
            bytes,
        }
    }
}

/// An image: its manifest and its blobs.
#[derive(Clone)]
pub struct Image {
    pub manifest: Blob,
    pub blobs: Vec<Blob>,
}

/// A tar archive of files (path, mode, content), as one gzip layer.
pub fn layer(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    for (path, mode, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        tar.append_data(&mut header, path, *content).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({"mediaType": media_type, "digest": blob.digest.to_string(), "size": blob.bytes.len()})
}

/// A container image with these layers and this process.
pub fn container_image(layers: Vec<Vec<u8>>, process: Value) -> Image {
    let config = Blob::new(
        json!({"os": "linux", "architecture": "amd64", "config": process, "rootfs": {"type": "layers", "diff_ids": []}})
            .to_string()
            .into_bytes(),
    );
    let layers: Vec<Blob> = layers.into_iter().map(Blob::new).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", layer)).collect::<Vec<_>>(),
    });
    Image {
        manifest: Blob::new(manifest.to_string().into_bytes()),
        blobs: std::iter::once(config).chain(layers).collect(),
    }
}

/// A machine image with these layers by role.
pub fn machine_image(layers: &[(&str, &[u8])]) -> Image {
    let config = Blob::new(b"{}".to_vec());
    let mut blobs = vec![config.clone()];
    let mut descriptors = Vec::new();
    for (role, bytes) in layers {
        let blob = Blob::new(bytes.to_vec());
        let mut value = descriptor("application/octet-stream", &blob);
        value["annotations"] = json!({"org.lfedge.eci.role": role});
        descriptors.push(value);
        blobs.push(blob);
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.empty.v1+json", &config),
        "layers": descriptors,
    });
    Image {
        manifest: Blob::new(manifest.to_string().into_bytes()),
        blobs,
    }
}

pub const NETWORK: NetworkInstanceId = NetworkInstanceId(Uuid::from_u128(0x100));
pub const DATASTORE: DatastoreId = DatastoreId(Uuid::from_u128(0x200));

pub fn app_id(n: u128) -> AppId {
    AppId(Uuid::from_u128(0x1000 + n))
}

pub fn content_id(n: u128) -> ContentId {
    ContentId(Uuid::from_u128(0x2000 + n))
}

pub fn volume_id(n: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(0x3000 + n))
}

pub fn network(third: u8) -> NetworkInstance {
    NetworkInstance {
        name: format!("net{third}"),
        gateway: Ipv4Addr::new(10, 77, third, 1),
        prefix: 24,
        range: (
            Ipv4Addr::new(10, 77, third, 2),
            Ipv4Addr::new(10, 77, third, 254),
        ),
        dns: vec![],
    }
}

pub fn content(image: &Image, kind: ContentKind, repository: &str) -> Content {
    Content {
        name: repository.to_owned(),
        datastore: DATASTORE,
        repository: repository.parse().unwrap(),
        digest: image.manifest.digest,
        kind,
    }
}

pub fn datastore(registry: &str, ca: &str) -> Datastore {
    Datastore {
        registry: registry.parse().unwrap(),
        ca_certificates: vec![ca.to_owned()],
        login: None,
    }
}

/// An app with one volume and one interface, and what it refers to.
pub fn add_app(desired: &mut Desired, n: u128, name: &str, runtime: Runtime, content: Content) {
    desired.contents.insert(content_id(n), content);
    desired.volumes.insert(
        volume_id(n),
        Volume {
            name: name.to_owned(),
            content: content_id(n),
            generation: 0,
            size_bytes: 32 << 20,
            readonly: false,
        },
    );
    desired.apps.insert(
        app_id(n),
        App {
            name: name.to_owned(),
            activate: true,
            vcpus: 1,
            memory_mib: 64,
            runtime,
            volumes: vec![VolumeMount {
                volume: volume_id(n),
                mount_dir: String::new(),
            }],
            interfaces: vec![AppInterface {
                name: "eth0".into(),
                network: NETWORK,
                mac: None,
                address: None,
                port_maps: vec![],
            }],
            env: vec![],
            user_data: None,
            restart_counter: 0,
            purge_counter: 0,
        },
    );
}

/// Waits until something is observed, at most a minute; after that, what was seen last.
pub async fn wait_for(
    observed: &mut watch::Receiver<Arc<Observed>>,
    what: &str,
    test: impl FnMut(&Arc<Observed>) -> bool,
) -> Result<Arc<Observed>, String> {
    let seen = tokio::time::timeout(Duration::from_secs(60), observed.wait_for(test)).await;
    match seen.map(|seen| seen.unwrap().clone()) {
        Ok(seen) => Ok(seen),
        Err(_) => Err(format!(
            "not seen within a minute: {what}; the last was {:#?}",
            **observed.borrow()
        )),
    }
}

/// Units as plain children of the test.
pub struct Processes {
    pub dir: PathBuf,
    children: Mutex<HashMap<String, (Child, Option<String>)>>,
}

impl Processes {
    pub fn new(dir: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            dir,
            children: Mutex::default(),
        })
    }

    /// What a unit has written.
    pub fn output(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }

    /// What all units have written.
    pub fn all_output(&self) -> String {
        let files = std::fs::read_dir(&self.dir)
            .unwrap()
            .map(|file| file.unwrap().path());
        files
            .map(|path| {
                format!(
                    "{}:\n{}\n",
                    path.display(),
                    std::fs::read_to_string(&path).unwrap()
                )
            })
            .collect()
    }

    fn refresh(entry: &mut (Child, Option<String>)) {
        if entry.1.is_none()
            && let Ok(Some(status)) = entry.0.try_wait()
        {
            entry.1 = Some(status.to_string());
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for (child, ended) in self.children.lock().unwrap().values_mut() {
            if ended.is_none() {
                let _ = nix::sys::signal::killpg(
                    nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap()),
                    nix::sys::signal::Signal::SIGKILL,
                );
                let _ = child.wait();
            }
        }
    }
}

impl Units for Processes {
    fn start(&self, unit: UnitSpec) -> BoxFuture<'_, Result<(), ProgramError>> {
        Box::pin(async move {
            let output = std::fs::File::options()
                .create(true)
                .append(true)
                .open(self.dir.join(&unit.name))
                .unwrap();
            writeln!(&output, "unit {} starts", unit.name).unwrap();
            let child = Command::new(&unit.program)
                .args(&unit.args)
                .stdin(Stdio::null())
                .stdout(output.try_clone().unwrap())
                .stderr(output)
                .process_group(0)
                .spawn()
                .map_err(|source| ProgramError::Start {
                    program: unit.program.display().to_string(),
                    source,
                })?;
            self.children
                .lock()
                .unwrap()
                .insert(unit.name, (child, None));
            Ok(())
        })
    }

    fn look<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<UnitState, ProgramError>> {
        Box::pin(async move {
            let mut children = self.children.lock().unwrap();
            let Some(entry) = children.get_mut(name) else {
                return Ok(UnitState::Gone);
            };
            Self::refresh(entry);
            Ok(match &entry.1 {
                Some(how) => UnitState::Ended { how: how.clone() },
                None => UnitState::Running { pid: entry.0.id() },
            })
        })
    }

    fn signal<'a>(
        &'a self,
        name: &'a str,
        signal: i32,
        all: bool,
    ) -> BoxFuture<'a, Result<(), ProgramError>> {
        Box::pin(async move {
            if let Some((child, None)) = self.children.lock().unwrap().get(name) {
                let pid = i32::try_from(child.id()).unwrap();
                let target = nix::unistd::Pid::from_raw(if all { -pid } else { pid });
                let _ = nix::sys::signal::kill(
                    target,
                    nix::sys::signal::Signal::try_from(signal).unwrap(),
                );
            }
            Ok(())
        })
    }

    fn forget<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ProgramError>> {
        Box::pin(async move {
            let mut children = self.children.lock().unwrap();
            if let Some(entry) = children.get_mut(name) {
                Self::refresh(entry);
                if entry.1.is_some() {
                    children.remove(name);
                }
            }
            Ok(())
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, ProgramError>> {
        Box::pin(async move {
            let children = self.children.lock().unwrap();
            Ok(children
                .keys()
                .filter(|name| name.starts_with(prefix))
                .cloned()
                .collect())
        })
    }
}
