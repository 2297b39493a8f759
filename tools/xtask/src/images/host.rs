//! The host's image: root file system with its hash tree, the two unified kernel images, the boot loader.
//!
//! ```text
//! packages, prune, modules --> base tree, kernel, initramfs modules     (a step, kept by content; minutes)
//! base tree + overlay + our programs + guest --> staging --> squashfs --> dm-verity --> root.img    (seconds)
//! stub + command line (root hash) + kernel + initramfs --> host.efi, installer.efi
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use imaging::digest::Digest;
use imaging::parts::{PartName, Parts, RootHash, Variant, Version};

use super::archive::{self, Versions, parse_list};
use super::command::run;
use super::cpio::Archive;
use super::store::{Key, Kind, Store, walk};
use super::uki::{self, Section};
use super::{prune, tree};
use crate::progress::{Step, say};

const FOLDER: &str = "images/host";
/// The packages of both variants.
pub const LOCK: &str = "images/host/packages.lock";
/// Brings the boot loader and the stub; nothing of it lies in the root file system.
const BOOT_PACKAGE: &str = "systemd-boot-efi";

/// Unit of dm-verity, for data and hashes, in bytes.
const BLOCK: u64 = 4096;
/// Salt and id of the hash tree are fixed: the same root file system has the same root hash.
const SALT: &str = "736b657272792d726f6f742d73616c742d312d2d2d2d2d2d2d2d2d2d2d2d2d2d";
const VERITY_UUID: &str = "5b0d1d5e-8f4c-4f0e-9a53-5ce11e000001";

/// What is put into the root file system besides packages.
pub struct Contents {
    pub pillar: PathBuf,
    pub monitor: PathBuf,
    pub initrd: PathBuf,
    pub installer: PathBuf,
    /// Folder with `vmlinuz` and `vmlinux` of the guest.
    pub guest_kernel: PathBuf,
    pub guest_initramfs: Vec<u8>,
}

/// The public certificate authorities, in the base and, below, where the agent looks for them.
const ROOTS: &str = "ca-certificates.crt";
const ROOTS_AT: &str = "etc/ssl/certs/ca-certificates.crt";

/// The step that changes seldom: `tree/`, `vmlinuz`, `stub.efi`, `systemd-bootx64.efi`, `epoch`, [`ROOTS`].
pub fn base(store: &Store, variant: Variant, versions: Versions) -> Result<PathBuf> {
    let list = read("packages")?;
    let sections = parse_list(&list);
    // Both variants share one lock, so both are settled together.
    let all: Vec<String> = sections.values().flatten().cloned().collect();
    let section = variant.to_string();
    let mut lock = archive::settle(store, &all, Path::new(LOCK), versions)?;
    let mine: Vec<&String> = ["", &section]
        .iter()
        .filter_map(|name| sections.get(*name))
        .flatten()
        .collect();
    lock.packages
        .retain(|name, _| mine.iter().any(|mine| mine.trim_start_matches('@') == name));
    let mut key = Key::new("host base 3").with("variant", section.as_bytes());
    for package in lock.packages.values() {
        key = key.with("package", package.sha256.bytes());
    }
    for name in ["prune", "modules", "modules.initrd", "modules.installer"] {
        key = key.with(name, read(name)?.as_bytes());
    }
    store.step(&format!("host-base-{section}"), key, |to| {
        let debs = archive::fetch(store, &lock)?;
        let step = Step::begin(format!("base of the {section} root file system"));
        let (boot, debs): (Vec<_>, Vec<_>) = lock
            .packages
            .keys()
            .zip(debs)
            .partition(|(name, _)| *name == BOOT_PACKAGE);
        let paths = |some: Vec<(&String, PathBuf)>| {
            some.into_iter().map(|(_, path)| path).collect::<Vec<_>>()
        };
        let root = to.join("tree");
        let total = debs.len();
        tree::unpack(&paths(debs), &root, &mut |done| {
            if done % 20 == 0 || done == total {
                step.detail(&format!("{done} of {total} packages unpacked"));
            }
        })?;
        write(
            &to.join("epoch"),
            newest_time(&root)?.to_string().as_bytes(),
        )?;
        let kernel = tree::kernel_version(&root)?;
        let image = root.join("boot").join(format!("vmlinuz-{kernel}"));
        fs::copy(&image, to.join("vmlinuz"))
            .with_context(|| format!("keeping {}", image.display()))?;
        let mut wanted = names_in("modules")?;
        wanted.extend(names_in("modules.initrd")?);
        wanted.extend(names_in("modules.installer")?);
        tree::keep_modules(&root, &kernel, &wanted)?;
        write(&to.join(ROOTS), &public_roots(&root)?)?;
        tree::prune(&root, &prune::parse(&read("prune")?, &section))?;
        let scratch = store.scratch("boot")?;
        tree::unpack(&paths(boot), scratch.path(), &mut |_| ())?;
        for (from, name) in [
            ("linuxx64.efi.stub", "stub.efi"),
            ("systemd-bootx64.efi", PartName::Loader.file_name()),
        ] {
            let from = scratch.path().join("usr/lib/systemd/boot/efi").join(from);
            fs::copy(&from, to.join(name))
                .with_context(|| format!("keeping {}", from.display()))?;
        }
        step.done();
        Ok(())
    })
}

