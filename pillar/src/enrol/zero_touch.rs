//! Enrolment without a secret on the image: the two flights, one try of them.
//!
//! ```text
//!            challenge, owner checked          grant, certificate checked          written, synced
//!   Hello ----------------------------> Evidence -----------------------> Keep ------------------> Grant
//!     |                                  |   ^ |                           |
//!     |                                  '---' |                           |
//!     |                        no answer: the  |                           | disk full
//!     |                        same bytes again|                           |
//!     '---- wait, refusal, no answer ----------'---------------------------'
//!           the try is over; the next one begins with Hello
//! ```
//!
//! Nothing lasting comes of a try before `Keep`, and `Keep` is one rename. So a power cut at any step costs a repetition: the
//! controller knows the machine again by its endorsement key and gives it the same id.

use std::sync::Arc;
use std::time::Duration;

use onboarding::enrol::device::{self, Answering, Session};
use onboarding::enrol::mark::{self, MarkError};
use onboarding::enrol::{EnrolError, MachineId};
use onboarding::keys::Identity;
use protocol::cipher::Point;
use protocol::enrolment::image::Home;
use protocol::enrolment::owner::Pinned;
use protocol::enrolment::seal::{self, Flight, SealError};
use protocol::enrolment::wire::{self, Answer, GrantPayload, Reason, answer::Kind};
use protocol::keys::VerifyingKey;
use protocol::paths;
use tokio::time::Instant;

use super::owner::{self, Stale};
use crate::backoff::Backoff;
use crate::conn;
use crate::context::Context;
use crate::generations;
use crate::grant::{self, Grant, GrantError};
use crate::host::event_log;
use crate::status::{Subject, Topic};

/// For how long the same evidence is sent again when no answer comes. A challenge lives for a minute or two at its controller; evidence
/// that comes too late is refused with `CHALLENGE`, and costs a new Hello.
const RESEND: Duration = Duration::from_secs(60);
/// Delays between two sendings of the same evidence.
const RESEND_DELAYS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Bounds of the time that a controller may have a device wait.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// How often the words are said again while a person is waited for: kernel messages push them off the screen.
const SAY_AGAIN: Duration = Duration::from_secs(600);

