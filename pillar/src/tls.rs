//! TLS towards the controller: which roots, which time.
//!
//! The roots are those of the bundle. The time is the device's clock once that is trusted ([`crate::clock`]); before,
//! a chain whose dates do not fit the clock is checked again at a time within its own validity, so that a device whose
//! clock stands at 1970 (or at 2099) can reach the controller that will tell it the time.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

use crate::clock::Clock;

/// Where Debian's ca-certificates puts the public roots.
pub const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Why no TLS configuration can be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no usable root.
    #[error("TLS roots of the bundle: none can be used ({0}); make the installer image again")]
    Roots(String),
    /// rustls refused the settings.
    #[error("TLS settings: {0}")]
    Settings(#[from] rustls::Error),
}

/// The client's configuration for every connection to the controller.
///
/// # Errors
/// When none of the roots can be used.
pub fn client_config(
    roots: &[CertificateDer<'static>],
    clock: Clock,
) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut store = RootCertStore::empty();
    let (added, ignored) = store.add_parsable_certificates(roots.iter().cloned());
    if added == 0 {
        return Err(Error::Roots(format!("{ignored} certificates ignored")));
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
        .build()
        .map_err(|error| Error::Roots(error.to_string()))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { inner, clock }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// rustls' own verifier with another notion of time.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    clock: Clock,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |seconds: u64| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            self.inner.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            )
        };
        match verify(self.clock.seconds()) {
            Err(error) if !self.clock.trusted() && about_dates(&error) => {
                let chain = std::iter::once(end_entity)
                    .chain(intermediates)
                    .map(AsRef::as_ref);
                match time_within(chain) {
                    Some(seconds) => verify(seconds),
                    None => Err(error),
                }
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn about_dates(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. }
                | CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
        )
    )
}

/// A time at which every certificate of a chain is valid, in seconds since 1970, if there is one: the latest of the
/// times from which they are. What comes from outside and cannot be read is left to the verifier to refuse.
pub fn time_within<'a>(chain: impl Iterator<Item = &'a [u8]>) -> Option<u64> {
    let mut from = 0;
    let mut until = u64::MAX;
    for der in chain {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let validity = certificate.validity();
        from = from.max(u64::try_from(validity.not_before.timestamp()).ok()?);
        until = until.min(u64::try_from(validity.not_after.timestamp()).unwrap_or(0));
    }
    (from <= until).then_some(from)
}
