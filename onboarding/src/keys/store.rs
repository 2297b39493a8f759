//! The one file in which a device's identity is kept.
//!
//! ```text
//! (no file) --make keys, certify, write aside, sync, rename, sync directory--> identity.json
//! ```
//!
//! The rename is the moment at which the identity comes to be. A power cut before it leaves nothing behind but wrapped
//! keys that nobody has heard of, so the next start makes others; after it everything is there. With a TPM the file holds
//! no secret: the wrapped keys open in that TPM only. Without one it holds the keys themselves, marked as such, readable
//! by its owner only.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{EndorsementMaker, IdentityError};
use crate::text::base64_bytes;
use crate::tpm::KeyBlob;

/// Far above what an identity takes (some 8 KiB).
const MAX_FILE: u64 = 64 * 1024;
const VERSION: u32 = 1;

/// The file's contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    pub(super) version: u32,
    pub(super) keys: StoredKeys,
    pub(super) certificates: StoredCertificates,
}

/// Where the keys are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "protection",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub(super) enum StoredKeys {
    /// In the TPM; here are their wrapped forms.
    Tpm {
        device: KeyBlob,
        attestation: KeyBlob,
        agreement: KeyBlob,
        /// TPMT_PUBLIC of the owner's storage key; empty in files of former versions.
        #[serde(with = "base64_bytes", default, skip_serializing_if = "Vec::is_empty")]
        storage_public: Vec<u8>,
        /// TPMT_PUBLIC of the endorsement key.
        #[serde(with = "base64_bytes")]
        endorsement_public: Vec<u8>,
        endorsement_maker: EndorsementMaker,
    },
    /// Here: PKCS#8 DER. Whoever reads the file is the device.
    Software {
        #[serde(with = "base64_bytes")]
        device: Vec<u8>,
        #[serde(with = "base64_bytes")]
        agreement: Vec<u8>,
    },
}

/// The certificates, DER.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct StoredCertificates {
    #[serde(with = "base64_bytes")]
    pub(super) device: Vec<u8>,
    #[serde(with = "base64_bytes")]
    pub(super) agreement: Vec<u8>,
    /// Empty without a TPM.
    #[serde(with = "base64_bytes")]
    pub(super) attestation: Vec<u8>,
    /// Empty without a TPM.
    #[serde(with = "base64_bytes")]
    pub(super) endorsement: Vec<u8>,
}

impl Stored {
    pub(super) fn new(keys: StoredKeys, certificates: StoredCertificates) -> Self {
        Self {
            version: VERSION,
            keys,
            certificates,
        }
    }
}

/// Where the identity is kept below `dir`.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("identity.json")
}

/// Reads the identity; `None` if there is none yet.
pub(super) fn read(dir: &Path) -> Result<Option<Stored>, IdentityError> {
    let path = path(dir);
    let read = |source| IdentityError::Read {
        path: path.clone(),
        source,
    };
    let damaged = |what: String| IdentityError::Damaged {
        path: path.clone(),
        what,
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read(error)),
    };
    let mut text = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut text)
        .map_err(read)?;
    if text.len() as u64 > MAX_FILE {
        return Err(damaged(format!("it is longer than {MAX_FILE} bytes")));
    }
    let stored: Stored =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if stored.version != VERSION {
        return Err(damaged(format!(
            "it is of version {}, this program knows {VERSION}",
            stored.version
        )));
    }
    Ok(Some(stored))
}

/// Writes the identity whole.
pub(super) fn write(dir: &Path, stored: &Stored) -> Result<(), IdentityError> {
    let path = path(dir);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(durable::fail("making the folder", dir))?;
    // Serialising structs of text and numbers into memory has no way to fail; if it did, it would be a damaged identity.
    let text = serde_json::to_vec_pretty(stored).map_err(|error| IdentityError::Damaged {
        path: path.clone(),
        what: error.to_string(),
    })?;
    Ok(durable::write(&path, &text, 0o600)?)
}
