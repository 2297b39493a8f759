//! A machine that enrols by its own keys: the two flights of a real device, step by step, so that a test can come in between.

use onboarding::enrol::MachineId;
use onboarding::enrol::device::{self, Answering, Session};
use onboarding::keys::Identity;
use onboarding::smbios;
use operator_api::WaitingMachine;
use protocol::cipher::Point;
use protocol::enrolment::owner::Pinned;
use protocol::enrolment::seal::{self, Flight};
use protocol::enrolment::wire::answer::Kind;
use protocol::enrolment::wire::{Challenge, GrantPayload, Reason};
use protocol::paths;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::device::{Device, post};
use crate::site::Site;
use crate::tpm::Emulator;

/// An event log of a boot that measured nothing: the header of the crypto-agile form, with the SHA-256 bank alone. It explains the
/// PCRs of an emulator that was just started.
pub const EMPTY_LOG: &[u8] =
    b"\0\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x21\0\0\0\
    Spec ID Event03\0\0\0\0\0\0\x02\0\x02\x01\0\0\0\x0b\0\x20\0\0";

/// What a flight came to.
#[derive(Debug)]
pub enum Heard {
    Challenge(Box<Challenge>),
    Granted(GrantPayload),
    Wait,
    Refused(Reason, String),
    /// The answer was no sealed message.
    Status(StatusCode),
}

impl Heard {
    pub fn granted(self) -> GrantPayload {
        match self {
            Self::Granted(grant) => grant,
            other => panic!("{other:?}"),
        }
    }

    pub fn waits(&self) -> bool {
        matches!(self, Self::Wait)
    }

    #[track_caller]
    pub fn refused_for(&self, reason: Reason) -> &str {
        match self {
            Self::Refused(seen, text) if *seen == reason => text,
            other => panic!("wanted {reason:?}: {other:?}"),
        }
    }
}

/// A machine with its keys.
pub struct Machine {
    pub device: Device,
    pub smbios: smbios::Machine,
}

/// Evidence that is ready to be sent, as often as one likes.
pub struct Ready {
    pub answering: Answering,
}

impl Machine {
    pub fn with_tpm(emulator: &Emulator, serial: &str) -> Self {
        let mut device = Device::new(serial, Some(emulator.connect()));
        device.event_log = Some(EMPTY_LOG.to_vec());
        Self::of(device, serial)
    }

    pub fn without_tpm(serial: &str) -> Self {
        Self::of(Device::new(serial, None), serial)
    }

    fn of(device: Device, serial: &str) -> Self {
        let smbios = smbios::Machine {
            manufacturer: "Maker".to_owned(),
            product: "Edge Box 3".to_owned(),
            serial: serial.to_owned(),
            firmware_version: "1.14".to_owned(),
            ..smbios::Machine::default()
        };
        Self { device, smbios }
    }

    pub fn identity(&self) -> &Identity {
        &self.device.identity
    }

    /// The id under which the controller knows it.
    pub fn id(&self) -> MachineId {
        match self.identity().endorsement() {
            Some(endorsement) => MachineId::of_endorsement(&endorsement.public),
            None => {
                let der = self.identity().device_certificate().der();
                MachineId::of_device_key(&Point::from_certificate_der(der).unwrap())
            }
        }
    }

    pub fn hello(&self) -> Session {
        device::hello(self.identity(), &self.smbios, "0.1.0").unwrap()
    }

    /// First flight.
    pub async fn challenge(&self, site: &Site, session: &Session) -> Heard {
        ask(site, Flight::Hello, session.bytes()).await
    }

    /// Answers a challenge.
    pub fn answer(&self, site: &Site, session: Session, challenge: &Challenge) -> Ready {
        let log = self.device.event_log.as_deref();
        let answering = session
            .challenged(self.identity(), challenge, &pinned(site), 0, log)
            .unwrap();
        Ready { answering }
    }

    /// Both flights up to the evidence.
    pub async fn ready(&self, site: &Site) -> Ready {
        let session = self.hello();
        match self.challenge(site, &session).await {
            Heard::Challenge(challenge) => self.answer(site, session, &challenge),
            other => panic!("{other:?}"),
        }
    }

