//! The controller's certificates: how it shows them, and how a device decides to trust them.
//!
//! `GET /certs` answers with a set of certificates: exactly one to sign messages, at least one to agree on keys for
//! cipher blocks, and the intermediates between these and the root. The root itself is on the device's image and is not
//! sent. The answer's envelope proves nothing, since the signing certificate is what is being fetched; the chains do.
//!
//! A trap: a certificate's name, `certHash`, and the sender hash of the controller's messages are both taken over the PEM
//! text as it stands in `ZCert.cert`. [`build`] cuts white space off both ends before hashing and sending, as the
//! reference controller does; a reader hashes what came.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, UnixTime};
use thiserror::Error;
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer as _, Pem, X509Certificate};

use crate::cipher::Point;
use crate::envelope::Certificate;
use crate::eve::certs::{ZCert, ZCertAttr, ZCertType, ZControllerCert};
use crate::keys::{CertHash, KeyError, pem_to_der};

/// Most certificates taken in one set.
pub const MAX_CERTIFICATES: usize = 32;
/// Longest PEM text of one certificate, in bytes.
pub const MAX_CERTIFICATE_PEM: usize = 16 << 10;

/// Why a set of certificates was not accepted.
#[derive(Debug, Error)]
pub enum CertsError {
    /// No root to check against.
    #[error("reading the root certificate: {0}")]
    Root(String),
    /// A set that is too large.
    #[error("reading the controller's certificates: {0}")]
    Limits(String),
    /// A certificate of a kind that no controller has.
    #[error(
        "reading the controller's certificates: certificate {hash} is of type {kind}; a controller has types 1 (signing), 2 (intermediate) and 3 (key exchange)"
    )]
    Kind {
        /// `certHash`, in hexadecimal.
        hash: String,
        /// `type` as it came.
        kind: i32,
    },
    /// None or several to sign, or none to agree on keys.
    #[error(
        "reading the controller's certificates: {signing} signing certificates and {exchange} for key exchange; exactly one and at least one are needed"
    )]
    Set {
        /// How many of type 1.
        signing: usize,
        /// How many of type 3.
        exchange: usize,
    },
    /// A certificate that cannot be read, or a key of the wrong kind.
    #[error("reading the controller's {what} certificate: {source}")]
    Key {
        /// "signing", "key exchange" or "intermediate".
        what: &'static str,
        /// What is wrong with it.
        source: KeyError,
    },
    /// A key exchange certificate whose key is not on P-256.
    #[error("reading the controller's key exchange certificate: its key is not on P-256")]
    ExchangeKey,
    /// `certHash` has no sensible length.
    #[error("reading the controller's certificates: certHash has {0} bytes instead of 16 or 32")]
    Hash(usize),
    /// The chain does not lead to the root, or is not valid at this time.
    #[error(
        "checking the controller's {what} certificate against the root certificate, at {now} s since 1970: {reason}"
    )]
    Chain {
        /// "signing" or "key exchange".
        what: &'static str,
        /// The time that was checked for, in seconds since the epoch.
        now: u64,
        /// What the path check says.
        reason: String,
    },
}

/// One certificate for the wire. `pem` is sent as it is; its hash is shortened to 16 bytes, as EVE's own code has it.
#[must_use]
pub fn certificate(kind: ZCertType, pem: &[u8], attributes: Option<ZCertAttr>) -> ZCert {
    let hash = CertHash::of_pem_text(pem).short();
    ZCert {
        hash_algo: hash.algorithm().into(),
        cert_hash: hash.as_bytes().to_vec(),
        r#type: kind.into(),
        cert: pem.to_vec(),
        attributes,
        meta_data_items: Vec::new(),
    }
}

/// The controller's set, from PEM texts. White space at the ends of each text is cut off.
#[must_use]
pub fn build(signing: &str, exchange: &[&str], intermediates: &[&str]) -> ZControllerCert {
    let one = |kind, pem: &str| certificate(kind, pem.trim().as_bytes(), None);
    let mut certs = vec![one(ZCertType::CertTypeControllerSigning, signing)];
    certs.extend(
        intermediates
            .iter()
            .map(|pem| one(ZCertType::CertTypeControllerIntermediate, pem)),
    );
    certs.extend(
        exchange
            .iter()
            .map(|pem| one(ZCertType::CertTypeControllerEcdhExchange, pem)),
    );
    ZControllerCert { certs }
}

/// A certificate for key exchange.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// Its `certHash`: the name that cipher contexts give it.
    pub hash: CertHash,
    /// Its public point.
    pub point: Point,
}

/// The controller's certificates, checked up to the root.
#[derive(Debug, Clone)]
pub struct ControllerCerts {
    signing: Certificate,
    exchange: Vec<Exchange>,
    names: BTreeSet<Vec<u8>>,
}

