use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hypervisor_api::mac::MacAddress;
use protocol::cipher::CipherError;
use protocol::eve::common::{IpRange, Ipspec};
use protocol::eve::config::{
    Ace, AceAction, AceMatch, Adapter, AppInstanceConfig, ContentTree, DatastoreConfig, DsType,
    Format, InstanceOpsCmd, NetworkAdapter, NetworkInstanceConfig, VmConfig, VmMode, Volume,
    VolumeContentOrigin, VolumeContentOriginType, VolumeRef, ZNetworkInstType,
};

use super::*;
use crate::domain::desired::{ContentKind, Login, PortMap, Protocol, Runtime};

const STORE: &str = "00000000-0000-4000-8000-000000000001";
const CONTENT: &str = "00000000-0000-4000-8000-000000000002";
const VOLUME: &str = "00000000-0000-4000-8000-000000000003";
const NETWORK: &str = "00000000-0000-4000-8000-000000000004";
const APP: &str = "00000000-0000-4000-8000-000000000005";

struct Table;

impl Secrets for Table {
    fn open(
        &self,
        _: &[CipherContext],
        block: &CipherBlock,
    ) -> Result<EncryptionBlock, SecretError> {
        match block.cipher_context_id.as_str() {
            "good" => Ok(EncryptionBlock {
                ds_api_key: "user".into(),
                ds_password: "word".into(),
                protected_user_data: BASE64.encode("SECRET=1\n"),
                ..EncryptionBlock::default()
            }),
            other => Err(CipherError::NoContext(other.into()).into()),
        }
    }
}

fn versioned(id: &str) -> Option<UuiDandVersion> {
    Some(UuiDandVersion {
        uuid: id.into(),
        version: "1".into(),
    })
}

fn matched(kind: &str, value: &str) -> AceMatch {
    AceMatch {
        r#type: kind.into(),
        value: value.into(),
    }
}

fn port_map(protocol: &str, device: &str, app: u32) -> Ace {
    Ace {
        matches: vec![matched("protocol", protocol), matched("lport", device)],
        actions: vec![AceAction {
            portmap: true,
            app_port: app,
            ..AceAction::default()
        }],
        ..Ace::default()
    }
}

/// A config with one of everything, as our controller makes it.
fn config() -> EdgeDevConfig {
    EdgeDevConfig {
        datastores: vec![DatastoreConfig {
            id: STORE.into(),
            d_type: DsType::DsContainerRegistry.into(),
            fqdn: "docker://registry.example:5000".into(),
            ..DatastoreConfig::default()
        }],
        content_info: vec![ContentTree {
            uuid: CONTENT.into(),
            ds_id: STORE.into(),
            url: format!("apps/hello@sha256:{}", "ab".repeat(32)),
            iformat: Format::Container.into(),
            display_name: "hello image".into(),
            ..ContentTree::default()
        }],
        volumes: vec![Volume {
            uuid: VOLUME.into(),
            origin: Some(VolumeContentOrigin {
                r#type: VolumeContentOriginType::VcotDownload.into(),
                download_content_tree_id: CONTENT.into(),
            }),
            maxsizebytes: 1 << 20,
            display_name: "hello volume".into(),
            ..Volume::default()
        }],
        network_instances: vec![NetworkInstanceConfig {
            uuidandversion: versioned(NETWORK),
            displayname: "local".into(),
            inst_type: ZNetworkInstType::ZnetInstLocal.into(),
            activate: true,
            ip: Some(Ipspec {
                subnet: "10.1.0.0/24".into(),
                ..Ipspec::default()
            }),
            ..NetworkInstanceConfig::default()
        }],
        apps: vec![AppInstanceConfig {
            uuidandversion: versioned(APP),
            displayname: "hello".into(),
            activate: true,
            fixedresources: Some(VmConfig {
                memory: 128 * 1024,
                vcpus: 2,
                ..VmConfig::default()
            }),
            volume_ref_list: vec![VolumeRef {
                uuid: VOLUME.into(),
                ..VolumeRef::default()
            }],
            interfaces: vec![NetworkAdapter {
                name: "eth0".into(),
                network_id: NETWORK.into(),
                mac_address: "02:00:00:00:00:0a".into(),
                acls: vec![port_map("tcp", "8080", 80)],
                ..NetworkAdapter::default()
            }],
            user_data: BASE64.encode("GREETING=hello\n\n# a comment\nA=b=c\n"),
            restart: Some(InstanceOpsCmd {
                counter: 3,
                ..InstanceOpsCmd::default()
            }),
            ..AppInstanceConfig::default()
        }],
        ..EdgeDevConfig::default()
    }
}