/// The authorities of Debian's ca-certificates as one file, as its maintainer script would make it with all of them trusted.
fn public_roots(root: &Path) -> Result<Vec<u8>> {
    let folder = root.join("usr/share/ca-certificates/mozilla");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| format!("listing {}", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    let mut bundle = Vec::new();
    for file in files {
        let text = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        bundle.extend_from_slice(text.trim_ascii_end());
        bundle.push(b'\n');
    }
    if bundle.is_empty() {
        bail!("{} holds no certificate", folder.display());
    }
    Ok(bundle)
}

/// Packs the image into `to` and describes it.
pub fn pack(
    store: &Store,
    base: &Path,
    variant: Variant,
    version: &Version,
    contents: &Contents,
    to: &Path,
) -> Result<Parts> {
    let epoch: u64 = fs::read_to_string(base.join("epoch"))?
        .trim()
        .parse()
        .context("reading the base's epoch")?;
    let section = variant.to_string();
    let mut key = Key::new("host root 1")
        .with("base", base.as_os_str().as_encoded_bytes())
        .with("version", version.as_str().as_bytes())
        .with("links", read("links")?.as_bytes())
        .tree(&Path::new(FOLDER).join("overlay"))?
        .file(&contents.pillar)?
        .file(&contents.monitor)?
        .file(&contents.guest_kernel.join("vmlinuz"))?
        .with("guest", &contents.guest_initramfs);
    if variant == Variant::Debug {
        key = key
            .with("links", read("links.debug")?.as_bytes())
            .tree(&Path::new(FOLDER).join("overlay.debug"))?;
    }
    let root = store.step(&format!("host-root-{section}"), key, |made| {
        let scratch = store.scratch("staging")?;
        let staging = scratch.path().join("root");
        stage(base, variant, version, contents, epoch, &staging)?;
        squash(&staging, variant, epoch, &made.join("root.img"))?;
        let hash = add_hash_tree(&made.join("root.img"))?;
        write(
            &made.join("verity"),
            format!("{} {}", hash.0, hash.1).as_bytes(),
        )
    })?;
    let verity =
        fs::read_to_string(root.join("verity")).context("reading what the hash tree is")?;
    let (hash, offset) = verity
        .split_once(' ')
        .context("the note of the hash tree is not two words")?;
    let hash: RootHash = hash.parse().context("reading the root hash")?;
    let offset: u64 = offset.parse().context("reading where the hash tree is")?;

    let step = Step::begin("unified kernel images");
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    put(&root.join("root.img"), &to.join(PartName::Root.file_name()))?;
    put(
        &base.join(PartName::Loader.file_name()),
        &to.join(PartName::Loader.file_name()),
    )?;
    let host_modules = names_in("modules.initrd")?;
    let mut installer_modules = host_modules.clone();
    installer_modules.extend(names_in("modules.installer")?);
    let command_line = command_line(variant)?;
    let host_line = format!("{command_line} roothash={hash} verityoffset={offset}");
    for (part, init, modules, line) in [
        (PartName::Host, &contents.initrd, host_modules, host_line),
        (
            PartName::Installer,
            &contents.installer,
            installer_modules,
            command_line,
        ),
    ] {
        let initrd = initramfs(store, base, init, &modules)?;
        let image = unified(base, variant, version, &line, &initrd)?;
        step.detail(&format!(
            "{part}: {:.1} MB, initramfs {:.1} MB of it",
            image.len() as f64 / 1e6,
            initrd.len() as f64 / 1e6
        ));
        write(&to.join(part.file_name()), &image)?;
    }
    let parts = Parts::measure(to, version.clone(), variant, hash, offset)?;
    parts.write(to)?;
    step.done();
    Ok(parts)
}

/// Puts the tree together: the base, then what is ours over it.
fn stage(
    base: &Path,
    variant: Variant,
    version: &Version,
    contents: &Contents,
    epoch: u64,
    root: &Path,
) -> Result<()> {
    // Hard links: the base is large and stays as it is; what is changed below is replaced, never written into.
    run(Command::new("cp")
        .arg("-al")
        .arg(base.join("tree"))
        .arg(root))?;
    overlay(&Path::new(FOLDER).join("overlay"), root)?;
    let mut links = read("links")?;
    if variant == Variant::Debug {
        overlay(&Path::new(FOLDER).join("overlay.debug"), root)?;
        links.push_str(&read("links.debug")?);
        busybox_links(root)?;
    }
    make_links(&links, root)?;
    for folder in [
        "config", "dev", "persist", "proc", "root", "run", "sys", "tmp", "var",
    ] {
        let path = root.join(folder);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    }
    put(&base.join(ROOTS), &root.join(ROOTS_AT))?;
    let lib = root.join("usr/lib/skerry");
    fs::create_dir_all(lib.join("guest")).with_context(|| format!("making {}", lib.display()))?;
    put(&contents.pillar, &lib.join("pillar"))?;
    put(&contents.monitor, &lib.join("skerry-vmm"))?;
    put(
        &contents.guest_kernel.join("vmlinuz"),
        &lib.join("guest/vmlinuz"),
    )?;
    write(&lib.join("guest/initrd.img"), &contents.guest_initramfs)?;
    write(&lib.join("version"), format!("{version}\n").as_bytes())?;
    write(
        &root.join("usr/lib/os-release"),
        os_release(variant, version).as_bytes(),
    )?;
    // systemd sets a clock that is earlier than this file's time to it, before anything else runs.
    let clock = root.join("usr/lib/clock-epoch");
    write(&clock, b"")?;
    fs::File::open(&clock)?.set_modified(UNIX_EPOCH + Duration::from_secs(epoch))?;
    if variant == Variant::Production {
        refuse_shells(root)?;
    }
    Ok(())
}

/// The production image has nothing that a person or an intruder could type commands into, and nothing that installs.
fn refuse_shells(root: &Path) -> Result<()> {
    const REFUSED: &[&str] = &[
        "sh", "bash", "dash", "ash", "zsh", "busybox", "perl", "python3", "apt", "apt-get", "dpkg",
        "rpm", "sshd", "ssh", "dropbear", "getty", "agetty", "login", "su", "sudo", "sulogin",
        "telnetd",
    ];
    for (path, _) in walk(root)? {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if REFUSED.contains(&name) {
            bail!("the production image must not hold /{}", path.display());
        }
    }
    Ok(())
}

/// What the image says of itself (os-release(5)).
fn os_release(variant: Variant, version: &Version) -> String {
    let (name, what) = match variant {
        Variant::Production => (format!("Skerry {version}"), ""),
        Variant::Debug => (
            format!("Skerry {version} DEBUG - root shell on the serial line"),
            "DEBUG_SHELL=ttyS0\n",
        ),
    };
    format!(
        "ID=skerry\nID_LIKE=debian\nNAME=Skerry\nVERSION_ID={version}\nIMAGE_ID=skerry\nIMAGE_VERSION={version}\nVARIANT_ID={variant}\nPRETTY_NAME=\"{name}\"\n{what}"
    )
}

/// Copies a folder's files over the tree. Each is made anew: what it replaces may be a hard link into the base.
fn overlay(from: &Path, root: &Path) -> Result<()> {
    for (path, kind) in walk(from)? {
        match kind {
            Kind::Folder => fs::create_dir_all(root.join(&path))
                .with_context(|| format!("making {}", path.display()))?,
            Kind::File { .. } => put(&from.join(&path), &root.join(&path))?,
            Kind::Link => bail!(
                "{} is a link; links stand in {FOLDER}/links",
                from.join(path).display()
            ),
        }
    }
    Ok(())
}

/// Makes the links of a list, `PATH -> TARGET` a line. The base has the first four of them already.
fn make_links(list: &str, root: &Path) -> Result<()> {
    for line in list
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
    {
        let (path, target) = line
            .split_once(" -> ")
            .with_context(|| format!("not `PATH -> TARGET`: {line}"))?;
        let path = root.join(path);
        if path.symlink_metadata().is_ok() {
            prune::remove(&path)?;
        }
        tree::link(&path, target)?;
    }
    Ok(())
}

/// The debug variant's shell and its commands are one program under many names.
fn busybox_links(root: &Path) -> Result<()> {
    let output = run(Command::new(root.join("usr/bin/busybox")).arg("--list"))?;
    for name in String::from_utf8_lossy(&output).lines() {
        let taken = ["usr/bin", "usr/sbin"]
            .iter()
            .any(|folder| root.join(folder).join(name).symlink_metadata().is_ok());
        if !taken {
            tree::link(&root.join("usr/bin").join(name), "busybox")?;
        }
    }
    Ok(())
}

/// Packs the tree. Production is smaller, debug quicker to make; both are made anew with each change of a program, and
/// the highest levels take a minute for two MiB.
fn squash(root: &Path, variant: Variant, epoch: u64, to: &Path) -> Result<()> {
    let level = match variant {
        Variant::Production => "12",
        Variant::Debug => "6",
    };
    let step = Step::begin(format!("root file system of the {variant} variant"));
    let epoch = epoch.to_string();
    run(Command::new("mksquashfs")
        .arg(root)
        .arg(to)
        .args([
            "-comp",
            "zstd",
            "-Xcompression-level",
            level,
            "-b",
            "262144",
        ])
        .args([
            "-all-root",
            "-no-xattrs",
            "-noappend",
            "-no-progress",
            "-quiet",
        ])
        .args(["-mkfs-time", &epoch, "-all-time", &epoch])
        .env_remove("SOURCE_DATE_EPOCH"))?;
    let size = to
        .metadata()
        .with_context(|| format!("looking at {}", to.display()))?
        .len();
    step.detail(&format!("{:.1} MiB", size as f64 / 1048576.0));
    step.done();
    Ok(())
}

/// Pads the image to whole blocks and appends its hash tree. Gives root hash and the tree's place in bytes.
fn add_hash_tree(image: &Path) -> Result<(String, u64)> {
    let file = fs::OpenOptions::new()
        .write(true)
        .open(image)
        .with_context(|| format!("opening {}", image.display()))?;
    let size = file.metadata()?.len().next_multiple_of(BLOCK);
    file.set_len(size)
        .with_context(|| format!("padding {}", image.display()))?;
    let output = run(Command::new("veritysetup")
        .arg("format")
        .args([
            format!("--hash-offset={size}"),
            format!("--data-blocks={}", size / BLOCK),
        ])
        .args([format!("--salt={SALT}"), format!("--uuid={VERITY_UUID}")])
        .args([image, image]))?;
    let text = String::from_utf8_lossy(&output);
    let hash = text
        .lines()
        .find_map(|line| line.strip_prefix("Root hash:"))
        .with_context(|| format!("veritysetup did not tell the root hash:\n{text}"))?;
    Ok((hash.trim().to_owned(), size))
}

/// An initramfs: init, kernel modules, and the order to load them in; packed with zstd.
fn initramfs(store: &Store, base: &Path, init: &Path, modules: &[String]) -> Result<Vec<u8>> {
    let root = base.join("tree");
    let kernel = tree::kernel_version(&root)?;
    let folder = root.join("usr/lib/modules").join(&kernel);
    let read_index = |name: &str| {
        fs::read_to_string(folder.join(name))
            .with_context(|| format!("reading the kernel's {name}"))
    };
    let known = super::modules::Modules::parse(
        &read_index("modules.dep")?,
        &read_index("modules.builtin")?,
    );
    let mut archive = Archive::default();
    archive.program(
        "init",
        fs::read(init).with_context(|| format!("reading {}", init.display()))?,
    );
    for mount_point in ["dev", "proc", "run", "sys", "sysroot", "tmp"] {
        archive.folder(mount_point);
    }
    let mut order = String::new();
    for path in known.choose(modules)? {
        let name = Path::new(&path)
            .file_name()
            .and_then(|name| name.to_str())
            .context("a module without a name")?;
        let inside = format!("lib/modules/{name}");
        archive.file(
            &inside,
            fs::read(folder.join(&path)).with_context(|| format!("reading the module {path}"))?,
        );
        order.push_str(&format!("/{inside}\n"));
    }
    archive.file("etc/skerry/modules.load", order.into_bytes());
    let key = Key::new("initramfs 1").with("cpio", &archive.to_bytes());
    let packed = store.step("initramfs", key, |to| {
        let plain = to.join("initrd.cpio");
        write(&plain, &archive.to_bytes())?;
        run(Command::new("zstd")
            .args(["-q", "-19", "--rm"])
            .arg(&plain)
            .arg("-o")
            .arg(to.join("initrd.img")))?;
        Ok(())
    })?;
    let path = packed.join("initrd.img");
    fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

fn unified(
    base: &Path,
    variant: Variant,
    version: &Version,
    line: &str,
    initrd: &[u8],
) -> Result<Vec<u8>> {
    let get = |name: &str| {
        fs::read(base.join(name)).with_context(|| format!("reading {}", base.join(name).display()))
    };
    let kernel = get("vmlinuz")?;
    let release = os_release(variant, version);
    let sections = [
        Section {
            name: ".osrel",
            bytes: release.as_bytes(),
        },
        Section {
            name: ".cmdline",
            bytes: line.as_bytes(),
        },
        Section {
            name: ".linux",
            bytes: &kernel,
        },
        Section {
            name: ".initrd",
            bytes: initrd,
        },
    ];
    uki::assemble(&get("stub.efi")?, &sections)
}

/// The command line of a variant, one line.
fn command_line(variant: Variant) -> Result<String> {
    let sections = parse_list(&read("cmdline")?);
    let words: Vec<String> = ["".to_owned(), variant.to_string()]
        .iter()
        .filter_map(|name| sections.get(name))
        .flatten()
        .cloned()
        .collect();
    Ok(words.join(" "))
}

fn names_in(file: &str) -> Result<Vec<String>> {
    Ok(parse_list(&read(file)?).remove("").unwrap_or_default())
}

fn read(name: &str) -> Result<String> {
    let path = Path::new(FOLDER).join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// The newest time of any file: when the youngest package was made. Links are not looked at: some are ours, and new.
fn newest_time(root: &Path) -> Result<u64> {
    let mut newest = 0;
    for (path, kind) in walk(root)? {
        if matches!(kind, Kind::File { .. }) {
            let modified = root.join(&path).symlink_metadata()?.modified()?;
            newest = newest.max(
                modified
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |age| age.as_secs()),
            );
        }
    }
    Ok(newest)
}

/// Copies a file in the place of whatever is there.
pub fn put(from: &Path, to: &Path) -> Result<()> {
    if to.symlink_metadata().is_ok() {
        prune::remove(to)?;
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    // Shares the blocks where the file system can, and keeps holes.
    run(Command::new("cp")
        .args(["--reflink=auto", "--sparse=auto"])
        .args([from, to]))
    .map(|_| ())
}

/// Writes a file in the place of whatever is there.
pub fn write(to: &Path, bytes: &[u8]) -> Result<()> {
    if to.symlink_metadata().is_ok() {
        prune::remove(to)?;
    }
    fs::write(to, bytes).with_context(|| format!("writing {}", to.display()))
}

/// Says how large the parts are.
pub fn tell_sizes(parts: &Parts) {
    for (name, file) in &parts.files {
        say(&format!(
            "  {name:<22} {:>7.1} MiB  {}",
            file.size as f64 / 1048576.0,
            short(&file.sha256)
        ));
    }
}

fn short(digest: &Digest) -> String {
    digest.hex().chars().take(16).collect()
}
