//! The 16550 UART: registers by vm-superio, the host's end by [`crate::console`].

use std::io;
use std::sync::{Arc, Mutex};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::console::Backend;
use crate::event_loop::{EDGE, Events, READABLE, Registrar, Subscriber};
use crate::sync::lock;

/// The UART's interrupt: an event that KVM turns into an edge on its line.
pub struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Output of the UART.
pub struct Output(Arc<Mutex<Backend>>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).output(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A UART and the host's end of its line.
pub struct Uart {
    registers: Serial<Interrupt, NoEvents, Output>,
    backend: Arc<Mutex<Backend>>,
    input: EventFd,
}

impl Uart {
    /// A UART that interrupts through `interrupt`.
    pub fn new(interrupt: EventFd, backend: Arc<Mutex<Backend>>) -> io::Result<Self> {
        let input = lock(&backend).input_event()?;
        Ok(Uart {
            registers: Serial::new(Interrupt(interrupt), Output(backend.clone())),
            backend,
            input,
        })
    }

    /// The guest reads register `offset` (0 to 7).
    pub fn read(&mut self, offset: u8) -> u8 {
        let value = self.registers.read(offset);
        if offset == 0 {
            // That may have made room.
            self.fill();
        }
        value
    }

    /// The guest writes register `offset` (0 to 7).
    pub fn write(&mut self, offset: u8, value: u8) {
        // Fails when the interrupt event's counter is full, and then the interrupt is pending anyway.
        let _ = self.registers.write(offset, value);
    }

    /// Moves typed bytes into the receive FIFO, as many as fit.
    fn fill(&mut self) {
        let mut bytes = [0; 64];
        let room = self.registers.fifo_capacity().min(bytes.len());
        let Some(place) = bytes.get_mut(..room) else {
            return;
        };
        let count = lock(&self.backend).take_input(place);
        if count > 0 {
            let _ = self
                .registers
                .enqueue_raw_bytes(place.get(..count).unwrap_or_default());
        }
    }
}

impl Subscriber for Uart {
    fn attach(&mut self, registrar: Registrar) -> io::Result<()> {
        registrar.add(&self.input, 0, READABLE | EDGE)
    }

    fn ready(&mut self, _token: u32, _events: Events) {
        self.fill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor_api::config::Console;

    #[test]
    fn output_reaches_the_console_and_the_line_is_free() {
        let backend = Arc::new(Mutex::new(Backend::new(&Console::default()).unwrap()));
        let mut uart = Uart::new(EventFd::new(0).unwrap(), backend).unwrap();
        for byte in b"hello" {
            uart.write(0, *byte);
        }
        assert_eq!(uart.read(5) & 0x60, 0x60, "transmitter empty");
        for offset in 0..8 {
            uart.write(offset, 0xff);
            uart.read(offset);
        }
    }
}
