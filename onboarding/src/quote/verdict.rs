//! What a verifier found, check by check, with what it expected and what it saw: fit for a database row and for a person.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::BootFacts;

/// A check, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Check {
    /// The device that registered an attestation key shows a quote.
    Evidence,
    /// The attestation certificate is there and has a P-256 key.
    AttestationKey,
    /// The quote can be read, and the TPM made it (`TPM_GENERATED`).
    Structure,
    /// It is a quote and no other statement.
    Kind,
    /// The attestation key signed it.
    Signature,
    /// It holds the nonce that was given out.
    Nonce,
    /// It speaks of PCRs 0 to 15 of the SHA-256 bank, and so do the values beside it.
    PcrSelection,
    /// Its digest is that of the values beside it.
    PcrDigest,
    /// The event log can be read.
    EventLog,
    /// Its replay gives the quoted values.
    EventLogReplay,
    /// Enrolment: the Hello is the one that the challenge was made for.
    Hello,
    /// Enrolment: this controller made the challenge, and it is in time.
    Challenge,
    /// Enrolment: the challenge's nonce was not used, or by this very evidence.
    NonceUnused,
    /// Enrolment: the endorsement key is made after one of the TCG's templates.
    EndorsementKey,
    /// Enrolment: its certificate is for it and leads to a maker that the owner trusts.
    EndorsementCertificate,
    /// Enrolment: the attestation key is restricted, made in and fixed to the TPM, for signing.
    AttestationKeyForm,
    /// Enrolment: endorsement key and attestation key are in one TPM, which has opened the challenge's secret.
    Credential,
    /// Enrolment: the device key is certified by the attestation key over this session, and in use.
    DeviceKey,
    /// Enrolment: likewise the agreement key.
    AgreementKey,
    /// Enrolment: a maker of machines that the owner trusts has certified the TPM's initial attestation key.
    MachineCertificate,
    /// Enrolment: that key and the device's attestation key are in one TPM; they certify each other over this session.
    MachineKey,
    /// Enrolment: the serial number that the maker certified is the machine's.
    MachineSerial,
    /// Enrolment: the quote is over this session.
    Transcript,
    /// Enrolment: no other machine has what this one claims: its serial number, or its line in a manifest.
    EndorsementUnique,
    /// Enrolment: the serial number is that of the manifest's line.
    Serial,
    /// Maker and model are those that the device first said.
    Model,
    /// The TPM's reset count and clock have not gone back since the last boot that was seen.
    ResetCount,
    // Policy's checks (crate::policy), over what the log says.
    /// There is a policy for what the machine says that it is.
    Policy,
    /// Every program that was started is of an accepted image or of accepted firmware.
    BootApplications,
    /// The kernel's command line is that of the image, and nothing else was handed over with it.
    CommandLine,
    /// The kernel's initramfs is that of the image, and nothing was added to it.
    Initramfs,
    /// The sections of the UKI that the stub used are those of the image.
    KernelImageSections,
    /// Secure Boot is on.
    SecureBoot,
    /// Secure Boot's list of what may not be started is one that was accepted.
    RevocationList,
    /// The firmware and its settings were accepted for this model.
    Firmware,
    /// The firmware's version is not on the policy's list of those to be shunned.
    FirmwareVersion,
}

impl Check {
    /// The check as a sentence that is true if it passes.
    #[must_use]
    pub fn claim(self) -> &'static str {
        match self {
            Self::Evidence => "the device shows a quote",
            Self::AttestationKey => "the device's attestation key is known",
            Self::Structure => "the quote was made by a TPM",
            Self::Kind => "it is a quote of PCRs",
            Self::Signature => "it is signed by the device's attestation key",
            Self::Nonce => "it answers this controller's question of just now",
            Self::PcrSelection => "it speaks of the PCRs that were asked for",
            Self::PcrDigest => "the PCR values are those that the TPM signed",
            Self::EventLog => "the firmware's event log is readable",
            Self::EventLogReplay => "the event log explains the PCR values",
            Self::Hello => "the device's first message is the one that was challenged",
            Self::Challenge => "the challenge is this controller's, and in time",
            Self::NonceUnused => "the challenge was not answered before",
            Self::EndorsementKey => "the TPM's endorsement key has a form that the TCG lays down",
            Self::EndorsementCertificate => {
                "the TPM's maker has certified the endorsement key, and the owner trusts that maker"
            }
            Self::AttestationKeyForm => "the attestation key signs only what the TPM itself says",
            Self::Credential => {
                "who sent this has opened the secret that was wrapped for the device's own keys"
            }
            Self::DeviceKey => "the device key belongs to the others, and is in use",
            Self::AgreementKey => "the agreement key is in the same TPM, and never leaves it",
            Self::MachineCertificate => {
                "the machine's maker has certified a key in the TPM, and the owner trusts that maker"
            }
            Self::MachineKey => "the key that the machine's maker has certified is in this TPM",
            Self::MachineSerial => {
                "the serial number is the one that the machine's maker has certified"
            }
            Self::Transcript => "the quote was made for this enrolment",
            Self::EndorsementUnique => {
                "no other machine has its serial number, or its line in a manifest"
            }
            Self::Serial => "the serial number is the one in the manifest",
            Self::Model => "maker and model are those that the device first said",
            Self::Policy => "a policy says what this model may boot",
            Self::ResetCount => "the TPM's counters have not gone back",
            Self::BootApplications => "every program that was started is an accepted one",
            Self::CommandLine => "the kernel's command line is that of the image",
            Self::Initramfs => "the kernel's initramfs is that of the image",
            Self::KernelImageSections => "the UKI's sections are those of the image",
            Self::SecureBoot => "Secure Boot is on",
            Self::RevocationList => "Secure Boot's revocation list is an accepted one",
            Self::Firmware => "the firmware was accepted for this model",
            Self::FirmwareVersion => "the firmware's version is not to be shunned",
        }
    }

    /// Whether the check is policy's: about what was booted, not about who says it.
    #[must_use]
    pub fn is_of_policy(self) -> bool {
        matches!(
            self,
            Self::Policy
                | Self::BootApplications
                | Self::CommandLine
                | Self::Initramfs
                | Self::KernelImageSections
                | Self::SecureBoot
                | Self::RevocationList
                | Self::Firmware
                | Self::FirmwareVersion
        )
    }
}

