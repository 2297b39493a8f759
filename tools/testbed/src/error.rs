//! What can go wrong with an emulated machine.

use std::path::PathBuf;
use std::time::Duration;

/// What can go wrong with an emulated machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the machine could not be made, read or written.
    #[error("{operation} {path}: {source}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program could not be started, or ended with an error.
    #[error("{program}: {reason}")]
    Program {
        /// The program.
        program: String,
        /// What it said, or why it did not start.
        reason: String,
    },
    /// QEMU did not do what it was told.
    #[error("QEMU monitor, {command}: {reason}")]
    Monitor {
        /// The monitor command.
        command: String,
        /// What it answered.
        reason: String,
    },
    /// The machine did not say what was expected of it in time.
    #[error("the serial line did not say {wanted:?} within {} s; it said last:\n{tail}", timeout.as_secs())]
    Silent {
        /// What was waited for.
        wanted: String,
        /// How long.
        timeout: Duration,
        /// The last lines that it did say.
        tail: String,
    },
    /// The machine said something that must not be said.
    #[error("the serial line said {said:?}, which ends the wait for {wanted:?}")]
    Said {
        /// What was waited for.
        wanted: String,
        /// The line.
        said: String,
    },
    /// No guest runs in the emulated machine.
    #[error("nested virtualisation does not work on {accelerator}: {reason}")]
    NotNested {
        /// What ran the machine.
        accelerator: crate::Accelerator,
        /// What it said.
        reason: String,
    },
    /// The machine was off, or on, when it should not have been.
    #[error("{operation}: the machine is {state}")]
    State {
        /// What was tried.
        operation: &'static str,
        /// What the machine is.
        state: &'static str,
    },
    /// The machine did not power itself off in time.
    #[error("the machine did not power off within {} s", .0.as_secs())]
    StaysOn(Duration),
}

impl Error {
    pub(crate) fn file(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::File {
            operation,
            path,
            source,
        }
    }
}
