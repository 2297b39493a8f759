//! Whether a machine that has proven its keys becomes a device: a pure function of what is known.
//!
//! ```text
//! is a device? ---- revoked ------------------> Deny
//!      | '- counters, serial, model odd ------> Wait (Refuse, if a manifest says otherwise), unless a person approved
//!      |  |- a maker's certificate: gone ---> Wait, likewise;  for another serial number: Refuse
//!      |  '-------- all as it was ------------> Again
//!      no
//!      |-- a person denied -------------------> Deny
//!      |-- a person approved -----------------> Admit
//!      |-- its maker certified another serial -> Refuse
//!      |-- its serial number is another's ----> Refuse; the other device's operator is told
//!      |-- its line in a manifest: fits ------> Admit (Wait, if it has no TPM, and the line knows but a serial number)
//!      |                           does not --> Refuse
//!      '-- first rule that fits --------------> Admit, Wait, Deny;  none, or no TPM: Wait
//! ```
//!
//! `Refuse` differs from `Deny` in that nobody has decided it: the machine is shown in the waiting room, where a person may.

use std::collections::BTreeMap;

use jiff::Timestamp;
use onboarding::enrol::MachineId;
use onboarding::enrol::verifier::MachineStanding;
use onboarding::quote::{Check, Outcome, Verdict};
use operator_api::{
    AttestationLevel, EnrolmentRule, MachineFacts, MachineMatch, RuleEffect, WaitingDecision, fits,
};
use protocol::ids::{DeviceId, ManifestId};

use crate::store::identities::Counters;
use crate::store::manifests::Line;

/// A machine that has proven its keys.
#[derive(Clone, Debug)]
pub struct Applicant {
    /// Its id.
    pub machine: MachineId,
    /// How strong the proof is.
    pub level: AttestationLevel,
    /// What it says of itself.
    pub facts: MachineFacts,
    /// What its maker says of it.
    pub standing: MachineStanding,
    /// The TPM's counters.
    pub counters: Option<Counters>,
}

/// The device that it is already.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// The device.
    pub device: DeviceId,
    /// Whether it was turned away.
    pub revoked: bool,
    /// The serial number that it said before.
    pub serial: String,
    /// Maker and model that it said before: they choose the policy that its boots are judged by.
    pub model: (String, String),
    /// How strong its proof was before.
    pub level: Option<AttestationLevel>,
    /// The serial number for which its maker had certified its TPM; empty if none had.
    pub certified_serial: String,
    /// The TPM's counters at the last boot that was seen.
    pub counters: Option<Counters>,
}

/// What a person decided.
#[derive(Clone, Debug)]
pub struct Person {
    /// What.
    pub decision: WaitingDecision,
    /// Name for the device; empty: the next free one.
    pub name: String,
    /// Labels for it.
    pub labels: BTreeMap<String, String>,
}

/// What is known beforehand.
#[derive(Clone, Debug)]
pub struct Memory<'a> {
    /// The device that the machine is already.
    pub enrolled: Option<Enrolled>,
    /// Lines of manifests that name the machine or its serial number.
    pub lines: Vec<Line>,
    /// What a person decided about the machine.
    pub person: Option<Person>,
    /// Devices of other machines that said the same serial number.
    pub others: Vec<(DeviceId, MachineId)>,
    /// All rules, in the order in which they are asked.
    pub rules: &'a [EnrolmentRule],
    /// The time.
    pub now: Timestamp,
}

/// What becomes of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is a device already, and gets a new certificate.
    Again(DeviceId),
    /// It becomes a device.
    Admit(Admitted),
    /// It waits for a person.
    Wait {
        /// Why.
        reason: String,
    },
    /// It is turned away, and a person may decide otherwise.
    Refuse {
        /// Why.
        reason: String,
    },
    /// It is turned away by what somebody decided.
    Deny {
        /// Why.
        reason: String,
    },
}

/// How a machine becomes a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// Name for the device; empty: the next free one.
    pub name: String,
    /// Labels for it.
    pub labels: BTreeMap<String, String>,
    /// The manifest's line that let it in.
    pub line: Option<(ManifestId, i64)>,
    /// Who or what let it in, for the log.
    pub by: String,
}

/// What was decided, and the verdicts that need a memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// What becomes of the machine.
    pub decision: Decision,
    /// Verdicts of the checks that are made here.
    pub verdicts: Vec<Verdict>,
    /// Devices that the machine poses as, or that pose as it.
    pub alarms: Vec<DeviceId>,
}

