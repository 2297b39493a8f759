//! What a machine's firmware measured of itself and of its Secure Boot settings: learned from a boot, accepted by a person.
//!
//! PCR 1 is left out: it holds boot entries and their order, which name partitions and disks, so two machines of one model differ in it.
//!
//! PCR 7 is taken apart, so that a new revocation list can be accepted by itself. Its first events, up to the separator, are Secure Boot's
//! variables (PC Client Platform Firmware Profile, 3.3.4.8). The firmware measures them before anything foreign runs, so their digests are
//! true; but kinds and data stand in the log as somebody wrote them. A true `SecureBoot = 0` that is presented as something else
//! needs data of the same digest, which is its own bytes; and these are taken for nothing but a variable here: every other event before
//! the separator must be of a kind whose data cannot look like that, or nothing of it is believed.

use protocol::digest::Digest;
use protocol::keys::sha256;
use serde::{Deserialize, Serialize};

use super::boot::Boot;
use super::reference::Reference;
use crate::eventlog::variable::{GLOBAL, IMAGE_SECURITY, Variable};
use crate::eventlog::{self, Algorithm, Event, EventType};

/// Most programs of the firmware's own.
pub(super) const MAX_PROGRAMS: usize = 32;
/// Longest text of an action. Texts in use have some 50 characters, and no program is that short.
const MAX_ACTION: usize = 128;

/// Secure Boot's variables, as they are measured.
const VARIABLES: [([u8; 16], &str); 5] = [
    (GLOBAL, "SecureBoot"),
    (GLOBAL, "PK"),
    (GLOBAL, "KEK"),
    (IMAGE_SECURITY, "db"),
    (IMAGE_SECURITY, "dbx"),
];

/// The firmware of a model. Two that differ in `version` only are the same: everything else is measured, and the version is for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FirmwareValues {
    /// Its version, as it calls itself.
    #[serde(default)]
    pub version: String,
    /// PCR 0: the firmware's code.
    pub pcr0: Digest,
    /// PCR 2: code of plugged-in devices (option ROMs).
    pub pcr2: Digest,
    /// PCR 3: their configuration.
    pub pcr3: Digest,
    /// Whether Secure Boot is on.
    pub secure_boot: bool,
    /// SHA-256 of the variable `PK`.
    pub platform_key: Digest,
    /// SHA-256 of the variable `KEK`.
    pub key_exchange_keys: Digest,
    /// SHA-256 of the variable `db`: who may sign programs.
    pub signature_list: Digest,
    /// SHA-256 of the variable `dbx`: what may not be started all the same.
    pub revocation_list: Digest,
    /// What PCR 7 would hold if nothing but its other events had been measured: by which keys programs were accepted, debug modes.
    pub secure_boot_rest: Digest,
    /// Authenticode digests of programs that the firmware started and that are of no image: tools of the maker.
    #[serde(default)]
    pub programs: Vec<Digest>,
}

impl FirmwareValues {
    /// What a boot shows of its firmware. `references` are images that are known; programs of none of them are taken for the firmware's
    /// own, for the person to see and to accept.
    ///
    /// # Errors
    /// Why Secure Boot's variables in the log cannot be believed, or that there are too many unknown programs; in words.
    pub fn of<'a>(
        boot: &Boot,
        references: impl IntoIterator<Item = &'a Reference>,
    ) -> Result<Self, String> {
        let secure_boot = SecureBoot::of(boot)?;
        let known: Vec<Digest> = references
            .into_iter()
            .flat_map(|it| [it.boot_loader, it.kernel_image, it.kernel])
            .collect();
        let mut programs: Vec<Digest> = boot
            .measured(4)
            .filter(|event| is_program(event))
            .filter_map(digest_of)
            .filter(|digest| !known.contains(digest))
            .collect();
        programs.sort_unstable();
        programs.dedup();
        if programs.len() > MAX_PROGRAMS {
            return Err(format!(
                "{} programs of no known image were started, at most {MAX_PROGRAMS} can be accepted",
                programs.len()
            ));
        }
        let [measured, stated] = boot.firmware_versions();
        Ok(Self {
            version: if stated.is_empty() { measured } else { stated },
            pcr0: Digest::from_bytes(boot.pcr(0)),
            pcr2: Digest::from_bytes(boot.pcr(2)),
            pcr3: Digest::from_bytes(boot.pcr(3)),
            secure_boot: secure_boot.enabled,
            platform_key: secure_boot.platform_key,
            key_exchange_keys: secure_boot.key_exchange_keys,
            signature_list: secure_boot.signature_list,
            revocation_list: secure_boot.revocation_list,
            secure_boot_rest: secure_boot.rest,
            programs,
        })
    }

    /// Whether two are the same firmware with the same settings. Versions are names, programs and the revocation list have checks of
    /// their own.
    #[must_use]
    pub fn is_same_firmware(&self, other: &Self) -> bool {
        self.differences(other).is_empty()
    }

    /// What is not as in `accepted`, in words: what was accepted and what is there.
    pub(super) fn differences(&self, accepted: &Self) -> Vec<(String, String)> {
        let mut found = vec![];
        let digests = [
            ("PCR 0 (the firmware's code)", self.pcr0, accepted.pcr0),
            (
                "PCR 2 (code of plugged-in devices)",
                self.pcr2,
                accepted.pcr2,
            ),
            ("PCR 3 (their configuration)", self.pcr3, accepted.pcr3),
            ("Secure Boot's PK", self.platform_key, accepted.platform_key),
            (
                "Secure Boot's KEK",
                self.key_exchange_keys,
                accepted.key_exchange_keys,
            ),
            (
                "Secure Boot's db",
                self.signature_list,
                accepted.signature_list,
            ),
            (
                "the rest of PCR 7",
                self.secure_boot_rest,
                accepted.secure_boot_rest,
            ),
        ];
        for (what, seen, expected) in digests {
            if seen != expected {
                found.push((
                    format!("{what} = {}", expected.hex()),
                    format!("{what} = {}", seen.hex()),
                ));
            }
        }
        if self.secure_boot != accepted.secure_boot {
            let words = |on| format!("Secure Boot {}", if on { "on" } else { "off" });
            found.push((words(accepted.secure_boot), words(self.secure_boot)));
        }
        found
    }
}

