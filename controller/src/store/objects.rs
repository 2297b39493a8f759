//! Objects of the operator API: metadata and spec as the operator wrote them, status as far as devices told it.

use jiff::Timestamp;
use operator_api::{API_VERSION, App, AttestationPolicy, BootReference, Object, ObjectMeta};
use protocol::ids::{AppId, DatastoreId, DeviceId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::{Connection, StoreError, Tried as _, Use as _, damaged, next, parse_id};

/// What an app hangs on; nothing for other kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// The device that runs it.
    pub device: Option<DeviceId>,
    /// The datastore of its image.
    pub datastore: Option<DatastoreId>,
}

const COLUMNS_ERROR: &str = "reading an object";

fn from_row<T: Object>(row: &SqliteRow) -> Result<T, StoreError> {
    let text = |column: &str| row.try_get::<String, _>(column).tried(COLUMNS_ERROR);
    let number = |column: &str| row.try_get::<i64, _>(column).tried(COLUMNS_ERROR);
    let name = text("name")?;
    let what = || format!("{} {name}", T::KIND);
    fn json<T: DeserializeOwned>(text: &str, what: impl Fn() -> String) -> Result<T, StoreError> {
        serde_json::from_str(text).map_err(|error| damaged(COLUMNS_ERROR, what(), error))
    }
    let mut object = T::new(name.clone(), json(&text("spec")?, what)?);
    *object.metadata_mut() = ObjectMeta {
        name: name.clone(),
        uid: Some(
            Uuid::try_parse(&text("uid")?)
                .map_err(|error| damaged(COLUMNS_ERROR, what(), error))?,
        ),
        labels: json(&text("labels")?, what)?,
        annotations: json(&text("annotations")?, what)?,
        generation: number("generation")?.unsigned_abs(),
        resource_version: number("version")?.to_string(),
        creation_timestamp: Timestamp::from_millisecond(number("created")?).ok(),
    };
    *object.status_mut() = json(&text("status")?, what)?;
    debug_assert_eq!(object.type_meta().0, API_VERSION);
    Ok(object)
}

fn to_json(value: &impl Serialize, what: &str) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| damaged("writing an object", what, error))
}

/// The object with this name.
pub async fn get<T: Object>(
    connection: &mut Connection,
    name: &str,
) -> Result<Option<T>, StoreError> {
    let row = sqlx::query("SELECT * FROM objects WHERE kind = $1 AND name = $2")
        .bind(T::KIND)
        .bind(name)
        .fetch_optional(connection)
        .await
        .tried(COLUMNS_ERROR)?;
    row.as_ref().map(from_row).transpose()
}

/// The object with this id.
pub async fn by_id<T: Object>(
    connection: &mut Connection,
    id: T::Id,
) -> Result<Option<T>, StoreError> {
    let row = sqlx::query("SELECT * FROM objects WHERE kind = $1 AND uid = $2")
        .bind(T::KIND)
        .bind(id.to_string())
        .fetch_optional(connection)
        .await
        .tried(COLUMNS_ERROR)?;
    row.as_ref().map(from_row).transpose()
}

/// All objects of a kind, by name.
pub async fn list<T: Object>(connection: &mut Connection) -> Result<Vec<T>, StoreError> {
    let rows = sqlx::query("SELECT * FROM objects WHERE kind = $1 ORDER BY name")
        .bind(T::KIND)
        .fetch_all(connection)
        .await
        .tried("listing objects")?;
    rows.iter().map(from_row).collect()
}

/// The objects of a kind that hang on a device, by name.
pub async fn of_device<T: Object>(
    connection: &mut Connection,
    device: DeviceId,
) -> Result<Vec<T>, StoreError> {
    let rows = sqlx::query("SELECT * FROM objects WHERE device = $1 AND kind = $2 ORDER BY name")
        .bind(device.to_string())
        .bind(T::KIND)
        .fetch_all(connection)
        .await
        .tried("listing a device's objects")?;
    rows.iter().map(from_row).collect()
}

/// The objects of a kind that hang on a datastore, by name.
pub async fn of_datastore<T: Object>(
    connection: &mut Connection,
    datastore: DatastoreId,
) -> Result<Vec<T>, StoreError> {
    let rows =
        sqlx::query("SELECT * FROM objects WHERE datastore = $1 AND kind = $2 ORDER BY name")
            .bind(datastore.to_string())
            .bind(T::KIND)
            .fetch_all(connection)
            .await
            .tried("listing a datastore's objects")?;
    rows.iter().map(from_row).collect()
}

