//! The operator's command line.
//!
//! It speaks only the operator API of a controller, the registry API where content is pushed, and files. Objects are
//! treated as JSON values with a table of kinds beside them, so that a newer controller's fields are shown, not lost.
//!
//! A command is plain code until it needs the network: only then an async runtime is started ([`runtime`]), so that help,
//! completion and errors in arguments take a few milliseconds.
//!
//! It is a library beside the program for its tests' sake: the modules that read what others wrote (files, layouts,
//! replies) are public, so that the fuzz targets reach them.

mod cli;
pub mod client;
mod commands;
pub mod content;
mod context;
mod failure;
pub mod kinds;
pub mod manifest;
pub mod output;
mod progress;
mod reference;
mod terminal;

use std::process::ExitCode;

use clap::Parser as _;

use crate::failure::Failure;

/// Does what the process's arguments say, and tells its exit code.
pub fn main() -> ExitCode {
    match commands::run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Runs a piece of network work. One thread is enough: the work is one conversation.
fn runtime<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::error(format!("starting the network runtime: {error}")))?
        .block_on(work)
}

/// Tells rustls which crypto to use, before the first TLS client is made: it takes its provider from the process, and
/// ring is the only one in the tree.
fn use_ring() {
    // An error says that it was done before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
