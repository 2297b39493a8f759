//! What reaches the agent: configs, images, registries, guests, and its own files.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path};

use pillar::bundle::Server;
use pillar::config::settings::Settings;
use pillar::config::translate::{Secrets, translate};
use pillar::domain::desired::{ContentKind, Desired, Runtime};
use pillar::logs::journal;
use pillar::reconcile::content::manifest::{self, Document, Packing};
use pillar::reconcile::content::unpack::{Limits, unpack};
use pillar::reconcile::content::{registry, rootfs};
use pillar::reconcile::ledger::{Ledger, Port};
use pillar::reconcile::network::dnsmasq;
use pillar::reconcile::volume::plan::FileName;
use pillar::reconcile::workload::guest;
use pillar::report::procfs;
use pillar::{bless, bundle, clock, durable, uplink};
use prost::Message as _;
use protocol::envelope::decode;
use protocol::eve::common::{CipherBlock, CipherContext, EncryptionBlock, IpRange, Ipspec};
use protocol::eve::config::{
    Ace, AceAction, AceMatch, AppInstanceConfig, ConfigItem, ConfigResponse, ContentTree,
    DatastoreConfig, DsType, EdgeDevConfig, Format, InstanceOpsCmd, NetworkAdapter,
    NetworkInstanceConfig, UuiDandVersion, VmConfig, Volume, VolumeContentOrigin,
    VolumeContentOriginType, VolumeRef, ZNetworkInstType,
};
use serde_json::json;

use crate::Target;
use crate::feed::{join, survives, texts};
use crate::protocol::{config_seeds, vector_text};

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "desired",
        about: "a config, translated: references lead somewhere, numbers keep their bounds, addresses are given out once",
        run: desired,
        seeds: desired_seeds,
    },
    Target {
        name: "ledger",
        about: "the ledger's JSON: what is understood is written and read as itself and serves another desired state",
        run: ledger,
        seeds: ledger_seeds,
    },
    Target {
        name: "content-manifest",
        about: "manifests, indexes and configs of images: blobs have sizes within the limits",
        run: content_manifest,
        seeds: content_manifest_seeds,
    },
    Target {
        name: "layer",
        about: "a layer (tar; gzip; zstd), unpacked: nothing outside its root is touched, and no more than the limits is made",
        run: layer,
        seeds: layer_seeds,
    },
    Target {
        name: "registry-headers",
        about: "a registry's challenge and range, and names of repositories, which are harmless in a URL",
        run: registry_headers,
        seeds: registry_headers_seeds,
    },
    Target {
        name: "image-user",
        about: "an image's user among its accounts: numbers that are some",
        run: image_user,
        seeds: image_user_seeds,
    },
    Target {
        name: "journal",
        about: "a line of journalctl: what goes on is bounded, and its cursor fits on a command line",
        run: journal_line,
        seeds: journal_seeds,
    },
    Target {
        name: "guest-event",
        about: "a line of guest-init: what is understood is written and read as itself",
        run: guest_event,
        seeds: guest_event_seeds,
    },
    Target {
        name: "http-date",
        about: "a Date header",
        run: http_date,
        seeds: || vec![b"Fri, 20 Nov 2026 20:00:00 GMT".to_vec()],
    },
    Target {
        name: "server",
        about: "the bundle's server, which is read as itself again, and its PEM files",
        run: server,
        seeds: server_seeds,
    },
    Target {
        name: "durable",
        about: "a durable file: what is taken is what its first line vouches for",
        run: durable_file,
        seeds: durable_seeds,
    },
    Target {
        name: "boot-variable",
        about: "the boot loader's variable: a path that stays on its partition, and a name without its counter",
        run: boot_variable,
        seeds: boot_variable_seeds,
    },
    Target {
        name: "lease",
        about: "a lease of networkd: its domain is no line of its own in resolv.conf",
        run: lease,
        seeds: || vec![b"# private\nDNS=10.0.2.3 fe80::1\nDOMAINNAME=site.example\n".to_vec()],
    },
    Target {
        name: "procfs",
        about: "/proc/meminfo, /proc/stat and a process's stat with a spiteful name",
        run: procfs_files,
        seeds: procfs_seeds,
    },
    Target {
        name: "volume-name",
        about: "a volume's file name, which is written as the same text",
        run: volume_name,
        seeds: || vec![b"00000000-0000-4000-8000-000000000003#7.qcow2".to_vec()],
    },
];

