//! Who devices are: certificates, attestation, escrowed keys, and what they told last.

use jiff::Timestamp;
use onboarding::enrol::MachineId;
use operator_api::{Attestation, AttestationLevel, MachineFacts};
use protocol::cipher::Point;
use protocol::ids::DeviceId;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::{
    Connection, Statement, StoreError, Tried as _, Use as _, damaged, machine_id, parse_id,
};

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

/// What a machine proved when it enrolled by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The device.
    pub device: DeviceId,
    /// The machine.
    pub machine: MachineId,
    /// Its certificate at this controller, DER.
    pub certificate: Vec<u8>,
    /// When that ends, in milliseconds.
    pub certificate_ends: i64,
    /// How strong the proof is.
    pub level: AttestationLevel,
    /// What the machine says of itself.
    pub facts: MachineFacts,
    /// The key that signs its quotes.
    pub attestation_point: Option<Point>,
    /// The key that opens its secrets.
    pub agreement_point: Point,
    /// The TPM's counters.
    pub counters: Option<Counters>,
}

/// A TPM's counters; neither goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// How often it was reset.
    pub resets: u32,
    /// How long it has been powered, in milliseconds.
    pub clock: u64,
}

/// What is known of a machine that enrolled before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// The device.
    pub device: DeviceId,
    /// The serial number that it said.
    pub serial: String,
    /// What else it said of itself.
    pub facts: MachineFacts,
    /// How strong its proof was.
    pub level: Option<AttestationLevel>,
    /// The TPM's counters at the last boot that was seen.
    pub counters: Option<Counters>,
}

/// What a device's next attestation is measured by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ground {
    /// The machine; nothing for devices that registered with the image's onboarding key.
    pub machine: Option<MachineId>,
    /// How strong its proof was at enrolment.
    pub level: Option<AttestationLevel>,
    /// What the machine says of itself.
    pub facts: Option<MachineFacts>,
    /// The key that signs its quotes, uncompressed, as it was proven at enrolment.
    pub attestation_point: Option<Vec<u8>>,
    /// The key that opens its secrets, likewise.
    pub agreement_point: Option<Vec<u8>>,
    /// The TPM's counters at the last boot that was seen.
    pub counters: Option<Counters>,
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
    pub token: Option<Token>,
    /// When its certificate ends, in milliseconds; never for devices that registered with the image's onboarding key.
    pub certificate_ends: Option<i64>,
    /// When it was last heard from, in milliseconds.
    pub last_seen: Option<i64>,
}

/// An integrity token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The secret.
    pub bytes: Vec<u8>,
    /// Until when it is good, in milliseconds.
    pub ends: i64,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token(until {})", self.ends)
    }
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
    /// The machine, if it enrolled by itself.
    pub machine: Option<MachineId>,
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
    let rows = sqlx::query("SELECT device, certificate, certificate_ends, token, token_ends, last_seen FROM identities")
        .all(connection, "reading all identities")
        .await?;
    rows.iter().map(known_row).collect()
}

/// The same of one device.
pub async fn known(
    connection: &mut Connection,
    device: DeviceId,
) -> Result<Option<Known>, StoreError> {
    of(
        device,
        "SELECT device, certificate, certificate_ends, token, token_ends, last_seen FROM identities WHERE device = $1",
    )
    .find(connection, ACTION)
    .await?
    .as_ref()
    .map(known_row)
    .transpose()
}

fn known_row(row: &SqliteRow) -> Result<Known, StoreError> {
    Ok(Known {
        device: device(row)?,
        certificate: row.try_get("certificate").tried(ACTION)?,
        token: row
            .try_get::<Option<Vec<u8>>, _>("token")
            .tried(ACTION)?
            .map(|bytes| {
                // A token from before tokens ended is taken for one that has.
                let ends: Option<i64> = row.try_get("token_ends").tried(ACTION)?;
                Ok(Token {
                    bytes,
                    ends: ends.unwrap_or(0),
                })
            })
            .transpose()?,
        certificate_ends: row.try_get("certificate_ends").tried(ACTION)?,
        last_seen: row.try_get("last_seen").tried(ACTION)?,
    })
}

