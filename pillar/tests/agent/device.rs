//! A device in a temporary directory: the real agent, with reconcilers that are the test itself.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pillar::agent::{self, Options};
use pillar::domain::desired::Desired;
use pillar::domain::observed::Observed;
use pillar::paths::Paths;
use pillar::status::Status;
use pillar::uplink::Sources;
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::site::Site;

/// A device that is switched off.
pub struct Device {
    dir: TempDir,
    options: Options,
    _tpm: Option<Tpm>,
}

/// A device that runs; switched off when dropped.
pub struct Running {
    task: JoinHandle<()>,
    pub desired: watch::Receiver<Arc<Desired>>,
    pub observed: watch::Sender<Arc<Observed>>,
    lines: Arc<Mutex<Vec<String>>>,
}

/// The program in a process of its own.
pub struct Program {
    pub child: Child,
    pub status: PathBuf,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Tpm(Child);

impl Drop for Tpm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Device {
    /// With the bundle of a controller of the test's own.
    pub fn new(site: &Site) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(Vec::new()).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self::with_bundle(
            site.address.port(),
            &site.root.pem,
            &certificate,
            &key.serialize_pem(),
        )
    }

    /// With a bundle for the controller at this port of this machine.
    pub fn with_bundle(port: u16, root: &str, onboarding: &str, onboarding_key: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let path = |name: &str| dir.path().join(name);
        let paths = Paths {
            config: path("config"),
            persist: path("persist"),
            run: path("run"),
            lib: path("lib"),
        };
        for dir in [&paths.config, &paths.persist, &paths.run, &paths.lib] {
            std::fs::create_dir(dir).unwrap();
        }
        let put = |name: &str, text: &str| std::fs::write(paths.config.join(name), text).unwrap();
        put("server", &format!("localhost:{port}\n"));
        put("root-certificate.pem", root);
        put("v2tlsbaseroot-certificates.pem", root);
        put("onboard.cert.pem", onboarding);
        put("onboard.key.pem", onboarding_key);
        put("soft_serial", "soft-1");
        put("skerry.json", r#"{"builtAt":"2026-01-01T00:00:00Z"}"#);
        std::fs::write(paths.lib.join("version"), "1.2.3\n").unwrap();
        let nowhere = path("none");
        let options = Options {
            tpm: nowhere.clone(),
            network: Sources {
                class: nowhere.clone(),
                routes: nowhere.clone(),
                leases: nowhere,
                resolv_conf: path("resolv.conf"),
            },
            journalctl: None,
            owns_machine: false,
            paths,
        };
        Self {
            dir,
            options,
            _tpm: None,
        }
    }

    /// With a simulated TPM.
    pub fn with_tpm(mut self) -> Self {
        let device = &mut self;
        let state = device.dir.path().join("tpm");
        std::fs::create_dir(&state).unwrap();
        let socket = state.join("socket");
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", state.display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}.ctrl", socket.display()))
            .stdin(Stdio::null())
            .spawn()
            .expect("swtpm is needed; install the package swtpm");
        let tpm = Tpm(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        // The file is there a moment before anybody listens.
        while onboarding::tpm::Tpm::connect_unix(&socket).is_err() {
            assert!(Instant::now() < deadline, "swtpm opened no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        device.options.tpm = socket;
        device._tpm = Some(tpm);
        self
    }

    pub fn paths(&self) -> &Paths {
        &self.options.paths
    }

    /// A journal whose entries are the lines of a file, and that then waits for more.
    pub fn journal(&mut self, lines: &str) {
        let file = self.dir.path().join("journal");
        std::fs::write(&file, lines).unwrap();
        let program = self.dir.path().join("journalctl");
        let arguments = self.dir.path().join("journalctl.arguments");
        let script = format!(
            "#!/bin/sh\necho \"$*\" >> '{}'\nexec tail -n +1 -f '{}'\n",
            arguments.display(),
            file.display()
        );
        std::fs::write(&program, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        self.options.journalctl = Some(program);
    }

    pub fn journal_file(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    pub fn journalctl_arguments(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("journalctl.arguments")).unwrap_or_default()
    }

    pub fn config_file(&self, name: &str) -> PathBuf {
        self.options.paths.config.join(name)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The program itself, as a process of its own that ends with the value; its status lines go to a file.
    pub fn start_program(&self) -> Program {
        let paths = self.paths();
        let status = self.dir.path().join("status");
        let child = Command::new(env!("CARGO_BIN_EXE_pillar"))
            .arg("run")
            .arg("--shared-host")
            .args([Path::new("--config"), &paths.config])
            .args([Path::new("--persist"), &paths.persist])
            .args([Path::new("--run"), &paths.run])
            .args([Path::new("--lib"), &paths.lib])
            .args([Path::new("--tpm"), &self.options.tpm])
            .args([Path::new("--status"), &status])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Program { child, status }
    }

    pub fn start(&self) -> Running {
        let (status, lines) = Status::to_memory();
        let (observed, observed_in) = watch::channel(Arc::new(Observed::default()));
        let (desired_out, desired) = watch::channel(Arc::new(Desired::default()));
        let task = tokio::spawn(agent::run(
            self.options.clone(),
            status,
            desired_out,
            observed_in,
        ));
        Running {
            task,
            desired,
            observed,
            lines,
        }
    }
}

impl Running {
    /// Waits for a status line that begins with `beginning`, and gives it.
    pub async fn line(&self, beginning: &str) -> String {
        for _ in 0..1500 {
            let found = self
                .lines()
                .into_iter()
                .find(|line| line.starts_with(beginning));
            if let Some(found) = found {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no line {beginning:?} in {:#?}", self.lines());
    }

    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits until the device is to be something.
    pub async fn desires(&mut self, what: impl FnMut(&Arc<Desired>) -> bool) -> Arc<Desired> {
        tokio::time::timeout(Duration::from_secs(30), self.desired.wait_for(what))
            .await
            .unwrap()
            .unwrap()
            .clone()
    }

    /// Switches the device off and waits until it is.
    pub async fn cut(self) {
        self.task.abort();
        while !self.task.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}