/// A device that can open some blocks.
struct Open;

impl Secrets for Open {
    fn open(&self, _: &[CipherContext], block: &CipherBlock) -> Result<EncryptionBlock, String> {
        if block.cipher_context_id == "bad" {
            return Err("no such context".to_owned());
        }
        EncryptionBlock::decode(block.cipher_data.as_slice()).map_err(|error| error.to_string())
    }
}

fn desired(data: &[u8]) {
    let Ok(config) = decode::<EdgeDevConfig>(data, "EdgeDevConfig") else {
        return;
    };
    let _ = Settings::read(&config);
    let out = translate(&config, &Open);
    assert_eq!(translate(&config, &Open), out);
    whole(&out.desired);
    let ledger = Ledger::default().update(&out.desired, &BTreeSet::new());
    given_out(&ledger, &out.desired);
    assert_eq!(ledger.update(&out.desired, &BTreeSet::new()), ledger);
}

/// What reconcilers rely on.
fn whole(desired: &Desired) {
    for content in desired.contents.values() {
        assert!(desired.datastores.contains_key(&content.datastore));
        assert!(registry::is_repository(&content.repository), "{content:?}");
        assert!(
            content
                .digest
                .parse::<pillar::reconcile::content::digest::Digest>()
                .is_ok()
        );
    }
    for volume in desired.volumes.values() {
        assert!(desired.contents.contains_key(&volume.content));
    }
    for network in desired.networks.values() {
        let (first, last) = network.range;
        assert!(network.prefix <= 32 && first <= last, "{network:?}");
        let host = 32 - u32::from(network.prefix);
        let subnet = |address| u64::from(u32::from(address)) >> host;
        for address in [first, last] {
            assert_eq!(subnet(address), subnet(network.gateway), "{network:?}");
        }
    }
    for app in desired.apps.values() {
        assert!(
            (1..=16).contains(&app.vcpus) && app.memory_mib > 0,
            "{app:?}"
        );
        assert!(app.devices() <= 31, "{app:?}");
        for mount in &app.volumes {
            assert!(desired.volumes.contains_key(&mount.volume));
            assert!(!mount.mount_dir.contains(['\0', '\n']), "{app:?}");
        }
        for interface in &app.interfaces {
            assert!(desired.networks.contains_key(&interface.network));
        }
        assert!(!app.env.iter().any(|word| word.contains('\0')), "{app:?}");
        if let Runtime::Machine { cmdline } = &app.runtime {
            assert!(!cmdline.contains('\0'), "{app:?}");
        }
        if let Some(label) = dnsmasq::label(&app.name) {
            assert!(
                label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            );
        }
    }
}

/// Nothing is given to two.
fn given_out(ledger: &Ledger, desired: &Desired) {
    let mut uids = BTreeSet::new();
    for (id, app) in &desired.apps {
        let Some(number) = ledger.app(*id) else {
            continue;
        };
        assert!(uids.insert(number.uid()));
        assert!(number.tap(app.interfaces.len()).len() <= 15);
        let _ = (number.subordinate_ids(), number.cid());
    }
    for (id, network) in &desired.networks {
        let bridge = ledger.network(*id).unwrap().bridge();
        assert!(bridge.len() <= 15, "{bridge}");
        let mut addresses = BTreeSet::from([network.gateway]);
        for (app, wanted) in &desired.apps {
            for interface in 0..wanted.interfaces.len() {
                let port = Port {
                    app: *app,
                    interface,
                };
                if let Some(address) = ledger.lease(*id, port) {
                    assert!(addresses.insert(address), "{address} twice");
                }
            }
        }
    }
    survives(ledger);
}

