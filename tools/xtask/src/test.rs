//! `cargo xtask test`: unit and component tests of every crate, beside the essential end-to-end tests.
//!
//! An emulated PC has one processor and machines run one after another, so that a second processor of the machine would have nothing to
//! do: the other tests run on it meanwhile. Everything is built before, with nothing beside it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::e2e;
use crate::progress::{Step, minutes, print, say};

/// Tests that passed and that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
}

/// Runs everything; gives whether all passed. Goes on after a failure, so that one run tells all.
pub fn run() -> Result<bool> {
    let start = Instant::now();
    build::programs()?;
    compile()?;
    say("== unit and component tests begin; what they say is shown when they end");
    let components = std::thread::spawn(cargo_test);
    say("== end-to-end tests (the essential ones; `cargo xtask e2e all` runs every one)");
    let machines = e2e::run_essential();
    let components = components
        .join()
        .unwrap_or_else(|_| bail!("the thread that ran unit and component tests panicked"))?;
    let machines = machines?;
    let passed = components.passed + machines.passed;
    let failed = components.failed + machines.failed;
    println!("{passed} passed, {failed} failed");
    say(&format!("tests took {}", minutes(start.elapsed())));
    Ok(failed == 0)
}

/// Builds the programs of the tests.
fn compile() -> Result<()> {
    let step = Step::begin("the tests' programs (the first time some minutes)");
    let status = build::cargo()
        .args(["test", "--quiet", "--no-run"])
        .args(WHICH)
        .status()
        .context("starting cargo")?;
    if !status.success() {
        step.failed(&status.to_string());
        bail!("building the tests failed ({status})");
    }
    step.done();
    Ok(())
}

/// Which tests cargo builds and runs.
const WHICH: [&str; 3] = ["--release", "--workspace", "--locked"];

/// Runs cargo's own test runner behind the emulated machines, shows what it said when it has ended, and adds up its summary lines.
fn cargo_test() -> Result<Counts> {
    let start = Instant::now();
    let (output, says) = std::io::pipe().context("making a pipe")?;
    let cargo = build::cargo();
    let mut command = Command::new("nice");
    command.args(["-n", "5"]).arg(cargo.get_program());
    for (name, value) in cargo.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .env("SKERRY_WORKSPACE_BUILT", "1")
        .args(["test", "--no-fail-fast"])
        .args(WHICH)
        .stdin(Stdio::null())
        .stdout(says.try_clone().context("making a pipe")?)
        .stderr(says);
    let mut child = command.spawn().context("starting cargo test")?;
    // Ours is the last end of the pipe to write on, besides the child's.
    drop(command);
    let (mut counts, mut said) = (Counts::default(), String::new());
    for line in BufReader::new(output).lines() {
        let line = line.context("reading what cargo test says")?;
        if let Some(more) = summary(&line) {
            counts.passed += more.passed;
            counts.failed += more.failed;
        }
        said += &line;
        said.push('\n');
    }
    let status = child.wait().context("waiting for cargo test")?;
    if !status.success() && counts.failed == 0 {
        // A test program that dies has no summary line.
        counts.failed = 1;
    }
    print(&said);
    say(&format!(
        "== unit and component tests: {} passed, {} failed, {}",
        counts.passed,
        counts.failed,
        minutes(start.elapsed())
    ));
    Ok(counts)
}

/// `test result: ok. 12 passed; 0 failed; ...`
fn summary(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("test result: ")?;
    let (_, counts) = rest.split_once(". ")?;
    let mut counts = counts.split("; ");
    Some(Counts {
        passed: counts.next()?.strip_suffix(" passed")?.parse().ok()?,
        failed: counts.next()?.strip_suffix(" failed")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_the_runners_own_lines() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let expected = Counts {
            passed: 12,
            failed: 3,
        };
        assert_eq!(summary(line), Some(expected));
        assert_eq!(summary("test foo ... ok"), None);
    }
}
