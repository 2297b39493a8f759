//! A real TPM emulator for tests: `swtpm`, one process and one state directory a test.
//!
//! Debian package `swtpm`; `swtpm-tools` for the one with an EK certificate.

#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use onboarding::tpm::{Handle, Socket, Tpm, Transport};
use tempfile::TempDir;

/// A TPM of its own, with its own seeds.
pub struct Emulator {
    process: Child,
    dir: TempDir,
}

impl Emulator {
    /// A TPM as it is without its maker's certificates.
    pub fn new() -> Self {
        Self::start(tempfile::tempdir().unwrap())
    }

    /// A TPM with an RSA EK certificate at the usual NV index, by a certificate authority of its own.
    pub fn manufactured() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::create_dir(dir.path().join("ca")).unwrap();
        fs::write(
            dir.path().join("ca.conf"),
            format!(
                "statedir = {ca}\nsigningkey = {ca}/key.pem\nissuercert = {ca}/issuer.pem\ncertserial = {ca}/serial\n",
                ca = at("ca")
            ),
        )
        .unwrap();
        fs::write(dir.path().join("options"), "").unwrap();
        fs::write(
            dir.path().join("setup.conf"),
            format!(
                "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {}\ncreate_certs_tool_options = {}\nactive_pcr_banks = sha256\n",
                at("ca.conf"),
                at("options")
            ),
        )
        .unwrap();
        let made = Command::new("swtpm_setup")
            .args(["--tpm2", "--create-ek-cert", "--config", &at("setup.conf")])
            .args(["--tpmstate", &dir.path().display().to_string()])
            .output()
            .expect("swtpm_setup runs (Debian package swtpm-tools)");
        assert!(
            made.status.success(),
            "swtpm_setup: {}{}",
            String::from_utf8_lossy(&made.stdout),
            String::from_utf8_lossy(&made.stderr)
        );
        Self::start(dir)
    }

    fn start(dir: TempDir) -> Self {
        let process = Self::spawn(dir.path());
        Self { process, dir }
    }

    fn spawn(dir: &Path) -> Child {
        let socket = dir.join("tpm");
        let _ = fs::remove_file(&socket);
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={}", dir.display())])
            .args([
                "--server",
                &format!("type=unixio,path={}", socket.display()),
            ])
            .args([
                "--ctrl",
                &format!("type=unixio,path={}", dir.join("ctrl").display()),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("swtpm runs (Debian package swtpm)");
        let deadline = Instant::now() + Duration::from_secs(20);
        // The file is there a moment before anybody listens.
        while Socket::unix(&socket).is_err() {
            assert!(Instant::now() < deadline, "swtpm opened no socket");
            thread::sleep(Duration::from_millis(10));
        }
        process
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("tpm")
    }

    /// A connection. The emulator serves one at a time: drop every other one first.
    pub fn connect(&self) -> Tpm {
        Tpm::connect_unix(&self.socket()).unwrap()
    }

    /// Power off without notice and on again: PCRs, loaded keys and sessions are gone, seeds and persistent keys stay.
    pub fn power_cycle(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.process = Self::spawn(self.dir.path());
    }

    /// What the firmware's menu calls "clear TPM": new owner's seed. Drop every connection first.
    pub fn clear(&self) {
        // TPM2_Clear, authorized by the empty lockout password.
        self.raw(&[
            0x80, 0x02, 0, 0, 0, 27, 0, 0, 0x01, 0x26, 0x40, 0, 0, 0x0a, 0, 0, 0, 9, 0x40, 0, 0, 9,
            0, 0, 0, 0, 0,
        ]);
    }

    /// Sends a raw command on a connection of its own and checks that it succeeds.
    pub fn raw(&self, command: &[u8]) -> Vec<u8> {
        let answer = Socket::unix(&self.socket())
            .unwrap()
            .exchange(command)
            .unwrap();
        assert_eq!(answer[6..10], [0; 4], "{answer:02x?}");
        answer
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The transient objects and sessions that are loaded now.
pub fn loaded(tpm: &Tpm) -> Vec<Handle> {
    let mut all = tpm.handles(Handle(0x8000_0000)).unwrap();
    all.extend(tpm.handles(Handle(0x0300_0000)).unwrap());
    all.extend(tpm.handles(Handle(0x0200_0000)).unwrap());
    all
}
