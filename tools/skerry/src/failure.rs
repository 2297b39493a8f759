//! How a command fails: a sentence for people, an exit code for scripts.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// What the exit code says. The numbers are part of the interface: scripts depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0, without a word: whoever read our output went away.
    Closed,
    /// 1: it did not work.
    Error,
    /// 2: the command makes no sense as given.
    Usage,
    /// 3: there is no such thing.
    NotFound,
    /// 4: the controller or registry refused: no or bad credentials, or not allowed.
    Refused,
    /// 5: it took longer than allowed.
    TimedOut,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    /// It did not work.
    pub fn error(message: impl Display) -> Self {
        Self::new(Exit::Error, message)
    }

    /// The command makes no sense as given.
    pub fn usage(message: impl Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// There is no such thing.
    pub fn not_found(message: impl Display) -> Self {
        Self::new(Exit::NotFound, message)
    }

    /// It was refused.
    pub fn refused(message: impl Display) -> Self {
        Self::new(Exit::Refused, message)
    }

    /// It took too long.
    pub fn timed_out(message: impl Display) -> Self {
        Self::new(Exit::TimedOut, message)
    }

    fn new(exit: Exit, message: impl Display) -> Self {
        Self {
            exit,
            message: message.to_string(),
        }
    }

    /// For `map_err` on file operations: names the operation and the file. A file that is not there is "no such thing".
    pub fn io(operation: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let (operation, path) = (operation.to_owned(), path.display().to_string());
        move |error| match error.kind() {
            io::ErrorKind::NotFound => {
                Self::not_found(format!("cannot {operation} {path}: there is no such file"))
            }
            _ => Self::error(format!("cannot {operation} {path}: {error}")),
        }
    }

    /// For `map_err` on files whose content is not what it should be.
    pub fn content<E: Display>(path: &Path) -> impl FnOnce(E) -> Self {
        let start = format!("cannot understand {}", path.display());
        move |error| Self::error(format!("{start}: {error}"))
    }

    /// Writing our own output failed. If the reader went away (`skerry get devices | head -1`) that is no error.
    pub fn output(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Closed, ""),
            _ => Self::error(format!("cannot write to standard output: {error}")),
        }
    }

    /// Which exit code it gives.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Says it on standard error and gives the process's exit code.
    pub fn report(&self) -> ExitCode {
        if self.exit != Exit::Closed {
            let mark = crate::terminal::paint_err("error:", crate::terminal::Paint::Red);
            eprintln!("{mark} {}", self.message);
        }
        ExitCode::from(match self.exit {
            Exit::Closed => 0,
            Exit::Error => 1,
            Exit::Usage => 2,
            Exit::NotFound => 3,
            Exit::Refused => 4,
            Exit::TimedOut => 5,
        })
    }
}
