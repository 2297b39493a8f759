//! The host's end of a serial line or virtio console: one stream of output for many readers, and what they type.
//!
//! ```text
//! guest --output--> ring (64 KiB) --+--> stdout             each with a position of its own;
//!                                   +--> client, client...  who falls further behind than the ring misses the middle
//! clients --typed--> input (4 KiB) --event--> UART or virtio console --> guest
//! ```
//!
//! The guest never waits for a reader, and a client that types faster than the guest reads waits in its socket.

mod ring;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use hypervisor_api::config::Console as Config;
use vmm_sys_util::eventfd::EventFd;

use crate::event_loop::{EDGE, Events, GONE, READABLE, Registrar, Subscriber, WRITABLE};
use crate::socket::{self, SocketError};
use ring::Ring;

/// Output kept for those who connect later, in bytes.
pub const REPLAY: usize = 64 << 10;
/// Typed bytes that wait for the guest at most.
const INPUT_LIMIT: usize = 4096;
/// People at one console at most.
const MAX_CLIENTS: usize = 16;
/// Largest piece that a pipe which polls as writable takes without blocking (PIPE_BUF).
const STDOUT_PIECE: usize = 4096;

const LISTENER: u32 = 0;
const WAKE: u32 = 1;
const STDOUT: u32 = 2;
const FIRST_CLIENT: u32 = 3;

struct Client {
    stream: UnixStream,
    sent_until: u64,
    /// It has typed something that did not fit any more.
    waits: bool,
}

/// The host's end of one console.
pub struct Backend {
    ring: Ring,
    input: VecDeque<u8>,
    /// Signalled when there is new input.
    input_event: EventFd,
    /// Signalled from other threads when there is output, or room for input.
    wake: EventFd,
    woken: bool,
    stdout: Option<Stdout>,
    listener: Option<UnixListener>,
    clients: BTreeMap<u32, Client>,
    next_client: u32,
    registrar: Option<Registrar>,
}

impl Backend {
    /// Makes the socket, if there is to be one.
    pub fn new(config: &Config) -> Result<Self, SocketError> {
        let listener = config.socket.as_deref().map(socket::listen).transpose()?;
        let event =
            || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(SocketError::resources);
        Ok(Backend {
            ring: Ring::new(REPLAY),
            input: VecDeque::new(),
            input_event: event()?,
            wake: event()?,
            woken: false,
            stdout: config
                .stdout
                .then(Stdout::open)
                .transpose()
                .map_err(SocketError::resources)?,
            listener,
            clients: BTreeMap::new(),
            next_client: FIRST_CLIENT,
            registrar: None,
        })
    }

    /// The descriptor that becomes readable when something was typed. Edge-triggered use only: nobody reads it.
    pub fn input_event(&self) -> io::Result<EventFd> {
        self.input_event.try_clone()
    }

    /// Takes the guest's output. Never blocks.
    pub fn output(&mut self, bytes: &[u8]) {
        self.ring.push(bytes);
        self.wake();
    }

    /// Moves typed bytes into `buffer` and returns how many.
    pub fn take_input(&mut self, buffer: &mut [u8]) -> usize {
        let count = self.input.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(self.input.drain(..count)) {
            *to = from;
        }
        if count > 0 && self.clients.values().any(|client| client.waits) {
            self.wake();
        }
        count
    }

    /// Whether something typed waits for the guest.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// Sends what can be sent without waiting; for the end of the machine.
    pub fn finish(&mut self) {
        self.send_all();
    }

    fn wake(&mut self) {
        if !self.woken {
            self.woken = true;
            let _ = self.wake.write(1);
        }
    }

    fn send_all(&mut self) {
        if let Some(stdout) = &mut self.stdout {
            stdout.send(&self.ring);
        }
        let ring = &self.ring;
        self.clients
            .retain(|_, client| send_client(ring, client).is_ok());
    }

    fn accept(&mut self) {
        while let Some(listener) = &self.listener {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            // One too many is told so by a closed connection.
            if self.clients.len() >= MAX_CLIENTS || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let token = self.next_client;
            let Some(registrar) = &self.registrar else {
                return;
            };
            if registrar
                .add(&stream, token, READABLE | WRITABLE | EDGE)
                .is_err()
            {
                continue;
            }
            self.next_client = self.next_client.wrapping_add(1).max(FIRST_CLIENT);
            let client = Client {
                stream,
                sent_until: self.ring.oldest(),
                waits: false,
            };
            self.clients.insert(token, client);
            self.client_ready(token, READABLE);
        }
    }

    fn client_ready(&mut self, token: u32, events: Events) {
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        let mut alive = send_client(&self.ring, client).is_ok();
        if alive && events & (READABLE | GONE) != 0 {
            alive = read_client(client, &mut self.input, &self.input_event).is_ok();
        }
        if !alive {
            self.clients.remove(&token);
        }
    }
}