/// Puts rules into the order in which they are asked.
pub fn order(rules: &mut [EnrolmentRule]) {
    rules.sort_by(|a, b| {
        (a.spec.priority, &a.metadata.name).cmp(&(b.spec.priority, &b.metadata.name))
    });
}

/// Decides.
#[must_use]
pub fn decide(applicant: &Applicant, memory: &Memory<'_>) -> Decided {
    let line = line(applicant, memory);
    let serial = serial(applicant, memory, line);
    let unique = unique(applicant, memory, line);
    let counters = counters(applicant, memory);
    let model = model(applicant, memory);
    let missing = missing(applicant, memory);
    let mut verdicts = vec![
        verdict(Check::EndorsementUnique, unique.outcome.clone()),
        verdict(Check::Serial, serial.clone()),
        verdict(Check::Model, model.clone()),
        verdict(Check::ResetCount, counters.clone()),
    ];
    if let Some(check) = missing {
        verdicts.push(verdict(
            check,
            fail(
                "a certificate of a maker that the owner trusts, as before",
                "none",
            ),
        ));
    }
    let odd = Odd {
        certified: another(applicant, memory),
        weaker: missing.is_some(),
        serial: failed(&serial),
        model: failed(&model),
        counters: failed(&counters),
    };
    let decision = match &memory.enrolled {
        Some(enrolled) => again(enrolled, memory, line, odd),
        None => fresh(applicant, memory, line, &serial, &unique),
    };
    Decided {
        decision,
        verdicts,
        alarms: unique.devices,
    }
}

fn verdict(check: Check, outcome: Outcome) -> Verdict {
    Verdict { check, outcome }
}

fn fail(expected: impl Into<String>, seen: impl Into<String>) -> Outcome {
    Outcome::Fail {
        expected: expected.into(),
        seen: seen.into(),
    }
}

fn not_applicable(reason: &str) -> Outcome {
    Outcome::NotApplicable {
        reason: reason.to_owned(),
    }
}

fn failed(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Fail { .. })
}

/// The line that is about the machine: one that names its id before one that names its serial number alone, one that nobody has used
/// before others.
fn line<'a>(applicant: &Applicant, memory: &'a Memory<'_>) -> Option<&'a Line> {
    let own = memory.enrolled.as_ref().map(|enrolled| enrolled.device);
    let free = |line: &&Line| line.device.is_some() && line.device != own;
    let named = memory
        .lines
        .iter()
        .filter(|line| line.entry.machine == Some(applicant.machine))
        .min_by_key(free);
    named.or_else(|| {
        memory
            .lines
            .iter()
            .filter(|line| {
                !line.entry.serial.is_empty() && line.entry.serial == applicant.facts.serial
            })
            .min_by_key(free)
    })
}

/// Whether the serial number is the one that the manifest says, or else the one that the device said before.
fn serial(applicant: &Applicant, memory: &Memory<'_>, line: Option<&Line>) -> Outcome {
    let seen = &applicant.facts.serial;
    let wanted = match (line, &memory.enrolled) {
        (Some(line), _) if !line.entry.serial.is_empty() => &line.entry.serial,
        (_, Some(enrolled)) if !enrolled.serial.is_empty() => &enrolled.serial,
        _ => return not_applicable("no manifest names a serial number for this machine"),
    };
    if wanted == seen {
        Outcome::Pass
    } else {
        fail(format!("{wanted:?}"), format!("{seen:?}"))
    }
}

struct Unique {
    outcome: Outcome,
    devices: Vec<DeviceId>,
}

/// Whether no other machine has what this one claims.
fn unique(applicant: &Applicant, memory: &Memory<'_>, line: Option<&Line>) -> Unique {
    if let Some((device, machine)) = memory.others.first() {
        return Unique {
            outcome: fail(
                format!(
                    "machine {machine}, which is device {device} with serial number {:?}",
                    applicant.facts.serial
                ),
                format!("machine {}", applicant.machine),
            ),
            devices: memory.others.iter().map(|(device, _)| *device).collect(),
        };
    }
    // A line that names another machine, or that another has used, is not this one's, whatever serial number it says.
    if let Some(line) = line
        && let Some(machine) = line.entry.machine
        && machine != applicant.machine
    {
        return Unique {
            outcome: fail(
                format!(
                    "machine {machine}, as the manifest says of serial number {:?}",
                    line.entry.serial
                ),
                format!("machine {}", applicant.machine),
            ),
            devices: line.device.into_iter().collect(),
        };
    }
    Unique {
        outcome: Outcome::Pass,
        devices: Vec::new(),
    }
}

