//! References: what an image build knows ahead of any boot of its image.

use std::fmt;

use protocol::digest::Digest;
use protocol::keys::{SignError, Signer};
use serde::{Deserialize, Serialize};

use super::release::{self, Envelope, EnvelopeError, ReleaseKey};
use super::version::ImageVersion;

/// What the payload of a reference's envelope is called.
pub const PAYLOAD_TYPE: &str = "application/vnd.skerry.reference.v1+json";
/// Longest command line, in bytes: what the kernel takes on x86 (COMMAND_LINE_SIZE).
const MAX_COMMAND_LINE: usize = 2048;

/// Which kind of image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Variant {
    /// For the field: no shell, no ssh, no package manager.
    Production,
    /// With a shell on the serial line.
    Debug,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Production => "production",
            Self::Debug => "debug",
        })
    }
}

/// An image, as a firmware and systemd-stub measure it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reference {
    /// Who says all this.
    pub release_key: ReleaseKey,
    /// Version of the image.
    pub version: ImageVersion,
    /// Production or debug.
    pub variant: Variant,
    /// Root of the hash tree over the root file system. It stands in the command line, too.
    pub root_hash: Digest,
    /// Authenticode digest of the boot loader.
    pub boot_loader: Digest,
    /// Authenticode digest of the host's UKI.
    pub kernel_image: Digest,
    /// Authenticode digest of the kernel inside the UKI.
    pub kernel: Digest,
    /// The kernel's command line, whole.
    pub command_line: String,
    /// SHA-256 of the initramfs inside the UKI.
    pub initramfs: Digest,
    /// What PCR 11 holds when the stub starts the kernel, if the stub is one of which that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_image_pcr: Option<Digest>,
}

/// Why a document is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// Something is wrong with the envelope or its signature.
    #[error("reading a reference: {0}")]
    Envelope(#[from] EnvelopeError),
    /// The payload is something else.
    #[error("reading a reference: {0}")]
    Json(#[from] serde_json::Error),
    /// The command line has no one way to be measured.
    #[error(
        "reading a reference: its command line must be 1 to 2048 printable ASCII characters without spaces at its ends"
    )]
    CommandLine,
    /// The command line does not name the root file system.
    #[error("reading a reference: its command line does not say roothash={}", .0.hex())]
    RootHash(Digest),
    /// It could not be signed.
    #[error("signing a reference: {0}")]
    Sign(#[from] SignError),
    /// The signing key is another than the one that it names.
    #[error("signing a reference: the key at hand is not release key {0}, which it names")]
    OtherKey(Digest),
}

impl Reference {
    fn check(&self) -> Result<(), ReferenceError> {
        let line = &self.command_line;
        let plain = (1..=MAX_COMMAND_LINE).contains(&line.len())
            && line.bytes().all(|b| (b' '..=b'~').contains(&b))
            && line.trim() == line;
        if !plain {
            return Err(ReferenceError::CommandLine);
        }
        let root = format!("roothash={}", self.root_hash.hex());
        if line.split(' ').any(|word| word == root) {
            Ok(())
        } else {
            Err(ReferenceError::RootHash(self.root_hash))
        }
    }

    /// Short name for people: version and variant.
    #[must_use]
    pub fn title(&self) -> String {
        match self.variant {
            Variant::Production => self.version.to_string(),
            Variant::Debug => format!("{} (debug)", self.version),
        }
    }
}

/// A reference whose signature fits the release key that it names. Whether that key is to be believed is policy's to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedReference {
    reference: Reference,
    bytes: Vec<u8>,
}

impl SignedReference {
    /// Reads a document (`reference.json`) and checks its signature.
    ///
    /// # Errors
    /// [`ReferenceError`].
    pub fn open(bytes: &[u8]) -> Result<Self, ReferenceError> {
        let envelope = Envelope::read(bytes, PAYLOAD_TYPE)?;
        // The key is read out of what is not yet checked, and what is read is believed once the check with it has passed.
        let reference: Reference = serde_json::from_slice(&envelope.payload)?;
        envelope.check(&reference.release_key)?;
        reference.check()?;
        Ok(Self {
            reference,
            bytes: bytes.to_vec(),
        })
    }

    /// Signs a reference. `signer` holds the key that it names.
    ///
    /// # Errors
    /// [`ReferenceError`].
    pub fn sign(reference: Reference, signer: &dyn Signer) -> Result<Self, ReferenceError> {
        reference.check()?;
        let payload = serde_json::to_vec(&reference)?;
        let bytes = release::seal(PAYLOAD_TYPE, &payload, &reference.release_key, signer)?;
        match Self::open(&bytes) {
            Ok(signed) => Ok(signed),
            Err(ReferenceError::Envelope(EnvelopeError::Signature(key))) => {
                Err(ReferenceError::OtherKey(key))
            }
            Err(error) => Err(error),
        }
    }

    /// What it says.
    #[must_use]
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The document, as it was read.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
