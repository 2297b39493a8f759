//! Images: host, installer, guest side, demo content.

mod archive;
mod command;
mod cpio;
mod guest;
mod lock;
mod store;

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

impl Default for Options {
    fn default() -> Options {
        Options {
            variant: "production".to_owned(),
            locked: false,
            update: false,
        }
    }
}

/// Builds everything and gives the folder of the parts.
pub fn build(options: &Options) -> Result<PathBuf> {
    let store = store::Store::open()?;
    let k = guest::kernel(
        &store,
        if options.update {
            archive::Versions::Update
        } else {
            archive::Versions::Current
        },
    )?;
    println!("{}", k.display());
    Ok(k)
}
