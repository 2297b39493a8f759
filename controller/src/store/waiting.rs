//! Machines that have proven their keys and wait for a person; and machines with other keys that claimed what a device claims.

use std::collections::BTreeMap;

use jiff::Timestamp;
use onboarding::enrol::MachineId;
use operator_api::{Alarm, AttestationLevel, WaitingDecision, WaitingMachineStatus};
use protocol::ids::DeviceId;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::{Connection, StoreError, Tried as _, Use as _, from_json, json, machine_id};

const ACTION: &str = "reading a waiting machine";
/// Most machines that something was decided about and that have not enrolled.
const MAX_DECIDED: i64 = 10_000;
/// Most alarms that are kept of one device.
const MAX_ALARMS: i64 = 16;

/// A machine in the waiting room.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// The machine.
    pub machine: MachineId,
    /// What is known of it.
    pub status: WaitingMachineStatus,
    /// Name for the device; empty: the next free one.
    pub name: String,
    /// Labels for the device.
    pub labels: BTreeMap<String, String>,
}

fn from_row(row: &SqliteRow) -> Result<Waiting, StoreError> {
    let text = |column: &str| row.try_get::<String, _>(column).tried(ACTION);
    let time = |column: &str| {
        row.try_get::<i64, _>(column)
            .tried(ACTION)
            .map(|milliseconds| Timestamp::from_millisecond(milliseconds).ok())
    };
    let machine = machine_id(ACTION, row.try_get("machine").tried(ACTION)?)?;
    let what = machine.to_string();
    let mut status: WaitingMachineStatus = from_json(ACTION, &what, &text("status")?)?;
    status.decision = from_json(ACTION, &what, &format!("\"{}\"", text("decision")?))?;
    status.first_seen = time("first_seen")?;
    status.last_seen = time("last_seen")?;
    Ok(Waiting {
        machine,
        status,
        name: text("name")?,
        labels: from_json(ACTION, &what, &text("labels")?)?,
    })
}

/// One machine.
pub async fn get(
    connection: &mut Connection,
    machine: &MachineId,
) -> Result<Option<Waiting>, StoreError> {
    sqlx::query("SELECT * FROM waiting WHERE machine = $1")
        .bind(machine.bytes().as_slice())
        .find(connection, ACTION)
        .await?
        .as_ref()
        .map(from_row)
        .transpose()
}

/// All machines, those that came first first.
pub async fn list(connection: &mut Connection) -> Result<Vec<Waiting>, StoreError> {
    sqlx::query("SELECT * FROM waiting ORDER BY first_seen, machine")
        .all(connection, "listing waiting machines")
        .await?
        .iter()
        .map(from_row)
        .collect()
}

/// How many machines of a level wait for a decision.
pub async fn count(
    connection: &mut Connection,
    level: AttestationLevel,
) -> Result<i64, StoreError> {
    sqlx::query_scalar("SELECT COUNT(*) FROM waiting WHERE level = $1 AND decision = 'Waiting'")
        .bind(level.to_string())
        .fetch_one(connection)
        .await
        .tried("counting waiting machines")
}

/// Makes room: removes the machine of a level that was not heard from for longest, if that is before `before` and nothing was decided
/// about it. Says whether there is room now.
pub async fn make_room(
    connection: &mut Connection,
    level: AttestationLevel,
    before: i64,
) -> Result<bool, StoreError> {
    let gone = sqlx::query(
        "DELETE FROM waiting WHERE machine = (SELECT machine FROM waiting WHERE level = $1 AND decision = 'Waiting' AND last_seen < $2 \
         ORDER BY last_seen LIMIT 1)",
    )
    .bind(level.to_string())
    .bind(before)
    .write(connection, "making room in the waiting room")
    .await?;
    Ok(gone > 0)
}

/// Writes what is known of a machine; what was decided about it stays.
pub async fn put(
    connection: &mut Connection,
    machine: &MachineId,
    status: &WaitingMachineStatus,
    now: i64,
) -> Result<(), StoreError> {
    let text = json("writing a waiting machine", &machine.to_string(), status)?;
    sqlx::query(
        "INSERT INTO waiting (machine, level, decision, decided_by, name, labels, status, first_seen, last_seen) \
         VALUES ($1, $2, 'Waiting', '', '', '{}', $3, $4, $4) \
         ON CONFLICT (machine) DO UPDATE SET level = excluded.level, status = excluded.status, last_seen = excluded.last_seen",
    )
    .bind(machine.bytes().as_slice())
    .bind(status.level.to_string())
    .bind(text)
    .bind(now)
    .write(connection, "writing a waiting machine")
    .await
    .map(drop)
}

/// What a person decides.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// What.
    pub decision: WaitingDecision,
    /// Who.
    pub by: &'a str,
    /// Name for the device; empty: the next free one.
    pub name: &'a str,
    /// Labels for the device.
    pub labels: &'a BTreeMap<String, String>,
}