    /// Second flight.
    pub async fn show(&self, site: &Site, ready: &Ready) -> Heard {
        let body = ready.answering.evidence();
        let (bytes, key) = seal::seal_request(&controller(site), Flight::Evidence, body).unwrap();
        let (status, body) = post(site, paths::ENROL_EVIDENCE, bytes).await;
        if status != StatusCode::OK {
            return Heard::Status(status);
        }
        match key.open(&body).unwrap().kind.unwrap() {
            Kind::Grant(grant) => {
                let opened = ready.answering.granted(self.identity(), &grant);
                Heard::Granted(opened.unwrap())
            }
            other => heard(other),
        }
    }

    /// The whole way.
    pub async fn enrol(&self, site: &Site) -> Heard {
        let ready = self.ready(site).await;
        self.show(site, &ready).await
    }

    /// Takes what was granted into use.
    pub fn take(&mut self, grant: &GrantPayload) {
        self.device.id = grant.device_id.parse().unwrap();
        self.device.granted = Some(grant.device_certificate.clone());
        self.device.token = Vec::new();
    }

    /// Enrols, and speaks the device API from now on.
    pub async fn enrolled(mut self, site: &Site) -> Self {
        let grant = self.enrol(site).await.granted();
        self.take(&grant);
        self
    }
}

/// The key that requests are sealed to.
pub fn controller(site: &Site) -> Point {
    let bytes = hex::decode(&site.bundle.enrolment.controller_key).unwrap();
    Point::from_sec1(&bytes).unwrap()
}

/// The owner as the image says.
pub fn pinned(site: &Site) -> Pinned {
    let owner = &site.bundle.enrolment.owner;
    Pinned {
        epoch: owner.epoch,
        root: owner.root.parse().unwrap(),
        next: owner.next.parse().unwrap(),
        delegation: 0,
    }
}

/// Sends one message, and gives what came of it.
pub async fn ask(site: &Site, flight: Flight, message: &[u8]) -> Heard {
    let (bytes, key) = seal::seal_request(&controller(site), flight, message).unwrap();
    let path = match flight {
        Flight::Hello => paths::ENROL_HELLO,
        Flight::Evidence => paths::ENROL_EVIDENCE,
    };
    let (status, body) = post(site, path, bytes).await;
    if status != StatusCode::OK {
        return Heard::Status(status);
    }
    heard(key.open(&body).unwrap().kind.unwrap())
}

fn heard(kind: Kind) -> Heard {
    match kind {
        Kind::Challenge(challenge) => Heard::Challenge(Box::new(challenge)),
        Kind::Wait(wait) => {
            assert!(!wait.reason.is_empty() && wait.retry_seconds > 0);
            Heard::Wait
        }
        Kind::Refusal(refusal) => Heard::Refused(refusal.reason(), refusal.text),
        Kind::Grant(_) => panic!("a grant that nobody here can open"),
    }
}

/// A manifest for machines by serial number.
pub async fn manifest(site: &Site, name: &str, text: &str) {
    let body = json!({
        "apiVersion": "skerry.io/v1", "kind": "Manifest", "metadata": {"name": name},
        "spec": {"format": "csv", "text": text, "unsigned": true}
    });
    let (status, answer) = site.put(&format!("manifests/{name}"), &body).await;
    assert!(status.is_success(), "{answer}");
}

/// Decides about machines that wait.
pub async fn decide(site: &Site, body: Value) -> (StatusCode, Value) {
    let answer = site
        .ask(Method::POST, "waiting/decisions", Some(&body))
        .await;
    (answer.status(), answer.json().await.unwrap())
}

pub async fn approve(site: &Site, machine: &Machine) {
    let body = json!({"decision": "approve", "machines": [machine.id().words()]});
    let (status, answer) = decide(site, body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
}

/// The waiting room.
pub async fn waiting(site: &Site) -> Vec<WaitingMachine> {
    site.list().await
}

/// An honest machine still gets in, and gets its config.
pub async fn an_honest_machine_still_enrols(site: &Site) {
    let emulator = Emulator::start();
    let serial = format!("HONEST-{}", uuid::Uuid::new_v4().simple());
    manifest(
        site,
        &format!("honest-{}", serial.to_ascii_lowercase()),
        &format!("serial\n{serial}\n"),
    )
    .await;
    let mut machine = Machine::with_tpm(&emulator, &serial);
    machine.smbios.product = "Honest Box".to_owned();
    let mut machine = machine.enrolled(site).await;
    machine.device.attest(site).await;
    assert_eq!(machine.device.config(site, "").await.0, StatusCode::OK);
}
