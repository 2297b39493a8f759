//! What operators and devices tell a controller.

use std::collections::{BTreeMap, BTreeSet};

use controller::fleet::secrets::Envelope;
use controller::fleet::{figures, logs, manifest, plan, status};
use jiff::Timestamp;
use operator_api::{
    App, AppStatus, Credentials, Datastore, DatastoreSpec, DatastoreType, Device, DeviceSpec,
    DeviceStatus, ImageBundle, ManifestFormat, Object, TokenRequest, is_dns_label,
};
use pillar::config::translate::{SecretError, Secrets, translate};
use prost::Message as _;
use protocol::cipher::{self, BlockKey, SoftwareAgreement};
use protocol::envelope::decode;
use protocol::eve::common::{CipherBlock, CipherContext, EncryptionBlock};
use protocol::eve::config::ConfigRequest;
use protocol::eve::flowlog::{DnsRequest, FlowMessage, FlowRecord, IpFlow, ScopeInfo};
use protocol::eve::hardwarehealth::{EccMemoryControllerInfo, EccMemoryReport, ZHardwareHealth};
use protocol::eve::info::z_info_msg::InfoContent;
use protocol::eve::info::{
    ErrorInfo, ZInfoApp, ZInfoContentTree, ZInfoMsg, ZInfoNetworkInstance, ZInfoVolume, ZSwState,
};
use protocol::eve::logs::{AppInstanceLogBundle, LogBundle, LogEntry};
use protocol::eve::metrics::ZMetricMsg;
use protocol::eve::uuid::UuidRequest;
use protocol::ids::{AppId, DeviceId};
use protocol::keys::CertHash;
use protocol::logs::Bundle;
use serde_json::json;
use uuid::Uuid;

use crate::Target;
use crate::feed::survives;
use crate::protocol::{log_seeds, vector};

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "app-document",
        about: "an operator's App: what is admitted is written and read as itself, and its device can do it",
        run: app_document,
        seeds: app_document_seeds,
    },
    Target {
        name: "operator-documents",
        about: "an operator's Datastore, Device and log-in: what is admitted is written and read as itself",
        run: operator_documents,
        seeds: operator_documents_seeds,
    },
    Target {
        name: "machine-list-csv",
        about: "a manifest in CSV: each machine is named once, errors have a place, and what was understood is understood again",
        run: manifest_csv,
        seeds: manifest_csv_seeds,
    },
    Target {
        name: "machine-list-json",
        about: "a manifest in JSON: likewise",
        run: manifest_json,
        seeds: manifest_json_seeds,
    },
    Target {
        name: "device-info",
        about: "a ZInfoMsg: what operators see of it is bounded and is written and read as itself",
        run: device_info,
        seeds: device_info_seeds,
    },
    Target {
        name: "device-metrics",
        about: "a ZMetricMsg: what is kept of it is bounded and is written and read as itself",
        run: device_metrics,
        seeds: || vec![vector("messages", "/metrics")],
    },
    Target {
        name: "kept-messages",
        about: "messages of a device that are decoded and no more: flows, health of the hardware, requests for its id and its config",
        run: kept_messages,
        seeds: kept_messages_seeds,
    },
    Target {
        name: "device-log",
        about: "a log bundle as operators read it: each entry is written and read as itself, on one line of JSON",
        run: device_log,
        seeds: log_seeds,
    },
    Target {
        name: "old-log",
        about: "a log bundle in EVE's old form, a device's and an app's: what fits is read by operators, entry by entry",
        run: old_log,
        seeds: old_log_seeds,
    },
];

fn datastore() -> Datastore {
    let mut datastore = Datastore::new(
        "demo",
        DatastoreSpec {
            kind: DatastoreType::Registry,
            url: "docker://registry.example:5000".to_owned(),
            ca_certificates: None,
            credentials: Some(Credentials {
                user: "puller".to_owned(),
                password: Some("secret".to_owned()),
            }),
        },
    );
    datastore.metadata.uid = Some(Uuid::from_u128(2));
    datastore
}

/// A device's end of what is encrypted to it.
struct DeviceEnd(BlockKey);

impl Secrets for DeviceEnd {
    fn open(
        &self,
        contexts: &[CipherContext],
        block: &CipherBlock,
    ) -> Result<EncryptionBlock, SecretError> {
        let own = CertHash::from_bytes(&[2; 16]).expect("16 bytes are a hash");
        cipher::find_context(contexts, block, &own)?;
        Ok(cipher::decrypt_secrets(&self.0, block)?)
    }
}

