//! What happens in the outer machine: scene after scene, each a monitor with a guest, and what must be seen of it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hypervisor_api::config::{Boot, Disk, DiskFormat, Net, Vsock};
use hypervisor_api::control::{Phase, Request};
use hypervisor_api::report::LastWords;

use crate::guest::{BYTES, DISK_OFFSET, HOST, VSOCK_OF_GUEST, VSOCK_OF_HOST};
use crate::monitor::{self, Monitor, UID};
use crate::system::{self, Result, pattern};

const TAP: &str = "tap0";
/// Budget of one monitor's own memory, as in `cargo xtask bench footprint`.
const MEMORY_KIB: u64 = 3 << 10;

type Scene = (&'static str, fn() -> Result<()>);

const SCENES: &[Scene] = &[
    ("devices", devices),
    ("pause", pause),
    ("deaf guest", deaf),
    ("second signal", second_signal),
    ("panic", panic),
    ("container", container),
];

pub fn run() {
    let outcome = prepare().and_then(|()| {
        SCENES.iter().try_for_each(|(name, play)| {
            let start = Instant::now();
            play().map_err(|error| format!("{name}: {error}"))?;
            say(&format!("{name}: {:.1} s", start.elapsed().as_secs_f64()));
            Ok(())
        })
    });
    match outcome {
        Ok(()) => say("done"),
        Err(error) => say(&format!("FAILED {error}")),
    }
    system::power_off();
}

fn say(text: &str) {
    println!("probe: {text}");
}

fn ensure(good: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if good {
        Ok(())
    } else {
        Err(otherwise().into())
    }
}

/// Loads the modules that came along, in their order.
pub fn load_modules() -> Result<()> {
    for path in std::fs::read_to_string("/modules.load")?.lines() {
        let loaded = system::load_module(Path::new(path));
        // Of the processors' two modules only one fits.
        if !path.contains("kvm-") {
            loaded?;
        }
    }
    Ok(())
}

fn prepare() -> Result<()> {
    load_modules()?;
    for device in ["/dev/kvm", "/dev/net/tun"] {
        std::fs::set_permissions(device, std::fs::Permissions::from_mode(0o666))
            .map_err(|error| format!("{device}: {error}"))?;
    }
    system::make_tap(TAP, UID)?;
    system::bring_up(TAP, [10, 9, 0, 1])
}

/// One machine with every kind of device.
fn devices() -> Result<()> {
    let folder = monitor::folder("devices")?;
    let (raw, qcow2, readonly) = (
        folder.join("raw"),
        folder.join("qcow2"),
        folder.join("readonly"),
    );
    File::create(&raw)?.set_len(16 << 20)?;
    std::fs::copy("/disk.qcow2", &qcow2)?;
    std::fs::write(&readonly, [0x5a; 4096])?;
    let mut config = monitor::machine("devices", &folder);
    config.vcpus = 2;
    for (path, format, readonly, serial) in [
        (&raw, DiskFormat::Raw, false, "RAW-1"),
        (&qcow2, DiskFormat::Qcow2, false, "QCOW-2"),
        (&readonly, DiskFormat::Raw, true, "READ-3"),
    ] {
        monitor::give(path)?;
        config.disks.push(Disk {
            path: path.clone(),
            format,
            readonly,
            serial: Some(serial.to_owned()),
        });
    }
    config.nets.push(Net {
        tap: TAP.to_owned(),
        mac: "02:00:00:00:00:02".to_owned(),
        mtu: None,
    });
    config.consoles.push(monitor::console(&folder, "hvc1"));
    config.serial = Some(monitor::console(&folder, "ttyS0"));
    let vsock = folder.join("vsock");
    config.vsock = Some(Vsock {
        cid: 3,
        socket: vsock.clone(),
    });
    let network = echo_over_tcp()?;
    let called = echo_over_unix(&folder.join(format!("vsock_{VSOCK_OF_HOST}")))?;

    let monitor = Monitor::start(config, &folder)?;
    let mut hvc0 = monitor.line("hvc0")?;
    for wanted in [
        "processors 0-1",
        "disk vda same true serial RAW-1 cache write back",
        "disk vdb same true serial QCOW-2 cache write back",
        "disk vdc readonly 1 refused true",
        "random virtio_rng.0 varied true",
        &format!("network {BYTES} same true"),
        &format!("vsock {BYTES} same true"),
    ] {
        say(&hvc0.expect(wanted)?);
    }
    join(network)?;
    join(called)?;
    call_guest(&vsock)?;
    say(&hvc0.expect(&format!("vsock called {BYTES}"))?);
    hvc0.expect("READY")?;
    for name in ["hvc1", "ttyS0"] {
        let mut line = monitor.line(name)?;
        line.expect(&format!("{name} listens"))?;
        line.type_line("hello")?;
        say(&line.expect(&format!("{name} heard hello"))?);
    }
    hvc0.type_line("hello")?;
    say(&hvc0.expect("hvc0 heard hello")?);

    let state = monitor.state()?;
    let written = state.disks.first().map_or(0, |disk| disk.tx_bytes);
    ensure(
        state.phase == Phase::Running && written >= BYTES as u64,
        || format!("its state is {state:?}"),
    )?;
    confined(&monitor)?;
    let own = monitor.own_memory()?;
    say(&format!(
        "monitor's own memory {own} KiB, first instruction after {} ms",
        state.boot_micros / 1000
    ));
    ensure(own <= MEMORY_KIB, || {
        format!("the monitor has {own} KiB of its own, more than {MEMORY_KIB}")
    })?;

    monitor.ask(&Request::Shutdown)?;
    hvc0.expect("BUTTON")?;
    powered_off(monitor, "the control socket")?;
    let mut found = vec![0; BYTES];
    File::open(&raw)?.read_exact_at(&mut found, DISK_OFFSET)?;
    ensure(found == pattern(BYTES), || {
        "the raw disk does not hold what the guest wrote".to_owned()
    })?;
    let grown = qcow2.metadata()?.len();
    ensure(grown > BYTES as u64, || {
        format!("the qcow2 disk holds {grown} bytes after the guest wrote {BYTES}")
    })
}

/// One unprivileged process, every thread of it under a system call filter.
fn confined(monitor: &Monitor) -> Result<()> {
    let threads = monitor.confinement()?;
    for wanted in ["vcpu0", "vcpu1", "disks"] {
        ensure(threads.iter().any(|of| of.thread == wanted), || {
            format!("it has no thread {wanted}: {threads:?}")
        })?;
    }
    for of in &threads {
        let good = of.uids == [UID.to_string().as_str(); 4].join(" ")
            && u64::from_str_radix(&of.capabilities, 16) == Ok(0)
            && of.no_new_privileges == "1"
            // A filter (SECCOMP_MODE_FILTER).
            && of.seccomp == "2";
        ensure(good, || format!("not confined: {of:?}"))?;
    }
    say(&format!(
        "{} threads with uid {UID}, no capabilities, no new privileges, a system call filter",
        threads.len()
    ));
    Ok(())
}

/// Takes one connection and sends back what came, when all has come.
fn echo_over_tcp() -> Result<JoinHandle<std::io::Result<()>>> {
    let listener = TcpListener::bind(HOST)?;
    Ok(std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard)?;
        stream.write_all(&heard)
    }))
}

