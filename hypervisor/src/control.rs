//! The control socket: one JSON request a line, one JSON answer a line (see `hypervisor_api::control`).

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use hypervisor_api::control::{Answer, Request, State};
use hypervisor_api::report::LastWords;

use crate::event_loop::{EDGE, Events, READABLE, Registrar, Subscriber};
use crate::lifecycle::Lifecycle;
use crate::socket::{self, SocketError};
use crate::virtio::Counters;

/// Longest request line in bytes.
const MAX_LINE: usize = 4096;
/// Clients at a time.
const MAX_CLIENTS: usize = 8;

const LISTENER: u32 = 0;

struct Client {
    stream: UnixStream,
    line: Vec<u8>,
}

/// What the control socket can reach of the machine.
pub struct Handles {
    /// Its life.
    pub lifecycle: Arc<Lifecycle>,
    /// Presses the power button.
    pub power_button: Box<dyn Fn() + Send>,
    /// Counters of its disks, in order.
    pub disks: Vec<Arc<Counters>>,
    /// Counters of its network cards, in order.
    pub nets: Vec<Arc<Counters>>,
}

/// The control socket's server, on the main event loop.
pub struct Server {
    listener: UnixListener,
    handles: Handles,
    clients: BTreeMap<u32, Client>,
    next: u32,
    registrar: Option<Registrar>,
}

impl Server {
    /// Makes the socket.
    pub fn new(path: &Path, handles: Handles) -> Result<Self, SocketError> {
        Ok(Server {
            listener: socket::listen(path)?,
            handles,
            clients: BTreeMap::new(),
            next: LISTENER + 1,
            registrar: None,
        })
    }

    fn accept(&mut self) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let Some(registrar) = &self.registrar else {
                return;
            };
            let token = self.next;
            if self.clients.len() >= MAX_CLIENTS
                || stream.set_nonblocking(true).is_err()
                || registrar.add(&stream, token, READABLE | EDGE).is_err()
            {
                continue;
            }
            self.next = token.wrapping_add(1).max(LISTENER + 1);
            let line = Vec::new();
            self.clients.insert(token, Client { stream, line });
            self.serve(token);
        }
    }

    fn serve(&mut self, token: u32) {
        while let Some(client) = self.clients.get_mut(&token) {
            let mut bytes = [0; 512];
            let alive = match client.stream.read(&mut bytes) {
                Ok(0) => false,
                Ok(count) => {
                    let bytes = bytes.get(..count).unwrap_or_default();
                    take_lines(client, bytes, |line| self.handles.answer(line)).is_ok()
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => error.kind() == io::ErrorKind::Interrupted,
            };
            if !alive {
                self.clients.remove(&token);
            }
        }
    }
}

/// Answers each line that `bytes` completes. An error means that the client is to go.
fn take_lines(
    client: &mut Client,
    bytes: &[u8],
    answer: impl Fn(&[u8]) -> Answer,
) -> io::Result<()> {
    for byte in bytes {
        if *byte != b'\n' {
            if client.line.len() >= MAX_LINE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            client.line.push(*byte);
            continue;
        }
        let mut text = serde_json::to_vec(&answer(&std::mem::take(&mut client.line)))?;
        text.push(b'\n');
        // An answer fits into any socket buffer, unless the client does not read its answers.
        if socket::send(&client.stream, &text)? != text.len() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
    }
    Ok(())
}

impl Handles {
    /// Does what a request line asks for and answers it.
    pub fn answer(&self, line: &[u8]) -> Answer {
        let request: Request = match serde_json::from_slice(line) {
            Ok(request) => request,
            Err(error) => {
                return Answer::Refused {
                    reason: format!("the request cannot be read: {error}"),
                };
            }
        };
        let done = |result: Result<(), &str>| match result {
            Ok(()) => Answer::Done,
            Err(reason) => Answer::Refused {
                reason: reason.to_owned(),
            },
        };
        match request {
            Request::State => {
                let (phase, boot_micros) = self.lifecycle.phase();
                Answer::State(State {
                    phase,
                    boot_micros,
                    disks: self.disks.iter().map(|disk| disk.read()).collect(),
                    nets: self.nets.iter().map(|net| net.read()).collect(),
                })
            }
            Request::Pause => done(self.lifecycle.pause()),
            Request::Resume => done(self.lifecycle.resume()),
            Request::Shutdown => {
                (self.power_button)();
                Answer::Done
            }
            Request::Kill => {
                self.lifecycle.end(LastWords::Killed);
                Answer::Done
            }
        }
    }
}

impl Subscriber for Server {
    fn attach(&mut self, registrar: Registrar) -> io::Result<()> {
        registrar.add(&self.listener, LISTENER, READABLE | EDGE)?;
        self.registrar = Some(registrar);
        Ok(())
    }

    fn ready(&mut self, token: u32, _events: Events) {
        match token {
            LISTENER => self.accept(),
            token => self.serve(token),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_loop::EventLoop;
    use hypervisor_api::control::{ControlError, Phase, ask};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    #[test]
    fn requests_are_answered_through_the_published_client() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let life = Arc::new(Lifecycle::new(Instant::now()).unwrap());
        let presses = Arc::new(AtomicU32::new(0));
        let pressed = presses.clone();
        let disk = Arc::new(Counters::default());
        disk.add_rx(512);
        let handles = Handles {
            lifecycle: life.clone(),
            power_button: Box::new(move || {
                pressed.fetch_add(1, Ordering::Relaxed);
            }),
            disks: vec![disk],
            nets: vec![],
        };
        let mut events = EventLoop::new().unwrap();
        let server = Server::new(&path, handles).unwrap();
        events.add(Arc::new(Mutex::new(server))).unwrap();
        life.run();
        let asked = std::thread::spawn(move || {
            [
                Request::State,
                Request::Shutdown,
                Request::Resume,
                Request::Kill,
            ]
            .map(|request| ask(&path, &request))
        });
        while life.last_words().is_none() {
            events.turn().unwrap();
        }
        let [state, shutdown, resume, kill] = asked.join().unwrap();
        let Ok(Answer::State(state)) = state else {
            panic!("{state:?}");
        };
        assert_eq!(
            (state.phase, state.disks[0].rx_bytes),
            (Phase::Running, 512)
        );
        assert_eq!(shutdown.unwrap(), Answer::Done);
        assert_eq!(presses.load(Ordering::Relaxed), 1);
        assert!(
            matches!(resume, Err(ControlError::Refused { reason, .. }) if reason.contains("not paused"))
        );
        assert_eq!(kill.unwrap(), Answer::Done);
        assert_eq!(life.last_words(), Some(LastWords::Killed));
    }
}