/// Sends a client what it has not seen. An error means that it is gone.
fn send_client(ring: &Ring, client: &mut Client) -> io::Result<()> {
    loop {
        let (from, piece) = ring.since(client.sent_until);
        client.sent_until = from;
        if piece.is_empty() {
            return Ok(());
        }
        match socket::send(&client.stream, piece) {
            Ok(count) => client.sent_until += count as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Reads what a client typed, as far as there is room. An error means that it is gone.
fn read_client(client: &mut Client, input: &mut VecDeque<u8>, event: &EventFd) -> io::Result<()> {
    let mut buffer = [0; 512];
    client.waits = false;
    loop {
        let room = (INPUT_LIMIT - input.len().min(INPUT_LIMIT)).min(buffer.len());
        if room == 0 {
            client.waits = true;
            return Ok(());
        }
        let place = buffer.get_mut(..room).unwrap_or_default();
        match (&client.stream).read(place) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                input.extend(place.iter().take(count));
                let _ = event.write(1);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Standard output, through a descriptor of its own: two consoles may write there, and each waits for itself.
struct Stdout {
    file: File,
    sent_until: u64,
}

impl Stdout {
    fn open() -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Stdout {
            file,
            sent_until: 0,
        })
    }

    /// Writes as long as that does not block. What does not work is dropped: nobody listens.
    fn send(&mut self, ring: &Ring) {
        loop {
            let (from, piece) = ring.since(self.sent_until);
            self.sent_until = from;
            let piece = piece
                .get(..piece.len().min(STDOUT_PIECE))
                .unwrap_or_default();
            if piece.is_empty() || !self.takes_more() {
                return;
            }
            match self.file.write(piece) {
                Ok(count) => self.sent_until += count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.sent_until += piece.len() as u64,
            }
        }
    }

    fn takes_more(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: one pollfd is passed, and one is announced. It does not wait.
        let count = unsafe { libc::poll(&raw mut poll, 1, 0) };
        count == 1
    }
}

impl Subscriber for Backend {
    fn attach(&mut self, registrar: Registrar) -> io::Result<()> {
        registrar.add(&self.wake, WAKE, READABLE | EDGE)?;
        if let Some(stdout) = &self.stdout {
            match registrar.add(&stdout.file, STDOUT, WRITABLE | EDGE) {
                // A regular file cannot be waited for, and need not be.
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
                other => other?,
            }
        }
        if let Some(listener) = &self.listener {
            registrar.add(listener, LISTENER, READABLE | EDGE)?;
        }
        self.registrar = Some(registrar);
        Ok(())
    }

    fn ready(&mut self, token: u32, events: Events) {
        match token {
            LISTENER => self.accept(),
            WAKE => {
                self.woken = false;
                let waiting: Vec<u32> = self
                    .clients
                    .iter()
                    .filter(|(_, client)| client.waits)
                    .map(|(token, _)| *token)
                    .collect();
                for token in waiting {
                    self.client_ready(token, READABLE);
                }
                self.send_all();
            }
            STDOUT => self.send_all(),
            token => self.client_ready(token, events),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_loop::EventLoop;
    use crate::sync::lock;
    use std::sync::{Arc, Mutex};

    fn setup() -> (tempfile::TempDir, Arc<Mutex<Backend>>, EventLoop) {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            socket: Some(folder.path().join("console")),
            stdout: false,
        };
        let backend = Arc::new(Mutex::new(Backend::new(&config).unwrap()));
        let mut events = EventLoop::new().unwrap();
        events.add(backend.clone()).unwrap();
        (folder, backend, events)
    }

    fn connect(folder: &tempfile::TempDir) -> UnixStream {
        let stream = UnixStream::connect(folder.path().join("console")).unwrap();
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        stream
    }

    #[test]
    fn late_comers_get_the_replay_and_everyone_gets_what_is_new() {
        let (folder, backend, mut events) = setup();
        lock(&backend).output(b"early ");
        events.turn().unwrap();
        let mut clients = [connect(&folder), connect(&folder)];
        events.turn().unwrap();
        lock(&backend).output(b"late");
        events.turn().unwrap();
        for client in &mut clients {
            let mut bytes = [0; 10];
            client.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"early late");
        }
    }

    #[test]
    fn typed_bytes_wait_for_the_guest_and_none_is_lost() {
        let (folder, backend, mut events) = setup();
        let mut client = connect(&folder);
        let typed: Vec<u8> = (0..3 * INPUT_LIMIT).map(|index| index as u8).collect();
        client.write_all(&typed).unwrap();
        let mut seen = Vec::new();
        while seen.len() < typed.len() {
            events.turn().unwrap();
            let mut backend = lock(&backend);
            assert!(backend.input.len() <= INPUT_LIMIT);
            let mut piece = [0; 100];
            loop {
                let count = backend.take_input(&mut piece);
                if count == 0 {
                    break;
                }
                seen.extend_from_slice(&piece[..count]);
            }
        }
        assert_eq!(seen, typed);
    }

    #[test]
    fn a_client_that_does_not_read_misses_the_middle_and_stops_nobody() {
        let (folder, backend, mut events) = setup();
        let mut client = connect(&folder);
        events.turn().unwrap();
        for _ in 0..64 {
            lock(&backend).output(&[b'x'; 16 << 10]);
            events.turn().unwrap();
        }
        lock(&backend).output(b"END");
        events.turn().unwrap();
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        while !text.ends_with(b"END") {
            let count = client.read(&mut buffer).unwrap();
            text.extend_from_slice(&buffer[..count]);
            lock(&backend).finish();
        }
        assert!(text.len() < 1 << 20);
    }
}
