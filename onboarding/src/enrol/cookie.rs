//! The controller's memory of a challenge, which travels with the challenge: a flood of Hellos costs no room.

use prost::Message as _;
use protocol::enrolment::transcript::Secret;
use protocol::enrolment::wire::ChallengePayload;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::{EnrolError, random};

/// Seals what the controller must remember of a challenge into the challenge itself. It serves at most 2^32 challenges, because its
/// nonces are random; a fresh one at each start of the controller costs the devices that are just then between two flights another try.
pub struct CookieKey([u8; 32]);

impl CookieKey {
    /// From 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A fresh one.
    ///
    /// # Errors
    /// [`EnrolError::Random`].
    pub fn random() -> Result<Self, EnrolError> {
        Ok(Self(random()?))
    }

    fn cipher(&self) -> Option<LessSafeKey> {
        UnboundKey::new(&AES_256_GCM, &self.0)
            .ok()
            .map(LessSafeKey::new)
    }

    /// Everything in the payload but the cookie itself.
    fn bound(payload: &ChallengePayload) -> Vec<u8> {
        ChallengePayload {
            cookie: vec![],
            ..payload.clone()
        }
        .encode_to_vec()
    }

    pub(super) fn seal(
        &self,
        payload: &ChallengePayload,
        secret: &Secret,
    ) -> Result<Vec<u8>, EnrolError> {
        let nonce: [u8; NONCE_LEN] = random()?;
        let mut sealed = secret.expose().to_vec();
        self.cipher()
            .and_then(|cipher| {
                cipher
                    .seal_in_place_append_tag(
                        Nonce::assume_unique_for_key(nonce),
                        Aad::from(Self::bound(payload)),
                        &mut sealed,
                    )
                    .ok()
            })
            .ok_or(EnrolError::Random)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// The secret, if this key made the cookie for this very challenge.
    pub(super) fn open(&self, payload: &ChallengePayload) -> Option<Secret> {
        let (nonce, sealed) = payload.cookie.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let clear = self
            .cipher()?
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(Self::bound(payload)),
                &mut sealed,
            )
            .ok()?;
        Secret::from_slice(clear)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_opens_in_its_own_challenge_only() {
        let (key, other) = (CookieKey::random().unwrap(), CookieKey::random().unwrap());
        let secret = Secret::new([7; 32]);
        let mut payload = ChallengePayload {
            hello_hash: vec![1; 32],
            nonce: vec![2; 32],
            lifetime_seconds: 60,
            server_time_ms: 1_000,
            ..ChallengePayload::default()
        };
        payload.cookie = key.seal(&payload, &secret).unwrap();
        assert_eq!(key.open(&payload), Some(secret));
        assert_eq!(other.open(&payload), None);
        let changes: [fn(&mut ChallengePayload); 5] = [
            |p| p.hello_hash[0] ^= 1,
            |p| p.nonce[0] ^= 1,
            |p| p.lifetime_seconds += 1,
            |p| p.server_time_ms += 1,
            |p| p.cookie[20] ^= 1,
        ];
        for change in changes {
            let mut changed = payload.clone();
            change(&mut changed);
            assert_eq!(key.open(&changed), None, "{changed:?}");
        }
        for length in 0..payload.cookie.len() {
            let mut cut = payload.clone();
            cut.cookie.truncate(length);
            assert_eq!(key.open(&cut), None, "{length}");
        }
    }
}
