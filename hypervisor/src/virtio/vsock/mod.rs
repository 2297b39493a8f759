//! Host-guest sockets (virtio 1.2, 5.10), led to unix sockets as Firecracker does it.
//!
//! A host program connects to the unix socket and writes `CONNECT <port>\n`; it is answered `OK <host port>\n` and is
//! then connected to the guest's port. A connection of the guest to host port P arrives at `<socket>_P`.
//!
//! `connection` is one connection's state; this file sorts packets to connections and lets those that have something
//! to say speak in turn.

mod connection;
pub mod packet;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::queue::Broken;
use super::{Device, Io, Kind, SourceRegistrar, TURN};
use crate::event_loop::{EDGE, Events, GONE, READABLE, WRITABLE};
use crate::socket::{self, SocketError};
use connection::{BUFFER, Connection, Fate, Ports, Say};
use packet::{HEADER_SIZE, HOST_CID, Header, Operation, STREAM};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Connections and host programs on their way to one, together.
const MAX_CONNECTIONS: usize = 256;
/// Resets for packets that belong to no connection, waiting for room. More are not sent.
const MAX_RESETS: usize = 64;
/// Ports for host programs begin here, above what guests' programs listen on.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Longest `CONNECT` line in bytes.
const MAX_LINE: usize = 32;

const LISTENER: u32 = 0;
const FIRST_STREAM: u32 = 1;
/// Tokens must stay below 2^31.
const LAST_STREAM: u32 = u32::MAX >> 2;

/// A host program that has not yet said where it wants to go.
struct Greeting {
    stream: UnixStream,
    line: Vec<u8>,
}

/// What a token belongs to.
#[derive(Clone, Copy)]
enum Owner {
    Greeting,
    Connection(Ports),
}

/// A socket device.
pub struct Vsock {
    cid: u64,
    config: [u8; 8],
    path: PathBuf,
    listener: UnixListener,
    registrar: Option<SourceRegistrar>,
    owners: BTreeMap<u32, Owner>,
    greetings: BTreeMap<u32, Greeting>,
    connections: BTreeMap<Ports, (u32, Connection)>,
    /// Whose turn it is to speak.
    speakers: VecDeque<Ports>,
    resets: VecDeque<Ports>,
    next_token: u32,
    next_port: u32,
}

impl Vsock {
    /// A device for a guest with context id `cid`; makes the unix socket.
    pub fn new(cid: u32, path: &Path) -> Result<Self, SocketError> {
        Ok(Vsock {
            cid: cid.into(),
            config: u64::from(cid).to_le_bytes(),
            path: path.to_owned(),
            listener: socket::listen(path)?,
            registrar: None,
            owners: BTreeMap::new(),
            greetings: BTreeMap::new(),
            connections: BTreeMap::new(),
            speakers: VecDeque::new(),
            resets: VecDeque::new(),
            next_token: FIRST_STREAM,
            next_port: FIRST_HOST_PORT,
        })
    }

