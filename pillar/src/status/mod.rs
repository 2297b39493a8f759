//! Where the device stands: lines on screen and serial line for the person in front of it, and a board of troubles for
//! the person at the controller.
//!
//! The lines are a contract (docs page "Contracts between the parts"): each begins with `skerry: `, one is written when
//! something changes, and tests of whole machines read them.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::domain::observed::Trouble;

mod topic;

pub use topic::{Subject, Topic};

/// Lines longer than this are cut; a screen line is 80 characters, and a reason may take a few of them.
const MAX_LINE: usize = 480;

/// Troubles of the device as a whole, by topic.
pub type Troubles = BTreeMap<Topic, Trouble>;

/// Handle to lines and board. Cheap to clone.
#[derive(Clone)]
pub struct Status {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Status").finish_non_exhaustive()
    }
}

struct Inner {
    sinks: Vec<Sink>,
    said: Mutex<BTreeMap<Subject, String>>,
    board: watch::Sender<Troubles>,
}

enum Sink {
    /// A terminal or file, opened for each line: consoles come and go with screens and USB adapters.
    File(PathBuf),
    /// For tests.
    Memory(Arc<Mutex<Vec<String>>>),
}

impl Status {
    /// Writes to every console that the kernel writes to (`console=` arguments).
    #[must_use]
    pub fn to_consoles() -> Self {
        let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        Self::with(console_paths(&active).into_iter().map(Sink::File).collect())
    }

    /// Writes to one file or terminal.
    #[must_use]
    pub fn to_file(path: &Path) -> Self {
        Self::with(vec![Sink::File(path.to_owned())])
    }

    /// Keeps the lines in memory, for tests.
    #[must_use]
    pub fn to_memory() -> (Self, Arc<Mutex<Vec<String>>>) {
        let lines = Arc::new(Mutex::new(Vec::new()));
        (Self::with(vec![Sink::Memory(lines.clone())]), lines)
    }

    fn with(sinks: Vec<Sink>) -> Self {
        Self {
            inner: Arc::new(Inner {
                sinks,
                said: Mutex::default(),
                board: watch::Sender::new(Troubles::new()),
            }),
        }
    }

    /// Says `text` unless it is what was said last under this subject.
    pub fn say(&self, subject: Subject, text: &str) {
        let text = one_line(text);
        {
            let mut said = self
                .inner
                .said
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if said.get(&subject) == Some(&text) {
                return;
            }
            said.insert(subject.clone(), text.clone());
        }
        tracing::info!(%subject, "{text}");
        let line = format!("skerry: {text}\n");
        for sink in &self.inner.sinks {
            match sink {
                Sink::File(path) => {
                    // Non-blocking: a serial line with flow control and nobody behind it must not stop the agent.
                    let written = OpenOptions::new()
                        .append(true)
                        .create(!path.starts_with("/dev"))
                        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                        .open(path)
                        .and_then(|mut file| file.write_all(line.as_bytes()));
                    if let Err(error) = written {
                        tracing::debug!(path = %path.display(), %error, "status line not written");
                    }
                }
                Sink::Memory(lines) => {
                    lines
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(line.trim_end().to_owned());
                }
            }
        }
    }

    /// Forgets what was said last under a subject, so that the same is said again.
    pub fn forget(&self, subject: &Subject) {
        self.inner
            .said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(subject);
    }

    /// Puts a trouble on the board; the same words again only move its time.
    pub fn raise(&self, topic: Topic, message: &str) {
        self.say(Subject::Trouble(topic), &format!("trouble: {message}"));
        self.inner.board.send_if_modified(|board| {
            let changed = board
                .get(&topic)
                .is_none_or(|known| known.message != message);
            let trouble = Trouble {
                message: message.to_owned(),
                at: SystemTime::now(),
                retry_at: None,
            };
            board.insert(topic, trouble);
            changed
        });
    }

    /// Takes a trouble off the board.
    pub fn clear(&self, topic: Topic) {
        self.inner
            .board
            .send_if_modified(|board| board.remove(&topic).is_some());
        self.forget(&Subject::Trouble(topic));
    }

    /// The board.
    #[must_use]
    pub fn troubles(&self) -> watch::Receiver<Troubles> {
        self.inner.board.subscribe()
    }
}

/// The device files of the consoles that `/sys/class/tty/console/active` names.
fn console_paths(active: &str) -> Vec<PathBuf> {
    let paths: Vec<PathBuf> = active
        .split_whitespace()
        .filter(|name| !name.contains('/'))
        .map(|name| Path::new("/dev").join(name))
        .collect();
    if paths.is_empty() {
        vec!["/dev/console".into()]
    } else {
        paths
    }
}

/// One line of printable characters: reasons may carry text that came from the network.
fn one_line(text: &str) -> String {
    let mut line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_LINE)
        .collect();
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_said_once_until_it_changes() {
        let (status, lines) = Status::to_memory();
        status.say(Subject::Uplink("eth0".into()), "uplink eth0 192.0.2.7");
        status.say(Subject::Uplink("eth0".into()), "uplink eth0 192.0.2.7");
        status.say(Subject::Attestation, "attested");
        status.say(Subject::Uplink("eth0".into()), "uplink eth0 192.0.2.8");
        let lines = lines.lock().unwrap();
        assert_eq!(
            *lines,
            [
                "skerry: uplink eth0 192.0.2.7",
                "skerry: attested",
                "skerry: uplink eth0 192.0.2.8"
            ]
        );
    }

    #[test]
    fn a_trouble_stays_on_the_board_until_it_is_over_and_is_told_again_when_it_comes_back() {
        let (status, lines) = Status::to_memory();
        let mut board = status.troubles();
        status.raise(Topic::Config, "bad signature");
        status.raise(Topic::Config, "bad signature");
        assert_eq!(
            board.borrow_and_update()[&Topic::Config].message,
            "bad signature"
        );
        status.clear(Topic::Config);
        assert!(board.borrow_and_update().is_empty());
        status.raise(Topic::Config, "bad signature");
        assert_eq!(lines.lock().unwrap().len(), 2);
    }

    #[test]
    fn text_from_outside_cannot_move_the_cursor() {
        assert_eq!(
            one_line("a\nskerry: attested\x1b[2J"),
            "a skerry: attested [2J"
        );
        assert_eq!(one_line(&"x".repeat(2000)).len(), MAX_LINE);
    }

    #[test]
    fn consoles_are_those_of_the_kernel() {
        assert_eq!(
            console_paths("tty0 ttyS0\n"),
            [PathBuf::from("/dev/tty0"), "/dev/ttyS0".into()]
        );
        assert_eq!(console_paths(""), [PathBuf::from("/dev/console")]);
    }

    #[test]
    fn lines_reach_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let status = Status::to_file(&path);
        status.say(Subject::Start, "starting 1");
        status.say(Subject::Attestation, "attested");
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            "skerry: starting 1\nskerry: attested\n"
        );
    }
}
