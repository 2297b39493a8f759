//! The config loop: asks the controller what this device should be, and makes it so.
//!
//! ```text
//!                    .-- 304, or 200 with the hash in force -------------------> confirmed
//!                    |-- 200 --> signature, device, form --good--> checkpoint --> translated --> desired
//!   POST config -----|                  '--bad--> refused: reason on the board, the last good one stays
//!                    |-- 403 --> the token is not (or no longer) good: attest again, then ask again
//!                    |-- 404, 400 --> does the controller still know us? (enrol)
//!                    '-- no answer, 5xx --> soon again, with growing delays
//! ```
//!
//! Between two questions lie 0.3 to 1.0 times `timer.config.interval`, unless the link says that there is something new.
//!
//! A config is written to the checkpoint before it is acted on, so that after a power cut the device is what it was. One
//! that cannot be written (the disk is full or broken) is acted on all the same, since it may be the one that mends that;
//! the board then says that it would not outlive a power cut, and the older checkpoint stays.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use protocol::eve::config::{ConfigRequest, ConfigResponse};
use protocol::paths;

use crate::backoff::{Backoff, fraction};
use crate::config::{DeviceSecrets, InForce, Refusal, accept, checkpoint, put_in_force};
use crate::conn;
use crate::context::{Attestation, Context};
use crate::generations;
use crate::status::Topic;

/// How long the first question waits for the first quote, so that it need not be refused for want of a token.
const WAIT_FOR_TOKEN: Duration = Duration::from_secs(10);
/// How the words of a controller begin that tells a refused device which check failed (docs page "Contracts between the parts").
const REFUSED: &str = "attestation: ";
/// Delays after no answer: a controller that is back is to be noticed soon, by a fleet that does not come at once.
const AWAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What one question came to.
enum Outcome {
    /// Nothing new, or something new that is in force now.
    Good,
    /// An answer that is not to be followed.
    Refused(String),
    /// The token is not good; the controller's words.
    Token(conn::Error),
    /// The controller does not know us.
    Unknown(conn::Error),
    /// No answer, or none that says anything about the config.
    Failed(conn::Error),
}

/// Asks for the config for as long as the agent lives.
pub async fn run(ctx: Arc<Context>) -> Result<(), Infallible> {
    ctx.device_id().await;
    let mut attestation = ctx.attestation.subscribe();
    let tried = |attestation: &Attestation| !matches!(attestation, Attestation::Trying { .. });
    let _ = tokio::time::timeout(WAIT_FOR_TOKEN, attestation.wait_for(tried)).await;
    let mut away = Backoff::new(AWAY.0, AWAY.1);
    let mut certs_at = tokio::time::Instant::now();
    loop {
        let outcome = ask(&ctx).await;
        let settings = ctx.config.borrow().settings.clone();
        let mut delay = settings.config_interval.mul_f64(0.3 + 0.7 * fraction());
        match outcome {
            Outcome::Good => {
                ctx.status.clear(Topic::Config);
                ctx.in_contact();
                ctx.contact.send_if_modified(|contact| {
                    !std::mem::replace(&mut contact.config_confirmed, true)
                });
                away.reset();
            }
            Outcome::Refused(reason) => {
                ctx.in_contact();
                ctx.status.raise(
                    Topic::Config,
                    &format!("config refused: {reason}; the last good one stays"),
                );
            }
            Outcome::Token(error) => {
                ctx.in_contact();
                tracing::info!(%error, "the controller wants another integrity token");
                if let Some(words) = error.words().and_then(|words| words.strip_prefix(REFUSED)) {
                    ctx.refused_because(words);
                }
                let granted =
                    |attestation: &Attestation| matches!(attestation, Attestation::Granted { .. });
                // While a try goes on already, there is nothing to be asked for.
                if granted(&attestation.borrow_and_update()) {
                    ctx.reattest.notify_one();
                    let _ = tokio::time::timeout(WAIT_FOR_TOKEN, attestation.changed()).await;
                }
                let _ =
                    tokio::time::timeout(3 * WAIT_FOR_TOKEN, attestation.wait_for(granted)).await;
                delay = delay.min(Duration::from_secs(2));
            }
            Outcome::Unknown(error) => {
                ctx.status.raise(
                    Topic::Config,
                    &format!("the controller gives no config: {error}"),
                );
                ctx.reenrol.notify_one();
            }
            Outcome::Failed(error) => {
                delay = away.next_delay();
                ctx.out_of_contact(&error);
            }
        }
        if certs_at.elapsed() > settings.cert_interval {
            certs_at = tokio::time::Instant::now();
            refresh_certs(&ctx).await;
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = ctx.poll.notified() => {}
        }
    }
}

