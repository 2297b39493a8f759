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

use jiff::Timestamp;
use onboarding::attest::verifier::{
    self, DeviceCertificates, ReceivedCertificate, Request, Submission,
};
use onboarding::attest::{QuoteAnswer, StoreKeysAnswer};
use onboarding::quote::{Conclusion, Outcome, Report};
use operator_api::{
    Attestation, AttestationConclusion, AttestationLevel, Verdict, VerdictOutcome, WatchEventType,
};
use prost::Message as _;
use protocol::envelope;
use protocol::eve::attest::{AttestStorageKeys, AttestVolumeKey, ZAttestReq, ZAttestResponse};

use super::registry::Entry;
use super::{Fleet, Opened, Refused};
use crate::store::identities::{self, AttestationKeys};

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
        let mut writer = self.store.write().await?;
        let keys = identities::attestation_keys(&mut writer, id).await?;
        let oldest = now.as_millisecond()
            - i64::try_from(self.settings.nonce_lifetime.as_millis()).unwrap_or(i64::MAX);
        let nonce = identities::take_nonce(&mut writer, id)
            .await?
            .filter(|(_, given)| *given >= oldest)
            .map(|(nonce, _)| nonce);
        let report = verifier::verify(
            submission,
            keys.attestation_certificate.as_deref(),
            nonce.as_deref(),
        );
        let attestation = attestation(&report, now);
        let token = match report.conclusion() {
            Conclusion::Trusted | Conclusion::Unproven => {
                Some(verifier::integrity_token()?.to_vec())
            }
            Conclusion::Refused => None,
        };
        identities::set_attestation(&mut writer, id, &attestation, token.as_deref()).await?;
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
                    integrity_token: token.clone(),
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
        self.tell_device(id, WatchEventType::Modified).await;
        Ok(verifier::quote_answer(&answer))
    }

    async fn keep_keys(
        &self,
        device: &Entry,
        token: &[u8],
        keys: Vec<AttestVolumeKey>,
    ) -> Result<ZAttestResponse, Refused> {
        if !token_fits(device, token) {
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

/// Whether a device was given this token on its present boot.
pub(super) fn token_fits(device: &Entry, token: &[u8]) -> bool {
    let state = device.state();
    let Some(given) = &state.token else {
        return false;
    };
    // A token is a secret, so the comparison takes as long whatever differs.
    given.len() == token.len()
        && given
            .iter()
            .zip(token)
            .fold(0, |different, (a, b)| different | (a ^ b))
            == 0
}

/// What operators are shown of a report.
fn attestation(report: &Report, now: Timestamp) -> Attestation {
    // EVE's exchange proves the attestation key but never challenges the endorsement key, so more than bronze it cannot give.
    let level = if report.is_of_known_tpm() {
        AttestationLevel::Bronze
    } else {
        AttestationLevel::None
    };
    Attestation {
        conclusion: match report.conclusion() {
            Conclusion::Trusted => AttestationConclusion::Trusted,
            Conclusion::Unproven => AttestationConclusion::Unproven,
            Conclusion::Refused => AttestationConclusion::Refused,
        },
        level,
        time: Some(now),
        verdicts: report.verdicts.iter().map(verdict).collect(),
    }
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
        Outcome::NotApplicable { reason } => (VerdictOutcome::NotChecked, reason.clone()),
    };
    Verdict {
        check,
        outcome,
        detail,
    }
}