/// What the operator API shows of one device.
pub async fn shown(
    connection: &mut Connection,
    device: DeviceId,
) -> Result<Option<Shown>, StoreError> {
    let row = of(device, "SELECT device, attestation, nonce IS NOT NULL AS owes_quote, figures, last_seen, machine FROM identities WHERE device = $1")
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
    let rows = sqlx::query("SELECT device, attestation, nonce IS NOT NULL AS owes_quote, figures, last_seen, machine FROM identities")
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
        machine: machine(row)?,
    };
    Ok((device, shown))
}

/// The machine of a row.
fn machine(row: &SqliteRow) -> Result<Option<MachineId>, StoreError> {
    row.try_get::<Option<Vec<u8>>, _>("machine")
        .tried(ACTION)?
        .map(|bytes| machine_id(ACTION, &bytes))
        .transpose()
}

fn counters(row: &SqliteRow) -> Result<Option<Counters>, StoreError> {
    let number = |column: &str| row.try_get::<Option<i64>, _>(column).tried(ACTION);
    Ok(match (number("reset_count")?, number("clock")?) {
        (Some(resets), Some(clock)) => Some(Counters {
            resets: u32::try_from(resets).unwrap_or(u32::MAX),
            clock: clock.unsigned_abs(),
        }),
        _ => None,
    })
}

/// A number of a TPM as a database takes it.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The device that a machine is.
pub async fn by_machine(
    connection: &mut Connection,
    machine: &MachineId,
) -> Result<Option<Enrolled>, StoreError> {
    let row = sqlx::query(
        "SELECT device, serial, facts, enrolled_level, reset_count, clock FROM identities WHERE machine = $1",
    )
    .bind(machine.bytes().as_slice())
    .find(connection, ACTION)
    .await?;
    row.map(|row| {
        let device = device(&row)?;
        let facts: Option<&str> = row.try_get("facts").tried(ACTION)?;
        let facts = facts.map(serde_json::from_str).transpose();
        let level: Option<String> = row.try_get("enrolled_level").tried(ACTION)?;
        let level = level.map(|text| serde_json::from_value(text.into()));
        Ok(Enrolled {
            device,
            level: level
                .transpose()
                .map_err(|error| damaged(ACTION, device.to_string(), error))?,
            serial: row.try_get("serial").tried(ACTION)?,
            facts: facts
                .map_err(|error| damaged(ACTION, device.to_string(), error))?
                .unwrap_or_default(),
            counters: counters(&row)?,
        })
    })
    .transpose()
}

/// Devices of other machines that said this serial number.
pub async fn others_with_serial(
    connection: &mut Connection,
    serial: &str,
    own: &MachineId,
) -> Result<Vec<(DeviceId, MachineId)>, StoreError> {
    let rows = sqlx::query(
        "SELECT device, machine FROM identities WHERE serial = $1 AND machine IS NOT NULL AND machine <> $2 LIMIT 16",
    )
    .bind(serial)
    .bind(own.bytes().as_slice())
    .all(connection, ACTION)
    .await?;
    let mut others = Vec::with_capacity(rows.len());
    for row in &rows {
        if let Some(machine) = machine(row)? {
            others.push((device(row)?, machine));
        }
    }
    Ok(others)
}

