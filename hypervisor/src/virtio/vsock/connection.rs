//! One connection between a port of the guest and a unix socket on the host.
//!
//! ```text
//! host connects:   Requested --RESPONSE--> Open           guest connects: Open at once (RESPONSE is sent)
//!                      |                     |
//!                    RST: gone               +-- both directions ended, or RST, or the unix socket failed: gone
//! ```
//!
//! Data never waits in an unbounded place. Towards the host, the guest may send as much as the credit that it was
//! given ([`BUFFER`]); more is a broken rule. Towards the guest, the unix socket is read only as far as the guest has
//! given credit.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use super::packet::{Header, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::socket;

/// Bytes from the guest that wait for the host's program at most.
pub const BUFFER: u32 = 64 << 10;
/// Data taken from the host's program at a time, in bytes.
const PIECE: usize = 8 << 10;

/// Who the two ends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// The host's port.
    pub host: u32,
    /// The guest's port.
    pub guest: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// We asked the guest; it has not answered.
    Requested,
    /// Data may flow.
    Open,
}

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Lives,
    /// It is over, and the guest knows.
    Over,
    /// It is over, and the guest must be told.
    Reset,
}

/// What is to be said to the guest next.
#[derive(Debug, PartialEq, Eq)]
pub enum Say {
    /// A packet without data.
    Control(Operation, u32),
    /// Data.
    Data(Vec<u8>),
}

/// One connection.
pub struct Connection {
    stream: UnixStream,
    phase: Phase,
    /// Control packets that wait to be sent.
    opening: Option<Operation>,
    credit_update: bool,
    /// Guest to host: what the program has not yet taken.
    outgoing: VecDeque<u8>,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    /// `forwarded` as the guest last heard it.
    announced: Wrapping<u32>,
    /// The guest will not send any more, will not receive any more.
    guest_sent_all: bool,
    guest_deaf: bool,
    /// Host to guest.
    readable: bool,
    sent: Wrapping<u32>,
    guest_buffer: u32,
    guest_forwarded: Wrapping<u32>,
    /// The program will not send any more; whether the guest has been told.
    host_sent_all: bool,
    host_gone: bool,
    told: u32,
}

impl Connection {
    /// A connection that a host program asked for.
    pub fn requested(stream: UnixStream) -> Self {
        Self::new(stream, Phase::Requested, Operation::Request)
    }

    /// A connection that the guest asked for with `request`.
    pub fn accepted(stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(stream, Phase::Open, Operation::Response);
        connection.take_credit(request);
        connection
    }

    fn new(stream: UnixStream, phase: Phase, opening: Operation) -> Self {
        Connection {
            stream,
            phase,
            opening: Some(opening),
            credit_update: false,
            outgoing: VecDeque::new(),
            received: Wrapping(0),
            forwarded: Wrapping(0),
            announced: Wrapping(0),
            guest_sent_all: false,
            guest_deaf: false,
            readable: true,
            sent: Wrapping(0),
            guest_buffer: 0,
            guest_forwarded: Wrapping(0),
            host_sent_all: false,
            host_gone: false,
            told: 0,
        }
    }

    /// The unix socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Credit fields for a packet to the guest, which then knows them.
    pub fn credit(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        self.credit_update = false;
        (BUFFER, self.forwarded.0)
    }

