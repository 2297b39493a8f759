//! A device's config, made from the operator's objects: a pure function, so that the same objects give the same bytes.
//!
//! | here | on the wire |
//! |---|---|
//! | the device | `EdgeDevConfig.id`, `device_name` |
//! | each datastore that its apps use | `DatastoreConfig` |
//! | each image, once | `ContentTree` |
//! | each app | `AppInstanceConfig`, and the `Volume` that it starts from |
//! | logins of datastores, user data and environments of apps | `CipherBlock`, see [`super::secrets`]; an app whose secrets the device may not have is not to run |
//! | every device | one local `NetworkInstanceConfig`, with the range of addresses that [`super::ranges`] chose |

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use operator_api::{App, AppType, Datastore, Device, DiskFormat, Isolation, Object, PortMap};
use prost::Message as _;
use protocol::eve::common::{EncryptionBlock, IpRange, Ipspec, PhyIoType};
use protocol::eve::config::{
    Ace, AceAction, AceMatch, Adapter, AddressType, AppInstanceConfig, ConfigItem, ContentTree,
    DatastoreConfig, DsType, EdgeDevConfig, Format, NetworkAdapter, NetworkInstanceConfig,
    UuiDandVersion, VmConfig, VmMode, Volume, VolumeContentOrigin, VolumeContentOriginType,
    VolumeRef, ZNetworkInstType,
};
use protocol::ids::{AppId, ContentId, DatastoreId, NetworkInstanceId, VolumeId};
use protocol::image::ImageReference;
use protocol::items;
use protocol::keys::sha256;
use uuid::Uuid;

use super::names;
use super::ranges::Range;
use super::secrets::Envelope;

/// What a config is made from.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// The device.
    pub device: &'a Device,
    /// Its apps, by name.
    pub apps: &'a [App],
    /// The datastores that its apps use, by name.
    pub datastores: &'a BTreeMap<String, Datastore>,
    /// Changes when the controller's certificates do.
    pub certificates_hash: &'a str,
    /// Encrypts secrets to the device; none: it gets no secrets.
    pub secrets: Option<&'a Envelope>,
    /// Whether it keeps running what it runs if its boot is refused.
    pub keep_running: bool,
    /// The longest time until it attests again; nothing: the device's own default.
    pub attest_every: Option<Duration>,
}

/// What the device itself is asked for: by its operator, and by the policy of its model.
fn device_items(inputs: &Inputs<'_>) -> Vec<ConfigItem> {
    let item = |key: &str, value: String| ConfigItem {
        key: key.to_owned(),
        value,
    };
    let stop = (!inputs.keep_running).then(|| item(items::KEEP_RUNNING, "false".to_owned()));
    let every = inputs
        .attest_every
        .map(|every| item(items::ATTEST_INTERVAL, every.as_secs().to_string()));
    let servers = &inputs.device.spec.time_servers;
    let servers = (!servers.is_empty()).then(|| item(items::TIME_SERVERS, servers.join(",")));
    stop.into_iter().chain(every).chain(servers).collect()
}

/// The config.
#[must_use]
pub fn config(inputs: Inputs<'_>) -> EdgeDevConfig {
    let device = id(inputs.device);
    let network = names::network(device);
    let mut config = EdgeDevConfig {
        id: versioned(device, inputs.device.metadata.generation),
        device_name: inputs.device.metadata.name.clone(),
        controllercert_confighash: inputs.certificates_hash.to_owned(),
        network_instances: vec![network_instance(
            network,
            Range::named(&inputs.device.status.app_network),
        )],
        config_items: device_items(&inputs),
        ..EdgeDevConfig::default()
    };
    let mut datastores = BTreeMap::new();
    let mut contents = BTreeMap::new();
    for app in inputs.apps {
        // Admission keeps apps and datastores together; an app without its datastore is left out rather than half told.
        let Some(datastore) = inputs.datastores.get(&app.spec.image.datastore) else {
            continue;
        };
        let app_id = id(app);
        let datastore_id = id(datastore);
        let content = names::content(datastore_id, app);
        let volume = names::volume(app_id, content);
        datastores
            .entry(datastore_id)
            .or_insert_with(|| datastore_config(datastore_id, datastore, inputs.secrets));
        contents
            .entry(content)
            .or_insert_with(|| content_tree(content, datastore_id, app));
        config.volumes.push(Volume {
            uuid: volume.to_string(),
            origin: Some(VolumeContentOrigin {
                r#type: VolumeContentOriginType::VcotDownload.into(),
                download_content_tree_id: content.to_string(),
            }),
            display_name: app.metadata.name.clone(),
            ..Volume::default()
        });
        config
            .apps
            .push(app_instance(app_id, volume, network, app, inputs.secrets));
    }
    config.datastores = datastores.into_values().collect();
    let sealed = config.datastores.iter().any(|it| it.cipher_data.is_some())
        || config.apps.iter().any(|it| it.cipher_data.is_some());
    config.cipher_contexts = inputs
        .secrets
        .filter(|_| sealed)
        .map(|secrets| secrets.context().clone())
        .into_iter()
        .collect();
    config.content_info = contents.into_values().collect();
    config
}

