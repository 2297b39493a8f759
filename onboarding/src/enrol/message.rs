//! Reading of what a device sends in the two flights, bounded in every part. What can be read is not believed yet.

use std::io::Read as _;

use flate2::read::GzDecoder;
use protocol::cipher::Point;
use protocol::enrolment::transcript::Transcript;
use protocol::enrolment::wire::{
    self, ChallengePayload, EvidenceBody, Statement, TpmProof, evidence_body,
};
use protocol::enrolment::{MAX_REQUEST, NONCE_BYTES, VERSION};

use super::endorsement::{MAX_CERTIFICATE, MAX_CHAIN};
use super::machine::Shown;
use super::{EnrolError, Hello, HelloKeys, TpmHello};
use crate::eventlog::MAX_LOG;
use crate::smbios::{Machine, clean};
use crate::wire::Public;

/// Longest public area, TPMS_ATTEST and signature, in bytes.
const MAX_PUBLIC: usize = 1024;
const MAX_ATTEST: usize = 1024;
const MAX_SIGNATURE: usize = 128;
/// Longest text, in bytes.
const MAX_TEXT: usize = 1024;
/// Values of the PCRs 0 to 15.
const PCRS: usize = 16;

/// The second flight's message, taken apart.
#[derive(Debug, Clone)]
pub struct Evidence {
    pub(super) hello: Hello,
    pub(super) challenge: Vec<u8>,
    pub(super) challenge_signature: Vec<u8>,
    pub(super) payload: ChallengePayload,
    pub(super) nonce: [u8; NONCE_BYTES],
    pub(super) proof: Proof,
    pub(super) transcript: Transcript,
    pub(super) body: Vec<u8>,
    pub(super) mac: Vec<u8>,
}

/// How the device proves itself.
#[derive(Debug, Clone)]
pub(super) enum Proof {
    Tpm(Box<Statements>),
    Software { signature: Vec<u8> },
}

/// What a TPM has signed.
#[derive(Debug, Clone)]
pub(super) struct Statements {
    pub(super) device: Public,
    pub(super) device_certified: Statement,
    pub(super) device_signature: Vec<u8>,
    pub(super) agreement: Public,
    pub(super) agreement_certified: Statement,
    /// What the machine's maker left in the TPM, if it did.
    pub(super) machine: Option<Shown>,
    pub(super) quote: Statement,
    pub(super) pcrs: Vec<(u32, [u8; 32])>,
    /// Unpacked; an error text if it cannot be.
    pub(super) event_log: Option<Result<Vec<u8>, String>>,
}

impl Evidence {
    /// The Hello of the same session, as the device shows it again.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The machine's name.
    #[must_use]
    pub fn machine_id(&self) -> super::MachineId {
        self.hello.machine_id()
    }

    /// The challenge's nonce: serves once.
    #[must_use]
    pub fn nonce(&self) -> &[u8; NONCE_BYTES] {
        &self.nonce
    }

    /// The hash over everything said in this session.
    #[must_use]
    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }
}

fn within(what: &'static str, size: usize, limit: usize) -> Result<(), EnrolError> {
    if size <= limit {
        Ok(())
    } else {
        Err(EnrolError::TooLong { what, size, limit })
    }
}

fn missing(what: &'static str) -> EnrolError {
    EnrolError::Form {
        what,
        why: "it is missing".to_owned(),
    }
}

fn decode<M: prost::Message + Default>(what: &'static str, bytes: &[u8]) -> Result<M, EnrolError> {
    within(what, bytes.len(), MAX_REQUEST)?;
    M::decode(bytes).map_err(|source| EnrolError::Decode { what, source })
}

fn nonce(what: &'static str, bytes: &[u8]) -> Result<[u8; NONCE_BYTES], EnrolError> {
    bytes.try_into().map_err(|_| EnrolError::Form {
        what,
        why: format!("it has {} bytes instead of {NONCE_BYTES}", bytes.len()),
    })
}

