//! What operators may write: admission of objects, and the rules between them.
//!
//! | object | rule |
//! |---|---|
//! | Device | is made by enrolment only; may be renamed; not deleted while apps are on it |
//! | App | its device and datastore exist; no port of the device is given twice |
//! | Datastore | not deleted while apps take images from it; its password is not given back |
//! | others | see [`super::rulebook`] |
//!
//! Checks and write are one transaction. A write names the version that it is based on (`metadata.resourceVersion` or `If-Match`) and
//! is refused if there is a newer one; a write that names none replaces whatever is there.

use jiff::Timestamp;
use operator_api::{App, Datastore, Device, FieldError, Object, WatchEventType};
use protocol::ids::DeviceId;

use super::{Fault, Fleet};
use crate::store::objects::Links;
use crate::store::{Connection, StoreError, logs, objects};

/// What a write did.
#[derive(Clone, Debug)]
pub struct Written<T> {
    /// The object as it is now.
    pub object: T,
    /// Whether it was made.
    pub created: bool,
}

/// Rules of one kind.
pub trait Governed: Object {
    /// Largest object of the kind as JSON, in bytes.
    const LIMIT: usize = 1 << 20;

    /// Takes over from what is there what an operator does not get to see, and so cannot send back.
    fn inherit(&mut self, _before: &Self) {}

    /// Writes, in the same transaction, what hangs on an object that was just written; it may change the status.
    fn written(
        _connection: &mut Connection,
        _object: &mut Self,
    ) -> impl Future<Output = Result<(), Fault>> + Send {
        async { Ok(()) }
    }

    /// Takes up a change once it is stored.
    fn changed(_fleet: &Fleet, _object: &Self) {}

    /// Checks a write against the other objects, and gives what it hangs on. `before` is what is there under the written name.
    fn admit(
        connection: &mut Connection,
        new: &Self,
        before: Option<&Self>,
    ) -> impl Future<Output = Result<Links, Fault>> + Send;

    /// Devices whose config a write or deletion changes.
    fn concerned(
        connection: &mut Connection,
        object: &Self,
        links: Links,
    ) -> impl Future<Output = Result<Vec<DeviceId>, StoreError>> + Send;

    /// Checks whether it may go.
    fn may_go(
        connection: &mut Connection,
        object: &Self,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Takes an object's new name over into the objects that name it.
    fn renamed(
        _connection: &mut Connection,
        _old: &str,
        _object: &Self,
    ) -> impl Future<Output = Result<(), Fault>> + Send {
        async { Ok(()) }
    }

    /// Lets go of what memory holds of an object that was deleted.
    fn gone(_fleet: &Fleet, _id: Self::Id) {}

    /// Adds to a stored object what only the controller knows at this moment.
    fn shown(
        fleet: &Fleet,
        connection: &mut Connection,
        object: Self,
    ) -> impl Future<Output = Result<Self, StoreError>> + Send;

    /// [`Governed::shown`] for a whole list.
    fn all_shown(
        fleet: &Fleet,
        connection: &mut Connection,
        objects: Vec<Self>,
    ) -> impl Future<Output = Result<Vec<Self>, StoreError>> + Send {
        async move {
            let mut shown = Vec::with_capacity(objects.len());
            for object in objects {
                shown.push(Self::shown(fleet, connection, object).await?);
            }
            Ok(shown)
        }
    }
}

pub(super) fn id_of<T: Object>(object: &T) -> Result<T::Id, Fault> {
    object.id().ok_or_else(|| {
        Fault::Internal(format!(
            "`{}` was stored without a uid",
            object.metadata().name
        ))
    })
}

impl Fleet {
    /// One object.
    ///
    /// # Errors
    /// [`Fault::NotFound`].
    pub async fn get<T: Governed>(&self, name: &str) -> Result<T, Fault> {
        let mut reader = self.store.read().await?;
        let object =
            objects::get::<T>(&mut reader, name)
                .await?
                .ok_or_else(|| Fault::NotFound {
                    kind: T::KIND,
                    name: name.to_owned(),
                })?;
        Ok(T::shown(self, &mut reader, object).await?)
    }

