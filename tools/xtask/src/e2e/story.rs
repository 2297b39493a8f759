//! What a test tells while it runs, and where it keeps its things.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::site::Built;

/// One run of one test.
pub struct Story {
    start: Instant,
    dir: PathBuf,
    pub built: Built,
}

impl Story {
    /// Makes an empty folder for the test.
    pub fn begin(name: &str, built: &Built, parent: &Path) -> Result<Story> {
        let dir = parent.join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("emptying {}", dir.display()))?;
        }
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("finding {}", dir.display()))?;
        Ok(Story { start: Instant::now(), dir, built: built.clone() })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Tells what comes next.
    pub fn step(&self, text: impl AsRef<str>) {
        println!("{:>7.1} s  {}", self.seconds(), text.as_ref());
    }

    /// Asks again and again until the answer is there, and tells the last reason when it never comes.
    pub fn until<T>(&self, what: &str, timeout: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            match ask() {
                Ok(answer) => return Ok(answer),
                Err(error) if Instant::now() > deadline => {
                    bail!("{what}: not within {} s; last: {error:#}", timeout.as_secs())
                }
                Err(_) => std::thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    /// Removes disks and images of a test that passed; they are large.
    pub fn clean_up(&self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