impl ControllerCerts {
    /// Checks a set: its make-up, and each chain up to one of the certificates in `roots_pem`, valid at `now`.
    ///
    /// `now` is an argument because a device's clock may stand at 1970: the caller gives the latest time that it has
    /// reason to believe in.
    ///
    /// # Errors
    /// [`CertsError`], naming the certificate and the step.
    pub fn verify(
        set: &ZControllerCert,
        roots_pem: &[u8],
        now: SystemTime,
    ) -> Result<Self, CertsError> {
        if set.certs.len() > MAX_CERTIFICATES {
            return Err(CertsError::Limits(format!(
                "{} are more than {MAX_CERTIFICATES}",
                set.certs.len()
            )));
        }
        let mut signing = Vec::new();
        let mut exchange = Vec::new();
        let mut intermediates = Vec::new();
        for cert in &set.certs {
            if cert.cert.len() > MAX_CERTIFICATE_PEM {
                return Err(CertsError::Limits(format!(
                    "one of {} bytes is longer than {MAX_CERTIFICATE_PEM}",
                    cert.cert.len()
                )));
            }
            let der = |what| {
                pem_to_der(&cert.cert)
                    .map(CertificateDer::from)
                    .map_err(|source| CertsError::Key { what, source })
            };
            match cert.r#type() {
                ZCertType::CertTypeControllerSigning => signing.push((cert, der("signing")?)),
                ZCertType::CertTypeControllerEcdhExchange => {
                    exchange.push((cert, der("key exchange")?))
                }
                ZCertType::CertTypeControllerIntermediate => {
                    intermediates.push(der("intermediate")?)
                }
                _ => {
                    return Err(CertsError::Kind {
                        hash: hex::encode(&cert.cert_hash),
                        kind: cert.r#type,
                    });
                }
            }
        }
        let [(signing, signing_der)] = signing.as_slice() else {
            return Err(CertsError::Set {
                signing: signing.len(),
                exchange: exchange.len(),
            });
        };
        if exchange.is_empty() {
            return Err(CertsError::Set {
                signing: 1,
                exchange: 0,
            });
        }
        let roots = roots(roots_pem)?;
        check_chain("signing", signing_der, &intermediates, &roots, now)?;
        let signing =
            Certificate::of_controller_pem(&signing.cert).map_err(|source| CertsError::Key {
                what: "signing",
                source,
            })?;
        let exchange = exchange
            .iter()
            .map(|(cert, der)| {
                check_chain("key exchange", der, &intermediates, &roots, now)?;
                Ok(Exchange {
                    hash: CertHash::from_bytes(&cert.cert_hash)
                        .ok_or(CertsError::Hash(cert.cert_hash.len()))?,
                    point: Point::from_certificate_der(der).map_err(|_| CertsError::ExchangeKey)?,
                })
            })
            .collect::<Result<Vec<_>, CertsError>>()?;
        Ok(Self {
            signing,
            exchange,
            names: names(set),
        })
    }

    /// The certificate that the controller's messages are checked with.
    #[must_use]
    pub fn signing(&self) -> &Certificate {
        &self.signing
    }

    /// The certificate that a cipher context names.
    #[must_use]
    pub fn exchange(&self, name: &[u8]) -> Option<&Exchange> {
        let name = CertHash::from_bytes(name)?;
        self.exchange
            .iter()
            .find(|exchange| exchange.hash.matches(&name))
    }

    /// Whether `set` holds the same certificates, in whatever order.
    #[must_use]
    pub fn same_as(&self, set: &ZControllerCert) -> bool {
        self.names == names(set)
    }
}

fn names(set: &ZControllerCert) -> BTreeSet<Vec<u8>> {
    set.certs
        .iter()
        .map(|cert| cert.cert_hash.clone())
        .collect()
}

fn roots(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertsError> {
    let blocks = Pem::iter_from_buffer(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CertsError::Root(error.to_string()))?;
    let roots: Vec<_> = blocks
        .into_iter()
        .filter(|block| block.label == "CERTIFICATE")
        .map(|block| CertificateDer::from(block.contents))
        .collect();
    if roots.is_empty() {
        return Err(CertsError::Root("there is no PEM certificate in it".into()));
    }
    Ok(roots)
}

/// The path check of RFC 5280. A leaf that names extended key usages must name server authentication, as EVE wants it.
fn check_chain(
    what: &'static str,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<(), CertsError> {
    let since_epoch = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let fault = |reason: String| CertsError::Chain {
        what,
        now: since_epoch.as_secs(),
        reason,
    };
    let anchors = roots
        .iter()
        .map(anchor_from_trusted_cert)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CertsError::Root(error.to_string()))?;
    let leaf = EndEntityCert::try_from(leaf).map_err(|error| fault(error.to_string()))?;
    leaf.verify_for_usage(
        ALL_VERIFICATION_ALGS,
        &anchors,
        intermediates,
        UnixTime::since_unix_epoch(since_epoch),
        KeyUsage::server_auth(),
        None,
        None,
    )
    .map(drop)
    .map_err(|error| fault(error.to_string()))
}

/// Checks that the key of certificate `issuer` signed certificate `subject`, both in DER: so a device's attestation and
/// key exchange certificates hang on its device certificate. Dates are not looked at: such keys live as long as the TPM.
///
/// # Errors
/// [`KeyError::Certificate`] if one cannot be read or the signature is wrong.
pub fn check_signed_by(subject: &[u8], issuer: &[u8]) -> Result<(), KeyError> {
    let fault = |reason: String| KeyError::Certificate(reason);
    let (_, subject) =
        X509Certificate::from_der(subject).map_err(|error| fault(error.to_string()))?;
    let (_, issuer) =
        X509Certificate::from_der(issuer).map_err(|error| fault(error.to_string()))?;
    subject
        .verify_signature(Some(issuer.public_key()))
        .map_err(|_| {
            fault("it was not signed with the key of the certificate that it should hang on".into())
        })
}
