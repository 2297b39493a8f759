//! Whose TPM it is, and whose machine: an endorsement key's form, the certificates for it and for a machine's initial attestation key, and
//! the makers that the owner trusts.
//!
//! ```text
//! public area --same key--> certificate --issuer, signature--> intermediate ... --> an anchor that the owner trusts
//!                                '------------------ none of them revoked ------------------'
//! ```
//!
//! A certificate's end of life is ignored, because a TPM outlives it and nobody renews it (TCG EK Credential Profile, 3.2.5 lets it have
//! none); its algorithms are not: what is signed with SHA-1 or with RSA below 2048 bits counts as signed by nobody. Certificates for machines'
//! keys have no end that counts either (TPM 2.0 Keys for Device Identity and Attestation, 8.1: 99991231235959Z). Nothing is fetched: what
//! is not in the TPM or in the owner's list is not there.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::asn1_rs::{Any, Oid, Tag, oid};
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer as _;

use super::revocation::{RevocationError, RevocationList};
use crate::keys::is_for;
use crate::smbios::clean;
use crate::tpm::template::{EkAlgorithm, endorsement_key};
use crate::wire::{Public, PublicKind};

/// Longest certificate, DER, in bytes.
pub const MAX_CERTIFICATE: usize = 8 << 10;
/// Most certificates between an EK certificate and its root.
pub const MAX_CHAIN: usize = 5;
/// Most anchors in an owner's list: there are some hundred authorities of makers.
const MAX_ANCHORS: usize = 2000;

/// sha256WithRSAEncryption, sha384..., sha512..., ecdsa-with-SHA256, -SHA384, RSASSA-PSS.
pub(super) const SIGNATURES: [Oid<'static>; 6] = [
    oid!(1.2.840.113549.1.1.11),
    oid!(1.2.840.113549.1.1.12),
    oid!(1.2.840.113549.1.1.13),
    oid!(1.2.840.10045.4.3.2),
    oid!(1.2.840.10045.4.3.3),
    oid!(1.2.840.113549.1.1.10),
];
/// tcg-kp-EKCertificate.
const EK_USAGE: Oid<'static> = oid!(2.23.133.8.1);
/// tcg-kp-AIKCertificate, and that a key was seen in a TPM, fixed to it, restricted (TPM 2.0 Keys for Device Identity and Attestation,
/// 8.2): tcg-cap-verifiedTPMResidency, ...Fixed, ...Restricted.
const MACHINE_USAGES: [Oid<'static>; 4] = [
    oid!(2.23.133.8.3),
    oid!(2.23.133.11.1.1),
    oid!(2.23.133.11.1.2),
    oid!(2.23.133.11.1.3),
];
/// serialNumber of a name (X.520, 6.2.9).
const SERIAL: Oid<'static> = oid!(2.5.4.5);
/// id-on-hardwareModuleName (RFC 4108, 5), and the kind of hardware that is a TPM 2.0: then its number is the TPM's, not the machine's.
const HARDWARE_MODULE: Oid<'static> = oid!(1.3.6.1.5.5.7.8.4);
const TPM_MODULE: Oid<'static> = oid!(2.23.133.1.2);

/// What a certificate is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Endorsement,
    Machine,
}

impl Purpose {
    fn key(self) -> &'static str {
        match self {
            Self::Endorsement => "the endorsement key",
            Self::Machine => "the initial attestation key",
        }
    }

    fn allows(self, usage: &Oid<'_>) -> bool {
        match self {
            Self::Endorsement => *usage == EK_USAGE,
            Self::Machine => MACHINE_USAGES.contains(usage),
        }
    }
}

/// The template that an endorsement key was made after; `None` if it is after none of those that are known here. The form is exact, so
/// that one key has one name.
#[must_use]
pub fn form(public: &Public) -> Option<EkAlgorithm> {
    let (algorithm, mut blank) = match public.kind {
        PublicKind::Rsa { .. } => (EkAlgorithm::Rsa2048, public.clone()),
        PublicKind::Ecc { .. } => (EkAlgorithm::P256, public.clone()),
    };
    match &mut blank.kind {
        PublicKind::Rsa { modulus, .. } => modulus.fill(0),
        PublicKind::Ecc { x, y, .. } => {
            x.fill(0);
            y.fill(0);
        }
    }
    (blank == endorsement_key(algorithm) && *public != blank).then_some(algorithm)
}

