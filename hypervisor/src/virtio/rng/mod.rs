//! Entropy source (virtio 1.2, 5.4): fills what the driver offers from the host kernel's generator.

use super::queue::Broken;
use super::{Device, Io, Kind, TURN};

/// Bytes given in answer to one request at most.
const LIMIT: usize = 64 << 10;

/// An entropy source.
#[derive(Debug, Default)]
pub struct Rng;

impl Device for Rng {
    fn kind(&self) -> Kind {
        Kind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn activate(&mut self, _features: u64, _io: &mut Io<'_>) -> Result<(), Broken> {
        Ok(())
    }

    fn queue_ready(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        let mut left = TURN;
        while let Some(mut chain) = io.pop(queue)? {
            let mut given = 0;
            while !chain.writable.is_empty() && given < LIMIT {
                let mut bytes = [0; 256];
                // SAFETY: the pointer and length describe `bytes`. Up to 256 bytes come whole (getrandom(2)).
                let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
                let Some(fresh) = bytes.get(..count.max(0) as usize) else {
                    break;
                };
                if fresh.is_empty() {
                    break;
                }
                given += chain.write(fresh);
            }
            io.complete(queue, chain)?;
            left -= 1;
            if left == 0 {
                io.again(queue);
                break;
            }
        }
        io.signal(queue)
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake_driver::{Part, Rig};

    #[test]
    fn requests_are_filled_with_different_bytes() {
        let mut rig = Rig::new(Rng);
        rig.driver.put(0, &[Part::Write(300)]);
        rig.driver.put(0, &[Part::Write(300)]);
        rig.ring(0).unwrap();
        let first = rig.driver.take_used(0).unwrap();
        let second = rig.driver.take_used(0).unwrap();
        assert_eq!((first.len(), second.len()), (300, 300));
        assert_ne!(first, second);
    }

    #[test]
    fn a_greedy_request_gets_a_bounded_answer() {
        let mut rig = Rig::new(Rng);
        rig.driver.put(0, &[Part::Write(8 << 20)]);
        rig.ring(0).unwrap();
        assert_eq!(rig.driver.take_used(0).unwrap().len(), LIMIT);
    }

    #[test]
    fn a_request_without_room_is_given_back_empty() {
        let mut rig = Rig::new(Rng);
        rig.driver.put(0, &[Part::Read(b"nonsense")]);
        rig.ring(0).unwrap();
        assert_eq!(rig.driver.take_used(0).unwrap().len(), 0);
    }
}