/// Secure Boot's part of PCR 7.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SecureBoot {
    pub(super) enabled: bool,
    pub(super) platform_key: Digest,
    pub(super) key_exchange_keys: Digest,
    pub(super) signature_list: Digest,
    pub(super) revocation_list: Digest,
    pub(super) rest: Digest,
}

impl SecureBoot {
    /// Takes PCR 7 apart; or says, in words, what of it cannot be believed.
    pub(super) fn of(boot: &Boot) -> Result<Self, String> {
        let mut values: [Option<&[u8]>; VARIABLES.len()] = [None; VARIABLES.len()];
        let mut rest = [0; 32];
        let mut is_policy = true;
        for event in boot.measured(7) {
            let known = if is_policy {
                is_policy = event.kind != EventType::SEPARATOR;
                policy_event(event)?
            } else {
                None
            };
            let Some((slot, value)) = known else {
                if let Some(digest) = digest_of(event) {
                    rest = sha256(&[rest, *digest.bytes()].concat());
                }
                continue;
            };
            match values.get_mut(slot) {
                Some(place @ None) => *place = Some(value),
                _ => {
                    return Err(format!(
                        "{} is measured twice",
                        VARIABLES.get(slot).map_or("a variable", |(_, name)| name)
                    ));
                }
            }
        }
        if is_policy {
            return Err("PCR 7 has no separator: Secure Boot's variables have no end".to_owned());
        }
        let mut found = values.into_iter().zip(VARIABLES).map(|(value, (_, name))| {
            value.ok_or_else(|| format!("the variable {name} was not measured"))
        });
        let mut next = || found.next().unwrap_or(Ok(&[]));
        Ok(Self {
            enabled: next()? == [1],
            platform_key: Digest::of(next()?),
            key_exchange_keys: Digest::of(next()?),
            signature_list: Digest::of(next()?),
            revocation_list: Digest::of(next()?),
            rest: Digest::from_bytes(rest),
        })
    }
}

/// An event before PCR 7's separator: one of Secure Boot's variables with its value, or something else that cannot be one in disguise.
fn policy_event(event: &Event) -> Result<Option<(usize, &[u8])>, String> {
    let described = eventlog::describe(event);
    let refused = |why: &str| Err(format!("{}: {why}", described.text));
    if described.vouched != Some(true) {
        return refused("what it says is not what was measured");
    }
    match event.kind {
        EventType::SEPARATOR if is_separator(event) => Ok(None),
        EventType::ACTION | EventType::EFI_ACTION if is_action(event) => Ok(None),
        EventType::VARIABLE_DRIVER_CONFIG | EventType::VARIABLE_AUTHORITY => {
            let Some(variable) = Variable::parse(&event.data) else {
                return refused("it is no variable");
            };
            let slot = VARIABLES
                .iter()
                .position(|(vendor, name)| *vendor == variable.vendor && *name == variable.name);
            match (slot, event.kind) {
                (Some(slot), EventType::VARIABLE_DRIVER_CONFIG) => Ok(Some((slot, variable.value))),
                // The list's entry by which a driver was accepted is measured under the list's name.
                (Some(3), _) | (None, _) => Ok(None),
                (Some(_), _) => refused("it is no variable that accepts programs"),
            }
        }
        _ => refused("nothing of this kind belongs before PCR 7's separator"),
    }
}

/// Whether an event says that the firmware started a program, or loaded a driver.
pub(super) fn is_program(event: &Event) -> bool {
    matches!(
        event.kind,
        EventType::BOOT_SERVICES_APPLICATION
            | EventType::BOOT_SERVICES_DRIVER
            | EventType::RUNTIME_SERVICES_DRIVER
    )
}

/// Whether an event that says so really is a remark of the firmware in words. Its data must be what was measured, short and plain: no
/// program and no variable is.
pub(super) fn is_action(event: &Event) -> bool {
    matches!(
        event.kind,
        EventType::ACTION | EventType::EFI_ACTION | EventType::OMIT_BOOT_DEVICE_EVENTS
    ) && digest_of(event) == Some(Digest::of(&event.data))
        && event.data.len() <= MAX_ACTION
        && event.data.iter().all(|byte| (b' '..=b'~').contains(byte))
}

/// Whether an event that says so really is a separator.
pub(super) fn is_separator(event: &Event) -> bool {
    event.kind == EventType::SEPARATOR
        && eventlog::describe(event).vouched == Some(true)
        && event.data.len() == 4
}

pub(super) fn digest_of(event: &Event) -> Option<Digest> {
    let digest = event.digest(Algorithm::Sha256)?;
    Some(Digest::from_bytes(digest.try_into().ok()?))
}
