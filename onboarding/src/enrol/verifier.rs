//! The controller's side of enrolment. Pure: no clock, no store.
//!
//! ```text
//! read_hello --> challenge: secret S --MakeCredential--> for one TPM and one attestation key
//!                             '--sealed under the cookie key, bound to the challenge--> comes back with the evidence
//! read_evidence --> verify --> verdicts --all that is needed passed--> Proven --> grant, sealed to S and the agreement key
//! ```
//!
//! Nothing is kept between the flights: what [`challenge`] must remember goes along. What needs a memory (that a nonce serves once, that
//! no other device has this TPM, what the manifest says of serial numbers, that counters do not go back) is for the caller, who adds
//! verdicts of his own to the report, after [`Judged::proven`] is there and before anything is granted.

use std::time::Duration;

use prost::Message as _;
use protocol::cipher::Point;
use protocol::enrolment::NONCE_BYTES;
use protocol::enrolment::hpke;
use protocol::enrolment::owner::{self, Delegate};
use protocol::enrolment::transcript::{Secret, Transcript};
use protocol::enrolment::wire::{
    self, ChallengePayload, GrantPayload, Level, OwnerChain, SealedGrant, SignedGrant,
    WrappedSecret, challenge_payload,
};
use protocol::keys::{Signer, VerifyingKey, sha256};

use super::certified::{Certification, certified, point};
pub use super::cookie::CookieKey;
use super::endorsement::{Endorsed, Makers, form};
use super::machine;
pub use super::machine::MachineStanding;
pub use super::message::{Evidence, read_evidence, read_hello};
use super::message::{Proof, Statements};
use super::{
    EnrolError, Hello, HelloKeys, MachineId, SECRET_CONTEXT, TpmHello, credential, random,
};
use crate::quote::{self, Bench, BootFacts, Check, Outcome, Question, Report};
use crate::tpm::PcrSelection;
use crate::tpm::template::{KeyUse, matches};
use crate::wire::{EccPoint, Public};

/// How far the controller's clock may have gone back since it made a challenge, in milliseconds.
const CLOCK_STEP_MS: i64 = 60_000;

/// In whose name challenges are made.
pub struct Delegation<'a> {
    /// The owner's delegate.
    pub signer: &'a dyn Signer,
    /// Why a device should believe it.
    pub chain: &'a OwnerChain,
}

/// Makes a challenge. Nothing of it needs to be kept.
///
/// # Errors
/// [`EnrolError::Credential`] if nothing can be wrapped for the device's endorsement key; [`EnrolError::Sign`],
/// [`EnrolError::Random`].
pub fn challenge(
    hello: &Hello,
    key: &CookieKey,
    delegation: &Delegation<'_>,
    now_ms: i64,
    lifetime: Duration,
) -> Result<wire::Challenge, EnrolError> {
    let secret: [u8; NONCE_BYTES] = random()?;
    let hello_hash = sha256(&hello.bytes);
    let wrapped = match &hello.keys {
        HelloKeys::Tpm(tpm) => {
            let made = credential::make(&tpm.endorsement, &tpm.attestation.name(), &secret)?;
            challenge_payload::Secret::Credential(wire::Credential {
                blob: made.blob,
                seed: made.seed,
            })
        }
        HelloKeys::Software { agreement, .. } => {
            let (sealed, _) = hpke::seal(agreement, SECRET_CONTEXT, None, &hello_hash, &secret)?;
            challenge_payload::Secret::Wrapped(WrappedSecret {
                encapsulated: sealed.encapsulated.to_vec(),
                ciphertext: sealed.ciphertext,
            })
        }
    };
    let nonce: [u8; NONCE_BYTES] = random()?;
    let mut payload = ChallengePayload {
        hello_hash: hello_hash.to_vec(),
        secret: Some(wrapped),
        nonce: nonce.to_vec(),
        lifetime_seconds: u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX),
        pcrs: PcrSelection::BOOT.0,
        server_time_ms: now_ms,
        cookie: vec![],
    };
    payload.cookie = key.seal(&payload, &Secret::new(secret))?;
    let payload = payload.encode_to_vec();
    Ok(wire::Challenge {
        signature: owner::sign_challenge(delegation.signer, &payload)?.to_vec(),
        payload,
        owner: Some(delegation.chain.clone()),
    })
}

