//! The config loop: asks the controller what this device should be, and makes it so.
//!
//! ```text
//!                    .-- 304, or 200 with the hash in force -------------------> confirmed
//!                    |-- 200 --> signature, device, form --good--> checkpoint --> translated --> desired
//!   POST config -----|                  '--bad--> refused: reason on the board, the last good one stays
//!                    |-- 403 --> the token is not (or no longer) good: attest again, then ask again
//!                    |-- 404, 400 --> does the controller still know us? (enrol)
//!                    '-- no answer, 5xx --> soon again, with growing delays
//! ```
//!
//! Between two questions lie 0.3 to 1.0 times `timer.config.interval`, unless the link says that there is something new.
//! What the device goes by is always what is on its disk: the checkpoint is written before a config is acted on.

pub mod checkpoint;
pub mod settings;
pub mod translate;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use onboarding::keys::Identity;
use prost::Message as _;
use protocol::certs::ControllerCerts;
use protocol::cipher::{self, BlockKey};
use protocol::eve::common::{CipherBlock, CipherContext, EncryptionBlock};
use protocol::eve::config::{ConfigRequest, ConfigResponse, EdgeDevConfig};
use protocol::ids::DeviceId;
use protocol::keys::CertHash;
use protocol::paths;
use tokio::sync::watch;

use self::settings::Settings;
use self::translate::{Fault, Object, Secrets, translate};
use crate::backoff::{Backoff, fraction};
use crate::conn;
use crate::context::{Attestation, Context};
use crate::domain::desired::Desired;
use crate::durable;

/// How long the first question waits for the first quote, so that it need not be refused for want of a token.
const WAIT_FOR_TOKEN: Duration = Duration::from_secs(10);
/// Delays after no answer: a controller that is back is to be noticed soon, by a fleet that does not come at once.
const AWAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The config that the device goes by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InForce {
    /// The controller's hash of it; empty: there is none yet.
    pub hash: String,
    /// When it came, or when it was read from the disk.
    pub since: Option<SystemTime>,
    /// What the device is to be.
    pub desired: Arc<Desired>,
    /// What it cannot be.
    pub faults: Vec<Fault>,
    /// The knobs.
    pub settings: Settings,
    /// Names for people, handed back in device info.
    pub names: Names,
    /// EVE's marker of the controller's certificates; when it changes, they are fetched again.
    pub certs_marker: String,
}

/// Names that a config gives the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Device.
    pub device: String,
    /// Project and its id.
    pub project: (String, String),
    /// Enterprise and its id.
    pub enterprise: (String, String),
}

/// Why a config is refused although it came.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The envelope is not signed by the controller, or is none, or holds something else.
    #[error("{0}")]
    Envelope(#[from] protocol::envelope::EnvelopeError),
    /// It says not whose it is, or says it wrongly.
    #[error("it names no device: {0:?} is not a UUID")]
    Nameless(String),
    /// It is for another device.
    #[error("it is for device {named}, and this is {own}")]
    OtherDevice {
        /// Whom it is for.
        named: DeviceId,
        /// Who we are.
        own: DeviceId,
    },
    /// There is no config in the answer.
    #[error("the answer holds no config")]
    Empty,
}

/// Checks that a config is for `own` and takes it out of the response.
///
/// # Errors
/// [`Refusal`].
pub fn accept(response: &ConfigResponse, own: DeviceId) -> Result<&EdgeDevConfig, Refusal> {
    let config = response.config.as_ref().ok_or(Refusal::Empty)?;
    let named = config.id.as_ref().map_or("", |id| id.uuid.as_str());
    let named: DeviceId = named
        .parse()
        .map_err(|_| Refusal::Nameless(named.chars().take(64).collect()))?;
    if named == own {
        Ok(config)
    } else {
        Err(Refusal::OtherDevice { named, own })
    }
}

impl InForce {
    /// What a config that was accepted comes to.
    #[must_use]
    pub fn new(config: &EdgeDevConfig, hash: &str, secrets: &dyn Secrets) -> Self {
        let translated = translate(config, secrets);
        let text = |text: &str| {
            text.chars()
                .filter(|c| !c.is_control())
                .take(256)
                .collect::<String>()
        };
        Self {
            hash: hash.to_owned(),
            since: Some(SystemTime::now()),
            desired: Arc::new(translated.desired),
            faults: translated.faults,
            settings: Settings::read(config),
            names: Names {
                device: text(&config.device_name),
                project: (text(&config.project_name), text(&config.project_id)),
                enterprise: (text(&config.enterprise_name), text(&config.enterprise_id)),
            },
            certs_marker: config.controllercert_confighash.clone(),
        }
    }

    /// The hash as people see it.
    #[must_use]
    pub fn short_hash(&self) -> String {
        self.hash
            .chars()
            .filter(char::is_ascii_graphic)
            .take(12)
            .collect()
    }

