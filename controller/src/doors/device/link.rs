//! The link: a device's one cheap connection. See `protocol::link` for what is said on it.
//!
//! ```text
//! upgrade -> hello -> waiting for the proof --fits--> open --silent for 75 s, closed, newer link--> ended
//!                        '--10 s, does not fit--> refused
//! ```

use std::sync::Arc;

use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use protocol::ids::DeviceId;
use protocol::link::{
    CLOSE_REFUSED, LinkError, MAX_MESSAGE, Nonce, PING_INTERVAL, PROOF_TIMEOUT, SILENCE_LIMIT,
    ServerMessage,
};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::fleet::{Fleet, Refused};

/// Buffer of a link in bytes, each way: messages are small, and there are many links.
const BUFFER: usize = 2048;

pub(super) async fn link(State(fleet): State<Arc<Fleet>>, upgrade: WebSocketUpgrade) -> Response {
    upgrade
        .read_buffer_size(BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_MESSAGE)
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .on_upgrade(move |socket| serve(fleet, socket))
}

async fn serve(fleet: Arc<Fleet>, mut socket: WebSocket) {
    let device = match prove(&fleet, &mut socket).await {
        Ok(Some(device)) => device,
        Ok(None) => return,
        Err(error) => {
            tracing::debug!(%error, "a link was refused");
            let frame = CloseFrame {
                code: CLOSE_REFUSED,
                reason: "the proof was not accepted".into(),
            };
            // The other end may be gone; there is nobody to tell then.
            let _ = timeout(PROOF_TIMEOUT, socket.send(Message::Close(Some(frame)))).await;
            return;
        }
    };
    let (number, messages) = fleet.links().open(device);
    tracing::debug!(%device, "link open");
    let end = keep(&mut socket, messages).await;
    fleet.links().close(device, number);
    tracing::debug!(%device, end, "link ended");
}

/// Says hello and waits for the device's proof; nothing if the connection ended before.
async fn prove(fleet: &Fleet, socket: &mut WebSocket) -> Result<Option<DeviceId>, Refused> {
    let internal = |error: LinkError| Refused::Internal(error.to_string());
    let nonce = Nonce::random().map_err(internal)?;
    let hello = ServerMessage::Hello { nonce }.to_text().map_err(internal)?;
    let proof = timeout(PROOF_TIMEOUT, async {
        socket.send(Message::Text(hello.into())).await.ok()?;
        loop {
            match socket.recv().await? {
                Ok(Message::Binary(proof)) => return Some(proof),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                _ => return None,
            }
        }
    });
    match proof.await {
        Ok(Some(proof)) => fleet.open_proof(&proof, nonce).map(Some),
        Ok(None) => Ok(None),
        Err(_) => Err(Refused::Malformed("no proof came in time".to_owned())),
    }
}

/// Carries messages until one end is gone; says why it ended.
async fn keep(socket: &mut WebSocket, mut messages: Receiver<ServerMessage>) -> &'static str {
    let mut heard = Instant::now();
    let mut ping = interval(PING_INTERVAL);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            received = socket.recv() => match received {
                None | Some(Ok(Message::Close(_)) | Err(_)) => return "closed by the device",
                Some(Ok(_)) => {
                    heard = Instant::now();
                    continue;
                }
            },
            wanted = messages.recv() => match wanted {
                None => return "a newer link took over, or the device was cut off",
                Some(message) => match message.to_text() {
                    Ok(text) => Message::Text(text.into()),
                    Err(_) => continue,
                },
            },
            _ = ping.tick() => {
                if heard.elapsed() > SILENCE_LIMIT {
                    return "silent for too long";
                }
                Message::Ping(bytes::Bytes::new())
            }
        };
        match timeout(PROOF_TIMEOUT, socket.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return "broken",
            Err(_) => return "the device does not read",
        }
    }
}
