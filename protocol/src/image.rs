//! How an image is called: the repository's name and the digest of its manifest.
//!
//! A tag can change under one's feet; a digest cannot, so only digests are taken.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::digest::{Digest, DigestError};

/// Largest manifest, index or image config that is pushed or pulled, in bytes: what registries should at least take
/// (OCI distribution specification, "Pushing Manifests").
pub const MAX_MANIFEST: u64 = 4 << 20;

/// Longest repository name, in bytes (OCI distribution specification: registries commonly allow 255 with the host).
const MAX_REPOSITORY: usize = 255;

/// Name of a repository in a registry, such as `tools/hello`, without host, tag or digest. Being checked it is harmless in
/// a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(String);

impl Repository {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is not the name of a repository.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} is not the name of a repository: lower-case letters and digits, separated by `/`, `.`, `_` or `-`, without a host or a tag"
)]
pub struct RepositoryError(String);

impl FromStr for Repository {
    type Err = RepositoryError;

    fn from_str(text: &str) -> Result<Self, RepositoryError> {
        if text.len() <= MAX_REPOSITORY && text.split('/').all(is_path_component) {
            Ok(Self(text.to_owned()))
        } else {
            Err(RepositoryError(text.chars().take(MAX_REPOSITORY).collect()))
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
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

/// `repository@sha256:hex`, without the registry's host, which the datastore names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageReference {
    /// Where in the registry.
    pub repository: Repository,
    /// Digest of its manifest.
    pub digest: Digest,
}

impl fmt::Display for ImageReference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}@{}", self.repository, self.digest)
    }
}

impl FromStr for ImageReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (repository, digest) = text
            .split_once('@')
            .ok_or_else(|| ReferenceError::NoDigest(text.to_owned()))?;
        Ok(Self {
            repository: repository.parse()?,
            digest: digest.parse()?,
        })
    }
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
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// Not a SHA-256 digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_repository_and_a_digest() {
        let hex = "ab".repeat(32);
        let text = format!("tools/hello-world__x@sha256:{hex}");
        let reference: ImageReference = text.parse().unwrap();
        assert_eq!(reference.repository.as_str(), "tools/hello-world__x");
        assert_eq!(reference.digest.hex(), hex);
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

    #[test]
    fn repository_names_are_checked() {
        for good in [
            "hello",
            "a/b/c",
            "library/debian-12",
            "a__b",
            "a--b",
            "x.y/z",
            &"a".repeat(255),
        ] {
            assert_eq!(good.parse::<Repository>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a/../b",
            "a?x",
            "a#x",
            "a b",
            "a/..",
            "-a",
            "a%2f",
            &"a".repeat(256),
        ] {
            assert!(bad.parse::<Repository>().is_err(), "{bad}");
        }
    }
}
