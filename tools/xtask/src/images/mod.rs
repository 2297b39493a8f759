//! Images: host, installer, guest side, demo content.

use std::path::PathBuf;

use anyhow::Result;

/// How images are to be built.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// `production` (no shell, no login) or `debug` (a shell on the serial line)
    #[arg(long, default_value = "production")]
    pub variant: String,
    /// Build exactly the package versions of the lock file
    #[arg(long)]
    pub locked: bool,
    /// Write the versions that were taken into the lock file
    #[arg(long, conflicts_with = "locked")]
    pub update: bool,
}

/// Builds everything and gives the folder of the parts.
pub fn build(options: &Options) -> Result<PathBuf> {
    anyhow::bail!("images of variant {} cannot be built yet", options.variant)
}