fn id(text: &str) -> Uuid {
    text.parse().unwrap()
}

#[test]
fn a_container_with_everything_around_it() {
    let Translated { desired, faults } = translate(&config(), &Table);
    assert_eq!(faults, []);
    let store = &desired.datastores[&DatastoreId(id(STORE))];
    assert_eq!(
        (store.registry.to_string().as_str(), &store.login),
        ("registry.example:5000", &None)
    );
    let content = &desired.contents[&ContentId(id(CONTENT))];
    assert_eq!(content.repository.as_str(), "apps/hello");
    assert_eq!(content.digest.hex(), "ab".repeat(32));
    assert_eq!(content.kind, ContentKind::Container);
    let volume = &desired.volumes[&VolumeId(id(VOLUME))];
    assert_eq!(
        (volume.content, volume.size_bytes),
        (ContentId(id(CONTENT)), 1 << 20)
    );
    let network = &desired.networks[&NetworkInstanceId(id(NETWORK))];
    assert_eq!(network.gateway.to_string(), "10.1.0.1");
    assert_eq!(
        (network.range.0.to_string(), network.range.1.to_string()),
        ("10.1.0.2".into(), "10.1.0.254".into())
    );
    let app = &desired.apps[&AppId(id(APP))];
    assert_eq!(
        (app.memory_mib, app.vcpus, app.restart_counter),
        (128, 2, 3)
    );
    assert_eq!(app.runtime, Runtime::ContainerMicrovm);
    assert_eq!(app.env, ["GREETING=hello", "A=b=c"]);
    assert_eq!(app.user_data, None);
    let interface = &app.interfaces[0];
    assert_eq!(interface.mac, Some(MacAddress([2, 0, 0, 0, 0, 10])));
    assert_eq!(
        interface.port_maps,
        [PortMap {
            protocol: Protocol::Tcp,
            device_port: 8080,
            app_port: 80
        }]
    );
}

#[test]
fn addresses_of_registries() {
    let good = [
        ("docker://registry.example:5000", "registry.example:5000"),
        ("docker://registry.example/", "registry.example:443"),
        (" 192.0.2.1:5000 ", "192.0.2.1:5000"),
        ("docker://[2001:db8::1]", "[2001:db8::1]:443"),
    ];
    let bad = [
        "",
        "docker://",
        "docker://host/path",
        "docker://user@host",
        "docker://host:port",
        "docker://host:0",
        "docker://host?x",
        "docker://host#x",
        "http://host",
        "docker://a:b:1",
    ];
    let translated = |address: &str| {
        let mut config = config();
        config.datastores[0].fqdn = address.into();
        translate(&config, &Table)
    };
    for (address, wanted) in good {
        let desired = translated(address).desired;
        let store = &desired.datastores[&DatastoreId(id(STORE))];
        assert_eq!(store.registry.to_string(), wanted, "{address}");
    }
    for address in bad {
        let out = translated(address);
        assert!(out.desired.datastores.is_empty(), "{address}");
        let fault = &out.faults[0].message;
        assert!(fault.contains("docker://HOST"), "{address}: {fault}");
    }
}

#[test]
fn kinds_of_apps() {
    let table = [
        (
            Format::Container,
            VmMode::Nohyper,
            Ok(Runtime::ContainerNative),
        ),
        (
            Format::Container,
            VmMode::Hvm,
            Ok(Runtime::ContainerMicrovm),
        ),
        (
            Format::Raw,
            VmMode::Pv,
            Ok(Runtime::Machine {
                cmdline: "root=/dev/vda1".into(),
            }),
        ),
        (
            Format::Qcow2,
            VmMode::Legacy,
            Ok(Runtime::Machine {
                cmdline: "root=/dev/vda1".into(),
            }),
        ),
        (Format::Raw, VmMode::Nohyper, Err("NOHYPER")),
        (Format::Iso, VmMode::Hvm, Err("format ISO")),
    ];
    for (format, mode, expected) in table {
        let mut config = config();
        config.content_info[0].iformat = format.into();
        let vm = config.apps[0].fixedresources.as_mut().unwrap();
        vm.virtualization_mode = mode.into();
        vm.extraargs = "root=/dev/vda1".into();
        let out = translate(&config, &Table);
        match expected {
            Ok(runtime) => assert_eq!(out.desired.apps[&AppId(id(APP))].runtime, runtime),
            Err(reason) => {
                let fault = out.faults.last().unwrap();
                assert_eq!(fault.object, Object::App(AppId(id(APP))));
                assert!(fault.message.contains(reason), "{fault:?}");
            }
        }
    }
}