/// The name of a config's content, as devices give it back to say what they have.
#[must_use]
pub fn hash(config: &EdgeDevConfig) -> String {
    // prost writes fields in the order of their numbers; no map has more than one entry here, so equal configs are equal bytes.
    URL_SAFE_NO_PAD.encode(sha256(&config.encode_to_vec()))
}

/// What came out of the store has a uid; what has none gets an id that no device knows.
fn id<T: Object>(object: &T) -> T::Id {
    object.id().unwrap_or(Uuid::nil().into())
}

fn versioned(id: impl Display, version: u64) -> Option<UuiDandVersion> {
    Some(UuiDandVersion {
        uuid: id.to_string(),
        version: version.to_string(),
    })
}

fn network_instance(id: NetworkInstanceId, range: Range) -> NetworkInstanceConfig {
    NetworkInstanceConfig {
        uuidandversion: versioned(id, 1),
        displayname: "default".to_owned(),
        inst_type: ZNetworkInstType::ZnetInstLocal.into(),
        activate: true,
        // EVE's shared label for "whichever port leads outside".
        port: Some(Adapter {
            r#type: PhyIoType::PhyIoNoop.into(),
            name: "uplink".to_owned(),
            ..Adapter::default()
        }),
        ip_type: AddressType::Ipv4.into(),
        ip: Some(Ipspec {
            subnet: range.to_string(),
            gateway: range.host(1).to_string(),
            dhcp_range: Some(IpRange {
                start: range.host(2).to_string(),
                end: range.host(254).to_string(),
            }),
            ..Ipspec::default()
        }),
        ..NetworkInstanceConfig::default()
    }
}

fn datastore_config(
    id: DatastoreId,
    datastore: &Datastore,
    secrets: Option<&Envelope>,
) -> DatastoreConfig {
    let login = datastore.spec.credentials.as_ref().zip(secrets);
    DatastoreConfig {
        cipher_data: login.map(|(credentials, secrets)| {
            secrets.seal(
                &format!("datastore/{id}"),
                &EncryptionBlock {
                    ds_api_key: credentials.user.clone(),
                    ds_password: credentials.password.clone().unwrap_or_default(),
                    ..EncryptionBlock::default()
                },
            )
        }),
        id: id.to_string(),
        d_type: DsType::DsContainerRegistry.into(),
        fqdn: datastore.spec.url.trim_end_matches('/').to_owned(),
        ds_cert_pem: datastore
            .spec
            .ca_certificates
            .iter()
            .map(|pem| pem.clone().into_bytes())
            .collect(),
        ..DatastoreConfig::default()
    }
}

fn content_tree(id: ContentId, datastore: DatastoreId, app: &App) -> ContentTree {
    let format = match app.spec.kind {
        AppType::Container => Format::Container,
        AppType::Vm => match app.spec.image.format.unwrap_or_default() {
            DiskFormat::Raw => Format::Raw,
            DiskFormat::Qcow2 => Format::Qcow2,
        },
    };
    let reference = &app.spec.image.reference;
    let image = reference.parse::<ImageReference>().ok();
    ContentTree {
        uuid: id.to_string(),
        ds_id: datastore.to_string(),
        ds_ids_list: vec![datastore.to_string()],
        url: reference.clone(),
        iformat: format.into(),
        sha256: image
            .as_ref()
            .map_or_else(String::new, |image| image.digest.hex()),
        display_name: image.map_or_else(|| reference.clone(), |image| image.repository.to_string()),
        ..ContentTree::default()
    }
}

