//! A real OCI registry (Debian's docker-registry) with TLS, on the loopback address.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::certificates::{self, ServerFiles};
use super::process::Server;
use super::{HOST_FROM_BOX, free_port};

pub struct Registry {
    server: Server,
    dir: PathBuf,
    port: u16,
    files: ServerFiles,
}

impl Registry {
    pub fn start(dir: &Path) -> Result<Registry> {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let port = free_port()?;
        let files = certificates::make(dir, &["127.0.0.1", "localhost", HOST_FROM_BOX])?;
        let config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {dir}/data\n  delete:\n    \
             enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n  tls:\n    certificate: {certificate}\n    key: {key}\n",
            dir = dir.display(),
            certificate = files.certificate.display(),
            key = files.key.display(),
        );
        let config_path = dir.join("config.yml");
        std::fs::write(&config_path, config)
            .with_context(|| format!("writing {}", config_path.display()))?;
        let mut registry = Registry {
            server: Server::new("docker-registry", port, dir.join("log")),
            dir: dir.to_owned(),
            port,
            files,
        };
        registry.resume()?;
        Ok(registry)
    }

    /// Starts it again, on the same port and with the same content.
    pub fn resume(&mut self) -> Result<()> {
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(self.dir.join("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none");
        self.server.start(&mut command)
    }

    /// Takes it off the network.
    pub fn stop(&mut self) -> Result<()> {
        self.server.stop()
    }

    /// Its address for this machine.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its address for a box.
    pub fn address_from_box(&self) -> String {
        format!("{HOST_FROM_BOX}:{}", self.port)
    }

    /// The root certificate that its clients need.
    pub fn root(&self) -> &Path {
        &self.files.root
    }

    pub fn detach(self) {
        self.server.detach();
    }
}