#[test]
fn a_machine_gets_its_user_data_as_it_is() {
    let mut config = config();
    config.content_info[0].iformat = Format::Raw.into();
    config.apps[0].user_data = BASE64.encode("#cloud-config\n");
    let out = translate(&config, &Table);
    let app = &out.desired.apps[&AppId(id(APP))];
    assert_eq!(
        (app.user_data.as_deref(), app.env.len()),
        (Some("#cloud-config\n"), 0)
    );
}

#[test]
fn secrets_are_opened_where_they_stand() {
    let block = |context: &str| {
        Some(CipherBlock {
            cipher_context_id: context.into(),
            ..CipherBlock::default()
        })
    };
    let mut config = config();
    config.datastores[0].cipher_data = block("good");
    config.apps[0].cipher_data = block("good");
    let out = translate(&config, &Table);
    assert_eq!(
        out.desired.datastores[&DatastoreId(id(STORE))].login,
        Some(Login {
            user: "user".into(),
            password: "word".into()
        })
    );
    assert_eq!(out.desired.apps[&AppId(id(APP))].env, ["SECRET=1"]);

    config.datastores[0].cipher_data = None;
    config.apps[0].cipher_data = block("bad");
    let out = translate(&config, &Table);
    assert_eq!(out.faults.len(), 1);
    assert!(
        out.faults[0].message.contains("not in the configuration"),
        "{:?}",
        out.faults
    );
}

#[test]
fn what_a_reference_to_an_image_may_look_like() {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let table = [
        (format!("hello@{digest}"), "", Ok("hello")),
        (format!("a/b/c:1.0@{digest}"), "", Ok("a/b/c")),
        ("hello:latest".into(), "AB", Err("not a SHA-256 digest")),
        ("hello:latest".into(), &"AB".repeat(32)[..], Ok("hello")),
        ("hello".into(), "", Err("has no digest")),
        ("hello@sha256:abcd".into(), "", Err("not a digest")),
        (
            format!("hello@{}", digest.to_uppercase()),
            "",
            Err("not a digest"),
        ),
        (
            format!("../etc@{digest}"),
            "",
            Err("not the name of a repository"),
        ),
        (
            format!("Hello@{digest}"),
            "",
            Err("not the name of a repository"),
        ),
        (
            format!("@{digest}"),
            "",
            Err("not the name of a repository"),
        ),
    ];
    for (url, sha256, expected) in table {
        let mut config = config();
        config.content_info[0].url.clone_from(&url);
        config.content_info[0].sha256 = sha256.into();
        let out = translate(&config, &Table);
        match expected {
            Ok(repository) => assert_eq!(
                out.desired.contents[&ContentId(id(CONTENT))]
                    .repository
                    .as_str(),
                repository,
                "{url}"
            ),
            Err(reason) => assert!(
                out.faults[0].message.contains(reason),
                "{url}: {:?}",
                out.faults
            ),
        }
    }
}

#[test]
fn a_datastores_path_comes_before_the_repository() {
    let mut config = config();
    config.datastores[0].dpath = "/team/".into();
    let out = translate(&config, &Table);
    assert_eq!(
        out.desired.contents[&ContentId(id(CONTENT))]
            .repository
            .as_str(),
        "team/apps/hello"
    );
}

