//! Growing delays between attempts: doubled each time up to a ceiling, with jitter so that a fleet does not knock in step.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

/// How the delays of one kind of attempt grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Delay after the first failure.
    pub floor: Duration,
    /// Longest delay, before jitter.
    pub ceiling: Duration,
    /// Jitter: the delay is shortened or lengthened by at most this many hundredths of itself.
    pub jitter_percent: u32,
}

/// Downloads: 5 s to 10 min, give or take a fifth.
pub const DOWNLOAD: Growth = Growth {
    floor: Duration::from_secs(5),
    ceiling: Duration::from_secs(600),
    jitter_percent: 20,
};

/// Apps that ended by themselves: 1 s to 5 min.
pub const APP: Growth = Growth {
    floor: Duration::from_secs(1),
    ceiling: Duration::from_secs(300),
    jitter_percent: 0,
};

/// Work on the device itself that failed (a disk is full, a program is missing): 2 s to 2 min.
pub const LOCAL: Growth = Growth {
    floor: Duration::from_secs(2),
    ceiling: Duration::from_secs(120),
    jitter_percent: 10,
};

impl Growth {
    /// The delay after the `failures`-th failure in a row (1 is the first). `dice` is uniform in 0..=255.
    #[must_use]
    pub fn after(&self, failures: u32, dice: u8) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let plain = self.floor.saturating_mul(1 << doublings).min(self.ceiling);
        let spread = plain * self.jitter_percent / 100;
        // From plain - spread to plain + spread in 255 steps.
        (plain + spread * 2 * u32::from(dice) / 255).saturating_sub(spread)
    }

    /// The same with dice thrown.
    #[must_use]
    pub fn roll(&self, failures: u32) -> Duration {
        let mut dice = [128u8];
        // Without randomness the middle is as good as any other value.
        let _ = SystemRandom::new().fill(&mut dice);
        self.after(failures, dice[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_ceiling() {
        let seconds: Vec<u64> = (1..=11).map(|n| APP.after(n, 0).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(APP.after(u32::MAX, 255).as_secs(), 300);
    }

    #[test]
    fn jitter_stays_within_its_share() {
        assert_eq!(DOWNLOAD.after(1, 0), Duration::from_secs(4));
        assert_eq!(DOWNLOAD.after(1, 255), Duration::from_secs(6));
        assert_eq!(DOWNLOAD.after(40, 255), Duration::from_secs(720));
        for _ in 0..100 {
            let delay = DOWNLOAD.roll(2);
            assert!(delay >= Duration::from_secs(8) && delay <= Duration::from_secs(12));
        }
    }
}
