//! Apps that are virtual machines, with a stand-in for the monitor: it reads the same `vm.json`, listens on the same
//! sockets and leaves the same last words, but there is no machine behind it. Real machines run in the end-to-end tests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests say what they expect by failing"
)]

mod reconcile_common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use guest_api::{FromGuest, ToGuest};
use hypervisor_api::config::{Boot, DiskFormat, VmConfig};
use hypervisor_api::control::{Answer, Request};
use hypervisor_api::report::LastWords;
use nix::sched::{CloneFlags, unshare};
use pillar::domain::desired::{ContentKind, Desired, Runtime};
use pillar::domain::observed::{AppPhase, Observed};
use pillar::host::program::ProgramError;
use pillar::host::units::{UnitSpec, UnitState, Units};
use pillar::paths::Paths;
use pillar::reconcile::spawn_with;
use pillar::status::Status;
use reconcile_common::*;
use serde_json::json;
use tokio::sync::watch;

/// One stand-in.
struct Monitor {
    config: VmConfig,
    /// Its main process: something that sleeps.
    process: Child,
    /// The guest's side of the control connection.
    guest: Option<UnixStream>,
}

impl Monitor {
    fn end(&mut self, words: Option<LastWords>) {
        if let (Some(words), Some(path)) = (words, &self.config.last_words) {
            std::fs::write(path, serde_json::to_vec(&words).unwrap()).unwrap();
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// All stand-ins, by unit. What is no app is passed on to real processes.
struct Monitors {
    running: Arc<Mutex<HashMap<String, Monitor>>>,
    started: Mutex<Vec<UnitSpec>>,
    asked: Arc<Mutex<Vec<String>>>,
    /// How many questions for an app's unit get no answer from now on.
    unanswered: AtomicUsize,
    others: Arc<Processes>,
}

impl Monitors {
    fn new(dir: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            running: Arc::default(),
            started: Mutex::default(),
            asked: Arc::default(),
            unanswered: AtomicUsize::new(0),
            others: Processes::new(dir),
        })
    }

    fn launch(&self, unit: &UnitSpec) {
        let config = unit.args.last().unwrap();
        let config: VmConfig = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
        let process = Command::new("sleep").arg("1000").spawn().unwrap();
        // The agent looks whose sockets they are.
        let uid = std::fs::metadata(config.control_socket.parent().unwrap())
            .unwrap()
            .uid();
        let control_socket = config.control_socket.clone();
        let control = as_user(uid, move || UnixListener::bind(control_socket).unwrap());
        let guest_socket = config
            .vsock
            .as_ref()
            .map(|vsock| format!("{}_{}", vsock.socket.display(), guest_api::CONTROL_PORT));
        let guest = guest_socket.clone().map(|path| {
            as_user(uid, move || UnixStream::connect(path))
                .expect("the agent listens before the monitor starts")
        });
        let name = unit.name.clone();
        {
            let (name, running, asked) = (name.clone(), self.running.clone(), self.asked.clone());
            std::thread::spawn(move || {
                for stream in control.incoming() {
                    let mut stream = BufReader::new(stream.unwrap());
                    let mut line = String::new();
                    stream.read_line(&mut line).unwrap();
                    let request: Request = serde_json::from_str(&line).unwrap();
                    asked.lock().unwrap().push(format!("{request:?}"));
                    let mut answer = serde_json::to_vec(&Answer::Done).unwrap();
                    answer.push(b'\n');
                    stream.get_mut().write_all(&answer).unwrap();
                    let words = match request {
                        Request::Shutdown => LastWords::PowerOff,
                        _ => LastWords::Killed,
                    };
                    running
                        .lock()
                        .unwrap()
                        .get_mut(&name)
                        .unwrap()
                        .end(Some(words));
                }
            });
        }
        if let (Some(stream), Some(path)) = (&guest, guest_socket) {
            let mut stream = stream.try_clone().unwrap();
            let (name, running, asked) = (name.clone(), self.running.clone(), self.asked.clone());
            std::thread::spawn(move || {
                loop {
                    let heard = BufReader::new(&stream).lines().next();
                    let mut running = running.lock().unwrap();
                    let Some(monitor) = running.get_mut(&name) else {
                        return;
                    };
                    if let Some(Ok(line)) = heard {
                        let request: ToGuest = serde_json::from_str(&line).unwrap();
                        asked.lock().unwrap().push(format!("{request:?}"));
                        say(monitor, &FromGuest::Exited { code: 0 });
                        monitor.end(Some(LastWords::PowerOff));
                        return;
                    }
                    // The agent has gone: a guest connects again when it is back.
                    let path = path.clone();
                    if let Ok(again) = as_user(uid, move || UnixStream::connect(path)) {
                        monitor.guest = Some(again.try_clone().unwrap());
                        stream = again;
                    }
                    drop(running);
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
        }
        self.running.lock().unwrap().insert(
            name,
            Monitor {
                config,
                process,
                guest,
            },
        );
    }

    fn with<T>(&self, unit: &str, work: impl FnOnce(&mut Monitor) -> T) -> T {
        work(
            self.running
                .lock()
                .unwrap()
                .get_mut(unit)
                .expect("its monitor was started"),
        )
    }

    fn asked(&self) -> String {
        self.asked.lock().unwrap().join("\n")
    }
}

/// Does something as another user, on a thread of its own: the system call changes only the thread that makes it.
fn as_user<T: Send + 'static>(uid: u32, work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        // SAFETY: setresuid takes three numbers; the raw call, unlike the library's, leaves the other threads alone.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!(result, 0, "the test runs as root");
        work()
    });
    thread.join().unwrap()
}

fn say(monitor: &mut Monitor, event: &FromGuest) {
    let mut line = serde_json::to_vec(event).unwrap();
    line.push(b'\n');
    monitor.guest.as_mut().unwrap().write_all(&line).unwrap();
}

impl Drop for Monitors {
    fn drop(&mut self) {
        for monitor in self.running.lock().unwrap().values_mut() {
            monitor.end(None);
        }
    }
}

fn is_app(name: &str) -> bool {
    name.starts_with("skerry-app-")
}

impl Units for Monitors {
    fn start(&self, unit: UnitSpec) -> BoxFuture<'_, Result<(), ProgramError>> {
        Box::pin(async move {
            if !is_app(&unit.name) {
                return self.others.start(unit).await;
            }
            self.launch(&unit);
            self.started.lock().unwrap().push(unit);
            Ok(())
        })
    }

