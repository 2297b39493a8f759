//! Unpacks the layers of a container image (OCI Image Specification, layer.md) into a directory.
//!
//! The archive comes from outside and is not trusted. Its names are resolved by the kernel with the directory as root
//! (`openat2` with `RESOLVE_IN_ROOT`, Linux 5.6), so that `..` and absolute symbolic links stay inside as they would in
//! the container; the last name is never followed. Everything is made relative to directory handles, never by path.
//!
//! Whiteouts: `.wh.NAME` takes away NAME of the layers below, `.wh..wh..opq` all children of its directory. Neither
//! touches what came with the same layer, whatever the order in the archive.

use std::collections::HashSet;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens,
    makedev, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{
    Gid, LinkatFlags, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat,
};
use tar::EntryType;
use xattr::FileExt as _;

use super::archive::{Archive, Member};
use super::manifest::Packing;

/// Longest real path below which something may be made; programs that walk the tree later use plain paths.
const PATH_LIMIT: usize = 3500;

/// A layer that was refused or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive cannot be read.
    #[error("the layer's archive cannot be used: {0}")]
    Archive(io::Error),
    /// An entry cannot be used.
    #[error("the layer's entry {path:?} {reason}")]
    Entry {
        /// Its name.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An entry cannot be written.
    #[error("unpacking {path:?}: {source}")]
    Write {
        /// Its name.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// It grows larger than any image may.
    #[error("the image unpacks to more than {0} bytes; it is refused")]
    TooLarge(u64),
    /// It has more files than any image may.
    #[error("the image unpacks to more than {0} files; it is refused")]
    TooMany(u64),
    /// It grows larger than this device's disk has room for.
    #[error(
        "the image unpacks to more than {0} bytes, half of what was free on the disk: the other half is for the file \
         system made of it; delete apps, or use a larger disk"
    )]
    NoRoom(u64),
}

/// How much an image may still unpack to; shared by all its layers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of file content that are left.
    pub bytes: u64,
    /// Files, directories, links that are left.
    pub entries: u64,
    /// What there was at the start, to be told.
    most: (u64, u64),
    /// The bytes are bounded by the disk's free room, and not by what any image may have.
    by_disk: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(64 << 30, 4_000_000)
    }
}

impl Limits {
    /// So many bytes of file content, and so many files, directories and links.
    #[must_use]
    pub const fn new(bytes: u64, entries: u64) -> Self {
        Self {
            bytes,
            entries,
            most: (bytes, entries),
            by_disk: false,
        }
    }

    /// The usual, or less if the disk has room for `room` bytes only.
    #[must_use]
    pub fn within(room: u64) -> Self {
        let usual = Self::default();
        if room < usual.bytes {
            Self {
                by_disk: true,
                ..Self::new(room, usual.entries)
            }
        } else {
            usual
        }
    }

    fn take(&mut self, bytes: u64) -> Result<(), UnpackError> {
        let (most_bytes, most_entries) = self.most;
        self.entries = self
            .entries
            .checked_sub(1)
            .ok_or(UnpackError::TooMany(most_entries))?;
        self.bytes = self.bytes.checked_sub(bytes).ok_or(if self.by_disk {
            UnpackError::NoRoom(most_bytes)
        } else {
            UnpackError::TooLarge(most_bytes)
        })?;
        Ok(())
    }
}

/// Unpacks one layer over what is in `root` already.
pub fn unpack(
    root: &Path,
    layer: impl Read,
    packing: Packing,
    limits: &mut Limits,
) -> Result<(), UnpackError> {
    let root = Root::open(root)?;
    match packing {
        Packing::Tar => unpack_tar(&root, layer, limits),
        Packing::Gzip => unpack_tar(&root, flate2::read::MultiGzDecoder::new(layer), limits),
        Packing::Zstd => {
            let reader = zstd::stream::read::Decoder::new(layer).map_err(UnpackError::Archive)?;
            unpack_tar(&root, reader, limits)
        }
    }
}

fn unpack_tar(root: &Root, reader: impl Read, limits: &mut Limits) -> Result<(), UnpackError> {
    let mut archive = Archive::new(reader);
    // Hashes of the names that this layer made: eight bytes each instead of the names themselves.
    let mut made = Made::default();
    while let Some(mut entry) = archive.member().map_err(UnpackError::Archive)? {
        // Also what is only passed over has to be unfolded: a few bytes could keep a processor busy for hours.
        let stored = entry.header().entry_size().map_err(UnpackError::Archive)?;
        limits.take(entry.size().max(stored))?;
        let name = clean(&OsString::from_vec(entry.path_bytes().into_owned()))?;
        root.apply(&mut entry, &name, &mut made)
            .map_err(|problem| problem.at(&name))?;
    }
    Ok(())
}

