//! TPM2_Startup and TPM2_Shutdown. Firmware and kernel send them on a real machine; tests send them to an emulator.

use super::{Command, CommandCode};
use crate::tpm::{Tpm, TpmError};

/// Which state to start from, or to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Startup {
    /// A fresh start: PCRs at their first values (TPM_SU_CLEAR).
    Clear,
    /// Go on from the state that a shutdown kept (TPM_SU_STATE).
    State,
}

impl Startup {
    fn number(self) -> u16 {
        match self {
            Self::Clear => 0,
            Self::State => 1,
        }
    }
}

impl Tpm {
    /// Starts the TPM after power-on.
    ///
    /// # Errors
    /// [`TpmError`]; [`code::INITIALIZE`](crate::tpm::code::INITIALIZE) if it has been started already.
    pub fn startup(&self, kind: Startup) -> Result<(), TpmError> {
        self.run_silent(&Command::new(CommandCode::STARTUP).parameters(|p| {
            p.u16(kind.number());
        }))
    }

    /// Tells the TPM that its power may go away.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn shutdown(&self, kind: Startup) -> Result<(), TpmError> {
        self.run_silent(&Command::new(CommandCode::SHUTDOWN).parameters(|p| {
            p.u16(kind.number());
        }))
    }
}