/// Whether a device says that it is what it said before. Who could change that at will would choose the policy that its boots are judged by.
fn model(applicant: &Applicant, memory: &Memory<'_>) -> Outcome {
    let Some(enrolled) = &memory.enrolled else {
        return not_applicable("the machine is no device yet");
    };
    let seen = (&applicant.facts.manufacturer, &applicant.facts.product);
    let wanted = (&enrolled.model.0, &enrolled.model.1);
    if wanted == seen {
        Outcome::Pass
    } else {
        fail(
            format!("{:?} by {:?}", wanted.1, wanted.0),
            format!("{:?} by {:?}", seen.1, seen.0),
        )
    }
}

/// What a device has not to show any more that it had. A certificate that was revoked, or the one above it, may be what it leaves out; so
/// this is a person's to look at, also where it is the owner who trusts a maker no longer.
fn missing(applicant: &Applicant, memory: &Memory<'_>) -> Option<Check> {
    let before = memory.enrolled.as_ref().and_then(|known| known.level)?;
    if applicant.level >= before {
        None
    } else if applicant.level < AttestationLevel::Silver {
        Some(Check::EndorsementCertificate)
    } else {
        Some(Check::MachineCertificate)
    }
}

/// Whether the machine's maker has certified its TPM for another serial number, and no person has let it in with both before.
fn another(applicant: &Applicant, memory: &Memory<'_>) -> bool {
    let MachineStanding::Another { serial, .. } = &applicant.standing else {
        return false;
    };
    !memory.enrolled.as_ref().is_some_and(|enrolled| {
        enrolled.certified_serial == *serial && enrolled.serial == applicant.facts.serial
    })
}

/// Whether the TPM's counters have not gone back.
fn counters(applicant: &Applicant, memory: &Memory<'_>) -> Outcome {
    let before = memory
        .enrolled
        .as_ref()
        .and_then(|enrolled| enrolled.counters);
    counters_outcome(before, applicant.counters)
}

/// The check [`Check::ResetCount`]: compares counters with those of the last boot that was seen.
#[must_use]
pub fn counters_outcome(before: Option<Counters>, now: Option<Counters>) -> Outcome {
    let (Some(before), Some(now)) = (before, now) else {
        return not_applicable("no boot of this TPM was seen before");
    };
    // TPM2_Clear sets both back to zero (TPM 2.0 Library, part 1, 36.2 and 36.3); so does another TPM in the place of this one.
    if now.resets > before.resets || (now.resets == before.resets && now.clock >= before.clock) {
        Outcome::Pass
    } else {
        fail(
            format!(
                "reset {} or later, clock {} ms or later",
                before.resets, before.clock
            ),
            format!("reset {}, clock {} ms", now.resets, now.clock),
        )
    }
}

/// What about a device is not as it was.
#[derive(Clone, Copy)]
struct Odd {
    certified: bool,
    weaker: bool,
    serial: bool,
    model: bool,
    counters: bool,
}

/// A machine that is a device already.
fn again(enrolled: &Enrolled, memory: &Memory<'_>, line: Option<&Line>, odd: Odd) -> Decision {
    if enrolled.revoked {
        return Decision::Deny {
            reason: "this device was revoked".to_owned(),
        };
    }
    let approved = match memory.person.as_ref().map(|person| person.decision) {
        Some(WaitingDecision::Denied) => return denied(),
        decision => decision == Some(WaitingDecision::Approved),
    };
    if approved || !(odd.certified || odd.weaker || odd.serial || odd.model || odd.counters) {
        return Decision::Again(enrolled.device);
    }
    if odd.certified {
        return other_machine();
    }
    if odd.serial {
        let reason = "its serial number is not the one that it had: the mainboard or its firmware was changed";
        let by_manifest = line.is_some_and(|line| !line.entry.serial.is_empty());
        return if by_manifest {
            Decision::Refuse {
                reason: reason.to_owned(),
            }
        } else {
            Decision::Wait {
                reason: reason.to_owned(),
            }
        };
    }
    let reason = if odd.model {
        "it says that it is another model than before"
    } else if odd.weaker {
        "it showed a certificate of a trusted maker before, and shows none now"
    } else {
        "its TPM's counters have gone back: it was cleared"
    };
    Decision::Wait {
        reason: reason.to_owned(),
    }
}

