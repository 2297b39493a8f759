//! `skerry app`: the commands for apps, without naming the kind.

use crate::cli::{AppCommand, Delete, Get};
use crate::failure::Failure;

pub fn run(command: AppCommand, context: Option<&str>) -> Result<(), Failure> {
    match command {
        AppCommand::Apply(args) => super::apply::run(args, context),
        AppCommand::List => super::get::run(
            Get {
                what: vec!["apps".into()],
                output: None,
                watch: false,
                selector: None,
                no_headers: false,
            },
            context,
        ),
        AppCommand::Delete { names } => super::delete::run(
            Delete {
                what: names.iter().map(|name| format!("app/{name}")).collect(),
                files: Vec::new(),
                ignore_not_found: false,
            },
            context,
        ),
        AppCommand::Logs(args) => super::logs::run(args, context),
        AppCommand::Console(args) => super::console::run(args, context),
    }
}
