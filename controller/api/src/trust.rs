//! What is believed of a boot: policies, references of images, makers of TPMs, and the boots that were seen.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::device::Attestation;
use crate::meta::Condition;
use crate::object::object;
use crate::problem::FieldError;

/// Longest reference document, in bytes.
const MAX_REFERENCE: usize = 256 << 10;
/// Longest list of a maker's certificates, in bytes.
const MAX_MAKER: usize = 512 << 10;
/// Most revocation lists of a maker, and their length together, in bytes of text.
const MAX_REVOCATION_LISTS: usize = 16;
const MAX_REVOCATION_TEXT: usize = 384 << 10;

object! {
    /// What devices of a model may have booted, and what follows if it was something else. The policy that says most about a machine
    /// counts: one with maker and model before one with either, that before one for all; among equals the first by name.
    AttestationPolicy, "attestationpolicies", protocol::ids::PolicyId, AttestationPolicySpec, AttestationPolicyStatus, validate_policy
}

/// The policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttestationPolicySpec {
    /// For which machines it is.
    #[serde(default)]
    pub machines: PolicyMachines,
    /// Which images may run.
    pub references: AcceptedReferences,
    /// Firmware that a person accepted; `skerry policy accept` adds to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub firmware: Vec<AcceptedFirmware>,
    /// Whether Secure Boot must be on.
    pub require_secure_boot: bool,
    /// `sha256:` and digits of Secure Boot's revocation lists (`dbx`) that are accepted, besides those of `firmware`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revocation_lists: Vec<String>,
    /// Patterns for versions of firmware that are refused, whatever else is accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denied_firmware: Vec<String>,
    /// What follows from a check that fails: by the check's name, `refuse` (which also stands for those left out) or `warn`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub actions: BTreeMap<String, PolicyAction>,
    /// Whether a device that is refused keeps running what it runs.
    #[serde(default = "yes")]
    #[schema(default = yes)]
    pub keep_running: bool,
    /// How long one attestation is good, in minutes.
    #[serde(default = "an_hour")]
    #[schema(default = an_hour)]
    pub max_age_minutes: u32,
}

fn yes() -> bool {
    true
}

fn an_hour() -> u32 {
    60
}

/// Which machines a policy is for, by what their maker wrote into them. In patterns `*` stands for any text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyMachines {
    /// Pattern for the maker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manufacturer: Option<String>,
    /// Pattern for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
}

/// Which images may run: those of one of the keys, of one of the versions, of one of the variants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AcceptedReferences {
    /// Whose references are believed: a key stands in each reference that it signed.
    pub release_keys: Vec<String>,
    /// Versions of images; any if it is left out.
    #[serde(default)]
    pub versions: ImageVersions,
    /// `production` or `debug`; production only if it is left out.
    #[serde(default = "production")]
    #[schema(default = production)]
    pub variants: Vec<String>,
}

fn production() -> Vec<String> {
    vec!["production".to_owned()]
}

/// Versions of images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageVersions {
    /// The first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// These alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
}

/// Firmware that a person accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AcceptedFirmware {
    /// What the person calls it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What a boot showed of it.
    pub values: FirmwareValues,
}

/// What a machine's firmware measured of itself and of its settings. Digests are `sha256:` and digits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FirmwareValues {
    /// Its version, as it calls itself; for people.
    #[serde(default)]
    pub version: String,
    /// PCR 0: the firmware's code.
    pub pcr0: String,
    /// PCR 2: code of plugged-in devices.
    pub pcr2: String,
    /// PCR 3: their configuration.
    pub pcr3: String,
    /// Whether Secure Boot is on.
    pub secure_boot: bool,
    /// The variable `PK`.
    pub platform_key: String,
    /// The variable `KEK`.
    pub key_exchange_keys: String,
    /// The variable `db`: who may sign programs.
    pub signature_list: String,
    /// The variable `dbx`: what may not be started all the same.
    pub revocation_list: String,
    /// What PCR 7 would hold without these.
    pub secure_boot_rest: String,
    /// Programs that the firmware started and that are of no image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<String>,
}

