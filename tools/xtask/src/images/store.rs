//! Finished steps of image builds, kept by content.
//!
//! A step's folder is named by the SHA-256 of everything that goes into it, so whoever asks for the same thing again, from
//! any clone on the machine, gets what is there. A step is made in a folder of its own and renamed when it is whole: a build
//! that is killed leaves nothing that could be taken for a result.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use imaging::digest::{Digest, Hasher};

use crate::cache;
use crate::files::{Kind, walk};

/// Results kept of one step; the least recently used go first.
const KEPT: usize = 4;

/// Collects what goes into a step. Every part carries a label and a length, so that no two lists of parts look alike.
pub struct Key(Hasher);

impl Key {
    /// A key for a step of this name. What makes the step's result is put in by [`super::recipe`].
    pub fn new(step: &str) -> Key {
        Key(Hasher::new()).with("step", step.as_bytes())
    }

    pub fn with(mut self, label: &str, bytes: &[u8]) -> Key {
        self.0.update(&(label.len() as u64).to_le_bytes());
        self.0.update(label.as_bytes());
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// A file's content.
    pub fn file(self, path: &Path) -> Result<Key> {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(self.with("file", &bytes))
    }

    /// A folder's content: names, kinds, executable bits, bytes and link targets, in order.
    pub fn tree(mut self, root: &Path) -> Result<Key> {
        for (path, kind) in walk(root)? {
            let name = path.to_string_lossy().into_owned();
            let full = root.join(&path);
            self = match kind {
                Kind::Folder => self.with("folder", name.as_bytes()),
                Kind::Link => {
                    let to = fs::read_link(&full)
                        .with_context(|| format!("reading {}", full.display()))?;
                    self.with("link", name.as_bytes())
                        .with("to", to.as_os_str().as_encoded_bytes())
                }
                Kind::File { executable } => self
                    .with("file name", name.as_bytes())
                    .with("executable", &[executable.into()])
                    .file(&full)?,
            };
        }
        Ok(self)
    }

    fn finish(self) -> Digest {
        self.0.finish()
    }
}

/// The folder of finished steps.
pub struct Store {
    root: PathBuf,
}

impl Store {
    pub fn open() -> Result<Store> {
        Store::open_in(&cache::dir()?.join("images"))
    }

    /// A store in a folder of the caller's choice.
    pub fn open_in(root: &Path) -> Result<Store> {
        for folder in ["steps", "tmp", "debs"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        }
        Ok(Store {
            root: root.to_path_buf(),
        })
    }

    /// Where downloaded packages lie, each named by its SHA-256.
    pub fn debs(&self) -> PathBuf {
        self.root.join("debs")
    }

    /// Where a stamp of this name lies.
    pub fn stamp(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// An empty folder for work in progress. Goes away with the value.
    pub fn scratch(&self, name: &str) -> Result<tempfile::TempDir> {
        tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir_in(self.root.join("tmp"))
            .with_context(|| format!("making a folder in {}", self.root.join("tmp").display()))
    }

    /// The folder of the step's result: the one that is there, or a new one that `make` has filled.
    pub fn step(
        &self,
        name: &str,
        key: Key,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let digest = key.finish().hex();
        let done = self
            .root
            .join("steps")
            .join(format!("{name}-{}", digest.get(..24).unwrap_or(&digest)));
        if done.is_dir() {
            // The folder's time says when it was last of use.
            let _ = fs::File::open(&done).and_then(|folder| folder.set_modified(SystemTime::now()));
            return Ok(done);
        }
        let scratch = self.scratch(name)?;
        make(scratch.path())?;
        let made = scratch.keep();
        if let Err(error) = fs::rename(&made, &done) {
            fs::remove_dir_all(&made).with_context(|| format!("removing {}", made.display()))?;
            // Somebody else may have finished the same step meanwhile; theirs is as good.
            if !done.is_dir() {
                return Err(error).with_context(|| format!("putting {} in place", done.display()));
            }
        }
        self.forget_old(name)?;
        Ok(done)
    }

    fn forget_old(&self, name: &str) -> Result<()> {
        let steps = self.root.join("steps");
        let mut same: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&steps).with_context(|| format!("listing {}", steps.display()))? {
            let entry = entry?;
            let file_name = entry.file_name();
            let is_same = file_name
                .to_str()
                .and_then(|n| n.rsplit_once('-'))
                .is_some_and(|(step, _)| step == name);
            if is_same {
                same.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        same.sort();
        let surplus = same.len().saturating_sub(KEPT);
        for (_, path) in same.into_iter().take(surplus) {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_made_once_and_a_failed_one_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_in(dir.path()).unwrap();
        let key = || Key::new("test 1").with("input", b"a");
        assert!(store.step("thing", key(), |_| anyhow::bail!("no")).is_err());
        let made = store
            .step("thing", key(), |to| Ok(fs::write(to.join("out"), "x")?))
            .unwrap();
        assert_eq!(fs::read_to_string(made.join("out")).unwrap(), "x");
        let again = store
            .step("thing", key(), |_| anyhow::bail!("must not be made again"))
            .unwrap();
        assert_eq!(made, again);
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn other_inputs_make_another_result_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_in(dir.path()).unwrap();
        let other = store.step("another", Key::new("r"), |_| Ok(())).unwrap();
        let made: Vec<_> = (0..KEPT + 2)
            .map(|i| {
                std::thread::sleep(std::time::Duration::from_millis(10));
                store
                    .step("thing", Key::new("r").with("n", &[i as u8]), |_| Ok(()))
                    .unwrap()
            })
            .collect();
        let left: Vec<bool> = made.iter().map(|path| path.is_dir()).collect();
        assert_eq!(left, [false, false, true, true, true, true]);
        assert!(other.is_dir());
    }

    #[test]
    fn a_tree_s_key_sees_names_bytes_links_and_modes() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let key = || Key::new("r").tree(dir.path()).unwrap().finish();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/f"), "1").unwrap();
        let mut seen = vec![key()];
        assert_eq!(key(), seen[0]);
        fs::write(dir.path().join("a/f"), "2").unwrap();
        seen.push(key());
        fs::set_permissions(dir.path().join("a/f"), fs::Permissions::from_mode(0o755)).unwrap();
        seen.push(key());
        std::os::unix::fs::symlink("f", dir.path().join("a/l")).unwrap();
        seen.push(key());
        fs::rename(dir.path().join("a/l"), dir.path().join("a/m")).unwrap();
        seen.push(key());
        let different: std::collections::BTreeSet<_> = seen.iter().collect();
        assert_eq!(different.len(), seen.len());
    }
}
