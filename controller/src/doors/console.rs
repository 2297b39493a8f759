//! What both ends of a console do: the device's and the operator's are WebSockets with the same bounds, laid end to end in the fleet.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use protocol::link::{PING_INTERVAL, SILENCE_LIMIT};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::fleet::links::ConsoleEnd;

/// Largest message, in bytes.
const MAX_MESSAGE: usize = 64 << 10;
/// Buffers of a connection, in bytes.
const BUFFER: usize = 8 << 10;
/// How long an end may take to read a message.
const STALL: Duration = Duration::from_secs(30);

/// Bounds a console's WebSocket.
pub(super) fn limited(upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    upgrade
        .read_buffer_size(BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MAX_MESSAGE)
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
}

/// Carries bytes between a WebSocket and the other end of the console until one of them is gone.
pub(super) async fn pump(mut socket: WebSocket, mut end: ConsoleEnd) {
    let mut heard = Instant::now();
    let mut ping = interval(PING_INTERVAL);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let reason = loop {
        let message = tokio::select! {
            received = socket.recv() => {
                heard = Instant::now();
                let bytes = match received {
                    Some(Ok(Message::Binary(bytes))) => bytes,
                    Some(Ok(Message::Text(text))) => text.into(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                match timeout(STALL, end.to.send(bytes)).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(_)) => break "the other end is gone",
                    Err(_) => break "the other end does not read",
                }
            }
            bytes = end.from.recv() => match bytes {
                Some(bytes) => Message::Binary(bytes),
                None => break "the other end is gone, or did not answer",
            },
            _ = ping.tick() => {
                if heard.elapsed() > SILENCE_LIMIT {
                    return;
                }
                Message::Ping(bytes::Bytes::new())
            }
        };
        if !matches!(timeout(STALL, socket.send(message)).await, Ok(Ok(()))) {
            return;
        }
    };
    let frame = CloseFrame {
        code: close_code::NORMAL,
        reason: reason.into(),
    };
    // It is over in any case.
    let _ = timeout(STALL, socket.send(Message::Close(Some(frame)))).await;
}
