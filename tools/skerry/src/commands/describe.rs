//! `skerry describe`: everything about objects, for people.

use crate::cli::Describe;
use crate::failure::Failure;
use crate::kinds::select;
use crate::output::describe::describe;
use crate::terminal::{note, say};

pub fn run(args: Describe, context: Option<&str>) -> Result<(), Failure> {
    let selections = select(&args.what)?;
    let client = super::client(context)?;
    crate::runtime(async {
        let mut first = true;
        for selection in &selections {
            let objects = super::get::fetch(&client, selection).await?;
            if objects.is_empty() {
                note(format!("there are no {}", selection.kind.collection));
            }
            for object in &objects {
                if !std::mem::take(&mut first) {
                    say("\n")?;
                }
                say(describe(object))?;
            }
        }
        Ok(())
    })
}