/// The names that one layer made.
#[derive(Default)]
struct Made {
    hashes: HashSet<u64>,
    state: RandomState,
}

impl Made {
    fn add(&mut self, path: &Path) {
        // A file's directories belong to the layer as well: a whiteout must not take them with it.
        for part in path.ancestors() {
            if !self.hashes.insert(self.state.hash_one(part)) {
                break;
            }
        }
    }

    fn has(&self, path: &Path) -> bool {
        self.hashes.contains(&self.state.hash_one(path))
    }
}

/// What can go wrong with one entry; its name is added by who knows it.
enum Problem {
    Refused(&'static str),
    System(io::Error),
    Archive(io::Error),
}

impl From<Errno> for Problem {
    fn from(error: Errno) -> Self {
        Problem::System(error.into())
    }
}

impl Problem {
    fn at(self, path: &Path) -> UnpackError {
        let path = path.to_string_lossy().chars().take(300).collect();
        match self {
            Problem::Refused(reason) => UnpackError::Entry { path, reason },
            Problem::System(source) => UnpackError::Write { path, source },
            Problem::Archive(source) => UnpackError::Archive(source),
        }
    }
}

/// A name of the archive as a relative path of plain names; empty for the root itself.
fn clean(name: &OsStr) -> Result<PathBuf, UnpackError> {
    let refused = |reason| Problem::Refused(reason).at(Path::new(name));
    if name.len() > PATH_LIMIT {
        return Err(refused("has a name that is too long"));
    }
    if name.as_bytes().contains(&0) {
        return Err(refused("has a zero byte in its name"));
    }
    let mut path = PathBuf::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(refused("leads out of the image with `..`"));
            }
        }
    }
    Ok(path)
}

struct Root(OwnedFd);

impl Root {
    fn open(path: &Path) -> Result<Self, UnpackError> {
        nix::fcntl::open(
            path,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .map(Self)
        .map_err(|error| Problem::from(error).at(path))
    }

    /// Opens a directory inside, following symbolic links as the container would.
    fn resolve(&self, path: &Path) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(
                ResolveFlag::RESOLVE_IN_ROOT
                    | ResolveFlag::RESOLVE_NO_MAGICLINKS
                    | ResolveFlag::RESOLVE_NO_XDEV,
            );
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        openat2(&self.0, path, how)
    }

