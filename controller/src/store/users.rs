//! Users and their tokens. Neither passwords nor tokens lie here, only what they can be checked with.

use sqlx::Row as _;

use super::{Connection, StoreError, Tried as _};

/// What a user's password is checked with.
pub async fn password(
    connection: &mut Connection,
    name: &str,
) -> Result<Option<String>, StoreError> {
    sqlx::query_scalar("SELECT password FROM users WHERE name = $1")
        .bind(name)
        .fetch_optional(connection)
        .await
        .tried("reading a user")
}

/// Writes a user.
pub async fn set_password(
    connection: &mut Connection,
    name: &str,
    password: &str,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO users (name, password) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET password = excluded.password")
        .bind(name)
        .bind(password)
        .execute(connection)
        .await
        .tried("writing a user")?;
    Ok(())
}

/// Writes a token's hash, and removes those that have expired.
pub async fn add_token(
    connection: &mut Connection,
    hash: &[u8],
    owner: &str,
    expires: i64,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM tokens WHERE expires <= $1")
        .bind(now)
        .execute(&mut *connection)
        .await
        .tried("removing old tokens")?;
    sqlx::query("INSERT INTO tokens (hash, owner, expires) VALUES ($1, $2, $3)")
        .bind(hash)
        .bind(owner)
        .bind(expires)
        .execute(connection)
        .await
        .tried("writing a token")?;
    Ok(())
}

/// Whose token it is, and when it expires, in milliseconds.
pub async fn token(
    connection: &mut Connection,
    hash: &[u8],
) -> Result<Option<(String, i64)>, StoreError> {
    let row = sqlx::query("SELECT owner, expires FROM tokens WHERE hash = $1")
        .bind(hash)
        .fetch_optional(connection)
        .await
        .tried("reading a token")?;
    row.map(|row| {
        Ok((
            row.try_get("owner").tried("reading a token")?,
            row.try_get("expires").tried("reading a token")?,
        ))
    })
    .transpose()
}
