//! Growing, jittered delays between tries.
//!
//! A delay doubles with each failure in a row, from a floor to a ceiling; each is stretched or shrunk by a share of itself,
//! so that a fleet that lost its controller at one moment does not come back at one moment.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

/// How the delays of one kind of try grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Delay after the first failure, before jitter.
    pub floor: Duration,
    /// Longest delay, before jitter.
    pub ceiling: Duration,
    /// Jitter: the delay is shortened or lengthened by at most this many hundredths of itself.
    pub jitter_percent: u8,
}

impl Growth {
    /// The delay after the `failures`-th failure in a row (1 is the first).
    #[must_use]
    pub fn after(&self, failures: u32) -> Duration {
        self.jittered(failures, fraction())
    }

    /// `fraction`, from 0 to 1, leads from the shortest delay to the longest.
    fn jittered(&self, failures: u32, fraction: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let plain = self.floor.saturating_mul(1 << doublings).min(self.ceiling);
        let spread = f64::from(self.jitter_percent) / 100.0;
        plain.mul_f64((1.0 + spread * (2.0 * fraction - 1.0)).max(0.0))
    }
}

/// A series of delays, none above the ceiling. [`Backoff::reset`] when something worked.
#[derive(Clone, Debug)]
pub struct Backoff {
    growth: Growth,
    failures: u32,
}

impl Backoff {
    /// Delays from `floor` to `ceiling`, a quarter more or less.
    #[must_use]
    pub const fn new(floor: Duration, ceiling: Duration) -> Self {
        Self {
            growth: Growth {
                floor,
                ceiling,
                jitter_percent: 25,
            },
            failures: 0,
        }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        self.step(fraction())
    }

    /// Starts the series again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    fn step(&mut self, fraction: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.growth
            .jittered(self.failures, fraction)
            .min(self.growth.ceiling)
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

    #[test]
    fn a_growth_may_go_beyond_its_ceiling_by_its_jitter() {
        let growth = Growth {
            floor: Duration::from_secs(5),
            ceiling: Duration::from_secs(600),
            jitter_percent: 20,
        };
        assert_eq!(growth.jittered(1, 0.0), Duration::from_secs(4));
        assert_eq!(growth.jittered(1, 1.0), Duration::from_secs(6));
        assert_eq!(growth.jittered(40, 1.0), Duration::from_secs(720));
        for _ in 0..100 {
            let delay = growth.after(2);
            assert!(delay >= Duration::from_secs(8) && delay <= Duration::from_secs(12));
        }
        let exact = Growth {
            jitter_percent: 0,
            ..growth
        };
        let seconds: Vec<u64> = (1..=9).map(|n| exact.jittered(n, 0.9).as_secs()).collect();
        assert_eq!(seconds, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
        assert_eq!(exact.after(u32::MAX).as_secs(), 600);
    }
}
