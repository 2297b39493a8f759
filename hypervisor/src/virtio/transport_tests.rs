use std::sync::Mutex;

use super::*;
use crate::platform::fake::FakePlatform;
use crate::virtio::Kind;
use crate::virtio::fake_driver::{Driver, Part};

/// A device that returns every chain with the bytes it was given, upside down.
#[derive(Default)]
struct Echo {
    log: Arc<Mutex<Vec<String>>>,
}

impl Echo {
    fn note(&self, what: String) {
        crate::sync::lock(&self.log).push(what);
    }
}

impl Device for Echo {
    fn kind(&self) -> Kind {
        Kind::Rng
    }
    fn features(&self) -> u64 {
        1 << 5
    }
    fn queue_sizes(&self) -> &'static [u16] {
        &[16, 16]
    }
    fn config(&self) -> &[u8] {
        b"config"
    }
    fn activate(&mut self, features: u64, _io: &mut Io<'_>) -> Result<(), Broken> {
        self.note(format!("activate {features:#x}"));
        Ok(())
    }
    fn queue_ready(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        while let Some(mut chain) = io.pop(queue)? {
            let mut bytes = vec![0; chain.readable.len()];
            chain.readable.copy_to(&mut bytes);
            bytes.reverse();
            chain.write(&bytes);
            io.complete(queue, chain)?;
        }
        io.signal(queue)
    }
    fn reset(&mut self) {
        self.note("reset".to_owned());
    }
}

struct Rig {
    driver: Driver,
    platform: Arc<FakePlatform>,
    device: VirtioPci<Echo>,
    log: Arc<Mutex<Vec<String>>>,
}

fn rig() -> Rig {
    let driver = Driver::new(16);
    let platform = Arc::new(FakePlatform::default());
    let echo = Echo::default();
    let log = echo.log.clone();
    let device =
        VirtioPci::new(echo, 0xc000_0000, driver.memory.clone(), platform.clone()).unwrap();
    Rig {
        driver,
        platform,
        device,
        log,
    }
}

impl Rig {
    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.device.memory_write(at, bytes);
    }

    fn read<const N: usize>(&mut self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.device.memory_read(at, &mut bytes);
        bytes
    }

    fn status(&mut self) -> u8 {
        self.read::<1>(20)[0]
    }

    /// What a driver does up to DRIVER_OK, with every feature.
    fn start(&mut self) {
        self.device.config_write(4, &[6, 0]);
        self.write(20, &[1]);
        self.write(20, &[3]);
        let mut features = 0_u64;
        for half in 0..2_u32 {
            self.write(0, &half.to_le_bytes());
            let bits: [u8; 4] = self.read(4);
            features |= u64::from(u32::from_le_bytes(bits)) << (32 * half);
            self.write(8, &half.to_le_bytes());
            self.write(12, &bits);
        }
        assert_ne!(features & 1 << VIRTIO_F_VERSION_1, 0);
        self.write(20, &[0xb]);
        for queue in 0..2_u16 {
            let (desc, avail, used) = {
                let ring = &self.driver.rings[usize::from(queue)];
                (ring.desc, ring.avail, ring.used)
            };
            self.write(22, &queue.to_le_bytes());
            self.write(26, &(queue + 1).to_le_bytes());
            self.write(32, &desc.to_le_bytes());
            self.write(40, &(avail as u32).to_le_bytes());
            self.write(44, &0_u32.to_le_bytes());
            self.write(48, &used.to_le_bytes());
            self.write(28, &1_u16.to_le_bytes());
        }
        // MSI-X: vector 1 open, function enabled.
        self.write(MSIX_TABLE + 16, &0xfee0_1000_u64.to_le_bytes());
        self.write(MSIX_TABLE + 24, &0x31_u32.to_le_bytes());
        self.write(MSIX_TABLE + 28, &0_u32.to_le_bytes());
        let control = self.device.msix_capability + 2;
        self.device.config_write(control, &0x8000_u16.to_le_bytes());
        self.write(20, &[0xf]);
    }
}

#[test]
fn a_driver_starts_the_device_and_is_interrupted() {
    let mut rig = rig();
    rig.start();
    assert_eq!(rig.status(), 0xf);
    assert_eq!(
        crate::sync::lock(&rig.log).as_slice(),
        ["activate 0x130000020"]
    );
    assert_eq!(
        crate::sync::lock(&rig.platform.doorbells).as_slice(),
        [0xc000_3000, 0xc000_3004]
    );
    rig.driver.put(0, &[Part::Read(b"abc"), Part::Write(8)]);
    rig.device.ready(0, READABLE);
    assert_eq!(rig.driver.take_used(0).unwrap(), b"cba");
    assert_eq!(rig.platform.take_messages(), [(0xfee0_1000, 0x31)]);
}

