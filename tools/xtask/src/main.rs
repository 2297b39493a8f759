//! One entry for people: `cargo xtask demo`, `test`, `e2e`, `bench`, `image`, `lint`.
//!
//! ```text
//! prereq (what is missing from Debian) -> build (our programs) -> images (host, guest, demo content)
//!                                                                   |
//!                          site (controller, registry, emulated boxes, operator's command line)
//!                           |                 |                   |
//!                         demo               e2e                bench
//! ```

#![allow(missing_docs)]

mod build;
mod images;
mod prereq;
mod progress;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "One entry for people who work on Skerry", version)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the host image, the installer, the guest kernel and the demo's content into target/images
    Image(images::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    std::env::set_current_dir(root()?).context("entering the workspace")?;
    match arguments.command {
        Task::Image(options) => {
            prereq::install()?;
            images::build(&options)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The folder of the workspace.
fn root() -> Result<PathBuf> {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").context("start this with `cargo xtask`")?;
    let root = PathBuf::from(manifest).join("../..");
    root.canonicalize().with_context(|| format!("finding the workspace at {}", root.display()))
}
