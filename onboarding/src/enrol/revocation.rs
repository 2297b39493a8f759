//! What makers have taken back: certificate revocation lists (RFC 5280, 5) that the owner imports.
//!
//! ```text
//! text (PEM, or base64 of DER) --> one list: read whole, signed by an authority of the maker's --> issuer, serial numbers, times
//! ```
//!
//! Nothing is fetched: a verifier that asks the network for lists can be kept from them, and tells others whom it verifies. So a list counts
//! from its import until another takes its place, also past the time at which its maker promised the next: what was revoked stays revoked
//! (taking a hold back takes a newer list), and an old list is better than none.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

use super::endorsement::{SIGNATURES, is_authority};

/// Longest list, DER, in bytes.
pub const MAX_LIST: usize = 256 << 10;
/// Most certificates in a list.
pub const MAX_REVOKED: usize = 10_000;
/// What the block of a list is called in PEM (RFC 7468, 7).
const LABEL: &str = "X509 CRL";

/// Why a list was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    /// It is too long.
    #[error("the revocation list has {size} bytes, at most {MAX_LIST} are read")]
    TooLong {
        /// Its length, in bytes.
        size: usize,
    },
    /// It is neither of the two.
    #[error(
        "the revocation list is neither one block `{LABEL}` of PEM nor base64 of DER: {0}; `openssl crl -inform der` converts"
    )]
    Encoding(String),
    /// It is no list.
    #[error("the revocation list cannot be read: {0}")]
    Form(String),
    /// It says something that is not understood here, and must be (RFC 5280, 5.2 and 5.3).
    #[error(
        "the revocation list {0}, which is not understood here; ask its maker for a whole list of its own certificates"
    )]
    NotUnderstood(String),
    /// No authority of the maker's has its issuer's name and may sign lists.
    #[error(
        "the revocation list is of {issuer}, and none of the maker's certificates is of an authority of this name that may sign such lists; import that authority's certificate with the maker's"
    )]
    Issuer {
        /// Whose list it says that it is.
        issuer: String,
    },
    /// Its issuer did not sign it.
    #[error(
        "the revocation list says that it is of {issuer}, which did not sign it, or with an algorithm that is not accepted; fetch it anew from its maker"
    )]
    Signature {
        /// Whose list it says that it is.
        issuer: String,
    },
}

/// What an authority has revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationList {
    /// The issuer's name, DER.
    issuer: Vec<u8>,
    name: String,
    made: ASN1Time,
    next: Option<ASN1Time>,
    /// Serial numbers without leading zeros, and when they were revoked.
    revoked: BTreeMap<Vec<u8>, ASN1Time>,
}

/// A certificate that was revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Its serial number, in hexadecimal digits.
    pub serial: String,
    /// When it was revoked, in the form of RFC 3339.
    pub time: String,
}

/// Takes a list's bytes out of a text: one block of PEM, or base64 of DER.
///
/// # Errors
/// [`RevocationError::TooLong`], [`RevocationError::Encoding`].
pub fn decode(text: &str) -> Result<Vec<u8>, RevocationError> {
    // A base64 digit for six bits, line breaks and the lines around it.
    let limit = MAX_LIST / 3 * 4 + MAX_LIST / 16 + 256;
    if text.len() > limit {
        return Err(RevocationError::TooLong { size: text.len() });
    }
    let bad = |what: String| RevocationError::Encoding(what);
    if !text.contains("-----BEGIN") {
        let digits: String = text.split_ascii_whitespace().collect();
        return STANDARD
            .decode(digits)
            .map_err(|error| bad(error.to_string()));
    }
    let mut blocks = Pem::iter_from_buffer(text.as_bytes());
    let block = match (blocks.next(), blocks.next()) {
        (Some(block), None) => block.map_err(|error| bad(error.to_string()))?,
        (None, _) => return Err(bad("there is no block in it".to_owned())),
        (Some(_), Some(_)) => return Err(bad("there are several blocks in it".to_owned())),
    };
    if block.label != LABEL {
        return Err(bad(format!("the block is called {:?}", block.label)));
    }
    Ok(block.contents)
}

impl RevocationList {
    /// Reads a list, DER, that one of `authorities` must have signed.
    pub(super) fn read(
        der: &[u8],
        authorities: &[X509Certificate<'_>],
    ) -> Result<Self, RevocationError> {
        if der.len() > MAX_LIST {
            return Err(RevocationError::TooLong { size: der.len() });
        }
        let list = match CertificateRevocationList::from_der(der) {
            Ok(([], list)) => list,
            Ok(_) => {
                return Err(RevocationError::Form(
                    "bytes are left over behind it".to_owned(),
                ));
            }
            Err(error) => return Err(RevocationError::Form(error.to_string())),
        };
        understood(&list)?;
        let name = list.issuer().to_string();
        let mut named = authorities
            .iter()
            .filter(|authority| {
                authority.subject().as_raw() == list.issuer().as_raw() && may_sign_lists(authority)
            })
            .peekable();
        if named.peek().is_none() {
            return Err(RevocationError::Issuer { issuer: name });
        }
        if !named.any(|authority| signed(&list, authority)) {
            return Err(RevocationError::Signature { issuer: name });
        }
        let mut revoked = BTreeMap::new();
        for entry in list.iter_revoked_certificates() {
            let serial = digits(entry.raw_serial()).to_vec();
            revoked.entry(serial).or_insert(entry.revocation_date);
        }
        Ok(Self {
            issuer: list.issuer().as_raw().to_vec(),
            name,
            made: list.last_update(),
            next: list.next_update(),
            revoked,
        })
    }

    /// Whose list it is.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.name
    }