    fn look<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<UnitState, ProgramError>> {
        Box::pin(async move {
            if !is_app(name) {
                return self.others.look(name).await;
            }
            let silent = self
                .unanswered
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                });
            if silent.is_ok() {
                return Err(ProgramError::Failed {
                    program: "systemctl".to_owned(),
                    status: "exit status: 1".to_owned(),
                    message: "Failed to connect to bus".to_owned(),
                });
            }
            let mut running = self.running.lock().unwrap();
            Ok(match running.get_mut(name) {
                None => UnitState::Gone,
                Some(monitor) => match monitor.process.try_wait().unwrap() {
                    None => UnitState::Running {
                        pid: monitor.process.id(),
                    },
                    Some(how) => UnitState::Ended {
                        how: how.to_string(),
                    },
                },
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
            if !is_app(name) {
                return self.others.signal(name, signal, all).await;
            }
            self.asked.lock().unwrap().push(format!("signal {signal}"));
            self.with(name, |monitor| monitor.end(None));
            Ok(())
        })
    }

    fn forget<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ProgramError>> {
        Box::pin(async move {
            if !is_app(name) {
                return self.others.forget(name).await;
            }
            let mut running = self.running.lock().unwrap();
            if running
                .get_mut(name)
                .is_some_and(|monitor| monitor.process.try_wait().unwrap().is_some())
            {
                running.remove(name);
            }
            Ok(())
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, ProgramError>> {
        Box::pin(async move {
            if !is_app(prefix) {
                return self.others.list(prefix).await;
            }
            Ok(self.running.lock().unwrap().keys().cloned().collect())
        })
    }
}

const MACHINE: u128 = 1;
const CONTAINER: u128 = 2;

fn unit(n: u128) -> String {
    format!("skerry-app-{}.service", app_id(n))
}

fn is_running(seen: &Observed, n: u128) -> bool {
    seen.apps
        .get(&app_id(n))
        .is_some_and(|app| matches!(app.phase, AppPhase::Running { .. }))
}

#[tokio::test]
async fn machines_and_microvms_live_their_lives() {
    unshare(CloneFlags::CLONE_NEWNET).expect("the test runs as root");
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths {
        persist: dir.path().join("persist"),
        run: dir.path().join("run"),
        ..Paths::default()
    };
    std::fs::create_dir_all(paths.pillar()).unwrap();
    std::fs::create_dir_all(paths.blobs()).unwrap();
    let units = Monitors::new(dir.path().to_owned());

    let machine = machine_image(&[
        ("kernel", b"kernel"),
        ("initrd", b"initrd"),
        ("disk-root", &[1; 8192]),
    ]);
    let container = container_image(
        vec![layer(&[("main", 0o755, b"program")])],
        json!({"Entrypoint": ["/main"], "Cmd": ["argument"], "User": "7:8", "WorkingDir": "/work", "StopSignal": "SIGINT"}),
    );
    for image in [&machine, &container] {
        for blob in image.blobs.iter().chain([&image.manifest]) {
            std::fs::write(paths.blobs().join(blob.digest.hex()), &blob.bytes).unwrap();
        }
    }
    let mut wanted = Desired::default();
    wanted
        .datastores
        .insert(DATASTORE, datastore("127.0.0.1:1", ""));
    wanted.networks.insert(NETWORK, network(0));
    let cmdline = "console=hvc0 root=/dev/vda1".to_owned();
    let runtime = Runtime::Machine { cmdline };
    add_app(
        &mut wanted,
        MACHINE,
        "legacy",
        runtime,
        content(&machine, ContentKind::MachineRaw, "m"),
    );
    add_app(
        &mut wanted,
        CONTAINER,
        "web",
        Runtime::ContainerMicrovm,
        content(&container, ContentKind::Container, "c"),
    );
    wanted.apps.get_mut(&app_id(MACHINE)).unwrap().user_data = Some("#cloud-config\n".into());
    wanted.apps.get_mut(&app_id(CONTAINER)).unwrap().env = vec!["SECRET=s3cret".into()];
    let (desired, followed) = watch::channel(Arc::new(wanted));
    let mut observed = spawn_with(
        followed,
        paths.clone(),
        units.clone(),
        Status::to_memory().0,
    )
    .unwrap();

    // The machine runs when its monitor does; the container when its guest says so.
    let seen = wait_for(&mut observed, "machine runs, container starts", |seen| {
        is_running(seen, MACHINE)
            && seen
                .apps
                .get(&app_id(CONTAINER))
                .is_some_and(|app| app.phase == AppPhase::Starting && app.pid.is_some())
    });
    let seen = seen.await.unwrap();
    assert_eq!(
        seen.apps[&app_id(MACHINE)].console,
        Some(paths.app(app_id(MACHINE)).join("vm/console.sock"))
    );
    units.with(&unit(CONTAINER), |monitor| {
        say(monitor, &FromGuest::Started)
    });
    let seen = wait_for(&mut observed, "container runs", |seen| {
        is_running(seen, CONTAINER)
    })
    .await
    .unwrap();

    // What the machine's monitor is told.
    let config = units.with(&unit(MACHINE), |monitor| monitor.config.clone());
    let Boot::Kernel {
        kernel,
        initrds,
        cmdline,
    } = &config.boot;
    assert_eq!(
        (std::fs::read(kernel).unwrap(), initrds.len()),
        (b"kernel".to_vec(), 1)
    );
    // Debian's initramfs has no driver for hvc0, so the agent puts a console before it that every kernel has.
    assert_eq!(cmdline, "console=tty0 console=hvc0 root=/dev/vda1");
    assert_eq!(config.disks.len(), 2);
    assert_eq!(
        (config.disks[0].format, config.disks[0].readonly),
        (DiskFormat::Raw, false)
    );
    assert_eq!(
        std::fs::metadata(&config.disks[0].path).unwrap().len(),
        32 << 20
    );
    assert!(config.disks[1].readonly && config.disks[1].path.ends_with("seed.img"));
    assert_eq!(
        (config.vcpus, config.memory_mib, config.consoles.len()),
        (1, 64, 1)
    );
    assert!(config.serial.is_some() && config.vsock.is_none());
    let uid = std::fs::metadata(&config.disks[0].path).unwrap().uid();
    assert!((200_000..210_000).contains(&uid));
    assert_eq!(
        std::fs::metadata(&config.disks[0].path).unwrap().mode() & 0o777,
        0o600
    );

    // What the container's monitor is told.
    let config = units.with(&unit(CONTAINER), |monitor| monitor.config.clone());
    let Boot::Kernel {
        kernel, initrds, ..
    } = &config.boot;
    assert_eq!(*kernel, paths.guest_kernel());
    let archive = std::fs::read(&initrds[1]).unwrap();
    let spec = String::from_utf8_lossy(&archive);
    for expected in [
        r#""args":["/main","argument"]"#,
        r#""uid":7,"gid":8"#,
        "SECRET=s3cret",
        r#""cwd":"/work""#,
    ] {
        assert!(spec.contains(expected), "{expected} in {spec}");
    }
    let about = std::fs::metadata(&initrds[1]).unwrap();
    assert_eq!(
        (about.uid(), about.mode() & 0o777),
        (0, 0o640),
        "others may not read its secrets"
    );
    assert!(config.disks[0].readonly && config.disks[0].path.extension().unwrap() == "erofs");
    assert!(!config.disks[1].readonly);
    assert_eq!(config.consoles.len(), 2);
    assert!(config.consoles[1].stdout && !config.consoles[0].stdout);
    let other_uid = std::fs::metadata(&config.disks[1].path).unwrap().uid();
    assert_ne!(uid, other_uid);
    let started = units.started.lock().unwrap().clone();
    for unit in &started {
        let args: Vec<String> = unit
            .args
            .iter()
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect();
        assert!(
            args.iter().any(|arg| arg.starts_with("--reuid=200")),
            "{args:?}"
        );
        let has = |name: &str, value: &str| unit.properties.contains(&(name.into(), value.into()));
        assert!(
            has("MemoryMax", "128M")
                && has("NoNewPrivileges", "yes")
                && has("ProtectSystem", "strict")
        );
        assert!(has("DevicePolicy", "closed"));
    }

    // The agent is restarted, and systemd does not answer at first: both go on, and the guest is listened to again.
    let pids = |seen: &Observed| [MACHINE, CONTAINER].map(|n| seen.apps[&app_id(n)].pid);
    let before = pids(&seen);
    let wanted = desired.borrow().clone();
    drop(desired);
    while observed.changed().await.is_ok() {}
    units.unanswered.store(3, Ordering::SeqCst);
    let (desired, followed) = watch::channel(wanted);
    let mut observed = spawn_with(
        followed,
        paths.clone(),
        units.clone(),
        Status::to_memory().0,
    )
    .unwrap();
    let seen = wait_for(&mut observed, "found again", |seen| {
        is_running(seen, MACHINE) && is_running(seen, CONTAINER)
    });
    assert_eq!(pids(&seen.await.unwrap()), before);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        units.started.lock().unwrap().len(),
        2,
        "nothing was started again"
    );
    assert_eq!(units.asked(), "");

    // A crash: back-off, started again, counted.
    units.with(&unit(MACHINE), |monitor| {
        monitor.end(Some(LastWords::TripleFault))
    });
    let seen = wait_for(&mut observed, "back-off", |seen| {
        matches!(seen.apps[&app_id(MACHINE)].phase, AppPhase::BackOff { .. })
    });
    let trouble = seen.await.unwrap().apps[&app_id(MACHINE)]
        .trouble
        .clone()
        .unwrap();
    assert!(
        trouble.message.contains("triple fault"),
        "{}",
        trouble.message
    );
    assert_eq!(
        trouble
            .retry_at
            .unwrap()
            .duration_since(trouble.at)
            .unwrap(),
        Duration::from_secs(1)
    );
    let seen = wait_for(&mut observed, "again", |seen| is_running(seen, MACHINE))
        .await
        .unwrap();
    assert_eq!(
        (
            seen.apps[&app_id(MACHINE)].restarts,
            &seen.apps[&app_id(MACHINE)].trouble
        ),
        (1, &None)
    );
    assert_eq!(seen.apps[&app_id(CONTAINER)].restarts, 0);
    // Once more at once: twice the delay.
    units.with(&unit(MACHINE), |monitor| {
        monitor.end(Some(LastWords::Failed {
            message: "no disk".into(),
        }))
    });
    let seen = wait_for(&mut observed, "back-off", |seen| {
        matches!(seen.apps[&app_id(MACHINE)].phase, AppPhase::BackOff { .. })
    });
    let trouble = seen.await.unwrap().apps[&app_id(MACHINE)]
        .trouble
        .clone()
        .unwrap();
    assert!(
        trouble.message.contains("the monitor failed: no disk"),
        "{}",
        trouble.message
    );
    assert_eq!(
        trouble
            .retry_at
            .unwrap()
            .duration_since(trouble.at)
            .unwrap(),
        Duration::from_secs(2)
    );
    wait_for(&mut observed, "again", |seen| is_running(seen, MACHINE))
        .await
        .unwrap();

    // A change of what it is started with: asked to stop as its kind is asked, and started with the new.
    desired.send_modify(|desired| {
        for app in Arc::make_mut(desired).apps.values_mut() {
            app.memory_mib = 96;
        }
    });
    for n in [MACHINE, CONTAINER] {
        for _ in 0..100 {
            let ready = units
                .running
                .lock()
                .unwrap()
                .get(&unit(n))
                .is_some_and(|monitor| monitor.config.memory_mib == 96);
            if ready {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(
            units.with(&unit(n), |monitor| monitor.config.memory_mib),
            96
        );
    }
    let asked = units.asked();
    assert!(asked.contains("Shutdown"), "{asked}");
    // SIGINT is what the image asked for.
    assert!(
        asked.contains("Stop { signal: 2, grace_seconds: 25 }"),
        "{asked}"
    );
    units.with(&unit(CONTAINER), |monitor| {
        say(monitor, &FromGuest::Started)
    });
    let seen = wait_for(&mut observed, "both", |seen| {
        is_running(seen, MACHINE) && is_running(seen, CONTAINER)
    })
    .await
    .unwrap();
    assert_eq!(
        seen.apps[&app_id(MACHINE)].restarts,
        2,
        "a wanted restart is not counted"
    );

    // The container ends by itself and says how.
    units.with(&unit(CONTAINER), |monitor| {
        say(monitor, &FromGuest::Exited { code: 9 });
        monitor.end(Some(LastWords::PowerOff));
    });
    let seen = wait_for(&mut observed, "back-off", |seen| {
        matches!(
            seen.apps[&app_id(CONTAINER)].phase,
            AppPhase::BackOff { .. }
        )
    });
    let trouble = seen.await.unwrap().apps[&app_id(CONTAINER)]
        .trouble
        .clone()
        .unwrap();
    assert_eq!(trouble.message, "the container ended with status 9");

    // Halted and taken away.
    desired.send_modify(|desired| {
        let desired = Arc::make_mut(desired);
        desired.apps.remove(&app_id(CONTAINER));
        desired.apps.get_mut(&app_id(MACHINE)).unwrap().activate = false;
    });
    wait_for(&mut observed, "halted and gone", |seen| {
        seen.apps.len() == 1 && seen.apps[&app_id(MACHINE)].phase == AppPhase::Halted
    })
    .await
    .unwrap();
    assert!(!paths.app(app_id(CONTAINER)).exists());
    assert!(paths.app(app_id(MACHINE)).exists());
    assert!(units.running.lock().unwrap().is_empty());
}

/// An agent that is started again while an app waits goes on waiting, and counts on from where the last one was; the count
/// outlives the device's restart too.
#[tokio::test]
async fn back_off_and_count_outlive_the_agent() {
    unshare(CloneFlags::CLONE_NEWNET).expect("the test runs as root");
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths {
        persist: dir.path().join("persist"),
        run: dir.path().join("run"),
        ..Paths::default()
    };
    std::fs::create_dir_all(paths.pillar()).unwrap();
    std::fs::create_dir_all(paths.blobs()).unwrap();
    let units = Monitors::new(dir.path().to_owned());
    let machine = machine_image(&[
        ("kernel", b"kernel"),
        ("initrd", b"initrd"),
        ("disk-root", &[1; 8192]),
    ]);
    for blob in machine.blobs.iter().chain([&machine.manifest]) {
        std::fs::write(paths.blobs().join(blob.digest.hex()), &blob.bytes).unwrap();
    }
    let mut wanted = Desired::default();
    wanted
        .datastores
        .insert(DATASTORE, datastore("127.0.0.1:1", ""));
    wanted.networks.insert(NETWORK, network(0));
    let cmdline = "console=hvc0".to_owned();
    add_app(
        &mut wanted,
        MACHINE,
        "legacy",
        Runtime::Machine { cmdline },
        content(&machine, ContentKind::MachineRaw, "m"),
    );
    let wanted = Arc::new(wanted);
    let start = || {
        let (desired, followed) = watch::channel(wanted.clone());
        let observed = spawn_with(
            followed,
            paths.clone(),
            units.clone(),
            Status::to_memory().0,
        );
        (desired, observed.unwrap())
    };
    let app = |seen: &Observed| seen.apps.get(&app_id(MACHINE)).cloned();
    let (desired, mut observed) = start();
    // Three crashes: the fourth start is four seconds away.
    let mut waits = None;
    for crash in 1..=3 {
        wait_for(&mut observed, "it runs", |seen| is_running(seen, MACHINE))
            .await
            .unwrap();
        units.with(&unit(MACHINE), |monitor| {
            monitor.end(Some(LastWords::TripleFault));
        });
        let seen = wait_for(&mut observed, "back-off", |seen| {
            app(seen).is_some_and(|app| matches!(app.phase, AppPhase::BackOff { .. }))
        });
        waits = app(&seen.await.unwrap());
        assert_eq!(waits.as_ref().unwrap().restarts, crash - 1);
    }
    let waits = waits.unwrap();
    let begun = std::time::Instant::now();

    drop(desired);
    while observed.changed().await.is_ok() {}
    let (desired, mut observed) = start();
    let seen = wait_for(&mut observed, "still waiting", |seen| app(seen).is_some());
    let again = app(&seen.await.unwrap()).unwrap();
    assert_eq!(again.restarts, 2);
    assert_eq!(
        again.trouble.as_ref().unwrap().message,
        waits.trouble.as_ref().unwrap().message
    );
    let until = |phase: &AppPhase| match phase {
        AppPhase::BackOff { until } => *until,
        other => panic!("{other:?}"),
    };
    let (before, after) = (until(&waits.phase), until(&again.phase));
    let apart = after
        .duration_since(before)
        .or_else(|_| before.duration_since(after));
    assert!(apart.unwrap() < Duration::from_millis(500));
    assert_eq!(units.started.lock().unwrap().len(), 3, "not yet");
    let seen = wait_for(&mut observed, "it runs again", |seen| {
        is_running(seen, MACHINE)
    });
    assert_eq!(app(&seen.await.unwrap()).unwrap().restarts, 3);
    assert!(begun.elapsed() > Duration::from_secs(3));

    // The device is restarted: what runs is gone, and what /run held.
    drop(desired);
    while observed.changed().await.is_ok() {}
    units.with(&unit(MACHINE), |monitor| monitor.end(None));
    units.running.lock().unwrap().clear();
    std::fs::remove_dir_all(&paths.run).unwrap();
    let (desired, mut observed) = start();
    let seen = wait_for(&mut observed, "it runs after a restart", |seen| {
        is_running(seen, MACHINE)
    });
    assert_eq!(app(&seen.await.unwrap()).unwrap().restarts, 3);

    // An app that is taken away takes its count with it.
    assert!(paths.app_counter(app_id(MACHINE)).exists());
    desired.send_modify(|desired| {
        Arc::make_mut(desired).apps.clear();
    });
    wait_for(&mut observed, "gone", |seen| seen.apps.is_empty())
        .await
        .unwrap();
    assert!(!paths.app_counter(app_id(MACHINE)).exists());
}
