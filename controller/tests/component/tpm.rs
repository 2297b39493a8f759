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
        let state = format!("dir={}", directory.path().display());
        let server = format!(
            "type=unixio,path={}",
            directory.path().join("tpm").display()
        );
        let process = Command::new("swtpm")
            .args([
                "socket",
                "--tpm2",
                "--flags",
                "not-need-init,startup-clear",
                "--tpmstate",
                &state,
                "--server",
                &server,
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("swtpm runs (Debian package swtpm)");
        let deadline = Instant::now() + Duration::from_secs(20);
        // The file is there a moment before anybody listens.
        while Tpm::connect_unix(&directory.path().join("tpm")).is_err() {
            assert!(Instant::now() < deadline, "swtpm opened no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { process, directory }
    }

    pub fn connect(&self) -> Tpm {
        Tpm::connect_unix(&self.directory.path().join("tpm")).unwrap()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
