//! Configs, and what follows from them: the desired state, and the ledger of what was given out for it.

use std::collections::BTreeSet;

use pillar::config::settings::Settings;
use pillar::config::translate::{SecretError, Secrets, translate};
use pillar::domain::desired::{Desired, Runtime};
use pillar::reconcile::ledger::{Ledger, Port};
use pillar::reconcile::network::dnsmasq;
use prost::Message as _;
use protocol::envelope::decode;
use protocol::eve::common::{CipherBlock, CipherContext, EncryptionBlock, IpRange, Ipspec};
use protocol::eve::config::{
    Ace, AceAction, AceMatch, AppInstanceConfig, ConfigItem, ConfigResponse, ContentTree,
    DatastoreConfig, DsType, EdgeDevConfig, Format, InstanceOpsCmd, NetworkAdapter,
    NetworkInstanceConfig, UuiDandVersion, VmConfig, Volume, VolumeContentOrigin,
    VolumeContentOriginType, VolumeRef, ZNetworkInstType,
};

use crate::feed::survives;
use crate::protocol::config_seeds;

/// A device that can open some blocks.
struct Open;

impl Secrets for Open {
    fn open(
        &self,
        _: &[CipherContext],
        block: &CipherBlock,
    ) -> Result<EncryptionBlock, SecretError> {
        if block.cipher_context_id == "bad" {
            return Err(SecretError::NoKeys);
        }
        EncryptionBlock::decode(block.cipher_data.as_slice())
            .map_err(|_| SecretError::NoCertificates)
    }
}

pub(super) fn desired(data: &[u8]) {
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

pub(super) fn desired_seeds() -> Vec<Vec<u8>> {
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

pub(super) fn ledger(data: &[u8]) {
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

pub(super) fn ledger_seeds() -> Vec<Vec<u8>> {
    let desired = translate(&whole_config(), &Open).desired;
    let ledger = Ledger::default().update(&desired, &BTreeSet::new());
    vec![
        serde_json::to_vec(&ledger).unwrap(),
        br#"{"apps":{"00000000-0000-4000-8000-000000000005":9999},"nextApp":4294967295,"networks":{},"leases":{},
            "purges":{"00000000-0000-4000-8000-000000000005":7},"epochs":{"00000000-0000-4000-8000-000000000003":9223372036854775807}}"#
            .to_vec(),
    ]
}
