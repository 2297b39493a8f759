//! Golden files: messages that another program encoded from the bare field numbers. They pin the schema down: a wrong
//! number, type or label in `proto/` shows here.

use std::collections::HashMap;
use std::fmt::Debug;

use prost::Message;
use protocol::eve::Timestamp;
use protocol::eve::attest::{
    AttestVersionInfo, AttestVersionType, AttestVolumeKey, AttestVolumeKeyType, TpmHashAlgo,
    TpmPcrValue, ZAttestQuote, ZAttestQuoteResp, ZAttestReq, ZAttestReqType, ZAttestRespType,
    ZAttestResponse, ZAttestResponseCode,
};
use protocol::eve::common::{DhcpType, Ipspec, NetworkType, PhyIoMemberUsage, PhyIoType};
use protocol::eve::config::{
    Ace, AceAction, AceDirection, AceMatch, Adapter, AddressType, AppInstanceConfig, ConfigItem,
    ConfigResponse, ContentTree, DatastoreConfig, DeviceOpsCmd, DsType, EdgeDevConfig, Format,
    InstanceOpsCmd, NetworkAdapter, NetworkConfig, NetworkInstanceConfig, PhysicalIo,
    SystemAdapter, UuiDandVersion, VmBootMode, VmConfig, VmMode, Volume, VolumeContentOrigin,
    VolumeContentOriginType, VolumeRef, ZNetworkInstType,
};
use protocol::eve::info::z_info_msg::InfoContent;
use protocol::eve::info::{ZInfoApp, ZInfoMsg, ZInfoNetwork, ZInfoTypes, ZSwState};
use protocol::eve::metrics::z_metric_msg::MetricContent;
use protocol::eve::metrics::{AppCpuMetric, AppMetric, DeviceMetric, MemoryMetric, ZMetricMsg};
use protocol::keys::CertHash;

use crate::support::Vectors;

const DEVICE: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";

fn check<M: Message + Default + PartialEq + Debug>(name: &str, ours: &M) {
    let golden = Vectors::messages().bytes(name);
    assert_eq!(&M::decode(golden.as_slice()).unwrap(), ours);
    assert_eq!(hex::encode(ours.encode_to_vec()), hex::encode(golden));
}

fn time(seconds: i64, nanos: i32) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos })
}

fn named(uuid: &str, version: &str) -> Option<UuiDandVersion> {
    Some(UuiDandVersion {
        uuid: uuid.into(),
        version: version.into(),
    })
}

#[test]
fn configuration() {
    let matches = |kind: &str, value: &str| AceMatch {
        r#type: kind.into(),
        value: value.into(),
    };
    let app = AppInstanceConfig {
        uuidandversion: named("app", "1"),
        displayname: "web".into(),
        fixedresources: Some(VmConfig {
            memory: 131_072,
            vcpus: 2,
            extraargs: "quiet".into(),
            virtualization_mode: VmMode::Nohyper.into(),
            boot_mode: VmBootMode::Uefi.into(),
            ..Default::default()
        }),
        activate: true,
        interfaces: vec![NetworkAdapter {
            name: "eth0".into(),
            network_id: "net".into(),
            mac_address: "02:00:00:00:00:01".into(),
            acls: vec![Ace {
                matches: vec![matches("protocol", "tcp"), matches("lport", "8080")],
                actions: vec![AceAction {
                    portmap: true,
                    app_port: 80,
                    ..Default::default()
                }],
                name: "web".into(),
                id: 1,
                dir: AceDirection::Egress.into(),
            }],
            ..Default::default()
        }],
        restart: Some(InstanceOpsCmd {
            counter: 3,
            ops_time: "now".into(),
        }),
        user_data: "R1JFRVRJTkc9aGVsbG8=".into(),
        volume_ref_list: vec![VolumeRef {
            uuid: "vol".into(),
            generation_count: 2,
            mount_dir: "/data".into(),
        }],
        ..Default::default()
    };
    let config = EdgeDevConfig {
        id: named(DEVICE, "4"),
        apps: vec![app],
        networks: vec![NetworkConfig {
            id: "dhcp".into(),
            r#type: NetworkType::V4.into(),
            ip: Some(Ipspec {
                dhcp: DhcpType::Client.into(),
                ..Default::default()
            }),
            ..Default::default()
        }],
        datastores: vec![DatastoreConfig {
            id: "store".into(),
            d_type: DsType::DsContainerRegistry.into(),
            fqdn: "docker://registry:5000".into(),
            ds_cert_pem: vec![b"pem".to_vec()],
            ..Default::default()
        }],
        reboot: Some(DeviceOpsCmd {
            counter: 1,
            desired_state: true,
            ..Default::default()
        }),
        config_items: vec![ConfigItem {
            key: "timer.config.interval".into(),
            value: "30".into(),
        }],
        system_adapter_list: vec![SystemAdapter {
            name: "eth0".into(),
            uplink: true,
            network_uuid: "dhcp".into(),
            cost: 255,
            ..Default::default()
        }],
        device_io_list: vec![PhysicalIo {
            ptype: PhyIoType::PhyIoNetEth.into(),
            phylabel: "eth0".into(),
            phyaddrs: HashMap::from([("Ifname".to_owned(), "eth0".to_owned())]),
            logicallabel: "eth0".into(),
            assigngrp: "group".into(),
            usage: PhyIoMemberUsage::PhyIoUsageMgmtAndApps.into(),
            ..Default::default()
        }],
        network_instances: vec![NetworkInstanceConfig {
            uuidandversion: named("net", "1"),
            displayname: "local".into(),
            inst_type: ZNetworkInstType::ZnetInstLocal.into(),
            activate: true,
            port: Some(Adapter {
                name: "uplink".into(),
                ..Default::default()
            }),
            ip_type: AddressType::Ipv4.into(),
            ip: Some(Ipspec {
                subnet: "10.1.0.0/24".into(),
                gateway: "10.1.0.1".into(),
                ..Default::default()
            }),
            ..Default::default()
        }],
        cipher_contexts: vec![protocol::cipher::context(
            "context",
            &CertHash::Short([b'c'; 16]),
            &CertHash::Short([b'd'; 16]),
        )],
        content_info: vec![ContentTree {
            uuid: "tree".into(),
            ds_id: "store".into(),
            url: "hello@sha256:00".into(),
            iformat: Format::Container.into(),
            sha256: "00".into(),
            max_size_bytes: 5_000_000_000,
            display_name: "hello".into(),
            ..Default::default()
        }],
        volumes: vec![Volume {
            uuid: "vol".into(),
            origin: Some(VolumeContentOrigin {
                r#type: VolumeContentOriginType::VcotDownload.into(),
                download_content_tree_id: "tree".into(),
            }),
            generation_count: 2,
            maxsizebytes: -1,
            readonly: true,
            display_name: "disk".into(),
            ..Default::default()
        }],
        controllercert_confighash: "certs".into(),
        maintenance_mode: true,
        controller_epoch: 7,
        device_name: "box-1".into(),
        config_timestamp: time(1_790_000_000, 0),
        ..Default::default()
    };
    check(
        "/config_response",
        &ConfigResponse {
            config: Some(config),
            config_hash: "hash".into(),
        },
    );
}

