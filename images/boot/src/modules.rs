//! Kernel modules of an initramfs: a list of paths, loaded in its order.
//!
//! There is no modprobe and no module index here. The image build knows the modules and what they depend on, and writes
//! the list in an order that works.

use std::collections::VecDeque;
use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// Where the list lies.
pub const LIST: &str = "/etc/skerry/modules.load";

/// `MODULE_INIT_COMPRESSED_FILE` of `linux/module.h`: the kernel decompresses by itself.
const COMPRESSED: i32 = 4;

/// Paths of the list: one a line, empty lines and lines with `#` in front left out.
pub fn parse(list: &str) -> impl Iterator<Item = &str> {
    list.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn is_compressed(path: &str) -> bool {
    [".xz", ".zst", ".gz"].iter().any(|end| path.ends_with(end))
}

/// The modules that are still to be loaded.
pub struct Modules {
    left: VecDeque<String>,
    complaints: Vec<String>,
}

impl Modules {
    /// Reads the list.
    pub fn read() -> Self {
        match std::fs::read_to_string(LIST) {
            Ok(list) => Self::from_list(&list),
            Err(e) => {
                let complaints = vec![format!("cannot read {LIST}: {e}")];
                Self {
                    left: VecDeque::new(),
                    complaints,
                }
            }
        }
    }

    fn from_list(list: &str) -> Self {
        Self {
            left: parse(list).map(str::to_owned).collect(),
            complaints: Vec::new(),
        }
    }

    /// Loads the next module; `false` when there is none left. A module that does not load is no reason to stop: its
    /// hardware may be absent, and whatever is really needed is missed later by name.
    pub fn load_next(&mut self) -> bool {
        let Some(path) = self.left.pop_front() else {
            return false;
        };
        if let Err(e) = load(&path) {
            self.complaints
                .push(format!("module {path} did not load: {e}"));
        }
        true
    }

    /// Loads all that are left.
    pub fn load_all(&mut self) {
        while self.load_next() {}
    }

    /// What did not go well so far, in words.
    pub fn complaints(&mut self) -> Vec<String> {
        std::mem::take(&mut self.complaints)
    }
}

fn load(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    let flags = if is_compressed(path) {
        ModuleInitFlags::from_bits_retain(COMPRESSED as _)
    } else {
        ModuleInitFlags::empty()
    };
    match finit_module(&file, c"", flags) {
        // Built in or loaded already; no such hardware.
        Ok(()) | Err(Errno::EEXIST | Errno::ENODEV) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let list = "# drivers\n/lib/modules/a.ko\n\n  /lib/modules/b.ko.xz  \n#/lib/modules/c.ko\n";
        assert_eq!(
            parse(list).collect::<Vec<_>>(),
            ["/lib/modules/a.ko", "/lib/modules/b.ko.xz"]
        );
        assert!(is_compressed("b.ko.xz") && !is_compressed("a.ko"));
    }
    #[test]
    fn a_module_that_does_not_load_is_told_and_the_next_one_tried() {
        let mut modules = Modules::from_list("/nonexistent/a.ko\n/nonexistent/b.ko.xz\n");
        assert!(modules.load_next() && modules.load_next() && !modules.load_next());
        let complaints = modules.complaints();
        assert_eq!(complaints.len(), 2);
        assert!(
            complaints[1].contains("/nonexistent/b.ko.xz"),
            "{complaints:?}"
        );
        assert!(modules.complaints().is_empty());
    }
}
