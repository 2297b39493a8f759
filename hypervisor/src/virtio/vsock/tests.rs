use std::io::{Read, Write};

use super::*;
use crate::event_loop::{EventLoop, Registrar, Subscriber};
use crate::sync::lock;
use crate::virtio::fake_driver::{Part, Rig};
use std::sync::{Arc, Mutex};

/// Only there to get hold of a registrar.
#[derive(Default)]
struct Catch(Option<Registrar>);

impl Subscriber for Catch {
    fn attach(&mut self, registrar: Registrar) -> io::Result<()> {
        self.0 = Some(registrar);
        Ok(())
    }
    fn ready(&mut self, _token: u32, _events: Events) {}
}

struct World {
    folder: tempfile::TempDir,
    rig: Rig<Vsock>,
    _events: EventLoop,
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let mut events = EventLoop::new().unwrap();
    let catch = Arc::new(Mutex::new(Catch::default()));
    events.add(catch.clone()).unwrap();
    let registrar = lock(&catch).0.clone().unwrap();
    let mut vsock = Vsock::new(3, &folder.path().join("vsock")).unwrap();
    vsock.attach(&SourceRegistrar(registrar)).unwrap();
    World {
        rig: Rig::new(vsock),
        folder,
        _events: events,
    }
}

impl World {
    fn say(&mut self, operation: Operation, ports: Ports, data: &[u8]) {
        let header = Header {
            source_cid: 3,
            destination_cid: HOST_CID,
            source_port: ports.guest,
            destination_port: ports.host,
            length: data.len() as u32,
            kind: STREAM,
            operation,
            flags: 0,
            buffer: 1 << 16,
            forwarded: 0,
        };
        self.rig
            .driver
            .put(TRANSMIT, &[Part::Read(&header.encode()), Part::Read(data)]);
        self.rig.ring(TRANSMIT).unwrap();
        while self.rig.driver.take_used(TRANSMIT).is_some() {}
    }

    /// What the device says next, if anything.
    fn hear(&mut self) -> Option<(Header, Vec<u8>)> {
        self.rig.driver.put(RECEIVE, &[Part::Write(4096)]);
        self.rig.ring(RECEIVE).unwrap();
        let bytes = self.rig.driver.take_used(RECEIVE)?;
        let header: &[u8; HEADER_SIZE] = bytes[..HEADER_SIZE].try_into().unwrap();
        Some((Header::parse(header), bytes[HEADER_SIZE..].to_vec()))
    }

    fn stir(&mut self) {
        let tokens: Vec<u32> = self.rig.device.owners.keys().copied().collect();
        for token in [LISTENER].into_iter().chain(tokens) {
            self.rig
                .with(|device, io| device.source_ready(token, READABLE, io))
                .unwrap();
        }
    }
}

const PORTS: Ports = Ports {
    host: 7,
    guest: 1000,
};

#[test]
fn the_guest_reaches_a_host_program() {
    let mut world = world();
    let listener = UnixListener::bind(world.folder.path().join("vsock_7")).unwrap();
    world.say(Operation::Request, PORTS, b"");
    let (header, _) = world.hear().unwrap();
    assert_eq!(header.operation, Operation::Response);
    assert_eq!((header.source_port, header.destination_port), (7, 1000));
    let (mut program, _) = listener.accept().unwrap();
    world.say(Operation::Data, PORTS, b"hello");
    let mut bytes = [0; 5];
    program.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    program.write_all(b"hi").unwrap();
    world.stir();
    let (header, data) = world.hear().unwrap();
    assert_eq!((header.operation, data), (Operation::Data, b"hi".to_vec()));
    assert_eq!(header.forwarded, 5);
}

#[test]
fn a_host_program_reaches_the_guest() {
    let mut world = world();
    let mut program = UnixStream::connect(world.folder.path().join("vsock")).unwrap();
    program.write_all(b"CONNECT 52\nand data").unwrap();
    world.stir();
    let (header, _) = world.hear().unwrap();
    assert_eq!(
        (header.operation, header.destination_port),
        (Operation::Request, 52)
    );
    let ports = Ports {
        host: header.source_port,
        guest: 52,
    };
    world.say(Operation::Response, ports, b"");
    let mut greeting = [0; 14];
    program.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, format!("OK {}\n", ports.host).as_bytes());
    let (_, data) = world.hear().unwrap();
    assert_eq!(data, b"and data", "what followed the line was not lost");
    world.say(Operation::Reset, ports, b"");
    assert_eq!(program.read(&mut greeting).unwrap(), 0);
    assert!(world.rig.device.owners.is_empty());
}

#[test]
fn what_leads_nowhere_is_reset() {
    let mut world = world();
    world.say(Operation::Request, PORTS, b"");
    assert_eq!(world.hear().unwrap().0.operation, Operation::Reset);
    world.say(Operation::Data, PORTS, b"x");
    assert_eq!(world.hear().unwrap().0.operation, Operation::Reset);
    world.say(Operation::Unknown(99), PORTS, b"");
    assert_eq!(world.hear().unwrap().0.operation, Operation::Reset);
    world.say(Operation::Reset, PORTS, b"");
    assert_eq!(world.hear(), None);
}

#[test]
fn a_flood_of_nonsense_takes_no_memory() {
    let mut world = world();
    for guest in 0..1000 {
        world.say(Operation::Data, Ports { host: 1, guest }, b"x");
    }
    assert!(world.rig.device.resets.len() <= MAX_RESETS);
    world
        .rig
        .driver
        .put(TRANSMIT, &[Part::Read(&[0xff; HEADER_SIZE])]);
    world.rig.driver.put(TRANSMIT, &[Part::Read(b"short")]);
    world.rig.ring(TRANSMIT).unwrap();
}

#[test]
fn connect_lines_are_read_strictly() {
    for (line, port) in [
        (&b"CONNECT 52"[..], Some(52)),
        (b"CONNECT 4294967295\r", Some(u32::MAX)),
        (b"CONNECT 4294967296", None),
        (b"CONNECT -1", None),
        (b"connect 52", None),
        (b"CONNECT", None),
        (b"\xff", None),
    ] {
        assert_eq!(parse_connect(line), port);
    }
}