fn denied() -> Decision {
    Decision::Deny {
        reason: "an operator has denied this machine".to_owned(),
    }
}

fn other_machine() -> Decision {
    Decision::Refuse {
        reason: "its maker has certified its TPM for a machine with another serial number: board or TPM were moved, or it says a false number"
            .to_owned(),
    }
}

/// A machine that is no device yet.
fn fresh(
    applicant: &Applicant,
    memory: &Memory<'_>,
    line: Option<&Line>,
    serial: &Outcome,
    unique: &Unique,
) -> Decision {
    match &memory.person {
        Some(person) if person.decision == WaitingDecision::Denied => return denied(),
        Some(person) if person.decision == WaitingDecision::Approved => {
            let own = line.filter(|line| {
                !failed(serial) && !failed(&unique.outcome) && line.device.is_none()
            });
            let entry = own.map(|line| &line.entry);
            let mut labels = entry.map(|entry| entry.labels.clone()).unwrap_or_default();
            labels.extend(person.labels.clone());
            let name = if person.name.is_empty() {
                entry.map(|entry| entry.name.clone()).unwrap_or_default()
            } else {
                person.name.clone()
            };
            return Decision::Admit(Admitted {
                name,
                labels,
                line: own.map(|line| (line.manifest, line.entry.line)),
                by: "a person".to_owned(),
            });
        }
        _ => {}
    }
    if another(applicant, memory) {
        return other_machine();
    }
    if failed(&unique.outcome) {
        return Decision::Refuse {
            reason: "another machine has its serial number".to_owned(),
        };
    }
    if failed(serial) {
        return Decision::Refuse {
            reason: "its serial number is not the one in the manifest".to_owned(),
        };
    }
    if let Some(line) = line {
        if line.device.is_some() {
            return Decision::Refuse {
                reason: "another device has enrolled by its line in the manifest".to_owned(),
            };
        }
        if line.entry.machine.is_none() && applicant.level == AttestationLevel::None {
            return Decision::Wait {
                reason: "a manifest has its serial number, which anybody can say, and it has no TPM to prove itself with"
                    .to_owned(),
            };
        }
        return Decision::Admit(Admitted {
            name: line.entry.name.clone(),
            labels: line.entry.labels.clone(),
            line: Some((line.manifest, line.entry.line)),
            by: format!("line {} of a manifest", line.entry.line),
        });
    }
    for rule in memory.rules {
        let over = rule.spec.until.is_some_and(|until| until < memory.now);
        if over || !matches(&rule.spec.matching, applicant.level, &applicant.facts) {
            continue;
        }
        let name = &rule.metadata.name;
        match rule.spec.effect {
            RuleEffect::Deny => {
                return Decision::Deny {
                    reason: format!("rule `{name}` turns it away"),
                };
            }
            RuleEffect::Admit if applicant.level != AttestationLevel::None => {
                return Decision::Admit(Admitted {
                    labels: rule.spec.labels.clone(),
                    by: format!("rule `{name}`"),
                    ..Admitted::default()
                });
            }
            // What a machine without a TPM says of itself anybody can say.
            RuleEffect::Admit | RuleEffect::Wait => break,
        }
    }
    Decision::Wait {
        reason: "no manifest and no rule lets it in".to_owned(),
    }
}

/// Whether a machine fits.
#[must_use]
pub fn matches(matching: &MachineMatch, level: AttestationLevel, facts: &MachineFacts) -> bool {
    let certified = matches!(level, AttestationLevel::Silver | AttestationLevel::Gold);
    let pattern = |pattern: &Option<String>, text: &str| {
        pattern.as_ref().is_none_or(|pattern| fits(pattern, text))
    };
    let gold = level == AttestationLevel::Gold;
    matching.certified.is_none_or(|wanted| wanted == certified)
        && matching
            .machine_certified
            .is_none_or(|wanted| wanted == gold)
        && (matching.endorsement_issuer.is_none() || certified)
        && pattern(&matching.endorsement_issuer, &facts.endorsement_issuer)
        && pattern(&matching.manufacturer, &facts.manufacturer)
        && pattern(&matching.product, &facts.product)
        && pattern(&matching.serial, &facts.serial)
}

#[cfg(test)]
mod tests;
