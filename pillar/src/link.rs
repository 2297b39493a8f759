//! The link: one WebSocket to the controller, so that a change is acted on at once, and consoles open without a port.
//!
//! ```text
//!   Waiting --connected, nonce heard, proof sent--> Open --configChanged--> the config loop asks now
//!      ^                                             | '----openConsole----> a console of its own (console.rs)
//!      '--- closed, silent for 75 s, refused --------'
//! ```
//!
//! Nothing depends on it: a device without link polls. A controller that has no link (EVE's have none) answers with a
//! status that is no upgrade, and is asked again rarely.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use protocol::link::{
    CLOSE_REFUSED, MAX_MESSAGE, PING_INTERVAL, PROOF_TIMEOUT, Proof, SILENCE_LIMIT, ServerMessage,
};
use protocol::paths;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::backoff::Backoff;
use crate::console;
use crate::context::Context;
use crate::websocket;

/// Delays between tries.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Delay after a controller that has no link.
const NO_LINK: Duration = Duration::from_secs(900);
/// Consoles open at the same time; more are not served.
const MAX_CONSOLES: usize = 16;

/// Why the link ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] websocket::Error),
    /// What came is not what should.
    #[error("link: {0}")]
    Message(String),
    /// The connection broke.
    #[error("link: {0}")]
    Broken(#[from] tungstenite::Error),
    /// The controller does not believe who we are.
    #[error("link: the controller refused this device's proof")]
    Refused,
    /// The device cannot sign.
    #[error(transparent)]
    Sign(#[from] crate::conn::Error),
}

/// Keeps the link open for as long as the agent lives.
pub async fn run(ctx: Arc<Context>) -> Result<(), Infallible> {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        let opened = Instant::now();
        let error = match session(&ctx).await {
            Ok(()) => "closed by the controller".to_owned(),
            Err(Error::Open(websocket::Error::NoUpgrade {
                url,
                status: status @ (404 | 405 | 501),
            })) => {
                tracing::info!(
                    url,
                    status,
                    "this controller has no link; configs are polled"
                );
                tokio::time::sleep(NO_LINK).await;
                continue;
            }
            Err(error) => error.to_string(),
        };
        tracing::debug!(error, "link ended");
        if opened.elapsed() > SILENCE_LIMIT {
            backoff.reset();
        }
        let mut contact = ctx.contact.subscribe();
        let down = !contact.borrow_and_update().up;
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            // Whoever reaches the controller first wakes the link too.
            _ = contact.wait_for(|contact| contact.up), if down => {}
        }
    }
}

/// One connection, until it ends.
async fn session(ctx: &Arc<Context>) -> Result<(), Error> {
    let device = ctx.device_id().await;
    let mut socket = websocket::connect(&ctx.conn, paths::LINK).await?;
    let hello = timeout(PROOF_TIMEOUT, socket.next())
        .await
        .map_err(|_| Error::Message("no hello in time".to_owned()))?;
    let nonce = match hello {
        Some(Ok(Message::Text(text))) => match read(&text)? {
            ServerMessage::Hello { nonce } => nonce,
            other => return Err(Error::Message(format!("expected a hello, got {other:?}"))),
        },
        Some(Ok(_)) | None => return Err(Error::Message("expected a hello".to_owned())),
        Some(Err(error)) => return Err(error.into()),
    };
    let time = i64::try_from(ctx.clock.seconds()).unwrap_or(i64::MAX);
    let proof = serde_json::to_vec(&Proof {
        device,
        time,
        nonce,
    })
    .map_err(|error| Error::Message(error.to_string()))?;
    socket
        .send(Message::Binary(ctx.conn.seal(proof).await?.into()))
        .await?;
    // What changed before the link was there was not told.
    ctx.poll.notify_one();

    let mut consoles = JoinSet::new();
    let mut heard = Instant::now();
    let mut ping = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    loop {
        tokio::select! {
            message = socket.next() => {
                heard = Instant::now();
                match message {
                    Some(Ok(Message::Text(text))) => act(ctx, read(&text)?, &mut consoles),
                    Some(Ok(Message::Close(Some(frame)))) if u16::from(frame.code) == CLOSE_REFUSED => {
                        return Err(Error::Refused);
                    }
                    Some(Ok(Message::Close(_))) | None => return Ok(()),
                    // Pings are answered by the library.
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error.into()),
                }
            }
            _ = ping.tick() => {
                if heard.elapsed() > SILENCE_LIMIT {
                    return Err(Error::Message("silent for too long".to_owned()));
                }
                socket.send(Message::Ping(Vec::new().into())).await?;
            }
            Some(_) = consoles.join_next() => {}
        }
    }
}

fn read(text: &str) -> Result<ServerMessage, Error> {
    if text.len() > MAX_MESSAGE {
        return Err(Error::Message(format!("a message of {} bytes", text.len())));
    }
    ServerMessage::from_text(text).map_err(|error| Error::Message(error.to_string()))
}

fn act(ctx: &Arc<Context>, message: ServerMessage, consoles: &mut JoinSet<()>) {
    match message {
        ServerMessage::ConfigChanged => ctx.poll.notify_one(),
        ServerMessage::OpenConsole { session, app } if consoles.len() < MAX_CONSOLES => {
            let ctx = ctx.clone();
            consoles.spawn(async move {
                if let Err(error) = console::serve(&ctx, session, app).await {
                    tracing::warn!(%app, %error, "console");
                }
            });
        }
        ServerMessage::OpenConsole { app, .. } => {
            tracing::warn!(%app, "too many consoles are open")
        }
        ServerMessage::Hello { .. } | ServerMessage::Unknown => {}
    }
}
