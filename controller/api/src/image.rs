//! References to images by digest. A tag can change under one's feet; a digest cannot, so only digests are taken.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Longest repository name, in bytes (OCI distribution specification: registries commonly allow 255 with the host).
const MAX_REPOSITORY: usize = 255;

/// `repository@sha256:hex`, without the registry's host, which the datastore names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageReference {
    repository: String,
    digest: Sha256Digest,
}

impl ImageReference {
    /// The repository, such as `tools/hello`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The manifest's digest.
    pub fn digest(&self) -> &Sha256Digest {
        &self.digest
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}@{}", self.repository, self.digest)
    }
}

/// A SHA-256 digest; its text form is `sha256:` and 64 lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sha256Digest(String);

impl Sha256Digest {
    /// The 64 hex digits.
    pub fn hex(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "sha256:{}", self.0)
    }
}

impl FromStr for Sha256Digest {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let hex = text
            .strip_prefix("sha256:")
            .ok_or_else(|| ReferenceError::Algorithm(text.to_owned()))?;
        if hex.len() == 64
            && hex
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        {
            Ok(Self(hex.to_owned()))
        } else {
            Err(ReferenceError::Digest(text.to_owned()))
        }
    }
}

impl FromStr for ImageReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (repository, digest) = text
            .split_once('@')
            .ok_or_else(|| ReferenceError::NoDigest(text.to_owned()))?;
        let fits =
            repository.len() <= MAX_REPOSITORY && repository.split('/').all(is_path_component);
        if !fits {
            return Err(ReferenceError::Repository(repository.to_owned()));
        }
        Ok(Self {
            repository: repository.to_owned(),
            digest: digest.parse()?,
        })
    }
}

/// One part of a repository name: runs of letters and digits, separated by `.`, `_`, `__` or dashes
/// (OCI distribution specification, "Pulling manifests").
fn is_path_component(part: &str) -> bool {
    let alphanumeric = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    part.starts_with(alphanumeric)
        && part.ends_with(alphanumeric)
        && part.split(alphanumeric).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        })
}

/// Why a text is not an [`ImageReference`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// No `@`.
    #[error(
        "image reference `{0}` has no digest; write repository@sha256:..., tags are not taken because they can change"
    )]
    NoDigest(String),
    /// Repository name not as the OCI specification wants it.
    #[error(
        "`{0}` is not a repository name: lower-case letters and digits, separated by `/`, `.`, `_` or `-`, without a host or a tag"
    )]
    Repository(String),
    /// A digest of another algorithm.
    #[error("digest `{0}` does not begin with `sha256:`")]
    Algorithm(String),
    /// Not 64 hex digits.
    #[error("digest `{0}` is not `sha256:` and 64 lower-case hex digits")]
    Digest(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_repository_and_a_digest() {
        let hex = "ab".repeat(32);
        let text = format!("tools/hello-world__x@sha256:{hex}");
        let reference: ImageReference = text.parse().unwrap();
        assert_eq!(reference.repository(), "tools/hello-world__x");
        assert_eq!(reference.digest().hex(), hex);
        assert_eq!(reference.to_string(), text);
    }

    #[test]
    fn refuses_what_is_not_one() {
        let hex = "ab".repeat(32);
        for text in [
            "hello:latest".to_owned(),
            "hello".to_owned(),
            format!("hello:1@sha256:{hex}"),
            format!("@sha256:{hex}"),
            format!("a//b@sha256:{hex}"),
            format!("../x@sha256:{hex}"),
            format!("Hello@sha256:{hex}"),
            format!("a___b@sha256:{hex}"),
            format!("hello@sha512:{hex}"),
            format!("hello@sha256:{}", &hex[1..]),
            format!("hello@sha256:{}", hex.to_uppercase()),
            format!("hello@sha256:{hex}\n"),
            format!("h\u{e4}llo@sha256:{hex}"),
        ] {
            assert!(text.parse::<ImageReference>().is_err(), "{text}");
        }
    }
}
