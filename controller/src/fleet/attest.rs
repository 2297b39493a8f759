//! Who is trusted on its present boot: EVE's attest exchange. What the checks are stands in `onboarding`; here stands what follows.
//!
//! ```text
//! Registered --nonce--> Attesting --quote explained by its log--> trusted: token for this boot, keys kept here
//!                          |  '----no TPM, or no event log-----> unproven: token too, but everybody is told
//!                          '-------a check failed--------------> refused: no token, so no config
//! ```
//!
//! A nonce is written down before it is given out and struck out before it is used, so that no quote is taken twice, not even after
//! the controller was killed in between.

use std::time::Duration;

use jiff::Timestamp;
use onboarding::attest::verifier::{
    self, DeviceCertificates, ReceivedCertificate, Request, Submission,
};
use onboarding::attest::{QuoteAnswer, StoreKeysAnswer};
use onboarding::quote::{Check, Conclusion, Outcome, Report};
use operator_api::{
    Attestation, AttestationConclusion, AttestationLevel, BootOccasion, Device, DeviceSpec,
    Object as _, Verdict, VerdictOutcome, WatchEventType,
};
use prost::Message as _;
use protocol::envelope;
use protocol::eve::attest::{AttestStorageKeys, AttestVolumeKey, ZAttestReq, ZAttestResponse};
use protocol::ids::DeviceId;
use protocol::keys::VerifyingKey;

use super::registry::Entry;
use super::{Fleet, Opened, Refused, admission, boots, policy};
use crate::store::identities::{self, AttestationKeys, Counters, Ground, Token};
use crate::store::{self, objects};

impl Fleet {
    /// Answers one request of the exchange; the answer is sealed.
    ///
    /// # Errors
    /// [`Refused`]; a quote that proves nothing is no error but an answer.
    pub async fn attest(&self, opened: Opened) -> Result<Vec<u8>, Refused> {
        let request: ZAttestReq = envelope::decode(&opened.payload, "ZAttestReq")?;
        let device = &opened.device;
        let answer = match verifier::read(&request)? {
            Request::Certificates(certificates) => {
                self.keep_certificates(device, &certificates).await?
            }
            Request::Nonce => self.give_nonce(device).await?,
            Request::Quote(submission) => self.judge(device, &submission).await?,
            Request::StoreKeys {
                integrity_token,
                keys,
            } => self.keep_keys(device, &integrity_token, keys).await?,
        };
        Ok(self.pki.seal(&answer)?)
    }

    async fn keep_certificates(
        &self,
        device: &Entry,
        certificates: &DeviceCertificates,
    ) -> Result<ZAttestResponse, Refused> {
        let id = device.id;
        let mut writer = self.store.write().await?;
        let device_certificate = identities::certificate(&mut writer, id).await?;
        certificates.check(&device_certificate)?;
        let ground = identities::ground(&mut writer, id).await?;
        // What a machine proved to hold when it enrolled, no certificate of its own making can change.
        proven(
            "attestation",
            id,
            &certificates.attestation,
            ground.attestation_point.as_deref(),
        )?;
        proven(
            "ECDH",
            id,
            &certificates.ecdh,
            ground.agreement_point.as_deref(),
        )?;
        let before = identities::attestation_keys(&mut writer, id).await?;
        let fits = |what: &str,
                    before: &Option<Vec<u8>>,
                    now: &Option<ReceivedCertificate>,
                    bytes: fn(&ReceivedCertificate) -> &[u8]| {
            match (before, now) {
                (Some(before), Some(now)) if before != bytes(now) && !now.is_mutable => {
                    Err(Refused::NotAllowed(format!(
                        "device {id} shows another {what} certificate than before"
                    )))
                }
                (before, None) => Ok(before.clone()),
                (_, Some(now)) => Ok(Some(bytes(now).to_vec())),
            }
        };
        let keys = AttestationKeys {
            attestation_certificate: fits(
                "attestation",
                &before.attestation_certificate,
                &certificates.attestation,
                |c| &c.der,
            )?,
            endorsement_certificate: fits(
                "endorsement",
                &before.endorsement_certificate,
                &certificates.endorsement,
                |c| &c.der,
            )?,
            ecdh_certificate: fits("ECDH", &before.ecdh_certificate, &certificates.ecdh, |c| {
                &c.pem
            })?,
        };
        if keys != before {
            identities::set_attestation_keys(&mut writer, id, &keys).await?;
            writer.commit().await?;
            // Secrets in its config are encrypted to one of them.
            device.config_changed();
        }
        Ok(verifier::certs_answer())
    }

