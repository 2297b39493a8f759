//! The key that signs what this machine's image builds know of their images. It is made at the first build and stays with the user: it
//! is no part of the tree, and none of the cache, which may be thrown away.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use onboarding::policy::ReleaseKey;
use protocol::keys::SoftwareSigner;

use crate::progress::say;

/// The key and its public half.
pub struct Key {
    pub signer: SoftwareSigner,
    pub public: ReleaseKey,
}

/// `$SKERRY_RELEASE_KEY`, or `skerry/release-key.pem` in the user's folder of settings (XDG Base Directory Specification).
fn path() -> Result<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("SKERRY_RELEASE_KEY")
        .or_else(|| set("XDG_CONFIG_HOME").map(|config| config.join("skerry/release-key.pem")))
        .or_else(|| set("HOME").map(|home| home.join(".config/skerry/release-key.pem")))
        .context("there is no home folder to keep the release key in; set SKERRY_RELEASE_KEY to a file's path")
}

/// The user's key.
pub fn load_or_make() -> Result<Key> {
    load_or_make_at(&path()?)
}

fn load_or_make_at(path: &Path) -> Result<Key> {
    let pem = match fs::read_to_string(path) {
        Ok(pem) => {
            let mode = path
                .metadata()
                .with_context(|| format!("looking at {}", path.display()))?
                .permissions()
                .mode();
            if mode & 0o077 != 0 {
                bail!(
                    "{} may be read by others (mode {:o}): whoever has it can release images in your name; chmod 600 it, or remove it if somebody may have it, and accept the new one at your controllers",
                    path.display(),
                    mode & 0o777
                );
            }
            pem
        }
        Err(error) if error.kind() == ErrorKind::NotFound => make(path)?,
        Err(error) => {
            return Err(error)
                .with_context(|| format!("reading the release key {}", path.display()));
        }
    };
    let signer = SoftwareSigner::from_pkcs8_pem(&pem)
        .with_context(|| format!("reading the release key {}", path.display()))?;
    let public = ReleaseKey::from_point(signer.public_point())
        .with_context(|| format!("reading the release key {}", path.display()))?;
    Ok(Key { signer, public })
}

fn make(path: &Path) -> Result<String> {
    let pem = rcgen::KeyPair::generate()
        .context("making a release key")?
        .serialize_pem();
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("making {}", folder.display()))?;
    }
    durable::write(path, pem.as_bytes(), 0o600)
        .with_context(|| format!("keeping the release key {}", path.display()))?;
    say(&format!(
        "Made a key that signs references of images: {}. Keep it: controllers accept images by it.",
        path.display()
    ));
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_for_its_user_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config/skerry/release-key.pem");
        let made = load_or_make_at(&path).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(load_or_make_at(&path).unwrap().public, made.public);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = load_or_make_at(&path).err().unwrap().to_string();
        assert!(
            error.contains("may be read by others (mode 640)"),
            "{error}"
        );

        fs::write(&path, "no key").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = load_or_make_at(&path).err().unwrap().to_string();
        assert!(error.contains("reading the release key"), "{error}");
    }
}