    /// All objects of a kind, by name, and the store's revision that they show.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn list<T: Governed>(&self) -> Result<(Vec<T>, i64), Fault> {
        let mut reader = self.store.read().await?;
        // Read first: an object written in between is newer than the revision says, never older.
        let revision = objects::revision(&mut reader).await?;
        let stored = objects::list::<T>(&mut reader).await?;
        let shown = T::all_shown(self, &mut reader, stored).await?;
        Ok((shown, revision))
    }

    /// Makes or replaces the object `name`. Its status is left as it is.
    ///
    /// # Errors
    /// [`Fault::Invalid`], [`Fault::Conflict`].
    pub async fn put<T: Governed>(
        &self,
        name: &str,
        mut object: T,
        if_match: Option<&str>,
    ) -> Result<Written<T>, Fault> {
        let what = format!("writing {} `{name}`", T::KIND);
        object.validate().map_err(|invalid| Fault::Invalid {
            detail: format!("{what}: the object is not valid"),
            errors: invalid.0,
        })?;
        let mut writer = self.store.write().await?;
        let before = objects::get::<T>(&mut writer, name).await?;
        if let Some(before) = &before {
            object.inherit(before);
        }
        let version =
            match if_match.map(|text| text.trim().trim_start_matches("W/").trim_matches('"')) {
                Some(version) => version.to_owned(),
                None => object.metadata().resource_version.clone(),
            };
        let current = before
            .as_ref()
            .map(|before| before.metadata().resource_version.as_str());
        match (version.as_str(), current) {
            ("" | "*", _) => {}
            (version, Some(current)) if version == current => {}
            (version, Some(current)) => {
                return Err(Fault::Conflict(format!(
                    "{what}: it is at version {current} by now, and this write is based on version {version}; get it and change it again"
                )));
            }
            (version, None) => {
                return Err(Fault::Conflict(format!(
                    "{what}: it is gone, and this write is based on version {version}"
                )));
            }
        }
        if let (Some(wanted), Some(before)) = (object.metadata().uid, &before)
            && Some(wanted) != before.metadata().uid
        {
            return Err(Fault::Conflict(format!(
                "{what}: another object has this name now; leave metadata.uid out to replace it"
            )));
        }
        if object.metadata().name != name && (before.is_none() || T::KIND != Device::KIND) {
            let message = format!("must be `{name}`, as in the path; only devices can be renamed");
            return Err(Fault::field(what, "metadata.name", message));
        }
        let links = T::admit(&mut writer, &object, before.as_ref()).await?;
        let created = before.is_none();
        let mut concerned = Vec::new();
        match before {
            None => {
                object.metadata_mut().uid = None;
                *object.status_mut() = T::Status::default();
                objects::insert(&mut writer, &mut object, links, Timestamp::now()).await?;
            }
            Some(before) => {
                let changed = object.spec() != before.spec();
                let (old, new) = (before.metadata(), object.metadata());
                if !changed
                    && old.name == new.name
                    && old.labels == new.labels
                    && old.annotations == new.annotations
                {
                    let object = T::shown(self, &mut writer, before).await?;
                    return Ok(Written {
                        object,
                        created: false,
                    });
                }
                let before_links = objects::links::<T>(&mut writer, id_of(&before)?).await?;
                concerned = T::concerned(&mut writer, &before, before_links).await?;
                *object.status_mut() = before.status().clone();
                let metadata = object.metadata_mut();
                metadata.uid = old.uid;
                metadata.creation_timestamp = old.creation_timestamp;
                metadata.generation = old.generation + u64::from(changed);
                objects::update(&mut writer, &mut object, links).await?;
                if object.metadata().name != old.name {
                    T::renamed(&mut writer, &old.name, &object).await?;
                }
            }
        }
        T::written(&mut writer, &mut object).await?;
        concerned.extend(T::concerned(&mut writer, &object, links).await?);
        let object = T::shown(self, &mut writer, object).await?;
        writer.commit().await?;
        concerned.sort_unstable();
        concerned.dedup();
        T::changed(self, &object);
        self.config_changed(concerned);
        self.tell(
            &object,
            if created {
                WatchEventType::Added
            } else {
                WatchEventType::Modified
            },
        );
        tracing::info!(kind = T::KIND, name = %object.metadata().name, created, "written");
        Ok(Written { object, created })
    }

