//! Attestation: the device shows its keys and its boot state, and gets the token that config requests carry.
//!
//! ```text
//!                     taken            nonce             SUCCESS
//!   ShowCertificates -------> AskNonce ------> Quote ------------> Granted (token)
//!     |  ^  ^                  ^                 |                  ^  |
//!     |  |  |  NO_CERT_FOUND   |  NONCE_MISMATCH |                  |  | the controller answers 403 to a config request,
//!     |  |  '------------------|-----------------|                  |  | or gives us another id, or it is time again
//!     |  |                     '-----------------'                  |  |
//!     |  |                                                          |  |
//!     |  '---- Waiting (15 s) <------ refused, no answer -----------|--'
//!     '------- taken, and a grant brought a token ------------------'
//! ```
//!
//! [`Step::after`] is the whole machine; what it needs from TPM and network stands in [`run`].
//!
//! A token that came with a grant stands for a quote that was made a moment ago, in the same flight; a second one at once would say
//! nothing new. The certificates are shown all the same: with one of them the controller encrypts the secrets of a config.
//!
//! A device attests again before its token ends, with the old one in force until the new one is there: whoever asks for a config
//! meanwhile is served, and apps never notice. If the controller then refuses, the device gets nothing new; what it goes on with is for
//! [`crate::allowance`] to say. A refusal is kept ([`crate::refusal`]), so that it holds after a power cut, too, until the controller
//! takes it back.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use onboarding::attest::{AttestError, QuoteAnswer, Versions, device};
use protocol::eve::attest::{ZAttestReq, ZAttestResponse};
use protocol::eve::certs::ZCertType;
use protocol::paths;

use crate::backoff::fraction;
use crate::conn;
use crate::context::{Attestation, Context};
use crate::host::event_log;
use crate::refusal;
use crate::status::{Subject, Topic};

/// EVE's delay between tries.
const RETRY: Duration = Duration::from_secs(15);
/// Rounds that a controller may send us through without an end in sight before it counts as refused.
const MAX_ROUNDS: u32 = 8;

/// Why a try failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The exchange failed.
    #[error("attestation: {0}")]
    Connection(#[from] conn::Error),
    /// TPM or answer are not what they should be.
    #[error("attestation: {0}")]
    Attest(#[from] AttestError),
    /// The controller says no.
    #[error(
        "attestation: the controller refuses this device's boot state; it shows which check failed"
    )]
    Refused,
    /// No end in sight.
    #[error("attestation: the controller asks for certificates or nonces over and over")]
    Rounds,
    /// A task of this process did not end well.
    #[error("attestation: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Where in one try the device is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// `granted`: a token that a grant brought.
    ShowCertificates {
        granted: Option<Vec<u8>>,
    },
    AskNonce,
    Quote {
        nonce: Vec<u8>,
    },
    Granted {
        token: Vec<u8>,
    },
    Refused,
}

/// What the controller answered to the request of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Heard {
    Taken,
    Nonce(Vec<u8>),
    Token(Vec<u8>),
    NonceMismatch,
    NoCertificate,
    Refused,
}

impl Step {
    /// The next step.
    fn after(self, heard: Heard) -> Self {
        match (self, heard) {
            (
                Self::ShowCertificates {
                    granted: Some(token),
                },
                Heard::Taken,
            ) => Self::Granted { token },
            (Self::ShowCertificates { granted: None }, Heard::Taken)
            | (Self::Quote { .. }, Heard::NonceMismatch) => Self::AskNonce,
            (Self::AskNonce, Heard::Nonce(nonce)) => Self::Quote { nonce },
            (Self::Quote { .. }, Heard::Token(token)) => Self::Granted { token },
            (Self::Quote { .. }, Heard::NoCertificate) => Self::ShowCertificates { granted: None },
            _ => Self::Refused,
        }
    }
}

/// Attests now, and again whenever the controller wants it, or the token grows old.
pub async fn run(ctx: Arc<Context>) -> Result<(), Infallible> {
    loop {
        match attest(&ctx).await {
            Ok(token) => {
                ctx.refused_because("");
                ctx.status.clear(Topic::Attestation);
                ctx.status.say(Subject::Attestation, "attested");
                refusal::note(&ctx.paths, &ctx.status, false).await;
                ctx.attestation.send_replace(Attestation::Granted { token });
                tokio::select! {
                    () = ctx.reattest.notified() => {
                        tracing::info!("the controller wants a new quote");
                        ctx.attestation.send_replace(Attestation::Trying { refused: false });
                        ctx.status.forget(&Subject::Attestation);
                    }
                    // The token stays in force until there is another.
                    () = token_is_old(&ctx) => tracing::info!("the token grows old"),
                }
            }
            Err(error) => {
                let reason = error.to_string();
                let away = match &error {
                    Error::Connection(error) => Some(error).filter(|error| error.is_away()),
                    _ => None,
                };
                match away {
                    // Said once, by whoever finds out first that nobody answers.
                    Some(error) => ctx.out_of_contact(error),
                    None => ctx.tell_refusal(&reason),
                }
                // A controller that is away has taken nothing back.
                let holds = away.is_some()
                    && matches!(*ctx.attestation.borrow(), Attestation::Granted { .. });
                if !holds {
                    ctx.status.forget(&Subject::Attestation);
                    let refused_now = matches!(error, Error::Refused);
                    if refused_now {
                        // Before apps stop: what has stopped stays so.
                        refusal::note(&ctx.paths, &ctx.status, true).await;
                    }
                    // A controller that does not answer now has not taken its refusal back either.
                    let refused = refused_now || ctx.attestation.borrow().is_refused();
                    ctx.attestation.send_replace(Attestation::Failed {
                        reason,
                        at: Some(SystemTime::now()),
                        refused,
                    });
                }
                // A controller that is back is asked at once.
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = ctx.contact_returns() => {}
                }
            }
        }
    }
}

