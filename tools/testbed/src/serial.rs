//! The machine's serial line: read by a thread into memory, searched by whoever waits for something, typed on by hand.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Error;

/// How many bytes of the past are shown when an expected line does not come.
const TAIL: usize = 4096;

#[derive(Default)]
struct Heard {
    text: String,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    heard: Mutex<Heard>,
    more: Condvar,
}

/// The serial line of a machine, over all its times of being on.
///
/// [`Serial::expect`] goes on where the last one found what it wanted, so that a line is not found twice.
pub struct Serial {
    shared: Arc<Shared>,
    writer: Option<UnixStream>,
    position: usize,
}

impl Serial {
    pub(crate) fn new() -> Serial {
        Serial {
            shared: Arc::default(),
            writer: None,
            position: 0,
        }
    }

    /// Takes a fresh connection after power-on. What was heard before stays.
    pub(crate) fn connect(&mut self, stream: UnixStream) -> std::io::Result<()> {
        let mut reader = stream.try_clone()?;
        self.writer = Some(stream);
        let shared = Arc::clone(&self.shared);
        lock(&shared).closed = false;
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let n = reader.read(&mut buffer).unwrap_or(0);
                let mut heard = lock(&shared);
                if n == 0 {
                    heard.closed = true;
                } else {
                    heard.text.push_str(&String::from_utf8_lossy(&buffer[..n]));
                }
                shared.more.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        Ok(())
    }

    /// Waits until the line says `wanted`, and gives the whole line in which it stands.
    pub fn expect(&mut self, wanted: &str, timeout: Duration) -> Result<String, Error> {
        self.expect_or(wanted, &[], timeout)
    }

    /// The same, but gives up at once when one of `never` is said first.
    pub fn expect_or(
        &mut self,
        wanted: &str,
        never: &[&str],
        timeout: Duration,
    ) -> Result<String, Error> {
        let deadline = Instant::now() + timeout;
        let shared = Arc::clone(&self.shared);
        let mut heard = lock(&shared);
        loop {
            let text = heard.text.get(self.position..).unwrap_or_default();
            let found = text.find(wanted);
            let bad = never.iter().filter_map(|never| text.find(never)).min();
            match (found, bad) {
                (Some(at), bad) if bad.is_none_or(|bad| bad > at) => {
                    // The rest of the line may still be on its way.
                    if let Some(length) = text[at..]
                        .find('\n')
                        .or(heard.closed.then_some(text.len() - at))
                    {
                        let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
                        let line = text[start..at + length].trim_end().to_owned();
                        self.position += at + length.max(wanted.len());
                        return Ok(line);
                    }
                    if Instant::now() + Duration::from_millis(1) >= deadline {
                        self.position += at + wanted.len();
                        return Ok(wanted.to_owned());
                    }
                }
                (_, Some(bad)) if text[bad..].contains('\n') || heard.closed => {
                    let said = text[bad..].lines().next().unwrap_or_default().to_owned();
                    return Err(Error::Said {
                        wanted: wanted.to_owned(),
                        said,
                    });
                }
                _ => {}
            }
            let now = Instant::now();
            if now >= deadline || heard.closed {
                let start = heard.text.len().saturating_sub(TAIL);
                let start = (start..heard.text.len())
                    .find(|at| heard.text.is_char_boundary(*at))
                    .unwrap_or(0);
                let tail = heard.text[start..].to_owned();
                return Err(Error::Silent {
                    wanted: wanted.to_owned(),
                    timeout,
                    tail,
                });
            }
            let wait = (deadline - now).min(Duration::from_millis(200));
            heard = shared
                .more
                .wait_timeout(heard, wait)
                .map(|(heard, _)| heard)
                .unwrap_or_else(|e| e.into_inner().0);
        }
    }

    /// Everything that was said so far.
    pub fn text(&self) -> String {
        lock(&self.shared).text.clone()
    }

    /// Lets the next [`Serial::expect`] begin with what is said from now on.
    pub fn skip(&mut self) {
        self.position = lock(&self.shared).text.len();
    }

    /// Types on the line.
    pub fn type_text(&mut self, text: &str) -> Result<(), Error> {
        let writer = self.writer.as_mut().ok_or(Error::State {
            operation: "typing on the serial line",
            state: "off",
        })?;
        writer
            .write_all(text.as_bytes())
            .map_err(Error::file("writing to", "the serial line"))
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, Heard> {
    shared.heard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> (Serial, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        let mut serial = Serial::new();
        serial.connect(near).unwrap();
        (serial, far)
    }

    #[test]
    fn finds_each_line_once_and_gives_it_whole() {
        let (mut serial, mut far) = line();
        far.write_all(b"boot\nskerry: enrolled as 1\nskerry: enrolled as 2\n")
            .unwrap();
        let second = Duration::from_secs(5);
        assert_eq!(
            serial.expect("enrolled", second).unwrap(),
            "skerry: enrolled as 1"
        );
        assert_eq!(
            serial.expect("enrolled", second).unwrap(),
            "skerry: enrolled as 2"
        );
    }

    #[test]
    fn says_what_was_heard_when_the_line_stays_silent() {
        let (mut serial, mut far) = line();
        far.write_all(b"kernel panic\n").unwrap();
        let error = serial
            .expect("login:", Duration::from_millis(300))
            .unwrap_err();
        assert!(error.to_string().contains("kernel panic"), "{error}");
    }

    #[test]
    fn stops_at_what_must_not_be_said() {
        let (mut serial, mut far) = line();
        far.write_all(b"Kernel panic - not syncing\n").unwrap();
        let error = serial
            .expect_or("login:", &["Kernel panic"], Duration::from_secs(60))
            .unwrap_err();
        assert!(matches!(error, Error::Said { .. }), "{error}");
    }

    #[test]
    fn ends_early_when_the_machine_goes_off() {
        let (mut serial, far) = line();
        drop(far);
        let start = Instant::now();
        assert!(serial.expect("anything", Duration::from_secs(60)).is_err());
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}