#[test]
fn reset_brings_back_the_beginning() {
    let mut rig = rig();
    rig.start();
    rig.write(20, &[0]);
    assert_eq!(rig.status(), 0);
    assert!(crate::sync::lock(&rig.platform.doorbells).is_empty());
    rig.write(22, &[0, 0]);
    assert_eq!(rig.read::<2>(28), [0, 0], "queue is off");
    rig.start();
    assert_eq!(crate::sync::lock(&rig.log).len(), 3);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let mut rig = rig();
    rig.write(8, &1_u32.to_le_bytes());
    rig.write(12, &u32::MAX.to_le_bytes());
    rig.write(20, &[0xb]);
    assert_eq!(rig.status() & FEATURES_OK, 0);
    rig.write(12, &0_u32.to_le_bytes());
    rig.write(20, &[0xb]);
    assert_eq!(rig.status() & FEATURES_OK, 0, "a legacy driver");
    rig.write(20, &[0xf]);
    assert_eq!(rig.status() & DRIVER_OK, 0, "not without features");
}

#[test]
fn a_guest_that_breaks_a_queue_is_told_and_left_alone() {
    let mut rig = rig();
    rig.start();
    rig.driver.set_avail_index(0, 999);
    rig.device.ready(0, READABLE);
    assert_eq!(rig.status() & NEEDS_RESET, NEEDS_RESET);
    assert_eq!(rig.read::<1>(ISR), [ISR_CONFIG]);
    assert_eq!(rig.read::<1>(ISR), [0], "reading clears it");
    rig.device.ready(0, READABLE);
    rig.write(20, &[0]);
    assert_eq!(rig.status(), 0);
}

#[test]
fn queues_outside_memory_are_refused_at_the_start() {
    let mut rig = rig();
    rig.write(22, &[0, 0]);
    rig.write(32, &0xffff_ffff_ffff_0000_u64.to_le_bytes());
    rig.write(28, &[1, 0]);
    rig.write(8, &1_u32.to_le_bytes());
    rig.write(12, &1_u32.to_le_bytes());
    rig.write(20, &[0xb]);
    rig.write(20, &[0xf]);
    assert_eq!(rig.status() & NEEDS_RESET, NEEDS_RESET);
    assert!(crate::sync::lock(&rig.log).is_empty());
}

#[test]
fn doorbells_follow_the_bar() {
    let mut rig = rig();
    rig.start();
    rig.device
        .config_write(0x10, &0xd000_0000_u32.to_le_bytes());
    assert_eq!(
        crate::sync::lock(&rig.platform.doorbells).as_slice(),
        [0xd000_3000, 0xd000_3004]
    );
}

#[test]
fn configuration_space_reaches_the_bar_through_its_window() {
    let mut rig = rig();
    let at = rig.device.window_capability;
    rig.device
        .config_write(at + 8, &(DEVICE as u32).to_le_bytes());
    rig.device.config_write(at + 12, &4_u32.to_le_bytes());
    let mut bytes = [0; 4];
    rig.device.config_read(at + 16, &mut bytes);
    assert_eq!(&bytes, b"conf");
    rig.device.config_write(at + 8, &20_u32.to_le_bytes());
    rig.device.config_write(at + 12, &1_u32.to_le_bytes());
    rig.device.config_write(at + 16, &[1]);
    assert_eq!(rig.status(), 1);
}

#[test]
fn a_device_that_was_written_all_over_starts_again_after_a_reset() {
    let mut rig = rig();
    rig.start();
    for offset in (0..u64::from(BAR_SIZE)).step_by(3) {
        for width in [1, 2, 4, 8] {
            rig.device.memory_read(offset, &mut [0; 8][..width]);
            rig.device.memory_write(offset, &[0xff; 8][..width]);
        }
    }
    for offset in 0..256 {
        rig.device.config_read(offset, &mut [0; 4]);
        rig.device.config_write(offset, &[0xff; 4]);
    }
    let mut identity = [0; 4];
    rig.device.config_read(0, &mut identity);
    assert_eq!(identity, [0xf4, 0x1a, 0x44, 0x10]);

    rig.write(20, &[0]);
    assert_eq!(rig.status(), 0);
    rig.start();
    assert_eq!(rig.status(), 0xf);
    rig.platform.take_messages();
    rig.driver.put(0, &[Part::Read(b"abc"), Part::Write(8)]);
    rig.device.ready(0, READABLE);
    assert_eq!(rig.driver.take_used(0).unwrap(), b"cba");
    assert_eq!(rig.platform.take_messages(), [(0xfee0_1000, 0x31)]);
}
