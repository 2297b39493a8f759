//! The last message of each sort that a device sent about each thing, as it came.

use sqlx::Row as _;
use uuid::Uuid;

use super::{Connection, StoreError, Tried as _};

/// Most reports that are kept of one device: a thing for every app, volume, image and network, with room. Beyond it the oldest goes.
const MAX_REPORTS: i64 = 4096;

/// Writes a report unless a newer one of its sort about the same thing is there; says whether it was written.
///
/// `told` is the device's time in milliseconds. A stored time later than `horizon` counts for nothing: the device's clock was wrong.
pub async fn put(
    connection: &mut Connection,
    device: Uuid,
    key: (&str, &str),
    told: i64,
    horizon: i64,
    body: &[u8],
) -> Result<bool, StoreError> {
    let (sort, about) = key;
    let done = sqlx::query(
        "INSERT INTO reports (device, sort, about, told, body) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (device, sort, about) DO UPDATE SET told = excluded.told, body = excluded.body \
         WHERE reports.told <= excluded.told OR reports.told > $6",
    )
    .bind(device.to_string())
    .bind(sort)
    .bind(about)
    .bind(told)
    .bind(body)
    .bind(horizon)
    .execute(&mut *connection)
    .await
    .tried("writing a report")?;
    sqlx::query(
        "DELETE FROM reports WHERE device = $1 AND (sort, about) IN \
         (SELECT sort, about FROM reports WHERE device = $1 ORDER BY told DESC LIMIT -1 OFFSET $2)",
    )
    .bind(device.to_string())
    .bind(MAX_REPORTS)
    .execute(connection)
    .await
    .tried("bounding reports")?;
    Ok(done.rows_affected() > 0)
}

/// One report, if there is one.
pub async fn get(
    connection: &mut Connection,
    device: Uuid,
    key: (&str, &str),
) -> Result<Option<Vec<u8>>, StoreError> {
    sqlx::query_scalar("SELECT body FROM reports WHERE device = $1 AND sort = $2 AND about = $3")
        .bind(device.to_string())
        .bind(key.0)
        .bind(key.1)
        .fetch_optional(connection)
        .await
        .tried("reading a report")
}

/// All reports of a device of one sort: what they are about, and their bodies.
pub async fn of_sort(
    connection: &mut Connection,
    device: Uuid,
    sort: &str,
) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
    let rows = sqlx::query(
        "SELECT about, body FROM reports WHERE device = $1 AND sort = $2 ORDER BY about",
    )
    .bind(device.to_string())
    .bind(sort)
    .fetch_all(connection)
    .await
    .tried("reading reports")?;
    rows.iter()
        .map(|row| {
            Ok((
                row.try_get("about").tried("reading reports")?,
                row.try_get("body").tried("reading reports")?,
            ))
        })
        .collect()
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
            of_sort(&mut writer, device, "app").await.unwrap(),
            [("x".to_owned(), b"clock set right".to_vec())]
        );
    }
}
