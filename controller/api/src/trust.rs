//! What is believed of a boot: policies, references of images, makers of TPMs, and the boots that were seen.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::device::Attestation;
use crate::meta::{Condition, is_dns_label};
use crate::object::object;
use crate::problem::FieldError;

/// Most firmwares that a policy accepts.
const MAX_FIRMWARES: usize = 64;
/// Most references, denied versions and check actions of a policy.
const MAX_ENTRIES: usize = 256;
/// Longest pattern or version, in bytes.
const MAX_TEXT: usize = 256;
/// How long a token may last, in minutes: a week.
const MAX_AGE_MINUTES: u32 = 7 * 24 * 60;
/// Longest reference document, in bytes.
const MAX_REFERENCE: usize = 256 << 10;
/// Longest list of a maker's certificates, in bytes.
const MAX_MAKER: usize = 512 << 10;

object! {
    /// What devices of a model may have booted, and what follows if they have not. The policy that says most about a machine counts: one
    /// with maker and model before one with either, that before one for all.
    AttestationPolicy, "attestationpolicies", protocol::ids::PolicyId, AttestationPolicySpec, AttestationPolicyStatus, validate_policy
}

/// The policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttestationPolicySpec {
    /// For which machines; what is left out fits all.
    #[serde(default, rename = "match")]
    pub matching: ModelMatch,
    /// Names of the boot references that are accepted. Empty: all that were imported.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub references: BTreeSet<String>,
    /// Whether Secure Boot must be on.
    #[serde(default)]
    pub secure_boot: bool,
    /// Firmwares that were accepted, `skerry policy accept` adds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub firmware: Vec<AcceptedFirmware>,
    /// Firmware versions that are not accepted, whatever they measure.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub denied_firmware_versions: BTreeSet<String>,
    /// What follows if a check fails: for a check's name, `refuse` (which also stands for those left out) or `warn`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub on_failure: BTreeMap<String, OnFailure>,
    /// Whether a device that is refused keeps running what it has.
    #[serde(default = "yes")]
    #[schema(default = yes)]
    pub keep_running: bool,
    /// After so many minutes a device must attest again.
    #[serde(default = "default_max_age")]
    #[schema(default = default_max_age)]
    pub max_age_minutes: u32,
}

fn yes() -> bool {
    true
}

fn default_max_age() -> u32 {
    60
}

/// Which machines a policy is for. In patterns `*` stands for any text and `?` for any character.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelMatch {
    /// Pattern for the machine's maker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manufacturer: Option<String>,
    /// Pattern for its model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
}

/// What a firmware measures, as a person accepted it.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AcceptedFirmware {
    /// Its version, as its maker calls it; for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// The PCRs' values: 64 hexadecimal digits by the PCR's number.
    pub pcrs: BTreeMap<String, String>,
    /// Digest of Secure Boot's list of revoked programs (dbx), 64 hexadecimal digits; left out: none was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dbx: Option<String>,
}

/// What follows from a failed check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// No config, no secrets.
    #[default]
    Refuse,
    /// It is told, and nothing else.
    Warn,
}

/// What the controller knows of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AttestationPolicyStatus {
    /// Aspects with reasons.
    pub conditions: Vec<Condition>,
}

fn validate_policy(spec: &AttestationPolicySpec, errors: &mut Vec<FieldError>) {
    let mut wrong = |field: String, message: String| errors.push(FieldError::new(field, message));
    for (field, pattern) in [
        ("spec.match.manufacturer", &spec.matching.manufacturer),
        ("spec.match.product", &spec.matching.product),
    ] {
        if let Some(pattern) = pattern
            && (pattern.is_empty() || pattern.len() > MAX_TEXT)
        {
            wrong(
                field.to_owned(),
                format!("must be 1 to {MAX_TEXT} bytes; leave it out to fit everything"),
            );
        }
    }
    for name in spec.references.iter().filter(|name| !is_dns_label(name)) {
        wrong(
            "spec.references".to_owned(),
            format!("`{}` is not the name of a boot reference", cut(name)),
        );
    }
    for (field, size, most) in [
        ("spec.references", spec.references.len(), MAX_ENTRIES),
        ("spec.firmware", spec.firmware.len(), MAX_FIRMWARES),
        (
            "spec.deniedFirmwareVersions",
            spec.denied_firmware_versions.len(),
            MAX_ENTRIES,
        ),
        ("spec.onFailure", spec.on_failure.len(), MAX_ENTRIES),
    ] {
        if size > most {
            wrong(
                field.to_owned(),
                format!("{size} entries; at most {most} fit"),
            );
        }
    }
    for (place, firmware) in spec.firmware.iter().enumerate() {
        let pcrs = firmware.pcrs.iter();
        if firmware.pcrs.is_empty()
            || pcrs.clone().any(|(number, value)| {
                number.parse::<u8>().is_ok_and(|number| number > 23)
                    || number.parse::<u8>().is_err()
                    || !is_digest(value)
            })
        {
            wrong(
                format!("spec.firmware[{place}].pcrs"),
                "must be 64 lower-case hexadecimal digits each, by a number from 0 to 23"
                    .to_owned(),
            );
        }
        if firmware.dbx.as_ref().is_some_and(|dbx| !is_digest(dbx)) {
            wrong(
                format!("spec.firmware[{place}].dbx"),
                "must be 64 lower-case hexadecimal digits".to_owned(),
            );
        }
        if firmware.version.len() > MAX_TEXT {
            wrong(
                format!("spec.firmware[{place}].version"),
                format!("must be at most {MAX_TEXT} bytes"),
            );
        }
    }
    if !(1..=MAX_AGE_MINUTES).contains(&spec.max_age_minutes) {
        wrong(
            "spec.maxAgeMinutes".to_owned(),
            format!("must be from 1 to {MAX_AGE_MINUTES}"),
        );
    }
}

