//! Who devices are: certificates, attestation, escrowed keys, and what they told last.

use jiff::Timestamp;
use operator_api::Attestation;
use protocol::ids::DeviceId;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::{Connection, Statement, StoreError, Tried as _, Use as _, damaged, parse_id};

const ACTION: &str = "reading a device's identity";

/// A device's identity as it registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The device.
    pub device: DeviceId,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// SHA-256 of the onboarding certificate's DER.
    pub onboarding_hash: [u8; 32],
    /// The maker's serial number; may be empty.
    pub serial: String,
    /// Serial number given by software; may be empty.
    pub soft_serial: String,
}

/// Certificates that a device showed for its attestation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttestationKeys {
    /// Of the key that signs quotes, DER.
    pub attestation_certificate: Option<Vec<u8>>,
    /// Of the endorsement key, as it came.
    pub endorsement_certificate: Option<Vec<u8>>,
    /// Of the key that opens secrets, PEM.
    pub ecdh_certificate: Option<Vec<u8>>,
}

/// What the registry of known devices keeps in memory.
#[derive(Clone, Debug)]
pub struct Known {
    /// The device.
    pub device: DeviceId,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// Integrity token of its present boot.
    pub token: Option<Vec<u8>>,
    /// When it was last heard from, in milliseconds.
    pub last_seen: Option<i64>,
}

/// What the operator API shows of a device's identity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shown {
    /// The last verdicts.
    pub attestation: Attestation,
    /// Whether it was given a nonce and owes a quote.
    pub owes_quote: bool,
    /// JSON of the last figures.
    pub figures: Option<String>,
    /// When it was last heard from, in milliseconds.
    pub last_seen: Option<i64>,
}