    async fn give_nonce(&self, device: &Entry) -> Result<ZAttestResponse, Refused> {
        let nonce = verifier::nonce()?;
        let mut writer = self.store.write().await?;
        identities::give_nonce(&mut writer, device.id, &nonce, Timestamp::now()).await?;
        writer.commit().await?;
        Ok(verifier::nonce_answer(&nonce))
    }

    async fn judge(
        &self,
        device: &Entry,
        submission: &Submission,
    ) -> Result<ZAttestResponse, Refused> {
        let id = device.id;
        let now = Timestamp::now();
        let trust = self.trust().await?;
        let mut writer = self.store.write().await?;
        let keys = identities::attestation_keys(&mut writer, id).await?;
        let ground = identities::ground(&mut writer, id).await?;
        let oldest = now.as_millisecond()
            - i64::try_from(self.settings.nonce_lifetime.as_millis()).unwrap_or(i64::MAX);
        let nonce = identities::take_nonce(&mut writer, id)
            .await?
            .filter(|(_, given)| *given >= oldest)
            .map(|(nonce, _)| nonce);
        let mut report = verifier::verify(
            submission,
            keys.attestation_certificate.as_deref(),
            nonce.as_deref(),
        );
        let counters = counters(&report);
        if let Some(counters) = counters {
            report.verdicts.push(onboarding::quote::Verdict {
                check: Check::ResetCount,
                outcome: admission::counters_outcome(ground.counters, Some(counters)),
            });
        }
        let device_object = objects::by_id::<Device>(&mut writer, id)
            .await?
            .unwrap_or_else(|| {
                // It is being deleted; there is nothing more to know of it.
                Device::new("", DeviceSpec::default())
            });
        let facts = ground.facts.clone().unwrap_or_default();
        let ruling = trust.rulings.judge(
            &mut report,
            policy::model(&facts, &device_object),
            submission,
        );
        let age = ruling.map_or(self.settings.attestation_age, |ruling| {
            Duration::from_secs(60 * u64::from(ruling.policy.max_age_minutes))
        });
        let level = level(&report, &ground);
        let mut attestation = attestation(&report, level, now);
        let good = attestation.conclusion == AttestationConclusion::Trusted;
        let evidence = submission.evidence.as_ref();
        let log = evidence.and_then(|evidence| evidence.event_log.as_deref());
        attestation.differences = boots::differences(&mut writer, id, log).await?;
        let token = match report.conclusion() {
            Conclusion::Trusted | Conclusion::Unproven => Some(Token {
                bytes: verifier::integrity_token()?.to_vec(),
                ends: now.as_millisecond() + i64::try_from(age.as_millis()).unwrap_or(i64::MAX),
            }),
            Conclusion::Refused => None,
        };
        identities::set_attestation(&mut writer, id, &attestation, token.as_ref()).await?;
        if let Some(counters) = counters.filter(|_| report.failures().next().is_none()) {
            identities::set_counters(&mut writer, id, counters).await?;
        }
        let seen = boots::seen(
            BootOccasion::Attestation,
            attestation.clone(),
            report.boot,
            evidence.map_or(&[], |evidence| evidence.pcrs.as_slice()),
            log,
            now,
        );
        store::boots::put(&mut writer, id, &seen, good).await?;
        let answer = match (&token, verifier::refusal(&report)) {
            (Some(token), None) => {
                let keys = match identities::keys(&mut writer, id).await? {
                    Some(kept) => {
                        AttestStorageKeys::decode(kept.as_slice())
                            .map_err(|error| {
                                Refused::Internal(format!("keys kept for device {id}: {error}"))
                            })?
                            .keys
                    }
                    None => Vec::new(),
                };
                QuoteAnswer::Granted {
                    integrity_token: token.bytes.clone(),
                    keys,
                }
            }
            (_, refusal) => refusal.unwrap_or(QuoteAnswer::Refused),
        };
        writer.commit().await?;
        for failed in report.failures() {
            tracing::warn!(device = %id, verdict = %failed, "attestation");
        }
        tracing::info!(device = %id, conclusion = %attestation.conclusion, level = %attestation.level, "attestation");
        device.state().token = token;
        // Whether it may have secrets may have changed.
        device.config_changed();
        self.tell_device(id, WatchEventType::Modified).await;
        Ok(verifier::quote_answer(&answer))
    }

