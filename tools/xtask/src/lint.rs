//! What is checked without running anything: formatting, lints, licences, docs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::cache;
use crate::progress::{Step, minutes, say};
use crate::reference;

/// Tools that Debian 12 does not have, at fixed versions; built once into the user's cache.
const CARGO_DENY: (&str, &str, &[&str]) = ("cargo-deny", "0.20.2", &[]);
const MDBOOK: (&str, &str, &[&str]) = (
    "mdbook",
    "0.5.4",
    &["--no-default-features", "--features", "search"],
);

/// libFuzzer's runner needs a C++ compiler and is built by `cargo xtask fuzz` only; what can be checked unbuilt is checked here.
const FUZZER: &str = "tools/fuzz/libfuzzer/Cargo.toml";

/// Runs every check and reports each that fails, not only the first.
pub fn run() -> Result<()> {
    let start = Instant::now();
    let mut failed = Vec::new();
    let cargo = build::cargo;
    check(
        &mut failed,
        "formatting",
        cargo().args(["fmt", "--all", "--check"]),
    );
    check(
        &mut failed,
        "clippy",
        cargo().args([
            "clippy",
            "--quiet",
            "--release",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ]),
    );
    check(
        &mut failed,
        "documentation of the code",
        cargo()
            .args([
                "doc",
                "--quiet",
                "--release",
                "--workspace",
                "--no-deps",
                "--document-private-items",
                "--locked",
            ])
            .env(
                "RUSTDOCFLAGS",
                "-D warnings -A rustdoc::private-intra-doc-links",
            ),
    );
    let deny = tool(CARGO_DENY)?;
    for (name, manifest) in [
        ("licences and sources of dependencies", "Cargo.toml"),
        (
            "the same of the fuzzer, which is outside the workspace",
            FUZZER,
        ),
    ] {
        check(
            &mut failed,
            name,
            Command::new(&deny).args([
                "--log-level",
                "error",
                "--manifest-path",
                manifest,
                "--locked",
                "--config",
                "ci/deny.toml",
                "check",
                "licenses",
                "bans",
                "sources",
            ]),
        );
    }
    check(
        &mut failed,
        "formatting of the fuzzer",
        cargo().args(["fmt", "--manifest-path", FUZZER, "--check"]),
    );
    let step = Step::begin("reference pages against the code");
    match reference::check() {
        Ok(()) => {
            step.done();
        }
        Err(error) => {
            step.failed(&format!("{error:#}"));
            failed.push("reference pages");
        }
    }
    let mdbook = tool(MDBOOK)?;
    check(
        &mut failed,
        "the book",
        Command::new(mdbook).args(["build", "docs"]),
    );
    let took = minutes(start.elapsed());
    if !failed.is_empty() {
        bail!("these checks failed: {} ({took})", failed.join(", "));
    }
    say(&format!("all checks passed, {took}"));
    Ok(())
}

fn check(failed: &mut Vec<&'static str>, name: &'static str, command: &mut Command) {
    let step = Step::begin(name);
    match command.status() {
        Ok(status) if status.success() => {
            step.done();
        }
        Ok(status) => {
            step.failed(&status.to_string());
            failed.push(name);
        }
        Err(error) => {
            step.failed(&error.to_string());
            failed.push(name);
        }
    }
}

/// The path of a tool, built if it is not there yet.
pub(crate) fn tool((name, version, features): (&str, &str, &[&str])) -> Result<PathBuf> {
    let root = cache::dir()?
        .join("tools")
        .join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if program.exists() {
        return Ok(program);
    }
    let step = Step::begin(format!(
        "building {name} {version} (once a machine, some minutes)"
    ));
    let target = Path::new("target/tools");
    let output = build::cargo()
        .args([
            "install",
            "--quiet",
            "--locked",
            // Neither runs for more than seconds; optimising them would take minutes.
            "--debug",
            "--version",
            version,
            name,
            "--root",
        ])
        .arg(&root)
        .args(features)
        .env("CARGO_TARGET_DIR", target)
        .env("CARGO_PROFILE_DEV_DEBUG", "none")
        .output()
        .with_context(|| format!("starting cargo to build {name}"))?;
    if !output.status.success() {
        bail!(
            "building {name} {version}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    step.done();
    Ok(program)
}
