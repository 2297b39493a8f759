//! Moments that nobody chose: delays from a seed that is told, so that a failure can be played again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::Story;

/// The environment variable that gives the seed of an earlier run.
const SEED: &str = "SKERRY_SEED";

/// A source of numbers: SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
pub struct Chance(u64);

impl Chance {
    /// Begins with the seed of the environment, or with the clock's, and tells it.
    pub fn begin(story: &Story) -> Result<Chance> {
        let seed = match std::env::var(SEED) {
            Ok(text) => text
                .parse()
                .with_context(|| format!("{SEED} is no number from 0 to 2^64-1: {text:?}"))?,
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        };
        story.step(format!(
            "the moments of the cuts come from {SEED}={seed}; set it to have them again"
        ));
        Ok(Chance(seed))
    }

    /// A time from nothing up to `longest`.
    pub fn up_to(&mut self, longest: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // The upper 32 bits as a part of one.
        longest.mul_f64((mixed >> 32) as f64 / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_delays_again_and_they_spread() {
        let longest = Duration::from_secs(10);
        let draw = |seed| {
            let mut chance = Chance(seed);
            (0..100)
                .map(|_| chance.up_to(longest))
                .collect::<Vec<Duration>>()
        };
        let delays = draw(1);
        assert_eq!(delays, draw(1));
        assert_ne!(delays, draw(2));
        for tenth in 0..10 {
            let within = Duration::from_secs(tenth)..=Duration::from_secs(tenth + 1);
            assert!(delays.iter().any(|delay| within.contains(delay)), "{tenth}");
        }
        assert!(delays.iter().all(|delay| *delay <= longest));
    }
}
