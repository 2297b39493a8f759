//! What can go wrong before systemd, each with a word on what to do: nobody can look it up on such a machine.

use std::io;

use imaging::gpt::GptError;

/// A step failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("cannot {operation} {thing}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// With what: a path, a device.
        thing: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel's command line does not say what it must.
    #[error("the kernel's command line {0}")]
    CommandLine(String),
    /// No disk has the root file system.
    #[error("found no partition with the id {id} within {seconds} s. Disks seen: {seen}")]
    NoRoot {
        /// The id looked for.
        id: String,
        /// How long.
        seconds: u64,
        /// Names and findings.
        seen: String,
    },
    /// The root partition is not what the command line speaks of.
    #[error("{device} does not hold the root file system of this image: {reason}")]
    BadRoot {
        /// The partition.
        device: String,
        /// What is wrong.
        reason: String,
    },
    /// A partition table could not be made or read.
    #[error("{device}: {source}")]
    Gpt {
        /// The disk.
        device: String,
        /// Why.
        source: GptError,
    },
    /// The stick is not there.
    #[error(
        "found no installer stick (FAT partition labelled SKERRY with skerry/payload) within {seconds} s. Disks seen: {seen}"
    )]
    NoStick {
        /// How long.
        seconds: u64,
        /// Names of disks.
        seen: String,
    },
    /// No disk to install to, or too many.
    #[error("cannot choose the disk to install to: {0}")]
    Choice(#[from] crate::install::choose::Refusal),
    /// Something on the stick, or the disk's plan.
    #[error(transparent)]
    Image(#[from] imaging::Error),
    /// What was read back is not what was written.
    #[error("{device} gives back other data than was written to it, {what}, byte {offset}")]
    ReadBack {
        /// The disk.
        device: String,
        /// Which part.
        what: String,
        /// Offset on the disk, bytes, of the piece that differs.
        offset: u64,
    },
}

impl Error {
    /// For `map_err`: names the operation and the thing.
    pub fn system<E: Into<io::Error>>(
        operation: &'static str,
        thing: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            operation,
            thing: thing.into(),
            source: source.into(),
        }
    }

    /// What a person before the machine can do.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::System { .. } => "If it happens again, install the machine anew from the stick.",
            Self::CommandLine(_) => {
                "The image was not built by `cargo xtask image`: build it again."
            }
            Self::NoRoot { .. } => {
                "Check that the disk is plugged in and that the firmware sees it, or install the machine anew from the stick."
            }
            Self::BadRoot { .. } => {
                "The disk's content is damaged: install the machine anew from the stick."
            }
            Self::Gpt { .. } => "Check the disk; it may be broken or too small.",
            Self::NoStick { .. } => {
                "Plug the stick into another port and start again, or write the stick anew."
            }
            Self::Choice(refusal) => refusal.advice(),
            Self::Image(_) => {
                "Write the stick anew with `skerry image build`; if that does not help, use another stick."
            }
            Self::ReadBack { .. } => "The disk is broken: put another one in and start again.",
        }
    }
}
