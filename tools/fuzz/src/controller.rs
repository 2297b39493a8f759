//! What operators and devices tell a controller.

use std::collections::BTreeMap;

use controller::fleet::{figures, plan, status};
use jiff::Timestamp;
use operator_api::{
    App, AppStatus, Datastore, DatastoreSpec, DatastoreType, Device, DeviceSpec, DeviceStatus,
    ImageBundle, Object, TokenRequest,
};
use pillar::config::NoSecrets;
use pillar::config::translate::translate;
use prost::Message as _;
use protocol::envelope::decode;
use protocol::eve::info::z_info_msg::InfoContent;
use protocol::eve::info::{
    ErrorInfo, ZInfoApp, ZInfoContentTree, ZInfoMsg, ZInfoNetworkInstance, ZInfoVolume, ZSwState,
};
use protocol::eve::metrics::ZMetricMsg;
use serde_json::json;
use uuid::Uuid;

use crate::Target;
use crate::feed::survives;
use crate::protocol::vector;

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
];

fn datastore() -> Datastore {
    let mut datastore = Datastore::new(
        "demo",
        DatastoreSpec {
            kind: DatastoreType::Registry,
            url: "docker://registry.example:5000".to_owned(),
            ca_certificates: None,
        },
    );
    datastore.metadata.uid = Some(Uuid::from_u128(2));
    datastore
}

fn app_document(data: &[u8]) {
    let Ok(mut app) = serde_json::from_slice::<App>(data) else {
        return;
    };
    if app.validate().is_err() {
        return;
    }
    survives(&app);
    // What the controller makes of it, its device takes as it is.
    app.metadata.uid = Some(Uuid::from_u128(3));
    app.spec.image.datastore = "demo".to_owned();
    let mut device = Device::new("box-1", DeviceSpec::default());
    device.metadata.uid = Some(Uuid::from_u128(1));
    let config = plan::config(plan::Inputs {
        device: &device,
        apps: &[app],
        datastores: &BTreeMap::from([("demo".to_owned(), datastore())]),
        certificates_hash: "",
    });
    let translated = translate(&config, &NoSecrets);
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
