//! The installer's own stick: found by its label, mounted, and read.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use imaging::content::Content;
use imaging::fat;
use imaging::gpt::TYPE_ESP;
use imaging::parts::{PARTS_FILE, Parts};
use imaging::stick::{CONFIG_DIR, LABEL, PAYLOAD_DIR};
use nix::mount::{MsFlags, mount, umount};

use crate::block::{self, Disk};
use crate::console::Consoles;
use crate::uevent::Uevents;
use crate::{Error, early};

/// How long the stick may take to appear: USB hubs in old machines are slow.
const STICK: Duration = Duration::from_secs(30);

const MOUNT_POINT: &str = "/stick";

/// A bundle's files are a few KiB each.
const MAX_CONFIG_FILE: u64 = 1 << 20;
const MAX_CONFIG_FILES: usize = 64;

/// The stick, mounted read-only.
pub struct Stick {
    /// Name of the disk that it is.
    pub disk: String,
    node: PathBuf,
}

/// A partition that has the right type and label.
struct Candidate {
    disk: String,
    node: PathBuf,
    id: String,
}

impl Stick {
    /// Waits for the stick and mounts it. With several of them, the one that firmware started from counts (`booted_from`,
    /// a partition's id).
    pub fn find(
        events: &Uevents,
        booted_from: Option<&str>,
        consoles: &mut Consoles,
    ) -> Result<Self, Error> {
        let found = events.until(
            STICK,
            &mut || consoles.say("skerry-installer: waiting for the stick"),
            &mut || {
                let mut candidates = candidates();
                // Where it is known what was booted, that is waited for and nothing else taken for it.
                candidates.retain(|c| booted_from.is_none_or(|id| c.id == id));
                (!candidates.is_empty()).then(|| candidates.remove(0))
            },
        );
        // Firmware that names a partition which is not there must not stop the installation.
        let found = found.or_else(|| candidates().into_iter().next());
        let Some(Candidate { disk, node, .. }) = found else {
            let seen: Vec<String> = all_disks().into_iter().map(|d| d.name).collect();
            let seen = if seen.is_empty() {
                "none".to_owned()
            } else {
                seen.join(", ")
            };
            return Err(Error::NoStick {
                seconds: STICK.as_secs(),
                seen,
            });
        };
        let flags =
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        early::mount_at(&node.display().to_string(), "vfat", MOUNT_POINT, flags, "")?;
        Ok(Self { disk, node })
    }

    /// Directory of the payload.
    pub fn payload(&self) -> PathBuf {
        Path::new(MOUNT_POINT).join(PAYLOAD_DIR)
    }

    /// Reads `parts.json`.
    pub fn parts(&self) -> Result<Parts, Error> {
        Ok(Parts::load(&self.payload())?)
    }

    /// Reads the bundle's files, whatever they are called: an EVE controller's files can be used as they are.
    pub fn config(&self) -> Result<Vec<Content>, Error> {
        read_config(&Path::new(MOUNT_POINT).join(CONFIG_DIR))
    }

    /// Writes `text` into the file `name` of the stick's own directory.
    pub fn write_report(&self, name: &str, text: &str) -> Result<(), Error> {
        let node = self.node.display().to_string();
        let remount = |flags: MsFlags| {
            let flags = flags
                | MsFlags::MS_REMOUNT
                | MsFlags::MS_NOSUID
                | MsFlags::MS_NODEV
                | MsFlags::MS_NOEXEC;
            mount(
                Some(node.as_str()),
                MOUNT_POINT,
                None::<&str>,
                flags,
                None::<&str>,
            )
        };
        remount(MsFlags::empty()).map_err(Error::system("make writable", &node))?;
        let path = Path::new(MOUNT_POINT).join("skerry").join(name);
        let written = durable::write(&path, text.as_bytes(), 0o644)
            .map_err(|error| Error::system("write", path.display().to_string())(error.source));
        // Written or not, the stick should be safe to pull.
        remount(MsFlags::MS_RDONLY).map_err(Error::system("make read-only", &node))?;
        written
    }

    /// Lets go of the stick.
    pub fn unmount(self) {
        // Read-only by now: nothing can be lost.
        let _ = umount(MOUNT_POINT);
    }
}

fn all_disks() -> Vec<Disk> {
    block::disks(Path::new("/sys")).unwrap_or_default()
}

fn candidates() -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for disk in all_disks() {
        let Ok(table) = disk.table() else { continue };
        for (number, partition) in &table.partitions {
            if partition.kind == TYPE_ESP
                && let Some((start, _)) = table.extent(*number)
                && let Some(found) = block::partition(Path::new("/sys"), &disk.name, *number, start)
                && label(&found.node).as_deref() == Some(LABEL)
            {
                let id = partition.id.to_string();
                candidates.push(Candidate {
                    disk: disk.name.clone(),
                    node: found.node,
                    id,
                });
            }
        }
    }
    candidates
}

fn label(node: &Path) -> Option<String> {
    let mut sector = vec![0; 512];
    File::open(node).ok()?.read_exact(&mut sector).ok()?;
    fat::label(&sector)
}

fn read_config(dir: &Path) -> Result<Vec<Content>, Error> {
    let name_of = |path: &Path| path.display().to_string();
    let mut contents = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::system("read", name_of(dir)))? {
        let entry = entry.map_err(Error::system("read", name_of(dir)))?;
        let path = entry.path();
        let about = entry
            .metadata()
            .map_err(Error::system("read", name_of(&path)))?;
        let name = entry.file_name().to_str().map(str::to_owned);
        let (Some(name), true) = (name, about.is_file()) else {
            continue;
        };
        if about.len() > MAX_CONFIG_FILE || contents.len() >= MAX_CONFIG_FILES {
            let reason = format!(
                "more than {MAX_CONFIG_FILES} files, or one of more than {MAX_CONFIG_FILE} bytes"
            );
            return Err(imaging::Error::WrongPart { path, reason }.into());
        }
        let bytes = fs::read(&path).map_err(Error::system("read", name_of(&path)))?;
        contents.push(Content::bytes(name, bytes));
    }
    contents.sort_by(|a, b| a.path.cmp(&b.path));
    if contents.iter().any(|c| c.path == "server") {
        return Ok(contents);
    }
    let reason = format!(
        "the bundle is missing: it should lie beside {PAYLOAD_DIR}/{PARTS_FILE} with a file 'server'"
    );
    Err(imaging::Error::WrongPart {
        path: dir.to_owned(),
        reason,
    }
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_is_taken_as_it_is_but_must_name_a_server() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("root-certificate.pem"), "x").unwrap();
        fs::create_dir(dir.path().join("System Volume Information")).unwrap();
        let error = read_config(dir.path()).unwrap_err().to_string();
        assert!(error.contains("file 'server'"), "{error}");
        fs::write(dir.path().join("server"), "a:1").unwrap();
        let names: Vec<_> = read_config(dir.path())
            .unwrap()
            .into_iter()
            .map(|c| c.path)
            .collect();
        assert_eq!(names, ["root-certificate.pem", "server"]);
        fs::write(
            dir.path().join("big"),
            vec![0; MAX_CONFIG_FILE as usize + 1],
        )
        .unwrap();
        assert!(read_config(dir.path()).is_err());
    }
}
