//! Who gets which config. A device that was not attested on its present boot gets none; one that has the right config already is told
//! so from memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use operator_api::{App, AttestationConclusion, Datastore, Device, VerdictOutcome};
use protocol::envelope;
use protocol::eve::config::{ConfigRequest, ConfigResponse, EdgeDevConfig};
use protocol::eve::uuid::{UuidRequest, UuidResponse};

use super::registry::Entry;
use super::secrets::{self, Envelope};
use super::{Fleet, Opened, Refused, attest, plan, policy};
use crate::store::{Connection, StoreError, identities, objects};

/// Longest text for a device's screen, in characters.
const MAX_WORDS: usize = 400;

/// Answer to a device that asks for its config.
#[derive(Debug)]
pub enum Answer {
    /// It has the right one.
    Unchanged,
    /// The right one, sealed.
    Config(Vec<u8>),
}

impl Fleet {
    /// Tells a device its id; the answer is sealed.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn uuid(&self, opened: Opened) -> Result<Vec<u8>, Refused> {
        let _: UuidRequest = envelope::decode(&opened.payload, "UuidRequest")?;
        Ok(self.pki.seal(&UuidResponse {
            uuid: opened.device.id.to_string(),
            ..UuidResponse::default()
        })?)
    }

    /// Answers a device that asks for its config.
    ///
    /// # Errors
    /// [`Refused::Token`] if the device was not attested on its present boot.
    pub async fn config(&self, opened: Opened) -> Result<Answer, Refused> {
        let request: ConfigRequest = envelope::decode(&opened.payload, "ConfigRequest")?;
        let device = &opened.device;
        if !attest::token_fits(device, &request.integrity_token, Timestamp::now()) {
            return Err(self.why_not(device).await?);
        }
        let wanted = {
            let mut state = device.state();
            if state.applied != request.config_hash {
                // No longer than a hash of ours or of another controller's; it is kept for each device.
                state.applied = request.config_hash.chars().take(128).collect();
            }
            state.wanted.clone()
        };
        if wanted.is_some_and(|wanted| *wanted == *request.config_hash) {
            return Ok(Answer::Unchanged);
        }
        let (config, hash) = self.plan_config(device).await?;
        if *hash == *request.config_hash {
            return Ok(Answer::Unchanged);
        }
        let response = ConfigResponse {
            config: Some(config),
            config_hash: hash.to_string(),
        };
        Ok(Answer::Config(self.pki.seal(&response)?))
    }

    /// Why a device without a good token gets no config. One whose boot was refused is told which checks failed, to be shown on its screen.
    async fn why_not(&self, device: &Entry) -> Result<Refused, Refused> {
        let (_, attestation) =
            identities::secrecy(&mut *self.store.read().await?, device.id).await?;
        if attestation.conclusion != AttestationConclusion::Refused {
            return Ok(Refused::Token);
        }
        let failed: Vec<String> = attestation
            .verdicts
            .iter()
            .filter(|verdict| verdict.outcome == VerdictOutcome::Failed)
            .map(|verdict| format!("{}: {}", verdict.check, verdict.detail))
            .collect();
        let words = failed.join("; ");
        Ok(Refused::Boot(words.chars().take(MAX_WORDS).collect()))
    }

    async fn plan_config(&self, device: &Entry) -> Result<(EdgeDevConfig, Arc<str>), Refused> {
        let epoch = device.state().epoch;
        let mut reader = self.store.read().await?;
        let (object, apps, datastores) = inputs(&mut reader, device)
            .await?
            .ok_or_else(|| Refused::UnknownDevice(device.certificate.hash().to_string()))?;
        let trust = self.trust().await?;
        let facts = identities::ground(&mut reader, device.id).await?.facts;
        let facts = facts.unwrap_or_default();
        let (manufacturer, product) = policy::model(&facts, &object);
        let ruling = trust.rulings.of(manufacturer, product);
        let keep_running = ruling.is_none_or(|ruling| ruling.policy.keep_running);
        // A sixth before the token ends, so that there is a new one in time; and once a day, which is the most that a device takes.
        let attest_every = ruling
            .map(|ruling| 50 * u64::from(ruling.policy.max_age_minutes))
            .map(|seconds| Duration::from_secs(seconds.min(86_400)));
        let envelope = self.envelope(&mut reader, device).await?;
        drop(reader);
        let config = plan::config(plan::Inputs {
            device: &object,
            apps: &apps,
            datastores: &datastores,
            certificates_hash: self.pki.certificates_hash(),
            secrets: envelope.as_ref(),
            keep_running,
            attest_every,
        });
        let hash: Arc<str> = plan::hash(&config).into();
        let mut state = device.state();
        if state.epoch == epoch {
            state.wanted = Some(hash.clone());
        }
        Ok((config, hash))
    }
}

impl Fleet {
    /// What encrypts secrets to a device, if it may have any.
    async fn envelope(
        &self,
        connection: &mut Connection,
        device: &Entry,
    ) -> Result<Option<Envelope>, StoreError> {
        let (certificate, attestation) = identities::secrecy(connection, device.id).await?;
        let Some(certificate) = certificate.filter(|_| secrets::may_have(&attestation)) else {
            return Ok(None);
        };
        let (own, name) = self.pki.agreement();
        // The certificate was looked at when the device showed it.
        Ok(Envelope::new(own, &name, device.id, &certificate)
            .inspect_err(|error| tracing::error!(device = %device.id, %error, "encrypting secrets"))
            .ok())
    }
}

type Inputs = (Device, Vec<App>, BTreeMap<String, Datastore>);

async fn inputs(connection: &mut Connection, device: &Entry) -> Result<Option<Inputs>, StoreError> {
    let Some(object) = objects::by_id::<Device>(connection, device.id).await? else {
        return Ok(None);
    };
    let apps: Vec<App> = objects::of_device(connection, device.id).await?;
    let mut datastores = BTreeMap::new();
    for app in &apps {
        let name = &app.spec.image.datastore;
        if !datastores.contains_key(name)
            && let Some(datastore) = objects::get::<Datastore>(connection, name).await?
        {
            datastores.insert(name.clone(), datastore);
        }
    }
    Ok(Some((object, apps, datastores)))
}