    /// Deletes an object and gives its last state.
    ///
    /// # Errors
    /// [`Fault::NotFound`], [`Fault::Conflict`] if others hang on it.
    pub async fn delete<T: Governed>(&self, name: &str) -> Result<T, Fault> {
        let mut writer = self.store.write().await?;
        let object =
            objects::get::<T>(&mut writer, name)
                .await?
                .ok_or_else(|| Fault::NotFound {
                    kind: T::KIND,
                    name: name.to_owned(),
                })?;
        T::may_go(&mut writer, &object).await?;
        let id = id_of(&object)?;
        let links = objects::links::<T>(&mut writer, id).await?;
        let concerned = T::concerned(&mut writer, &object, links).await?;
        let object = T::shown(self, &mut writer, object).await?;
        objects::delete::<T>(&mut writer, id).await?;
        logs::delete(&mut writer, id.into()).await?;
        writer.commit().await?;
        T::gone(self, id);
        self.config_changed(concerned);
        self.tell(&object, WatchEventType::Deleted);
        tracing::info!(kind = T::KIND, %name, "deleted");
        Ok(object)
    }
}

fn names_of(apps: &[App]) -> String {
    let mut names: Vec<&str> = apps
        .iter()
        .take(5)
        .map(|app| app.metadata.name.as_str())
        .collect();
    if apps.len() > names.len() {
        names.push("...");
    }
    names.join(", ")
}

impl Governed for Device {
    async fn admit(
        connection: &mut Connection,
        new: &Self,
        before: Option<&Self>,
    ) -> Result<Links, Fault> {
        let Some(before) = before else {
            return Err(Fault::Conflict(format!(
                "there is no device `{}`: devices are made by enrolment, not by writing",
                new.metadata.name
            )));
        };
        if new.metadata.name != before.metadata.name
            && objects::get::<Self>(connection, &new.metadata.name)
                .await?
                .is_some()
        {
            let message = format!("another device is called `{}`", new.metadata.name);
            return Err(Fault::field(
                format!("renaming device `{}`", before.metadata.name),
                "metadata.name",
                message,
            ));
        }
        Ok(Links::default())
    }

    async fn concerned(
        _: &mut Connection,
        object: &Self,
        _: Links,
    ) -> Result<Vec<DeviceId>, StoreError> {
        Ok(object.id().into_iter().collect())
    }

    async fn may_go(connection: &mut Connection, object: &Self) -> Result<(), Fault> {
        let apps = objects::of_device::<App>(connection, id_of(object)?).await?;
        if apps.is_empty() {
            return Ok(());
        }
        Err(Fault::Conflict(format!(
            "device `{}` has apps on it: {}; delete those first",
            object.metadata.name,
            names_of(&apps)
        )))
    }

    async fn renamed(connection: &mut Connection, old: &str, object: &Self) -> Result<(), Fault> {
        for mut app in objects::of_device::<App>(connection, id_of(object)?).await? {
            debug_assert_eq!(app.spec.device, old);
            app.spec.device.clone_from(&object.metadata.name);
            let links = objects::links::<App>(connection, id_of(&app)?).await?;
            objects::update(connection, &mut app, links).await?;
        }
        Ok(())
    }

    fn changed(fleet: &Fleet, object: &Self) {
        if let Some(entry) = object.id().and_then(|id| fleet.registry.by_id(id)) {
            let before = std::mem::replace(&mut entry.state().revoked, object.spec.revoked);
            if object.spec.revoked && !before {
                fleet.links.cut(entry.id);
            }
        }
    }

    fn gone(fleet: &Fleet, id: DeviceId) {
        fleet.registry.remove(id);
        fleet.links.cut(id);
    }

    async fn shown(
        fleet: &Fleet,
        connection: &mut Connection,
        object: Self,
    ) -> Result<Self, StoreError> {
        fleet.show_device(connection, object).await
    }

