//! What a production box must not have: programs into which a person or an intruder could type commands, and programs that
//! install. The build refuses to pack one, and the end-to-end test `main-job` looks for them in the packed image.

use std::path::Path;

use anyhow::{Result, bail};

use crate::files::walk;

/// Shells and interpreters, logins and remote logins, package managers.
const FORBIDDEN: &[&str] = &[
    "sh", "bash", "dash", "ash", "ksh", "zsh", "busybox", "perl", "python3", "apt", "apt-get",
    "dpkg", "rpm", "sshd", "ssh", "dropbear", "getty", "agetty", "login", "su", "sudo", "sulogin",
    "telnetd",
];

/// Whether a path's name is one of such a program.
pub fn is_forbidden(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| FORBIDDEN.contains(&name))
}

/// Fails if the tree has one, and names it.
pub fn check(root: &Path) -> Result<()> {
    for (path, _) in walk(root)? {
        if is_forbidden(&path) {
            bail!("the production image must not hold /{}", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_is_refused_wherever_it_lies_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("usr/bin");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("crun"), "").unwrap();
        check(dir.path()).unwrap();
        std::os::unix::fs::symlink("crun", folder.join("sh")).unwrap();
        let error = check(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("/usr/bin/sh"), "{error}");
    }
}
