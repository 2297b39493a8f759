//! What can go wrong between device and controller, and what that means for the sender.

use protocol::envelope::EnvelopeError;

use super::certs;

/// Why a request did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer.
    #[error("no answer from {url}: {reason}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// The whole chain of reasons.
        reason: String,
    },
    /// Somebody else's answer.
    #[error(
        "{url}: the network answers in the controller's place (HTTP {status}), as a captive portal does that wants a sign-in; have the network let this machine through, or use another one"
    )]
    Portal {
        /// What was asked.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// An answer that says no.
    #[error("{url} answered {status}{hint}")]
    Status {
        /// What was asked.
        url: String,
        /// HTTP status.
        status: u16,
        /// What the body says, if it is short text.
        hint: String,
    },
    /// The answer is too long.
    #[error("answer of {url} is longer than {limit} bytes")]
    TooLong {
        /// What was asked.
        url: String,
        /// How much is read.
        limit: usize,
    },
    /// The answer's envelope or content is not good.
    #[error("answer of {url}: {source}")]
    Reply {
        /// What was asked.
        url: String,
        /// Why not.
        source: EnvelopeError,
    },
    /// The controller's certificates are not good.
    #[error(transparent)]
    Certs(#[from] certs::Error),
    /// The device cannot sign.
    #[error("signing a message for the controller: {0}")]
    Sign(String),
    /// The HTTP client cannot be made.
    #[error("HTTP client: {0}")]
    Client(String),
}

impl Error {
    /// The status, if there was an answer that says no.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// What an answer that says no says in words.
    #[must_use]
    pub fn words(&self) -> Option<&str> {
        match self {
            Self::Status { hint, .. } => hint.strip_prefix(": "),
            _ => None,
        }
    }

    /// Whether the same message may work later. EVE's rule: no answer, 5xx, 401, 403, 407, 408 and 429 are retried,
    /// any other 4xx means that the message itself is not wanted.
    #[must_use]
    pub fn worth_retrying(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                *status >= 500 || matches!(status, 401 | 403 | 407 | 408 | 429)
            }
            _ => true,
        }
    }

    /// Whether the controller is to blame for being away, rather than for its answer.
    #[must_use]
    pub fn is_away(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Portal { .. }
                | Self::Status {
                    status: 502..=504,
                    ..
                }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_retried() {
        let status = |status| Error::Status {
            url: String::new(),
            status,
            hint: String::new(),
        };
        for code in [401, 403, 407, 408, 429, 500, 503, 599] {
            assert!(status(code).worth_retrying(), "{code}");
        }
        for code in [400, 404, 409, 413, 422] {
            assert!(!status(code).worth_retrying(), "{code}");
        }
        assert!(
            Error::Unreachable {
                url: String::new(),
                reason: String::new()
            }
            .worth_retrying()
        );
    }
}
