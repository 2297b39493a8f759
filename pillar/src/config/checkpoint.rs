//! The last good config, kept so that a device starts without its controller.
//!
//! What is kept is the whole signed container as it came. At a start it is checked as if it came from the network, with
//! the controller's certificates that were kept beside it, so that what lies on the disk is trusted no more than what
//! comes over the wire.

use std::path::PathBuf;

use protocol::envelope::{Envelope, MAX_REPLY};
use protocol::eve::config::ConfigResponse;
use protocol::ids::DeviceId;

use super::{InForce, Refusal, accept};
use crate::clock::Clock;
use crate::config::translate::Secrets;
use crate::conn::certs;
use crate::generations;
use crate::paths::Paths;

/// Why there is no config to start with although one was kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file or its neighbour cannot be read back.
    #[error("checkpoint: {0}")]
    File(#[from] generations::Error),
    /// There are no certificates to check it with.
    #[error("checkpoint: the controller's certificates were not kept")]
    NoCertificates,
    /// The kept certificates do not lead to the root of this image.
    #[error("checkpoint: {0}")]
    Certificates(#[from] certs::Error),
    /// It is not what the controller signed for this device.
    #[error("checkpoint: {0}")]
    Refused(#[from] Refusal),
}

/// Where the config is kept.
#[must_use]
pub fn file(paths: &Paths) -> PathBuf {
    paths.pillar().join("config")
}

/// Where the controller's certificates are kept.
#[must_use]
pub fn certs_file(paths: &Paths) -> PathBuf {
    paths.pillar().join("controller-certs")
}

/// Reads the checkpoint, if there is one, and checks it.
///
/// # Errors
/// [`Error`]; the device then waits for its controller.
pub fn load(
    paths: &Paths,
    root_pem: &[u8],
    clock: &Clock,
    own: DeviceId,
    secrets: impl FnOnce(&certs::Verified) -> Box<dyn Secrets>,
) -> Result<Option<InForce>, Error> {
    let Some(container) = generations::read(&file(paths))? else {
        return Ok(None);
    };
    let kept = generations::read(&certs_file(paths))?.ok_or(Error::NoCertificates)?;
    let verified = certs::verify(&kept, root_pem, clock)?;
    let response: ConfigResponse = Envelope::parse(&container, MAX_REPLY)
        .and_then(|envelope| envelope.open_message(verified.certs.signing(), "ConfigResponse"))
        .map_err(Refusal::from)?;
    let config = accept(&response, own)?;
    Ok(Some(InForce::new(
        config,
        &response.config_hash,
        &*secrets(&verified),
    )))
}
