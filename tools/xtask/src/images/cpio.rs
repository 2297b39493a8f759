//! Writes initramfs archives: the "newc" cpio format as the kernel unpacks it (Documentation/driver-api/early-userspace/
//! buffer-format.rst). The same entries give the same bytes: no times, all owned by root, inode numbers counted.

use std::collections::{BTreeMap, BTreeSet};

/// File modes, as in stat(2).
const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;

/// The files of an initramfs, by path without the leading slash.
#[derive(Default)]
pub struct Archive {
    files: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Archive {
    pub fn file(&mut self, path: &str, bytes: Vec<u8>) {
        self.files.insert(path.to_owned(), (FILE, bytes));
    }

    pub fn program(&mut self, path: &str, bytes: Vec<u8>) {
        self.files.insert(path.to_owned(), (PROGRAM, bytes));
    }

    /// An empty folder, for something to be mounted on.
    pub fn folder(&mut self, path: &str) {
        self.files.insert(path.to_owned(), (FOLDER, Vec::new()));
    }

    /// The archive's bytes. Folders on the way to a file are made by themselves.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut entries: BTreeMap<&str, (u32, &[u8])> = BTreeMap::new();
        let parents: BTreeSet<&str> = self
            .files
            .keys()
            .flat_map(|path| path.match_indices('/').filter_map(|(at, _)| path.get(..at)))
            .collect();
        for parent in parents {
            entries.insert(parent, (FOLDER, &[]));
        }
        for (path, (mode, bytes)) in &self.files {
            entries.insert(path, (*mode, bytes));
        }
        let mut out = Vec::new();
        for (inode, (path, (mode, bytes))) in (1..).zip(entries) {
            entry(&mut out, inode, path, mode, bytes);
        }
        entry(&mut out, 0, "TRAILER!!!", 0, &[]);
        out
    }
}

fn entry(out: &mut Vec<u8>, inode: u32, path: &str, mode: u32, bytes: &[u8]) {
    let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
    // Magic, then 13 fields: inode, mode, uid, gid, links, time, size, device of the file system (2), of the node (2),
    // length of the name with its zero byte, checksum (unused in this format).
    let fields = [
        inode,
        mode,
        0,
        0,
        links,
        0,
        bytes.len() as u32,
        0,
        0,
        0,
        0,
        path.len() as u32 + 1,
        0,
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(bytes);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_unpacks_what_was_packed() {
        let mut archive = Archive::default();
        archive.program("init", b"#!".to_vec());
        archive.file("lib/modules/a.ko", vec![7; 5]);
        archive.folder("proc");
        let bytes = archive.to_bytes();
        assert_eq!(bytes, archive.to_bytes());
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("cpio")
            .args(["-idm", "--quiet"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(
            std::fs::read(dir.path().join("lib/modules/a.ko")).unwrap(),
            [7; 5]
        );
        assert!(dir.path().join("proc").is_dir());
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &dir.path().join("init").metadata().unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn a_folder_stands_before_what_is_in_it() {
        let mut archive = Archive::default();
        archive.file("a/b", Vec::new());
        archive.file("a-b", Vec::new());
        let text = String::from_utf8(archive.to_bytes()).unwrap();
        let at = |name: &str| text.find(&format!("{name}\0")).unwrap();
        assert!(at("a") < at("a/b"));
    }
}