/// What follows from a failed check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum PolicyAction {
    /// No config, no secrets.
    #[default]
    Refuse,
    /// It is told, and nothing follows.
    Warn,
}

/// What the controller knows of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AttestationPolicyStatus {
    /// Aspects with reasons.
    pub conditions: Vec<Condition>,
}

/// The controller checks a policy against what its verifier knows; here is nothing that it does not say better.
fn validate_policy(_: &AttestationPolicySpec, _: &mut Vec<FieldError>) {}

object! {
    /// What one image's boot comes to, as its build computed and signed it.
    BootReference, "bootreferences", protocol::ids::BootReferenceId, BootReferenceSpec, BootReferenceStatus, validate_reference
}

/// The document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BootReferenceSpec {
    /// The signed document, byte for byte as the image build wrote it (`reference.json`).
    pub document: String,
}

/// What the controller knows of a boot reference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BootReferenceStatus {
    /// Version of the image.
    pub image_version: String,
    /// Production or debug.
    pub variant: String,
    /// The key that signed it: it counts where a policy names it.
    pub release_key: String,
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
}

object! {
    /// A maker whose certificates are believed: of TPMs, or of machines. `spec.makes` says of which.
    TpmMaker, "tpmmakers", protocol::ids::TpmMakerId, TpmMakerSpec, TpmMakerStatus, validate_maker
}

/// The maker's roots, and what it has taken back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TpmMakerSpec {
    /// What it makes; `tpms` if it is left out. A maker of both is two objects.
    #[serde(default)]
    pub makes: Makes,
    /// Root certificates, and such between them and the TPMs' own that TPMs do not bring along; PEM, one or more.
    pub certificates: String,
    /// Certificate revocation lists, each signed by one of `certificates`: one block of PEM (`X509 CRL`), or base64 of DER. They count until
    /// others take their place, also past the time of the next one. Nothing is ever fetched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revocation_lists: Vec<String>,
}

/// What a maker makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Makes {
    /// TPMs: it certifies endorsement keys. A trusted one brings machines to level `silver`.
    #[default]
    Tpms,
    /// Machines: it certifies initial attestation keys (IAK) in their TPMs. A trusted one brings machines of level `silver` to `gold`.
    Machines,
}

impl fmt::Display for Makes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Tpms => "tpms",
            Self::Machines => "machines",
        })
    }
}

/// What the controller knows of a maker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TpmMakerStatus {
    /// What its revocation lists say, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revocation_lists: Vec<RevocationListStatus>,
    /// Aspects with reasons: `RevocationCurrent` is false if a list's maker has promised a newer one for a time that is over.
    pub conditions: Vec<Condition>,
}

/// What a revocation list says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RevocationListStatus {
    /// Whose certificates it is about.
    pub issuer: String,
    /// How many it revokes.
    pub revoked: u32,
    /// When it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub made: Option<Timestamp>,
    /// When the next one is due at the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next: Option<Timestamp>,
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
    let text: usize = spec.revocation_lists.iter().map(String::len).sum();
    if spec.revocation_lists.len() > MAX_REVOCATION_LISTS || text > MAX_REVOCATION_TEXT {
        errors.push(FieldError::new(
            "spec.revocationLists",
            format!(
                "must be {MAX_REVOCATION_LISTS} lists at most, and {MAX_REVOCATION_TEXT} bytes together; base64 of DER is shorter than PEM, and a maker may be several objects"
            ),
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
    /// What its firmware measured, if the event log explains it: what `skerry policy accept` takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<FirmwareValues>,
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

/// Body of `POST attestationpolicies/{name}/firmware`: whose firmware to accept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AcceptFirmwareRequest {
    /// Name of the device.
    pub device: String,
    /// Name of the boot; empty: the last one whose quote and event log hold.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot: String,
    /// What to call it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}