#[test]
fn attestation() {
    let quote = ZAttestQuote {
        attest_data: b"\xff\x54\x43\x47".to_vec(),
        signature: b"sig".to_vec(),
        pcr_values: vec![TpmPcrValue {
            index: 7,
            hash_algo: TpmHashAlgo::Sha256.into(),
            value: vec![b'v'; 32],
        }],
        versions: vec![AttestVersionInfo {
            version_type: AttestVersionType::Firmware.into(),
            version: "1.0".into(),
        }],
        tpm_binary_event_log: b"gz".to_vec(),
        ..Default::default()
    };
    check(
        "/attest_quote",
        &ZAttestReq {
            req_type: ZAttestReqType::AttestReqQuote.into(),
            quote: Some(quote),
            ..Default::default()
        },
    );
    let reply = ZAttestQuoteResp {
        response: ZAttestResponseCode::Success.into(),
        integrity_token: b"token".to_vec(),
        keys: vec![AttestVolumeKey {
            key_type: AttestVolumeKeyType::Vsk.into(),
            key: b"key".to_vec(),
            ..Default::default()
        }],
    };
    check(
        "/attest_reply",
        &ZAttestResponse {
            resp_type: ZAttestRespType::AttestRespQuoteResp.into(),
            quote_resp: Some(reply),
            ..Default::default()
        },
    );
}

#[test]
fn information() {
    let app = ZInfoApp {
        app_id: "app".into(),
        app_version: "1".into(),
        app_name: "web".into(),
        state: ZSwState::Running.into(),
        boot_time: time(1_790_000_000, 1),
        network: vec![ZInfoNetwork {
            ip_addrs: vec!["10.1.0.2".into()],
            mac_addr: "02:00:00:00:00:01".into(),
            dev_name: "eth0".into(),
            ipv4_up: true,
            ..Default::default()
        }],
        ..Default::default()
    };
    check(
        "/info_app",
        &ZInfoMsg {
            ztype: ZInfoTypes::ZiApp.into(),
            dev_id: DEVICE.into(),
            info_content: Some(InfoContent::Ainfo(app)),
            at_time_stamp: time(1_790_000_001, 999_999_999),
        },
    );
}

#[test]
fn figures() {
    let device = DeviceMetric {
        memory: Some(MemoryMetric {
            used_mem: 128,
            avail_mem: 1920,
            used_percentage: 6.25,
            ..Default::default()
        }),
        cpu_metric: Some(AppCpuMetric {
            up_time: time(5, 0),
            total: 9,
            ..Default::default()
        }),
        ..Default::default()
    };
    let app = AppMetric {
        app_id: "app".into(),
        app_name: "web".into(),
        cpu: Some(AppCpuMetric {
            total: 4,
            ..Default::default()
        }),
        memory: Some(MemoryMetric {
            used_mem: 64,
            ..Default::default()
        }),
        ..Default::default()
    };
    check(
        "/metrics",
        &ZMetricMsg {
            dev_id: DEVICE.into(),
            at_time_stamp: time(1_790_000_000, 0),
            am: vec![app],
            metric_content: Some(MetricContent::Dm(device)),
            ..Default::default()
        },
    );
}

#[test]
fn no_change_of_a_configuration_panics() {
    crate::support::mutations(&Vectors::messages().bytes("/config_response"), |changed| {
        if let Ok(response) = ConfigResponse::decode(changed) {
            // What was understood can be said again.
            assert!(ConfigResponse::decode(response.encode_to_vec().as_slice()).is_ok());
        }
    });
}
