//! Writes initramfs archives: the "newc" cpio format as the kernel unpacks it (Documentation/driver-api/early-userspace/
//! buffer-format.rst). The same entries give the same bytes: no times, all owned by root, inode numbers counted.

use std::collections::{BTreeMap, BTreeSet};

/// Permissions of a folder that anybody may enter.
pub const FOLDER: u32 = 0o755;
/// Permissions of a file that anybody may read.
pub const FILE: u32 = 0o644;
/// Permissions of a program.
pub const PROGRAM: u32 = 0o755;

/// Kinds of entries, in the upper bits of a mode (inode(7)).
const IS_FOLDER: u32 = 0o040_000;
const IS_FILE: u32 = 0o100_000;

/// A file, or its name, is larger than an entry can say.
#[derive(Debug, thiserror::Error)]
#[error(
    "packing {path} into an initramfs: it has {size} bytes, and an entry holds less than 4 GiB. Leave it out or make it smaller"
)]
pub struct TooLarge {
    /// The entry's path.
    pub path: String,
    /// Bytes of its content or of its name.
    pub size: usize,
}

/// The files of an initramfs, by path. A leading slash does not count.
#[derive(Debug, Default)]
pub struct Archive {
    entries: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Archive {
    /// Adds a file with these permissions.
    pub fn file(&mut self, path: &str, permissions: u32, bytes: Vec<u8>) {
        self.add(path, IS_FILE | permissions, bytes);
    }

    /// Adds a folder: one for something to be mounted on, or one with other permissions than [`FOLDER`].
    pub fn folder(&mut self, path: &str, permissions: u32) {
        self.add(path, IS_FOLDER | permissions, Vec::new());
    }

    fn add(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        let path = path.trim_start_matches('/').to_owned();
        self.entries.insert(path, (mode, bytes));
    }

    /// The archive's bytes. Folders on the way to a file are made by themselves.
    ///
    /// # Errors
    /// [`TooLarge`] with the entry that is.
    pub fn to_bytes(&self) -> Result<Vec<u8>, TooLarge> {
        let parents: BTreeSet<&str> = self
            .entries
            .keys()
            .flat_map(|path| path.match_indices('/').filter_map(|(at, _)| path.get(..at)))
            .collect();
        let mut entries: BTreeMap<&str, (u32, &[u8])> = parents
            .into_iter()
            .map(|parent| (parent, (IS_FOLDER | FOLDER, &[][..])))
            .collect();
        for (path, (mode, bytes)) in &self.entries {
            entries.insert(path, (*mode, bytes));
        }
        let mut out = Vec::new();
        for (inode, (path, (mode, bytes))) in (1..).zip(entries) {
            entry(&mut out, inode, path, mode, bytes)?;
        }
        entry(&mut out, 0, "TRAILER!!!", 0, &[])?;
        Ok(out)
    }
}

fn entry(
    out: &mut Vec<u8>,
    inode: u32,
    path: &str,
    mode: u32,
    bytes: &[u8],
) -> Result<(), TooLarge> {
    let field = |size: usize| {
        u32::try_from(size).map_err(|_| TooLarge {
            path: path.to_owned(),
            size,
        })
    };
    let links = if mode & IS_FOLDER == IS_FOLDER { 2 } else { 1 };
    // Magic, then 13 fields: inode, mode, uid, gid, links, time, size, device of the file system (2), of the node (2),
    // length of the name with its zero byte, checksum (unused in this format).
    let fields = [
        inode,
        mode,
        0,
        0,
        links,
        0,
        field(bytes.len())?,
        0,
        0,
        0,
        0,
        field(path.len() + 1)?,
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
    Ok(())
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
        archive.file("init", PROGRAM, b"#!".to_vec());
        archive.file("lib/modules/a.ko", FILE, vec![7; 5]);
        archive.folder("proc", FOLDER);
        let bytes = archive.to_bytes().unwrap();
        assert_eq!(bytes, archive.to_bytes().unwrap());
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
        archive.file("a/b", FILE, Vec::new());
        archive.file("a-b", FILE, Vec::new());
        let text = String::from_utf8(archive.to_bytes().unwrap()).unwrap();
        let at = |name: &str| text.find(&format!("{name}\0")).unwrap();
        assert!(at("a") < at("a/b"));
    }

    #[test]
    fn a_secret_file_lies_in_a_folder_of_its_own_permissions() {
        let mut archive = Archive::default();
        archive.folder("d", 0o700);
        archive.file("/d/f", 0o600, b"hello".to_vec());
        let text = String::from_utf8(archive.to_bytes().unwrap()).unwrap();
        let fields = [
            "1", "41C0", "0", "0", "2", "0", "0", "0", "0", "0", "0", "2", "0",
        ];
        let header: String = fields.iter().map(|field| format!("{field:0>8}")).collect();
        assert!(text.starts_with(&format!("070701{header}d\0")), "{text}");
        assert!(text.contains("d/f\0\0\0hello\0\0\x00070701"), "{text}");
        assert!(text.contains("00008180"), "{text}");
        assert!(text.contains("TRAILER!!!\0"));
    }
}
