//! A process of an app, watched: a pidfd becomes readable when it ends, whoever started it.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use hypervisor_api::report::LastWords;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process that is watched.
pub struct Process {
    /// Its number.
    pub pid: u32,
    fd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Watches a process.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn watch(pid: u32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two numbers and gives a descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the descriptor belongs to the AsyncFd alone and stays open as long as that lives; nobody replaces it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { pid, fd })
    }
}

/// Waits for the end of a process; looks again after a second if there is none to watch.
pub async fn ended(process: Option<&Process>) {
    match process {
        Some(process) => {
            // An error means that the descriptor cannot be watched: look again.
            let _ = process.fd.readable().await;
        }
        None => tokio::time::sleep(Duration::from_secs(1)).await,
    }
}

/// Why a process ended, in words: as its monitor wrote it, or else as its unit saw it.
#[must_use]
pub fn reason(last_words: Option<&[u8]>, how: Option<String>) -> String {
    match last_words.and_then(|words| serde_json::from_slice(words).ok()) {
        Some(LastWords::PowerOff) => "the machine powered itself off".into(),
        Some(LastWords::Reset) => "the machine restarted itself".into(),
        Some(LastWords::TripleFault) => "the machine crashed (triple fault)".into(),
        Some(LastWords::Killed) => "the machine was ended".into(),
        Some(LastWords::Failed { message }) => {
            format!(
                "the monitor failed: {}",
                message.chars().take(500).collect::<String>()
            )
        }
        None => how.unwrap_or_else(|| "it ended".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_seen() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let process = Process::watch(child.id()).unwrap();
        let soon = tokio::time::timeout(Duration::from_millis(50), ended(Some(&process)));
        assert!(soon.await.is_err(), "it still runs");
        child.kill().unwrap();
        tokio::time::timeout(Duration::from_secs(5), ended(Some(&process)))
            .await
            .unwrap();
        child.wait().unwrap();
        assert!(Process::watch(process.pid).is_err());
    }

    #[test]
    fn the_monitors_words_come_before_the_units() {
        let how = || Some("it ended with status 3".to_owned());
        let words = br#"{"reason":"tripleFault"}"#;
        assert!(reason(Some(words), how()).contains("triple fault"));
        assert_eq!(reason(Some(b"rubbish"), how()), "it ended with status 3");
        assert_eq!(reason(None, None), "it ended");
    }
}
