//! Attacks on enrolment and faults in it, each a component test against a real TPM emulator (swtpm), by the rows of the design's table.
//!
//! ```text
//! ATTACKS --> one cargo test of their test programs, by exact names --> each must have run, and passed
//! ```
//!
//! The tests themselves are where the code is that they attack; here stands which of them answer for what.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::build;
use crate::progress::print;

/// One attack or fault.
struct Attack {
    /// Row of the table in the book's page "Enrolment".
    row: u8,
    about: &'static str,
    package: &'static str,
    /// The test program (`cargo test --test`).
    program: &'static str,
    test: &'static str,
}

const fn pillar(row: u8, test: &'static str, about: &'static str) -> Attack {
    Attack {
        row,
        about,
        package: "pillar",
        program: "agent",
        test,
    }
}

const ATTACKS: &[Attack] = &[pillar(
    7,
    "enrolment::row_7_a_rogue_controller_with_a_valid_web_certificate",
    "rogue controller with a valid web certificate",
)];

/// Names every attack with its test, one a line.
pub fn list() {
    for attack in ATTACKS {
        print(&format!(
            "row {:<2} {}\n       {} --test {} {}\n",
            attack.row, attack.about, attack.package, attack.program, attack.test
        ));
    }
}

/// Runs them all; an error names those that failed or did not run.
pub fn run() -> Result<()> {
    let mut command = build::cargo();
    // The whole workspace, so that nothing is built with other features than elsewhere.
    command.env("SKERRY_WORKSPACE_BUILT", "1").args([
        "test",
        "--release",
        "--workspace",
        "--no-fail-fast",
        "--locked",
    ]);
    let programs: BTreeSet<&str> = ATTACKS.iter().map(|attack| attack.program).collect();
    for program in programs {
        command.args(["--test", program]);
    }
    command.args(["--", "--exact"]);
    command.args(ATTACKS.iter().map(|attack| attack.test));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo test")?;
    let output = child
        .stdout
        .take()
        .context("reading what cargo test says")?;
    let mut seen = BTreeMap::new();
    for line in BufReader::new(output).lines() {
        let line = line.context("reading what cargo test says")?;
        println!("{line}");
        if let Some((name, passed)) = outcome(&line) {
            seen.insert(name.to_owned(), passed);
        }
    }
    let status = child.wait().context("waiting for cargo test")?;
    let missing = unproven(&seen);
    ensure!(missing.is_empty(), "not answered: {}", missing.join("; "));
    ensure!(status.success(), "cargo test: {status}");
    Ok(())
}

/// Attacks whose test did not pass, with the reason.
fn unproven(seen: &BTreeMap<String, bool>) -> Vec<String> {
    ATTACKS
        .iter()
        .filter_map(|attack| {
            let why = match seen.get(attack.test) {
                Some(true) => return None,
                Some(false) => "failed",
                None => "did not run",
            };
            Some(format!(
                "row {} ({}): {} of {} {why}",
                attack.row, attack.about, attack.test, attack.package
            ))
        })
        .collect()
}

/// `test NAME ... ok`
fn outcome(line: &str) -> Option<(&str, bool)> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    Some((name, outcome == "ok"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_failed_or_did_not_run_is_told() {
        assert_eq!(outcome("test a::b ... ok"), Some(("a::b", true)));
        assert_eq!(outcome("test a::b ... FAILED"), Some(("a::b", false)));
        assert_eq!(outcome("test a::b ... ignored"), Some(("a::b", false)));
        assert_eq!(outcome("running 3 tests"), None);
        let all = |passed| {
            let names = ATTACKS.iter().map(|attack| attack.test.to_owned());
            names.map(|name| (name, passed)).collect::<BTreeMap<_, _>>()
        };
        assert!(unproven(&all(true)).is_empty());
        assert_eq!(unproven(&all(false)).len(), ATTACKS.len());
        assert_eq!(unproven(&BTreeMap::new()).len(), ATTACKS.len());
    }

    #[test]
    fn each_test_answers_once() {
        let names: BTreeSet<&str> = ATTACKS.iter().map(|attack| attack.test).collect();
        assert_eq!(names.len(), ATTACKS.len());
    }
}