async fn refresh_certs(ctx: &Context) {
    if let Err(error) = ctx.conn.fetch_certs().await {
        tracing::warn!(%error, "controller's certificates not refreshed");
    }
}

async fn ask(ctx: &Context) -> Outcome {
    let own = ctx.device_id().await;
    let known = ctx.config.borrow().clone();
    let integrity_token = match &*ctx.attestation.borrow() {
        Attestation::Granted { token } => token.clone(),
        _ => Vec::new(),
    };
    let request = ConfigRequest {
        config_hash: known.hash.clone(),
        integrity_token,
    };
    let path = paths::config(own);
    let answer = match ctx.conn.post(&path, request.encode_to_vec()).await {
        Ok(answer) => answer,
        Err(error) => {
            return match error.status() {
                Some(403) => Outcome::Token(error),
                Some(400 | 401 | 404) => Outcome::Unknown(error),
                _ => Outcome::Failed(error),
            };
        }
    };
    if answer.status == 304 {
        return Outcome::Good;
    }
    let payload = match ctx.conn.open(&path, &answer).await {
        Ok(payload) => payload,
        // The controller answered; what it said is no good.
        Err(conn::Error::Reply { source, .. }) => return Outcome::Refused(source.to_string()),
        Err(conn::Error::Certs(error)) => return Outcome::Refused(error.to_string()),
        Err(error) => return Outcome::Failed(error),
    };
    let response: ConfigResponse = match protocol::envelope::decode(&payload, "ConfigResponse") {
        Ok(response) => response,
        Err(error) => return Outcome::Refused(error.to_string()),
    };
    if response.config.is_none() && !known.hash.is_empty() && response.config_hash == known.hash {
        return Outcome::Good;
    }
    let config = match accept(&response, own) {
        Ok(config) => config,
        Err(refusal) => return Outcome::Refused(refusal.to_string()),
    };
    if config.controllercert_confighash != known.certs_marker && !known.certs_marker.is_empty() {
        refresh_certs(ctx).await;
    }
    let secrets = DeviceSecrets {
        identity: ctx.identity.clone(),
        certs: ctx
            .conn
            .known_certs()
            .map(|verified| verified.certs.clone()),
    };
    let (response, in_force) = match tokio::task::spawn_blocking(move || {
        let in_force = response
            .config
            .as_ref()
            .map(|config| InForce::new(config, &response.config_hash, &secrets));
        (response, in_force)
    })
    .await
    {
        Ok((response, Some(in_force))) => (response, in_force),
        Ok((_, None)) => return Outcome::Refused(Refusal::Empty.to_string()),
        Err(error) => return Outcome::Refused(format!("it cannot be translated: {error}")),
    };
    tracing::debug!(hash = response.config_hash, "new config");
    // The whole container, so that the signature is there to be checked at the next start.
    if let Err(error) = generations::store(checkpoint::file(&ctx.paths), answer.body.to_vec()).await
    {
        ctx.status.raise(
            Topic::Disk,
            &format!("the config is applied but would not survive a power cut: {error}"),
        );
    } else {
        ctx.status.clear(Topic::Disk);
    }
    put_in_force(in_force, &ctx.config, &ctx.status, "");
    Outcome::Good
}