/// Roots (and intermediate authorities) of makers that the owner trusts, of TPMs or of machines, and what they have revoked. Whatever is in
/// the list is trusted for itself, whoever signed it, unless it is revoked.
#[derive(Debug, Clone, Default)]
pub struct Makers {
    anchors: Vec<Vec<u8>>,
    revocations: Vec<RevocationList>,
}

/// Why a list of makers was not taken.
#[derive(Debug, thiserror::Error)]
pub enum MakersError {
    /// A block of the text is no certificate.
    #[error("reading the makers' certificates: number {number}: {what}")]
    Certificate {
        /// Counted from 1.
        number: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The list is too long.
    #[error("reading the makers' certificates: there are more than {MAX_ANCHORS}")]
    TooMany,
    /// There is no block in the text.
    #[error("reading the makers' certificates: there is no certificate in PEM")]
    Empty,
}

impl Makers {
    /// Nobody.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads certificates in PEM, one after the other; text between them is skipped.
    ///
    /// # Errors
    /// [`MakersError`]: a block that is no certificate of an authority; no block; too many.
    pub fn from_pem(text: &str) -> Result<Self, MakersError> {
        let mut anchors = vec![];
        for (index, block) in Pem::iter_from_buffer(text.as_bytes()).enumerate() {
            let bad = |what: String| MakersError::Certificate {
                number: index + 1,
                what,
            };
            let block = block.map_err(|error| bad(error.to_string()))?;
            let (rest, certificate) = X509Certificate::from_der(&block.contents)
                .map_err(|error| bad(error.to_string()))?;
            if !rest.is_empty() {
                return Err(bad("bytes are left over behind it".to_owned()));
            }
            if !may_sign(&certificate, 0) {
                return Err(bad(format!(
                    "{} is not an authority: it may not sign certificates",
                    certificate.subject()
                )));
            }
            if anchors.len() == MAX_ANCHORS {
                return Err(MakersError::TooMany);
            }
            anchors.push(block.contents);
        }
        if anchors.is_empty() {
            return Err(MakersError::Empty);
        }
        Ok(Self {
            anchors,
            revocations: vec![],
        })
    }

    /// Adds what these makers have revoked: a list, DER, that one of them signed.
    ///
    /// # Errors
    /// [`RevocationError`].
    pub fn revoke(&mut self, list: &[u8]) -> Result<(), RevocationError> {
        // Read before they were taken.
        let authorities: Vec<_> = self
            .anchors
            .iter()
            .filter_map(|der| read(der).ok())
            .collect();
        let list = RevocationList::read(list, &authorities)?;
        self.revocations.push(list);
        Ok(())
    }

    /// What was revoked, list by list.
    #[must_use]
    pub fn revocations(&self) -> &[RevocationList] {
        &self.revocations
    }