fn app_instance(
    id: AppId,
    volume: VolumeId,
    network: NetworkInstanceId,
    app: &App,
    secrets: Option<&Envelope>,
) -> AppInstanceConfig {
    let spec = &app.spec;
    let memory = u32::try_from(spec.resources.memory_mib.saturating_mul(1024)).unwrap_or(u32::MAX);
    let native = spec.effective_isolation() == Isolation::Native;
    let user_data = match spec.kind {
        AppType::Vm => spec.user_data.clone().unwrap_or_default(),
        AppType::Container => spec
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}\n"))
            .collect(),
    };
    let cipher_data = secrets.filter(|_| !user_data.is_empty()).map(|secrets| {
        secrets.seal(
            &format!("app/{id}"),
            &EncryptionBlock {
                protected_user_data: STANDARD.encode(&user_data),
                ..EncryptionBlock::default()
            },
        )
    });
    AppInstanceConfig {
        uuidandversion: versioned(id, app.metadata.generation),
        displayname: app.metadata.name.clone(),
        fixedresources: Some(VmConfig {
            memory,
            maxmem: memory,
            vcpus: spec.resources.cpus,
            maxcpus: spec.resources.cpus,
            extraargs: spec.kernel_args.clone().unwrap_or_default(),
            virtualization_mode: if native { VmMode::Nohyper } else { VmMode::Hvm }.into(),
            ..VmConfig::default()
        }),
        // Without what it is to know it would not be the app that was meant; its volumes stay.
        activate: user_data.is_empty() || cipher_data.is_some(),
        interfaces: vec![NetworkAdapter {
            name: "eth0".to_owned(),
            network_id: network.to_string(),
            acls: access_rules(&spec.ports),
            ..NetworkAdapter::default()
        }],
        cipher_data,
        volume_ref_list: vec![VolumeRef {
            uuid: volume.to_string(),
            ..VolumeRef::default()
        }],
        ..AppInstanceConfig::default()
    }
}

/// EVE closes what no rule opens: everything outbound first, then the port maps.
fn access_rules(ports: &[PortMap]) -> Vec<Ace> {
    let matched = |kind: &str, value: String| AceMatch {
        r#type: kind.to_owned(),
        value,
    };
    let outbound = Ace {
        matches: vec![matched("ip", "0.0.0.0/0".to_owned())],
        id: 1,
        ..Ace::default()
    };
    let maps = ports.iter().zip(2..).map(|(port, id)| Ace {
        matches: vec![
            matched("protocol", port.protocol.to_string()),
            matched("lport", port.device.to_string()),
        ],
        actions: vec![AceAction {
            portmap: true,
            app_port: u32::from(port.app),
            ..AceAction::default()
        }],
        id,
        ..Ace::default()
    });
    std::iter::once(outbound).chain(maps).collect()
}

#[cfg(test)]
mod tests {
    use operator_api::{
        AppSpec, Credentials, DatastoreSpec, DatastoreType, DeviceSpec, ImageSource, Protocol,
        Resources,
    };

    use super::*;

    type Objects = (Device, Vec<App>, BTreeMap<String, Datastore>);

    fn objects() -> Objects {
        let mut device = Device::new("box-1", DeviceSpec::default());
        device.metadata.uid = Some(Uuid::from_u128(1));
        device.metadata.generation = 1;
        let mut datastore = Datastore::new(
            "demo",
            DatastoreSpec {
                kind: DatastoreType::Registry,
                url: "docker://192.0.2.1:5000".into(),
                ca_certificates: Some("-----BEGIN CERTIFICATE-----".into()),
                credentials: Some(Credentials {
                    user: "puller".into(),
                    password: Some("hunter2-secret".into()),
                }),
            },
        );
        datastore.metadata.uid = Some(Uuid::from_u128(2));
        let spec = |reference: char, kind| AppSpec {
            device: "box-1".into(),
            kind,
            isolation: None,
            image: ImageSource {
                datastore: "demo".into(),
                reference: format!("hello@sha256:{}", reference.to_string().repeat(64)),
                format: None,
            },
            resources: Resources {
                cpus: 1,
                memory_mib: 128,
            },
            env: BTreeMap::new(),
            kernel_args: None,
            user_data: None,
            ports: Vec::new(),
        };
        let app = |name: &str, id: u128, spec| {
            let mut app = App::new(name, spec);
            app.metadata.uid = Some(Uuid::from_u128(id));
            app.metadata.generation = 2;
            app
        };
        let mut native = spec('a', AppType::Container);
        native.isolation = Some(Isolation::Native);
        let mut vm = spec('b', AppType::Vm);
        vm.image.format = Some(DiskFormat::Qcow2);
        vm.kernel_args = Some("root=/dev/vda1 ro console=hvc0".into());
        vm.user_data = Some("#cloud-config\n".into());
        let mut web = spec('a', AppType::Container);
        web.env = BTreeMap::from([
            ("GREETING".into(), "hello".into()),
            ("A".into(), "b=c".into()),
        ]);
        web.ports = vec![
            PortMap {
                device: 8080,
                app: 80,
                protocol: Protocol::Tcp,
            },
            PortMap {
                device: 5353,
                app: 53,
                protocol: Protocol::Udp,
            },
        ];
        let apps = vec![
            app("native", 10, native),
            app("vm", 11, vm),
            app("web", 12, web),
        ];
        (
            device,
            apps,
            BTreeMap::from([("demo".to_owned(), datastore)]),
        )
    }

