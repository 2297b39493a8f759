//! Progress: a bar with figures on a terminal, plain lines elsewhere. Always on standard error, so that what a command
//! prints can be used by another.

use std::io::Write as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::terminal;

/// How often a plain line is written at most.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// Progress of one piece of work whose size is known, in bytes.
pub struct Progress {
    what: String,
    total: u64,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    Lines { begun: Instant, last: Instant },
}

impl Progress {
    /// Begins to show `what`.
    pub fn begin(what: impl Into<String>, total: u64) -> Self {
        let what = what.into();
        let shown = if terminal::draws_progress() {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let template = "{msg:30!} {bar:24} {bytes:>11} of {total_bytes:<11} {binary_bytes_per_sec:>13} {eta:>4}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(what.clone());
            Shown::Bar(bar)
        } else {
            let now = Instant::now();
            Shown::Lines {
                begun: now,
                last: now,
            }
        };
        Self { what, total, shown }
    }

    /// Says that `bytes` in all are done.
    pub fn reach(&mut self, bytes: u64) {
        match &mut self.shown {
            Shown::Bar(bar) => bar.set_position(bytes),
            Shown::Lines { last, .. } if last.elapsed() >= PLAIN_INTERVAL => {
                *last = Instant::now();
                let percent = bytes
                    .saturating_mul(100)
                    .checked_div(self.total)
                    .unwrap_or(100);
                let _ = writeln!(
                    std::io::stderr(),
                    "{}: {percent}% of {}",
                    self.what,
                    mebibytes(self.total)
                );
            }
            Shown::Lines { .. } => {}
        }
    }

    /// Ends with a line that says what was done and how long it took.
    pub fn end(self, done: &str) {
        let elapsed = match &self.shown {
            Shown::Bar(bar) => {
                let elapsed = bar.elapsed();
                bar.finish_and_clear();
                elapsed
            }
            Shown::Lines { begun, .. } => begun.elapsed(),
        };
        let _ = writeln!(
            std::io::stderr(),
            "{}: {done}, {} in {:.1} s",
            self.what,
            mebibytes(self.total),
            elapsed.as_secs_f64()
        );
    }
}

/// A number of bytes in MiB with one decimal, or in KiB below that.
fn mebibytes(bytes: u64) -> String {
    if bytes < 1 << 20 {
        format!("{} KiB", bytes.div_ceil(1 << 10))
    } else {
        format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (bytes, shown) in [
            (0, "0 KiB"),
            (1, "1 KiB"),
            (1 << 20, "1.0 MiB"),
            (1_572_864, "1.5 MiB"),
            ((1 << 21) - 1, "1.9 MiB"),
        ] {
            assert_eq!(mebibytes(bytes), shown);
        }
    }

    #[test]
    fn nothing_divides_by_zero() {
        let mut progress = Progress::begin("nothing", 0);
        progress.reach(0);
        progress.reach(u64::MAX);
        progress.end("done");
    }
}