    /// Faults that belong to no object that is reported by itself.
    fn faults_of_device(&self) -> Option<String> {
        let mut texts = self.faults.iter().filter_map(|fault| match fault.object {
            Object::Nameless | Object::Datastore(_) => {
                Some(format!("{:?}: {}", fault.name, fault.message))
            }
            _ => None,
        });
        let first = texts.next()?;
        let more = texts.count();
        let more = if more == 0 {
            String::new()
        } else {
            format!(" (and {more} more)")
        };
        Some(format!(
            "a part of the config cannot be used: {first}{more}"
        ))
    }
}

/// The device's own ECDH key opens the secrets of a config.
pub struct DeviceSecrets {
    /// The device's keys.
    pub identity: Arc<Identity>,
    /// The controller's.
    pub certs: Option<ControllerCerts>,
}

impl Secrets for DeviceSecrets {
    fn open(
        &self,
        contexts: &[CipherContext],
        block: &CipherBlock,
    ) -> Result<EncryptionBlock, String> {
        let own = CertHash::of_pem_text(self.identity.ecdh_certificate().pem().as_bytes());
        let context =
            cipher::find_context(contexts, block, &own).map_err(|error| error.to_string())?;
        let certs = self
            .certs
            .as_ref()
            .ok_or("the controller's certificates are not known yet")?;
        let peer = certs.exchange(&context.controller_cert_hash).ok_or(
            "it is made with a key exchange certificate that the controller does not show",
        )?;
        let key =
            BlockKey::agree(&*self.identity, &peer.point).map_err(|error| error.to_string())?;
        cipher::decrypt_secrets(&key, block).map_err(|error| error.to_string())
    }
}

/// Before the device's keys are there, no secret can be opened.
pub struct NoSecrets;

impl Secrets for NoSecrets {
    fn open(&self, _: &[CipherContext], _: &CipherBlock) -> Result<EncryptionBlock, String> {
        Err("this device's keys are not available".to_owned())
    }
}

/// Puts a config into force: reconcilers and report see it from now on.
pub fn put_in_force(
    in_force: InForce,
    config: &watch::Sender<Arc<InForce>>,
    desired: &watch::Sender<Arc<Desired>>,
    status: &crate::status::Status,
    from: &str,
) {
    match in_force.faults_of_device() {
        Some(text) => status.raise("config.parts", &text),
        None => status.clear("config.parts"),
    }
    status.say(
        "config",
        &format!("config applied {}{from}", in_force.short_hash()),
    );
    // The first config is told even if it is empty: until then the reconcilers touch nothing.
    let first = config.borrow().since.is_none();
    desired.send_if_modified(|known| {
        let changed = first || **known != *in_force.desired;
        if changed {
            known.clone_from(&in_force.desired);
        }
        changed
    });
    config.send_replace(Arc::new(in_force));
}

/// What one question came to.
enum Outcome {
    /// Nothing new, or something new that is in force now.
    Good,
    /// An answer that is not to be followed.
    Refused(String),
    /// The token is not good.
    Token,
    /// The controller does not know us.
    Unknown(conn::Error),
    /// No answer, or none that says anything about the config.
    Failed(conn::Error),
}

/// Asks for the config for as long as the agent lives.
///
/// # Errors
/// Never; the type is what the supervisor wants.
pub async fn run(
    ctx: Arc<Context>,
    desired: watch::Sender<Arc<Desired>>,
) -> Result<(), std::convert::Infallible> {
    ctx.device_id().await;
    let mut attestation = ctx.attestation.subscribe();
    let tried = |attestation: &Attestation| *attestation != Attestation::Trying;
    let _ = tokio::time::timeout(WAIT_FOR_TOKEN, attestation.wait_for(tried)).await;
    let mut away = Backoff::new(AWAY.0, AWAY.1);
    let mut certs_at = tokio::time::Instant::now();
    loop {
        let outcome = ask(&ctx, &desired).await;
        let settings = ctx.config.borrow().settings.clone();
        let mut delay = settings.config_interval.mul_f64(0.3 + 0.7 * fraction());
        match outcome {
            Outcome::Good => {
                ctx.status.clear("config");
                ctx.in_contact();
                ctx.contact.send_if_modified(|contact| {
                    !std::mem::replace(&mut contact.config_confirmed, true)
                });
                away.reset();
            }
            Outcome::Refused(reason) => {
                ctx.in_contact();
                ctx.status.raise(
                    "config",
                    &format!("config refused: {reason}; the last good one stays"),
                );
            }
            Outcome::Token => {
                ctx.in_contact();
                tracing::info!("the controller wants another integrity token");
                let granted =
                    |attestation: &Attestation| matches!(attestation, Attestation::Granted { .. });
                // While a try goes on already, there is nothing to be asked for.
                if granted(&attestation.borrow_and_update()) {
                    ctx.reattest.notify_one();
                    let _ = tokio::time::timeout(WAIT_FOR_TOKEN, attestation.changed()).await;
                }
                let _ =
                    tokio::time::timeout(3 * WAIT_FOR_TOKEN, attestation.wait_for(granted)).await;
                delay = delay.min(Duration::from_secs(2));
            }
            Outcome::Unknown(error) => {
                ctx.status.raise(
                    "config",
                    &format!("the controller gives no config: {error}"),
                );
                ctx.reenrol.notify_one();
            }
            Outcome::Failed(error) => {
                delay = away.next_delay();
                ctx.out_of_contact(&error);
            }
        }
        if certs_at.elapsed() > settings.cert_interval {
            certs_at = tokio::time::Instant::now();
            refresh_certs(&ctx).await;
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = ctx.poll.notified() => {}
        }
    }
}

