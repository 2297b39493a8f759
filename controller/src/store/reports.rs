//! The last message of each sort that a device sent about each thing, as it came.

use protocol::ids::DeviceId;
use sqlx::Row as _;

use super::{Connection, Statement, StoreError, Tried as _, Use as _};

/// Most reports that are kept of one device: a thing for every app, volume, image and network, with room. Beyond it the oldest goes.
const MAX_REPORTS: i64 = 4096;

/// Writes a report unless a newer one of its sort about the same thing is there; says whether it was written.
///
/// `told` is the device's time in milliseconds. A stored time later than `horizon` counts for nothing: the device's clock was wrong.
pub async fn put(
    connection: &mut Connection,
    device: DeviceId,
    key: (&str, &str),
    told: i64,
    horizon: i64,
    body: &[u8],
) -> Result<bool, StoreError> {
    let written = about(
        device,
        key,
        "INSERT INTO reports (device, sort, about, told, body) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (device, sort, about) DO UPDATE SET told = excluded.told, body = excluded.body \
         WHERE reports.told <= excluded.told OR reports.told > $6",
    )
    .bind(told)
    .bind(body)
    .bind(horizon)
    .write(connection, "writing a report")
    .await?;
    sqlx::query(
        "DELETE FROM reports WHERE device = $1 AND (sort, about) IN \
         (SELECT sort, about FROM reports WHERE device = $1 ORDER BY told DESC LIMIT -1 OFFSET $2)",
    )
    .bind(device.to_string())
    .bind(MAX_REPORTS)
    .write(connection, "bounding reports")
    .await?;
    Ok(written > 0)
}

/// One report, if there is one.
pub async fn get(
    connection: &mut Connection,
    device: DeviceId,
    key: (&str, &str),
) -> Result<Option<Vec<u8>>, StoreError> {
    const ACTION: &str = "reading a report";
    about(
        device,
        key,
        "SELECT body FROM reports WHERE device = $1 AND sort = $2 AND about = $3",
    )
    .find(connection, ACTION)
    .await?
    .map(|row| row.try_get("body").tried(ACTION))
    .transpose()
}

/// A statement about one report: its device, sort and thing are the first values.
fn about<'q>(device: DeviceId, key: (&'q str, &'q str), sql: &'static str) -> Statement<'q> {
    sqlx::query(sql)
        .bind(device.to_string())
        .bind(key.0)
        .bind(key.1)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use operator_api::{Device, DeviceSpec, Object as _};

    use super::*;
    use crate::store::objects;
    use crate::store::tests::fresh;

    #[tokio::test]
    async fn an_older_report_does_not_replace_a_newer_one_unless_that_is_from_the_future() {
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
        let key = ("app", "x");
        assert!(
            put(&mut writer, device, key, 10, 100, b"first")
                .await
                .unwrap()
        );
        assert!(
            !put(&mut writer, device, key, 9, 100, b"replayed")
                .await
                .unwrap()
        );
        assert_eq!(
            get(&mut writer, device, key).await.unwrap().unwrap(),
            b"first"
        );
        assert!(
            put(&mut writer, device, key, 5000, 100, b"future")
                .await
                .unwrap()
        );
        assert!(
            put(&mut writer, device, key, 11, 100, b"clock set right")
                .await
                .unwrap()
        );
        assert_eq!(
            get(&mut writer, device, key).await.unwrap().unwrap(),
            b"clock set right"
        );
    }
}