#[test]
fn networks() {
    let range = |start: &str, end: &str| {
        Some(IpRange {
            start: start.into(),
            end: end.into(),
        })
    };
    type Addresses = (&'static str, &'static str, &'static str);
    type Case = (
        &'static str,
        &'static str,
        Option<IpRange>,
        Result<Addresses, &'static str>,
    );
    let table: [Case; 10] = [
        (
            "10.1.0.0/24",
            "",
            None,
            Ok(("10.1.0.1", "10.1.0.2", "10.1.0.254")),
        ),
        (
            "10.1.0.77/28",
            "10.1.0.78",
            None,
            Ok(("10.1.0.78", "10.1.0.66", "10.1.0.78")),
        ),
        (
            "10.1.0.0/24",
            "10.1.0.1",
            range("10.1.0.10", "10.1.0.20"),
            Ok(("10.1.0.1", "10.1.0.10", "10.1.0.20")),
        ),
        ("10.1.0.0/30", "", None, Err("not a subnet")),
        ("10.1.0.0/33", "", None, Err("not a subnet")),
        ("127.0.0.0/8", "", None, Err("not a subnet")),
        ("fd00::/64", "", None, Err("not a subnet")),
        ("10.1.0.0/24", "10.2.0.1", None, Err("not a host of")),
        (
            "10.1.0.0/24",
            "",
            range("10.1.0.20", "10.1.0.10"),
            Err("comes after"),
        ),
        (
            "10.1.0.0/24",
            "",
            range("10.1.0.20", "10.1.0.255"),
            Err("not a host of"),
        ),
    ];
    for (subnet, gateway, dhcp_range, expected) in table {
        let mut config = config();
        config.network_instances[0].ip = Some(Ipspec {
            subnet: subnet.into(),
            gateway: gateway.into(),
            dhcp_range,
            ..Ipspec::default()
        });
        let out = translate(&config, &Table);
        match expected {
            Ok((gateway, first, last)) => {
                let network = &out.desired.networks[&NetworkInstanceId(id(NETWORK))];
                let seen =
                    [network.gateway, network.range.0, network.range.1].map(|a| a.to_string());
                assert_eq!(seen, [gateway, first, last], "{subnet}");
            }
            Err(reason) => assert!(
                out.faults[0].message.contains(reason),
                "{subnet}: {:?}",
                out.faults
            ),
        }
    }
}

#[test]
fn access_rules() {
    let all = Ace {
        matches: vec![matched("ip", "0.0.0.0/0")],
        actions: vec![AceAction::default()],
        ..Ace::default()
    };
    let drop = Ace {
        actions: vec![AceAction {
            drop: true,
            ..AceAction::default()
        }],
        ..all.clone()
    };
    let some = Ace {
        matches: vec![matched("host", "example.org")],
        ..all.clone()
    };
    let mut limited = port_map("tcp", "1", 1);
    limited.matches.push(matched("ip", "192.0.2.0/24"));
    let table = [
        (all, Ok(0)),
        (port_map("udp", "53", 5353), Ok(1)),
        (drop, Err("not supported")),
        (some, Err("not supported")),
        (limited, Err("matches protocol and lport")),
        (port_map("icmp", "1", 1), Err("expected tcp or udp")),
        (port_map("tcp", "0", 1), Err("lport")),
        (port_map("tcp", "70000", 1), Err("lport")),
        (port_map("tcp", "1", 0), Err("appPort")),
    ];
    for (rule, expected) in table {
        let mut config = config();
        config.apps[0].interfaces[0].acls = vec![rule.clone()];
        let out = translate(&config, &Table);
        match expected {
            Ok(maps) => assert_eq!(
                out.desired.apps[&AppId(id(APP))].interfaces[0]
                    .port_maps
                    .len(),
                maps
            ),
            Err(reason) => assert!(
                out.faults[0].message.contains(reason),
                "{rule:?}: {:?}",
                out.faults
            ),
        }
    }
}

#[test]
fn one_bad_app_does_not_take_the_others_away() {
    type Change = fn(&mut AppInstanceConfig);
    let table: [(&str, Change, &str); 15] = [
        (
            "no id",
            |a| a.uuidandversion = None,
            "is not the id of an application",
        ),
        ("no resources", |a| a.fixedresources = None, "no resources"),
        (
            "no memory",
            |a| a.fixedresources.as_mut().unwrap().memory = 0,
            "memory",
        ),
        (
            "too many vCPUs",
            |a| a.fixedresources.as_mut().unwrap().vcpus = 17,
            "vCPUs",
        ),
        ("no volume", |a| a.volume_ref_list.clear(), "no volume"),
        (
            "unknown volume",
            |a| a.volume_ref_list[0].uuid = NETWORK.into(),
            "not in the config",
        ),
        (
            "other generation",
            |a| a.volume_ref_list[0].generation_count = 9,
            "generation",
        ),
        (
            "passthrough",
            |a| a.adapters.push(Adapter::default()),
            "devices",
        ),
        (
            "unknown network",
            |a| a.interfaces[0].network_id = VOLUME.into(),
            "not in the config",
        ),
        (
            "group address",
            |a| a.interfaces[0].mac_address = "01:00:00:00:00:00".into(),
            "hardware address",
        ),
        ("bad user data", |a| a.user_data = "%%%".into(), "base64"),
        ("taken port", |_| (), "given to app hello already"),
        (
            "one port twice",
            |a| {
                let acls = &mut a.interfaces[0].acls;
                acls.extend([port_map("tcp", "8081", 80), port_map("tcp", "8081", 81)]);
            },
            "port 8081 of the device twice",
        ),
        (
            "too much memory",
            |a| a.fixedresources.as_mut().unwrap().memory = u32::MAX,
            "MiB of memory are too many",
        ),
        (
            "more interfaces than the bus has slots",
            |a| a.interfaces = vec![a.interfaces[0].clone(); 26],
            "room for 31",
        ),
    ];
    for (name, change, reason) in table {
        let mut config = config();
        let mut bad = config.apps[0].clone();
        bad.uuidandversion = versioned("00000000-0000-4000-8000-00000000000b");
        bad.displayname = "bad".into();
        if name != "taken port" {
            bad.interfaces[0].acls.clear();
        }
        change(&mut bad);
        config.apps.push(bad);
        let out = translate(&config, &Table);
        assert_eq!(out.desired.apps.len(), 1, "{name}");
        assert_eq!(out.faults.len(), 1, "{name}: {:?}", out.faults);
        assert!(
            out.faults[0].message.contains(reason),
            "{name}: {:?}",
            out.faults
        );
    }
}

#[test]
fn what_builds_on_something_that_is_left_out_says_why() {
    let mut config = config();
    config.datastores[0].d_type = DsType::DsS3.into();
    let out = translate(&config, &Table);
    assert!(
        out.desired.apps.is_empty()
            && out.desired.volumes.is_empty()
            && out.desired.contents.is_empty()
    );
    assert_eq!(out.faults.len(), 4);
    for fault in &out.faults {
        assert!(
            fault.message.contains("only container registries"),
            "{fault:?}"
        );
    }
    assert_eq!(out.desired.networks.len(), 1);
}

#[test]
fn two_objects_with_one_id_are_one_and_a_fault() {
    let mut config = config();
    let mut copy = config.volumes[0].clone();
    copy.readonly = true;
    config.volumes.push(copy);
    let out = translate(&config, &Table);
    assert!(!out.desired.volumes[&VolumeId(id(VOLUME))].readonly);
    assert!(
        out.faults[0].message.contains("two objects"),
        "{:?}",
        out.faults
    );
}

#[test]
fn an_inactive_network_is_not_set_up() {
    let mut config = config();
    config.network_instances[0].activate = false;
    let out = translate(&config, &Table);
    assert!(out.desired.networks.is_empty());
    assert!(
        out.faults[0].message.contains("not in the config"),
        "{:?}",
        out.faults
    );
}

#[test]
fn environment_lines_that_are_none_are_not_quoted() {
    let mut config = config();
    config.apps[0].user_data = BASE64.encode("A=1\npassword: hunter2\n");
    let out = translate(&config, &Table);
    assert_eq!(
        out.faults[0].message,
        "line 2 of its environment is not NAME=value"
    );
    // Lines are counted as an editor counts them.
    config.apps[0].user_data = BASE64.encode("# comment\n\nA=1\n\npassword\n");
    let out = translate(&config, &Table);
    assert_eq!(
        out.faults[0].message,
        "line 5 of its environment is not NAME=value"
    );
}

#[test]
fn ports_of_an_app_that_is_refused_are_free_for_the_next() {
    let mut config = config();
    let mut good = config.apps[0].clone();
    good.uuidandversion = versioned("00000000-0000-4000-8000-00000000000b");
    let acls = &mut config.apps[0].interfaces[0].acls;
    acls.push(port_map("tcp", "8080", 81));
    // TCP and UDP are apart.
    good.interfaces[0].acls.push(port_map("udp", "8080", 80));
    config.apps.push(good);
    let out = translate(&config, &Table);
    assert_eq!((out.desired.apps.len(), out.faults.len()), (1, 1));
    assert!(out.faults[0].message.contains("twice"), "{:?}", out.faults);
}

#[test]
fn what_the_monitor_would_refuse_is_refused_here() {
    let machine = |length: usize, interfaces: usize| {
        let mut config = config();
        config.content_info[0].iformat = Format::Raw.into();
        let app = &mut config.apps[0];
        app.fixedresources.as_mut().unwrap().extraargs = "x".repeat(length);
        app.interfaces[0].acls.clear();
        app.interfaces = vec![app.interfaces[0].clone(); interfaces];
        translate(&config, &Table).faults
    };
    // Console, entropy, root disk, seed of the user data: 4 of 31.
    assert_eq!(machine(2047, 27), []);
    assert!(
        machine(2048, 1)[0]
            .message
            .contains("command line has 2048 bytes")
    );
    assert!(machine(1, 28)[0].message.contains("room for 31"));
    // A native container has no monitor.
    let mut config = config();
    let app = &mut config.apps[0];
    app.fixedresources.as_mut().unwrap().virtualization_mode = VmMode::Nohyper.into();
    app.interfaces[0].acls.clear();
    app.interfaces = vec![app.interfaces[0].clone(); 40];
    assert_eq!(translate(&config, &Table).faults, []);
}

#[test]
fn an_empty_config_is_an_empty_device() {
    assert_eq!(
        translate(&EdgeDevConfig::default(), &Table),
        Translated::default()
    );
}