    /// How many certificates are revoked by it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.revoked.len()
    }

    /// True if none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.revoked.is_empty()
    }

    /// When it was made, in seconds since 1970.
    #[must_use]
    pub fn made(&self) -> i64 {
        self.made.timestamp()
    }

    /// When its maker promised the next one at the latest, in seconds since 1970.
    #[must_use]
    pub fn next(&self) -> Option<i64> {
        self.next.map(|time| time.timestamp())
    }

    /// What it says of a certificate.
    pub(super) fn on(&self, certificate: &X509Certificate<'_>) -> Option<Revoked> {
        if self.issuer != certificate.issuer().as_raw() {
            return None;
        }
        let serial = digits(certificate.raw_serial());
        let time = self.revoked.get(serial)?;
        Some(Revoked {
            serial: hex::encode(serial),
            time: text(*time),
        })
    }
}

/// A number without its leading zeros: DER puts one before a digit with its top bit set, and some makers' encoders put others.
fn digits(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

fn text(time: ASN1Time) -> String {
    let time = time.to_datetime();
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

/// Whether an authority may sign lists (RFC 5280, 4.2.1.3).
fn may_sign_lists(authority: &X509Certificate<'_>) -> bool {
    let may = match authority.key_usage() {
        Ok(Some(usage)) => usage.value.crl_sign(),
        Ok(None) => true,
        Err(_) => false,
    };
    may && is_authority(authority)
}

/// Whether `authority`'s key signed the list, with an algorithm that counts.
fn signed(list: &CertificateRevocationList<'_>, authority: &X509Certificate<'_>) -> bool {
    SIGNATURES.contains(&list.signature_algorithm.algorithm)
        && list.signature_algorithm == list.tbs_cert_list.signature
        && list.signature_value.unused_bits == 0
        && list.verify_signature(authority.public_key()).is_ok()
}

/// Refuses what changes a list's meaning in a way that is not followed here: a list of changes to another, one that speaks of other
/// authorities' certificates or of some reasons only, and whatever is critical and not known.
fn understood(list: &CertificateRevocationList<'_>) -> Result<(), RevocationError> {
    let not = |what: String| Err(RevocationError::NotUnderstood(what));
    if list.version().is_some_and(|version| version.0 != 1) {
        return not(format!(
            "is of version {}",
            list.version().map_or(0, |v| v.0)
        ));
    }
    if list.tbs_cert_list.revoked_certificates.len() > MAX_REVOKED {
        return not(format!("revokes more than {MAX_REVOKED} certificates"));
    }
    for extension in list.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::IssuingDistributionPoint(part)
                if part.indirect_crl
                    || part.only_some_reasons.is_some()
                    || part.only_contains_attribute_certs =>
            {
                return not(
                    "speaks of other authorities' certificates, of attributes, or of some reasons only"
                        .to_owned(),
                );
            }
            ParsedExtension::IssuingDistributionPoint(_)
            | ParsedExtension::CRLNumber(_)
            | ParsedExtension::AuthorityKeyIdentifier(_)
            | ParsedExtension::IssuerAlternativeName(_) => {}
            _ if extension.critical => {
                return not(format!("has the critical extension {}", extension.oid));
            }
            _ => {}
        }
    }
    for entry in list.iter_revoked_certificates() {
        for extension in entry.extensions() {
            let known = matches!(
                extension.parsed_extension(),
                ParsedExtension::ReasonCode(_) | ParsedExtension::InvalidityDate(_)
            );
            if extension.critical && !known {
                return not(format!(
                    "has an entry with the critical extension {}",
                    extension.oid
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_list() {
        assert_eq!(decode("MAA=\n").unwrap(), [0x30, 0]);
        assert_eq!(decode(" MA\nA= ").unwrap(), [0x30, 0]);
        let block = |label: &str| format!("-----BEGIN {label}-----\nMAA=\n-----END {label}-----\n");
        assert_eq!(decode(&block(LABEL)).unwrap(), [0x30, 0]);
        for bad in [
            "MAA",
            "no list",
            "-----BEGIN",
            &block("CERTIFICATE"),
            &block(LABEL).repeat(2),
        ] {
            let error = decode(bad).unwrap_err();
            assert!(
                matches!(error, RevocationError::Encoding(_)),
                "{bad}: {error}"
            );
        }
        let error = decode(&"A".repeat(MAX_LIST * 2)).unwrap_err();
        assert!(matches!(error, RevocationError::TooLong { .. }), "{error}");
    }

    #[test]
    fn a_number_has_no_leading_zeros() {
        assert_eq!(digits(&[0, 0x80]), [0x80]);
        assert_eq!(digits(&[0, 0]), [0_u8; 0]);
        assert_eq!(digits(&[1, 0]), [1, 0]);
    }
}
