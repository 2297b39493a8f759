//! Runs the tools of the build machine and tells what went wrong with them.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Lines of a failed tool's output that are shown.
const TAIL: usize = 20;

/// Runs a command to its end and gives its standard output. Fails with the end of what it said if it does.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let name = describe(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        bail!(
            "{name}: {}\n{}",
            output.status,
            tail(&output.stderr, &output.stdout)
        );
    }
    Ok(output.stdout)
}

/// Runs a chatty command with its output in a file, telling `progress` each second how many bytes that file has.
pub fn run_logged(command: &mut Command, log: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let name = describe(command);
    let file = std::fs::File::create(log).with_context(|| format!("writing {}", log.display()))?;
    let errors = file.try_clone().context("sharing a log file")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    loop {
        if let Some(status) = child
            .try_wait()
            .with_context(|| format!("waiting for {name}"))?
        {
            if status.success() {
                return Ok(());
            }
            let said = std::fs::read(log).unwrap_or_default();
            bail!("{name}: {status}\n{}", tail(&said, &[]));
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
        progress(log.metadata().map(|m| m.len()).unwrap_or(0));
    }
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .take(3)
            .map(|word| word.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

fn tail(first: &[u8], second: &[u8]) -> String {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(first),
        String::from_utf8_lossy(second)
    );
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(TAIL)..)
        .unwrap_or_default()
        .join("\n")
}