fn echo_over_unix(path: &Path) -> Result<JoinHandle<std::io::Result<()>>> {
    let listener = UnixListener::bind(path)?;
    monitor::give(path)?;
    Ok(std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard)?;
        stream.write_all(&heard)
    }))
}

fn join<T>(thread: JoinHandle<std::io::Result<T>>) -> Result<T> {
    Ok(thread.join().map_err(|_| "a helper's thread panicked")??)
}

/// Calls a port of the guest, and wants back what it says.
fn call_guest(vsock: &Path) -> Result<()> {
    let mut stream = UnixStream::connect(vsock)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(format!("CONNECT {VSOCK_OF_GUEST}\n").as_bytes())?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut answer = String::new();
    reader.read_line(&mut answer)?;
    ensure(answer.starts_with("OK "), || {
        format!("the vsock answers {answer:?}")
    })?;
    let said = pattern(BYTES);
    stream.write_all(&said)?;
    stream.shutdown(Shutdown::Write)?;
    let mut back = Vec::new();
    reader.read_to_end(&mut back)?;
    ensure(back == said, || {
        format!("{} bytes came back from the guest, or others", back.len())
    })
}

fn powered_off(monitor: Monitor, by: &str) -> Result<()> {
    let (words, errors) = monitor.end()?;
    ensure(words == LastWords::PowerOff && errors.is_empty(), || {
        format!("asked by {by} it ended with {words:?}, {errors:?}")
    })?;
    say(&format!("the guest powered off, asked by {by}"));
    Ok(())
}