    fn take_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buffer;
        self.guest_forwarded = Wrapping(header.forwarded);
    }

    /// Bytes that the guest still takes. What a lying guest claims cannot make it more than its buffer.
    fn guest_room(&self) -> usize {
        let under_way = (self.sent - self.guest_forwarded).0;
        self.guest_buffer.saturating_sub(under_way) as usize
    }

    /// A packet of the guest, with its data. `own_port` is the host's, for the greeting of a host program.
    pub fn packet(&mut self, header: &Header, data: &[u8], own_port: u32) -> Fate {
        self.take_credit(header);
        match (self.phase, header.operation) {
            (Phase::Requested, Operation::Response) => {
                self.phase = Phase::Open;
                let greeting = format!("OK {own_port}\n");
                match socket::send(&self.stream, greeting.as_bytes()) {
                    Ok(count) if count == greeting.len() => Fate::Lives,
                    _ => Fate::Reset,
                }
            }
            (_, Operation::Reset) => {
                self.send_out();
                Fate::Over
            }
            (Phase::Open, Operation::Data) => self.data(data),
            (Phase::Open, Operation::Shutdown) => {
                self.guest_deaf |= header.flags & SHUTDOWN_RECEIVE != 0;
                self.guest_sent_all |= header.flags & SHUTDOWN_SEND != 0;
                self.send_out()
            }
            (Phase::Open, Operation::CreditUpdate) => Fate::Lives,
            (Phase::Open, Operation::CreditRequest) => {
                self.credit_update = true;
                Fate::Lives
            }
            _ => Fate::Reset,
        }
    }

    fn data(&mut self, data: &[u8]) -> Fate {
        let waiting = (self.received - self.forwarded).0;
        if self.guest_sent_all || data.len() as u64 + u64::from(waiting) > u64::from(BUFFER) {
            return Fate::Reset;
        }
        self.received += data.len() as u32;
        self.outgoing.extend(data);
        self.send_out()
    }

    /// Hands what waits to the host's program, as far as it takes it.
    pub fn send_out(&mut self) -> Fate {
        loop {
            let (piece, _) = self.outgoing.as_slices();
            if piece.is_empty() {
                break;
            }
            match socket::send(&self.stream, piece) {
                Ok(count) => {
                    self.outgoing.drain(..count);
                    self.forwarded += count as u32;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Fate::Reset,
            }
        }
        // Half of the credit used up: time to renew it.
        if (self.forwarded - self.announced).0 > BUFFER / 2 {
            self.credit_update = true;
        }
        if self.guest_sent_all && self.outgoing.is_empty() {
            if self.guest_deaf {
                return Fate::Reset;
            }
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Fate::Lives
    }

    /// The unix socket may have something to read.
    pub fn set_readable(&mut self, gone: bool) {
        self.readable = true;
        self.host_gone |= gone;
    }

    /// Whether [`Connection::next`] may have something to say.
    pub fn wants_to_speak(&self) -> bool {
        self.opening.is_some()
            || self.credit_update
            || self.phase == Phase::Open
                && (self.shutdown_to_tell() != 0 || self.may_read() && self.guest_room() > 0)
    }

    fn may_read(&self) -> bool {
        self.readable && !self.host_sent_all && !self.guest_deaf
    }

    fn shutdown_to_tell(&self) -> u32 {
        let mut flags = 0;
        if self.host_sent_all {
            flags |= SHUTDOWN_SEND;
            if self.host_gone {
                flags |= SHUTDOWN_RECEIVE;
            }
        }
        flags & !self.told
    }

    /// What to say to the guest next, given room for `room` bytes of data. `Err` means that the unix socket failed.
    pub fn next(&mut self, room: usize) -> io::Result<Option<Say>> {
        if let Some(operation) = self.opening.take() {
            return Ok(Some(Say::Control(operation, 0)));
        }
        if self.phase == Phase::Open && self.may_read() {
            let mut piece = vec![0; room.min(PIECE).min(self.guest_room())];
            if !piece.is_empty() {
                match (&self.stream).read(&mut piece) {
                    Ok(0) => self.host_sent_all = true,
                    Ok(count) => {
                        piece.truncate(count);
                        self.sent += count as u32;
                        return Ok(Some(Say::Data(piece)));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.readable = false;
                    }
                    // The next turn tries again.
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if self.phase == Phase::Open {
            let flags = self.shutdown_to_tell();
            if flags != 0 {
                self.told |= flags;
                return Ok(Some(Say::Control(Operation::Shutdown, self.told)));
            }
        }
        if std::mem::take(&mut self.credit_update) {
            return Ok(Some(Say::Control(Operation::CreditUpdate, 0)));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::STREAM;
    use super::*;
    use std::io::Write;

    fn header(operation: Operation, flags: u32) -> Header {
        Header {
            source_cid: 3,
            destination_cid: 2,
            source_port: 1000,
            destination_port: 80,
            length: 0,
            kind: STREAM,
            operation,
            flags,
            buffer: 100,
            forwarded: 0,
        }
    }

    fn open() -> (UnixStream, Connection) {
        let (program, stream) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut connection = Connection::accepted(stream, &header(Operation::Request, 0));
        assert_eq!(
            connection.next(0).unwrap(),
            Some(Say::Control(Operation::Response, 0))
        );
        (program, connection)
    }

    #[test]
    fn the_guest_gets_no_more_than_it_gave_credit_for() {
        let (mut program, mut connection) = open();
        program.write_all(&[7; 150]).unwrap();
        assert_eq!(
            connection.next(4096).unwrap(),
            Some(Say::Data(vec![7; 100]))
        );
        assert!(!connection.wants_to_speak());
        let update = Header {
            forwarded: 60,
            ..header(Operation::CreditUpdate, 0)
        };
        assert_eq!(connection.packet(&update, &[], 80), Fate::Lives);
        assert_eq!(connection.next(4096).unwrap(), Some(Say::Data(vec![7; 50])));
    }

    #[test]
    fn a_guest_that_ignores_its_credit_is_reset() {
        let (_program, mut connection) = open();
        let data = vec![1; 16 << 10];
        let mut fate = Fate::Lives;
        let mut sent = 0;
        // The program does not read: its socket buffer fills up, then ours.
        while fate == Fate::Lives && sent < 8 << 20 {
            fate = connection.packet(&header(Operation::Data, 0), &data, 80);
            sent += data.len();
        }
        assert_eq!(fate, Fate::Reset);
        assert!(connection.outgoing.len() <= BUFFER as usize);
    }

    #[test]
    fn credit_is_renewed_when_half_is_used() {
        let (mut program, mut connection) = open();
        let data = vec![1; BUFFER as usize / 2 + 1];
        connection.packet(&header(Operation::Data, 0), &data, 80);
        let mut bytes = vec![0; data.len()];
        program.read_exact(&mut bytes).unwrap();
        assert_eq!(
            connection.next(0).unwrap(),
            Some(Say::Control(Operation::CreditUpdate, 0))
        );
        assert_eq!(connection.credit(), (BUFFER, BUFFER / 2 + 1));
        assert_eq!(connection.next(0).unwrap(), None);
    }

    #[test]
    fn each_direction_ends_by_itself() {
        let (mut program, mut connection) = open();
        program.shutdown(Shutdown::Write).unwrap();
        assert_eq!(
            connection.next(4096).unwrap(),
            Some(Say::Control(Operation::Shutdown, SHUTDOWN_SEND))
        );
        connection.packet(&header(Operation::Data, 0), b"still here", 80);
        let fate = connection.packet(&header(Operation::Shutdown, SHUTDOWN_SEND), &[], 80);
        assert_eq!(fate, Fate::Lives);
        let mut text = String::new();
        program.read_to_string(&mut text).unwrap();
        assert_eq!(text, "still here");
        let all = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;
        let fate = connection.packet(&header(Operation::Shutdown, all), &[], 80);
        assert_eq!(
            fate,
            Fate::Reset,
            "the answer to a full shutdown is a reset"
        );
    }

    #[test]
    fn a_host_program_is_greeted_when_the_guest_answers() {
        let (mut program, stream) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut connection = Connection::requested(stream);
        assert_eq!(
            connection.next(0).unwrap(),
            Some(Say::Control(Operation::Request, 0))
        );
        assert_eq!(
            connection.packet(&header(Operation::Data, 0), b"early", 9),
            Fate::Reset
        );
        connection.packet(&header(Operation::Response, 0), &[], 1_073_741_824);
        let mut text = [0; 14];
        program.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"OK 1073741824\n");
    }
}