/// Writes the identity of a machine that enrolled by itself, for the first time or again. Certificates that it showed before, its nonce
/// and its token are gone: they were of the keys before.
pub async fn put_proof(connection: &mut Connection, proof: &Proof) -> Result<(), StoreError> {
    let what = proof.device.to_string();
    let facts = serde_json::to_string(&proof.facts)
        .map_err(|error| damaged("writing an identity", &what, error))?;
    of(
        proof.device,
        "INSERT INTO identities (device, certificate, certificate_hash, onboarding_hash, serial, soft_serial, attestation, machine, \
         enrolled_level, facts, certificate_ends, attestation_point, agreement_point, reset_count, clock) \
         VALUES ($1, $2, $3, $4, $5, '', '{}', $6, $7, $8, $9, $10, $11, $12, $13) \
         ON CONFLICT (device) DO UPDATE SET certificate = excluded.certificate, certificate_hash = excluded.certificate_hash, \
         serial = excluded.serial, machine = excluded.machine, enrolled_level = excluded.enrolled_level, facts = excluded.facts, \
         certificate_ends = excluded.certificate_ends, attestation_point = excluded.attestation_point, \
         agreement_point = excluded.agreement_point, reset_count = excluded.reset_count, clock = excluded.clock, \
         attestation_certificate = NULL, endorsement_certificate = NULL, ecdh_certificate = NULL, nonce = NULL, nonce_given = NULL, \
         token = NULL, token_ends = NULL",
    )
    .bind(&proof.certificate)
    .bind(protocol::keys::sha256(&proof.certificate).as_slice().to_vec())
    .bind(Vec::<u8>::new())
    .bind(&proof.facts.serial)
    .bind(proof.machine.bytes().as_slice())
    .bind(proof.level.to_string())
    .bind(facts)
    .bind(proof.certificate_ends)
    .bind(proof.attestation_point.map(|point| point.to_sec1().to_vec()))
    .bind(proof.agreement_point.to_sec1().to_vec())
    .bind(proof.counters.map(|counters| i64::from(counters.resets)))
    .bind(proof.counters.map(|counters| number(counters.clock)))
    .write(connection, "writing an identity")
    .await
    .map(drop)
}

/// What the device's next attestation is measured by.
pub async fn ground(connection: &mut Connection, device: DeviceId) -> Result<Ground, StoreError> {
    let row = of(
        device,
        "SELECT machine, enrolled_level, facts, attestation_point, agreement_point, reset_count, clock FROM identities WHERE device = $1",
    )
    .get(connection, ACTION)
    .await?;
    let text = |column: &str| row.try_get::<Option<String>, _>(column).tried(ACTION);
    let fail = |error| damaged(ACTION, device.to_string(), error);
    Ok(Ground {
        machine: machine(&row)?,
        level: text("enrolled_level")?
            .map(|text| serde_json::from_value(text.into()))
            .transpose()
            .map_err(fail)?,
        facts: text("facts")?
            .map(|text| serde_json::from_str(&text))
            .transpose()
            .map_err(fail)?,
        attestation_point: row.try_get("attestation_point").tried(ACTION)?,
        agreement_point: row.try_get("agreement_point").tried(ACTION)?,
        counters: counters(&row)?,
    })
}

/// Writes the TPM's counters.
pub async fn set_counters(
    connection: &mut Connection,
    device: DeviceId,
    counters: Counters,
) -> Result<(), StoreError> {
    of(
        device,
        "UPDATE identities SET reset_count = $2, clock = $3 WHERE device = $1",
    )
    .bind(i64::from(counters.resets))
    .bind(number(counters.clock))
    .write(connection, "writing a TPM's counters")
    .await
    .map(drop)
}

/// The key exchange certificate that a device showed, PEM as it came, and the verdicts over its last boot.
pub async fn secrecy(
    connection: &mut Connection,
    device: DeviceId,
) -> Result<(Option<Vec<u8>>, Attestation), StoreError> {
    let row = of(
        device,
        "SELECT ecdh_certificate, attestation FROM identities WHERE device = $1",
    )
    .get(connection, ACTION)
    .await?;
    let text: &str = row.try_get("attestation").tried(ACTION)?;
    Ok((
        row.try_get("ecdh_certificate").tried(ACTION)?,
        serde_json::from_str(text).map_err(|error| damaged(ACTION, device.to_string(), error))?,
    ))
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
    token: Option<&Token>,
) -> Result<(), StoreError> {
    let text = serde_json::to_string(attestation)
        .map_err(|error| damaged("writing verdicts", device.to_string(), error))?;
    of(
        device,
        "UPDATE identities SET attestation = $2, token = $3, token_ends = $4 WHERE device = $1",
    )
    .bind(text)
    .bind(token.map(|token| token.bytes.as_slice()))
    .bind(token.map(|token| token.ends))
    .write(connection, "writing verdicts")
    .await
    .map(drop)
}

/// Ends the tokens of all devices: they attest anew.
pub async fn end_tokens(connection: &mut Connection) -> Result<(), StoreError> {
    sqlx::query("UPDATE identities SET token = NULL, token_ends = NULL WHERE token IS NOT NULL")
        .write(connection, "ending tokens")
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