fn id(n: u8) -> String {
    format!("00000000-0000-4000-8000-0000000000{n:02x}")
}

/// One of everything.
fn whole_config() -> EdgeDevConfig {
    let named = |n| {
        Some(UuiDandVersion {
            uuid: id(n),
            version: "1".to_owned(),
        })
    };
    let matched = |kind: &str, value: &str| AceMatch {
        r#type: kind.to_owned(),
        value: value.to_owned(),
    };
    let secret = EncryptionBlock {
        ds_api_key: "user".to_owned(),
        ds_password: "word".to_owned(),
        protected_user_data: "QT1iCg==".to_owned(),
        ..EncryptionBlock::default()
    };
    let block = || {
        Some(CipherBlock {
            cipher_context_id: "good".to_owned(),
            cipher_data: secret.encode_to_vec(),
            ..CipherBlock::default()
        })
    };
    EdgeDevConfig {
        id: named(9),
        datastores: vec![DatastoreConfig {
            id: id(1),
            d_type: DsType::DsContainerRegistry.into(),
            fqdn: "docker://registry.example:5000".to_owned(),
            cipher_data: block(),
            ..DatastoreConfig::default()
        }],
        content_info: vec![ContentTree {
            uuid: id(2),
            ds_id: id(1),
            url: format!("apps/hello@sha256:{}", "ab".repeat(32)),
            iformat: Format::Container.into(),
            display_name: "hello".to_owned(),
            ..ContentTree::default()
        }],
        volumes: vec![Volume {
            uuid: id(3),
            origin: Some(VolumeContentOrigin {
                r#type: VolumeContentOriginType::VcotDownload.into(),
                download_content_tree_id: id(2),
            }),
            maxsizebytes: 1 << 20,
            ..Volume::default()
        }],
        network_instances: vec![NetworkInstanceConfig {
            uuidandversion: named(4),
            inst_type: ZNetworkInstType::ZnetInstLocal.into(),
            activate: true,
            ip: Some(Ipspec {
                subnet: "10.1.0.0/24".to_owned(),
                gateway: "10.1.0.1".to_owned(),
                dns: vec!["9.9.9.9".to_owned()],
                dhcp_range: Some(IpRange {
                    start: "10.1.0.10".to_owned(),
                    end: "10.1.0.20".to_owned(),
                }),
                ..Ipspec::default()
            }),
            ..NetworkInstanceConfig::default()
        }],
        apps: vec![AppInstanceConfig {
            uuidandversion: named(5),
            displayname: "hello".to_owned(),
            activate: true,
            fixedresources: Some(VmConfig {
                memory: 128 << 10,
                vcpus: 2,
                ..VmConfig::default()
            }),
            volume_ref_list: vec![VolumeRef {
                uuid: id(3),
                ..VolumeRef::default()
            }],
            interfaces: vec![NetworkAdapter {
                name: "eth0".to_owned(),
                network_id: id(4),
                acls: vec![Ace {
                    matches: vec![matched("protocol", "tcp"), matched("lport", "8080")],
                    actions: vec![AceAction {
                        portmap: true,
                        app_port: 80,
                        ..AceAction::default()
                    }],
                    ..Ace::default()
                }],
                ..NetworkAdapter::default()
            }],
            user_data: "R1JFRVRJTkc9aGVsbG8K".to_owned(),
            restart: Some(InstanceOpsCmd {
                counter: 1,
                ..InstanceOpsCmd::default()
            }),
            cipher_data: block(),
            ..AppInstanceConfig::default()
        }],
        config_items: vec![ConfigItem {
            key: "timer.config.interval".to_owned(),
            value: "30".to_owned(),
        }],
        ..EdgeDevConfig::default()
    }
}

