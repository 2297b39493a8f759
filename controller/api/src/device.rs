//! Device: a machine that enrolled. Enrolment makes it; the operator names and labels it.

use std::fmt;

use jiff::Timestamp;
use protocol::items::{MAX_TIME_SERVERS, time_server};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::meta::Condition;
use crate::object::object;
use crate::problem::FieldError;

/// Longest description, in bytes.
const MAX_DESCRIPTION: usize = 1024;

object! {
    /// A machine that enrolled. Its `metadata.uid` is the device's UUID on the wire.
    Device, "devices", protocol::ids::DeviceId, DeviceSpec, DeviceStatus, validate
}

/// What the operator wants of a device itself; what runs on it is said by apps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceSpec {
    /// For people: where it stands, what it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// It is turned away: it gets no config and cannot enrol again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revoked: bool,
    /// Time servers (NTP) by which its clock goes between the controller's signed times: names or addresses, at most 8. Without any, those
    /// that its network names by DHCP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub time_servers: Vec<String>,
}

/// What the controller knows of a device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceStatus {
    /// Where it stands.
    pub phase: DevicePhase,
    /// Whether it was heard from lately.
    pub online: bool,
    /// When it was last heard from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_seen: Option<Timestamp>,
    /// What machine it is.
    pub hardware: Hardware,
    /// How far it can be trusted on its present boot.
    pub attestation: Attestation,
    /// Version of the image it runs; empty until it told.
    pub image_version: String,
    /// Its network interfaces.
    pub interfaces: Vec<Interface>,
    /// Network of the apps on it, behind it: chosen so that its uplinks' networks are not touched. Empty until it told those.
    pub app_network: String,
    /// Its memory, once it told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStatus>,
    /// Which config it has.
    pub config: ConfigStatus,
    /// What it last complained of, newest first.
    pub errors: Vec<ReportedError>,
    /// When it booted last, by its own clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub booted_at: Option<Timestamp>,
    /// `sha256:` of its endorsement key, or of its device key if it has no TPM; empty for devices that registered with the image's
    /// onboarding key.
    pub machine_id: String,
    /// The same as eight words.
    pub machine_words: String,
    /// Machines that claimed to be this one.
    pub alarms: Vec<Alarm>,
    /// Aspects with reasons: `Online`, `Attested`, `ConfigApplied`, `Unique`.
    pub conditions: Vec<Condition>,
}

/// Where a device stands.
///
/// ```text
/// Registered -> Attesting -> Online <-> Offline
///                   \-> Refused -> (attests again) -> Online
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum DevicePhase {
    /// It registered and has not asked for its nonce yet.
    #[default]
    Registered,
    /// It was given a nonce and owes a quote.
    Attesting,
    /// Its attestation failed; it gets no config. The verdicts say why.
    Refused,
    /// It is in use.
    Online,
    /// It is in use, but was not heard from lately.
    Offline,
    /// An operator has turned it away.
    Revoked,
}

impl fmt::Display for DevicePhase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, out)
    }
}

/// What machine a device is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Hardware {
    /// The maker's serial number.
    pub serial: String,
    /// Serial number given by software; empty if none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub soft_serial: String,
    /// Maker.
    pub manufacturer: String,
    /// Model.
    pub product_name: String,
    /// Processor architecture.
    pub architecture: String,
    /// Processors.
    pub cpus: u32,
    /// Storage, in MiB.
    #[serde(rename = "storageMiB")]
    pub storage_mib: u64,
}

/// How far a device can be trusted on its present boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Attestation {
    /// What follows from the verdicts. It gets its config unless it is refused.
    pub conclusion: AttestationConclusion,
    /// How strong the proof of identity is.
    pub level: AttestationLevel,
    /// When the verdicts were found.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub time: Option<Timestamp>,
    /// Each check with its result.
    pub verdicts: Vec<Verdict>,
    /// What is different from the last boot before it that was good, event by event.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<String>,
}

