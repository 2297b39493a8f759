//! How far it is: percent, speed, time left. Words are made in a pure function; the meter decides when they are due.

use std::time::{Duration, Instant};

use crate::console::Consoles;

const MIB: u64 = 1 << 20;
/// A line a second on serial lines.
const LINES: Duration = Duration::from_secs(1);
/// Screens can have more.
const SCREENS: Duration = Duration::from_millis(200);

/// The words after `what`: `42 % (40 of 96 MiB, 20 MiB/s, 3 s left)`.
pub fn words(done: u64, total: u64, elapsed: Duration) -> String {
    let percent = if total == 0 {
        100
    } else {
        u128::from(done) * 100 / u128::from(total)
    };
    let mut words = format!("{percent} % ({} of {} MiB", done / MIB, total.div_ceil(MIB));
    let millis = elapsed.as_millis();
    // Before a quarter of a second has passed, a speed would be a guess.
    if millis >= 250 && done > 0 {
        let speed = u128::from(done) * 1000 / millis;
        let left =
            (u128::from(total.saturating_sub(done)) * millis).div_ceil(u128::from(done) * 1000);
        words.push_str(&format!(
            ", {} MiB/s, {left} s left",
            speed / u128::from(MIB)
        ));
    }
    words.push(')');
    words
}

/// Tells the consoles of one task's progress.
pub struct Meter<'a> {
    consoles: &'a mut Consoles,
    what: String,
    total: u64,
    done: u64,
    start: Instant,
    last_line: Instant,
    last_screen: Instant,
}

impl<'a> Meter<'a> {
    /// Begins a task of `total` bytes; `what` is like `skerry-installer: writing root`.
    pub fn start(consoles: &'a mut Consoles, what: impl Into<String>, total: u64) -> Self {
        let now = Instant::now();
        Self {
            consoles,
            what: what.into(),
            total,
            done: 0,
            start: now,
            last_line: now,
            last_screen: now,
        }
    }

    /// `n` more bytes are done.
    pub fn add(&mut self, n: u64) {
        self.done = self.done.saturating_add(n);
        let now = Instant::now();
        if now.duration_since(self.last_screen) >= SCREENS {
            self.last_screen = now;
            let line = self.line();
            self.consoles.say_on_screens(&line);
        }
        if now.duration_since(self.last_line) >= LINES {
            self.last_line = now;
            let line = self.line();
            self.consoles.say_on_lines(&line);
        }
    }

    /// The task is done: its last line, on all consoles.
    pub fn finish(self) {
        let seconds = self.start.elapsed().as_millis().max(1);
        let speed = u128::from(self.done) * 1000 / seconds / u128::from(MIB);
        let line = format!(
            "{} 100 % ({} MiB, {speed} MiB/s)",
            self.what,
            self.done.div_ceil(MIB)
        );
        self.consoles.say(&line);
    }

    fn line(&self) -> String {
        format!(
            "{} {}",
            self.what,
            words(self.done, self.total, self.start.elapsed())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_in_words() {
        for (done, total, millis, wanted) in [
            (0, 96, 0, "0 % (0 of 96 MiB)"),
            (40, 96, 2000, "41 % (40 of 96 MiB, 20 MiB/s, 3 s left)"),
            (96, 96, 4800, "100 % (96 of 96 MiB, 20 MiB/s, 0 s left)"),
            (1, 96, 100, "1 % (1 of 96 MiB)"),
            (0, 0, 1000, "100 % (0 of 0 MiB)"),
            (200, 96, 1000, "208 % (200 of 96 MiB, 200 MiB/s, 0 s left)"),
        ] {
            assert_eq!(
                words(done * MIB, total * MIB, Duration::from_millis(millis)),
                wanted
            );
        }
        assert!(
            words(u64::MAX, u64::MAX, Duration::from_secs(u64::MAX / 1000)).starts_with("100 %")
        );
    }
}