    async fn keep_keys(
        &self,
        device: &Entry,
        token: &[u8],
        keys: Vec<AttestVolumeKey>,
    ) -> Result<ZAttestResponse, Refused> {
        if !token_fits(device, token, Timestamp::now()) {
            return Ok(verifier::store_keys_answer(StoreKeysAnswer::TokenMismatch));
        }
        // The token is of one boot and is not kept with the keys.
        let kept = AttestStorageKeys {
            integrity_token: Vec::new(),
            keys,
        };
        let mut writer = self.store.write().await?;
        identities::set_keys(&mut writer, device.id, &kept.encode_to_vec()).await?;
        writer.commit().await?;
        Ok(verifier::store_keys_answer(StoreKeysAnswer::Stored))
    }
}

/// Whether a device was given this token on its present boot, and not too long ago.
pub(super) fn token_fits(device: &Entry, token: &[u8], now: Timestamp) -> bool {
    let state = device.state();
    let Some(given) = &state.token else {
        return false;
    };
    // A token is a secret, so the comparison takes as long whatever differs.
    given.ends >= now.as_millisecond()
        && given.bytes.len() == token.len()
        && given
            .bytes
            .iter()
            .zip(token)
            .fold(0, |different, (a, b)| different | (a ^ b))
            == 0
}

/// Checks that a certificate is for the key that the machine proved to hold.
fn proven(
    what: &str,
    device: DeviceId,
    certificate: &Option<ReceivedCertificate>,
    point: Option<&[u8]>,
) -> Result<(), Refused> {
    let (Some(certificate), Some(point)) = (certificate, point) else {
        return Ok(());
    };
    match VerifyingKey::from_certificate_der(&certificate.der) {
        Ok(VerifyingKey::P256(key)) if key.as_slice() == point => Ok(()),
        _ => Err(Refused::NotAllowed(format!(
            "device {device} shows an {what} certificate for another key than the one that it enrolled with; enrol again"
        ))),
    }
}

/// The TPM's counters, if the quote is the TPM's own.
fn counters(report: &Report) -> Option<Counters> {
    report
        .boot
        .filter(|_| report.is_of_known_tpm())
        .map(|boot| Counters {
            resets: boot.reset_count,
            clock: boot.clock_ms,
        })
}

/// How strong the proof of identity is.
fn level(report: &Report, ground: &Ground) -> AttestationLevel {
    match (report.is_of_known_tpm(), ground.level) {
        (false, _) => AttestationLevel::None,
        (true, Some(level)) => level,
        // EVE's exchange proves the attestation key but never challenges the endorsement key, so more than bronze it cannot give.
        (true, None) => AttestationLevel::Bronze,
    }
}

/// What operators are shown of a report.
pub(super) fn attestation(report: &Report, level: AttestationLevel, now: Timestamp) -> Attestation {
    Attestation {
        conclusion: match report.conclusion() {
            Conclusion::Trusted => AttestationConclusion::Trusted,
            Conclusion::Unproven => AttestationConclusion::Unproven,
            Conclusion::Refused => AttestationConclusion::Refused,
        },
        level,
        time: Some(now),
        verdicts: shown_verdicts(report),
        differences: Vec::new(),
    }
}

/// The verdicts, as operators are shown them.
pub(super) fn shown_verdicts(report: &Report) -> Vec<Verdict> {
    report.verdicts.iter().map(verdict).collect()
}

fn verdict(verdict: &onboarding::quote::Verdict) -> Verdict {
    let check = serde_json::to_value(verdict.check)
        .ok()
        .and_then(|name| name.as_str().map(str::to_owned))
        .unwrap_or_default();
    let (outcome, detail) = match &verdict.outcome {
        Outcome::Pass => (VerdictOutcome::Passed, verdict.check.claim().to_owned()),
        Outcome::Fail { expected, seen } => (
            VerdictOutcome::Failed,
            format!("expected {expected}, seen {seen}"),
        ),
        Outcome::Warn { expected, seen } => (
            VerdictOutcome::Warned,
            format!("expected {expected}, seen {seen}"),
        ),
        Outcome::NotApplicable { reason } => (VerdictOutcome::NotChecked, reason.clone()),
    };
    Verdict {
        check,
        outcome,
        detail,
    }
}