/// What follows from all verdicts over a device's last quote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AttestationConclusion {
    /// Its TPM signed what was booted, and the event log explains it.
    Trusted,
    /// Nothing is refuted, and what was booted is not proven: it has no TPM, sent no event log, has sent no quote yet, or there are policies
    /// and none of them is for its model.
    #[default]
    Unproven,
    /// A check failed.
    Refused,
}

impl fmt::Display for AttestationConclusion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Trusted => "trusted",
            Self::Unproven => "unproven",
            Self::Refused => "refused",
        })
    }
}

/// How strong the proof of a device's identity is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum AttestationLevel {
    /// No TPM: a software key, marked for ever.
    #[default]
    None,
    /// A TPM's key, let in by a person or by the onboarding certificate.
    Bronze,
    /// A TPM with its maker's certificate.
    Silver,
    /// A TPM with its maker's certificate and the machine maker's identity.
    Gold,
}

impl fmt::Display for AttestationLevel {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::None => "none",
            Self::Bronze => "bronze",
            Self::Silver => "silver",
            Self::Gold => "gold",
        })
    }
}

/// Result of one check of an attestation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Which check, one word.
    pub check: String,
    /// Whether it held, or was not made.
    pub outcome: VerdictOutcome,
    /// What was expected and seen, or why it does not apply; empty if there is nothing to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum VerdictOutcome {
    /// As expected.
    Passed,
    /// Not as expected.
    Failed,
    /// Not as expected, and the policy lets it pass.
    Warned,
    /// It was not made; the detail says why.
    NotChecked,
}

/// A network interface of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Interface {
    /// Its name on the device.
    pub name: String,
    /// Hardware address.
    pub mac: String,
    /// IP addresses.
    pub addresses: Vec<String>,
    /// Whether it leads to the outside.
    pub uplink: bool,
    /// Routers it was told of.
    pub routers: Vec<String>,
}

/// Memory of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MemoryStatus {
    /// All of it, in KiB (MemTotal).
    #[serde(rename = "totalKiB")]
    pub total_kib: u64,
    /// What could still be used, in KiB (MemAvailable).
    #[serde(rename = "availableKiB")]
    pub available_kib: u64,
    /// The programs of the system and the apps' monitors, largest first.
    pub processes: Vec<ProcessMemory>,
    /// When it was measured, by the device's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub time: Option<Timestamp>,
}

/// Memory of one program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProcessMemory {
    /// Name of the program.
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// Resident pages, in KiB.
    #[serde(rename = "rssKiB")]
    pub rss_kib: u64,
    /// Resident pages with shared ones divided by their users, in KiB, if the device measures it.
    #[serde(rename = "pssKiB", skip_serializing_if = "Option::is_none")]
    pub pss_kib: Option<u64>,
}

/// Which config a device has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigStatus {
    /// Hash of what it should have.
    pub wanted: String,
    /// Hash it named when it last asked.
    pub applied: String,
}

/// A machine with other keys that claimed what this device claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Alarm {
    /// When it did last.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// `sha256:` of this device's key.
    pub own: String,
    /// `sha256:` of the other machine's key.
    pub other: String,
    /// What both claim.
    pub message: String,
}

/// Something a device complained of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReportedError {
    /// When, by the device's clock.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// What it is about, such as `config` or an interface's name.
    pub source: String,
    /// What is wrong.
    pub message: String,
}

fn validate(spec: &DeviceSpec, errors: &mut Vec<FieldError>) {
    if spec.description.len() > MAX_DESCRIPTION {
        errors.push(FieldError::new(
            "spec.description",
            format!(
                "{} bytes; at most {MAX_DESCRIPTION} fit",
                spec.description.len()
            ),
        ));
    }
    if spec.time_servers.len() > MAX_TIME_SERVERS {
        errors.push(FieldError::new(
            "spec.timeServers",
            format!(
                "{} time servers; at most {MAX_TIME_SERVERS} are asked",
                spec.time_servers.len()
            ),
        ));
    }
    for (index, server) in spec.time_servers.iter().enumerate() {
        if let Err(error) = time_server(server) {
            errors.push(FieldError::new(
                format!("spec.timeServers[{index}]"),
                error.to_string(),
            ));
        }
    }
}
