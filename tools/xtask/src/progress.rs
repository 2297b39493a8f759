//! What people see while long work goes on: a line a step with its time, and a moving figure on a terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Prints a result. Whoever stops reading (`| head`) has seen enough.
pub fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Says one line.
pub fn say(line: &str) {
    eprintln!("{line}");
}

/// A time for people who wait for it, in minutes.
pub fn minutes(took: Duration) -> String {
    format!("{:.1} minutes", took.as_secs_f64() / 60.0)
}

/// A step of long work. Says what begins, shows a running clock on a terminal, and says how long it took.
pub struct Step {
    name: String,
    start: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    pub fn begin(name: impl Into<String>) -> Step {
        let name = name.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.set_message(name.clone());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        if bar.is_none() {
            eprintln!("... {name}");
        }
        Step {
            name,
            start: Instant::now(),
            bar,
        }
    }

    /// Shows where the step stands, with figures.
    pub fn detail(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("{}: {text}", self.name)),
            None => eprintln!("    {}: {text}", self.name),
        }
    }

    /// Shows why the step is not done yet; on a terminal only, since it repeats itself.
    pub fn waiting(&self, reason: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {reason}", self.name));
        }
    }

    /// Says that the step failed, and why.
    pub fn failed(self, reason: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!(
            "FAILED {} ({:.1} s): {reason}",
            self.name,
            self.start.elapsed().as_secs_f64()
        );
    }

    pub fn done(self) -> Duration {
        let took = self.start.elapsed();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if took > Duration::from_secs(90) {
            eprintln!("ok  {} ({})", self.name, HumanDuration(took));
        } else {
            eprintln!("ok  {} ({:.1} s)", self.name, took.as_secs_f64());
        }
        took
    }
}