    fn planned(objects: &Objects) -> EdgeDevConfig {
        planned_with(objects, Some(&Envelope::fixed()))
    }

    fn planned_with(objects: &Objects, secrets: Option<&Envelope>) -> EdgeDevConfig {
        config(Inputs {
            device: &objects.0,
            apps: &objects.1,
            datastores: &objects.2,
            certificates_hash: "certs",
            secrets,
            keep_running: true,
            attest_every: None,
        })
    }

    #[test]
    fn no_secret_stands_in_a_config_in_clear() {
        let secrets = [
            "hunter2-secret",
            "puller",
            "#cloud-config",
            "GREETING",
            "GREETING=hello",
        ];
        for envelope in [Some(Envelope::fixed()), None] {
            let bytes = planned_with(&objects(), envelope.as_ref()).encode_to_vec();
            for secret in secrets {
                for text in [secret.to_owned(), STANDARD.encode(secret)] {
                    // Base64 of what stands further on begins at other places; its middle is the same.
                    let middle = text.get(..text.len() - text.len() % 4).unwrap();
                    let found = bytes
                        .windows(middle.len())
                        .any(|window| window == middle.as_bytes());
                    assert!(!found, "{secret} as {text}");
                }
            }
        }
    }

    #[test]
    fn secrets_come_out_again_with_the_devices_key() {
        let envelope = Envelope::fixed();
        let config = planned_with(&objects(), Some(&envelope));
        assert_eq!(config.cipher_contexts, [envelope.context().clone()]);
        let login = envelope.open(config.datastores[0].cipher_data.as_ref().unwrap());
        assert_eq!(
            (login.ds_api_key.as_str(), login.ds_password.as_str()),
            ("puller", "hunter2-secret")
        );
        let data = |app: &AppInstanceConfig| {
            let block = envelope.open(app.cipher_data.as_ref()?);
            String::from_utf8(STANDARD.decode(block.protected_user_data).unwrap()).ok()
        };
        let all: Vec<_> = config.apps.iter().map(data).collect();
        assert_eq!(
            all,
            [
                None,
                Some("#cloud-config\n".to_owned()),
                Some("A=b=c\nGREETING=hello\n".to_owned())
            ]
        );
        assert!(config.apps.iter().all(|app| app.activate));
    }

    #[test]
    fn who_may_not_have_secrets_gets_none_and_does_not_run_what_needs_them() {
        let config = planned_with(&objects(), None);
        assert!(config.cipher_contexts.is_empty());
        assert_eq!(config.datastores[0].cipher_data, None);
        let active: Vec<_> = config.apps.iter().map(|app| app.activate).collect();
        assert_eq!(active, [true, false, false]);
        assert_eq!(config.volumes.len(), 3, "their volumes stay");
    }

    /// The golden file shows every byte that goes to a device. If a change of it is meant, write it anew with
    /// `GOLDEN=write cargo test --release -p controller golden`, and look at the difference.
    #[test]
    fn golden_config() {
        let text = format!("{:#?}\n", planned(&objects()));
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/config.txt");
        if std::env::var_os("GOLDEN").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(path).unwrap());
    }

    #[test]
    fn the_same_objects_give_the_same_hash_and_any_change_another() {
        let first = hash(&planned(&objects()));
        assert_eq!(first, hash(&planned(&objects())));
        let changes: [fn(&mut Objects); 8] = [
            |objects| objects.0.status.app_network = "172.27.11.0/24".into(),
            |objects| objects.0.metadata.name = "box-2".into(),
            |objects| objects.1[2].spec.ports[0].app = 81,
            |objects| objects.1[1].spec.image.format = None,
            |objects| objects.2.get_mut("demo").unwrap().spec.url = "docker://x".into(),
            |objects| drop(objects.1.pop()),
            |objects| objects.1[1].spec.user_data = Some("#other".into()),
            |objects| {
                let datastore = objects.2.get_mut("demo").unwrap();
                datastore.spec.credentials.as_mut().unwrap().password = Some("x".into());
            },
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut objects = objects();
            change(&mut objects);
            assert_ne!(first, hash(&planned(&objects)), "change {number}");
        }
    }

    #[test]
    fn an_image_used_twice_is_fetched_once_and_each_app_has_its_volume() {
        let config = planned(&objects());
        assert_eq!(
            (
                config.content_info.len(),
                config.volumes.len(),
                config.datastores.len()
            ),
            (2, 3, 1)
        );
        let mut volumes: Vec<_> = config.volumes.iter().map(|volume| &volume.uuid).collect();
        volumes.dedup();
        assert_eq!(volumes.len(), 3);
    }
}