    /// Waits for events on a stream from now on.
    fn register(&mut self, stream: &UnixStream, owner: Owner) -> Option<u32> {
        if self.owners.len() >= MAX_CONNECTIONS {
            return None;
        }
        let mut token = self.next_token;
        while self.owners.contains_key(&token) {
            token = following(token);
        }
        self.next_token = following(token);
        stream.set_nonblocking(true).ok()?;
        self.registrar
            .as_ref()?
            .add(stream, token, READABLE | WRITABLE | EDGE)
            .ok()?;
        self.owners.insert(token, owner);
        Some(token)
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    // One too many finds its connection closed.
                    if let Some(token) = self.register(&stream, Owner::Greeting) {
                        let line = Vec::new();
                        self.greetings.insert(token, Greeting { stream, line });
                        self.greet(token);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Reads on in a host program's first line, and makes a connection of it when it is complete.
    fn greet(&mut self, token: u32) {
        let Some(greeting) = self.greetings.get_mut(&token) else {
            return;
        };
        let line = read_line(&greeting.stream, &mut greeting.line);
        if matches!(line, Ok(None)) {
            return;
        }
        let Some(greeting) = self.greetings.remove(&token) else {
            return;
        };
        let port = line.ok().flatten().and_then(|line| parse_connect(&line));
        let Some(guest) = port else {
            self.owners.remove(&token);
            return;
        };
        let host = self.free_port(guest);
        let ports = Ports { host, guest };
        self.owners.insert(token, Owner::Connection(ports));
        self.connections
            .insert(ports, (token, Connection::requested(greeting.stream)));
        self.speakers.push_back(ports);
    }

    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            if !self.connections.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    fn forget(&mut self, ports: Ports) {
        if let Some((token, connection)) = self.connections.remove(&ports) {
            if let Some(registrar) = &self.registrar {
                registrar.remove(connection.stream());
            }
            self.owners.remove(&token);
        }
    }

    fn meet(&mut self, ports: Ports, fate: Fate) {
        match fate {
            Fate::Lives => self.queue_speaker(ports),
            Fate::Over => self.forget(ports),
            Fate::Reset => {
                self.forget(ports);
                self.reset_guest(ports);
            }
        }
    }

    fn queue_speaker(&mut self, ports: Ports) {
        if let Some((_, connection)) = self.connections.get(&ports)
            && connection.wants_to_speak()
            && !self.speakers.contains(&ports)
        {
            self.speakers.push_back(ports);
        }
    }

    fn reset_guest(&mut self, ports: Ports) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(ports);
        }
    }

    /// Handles one packet of the guest.
    fn packet(&mut self, header: &Header, data: &[u8]) {
        let ports = Ports {
            host: header.destination_port,
            guest: header.source_port,
        };
        if header.source_cid != self.cid || header.destination_cid != HOST_CID {
            return;
        }
        if header.kind != STREAM {
            return self.reset_guest(ports);
        }
        match (self.connections.get_mut(&ports), header.operation) {
            (None, Operation::Request) => self.request(header, ports),
            (Some((_, connection)), _) => {
                let fate = connection.packet(header, data, ports.host);
                self.meet(ports, fate);
            }
            (None, Operation::Reset) => {}
            (None, _) => self.reset_guest(ports),
        }
    }

    /// The guest wants to reach a host program.
    fn request(&mut self, header: &Header, ports: Ports) {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", ports.host));
        let Ok(stream) = socket::connect(Path::new(&path)) else {
            return self.reset_guest(ports);
        };
        match self.register(&stream, Owner::Connection(ports)) {
            Some(token) => {
                let connection = Connection::accepted(stream, header);
                self.connections.insert(ports, (token, connection));
                self.queue_speaker(ports);
            }
            None => self.reset_guest(ports),
        }
    }

    fn transmit(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let mut left = TURN;
        while let Some(mut chain) = io.pop(TRANSMIT)? {
            if let Some(bytes) = chain.read_array::<HEADER_SIZE>() {
                let header = Header::parse(&bytes);
                let length = header.length as usize;
                // More than the credit allows would be refused anyway; so no more is ever copied.
                if length <= chain.readable.len() && length <= BUFFER as usize {
                    let mut data = vec![0; length];
                    chain.readable.copy_to(&mut data);
                    self.packet(&header, &data);
                } else {
                    let ports = Ports {
                        host: header.destination_port,
                        guest: header.source_port,
                    };
                    self.meet(ports, Fate::Reset);
                }
            }
            io.complete(TRANSMIT, chain)?;
            left -= 1;
            if left == 0 {
                io.again(TRANSMIT);
                break;
            }
        }
        io.signal(TRANSMIT)?;
        self.receive(io)
    }

    /// Lets whoever has something to say speak to the guest, as long as it has room.
    fn receive(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let mut left = TURN;
        while !self.resets.is_empty() || !self.speakers.is_empty() {
            let Some(mut chain) = io.pop(RECEIVE)? else {
                break;
            };
            match self.next_packet(chain.writable.len().saturating_sub(HEADER_SIZE)) {
                Some((header, data)) => {
                    chain.write(&header.encode());
                    chain.write(&data);
                    io.complete(RECEIVE, chain)?;
                }
                // Nobody had anything to say after all.
                None => {
                    io.unpop(RECEIVE);
                    break;
                }
            }
            left -= 1;
            if left == 0 {
                io.again(RECEIVE);
                break;
            }
        }
        io.signal(RECEIVE)
    }

