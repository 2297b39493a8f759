//! An owner with a controller, and a machine that wants to be the owner's.

use std::time::Duration;

use onboarding::enrol::device::{self, Answering};
use onboarding::enrol::endorsement::Makers;
use onboarding::enrol::verifier::{
    self, CookieKey, Delegation, Judged, Known, Proven, challenge, read_evidence, read_hello,
};
use onboarding::enrol::{EnrolError, MachineId};
use onboarding::keys::Identity;
use onboarding::quote::{Check, Conclusion};
use onboarding::smbios::Machine;
use onboarding::tpm::Tpm;
use prost::Message as _;
use protocol::digest::Digest;
use protocol::enrolment::owner::{self, Delegate, Pinned, root_hash};
use protocol::enrolment::transcript::{Secret, Transcript};
use protocol::enrolment::wire::{
    self, DelegationPayload, EvidenceBody, GrantPayload, Level, OwnerChain, SealedGrant,
    SuccessionPayload, TpmProof, evidence_body,
};
use protocol::keys::SoftwareSigner;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use tempfile::TempDir;

use super::Emulator;

pub const NOW_MS: i64 = 1_800_000_000_000;
pub const NOW_S: i64 = NOW_MS / 1000;
pub const LIFETIME: Duration = Duration::from_secs(300);

fn signer() -> SoftwareSigner {
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    SoftwareSigner::from_pkcs8_der(key.as_ref()).unwrap()
}

fn point(signer: &SoftwareSigner) -> [u8; 65] {
    signer.public_point().try_into().unwrap()
}

/// An owner, with roots for two epochs, and the controller that signs for it.
pub struct Owner {
    roots: [SoftwareSigner; 2],
    next: Digest,
    pub delegate: SoftwareSigner,
    pub chain: OwnerChain,
    pub cookie_key: CookieKey,
    pub makers: Makers,
    pub machine_makers: Makers,
    pub now_ms: i64,
    pub warn: Vec<Check>,
}

impl Owner {
    pub fn new() -> Self {
        let mut owner = Self {
            roots: [signer(), signer()],
            next: Digest::of(b"a root in a safe"),
            delegate: signer(),
            chain: OwnerChain::default(),
            cookie_key: CookieKey::random().unwrap(),
            makers: Makers::none(),
            machine_makers: Makers::none(),
            now_ms: NOW_MS,
            warn: vec![],
        };
        owner.chain.delegation = Some(owner.delegation(0, 1, 1));
        owner
    }

    fn delegation(&self, root: usize, epoch: u64, serial: u64) -> wire::OwnerStatement {
        let payload = DelegationPayload {
            epoch,
            serial,
            signing_key: point(&self.delegate).to_vec(),
            not_after: NOW_S + 86_400,
        };
        let root = &self.roots[root];
        owner::delegation(root, &point(root), &payload).unwrap()
    }

    /// Another delegation by the same root.
    pub fn delegate_again(&mut self, serial: u64) {
        self.chain.delegation = Some(self.delegation(0, 1, serial));
    }

    /// The second root takes over.
    pub fn rotate(&mut self) {
        let payload = SuccessionPayload {
            epoch: 2,
            predecessor: root_hash(&point(&self.roots[0])).bytes().to_vec(),
            next: self.next.bytes().to_vec(),
        };
        let root = &self.roots[1];
        let statement = owner::succession(root, &point(root), &payload).unwrap();
        self.chain.successions.push(statement);
        self.chain.delegation = Some(self.delegation(1, 2, 1));
    }

    /// What the owner's image says.
    pub fn pinned(&self) -> Pinned {
        Pinned {
            epoch: 1,
            root: root_hash(&point(&self.roots[0])),
            next: root_hash(&point(&self.roots[1])),
            delegation: 0,
        }
    }

    pub fn challenge(&self, hello: &[u8]) -> Result<wire::Challenge, EnrolError> {
        let delegation = Delegation {
            signer: &self.delegate,
            chain: &self.chain,
        };
        let hello = read_hello(hello)?;
        let made = challenge(&hello, &self.cookie_key, &delegation, self.now_ms, LIFETIME)?;
        Ok(wire::Challenge::decode(made.encode_to_vec().as_slice()).unwrap())
    }

    pub fn judge(&self, evidence: &[u8]) -> Result<Judged, EnrolError> {
        let delegate = Delegate::known(point(&self.delegate), self.pinned());
        let known = Known {
            cookie_key: &self.cookie_key,
            delegate: &delegate,
            now_ms: self.now_ms,
            makers: &self.makers,
            machine_makers: &self.machine_makers,
            warn: &self.warn,
        };
        Ok(verifier::verify(&read_evidence(evidence)?, &known))
    }

    /// Grants, with what a controller would give: here the device's own certificate stands for the controller's.
    pub fn grant(&self, proven: &Proven, identity: &Identity) -> SealedGrant {
        verifier::grant(proven, &payload(identity), &self.delegate).unwrap()
    }
}