/// Waits until the token is old: a share of the time that the config in force names, so that a fleet does not come at once.
async fn token_is_old(ctx: &Context) {
    let granted = tokio::time::Instant::now();
    let share = 0.8 + 0.2 * fraction();
    let mut config = ctx.config.subscribe();
    loop {
        let interval = config.borrow_and_update().settings.attest_interval;
        tokio::select! {
            () = tokio::time::sleep_until(granted + interval.mul_f64(share)) => return,
            changed = config.changed() => if changed.is_err() {
                // The sender is a field of the context.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// One try.
async fn attest(ctx: &Context) -> Result<Vec<u8>, Error> {
    let path = paths::attest(ctx.device_id().await);
    let mut step = Step::ShowCertificates {
        granted: ctx.take_token(),
    };
    for _ in 0..MAX_ROUNDS {
        let heard = match &step {
            Step::ShowCertificates { .. } => {
                device::read_certs_answer(&ask(ctx, &path, certificates(ctx)).await?)?;
                Heard::Taken
            }
            Step::AskNonce => Heard::Nonce(device::read_nonce(
                &ask(ctx, &path, device::nonce_request()).await?,
            )?),
            Step::Quote { nonce } => {
                let request = quote(ctx, nonce.clone()).await?;
                match device::read_quote_answer(&ask(ctx, &path, request).await?)? {
                    QuoteAnswer::Granted {
                        integrity_token, ..
                    } => Heard::Token(integrity_token),
                    QuoteAnswer::NonceMismatch => Heard::NonceMismatch,
                    QuoteAnswer::NoCertificate => Heard::NoCertificate,
                    QuoteAnswer::Refused => Heard::Refused,
                }
            }
            Step::Granted { token } => return Ok(token.clone()),
            Step::Refused => return Err(Error::Refused),
        };
        step = step.after(heard);
    }
    match step {
        Step::Granted { token } => Ok(token),
        Step::Refused => Err(Error::Refused),
        _ => Err(Error::Rounds),
    }
}

async fn ask(ctx: &Context, path: &str, request: ZAttestReq) -> Result<ZAttestResponse, Error> {
    let response = ctx.conn.ask(path, &request, "ZAttestResponse").await?;
    ctx.in_contact();
    Ok(response)
}

/// The device's certificates. A controller that granted the device its id knows its endorsement key already, from a message that nobody
/// else could read; these messages are signed and not sealed, and who reads along is not to know the box again by that key.
fn certificates(ctx: &Context) -> ZAttestReq {
    let mut request = device::certs_request(&ctx.identity);
    if ctx.grant.borrow().is_some() {
        request
            .certs
            .retain(|cert| cert.r#type() != ZCertType::CertTypeDeviceEndorsementRsa);
    }
    request
}

/// Has the TPM quote; it takes its time.
async fn quote(ctx: &Context, nonce: Vec<u8>) -> Result<ZAttestReq, Error> {
    let identity = ctx.identity.clone();
    let versions = Versions {
        system: ctx.version.clone(),
        firmware: ctx.machine.firmware(),
    };
    let request = tokio::task::spawn_blocking(move || {
        let log = event_log::read();
        device::quote_request(&identity, &nonce, &versions, log.as_deref())
    })
    .await??;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_leads_where_eves_machine_goes() {
        let quote = || Step::Quote { nonce: vec![1] };
        let show = |granted| Step::ShowCertificates { granted };
        let granted = || Step::Granted { token: vec![2] };
        let table = [
            (show(None), Heard::Taken, Step::AskNonce),
            (show(Some(vec![2])), Heard::Taken, granted()),
            (Step::AskNonce, Heard::Nonce(vec![1]), quote()),
            (quote(), Heard::Token(vec![2]), granted()),
            (quote(), Heard::NonceMismatch, Step::AskNonce),
            (quote(), Heard::NoCertificate, show(None)),
            (quote(), Heard::Refused, Step::Refused),
            // Answers that fit no question end the try.
            (show(None), Heard::Token(vec![2]), Step::Refused),
            (Step::AskNonce, Heard::Taken, Step::Refused),
        ];
        for (step, heard, next) in table {
            assert_eq!(
                step.clone().after(heard.clone()),
                next,
                "{step:?} {heard:?}"
            );
        }
    }
}
