//! How fast the waiting room fills.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use operator_api::AttestationLevel;

/// How many machines may enter the waiting room, level by level: whoever can make keys without end at one level leaves the others'
/// places alone.
#[derive(Default)]
pub struct Gate(Mutex<BTreeMap<String, (f64, Instant)>>);

impl Gate {
    /// Takes a place of a level, of which there are `per_minute`; says whether there was one.
    pub fn pass(&self, level: AttestationLevel, per_minute: u32, now: Instant) -> bool {
        let most = f64::from(per_minute);
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = places.entry(level.to_string()).or_insert((most, now));
        *left = (*left + now.duration_since(*since).as_secs_f64() * most / 60.0).min(most);
        *since = now;
        if *left < 1.0 {
            return false;
        }
        *left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_gate_lets_so_many_pass_a_minute_and_each_level_has_its_own() {
        let gate = Gate::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let passed = |level, seconds| {
            (0..100)
                .filter(|_| gate.pass(level, 6, at(seconds)))
                .count()
        };
        assert_eq!(passed(AttestationLevel::None, 0), 6);
        assert_eq!(passed(AttestationLevel::None, 5), 0);
        assert_eq!(passed(AttestationLevel::Bronze, 5), 6);
        assert_eq!(passed(AttestationLevel::None, 20), 2);
        assert_eq!(passed(AttestationLevel::None, 3600), 6);
    }
}
