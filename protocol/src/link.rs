//! The push channel: JSON messages over a WebSocket that the device opens to `/api/skerry/v1/link`.
//!
//! EVE's API is polled, once a minute. The link tells a device at once that there is something to fetch. It carries no
//! configuration itself, so a device without it, or a controller without it, only gets slower.
//!
//! ```text
//! device                                controller
//!   | -------- WebSocket upgrade ---------> |
//!   | <------- text: {"type":"hello"} ----- |   a fresh nonce
//!   | -- binary: AuthContainer over JSON -> |   device, time, nonce, signed by the device key
//!   | <------- text: ServerMessage -------- |   as things happen; pings each 30 s
//! ```
//!
//! A proof that does not fit ends the connection with close code [`CLOSE_REFUSED`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::envelope::{self, Certificate, Envelope, EnvelopeError};
use crate::ids::{AppId, DeviceId, SessionId};
use crate::keys::{CertHash, Signer};

/// How often each end sends a ping.
pub const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long an end waits without hearing anything before it takes the connection for dead.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(75);
/// How long the controller waits for the device's proof.
pub const PROOF_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a console session can be taken up after `openConsole`.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(30);
/// Largest message on the link, in bytes, either way.
pub const MAX_MESSAGE: usize = 16 << 10;
/// WebSocket close code (RFC 6455 section 7.4.2, private use) for a proof that was not accepted.
pub const CLOSE_REFUSED: u16 = 4401;

/// Why a message of the link was not accepted.
#[derive(Debug, Error)]
pub enum LinkError {
    /// A text message that is none of ours.
    #[error("reading a message of the link: {0}")]
    Message(serde_json::Error),
    /// The device's proof has the wrong form, sender or signature.
    #[error("checking a device's proof on the link: {0}")]
    Envelope(#[from] EnvelopeError),
    /// The proof's payload is not the expected JSON.
    #[error("checking a device's proof on the link: {0}")]
    Proof(serde_json::Error),
    /// The proof answers another connection.
    #[error("checking a device's proof on the link: it answers nonce {found}, not {wanted}")]
    Nonce {
        /// What the proof says.
        found: Nonce,
        /// What this connection was given.
        wanted: Nonce,
    },
    /// The proof was signed by one device and names another.
    #[error(
        "checking a device's proof on the link: it was signed by device {signer} but names device {named}"
    )]
    Device {
        /// Whose key signed it.
        signer: DeviceId,
        /// Which id it states.
        named: DeviceId,
    },
    /// No random bytes to be had.
    #[error("making a nonce: the random source failed")]
    Random,
}

/// 16 random bytes, as 32 hexadecimal digits, that tie a proof to one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nonce([u8; 16]);

impl Nonce {
    /// A fresh one.
    ///
    /// # Errors
    /// [`LinkError::Random`].
    pub fn random() -> Result<Self, LinkError> {
        let mut bytes = [0; 16];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| LinkError::Random)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for Nonce {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, hex::FromHexError> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Nonce {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> Result<Self, hex::FromHexError> {
        text.parse()
    }
}

impl From<Nonce> for String {
    fn from(nonce: Nonce) -> Self {
        nonce.to_string()
    }
}

/// What the controller says, as text messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum ServerMessage {
    /// The first message.
    Hello {
        /// What the device's proof must repeat.
        nonce: Nonce,
    },
    /// There is a new configuration to fetch.
    ConfigChanged,
    /// An operator wants an application's console.
    OpenConsole {
        /// What the device connects to, at `/api/skerry/v1/console/{session}`.
        session: SessionId,
        /// Whose console.
        app: AppId,
    },
    /// Anything that this build does not know. It is to be passed over, so that newer controllers can say more.
    #[serde(other)]
    Unknown,
}

impl ServerMessage {
    /// The text to send.
    ///
    /// # Errors
    /// [`LinkError::Message`], which does not happen with these types.
    pub fn to_text(&self) -> Result<String, LinkError> {
        serde_json::to_string(self).map_err(LinkError::Message)
    }

    /// Reads a text message.
    ///
    /// # Errors
    /// [`LinkError::Message`].
    pub fn from_text(text: &str) -> Result<Self, LinkError> {
        serde_json::from_str(text).map_err(LinkError::Message)
    }
}

/// What the device signs: the only message that it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The device's id.
    pub device: DeviceId,
    /// The device's clock, in seconds since the Unix epoch. For people to see a wrong clock; nothing depends on it.
    pub time: i64,
    /// The nonce of this connection.
    pub nonce: Nonce,
}

impl Proof {
    /// Signs the proof: the binary message to send.
    ///
    /// # Errors
    /// [`LinkError::Envelope`] if the signer fails.
    pub fn seal(&self, sender: &CertHash, signer: &dyn Signer) -> Result<Vec<u8>, LinkError> {
        let json = serde_json::to_vec(self).map_err(LinkError::Proof)?;
        Ok(envelope::seal(json, sender, None, signer)?)
    }

    /// Reads the first binary message of a device, up to the point where its certificate must be looked up by
    /// [`Envelope::sender`].
    ///
    /// # Errors
    /// [`LinkError::Envelope`].
    pub fn parse(bytes: &[u8]) -> Result<Envelope, LinkError> {
        Ok(Envelope::parse(bytes, MAX_MESSAGE)?)
    }

    /// Checks a proof: signed by `certificate`, which is that of `device`, and an answer to `nonce`.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn check(
        envelope: Envelope,
        certificate: &Certificate,
        device: DeviceId,
        nonce: Nonce,
    ) -> Result<Self, LinkError> {
        let proof: Self =
            serde_json::from_slice(&envelope.open(certificate)?).map_err(LinkError::Proof)?;
        if proof.nonce != nonce {
            return Err(LinkError::Nonce {
                found: proof.nonce,
                wanted: nonce,
            });
        }
        if proof.device != device {
            return Err(LinkError::Device {
                signer: device,
                named: proof.device,
            });
        }
        Ok(proof)
    }
}
