//! `skerry console`: the console of an app over a WebSocket. Binary messages are console bytes, both ways.
//!
//! On a terminal every key goes through, and Ctrl-] leaves. Where standard input is no terminal, what comes on it is
//! sent, and once it has ended the command leaves when the console has been silent for a while: so scripts can use it.

use std::future::pending;
use std::io::{IsTerminal as _, Write as _, stdin, stdout};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, stdin as async_stdin};
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::tungstenite::Message;

use super::logs::target;
use crate::cli::Console;
use crate::failure::Failure;
use crate::terminal::{self, note};

/// Ctrl-], as telnet and virsh have it.
const LEAVE: u8 = 0x1d;

pub fn run(args: Console, context: Option<&str>) -> Result<(), Failure> {
    let (kind, name) = target(&args.what, &["App"])?;
    let client = super::client(context)?;
    let interactive = stdin().is_terminal();
    let what = format!("take up the console of app {name}");
    let finished = crate::runtime(async {
        let mut socket = client
            .web_socket(&format!("{}/console", kind.path(&name)), &what)
            .await?;
        let raw = interactive.then(terminal::raw).transpose()?;
        if interactive {
            note(format!("console of {name}; Ctrl-] leaves\r"));
        }
        let mut input = async_stdin();
        let mut buffer = [0; 4096];
        let mut input_open = true;
        let mut leave_at: Option<Instant> = None;
        let end = loop {
            tokio::select! {
                read = input.read(&mut buffer), if input_open => {
                    let count = read.map_err(|error| Failure::error(format!("cannot read standard input: {error}")))?;
                    let typed = buffer.get(..count).unwrap_or_default();
                    let (send, leave) = if interactive { split(typed) } else { (typed, false) };
                    if !send.is_empty() {
                        let message = Message::binary(send.to_vec());
                        socket.send(message).await.map_err(|error| Failure::error(format!("{what}: {error}")))?;
                    }
                    if leave {
                        break "left";
                    }
                    if count == 0 {
                        input_open = false;
                        // Bounded where the option is read, so that there is such an instant.
                        leave_at = Some(Instant::now() + args.idle);
                    }
                }
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => {
                        print(&bytes)?;
                        leave_at = leave_at.map(|_| Instant::now() + args.idle);
                    }
                    Some(Ok(Message::Close(frame))) => {
                        let reason = frame.map(|frame| frame.reason.to_string()).unwrap_or_default();
                        if !reason.is_empty() {
                            drop(raw);
                            return Err(Failure::error(format!("{what}: {reason}")));
                        }
                        break "closed by the other end";
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        drop(raw);
                        return Err(Failure::error(format!("{what}: the connection broke: {error}")));
                    }
                    None => break "closed by the other end",
                },
                () = until(leave_at) => break "silent",
            }
        };
        let _ = socket.close(None).await;
        drop(raw);
        if interactive {
            note(format!("\nconsole of {name}: {end}"));
        }
        Ok(())
    });
    // A read of standard input may still be under way on a helper thread, which keeps the process alive until a key is
    // pressed. Everything is written by now, so the process ends here.
    match finished {
        Ok(()) => std::process::exit(0),
        Err(failure) => Err(failure),
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(Failure::output)
}

/// What of the typed bytes is to be sent, and whether the key to leave came.
fn split(typed: &[u8]) -> (&[u8], bool) {
    match typed.iter().position(|byte| *byte == LEAVE) {
        Some(at) => (typed.get(..at).unwrap_or_default(), true),
        None => (typed, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_to_leave_is_not_sent() {
        assert_eq!(split(b"ls\r"), (&b"ls\r"[..], false));
        assert_eq!(split(b"ls\x1dmore"), (&b"ls"[..], true));
        assert_eq!(split(b""), (&b""[..], false));
    }
}
