//! Servers and emulated machines that run beside a task, and end with it whatever ends it.
//!
//! They have process groups of their own, so that a Ctrl-C in the terminal does not end a box in the middle of a write of the
//! test's. The other side of that: somebody has to end them. A task that fails drops them; one that is interrupted ends
//! them here; and what a killed one left is found again, by the folder that their command lines name.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::progress::say;

/// What a task starts in its folder, as the kernel names them (15 bytes at most, proc_pid_comm(5)). Anybody else who names
/// the folder, an editor or `tail -f`, is left alone.
const PROGRAMS: [&str; 4] = [
    "qemu-system-x86",
    "swtpm",
    "docker-registry",
    "skerry-controll",
];
/// Whether a signal came.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// How long they get to end by themselves.
const GRACE: Duration = Duration::from_secs(15);

/// Ends what runs in `folder` when this process is interrupted (SIGINT, SIGTERM, SIGHUP), and then the process. Once a process.
pub fn end_when_interrupted(folder: &str) -> Result<()> {
    let folder = absolute(folder)?;
    ctrlc::set_handler(move || {
        INTERRUPTED.store(true, Ordering::SeqCst);
        say("interrupted: ending what was started");
        if let Err(error) = end_in(&folder) {
            eprintln!("error: {error:#}");
        }
        // As shells count a process that SIGINT ended.
        std::process::exit(130);
    })
    .context("listening for signals")
}

/// Stays here if this process was interrupted: what fails because its machines are being ended is no news, and the handler ends
/// the process in a moment.
pub fn wait_if_interrupted() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// Ends what an earlier task left running in `folder`; says whether there was something.
pub fn end(folder: &str) -> Result<bool> {
    let folder = absolute(folder)?;
    let some = !running_in(&folder).is_empty();
    end_in(&folder)?;
    Ok(some)
}

fn absolute(folder: &str) -> Result<PathBuf> {
    std::path::absolute(folder).with_context(|| format!("finding {folder}"))
}

fn end_in(folder: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        let left = running_in(folder);
        if left.is_empty() {
            return Ok(());
        }
        if start.elapsed() > GRACE + Duration::from_secs(5) {
            bail!(
                "these processes of {} do not end: {left:?}",
                folder.display()
            );
        }
        let signal = if start.elapsed() > GRACE {
            Signal::SIGKILL
        } else {
            Signal::SIGTERM
        };
        for pid in left {
            // One that has ended since is what is wanted.
            let _ = kill(pid, signal);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Our sort of process whose command line names a path in `folder`.
fn running_in(folder: &Path) -> Vec<Pid> {
    let inside = format!("{}/", folder.display());
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            (PROGRAMS.contains(&name.trim_end())
                && String::from_utf8_lossy(&line).contains(&inside))
            .then(|| Pid::from_raw(pid))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_our_programs_in_the_folder_are_ended() {
        let place = tempfile::tempdir().unwrap();
        let sleep = ["/bin/sleep", "/usr/bin/sleep"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .unwrap();
        // A program is known by its file's name; the folder stands in its command line, as that of a server's config.
        let program = place.path().join("swtpm");
        // A link, not a copy: one that was just written may still be open in a child that another test's thread has forked, and then it
        // cannot be started (ETXTBSY, execve(2)).
        std::os::unix::fs::symlink(sleep, &program).unwrap();
        let mut ours = Command::new(&program).arg("60").spawn().unwrap();
        let mut reader = Command::new("tail")
            .args(["-f", "--retry"])
            .arg(place.path().join("log"))
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let ended = end_in(place.path());
        // A process has given its memory back, and its command line with it, a moment before it can be waited for.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let mut ours_ended = false;
        while !ours_ended && std::time::Instant::now() < deadline {
            ours_ended = ours.try_wait().unwrap().is_some();
            std::thread::sleep(Duration::from_millis(10));
        }
        let reader_ended = reader.try_wait().unwrap().is_some();
        for child in [&mut ours, &mut reader] {
            let _ = child.kill();
            let _ = child.wait();
        }
        ended.unwrap();
        assert!(ours_ended, "a server of the folder still runs");
        assert!(!reader_ended, "somebody else's program was ended");
    }
}