fn desired_seeds() -> Vec<Vec<u8>> {
    let mut machine = whole_config();
    if let (Some(content), Some(app)) = (machine.content_info.first_mut(), machine.apps.first_mut())
    {
        content.iformat = Format::Qcow2.into();
        app.interfaces.clear();
        app.user_data = "I2Nsb3VkLWNvbmZpZwo=".to_owned();
    }
    let mut seeds = vec![whole_config().encode_to_vec(), machine.encode_to_vec()];
    for seed in config_seeds() {
        let response: ConfigResponse = decode(&seed, "ConfigResponse").unwrap();
        seeds.push(response.config.unwrap_or_default().encode_to_vec());
    }
    seeds
}

fn ledger(data: &[u8]) {
    let Ok(read) = serde_json::from_slice::<Ledger>(data) else {
        return;
    };
    survives(&read);
    let desired = translate(&whole_config(), &Open).desired;
    let next = read.update(&desired, &BTreeSet::new());
    given_out(&next, &desired);
    for volume in desired.volumes.keys() {
        let _ = next.generation(*volume, i64::MAX);
    }
    given_out(
        &next.update(&Desired::default(), &BTreeSet::new()),
        &Desired::default(),
    );
}

fn ledger_seeds() -> Vec<Vec<u8>> {
    let desired = translate(&whole_config(), &Open).desired;
    let ledger = Ledger::default().update(&desired, &BTreeSet::new());
    vec![
        serde_json::to_vec(&ledger).unwrap(),
        br#"{"apps":{"00000000-0000-4000-8000-000000000005":9999},"nextApp":9999,"networks":{},"leases":{},
            "purges":{"00000000-0000-4000-8000-000000000005":7},"epochs":{"00000000-0000-4000-8000-000000000003":5}}"#
            .to_vec(),
    ]
}