/// How a check came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "camelCase")]
pub enum Outcome {
    /// As expected.
    Pass,
    /// Not as expected.
    Fail {
        /// What would have passed.
        expected: String,
        /// What was there.
        seen: String,
    },
    /// Not as expected, and the policy lets it pass.
    Warn {
        /// What would have passed.
        expected: String,
        /// What was there.
        seen: String,
    },
    /// Not checked.
    NotApplicable {
        /// Why.
        reason: String,
    },
}

/// One check and how it came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The check.
    pub check: Check,
    /// How it came out.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What follows from all verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Conclusion {
    /// Every check was made and passed, the event log's replay included; or policy lets pass what did not.
    Trusted,
    /// The device has no TPM and says so, or sent no event log: the boot is not proven, and nothing is refuted.
    Unproven,
    /// Something failed.
    Refused,
}

/// All verdicts over one quote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// In the order in which they were reached; each check at most once.
    pub verdicts: Vec<Verdict>,
    /// Clock, counters and firmware of the TPM, if the quote could be read. To be believed only if nothing failed.
    pub boot: Option<BootFacts>,
}

impl Report {
    /// What follows. Trusted takes everything: the TPM's signature over fresh PCR values proves which TPM speaks, and only
    /// the event log's replay says what those values mean. Without the log nothing is refuted, and nothing of the boot
    /// is proven; nor is it where there are policies and none of them is for this machine.
    #[must_use]
    pub fn conclusion(&self) -> Conclusion {
        if self.failures().next().is_some() {
            Conclusion::Refused
        } else if self.is_of_known_tpm()
            && self.passed(Check::EventLog)
            && self.passed(Check::EventLogReplay)
            && !self.skipped(Check::Policy)
        {
            Conclusion::Trusted
        } else {
            Conclusion::Unproven
        }
    }

    /// Whether the quote is the registered TPM's own, fresh and whole, whatever policy says to what was booted, or became of the event
    /// log.
    #[must_use]
    pub fn is_of_known_tpm(&self) -> bool {
        !self.failures().any(|it| !it.check.is_of_policy())
            && [
                Check::AttestationKey,
                Check::Structure,
                Check::Kind,
                Check::Signature,
                Check::PcrSelection,
                Check::PcrDigest,
            ]
            .iter()
            .all(|check| self.passed(*check))
            // Of this question, or of this enrolment.
            && (self.passed(Check::Nonce) || self.passed(Check::Transcript))
    }

    /// True if the check was made and passed.
    #[must_use]
    pub fn passed(&self, check: Check) -> bool {
        self.verdicts
            .iter()
            .any(|v| v.check == check && v.outcome == Outcome::Pass)
    }

    /// True if the check was to be made and could not be.
    fn skipped(&self, check: Check) -> bool {
        self.verdicts
            .iter()
            .any(|v| v.check == check && matches!(v.outcome, Outcome::NotApplicable { .. }))
    }

    /// The verdicts that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts
            .iter()
            .filter(|v| matches!(v.outcome, Outcome::Fail { .. }))
    }

    /// True if the check is among those that failed.
    #[must_use]
    pub fn failed(&self, check: Check) -> bool {
        self.failures().any(|verdict| verdict.check == check)
    }
}

/// Collects verdicts.
#[derive(Debug, Default)]
pub(crate) struct Bench {
    pub(crate) verdicts: Vec<Verdict>,
}

impl Bench {
    /// Says how a check came out; gives whether it passed.
    pub(crate) fn say(&mut self, check: Check, outcome: Outcome) -> bool {
        let passed = outcome == Outcome::Pass;
        self.verdicts.push(Verdict { check, outcome });
        passed
    }

    pub(crate) fn fail(
        &mut self,
        check: Check,
        expected: impl Into<String>,
        seen: impl Into<String>,
    ) {
        self.say(
            check,
            Outcome::Fail {
                expected: expected.into(),
                seen: seen.into(),
            },
        );
    }

    /// Says of checks that they were not made.
    pub(crate) fn skip(&mut self, checks: &[Check], reason: &str) {
        for check in checks {
            self.say(
                *check,
                Outcome::NotApplicable {
                    reason: reason.to_owned(),
                },
            );
        }
    }

    pub(crate) fn compare(&mut self, check: Check, expected: &str, seen: &str) -> bool {
        let outcome = if expected == seen {
            Outcome::Pass
        } else {
            Outcome::Fail {
                expected: expected.to_owned(),
                seen: seen.to_owned(),
            }
        };
        self.say(check, outcome)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let claim = self.check.claim();
        match &self.outcome {
            Outcome::Pass => write!(f, "yes: {claim}"),
            Outcome::Fail { expected, seen } => {
                write!(f, "NO: {claim}; expected {expected}, seen {seen}")
            }
            Outcome::Warn { expected, seen } => {
                write!(
                    f,
                    "let pass: not so: {claim}; expected {expected}, seen {seen}"
                )
            }
            Outcome::NotApplicable { reason } => write!(f, "not checked: {claim}; {reason}"),
        }
    }
}
