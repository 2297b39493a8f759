//! Images: host, installer, guest side, demo content. Everything lands in `target/images/` as the docs page "Contracts
//! between the parts" says; finished steps lie in the user's cache, by content
//! ([`store`]): of what goes into a step, and of what makes it ([`recipe`]).

mod archive;
pub mod bare;
mod demo_container;
mod demo_vm;
mod guest_kernel;
mod host;
mod initramfs;
mod lock;
mod modules;
mod prune;
pub mod recipe;
mod reference;
mod release_key;
pub mod store;
mod tree;
mod uki;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use imaging::parts::{Variant, Version};

use crate::build;
use crate::files;
use crate::progress::{Step, say};
use archive::Versions;
use store::Store;

/// Where images land.
const TARGET: &str = "target/images";

/// How images are to be built.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// `production` (no shell, no login) or `debug` (a shell on the serial line)
    #[arg(long, default_value = "production", value_parser = parse_variant)]
    pub variant: Variant,
    /// Version of the image
    #[arg(long, default_value_t = workspace_version())]
    pub image_version: Version,
    /// Build exactly the package versions of the lock files
    #[arg(long)]
    pub locked: bool,
    /// Write the versions that were taken into the lock files
    #[arg(long, conflicts_with = "locked")]
    pub update: bool,
    /// Leave out the demo's virtual machine and container
    #[arg(long)]
    pub no_demo: bool,
    /// Take our programs from this folder instead of building them: pillar, skerry-vmm, initrd, installer, guest-init
    #[arg(long, value_name = "FOLDER")]
    pub programs: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            variant: Variant::Production,
            image_version: workspace_version(),
            locked: false,
            update: false,
            no_demo: false,
            programs: None,
        }
    }
}

impl Options {
    fn versions(&self) -> Versions {
        match (self.locked, self.update) {
            (true, _) => Versions::Locked,
            (false, true) => Versions::Update,
            (false, false) => Versions::Current,
        }
    }
}

/// The version of the workspace's crates.
#[allow(clippy::expect_used)] // A constant; every build of this program would fail alike.
fn workspace_version() -> Version {
    env!("CARGO_PKG_VERSION")
        .parse()
        .expect("the workspace's version is a version")
}

fn parse_variant(text: &str) -> Result<Variant, String> {
    [Variant::Production, Variant::Debug]
        .into_iter()
        .find(|variant| variant.to_string() == text)
        .ok_or_else(|| format!("'{text}' is neither production nor debug"))
}

/// Builds everything and gives the folder of the parts.
pub fn build(options: &Options) -> Result<PathBuf> {
    let store = Store::open()?;
    let versions = options.versions();
    if versions == Versions::Locked {
        let demo: &[&str] = if options.no_demo {
            &[]
        } else {
            &[demo_container::LOCK, demo_vm::LOCK]
        };
        archive::fetch_locks(&store, &[&[guest_kernel::LOCK, host::LOCK], demo].concat())?;
    }
    let guest_kernel = guest_kernel::build(&store, versions)?;
    let base = host::base(&store, options.variant, versions)?;
    if !options.no_demo {
        publish(&demo_container::build(&store, versions)?, "demo-container")?;
        publish(&demo_vm::build(&store, versions)?, "demo-vm")?;
    }

    let contents = contents(options.programs.as_deref(), guest_kernel)?;
    let to = Path::new(TARGET).join(options.variant.to_string());
    let parts = host::pack(
        &store,
        &base,
        options.variant,
        &options.image_version,
        &contents,
        &to,
    )?;
    say(&format!(
        "{} {} in {}:",
        options.variant,
        parts.version,
        to.display()
    ));
    host::tell_sizes(&parts);
    reference::write(&to, &parts)?;
    Ok(to)
}

/// Our programs, built, or taken from a folder where somebody else has built them.
fn contents(programs: Option<&Path>, guest_kernel: PathBuf) -> Result<host::Contents> {
    let (dynamic, fixed) = match programs {
        Some(folder) => (folder.to_path_buf(), folder.to_path_buf()),
        None => {
            let step = Step::begin("our programs for the image");
            let folders = (build::programs()?, build_static()?);
            step.done();
            folders
        }
    };
    Ok(host::Contents {
        pillar: dynamic.join("pillar"),
        monitor: fixed.join("skerry-vmm"),
        initrd: fixed.join("initrd"),
        installer: fixed.join("installer"),
        guest_kernel,
        guest_initramfs: initramfs::guest(&fixed.join("guest-init"))?,
    })
}

/// Builds the programs that run where no shared library is. The target is named although it is the machine's own: only then
/// does cargo keep the flags from build scripts and procedural macros, which cannot be linked statically.
fn build_static() -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let folder = Path::new("target/static");
    let mut cargo = build::cargo();
    cargo.args([
        "build",
        "--release",
        "--quiet",
        "--bins",
        "--target",
        TARGET,
    ]);
    for package in build::STATIC {
        cargo.args(["--package", package]);
    }
    cargo
        .env("CARGO_TARGET_DIR", folder)
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    let status = cargo.status().context("starting cargo")?;
    if !status.success() {
        bail!("building {} failed ({status})", build::STATIC.join(", "));
    }
    Ok(folder.join(TARGET).join("release"))
}

/// Puts a step's result at a place of its own below `target/images/`.
fn publish(made: &Path, name: &str) -> Result<()> {
    let to = Path::new(TARGET).join(name);
    let marker = to.join(".made-from");
    let origin = made.as_os_str().as_encoded_bytes();
    if fs::read(&marker).is_ok_and(|from| from == origin) {
        return Ok(());
    }
    if to.exists() {
        files::remove(&to)?;
    }
    for (path, kind) in files::walk(made)? {
        if kind != files::Kind::Folder {
            files::put(&made.join(&path), &to.join(&path))?;
        }
    }
    files::write(&marker, origin).context("noting where content came from")
}
