//! Port I/O: the few chipset registers of the machine, and the way from ports to the UART and PCI configuration space.
//!
//! ```text
//! power button: Pm1.status bit 8 = 1 --(status & enable != 0)--> SCI high --> guest clears status --> SCI low
//! sleep:        guest writes SLP_TYP = 5 and SLP_EN --> LastWords::PowerOff
//! reset:        guest writes 0xcf9 (bit 2) or 0xfe to the keyboard controller --> LastWords::Reset
//! ```
//!
//! Reads from ports that nobody answers give all ones, as on a PC's bus.

use std::sync::{Arc, Mutex};

use hypervisor_api::report::LastWords;

use super::acpi::SLEEP_TYPE_OFF;
use super::layout;
use super::pci_ports::PciPorts;
use crate::pci::PciBus;
use crate::platform::Platform;
use crate::serial::Uart;
use crate::sync::lock;

const POWER_BUTTON: u16 = 1 << 8;
const SCI_ENABLED: u16 = 1;
const SLEEP_ENABLE: u16 = 1 << 13;
/// What resets the machine when a guest writes it to the keyboard controller's command port.
const PULSE_RESET_LINE: u8 = 0xfe;

/// Everything that answers on a port.
pub struct Ports {
    pci: PciPorts,
    uart: Option<Arc<Mutex<Uart>>>,
    pm1: Mutex<Pm1>,
    platform: Arc<dyn Platform>,
}

impl Ports {
    /// The ports of one machine.
    pub fn new(
        platform: Arc<dyn Platform>,
        pci: Arc<PciBus>,
        uart: Option<Arc<Mutex<Uart>>>,
    ) -> Self {
        Ports {
            pci: PciPorts::new(pci),
            uart,
            pm1: Mutex::default(),
            platform,
        }
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        let mut pm1 = lock(&self.pm1);
        pm1.status |= POWER_BUTTON;
        self.set_sci(&pm1);
    }

    fn set_sci(&self, pm1: &Pm1) {
        self.platform
            .set_line(layout::SCI_GSI, pm1.status & pm1.enable != 0);
    }

    /// A guest reads `data.len()` bytes from `port`.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        match port {
            layout::SERIAL_PORT..=0x3ff => {
                data.fill(0xff);
                if let (Some(uart), [byte]) = (&self.uart, data) {
                    *byte = lock(uart).read((port - layout::SERIAL_PORT) as u8);
                }
            }
            // Input and output buffers empty: a kernel that resets through the controller waits for that.
            0x60 | layout::KEYBOARD_COMMAND_PORT | layout::RESET_PORT => data.fill(0),
            layout::PM1_EVENT_PORT..=0x605 => {
                let registers = lock(&self.pm1).registers();
                for (index, byte) in data.iter_mut().enumerate() {
                    let at = usize::from(port - layout::PM1_EVENT_PORT) + index;
                    *byte = registers.get(at).copied().unwrap_or(0xff);
                }
            }
            layout::PCI_ADDRESS_PORT..=0xcff => self.pci.read(port, data),
            _ => data.fill(0xff),
        }
    }

    /// A guest writes `data` to `port`. An answer means that this ends the machine.
    pub fn write(&self, port: u16, data: &[u8]) -> Option<LastWords> {
        match (port, data) {
            (layout::SERIAL_PORT..=0x3ff, _) => {
                if let Some(uart) = &self.uart {
                    // More than one byte: a string instruction, one after the other to the same port.
                    let mut uart = lock(uart);
                    for byte in data {
                        uart.write((port - layout::SERIAL_PORT) as u8, *byte);
                    }
                }
                None
            }
            (layout::KEYBOARD_COMMAND_PORT, [PULSE_RESET_LINE]) => Some(LastWords::Reset),
            (layout::RESET_PORT, [value]) if value & 4 != 0 => Some(LastWords::Reset),
            (layout::PM1_EVENT_PORT..=0x605, _) => {
                let mut pm1 = lock(&self.pm1);
                let mut end = None;
                for (index, byte) in data.iter().enumerate() {
                    let at = usize::from(port - layout::PM1_EVENT_PORT) + index;
                    if pm1.write_byte(at, *byte) {
                        end = Some(LastWords::PowerOff);
                    }
                }
                self.set_sci(&pm1);
                end
            }
            (layout::PCI_ADDRESS_PORT..=0xcff, _) => {
                self.pci.write(port, data);
                None
            }
            _ => None,
        }
    }
}

