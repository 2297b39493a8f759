//! Makes the base of the host's root file system: packages unpacked, pruned, kernel modules chosen, libraries checked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::modules::Modules;
use super::prune::{self, Rule};
use crate::command::run;
use crate::files::{Kind, link, remove, walk};

/// Folder of shared libraries, and those in it that are opened by name at run time.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const OPENED_BY_NAME: &[&str] = &["libnss_dns.so.2", "libnss_files.so.2", "libgcc_s.so.1"];

/// Unpacks packages into an empty folder that gets Debian's merged /usr. No maintainer script runs.
pub fn unpack(debs: &[PathBuf], root: &Path, progress: &mut dyn FnMut(usize)) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        let folder = root.join("usr").join(name);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        link(&root.join(name), &format!("usr/{name}"))?;
    }
    for (index, deb) in debs.iter().enumerate() {
        let mut source = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(deb)
            .stdout(Stdio::piped())
            .spawn()
            .context("starting dpkg-deb")?;
        let pipe = source.stdout.take().context("dpkg-deb has no output")?;
        let unpacked = Command::new("tar")
            .args([
                "-x",
                "--keep-directory-symlink",
                "--no-same-owner",
                "-p",
                "-C",
            ])
            .arg(root)
            .stdin(pipe)
            .output()
            .context("starting tar")?;
        let packed = source.wait().context("waiting for dpkg-deb")?;
        if !unpacked.status.success() || !packed.success() {
            bail!(
                "unpacking {}: {}",
                deb.display(),
                String::from_utf8_lossy(&unpacked.stderr)
            );
        }
        progress(index + 1);
    }
    Ok(())
}

/// The kernel's version: the one folder of usr/lib/modules.
pub fn kernel_version(root: &Path) -> Result<String> {
    let folder = root.join("usr/lib/modules");
    let mut names =
        fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?;
    match (names.next(), names.next()) {
        (Some(entry), None) => Ok(entry?.file_name().to_string_lossy().into_owned()),
        _ => bail!("{} should hold one kernel's modules", folder.display()),
    }
}

/// Reads the modules that the tree holds, from depmod's index.
pub fn modules(root: &Path, version: &str) -> Result<Modules> {
    let folder = root.join("usr/lib/modules").join(version);
    let read = |name: &str| {
        fs::read_to_string(folder.join(name))
            .with_context(|| format!("reading the kernel's {name}"))
    };
    Ok(Modules::parse(
        &read("modules.dep")?,
        &read("modules.builtin")?,
    ))
}

/// Keeps the chosen modules, unpacked, and makes the index that modprobe and udev read.
pub fn keep_modules(root: &Path, version: &str, wanted: &[String]) -> Result<()> {
    run(Command::new("depmod").arg("-b").arg(root).arg(version))?;
    let chosen: BTreeSet<String> = modules(root, version)?
        .choose(wanted)?
        .into_iter()
        .collect();
    let folder = root.join("usr/lib/modules").join(version);
    let mut packed = Vec::new();
    for (path, kind) in walk(&folder.join("kernel"))? {
        if kind == Kind::Folder {
            continue;
        }
        let name = format!("kernel/{}", path.display());
        if chosen.contains(&name) {
            packed.push(folder.join(name));
        } else {
            remove(&folder.join(name))?;
        }
    }
    // squashfs packs them better than xz does one by one, and loads them faster.
    for some in packed.chunks(64) {
        run(Command::new("xz").args(["-d", "-q"]).args(
            some.iter()
                .filter(|path| path.extension().is_some_and(|e| e == "xz")),
        ))?;
    }
    remove_empty_folders(&folder.join("kernel"))?;
    run(Command::new("depmod").arg("-b").arg(root).arg(version))?;
    // The text forms of the index are for people; kmod reads the .bin files.
    for name in [
        "modules.alias",
        "modules.symbols",
        "modules.symbols.bin",
        "modules.builtin.modinfo",
        "modules.order",
    ] {
        let path = folder.join(name);
        if path.exists() {
            remove(&path)?;
        }
    }
    Ok(())
}

fn remove_empty_folders(root: &Path) -> Result<()> {
    for (path, kind) in walk(root)?.into_iter().rev() {
        let full = root.join(path);
        if kind == Kind::Folder && fs::read_dir(&full)?.next().is_none() {
            remove(&full)?;
        }
    }
    Ok(())
}