/// A statement about one device, whose id is its first value.
fn of(device: DeviceId, sql: &'static str) -> Statement<'static> {
    sqlx::query(sql).bind(device.to_string())
}

/// Writes a new identity.
pub async fn insert(connection: &mut Connection, identity: &Identity) -> Result<(), StoreError> {
    of(
        identity.device,
        "INSERT INTO identities (device, certificate, certificate_hash, onboarding_hash, serial, soft_serial, attestation) \
         VALUES ($1, $2, $3, $4, $5, $6, '{}')",
    )
    .bind(&identity.certificate)
    .bind(protocol::keys::sha256(&identity.certificate).as_slice())
    .bind(identity.onboarding_hash.as_slice())
    .bind(&identity.serial)
    .bind(&identity.soft_serial)
    .write(connection, "writing a new identity")
    .await
    .map(drop)
}

/// The device with this certificate.
pub async fn by_certificate(
    connection: &mut Connection,
    certificate: &[u8],
) -> Result<Option<DeviceId>, StoreError> {
    let hash = protocol::keys::sha256(certificate);
    let found = sqlx::query("SELECT device FROM identities WHERE certificate_hash = $1")
        .bind(hash.as_slice())
        .find(connection, ACTION)
        .await?;
    found.as_ref().map(device).transpose()
}

/// A device that registered with this onboarding certificate and serial.
pub async fn by_serial(
    connection: &mut Connection,
    onboarding_hash: &[u8; 32],
    serial: &str,
) -> Result<Option<DeviceId>, StoreError> {
    let found = sqlx::query(
        "SELECT device FROM identities WHERE onboarding_hash = $1 AND serial = $2 LIMIT 1",
    )
    .bind(onboarding_hash.as_slice())
    .bind(serial)
    .find(connection, ACTION)
    .await?;
    found.as_ref().map(device).transpose()
}

fn device(row: &SqliteRow) -> Result<DeviceId, StoreError> {
    parse_id(ACTION, row.try_get("device").tried(ACTION)?)
}

/// All devices, for the registry.
pub async fn all(connection: &mut Connection) -> Result<Vec<Known>, StoreError> {
    let rows = sqlx::query("SELECT device, certificate, token, last_seen FROM identities")
        .all(connection, "reading all identities")
        .await?;
    rows.iter().map(known).collect()
}

fn known(row: &SqliteRow) -> Result<Known, StoreError> {
    Ok(Known {
        device: device(row)?,
        certificate: row.try_get("certificate").tried(ACTION)?,
        token: row.try_get("token").tried(ACTION)?,
        last_seen: row.try_get("last_seen").tried(ACTION)?,
    })
}

/// What the operator API shows of one device.
pub async fn shown(
    connection: &mut Connection,
    device: DeviceId,
) -> Result<Option<Shown>, StoreError> {
    let row = of(device, "SELECT device, attestation, nonce IS NOT NULL AS owes_quote, figures, last_seen FROM identities WHERE device = $1")
        .find(connection, ACTION)
        .await?;
    Ok(row
        .as_ref()
        .map(shown_row)
        .transpose()?
        .map(|(_, shown)| shown))
}

/// What the operator API shows of all devices.
pub async fn all_shown(connection: &mut Connection) -> Result<Vec<(DeviceId, Shown)>, StoreError> {
    let rows = sqlx::query("SELECT device, attestation, nonce IS NOT NULL AS owes_quote, figures, last_seen FROM identities")
        .all(connection, ACTION)
        .await?;
    rows.iter().map(shown_row).collect()
}

fn shown_row(row: &SqliteRow) -> Result<(DeviceId, Shown), StoreError> {
    let device = device(row)?;
    let attestation: &str = row.try_get("attestation").tried(ACTION)?;
    let shown = Shown {
        attestation: serde_json::from_str(attestation)
            .map_err(|error| damaged(ACTION, device.to_string(), error))?,
        owes_quote: row.try_get::<i64, _>("owes_quote").tried(ACTION)? != 0,
        figures: row.try_get("figures").tried(ACTION)?,
        last_seen: row.try_get("last_seen").tried(ACTION)?,
    };
    Ok((device, shown))
}

/// The certificate that the device registered with, DER.
pub async fn certificate(
    connection: &mut Connection,
    device: DeviceId,
) -> Result<Vec<u8>, StoreError> {
    of(
        device,
        "SELECT certificate FROM identities WHERE device = $1",
    )
    .get(connection, ACTION)
    .await?
    .try_get("certificate")
    .tried(ACTION)
}

/// Certificates that the device showed before.
pub async fn attestation_keys(
    connection: &mut Connection,
    device: DeviceId,
) -> Result<AttestationKeys, StoreError> {
    let row = of(
        device,
        "SELECT attestation_certificate, endorsement_certificate, ecdh_certificate FROM identities WHERE device = $1",
    )
    .get(connection, ACTION)
    .await?;
    let blob = |column: &str| row.try_get::<Option<Vec<u8>>, _>(column).tried(ACTION);
    Ok(AttestationKeys {
        attestation_certificate: blob("attestation_certificate")?,
        endorsement_certificate: blob("endorsement_certificate")?,
        ecdh_certificate: blob("ecdh_certificate")?,
    })
}

/// Writes the certificates that a device showed.
pub async fn set_attestation_keys(
    connection: &mut Connection,
    device: DeviceId,
    keys: &AttestationKeys,
) -> Result<(), StoreError> {
    of(
        device,
        "UPDATE identities SET attestation_certificate = $2, endorsement_certificate = $3, \
         ecdh_certificate = $4 WHERE device = $1",
    )
    .bind(&keys.attestation_certificate)
    .bind(&keys.endorsement_certificate)
    .bind(&keys.ecdh_certificate)
    .write(connection, "writing attestation certificates")
    .await
    .map(drop)
}

/// Writes the nonce that a device is given; an older one is no longer good.
pub async fn give_nonce(
    connection: &mut Connection,
    device: DeviceId,
    nonce: &[u8],
    now: Timestamp,
) -> Result<(), StoreError> {
    of(
        device,
        "UPDATE identities SET nonce = $2, nonce_given = $3 WHERE device = $1",
    )
    .bind(nonce)
    .bind(now.as_millisecond())
    .write(connection, "writing a nonce")
    .await
    .map(drop)
}

/// Takes the nonce back: it is good once. With it comes the time when it was given, in milliseconds.
pub async fn take_nonce(
    connection: &mut Connection,
    device: DeviceId,
) -> Result<Option<(Vec<u8>, i64)>, StoreError> {
    let row = of(
        device,
        "SELECT nonce, nonce_given FROM identities WHERE device = $1 AND nonce IS NOT NULL",
    )
    .find(connection, "reading a nonce")
    .await?;
    let Some(row) = row else { return Ok(None) };
    of(
        device,
        "UPDATE identities SET nonce = NULL, nonce_given = NULL WHERE device = $1",
    )
    .write(connection, "using a nonce up")
    .await?;
    Ok(Some((
        row.try_get("nonce").tried(ACTION)?,
        row.try_get("nonce_given").tried(ACTION)?,
    )))
}

/// Writes what an attestation found, and the token that goes with it: none if it failed.
pub async fn set_attestation(
    connection: &mut Connection,
    device: DeviceId,
    attestation: &Attestation,
    token: Option<&[u8]>,
) -> Result<(), StoreError> {
    let text = serde_json::to_string(attestation)
        .map_err(|error| damaged("writing verdicts", device.to_string(), error))?;
    of(
        device,
        "UPDATE identities SET attestation = $2, token = $3 WHERE device = $1",
    )
    .bind(text)
    .bind(token)
    .write(connection, "writing verdicts")
    .await
    .map(drop)
}

/// The keys that the device left here, as they came.
pub async fn keys(
    connection: &mut Connection,
    device: DeviceId,
) -> Result<Option<Vec<u8>>, StoreError> {
    const ACTION: &str = "reading escrowed keys";
    of(device, "SELECT keys FROM identities WHERE device = $1")
        .get(connection, ACTION)
        .await?
        .try_get("keys")
        .tried(ACTION)
}

/// Keeps keys for the device.
pub async fn set_keys(
    connection: &mut Connection,
    device: DeviceId,
    keys: &[u8],
) -> Result<(), StoreError> {
    of(device, "UPDATE identities SET keys = $2 WHERE device = $1")
        .bind(keys)
        .write(connection, "writing escrowed keys")
        .await
        .map(drop)
}

/// Writes when a device was last heard from, and its figures if there are new ones.
pub async fn set_seen(
    connection: &mut Connection,
    device: DeviceId,
    last_seen: i64,
    figures: Option<&str>,
) -> Result<(), StoreError> {
    of(
        device,
        "UPDATE identities SET last_seen = $2, figures = COALESCE($3, figures) WHERE device = $1",
    )
    .bind(last_seen)
    .bind(figures)
    .write(connection, "writing figures")
    .await
    .map(drop)
}

#[cfg(test)]
mod tests {
    use operator_api::{Device, DeviceSpec, Object as _};

    use super::*;
    use crate::store::objects;
    use crate::store::tests::fresh;

    #[tokio::test]
    async fn an_identity_lives_and_goes_with_its_device() {
        let (_directory, store) = fresh().await;
        let mut writer = store.write().await.unwrap();
        let device = objects::insert(
            &mut writer,
            &mut Device::new("a", DeviceSpec::default()),
            objects::Links::default(),
            Timestamp::now(),
        )
        .await
        .unwrap();
        let identity = Identity {
            device,
            certificate: vec![1, 2],
            onboarding_hash: [3; 32],
            serial: "s".to_owned(),
            soft_serial: String::new(),
        };
        insert(&mut writer, &identity).await.unwrap();
        assert_eq!(
            by_certificate(&mut writer, &[1, 2]).await.unwrap(),
            Some(device)
        );
        assert_eq!(
            by_serial(&mut writer, &[3; 32], "s").await.unwrap(),
            Some(device)
        );
        assert_eq!(by_serial(&mut writer, &[4; 32], "s").await.unwrap(), None);
        set_seen(&mut writer, device, 7, Some("{}")).await.unwrap();
        set_seen(&mut writer, device, 8, None).await.unwrap();
        let shown = shown(&mut writer, device).await.unwrap().unwrap();
        assert_eq!(
            (shown.last_seen, shown.figures.as_deref(), shown.owes_quote),
            (Some(8), Some("{}"), false)
        );
        objects::delete::<Device>(&mut writer, device)
            .await
            .unwrap();
        assert_eq!(by_certificate(&mut writer, &[1, 2]).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_nonce_is_good_once() {
        let (_directory, store) = fresh().await;
        let mut writer = store.write().await.unwrap();
        let device = objects::insert(
            &mut writer,
            &mut Device::new("a", DeviceSpec::default()),
            objects::Links::default(),
            Timestamp::now(),
        )
        .await
        .unwrap();
        let identity = Identity {
            device,
            certificate: vec![1],
            onboarding_hash: [3; 32],
            serial: String::new(),
            soft_serial: String::new(),
        };
        insert(&mut writer, &identity).await.unwrap();
        let now = Timestamp::now();
        give_nonce(&mut writer, device, b"first", now)
            .await
            .unwrap();
        give_nonce(&mut writer, device, b"second", now)
            .await
            .unwrap();
        assert!(
            shown(&mut writer, device)
                .await
                .unwrap()
                .unwrap()
                .owes_quote
        );
        assert_eq!(
            take_nonce(&mut writer, device).await.unwrap(),
            Some((b"second".to_vec(), now.as_millisecond()))
        );
        assert_eq!(take_nonce(&mut writer, device).await.unwrap(), None);
    }
}
