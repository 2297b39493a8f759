//! The controller's certificates, verified up to the root that the image names (crate `protocol`, module `certs`), with
//! this device's notion of time, and kept on disk, so that the checkpoint can be checked before any network is there.

use std::time::{Duration, SystemTime};

use prost::Message as _;
use protocol::certs::{CertsError, ControllerCerts};
use protocol::eve::certs::ZControllerCert;
use protocol::keys::pem_to_der;

use crate::clock::Clock;
use crate::tls::time_within;

/// Why a set of certificates is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the message that it should be.
    #[error("reading the controller's certificates: {0}")]
    Message(#[from] prost::DecodeError),
    /// Not a set that leads to the root.
    #[error("{0}; root-certificate.pem of this image says which controller is its own")]
    Set(#[from] CertsError),
}

/// A verified set and the message that it came in.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The certificates.
    pub certs: ControllerCerts,
    /// The bytes of the `ZControllerCert`.
    pub raw: Vec<u8>,
}

/// Reads and verifies the bytes of a `ZControllerCert`.
///
/// # Errors
/// When the set is malformed or a leaf does not lead to `root_pem`.
pub fn verify(raw: &[u8], root_pem: &[u8], clock: &Clock) -> Result<Verified, Error> {
    let set = ZControllerCert::decode(raw)?;
    let certs = match ControllerCerts::verify(&set, root_pem, clock.now()) {
        // As with TLS: while nobody has told the time, dates do not count, and everything else does.
        Err(error @ CertsError::Chain { .. }) if !clock.trusted() => {
            let ders: Vec<_> = set
                .certs
                .iter()
                .filter_map(|cert| pem_to_der(&cert.cert).ok())
                .collect();
            match time_within(ders.iter().map(Vec::as_slice)) {
                Some(at) => ControllerCerts::verify(
                    &set,
                    root_pem,
                    SystemTime::UNIX_EPOCH + Duration::from_secs(at),
                )?,
                None => return Err(error.into()),
            }
        }
        result => result?,
    };
    Ok(Verified {
        certs,
        raw: raw.to_vec(),
    })
}