fn is_digest(text: &str) -> bool {
    protocol::digest::Digest::from_hex(text).is_ok()
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

object! {
    /// What one image's boot comes to, as its build computed and signed it.
    BootReference, "bootreferences", protocol::ids::BootReferenceId, BootReferenceSpec, BootReferenceStatus, validate_reference
}

/// The document and its signature.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BootReferenceSpec {
    /// The document, byte for byte as it was signed.
    pub document: String,
    /// Detached signature over it by a trusted key: ECDSA on P-256 with SHA-256, DER, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// Say that it is not signed, and that this is meant.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unsigned: bool,
}

/// What the controller knows of a boot reference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BootReferenceStatus {
    /// Version of the image.
    pub image_version: String,
    /// Name of the trusted key that signed it; empty if it is not signed.
    pub signed_by: String,
    /// Aspects with reasons.
    pub conditions: Vec<Condition>,
}

fn validate_reference(spec: &BootReferenceSpec, errors: &mut Vec<FieldError>) {
    if spec.document.is_empty() || spec.document.len() > MAX_REFERENCE {
        errors.push(FieldError::new(
            "spec.document",
            format!("must be 1 to {MAX_REFERENCE} bytes"),
        ));
    }
    if spec.signature.is_some() == spec.unsigned {
        errors.push(FieldError::new(
            "spec.signature",
            "either a signature, or `unsigned: true`",
        ));
    }
}

object! {
    /// A maker of TPMs whose certificates are believed.
    TpmMaker, "tpmmakers", protocol::ids::TpmMakerId, TpmMakerSpec, TpmMakerStatus, validate_maker
}

/// The maker's roots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TpmMakerSpec {
    /// Root certificates, and such between them and the TPMs' own that TPMs do not bring along; PEM, one or more.
    pub certificates: String,
}

/// What the controller knows of a maker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TpmMakerStatus {
    /// Aspects with reasons.
    pub conditions: Vec<Condition>,
}

fn validate_maker(spec: &TpmMakerSpec, errors: &mut Vec<FieldError>) {
    if spec.certificates.len() > MAX_MAKER
        || !spec.certificates.contains("-----BEGIN CERTIFICATE-----")
    {
        errors.push(FieldError::new(
            "spec.certificates",
            format!("must be certificates in PEM, at most {MAX_MAKER} bytes"),
        ));
    }
}

object! {
    /// A boot of a device, with every check that it was put to. Its name is the device's and a number.
    Boot, "boots", Uuid, BootSpec, BootStatus, validate_boot
}

/// Nothing of a boot is the operator's to write.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BootSpec {}

fn validate_boot(_: &BootSpec, _: &mut Vec<FieldError>) {}

/// What is known of a boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BootStatus {
    /// Name of the device.
    pub device: String,
    /// When it was first seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub first_seen: Option<Timestamp>,
    /// What showed it.
    pub occasion: BootOccasion,
    /// How often the TPM was reset in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset_count: Option<u64>,
    /// How often it was resumed or restarted since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_count: Option<u64>,
    /// The verdicts of the last look at it.
    pub attestation: Attestation,
    /// Values of the PCRs that firmware and boot loader extend: number and 64 hexadecimal digits.
    pub pcrs: BTreeMap<String, String>,
    /// What is different from the last boot before it that was good, event by event.
    pub differences: Vec<String>,
    /// Firmware values to be accepted, if the event log explains them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<AcceptedFirmware>,
    /// Aspects with reasons.
    pub conditions: Vec<Condition>,
}

/// What showed a boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum BootOccasion {
    /// The device enrolled.
    Enrolment,
    /// It attested.
    #[default]
    Attestation,
}

/// Body of `POST attestationpolicies/{name}/firmware`: whose last boot's firmware to accept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AcceptFirmwareRequest {
    /// Name of the device.
    pub device: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Object as _;

    #[test]
    fn what_is_wrong_with_a_policy_is_named() {
        let policy = |spec: serde_json::Value| -> Vec<String> {
            let spec: AttestationPolicySpec = serde_json::from_value(spec).unwrap();
            AttestationPolicy::new("a", spec)
                .validate()
                .err()
                .map(|invalid| invalid.0.into_iter().map(|error| error.field).collect())
                .unwrap_or_default()
        };
        let digest = "0".repeat(64);
        assert!(policy(serde_json::json!({})).is_empty());
        assert!(
            policy(serde_json::json!({
                "match": {"product": "NUC*"}, "secureBoot": true, "references": ["image-1"],
                "firmware": [{"version": "1", "pcrs": {"0": digest}, "dbx": digest}],
                "onFailure": {"firmware": "warn"}, "maxAgeMinutes": 5
            }))
            .is_empty()
        );
        for (spec, field) in [
            (
                serde_json::json!({"maxAgeMinutes": 0}),
                "spec.maxAgeMinutes",
            ),
            (
                serde_json::json!({"references": ["A B"]}),
                "spec.references",
            ),
            (
                serde_json::json!({"match": {"product": ""}}),
                "spec.match.product",
            ),
            (
                serde_json::json!({"firmware": [{"pcrs": {"24": digest}}]}),
                "spec.firmware[0].pcrs",
            ),
            (
                serde_json::json!({"firmware": [{"pcrs": {"0": "00"}}]}),
                "spec.firmware[0].pcrs",
            ),
        ] {
            assert_eq!(policy(spec), [field]);
        }
    }
}
