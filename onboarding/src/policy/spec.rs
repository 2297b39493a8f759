//! The policy itself: plain data, fit for an object of the operator API.

use protocol::digest::Digest;
use serde::{Deserialize, Serialize};

use super::firmware::{FirmwareValues, MAX_PROGRAMS};
use super::pattern::Pattern;
use super::reference::{Reference, Variant};
use super::release::ReleaseKey;
use super::version::Versions;
use crate::quote::Check;

/// Longest policy as JSON, in bytes.
pub const MAX_POLICY: usize = 256 << 10;
/// Most entries of each list.
const MAX_LIST: usize = 128;
/// Longest name of accepted firmware, in bytes.
const MAX_NAME: usize = 128;
/// How long one attestation may be good, in minutes: a quote every minute costs a discrete TPM a good part of its time, and a week is
/// as good as never.
const MAX_AGE: std::ops::RangeInclusive<u32> = 1..=7 * 24 * 60;

/// What machines may have booted, and what follows if it is something else.
///
/// ```json
/// {
///   "machines": {"manufacturer": "Dell*", "product": "Edge Gateway 3200"},
///   "references": {"releaseKeys": ["04..."], "versions": {"from": "0.2"}, "variants": ["production"]},
///   "firmware": [{"name": "1.14.0 as delivered", "values": {"pcr0": "sha256:...", ...}}],
///   "requireSecureBoot": true,
///   "revocationLists": ["sha256:..."],
///   "deniedFirmware": ["1.1*"],
///   "actions": {"revocationList": "warn"},
///   "keepRunning": true,
///   "maxAgeMinutes": 60
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// For which machines it is.
    #[serde(default)]
    pub machines: Machines,
    /// Which images may run.
    pub references: AcceptedReferences,
    /// Firmware that a person accepted.
    #[serde(default)]
    pub firmware: Vec<AcceptedFirmware>,
    /// Whether Secure Boot must be on.
    pub require_secure_boot: bool,
    /// SHA-256 of revocation lists (`dbx`) that are accepted, besides those of `firmware`.
    #[serde(default)]
    pub revocation_lists: Vec<Digest>,
    /// Versions of firmware that are refused, whatever else is accepted.
    #[serde(default)]
    pub denied_firmware: Vec<Pattern>,
    /// What follows from a check that fails.
    #[serde(default)]
    pub actions: Actions,
    /// Whether a device that is refused keeps running what it runs.
    #[serde(default = "yes")]
    pub keep_running: bool,
    /// How long one attestation is good, in minutes.
    #[serde(default = "an_hour")]
    pub max_age_minutes: u32,
}

fn yes() -> bool {
    true
}

fn an_hour() -> u32 {
    60
}

/// Machines, by what their maker wrote into them (SMBIOS).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Machines {
    /// Who made it.
    pub manufacturer: Pattern,
    /// Its model.
    pub product: Pattern,
}

/// Which images may run: those of one of the keys, of one of the versions, of one of the variants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AcceptedReferences {
    /// Whose references are believed. Without one, no image is accepted.
    pub release_keys: Vec<ReleaseKey>,
    /// Their versions; any if it is left out.
    #[serde(default)]
    pub versions: Versions,
    /// Their variants; production only if it is left out.
    #[serde(default = "production")]
    pub variants: Vec<Variant>,
}

fn production() -> Vec<Variant> {
    vec![Variant::Production]
}

/// Firmware that a person accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AcceptedFirmware {
    /// What the person calls it.
    #[serde(default)]
    pub name: String,
    /// What a boot showed of it.
    pub values: FirmwareValues,
}

/// What follows from a check that failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// No config, no secrets.
    #[default]
    Refuse,
    /// It is told, and nothing follows.
    Warn,
}

/// What follows, check by check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Actions {
    /// For [`Check::BootApplications`].
    pub boot_applications: Action,
    /// For [`Check::CommandLine`].
    pub command_line: Action,
    /// For [`Check::Initramfs`].
    pub initramfs: Action,
    /// For [`Check::KernelImageSections`].
    pub kernel_image_sections: Action,
    /// For [`Check::SecureBoot`].
    pub secure_boot: Action,
    /// For [`Check::RevocationList`].
    pub revocation_list: Action,
    /// For [`Check::Firmware`].
    pub firmware: Action,
    /// For [`Check::FirmwareVersion`].
    pub firmware_version: Action,
}

