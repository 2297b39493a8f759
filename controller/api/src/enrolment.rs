//! Who may enrol without a person, and who waits for one: manifests, rules, the waiting room.
//!
//! ```text
//! machine proves itself -> line of a manifest?  -> admitted under that line's name
//!                       -> first rule that fits -> admitted, denied, or
//!                       -> waiting room         -> approved or denied by a person
//! ```

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::device::{AttestationLevel, Verdict};
use crate::meta::Condition;
use crate::object::object;
use crate::problem::FieldError;

/// Longest text of a manifest, in bytes: some hundred thousand lines.
pub const MAX_MANIFEST_TEXT: usize = 8 << 20;
/// Longest pattern of a rule, in bytes.
const MAX_PATTERN: usize = 256;
/// Longest public key, PEM, in bytes.
const MAX_KEY: usize = 4096;
/// Longest signature, in bytes of base64.
const MAX_SIGNATURE: usize = 256;

object! {
    /// Machines that enrol without a person: a line each.
    Manifest, "manifests", protocol::ids::ManifestId, ManifestSpec, ManifestStatus, validate_manifest
}

/// The list as it was written, and who vouches for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManifestSpec {
    /// How it is written.
    #[serde(default)]
    pub format: ManifestFormat,
    /// The list, byte for byte as it was signed. Not given back: a controller shows its digest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// Detached signature over the text: ECDSA on P-256 with SHA-256, DER, in base64 (what `openssl dgst -sha256 -sign` makes).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// Say that it is not signed, and that this is meant.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unsigned: bool,
}

/// How a manifest is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ManifestFormat {
    /// A line with titles, then a machine a line (RFC 4180): `ekId`, `serial`, `name`, `label:KEY`.
    #[default]
    Csv,
    /// An array of objects: `ekId`, `serial`, `name`, `labels`.
    Json,
}

/// What the controller knows of a manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ManifestStatus {
    /// `sha256:` and hex digits of its text.
    pub digest: String,
    /// Machines on it.
    pub machines: u64,
    /// How many of them have enrolled.
    pub enrolled: u64,
    /// Name of the trusted key that signed it; empty if it is not signed.
    pub signed_by: String,
    /// Aspects with reasons.
    pub conditions: Vec<Condition>,
}

fn validate_manifest(spec: &ManifestSpec, errors: &mut Vec<FieldError>) {
    let mut wrong = |field: &str, message: String| errors.push(FieldError::new(field, message));
    if spec.text.is_empty() {
        wrong("spec.text", "there is nothing in it".to_owned());
    }
    if spec.text.len() > MAX_MANIFEST_TEXT {
        wrong(
            "spec.text",
            format!(
                "{} bytes; at most {MAX_MANIFEST_TEXT} fit, split it",
                spec.text.len()
            ),
        );
    }
    match (&spec.signature, spec.unsigned) {
        (None, false) => wrong(
            "spec.signature",
            "it is missing: sign the file, or say `unsigned: true`".to_owned(),
        ),
        (Some(_), true) => wrong(
            "spec.unsigned",
            "it has a signature; leave one of both out".to_owned(),
        ),
        (Some(signature), false) if signature.len() > MAX_SIGNATURE => wrong(
            "spec.signature",
            format!("{} bytes are no signature", signature.len()),
        ),
        _ => {}
    }
}

object! {
    /// Lets machines in, or keeps them out, by what is known of them. Rules are asked by priority, then by name; the first that fits
    /// decides.
    EnrolmentRule, "enrolmentrules", protocol::ids::RuleId, EnrolmentRuleSpec, EnrolmentRuleStatus, validate_rule
}

/// Which machines, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnrolmentRuleSpec {
    /// Lower numbers are asked first.
    #[serde(default = "default_priority")]
    #[schema(default = default_priority)]
    pub priority: u32,
    /// What becomes of a machine that fits.
    pub effect: RuleEffect,
    /// Which machines fit; what is left out fits all.
    #[serde(default, rename = "match")]
    pub matching: MachineMatch,
    /// Labels for devices that it admits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// After this time it no longer fits anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
}

