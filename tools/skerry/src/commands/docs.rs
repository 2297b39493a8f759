//! `skerry docs`: the reference for the book, made from the definitions themselves. The same program always writes the same bytes,
//! so that a check can compare them with what is in the book.

use std::path::Path;

use clap::CommandFactory as _;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::reference::{api, commands};
use crate::terminal::say;

pub fn run(out: &Path) -> Result<(), Failure> {
    let api = serde_json::to_value(operator_api::openapi::document()).map_err(Failure::error)?;
    std::fs::create_dir_all(out).map_err(Failure::io("make", out))?;
    for (name, text) in [
        ("skerry.md", commands::markdown(Cli::command())),
        ("operator-api.md", api::markdown(&api)),
        ("openapi.json", format!("{api:#}\n")),
    ] {
        let path = out.join(name);
        std::fs::write(&path, text).map_err(Failure::io("write", &path))?;
        say(path.display())?;
    }
    Ok(())
}
