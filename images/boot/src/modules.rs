//! Kernel modules of an initramfs: a list of paths, loaded in its order.
//!
//! There is no modprobe and no module index here. The image build knows the modules and what they depend on, and writes
//! the list in an order that works.

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

/// Loads all modules of the list. What did not load is told in words, and is no reason to stop: hardware may be absent,
/// and whatever is really needed is missed later by name.
pub fn load_all() -> Vec<String> {
    let list = match std::fs::read_to_string(LIST) {
        Ok(list) => list,
        Err(e) => return vec![format!("cannot read {LIST}: {e}")],
    };
    parse(&list)
        .filter_map(|path| {
            load(path)
                .err()
                .map(|e| format!("module {path} did not load: {e}"))
        })
        .collect()
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
}
