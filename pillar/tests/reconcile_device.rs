//! Networks and native containers on this machine's kernel, in network and mount namespaces of the test's own. Needs
//! root, crun, dnsmasq-base, nftables, iproute2, busybox and e2fsprogs, as CI has them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests say what they expect by failing"
)]

mod reconcile_common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use pillar::domain::desired::{ContentKind, Desired, PortMap, Protocol, Runtime};
use pillar::domain::observed::{AppPhase, Observed};
use pillar::host::units::{UnitState, Units as _};
use pillar::paths::Paths;
use pillar::reconcile::spawn_with;
use pillar::status::Status;
use protocol::ids::NetworkInstanceId;
use reconcile_common::*;
use serde_json::json;
use tokio::sync::watch;
use uuid::Uuid;

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn ip(args: &str) -> String {
    run("ip", &args.split(' ').collect::<Vec<_>>())
}

/// A device in namespaces of its own. Everything of it is gone when the test's thread ends.
struct Device {
    dir: tempfile::TempDir,
    paths: Paths,
    units: Arc<Processes>,
    desired: watch::Sender<Arc<Desired>>,
    observed: watch::Receiver<Arc<Observed>>,
}

impl Device {
    /// To be called on the test's own thread, before anything else runs there.
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("the test runs as root");
        let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        // As on the device; crun does not know what to do with anything older.
        let none = nix::mount::MsFlags::empty();
        let control_groups = "/sys/fs/cgroup";
        nix::mount::mount(
            Some("cgroup2"),
            control_groups,
            Some("cgroup2"),
            none,
            None::<&str>,
        )
        .unwrap();
        ip("link set lo up");
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            persist: dir.path().join("persist"),
            run: dir.path().join("run"),
            ..Paths::default()
        };
        std::fs::create_dir_all(paths.pillar()).unwrap();
        // The container's root is nobody here, and has to get through.
        run("chmod", &["755", dir.path().to_str().unwrap()]);
        let logs = dir.path().join("units");
        std::fs::create_dir_all(&logs).unwrap();
        let units = Processes::new(logs);
        let (desired, followed) = watch::channel(Arc::new(Desired::default()));
        let observed = spawn_with(
            followed,
            paths.clone(),
            units.clone(),
            Status::to_memory().0,
        )
        .unwrap();
        Self {
            dir,
            paths,
            units,
            desired,
            observed,
        }
    }

    fn want(&self, change: impl FnOnce(&mut Desired)) {
        self.desired
            .send_modify(|desired| change(Arc::make_mut(desired)));
    }

    async fn see(&mut self, what: &str, test: impl FnMut(&Arc<Observed>) -> bool) -> Arc<Observed> {
        let seen = wait_for(&mut self.observed, what, test).await;
        seen.unwrap_or_else(|last| panic!("{last}\n{}", self.units.all_output()))
    }
}

/// Another machine (or an app), played by a thread in a network namespace.
struct Peer {
    name: String,
}

impl Peer {
    /// Plugs a machine into this namespace; its end of the cable is called `eth0`, ours `name`.
    fn new(name: &str, mac: Option<&str>) -> Self {
        // `ip netns` would write into /run of the whole machine; a mount namespace hides that.
        ip(&format!("netns add {name}"));
        ip(&format!(
            "link add {name} type veth peer name eth0 netns {name}"
        ));
        if let Some(mac) = mac {
            ip(&format!("-n {name} link set eth0 address {mac}"));
        }
        ip(&format!("link set {name} up"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} link set eth0 up"));
        Self {
            name: name.to_owned(),
        }
    }

    fn ip(&self, args: &str) -> String {
        ip(&format!("-n {} {args}", self.name))
    }

    /// Does something there.
    fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let path = format!("/run/netns/{}", self.name);
        let namespace = std::fs::File::open(path).unwrap();
        std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Greets whoever connects to a port there with who it seems to be.
    fn greet(&self, port: u16) {
        let (ready, wait) = std::sync::mpsc::channel();
        self.inside(move || {
            let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
            ready.send(()).unwrap();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let from = stream.peer_addr().unwrap().ip();
                let _ = write!(stream, "hello {from}");
            }
        });
        wait.recv().unwrap();
    }