fn content_manifest(data: &[u8]) {
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

fn content_manifest_seeds() -> Vec<Vec<u8>> {
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
const LAYER_LIMITS: Limits = Limits {
    bytes: 1 << 20,
    entries: 64,
};

fn layer(data: &[u8]) {
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

fn layer_seeds() -> Vec<Vec<u8>> {
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

fn registry_headers(data: &[u8]) {
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
    if registry::is_repository(text) {
        assert!(!text.contains("..") && !text.starts_with('/') && !text.contains("//"));
        assert!(!text.contains(['?', '#', '%', '@', ':', '\\']) && text.is_ascii());
    }
}

fn registry_headers_seeds() -> Vec<Vec<u8>> {
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

fn image_user(data: &[u8]) {
    let Some([user, passwd, group]) = texts(data) else {
        return;
    };
    if let Some(notes) = rootfs::resolve_user(user, passwd, group) {
        assert!(notes.uid != u32::MAX && notes.gid != u32::MAX);
        assert!(notes.groups.len() <= 64);
        survives(&notes);
    }
}

fn image_user_seeds() -> Vec<Vec<u8>> {
    let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/srv:/bin/false\n";
    let group = "root:x:0:\nweb:x:1000:\nlog:x:4:web,root\n";
    ["web", "1000:log", "", "7:8"]
        .iter()
        .map(|user| join(&[user, passwd, group]))
        .collect()
}

fn journal_line(data: &[u8]) {
    let Some(entry) = journal::parse(data) else {
        return;
    };
    assert!(journal::good_cursor(&entry.cursor));
    assert!(!entry.cursor.contains(char::is_whitespace));
    assert!(entry.log.content.len() <= 33 << 10);
    let nanos = entry.log.timestamp.map_or(0, |time| time.nanos);
    assert!((0..1_000_000_000).contains(&nanos));
    survives(&entry.log);
}

fn journal_seeds() -> Vec<Vec<u8>> {
    let line = |extra: serde_json::Value| {
        let mut line = json!({
            "__CURSOR": "s=abc;i=1;b=def;m=2;t=3;x=4", "__REALTIME_TIMESTAMP": "1795204800123456",
            "PRIORITY": "6", "SYSLOG_IDENTIFIER": "pillar", "_PID": "7",
        });
        for (key, value) in extra.as_object().unwrap() {
            line[key] = value.clone();
        }
        serde_json::to_vec(&line).unwrap()
    };
    vec![
        line(json!({"MESSAGE": "hello", "_SYSTEMD_UNIT": "pillar.service"})),
        line(json!({"MESSAGE": [104, 105, 255], "_TRANSPORT": "stdout",
            "_SYSTEMD_UNIT": "skerry-app-00000000-0000-4000-8000-000000000005.service"})),
        line(json!({"MESSAGE": ["one", "two"], "PRIORITY": ["3", "4"]})),
    ]
}

fn guest_event(data: &[u8]) {
    if let Some(event) = guest::parse(data) {
        survives(&event);
        let line = guest_init::control::encode(&event);
        assert_eq!(guest::parse(&line), Some(event));
    }
}

fn guest_event_seeds() -> Vec<Vec<u8>> {
    use guest_api::FromGuest;
    let failed = FromGuest::Failed {
        message: "mount \"/x\": no".to_owned(),
    };
    [FromGuest::Started, FromGuest::Exited { code: 137 }, failed]
        .iter()
        .map(guest_init::control::encode)
        .collect()
}

fn http_date(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(seconds) = clock::parse_http_date(text)
    {
        // The year 9999 ends there.
        assert!(seconds < 253_402_300_800);
    }
}

fn server(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(server) = Server::parse(text)
    {
        assert_ne!(server.port, 0);
        assert!(!server.host.contains(['/', '@', '?', '#', ' ']) && server.host.is_ascii());
        assert_eq!(Server::parse(&server.authority()), Some(server));
    }
    let _ = bundle::certificates(data);
}

fn server_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        "controller.example\n",
        "10.0.2.2:8443",
        "[fe80::1]:443",
        "[::1]",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    seeds.push(vector_text("openssl", "/device_certificate").into_bytes());
    seeds
}

fn durable_file(data: &[u8]) {
    if let Some(payload) = durable::check(data) {
        assert!(data.ends_with(payload) && payload.len() < data.len());
    }
}

fn durable_seeds() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    ["", "{\"a\":1}"]
        .iter()
        .map(|payload| {
            let path = dir.path().join("file");
            durable::write(&path, payload.as_bytes()).unwrap();
            fs::read(path).unwrap()
        })
        .collect()
}

fn boot_variable(data: &[u8]) {
    let Some(path) = bless::counted_path(data) else {
        return;
    };
    assert!(
        path.components()
            .all(|part| matches!(part, Component::Normal(_))),
        "{path:?}"
    );
    if let Some(name) = path.file_name().and_then(|name| name.to_str())
        && let Some(good) = bless::good_name(name)
    {
        assert!(good.to_ascii_lowercase().ends_with(".efi") && good.len() < name.len());
    }
}

fn boot_variable_seeds() -> Vec<Vec<u8>> {
    let mut seed = vec![6, 0, 0, 0];
    let path = "\\EFI\\Linux\\skerry-1.0+2-1.efi";
    seed.extend(path.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
    vec![seed]
}

fn lease(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let lease = uplink::Lease::parse(text);
    assert!(lease.domain.len() <= 253);
    assert!(!lease.domain.contains(char::is_whitespace));
    for gateways in uplink::routers(text).values() {
        assert!(gateways.iter().all(|address| !address.is_unspecified()));
    }
}

fn procfs_files(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let memory = procfs::Memory::parse(text);
    let _ = memory.used();
    let _ = procfs::parse_cpu(text, 100);
    let _ = procfs::parse_boot_time(text);
    let _ = procfs::Process::parse(text, 100, 4096);
}

fn procfs_seeds() -> Vec<Vec<u8>> {
    [
        "MemTotal:        8000000 kB\nMemFree: 100 kB\nMemAvailable:    4000000 kB\n",
        "cpu  100 2 30 4000 5 6 7 8 9 10\ncpu0 1 2 3 4\nintr 5\nbtime 1795204800\n",
        "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 11 12 0 0 20 0 3 0 400 5000000 600 18446744073709551615\n",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}

fn volume_name(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(name) = FileName::parse(text)
    {
        assert_eq!(name.text(), text);
    }
}
