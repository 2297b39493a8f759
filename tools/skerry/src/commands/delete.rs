//! `skerry delete`: objects by name, or those that files describe, in the reverse of their order there.

use crate::cli::Delete;
use crate::failure::{Exit, Failure};
use crate::kinds::{Kind, select};
use crate::manifest;
use crate::terminal::say;

pub fn run(args: Delete, context: Option<&str>) -> Result<(), Failure> {
    let targets = targets(&args)?;
    let client = super::client(context)?;
    crate::runtime(async {
        let mut first_failure = None;
        for (kind, name) in &targets {
            let title = format!("{}/{name}", kind.singular());
            match client
                .delete(&kind.path(name), &format!("delete {title}"))
                .await
            {
                Ok(()) => say(format!("{title} deleted"))?,
                Err(failure) if failure.exit() == Exit::NotFound && args.ignore_not_found => {}
                Err(failure) if first_failure.is_none() => first_failure = Some(failure),
                Err(failure) => {
                    failure.report();
                }
            }
        }
        first_failure.map_or(Ok(()), Err)
    })
}

fn targets(args: &Delete) -> Result<Vec<(&'static Kind, String)>, Failure> {
    if !args.files.is_empty() {
        return Ok(manifest::read(&args.files)?
            .into_iter()
            .rev()
            .map(|item| (item.kind, item.name))
            .collect());
    }
    let mut targets = Vec::new();
    for selection in select(&args.what)? {
        if selection.names.is_empty() {
            let singular = selection.kind.singular();
            return Err(Failure::usage(format!(
                "which {singular}? Write `skerry delete {singular} NAME`"
            )));
        }
        targets.extend(
            selection
                .names
                .into_iter()
                .map(|name| (selection.kind, name)),
        );
    }
    Ok(targets)
}
