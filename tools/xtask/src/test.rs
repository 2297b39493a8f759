//! `cargo xtask test`: unit and component tests of every crate, then the essential end-to-end tests.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::build;
use crate::e2e;
use crate::progress::{minutes, say};

/// Runs everything; gives how many passed and failed. Goes on after a failure, so that one run tells all.
pub fn run() -> Result<bool> {
    let start = Instant::now();
    say("== unit and component tests");
    build::programs()?;
    let (mut passed, mut failed) = cargo_test()?;
    say("== end-to-end tests (the essential ones; `cargo xtask e2e all` runs every one)");
    let outcome = e2e::run_essential()?;
    passed += outcome.passed;
    failed += outcome.failed;
    println!("{passed} passed, {failed} failed");
    say(&format!("tests took {}", minutes(start.elapsed())));
    Ok(failed == 0)
}

/// Runs cargo's own test runner, shows what it says, and adds up its summary lines.
fn cargo_test() -> Result<(usize, usize)> {
    let mut child = build::cargo()
        .env("SKERRY_WORKSPACE_BUILT", "1")
        .args([
            "test",
            "--release",
            "--workspace",
            "--no-fail-fast",
            "--locked",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo test")?;
    let output = child
        .stdout
        .take()
        .context("reading what cargo test says")?;
    let (mut passed, mut failed) = (0, 0);
    for line in BufReader::new(output).lines() {
        let line = line.context("reading what cargo test says")?;
        println!("{line}");
        if let Some((p, f)) = summary(&line) {
            passed += p;
            failed += f;
        }
    }
    let status = child.wait().context("waiting for cargo test")?;
    if !status.success() && failed == 0 {
        // A crate that does not compile runs no test and has no summary line.
        failed = 1;
    }
    Ok((passed, failed))
}

/// `test result: ok. 12 passed; 0 failed; ...`
fn summary(line: &str) -> Option<(usize, usize)> {
    let rest = line.strip_prefix("test result: ")?;
    let (_, counts) = rest.split_once(". ")?;
    let mut counts = counts.split("; ");
    let passed = counts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = counts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some((passed, failed))
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn adds_up_the_runners_own_lines() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(summary(line), Some((12, 3)));
        assert_eq!(summary("test foo ... ok"), None);
    }
}