/// What the verifier knows beforehand.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// The key that the challenge's cookie was made with.
    pub cookie_key: &'a CookieKey,
    /// This controller as the owner's delegate.
    pub delegate: &'a Delegate,
    /// Milliseconds since 1970.
    pub now_ms: i64,
    /// Makers of TPMs that the owner trusts.
    pub makers: &'a Makers,
    /// Makers of machines that the owner trusts.
    pub machine_makers: &'a Makers,
    /// What the policy only warns of. Of the checks here that counts for the event log's two: their failure then keeps no machine from
    /// being proven.
    pub warn: &'a [Check],
}

/// What came of the second flight.
#[derive(Debug, Clone)]
pub struct Judged {
    /// A verdict for each check.
    pub report: Report,
    /// What is known now, if everything that enrolment needs has passed. Before that nothing is to be written down.
    pub proven: Option<Proven>,
    /// How far the machine is known: bronze at most without a certificate of a trusted maker of TPMs, silver at most without one of a
    /// trusted maker of machines.
    pub level: Level,
}

/// A machine that has proven itself.
#[derive(Debug, Clone)]
pub struct Proven {
    /// Its name.
    pub machine: MachineId,
    /// What it said first.
    pub hello: Hello,
    /// The session.
    pub transcript: Transcript,
    /// The session's secret.
    pub secret: Secret,
    /// The challenge's nonce.
    pub nonce: [u8; NONCE_BYTES],
    /// The device key.
    pub device_point: Point,
    /// The key for what is sealed to the device.
    pub agreement_point: Point,
    /// The attestation key; none without a TPM.
    pub attestation_point: Option<Point>,
    /// Clock and counters of the TPM; none without one.
    pub boot: Option<BootFacts>,
    /// Values of the PCRs 0 to 15, ascending; none without a TPM.
    pub pcrs: Vec<(u32, [u8; 32])>,
    /// The firmware's event log, if it was sent and unpacks.
    pub event_log: Option<Vec<u8>>,
    /// The trusted authority to which the endorsement certificate leads, if it does.
    pub maker: Option<String>,
    /// What is known of the machine around the TPM.
    pub standing: MachineStanding,
}

/// What must have passed of a machine with a TPM.
const NEEDED_OF_TPM: [Check; 15] = [
    Check::Hello,
    Check::Challenge,
    Check::EndorsementKey,
    Check::AttestationKeyForm,
    Check::Credential,
    Check::DeviceKey,
    Check::AgreementKey,
    Check::Evidence,
    Check::AttestationKey,
    Check::Structure,
    Check::Kind,
    Check::Signature,
    Check::Transcript,
    Check::PcrSelection,
    Check::PcrDigest,
];
/// And of one without.
const NEEDED_OF_SOFTWARE: [Check; 4] = [
    Check::Hello,
    Check::Challenge,
    Check::Credential,
    Check::DeviceKey,
];
/// What a policy may wave through.
const MAY_WARN: [Check; 2] = [Check::EventLog, Check::EventLogReplay];
/// What is the caller's to decide, with a person's help: the keys are proven all the same.
const FOR_A_PERSON: [Check; 1] = [Check::MachineSerial];

