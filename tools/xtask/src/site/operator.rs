//! The operator: a person with the `skerry` command line, logged in.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Controller, Registry, path};

/// What is said at a console.
#[derive(Clone, Debug)]
pub struct Talk {
    /// What the guest asks.
    pub asks: &'static str,
    /// What is typed then.
    pub answer: &'static str,
    /// What the guest shows only when it was typed.
    pub effect: &'static str,
}

/// Logging in to the demo's Debian.
pub const LOGIN: Talk = Talk {
    asks: "login:",
    answer: "root",
    effect: "root@demo-vm",
};

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
        let programs = self.program.parent().unwrap_or(Path::new("."));
        let programs = std::path::absolute(programs).unwrap_or_else(|_| programs.to_owned());
        format!(
            "export SKERRY_CONFIG={} PATH={}:$PATH; skerry get apps",
            self.config.display(),
            programs.display()
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

    /// Imports a list of machines that enrol without a person.
    pub fn import_manifest(&self, name: &str, file: &Path) -> Result<String> {
        self.run(&[
            "manifest",
            "import",
            path(file)?,
            "--name",
            name,
            "--unsigned",
        ])
    }

    /// Lets a waiting machine in.
    pub fn approve(&self, machine: &str) -> Result<String> {
        self.run(&["approve", machine])
    }

    /// Opens an app's console, presses Enter until it asks, types the answer until that has its effect; gives all that it showed.
    pub fn console(&self, app: &str, talk: &Talk, patience: Duration) -> Result<String> {
        let mut console = self
            .command(&["console", app])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting skerry console")?;
        let mut typed = console.stdin.take().context("the console takes no input")?;
        let mut shown = console.stdout.take().context("the console shows nothing")?;
        let seen = Arc::new(Mutex::new(String::new()));
        let (talk, heard) = (talk.clone(), Arc::clone(&seen));
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(n) = shown.read(&mut buffer)
                && n > 0
            {
                let mut seen = heard.lock().unwrap_or_else(PoisonError::into_inner);
                seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
                if seen.contains(talk.effect) {
                    break;
                }
            }
        });
        let look = |text: &str| {
            let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.contains(text)
        };
        let deadline = Instant::now() + patience;
        while !reader.is_finished() && Instant::now() < deadline {
            let (line, pause) = if look(talk.asks) {
                // Time for it to be acted on: typing on would answer what comes next.
                (talk.answer, Duration::from_secs(5))
            } else {
                ("", Duration::from_millis(500))
            };
            // An error means that the command has ended; what it showed tells why.
            let _ = writeln!(typed, "{line}");
            let next = Instant::now() + pause;
            while !reader.is_finished() && Instant::now() < next {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        let _ = console.kill();
        let _ = console.wait();
        let _ = reader.join();
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.replace('\r', "");
        if !seen.contains(talk.effect) {
            bail!(
                "the console of {app} did not show {:?} within {} s; it showed {seen:?}",
                talk.effect,
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