/// Which objects of some kinds there are: their number, and the newest one's version. It changes with each of them.
pub type Stamp = (i64, i64);

/// The stamp of what boots are judged by: policies and references.
pub async fn stamp_of_policies(connection: &mut Connection) -> Result<Stamp, StoreError> {
    const ACTION: &str = "looking whether policies have changed";
    let row = sqlx::query(
        "SELECT COUNT(*) AS number, COALESCE(MAX(version), 0) AS newest FROM objects WHERE kind IN ($1, $2)",
    )
    .bind(AttestationPolicy::KIND)
    .bind(BootReference::KIND)
    .get(connection, ACTION)
    .await?;
    Ok((
        row.try_get("number").tried(ACTION)?,
        row.try_get("newest").tried(ACTION)?,
    ))
}

/// Writes a new object; sets its uid (unless given), version, generation and creation time.
pub async fn insert<T: Object>(
    connection: &mut Connection,
    object: &mut T,
    links: Links,
    now: Timestamp,
) -> Result<T::Id, StoreError> {
    let version = next(connection, "revision").await?;
    let metadata = object.metadata_mut();
    let uid = *metadata.uid.get_or_insert_with(Uuid::new_v4);
    metadata.resource_version = version.to_string();
    metadata.generation = 1;
    metadata.creation_timestamp = Timestamp::from_millisecond(now.as_millisecond()).ok();
    let metadata = object.metadata();
    sqlx::query(
        "INSERT INTO objects (kind, name, uid, version, generation, created, labels, annotations, spec, status, device, datastore) \
         VALUES ($1, $2, $3, $4, 1, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(T::KIND)
    .bind(&metadata.name)
    .bind(uid.to_string())
    .bind(version)
    .bind(now.as_millisecond())
    .bind(to_json(&metadata.labels, &metadata.name)?)
    .bind(to_json(&metadata.annotations, &metadata.name)?)
    .bind(to_json(object.spec(), &metadata.name)?)
    .bind(to_json(object.status(), &metadata.name)?)
    .bind(links.device.map(|uid| uid.to_string()))
    .bind(links.datastore.map(|uid| uid.to_string()))
    .execute(connection)
    .await
    .tried("writing a new object")?;
    Ok(uid.into())
}

/// Writes name, labels, annotations, spec and links of an object that is there, and sets its new version.
pub async fn update<T: Object>(
    connection: &mut Connection,
    object: &mut T,
    links: Links,
) -> Result<(), StoreError> {
    let version = next(connection, "revision").await?;
    object.metadata_mut().resource_version = version.to_string();
    let metadata = object.metadata();
    let uid = metadata
        .uid
        .ok_or_else(|| damaged("writing an object", &metadata.name, "it has no uid"))?;
    sqlx::query(
        "UPDATE objects SET name = $1, version = $2, generation = $3, labels = $4, annotations = $5, spec = $6, device = $7, \
         datastore = $8 WHERE uid = $9",
    )
    .bind(&metadata.name)
    .bind(version)
    .bind(i64::try_from(metadata.generation).unwrap_or(i64::MAX))
    .bind(to_json(&metadata.labels, &metadata.name)?)
    .bind(to_json(&metadata.annotations, &metadata.name)?)
    .bind(to_json(object.spec(), &metadata.name)?)
    .bind(links.device.map(|uid| uid.to_string()))
    .bind(links.datastore.map(|uid| uid.to_string()))
    .bind(uid.to_string())
    .execute(connection)
    .await
    .tried("writing an object")?;
    Ok(())
}

/// Writes an object's status.
pub async fn set_status<T: Object>(
    connection: &mut Connection,
    id: T::Id,
    status: &T::Status,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE objects SET status = $1 WHERE uid = $2 AND kind = $3")
        .bind(to_json(status, T::KIND)?)
        .bind(id.to_string())
        .bind(T::KIND)
        .execute(connection)
        .await
        .tried("writing a status")?;
    Ok(())
}

/// Removes an object and what hangs on it by `ON DELETE CASCADE`.
pub async fn delete<T: Object>(connection: &mut Connection, id: T::Id) -> Result<(), StoreError> {
    next(connection, "revision").await?;
    sqlx::query("DELETE FROM objects WHERE uid = $1 AND kind = $2")
        .bind(id.to_string())
        .bind(T::KIND)
        .execute(connection)
        .await
        .tried("deleting an object")?;
    Ok(())
}

/// What an object hangs on.
pub async fn links<T: Object>(connection: &mut Connection, id: T::Id) -> Result<Links, StoreError> {
    const ACTION: &str = "reading what an object hangs on";
    let row = sqlx::query("SELECT device, datastore FROM objects WHERE uid = $1 AND kind = $2")
        .bind(id.to_string())
        .bind(T::KIND)
        .fetch_optional(connection)
        .await
        .tried(ACTION)?;
    let Some(row) = row else {
        return Ok(Links::default());
    };
    let text = |column: &str| row.try_get::<Option<String>, _>(column).tried(ACTION);
    Ok(Links {
        device: text("device")?
            .map(|text| parse_id(ACTION, &text))
            .transpose()?,
        datastore: text("datastore")?
            .map(|text| parse_id(ACTION, &text))
            .transpose()?,
    })
}

/// The device that an app is on.
pub async fn device_of(
    connection: &mut Connection,
    app: AppId,
) -> Result<Option<DeviceId>, StoreError> {
    Ok(links::<App>(connection, app).await?.device)
}

/// The datastore of an app's image.
pub async fn datastore_of(
    connection: &mut Connection,
    app: AppId,
) -> Result<Option<DatastoreId>, StoreError> {
    Ok(links::<App>(connection, app).await?.datastore)
}

/// The devices with apps whose images are in a datastore.
pub async fn devices_of_datastore(
    connection: &mut Connection,
    datastore: DatastoreId,
) -> Result<Vec<DeviceId>, StoreError> {
    const ACTION: &str = "listing a datastore's devices";
    let found: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT device FROM objects WHERE datastore = $1 AND device IS NOT NULL",
    )
    .bind(datastore.to_string())
    .fetch_all(connection)
    .await
    .tried(ACTION)?;
    found.iter().map(|text| parse_id(ACTION, text)).collect()
}

