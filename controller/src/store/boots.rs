//! Boots of devices: verdicts, counters, PCR values, event log. Each device keeps its last ones, and the last good one always.

use std::collections::BTreeMap;

use jiff::Timestamp;
use operator_api::{Attestation, BootOccasion};
use protocol::ids::DeviceId;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::{Connection, StoreError, Tried as _, Use as _, from_json, json};

const ACTION: &str = "reading a boot";
/// Boots that are kept of a device.
const MAX_BOOTS: i64 = 16;
/// Longest event log that is kept, packed, in bytes.
const MAX_LOG: usize = 128 << 10;

/// A boot as it was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// What showed it.
    pub occasion: BootOccasion,
    /// When it was first seen, in milliseconds.
    pub time: i64,
    /// The TPM's reset and restart counts.
    pub counts: Option<(u32, u32)>,
    /// The verdicts.
    pub attestation: Attestation,
    /// Values of the PCRs, in hexadecimal.
    pub pcrs: BTreeMap<String, String>,
    /// The event log, gzip.
    pub event_log: Option<Vec<u8>>,
}

/// A boot that is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// Grows with every boot of any device.
    pub seq: i64,
    /// What was seen.
    pub seen: Seen,
}

fn word(occasion: BootOccasion) -> &'static str {
    match occasion {
        BootOccasion::Enrolment => "enrolment",
        BootOccasion::Attestation => "attestation",
    }
}

fn from_row(row: &SqliteRow) -> Result<Kept, StoreError> {
    let text = |column: &str| row.try_get::<String, _>(column).tried(ACTION);
    let number = |column: &str| row.try_get::<Option<i64>, _>(column).tried(ACTION);
    let count = |value: i64| u32::try_from(value).unwrap_or(u32::MAX);
    Ok(Kept {
        seq: row.try_get("seq").tried(ACTION)?,
        seen: Seen {
            occasion: from_json(ACTION, "a boot", &format!("\"{}\"", text("occasion")?))?,
            time: row.try_get("time").tried(ACTION)?,
            counts: number("reset_count")?
                .zip(number("restart_count")?)
                .map(|(resets, restarts)| (count(resets), count(restarts))),
            attestation: from_json(ACTION, "a boot", &text("attestation")?)?,
            pcrs: from_json(ACTION, "a boot", &text("pcrs")?)?,
            event_log: row.try_get("event_log").tried(ACTION)?,
        },
    })
}

/// Writes a boot. The same boot seen again, by its counts, is written over; one without counts is written over if it came to the same.
pub async fn put(
    connection: &mut Connection,
    device: DeviceId,
    seen: &Seen,
    good: bool,
) -> Result<(), StoreError> {
    const ACTION: &str = "writing a boot";
    let attestation = json(ACTION, "a boot", &seen.attestation)?;
    let pcrs = json(ACTION, "a boot", &seen.pcrs)?;
    let log = seen.event_log.as_deref().filter(|log| log.len() <= MAX_LOG);
    let last = sqlx::query(
        "SELECT seq, reset_count, restart_count, good FROM boots WHERE device = $1 AND occasion = $2 ORDER BY seq DESC LIMIT 1",
    )
    .bind(device.to_string())
    .bind(word(seen.occasion))
    .find(connection, ACTION)
    .await?;
    let first = last.is_none();
    if let Some(last) = last {
        let number = |column: &str| last.try_get::<Option<i64>, _>(column).tried(ACTION);
        let counts = number("reset_count")?.zip(number("restart_count")?);
        let now = seen
            .counts
            .map(|(resets, restarts)| (i64::from(resets), i64::from(restarts)));
        let was_good: i64 = last.try_get("good").tried(ACTION)?;
        if counts == now && (was_good != 0) == good {
            let seq: i64 = last.try_get("seq").tried(ACTION)?;
            return sqlx::query(
                "UPDATE boots SET attestation = $2, pcrs = $3, event_log = $4 WHERE seq = $1",
            )
            .bind(seq)
            .bind(attestation)
            .bind(pcrs)
            .bind(log)
            .write(connection, ACTION)
            .await
            .map(drop);
        }
    }
    sqlx::query(
        "INSERT INTO boots (device, occasion, time, reset_count, restart_count, good, attestation, pcrs, event_log) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(device.to_string())
    .bind(word(seen.occasion))
    .bind(seen.time)
    .bind(seen.counts.map(|(resets, _)| i64::from(resets)))
    .bind(seen.counts.map(|(_, restarts)| i64::from(restarts)))
    .bind(i64::from(good))
    .bind(attestation)
    .bind(pcrs)
    .bind(log)
    .write(connection, ACTION)
    .await?;
    if first {
        // Most devices that enrol are new, and there is nothing to bound yet.
        return Ok(());
    }
    sqlx::query(
        "DELETE FROM boots WHERE device = $1 AND seq NOT IN (SELECT seq FROM boots WHERE device = $1 ORDER BY seq DESC LIMIT $2) \
         AND seq <> COALESCE((SELECT MAX(seq) FROM boots WHERE device = $1 AND good = 1), -1)",
    )
    .bind(device.to_string())
    .bind(MAX_BOOTS)
    .write(connection, "bounding boots")
    .await
    .map(drop)
}

/// A device's boots, newest first.
pub async fn list(connection: &mut Connection, device: DeviceId) -> Result<Vec<Kept>, StoreError> {
    sqlx::query("SELECT * FROM boots WHERE device = $1 ORDER BY seq DESC")
        .bind(device.to_string())
        .all(connection, ACTION)
        .await?
        .iter()
        .map(from_row)
        .collect()
}

/// The last good boot with an event log.
pub async fn last_good(
    connection: &mut Connection,
    device: DeviceId,
) -> Result<Option<Kept>, StoreError> {
    sqlx::query(
        "SELECT * FROM boots WHERE device = $1 AND good = 1 AND event_log IS NOT NULL ORDER BY seq DESC LIMIT 1",
    )
    .bind(device.to_string())
    .find(connection, ACTION)
    .await?
    .as_ref()
    .map(from_row)
    .transpose()
}

/// When a boot was first seen, as operators are shown it.
#[must_use]
pub fn time(milliseconds: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(milliseconds).ok()
}

#[cfg(test)]
mod tests {
    use operator_api::{Device, DeviceSpec, Object as _};

    use super::*;
    use crate::store::objects;
    use crate::store::tests::fresh;

    fn seen(resets: u32) -> Seen {
        Seen {
            occasion: BootOccasion::Attestation,
            time: i64::from(resets),
            counts: Some((resets, 0)),
            attestation: Attestation::default(),
            pcrs: BTreeMap::new(),
            event_log: Some(vec![1]),
        }
    }

    #[tokio::test]
    async fn the_last_boots_are_kept_and_the_last_good_one() {
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
        put(&mut writer, device, &seen(1), true).await.unwrap();
        for resets in 2..40 {
            put(&mut writer, device, &seen(resets), false)
                .await
                .unwrap();
            put(&mut writer, device, &seen(resets), false)
                .await
                .unwrap();
        }
        let kept = list(&mut writer, device).await.unwrap();
        assert_eq!(kept.len(), 17);
        assert_eq!(kept[0].seen.counts, Some((39, 0)));
        let good = last_good(&mut writer, device).await.unwrap().unwrap();
        assert_eq!(good.seen, seen(1));
    }
}