/// Applies the rules and takes away libraries that nobody asks for; fails if one that is asked for is not there.
pub fn prune(root: &Path, rules: &[Rule]) -> Result<()> {
    prune::apply(root, rules)?;
    let folder = root.join(LIBRARIES);
    let needs = needed_libraries(root)?;
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    let is_library = |path: &Path| path.starts_with(LIBRARIES);
    let mut open: Vec<String> = OPENED_BY_NAME
        .iter()
        .map(|name| (*name).to_owned())
        .collect();
    open.extend(
        needs
            .iter()
            .filter(|(path, _)| !is_library(path))
            .flat_map(|(_, names)| names.clone()),
    );
    let by_name: BTreeMap<String, &BTreeSet<String>> = needs
        .iter()
        .filter(|(path, _)| is_library(path))
        .filter_map(|(path, names)| Some((path.file_name()?.to_string_lossy().into_owned(), names)))
        .collect();
    while let Some(name) = open.pop() {
        // A library's name is mostly a link to its file; both stay.
        let file = resolve(&folder, &name).with_context(|| {
            let askers: Vec<String> = needs
                .iter()
                .filter(|(_, names)| names.contains(&name))
                .map(|(path, _)| path.display().to_string())
                .collect();
            format!(
                "the library {name} is needed by {}, and no package brings it",
                askers.join(", ")
            )
        })?;
        let more = by_name
            .get(&file)
            .map(|names| names.iter())
            .into_iter()
            .flatten();
        open.extend(more.filter(|name| !wanted.contains(*name)).cloned());
        wanted.extend([name, file]);
    }
    for (path, kind) in walk(&folder)? {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if kind != Kind::Folder && !wanted.contains(&name) {
            remove(&folder.join(path))?;
        }
    }
    remove_empty_folders(&folder)
}

/// The file that a library's name leads to, in the folder of libraries or in systemd's below it.
fn resolve(folder: &Path, name: &str) -> Result<String> {
    for place in [folder.to_path_buf(), folder.join("systemd")] {
        if let Ok(file) = place.join(name).canonicalize() {
            return Ok(file
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default());
        }
    }
    bail!("{name} is not in {}", folder.display())
}

/// Each ELF file of the tree with the libraries that it names.
fn needed_libraries(root: &Path) -> Result<BTreeMap<PathBuf, BTreeSet<String>>> {
    let mut elves = Vec::new();
    for (path, kind) in walk(root)? {
        let mut magic = [0; 4];
        let is_elf = matches!(kind, Kind::File { .. })
            && fs::File::open(root.join(&path))
                .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic))
                .is_ok()
            && magic == *b"\x7fELF";
        if is_elf && !path.starts_with("usr/lib/modules") {
            elves.push(path);
        }
    }
    let mut needs: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
    // With a second file, always there, readelf says before each file which one it is.
    let output = run(Command::new("readelf")
        .args(["-d", "-W"])
        .args(&elves)
        .arg("/bin/true")
        .current_dir(root))?;
    let mut current = PathBuf::new();
    for line in String::from_utf8_lossy(&output).lines() {
        if let Some(file) = line.strip_prefix("File: ") {
            current = PathBuf::from(file);
            if !current.is_absolute() {
                needs.entry(current.clone()).or_default();
            }
        } else if let (Some((_, name)), false) =
            (line.split_once("(NEEDED)"), current.is_absolute())
        {
            let name = name
                .split_once('[')
                .and_then(|(_, rest)| rest.strip_suffix(']'))
                .context("readelf has a new style")?;
            needs
                .entry(current.clone())
                .or_default()
                .insert(name.to_owned());
        }
    }
    Ok(needs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copies a program and some libraries of the build machine.
    fn machine(dir: &Path, libraries: &[&str]) {
        fs::create_dir_all(dir.join(LIBRARIES)).unwrap();
        fs::create_dir_all(dir.join("usr/bin")).unwrap();
        fs::copy("/bin/ls", dir.join("usr/bin/ls")).unwrap();
        for name in libraries {
            fs::copy(
                Path::new("/").join(LIBRARIES).join(name),
                dir.join(LIBRARIES).join(name),
            )
            .unwrap();
        }
    }

    #[test]
    fn libraries_that_nobody_asks_for_go() {
        let dir = tempfile::tempdir().unwrap();
        let all = [
            "libc.so.6",
            "libselinux.so.1",
            "libpcre2-8.so.0",
            "ld-linux-x86-64.so.2",
            "libz.so.1",
        ];
        machine(dir.path(), &[&all[..], OPENED_BY_NAME].concat());
        prune(dir.path(), &[]).unwrap();
        let left = |name: &str| dir.path().join(LIBRARIES).join(name).exists();
        assert!(left("libc.so.6") && left("libselinux.so.1") && left("libpcre2-8.so.0"));
        assert!(!left("libz.so.1"));
    }

    #[test]
    fn a_missing_library_is_named() {
        let dir = tempfile::tempdir().unwrap();
        machine(
            dir.path(),
            &[
                &["libc.so.6", "libselinux.so.1", "ld-linux-x86-64.so.2"],
                OPENED_BY_NAME,
            ]
            .concat(),
        );
        let error = format!("{:#}", prune(dir.path(), &[]).unwrap_err());
        assert!(error.contains("libpcre2-8.so.0"), "{error}");
    }
}