/// Writes what a person decided about a machine.
pub async fn decide(
    connection: &mut Connection,
    machine: &MachineId,
    decision: Decision<'_>,
) -> Result<(), StoreError> {
    let labels = json("writing a decision", &machine.to_string(), decision.labels)?;
    sqlx::query(
        "UPDATE waiting SET decision = $2, decided_by = $3, name = $4, labels = $5 WHERE machine = $1",
    )
    .bind(machine.bytes().as_slice())
    .bind(decision.decision.to_string())
    .bind(decision.by)
    .bind(decision.name)
    .bind(labels)
    .write(connection, "writing a decision")
    .await
    .map(drop)
}

/// Bounds the decisions that are kept: those about machines that were not heard from for longest go.
pub async fn bound_decided(connection: &mut Connection) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM waiting WHERE decision <> 'Waiting' AND machine NOT IN \
         (SELECT machine FROM waiting WHERE decision <> 'Waiting' ORDER BY last_seen DESC LIMIT $1)",
    )
    .bind(MAX_DECIDED)
    .write(connection, "bounding decisions about waiting machines")
    .await
    .map(drop)
}

/// Removes a machine.
pub async fn remove(connection: &mut Connection, machine: &MachineId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM waiting WHERE machine = $1")
        .bind(machine.bytes().as_slice())
        .write(connection, "removing a waiting machine")
        .await
        .map(drop)
}

/// Writes that another machine claimed what a device claims.
pub async fn raise(
    connection: &mut Connection,
    device: DeviceId,
    other: &MachineId,
    message: &str,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO alarms (device, machine, message, time) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (device, machine) DO UPDATE SET message = excluded.message, time = excluded.time",
    )
    .bind(device.to_string())
    .bind(other.bytes().as_slice())
    .bind(message)
    .bind(now)
    .write(connection, "writing an alarm")
    .await?;
    sqlx::query(
        "DELETE FROM alarms WHERE device = $1 AND machine NOT IN (SELECT machine FROM alarms WHERE device = $1 ORDER BY time DESC LIMIT $2)",
    )
    .bind(device.to_string())
    .bind(MAX_ALARMS)
    .write(connection, "bounding alarms")
    .await
    .map(drop)
}

/// Takes back what was said about a machine, to all devices.
pub async fn calm(connection: &mut Connection, other: &MachineId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM alarms WHERE machine = $1")
        .bind(other.bytes().as_slice())
        .write(connection, "removing alarms")
        .await
        .map(drop)
}

/// The alarms of a device that is the machine `own`, newest first.
pub async fn alarms(
    connection: &mut Connection,
    device: DeviceId,
    own: &MachineId,
) -> Result<Vec<Alarm>, StoreError> {
    const ACTION: &str = "reading alarms";
    let rows = sqlx::query(
        "SELECT machine, message, time FROM alarms WHERE device = $1 ORDER BY time DESC",
    )
    .bind(device.to_string())
    .all(connection, ACTION)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Alarm {
                time: Timestamp::from_millisecond(row.try_get("time").tried(ACTION)?)
                    .unwrap_or_default(),
                own: own.to_string(),
                other: machine_id(ACTION, row.try_get("machine").tried(ACTION)?)?.to_string(),
                message: row.try_get("message").tried(ACTION)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::fresh;

    #[tokio::test]
    async fn a_decision_outlives_what_the_machine_says_next() {
        let (_directory, store) = fresh().await;
        let mut writer = store.write().await.unwrap();
        let machine = MachineId::from_bytes([1; 32]);
        let status = WaitingMachineStatus::default();
        put(&mut writer, &machine, &status, 5).await.unwrap();
        let decision = Decision {
            decision: WaitingDecision::Approved,
            by: "admin",
            name: "press",
            labels: &BTreeMap::new(),
        };
        decide(&mut writer, &machine, decision).await.unwrap();
        put(&mut writer, &machine, &status, 9).await.unwrap();
        let found = get(&mut writer, &machine).await.unwrap().unwrap();
        assert_eq!(
            (found.status.decision, found.name.as_str()),
            (WaitingDecision::Approved, "press")
        );
        assert_eq!(found.status.first_seen.unwrap().as_millisecond(), 5);
        assert_eq!(found.status.last_seen.unwrap().as_millisecond(), 9);
        // What was decided is not swept out to make room.
        assert!(
            !make_room(&mut writer, AttestationLevel::None, 100)
                .await
                .unwrap()
        );
    }

    #[tokio::test]
    async fn room_is_made_by_those_that_left() {
        let (_directory, store) = fresh().await;
        let mut writer = store.write().await.unwrap();
        let status = WaitingMachineStatus::default();
        for number in 1..4 {
            let machine = MachineId::from_bytes([number; 32]);
            put(&mut writer, &machine, &status, i64::from(number))
                .await
                .unwrap();
        }
        let level = AttestationLevel::None;
        assert!(make_room(&mut writer, level, 2).await.unwrap());
        assert!(!make_room(&mut writer, level, 2).await.unwrap());
        assert_eq!(count(&mut writer, level).await.unwrap(), 2);
        assert_eq!(count(&mut writer, AttestationLevel::Gold).await.unwrap(), 0);
    }
}
