//! From the controller's config to [`Desired`]: a pure function, and the only place that knows both.
//!
//! A config is taken as a whole, but an object in it that this device cannot do, or that makes no sense, takes only
//! itself and what builds on it away: it becomes a [`Fault`] that the report shows at that object, and the others go on.
//!
//! | EVE message | here |
//! |---|---|
//! | `DatastoreConfig` | [`storage`]: only container registries |
//! | `ContentTree` | [`storage`]: `CONTAINER`, `RAW`, `QCOW2`, by digest |
//! | `Volume` | [`storage`]: made from a content tree |
//! | `NetworkInstanceConfig` | [`network`]: local instances on IPv4 |
//! | `AppInstanceConfig` | [`app`] |
//! | `ConfigItem` | [`super::settings`] |

mod app;
mod error;
mod network;
mod storage;

use std::collections::BTreeMap;
use std::str::FromStr;

use protocol::eve::common::{CipherBlock, CipherContext, EncryptionBlock};
use protocol::eve::config::{EdgeDevConfig, UuiDandVersion};
use protocol::ids::{AppId, ContentId, DatastoreId, IdError, NetworkInstanceId, VolumeId};
use uuid::Uuid;

use crate::domain::desired::Desired;

pub use error::{ObjectError, SecretError};

/// Opens the encrypted parts of a config; the device's ECDH key does it, and a test's table.
pub trait Secrets {
    /// The clear content of a block.
    ///
    /// # Errors
    /// [`SecretError`].
    fn open(
        &self,
        contexts: &[CipherContext],
        block: &CipherBlock,
    ) -> Result<EncryptionBlock, SecretError>;
}

/// What came out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Translated {
    /// What the device is to be.
    pub desired: Desired,
    /// What of the config it cannot be.
    pub faults: Vec<Fault>,
}

/// An object of the config that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which.
    pub object: Object,
    /// Its name for people.
    pub name: String,
    /// Why, and what to do.
    pub message: String,
}

/// Kind and id of an object of the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A datastore.
    Datastore(DatastoreId),
    /// A content tree.
    Content(ContentId),
    /// A volume.
    Volume(VolumeId),
    /// A network instance.
    Network(NetworkInstanceId),
    /// An app.
    App(AppId),
    /// Something whose id cannot even be read.
    Nameless,
}

/// Translates a whole config.
#[must_use]
pub fn translate(config: &EdgeDevConfig, secrets: &dyn Secrets) -> Translated {
    let mut work = Work {
        config,
        secrets,
        out: Translated::default(),
    };
    for datastore in &config.datastores {
        let id = id(&datastore.id);
        work.take(
            id,
            &datastore.fqdn,
            Object::Datastore,
            |w| storage::datastore(w, datastore),
            |d| &mut d.datastores,
        );
    }
    for content in &config.content_info {
        let id = id(&content.uuid);
        let name = &content.display_name;
        work.take(
            id,
            name,
            Object::Content,
            |w| storage::content(w, content),
            |d| &mut d.contents,
        );
    }
    for volume in &config.volumes {
        let id = id(&volume.uuid);
        work.take(
            id,
            &volume.display_name,
            Object::Volume,
            |w| storage::volume(w, volume),
            |d| &mut d.volumes,
        );
    }
    // Inactive is EVE's word for: keep the definition, but do not set it up.
    for network in config
        .network_instances
        .iter()
        .filter(|network| network.activate)
    {
        let id = versioned(network.uuidandversion.as_ref());
        work.take(
            id,
            &network.displayname,
            Object::Network,
            |_| network::instance(network),
            |d| &mut d.networks,
        );
    }
    let mut ports = app::Ports::default();
    for instance in &config.apps {
        let id = versioned(instance.uuidandversion.as_ref());
        work.take(
            id,
            &instance.displayname,
            Object::App,
            |w| app::app(w, instance, &mut ports),
            |d| &mut d.apps,
        );
    }
    work.out
}

/// What the parts of the translation see: the config, and what is translated already.
struct Work<'a> {
    config: &'a EdgeDevConfig,
    secrets: &'a dyn Secrets,
    out: Translated,
}

impl Work<'_> {
    /// Puts one translated object into its map, or its fault on the list.
    fn take<I: Ord + Copy, T>(
        &mut self,
        id: Result<I, ObjectError>,
        name: &str,
        object: impl FnOnce(I) -> Object,
        translate: impl FnOnce(&Self) -> Result<T, ObjectError>,
        map: impl FnOnce(&mut Desired) -> &mut BTreeMap<I, T>,
    ) {
        let fault = |object, error: ObjectError| Fault {
            object,
            name: name.to_owned(),
            message: error.to_string(),
        };
        let id = match id {
            Ok(id) => id,
            Err(error) => return self.out.faults.push(fault(Object::Nameless, error)),
        };
        let translated = translate(self);
        let map = map(&mut self.out.desired);
        let error = match translated {
            Ok(_) if map.contains_key(&id) => ObjectError::Twice,
            Ok(translated) => {
                map.insert(id, translated);
                return;
            }
            Err(error) => error,
        };
        self.out.faults.push(fault(object(id), error));
    }

    fn open(
        &self,
        what: &'static str,
        block: &CipherBlock,
    ) -> Result<EncryptionBlock, ObjectError> {
        self.secrets
            .open(&self.config.cipher_contexts, block)
            .map_err(|source| ObjectError::Secret { what, source })
    }

    /// Why `id`, which the config has but [`Desired`] has not, was left out.
    fn why_missing(&self, what: &'static str, object: Object, id: Uuid) -> ObjectError {
        match self.out.faults.iter().find(|fault| fault.object == object) {
            Some(fault) => ObjectError::LeftOut {
                what,
                id,
                why: fault.message.clone(),
            },
            None => ObjectError::Missing { what, id },
        }
    }
}

fn id<I: FromStr<Err = IdError>>(text: &str) -> Result<I, ObjectError> {
    Ok(text.parse()?)
}

fn versioned<I: FromStr<Err = IdError>>(of: Option<&UuiDandVersion>) -> Result<I, ObjectError> {
    id(of.map_or("", |of| &of.uuid))
}

#[cfg(test)]
mod tests;