async fn refresh_certs(ctx: &Context) {
    if let Err(error) = ctx.conn.fetch_certs().await {
        tracing::warn!(%error, "controller's certificates not refreshed");
    }
}

async fn ask(ctx: &Context, desired: &watch::Sender<Arc<Desired>>) -> Outcome {
    let own = ctx.device_id().await;
    let known = ctx.config.borrow().clone();
    let integrity_token = match &*ctx.attestation.borrow() {
        Attestation::Granted { token } => token.clone(),
        _ => Vec::new(),
    };
    let request = ConfigRequest {
        config_hash: known.hash.clone(),
        integrity_token,
    };
    let path = paths::config(own);
    let answer = match ctx.conn.post(&path, request.encode_to_vec()).await {
        Ok(answer) => answer,
        Err(error) => {
            return match error.status() {
                Some(403) => Outcome::Token,
                Some(400 | 401 | 404) => Outcome::Unknown(error),
                _ => Outcome::Failed(error),
            };
        }
    };
    if answer.status == 304 {
        return Outcome::Good;
    }
    let payload = match ctx.conn.open(&path, &answer).await {
        Ok(payload) => payload,
        // The controller answered; what it said is no good.
        Err(conn::Error::Reply { source, .. }) => return Outcome::Refused(source.to_string()),
        Err(conn::Error::Certs(error)) => return Outcome::Refused(error.to_string()),
        Err(error) => return Outcome::Failed(error),
    };
    let response: ConfigResponse = match protocol::envelope::decode(&payload, "ConfigResponse") {
        Ok(response) => response,
        Err(error) => return Outcome::Refused(error.to_string()),
    };
    if response.config.is_none() && !known.hash.is_empty() && response.config_hash == known.hash {
        return Outcome::Good;
    }
    let config = match accept(&response, own) {
        Ok(config) => config,
        Err(refusal) => return Outcome::Refused(refusal.to_string()),
    };
    if config.controllercert_confighash != known.certs_marker && !known.certs_marker.is_empty() {
        refresh_certs(ctx).await;
    }
    let secrets = DeviceSecrets {
        identity: ctx.identity.clone(),
        certs: ctx
            .conn
            .known_certs()
            .map(|verified| verified.certs.clone()),
    };
    let (response, in_force) = match tokio::task::spawn_blocking(move || {
        let in_force = response
            .config
            .as_ref()
            .map(|config| InForce::new(config, &response.config_hash, &secrets));
        (response, in_force)
    })
    .await
    {
        Ok((response, Some(in_force))) => (response, in_force),
        Ok((_, None)) => return Outcome::Refused(Refusal::Empty.to_string()),
        Err(error) => return Outcome::Refused(format!("it cannot be translated: {error}")),
    };
    tracing::debug!(hash = response.config_hash, "new config");
    // The whole container, so that the signature is there to be checked at the next start.
    if let Err(error) = durable::store(checkpoint::file(&ctx.paths), answer.body.to_vec()).await {
        ctx.status.raise(
            "disk",
            &format!("the config is applied but would not survive a power cut: {error}"),
        );
    } else {
        ctx.status.clear("disk");
    }
    put_in_force(in_force, &ctx.config, desired, &ctx.status, "");
    Outcome::Good
}

#[cfg(test)]
mod tests {
    use protocol::eve::config::UuiDandVersion;

    use super::*;

    const OWN: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";

    fn response(id: &str) -> ConfigResponse {
        ConfigResponse {
            config: Some(EdgeDevConfig {
                id: Some(UuiDandVersion {
                    uuid: id.to_owned(),
                    version: String::new(),
                }),
                ..EdgeDevConfig::default()
            }),
            config_hash: "hash".to_owned(),
        }
    }

    #[test]
    fn a_config_is_taken_only_if_it_is_for_this_device() {
        let own: DeviceId = OWN.parse().unwrap();
        assert!(accept(&response(OWN), own).is_ok());
        assert!(accept(&response(&OWN.to_uppercase()), own).is_ok());
        let other = accept(&response("00000000-0000-4000-8000-000000000001"), own).unwrap_err();
        assert!(matches!(other, Refusal::OtherDevice { .. }), "{other}");
        assert!(matches!(
            accept(&response("me"), own),
            Err(Refusal::Nameless(_))
        ));
        assert!(matches!(
            accept(&ConfigResponse::default(), own),
            Err(Refusal::Empty)
        ));
    }

    #[test]
    fn the_hash_that_people_see_is_short_and_printable() {
        let in_force = InForce {
            hash: "ab\ncd\u{1b}[0mefghijklmnop".to_owned(),
            ..InForce::default()
        };
        assert_eq!(in_force.short_hash(), "abcd[0mefghi");
    }
}
