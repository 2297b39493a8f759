//! The guest's two lines to the host: its own words on the first virtio console, the container's on the second.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use crate::Error;
use crate::mounts::wait_for_device;

const OWN: [&str; 2] = ["/dev/hvc0", "/dev/console"];
const CONTAINER: &str = "/dev/hvc1";

/// The guest's own words.
pub struct Console {
    file: Option<File>,
}

impl Console {
    /// Opens the first console that there is. None is no error: nobody listens then.
    pub fn open() -> Self {
        let file = OWN.iter().find_map(|path| options().open(path).ok());
        Self { file }
    }

    /// Says a line.
    pub fn say(&mut self, line: &str) {
        if let Some(file) = &mut self.file {
            // There is nobody to complain to.
            let _ = file.write_all(format!("guest-init: {line}\n").as_bytes());
        }
    }
}

/// A terminal must not become the one that controls PID 1, whose hanging up would end it.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOCTTY);
    options
}

/// Where the container's standard output and error go. Raw, so that each byte arrives as it was written.
pub fn container_output() -> Result<File, Error> {
    wait_for_device(CONTAINER)?;
    open_raw().map_err(Error::system("open", CONTAINER))
}

fn open_raw() -> io::Result<File> {
    let file = options().open(CONTAINER)?;
    let mut settings = tcgetattr(&file)?;
    cfmakeraw(&mut settings);
    tcsetattr(&file, SetArg::TCSANOW, &settings)?;
    Ok(file)
}
