//! Growing, jittered delays between tries.
//!
//! The delay doubles from a floor to a ceiling; each is stretched or shrunk by up to a quarter, so that a fleet that lost
//! its controller at one moment does not come back at one moment.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

/// A series of delays. [`Backoff::reset`] when something worked.
#[derive(Clone, Debug)]
pub struct Backoff {
    floor: Duration,
    ceiling: Duration,
    current: Duration,
}

impl Backoff {
    /// Delays from `floor` to `ceiling`, both before jitter.
    #[must_use]
    pub const fn new(floor: Duration, ceiling: Duration) -> Self {
        Self {
            floor,
            ceiling,
            current: floor,
        }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        self.step(fraction())
    }

    /// Starts the series again.
    pub fn reset(&mut self) {
        self.current = self.floor;
    }

    fn step(&mut self, fraction: f64) -> Duration {
        let delay = self
            .current
            .mul_f64(0.75 + fraction / 2.0)
            .min(self.ceiling);
        self.current = self.current.saturating_mul(2).min(self.ceiling);
        delay
    }
}

/// A random number from 0 up to, but not including, 1.
#[must_use]
pub fn fraction() -> f64 {
    let mut bytes = [0; 4];
    // Without entropy the middle of the range is as good a jitter as there is.
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_ceiling_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        let seen: Vec<_> = (0..6).map(|_| backoff.step(0.5).as_secs_f64()).collect();
        assert_eq!(seen, [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]);
        backoff.reset();
        assert_eq!(backoff.step(0.5), Duration::from_secs(1));
    }

    #[test]
    fn jitter_stays_within_a_quarter_and_below_the_ceiling() {
        for fraction in [0.0, 0.3, 0.999] {
            let mut backoff = Backoff::new(Duration::from_secs(4), Duration::from_secs(4));
            let delay = backoff.step(fraction).as_secs_f64();
            assert!((3.0..=4.0).contains(&delay), "{delay}");
        }
        assert!(
            (0..1000)
                .map(|_| fraction())
                .all(|f| (0.0..1.0).contains(&f))
        );
    }
}