/// A guest stands still and goes on; SIGTERM lets it power off, even while it stands still.
fn pause() -> Result<()> {
    let folder = monitor::folder("pause")?;
    let monitor = Monitor::start(monitor::machine("ticks", &folder), &folder)?;
    let mut hvc0 = monitor.line("hvc0")?;
    hvc0.expect("tick")?;
    monitor.ask(&Request::Pause)?;
    ensure(monitor.ask(&Request::Pause).is_err(), || {
        "it was paused twice".to_owned()
    })?;
    hvc0.drain();
    ensure(hvc0.silent_for(Duration::from_secs(1)), || {
        "a paused guest goes on".to_owned()
    })?;
    let phase = monitor.state()?.phase;
    ensure(phase == Phase::Paused, || format!("its phase is {phase:?}"))?;
    monitor.ask(&Request::Resume)?;
    hvc0.expect("tick")?;
    say("the guest stood still, and went on");
    monitor.ask(&Request::Pause)?;
    monitor.signal(libc::SIGTERM)?;
    hvc0.expect("BUTTON")?;
    powered_off(monitor, "SIGTERM")
}

/// A guest that does not hear its button is ended when its time is over.
fn deaf() -> Result<()> {
    let folder = monitor::folder("deaf")?;
    let mut config = monitor::machine("deaf", &folder);
    config.shutdown_grace_seconds = 3;
    let monitor = Monitor::start(config, &folder)?;
    let mut hvc0 = monitor.line("hvc0")?;
    hvc0.expect("READY")?;
    let asked = Instant::now();
    monitor.signal(libc::SIGTERM)?;
    hvc0.expect("IGNORED")?;
    // The button is pressed again and again.
    hvc0.expect("IGNORED")?;
    let (words, errors) = monitor.end()?;
    let took = asked.elapsed();
    ensure(
        words == LastWords::Killed && errors.contains("did not power off within 3 s"),
        || format!("it ended with {words:?}, {errors:?}"),
    )?;
    ensure(took >= Duration::from_secs(3), || {
        format!("it was ended after {took:?}")
    })?;
    say(&format!(
        "a guest that did not power off was ended after {:.1} s",
        took.as_secs_f64()
    ));
    Ok(())
}

/// Whoever asks twice does not want to wait.
fn second_signal() -> Result<()> {
    let folder = monitor::folder("second")?;
    let monitor = Monitor::start(monitor::machine("deaf", &folder), &folder)?;
    let mut hvc0 = monitor.line("hvc0")?;
    hvc0.expect("READY")?;
    monitor.signal(libc::SIGTERM)?;
    hvc0.expect("IGNORED")?;
    let asked = Instant::now();
    monitor.signal(libc::SIGTERM)?;
    let (words, _) = monitor.end()?;
    let took = asked.elapsed();
    ensure(
        words == LastWords::Killed && took < Duration::from_secs(10),
        || format!("it ended with {words:?} after {took:?}"),
    )?;
    say("the second SIGTERM ended the machine at once");
    Ok(())
}

/// A kernel that gives up is no power-off.
fn panic() -> Result<()> {
    let folder = monitor::folder("panic")?;
    let monitor = Monitor::start(monitor::machine("panic", &folder), &folder)?;
    let mut hvc0 = monitor.line("hvc0")?;
    hvc0.expect("READY")?;
    hvc0.expect("not syncing: Attempted to kill init")?;
    let (words, _) = monitor.end()?;
    ensure(
        matches!(words, LastWords::Reset | LastWords::TripleFault),
        || format!("it ended with {words:?}"),
    )?;
    say(&format!("a guest's panic is seen as {words:?}"));
    Ok(())
}

/// guest-init, as shipped, stops its container when the monitor gets SIGTERM.
fn container() -> Result<()> {
    let folder = monitor::folder("container")?;
    let mut config = monitor::machine("container", &folder);
    config.boot = Boot::Kernel {
        kernel: "/shipped/vmlinuz".into(),
        initrds: vec!["/shipped/initrd.img".into(), "/container.cpio".into()],
        cmdline: "console=hvc0 quiet panic=-1".to_owned(),
    };
    config.disks.push(Disk {
        path: "/container.erofs".into(),
        format: DiskFormat::Raw,
        readonly: true,
        serial: None,
    });
    config.consoles.push(monitor::console(&folder, "hvc1"));
    config.vsock = Some(Vsock {
        cid: 4,
        socket: folder.join("vsock"),
    });
    let agent = folder.join("vsock_1024");
    let listener = UnixListener::bind(&agent)?;
    monitor::give(&agent)?;
    let said = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut said = String::new();
        stream.read_to_string(&mut said).map(|_| said)
    });

    let monitor = Monitor::start(config, &folder)?;
    let mut output = monitor.line("hvc1")?;
    output.expect("container runs")?;
    monitor.signal(libc::SIGTERM)?;
    output.expect("container ends")?;
    let said = join(said)?;
    ensure(
        said == "{\"event\":\"started\"}\n{\"event\":\"exited\",\"code\":7}\n",
        || format!("guest-init said {said:?}"),
    )?;
    powered_off(monitor, "SIGTERM, its container stopped")
}