/// Why a try gave no grant.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The exchange failed.
    #[error(transparent)]
    Connection(#[from] conn::Error),
    /// This controller knows nothing of this way.
    #[error("this controller does not enrol without an onboarding key ({0})")]
    NotSpoken(conn::Error),
    /// A message could not be sealed, or the answer not be opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// TPM, owner, challenge or grant are not what they should be.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The controller is behind the image.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// The grant is none for this device.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// A person has to approve.
    #[error("waiting for approval{}", after_colon(.reason))]
    Wait {
        /// When to ask again.
        retry: Duration,
        /// Why, in the controller's words.
        reason: String,
    },
    /// The controller says no.
    #[error("{}{}", refusal(*.reason), after_colon(.text))]
    Refused {
        /// Its kind of reason.
        reason: Reason,
        /// Its words.
        text: String,
        /// When to try again at the earliest.
        retry: Duration,
    },
    /// The answer fits no question.
    #[error("the controller answers {0} where it should not")]
    Odd(&'static str),
    /// The grant cannot be kept.
    #[error("the grant cannot be kept, so it is not used: {0}")]
    Keep(#[from] generations::Error),
    /// The device's own certificate cannot be read.
    #[error("the device's certificate: {0}")]
    Own(#[from] protocol::keys::KeyError),
    /// A task of this process did not end well.
    #[error("enrolment: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// A refusal in words that an installer can act on.
fn refusal(reason: Reason) -> &'static str {
    match reason {
        Reason::Unspecified => "the controller refuses this machine",
        Reason::Malformed => {
            "the controller does not understand this image's messages; bring image and controller to versions that fit"
        }
        Reason::Challenge => "the controller's challenge ran out or was used before; trying anew",
        Reason::Proof => {
            "the controller does not accept this machine's proof; it shows which check failed"
        }
        Reason::Denied => {
            "the controller's operator, or a rule, keeps this machine out; if that is a mistake, give them the words above"
        }
        Reason::Busy => "the controller is busy; trying again",
    }
}

fn after_colon(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    }
}

impl Error {
    /// When to try again, given the delay that failures in a row lead to.
    #[must_use]
    pub fn delay(&self, backoff: Duration) -> Duration {
        match self {
            Self::Wait { retry, .. } => *retry,
            Self::Refused { retry, .. } => backoff.max(*retry),
            _ => backoff,
        }
    }

    /// The reason, if the controller is away rather than unwilling.
    #[must_use]
    pub fn away(&self) -> Option<&conn::Error> {
        match self {
            Self::Connection(error) => Some(error).filter(|error| error.is_away()),
            _ => None,
        }
    }
}

/// Where in one try the device is.
enum Step {
    Hello(Session),
    Evidence {
        answering: Answering,
        until: Instant,
    },
    Keep {
        grant: Grant,
        token: Vec<u8>,
    },
}

/// What the controller answered, sorted.
#[derive(Debug)]
enum Heard {
    Challenge(Box<wire::Challenge>),
    Grant(wire::SealedGrant),
}

/// Sorts an answer; waits and refusals end the try.
fn hear(answer: Answer) -> Result<Heard, Error> {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into()).clamp(WAIT.0, WAIT.1);
    match answer.kind {
        Some(Kind::Challenge(challenge)) => Ok(Heard::Challenge(Box::new(challenge))),
        Some(Kind::Grant(grant)) => Ok(Heard::Grant(grant)),
        Some(Kind::Wait(wait)) => Err(Error::Wait {
            retry: seconds(wait.retry_seconds),
            reason: wait.reason,
        }),
        Some(Kind::Refusal(refusal)) => Err(Error::Refused {
            reason: refusal.reason(),
            retry: seconds(refusal.retry_seconds),
            text: refusal.text,
        }),
        None => Err(Error::Odd("nothing")),
    }
}

/// A grant that is on the disk, and the token that came with it.
pub(super) struct Granted {
    pub(super) grant: Grant,
    /// Empty: there is none.
    pub(super) token: Vec<u8>,
}

/// One try.
///
/// # Errors
/// [`Error`].
pub(super) async fn enrol(ctx: &Arc<Context>, home: &Home) -> Result<Granted, Error> {
    let kept = ctx.grant.borrow().as_ref().map(|grant| grant.owner);
    let (identity, machine, version) = (
        ctx.identity.clone(),
        ctx.machine.clone(),
        ctx.version.clone(),
    );
    let session = blocking(move || Ok(device::hello(&identity, &machine, &version)?)).await?;
    let mut resend = Backoff::new(RESEND_DELAYS.0, RESEND_DELAYS.1);
    let mut step = Step::Hello(session);
    loop {
        step = match step {
            Step::Hello(session) => match ask(ctx, home, Flight::Hello, session.bytes()).await? {
                Heard::Challenge(challenge) => {
                    let answering = answer(ctx, home, kept, session, challenge).await?;
                    // Signed by the owner's delegate over our own nonce: no recording of an older time.
                    ctx.clock.learn_signed(answering.server_time_ms());
                    Step::Evidence {
                        answering,
                        until: Instant::now() + RESEND,
                    }
                }
                Heard::Grant(_) => return Err(Error::Odd("a grant")),
            },
            Step::Evidence { answering, until } => {
                match ask(ctx, home, Flight::Evidence, answering.evidence()).await {
                    Ok(Heard::Grant(sealed)) => open(ctx, answering, sealed).await?,
                    Ok(Heard::Challenge(_)) => return Err(Error::Odd("another challenge")),
                    Err(error) if error.away().is_some() && Instant::now() < until => {
                        tracing::info!(%error, "the evidence is sent again");
                        tokio::time::sleep(resend.next_delay()).await;
                        Step::Evidence { answering, until }
                    }
                    Err(error) => return Err(error),
                }
            }
            Step::Keep { grant, token } => {
                generations::store(grant::file(&ctx.paths), grant.to_bytes()).await?;
                return Ok(Granted { grant, token });
            }
        };
    }
}

/// Sends one flight and gives what came of it.
async fn ask(ctx: &Context, home: &Home, flight: Flight, message: &[u8]) -> Result<Heard, Error> {
    let path = match flight {
        Flight::Hello => paths::ENROL_HELLO,
        Flight::Evidence => paths::ENROL_EVIDENCE,
    };
    let (body, key) = seal::seal_request(&home.controller, flight, message)?;
    let answer = match ctx.conn.post_sealed(path, body).await {
        Ok(answer) => answer,
        Err(error) if matches!(error.status(), Some(404 | 405 | 501)) => {
            return Err(Error::NotSpoken(error));
        }
        Err(error) => return Err(error.into()),
    };
    ctx.in_contact();
    hear(key.open(&answer.body)?)
}

/// Checks the challenge and has the TPM answer it; both take their time.
async fn answer(
    ctx: &Arc<Context>,
    home: &Home,
    kept: Option<Pinned>,
    session: Session,
    challenge: Box<wire::Challenge>,
) -> Result<Answering, Error> {
    let (ctx, image) = (ctx.clone(), home.owner);
    blocking(move || {
        let mark = read_mark(&ctx);
        let pinned = owner::start(image, kept, mark);
        let floor = i64::try_from(ctx.clock.floor()).unwrap_or(i64::MAX);
        let log = event_log::read();
        let answering =
            session.challenged(&ctx.identity, &challenge, &pinned, floor, log.as_deref())?;
        owner::not_before(&image, &answering.pinned())?;
        Ok(answering)
    })
    .await
}

/// Opens the grant and checks that it is one for this device.
async fn open(
    ctx: &Arc<Context>,
    answering: Answering,
    sealed: wire::SealedGrant,
) -> Result<Step, Error> {
    let ctx = ctx.clone();
    blocking(move || {
        let payload: GrantPayload = answering.granted(&ctx.identity, &sealed)?;
        let own = ctx.identity.device_certificate();
        let grant = Grant::take(&payload, answering.pinned(), own)?;
        ctx.clock.learn_signed(payload.server_time_ms);
        Ok(Step::Keep {
            grant,
            token: payload.integrity_token,
        })
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await?
}

/// The owner's mark in the TPM. One that cannot be read is told, and the device goes by its disk and image: refusing to enrol because of
/// it would leave a box with a worn TPM without an owner.
fn read_mark(ctx: &Context) -> Option<Pinned> {
    match mark::read(ctx.identity.tpm()?) {
        Ok(mark) => mark,
        Err(error) => {
            ctx.status.raise(Topic::OwnerMark, &error.to_string());
            None
        }
    }
}

/// Sees to it that the TPM's mark says what the grant says, and locks it until the next boot. At every start: a power cut may have come
/// between grant and mark.
pub(super) async fn set_mark(ctx: &Arc<Context>, pinned: Pinned) {
    let identity = ctx.identity.clone();
    let written = tokio::task::spawn_blocking(move || match identity.tpm() {
        Some(tpm) => mark::write(tpm, &pinned),
        None => Ok(()),
    });
    // The grant on the disk says whose the box is; the mark is for a wiped disk, and is tried again at the next start.
    match written.await {
        Ok(Ok(())) => ctx.status.clear(Topic::OwnerMark),
        // The owner moved on while the box ran. Nothing is wrong with that.
        Ok(Err(error @ MarkError::Locked)) => tracing::info!(%error, "left for the next start"),
        Ok(Err(error)) => ctx.status.raise(Topic::OwnerMark, &error.to_string()),
        Err(error) => ctx.status.raise(Topic::OwnerMark, &error.to_string()),
    }
}

/// The machine's name: the endorsement key's, or without a TPM the device key's.
pub(super) fn machine_id(identity: &Identity) -> Option<MachineId> {
    if let Some(endorsement) = identity.endorsement() {
        return Some(MachineId::of_endorsement(&endorsement.public));
    }
    match VerifyingKey::from_certificate_der(identity.device_certificate().der()) {
        Ok(VerifyingKey::P256(point)) => Point::from_sec1(&point)
            .ok()
            .map(|point| MachineId::of_device_key(&point)),
        _ => None,
    }
}

/// Says the machine's words to whoever stands before the screen, now and again.
#[derive(Default)]
pub(super) struct Words {
    said: Option<Instant>,
}

impl Words {
    /// Says why the device is not enrolled yet, with its words.
    pub(super) fn say(&mut self, ctx: &Context, why: &str) {
        let words = machine_id(&ctx.identity).map(|id| id.words());
        let text = format!("{why}: {}", words.unwrap_or_default());
        let now = Instant::now();
        if self.said.is_none_or(|said| now - said >= SAY_AGAIN) {
            ctx.status.forget(&Subject::Enrolment);
            self.said = Some(now);
        }
        ctx.status.say(Subject::Enrolment, &text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: Kind) -> Answer {
        Answer { kind: Some(kind) }
    }

    #[test]
    fn each_answer_is_sorted() {
        let challenge = hear(answer(Kind::Challenge(wire::Challenge::default())));
        assert!(matches!(challenge, Ok(Heard::Challenge(_))));
        let grant = hear(answer(Kind::Grant(wire::SealedGrant::default())));
        assert!(matches!(grant, Ok(Heard::Grant(_))));
        assert!(matches!(hear(Answer { kind: None }), Err(Error::Odd(_))));
    }

    #[test]
    fn a_controller_may_have_a_device_wait_but_not_for_ever_nor_in_a_hurry() {
        let backoff = Duration::from_secs(40);
        for (asked, wait, refused) in [
            (0, 1, 40),
            (5, 5, 40),
            (100, 100, 100),
            (1 << 30, 3600, 3600),
        ] {
            let error = hear(answer(Kind::Wait(wire::Wait {
                retry_seconds: asked,
                reason: String::new(),
            })))
            .unwrap_err();
            assert_eq!(error.delay(backoff).as_secs(), wait);
            let error = hear(answer(Kind::Refusal(wire::Refusal {
                retry_seconds: asked,
                ..wire::Refusal::default()
            })))
            .unwrap_err();
            assert_eq!(error.delay(backoff).as_secs(), refused);
        }
    }

    #[test]
    fn refusals_are_told_in_words() {
        let say = |reason: Reason, text: &str| {
            hear(answer(Kind::Refusal(wire::Refusal {
                reason: reason.into(),
                text: text.to_owned(),
                retry_seconds: 1,
            })))
            .unwrap_err()
            .to_string()
        };
        for (reason, part) in [
            (Reason::Denied, "keeps this machine out"),
            (Reason::Proof, "does not accept this machine's proof"),
            (Reason::Busy, "busy"),
            (Reason::Challenge, "trying anew"),
            (Reason::Malformed, "versions that fit"),
        ] {
            assert!(say(reason, "").contains(part));
            assert!(say(reason, "Secure Boot is off").ends_with(": Secure Boot is off"));
        }
        // A number that a later version may send.
        let unknown = hear(answer(Kind::Refusal(wire::Refusal {
            reason: 77,
            ..wire::Refusal::default()
        })));
        assert!(
            unknown
                .unwrap_err()
                .to_string()
                .contains("refuses this machine")
        );
    }
}
