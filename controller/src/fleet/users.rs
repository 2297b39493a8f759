//! Who is an operator: passwords, tokens. One user so far, `admin`; roles come with projects.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use operator_api::{TokenRequest, TokenResponse};
use protocol::keys::sha256;
use ring::pbkdf2;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::{Fault, Fleet};
use crate::store::{Store, StoreError, damaged, users};

/// The user that the first start makes.
pub const ADMIN: &str = "admin";
/// Rounds of PBKDF2 with HMAC-SHA-256 for new passwords (OWASP Password Storage Cheat Sheet, 2023: 600,000).
const ROUNDS: u32 = 600_000;
/// Longest password, in bytes; hashing a longer one would only cost time.
const MAX_PASSWORD: usize = 1024;
/// Begins every token, so that people and scanners know one when they see it.
const TOKEN_PREFIX: &str = "skerry_";

/// An operator who proved to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
}

/// Makes the first user if there is none. Gives whether it did.
///
/// `keep` gets the password and has to make it outlive a power cut: only then is the user committed, since a user whose
/// password nobody knows would lock the operator out for ever. A cut in between leaves a password that the next start
/// replaces.
///
/// # Errors
/// If the store does not take it, the random source fails, or what `keep` gives.
pub async fn ensure_admin<E: From<StoreError>>(
    store: &Store,
    keep: impl FnOnce(&str) -> Result<(), E>,
) -> Result<bool, E> {
    let mut writer = store.write().await?;
    if users::password(&mut writer, ADMIN).await?.is_some() {
        return Ok(false);
    }
    let failed = |_| damaged("making the first user", ADMIN, "the random source failed");
    let password = random_text(18).map_err(failed)?;
    let stored = hash(&password).map_err(failed)?;
    users::set_password(&mut writer, ADMIN, &stored).await?;
    keep(&password)?;
    writer.commit().await?;
    Ok(true)
}

fn random_text(bytes: usize) -> Result<String, ring::error::Unspecified> {
    let mut random = vec![0; bytes];
    SystemRandom::new().fill(&mut random)?;
    Ok(URL_SAFE_NO_PAD.encode(random))
}

/// `pbkdf2-sha256$rounds$salt$hash`.
fn hash(password: &str) -> Result<String, ring::error::Unspecified> {
    let mut salt = [0; 16];
    SystemRandom::new().fill(&mut salt)?;
    let mut out = [0; 32];
    let rounds = NonZeroU32::new(ROUNDS).ok_or(ring::error::Unspecified)?;
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        rounds,
        &salt,
        password.as_bytes(),
        &mut out,
    );
    Ok(format!(
        "pbkdf2-sha256${ROUNDS}${}${}",
        STANDARD_NO_PAD.encode(salt),
        STANDARD_NO_PAD.encode(out)
    ))
}

fn fits(password: &str, stored: &str) -> bool {
    let mut parts = stored.split('$');
    let (Some("pbkdf2-sha256"), Some(rounds), Some(salt), Some(hash), None) = (
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
    ) else {
        return false;
    };
    let (Ok(rounds), Ok(salt), Ok(hash)) = (
        rounds.parse(),
        STANDARD_NO_PAD.decode(salt),
        STANDARD_NO_PAD.decode(hash),
    ) else {
        return false;
    };
    pbkdf2::verify(
        pbkdf2::PBKDF2_HMAC_SHA256,
        rounds,
        &salt,
        password.as_bytes(),
        &hash,
    )
    .is_ok()
}

impl Fleet {
    /// Logs a user in.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`] without saying whether it was the name or the password.
    pub async fn log_in(&self, request: TokenRequest) -> Result<TokenResponse, Fault> {
        const WRONG: Fault = Fault::Unauthenticated("user name or password is wrong");
        if request.password.len() > MAX_PASSWORD {
            return Err(WRONG);
        }
        // Hashing is slow on purpose, so only so many wait for it; guessing is slow by the same.
        let Ok(_permit) = self.password_checks.try_acquire() else {
            return Err(Fault::TooMany(
                "too many people are logging in; try again in a second",
            ));
        };
        let stored = users::password(&mut *self.store.read().await?, &request.user).await?;
        let password = request.password;
        let known = stored.is_some();
        // An unknown name takes as long as a wrong password.
        let stored = stored.unwrap_or_else(|| {
            format!(
                "pbkdf2-sha256${ROUNDS}${}${}",
                "A".repeat(22),
                "A".repeat(43)
            )
        });
        let fits = tokio::task::spawn_blocking(move || fits(&password, &stored))
            .await
            .map_err(|error| Fault::Internal(format!("checking a password: {error}")))?;
        if !(known && fits) {
            tracing::warn!(user = %request.user.chars().take(64).collect::<String>(), "refused to log in");
            return Err(WRONG);
        }
        let secret = random_text(32)
            .map_err(|_| Fault::Internal("making a token: the random source failed".to_owned()))?;
        let token = format!("{TOKEN_PREFIX}{secret}");
        let now = Timestamp::now();
        let lifetime = SignedDuration::try_from(self.settings.token_lifetime)
            .unwrap_or(SignedDuration::from_hours(24));
        let expires = now + lifetime;
        let mut writer = self.store.write().await?;
        users::add_token(
            &mut writer,
            &sha256(token.as_bytes()),
            &request.user,
            expires.as_millisecond(),
            now.as_millisecond(),
        )
        .await?;
        writer.commit().await?;
        Ok(TokenResponse {
            token,
            user: request.user,
            expires,
        })
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`] if it is unknown or too old.
    pub async fn authenticate(&self, token: &str) -> Result<User, Fault> {
        let found = users::token(&mut *self.store.read().await?, &sha256(token.as_bytes())).await?;
        match found {
            Some((name, expires)) if expires > Timestamp::now().as_millisecond() => {
                Ok(User { name })
            }
            Some(_) => Err(Fault::Unauthenticated(
                "the token has expired; log in again",
            )),
            None => Err(Fault::Unauthenticated(
                "the token is not known; log in again",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_known_again() {
        let stored = hash("correct horse").unwrap();
        assert!(fits("correct horse", &stored));
        assert!(!fits("correct hors", &stored));
        assert!(!fits("", ""));
        assert!(!fits("x", "pbkdf2-sha256$0$AAAA$AAAA"));
        assert!(!fits("x", &format!("{stored}$")));
    }
}