fn point(what: &'static str, bytes: &[u8]) -> Result<Point, EnrolError> {
    let bad = |why: &str| EnrolError::Form {
        what,
        why: why.to_owned(),
    };
    // Uncompressed only: one key, one name.
    if bytes.len() != 65 {
        return Err(bad("it is no uncompressed point"));
    }
    Point::from_sec1(bytes).map_err(|_| bad("it is no point on P-256"))
}

fn public(what: &'static str, bytes: &[u8]) -> Result<Public, EnrolError> {
    within(what, bytes.len(), MAX_PUBLIC)?;
    Public::parse(bytes).map_err(|error| EnrolError::Form {
        what,
        why: error.to_string(),
    })
}

fn text(what: &'static str, text: &str) -> Result<String, EnrolError> {
    within(what, text.len(), MAX_TEXT)?;
    Ok(clean(text))
}

/// Reads a Hello.
///
/// # Errors
/// [`EnrolError`]: it is malformed.
pub fn read_hello(bytes: &[u8]) -> Result<Hello, EnrolError> {
    let message: wire::Hello = decode("hello", bytes)?;
    if message.version != VERSION {
        return Err(EnrolError::Version {
            found: message.version,
            known: VERSION,
        });
    }
    let keys = match message.keys.ok_or_else(|| missing("device's keys"))? {
        wire::hello::Keys::Tpm(keys) => HelloKeys::Tpm(Box::new(tpm_keys(keys)?)),
        wire::hello::Keys::Software(keys) => HelloKeys::Software {
            device: point("device key", &keys.device_key)?,
            agreement: point("agreement key", &keys.agreement_key)?,
        },
    };
    let said = message.machine.unwrap_or_default();
    Ok(Hello {
        nonce: nonce("device's nonce", &message.nonce)?,
        keys,
        machine: Machine {
            manufacturer: text("machine's maker", &said.manufacturer)?,
            product: text("machine's product name", &said.product)?,
            serial: text("machine's serial number", &said.serial)?,
            uuid: text("machine's UUID", &said.uuid)?,
            firmware_vendor: text("firmware's maker", &said.firmware_vendor)?,
            firmware_version: text("firmware's version", &said.firmware_version)?,
            ..Machine::default()
        },
        image_version: text("image's version", &message.image_version)?,
        bytes: bytes.to_vec(),
    })
}

fn tpm_keys(keys: wire::TpmKeys) -> Result<TpmHello, EnrolError> {
    certificates(
        "endorsement certificate",
        &keys.endorsement_certificate,
        &keys.endorsement_chain,
    )?;
    within("TPM's maker", keys.tpm_maker.len(), 16)?;
    Ok(TpmHello {
        endorsement: public("endorsement key", &keys.endorsement_public)?,
        endorsement_certificate: Some(keys.endorsement_certificate).filter(|der| !der.is_empty()),
        endorsement_chain: keys.endorsement_chain,
        attestation: public("attestation key", &keys.attestation_public)?,
        tpm_maker: clean(&keys.tpm_maker),
        tpm_firmware: keys.tpm_firmware,
    })
}

/// A certificate, and those that lead from it to its root.
fn certificates(
    what: &'static str,
    certificate: &[u8],
    chain: &[Vec<u8>],
) -> Result<(), EnrolError> {
    within(what, certificate.len(), MAX_CERTIFICATE)?;
    within("number of certificates above it", chain.len(), MAX_CHAIN)?;
    chain
        .iter()
        .try_for_each(|above| within("certificate above it", above.len(), MAX_CERTIFICATE))
}

fn machine(proof: wire::MachineProof) -> Result<Shown, EnrolError> {
    certificates("machine's certificate", &proof.certificate, &proof.chain)?;
    Ok(Shown {
        public: public("initial attestation key", &proof.public)?,
        certificate: proof.certificate,
        chain: proof.chain,
        attestation_certified: statement(
            "attestation key's certification",
            proof.attestation_certified,
        )?,
        machine_certified: statement(
            "initial attestation key's certification",
            proof.machine_certified,
        )?,
    })
}