    /// Adds other makers, with what they have revoked.
    pub fn join(&mut self, others: Self) {
        self.anchors.extend(others.anchors);
        self.revocations.extend(others.revocations);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.anchors.len()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// Judges an EK certificate, DER, and what leads from it to an anchor.
    #[must_use]
    pub fn judge(&self, public: &Public, certificate: &[u8], chain: &[Vec<u8>]) -> Endorsed {
        self.follow(Purpose::Endorsement, public, certificate, chain)
            .map_or_else(|verdict| verdict, |maker| Endorsed::Trusted { maker })
    }

    /// Likewise the certificate of a machine's initial attestation key.
    #[must_use]
    pub fn judge_machine(
        &self,
        public: &Public,
        certificate: &[u8],
        chain: &[Vec<u8>],
    ) -> Endorsed {
        self.follow(Purpose::Machine, public, certificate, chain)
            .map_or_else(|verdict| verdict, |maker| Endorsed::Trusted { maker })
    }

    /// Refutes a certificate that its issuer has revoked. By the issuer's name: a maker that changes its key under one name numbers its
    /// certificates on, and one that takes back too much is asked, one that takes back too little lets a thief in.
    fn not_revoked(&self, certificate: &X509Certificate<'_>) -> Result<(), Endorsed> {
        match self
            .revocations
            .iter()
            .find_map(|list| list.on(certificate))
        {
            None => Ok(()),
            Some(revoked) => Err(Endorsed::Refuted(format!(
                "{} revoked the certificate with serial number {} at {}",
                certificate.issuer(),
                revoked.serial,
                revoked.time
            ))),
        }
    }

    fn follow(
        &self,
        purpose: Purpose,
        public: &Public,
        certificate: &[u8],
        chain: &[Vec<u8>],
    ) -> Result<String, Endorsed> {
        let leaf = read(certificate).map_err(Endorsed::Refuted)?;
        if !is_for(&leaf, public) {
            return Err(Endorsed::Refuted(format!(
                "it is for another key than {}",
                purpose.key()
            )));
        }
        check_leaf(&leaf, purpose).map_err(Endorsed::Refuted)?;
        let mut present = leaf;
        for depth in 0..=MAX_CHAIN {
            self.not_revoked(&present)?;
            if let Some(name) = self.anchored(&present, depth)? {
                return Ok(name);
            }
            let issuer = chain.iter().filter_map(|der| read(der).ok()).find(|next| {
                next.subject().as_raw() == present.issuer().as_raw()
                    && next.subject().as_raw() != next.issuer().as_raw()
                    && may_sign(next, depth)
                    && signed(&present, next)
            });
            match issuer {
                Some(next) => present = next,
                None => break,
            }
        }
        Err(Endorsed::Untrusted {
            issuer: present.issuer().to_string(),
        })
    }

    /// The anchor that signed `present`, or is it. An anchor of the issuer's name whose key did not sign it refutes it, unless another
    /// of the same name did, or `present` itself names another key than the anchor's: makers change keys under one name. A forger who
    /// names another key gains no more than with no certificate at all.
    fn anchored(
        &self,
        present: &X509Certificate<'_>,
        depth: usize,
    ) -> Result<Option<String>, Endorsed> {
        let mut named = false;
        for anchor in &self.anchors {
            // Read before the list was taken.
            let Ok(anchor) = read(anchor) else { continue };
            if depth > 0 && anchor.as_raw() == present.as_raw() {
                return Ok(Some(anchor.subject().to_string()));
            }
            if anchor.subject().as_raw() != present.issuer().as_raw() || !may_sign(&anchor, depth) {
                continue;
            }
            if signed(present, &anchor) {
                self.not_revoked(&anchor)?;
                return Ok(Some(anchor.subject().to_string()));
            }
            named |= !names_another_key(present, &anchor);
        }
        if named {
            return Err(Endorsed::Refuted(format!(
                "{} did not sign it, or with an algorithm that is not accepted",
                present.issuer()
            )));
        }
        Ok(None)
    }
}

/// What a certificate is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endorsed {
    /// It leads to an anchor, with this name.
    Trusted {
        /// The anchor's name.
        maker: String,
    },
    /// Nothing is wrong with it, but the owner does not know its maker.
    Untrusted {
        /// Who would have to be known.
        issuer: String,
    },
    /// It is not what it should be.
    Refuted(String),
}

fn read(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    if der.len() > MAX_CERTIFICATE {
        return Err(format!(
            "it has {} bytes, at most {MAX_CERTIFICATE} are read",
            der.len()
        ));
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("bytes are left over behind it".to_owned()),
        Err(error) => Err(format!("it cannot be read: {error}")),
    }
}

/// Whether `issuer`'s key signed `certificate`, with an algorithm that counts.
fn signed(certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    SIGNATURES.contains(&certificate.signature_algorithm.algorithm)
        && certificate.signature_algorithm == certificate.tbs_certificate.signature
        // One way to write a signature: it is whole bytes (RFC 5280, 4.1.1.3; RFC 5758, 3.2).
        && certificate.signature_value.unused_bits == 0
        && certificate
            .verify_signature(Some(issuer.public_key()))
            .is_ok()
}

/// Whether a certificate names the key that signed it, and that is not `issuer`'s (RFC 5280, 4.2.1.1 and 4.2.1.2).
fn names_another_key(certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    let named =
        certificate
            .iter_extensions()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(named) => named.key_identifier.as_ref(),
                _ => None,
            });
    let own = issuer
        .iter_extensions()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(own) => Some(own),
            _ => None,
        });
    matches!((named, own), (Some(named), Some(own)) if named.0 != own.0)
}

/// Whether an authority may sign a certificate with `depth` others below that one.
fn may_sign(authority: &X509Certificate<'_>, depth: usize) -> bool {
    let deep_enough = match authority.basic_constraints() {
        Ok(Some(constraints)) => constraints
            .value
            .path_len_constraint
            .is_none_or(|most| usize::try_from(most).is_ok_and(|most| depth <= most)),
        Ok(None) => true,
        Err(_) => false,
    };
    let may = match authority.key_usage() {
        Ok(Some(usage)) => usage.value.key_cert_sign(),
        Ok(None) => true,
        Err(_) => false,
    };
    is_authority(authority) && deep_enough && may
}