/// A controller that encrypts and a device that opens.
fn both_ends() -> (Envelope, DeviceEnd) {
    let key = |byte| SoftwareAgreement::from_scalar(&[byte; 32]).expect("it is a scalar");
    let point = |key: &SoftwareAgreement| key.public_point().expect("a key has a point");
    let name = |byte| CertHash::from_bytes(&[byte; 16]).expect("16 bytes are a hash");
    let (controller, device) = (key(7), key(8));
    let id = DeviceId(Uuid::from_u128(1));
    let envelope = Envelope::between(&controller, &name(1), id, &point(&device), &name(2));
    let block = BlockKey::agree(&device, &point(&controller));
    (
        envelope.expect("the points are on the curve"),
        DeviceEnd(block.expect("the points are on the curve")),
    )
}

fn manifest_csv(data: &[u8]) {
    manifest_text(ManifestFormat::Csv, data);
}

fn manifest_json(data: &[u8]) {
    manifest_text(ManifestFormat::Json, data);
}

fn manifest_text(format: ManifestFormat, data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let entries = match manifest::read(format, text) {
        Ok(entries) => entries,
        Err(error) => {
            // An error's place is one that an editor can go to.
            assert!(
                (1..=text.lines().count() + 1).contains(&error.line),
                "{error}"
            );
            return;
        }
    };
    let mut seen = BTreeSet::new();
    for entry in &entries {
        assert!(entry.machine.is_some() || !entry.serial.is_empty());
        assert!(seen.insert((entry.machine, &entry.serial)));
        assert!(entry.name.is_empty() || is_dns_label(&entry.name));
    }
    // What was understood is read the same when it is written anew.
    let written: Vec<_> = entries
        .iter()
        .map(|entry| {
            json!({
                "ekId": entry.machine.map(|machine| machine.to_string()).unwrap_or_default(),
                "serial": entry.serial, "name": entry.name, "labels": entry.labels,
            })
        })
        .collect();
    let again = manifest::read(ManifestFormat::Json, &json!(written).to_string())
        .expect("what was understood is understood again");
    assert_eq!(again.len(), entries.len());
    for (before, after) in entries.iter().zip(&again) {
        assert_eq!(
            (before.machine, &before.serial, &before.name, &before.labels),
            (after.machine, &after.serial, &after.name, &after.labels)
        );
    }
}

