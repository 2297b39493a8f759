//! The device's side of enrolment.
//!
//! ```text
//! hello() --> Session --challenged()--> Answering --granted()--> GrantPayload
//!               |                          |
//!               '-- refused, lost, --------'-- evidence() again, as long as the challenge is good; then a new Session
//!                   power cut: a new Session
//! ```
//!
//! A session lives in memory only. Its keys were made before it, so a repeated session costs no key generation; nothing that it does
//! lasts in the TPM. What lasts is for the caller to write, once a grant was read: the grant, and the owner's mark ([`super::mark`]).

use prost::Message as _;
use protocol::cipher::Point;
use protocol::enrolment::hpke::{self, Sealed};
use protocol::enrolment::owner::{self, Delegate, Pinned};
use protocol::enrolment::transcript::{Secret, Transcript};
use protocol::enrolment::wire::{
    self, ChallengePayload, EvidenceBody, GrantPayload, Level, MachineProof, SealedGrant,
    SignedGrant, SoftwareProof, Statement, TpmProof, challenge_payload, evidence_body,
};
use protocol::enrolment::{NONCE_BYTES, VERSION};
use protocol::keys::{Signer as _, VerifyingKey, sha256};

use super::{EnrolError, SECRET_CONTEXT, random};
use crate::attest::device::{gzip, make_evidence};
use crate::keys::{EndorsementMaker, Identity, MachineStatement};
use crate::smbios::Machine;
use crate::tpm::{Attested, PcrSelection};

/// Longest packed event log that is sent; what is longer does not fit into a request beside the rest.
const MAX_PACKED_LOG: usize = 448 << 10;

/// A Hello that was made, and waits for its challenge.
#[derive(Debug)]
pub struct Session {
    bytes: Vec<u8>,
}

/// Evidence that was made, and waits for its grant.
#[derive(Debug)]
pub struct Answering {
    evidence: Vec<u8>,
    delegate: Delegate,
    server_time_ms: i64,
    secret: Secret,
    transcript: Transcript,
}

/// Makes the first flight's message.
///
/// # Errors
/// [`EnrolError::Tpm`], [`EnrolError::Random`].
pub fn hello(
    identity: &Identity,
    machine: &Machine,
    image_version: &str,
) -> Result<Session, EnrolError> {
    let nonce: [u8; NONCE_BYTES] = random()?;
    let message = wire::Hello {
        version: VERSION,
        nonce: nonce.to_vec(),
        keys: Some(keys(identity)?),
        machine: Some(wire::Machine {
            manufacturer: machine.manufacturer.clone(),
            product: machine.product.clone(),
            serial: machine.serial.clone(),
            uuid: machine.uuid.clone(),
            firmware_vendor: machine.firmware_vendor.clone(),
            firmware_version: machine.firmware_version.clone(),
        }),
        image_version: image_version.to_owned(),
    };
    Ok(Session {
        bytes: message.encode_to_vec(),
    })
}

fn keys(identity: &Identity) -> Result<wire::hello::Keys, EnrolError> {
    let (Some(tpm), Some(endorsement), Some([_, attestation, _])) = (
        identity.tpm(),
        identity.endorsement(),
        identity.public_areas(),
    ) else {
        let [device, agreement] = points(identity)?;
        return Ok(wire::hello::Keys::Software(wire::SoftwareKeys {
            device_key: device.to_sec1().to_vec(),
            agreement_key: agreement.to_sec1().to_vec(),
        }));
    };
    // A certificate that the device made itself says nothing to anybody.
    let certificate = match (endorsement.maker, &endorsement.certificate) {
        (EndorsementMaker::Manufacturer, Some(certificate)) => certificate.der().to_vec(),
        _ => vec![],
    };
    let chain = match certificate.is_empty() {
        true => vec![],
        false => identity.endorsement_chain()?,
    };
    let properties = tpm.properties()?;
    Ok(wire::hello::Keys::Tpm(wire::TpmKeys {
        endorsement_public: endorsement.public.to_bytes(),
        endorsement_certificate: certificate,
        endorsement_chain: chain,
        attestation_public: attestation.to_vec(),
        tpm_maker: properties.manufacturer,
        tpm_firmware: properties.firmware_version,
    }))
}

fn points(identity: &Identity) -> Result<[Point; 2], EnrolError> {
    let bad = || EnrolError::Form {
        what: "device's own certificates",
        why: "their keys are no points on P-256".to_owned(),
    };
    let [device, agreement] = identity.points().ok_or_else(bad)?;
    let point = |p: crate::wire::EccPoint| Point::from_coordinates(p.x, p.y).map_err(|_| bad());
    Ok([point(device)?, point(agreement)?])
}

