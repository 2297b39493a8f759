//! Words to people: on every console that the kernel writes to, the screen and the serial line alike.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

/// One console.
struct Console {
    file: File,
    is_screen: bool,
}

/// All consoles of the machine.
pub struct Consoles {
    consoles: Vec<Console>,
    /// Whether a line on the screens waits to be overwritten.
    transient: bool,
}

/// Names of the kernel's consoles, from the text of `/sys/class/tty/console/active`; `console` if it has none.
pub fn names(active: &str) -> Vec<&str> {
    // Names become paths below /dev.
    let plain = |name: &&str| name.bytes().all(|b| b.is_ascii_alphanumeric());
    let names: Vec<&str> = active.split_ascii_whitespace().filter(plain).collect();
    if names.is_empty() {
        vec!["console"]
    } else {
        names
    }
}

fn is_screen(name: &str) -> bool {
    name.strip_prefix("tty")
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

impl Consoles {
    /// Opens all consoles that there are. None is an error: a machine without any still works.
    pub fn open() -> Self {
        let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        let consoles = names(&active)
            .into_iter()
            .filter_map(|name| {
                let file = OpenOptions::new()
                    .write(true)
                    // A terminal must not become the one that controls PID 1.
                    .custom_flags(libc::O_NOCTTY)
                    .open(Path::new("/dev").join(name))
                    .ok()?;
                Some(Console {
                    file,
                    is_screen: is_screen(name),
                })
            })
            .collect();
        Self {
            consoles,
            transient: false,
        }
    }

    /// Nobody listens.
    pub fn none() -> Self {
        Self {
            consoles: Vec::new(),
            transient: false,
        }
    }

    /// A line on all consoles.
    pub fn say(&mut self, line: &str) {
        let transient = std::mem::take(&mut self.transient);
        for console in &mut self.consoles {
            let clear = if transient && console.is_screen {
                "\r\x1b[K"
            } else {
                ""
            };
            // A console that is gone takes no complaint.
            let _ = console
                .file
                .write_all(format!("{clear}{line}\n").as_bytes());
        }
    }

    /// A line that on screens is overwritten by the next one.
    pub fn say_on_screens(&mut self, line: &str) {
        self.transient = true;
        for console in self.consoles.iter_mut().filter(|c| c.is_screen) {
            let _ = console.file.write_all(format!("\r\x1b[K{line}").as_bytes());
        }
    }

    /// A line on all consoles but screens.
    pub fn say_on_lines(&mut self, line: &str) {
        for console in self.consoles.iter_mut().filter(|c| !c.is_screen) {
            let _ = console.file.write_all(format!("{line}\n").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_names_its_consoles() {
        assert_eq!(names("tty0 ttyS0\n"), ["tty0", "ttyS0"]);
        assert_eq!(names(""), ["console"]);
        assert_eq!(names("../x hvc0"), ["hvc0"]);
        assert!(is_screen("tty0") && is_screen("tty12"));
        assert!(!is_screen("ttyS0") && !is_screen("hvc0") && !is_screen("tty"));
    }
}