fn manifest_csv_seeds() -> Vec<Vec<u8>> {
    let id = "ab".repeat(32);
    [
        format!(
            "ekId,serial,name,label:site\r\n{id},SN-1,press,hall-3\r\n,\"a \"\"b\"\", c\",,\r\n"
        ),
        "\u{feff}serial\nSN-1\n\nSN-2\n".to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}

fn manifest_json_seeds() -> Vec<Vec<u8>> {
    let id = "ab".repeat(32);
    vec![
        format!("[{{\"ekId\": \"{id}\", \"labels\": {{\"site\": \"hall-3\"}}}},\n {{\"serial\": \"S\", \"name\": \"n\"}}]")
            .into_bytes(),
    ]
}

fn app_document(data: &[u8]) {
    let Ok(mut app) = serde_json::from_slice::<App>(data) else {
        return;
    };
    if app.validate().is_err() {
        return;
    }
    survives(&app);
    // What the controller makes of it, its device takes as it is, secrets included.
    let keys = both_ends();
    app.metadata.uid = Some(Uuid::from_u128(3));
    app.spec.image.datastore = "demo".to_owned();
    let mut device = Device::new("box-1", DeviceSpec::default());
    device.metadata.uid = Some(Uuid::from_u128(1));
    let config = plan::config(plan::Inputs {
        device: &device,
        apps: &[app],
        datastores: &BTreeMap::from([("demo".to_owned(), datastore())]),
        certificates_hash: "",
        secrets: Some(&keys.0),
        keep_running: true,
        attest_every: None,
    });
    let translated = translate(&config, &keys.1);
    assert_eq!(translated.faults, []);
    assert_eq!(translated.desired.apps.len(), 1);
}

fn app_document_seeds() -> Vec<Vec<u8>> {
    let document = |spec: serde_json::Value| {
        let document = json!({
            "apiVersion": "skerry.io/v1", "kind": "App",
            "metadata": {"name": "web", "labels": {"site": "north"}}, "spec": spec,
        });
        serde_json::to_vec(&document).unwrap()
    };
    let digest = "ab".repeat(32);
    let image = json!({"datastore": "demo", "reference": format!("apps/hello@sha256:{digest}")});
    let mut disk = image.clone();
    disk["format"] = json!("qcow2");
    vec![
        document(json!({"device": "box-1", "type": "container", "image": image})),
        document(json!({
            "device": "box-1", "type": "container", "isolation": "native", "image": image,
            "env": {"A": "b=c", "GREETING": "hello"}, "resources": {"cpus": 2, "memoryMiB": 256},
            "ports": [{"device": 8080, "app": 80, "protocol": "tcp"}, {"device": 5353, "app": 53, "protocol": "udp"}],
        })),
        document(json!({
            "device": "box-1", "type": "vm", "image": disk, "kernelArgs": "root=/dev/vda1 ro",
            "userData": "#cloud-config\n", "resources": {"cpus": 1, "memoryMiB": 128},
        })),
    ]
}

fn admitted<T: Object>(data: &[u8]) {
    if let Ok(object) = serde_json::from_slice::<T>(data)
        && object.validate().is_ok()
    {
        survives(&object);
    }
}

fn operator_documents(data: &[u8]) {
    admitted::<Datastore>(data);
    admitted::<Device>(data);
    let _ = serde_json::from_slice::<TokenRequest>(data);
    let _ = serde_json::from_slice::<ImageBundle>(data);
}

fn operator_documents_seeds() -> Vec<Vec<u8>> {
    let device = Device::new(
        "box-1",
        DeviceSpec {
            description: "by the door".to_owned(),
            revoked: true,
            time_servers: vec!["192.0.2.1".to_owned(), "ntp.example.com".to_owned()],
        },
    );
    let mut datastore = datastore();
    datastore.spec.ca_certificates = Some(crate::protocol::vector_text(
        "openssl",
        "/device_certificate",
    ));
    vec![
        serde_json::to_vec(&datastore).unwrap(),
        serde_json::to_vec(&device).unwrap(),
        br#"{"user":"admin","password":"word"}"#.to_vec(),
    ]
}

/// Longest text that may come of a device's message, in bytes: eight errors with the time of their retry.
const LONGEST: usize = 8 * 3 * 4 * 2048;

fn device_info(data: &[u8]) {
    let Ok(message) = decode::<ZInfoMsg>(data, "ZInfoMsg") else {
        return;
    };
    let told = message
        .at_time_stamp
        .as_ref()
        .and_then(status::timestamp)
        .unwrap_or(Timestamp::UNIX_EPOCH);
    let parts = match &message.info_content {
        Some(InfoContent::Dinfo(info)) => {
            let mut seen = DeviceStatus::default();
            status::device(&mut seen, info, told);
            assert!(seen.interfaces.len() <= 64 && seen.errors.len() <= 64);
            survives(&seen);
            return;
        }
        Some(InfoContent::Ainfo(app)) => status::Told {
            app: Some(app),
            ..status::Told::default()
        },
        Some(InfoContent::Vinfo(volume)) => status::Told {
            volume: Some(volume),
            ..status::Told::default()
        },
        Some(InfoContent::Cinfo(content)) => status::Told {
            content: Some(content),
            ..status::Told::default()
        },
        Some(InfoContent::Niinfo(network)) => status::Told {
            network: Some(network),
            ..status::Told::default()
        },
        _ => return,
    };
    let app: App = serde_json::from_slice(app_document_seeds().first().unwrap()).unwrap();
    let mut seen = status::app(&app, &AppStatus::default(), parts, told);
    status::app_conditions(&mut seen, told);
    assert!(
        seen.message.len() <= LONGEST,
        "{} bytes",
        seen.message.len()
    );
    assert!(seen.addresses.len() <= 64);
    assert!(seen.progress_percent.is_none_or(|percent| percent <= 100));
    survives(&seen);
}

fn device_info_seeds() -> Vec<Vec<u8>> {
    let error = || ErrorInfo {
        description: "no room".to_owned(),
        retry_condition: "in an hour".to_owned(),
        ..ErrorInfo::default()
    };
    let of = |content| {
        ZInfoMsg {
            dev_id: Uuid::nil().to_string(),
            info_content: Some(content),
            ..ZInfoMsg::default()
        }
        .encode_to_vec()
    };
    vec![
        vector("messages", "/info_app"),
        of(InfoContent::Ainfo(ZInfoApp {
            state: ZSwState::Running.into(),
            app_err: vec![error(), error()],
            ..ZInfoApp::default()
        })),
        of(InfoContent::Vinfo(ZInfoVolume {
            volume_err: Some(error()),
            ..ZInfoVolume::default()
        })),
        of(InfoContent::Cinfo(ZInfoContentTree {
            err: Some(error()),
            progress_percentage: 150,
            ..ZInfoContentTree::default()
        })),
        of(InfoContent::Niinfo(ZInfoNetworkInstance {
            network_err: vec![error()],
            ..ZInfoNetworkInstance::default()
        })),
        of(InfoContent::Dinfo(protocol::eve::info::ZInfoDevice {
            machine_arch: "x86_64".to_owned(),
            ncpu: 4,
            ..Default::default()
        })),
    ]
}

fn device_metrics(data: &[u8]) {
    let Ok(message) = decode::<ZMetricMsg>(data, "ZMetricMsg") else {
        return;
    };
    let seen = figures::read(&message);
    assert!(seen.apps.len() <= 5 * 512);
    if let Some(memory) = &seen.memory {
        assert!(memory.processes.len() <= 512);
    }
    survives(&seen);
}

/// Decodes a message and encodes it again.
fn kept<M: prost::Message + Default>(data: &[u8], what: &'static str) {
    if let Ok(message) = decode::<M>(data, what) {
        let bytes = message.encode_to_vec();
        let again: M = decode(&bytes, what).expect("what was encoded decodes");
        assert_eq!(again.encoded_len(), bytes.len());
    }
}

fn kept_messages(data: &[u8]) {
    kept::<FlowMessage>(data, "FlowMessage");
    kept::<ZHardwareHealth>(data, "ZHardwareHealth");
    kept::<UuidRequest>(data, "UuidRequest");
    kept::<ConfigRequest>(data, "ConfigRequest");
}

fn kept_messages_seeds() -> Vec<Vec<u8>> {
    let time = Some(protocol::eve::Timestamp {
        seconds: 1_798_000_000,
        nanos: 5,
    });
    let flows = FlowMessage {
        dev_id: Uuid::nil().to_string(),
        scope: Some(ScopeInfo {
            uuid: Uuid::nil().to_string(),
            ..ScopeInfo::default()
        }),
        flows: vec![FlowRecord {
            flow: Some(IpFlow {
                src: "10.1.0.2".to_owned(),
                src_port: 4000,
                dest: "192.0.2.1".to_owned(),
                dest_port: 443,
                protocol: 6,
            }),
            start_time: time,
            tx_bytes: 1000,
            ..FlowRecord::default()
        }],
        dns_reqs: vec![DnsRequest {
            host_name: "registry.example".to_owned(),
            addrs: vec!["192.0.2.1".to_owned()],
            request_time: time,
            acl_num: 1,
        }],
    };
    let health = ZHardwareHealth {
        dev_id: Uuid::nil().to_string(),
        at_time_stamp: time,
        mr: Some(EccMemoryReport {
            memory_controllers: vec![EccMemoryControllerInfo {
                controller_name: "mc0".to_owned(),
                ce_count: 3,
                ..EccMemoryControllerInfo::default()
            }],
        }),
        ..ZHardwareHealth::default()
    };
    let request = ConfigRequest {
        config_hash: "ab".repeat(32),
        integrity_token: vec![7; 32],
    };
    vec![
        flows.encode_to_vec(),
        health.encode_to_vec(),
        request.encode_to_vec(),
        UuidRequest::default().encode_to_vec(),
    ]
}

/// Entries as operators get them.
fn shown(entries: &[operator_api::LogEntry]) {
    for entry in entries {
        survives(entry);
        assert!(!entry.content.ends_with('\n'));
        assert!(!serde_json::to_vec(entry).unwrap().contains(&b'\n'));
    }
}

fn device_log(data: &[u8]) {
    let entries = logs::entries(data);
    // Only what is refused as a whole has none.
    if let Ok(bundle) = Bundle::decode(data) {
        assert_eq!(entries.len(), bundle.entries.len());
    } else {
        assert!(entries.is_empty());
    }
    shown(&entries);
}

fn old_log(data: &[u8]) {
    for app in [None, Some(AppId(Uuid::from_u128(3)))] {
        let Ok(bundle) = logs::from_old(data, app) else {
            continue;
        };
        // What is too large for a bundle is refused.
        let Ok(bytes) = bundle.encode() else {
            continue;
        };
        // It may unfold to more than a bundle may, which is refused when it is read.
        let Ok(again) = Bundle::decode(&bytes) else {
            continue;
        };
        assert_eq!(again, bundle);
        let entries = logs::entries(&bytes);
        assert_eq!(entries.len(), bundle.entries.len());
        shown(&entries);
    }
}

fn old_log_seeds() -> Vec<Vec<u8>> {
    let log = vec![
        LogEntry {
            severity: "info".to_owned(),
            source: "pillar".to_owned(),
            content: "one\n".to_owned(),
            timestamp: Some(protocol::eve::Timestamp {
                seconds: 1_798_000_000,
                nanos: 5,
            }),
            ..LogEntry::default()
        },
        LogEntry {
            content: "two \u{1f980}".to_owned(),
            msgid: 8,
            ..LogEntry::default()
        },
    ];
    let device = LogBundle {
        dev_id: Uuid::nil().to_string(),
        log: log.clone(),
        ..LogBundle::default()
    };
    let app = AppInstanceLogBundle {
        log,
        timestamp: None,
    };
    let seeds = [device.encode_to_vec(), app.encode_to_vec()];
    assert_eq!(logs::from_old(&seeds[0], None).unwrap().entries.len(), 2);
    let id = Some(AppId(Uuid::from_u128(3)));
    assert_eq!(logs::from_old(&seeds[1], id).unwrap().entries.len(), 2);
    seeds.to_vec()
}
