//! The real program, killed (SIGKILL) while it enrols machines: at each moment of an enrolment a machine is a device wholly or not at all,
//! and gets through at its next try.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use operator_api::Device as DeviceObject;
use protocol::enrolment::seal::{self, Flight};
use protocol::paths;
use reqwest::StatusCode;

use crate::machine::{Machine, Ready, an_honest_machine_still_enrols, controller, manifest};
use crate::site::Site;
use crate::tpm::Emulator;

/// Moments of an undisturbed second flight at which the program is killed, from its start to a little after its end.
const MOMENTS: u32 = 12;

/// The program over a data directory.
struct Program {
    child: Child,
    address: SocketAddr,
}

impl Program {
    fn start(data: &Path, address: SocketAddr) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_skerry-controller"))
            .arg("serve")
            .arg("--data")
            .arg(data)
            .args(["--listen", &address.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let program = Self { child, address };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "the controller does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        program
    }

    /// Kills it, without notice.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn again(self, data: &Path) -> Self {
        Self::start(data, self.address)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A site whose requests go to the program, which has a copy of its data.
async fn site_of_the_program(lines: &str) -> (Site, Program, tempfile::TempDir) {
    let mut site = Site::start().await;
    manifest(&site, "killed", lines).await;
    site.fleet().flush().await.unwrap();
    let data = tempfile::tempdir().unwrap();
    copy(site.data(), data.path());
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let program = Program::start(data.path(), address);
    site.address = address;
    (site, program, data)
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Sends the evidence; whether it was answered before the end.
async fn show(site: &Site, ready: &Ready) -> bool {
    let body = ready.answering.evidence();
    let (bytes, _) = seal::seal_request(&controller(site), Flight::Evidence, body).unwrap();
    let request = site.http.post(site.url(paths::ENROL_EVIDENCE));
    match request.body(bytes).send().await {
        Ok(answer) => answer.status() == StatusCode::OK && answer.bytes().await.is_ok(),
        Err(_) => false,
    }
}

/// The devices with this serial number.
async fn devices(site: &Site, serial: &str) -> Vec<DeviceObject> {
    let mut devices: Vec<DeviceObject> = site.list().await;
    devices.retain(|device| device.status.hardware.serial == serial);
    devices
}

#[tokio::test(flavor = "multi_thread")]
async fn row_16_a_controller_killed_in_the_middle_leaves_nothing_half() {
    let serial = |moment: u32| format!("SN-KILL-{moment}");
    let mut lines = "serial\nSN-UNDISTURBED\n".to_owned();
    lines.extend((0..MOMENTS).map(|moment| serial(moment) + "\n"));
    let (site, mut program, data) = site_of_the_program(&lines).await;

    let emulator = Emulator::start();
    let machine = Machine::with_tpm(&emulator, "SN-UNDISTURBED");
    let ready = machine.ready(&site).await;
    let start = Instant::now();
    machine.show(&site, &ready).await.granted();
    let whole = start.elapsed();

    for moment in 0..MOMENTS {
        let (serial, emulator) = (serial(moment), Emulator::start());
        let mut machine = Machine::with_tpm(&emulator, &serial);
        let ready = machine.ready(&site).await;
        let (answered, ()) = tokio::join!(show(&site, &ready), async {
            tokio::time::sleep(whole * moment / (MOMENTS - 2)).await;
            program.kill();
        });
        program = program.again(data.path());
        let before = devices(&site, &serial).await;
        assert!(before.len() <= 1, "{moment}: {before:?}");
        assert!(
            !answered || before.len() == 1,
            "{moment}: a grant was given, and the device is gone"
        );

        let grant = machine.enrol(&site).await.granted();
        let after = devices(&site, &serial).await;
        assert_eq!(after.len(), 1, "{moment}: {after:?}");
        if let Some(before) = before.first() {
            assert_eq!(before.metadata.uid, after[0].metadata.uid, "{moment}");
        }
        machine.take(&grant);
        machine.device.attest(&site).await;
        assert_eq!(machine.device.config(&site, "").await.0, StatusCode::OK);
    }
    an_honest_machine_still_enrols(&site).await;
}