/// Checks an Evidence.
#[must_use]
pub fn verify(evidence: &Evidence, known: &Known<'_>) -> Judged {
    let mut bench = Bench::default();
    hello(&mut bench, evidence);
    let secret = challenged(&mut bench, evidence, known);
    match (&evidence.hello.keys, &evidence.proof) {
        (HelloKeys::Tpm(tpm), Proof::Tpm(statements)) => {
            let maker = endorsed(&mut bench, tpm, known.makers);
            let attestation = attestation_key(&mut bench, &tpm.attestation);
            credential_opened(&mut bench, evidence, secret.as_ref());
            let transcript = &evidence.transcript;
            let device = certified(
                &mut bench,
                &Certification {
                    check: Check::DeviceKey,
                    key: KeyUse::Sign,
                    public: &statements.device,
                    statement: &statements.device_certified,
                    own: Some(&statements.device_signature),
                },
                attestation.as_ref(),
                transcript,
            );
            let agreement = certified(
                &mut bench,
                &Certification {
                    check: Check::AgreementKey,
                    key: KeyUse::Agree,
                    public: &statements.agreement,
                    statement: &statements.agreement_certified,
                    own: None,
                },
                attestation.as_ref(),
                transcript,
            );
            let standing = machine::judge(
                &mut bench,
                &machine::Case {
                    shown: statements.machine.as_ref(),
                    attestation: &tpm.attestation,
                    serial: &evidence.hello.machine.serial,
                    transcript,
                    genuine: maker.is_some(),
                },
                known.machine_makers,
            );
            let (boot, event_log) = quoted(&mut bench, evidence, statements);
            let report = Report {
                verdicts: bench.verdicts,
                boot,
            };
            let level = match (&maker, &standing) {
                (Some(_), MachineStanding::Known { .. }) => Level::Gold,
                (Some(_), _) => Level::Silver,
                (None, _) => Level::Bronze,
            };
            let proven = match (device, agreement, attestation, secret) {
                (
                    Some(device_point),
                    Some(agreement_point),
                    Some(attestation_point),
                    Some(secret),
                ) if enough(&report, &NEEDED_OF_TPM, known.warn) => Some(Proven {
                    machine: evidence.hello.machine_id(),
                    hello: evidence.hello.clone(),
                    transcript: *transcript,
                    secret,
                    nonce: evidence.nonce,
                    device_point,
                    agreement_point,
                    attestation_point: Some(attestation_point),
                    boot,
                    pcrs: statements.pcrs.clone(),
                    event_log,
                    maker,
                    standing,
                }),
                _ => None,
            };
            Judged {
                report,
                proven,
                level,
            }
        }
        (HelloKeys::Software { device, agreement }, Proof::Software { signature }) => {
            bench.skip(
                &[
                    Check::EndorsementKey,
                    Check::EndorsementCertificate,
                    Check::AttestationKeyForm,
                    Check::AgreementKey,
                    Check::MachineCertificate,
                    Check::MachineKey,
                    Check::MachineSerial,
                    Check::Evidence,
                ],
                "the device has no TPM",
            );
            credential_opened(&mut bench, evidence, secret.as_ref());
            let key = VerifyingKey::P256(device.to_sec1());
            if key.verify(evidence.transcript.bytes(), signature) {
                bench.say(Check::DeviceKey, Outcome::Pass);
            } else {
                bench.fail(
                    Check::DeviceKey,
                    "a signature of the device key over this session",
                    "one by another key, or over something else",
                );
            }
            let report = Report {
                verdicts: bench.verdicts,
                boot: None,
            };
            let proven = secret
                .filter(|_| enough(&report, &NEEDED_OF_SOFTWARE, known.warn))
                .map(|secret| Proven {
                    machine: evidence.hello.machine_id(),
                    hello: evidence.hello.clone(),
                    transcript: evidence.transcript,
                    secret,
                    nonce: evidence.nonce,
                    device_point: *device,
                    agreement_point: *agreement,
                    attestation_point: None,
                    boot: None,
                    pcrs: vec![],
                    event_log: None,
                    maker: None,
                    standing: MachineStanding::Silent,
                });
            Judged {
                report,
                proven,
                level: Level::None,
            }
        }
        // Reading an Evidence has refused this already.
        _ => {
            bench.fail(Check::Hello, "a proof of the hello's kind", "another kind");
            Judged {
                report: Report {
                    verdicts: bench.verdicts,
                    boot: None,
                },
                proven: None,
                level: Level::None,
            }
        }
    }
}

/// Whether everything that is needed has passed, and nothing failed that the policy does not wave through.
fn enough(report: &Report, needed: &[Check], warn: &[Check]) -> bool {
    let borne = |check: Check| {
        FOR_A_PERSON.contains(&check) || (MAY_WARN.contains(&check) && warn.contains(&check))
    };
    needed.iter().all(|check| report.passed(*check))
        && report.failures().all(|verdict| borne(verdict.check))
}

fn hello(bench: &mut Bench, evidence: &Evidence) {
    bench.compare(
        Check::Hello,
        &hex::encode(&evidence.payload.hello_hash),
        &hex::encode(sha256(&evidence.hello.bytes)),
    );
}

/// The challenge's secret, if the challenge is ours and in time.
fn challenged(bench: &mut Bench, evidence: &Evidence, known: &Known<'_>) -> Option<Secret> {
    let payload = &evidence.payload;
    let signed = known
        .delegate
        .check_challenge(&evidence.challenge, &evidence.challenge_signature);
    let secret = known.cookie_key.open(payload);
    let (Ok(()), Some(secret)) = (signed, secret) else {
        bench.fail(
            Check::Challenge,
            "a challenge that this controller made, with its present keys",
            "another one",
        );
        return None;
    };
    let lifetime = i64::from(payload.lifetime_seconds).saturating_mul(1000);
    let age = known.now_ms.saturating_sub(payload.server_time_ms);
    if !(-CLOCK_STEP_MS..=lifetime).contains(&age) {
        bench.fail(
            Check::Challenge,
            format!("a challenge of the last {lifetime} ms"),
            format!("one of {age} ms ago"),
        );
        return None;
    }
    bench.say(Check::Challenge, Outcome::Pass);
    Some(secret)
}

