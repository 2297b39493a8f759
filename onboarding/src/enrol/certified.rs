//! What a TPM says of the keys in it (TPM2_Certify), and what a verifier makes of that.

use protocol::cipher::Point;
use protocol::enrolment::transcript::Transcript;
use protocol::enrolment::wire::Statement;
use protocol::keys::VerifyingKey;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};

use crate::quote::{self, Bench, Check, GENERATED, Outcome, Statement as Said};
use crate::tpm::template::{KeyUse, matches};
use crate::wire::{EccPoint, Name, Public};

/// What was expected, and what was seen.
pub(super) type Fault = (&'static str, String);

pub(super) fn point(point: EccPoint) -> Option<Point> {
    Point::from_coordinates(point.x, point.y).ok()
}

/// Whether `signer` says in this session that the object `name` is in its TPM.
pub(super) fn says_of(
    signer: &Point,
    statement: &Statement,
    name: &Name,
    transcript: &Transcript,
) -> Result<(), Fault> {
    let Statement { attest, signature } = statement;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, signer.to_sec1())
        .verify(attest, signature)
        .map_err(|_| {
            (
                "a statement signed by the attestation key",
                "one by another key, or over other bytes".to_owned(),
            )
        })?;
    let attest = quote::parse(attest)
        .map_err(|error| ("a TPMS_ATTEST of the kind certification", error.to_string()))?;
    match &attest.statement {
        Said::Certify { name: certified } if attest.magic == GENERATED => {
            if *certified != name.0 {
                return Err(("a statement on this key", "one on another key".to_owned()));
            }
        }
        _ => {
            return Err((
                "a certification made by the TPM",
                "a statement of another kind".to_owned(),
            ));
        }
    }
    if attest.extra_data != transcript.bytes() {
        return Err((
            "a statement for this session",
            format!("one over {}", hex::encode(&attest.extra_data)),
        ));
    }
    Ok(())
}

/// A key that the attestation key is said to have certified.
pub(super) struct Certification<'a> {
    pub(super) check: Check,
    pub(super) key: KeyUse,
    pub(super) public: &'a Public,
    pub(super) statement: &'a Statement,
    /// The key's own signature over the session, if it signs.
    pub(super) own: Option<&'a [u8]>,
}

pub(super) fn certified(
    bench: &mut Bench,
    certification: &Certification<'_>,
    attestation: Option<&Point>,
    transcript: &Transcript,
) -> Option<Point> {
    let check = certification.check;
    let Some(attestation) = attestation else {
        bench.skip(&[check], "there is no attestation key to check it with");
        return None;
    };
    match certification.judge(attestation, transcript) {
        Ok(point) => {
            bench.say(check, Outcome::Pass);
            Some(point)
        }
        Err((expected, seen)) => {
            bench.fail(check, expected, seen);
            None
        }
    }
}

impl Certification<'_> {
    /// The key's point; or what was expected and what was seen.
    fn judge(&self, attestation: &Point, transcript: &Transcript) -> Result<Point, Fault> {
        let Some(key) = self.public.p256_point().and_then(point) else {
            return Err(("a point on P-256", "none".to_owned()));
        };
        if !matches(self.public, self.key) {
            return Err((
                "a P-256 key of its kind, made in the TPM and fixed to it",
                format!("attributes {:#010x}", self.public.attributes.0),
            ));
        }
        says_of(attestation, self.statement, &self.public.name(), transcript)?;
        if let Some(own) = self.own
            && !VerifyingKey::P256(key.to_sec1()).verify(transcript.bytes(), own)
        {
            return Err((
                "the key's own signature over this session",
                "one by another key, or over something else".to_owned(),
            ));
        }
        Ok(key)
    }
}
