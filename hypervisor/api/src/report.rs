//! Last words: why a machine ended, written whole by the monitor just before its process exits.

use serde::{Deserialize, Serialize};

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "reason")]
pub enum LastWords {
    /// The guest powered itself off (ACPI S5), of its own accord or because its power button was pressed.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The processor gave up: a fault while handling a double fault.
    TripleFault,
    /// The monitor ended the machine: by [`crate::control::Request::Kill`], by a second SIGTERM, or because the guest had
    /// not powered off in time after the first one.
    Killed,
    /// The monitor could not start or go on.
    Failed {
        /// What went wrong, in words.
        message: String,
    },
}

impl LastWords {
    /// The exit status of the monitor's process for this end. 0 power-off, 2 reset, 3 triple fault, 4 killed,
    /// 1 monitor failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            LastWords::PowerOff => 0,
            LastWords::Failed { .. } => 1,
            LastWords::Reset => 2,
            LastWords::TripleFault => 3,
            LastWords::Killed => 4,
        }
    }
}
