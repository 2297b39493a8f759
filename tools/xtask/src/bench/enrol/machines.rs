//! Machines that enrol, each with a TPM emulator of its own: what the devices' side of both flights is made of.
//!
//! ```text
//! Machine --hello()--> Asking --challenged()--> Proving --granted()--> device id
//! ```
//!
//! Sealing and opening happen here, apart from sending, so that who measures the controller can leave them out.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use onboarding::enrol::MachineId;
use onboarding::enrol::device::{self, Answering, Session};
use onboarding::eventlog::{Algorithm, EventLog};
use onboarding::keys::Identity;
use onboarding::smbios;
use onboarding::tpm::Tpm;
use protocol::cipher::Point;
use protocol::enrolment::owner::Pinned;
use protocol::enrolment::seal::{self, AnswerKey, Flight};
use protocol::enrolment::wire::Answer;
use protocol::enrolment::wire::answer::Kind;
use testbed::Emulator;

/// Whom the machines belong to, as an image would say.
#[derive(Clone, Copy)]
pub struct Home {
    pub controller: Point,
    pub owner: Pinned,
}

/// A machine that was never enrolled.
pub struct Machine {
    pub identity: Identity,
    smbios: smbios::Machine,
    // Last, so that the TPM outlives the connection to it.
    _tpm: Emulator,
}

/// A request that is ready to be sent.
pub struct Request {
    pub sealed: Vec<u8>,
    key: AnswerKey,
}

/// A machine whose Hello is on its way.
pub struct Asking {
    pub machine: Machine,
    pub request: Request,
    session: Session,
}

/// A machine whose evidence is on its way.
pub struct Proving {
    pub machine: Machine,
    pub request: Request,
    answering: Answering,
}

impl Machine {
    /// Puts a machine together in `dir`: a new TPM, and keys in it.
    pub fn make(dir: &Path, serial: &str) -> Result<Machine> {
        let tpm = Emulator::start(&dir.join("tpm"))?;
        let connection = Tpm::connect_unix(&tpm.socket()).context("connecting to the TPM")?;
        let keys = dir.join("keys");
        std::fs::create_dir_all(&keys).with_context(|| format!("making {}", keys.display()))?;
        let identity = Identity::open_or_create(&keys, Some(connection))
            .with_context(|| format!("making the keys of {serial}"))?;
        let smbios = smbios::Machine {
            manufacturer: "Crowd".to_owned(),
            product: "Edge Box 3".to_owned(),
            serial: serial.to_owned(),
            firmware_version: "1.14".to_owned(),
            ..smbios::Machine::default()
        };
        Ok(Machine {
            identity,
            smbios,
            _tpm: tpm,
        })
    }

    pub fn id(&self) -> Result<MachineId> {
        let endorsement = self.identity.endorsement();
        let endorsement = endorsement.context("a machine without an endorsement key")?;
        Ok(MachineId::of_endorsement(&endorsement.public))
    }

    /// Measures into the TPM what a boot with this log would have.
    pub fn boot(&self, log: &EventLog) -> Result<()> {
        let tpm = self.identity.tpm().context("a machine without a TPM")?;
        for event in &log.events {
            if let Some(digest) = event.digest(Algorithm::Sha256) {
                tpm.pcr_extend(event.pcr, digest.try_into()?)?;
            }
        }
        Ok(())
    }

    /// First flight.
    pub fn hello(self, home: &Home) -> Result<Asking> {
        let session = device::hello(&self.identity, &self.smbios, env!("CARGO_PKG_VERSION"))?;
        let request = Request::seal(home, Flight::Hello, session.bytes())?;
        Ok(Asking {
            machine: self,
            request,
            session,
        })
    }
}

impl Request {
    fn seal(home: &Home, flight: Flight, message: &[u8]) -> Result<Request> {
        let (sealed, key) = seal::seal_request(&home.controller, flight, message)?;
        Ok(Request { sealed, key })
    }

    fn open(&self, answer: &[u8]) -> Result<Kind> {
        let Answer { kind } = self.key.open(answer)?;
        kind.context("an answer of no kind")
    }
}

impl Asking {
    /// Second flight, over the controller's answer to the first.
    pub fn challenged(self, home: &Home, answer: &[u8], event_log: &[u8]) -> Result<Proving> {
        let challenge = match self.request.open(answer)? {
            Kind::Challenge(challenge) => challenge,
            other => bail!("no challenge: {other:?}"),
        };
        let answering = self.session.challenged(
            &self.machine.identity,
            &challenge,
            &home.owner,
            0,
            Some(event_log),
        )?;
        let request = Request::seal(home, Flight::Evidence, answering.evidence())?;
        Ok(Proving {
            machine: self.machine,
            request,
            answering,
        })
    }
}

impl Proving {
    /// Opens the grant; gives the device's id.
    pub fn granted(&self, answer: &[u8]) -> Result<String> {
        let grant = match self.request.open(answer)? {
            Kind::Grant(grant) => self.answering.granted(&self.machine.identity, &grant)?,
            other => bail!("no grant: {other:?}"),
        };
        ensure!(!grant.device_id.is_empty(), "a grant without an id");
        Ok(grant.device_id)
    }
}
