//! What the controller wants of this device: configs checked, kept, and translated into what the device is to be.
//!
//! ```text
//!   signed container --> accept: for this device? --> translate --> InForce --> allowance --> desired
//!        ^                                            (what cannot be done becomes a fault)
//!   the network (follow.rs), or the checkpoint at a start
//! ```
//!
//! Who asks for configs, and what becomes of one that is no good, stands in [`crate::follow`].

pub mod checkpoint;
pub mod settings;
pub mod translate;

use std::sync::Arc;
use std::time::SystemTime;

use onboarding::keys::Identity;
use protocol::certs::ControllerCerts;
use protocol::cipher::{self, BlockKey};
use protocol::eve::common::{CipherBlock, CipherContext, EncryptionBlock};
use protocol::eve::config::{ConfigResponse, EdgeDevConfig};
use protocol::ids::DeviceId;
use protocol::keys::CertHash;
use tokio::sync::watch;

use self::settings::Settings;
use self::translate::{Fault, Object, SecretError, Secrets, translate};
use crate::domain::desired::Desired;
use crate::status::{Subject, Topic};

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
    /// Project.
    pub project: Named,
    /// Enterprise.
    pub enterprise: Named,
}

/// A name for people with the id that it goes with, as the controller wrote them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// The name.
    pub name: String,
    /// The id.
    pub id: String,
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
                project: Named {
                    name: text(&config.project_name),
                    id: text(&config.project_id),
                },
                enterprise: Named {
                    name: text(&config.enterprise_name),
                    id: text(&config.enterprise_id),
                },
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
    ) -> Result<EncryptionBlock, SecretError> {
        let own = CertHash::of_pem_text(self.identity.ecdh_certificate().pem().as_bytes());
        let context = cipher::find_context(contexts, block, &own)?;
        let certs = self.certs.as_ref().ok_or(SecretError::NoCertificates)?;
        let peer = certs
            .exchange(&context.controller_cert_hash)
            .ok_or(SecretError::UnknownCertificate)?;
        let key = BlockKey::agree(&*self.identity, &peer.point)?;
        Ok(cipher::decrypt_secrets(&key, block)?)
    }
}

/// Before the device's keys are there, no secret can be opened.
pub struct NoSecrets;

impl Secrets for NoSecrets {
    fn open(&self, _: &[CipherContext], _: &CipherBlock) -> Result<EncryptionBlock, SecretError> {
        Err(SecretError::NoKeys)
    }
}

/// Puts a config into force: what the device may run ([`crate::allowance`]) and the report see it from now on.
pub fn put_in_force(
    in_force: InForce,
    config: &watch::Sender<Arc<InForce>>,
    status: &crate::status::Status,
    from: &str,
) {
    match in_force.faults_of_device() {
        Some(text) => status.raise(Topic::ConfigParts, &text),
        None => status.clear(Topic::ConfigParts),
    }
    status.say(
        Subject::Config,
        &format!("config applied {}{from}", in_force.short_hash()),
    );
    config.send_replace(Arc::new(in_force));
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
