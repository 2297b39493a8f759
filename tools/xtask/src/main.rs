//! One entry for people: `cargo xtask demo`, `test`, `e2e`, `bench`, `fuzz`, `image`, `docs`, `lint`.
//!
//! ```text
//! prereq (what is missing from Debian) -> build (our programs) -> images (host, guest, demo content)
//!                                                                   |
//!                          site (controller, registry, emulated boxes, operator's command line)
//!                           |                 |                   |
//!                         demo               e2e                bench
//! ```

#![allow(missing_docs)]

mod bench;
mod build;
mod cache;
mod command;
mod demo;
mod e2e;
mod files;
mod fuzz;
mod images;
mod leftovers;
mod lint;
mod nesting;
mod prereq;
mod progress;
mod reference;
mod site;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "One entry for people who work on Skerry",
    version
)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// From a USB stick to a running VM and a running container, in an emulated PC
    Demo(demo::Options),
    /// Run all tests: unit, component, and the essential end-to-end ones
    Test,
    /// Run end-to-end tests by name; `all` is every one
    E2e {
        /// Name the tests, one a line; with `enrol-attacks`, the attacks
        #[arg(long)]
        list: bool,
        /// Which tests to run
        #[arg(required_unless_present = "list")]
        names: Vec<String>,
    },
    /// Measure against the budgets; exit status 1 if a figure is over
    Bench {
        /// Name the benches, one a line
        #[arg(long)]
        list: bool,
        /// Write the figures to a file as well
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Which benches to run; `all` is every one
        #[arg(required_unless_present = "list")]
        names: Vec<String>,
    },
    /// Feed a parser with made-up input, led by coverage; exit status 1 if it fails
    Fuzz {
        /// Name the targets, one a line
        #[arg(long)]
        list: bool,
        /// Which target
        #[arg(required_unless_present = "list")]
        name: Option<String>,
        /// How long
        #[arg(long, value_name = "N", default_value_t = 60)]
        seconds: u32,
    },
    /// Write the book's reference pages anew from the code
    Docs,
    /// Check formatting, lints, licences and docs
    Lint,
    /// Build the host image, the installer, the guest kernel and the demo's content into target/images
    Image(images::Options),
}

impl Task {
    /// Files that are named on the command line are meant where it was typed; the task itself works in the workspace's folder.
    fn at_home(mut self) -> Result<Task> {
        if let Task::Bench {
            json: Some(file), ..
        } = &mut self
        {
            *file = std::path::absolute(&*file)
                .with_context(|| format!("finding {}", file.display()))?;
        }
        Ok(self)
    }
}

fn main() -> ExitCode {
    let outcome = run(Arguments::parse());
    leftovers::wait_if_interrupted();
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let task = arguments.command.at_home()?;
    std::env::set_current_dir(root()?).context("entering the workspace")?;
    let good = match task {
        Task::Demo(options) => demo::run(&options).map(|()| true),
        Task::Test => prereq::install().and_then(|()| test::run()),
        Task::E2e { list: true, names } => {
            e2e::list(&names);
            Ok(true)
        }
        Task::E2e { names, .. } => prereq::install()
            .and_then(|()| e2e::run(&names))
            .map(|outcome| outcome.failed == 0),
        Task::Bench { list: true, .. } => {
            bench::list();
            Ok(true)
        }
        Task::Bench { names, json, .. } => {
            prereq::install().and_then(|()| bench::run(&names, json.as_ref()))
        }
        Task::Fuzz {
            list: false,
            name: Some(name),
            seconds,
        } => fuzz::run(&name, seconds),
        Task::Fuzz { .. } => fuzz::list().map(|()| true),
        Task::Docs => reference::write().map(|()| true),
        Task::Lint => prereq::install().and_then(|()| lint::run()).map(|()| true),
        Task::Image(options) => prereq::install()
            .and_then(|()| images::build(&options))
            .map(|_| true),
    };
    Ok(if good? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The folder of the workspace.
fn root() -> Result<PathBuf> {
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").context("start this with `cargo xtask`")?;
    let root = PathBuf::from(manifest).join("../..");
    root.canonicalize()
        .with_context(|| format!("finding the workspace at {}", root.display()))
}
