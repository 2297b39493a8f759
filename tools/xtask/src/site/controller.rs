//! The real `skerry-controller` on its embedded store.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::process::{Memory, Server};
use super::{HOST_FROM_BOX, free_port};

pub struct Controller {
    server: Server,
    program: PathBuf,
    dir: PathBuf,
    port: u16,
}

impl Controller {
    pub fn start(programs: &Path, dir: &Path) -> Result<Controller> {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let port = free_port()?;
        let mut controller = Controller {
            server: Server::new("skerry-controller", port, dir.join("log")),
            program: programs.join("skerry-controller"),
            dir: dir.to_owned(),
            port,
        };
        controller.resume()?;
        Ok(controller)
    }

    /// Starts it again, on the same port and with the same store.
    pub fn resume(&mut self) -> Result<()> {
        let address = self.server.address().to_string();
        let mut command = Command::new(&self.program);
        command.arg("serve").arg("--data").arg(&self.dir).args([
            "--listen",
            &address,
            "--name",
            &format!("{HOST_FROM_BOX}:{}", self.port),
            "--name",
            &address,
        ]);
        self.server.start(&mut command)
    }

    /// Takes it off the network.
    pub fn stop(&mut self) -> Result<()> {
        self.server.stop()
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub fn memory(&self) -> Result<Memory> {
        self.server.memory()
    }

    pub fn data(&self) -> &Path {
        &self.dir
    }

    pub fn detach(self) {
        self.server.detach();
    }
}