    /// Connects from there; what it is greeted with, or nothing.
    fn connect(&self, address: Ipv4Addr, port: u16) -> Option<String> {
        self.inside(move || {
            let address = SocketAddr::from((address, port));
            let mut stream =
                TcpStream::connect_timeout(&address, Duration::from_millis(1500)).ok()?;
            stream
                .set_read_timeout(Some(Duration::from_secs(2)))
                .unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text)
        })
        .join()
        .unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

const OTHER: NetworkInstanceId = NetworkInstanceId(Uuid::from_u128(0x101));

/// An app that is only plugged in, not started.
fn plugged(
    desired: &mut Desired,
    n: u128,
    name: &str,
    network: NetworkInstanceId,
    maps: &[(u16, u16)],
) {
    let image = machine_image(&[("kernel", b"k"), ("disk-root", b"d")]);
    add_app(
        desired,
        n,
        name,
        Runtime::Machine {
            cmdline: String::new(),
        },
        content(&image, ContentKind::MachineRaw, "x"),
    );
    let app = desired.apps.get_mut(&app_id(n)).unwrap();
    app.activate = false;
    app.interfaces[0].network = network;
    app.interfaces[0].port_maps = maps
        .iter()
        .map(|(device_port, app_port)| PortMap {
            protocol: Protocol::Tcp,
            device_port: *device_port,
            app_port: *app_port,
        })
        .collect();
}

#[tokio::test]
async fn networks_carry_what_they_should_and_nothing_else() {
    let mut device = Device::new();
    // `ip netns` keeps its names below /run: a fresh one for this test.
    let none = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), "/run", Some("tmpfs"), none, None::<&str>).unwrap();
    // Where br_netfilter is loaded (Skerry's image does not have it), frames that are switched would pass the packet filter,
    // and an app could not reach its own port map.
    let bridged = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    if Path::new(bridged).exists() {
        std::fs::write(bridged, "0").unwrap();
    }
    // Someone else's bridge.
    ip("link add br-lan type bridge");
    ip("addr add 10.200.0.1/24 dev br-lan");

    device.want(|desired| {
        desired.networks.insert(NETWORK, network(0));
        desired.networks.insert(OTHER, network(1));
        plugged(desired, 1, "web", NETWORK, &[(8080, 80)]);
        plugged(desired, 2, "neighbour", NETWORK, &[]);
        plugged(desired, 3, "stranger", OTHER, &[(8080, 81)]);
    });
    let seen = device
        .see("both networks", |seen| {
            seen.networks.len() == 2 && seen.networks.values().all(|network| network.up)
        })
        .await;
    let web = seen.networks[&NETWORK].leases[&app_id(1)];
    let neighbour = seen.networks[&NETWORK].leases[&app_id(2)];
    let stranger = seen.networks[&OTHER].leases[&app_id(3)];
    // Two want the same port: the second is told.
    let trouble = seen.networks[&OTHER].trouble.clone().unwrap().message;
    assert!(
        trouble.contains("8080") && trouble.contains("web"),
        "{trouble}"
    );

    let bridge = ip("-j addr show bn0");
    assert!(
        bridge.contains("10.77.0.1") && !bridge.contains("inet6"),
        "{bridge}"
    );
    let tap = ip("-d link show tap0-0");
    assert!(
        tap.contains("master bn0") && tap.contains("user 200000") && tap.contains("persist on"),
        "{tap}"
    );

    // Apps and an uplink with someone behind it. Machines would be on the taps; here they are on cables beside them.
    let mac_of = |n: u128| {
        pillar::reconcile::ledger::mac(pillar::reconcile::ledger::Port {
            app: app_id(n),
            interface: 0,
        })
        .to_string()
    };
    let peers: Vec<Peer> = [(1, "p1", "bn0"), (2, "p2", "bn0"), (3, "p3", "bn1")]
        .into_iter()
        .map(|(n, name, bridge)| {
            let peer = Peer::new(name, Some(&mac_of(n)));
            ip(&format!("link set {name} master {bridge}"));
            peer
        })
        .collect();
    let [web_app, neighbour_app, stranger_app] = &peers[..] else {
        panic!()
    };
    let outside = Peer::new("up0", None);
    ip("addr add 192.0.2.1/24 dev up0");
    outside.ip("addr add 192.0.2.2/24 dev eth0");

    // DHCP gives each app its own address.
    let script = device.dir.path().join("udhcpc.sh");
    std::fs::write(&script, "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr add $ip/$mask dev $interface\nip route add default via $router\n").unwrap();
    run("chmod", &["755", script.to_str().unwrap()]);
    for (peer, address) in peers.iter().zip([web, neighbour, stranger]) {
        let script = script.to_str().unwrap();
        let name = &peer.name;
        run(
            "ip",
            &[
                "netns", "exec", name, "busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-s",
                script,
            ],
        );
        let got = peer.ip("-4 addr show eth0");
        assert!(
            got.contains(&address.to_string()),
            "{got} should have {address}"
        );
    }

    // DNS answers the apps' names.
    let answer = neighbour_app
        .inside(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            let query =
                b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x00\x00\x01\x00\x01";
            socket
                .send_to(query, (Ipv4Addr::new(10, 77, 0, 1), 53))
                .unwrap();
            let mut answer = [0u8; 512];
            let length = socket.recv(&mut answer).unwrap();
            answer[..length].to_vec()
        })
        .join()
        .unwrap();
    assert!(answer.ends_with(&web.octets()), "{answer:?}");

    web_app.greet(80);
    stranger_app.greet(81);
    outside.greet(9);
    let device_services = TcpListener::bind("0.0.0.0:22").unwrap();
    std::thread::spawn(move || {
        for stream in device_services.incoming() {
            let _ = stream.unwrap().write_all(b"ssh");
        }
    });
    let uplink = Ipv4Addr::new(192, 0, 2, 1);
    let peer = Ipv4Addr::new(192, 0, 2, 2);
    let gateway = Ipv4Addr::new(10, 77, 0, 1);

    // The port map, from outside, from the neighbour, from another network, and from the app itself.
    assert_eq!(
        outside.connect(uplink, 8080).as_deref(),
        Some("hello 192.0.2.2")
    );
    assert_eq!(
        neighbour_app.connect(uplink, 8080).as_deref(),
        Some("hello 10.77.0.1")
    );
    assert!(stranger_app.connect(uplink, 8080).is_some());
    assert!(web_app.connect(uplink, 8080).is_some());
    // Apps reach the outside with the device's address, and their neighbours directly.
    assert_eq!(web_app.connect(peer, 9).as_deref(), Some("hello 192.0.2.1"));
    assert_eq!(
        neighbour_app.connect(web, 80),
        Some(format!("hello {neighbour}"))
    );
    // Nothing else.
    assert_eq!(stranger_app.connect(web, 80), None, "another network's app");
    assert_eq!(web_app.connect(stranger, 81), None, "another network's app");
    assert_eq!(
        web_app.connect(gateway, 22),
        None,
        "the device's services at the gateway"
    );
    assert_eq!(
        web_app.connect(uplink, 22),
        None,
        "the device's services at the uplink"
    );
    assert_eq!(
        web_app.connect(gateway, 8080),
        None,
        "a port map at the gateway"
    );
    outside.ip("route add 10.77.0.0/16 via 192.0.2.1");
    assert_eq!(
        outside.connect(web, 80),
        None,
        "an app without its port map"
    );
    // The device's own traffic is not touched.
    assert_eq!(outside.connect(uplink, 22).as_deref(), Some("ssh"));
    // An app that takes another one's address.
    stranger_app.ip("addr add 10.77.0.99/24 dev eth0");
    stranger_app.ip("route replace 192.0.2.2 via 10.77.1.1 src 10.77.0.99");
    assert_eq!(stranger_app.connect(peer, 9), None, "a forged sender");

    // What someone removes comes back with the next look; here: with the next change.
    ip("link del tap0-0");
    device.want(|desired| {
        desired.apps.get_mut(&app_id(3)).unwrap().interfaces[0]
            .port_maps
            .clear()
    });
    device
        .see("the conflict is gone", |seen| {
            seen.networks[&OTHER].trouble.is_none()
        })
        .await;
    ip("link show tap0-0");

    // Everything of ours goes, nothing else.
    device.want(|desired| *desired = Desired::default());
    device
        .see("no networks", |seen| {
            seen.networks.is_empty() && seen.apps.is_empty()
        })
        .await;
    let mut links = String::new();
    for _ in 0..50 {
        links = ip("link");
        if !links.contains("tap") && !links.contains("bn0") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        !links.contains("tap") && !links.contains("bn") && links.contains("br-lan"),
        "{links}"
    );
    assert!(!run("nft", &["list", "ruleset"]).contains("skerry"));
    assert!(
        device
            .units
            .output("skerry-net-bn0.service")
            .contains("starts")
    );
    assert_eq!(
        device.units.look("skerry-net-bn0.service").await.unwrap(),
        UnitState::Gone
    );
}