fn default_priority() -> u32 {
    100
}

/// What becomes of a machine that fits a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RuleEffect {
    /// It becomes a device. Machines without a TPM are never admitted by a rule: for them this means `wait`.
    Admit,
    /// It waits for a person.
    Wait,
    /// It is turned away.
    Deny,
}

impl fmt::Display for RuleEffect {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Admit => "admit",
            Self::Wait => "wait",
            Self::Deny => "deny",
        })
    }
}

/// Which machines. In patterns `*` stands for any text and `?` for any character; letters count as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MachineMatch {
    /// Pattern for the issuer of the endorsement key's certificate. Only certificates that lead to a trusted maker count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endorsement_issuer: Option<String>,
    /// Only machines whose TPM has a trusted maker's certificate, or only others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certified: Option<bool>,
    /// Only machines that a trusted maker of machines has certified (level `gold`), or only others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_certified: Option<bool>,
    /// Pattern for the machine's maker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manufacturer: Option<String>,
    /// Pattern for its model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Pattern for its serial number. A machine says it of itself, so it is no proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// What the controller knows of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EnrolmentRuleStatus {
    /// Aspects with reasons.
    pub conditions: Vec<Condition>,
}

fn validate_rule(spec: &EnrolmentRuleSpec, errors: &mut Vec<FieldError>) {
    spec.matching.validate("spec.match", errors);
    crate::meta::validate_labels("spec.labels", &spec.labels, errors);
}

impl MachineMatch {
    pub(crate) fn validate(&self, place: &str, errors: &mut Vec<FieldError>) {
        for (field, pattern) in [
            ("endorsementIssuer", &self.endorsement_issuer),
            ("manufacturer", &self.manufacturer),
            ("product", &self.product),
            ("serial", &self.serial),
        ] {
            if let Some(pattern) = pattern
                && (pattern.is_empty() || pattern.len() > MAX_PATTERN)
            {
                errors.push(FieldError::new(
                    format!("{place}.{field}"),
                    format!("must be 1 to {MAX_PATTERN} bytes; leave it out to fit everything"),
                ));
            }
        }
    }
}

object! {
    /// A machine that has proven its keys and waits for a person. Its name is the beginning of its id.
    WaitingMachine, "waiting", Uuid, WaitingMachineSpec, WaitingMachineStatus, validate_nothing
}

/// Nothing of a waiting machine is the operator's to write: it is approved or denied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WaitingMachineSpec {}

/// What is known of a waiting machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WaitingMachineStatus {
    /// Eight words that stand on its screen, too.
    pub words: String,
    /// `sha256:` of its endorsement key, or of its device key if it has no TPM.
    pub machine_id: String,
    /// What was decided.
    pub decision: WaitingDecision,
    /// Why it waits.
    pub reason: String,
    /// How strong the proof of its identity is.
    pub level: AttestationLevel,
    /// What it says of itself.
    pub hardware: MachineFacts,
    /// Names of devices that say the same of themselves: somebody may be posing.
    pub resembles: Vec<String>,
    /// When it came first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub first_seen: Option<Timestamp>,
    /// When it came last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_seen: Option<Timestamp>,
    /// The checks that its proof passed.
    pub verdicts: Vec<Verdict>,
    /// Aspects with reasons.
    pub conditions: Vec<Condition>,
}

/// What a machine says of itself. Only the keys are proven, none of this.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MachineFacts {
    /// Maker.
    pub manufacturer: String,
    /// Model.
    pub product: String,
    /// Serial number.
    pub serial: String,
    /// Version of its firmware.
    pub firmware_version: String,
    /// Version of the image that it runs.
    pub image_version: String,
    /// Issuer of its endorsement key's certificate; empty if it has none.
    pub endorsement_issuer: String,
    /// Trusted maker of machines that has certified its TPM; empty if none has.
    pub machine_issuer: String,
    /// Serial number for which that maker has certified the TPM.
    pub certified_serial: String,
}

