//! A server program that runs beside us: started, watched until it answers, ended with us.
//!
//! ```text
//!        start            stop, drop
//!   off -------> runs ------------------> off
//!                 |  detach
//!                 +--------> runs on without us
//! ```

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub struct Server {
    name: &'static str,
    address: SocketAddr,
    log: PathBuf,
    child: Option<Child>,
}

/// Memory of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Resident now, in KiB (VmRSS).
    pub resident_kib: u64,
    /// The most that ever was resident, in KiB (VmHWM).
    pub peak_kib: u64,
}

impl Memory {
    fn parse(status: &str) -> Option<Memory> {
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.parse().ok()
        };
        Some(Memory {
            resident_kib: of("VmRSS:")?,
            peak_kib: of("VmHWM:")?,
        })
    }
}

impl Server {
    /// A server that is off. It will listen at this port of the loopback address; its output goes to `log`.
    pub fn new(name: &'static str, port: u16, log: PathBuf) -> Server {
        Server {
            name,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            log,
            child: None,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts it, anew if it runs, and waits until its port takes connections.
    pub fn start(&mut self, command: &mut Command) -> Result<()> {
        self.stop()?;
        let (name, address) = (self.name, self.address);
        let file = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("opening {}", self.log.display()))?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name} ({})", command.get_program().display()))?;
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err() {
            if let Some(status) = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten())
            {
                bail!("{name} ended at once ({status}):\n{}", self.tail());
            }
            if Instant::now() > deadline {
                bail!("{name} does not answer at {address}:\n{}", self.tail());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The last lines that it wrote.
    pub fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Its memory, as the kernel counts it (proc_pid_status(5)).
    pub fn memory(&self) -> Result<Memory> {
        let child = self.child.as_ref();
        let id = child
            .with_context(|| format!("{} does not run", self.name))?
            .id();
        let file = format!("/proc/{id}/status");
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
        Memory::parse(&text).with_context(|| format!("{file} tells no memory"))
    }

    /// Asks it to end, and waits.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)
            .with_context(|| format!("stopping {}", self.name))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("{} did not stop within 10 s and was killed", self.name);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Lets it go on without us.
    pub fn detach(mut self) {
        if let Some(child) = self.child.take() {
            std::mem::forget(child);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Memory;

    #[test]
    fn memory_is_read_from_what_the_kernel_tells() {
        let status = "Name:\tx\nVmHWM:\t    9216 kB\nVmRSS:\t    8704 kB\nRssAnon:\t  1 kB\n";
        let read = Memory::parse(status);
        assert_eq!(
            read,
            Some(Memory {
                resident_kib: 8704,
                peak_kib: 9216
            })
        );
        assert_eq!(Memory::parse("Name:\tx\n"), None);
    }
}