/// A container image out of busybox and a script.
fn busybox_image(script: &str) -> Image {
    let busybox = std::fs::read("/usr/bin/busybox")
        .expect("a static busybox (apt-get install busybox-static)");
    container_image(
        vec![layer(&[
            ("bin/busybox", 0o755, &busybox),
            ("bin/sh", 0o755, &busybox),
            ("etc/resolv.conf", 0o644, b""),
            ("etc/hosts", 0o644, b""),
            ("main", 0o755, script.as_bytes()),
        ])],
        json!({"Cmd": ["/bin/sh", "/main"], "Env": ["FROM=image"]}),
    )
}

/// Puts an image where it would be after its download.
fn store(paths: &Paths, image: &Image) {
    std::fs::create_dir_all(paths.blobs()).unwrap();
    for blob in image.blobs.iter().chain([&image.manifest]) {
        std::fs::write(paths.blobs().join(blob.digest.hex()), &blob.bytes).unwrap();
    }
}

const SCRIPT: &str = r#"
echo "hello $FROM $EXTRA"
busybox id -u
busybox hostname
busybox ip -4 addr show eth0
busybox touch /mine && echo writable
[ -e /kept ] && echo kept
echo x > /kept
busybox chroot / /bin/busybox true && echo chroot works
busybox mount -t tmpfs none /bin 2>/dev/null || echo mount refused
busybox mknod /d b 8 0 2>/dev/null || echo mknod refused
trap 'echo stopping; exit 0' TERM
echo ready
while [ ! -e /die ]; do busybox sleep 0.1; done
busybox rm /die
exit 3
"#;

