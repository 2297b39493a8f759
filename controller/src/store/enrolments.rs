//! Nonces that are used up: each with what used it up and what was answered, so that the same evidence gets the same answer, and other
//! evidence none. A row is kept until its challenge has run out anyway.

use onboarding::enrol::MachineId;
use sqlx::Row as _;

use super::{Connection, StoreError, Tried as _, Use as _};

const ACTION: &str = "reading a used nonce";

/// Bytes of a hash or nonce.
pub type Bytes32 = [u8; 32];

/// A nonce that is used up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// SHA-256 of the evidence that did.
    pub evidence: Vec<u8>,
    /// What was answered.
    pub answer: Vec<u8>,
}

/// What uses a nonce up.
#[derive(Clone, Copy, Debug)]
pub struct Use<'a> {
    /// The nonce.
    pub nonce: &'a Bytes32,
    /// Who answered it.
    pub machine: &'a MachineId,
    /// SHA-256 of the evidence.
    pub evidence: &'a Bytes32,
    /// Hash over everything said.
    pub transcript: &'a Bytes32,
    /// What is answered.
    pub answer: &'a [u8],
    /// When the challenge runs out, in milliseconds.
    pub deadline: i64,
}

/// What used a nonce up.
pub async fn used(
    connection: &mut Connection,
    nonce: &Bytes32,
) -> Result<Option<Used>, StoreError> {
    let row = sqlx::query("SELECT evidence, answer FROM enrolments WHERE nonce = $1")
        .bind(nonce.as_slice())
        .find(connection, ACTION)
        .await?;
    row.map(|row| {
        Ok(Used {
            evidence: row.try_get("evidence").tried(ACTION)?,
            answer: row.try_get("answer").tried(ACTION)?,
        })
    })
    .transpose()
}

/// Removes the nonces whose challenges have run out at `now`.
pub async fn forget(connection: &mut Connection, now: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM enrolments WHERE deadline < $1")
        .bind(now)
        .write(connection, "removing old nonces")
        .await
        .map(drop)
}

/// Uses a nonce up. It fails if the nonce was used before.
pub async fn strike_out(connection: &mut Connection, entry: Use<'_>) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO enrolments (nonce, machine, evidence, transcript, answer, deadline) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(entry.nonce.as_slice())
    .bind(entry.machine.bytes().as_slice())
    .bind(entry.evidence.as_slice())
    .bind(entry.transcript.as_slice())
    .bind(entry.answer)
    .bind(entry.deadline)
    .write(connection, "using a nonce up")
    .await
    .map(drop)
}

/// How many nonces a machine has used whose challenges have not run out at `now`; counted up to `limit`.
pub async fn of_machine(
    connection: &mut Connection,
    machine: &MachineId,
    now: i64,
    limit: i64,
) -> Result<i64, StoreError> {
    sqlx::query_scalar(
        "SELECT COUNT(*) FROM (SELECT 1 FROM enrolments WHERE machine = $1 AND deadline >= $2 LIMIT $3) AS some",
    )
    .bind(machine.bytes().as_slice())
    .bind(now)
    .bind(limit)
    .fetch_one(connection)
    .await
    .tried("counting a machine's nonces")
}

/// How many rows there are.
pub async fn count(connection: &mut Connection) -> Result<i64, StoreError> {
    sqlx::query_scalar("SELECT COUNT(*) FROM enrolments")
        .fetch_one(connection)
        .await
        .tried("counting used nonces")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::fresh;

    #[tokio::test]
    async fn a_nonce_is_used_once_and_forgotten_after_its_time() {
        let (_directory, store) = fresh().await;
        let mut writer = store.write().await.unwrap();
        let machine = MachineId::from_bytes([9; 32]);
        let entry = |nonce, deadline| Use {
            nonce,
            machine: &machine,
            evidence: &[2; 32],
            transcript: &[3; 32],
            answer: b"answer",
            deadline,
        };
        strike_out(&mut writer, entry(&[1; 32], 10)).await.unwrap();
        let found = used(&mut writer, &[1; 32]).await.unwrap().unwrap();
        assert_eq!(
            (found.evidence.as_slice(), found.answer.as_slice()),
            ([2; 32].as_slice(), b"answer".as_slice())
        );
        assert!(strike_out(&mut writer, entry(&[1; 32], 10)).await.is_err());
        assert_eq!(of_machine(&mut writer, &machine, 5, 8).await.unwrap(), 1);
        assert_eq!(of_machine(&mut writer, &machine, 11, 8).await.unwrap(), 0);
        strike_out(&mut writer, entry(&[4; 32], 20)).await.unwrap();
        forget(&mut writer, 11).await.unwrap();
        assert_eq!(used(&mut writer, &[1; 32]).await.unwrap(), None);
        assert_eq!(count(&mut writer).await.unwrap(), 1);
    }
}