    /// The next packet for the guest, with at most `room` bytes of data.
    fn next_packet(&mut self, room: usize) -> Option<(Header, Vec<u8>)> {
        let header = |ports: Ports, operation, flags| Header {
            source_cid: HOST_CID,
            destination_cid: self.cid,
            source_port: ports.host,
            destination_port: ports.guest,
            length: 0,
            kind: STREAM,
            operation,
            flags,
            buffer: 0,
            forwarded: 0,
        };
        if let Some(ports) = self.resets.pop_front() {
            return Some((header(ports, Operation::Reset, 0), Vec::new()));
        }
        while let Some(ports) = self.speakers.pop_front() {
            let Some((_, connection)) = self.connections.get_mut(&ports) else {
                continue;
            };
            let (mut header, data) = match connection.next(room) {
                Ok(Some(Say::Control(operation, flags))) => {
                    (header(ports, operation, flags), Vec::new())
                }
                Ok(Some(Say::Data(data))) => (header(ports, Operation::Data, 0), data),
                Ok(None) => continue,
                Err(_) => {
                    let reset = header(ports, Operation::Reset, 0);
                    self.forget(ports);
                    return Some((reset, Vec::new()));
                }
            };
            header.length = data.len() as u32;
            (header.buffer, header.forwarded) = connection.credit();
            self.queue_speaker(ports);
            return Some((header, data));
        }
        None
    }
}

impl Device for Vsock {
    fn kind(&self) -> Kind {
        Kind::Vsock
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        // The third is for events (a moved guest), of which there are none.
        &[128, 128, 16]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn attach(&mut self, registrar: &SourceRegistrar) -> io::Result<()> {
        self.registrar = Some(registrar.clone());
        registrar.add(&self.listener, LISTENER, READABLE | EDGE)
    }

    fn activate(&mut self, _features: u64, io: &mut Io<'_>) -> Result<(), Broken> {
        self.accept();
        self.receive(io)
    }

    fn queue_ready(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        match queue {
            RECEIVE => self.receive(io),
            TRANSMIT => self.transmit(io),
            _ => Ok(()),
        }
    }

    fn source_ready(&mut self, token: u32, events: Events, io: &mut Io<'_>) -> Result<(), Broken> {
        if token == LISTENER {
            self.accept();
        } else {
            match self.owners.get(&token).copied() {
                Some(Owner::Greeting) => self.greet(token),
                Some(Owner::Connection(ports)) => {
                    if let Some((_, connection)) = self.connections.get_mut(&ports) {
                        if events & (READABLE | GONE) != 0 {
                            connection.set_readable(events & GONE != 0);
                        }
                        let fate = connection.send_out();
                        self.meet(ports, fate);
                    }
                }
                None => {}
            }
        }
        self.receive(io)
    }

    fn reset(&mut self) {
        self.owners.clear();
        self.greetings.clear();
        self.connections.clear();
        self.speakers.clear();
        self.resets.clear();
    }
}

fn following(token: u32) -> u32 {
    if token >= LAST_STREAM {
        FIRST_STREAM
    } else {
        token + 1
    }
}

/// Reads byte by byte, so that what follows the line stays in the socket. `None`: not complete yet.
fn read_line(mut stream: &UnixStream, line: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    loop {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if byte == *b"\n" => return Ok(Some(std::mem::take(line))),
            Ok(_) if line.len() >= MAX_LINE => return Err(io::ErrorKind::InvalidData.into()),
            Ok(_) => line.extend_from_slice(&byte),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The port in `CONNECT <port>`.
pub fn parse_connect(line: &[u8]) -> Option<u32> {
    std::str::from_utf8(line)
        .ok()?
        .strip_prefix("CONNECT ")?
        .trim_end_matches('\r')
        .parse()
        .ok()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