#[tokio::test]
async fn a_native_container_runs_is_restarted_stopped_and_taken_away() {
    let mut device = Device::new();
    let image = busybox_image(SCRIPT);
    store(&device.paths, &image);
    device.want(|desired| {
        desired
            .datastores
            .insert(DATASTORE, datastore("127.0.0.1:1", ""));
        desired.networks.insert(NETWORK, network(0));
        add_app(
            desired,
            1,
            "shop",
            Runtime::ContainerNative,
            content(&image, ContentKind::Container, "x"),
        );
        desired.apps.get_mut(&app_id(1)).unwrap().env = vec!["EXTRA=app".into()];
    });
    let app = app_id(1);
    let unit = format!("skerry-app-{app}.service");
    let running = |seen: &Arc<Observed>| {
        seen.apps
            .get(&app)
            .is_some_and(|app| matches!(app.phase, AppPhase::Running { .. }))
    };
    let seen = device.see("running", running).await;
    let address = seen.networks[&NETWORK].leases[&app];
    assert_eq!(seen.apps[&app].addresses["eth0"], address);
    assert_eq!(seen.apps[&app].unit.as_deref(), Some(unit.as_str()));
    let output = wait_output(&device, &unit, "ready").await;
    for expected in [
        "hello image app",
        "\n0\nshop\n",
        &format!("inet {address}/24"),
        "writable",
        "mount refused",
        "mknod refused",
        "chroot works",
    ] {
        assert!(output.contains(expected), "{expected} in {output}");
    }
    assert!(!output.contains("kept"));

    // Its root is nobody on the host, and has no way to more.
    let main = container_pid(&device.paths, &app.to_string());
    let status = std::fs::read_to_string(format!("/proc/{main}/status")).unwrap();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
            .trim()
            .to_owned()
    };
    let uid: u32 = field("Uid:")
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(uid >= 0x1000_0000, "{uid}");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    assert_ne!(
        std::fs::read_link(format!("/proc/{main}/ns/net")).unwrap(),
        std::fs::read_link("/proc/thread-self/ns/net").unwrap()
    );

    // It ends by itself: started again, counted, and its files are kept.
    std::fs::write(device.paths.app(app).join("rootfs/die"), "").unwrap();
    let seen = device
        .see("back-off", |seen| {
            matches!(seen.apps[&app].phase, AppPhase::BackOff { .. })
        })
        .await;
    let message = seen.apps[&app].trouble.clone().unwrap().message;
    assert!(message.contains('3'), "{message}");
    let seen = device
        .see("running again", |seen| {
            running(seen) && seen.apps[&app].restarts == 1
        })
        .await;
    assert_eq!(seen.apps[&app].trouble, None);
    let output = wait_output(&device, &unit, "kept\n").await;
    assert_eq!(output.matches("hello").count(), 2);

    // A restart that an operator asks for is not counted.
    wait_count(&device, &unit, "ready", 2).await;
    device.want(|desired| desired.apps.get_mut(&app).unwrap().restart_counter = 1);
    wait_count(&device, &unit, "ready", 3).await;
    assert!(device.units.output(&unit).contains("stopping"));
    let seen = device.see("running", running).await;
    assert_eq!(seen.apps[&app].restarts, 1);

    // Halted.
    device.want(|desired| desired.apps.get_mut(&app).unwrap().activate = false);
    device
        .see("halted", |seen| seen.apps[&app].phase == AppPhase::Halted)
        .await;
    assert!(
        mounts(device.dir.path()).is_empty(),
        "{:?}",
        mounts(device.dir.path())
    );

    // Purged: a fresh writable layer.
    device.want(|desired| {
        let wanted = desired.apps.get_mut(&app).unwrap();
        wanted.activate = true;
        wanted.purge_counter = 1;
    });
    wait_count(&device, &unit, "ready", 4).await;
    let output = device.units.output(&unit);
    assert_eq!(output.matches("kept\n").count(), 2, "{output}");

    // Taken away.
    device.want(|desired| *desired = Desired::default());
    device
        .see("gone", |seen| {
            seen.apps.is_empty() && seen.volumes.is_empty() && seen.contents.is_empty()
        })
        .await;
    assert!(!device.paths.app(app).exists());
    assert!(mounts(device.dir.path()).is_empty());
    assert_eq!(
        std::fs::read_dir(device.paths.volumes()).unwrap().count(),
        0
    );
    assert!(!ip("link").contains("tap"));
}

