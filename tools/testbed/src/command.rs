//! Running the programs that make up a machine.

use std::path::Path;
use std::process::Command;

use crate::Error;

/// Runs a program to its end; gives its standard output. What it said is in the error when it fails.
pub(crate) fn run(command: &mut Command) -> Result<String, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| Error::Program {
        program: program.clone(),
        reason: e.to_string(),
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    Err(Error::Program {
        program,
        reason: format!("{}: {}", output.status, said.trim()),
    })
}

/// The last lines of a log file, for an error message.
pub(crate) fn output_tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(15).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
