//! The zero-touch door of the test's controller: the verifier of `onboarding` behind sealed bodies, with as much memory as a controller
//! needs, and as much malice as a test wants.

use std::collections::HashMap;
use std::time::Duration;

use onboarding::enrol::endorsement::Makers;
use onboarding::enrol::verifier::{self, CookieKey, Delegation, Judged, Known, Proven};
use onboarding::enrol::{EnrolError, MachineId};
use protocol::cipher::{Point, SoftwareAgreement};
use protocol::enrolment::image::{Enrolment, Home, Way};
use protocol::enrolment::owner::{self, Delegate, Pinned, root_hash};
use protocol::enrolment::seal::{self, AnswerKey, Flight};
use protocol::enrolment::wire::answer::Kind;
use protocol::enrolment::wire::{
    self, Answer, DelegationPayload, GrantPayload, OwnerChain, Reason, Refusal, SuccessionPayload,
    Wait,
};
use protocol::ids::DeviceId;
use protocol::keys::SoftwareSigner;
use uuid::Uuid;

/// A root's or a delegate's key.
pub struct Key {
    pub signer: SoftwareSigner,
    pub point: [u8; 65],
}

impl Key {
    pub fn new() -> Self {
        let der = rcgen::KeyPair::generate().unwrap().serialize_der();
        let signer = SoftwareSigner::from_pkcs8_der(&der).unwrap();
        let point = signer.public_point().try_into().unwrap();
        Self { signer, point }
    }
}

/// An owner with two roots, and the key that it delegates to.
pub struct Owner {
    pub root: Key,
    pub next: Key,
    pub delegate: Key,
    pub pinned: Pinned,
    pub chain: OwnerChain,
}

impl Owner {
    pub fn new() -> Self {
        let (root, next, delegate) = (Key::new(), Key::new(), Key::new());
        let pinned = Pinned {
            epoch: 1,
            root: root_hash(&root.point),
            next: root_hash(&next.point),
            delegation: 0,
        };
        let chain = OwnerChain {
            successions: vec![],
            delegation: Some(delegation(&root, 1, &delegate)),
        };
        Self {
            root,
            next,
            delegate,
            pinned,
            chain,
        }
    }

    /// The second root takes over.
    pub fn succeed(&mut self) {
        let third = Key::new();
        let payload = SuccessionPayload {
            epoch: 2,
            predecessor: root_hash(&self.root.point).bytes().to_vec(),
            next: root_hash(&third.point).bytes().to_vec(),
        };
        let succession = owner::succession(&self.next.signer, &self.next.point, &payload).unwrap();
        self.chain.successions.push(succession);
        self.chain.delegation = Some(delegation(&self.next, 2, &self.delegate));
    }
}

fn delegation(root: &Key, epoch: u64, delegate: &Key) -> wire::OwnerStatement {
    let payload = DelegationPayload {
        epoch,
        serial: 1,
        signing_key: delegate.point.to_vec(),
        // The year 2200.
        not_after: 7_258_118_400,
    };
    owner::delegation(&root.signer, &root.point, &payload).unwrap()
}

/// What becomes of a machine that has proven itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    Grant,
    Wait,
    Deny(&'static str),
}

/// A grant that was made: what the controller has to know of it.
pub struct Made {
    pub device: DeviceId,
    pub certificate: Vec<u8>,
    pub token: Vec<u8>,
}

pub struct Door {
    pub owner: Owner,
    sealing: SoftwareAgreement,
    pub sealing_point: Point,
    cookie_key: CookieKey,
    pub admission: Admission,
    /// The controller's clock.
    pub now_ms: i64,
    pub makers: Makers,
    /// Ids by machine.
    pub devices: HashMap<MachineId, DeviceId>,
    pub hellos: u32,
    pub judged: Vec<Judged>,
    /// What went over in the clear inside sealed bodies, so that a test can look for it outside of them.
    pub inside: Vec<Vec<u8>>,
    /// Nonces that served, with the session and its answer.
    used: HashMap<[u8; 32], ([u8; 32], Answer)>,
}

impl Door {
    pub fn new() -> Self {
        let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
        let mut scalar = [0; 32];
        scalar[..16].copy_from_slice(one.as_bytes());
        scalar[16..].copy_from_slice(two.as_bytes());
        // Below the order of the curve.
        scalar[0] &= 0x7f;
        let sealing = SoftwareAgreement::from_scalar(&scalar).unwrap();
        Self {
            owner: Owner::new(),
            sealing_point: sealing.public_point().unwrap(),
            sealing,
            cookie_key: CookieKey::random().unwrap(),
            admission: Admission::Grant,
            now_ms: jiff::Timestamp::now().as_millisecond(),
            makers: Makers::none(),
            devices: HashMap::new(),
            hellos: 0,
            judged: Vec::new(),
            inside: Vec::new(),
            used: HashMap::new(),
        }
    }

