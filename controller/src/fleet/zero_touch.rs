//! Zero-touch enrolment: a machine becomes a device by its own keys.
//!
//! ```text
//! hello:    open --> read --> challenge                                   nothing is kept
//! evidence: open --> read --> verify --not proven--> refused, nothing is written; if it was good before, the same answer again
//!                                |
//!                            nonce used? --same evidence--> the same answer again
//!                                |  '-----other evidence--> refused
//!              one transaction: nonce struck out, decision (fleet::admission), device, answer
//! ```
//!
//! Who asks is unknown until its proof has held, so everything before that costs a bounded part of the processors and no row.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use onboarding::enrol::verifier::{self, Delegation, MachineStanding, Proven};
use onboarding::quote::{Check, Outcome};
use operator_api::{
    AttestationLevel, BootOccasion, Device, DeviceSpec, DeviceStatus, Hardware, MachineFacts,
    Object as _, WaitingDecision, WaitingMachineStatus, WatchEventType,
};
use prost::Message as _;
use protocol::enrolment::seal::{self, AnswerKey, Flight};
use protocol::enrolment::wire::answer::Kind;
use protocol::enrolment::wire::{self, Answer, GrantPayload, Level, Reason};
use protocol::ids::DeviceId;
use protocol::keys::sha256;

use super::admission::{self, Admitted, Applicant, Decision, Memory, Person};
use super::answers::{busy, failed, hold, refusal, unproven};
use super::attest::shown_verdicts;
use super::boots::PackedLog;
use super::enrol::free_name;
use super::registry::Entry;
use super::trust::Trust;
use super::{Fleet, Refused};
use crate::store::identities::{Counters, Proof};
use crate::store::{
    Connection, StoreError, boots, enrolments, identities, manifests, objects, waiting,
};

/// Most nonces that one machine uses up while their challenges last.
const NONCES_OF_A_MACHINE: i64 = 16;
/// How long a machine in the waiting room that is not heard from keeps its place before newcomers.
const PATIENCE: Duration = Duration::from_secs(600);
/// A waiting machine that asks again sooner is answered without anything being written.
const QUIET: Duration = Duration::from_secs(5);

/// A request that could be opened.
struct Asked {
    message: Vec<u8>,
    answer: AnswerKey,
}

/// What came of an evidence.
enum Tried {
    /// It proves the machine's keys.
    Proven(Box<Case>),
    /// It does not, this time.
    Unproven {
        nonce: [u8; 32],
        /// SHA-256 of the evidence.
        hash: [u8; 32],
        answer: Answer,
    },
    /// There is nothing to look at.
    Over(Answer),
}

/// A machine that has proven its keys, before the decision about it.
struct Case {
    proven: Proven,
    applicant: Applicant,
    report: onboarding::quote::Report,
    log: Option<PackedLog>,
    /// SHA-256 of the evidence.
    evidence: [u8; 32],
    /// What was believed when it was judged.
    trust: Arc<Trust>,
}

impl Fleet {
    /// First flight. The answer is sealed to the asker.
    ///
    /// # Errors
    /// [`Refused`] if the request cannot be opened; everything else is an answer.
    pub async fn enrol_hello(self: &Arc<Self>, body: Bytes) -> Result<Vec<u8>, Refused> {
        let _door = self.enrol_door()?;
        let fleet = self.clone();
        blocking(move || {
            let asked = fleet.open_sealed(Flight::Hello, &body)?;
            let answer = match fleet.enrol_work.try_acquire() {
                Ok(_permit) => fleet.challenge(&asked.message),
                Err(_) => busy(),
            };
            asked.seal(&answer)
        })
        .await?
    }

    /// Second flight. The answer is sealed to the asker.
    ///
    /// # Errors
    /// [`Refused`] if the request cannot be opened, or the store does not answer; everything else is an answer.
    pub async fn enrol_evidence(self: &Arc<Self>, body: Bytes) -> Result<Vec<u8>, Refused> {
        let _door = self.enrol_door()?;
        let permit = self.enrol_work.try_acquire();
        let may_work = permit.is_ok();
        let trust = self.trust().await?;
        let fleet = self.clone();
        // Opened and checked in one go: each change of threads costs a good part of what it carries over.
        let (asked, tried) = blocking(move || {
            let asked = fleet.open_sealed(Flight::Evidence, &body)?;
            let tried = match may_work {
                true => fleet.try_evidence(&asked.message, &trust),
                false => Tried::Over(busy()),
            };
            Ok::<_, Refused>((asked, tried))
        })
        .await??;
        let answer = match tried {
            Tried::Proven(case) => self.settle(*case).await?,
            Tried::Unproven {
                nonce,
                hash,
                answer,
            } => {
                // It may have been good when it came first, and its challenge run out since.
                let mut reader = self.store.read().await?;
                let before = answered(&mut reader, &nonce, &hash).await?;
                before.unwrap_or(answer)
            }
            Tried::Over(answer) => answer,
        };
        asked.seal(&answer)
    }