pub fn payload(identity: &Identity) -> GrantPayload {
    GrantPayload {
        device_id: "7b1f4f5e-6f0e-4b39-9f0b-0f1d1b0d2c11".to_owned(),
        device_certificate: identity.device_certificate().der().to_vec(),
        level: Level::Bronze.into(),
        integrity_token: b"a token that only this device may read".to_vec(),
        server_time_ms: NOW_MS,
        vault_share: b"half of a key that opens the vault".to_vec(),
    }
}

/// What an honest device says of its machine.
pub fn machine() -> Machine {
    Machine {
        manufacturer: "Acme".to_owned(),
        product: "Box 9".to_owned(),
        serial: "B-77".to_owned(),
        ..Machine::default()
    }
}

/// A machine with its own TPM.
pub struct Device {
    pub identity: Identity,
    pub emulator: Emulator,
    pub dir: TempDir,
}

impl Device {
    pub fn new() -> Self {
        let emulator = Emulator::new();
        let tpm = emulator.connect();
        Self::with(emulator, tpm)
    }

    pub fn with(emulator: Emulator, tpm: Tpm) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::open_or_create(dir.path(), Some(tpm)).unwrap();
        Self {
            identity,
            emulator,
            dir,
        }
    }

    pub fn id(&self) -> MachineId {
        MachineId::of_endorsement(&self.identity.endorsement().unwrap().public)
    }
}

/// Both flights up to the evidence.
pub fn evidence(
    identity: &Identity,
    owner: &Owner,
    log: Option<&[u8]>,
) -> Result<Answering, EnrolError> {
    evidence_of(&machine(), identity, owner, log)
}

/// The same of a machine that says this of itself.
pub fn evidence_of(
    machine: &Machine,
    identity: &Identity,
    owner: &Owner,
    log: Option<&[u8]>,
) -> Result<Answering, EnrolError> {
    let session = device::hello(identity, machine, "1.2.3")?;
    let challenge = owner.challenge(session.bytes())?;
    session.challenged(identity, &challenge, &owner.pinned(), NOW_S - 1000, log)
}

/// Both flights up to the evidence, and the secret that the device's TPM has opened.
pub fn opened(identity: &Identity, owner: &Owner, log: Option<&[u8]>) -> (Answering, Secret) {
    let answering = evidence(identity, owner, log).unwrap();
    let judged = owner.judge(answering.evidence()).unwrap();
    (answering, judged.proven.unwrap().secret)
}

/// All of it: the device has its grant at the end.
pub fn enrol(identity: &Identity, owner: &Owner) -> Result<(Proven, GrantPayload), EnrolError> {
    let answering = evidence(identity, owner, None)?;
    let judged = owner.judge(answering.evidence())?;
    let proven = judged
        .proven
        .unwrap_or_else(|| panic!("{:#?}", judged.report));
    let grant = answering.granted(identity, &owner.grant(&proven, identity))?;
    Ok((proven, grant))
}

/// An honest device still gets through.
pub fn still_works(identity: &Identity, owner: &Owner) {
    let (_, grant) = enrol(identity, owner).unwrap();
    assert_eq!(grant, payload(identity));
}

/// What an attacker with the run of a device's software can do: the TPM opens the secret, so the code can be made over anything.
pub struct Forger {
    pub body: EvidenceBody,
    secret: Secret,
}

impl Forger {
    pub fn new(evidence: &[u8], secret: &Secret) -> Self {
        let message = wire::Evidence::decode(evidence).unwrap();
        Self {
            body: EvidenceBody::decode(message.body.as_slice()).unwrap(),
            secret: secret.clone(),
        }
    }

    pub fn proof(&mut self) -> &mut TpmProof {
        match self.body.proof.as_mut().unwrap() {
            evidence_body::Proof::Tpm(proof) => proof,
            evidence_body::Proof::Software(_) => panic!("a proof without a TPM"),
        }
    }

    /// The evidence with a code that fits.
    pub fn evidence(&self) -> Vec<u8> {
        let Some(evidence_body::Proof::Tpm(proof)) = &self.body.proof else {
            panic!("a proof without a TPM");
        };
        let transcript = Transcript::new(
            &self.body.hello,
            &self.body.challenge,
            &proof.device_public,
            &proof.agreement_public,
        );
        let body = self.body.encode_to_vec();
        let mac = self.secret.mac(&transcript, &body).to_vec();
        wire::Evidence { body, mac }.encode_to_vec()
    }
}

/// Judges evidence that must come to nothing, for these reasons and no others. What a controller gives away goes into a grant, and a grant is
/// sealed with what `Proven` holds; without one there is none. And what was sent tells nobody the challenge's secret.
pub fn refused(owner: &Owner, evidence: &[u8], checks: &[Check], secret: &Secret) {
    let judged = owner.judge(evidence).unwrap();
    assert_eq!(failed(&judged), checks);
    assert!(judged.proven.is_none(), "{:#?}", judged.report);
    assert_ne!(judged.report.conclusion(), Conclusion::Trusted);
    assert!(!holds(evidence, secret.expose()));
}

/// Whether some bytes stand among others.
pub fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

pub fn failed(judged: &Judged) -> Vec<Check> {
    judged
        .report
        .failures()
        .map(|verdict| verdict.check)
        .collect()
}