/// What was decided about a waiting machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum WaitingDecision {
    /// Nothing yet.
    #[default]
    Waiting,
    /// It becomes a device when it asks next.
    Approved,
    /// It is turned away.
    Denied,
}

impl fmt::Display for WaitingDecision {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, out)
    }
}

/// Body of `POST waiting/decisions`: about which machines, and what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WaitingDecisionRequest {
    /// Approve or deny.
    pub decision: WaitingVerb,
    /// Machine ids, their beginnings of 12 digits at least, or all eight words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub machines: Vec<String>,
    /// All that wait now and fit this, instead of naming machines.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matching: Option<MachineMatch>,
    /// Name for the device; for one machine only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels for the devices.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// What to do with waiting machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WaitingVerb {
    /// Let them in.
    Approve,
    /// Turn them away.
    Deny,
}

/// Answer to [`WaitingDecisionRequest`]: the machines that it was about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WaitingDecided {
    /// Names of the machines.
    pub machines: Vec<String>,
}

object! {
    /// A key whose signatures under manifests count.
    TrustedKey, "trustedkeys", protocol::ids::TrustedKeyId, TrustedKeySpec, TrustedKeyStatus, validate_key
}

/// Which key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustedKeySpec {
    /// P-256 public key, PEM (`openssl pkey -pubout`).
    pub public_key: String,
}

/// What the controller knows of a trusted key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TrustedKeyStatus {
    /// Aspects with reasons.
    pub conditions: Vec<Condition>,
}

fn validate_key(spec: &TrustedKeySpec, errors: &mut Vec<FieldError>) {
    if spec.public_key.len() > MAX_KEY || !spec.public_key.contains("-----BEGIN PUBLIC KEY-----") {
        errors.push(FieldError::new(
            "spec.publicKey",
            "must be a P-256 public key in PEM (-----BEGIN PUBLIC KEY-----)",
        ));
    }
}

fn validate_nothing(_: &WaitingMachineSpec, _: &mut Vec<FieldError>) {}

/// Whether `text` fits `pattern`, in which `*` stands for any text and `?` for any character.
#[must_use]
pub fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    // The place after the last star, and how much of the text it stands for so far: one step back is enough, since an earlier star
    // can take nothing that a later one could not.
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(c) = text.get(t) {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(wanted) if wanted == c || *wanted == '?' => {
                p += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((after, taken)) => {
                    *taken += 1;
                    (p, t) = (*after, *taken);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Object as _;

    #[test]
    fn patterns_fit() {
        for (pattern, text, fit) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("?", "", false),
            ("a*c", "abc", true),
            ("a*c", "abcd", false),
            ("a*b*c", "aXbYbZc", true),
            ("SN-????", "SN-1234", true),
            ("SN-????", "SN-12345", false),
            ("*CN=Maker*", "O=x, CN=Maker 7", true),
            ("é?", "éa", true),
            ("**a**", "bbabb", true),
        ] {
            assert_eq!(fits(pattern, text), fit, "{pattern} {text}");
        }
        // Many stars cost no more than their number times the text.
        assert!(!fits(&"*a".repeat(100), &"b".repeat(10_000)));
    }

    #[test]
    fn a_manifest_is_signed_or_says_that_it_is_not() {
        let spec = |signature: Option<&str>, unsigned| ManifestSpec {
            text: "serial\nA\n".to_owned(),
            signature: signature.map(str::to_owned),
            unsigned,
            ..ManifestSpec::default()
        };
        for (spec, right) in [
            (spec(Some("MEUC"), false), true),
            (spec(None, true), true),
            (spec(None, false), false),
            (spec(Some("MEUC"), true), false),
        ] {
            assert_eq!(Manifest::new("a", spec).validate().is_ok(), right);
        }
    }
}