    fn enrol_door(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Refused> {
        self.enrol_doors.try_acquire().map_err(|_| Refused::Busy)
    }

    fn open_sealed(&self, flight: Flight, body: &[u8]) -> Result<Asked, Refused> {
        let (key, point) = self.pki.owner().sealing();
        let (message, answer) = seal::open_request(key, point, flight, body)
            .map_err(|error| Refused::Malformed(error.to_string()))?;
        Ok(Asked { message, answer })
    }

    fn challenge(&self, message: &[u8]) -> Answer {
        let authority = self.pki.owner().authority();
        let made = verifier::read_hello(message).and_then(|hello| {
            verifier::challenge(
                &hello,
                self.pki.owner().cookie(),
                &Delegation {
                    signer: &authority.signer,
                    chain: &authority.chain,
                },
                Timestamp::now().as_millisecond(),
                self.settings.challenge_lifetime,
            )
        });
        match made {
            Ok(challenge) => Answer {
                kind: Some(Kind::Challenge(challenge)),
            },
            Err(error) => failed(&error),
        }
    }

    /// Reads an evidence and checks it; no store is asked.
    fn try_evidence(&self, message: &[u8], trust: &Arc<Trust>) -> Tried {
        let hash = sha256(message);
        let evidence = match verifier::read_evidence(message) {
            Ok(evidence) => evidence,
            Err(error) => return Tried::Over(failed(&error)),
        };
        let authority = self.pki.owner().authority();
        let known = verifier::Known {
            cookie_key: self.pki.owner().cookie(),
            delegate: &authority.delegate,
            now_ms: Timestamp::now().as_millisecond(),
            makers: &trust.makers,
            machine_makers: &trust.machine_makers,
            warn: &[],
        };
        let judged = verifier::verify(&evidence, &known);
        match judged.proven {
            Some(proven) => Tried::Proven(Box::new(Case {
                applicant: applicant(&proven, level(judged.level)),
                report: judged.report,
                log: proven.event_log.as_deref().and_then(PackedLog::of),
                evidence: hash,
                trust: trust.clone(),
                proven,
            })),
            None => Tried::Unproven {
                nonce: *evidence.nonce(),
                hash,
                answer: unproven(&evidence, &judged),
            },
        }
    }

    /// Decides about a machine that has proven its keys, in one transaction with everything that follows.
    async fn settle(&self, mut case: Case) -> Result<Answer, Refused> {
        let now = Timestamp::now();
        let mut writer = self.store.write().await?;
        let trust = self.trust().await?;
        if !Arc::ptr_eq(&trust, &case.trust) {
            // A maker was written while this waited, or a rule: it is judged anew, by what is believed now.
            return Ok(busy());
        }
        let machine = case.proven.machine;
        if let Some(answer) = answered(&mut writer, &case.proven.nonce, &case.evidence).await? {
            let known = identities::by_machine(&mut writer, &machine).await?;
            // The same evidence may have come a moment ago, and what it was answered not be on the disk yet.
            writer.commit_together().await?;
            if let Some(known) = known {
                // Where the store failed after it had let the machine in, this is the next chance.
                self.enter(known.device).await?;
            }
            return Ok(answer);
        }
        let used = enrolments::of_machine(
            &mut writer,
            &machine,
            now.as_millisecond(),
            NONCES_OF_A_MACHINE,
        )
        .await?;
        if used >= NONCES_OF_A_MACHINE {
            return Ok(busy());
        }
        let seen = waiting::get(&mut writer, &machine).await?;
        let memory = Memory {
            rules: &trust.rules,
            now,
            ..remember(&mut writer, &case.applicant, seen.as_ref()).await?
        };
        let decided = admission::decide(&case.applicant, &memory);
        let report = &mut case.report;
        report.verdicts.push(onboarding::quote::Verdict {
            check: Check::NonceUnused,
            outcome: Outcome::Pass,
        });
        // Where a memory has more to say of a check than the proof alone, its word stands.
        report
            .verdicts
            .retain(|it| decided.verdicts.iter().all(|other| other.check != it.check));
        report.verdicts.extend(decided.verdicts.clone());
        for failed in report.failures() {
            tracing::warn!(%machine, verdict = %failed, "enrolment");
        }
        let Case {
            proven,
            applicant,
            report,
            ..
        } = &case;
        let level = applicant.level;
        let mut admitted = None;
        let answer = match &decided.decision {
            Decision::Again(device) => {
                admitted = Some((*device, WatchEventType::Modified));
                self.admit(&mut writer, *device, &case, now).await?
            }
            Decision::Admit(how) => {
                let device = insert(&mut writer, how, applicant, now).await?;
                if let Some((manifest, line)) = how.line {
                    manifests::claim(&mut writer, manifest, line, device).await?;
                }
                let answer = self.admit(&mut writer, device, &case, now).await?;
                tracing::info!(%device, %machine, %level, by = how.by, "a machine enrolled");
                admitted = Some((device, WatchEventType::Added));
                answer
            }
            Decision::Wait { reason } | Decision::Refuse { reason } => {
                let quiet = seen.as_ref().is_some_and(|seen| {
                    seen.status.last_seen.is_some_and(|last| {
                        now.as_millisecond() - last.as_millisecond() < millis(QUIET)
                    })
                });
                let answer = hold(
                    &decided.decision,
                    &machine,
                    reason,
                    self.settings.waiting_retry,
                );
                if quiet {
                    return Ok(answer);
                }
                if seen.is_none() && !self.has_room(&mut writer, level, now).await? {
                    tracing::warn!(%level, "the waiting room is full");
                    return Ok(busy());
                }
                for device in &decided.alarms {
                    alarm(&mut writer, *device, applicant, now).await?;
                }
                let status = self
                    .placard(&mut writer, applicant, reason, &decided.alarms, report)
                    .await?;
                waiting::put(&mut writer, &machine, &status, now.as_millisecond()).await?;
                answer
            }
            // Nothing changes, so nothing is written: whoever was turned away may ask as often as it likes.
            Decision::Deny { reason } => {
                tracing::info!(%machine, reason, "a machine was turned away");
                return Ok(refusal(Reason::Denied, reason.clone()));
            }
        };
        if admitted.is_some() && seen.is_some() {
            waiting::remove(&mut writer, &machine).await?;
        }
        let entry = enrolments::Use {
            nonce: &proven.nonce,
            machine: &machine,
            evidence: &case.evidence,
            transcript: proven.transcript.bytes(),
            answer: &answer.encode_to_vec(),
            // The challenge may have been made just now; twice its life is after its end in any case.
            deadline: now.as_millisecond() + 2 * millis(self.settings.challenge_lifetime),
        };
        enrolments::strike_out(&mut writer, entry).await?;
        writer.commit_together().await?;
        if let Some((device, news)) = admitted {
            self.enter(device).await?;
            self.tell_device(device, news).await;
        }
        Ok(answer)
    }

    /// Whether a machine more may wait.
    async fn has_room(
        &self,
        connection: &mut Connection,
        level: AttestationLevel,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        if !self
            .gate
            .pass(level, self.settings.waiting_per_minute, Instant::now())
        {
            return Ok(false);
        }
        if waiting::count(connection, level).await? < self.settings.waiting_rows {
            return Ok(true);
        }
        waiting::make_room(connection, level, now.as_millisecond() - millis(PATIENCE)).await
    }

    /// What operators see of a waiting machine.
    async fn placard(
        &self,
        connection: &mut Connection,
        applicant: &Applicant,
        reason: &str,
        resembles: &[DeviceId],
        report: &onboarding::quote::Report,
    ) -> Result<WaitingMachineStatus, StoreError> {
        let mut names = Vec::new();
        for device in resembles {
            if let Some(device) = objects::by_id::<Device>(connection, *device).await? {
                names.push(device.metadata.name);
            }
        }
        Ok(WaitingMachineStatus {
            words: applicant.machine.words(),
            machine_id: applicant.machine.to_string(),
            decision: WaitingDecision::Waiting,
            reason: reason.to_owned(),
            level: applicant.level,
            hardware: applicant.facts.clone(),
            resembles: names,
            verdicts: shown_verdicts(report),
            ..WaitingMachineStatus::default()
        })
    }

    /// Writes the identity of a device, and gives the answer with its certificate.
    async fn admit(
        &self,
        writer: &mut Connection,
        device: DeviceId,
        case: &Case,
        now: Timestamp,
    ) -> Result<Answer, Refused> {
        let Case {
            proven,
            applicant,
            report,
            log,
            ..
        } = case;
        let internal = |error: String| Refused::Internal(error);
        let certificate = self
            .pki
            .certify_device(device, &proven.device_point, now)
            .map_err(|error| internal(error.to_string()))?;
        identities::put_proof(
            writer,
            &Proof {
                device,
                machine: proven.machine,
                certificate: certificate.der.clone(),
                certificate_ends: certificate.ends,
                level: applicant.level,
                facts: applicant.facts.clone(),
                attestation_point: proven.attestation_point,
                agreement_point: proven.agreement_point,
                counters: applicant.counters,
            },
        )
        .await?;
        let seen = super::boots::seen(
            BootOccasion::Enrolment,
            super::attest::attestation(report, applicant.level, now),
            report.boot,
            &proven.pcrs,
            log.clone(),
            now,
        );
        // What policy says to it is asked at the attestation; until then it is nothing to measure others by.
        boots::put(writer, device, &seen, false).await?;
        let payload = GrantPayload {
            device_id: device.to_string(),
            device_certificate: certificate.der.clone(),
            level: wire_level(applicant.level).into(),
            // The device shows its other certificates and attests first: what is encrypted to it needs their names.
            integrity_token: Vec::new(),
            server_time_ms: now.as_millisecond(),
            vault_share: Vec::new(),
        };
        let authority = self.pki.owner().authority();
        let grant = verifier::grant(proven, &payload, &authority.signer)
            .map_err(|error| internal(error.to_string()))?;
        let answer = Answer {
            kind: Some(Kind::Grant(grant)),
        };
        Ok(answer)
    }

    /// Takes a device's certificate into use as the store has it by now; one that it had before is no longer good. Of enrolments that come
    /// at the same time the last one counts, and a device that was revoked or deleted meanwhile stays out.
    async fn enter(&self, device: DeviceId) -> Result<(), Refused> {
        // Between reading and entering nobody else enters what was read before.
        let _one = self.entering.lock().await;
        let mut reader = self.store.read().await?;
        let Some(known) = identities::known(&mut reader, device).await? else {
            return Ok(());
        };
        let entry = Entry::new(device, &known.certificate, known.token, 0)
            .map_err(|error| Refused::Internal(error.to_string()))?
            .until(known.certificate_ends);
        let before = self.registry.by_id(device);
        if before.is_some_and(|before| before.certificate.hash() == entry.certificate.hash()) {
            return Ok(());
        }
        self.registry.remove(device);
        self.links.cut(device);
        let entry = self.registry.insert(entry);
        entry.seen(Timestamp::now().as_millisecond());
        // Asked after it is there: whoever revokes or deletes it from now on finds it.
        match objects::by_id::<Device>(&mut reader, device).await? {
            Some(object) if object.spec.revoked => entry.state().revoked = true,
            Some(_) => {}
            None => self.registry.remove(device),
        }
        Ok(())
    }
}

/// Tells a device's operator that another machine claims what it claims. Not where a person has let both in.
async fn alarm(
    connection: &mut Connection,
    device: DeviceId,
    applicant: &Applicant,
    now: Timestamp,
) -> Result<(), StoreError> {
    let message = format!(
        "a machine with other keys says that it has serial number {:?}",
        applicant.facts.serial
    );
    tracing::error!(%device, other = %applicant.machine, message, "ALARM");
    waiting::raise(
        connection,
        device,
        &applicant.machine,
        &message,
        now.as_millisecond(),
    )
    .await
}

impl Asked {
    fn seal(&self, answer: &Answer) -> Result<Vec<u8>, Refused> {
        self.answer
            .seal(answer)
            .map_err(|error| Refused::Internal(error.to_string()))
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Does what takes processor time where it holds up nobody.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refused> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Refused::Internal(format!("enrolment: {error}")))
}

/// The answer to a nonce that is used up, if it is.
async fn answered(
    connection: &mut Connection,
    nonce: &[u8; 32],
    hash: &[u8; 32],
) -> Result<Option<Answer>, Refused> {
    let Some(used) = enrolments::used(connection, nonce).await? else {
        return Ok(None);
    };
    if used.evidence != hash {
        tracing::warn!(
            nonce = hex::encode(nonce),
            "enrolment: other evidence over a used nonce"
        );
        return Ok(Some(refusal(
            Reason::Challenge,
            "the challenge was answered before with other evidence; starting over",
        )));
    }
    Answer::decode(used.answer.as_slice())
        .map(Some)
        .map_err(|error| Refused::Internal(format!("a kept answer: {error}")))
}

fn level(level: Level) -> AttestationLevel {
    match level {
        Level::Gold => AttestationLevel::Gold,
        Level::Silver => AttestationLevel::Silver,
        Level::Bronze => AttestationLevel::Bronze,
        Level::None | Level::Unspecified => AttestationLevel::None,
    }
}

fn wire_level(level: AttestationLevel) -> wire::Level {
    match level {
        AttestationLevel::Gold => Level::Gold,
        AttestationLevel::Silver => Level::Silver,
        AttestationLevel::Bronze => Level::Bronze,
        AttestationLevel::None => Level::None,
    }
}

fn applicant(proven: &Proven, level: AttestationLevel) -> Applicant {
    let machine = &proven.hello.machine;
    let (machine_issuer, certified_serial) = match &proven.standing {
        MachineStanding::Known { maker } => (maker.clone(), machine.serial.clone()),
        MachineStanding::Another { maker, serial } => (maker.clone(), serial.clone()),
        MachineStanding::Silent | MachineStanding::Unproven => (String::new(), String::new()),
    };
    Applicant {
        machine: proven.machine,
        level,
        facts: MachineFacts {
            manufacturer: machine.manufacturer.clone(),
            product: machine.product.clone(),
            serial: machine.serial.clone(),
            firmware_version: machine.firmware_version.clone(),
            image_version: proven.hello.image_version.clone(),
            endorsement_issuer: proven.maker.clone().unwrap_or_default(),
            machine_issuer,
            certified_serial,
        },
        standing: proven.standing.clone(),
        counters: proven.boot.map(|boot| Counters {
            resets: boot.reset_count,
            clock: boot.clock_ms,
        }),
    }
}

/// What is known of a machine beforehand; rules and time are the caller's to add.
async fn remember(
    connection: &mut Connection,
    applicant: &Applicant,
    seen: Option<&waiting::Waiting>,
) -> Result<Memory<'static>, StoreError> {
    let serial = &applicant.facts.serial;
    let enrolled = match identities::by_machine(connection, &applicant.machine).await? {
        Some(known) => {
            let device = objects::by_id::<Device>(connection, known.device).await?;
            Some(admission::Enrolled {
                device: known.device,
                revoked: device.is_some_and(|device| device.spec.revoked),
                serial: known.serial,
                model: (known.facts.manufacturer, known.facts.product),
                level: known.level,
                certified_serial: known.facts.certified_serial,
                counters: known.counters,
            })
        }
        None => None,
    };
    let others = if serial.is_empty() {
        Vec::new()
    } else {
        identities::others_with_serial(connection, serial, &applicant.machine).await?
    };
    Ok(Memory {
        enrolled,
        lines: manifests::matching(connection, &applicant.machine, serial).await?,
        person: seen.map(|seen| Person {
            decision: seen.status.decision,
            name: seen.name.clone(),
            labels: seen.labels.clone(),
        }),
        others,
        rules: &[],
        now: Timestamp::UNIX_EPOCH,
    })
}

/// Makes the device.
async fn insert(
    connection: &mut Connection,
    how: &Admitted,
    applicant: &Applicant,
    now: Timestamp,
) -> Result<DeviceId, StoreError> {
    let taken = how.name.is_empty()
        || objects::get::<Device>(connection, &how.name)
            .await?
            .is_some();
    let name = if taken {
        free_name(connection).await?
    } else {
        how.name.clone()
    };
    let mut device = Device::new(name, DeviceSpec::default());
    device.metadata.labels = how.labels.clone();
    let facts = &applicant.facts;
    device.status = DeviceStatus {
        hardware: Hardware {
            serial: facts.serial.clone(),
            manufacturer: facts.manufacturer.clone(),
            product_name: facts.product.clone(),
            ..Hardware::default()
        },
        image_version: facts.image_version.clone(),
        ..DeviceStatus::default()
    };
    objects::insert(connection, &mut device, objects::Links::default(), now).await
}
