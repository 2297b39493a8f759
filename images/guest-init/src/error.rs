//! What can keep a container from starting, in words that reach its operator.

use std::io;

/// A step failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("cannot {operation} {thing}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// With what.
        thing: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The spec cannot be carried out as it is.
    #[error("the container's spec {0}. The agent wrote it: this is a mistake in the agent")]
    Spec(String),
    /// The program is not in the image.
    #[error("cannot start {program}: {reason}. Check command and image")]
    Program {
        /// As it stands in the spec.
        program: String,
        /// Why not.
        reason: String,
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
}
