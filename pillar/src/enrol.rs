//! How the device comes by its id, EVE's way: registration with the image's onboarding key, then a question under its own.
//!
//! ```text
//!            certs        uuid: answered
//!   Certs ----------> Asking -----------------------------> Enrolled (id kept on disk)
//!     ^                 |  ^                                    |
//!     |         refused |  | whatever register answers          | the controller says that it does not know us
//!     |                 v  |                                    | (asked again at most every ten minutes)
//!     |              Registering                                |
//!     '------ any failure: waits 1 s to 10 min ----------------'
//! ```
//!
//! The status of `register` alone decides nothing (EVE's rule): only an answered `uuid` does. A device that knows its id
//! from an earlier start works under it at once, while this goes on beside.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use onboarding::registration::{self, OnboardingKey};
use prost::Message as _;
use protocol::eve::uuid::{UuidRequest, UuidResponse};
use protocol::ids::DeviceId;
use protocol::paths;

use crate::backoff::Backoff;
use crate::conn::{self, Sender};
use crate::context::Context;
use crate::generations;
use crate::paths::Paths;
use crate::status::{Subject, Topic};

/// EVE's delays between tries of a device that the controller refuses.
const REFUSED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// A controller that is away may be back any moment, and asking costs it nothing meanwhile.
const AWAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Least time between two questions of an enrolled device.
const ASK_AGAIN: Duration = Duration::from_secs(600);

/// Why the device is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The exchange failed.
    #[error(transparent)]
    Connection(#[from] conn::Error),
    /// The controller does not know the device, and the image has nothing to register with.
    #[error("{0}; the image carries no onboarding certificate to register with")]
    NoOnboardingKey(conn::Error),
    /// The onboarding key or the message cannot be used.
    #[error("onboarding certificate of the image: {0}; make the installer image again")]
    Onboarding(String),
    /// Registered and still refused.
    #[error("{ask} (registration: {register})")]
    Refused {
        /// What `register` said.
        register: String,
        /// What `uuid` said.
        ask: conn::Error,
    },
    /// The id is no UUID.
    #[error("the controller gave the id {0:?}, which is not a UUID")]
    Id(String),
}

impl Error {
    /// The reason, if the controller is away rather than unwilling.
    fn away(&self) -> Option<&conn::Error> {
        match self {
            Self::Connection(error)
            | Self::NoOnboardingKey(error)
            | Self::Refused { ask: error, .. } => Some(error).filter(|error| error.is_away()),
            _ => None,
        }
    }
}

/// Where the id is kept.
#[must_use]
pub fn id_file(paths: &Paths) -> PathBuf {
    paths.pillar().join("device-id")
}

/// The id of an earlier start.
#[must_use]
pub fn kept_id(paths: &Paths) -> Option<DeviceId> {
    match generations::read(&id_file(paths)) {
        Ok(bytes) => std::str::from_utf8(&bytes?).ok()?.trim().parse().ok(),
        Err(error) => {
            tracing::warn!(%error, "device id");
            None
        }
    }
}

/// Enrols the device and keeps it so.
pub async fn run(ctx: Arc<Context>) -> Result<(), Infallible> {
    let mut refused = Backoff::new(REFUSED.0, REFUSED.1);
    let mut away = Backoff::new(AWAY.0, AWAY.1);
    loop {
        match enrol(&ctx).await {
            Ok(id) => {
                refused.reset();
                away.reset();
                settle(&ctx, id).await;
                let asked = tokio::time::Instant::now();
                ctx.reenrol.notified().await;
                tokio::time::sleep_until(asked + ASK_AGAIN).await;
            }
            Err(error) => match error.away() {
                Some(reason) => {
                    ctx.out_of_contact(reason);
                    tokio::select! {
                        () = tokio::time::sleep(away.next_delay()) => {}
                        () = ctx.contact_returns() => {}
                    }
                }
                None => {
                    ctx.status
                        .raise(Topic::Enrolment, &format!("not enrolled: {error}"));
                    tokio::time::sleep(refused.next_delay()).await;
                }
            },
        }
    }
}

async fn settle(ctx: &Context, id: DeviceId) {
    ctx.status.clear(Topic::Enrolment);
    ctx.status.say(
        Subject::Enrolment,
        &format!("enrolled as {id} at {}", ctx.conn.server()),
    );
    ctx.conn.set_named();
    ctx.in_contact();
    let before = ctx.device.send_replace(Some(id));
    if before != Some(id) {
        if let Err(error) =
            generations::store(id_file(&ctx.paths), id.to_string().into_bytes()).await
        {
            ctx.status.raise(Topic::Disk, &error.to_string());
        }
        if before.is_some() {
            // Another id is another device to the controller: that one's config and token are not ours any more.
            ctx.reattest.notify_one();
            ctx.poll.notify_one();
        }
    }
}

/// One round of the diagram above.
async fn enrol(ctx: &Context) -> Result<DeviceId, Error> {
    ctx.conn.fetch_certs().await?;
    let refusal = match ask(ctx).await {
        Err(Error::Connection(error)) if error.status().is_some_and(|status| status < 500) => error,
        result => return result,
    };
    let Some((certificate, key)) = &ctx.bundle.onboarding else {
        return Err(Error::NoOnboardingKey(refusal));
    };
    let register = match register(ctx, certificate, key).await {
        Ok(status) => format!("answered {status}"),
        Err(Error::Connection(error)) => error.to_string(),
        Err(error) => return Err(error),
    };
    match ask(ctx).await {
        Err(Error::Connection(ask)) => Err(Error::Refused { register, ask }),
        result => result,
    }
}

async fn ask(ctx: &Context) -> Result<DeviceId, Error> {
    let response: UuidResponse = ctx
        .conn
        .ask(paths::UUID, &UuidRequest {}, "UuidResponse")
        .await?;
    response
        .uuid
        .parse()
        .map_err(|_| Error::Id(response.uuid.chars().take(64).collect()))
}

async fn register(ctx: &Context, certificate: &str, key: &str) -> Result<u16, Error> {
    let onboarding_error = |error: &dyn std::fmt::Display| Error::Onboarding(error.to_string());
    let signer =
        OnboardingKey::from_pem(certificate, key).map_err(|error| onboarding_error(&error))?;
    let soft_serial = ctx.bundle.soft_serial.as_deref().unwrap_or_default();
    let device = ctx.identity.device_certificate();
    let message = registration::message(
        device,
        &registration::serial(&ctx.machine, device),
        soft_serial,
    )
    .map_err(|error| onboarding_error(&error))?;
    let sender = Sender {
        hash: signer.hash(),
        certificate: Some(signer.certificate_pem().to_owned()),
        signer: Arc::new(signer),
    };
    Ok(ctx
        .conn
        .post_as(sender, paths::REGISTER, message.encode_to_vec())
        .await?
        .status)
}