impl Actions {
    /// What follows if a check fails. Checks that are not policy's are not its to let pass.
    #[must_use]
    pub fn of(&self, check: Check) -> Action {
        match check {
            Check::BootApplications => self.boot_applications,
            Check::CommandLine => self.command_line,
            Check::Initramfs => self.initramfs,
            Check::KernelImageSections => self.kernel_image_sections,
            Check::SecureBoot => self.secure_boot,
            Check::RevocationList => self.revocation_list,
            Check::Firmware => self.firmware,
            Check::FirmwareVersion => self.firmware_version,
            _ => Action::Refuse,
        }
    }
}

/// What is wrong with a policy, with the field's path.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It is too long.
    #[error("reading a policy: it has {size} bytes, at most {MAX_POLICY} are read")]
    TooLong {
        /// Its length.
        size: usize,
    },
    /// It is no policy.
    #[error("reading a policy: {0}")]
    Json(#[from] serde_json::Error),
    /// A value is out of its bounds.
    #[error("reading a policy: {field}: {what}")]
    Field {
        /// Path of the field.
        field: &'static str,
        /// What is wrong.
        what: String,
    },
}

impl Policy {
    /// Reads a policy from JSON.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn parse(json: &[u8]) -> Result<Self, PolicyError> {
        if json.len() > MAX_POLICY {
            return Err(PolicyError::TooLong { size: json.len() });
        }
        let policy: Self = serde_json::from_slice(json)?;
        policy.validate()?;
        Ok(policy)
    }

    /// Checks what the types do not say.
    ///
    /// # Errors
    /// [`PolicyError::Field`].
    pub fn validate(&self) -> Result<(), PolicyError> {
        let fail = |field, what: String| Err(PolicyError::Field { field, what });
        for (field, length) in [
            ("references.releaseKeys", self.references.release_keys.len()),
            (
                "references.versions.only",
                self.references.versions.only.len(),
            ),
            ("references.variants", self.references.variants.len()),
            ("firmware", self.firmware.len()),
            ("revocationLists", self.revocation_lists.len()),
            ("deniedFirmware", self.denied_firmware.len()),
        ] {
            if length > MAX_LIST {
                return fail(
                    field,
                    format!("it has {length} entries, at most {MAX_LIST} are taken"),
                );
            }
        }
        if self.references.release_keys.is_empty() {
            return fail(
                "references.releaseKeys",
                "a key is needed; it stands in each reference.json that it signed".to_owned(),
            );
        }
        if self.references.variants.is_empty() {
            return fail(
                "references.variants",
                "production or debug is needed".to_owned(),
            );
        }
        if let (Some(from), Some(to)) =
            (&self.references.versions.from, &self.references.versions.to)
            && from > to
        {
            return fail(
                "references.versions",
                format!("no version is from {from} to {to}"),
            );
        }
        for accepted in &self.firmware {
            for text in [&accepted.name, &accepted.values.version] {
                if text.len() > MAX_NAME || text.chars().any(char::is_control) {
                    return fail(
                        "firmware",
                        format!(
                            "names and versions have at most {MAX_NAME} bytes and no control characters"
                        ),
                    );
                }
            }
            if accepted.values.programs.len() > MAX_PROGRAMS {
                return fail(
                    "firmware.values.programs",
                    format!("at most {MAX_PROGRAMS} are taken"),
                );
            }
        }
        if !MAX_AGE.contains(&self.max_age_minutes) {
            return fail(
                "maxAgeMinutes",
                format!("{} to {} is needed", MAX_AGE.start(), MAX_AGE.end()),
            );
        }
        Ok(())
    }

    /// Whether the policy is for a machine, by its maker and model as SMBIOS has them.
    #[must_use]
    pub fn is_for(&self, manufacturer: &str, product: &str) -> bool {
        self.machines.manufacturer.fits(manufacturer) && self.machines.product.fits(product)
    }

    /// Whether an image may run.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn accepts(&self, reference: &Reference) -> Result<(), String> {
        let accepted = &self.references;
        if !accepted.release_keys.contains(&reference.release_key) {
            Err(format!(
                "its release key {} is not accepted",
                reference.release_key.id()
            ))
        } else if !accepted.versions.hold(&reference.version) {
            Err(format!("accepted versions are {}", accepted.versions))
        } else if !accepted.variants.contains(&reference.variant) {
            Err(format!("the variant {} is not accepted", reference.variant))
        } else {
            Ok(())
        }
    }
}
