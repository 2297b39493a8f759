//! SHA-256 as a value: 32 bytes, and never an unchecked string that ends up in a path.
//!
//! | text | where |
//! |---|---|
//! | `sha256:` and 64 digits | images, in every protocol: how a [`Digest`] is read, printed and serialised |
//! | 64 digits alone | names of files, EVE's messages, `parts.json`: [`Digest::hex`], [`Digest::from_hex`] |
//!
//! The digits are lower case, always: so a name on a disk stands for one digest, and a digest for one name.

use std::fmt;
use std::str::FromStr;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// A text that is no digest. It carries the text's beginning.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DigestError {
    /// Where a digest with its algorithm is wanted.
    #[error(
        "{0:?} is not a digest; expected sha256: and 64 hexadecimal digits, letters in lower case"
    )]
    Prefixed(String),
    /// Where the digits alone are wanted.
    #[error("{0:?} is not a SHA-256 digest: 64 lower-case hexadecimal digits are needed")]
    Bare(String),
}

impl Digest {
    /// The digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Wraps the 32 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Reads 64 hexadecimal digits without a prefix.
    ///
    /// # Errors
    /// [`DigestError::Bare`].
    pub fn from_hex(text: &str) -> Result<Self, DigestError> {
        read(text).ok_or_else(|| DigestError::Bare(beginning(text)))
    }
}

fn read(text: &str) -> Option<Digest> {
    let mut bytes = [0; 32];
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(Digest(bytes))
}

fn beginning(text: &str) -> String {
    text.chars().take(100).collect()
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        text.strip_prefix("sha256:")
            .and_then(read)
            .ok_or_else(|| DigestError::Prefixed(beginning(text)))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// SHA-256 over bytes that come in pieces.
#[derive(Clone)]
pub struct Hasher(Context);

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

impl Hasher {
    /// Nothing hashed yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes taken.
    #[must_use]
    pub fn finish(self) -> Digest {
        let mut bytes = [0; 32];
        for (to, from) in bytes.iter_mut().zip(self.0.finish().as_ref()) {
            *to = *from;
        }
        Digest(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // FIPS 180-2, the digest of "abc".
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn both_forms_are_read_and_printed() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.hex(), ABC);
        assert_eq!(Digest::from_hex(ABC).unwrap(), digest);
        let text = format!("sha256:{ABC}");
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), digest);
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(json, format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
    }

    #[test]
    fn pieces_make_the_digest_of_the_whole() {
        let mut hasher = Hasher::new();
        for piece in [b"a".as_slice(), b"", b"bc"] {
            hasher.update(piece);
        }
        assert_eq!(hasher.finish(), Digest::of(b"abc"));
    }

    #[test]
    fn digests_are_read_strictly() {
        for wrong in [
            "",
            "ba78",
            &ABC[1..],
            &ABC.to_uppercase(),
            &ABC.replace('b', "g"),
            &format!("{ABC}00"),
            &format!("{ABC}\n"),
            "../../../../../../../../../../../../../../../../etc/passwd000000",
        ] {
            assert!(Digest::from_hex(wrong).is_err(), "{wrong}");
            assert!(format!("sha256:{wrong}").parse::<Digest>().is_err());
        }
        for wrong in [ABC.to_owned(), format!("sha512:{ABC}")] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
        assert!(Digest::from_hex(&format!("sha256:{ABC}")).is_err());
    }
}
