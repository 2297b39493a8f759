//! `cargo xtask fuzz`: one fuzz target for as long as one likes, led by coverage (libFuzzer, through cargo-fuzz).
//!
//! ```text
//! tools/fuzz/libfuzzer --cargo-fuzz build--> target/fuzz/build
//! seeds of the target --> target/fuzz/seeds/NAME --.
//!                                                    >--> libFuzzer --> what it found: target/fuzz/found/NAME
//! what earlier runs found out --> target/fuzz/corpus/NAME
//! ```
//!
//! Without a sanitizer the stable compiler suffices. Our code is checked by the compiler for what sanitizers look for, and
//! the targets check by themselves that no memory is taken out of proportion.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::lint::tool;
use crate::progress::{Step, say};

/// Where the crate with libFuzzer is.
const CRATE: &str = "tools/fuzz/libfuzzer";
/// Everything that is made, in the workspace's folder for such things.
const FOLDER: &str = "target/fuzz";
const CARGO_FUZZ: (&str, &str, &[&str]) = ("cargo-fuzz", "0.13.2", &[]);
/// Seconds after which an input counts as hanging.
const HANG: u32 = 20;

/// Names the targets, one a line.
pub fn list() -> Result<()> {
    ours(&["list"])
}

/// Runs a target; false if it found something. Nothing of what [`crate::prereq`] brings is needed, but a C++ compiler.
pub fn run(name: &str, seconds: u32) -> Result<bool> {
    if Command::new("c++").arg("--version").output().is_err() {
        bail!("libFuzzer is built with a C++ compiler: apt-get install g++");
    }
    let folder = std::env::current_dir()
        .context("finding the workspace")?
        .join(FOLDER);
    let place = |what: &str| -> Result<PathBuf> {
        let path = folder.join(what).join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(path)
    };
    // A name that is none is told by this program, before a folder is made for it.
    let seeds = folder.join("seeds").join(name);
    ours(&["seeds", name, &seeds.to_string_lossy()])?;
    let (corpus, found) = (place("corpus")?, place("found")?);
    lint(&folder.join("clippy"))?;
    let cargo_fuzz = std::path::absolute(tool(CARGO_FUZZ)?).context("finding cargo-fuzz")?;
    say(&format!(
        "fuzzing {name} for {seconds} s (the first build with coverage takes some minutes)"
    ));
    let status = Command::new(cargo_fuzz)
        .args(["run", "--sanitizer", "none", "--fuzz-dir", CRATE])
        .arg("--target-dir")
        .arg(folder.join("build"))
        .arg("any")
        .args([&corpus, &seeds])
        .arg("--")
        .args([
            format!("-max_total_time={seconds}"),
            format!("-timeout={HANG}"),
            format!("-artifact_prefix={}/", found.display()),
            "-print_final_stats=1".to_owned(),
        ])
        .env("SKERRY_FUZZ_TARGET", name)
        .status()
        .context("starting cargo-fuzz")?;
    if !status.success() {
        tell(name, &found);
    }
    Ok(status.success())
}

/// Checks the crate with libFuzzer, which `cargo xtask lint` cannot: its build needs the C++ compiler.
fn lint(target: &Path) -> Result<()> {
    let step = Step::begin("clippy over the fuzzer (the first time some minutes)");
    let status = build::cargo()
        .args(["clippy", "--quiet", "--release", "--locked"])
        .arg("--manifest-path")
        .arg(Path::new(CRATE).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .args(["--", "-D", "warnings"])
        .status()
        .context("starting cargo clippy")?;
    if !status.success() {
        step.failed(&status.to_string());
        bail!("clippy complains about {CRATE} ({status})");
    }
    step.done();
    Ok(())
}

/// Says what was found and how to see it again.
fn tell(name: &str, found: &Path) {
    say(&format!(
        "{name} failed; inputs that it does not stand lie in {}. To run one again: \
         target/release/skerry-fuzz run {name} FILE",
        found.display()
    ));
}

/// Runs the program that knows the targets.
fn ours(arguments: &[&str]) -> Result<()> {
    let program = build::programs()?.join("skerry-fuzz");
    let status = Command::new(&program)
        .args(arguments)
        .status()
        .with_context(|| format!("starting {}", program.display()))?;
    if !status.success() {
        bail!("{} {} failed", program.display(), arguments.join(" "));
    }
    Ok(())
}
