//! The controller's certificates: with which key it signs, verified up to the root that the image names.
//!
//! Controllers send a set: one signing certificate, one or more for key exchange, and intermediates. Each leaf must
//! lead to the root. The set is kept on disk, so that the checkpoint can be checked before any network is there.

use prost::Message as _;
use protocol::envelope::Certificate;
use protocol::eve::certs::{ZCert, ZCertType, ZControllerCert};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::clock::Clock;
use crate::tls::time_within;

/// More certificates than this are not looked at; EVE's controllers send a handful.
const MAX_CERTS: usize = 64;

/// Why a set of certificates is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the message that it should be.
    #[error("controller's certificates: not a valid message: {0}")]
    Message(#[from] prost::DecodeError),
    /// The set is not what EVE's API asks for.
    #[error("controller's certificates: {0}")]
    Set(&'static str),
    /// One of them cannot be read.
    #[error("controller's {what} certificate: {reason}")]
    Unreadable {
        /// Which.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// One of them does not lead to the root.
    #[error("controller's {what} certificate does not lead to root-certificate.pem of this image: {reason}; is this the device's own controller?")]
    Chain {
        /// Which.
        what: &'static str,
        /// What the path check said.
        reason: String,
    },
}

/// A verified set.
#[derive(Clone, Debug)]
pub struct ControllerCerts {
    signing: Certificate,
    exchange: Vec<ZCert>,
    raw: Vec<u8>,
}

impl ControllerCerts {
    /// Reads and verifies a set from the bytes of a `ZControllerCert`.
    ///
    /// # Errors
    /// When the set is malformed or a leaf does not lead to `root`.
    pub fn verify(raw: &[u8], root: &CertificateDer<'_>, clock: &Clock) -> Result<Self, Error> {
        let set = ZControllerCert::decode(raw)?;
        if set.certs.len() > MAX_CERTS {
            return Err(Error::Set("too many certificates"));
        }
        let of_type = |wanted: ZCertType| set.certs.iter().filter(move |cert| cert.r#type == wanted as i32);
        let known = [
            ZCertType::CertTypeControllerSigning,
            ZCertType::CertTypeControllerIntermediate,
            ZCertType::CertTypeControllerEcdhExchange,
        ];
        if !set.certs.iter().all(|cert| known.iter().any(|known| cert.r#type == *known as i32)) {
            return Err(Error::Set("a certificate of a type that a controller does not send"));
        }
        let mut intermediates = Vec::new();
        for cert in of_type(ZCertType::CertTypeControllerIntermediate) {
            intermediates.extend(ders("intermediate", &cert.cert)?);
        }
        let mut signing = of_type(ZCertType::CertTypeControllerSigning);
        let (Some(leaf), None) = (signing.next(), signing.next()) else {
            return Err(Error::Set("expected exactly one signing certificate"));
        };
        chain("signing", &leaf.cert, &intermediates, root, clock)?;
        let signing = Certificate::of_controller_pem(&leaf.cert)
            .map_err(|error| Error::Unreadable { what: "signing", reason: error.to_string() })?;
        let mut exchange = Vec::new();
        for cert in of_type(ZCertType::CertTypeControllerEcdhExchange) {
            chain("key exchange", &cert.cert, &intermediates, root, clock)?;
            exchange.push(cert.clone());
        }
        Ok(Self { signing, exchange, raw: raw.to_vec() })
    }

    /// What its envelopes are checked with.
    #[must_use]
    pub fn signing(&self) -> &Certificate {
        &self.signing
    }

    /// The key exchange certificates, by whose `cert_hash` cipher contexts name them.
    #[must_use]
    pub fn exchange(&self) -> &[ZCert] {
        &self.exchange
    }

    /// The message as it came, to be kept.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }
}

fn ders(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let unreadable = |reason: String| Error::Unreadable { what, reason };
    let ders = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unreadable(error.to_string()))?;
    if ders.is_empty() { Err(unreadable("not PEM".to_owned())) } else { Ok(ders) }
}

fn chain(
    what: &'static str,
    leaf_pem: &[u8],
    intermediates: &[CertificateDer<'_>],
    root: &CertificateDer<'_>,
    clock: &Clock,
) -> Result<(), Error> {
    let refused = |reason: String| Error::Chain { what, reason };
    let pem = ders(what, leaf_pem)?;
    let (Some(leaf), rest) = (pem.first(), pem.get(1..).unwrap_or_default()) else {
        return Err(Error::Unreadable { what, reason: "not PEM".to_owned() });
    };
    let anchor = anchor_from_trusted_cert(root).map_err(|error| refused(format!("the root itself: {error}")))?;
    let anchors = [anchor];
    let leaf_cert = EndEntityCert::try_from(leaf).map_err(|error| refused(error.to_string()))?;
    // A PEM file may bring its own intermediates along.
    let intermediates: Vec<CertificateDer<'_>> = rest.iter().chain(intermediates).cloned().collect();
    let verify = |seconds: u64| {
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        leaf_cert
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors,
                &intermediates,
                time,
                KeyUsage::server_auth(),
                None,
                None,
            )
            .map(|_| ())
    };
    let result = match verify(clock.seconds()) {
        Err(webpki::Error::CertNotValidYet { .. } | webpki::Error::CertExpired { .. }) if !clock.trusted() => {
            // As with TLS: while nobody has told the time, dates do not count.
            match time_within(std::iter::once(leaf).chain(&intermediates).map(AsRef::as_ref)) {
                Some(seconds) => verify(seconds),
                None => verify(clock.seconds()),
            }
        }
        result => result,
    };
    result.map_err(|error| refused(error.to_string()))
}