#[tokio::test]
async fn an_app_that_cannot_start_says_why_and_others_run() {
    let mut device = Device::new();
    let good = busybox_image("trap 'exit 0' TERM\nwhile :; do busybox sleep 0.1; done\n");
    let bad = container_image(
        vec![layer(&[("file", 0o644, b"x")])],
        json!({"Cmd": ["/no/such/program"]}),
    );
    store(&device.paths, &good);
    store(&device.paths, &bad);
    let absent = busybox_image("another");
    device.want(|desired| {
        desired
            .datastores
            .insert(DATASTORE, datastore("127.0.0.1:1", ""));
        desired.networks.insert(NETWORK, network(0));
        for (n, image) in [(1, &good), (2, &bad), (3, &absent)] {
            let content = content(image, ContentKind::Container, "x");
            add_app(
                desired,
                n,
                &format!("app{n}"),
                Runtime::ContainerNative,
                content,
            );
        }
    });
    let seen = device
        .see("one runs, one backs off, one waits", |seen| {
            let phase = |n| seen.apps.get(&app_id(n)).map(|app| app.phase.clone());
            matches!(phase(1), Some(AppPhase::Running { .. }))
                && matches!(phase(2), Some(AppPhase::BackOff { .. }))
                && phase(3) == Some(AppPhase::Preparing)
                && seen.apps[&app_id(3)].trouble.is_some()
        })
        .await;
    let message = seen.apps[&app_id(3)].trouble.clone().unwrap().message;
    assert!(message.contains("127.0.0.1:1"), "{message}");
    assert!(
        seen.apps[&app_id(2)]
            .trouble
            .clone()
            .unwrap()
            .retry_at
            .is_some()
    );
    device.want(|desired| *desired = Desired::default());
    device.see("gone", |seen| seen.apps.is_empty()).await;
}

async fn wait_output(device: &Device, unit: &str, text: &str) -> String {
    wait_count(device, unit, text, 1).await
}

async fn wait_count(device: &Device, unit: &str, text: &str, count: usize) -> String {
    for _ in 0..600 {
        let output = device.units.output(unit);
        if output.matches(text).count() >= count {
            return output;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!(
        "{text} not {count} times in {}; {:#?}",
        device.units.output(unit),
        device.observed.borrow()
    );
}

fn mounts(below: &Path) -> Vec<String> {
    std::fs::read_to_string("/proc/thread-self/mountinfo")
        .unwrap()
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|place| Path::new(place).starts_with(below))
        .map(str::to_owned)
        .collect()
}

/// The container's first process, as crun knows it.
fn container_pid(paths: &Paths, app: &str) -> u32 {
    let root = paths.run.join("crun");
    let state = run("crun", &["--root", root.to_str().unwrap(), "state", app]);
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    u32::try_from(state["pid"].as_u64().unwrap()).unwrap()
}