    /// Opens the directory that an entry goes into, making what is missing of it.
    fn parent(&self, path: &Path) -> Result<OwnedFd, Problem> {
        let dir = match self.resolve(path) {
            Ok(dir) => dir,
            Err(Errno::ENOENT | Errno::ENOTDIR) => {
                let mut so_far = PathBuf::new();
                let mut dir = self.resolve(&so_far)?;
                for part in path {
                    so_far.push(part);
                    dir = match self.resolve(&so_far) {
                        Ok(next) => next,
                        Err(error @ (Errno::ENOENT | Errno::ENOTDIR)) => {
                            if error == Errno::ENOTDIR {
                                unlinkat(&dir, part, UnlinkatFlags::NoRemoveDir)?;
                            }
                            match mkdirat(&dir, part, Mode::from_bits_truncate(0o755)) {
                                Err(Errno::EEXIST) => {
                                    return Err(Problem::Refused(
                                        "lies behind a symbolic link that leads nowhere",
                                    ));
                                }
                                result => result?,
                            }
                            self.resolve(&so_far)?
                        }
                        Err(error) => return Err(error.into()),
                    };
                }
                dir
            }
            Err(Errno::ELOOP) => {
                return Err(Problem::Refused(
                    "lies behind symbolic links that go in circles",
                ));
            }
            Err(error) => return Err(error.into()),
        };
        // Through symbolic links the real path can become longer than any name in the archive.
        let real = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))
            .map_err(Problem::System)?;
        if real.as_os_str().len() > PATH_LIMIT {
            return Err(Problem::Refused("lies too deep"));
        }
        Ok(dir)
    }

    fn apply(
        &self,
        entry: &mut Member<'_, impl Read>,
        path: &Path,
        made: &mut Made,
    ) -> Result<(), Problem> {
        let kind = entry.header().entry_type();
        // Global extended headers carry nothing that is used here.
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let Some(name) = path.file_name() else {
            // The root directory itself.
            if kind == EntryType::Directory {
                let dir = self.resolve(Path::new(""))?;
                let dir = openat(
                    &dir,
                    ".",
                    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                    Mode::empty(),
                )?;
                set_attributes(&dir, entry, &Attributes::of(entry)?)?;
            }
            return Ok(());
        };
        let parent_path = path.parent().unwrap_or(Path::new(""));
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(parent_path, OsStr::from_bytes(hidden), made);
        }
        let parent = self.parent(parent_path)?;
        made.add(path);
        let attributes = Attributes::of(entry)?;
        let there = match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(stat),
            Err(Errno::ENOENT) => None,
            Err(error) => return Err(error.into()),
        };
        let dir_stays = kind == EntryType::Directory && there.as_ref().is_some_and(is_dir);
        if there.is_some() && !dir_stays {
            remove(parent.as_fd(), name)?;
        }
        match kind {
            EntryType::Directory => {
                if !dir_stays {
                    mkdirat(&parent, name, Mode::from_bits_truncate(0o700))?;
                }
                let flags =
                    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let dir = openat(&parent, name, flags, Mode::empty())?;
                set_attributes(&dir, entry, &attributes)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlag::O_WRONLY
                    | OFlag::O_CREAT
                    | OFlag::O_EXCL
                    | OFlag::O_NOFOLLOW
                    | OFlag::O_CLOEXEC;
                let mut file = File::from(openat(
                    &parent,
                    name,
                    flags,
                    Mode::from_bits_truncate(0o600),
                )?);
                copy(entry, &mut file)?;
                set_attributes(&OwnedFd::from(file), entry, &attributes)
            }
            EntryType::Symlink => {
                let target = link_name(entry)?;
                symlinkat(target.as_os_str(), &parent, name)?;
                fchownat(
                    &parent,
                    name,
                    Some(attributes.uid),
                    Some(attributes.gid),
                    AtFlags::AT_SYMLINK_NOFOLLOW,
                )?;
                set_time(&parent, name, &attributes)
            }
            EntryType::Link => {
                let target = link_name(entry)?;
                let target = clean(target.as_os_str())
                    .map_err(|_| Problem::Refused("links to a name outside of the image"))?;
                let Some(target_name) = target.file_name() else {
                    return Err(Problem::Refused("is a hard link to the root directory"));
                };
                let target_parent = match self.resolve(target.parent().unwrap_or(Path::new(""))) {
                    Err(Errno::ENOENT | Errno::ENOTDIR) => {
                        return Err(Problem::Refused("is a hard link to nothing"));
                    }
                    dir => dir?,
                };
                match linkat(
                    &target_parent,
                    target_name,
                    &parent,
                    name,
                    LinkatFlags::empty(),
                ) {
                    Err(Errno::ENOENT) => Err(Problem::Refused("is a hard link to nothing")),
                    Err(Errno::EPERM) => Err(Problem::Refused("is a hard link to a directory")),
                    result => Ok(result?),
                }
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let (flag, device) = match kind {
                    EntryType::Char => (SFlag::S_IFCHR, device(entry)?),
                    EntryType::Block => (SFlag::S_IFBLK, device(entry)?),
                    _ => (SFlag::S_IFIFO, 0),
                };
                mknodat(&parent, name, flag, Mode::from_bits_truncate(0o600), device)?;
                fchownat(
                    &parent,
                    name,
                    Some(attributes.uid),
                    Some(attributes.gid),
                    AtFlags::AT_SYMLINK_NOFOLLOW,
                )?;
                fchmodat(&parent, name, attributes.mode, FchmodatFlags::FollowSymlink)?;
                set_time(&parent, name, &attributes)
            }
            _ => Err(Problem::Refused("is of a kind that is not supported")),
        }
    }

    fn whiteout(&self, parent: &Path, hidden: &OsStr, made: &Made) -> Result<(), Problem> {
        let dir = match self.resolve(parent) {
            Ok(dir) => dir,
            // Nothing below, nothing to hide.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if hidden == ".wh..opq" {
            for name in list(dir.as_fd())? {
                if !made.has(&parent.join(&name)) {
                    remove(dir.as_fd(), &name)?;
                }
            }
            return Ok(());
        }
        // Other names that begin so are aufs's own notes (layer.md: reserved).
        if hidden.as_bytes().starts_with(b".wh.") {
            return Ok(());
        }
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            return Err(Problem::Refused("is a whiteout of nothing"));
        }
        if made.has(&parent.join(hidden)) {
            return Ok(());
        }
        match remove(dir.as_fd(), hidden) {
            Err(Problem::System(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

fn is_dir(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

/// The names in a directory.
fn list(dir: BorrowedFd<'_>) -> Result<Vec<OsString>, Problem> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut dir = Dir::openat(dir, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

/// Removes a file, or a directory with all that is in it, without following symbolic links. Goes down by handles kept on
/// a list of its own: no archive can exhaust the stack.
fn remove(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Problem> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) => return Ok(()),
        Err(Errno::EISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open =
        |parent: BorrowedFd<'_>, name: &OsStr| -> Result<(OwnedFd, Vec<OsString>), Problem> {
            let dir = openat(parent, name, flags, Mode::empty())?;
            let names = list(dir.as_fd())?;
            Ok((dir, names))
        };
    let (dir, names) = open(parent, name)?;
    let mut stack = vec![(name.to_owned(), dir, names)];
    while let Some((_, dir, names)) = stack.last_mut() {
        match names.pop() {
            Some(child) => match unlinkat(&*dir, child.as_os_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) => {}
                Err(Errno::EISDIR) => {
                    let (child_dir, child_names) = open(dir.as_fd(), &child)?;
                    stack.push((child, child_dir, child_names));
                }
                Err(error) => return Err(error.into()),
            },
            None => {
                let Some((name, _, _)) = stack.pop() else {
                    break;
                };
                match stack.last() {
                    Some((_, above, _)) => {
                        unlinkat(above, name.as_os_str(), UnlinkatFlags::RemoveDir)?
                    }
                    None => unlinkat(parent, name.as_os_str(), UnlinkatFlags::RemoveDir)?,
                }
            }
        }
    }
    Ok(())
}

fn copy(from: &mut impl Read, to: &mut File) -> Result<(), Problem> {
    let mut buffer = vec![0u8; 64 * 1024];
    loop {
        let count = from.read(&mut buffer).map_err(Problem::Archive)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(buffer.get(..count).unwrap_or_default())
            .map_err(Problem::System)?;
    }
}

fn link_name<R: Read>(entry: &Member<'_, R>) -> Result<PathBuf, Problem> {
    match entry.link_name_bytes() {
        Some(name) if !name.is_empty() && !name.contains(&0) => {
            Ok(PathBuf::from(OsString::from_vec(name.into_owned())))
        }
        _ => Err(Problem::Refused("is a link without a target")),
    }
}

fn device<R: Read>(entry: &Member<'_, R>) -> Result<libc::dev_t, Problem> {
    let number = |number: io::Result<Option<u32>>| {
        number
            .map_err(Problem::Archive)
            .map(|number| u64::from(number.unwrap_or(0)))
    };
    Ok(makedev(
        number(entry.header().device_major())?,
        number(entry.header().device_minor())?,
    ))
}

/// Owner, mode and time of an entry.
struct Attributes {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    time: TimeSpec,
}

impl Attributes {
    fn of<R: Read>(entry: &Member<'_, R>) -> Result<Self, Problem> {
        let header = entry.header();
        let id = |id: io::Result<u64>| {
            let id = id.map_err(Problem::Archive)?;
            // The highest id means "leave as it is" to chown.
            u32::try_from(id)
                .ok()
                .filter(|id| *id < u32::MAX)
                .ok_or(Problem::Refused(
                    "belongs to a user or group that cannot be",
                ))
        };
        let time = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
        Ok(Self {
            uid: Uid::from_raw(id(header.uid())?),
            gid: Gid::from_raw(id(header.gid())?),
            mode: Mode::from_bits_truncate(header.mode().map_err(Problem::Archive)? & 0o7777),
            time: TimeSpec::new(time.min(i64::from(u32::MAX)), 0),
        })
    }
}

/// Sets owner, mode, extended attributes and time of an open file. The order matters: a change of owner clears the
/// set-user-id bit and the capabilities.
fn set_attributes<R: Read>(
    fd: &OwnedFd,
    entry: &mut Member<'_, R>,
    attributes: &Attributes,
) -> Result<(), Problem> {
    fchown(fd, Some(attributes.uid), Some(attributes.gid))?;
    fchmod(fd, attributes.mode)?;
    let file = File::from(fd.try_clone().map_err(Problem::System)?);
    for (key, value) in entry.records().flatten() {
        let Some(name) = key.strip_prefix(b"SCHILY.xattr.") else {
            continue;
        };
        // Capabilities and the user's own. Others steer the host: `trusted.overlay.*` would let a layer redirect
        // overlayfs, `security.ima` and the like belong to the host's policy.
        if name == b"security.capability"
            || name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")
        {
            file.set_xattr(OsStr::from_bytes(name), value)
                .map_err(Problem::System)?;
        }
    }
    Ok(futimens(fd, &attributes.time, &attributes.time)?)
}

fn set_time(parent: &OwnedFd, name: &OsStr, attributes: &Attributes) -> Result<(), Problem> {
    let name = CString::new(name.as_bytes())
        .map_err(|_| Problem::Refused("has a zero byte in its name"))?;
    Ok(utimensat(
        parent,
        name.as_c_str(),
        &attributes.time,
        &attributes.time,
        UtimensatFlags::NoFollowSymlink,
    )?)
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
