//! Writes cpio archives in the `newc` format, as an initramfs takes them (Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst).

/// An archive that grows in memory.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    next_inode: u32,
}

/// Type bits of a directory and of a regular file (inode(7)).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

impl Archive {
    /// Adds a directory. The name has no leading slash.
    pub fn directory(&mut self, name: &str, mode: u32) {
        self.entry(name, DIRECTORY | mode, &[]);
    }

    /// Adds a file. The name has no leading slash.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, REGULAR | mode, content);
    }

    /// The archive's bytes, with its trailer.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.next_inode += 1;
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [
            self.next_inode,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Header with name, and content, each end on a multiple of four.
    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_these() {
        let mut archive = Archive::default();
        archive.directory("d", 0o755);
        archive.file("d/f", 0o600, b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).unwrap();
        let fields = [
            "1", "41ed", "0", "0", "2", "0", "0", "0", "0", "0", "0", "2", "0",
        ];
        let header: String = fields.iter().map(|field| format!("{field:0>8}")).collect();
        assert!(text.starts_with(&format!("070701{header}d\0")), "{text}");
        assert!(text.contains("d/f\0\0\0hello\0\0\x00070701"), "{text}");
        assert!(text.contains("TRAILER!!!\0"));
    }
}
