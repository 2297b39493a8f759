//! Logs of devices and apps, chunk by chunk as they were uploaded. An owner is either: the uid of its object. Each owner's oldest
//! chunks go when it has more than its share.

use sqlx::Row as _;
use uuid::Uuid;

use super::{Connection, StoreError, Tried as _};

/// Most chunks of one owner, whatever their size.
const MAX_CHUNKS: i64 = 4096;

/// An uploaded chunk: one gzip member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Grows with every chunk of any owner.
    pub seq: i64,
    /// The gzip member as it came.
    pub body: Vec<u8>,
}

/// Adds a chunk and removes the oldest beyond `share` bytes; a chunk that is there already is not added again.
pub async fn append(
    connection: &mut Connection,
    owner: Uuid,
    body: &[u8],
    share: i64,
) -> Result<bool, StoreError> {
    let size = i64::try_from(body.len()).unwrap_or(i64::MAX);
    let done = sqlx::query("INSERT INTO logs (owner, digest, size, body) VALUES ($1, $2, $3, $4) ON CONFLICT (owner, digest) DO NOTHING")
        .bind(owner.to_string())
        .bind(protocol::keys::sha256(body).as_slice())
        .bind(size)
        .bind(body)
        .execute(&mut *connection)
        .await
        .tried("writing a log")?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query(
        "DELETE FROM logs WHERE seq IN (SELECT seq FROM (SELECT seq, SUM(size) OVER newest AS total, COUNT(*) OVER newest AS place \
         FROM logs WHERE owner = $1 WINDOW newest AS (ORDER BY seq DESC)) AS running WHERE total > $2 OR place > $3)",
    )
    .bind(owner.to_string())
    .bind(share.max(size))
    .bind(MAX_CHUNKS)
    .execute(connection)
    .await
    .tried("bounding a log")?;
    Ok(true)
}

/// The newest chunk older than `before`.
pub async fn newest_before(
    connection: &mut Connection,
    owner: Uuid,
    before: i64,
) -> Result<Option<Chunk>, StoreError> {
    let row = sqlx::query(
        "SELECT seq, body FROM logs WHERE owner = $1 AND seq < $2 ORDER BY seq DESC LIMIT 1",
    )
    .bind(owner.to_string())
    .bind(before)
    .fetch_optional(connection)
    .await
    .tried("reading a log")?;
    row.as_ref().map(chunk).transpose()
}

/// The oldest chunk newer than `after`.
pub async fn oldest_after(
    connection: &mut Connection,
    owner: Uuid,
    after: i64,
) -> Result<Option<Chunk>, StoreError> {
    let row = sqlx::query(
        "SELECT seq, body FROM logs WHERE owner = $1 AND seq > $2 ORDER BY seq LIMIT 1",
    )
    .bind(owner.to_string())
    .bind(after)
    .fetch_optional(connection)
    .await
    .tried("reading a log")?;
    row.as_ref().map(chunk).transpose()
}

fn chunk(row: &sqlx::sqlite::SqliteRow) -> Result<Chunk, StoreError> {
    Ok(Chunk {
        seq: row.try_get("seq").tried("reading a log")?,
        body: row.try_get("body").tried("reading a log")?,
    })
}

/// Removes an owner's log.
pub async fn delete(connection: &mut Connection, owner: Uuid) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM logs WHERE owner = $1")
        .bind(owner.to_string())
        .execute(connection)
        .await
        .tried("deleting a log")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::fresh;

    #[tokio::test]
    async fn the_oldest_go_when_the_share_is_used_up() {
        let (_directory, store) = fresh().await;
        let mut writer = store.write().await.unwrap();
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        for number in 0..10_u8 {
            assert!(append(&mut writer, one, &[number; 10], 35).await.unwrap());
        }
        assert!(
            !append(&mut writer, one, &[9; 10], 35).await.unwrap(),
            "sent twice, stored once"
        );
        assert!(append(&mut writer, other, &[0; 10], 35).await.unwrap());
        let mut seen = Vec::new();
        let mut before = i64::MAX;
        while let Some(chunk) = newest_before(&mut writer, one, before).await.unwrap() {
            before = chunk.seq;
            seen.push(chunk.body[0]);
        }
        assert_eq!(seen, [9, 8, 7]);
        let first = oldest_after(&mut writer, one, 0).await.unwrap().unwrap();
        assert_eq!(first.body, [7; 10]);
        assert!(
            append(&mut writer, one, &[77; 100], 35).await.unwrap(),
            "a chunk larger than the share is kept alone"
        );
        assert_eq!(
            oldest_after(&mut writer, one, 0)
                .await
                .unwrap()
                .unwrap()
                .body,
            [77; 100]
        );
        delete(&mut writer, one).await.unwrap();
        assert_eq!(oldest_after(&mut writer, one, 0).await.unwrap(), None);
        assert!(oldest_after(&mut writer, other, 0).await.unwrap().is_some());
    }
}
