//! A console session: bytes between an app's console socket and a WebSocket that the controller asked for.
//!
//! Binary messages are console bytes, both ways. Either end going away ends the session.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use protocol::ids::{AppId, SessionId};
use protocol::link::{PING_INTERVAL, SILENCE_LIMIT};
use protocol::paths;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::context::Context;
use crate::peer;
use crate::websocket::{self, Socket};

/// Bytes taken from a console at once.
const CHUNK: usize = 4 * 1024;
const STALL: Duration = Duration::from_secs(30);

/// Why a session ended badly.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The way to the controller.
    #[error(transparent)]
    Open(#[from] websocket::Error),
    /// The WebSocket broke.
    #[error("console session: {0}")]
    Broken(#[from] tungstenite::Error),
    /// The app's socket.
    #[error("console socket {path}: {source}")]
    Socket {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An end that neither takes nor gives anything.
    #[error("console session: the other end stalled")]
    Stalled,
}

/// Serves one session from beginning to end.
///
/// # Errors
/// When either side breaks.
pub async fn serve(ctx: &Context, session: SessionId, app: AppId) -> Result<(), Error> {
    let mut socket = websocket::connect(&ctx.conn, &paths::console(session)).await?;
    let path = ctx
        .observed
        .borrow()
        .apps
        .get(&app)
        .and_then(|app| app.console.clone());
    let Some(path) = path else {
        return refuse(socket, "this app has no console now").await;
    };
    match peer::connect(&path).await {
        Ok(console) => pump(socket, console, path).await,
        Err(source) => {
            let reason = "this app's console does not answer";
            timeout(STALL, refuse_with(&mut socket, reason))
                .await
                .map_err(|_| Error::Stalled)??;
            Err(Error::Socket { path, source })
        }
    }
}

async fn refuse(mut socket: Socket, reason: &str) -> Result<(), Error> {
    timeout(STALL, refuse_with(&mut socket, reason))
        .await
        .map_err(|_| Error::Stalled)?
}

async fn refuse_with(socket: &mut Socket, reason: &str) -> Result<(), Error> {
    // RFC 6455 section 7.4.1: 1011, the peer cannot fulfil the request.
    Ok(socket
        .close(Some(CloseFrame {
            code: CloseCode::Error,
            reason: reason.to_owned().into(),
        }))
        .await?)
}

/// Moves bytes until one side ends.
async fn pump(socket: Socket, mut console: UnixStream, path: PathBuf) -> Result<(), Error> {
    let (mut to_controller, mut from_controller) = socket.split();
    let (mut from_app, mut to_app) = console.split();
    let mut chunk = vec![0; CHUNK];
    let mut heard = Instant::now();
    let mut ping = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    let broken = |source| Error::Socket {
        path: path.clone(),
        source,
    };
    loop {
        tokio::select! {
            read = from_app.read(&mut chunk) => {
                let count = read.map_err(broken)?;
                if count == 0 {
                    let end = CloseFrame { code: CloseCode::Normal, reason: "the app's console closed".into() };
                    timeout(STALL, to_controller.send(Message::Close(Some(end)))).await.map_err(|_| Error::Stalled)??;
                    return Ok(());
                }
                let bytes = chunk.get(..count).unwrap_or_default().to_vec();
                timeout(STALL, to_controller.send(Message::Binary(bytes.into()))).await.map_err(|_| Error::Stalled)??;
            }
            message = from_controller.next() => {
                heard = Instant::now();
                match message {
                    Some(Ok(Message::Binary(bytes))) => {
                        timeout(STALL, to_app.write_all(&bytes)).await.map_err(|_| Error::Stalled)?.map_err(broken)?;
                    }
                    Some(Ok(Message::Text(text))) => {
                        let bytes = text.as_bytes();
                        timeout(STALL, to_app.write_all(bytes)).await.map_err(|_| Error::Stalled)?.map_err(broken)?;
                    }
                    Some(Ok(Message::Close(_))) | None => return Ok(()),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error.into()),
                }
            }
            _ = ping.tick() => {
                if heard.elapsed() > SILENCE_LIMIT {
                    return Err(Error::Stalled);
                }
                timeout(STALL, to_controller.send(Message::Ping(Vec::new().into()))).await.map_err(|_| Error::Stalled)??;
            }
        }
    }
}