    /// What an image of this door's owner says.
    pub fn enrolment(&self, order: &[Way]) -> Enrolment {
        let home = Home {
            owner: self.owner.pinned,
            controller: self.sealing_point,
        };
        Enrolment::new(order.to_vec(), Some(home)).unwrap()
    }

    /// Answers a flight. `certify` makes the device's certificate.
    pub fn answer(
        &mut self,
        flight: Flight,
        body: &[u8],
        certify: impl FnOnce(&Point) -> Vec<u8>,
    ) -> Option<(Vec<u8>, Option<Made>)> {
        let opened = seal::open_request(&self.sealing, &self.sealing_point, flight, body);
        let (message, key): (Vec<u8>, AnswerKey) = opened.ok()?;
        self.inside.push(message.clone());
        let (answer, made) = match flight {
            Flight::Hello => (self.hello(&message), None),
            Flight::Evidence => self.evidence(&message, certify),
        };
        Some((key.seal(&answer).unwrap(), made))
    }

    fn hello(&mut self, message: &[u8]) -> Answer {
        self.hellos += 1;
        let delegation = Delegation {
            signer: &self.owner.delegate.signer,
            chain: &self.owner.chain,
        };
        let lifetime = Duration::from_secs(120);
        let challenge = verifier::read_hello(message).and_then(|hello| {
            verifier::challenge(&hello, &self.cookie_key, &delegation, self.now_ms, lifetime)
        });
        match challenge {
            Ok(challenge) => answer(Kind::Challenge(challenge)),
            Err(error) => refuse(error.reason(), &error.to_string()),
        }
    }

    fn evidence(
        &mut self,
        message: &[u8],
        certify: impl FnOnce(&Point) -> Vec<u8>,
    ) -> (Answer, Option<Made>) {
        let evidence = match verifier::read_evidence(message) {
            Ok(evidence) => evidence,
            Err(error) => return (refuse(error.reason(), &error.to_string()), None),
        };
        let transcript = *evidence.transcript().bytes();
        if let Some((known, answer)) = self.used.get(evidence.nonce()) {
            let answer = if *known == transcript {
                answer.clone()
            } else {
                refuse(Reason::Challenge, "the nonce was used")
            };
            return (answer, None);
        }
        let delegate = Delegate::known(self.owner.delegate.point, self.owner.pinned);
        let judged = verifier::verify(
            &evidence,
            &Known {
                cookie_key: &self.cookie_key,
                delegate: &delegate,
                now_ms: self.now_ms,
                makers: &self.makers,
                machine_makers: &Makers::none(),
                warn: &[],
            },
        );
        self.judged.push(judged.clone());
        let Some(proven) = &judged.proven else {
            let failures: Vec<String> = judged.report.failures().map(ToString::to_string).collect();
            return (refuse(Reason::Proof, &failures.join("; ")), None);
        };
        let (answer, made) = match self.admission {
            Admission::Wait => (
                answer(Kind::Wait(Wait {
                    retry_seconds: 1,
                    reason: String::new(),
                })),
                None,
            ),
            Admission::Deny(text) => (refuse(Reason::Denied, text), None),
            Admission::Grant => match self.grant(proven, judged.level, certify) {
                Ok((answer, made)) => (answer, Some(made)),
                Err(error) => (refuse(error.reason(), &error.to_string()), None),
            },
        };
        self.used
            .insert(*evidence.nonce(), (transcript, answer.clone()));
        (answer, made)
    }

    fn grant(
        &mut self,
        proven: &Proven,
        level: wire::Level,
        certify: impl FnOnce(&Point) -> Vec<u8>,
    ) -> Result<(Answer, Made), EnrolError> {
        let device = *self
            .devices
            .entry(proven.machine)
            .or_insert_with(DeviceId::random);
        let token = Uuid::new_v4().as_bytes().repeat(2);
        let certificate = certify(&proven.device_point);
        let payload = GrantPayload {
            device_id: device.to_string(),
            device_certificate: certificate.clone(),
            level: level.into(),
            integrity_token: token.clone(),
            server_time_ms: self.now_ms,
            vault_share: vec![],
        };
        let sealed = verifier::grant(proven, &payload, &self.owner.delegate.signer)?;
        let made = Made {
            device,
            certificate,
            token,
        };
        Ok((answer(Kind::Grant(sealed)), made))
    }
}

fn answer(kind: Kind) -> Answer {
    Answer { kind: Some(kind) }
}

fn refuse(reason: Reason, text: &str) -> Answer {
    answer(Kind::Refusal(Refusal {
        reason: reason.into(),
        text: text.to_owned(),
        retry_seconds: 1,
    }))
}
