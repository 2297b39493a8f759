//! The operator: a person with the `skerry` command line, logged in.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Controller, Registry, path};

pub struct Operator {
    program: PathBuf,
    config: PathBuf,
}

impl Operator {
    /// Logs in as the administrator that the controller made at its first start.
    pub fn log_in(programs: &Path, dir: &Path, controller: &Controller) -> Result<Operator> {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let operator = Operator {
            program: programs.join("skerry"),
            config: dir.join("config.yaml"),
        };
        let password = controller.data().join("admin-password");
        let ca = controller.data().join("pki/root.pem");
        let url = controller.url();
        operator.run(&[
            "login",
            &url,
            "--ca",
            path(&ca)?,
            "--user",
            "admin",
            "--password-file",
            path(&password)?,
        ])?;
        Ok(operator)
    }

    /// A command as the operator would type it, to be run by hand or with other standard streams.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("SKERRY_CONFIG", &self.config)
            .env("NO_COLOR", "1");
        command
    }

    /// What a person types to be this operator.
    pub fn by_hand(&self) -> String {
        format!(
            "export SKERRY_CONFIG={}; {} get apps",
            self.config.display(),
            self.program.display()
        )
    }

    /// Runs a command and gives what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with_input(arguments, "")
    }

    /// The same with something on its standard input.
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input may have closed it.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "skerry {}: {}: {}{}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim(),
                String::from_utf8_lossy(&output.stdout).trim()
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// One object, as JSON.
    pub fn get(&self, kind: &str, name: &str) -> Result<Value> {
        let text = self.run(&["get", kind, name, "-o", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("reading {kind} {name} as JSON"))
    }

    /// All objects of a kind, as JSON.
    pub fn list(&self, kind: &str) -> Result<Vec<Value>> {
        let text = self.run(&["get", kind, "-o", "json"])?;
        let list: Value = serde_json::from_str(&text)
            .with_context(|| format!("reading the list of {kind} as JSON"))?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.run_with_input(&["apply", "-f", "-"], manifest)
    }

    /// Opens an app's console and presses Enter until it shows `wanted`; gives all that it showed.
    pub fn console(&self, app: &str, wanted: &str, patience: Duration) -> Result<String> {
        let mut console = self
            .command(&["console", app])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting skerry console")?;
        let mut typed = console.stdin.take().context("the console takes no input")?;
        let mut shown = console.stdout.take().context("the console shows nothing")?;
        let end = wanted.to_owned();
        let reader = std::thread::spawn(move || {
            let mut seen = String::new();
            let mut buffer = [0; 1024];
            while let Ok(n) = shown.read(&mut buffer)
                && n > 0
            {
                seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
                if seen.contains(&end) {
                    break;
                }
            }
            seen
        });
        let deadline = Instant::now() + patience;
        while !reader.is_finished() && Instant::now() < deadline {
            // An error means that the command has ended; what it showed tells why.
            let _ = typed.write_all(b"\n");
            std::thread::sleep(Duration::from_millis(500));
        }
        let _ = console.kill();
        let _ = console.wait();
        let seen = reader.join().unwrap_or_default().replace('\r', "");
        if !seen.contains(wanted) {
            bail!(
                "the console of {app} did not show {wanted:?} within {} s; it showed {seen:?}",
                patience.as_secs()
            );
        }
        Ok(seen)
    }

    /// Pushes an OCI layout's image to the registry; gives `repository@sha256:...`.
    pub fn push_container(
        &self,
        registry: &Registry,
        repository: &str,
        layout: &Path,
    ) -> Result<String> {
        let target = format!("{}/{repository}:latest", registry.address());
        let said = self.run(&[
            "content",
            "push",
            &target,
            "--oci-layout",
            path(layout)?,
            "--ca",
            path(registry.root())?,
        ])?;
        Ok(said.trim().to_owned())
    }

    /// Pushes a machine image; gives `repository@sha256:...`.
    pub fn push_machine(
        &self,
        registry: &Registry,
        repository: &str,
        dir: &Path,
        format: &str,
    ) -> Result<String> {
        let target = format!("{}/{repository}:latest", registry.address());
        let (disk, kernel, initrd) = (
            dir.join(format!("disk.{format}")),
            dir.join("vmlinuz"),
            dir.join("initrd.img"),
        );
        let said = self.run(&[
            "content",
            "push",
            &target,
            "--disk",
            path(&disk)?,
            "--format",
            format,
            "--kernel",
            path(&kernel)?,
            "--initrd",
            path(&initrd)?,
            "--ca",
            path(registry.root())?,
        ])?;
        Ok(said.trim().to_owned())
    }
}