    async fn all_shown(
        fleet: &Fleet,
        connection: &mut Connection,
        objects: Vec<Self>,
    ) -> Result<Vec<Self>, StoreError> {
        fleet.show_devices(connection, objects).await
    }
}

impl Governed for App {
    async fn admit(
        connection: &mut Connection,
        new: &Self,
        _: Option<&Self>,
    ) -> Result<Links, Fault> {
        let mut errors = Vec::new();
        let device = objects::get::<Device>(connection, &new.spec.device).await?;
        let datastore = objects::get::<Datastore>(connection, &new.spec.image.datastore).await?;
        if device.is_none() {
            errors.push(FieldError::new(
                "spec.device",
                format!("there is no device `{}`", new.spec.device),
            ));
        }
        if datastore.is_none() {
            errors.push(FieldError::new(
                "spec.image.datastore",
                format!("there is no datastore `{}`", new.spec.image.datastore),
            ));
        }
        if let Some(device) = &device {
            for other in objects::of_device::<Self>(connection, id_of(device)?).await? {
                if other.metadata.name != new.metadata.name {
                    errors.extend(port_clashes(new, &other));
                }
            }
        }
        if !errors.is_empty() {
            let detail = format!(
                "writing App `{}`: it does not fit what is there",
                new.metadata.name
            );
            return Err(Fault::Invalid { detail, errors });
        }
        Ok(Links {
            device: device.as_ref().and_then(Object::id),
            datastore: datastore.as_ref().and_then(Object::id),
        })
    }

    async fn concerned(
        _: &mut Connection,
        _: &Self,
        links: Links,
    ) -> Result<Vec<DeviceId>, StoreError> {
        Ok(links.device.into_iter().collect())
    }

    async fn may_go(_: &mut Connection, _: &Self) -> Result<(), Fault> {
        Ok(())
    }

    async fn shown(
        fleet: &Fleet,
        connection: &mut Connection,
        object: Self,
    ) -> Result<Self, StoreError> {
        fleet.show_app(connection, object).await
    }
}

/// Ports of the device that both apps want.
fn port_clashes(new: &App, other: &App) -> Vec<FieldError> {
    let taken = |port: &operator_api::PortMap| {
        other
            .spec
            .ports
            .iter()
            .any(|o| (o.device, o.protocol) == (port.device, port.protocol))
    };
    new.spec
        .ports
        .iter()
        .enumerate()
        .filter(|(_, port)| taken(port))
        .map(|(position, port)| {
            FieldError::new(
                format!("spec.ports[{position}].device"),
                format!(
                    "{} port {} of device `{}` leads to app `{}` already",
                    port.protocol, port.device, new.spec.device, other.metadata.name
                ),
            )
        })
        .collect()
}

impl Governed for Datastore {
    fn inherit(&mut self, before: &Self) {
        if let (Some(new), Some(old)) = (&mut self.spec.credentials, &before.spec.credentials)
            && new.password.is_none()
            && new.user == old.user
        {
            new.password.clone_from(&old.password);
        }
    }

    async fn admit(_: &mut Connection, _: &Self, _: Option<&Self>) -> Result<Links, Fault> {
        Ok(Links::default())
    }

    async fn concerned(
        connection: &mut Connection,
        object: &Self,
        _: Links,
    ) -> Result<Vec<DeviceId>, StoreError> {
        match object.id() {
            Some(id) => objects::devices_of_datastore(connection, id).await,
            None => Ok(Vec::new()),
        }
    }

    async fn may_go(connection: &mut Connection, object: &Self) -> Result<(), Fault> {
        let apps = objects::of_datastore::<App>(connection, id_of(object)?).await?;
        if apps.is_empty() {
            return Ok(());
        }
        Err(Fault::Conflict(format!(
            "datastore `{}` holds images of apps: {}; delete those or point them elsewhere first",
            object.metadata.name,
            names_of(&apps)
        )))
    }

    async fn shown(_: &Fleet, _: &mut Connection, mut object: Self) -> Result<Self, StoreError> {
        // Who may read objects need not know the password.
        if let Some(credentials) = &mut object.spec.credentials {
            credentials.password = None;
        }
        Ok(object)
    }
}