impl Session {
    /// A session whose Hello was made before: it may be sent again as long as the process lives.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// The Hello, to be sealed and sent.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Answers the challenge. `pinned` is the owner as far as the device knows ([`super::mark::effective`]), `floor` the earliest
    /// time that it can be, in seconds since 1970.
    ///
    /// # Errors
    /// [`EnrolError`]; [`EnrolError::Owner`] if the controller does not speak for this device's owner, before anything else is done.
    pub fn challenged(
        self,
        identity: &Identity,
        challenge: &wire::Challenge,
        pinned: &Pinned,
        floor: i64,
        event_log: Option<&[u8]>,
    ) -> Result<Answering, EnrolError> {
        let chain = challenge.owner.clone().unwrap_or_default();
        let delegate = owner::verify(&chain, pinned, floor)?;
        delegate.check_challenge(&challenge.payload, &challenge.signature)?;
        let payload = ChallengePayload::decode(challenge.payload.as_slice()).map_err(|source| {
            EnrolError::Decode {
                what: "challenge",
                source,
            }
        })?;
        if payload.hello_hash != sha256(&self.bytes) {
            return Err(EnrolError::OtherHello);
        }
        if payload.pcrs != PcrSelection::BOOT.0 {
            return Err(EnrolError::Asks("other PCRs than 0 to 15"));
        }
        let secret = open_secret(identity, &payload)?;
        let (transcript, proof) = match identity.public_areas() {
            Some(publics) => with_tpm(
                identity,
                publics,
                &self.bytes,
                &challenge.payload,
                event_log,
            )?,
            None => without(identity, &self.bytes, &challenge.payload)?,
        };
        let body = EvidenceBody {
            hello: self.bytes,
            challenge: challenge.payload.clone(),
            challenge_signature: challenge.signature.clone(),
            proof: Some(proof),
        }
        .encode_to_vec();
        let mac = secret.mac(&transcript, &body).to_vec();
        Ok(Answering {
            evidence: wire::Evidence { body, mac }.encode_to_vec(),
            delegate,
            server_time_ms: payload.server_time_ms,
            secret,
            transcript,
        })
    }
}

/// The challenge's secret, which only this device can open.
fn open_secret(identity: &Identity, payload: &ChallengePayload) -> Result<Secret, EnrolError> {
    let opened = match (&payload.secret, identity.tpm()) {
        (Some(challenge_payload::Secret::Credential(credential)), Some(_)) => identity
            .activate_credential(&credential.blob, &credential.seed)?
            .unwrap_or_default(),
        (Some(challenge_payload::Secret::Wrapped(wrapped)), None) => {
            let sealed = Sealed::from_parts(&wrapped.encapsulated, &wrapped.ciphertext)
                .ok_or_else(|| EnrolError::Secret("its parts have other lengths".to_owned()))?;
            let [_, agreement] = points(identity)?;
            hpke::open(
                identity,
                &agreement,
                SECRET_CONTEXT,
                None,
                &payload.hello_hash,
                &sealed,
            )
            .map_err(|error| EnrolError::Secret(error.to_string()))?
            .0
        }
        (None, _) => return Err(EnrolError::Secret("there is none".to_owned())),
        (Some(_), _) => {
            return Err(EnrolError::Secret(
                "it is wrapped for a device of another kind (with a TPM, or without)".to_owned(),
            ));
        }
    };
    Secret::from_slice(&opened)
        .ok_or_else(|| EnrolError::Secret(format!("it has {} bytes", opened.len())))
}

