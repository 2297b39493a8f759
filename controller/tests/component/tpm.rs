//! A TPM emulator, one process and one state directory a test.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use onboarding::tpm::Tpm;
use tempfile::TempDir;

pub struct Emulator {
    process: Child,
    directory: TempDir,
}

impl Emulator {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let process = run(&directory);
        Self { process, directory }
    }

    pub fn connect(&self) -> Tpm {
        // The socket's name is there a moment before it listens.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match Tpm::connect_unix(&self.directory.path().join("tpm")) {
                Ok(tpm) => return tpm,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The machine is switched off and on again: PCRs are zero, what lasts is there. Connections from before are dead.
    pub fn power_cycle(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(self.directory.path().join("tpm"));
        self.process = run(&self.directory);
    }
}

fn run(directory: &TempDir) -> Child {
    let state = format!("dir={}", directory.path().display());
    let socket = directory.path().join("tpm");
    let process = Command::new("swtpm")
        .args([
            "socket",
            "--tpm2",
            "--flags",
            "not-need-init,startup-clear",
            "--tpmstate",
            &state,
            "--server",
            &format!("type=unixio,path={}", socket.display()),
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("swtpm runs (Debian package swtpm)");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !socket.exists() {
        assert!(Instant::now() < deadline, "swtpm opened no socket");
        std::thread::sleep(Duration::from_millis(10));
    }
    process
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
