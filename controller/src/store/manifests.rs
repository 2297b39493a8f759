//! Lines of manifests: machines that enrol without a person.

use std::collections::BTreeMap;

use onboarding::enrol::MachineId;
use protocol::ids::{DeviceId, ManifestId};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::{Connection, StoreError, Tried as _, Use as _, from_json, json, machine_id, parse_id};

const ACTION: &str = "reading a manifest's line";

/// A machine on a manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Line of the file, counted from 1; of JSON, the machine's number.
    pub line: i64,
    /// Its id.
    pub machine: Option<MachineId>,
    /// Its serial number; empty: any.
    pub serial: String,
    /// Name for the device; empty: the next free one.
    pub name: String,
    /// Labels for the device.
    pub labels: BTreeMap<String, String>,
}

/// A line as it is found for a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Whose.
    pub manifest: ManifestId,
    /// What it says.
    pub entry: Entry,
    /// The device that enrolled by it.
    pub device: Option<DeviceId>,
}

fn from_row(row: &SqliteRow) -> Result<Line, StoreError> {
    let text = |column: &str| row.try_get::<String, _>(column).tried(ACTION);
    let machine: Option<Vec<u8>> = row.try_get("machine").tried(ACTION)?;
    let device: Option<String> = row.try_get("device").tried(ACTION)?;
    Ok(Line {
        manifest: parse_id(ACTION, &text("manifest")?)?,
        entry: Entry {
            line: row.try_get("line").tried(ACTION)?,
            machine: machine
                .map(|bytes| machine_id(ACTION, &bytes))
                .transpose()?,
            serial: text("serial")?,
            name: text("name")?,
            labels: from_json(ACTION, "a manifest", &text("labels")?)?,
        },
        device: device.map(|text| parse_id(ACTION, &text)).transpose()?,
    })
}

/// Writes all lines of a manifest anew. Devices that enrolled by a line that names the same machine or serial number keep it.
pub async fn replace(
    connection: &mut Connection,
    manifest: ManifestId,
    entries: &[Entry],
) -> Result<(), StoreError> {
    const ACTION: &str = "writing a manifest";
    let claimed: Vec<Line> =
        sqlx::query("SELECT * FROM manifest_lines WHERE manifest = $1 AND device IS NOT NULL")
            .bind(manifest.to_string())
            .all(connection, ACTION)
            .await?
            .iter()
            .map(from_row)
            .collect::<Result<_, _>>()?;
    let before: BTreeMap<(Option<MachineId>, &str), Option<DeviceId>> = claimed
        .iter()
        .map(|line| {
            (
                (line.entry.machine, line.entry.serial.as_str()),
                line.device,
            )
        })
        .collect();
    sqlx::query("DELETE FROM manifest_lines WHERE manifest = $1")
        .bind(manifest.to_string())
        .write(connection, ACTION)
        .await?;
    for entry in entries {
        let device = before
            .get(&(entry.machine, entry.serial.as_str()))
            .copied()
            .flatten();
        sqlx::query(
            "INSERT INTO manifest_lines (manifest, line, machine, serial, name, labels, device) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(manifest.to_string())
        .bind(entry.line)
        .bind(entry.machine.map(|machine| machine.bytes().to_vec()))
        .bind(&entry.serial)
        .bind(&entry.name)
        .bind(json(ACTION, "a manifest", &entry.labels)?)
        .bind(device.map(|device| device.to_string()))
        .write(connection, ACTION)
        .await?;
    }
    Ok(())
}

/// The lines that name a machine, or a serial number.
pub async fn matching(
    connection: &mut Connection,
    machine: &MachineId,
    serial: &str,
) -> Result<Vec<Line>, StoreError> {
    sqlx::query(
        "SELECT * FROM manifest_lines WHERE machine = $1 UNION \
         SELECT * FROM manifest_lines WHERE serial <> '' AND serial = $2 LIMIT 64",
    )
    .bind(machine.bytes().as_slice())
    .bind(serial)
    .all(connection, ACTION)
    .await?
    .iter()
    .map(from_row)
    .collect()
}

/// Writes that a device enrolled by a line.
pub async fn claim(
    connection: &mut Connection,
    manifest: ManifestId,
    line: i64,
    device: DeviceId,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE manifest_lines SET device = $3 WHERE manifest = $1 AND line = $2")
        .bind(manifest.to_string())
        .bind(line)
        .bind(device.to_string())
        .write(connection, "claiming a manifest's line")
        .await
        .map(drop)
}

/// How many machines are on a manifest, and how many of them have enrolled.
pub async fn count(
    connection: &mut Connection,
    manifest: ManifestId,
) -> Result<(i64, i64), StoreError> {
    let row = sqlx::query(
        "SELECT COUNT(*) AS machines, COUNT(device) AS enrolled FROM manifest_lines WHERE manifest = $1",
    )
    .bind(manifest.to_string())
    .get(connection, ACTION)
    .await?;
    Ok((
        row.try_get("machines").tried(ACTION)?,
        row.try_get("enrolled").tried(ACTION)?,
    ))
}