/// Reads an Evidence.
///
/// # Errors
/// [`EnrolError`]: it is malformed. What can be read and proves nothing is no error here; see [`super::verifier::verify`].
pub fn read_evidence(bytes: &[u8]) -> Result<Evidence, EnrolError> {
    let message: wire::Evidence = decode("evidence", bytes)?;
    within("evidence's code", message.mac.len(), MAX_SIGNATURE)?;
    let body: EvidenceBody = decode("evidence", &message.body)?;
    let hello = read_hello(&body.hello)?;
    within(
        "challenge's signature",
        body.challenge_signature.len(),
        MAX_SIGNATURE,
    )?;
    let payload: ChallengePayload = decode("challenge", &body.challenge)?;
    let proof = body.proof.ok_or_else(|| missing("proof"))?;
    let (transcript, proof) = match (proof, &hello.keys) {
        (evidence_body::Proof::Tpm(proof), HelloKeys::Tpm(_)) => {
            let transcript = Transcript::new(
                &body.hello,
                &body.challenge,
                &proof.device_public,
                &proof.agreement_public,
            );
            (transcript, Proof::Tpm(Box::new(statements(proof)?)))
        }
        (evidence_body::Proof::Software(proof), HelloKeys::Software { device, agreement }) => {
            within(
                "device key's signature",
                proof.device_signature.len(),
                MAX_SIGNATURE,
            )?;
            let transcript = Transcript::new(
                &body.hello,
                &body.challenge,
                &device.to_sec1(),
                &agreement.to_sec1(),
            );
            let signature = proof.device_signature;
            (transcript, Proof::Software { signature })
        }
        _ => {
            return Err(EnrolError::Form {
                what: "proof",
                why: "it is of another kind than the hello's keys".to_owned(),
            });
        }
    };
    Ok(Evidence {
        hello,
        nonce: nonce("challenge's nonce", &payload.nonce)?,
        payload,
        challenge: body.challenge,
        challenge_signature: body.challenge_signature,
        proof,
        transcript,
        body: message.body,
        mac: message.mac,
    })
}

fn statements(proof: TpmProof) -> Result<Statements, EnrolError> {
    within(
        "device key's signature",
        proof.device_signature.len(),
        MAX_SIGNATURE,
    )?;
    let (values, left) = proof.pcr_values.as_chunks::<32>();
    if values.len() != PCRS || !left.is_empty() {
        return Err(EnrolError::Form {
            what: "values of PCRs",
            why: format!(
                "they have {} bytes instead of {}",
                proof.pcr_values.len(),
                PCRS * 32
            ),
        });
    }
    Ok(Statements {
        device: public("device key", &proof.device_public)?,
        device_certified: statement("device key's certification", proof.device_certified)?,
        device_signature: proof.device_signature,
        agreement: public("agreement key", &proof.agreement_public)?,
        agreement_certified: statement("agreement key's certification", proof.agreement_certified)?,
        machine: proof.machine.map(machine).transpose()?,
        quote: statement("quote", proof.quote)?,
        pcrs: (0..).zip(values.iter().copied()).collect(),
        event_log: unpack(&proof.event_log),
    })
}

fn statement(what: &'static str, statement: Option<Statement>) -> Result<Statement, EnrolError> {
    let statement = statement.ok_or_else(|| missing(what))?;
    within(what, statement.attest.len(), MAX_ATTEST)?;
    within(what, statement.signature.len(), MAX_SIGNATURE)?;
    Ok(statement)
}

/// Unpacks an event log, at most [`MAX_LOG`] bytes of it and one more, so that its parser refuses a longer one. A log that does not
/// unpack is a matter for a verdict, since the rest of the message can be judged without it.
fn unpack(packed: &[u8]) -> Option<Result<Vec<u8>, String>> {
    if packed.is_empty() {
        return None;
    }
    let mut log = Vec::new();
    let unpacked = GzDecoder::new(packed)
        .take(MAX_LOG as u64 + 1)
        .read_to_end(&mut log);
    Some(match unpacked {
        Ok(_) => Ok(log),
        Err(error) => Err(format!("it does not unpack: {error}")),
    })
}