/// The maker that vouches for the endorsement key, if the owner trusts it.
fn endorsed(bench: &mut Bench, tpm: &TpmHello, makers: &Makers) -> Option<String> {
    if form(&tpm.endorsement).is_some() {
        bench.say(Check::EndorsementKey, Outcome::Pass);
    } else {
        bench.fail(
            Check::EndorsementKey,
            "a key after the TCG's template L-1 (RSA-2048) or L-2 (P-256)",
            format!("attributes {:#010x}", tpm.endorsement.attributes.0),
        );
    }
    let check = Check::EndorsementCertificate;
    let Some(certificate) = &tpm.endorsement_certificate else {
        bench.skip(
            &[check],
            "the TPM holds no certificate for its endorsement key",
        );
        return None;
    };
    match makers.judge(&tpm.endorsement, certificate, &tpm.endorsement_chain) {
        Endorsed::Trusted { maker } => {
            bench.say(check, Outcome::Pass);
            Some(maker)
        }
        Endorsed::Untrusted { issuer } => {
            bench.skip(
                &[check],
                &format!("its issuer is not among the makers that the owner trusts: {issuer}"),
            );
            None
        }
        Endorsed::Refuted(what) => {
            bench.fail(
                check,
                "a certificate for the endorsement key, signed by who it says",
                what,
            );
            None
        }
    }
}

fn attestation_key(bench: &mut Bench, public: &Public) -> Option<Point> {
    let key = public.p256_point().and_then(point);
    if matches(public, KeyUse::Attest) && key.is_some() {
        bench.say(Check::AttestationKeyForm, Outcome::Pass);
        return key;
    }
    bench.fail(
        Check::AttestationKeyForm,
        "a restricted P-256 signing key, made in the TPM and fixed to it",
        format!("attributes {:#010x}", public.attributes.0),
    );
    None
}

fn credential_opened(bench: &mut Bench, evidence: &Evidence, secret: Option<&Secret>) {
    let Some(secret) = secret else {
        bench.skip(
            &[Check::Credential],
            "the secret of a challenge that does not count is not known",
        );
        return;
    };
    if secret.mac_fits(&evidence.transcript, &evidence.body, &evidence.mac) {
        bench.say(Check::Credential, Outcome::Pass);
    } else {
        bench.fail(
            Check::Credential,
            "a code made with the challenge's secret",
            "another code: the secret was not opened, or the message was changed",
        );
    }
}

/// The checks of every quote.
fn quoted(
    bench: &mut Bench,
    evidence: &Evidence,
    statements: &Statements,
) -> (Option<BootFacts>, Option<Vec<u8>>) {
    let (event_log, log_fault) = match &statements.event_log {
        None => (None, None),
        Some(Ok(log)) => (Some(log.clone()), None),
        Some(Err(fault)) => (None, Some(fault.as_str())),
    };
    let shown = quote::Evidence {
        attest: statements.quote.attest.clone(),
        signature: statements.quote.signature.clone(),
        pcrs: statements.pcrs.clone(),
        event_log,
    };
    let key = evidence
        .hello
        .tpm()
        .and_then(|tpm| tpm.attestation.p256_point())
        .map(EccPoint::to_sec1)
        .ok_or_else(|| "none".to_owned());
    let boot = bench.quote(
        &shown,
        &Question {
            key,
            nonce: Some(evidence.transcript.bytes()),
            nonce_check: Check::Transcript,
            log_fault,
        },
    );
    (boot, shown.event_log)
}

/// Seals a grant to the machine that has proven itself.
///
/// # Errors
/// [`EnrolError::Sign`], [`EnrolError::Hpke`].
pub fn grant(
    proven: &Proven,
    payload: &GrantPayload,
    signer: &dyn Signer,
) -> Result<SealedGrant, EnrolError> {
    let payload = payload.encode_to_vec();
    let signature = owner::sign_grant(signer, &proven.transcript, &payload)?.to_vec();
    let signed = SignedGrant { payload, signature }.encode_to_vec();
    let sealed = proven
        .secret
        .seal_grant(&proven.transcript, &proven.agreement_point, &signed)?;
    Ok(SealedGrant {
        encapsulated: sealed.encapsulated.to_vec(),
        ciphertext: sealed.ciphertext,
    })
}