fn with_tpm(
    identity: &Identity,
    [device, _, agreement]: [&[u8]; 3],
    hello: &[u8],
    challenge: &[u8],
    event_log: Option<&[u8]>,
) -> Result<(Transcript, evidence_body::Proof), EnrolError> {
    let transcript = Transcript::new(hello, challenge, device, agreement);
    let none = || EnrolError::Secret("the TPM is gone".to_owned());
    let [device_certified, agreement_certified] =
        identity.certify(transcript.bytes())?.ok_or_else(none)?;
    let machine = identity.vouch(transcript.bytes())?.map(machine_proof);
    let quoted = make_evidence(identity, transcript.bytes(), event_log)?.ok_or_else(none)?;
    let mut event_log = quoted.event_log.map(|log| gzip(&log)).unwrap_or_default();
    // What the machine's maker left may take the place that was the log's.
    let taken = machine.as_ref().map_or(0, prost::Message::encoded_len);
    if event_log.len().saturating_add(taken) > MAX_PACKED_LOG {
        tracing::warn!(
            "the packed event log of {} bytes is too long for a request; sent without",
            event_log.len()
        );
        event_log = vec![];
    }
    let proof = TpmProof {
        device_public: device.to_vec(),
        device_certified: Some(statement(device_certified)),
        agreement_public: agreement.to_vec(),
        agreement_certified: Some(statement(agreement_certified)),
        quote: Some(Statement {
            attest: quoted.attest,
            signature: quoted.signature,
        }),
        pcr_values: quoted.pcrs.iter().flat_map(|(_, value)| *value).collect(),
        event_log,
        device_signature: identity.sign_p256_sha256(transcript.bytes())?.to_vec(),
        machine,
    };
    Ok((transcript, evidence_body::Proof::Tpm(proof)))
}

fn machine_proof(said: MachineStatement) -> MachineProof {
    MachineProof {
        public: said.public,
        certificate: said.certificate,
        chain: said.chain,
        attestation_certified: Some(statement(said.attestation_certified)),
        machine_certified: Some(statement(said.machine_certified)),
    }
}

fn statement(attested: Attested) -> Statement {
    Statement {
        signature: attested.signature.to_der(),
        attest: attested.attest,
    }
}

fn without(
    identity: &Identity,
    hello: &[u8],
    challenge: &[u8],
) -> Result<(Transcript, evidence_body::Proof), EnrolError> {
    let [device, agreement] = points(identity)?;
    let transcript = Transcript::new(hello, challenge, &device.to_sec1(), &agreement.to_sec1());
    let proof = SoftwareProof {
        device_signature: identity.sign_p256_sha256(transcript.bytes())?.to_vec(),
    };
    Ok((transcript, evidence_body::Proof::Software(proof)))
}

impl Answering {
    /// The Evidence, to be sealed and sent; the same bytes again if the answer was lost.
    #[must_use]
    pub fn evidence(&self) -> &[u8] {
        &self.evidence
    }

    /// The owner as it is known now; to be kept once a grant was read.
    #[must_use]
    pub fn pinned(&self) -> Pinned {
        self.delegate.pinned
    }

    /// The controller's clock when it made the challenge, signed; milliseconds since 1970.
    #[must_use]
    pub fn server_time_ms(&self) -> i64 {
        self.server_time_ms
    }

    /// Opens the grant and checks it: it is for this session and this device, signed by the owner's delegate, and whole.
    ///
    /// # Errors
    /// [`EnrolError::Hpke`], [`EnrolError::Owner`], [`EnrolError::Grant`].
    pub fn granted(
        &self,
        identity: &Identity,
        grant: &SealedGrant,
    ) -> Result<GrantPayload, EnrolError> {
        let sealed = Sealed::from_parts(&grant.encapsulated, &grant.ciphertext)
            .ok_or_else(|| EnrolError::Grant("its parts have other lengths".to_owned()))?;
        let [device, agreement] = points(identity)?;
        let clear = self
            .secret
            .open_grant(&self.transcript, identity, &agreement, &sealed)?;
        let decode = |source| EnrolError::Decode {
            what: "grant",
            source,
        };
        let signed = SignedGrant::decode(clear.as_slice()).map_err(decode)?;
        self.delegate
            .check_grant(&self.transcript, &signed.payload, &signed.signature)?;
        let payload = GrantPayload::decode(signed.payload.as_slice()).map_err(decode)?;
        check_grant(&payload, &device)?;
        Ok(payload)
    }
}

/// What a device must be able to rely on in a grant.
fn check_grant(payload: &GrantPayload, device: &Point) -> Result<(), EnrolError> {
    let bad = |what: String| Err(EnrolError::Grant(what));
    if uuid::Uuid::parse_str(&payload.device_id).is_err() {
        return bad(format!("{:?} is no device id", payload.device_id));
    }
    match VerifyingKey::from_certificate_der(&payload.device_certificate) {
        Ok(VerifyingKey::P256(point)) if point == device.to_sec1() => {}
        Ok(_) => return bad("its certificate is for another key than the device's".to_owned()),
        Err(error) => return bad(format!("its certificate: {error}")),
    }
    if payload.level() == Level::Unspecified {
        return bad(format!("level {} is not known", payload.level));
    }
    Ok(())
}
