//! Boot blessing: a boot counts as good only when the device is enrolled, attested, and has its config confirmed.
//!
//! systemd-boot counts the tries of a UKI in its file name, `NAME+LEFT-DONE.efi` (UAPI Group, Boot Loader Specification,
//! "Boot counting"), and tells the running system the name that it started in an EFI variable. Good means: the counter
//! is taken out of the name. Until then each start uses up a try, and after the last one the other UKI is started.

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::backoff::Backoff;
use crate::context::{Attestation, Context};
use crate::status::Topic;

/// Set by systemd-boot if the boot is counted.
const VARIABLE: &str =
    "/sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// The EFI system partition.
const PARTITION: &str = "/dev/disk/by-partlabel/skerry-esp";

/// Why the boot is not marked good.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the boot loader said makes no sense.
    #[error("boot counter: {0}")]
    Variable(String),
    /// A step failed.
    #[error("boot counter: {operation} {path}: {source}")]
    Io {
        /// Which step.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        operation,
        path,
        source,
    }
}

/// Waits until the boot is good and says so to the boot loader, once.
pub async fn run(ctx: Arc<Context>) -> Result<(), Infallible> {
    ctx.device_id().await;
    let granted = |attestation: &Attestation| matches!(attestation, Attestation::Granted { .. });
    let _ = ctx.attestation.subscribe().wait_for(granted).await;
    let _ = ctx
        .contact
        .subscribe()
        .wait_for(|contact| contact.config_confirmed)
        .await;
    let mut backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(300));
    loop {
        let target = ctx.paths.run.join("esp");
        let result = tokio::task::spawn_blocking(move || {
            bless(Path::new(VARIABLE), Path::new(PARTITION), &target)
        })
        .await;
        match result {
            Ok(Ok(blessed)) => {
                ctx.status.clear(Topic::Boot);
                if blessed {
                    tracing::info!("this boot is marked good");
                }
                // Done until the next start.
                std::future::pending::<()>().await;
            }
            Ok(Err(error)) => ctx.status.raise(Topic::Boot, &error.to_string()),
            Err(error) => ctx
                .status
                .raise(Topic::Boot, &format!("boot counter: {error}")),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Marks the boot good. False if it is not counted.
fn bless(variable: &Path, partition: &Path, target: &Path) -> Result<bool, Error> {
    let raw = match fs::read(variable) {
        Ok(raw) => raw,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io("read", variable)(error)),
    };
    let counted = counted_path(&raw)
        .ok_or_else(|| Error::Variable("the boot loader names no file".to_owned()))?;
    fs::create_dir_all(target).map_err(io("create", target))?;
    mount(
        Some(partition),
        target,
        Some("vfat"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    )
    .map_err(|error| io("mount", partition)(error.into()))?;
    let renamed = rename(target, &counted);
    let unmounted =
        umount2(target, MntFlags::empty()).map_err(|error| io("unmount", target)(error.into()));
    renamed?;
    unmounted?;
    Ok(true)
}

/// Takes the counter out of the name and makes that last.
fn rename(root: &Path, counted: &Path) -> Result<(), Error> {
    let from = root.join(counted);
    let name = counted
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let Some(good) = good_name(name) else {
        return Err(Error::Variable(format!("{name:?} carries no counter")));
    };
    let to = from.with_file_name(good);
    if !from.exists() && to.exists() {
        // An earlier try got this far.
        return Ok(());
    }
    fs::rename(&from, &to).map_err(io("rename", &from))?;
    let file = fs::File::open(&to).map_err(io("open", &to))?;
    // A FAT directory is only written for certain with the whole file system.
    nix::unistd::syncfs(&file).map_err(|error| io("sync", &to)(error.into()))
}

/// The path in the variable: four bytes of attributes, then UTF-16 with backslashes and a zero at the end.
#[must_use]
pub fn counted_path(raw: &[u8]) -> Option<PathBuf> {
    let units: Vec<u16> = raw
        .get(4..)?
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|u| *u != 0)
        .collect();
    let text = String::from_utf16(&units).ok()?;
    let parts: Vec<&str> = text
        .split(['\\', '/'])
        .filter(|part| !part.is_empty())
        .collect();
    let safe = !parts.is_empty() && parts.iter().all(|part| *part != ".." && *part != ".");
    safe.then(|| parts.iter().collect())
}

/// `skerry-1+2-1.efi` becomes `skerry-1.efi`.
#[must_use]
pub fn good_name(name: &str) -> Option<String> {
    let stem_end = name
        .len()
        .checked_sub(4)
        .filter(|end| name.is_char_boundary(*end))?;
    let (stem, extension) = name.split_at(stem_end);
    if !extension.eq_ignore_ascii_case(".efi") {
        return None;
    }
    let (base, counter) = stem.rsplit_once('+')?;
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let good = match counter.split_once('-') {
        Some((left, done)) => number(left) && number(done),
        None => number(counter),
    };
    (good && !base.is_empty()).then(|| format!("{base}{extension}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(path: &str) -> Vec<u8> {
        let mut raw = vec![6, 0, 0, 0];
        raw.extend(path.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
        raw
    }

    #[test]
    fn names() {
        let table = [
            ("skerry-0.1.0+3.efi", Some("skerry-0.1.0.efi")),
            ("skerry-0.1.0+2-1.efi", Some("skerry-0.1.0.efi")),
            ("skerry-0.1.0+dev.5+0-3.EFI", Some("skerry-0.1.0+dev.5.EFI")),
            ("skerry-0.1.0.efi", None),
            ("skerry+x.efi", None),
            ("skerry+1-.efi", None),
            ("+1.efi", None),
            ("a+1.conf", None),
            ("", None),
            ("\u{e9}\u{e9}\u{e9}", None),
        ];
        for (name, good) in table {
            assert_eq!(good_name(name).as_deref(), good, "{name}");
        }
    }

    #[test]
    fn the_boot_loaders_variable() {
        let path = counted_path(&variable("\\EFI\\Linux\\skerry-1+2-1.efi")).unwrap();
        assert_eq!(path, Path::new("EFI/Linux/skerry-1+2-1.efi"));
        for bad in [
            vec![],
            vec![6, 0, 0, 0],
            variable(""),
            variable("\\..\\x+1.efi"),
            vec![6, 0, 0, 0, 0, 0xd8, 0, 0],
        ] {
            assert_eq!(counted_path(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_counter_goes_and_a_second_try_finds_it_gone() {
        let dir = tempfile::tempdir().unwrap();
        let linux = dir.path().join("EFI/Linux");
        fs::create_dir_all(&linux).unwrap();
        fs::write(linux.join("skerry-1+2-1.efi"), b"uki").unwrap();
        let counted = Path::new("EFI/Linux/skerry-1+2-1.efi");
        rename(dir.path(), counted).unwrap();
        assert_eq!(fs::read(linux.join("skerry-1.efi")).unwrap(), b"uki");
        assert!(!linux.join("skerry-1+2-1.efi").exists());
        rename(dir.path(), counted).unwrap();
        let error = rename(dir.path(), Path::new("EFI/Linux/other+1.efi"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("other+1.efi"), "{error}");
    }

    #[test]
    fn a_boot_that_is_not_counted_needs_no_blessing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            !bless(
                &dir.path().join("variable"),
                Path::new("/dev/null"),
                dir.path()
            )
            .unwrap()
        );
    }
}
