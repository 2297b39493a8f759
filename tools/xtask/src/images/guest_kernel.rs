//! The kernel of a container's microVM, built from Debian's source with `images/guest/kernel.config`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::archive::{self, Versions};
use super::recipe;
use super::store::Store;
use crate::command::{run, run_logged};
use crate::progress::Step;

const CONFIG: &str = "images/guest/kernel.config";
pub const LOCK: &str = "images/guest/packages.lock";
const SOURCE: &str = "linux-source-6.12";

/// Bytes of the kernel build's log when it is done, seen with the config of today; for the progress figure only.
const LOG_BYTES: u64 = 58_000;

/// Builds the kernel, or gives the folder of the one that was built before: `vmlinuz` (bzImage), `vmlinux` (ELF with PVH
/// entry, stripped) and `config`.
pub fn build(store: &Store, versions: Versions) -> Result<PathBuf> {
    let lock = archive::settle(store, &[SOURCE.to_owned()], Path::new(LOCK), versions)?;
    let package = lock
        .packages
        .get(SOURCE)
        .context("the lock lost the kernel's source")?;
    let key = recipe::GUEST_KERNEL
        .key()?
        .with("source", package.sha256.bytes())
        .file(Path::new(CONFIG))?;
    let config = fs::canonicalize(CONFIG).with_context(|| format!("finding {CONFIG}"))?;
    store.step("guest-kernel", key, |to| {
        let debs = archive::fetch(store, &lock)?;
        let deb = debs
            .first()
            .context("the kernel's source was not fetched")?;
        make(store, deb, &config, to)
    })
}

fn make(store: &Store, deb: &Path, config: &Path, to: &Path) -> Result<()> {
    let step = Step::begin(format!(
        "guest kernel from {SOURCE} (once for each config, some minutes)"
    ));
    let scratch = store.scratch("kernel")?;
    run(Command::new("dpkg-deb")
        .arg("-x")
        .arg(deb)
        .arg(scratch.path()))?;
    let tarball = scratch.path().join(format!("usr/src/{SOURCE}.tar.xz"));
    run(Command::new("tar")
        .arg("-xf")
        .arg(&tarball)
        .arg("-C")
        .arg(scratch.path()))?;
    let source = scratch.path().join(SOURCE);
    let kbuild = |targets: &[&str]| {
        let mut command = Command::new("nice");
        command
            .args(["-n", "10", "make", "-C"])
            .arg(&source)
            .args(targets);
        // Without these the kernel tells when, where and by whom it was built (Documentation/kbuild/reproducible-builds.rst).
        command
            .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01 00:00:00 UTC")
            .env("KBUILD_BUILD_USER", "skerry")
            .env("KBUILD_BUILD_HOST", "skerry")
            .env("KBUILD_BUILD_VERSION", "1");
        command
    };
    run(&mut kbuild(&["-s", "tinyconfig"]))?;
    run(Command::new("scripts/kconfig/merge_config.sh")
        .args(["-m", ".config"])
        .arg(config)
        .current_dir(&source))?;
    run(&mut kbuild(&["-s", "olddefconfig"]))?;
    let wanted =
        fs::read_to_string(config).with_context(|| format!("reading {}", config.display()))?;
    let got = fs::read_to_string(source.join(".config")).context("reading the kernel's .config")?;
    let refused = refused(&wanted, &got);
    if !refused.is_empty() {
        bail!(
            "the kernel's configuration does not take these lines of {CONFIG}: {}",
            refused.join(", ")
        );
    }
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let log = scratch.path().join("build.log");
    let mut shown = 0;
    run_logged(
        &mut kbuild(&[&format!("-j{jobs}"), "bzImage"]),
        &log,
        &mut |bytes| {
            let percent = (bytes * 100 / LOG_BYTES).min(99) / 10 * 10;
            if percent > shown {
                shown = percent;
                step.detail(&format!("{percent} %"));
            }
        },
    )?;
    for (from, name) in [("arch/x86/boot/bzImage", "vmlinuz"), (".config", "config")] {
        fs::copy(source.join(from), to.join(name))
            .with_context(|| format!("keeping the kernel's {from}"))?;
    }
    run(Command::new("strip")
        .arg("-o")
        .arg(to.join("vmlinux"))
        .arg(source.join("vmlinux")))?;
    step.done();
    Ok(())
}

/// Lines of the fragment that the finished configuration does not hold.
fn refused<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let has = |name: &str| {
        config
            .lines()
            .any(|line| line.split('=').next() == Some(name))
    };
    fragment
        .lines()
        .filter(|line| {
            match line
                .strip_prefix("# CONFIG_")
                .and_then(|rest| rest.strip_suffix(" is not set"))
            {
                Some(name) => has(&format!("CONFIG_{name}")),
                None => line.starts_with("CONFIG_") && !config.lines().any(|other| other == *line),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::refused;

    #[test]
    fn lines_that_the_configuration_dropped_are_found() {
        let config = "CONFIG_A=y\nCONFIG_B=\"x\"\n# CONFIG_C is not set\nCONFIG_D=y\n";
        let fragment = "# about CONFIG_A\nCONFIG_A=y\nCONFIG_B=\"x\"\nCONFIG_C=y\n# CONFIG_D is not set\n# CONFIG_E is not set\nCONFIG_F=y";
        assert_eq!(
            refused(fragment, config),
            ["CONFIG_C=y", "# CONFIG_D is not set", "CONFIG_F=y"]
        );
    }
}
