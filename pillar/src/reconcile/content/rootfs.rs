//! A container's root file system: layers unpacked one over the other and packed again as one read-only EROFS image, which
//! all apps of that image share.
//!
//! ```text
//!   <hex>.tmp/        layers are unpacked here, root only; taken away at the end and at the next attempt
//!   <hex>.tmp.erofs   mkfs.erofs writes it
//!   <hex>.json        notes: the process's user as numbers, which only the unpacked tree can tell
//!   <hex>.erofs       renamed last: it is there only when all of it is
//! ```

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use protocol::digest::Digest;
use serde::{Deserialize, Serialize};

use super::manifest::{ImageConfig, Layer};
use super::store::{Store, free_bytes};
use super::unpack::{self, Limits, UnpackError};
use crate::host::files::{self, FileError, fail};
use crate::host::program::{Program, ProgramError};

/// Largest /etc/passwd or /etc/group that is read.
const ACCOUNTS_LIMIT: u64 = 1024 * 1024;

/// A root file system that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A layer was refused.
    #[error("layer {number} ({digest}): {source}")]
    Unpack {
        /// Counted from 1, the lowest.
        number: usize,
        /// Its blob.
        digest: Digest,
        /// Why.
        source: UnpackError,
    },
    /// The disk did not take it.
    #[error(transparent)]
    File(#[from] FileError),
    /// mkfs.erofs failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The image's user does not exist.
    #[error("the image runs as {0:?}, which is not in its /etc/passwd or /etc/group")]
    NoSuchUser(String),
    /// The work was cut short.
    #[error("unpacking was interrupted")]
    Interrupted,
}

/// What only the unpacked tree can tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notes {
    /// User id of the process.
    pub uid: u32,
    /// Group id of the process.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The notes of a root file system that is ready; `None` if it is not.
pub fn ready(store: &Store, manifest: &Digest) -> Result<Option<Notes>, FileError> {
    if !store.rootfs(manifest).is_file() {
        return Ok(None);
    }
    let notes = files::read_limited(&store.rootfs_notes(manifest), ACCOUNTS_LIMIT)?;
    // Notes that cannot be read are made again with the rest.
    Ok(notes.and_then(|notes| serde_json::from_slice(&notes).ok()))
}

/// Makes the root file system of an image whose layers are all in the store.
pub async fn build(
    store: &Store,
    manifest: Digest,
    layers: &[Layer],
    config: &ImageConfig,
) -> Result<Notes, RootfsError> {
    // The thread that unpacks holds the lock as well: when this work is given up, it may go on for a while.
    let alone = std::sync::Arc::new(store.unpacking.clone().lock_owned().await);
    let work = store.rootfs_work(&manifest);
    let unfinished = files::with_suffix(&work, ".erofs");
    files::remove(&unfinished)?;
    let notes = {
        let (store, work, layers, user) = (
            store.clone(),
            work.clone(),
            layers.to_vec(),
            config.user.clone(),
        );
        let alone = alone.clone();
        tokio::task::spawn_blocking(move || {
            let result = unpack_all(&store, &work, &layers, &user);
            drop(alone);
            result
        })
        .await
        .map_err(|_| RootfsError::Interrupted)??
    };
    // The file system's id comes from the manifest, not from chance: the same image gives the same bytes.
    let id = uuid::Uuid::from_bytes(
        manifest
            .bytes()
            .first_chunk::<16>()
            .copied()
            .unwrap_or_default(),
    );
    Program::new("mkfs.erofs")
        .args(["-d0", "--preserve-mtime", "-U", &id.to_string()])
        .arg(&unfinished)
        // The image's root, not our private directory around it.
        .arg(work.join("root"))
        .limit(Duration::from_secs(1800))
        .run()
        .await?;
    let store = store.clone();
    tokio::task::spawn_blocking(move || {
        let text =
            serde_json::to_vec(&notes).map_err(|error| fail("writing", &work)(error.into()))?;
        files::write(&store.rootfs_notes(&manifest), &text, 0o600)?;
        File::open(&unfinished)
            .and_then(|file| file.sync_all())
            .map_err(fail("syncing", &unfinished))?;
        files::rename(&unfinished, &store.rootfs(&manifest))?;
        files::remove_tree(&work)?;
        Ok(notes)
    })
    .await
    .map_err(|_| RootfsError::Interrupted)?
}

