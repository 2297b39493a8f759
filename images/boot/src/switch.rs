//! From the initramfs to the real root file system (the same steps as util-linux' `switch_root`).

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot, execv};

use crate::Error;

/// What is looked for in the new root, in this order.
const INITS: [&str; 3] = [
    "/usr/lib/systemd/systemd",
    "/lib/systemd/systemd",
    "/sbin/init",
];

/// Moves the kernel's file systems to the root mounted at `target`, empties the initramfs and makes `target` the root.
/// Returns the path of its init.
pub fn switch(target: &str) -> Result<&'static str, Error> {
    let init = INITS
        .into_iter()
        .find(|init| fs::symlink_metadata(format!("{target}{init}")).is_ok())
        .ok_or_else(|| Error::BadRoot {
            device: target.to_owned(),
            reason: "it has no init".to_owned(),
        })?;
    for directory in ["/dev", "/proc", "/sys", "/run"] {
        let to = format!("{target}{directory}");
        mount(
            Some(directory),
            to.as_str(),
            None::<&str>,
            MsFlags::MS_MOVE,
            None::<&str>,
        )
        .map_err(Error::system("move mount", format!("{directory} to {to}")))?;
    }
    // Its memory would be lost until power-off.
    empty("/").map_err(Error::system("empty", "the initramfs"))?;
    chdir(target).map_err(Error::system("change into", target))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(Error::system("move mount", format!("{target} to /")))?;
    chroot(".").map_err(Error::system("change root to", target))?;
    chdir("/").map_err(Error::system("change into", "/"))?;
    Ok(init)
}

/// Becomes `init`. Returns only with an error.
pub fn become_init(init: &str) -> Result<Infallible, Error> {
    let program =
        CString::new(init).map_err(|e| Error::system("start", init)(io::Error::from(e)))?;
    execv(&program, std::slice::from_ref(&program)).map_err(Error::system("start", init))
}

/// Removes everything below `path` that is on the same file system.
fn empty(path: &str) -> io::Result<()> {
    let device = fs::symlink_metadata(path)?.dev();
    empty_directory(Path::new(path), device)
}

fn empty_directory(path: &Path, device: u64) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        let about = fs::symlink_metadata(&path)?;
        if about.dev() != device {
            continue;
        }
        if about.is_dir() {
            empty_directory(&path, device)?;
            // Not empty if something is mounted below.
            let _ = fs::remove_dir(&path);
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emptying_removes_links_but_not_what_they_point_to() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "x").unwrap();
        fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        fs::write(dir.path().join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("a/link")).unwrap();
        empty(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(outside.path().join("kept").exists());
    }
}
