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

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use onboarding::attest::verifier::{
    self, DeviceCertificates, ReceivedCertificate, Request, Submission,
};
use onboarding::attest::{QuoteAnswer, StoreKeysAnswer};
use onboarding::quote::{self, Check, Conclusion, Expected, Outcome, Report};
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
use super::zero_touch::blocking;
use super::{Fleet, Opened, Refused, admission, boots, policy, secrets};
use crate::store::identities::{self, AttestationKeys, Counters, Ground, Token};
use crate::store::{self, objects};

impl Fleet {
    /// Answers one request of the exchange; the answer is sealed.
    ///
    /// # Errors
    /// [`Refused`]; a quote that proves nothing is no error but an answer.
    pub async fn attest(self: &Arc<Self>, opened: Opened) -> Result<Vec<u8>, Refused> {
        let request: ZAttestReq = envelope::decode(&opened.payload, "ZAttestReq")?;
        let device = &opened.device;
        let answer = match verifier::read(&request)? {
            Request::Certificates(certificates) => {
                self.keep_certificates(device, &certificates).await?
            }
            Request::Nonce => self.give_nonce(device).await?,
            Request::Quote(submission) => self.judge(device, submission).await?,
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
        // EVE's flag `is_mutable` is the device's own word. It counts for the key that secrets are encrypted to, which whoever has the
        // device's key may choose; not for those that say which TPM speaks.
        let fits = |what: &str,
                    before: &Option<Vec<u8>>,
                    now: &Option<ReceivedCertificate>,
                    bytes: fn(&ReceivedCertificate) -> &[u8],
                    may_change: bool| {
            match (before, now) {
                (Some(before), Some(now))
                    if before != bytes(now) && !(may_change && now.is_mutable) =>
                {
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
                false,
            )?,
            endorsement_certificate: fits(
                "endorsement",
                &before.endorsement_certificate,
                &certificates.endorsement,
                |c| &c.der,
                false,
            )?,
            ecdh_certificate: fits(
                "ECDH",
                &before.ecdh_certificate,
                &certificates.ecdh,
                |c| &c.pem,
                true,
            )?,
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
        self: &Arc<Self>,
        device: &Entry,
        submission: Box<Submission>,
    ) -> Result<ZAttestResponse, Refused> {
        let id = device.id;
        let now = Timestamp::now();
        let asked = self.ask_store(id, now).await?;
        let trust = self.trust().await?;
        let judging = (trust.clone(), asked.clone());
        // Nothing else waits for the writer while signature and log are gone through.
        let (report, submission, packed, age) = blocking(move || {
            let (trust, asked) = judging;
            let mut report = quote::verify(
                submission.evidence.as_ref(),
                Expected {
                    attestation_certificate: asked.keys.attestation_certificate.as_deref(),
                    has_tpm: asked.ground.attestation_point.is_some(),
                    nonce: asked.nonce.as_deref(),
                },
            );
            if let Some(counters) = counters(&report) {
                report.verdicts.push(quote::Verdict {
                    check: Check::ResetCount,
                    outcome: admission::counters_outcome(asked.ground.counters, Some(counters)),
                });
            }
            let facts = asked.ground.facts.clone().unwrap_or_default();
            let model = policy::model(&facts, &asked.device);
            let ruling = trust.rulings.judge(&mut report, model, &submission);
            let age = ruling
                .map(|ruling| Duration::from_secs(60 * u64::from(ruling.policy.max_age_minutes)));
            let packed = submission.log().and_then(boots::PackedLog::of);
            (report, submission, packed, age)
        })
        .await?;
        let age = age.unwrap_or(self.settings.attestation_age);

        let mut writer = self.store.write().await?;
        if objects::stamp_of_policies(&mut writer).await? != trust.stamp {
            // A policy was written meanwhile, and has ended all tokens. The device asks again at once.
            return Ok(verifier::quote_answer(&QuoteAnswer::NonceMismatch));
        }
        let level = level(&report, &asked.ground);
        let mut attestation = attestation(&report, level, now);
        let good = attestation.conclusion == AttestationConclusion::Trusted;
        let evidence = submission.evidence.as_ref();
        attestation.differences = boots::differences(&mut writer, id, submission.log()).await?;
        let token = match report.conclusion() {
            Conclusion::Trusted | Conclusion::Unproven => Some(Token {
                bytes: verifier::integrity_token()?.to_vec(),
                ends: now.as_millisecond() + i64::try_from(age.as_millis()).unwrap_or(i64::MAX),
            }),
            Conclusion::Refused => None,
        };
        identities::set_attestation(&mut writer, id, &attestation, token.as_ref()).await?;
        let counters = counters(&report);
        if let Some(counters) = counters.filter(|_| report.failures().next().is_none()) {
            identities::set_counters(&mut writer, id, counters).await?;
        }
        let seen = boots::seen(
            BootOccasion::Attestation,
            attestation.clone(),
            report.boot,
            evidence.map_or(&[], |evidence| evidence.pcrs.as_slice()),
            packed,
            now,
        );
        store::boots::put(&mut writer, id, &seen, good).await?;
        let answer = match (&token, verifier::refusal(&report)) {
            (Some(token), None) => QuoteAnswer::Granted {
                integrity_token: token.bytes.clone(),
                // They open the device's volumes: a secret like any other.
                keys: match secrets::may_have(&attestation) {
                    true => kept_keys(&mut writer, id).await?,
                    false => Vec::new(),
                },
            },
            (_, refusal) => refusal.unwrap_or(QuoteAnswer::Refused),
        };
        // Before the writer is free for whoever ends tokens.
        device.state().token = token;
        if let Err(error) = writer.commit().await {
            device.state().token = None;
            return Err(error.into());
        }
        for failed in report.failures() {
            tracing::warn!(device = %id, verdict = %failed, "attestation");
        }
        tracing::info!(device = %id, conclusion = %attestation.conclusion, level = %attestation.level, "attestation");
        // Whether it may have secrets may have changed.
        device.config_changed();
        self.tell_device(id, WatchEventType::Modified).await;
        Ok(verifier::quote_answer(&answer))
    }

    /// What the store knows of a device that shows a quote. Its nonce is struck out, so that no quote is taken twice.
    async fn ask_store(&self, id: DeviceId, now: Timestamp) -> Result<Asked, Refused> {
        let mut writer = self.store.write().await?;
        let keys = identities::attestation_keys(&mut writer, id).await?;
        let ground = identities::ground(&mut writer, id).await?;
        let oldest = now.as_millisecond()
            - i64::try_from(self.settings.nonce_lifetime.as_millis()).unwrap_or(i64::MAX);
        let nonce = identities::take_nonce(&mut writer, id)
            .await?
            .filter(|(_, given)| *given >= oldest)
            .map(|(nonce, _)| nonce);
        let device = objects::by_id::<Device>(&mut writer, id)
            .await?
            .unwrap_or_else(|| {
                // It is being deleted; there is nothing more to know of it.
                Device::new("", DeviceSpec::default())
            });
        writer.commit().await?;
        Ok(Asked {
            keys,
            ground,
            nonce,
            device,
        })
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

/// What is known of a device that shows a quote.
#[derive(Clone)]
struct Asked {
    keys: AttestationKeys,
    ground: Ground,
    /// The nonce that it was given last, if its time has not run out.
    nonce: Option<Vec<u8>>,
    device: Device,
}

/// The keys that a device left here.
async fn kept_keys(
    connection: &mut store::Connection,
    id: DeviceId,
) -> Result<Vec<AttestVolumeKey>, Refused> {
    let Some(kept) = identities::keys(connection, id).await? else {
        return Ok(Vec::new());
    };
    AttestStorageKeys::decode(kept.as_slice())
        .map(|kept| kept.keys)
        .map_err(|error| Refused::Internal(format!("keys kept for device {id}: {error}")))
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
    match (ground.level, report.is_of_known_tpm()) {
        // Whatever it booted: who it is was proven when it enrolled.
        (Some(level), _) => level,
        // EVE's exchange proves the attestation key but never challenges the endorsement key, so more than bronze it cannot give.
        (None, true) => AttestationLevel::Bronze,
        (None, false) => AttestationLevel::None,
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
