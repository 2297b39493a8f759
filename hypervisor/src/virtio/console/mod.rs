//! Console (virtio 1.2, 5.3) with one port: bytes in, bytes out.

use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::queue::Broken;
use super::{Device, Io, Kind, SourceRegistrar, TURN};
use crate::console::Backend;
use crate::event_loop::{EDGE, Events, READABLE};
use crate::sync::lock;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const INPUT: u32 = 0;

/// A console; the host's end is a [`Backend`].
pub struct Console {
    backend: Arc<Mutex<Backend>>,
    input: EventFd,
}

impl Console {
    /// A console that leads to `backend`.
    pub fn new(backend: Arc<Mutex<Backend>>) -> io::Result<Self> {
        let input = lock(&backend).input_event()?;
        Ok(Console { backend, input })
    }

    /// Hands typed bytes to the guest, as long as it has room for them.
    fn receive(&self, io: &mut Io<'_>) -> Result<(), Broken> {
        let mut buffer = [0; 512];
        while lock(&self.backend).has_input() {
            let Some(mut chain) = io.pop(RECEIVE)? else {
                break;
            };
            // A guest that offers no room throws the chain away, not the input.
            while !chain.writable.is_empty() {
                let room = chain.writable.len().min(buffer.len());
                let place = buffer.get_mut(..room).unwrap_or_default();
                let count = lock(&self.backend).take_input(place);
                if count == 0 {
                    break;
                }
                chain.write(place.get(..count).unwrap_or_default());
            }
            io.complete(RECEIVE, chain)?;
        }
        io.signal(RECEIVE)
    }

    fn transmit(&self, io: &mut Io<'_>) -> Result<(), Broken> {
        let mut buffer = [0; 1024];
        let mut left = TURN;
        while let Some(mut chain) = io.pop(TRANSMIT)? {
            loop {
                let count = chain.readable.copy_to(&mut buffer);
                if count == 0 {
                    break;
                }
                lock(&self.backend).output(buffer.get(..count).unwrap_or_default());
            }
            io.complete(TRANSMIT, chain)?;
            left -= 1;
            if left == 0 {
                io.again(TRANSMIT);
                break;
            }
        }
        io.signal(TRANSMIT)
    }
}

impl Device for Console {
    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64, 64]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn attach(&mut self, registrar: &SourceRegistrar) -> io::Result<()> {
        registrar.add(&self.input, INPUT, READABLE | EDGE)
    }

    fn activate(&mut self, _features: u64, io: &mut Io<'_>) -> Result<(), Broken> {
        self.receive(io)
    }

    fn queue_ready(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        match queue {
            RECEIVE => self.receive(io),
            _ => self.transmit(io),
        }
    }

    fn source_ready(
        &mut self,
        _token: u32,
        _events: Events,
        io: &mut Io<'_>,
    ) -> Result<(), Broken> {
        self.receive(io)
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_loop::EventLoop;
    use crate::virtio::fake_driver::{Part, Rig};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn bytes_go_both_ways_and_input_waits_for_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let config = hypervisor_api::config::Console {
            socket: Some(path.clone()),
            stdout: false,
        };
        let backend = Arc::new(Mutex::new(Backend::new(&config).unwrap()));
        let mut events = EventLoop::new().unwrap();
        events.add(backend.clone()).unwrap();
        let mut rig = Rig::new(Console::new(backend).unwrap());

        let mut person = UnixStream::connect(&path).unwrap();
        person.write_all(b"ls\n").unwrap();
        events.turn().unwrap();
        rig.with(|device, io| device.source_ready(INPUT, READABLE, io))
            .unwrap();
        rig.driver.put(RECEIVE, &[Part::Write(2)]);
        rig.driver.put(RECEIVE, &[Part::Write(64)]);
        rig.ring(RECEIVE).unwrap();
        assert_eq!(rig.driver.take_used(RECEIVE).unwrap(), b"ls");
        assert_eq!(rig.driver.take_used(RECEIVE).unwrap(), b"\n");

        rig.driver
            .put(TRANSMIT, &[Part::Read(b"bin "), Part::Read(b"etc")]);
        rig.ring(TRANSMIT).unwrap();
        events.turn().unwrap();
        let mut bytes = [0; 7];
        person.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"bin etc");
        assert_eq!(rig.driver.take_used(TRANSMIT).unwrap(), b"");
    }
}