/// Whether a certificate is an authority's.
pub(super) fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    let says_so = match certificate.basic_constraints() {
        Ok(Some(constraints)) => constraints.value.ca,
        // Some makers' roots are of X.509's first version, which has no extensions.
        Ok(None) => certificate.extensions().is_empty(),
        Err(_) => false,
    };
    says_so && unknown_critical(certificate).is_none()
}

/// What the certificate of a TPM's key must be besides signed.
fn check_leaf(leaf: &X509Certificate<'_>, purpose: Purpose) -> Result<(), String> {
    if leaf.is_ca() {
        return Err("it is an authority's certificate".to_owned());
    }
    if let Some(what) = unknown_critical(leaf) {
        return Err(format!("its critical extension {what} is not known"));
    }
    if purpose == Purpose::Machine {
        match leaf.key_usage() {
            Ok(None) => {}
            Ok(Some(usage)) if usage.value.digital_signature() => {}
            Ok(Some(_)) => return Err("it is not for a key that signs".to_owned()),
            Err(error) => return Err(format!("its key usage: {error}")),
        }
    }
    match leaf.extended_key_usage() {
        // Certificates of the first TPMs have none, and for machines' keys one is only recommended.
        Ok(None) => Ok(()),
        Ok(Some(usage))
            if usage.value.any || usage.value.other.iter().any(|oid| purpose.allows(oid)) =>
        {
            Ok(())
        }
        Ok(Some(_)) => Err(match purpose {
            Purpose::Endorsement => "it is not for an endorsement key".to_owned(),
            Purpose::Machine => "it is not for an attestation key".to_owned(),
        }),
        Err(error) => Err(format!("its extended key usage: {error}")),
    }
}

/// The serial number of the machine that a certificate, DER, is for, in the form in which machines say theirs: the subject's, or else that
/// of a hardware module that is not the TPM. `None` if it names none, or several.
#[must_use]
pub fn named_serial(certificate: &[u8]) -> Option<String> {
    let certificate = read(certificate).ok()?;
    let mut named: Vec<String> = certificate
        .subject()
        .iter_attributes()
        .filter(|attribute| *attribute.attr_type() == SERIAL)
        .filter_map(|attribute| attribute.as_str().ok().map(clean))
        .collect();
    if named.is_empty()
        && let Ok(Some(names)) = certificate.subject_alternative_name()
    {
        named = names
            .value
            .general_names
            .iter()
            .filter_map(module_serial)
            .collect();
    }
    match named.as_slice() {
        [serial] if !serial.is_empty() => Some(serial.clone()),
        _ => None,
    }
}

/// The serial number in a HardwareModuleName (RFC 4108, 5): `SEQUENCE { hwType OBJECT IDENTIFIER, hwSerialNum OCTET STRING }`.
fn module_serial(name: &GeneralName<'_>) -> Option<String> {
    let GeneralName::OtherName(kind, value) = name else {
        return None;
    };
    if *kind != HARDWARE_MODULE {
        return None;
    }
    let (_, tagged) = Any::from_der(value).ok()?;
    let (_, module) = Any::from_der(tagged.data).ok()?;
    if module.tag() != Tag::Sequence {
        return None;
    }
    let (left, kind) = Oid::from_der(module.data).ok()?;
    let (_, number) = Any::from_der(left).ok()?;
    if kind == TPM_MODULE || number.tag() != Tag::OctetString {
        return None;
    }
    std::str::from_utf8(number.data).ok().map(clean)
}

/// A critical extension whose meaning is not known here: whoever does not know it must not accept the certificate (RFC 5280, 4.2). An EK's
/// subject alternative name, with maker, model and version of the TPM, is critical because its subject is empty; name constraints
/// have nothing to say about it.
fn unknown_critical(certificate: &X509Certificate<'_>) -> Option<String> {
    certificate
        .extensions()
        .iter()
        .find(|extension| {
            extension.critical
                && !matches!(
                    extension.parsed_extension(),
                    ParsedExtension::BasicConstraints(_)
                        | ParsedExtension::KeyUsage(_)
                        | ParsedExtension::ExtendedKeyUsage(_)
                        | ParsedExtension::SubjectAlternativeName(_)
                        | ParsedExtension::CertificatePolicies(_)
                        | ParsedExtension::CRLDistributionPoints(_)
                        | ParsedExtension::AuthorityInfoAccess(_)
                        | ParsedExtension::AuthorityKeyIdentifier(_)
                        | ParsedExtension::SubjectKeyIdentifier(_)
                )
        })
        .map(|extension| extension.oid.to_string())
}