/// ACPI's PM1 event and control blocks (ACPI 6.5, 4.8.3.1 and 4.8.3.2).
#[derive(Debug, Default)]
struct Pm1 {
    status: u16,
    enable: u16,
    control: u16,
}

impl Pm1 {
    /// The six bytes as the guest sees them.
    fn registers(&self) -> [u8; 6] {
        let [s0, s1] = self.status.to_le_bytes();
        let [e0, e1] = self.enable.to_le_bytes();
        // Legacy mode does not exist: SCI_EN always reads as set, SLP_EN as clear.
        let [c0, c1] = (self.control & !SLEEP_ENABLE | SCI_ENABLED).to_le_bytes();
        [s0, s1, e0, e1, c0, c1]
    }

    /// Writes one byte; true if the guest has asked for soft off.
    fn write_byte(&mut self, at: usize, byte: u8) -> bool {
        let shift = 8 * (at % 2) as u32;
        let value = u16::from(byte) << shift;
        let mask = 0xff << shift;
        match at {
            // Status bits are cleared by writing ones.
            0 | 1 => self.status &= !value,
            2 | 3 => self.enable = self.enable & !mask | value,
            4 | 5 => {
                self.control = self.control & !mask | value;
                let sleep_type = (self.control >> 10 & 0b111) as u8;
                let go = self.control & SLEEP_ENABLE != 0;
                self.control &= !SLEEP_ENABLE;
                return go && sleep_type == SLEEP_TYPE_OFF;
            }
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::fake::FakePlatform;

    fn ports() -> (Arc<FakePlatform>, Ports) {
        let platform = Arc::new(FakePlatform::default());
        let pci = Arc::new(PciBus::new());
        (platform.clone(), Ports::new(platform, pci, None))
    }

    #[test]
    fn the_power_button_raises_the_sci_until_the_guest_has_seen_it() {
        let (platform, ports) = ports();
        ports.press_power_button();
        assert!(!platform.line(layout::SCI_GSI), "not enabled yet");
        ports.write(0x602, &POWER_BUTTON.to_le_bytes());
        assert!(platform.line(layout::SCI_GSI));
        let mut status = [0; 2];
        ports.read(0x600, &mut status);
        assert_eq!(u16::from_le_bytes(status), POWER_BUTTON);
        ports.write(0x600, &POWER_BUTTON.to_le_bytes());
        assert!(!platform.line(layout::SCI_GSI));
    }

    #[test]
    fn only_sleep_type_five_with_sleep_enable_powers_off() {
        let (_, ports) = ports();
        assert_eq!(ports.write(0x604, &(5_u16 << 10).to_le_bytes()), None);
        assert_eq!(
            ports.write(0x604, &(3_u16 << 10 | SLEEP_ENABLE).to_le_bytes()),
            None
        );
        assert_eq!(
            ports.write(0x604, &(5_u16 << 10 | SLEEP_ENABLE).to_le_bytes()),
            Some(LastWords::PowerOff)
        );
    }

    #[test]
    fn both_reset_registers_reset() {
        let (_, ports) = ports();
        assert_eq!(ports.write(0x64, &[0xfe]), Some(LastWords::Reset));
        assert_eq!(ports.write(0xcf9, &[6]), Some(LastWords::Reset));
        assert_eq!(
            ports.write(0xcf9, &[2]),
            None,
            "reset kind chosen, not yet asked for"
        );
    }

    #[test]
    fn every_port_and_width_is_answered() {
        let (_, ports) = ports();
        for port in 0..=u16::MAX {
            for width in [1, 2, 4, 7] {
                let mut data = [0x5a; 7];
                ports.read(port, &mut data[..width]);
            }
        }
        let mut data = [0; 4];
        ports.read(0x1234, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