/// The store's revision: grows with every write of an object.
pub async fn revision(connection: &mut Connection) -> Result<i64, StoreError> {
    sqlx::query_scalar("SELECT value FROM counters WHERE name = 'revision'")
        .fetch_one(connection)
        .await
        .tried("reading the revision")
}

#[cfg(test)]
mod tests {
    use operator_api::{Datastore, DatastoreSpec, DatastoreType, Device, DeviceSpec};

    use super::*;
    use crate::store::tests::fresh;

    #[tokio::test]
    async fn an_object_comes_back_as_it_was_written() {
        let (_directory, store) = fresh().await;
        let mut writer = store.write().await.unwrap();
        let mut datastore = Datastore::new(
            "demo",
            DatastoreSpec {
                kind: DatastoreType::Registry,
                url: "docker://r:5000".to_owned(),
                ca_certificates: Some("x".to_owned()),
                credentials: None,
            },
        );
        datastore
            .metadata
            .labels
            .insert("site".to_owned(), "hall-3".to_owned());
        let uid = insert(
            &mut writer,
            &mut datastore,
            Links::default(),
            Timestamp::now(),
        )
        .await
        .unwrap();
        datastore.spec.url = "docker://other:5000".to_owned();
        datastore.metadata.generation = 2;
        let before = datastore.metadata.resource_version.clone();
        update(&mut writer, &mut datastore, Links::default())
            .await
            .unwrap();
        assert_ne!(before, datastore.metadata.resource_version);
        writer.commit().await.unwrap();
        let mut reader = store.read().await.unwrap();
        assert_eq!(
            get::<Datastore>(&mut reader, "demo")
                .await
                .unwrap()
                .unwrap(),
            datastore
        );
        assert_eq!(
            by_id::<Datastore>(&mut reader, uid).await.unwrap().unwrap(),
            datastore
        );
        assert_eq!(list::<Datastore>(&mut reader).await.unwrap(), [datastore]);
        assert!(
            get::<Device>(&mut reader, "demo").await.unwrap().is_none(),
            "kinds are kept apart"
        );
        drop(reader);
        let mut writer = store.write().await.unwrap();
        delete::<Datastore>(&mut writer, uid).await.unwrap();
        assert!(
            by_id::<Datastore>(&mut writer, uid)
                .await
                .unwrap()
                .is_none()
        );
    }

    #[tokio::test]
    async fn a_name_is_taken_once() {
        let (_directory, store) = fresh().await;
        let mut writer = store.write().await.unwrap();
        insert(
            &mut writer,
            &mut Device::new("a", DeviceSpec::default()),
            Links::default(),
            Timestamp::now(),
        )
        .await
        .unwrap();
        assert!(
            insert(
                &mut writer,
                &mut Device::new("a", DeviceSpec::default()),
                Links::default(),
                Timestamp::now()
            )
            .await
            .is_err()
        );
    }
}