fn unpack_all(
    store: &Store,
    work: &Path,
    layers: &[Layer],
    user: &str,
) -> Result<Notes, RootfsError> {
    files::remove_tree(work)?;
    // Only root may look inside while set-user-id programs of strangers lie there.
    files::make_dir(work, 0o700)?;
    let root = work.join("root");
    files::make_dir(&root, 0o755)?;
    // Leave half of what is free for the EROFS image.
    let mut limits = Limits::within(free_bytes(work)? / 2);
    for (index, layer) in layers.iter().enumerate() {
        let path = store.blob(&layer.blob.digest);
        let file = File::open(&path).map_err(fail("opening", &path))?;
        unpack::unpack(
            &root,
            BufReader::with_capacity(64 * 1024, file),
            layer.packing,
            &mut limits,
        )
        .map_err(|source| RootfsError::Unpack {
            number: index + 1,
            digest: layer.blob.digest,
            source,
        })?;
    }
    let read = |name: &str| -> Result<String, FileError> {
        // Symbolic links are not followed: they would lead into the host's tree.
        let etc = root.join("etc");
        if !fs::symlink_metadata(&etc).is_ok_and(|about| about.is_dir()) {
            return Ok(String::new());
        }
        let bytes = files::read_limited(&etc.join(name), ACCOUNTS_LIMIT).unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
    };
    let notes = resolve_user(user, &read("passwd")?, &read("group")?)
        .ok_or_else(|| RootfsError::NoSuchUser(user.to_owned()))?;
    Ok(notes)
}

/// Finds the numbers of an image's user (OCI image config, `User`): `name`, `uid`, `name:group`, `uid:gid` and mixtures.
#[must_use]
pub fn resolve_user(user: &str, passwd: &str, group: &str) -> Option<Notes> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let fields = |text: &'_ str| -> Vec<Vec<String>> {
        text.lines()
            .map(|line| line.split(':').map(str::to_owned).collect())
            .collect()
    };
    let number = |field: Option<&String>| field.and_then(|text| text.parse::<u32>().ok());
    let accounts = fields(passwd);
    let by_name = accounts
        .iter()
        .find(|account| account.first().is_some_and(|name| name == user));
    let by_number = || {
        let wanted = user.parse::<u32>().ok()?;
        accounts
            .iter()
            .find(|account| number(account.get(2)) == Some(wanted))
    };
    let account = by_name.or_else(by_number);
    let uid = match account {
        Some(account) => number(account.get(2))?,
        None => user.parse().ok()?,
    };
    let name = account.and_then(|account| account.first());
    let groups_known = fields(group);
    let gid = match wanted_group {
        Some(wanted) => match groups_known
            .iter()
            .find(|group| group.first().is_some_and(|name| name == wanted))
        {
            Some(group) => number(group.get(2))?,
            None => wanted.parse().ok()?,
        },
        None => account
            .and_then(|account| number(account.get(3)))
            .unwrap_or(0),
    };
    // As container engines do: supplementary groups only if no group was named.
    let groups = match (wanted_group, name) {
        (None, Some(name)) => groups_known
            .iter()
            .filter(|group| {
                group
                    .get(3)
                    .is_some_and(|members| members.split(',').any(|member| member == name))
            })
            .filter_map(|group| number(group.get(2)))
            .filter(|group| *group != gid)
            .take(64)
            .collect(),
        _ => Vec::new(),
    };
    let valid = |id: u32| id < u32::MAX;
    (valid(uid) && valid(gid)).then_some(Notes { uid, gid, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_become_numbers() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/:\nodd:x:notanumber:1::/:\n";
        let group = "root:x:0:\nweb:x:34:\nssl:x:50:other,web\n";
        let notes = |uid, gid, groups: &[u32]| {
            Some(Notes {
                uid,
                gid,
                groups: groups.to_vec(),
            })
        };
        for (user, expected) in [
            ("", notes(0, 0, &[])),
            ("root", notes(0, 0, &[])),
            ("web", notes(33, 34, &[50])),
            ("33", notes(33, 34, &[50])),
            ("web:ssl", notes(33, 50, &[])),
            ("web:7", notes(33, 7, &[])),
            ("1000", notes(1000, 0, &[])),
            ("1000:1001", notes(1000, 1001, &[])),
            ("nobody", None),
            ("web:nobody", None),
            ("odd", None),
            ("4294967295", None),
            ("-1", None),
        ] {
            assert_eq!(resolve_user(user, passwd, group), expected, "{user}");
        }
        assert_eq!(resolve_user("", "", ""), notes(0, 0, &[]));
    }
}
