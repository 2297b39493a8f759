//! What lines and troubles are about.

use std::fmt;

use protocol::ids::AppId;

/// What a trouble of the device as a whole is about. Its text is a contract with controllers: see
/// [`protocol::items::trouble`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// The controller does not vouch for what booted.
    Attestation,
    /// Whether it does cannot be kept over a power cut, or was lost.
    AttestationKept,
    /// A boot could not be marked as good.
    Boot,
    /// The bundle cannot be read.
    Bundle,
    /// The clock could not be set, or is not believed.
    Clock,
    /// The time below which the clock is not believed could not be kept.
    ClockFloor,
    /// Time servers do not answer, or say another time than the controller.
    ClockServers,
    /// A config was refused.
    Config,
    /// Parts of a config without an id of their own.
    ConfigParts,
    /// The controller does not answer.
    Controller,
    /// The device's own files cannot be written.
    Disk,
    /// The device is not enrolled.
    Enrolment,
    /// The device has no keys.
    Identity,
    /// Numbers and addresses cannot be kept.
    Ledger,
    /// They were lost, and given out anew. It stays until the agent's next start: nobody but an operator can tell whether
    /// what hangs on the old addresses was put right.
    LedgerLost,
    /// Logs cannot be sent.
    Logs,
    /// How far the logs were sent cannot be kept.
    LogsCursor,
    /// The owner's mark in the TPM cannot be read or written.
    OwnerMark,
    /// There is a TPM, and the device's keys are not in it.
    Tpm,
    /// No interface has an address.
    Uplink,
    /// The folder of the apps' volumes cannot be read or tidied.
    Volumes,
    /// A task of the agent ended, by its name.
    Task(&'static str),
}

impl fmt::Display for Topic {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Attestation => "attestation",
            Self::AttestationKept => "attestation.kept",
            Self::Boot => "boot",
            Self::Bundle => "bundle",
            Self::Clock => "clock",
            Self::ClockFloor => "clock.floor",
            Self::ClockServers => "clock.servers",
            Self::Config => "config",
            Self::ConfigParts => "config.parts",
            Self::Controller => "controller",
            Self::Disk => "disk",
            Self::Enrolment => "enrolment",
            Self::Identity => "identity",
            Self::Ledger => "ledger",
            Self::LedgerLost => "ledger.lost",
            Self::Logs => "logs",
            Self::LogsCursor => "logs.cursor",
            Self::OwnerMark => "owner.mark",
            Self::Tpm => "tpm",
            Self::Uplink => "uplink",
            Self::Volumes => "volumes",
            Self::Task(name) => return write!(out, "task.{name}"),
        })
    }
}

/// What a line is about. A line is said again only when it differs from the last one about the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The agent's start.
    Start,
    /// The power button.
    Power,
    /// The uplink of this name.
    Uplink(String),
    /// Whether the device is enrolled.
    Enrolment,
    /// Whether it is attested.
    Attestation,
    /// By whom the clock goes.
    Clock,
    /// The config in force.
    Config,
    /// An app.
    App(AppId),
    /// An app's trouble.
    AppTrouble(AppId),
    /// A trouble of the device as a whole.
    Trouble(Topic),
}

impl fmt::Display for Subject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => out.write_str("start"),
            Self::Power => out.write_str("power"),
            Self::Uplink(name) => write!(out, "uplink.{name}"),
            Self::Enrolment => out.write_str("enrolment"),
            Self::Attestation => out.write_str("attestation"),
            Self::Clock => out.write_str("clock"),
            Self::Config => out.write_str("config"),
            Self::App(id) => write!(out, "app.{id}"),
            Self::AppTrouble(id) => write!(out, "app.{id}.trouble"),
            Self::Trouble(topic) => write!(out, "trouble.{topic}"),
        }
    }
}
