//! The lock: which version of which package an image is made of.
//!
//! One line a package: `name version architecture sha256`, and for a package that stands in for a meta package (the kernel,
//! whose name changes with each release) the word `for` and the meta package's name. Sorted, so that a change reads well.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use imaging::digest::Digest;

/// One package, exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub architecture: String,
    pub sha256: Digest,
}

/// What was asked for (a package, or a meta package) and what that is, exactly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    pub packages: BTreeMap<String, Package>,
}

impl Lock {
    /// Reads a lock's text.
    pub fn parse(text: &str) -> Result<Lock> {
        let mut packages = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (fields, wanted) = match words.as_slice() {
                [] => continue,
                [first, ..] if first.starts_with('#') => continue,
                [name, version, architecture, sha256] => {
                    ([*name, *version, *architecture, *sha256], *name)
                }
                [name, version, architecture, sha256, "for", meta] => {
                    ([*name, *version, *architecture, *sha256], *meta)
                }
                _ => bail!(
                    "line {} is not `name version architecture sha256`: {line}",
                    number + 1
                ),
            };
            let [name, version, architecture, sha256] = fields;
            let package = Package {
                name: name.to_owned(),
                version: version.to_owned(),
                architecture: architecture.to_owned(),
                sha256: Digest::from_hex(sha256).with_context(|| format!("line {}", number + 1))?,
            };
            if packages.insert(wanted.to_owned(), package).is_some() {
                bail!("line {}: {wanted} stands there twice", number + 1);
            }
        }
        Ok(Lock { packages })
    }

    /// Reads a lock file; an absent one is an empty lock.
    pub fn load(path: &Path) -> Result<Lock> {
        match std::fs::read_to_string(path) {
            Ok(text) => Lock::parse(&text).with_context(|| format!("reading {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Lock::default()),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// The lock as text: the same bytes for the same lock.
    pub fn to_text(&self) -> String {
        let mut text = String::from(
            "# Written by `cargo xtask image --update`. name version architecture sha256 [for meta-package]\n",
        );
        for (wanted, package) in &self.packages {
            let Package {
                name,
                version,
                architecture,
                sha256,
            } = package;
            // Writing into a String cannot fail.
            let _ = write!(text, "{name} {version} {architecture} {}", sha256.hex());
            if wanted != name {
                let _ = write!(text, " for {wanted}");
            }
            text.push('\n');
        }
        text
    }

    /// What one would have to say about going from this lock to `new`, a line a change.
    pub fn changes(&self, new: &Lock) -> Vec<String> {
        let mut lines = Vec::new();
        for (wanted, package) in &new.packages {
            match self.packages.get(wanted) {
                None => lines.push(format!("{wanted}: new, {}", package.version)),
                Some(old) if old.version != package.version => {
                    lines.push(format!("{wanted}: {} -> {}", old.version, package.version));
                }
                Some(old) if old.sha256 != package.sha256 => {
                    lines.push(format!(
                        "{wanted}: {} has other bytes than when it was locked",
                        package.version
                    ));
                }
                Some(_) => (),
            }
        }
        for wanted in self.packages.keys() {
            if !new.packages.contains_key(wanted) {
                lines.push(format!("{wanted}: gone"));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const B: &str = "00000000000000000000000000000000b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_lock_is_read_back_as_written() {
        let text = format!(
            "# head\n\nlibc6 2.36-9 amd64 {A}\nlinux-image-6.12.9 6.12.9-1 amd64 {B} for linux-image\n"
        );
        let lock = Lock::parse(&text).unwrap();
        assert_eq!(lock.packages["linux-image"].name, "linux-image-6.12.9");
        assert_eq!(Lock::parse(&lock.to_text()).unwrap(), lock);
        assert_eq!(
            Lock::parse(&lock.to_text()).unwrap().to_text(),
            lock.to_text()
        );
    }

    #[test]
    fn wrong_lines_are_named() {
        for (text, reason) in [
            ("a 1 amd64".to_owned(), "line 1"),
            (format!("a 1 amd64 {A} x"), "line 1"),
            ("\na 1 amd64 zz".to_owned(), "line 2"),
            (format!("a 1 amd64 {A}\na 2 amd64 {A}"), "twice"),
        ] {
            let error = format!("{:#}", Lock::parse(&text).unwrap_err());
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn changes_are_told_one_by_one() {
        let old = Lock::parse(&format!(
            "a 1 amd64 {A}\nb 1 amd64 {A}\nc 1 amd64 {A}\nd 1 amd64 {A}"
        ))
        .unwrap();
        let new = Lock::parse(&format!(
            "a 1 amd64 {A}\nb 2 amd64 {B}\nc 1 amd64 {B}\ne 1 amd64 {A}"
        ))
        .unwrap();
        let changes = old.changes(&new);
        assert_eq!(changes.len(), 4, "{changes:?}");
        assert_eq!(changes[0], "b: 1 -> 2");
        assert!(changes[1].starts_with("c: 1 has other bytes"));
        assert_eq!(changes[2], "e: new, 1");
        assert_eq!(changes[3], "d: gone");
        assert!(old.changes(&old).is_empty());
    }
}
