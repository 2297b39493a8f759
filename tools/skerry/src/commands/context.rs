//! `skerry context`: which controllers are known, and which one is meant.

use jiff::Timestamp;

use crate::cli::ContextCommand;
use crate::context::Config;
use crate::failure::Failure;
use crate::output::table::Table;
use crate::terminal::{self, Paint};

pub fn run(command: ContextCommand) -> Result<(), Failure> {
    let path = Config::path()?;
    let mut config = Config::load(&path)?;
    match command {
        ContextCommand::List => list(&config),
        ContextCommand::Use { name } => {
            if !config.contexts.contains_key(&name) {
                return Err(config.no_context(&name));
            }
            config.current_context = Some(name.clone());
            config.save(&path)?;
            terminal::say(format!("context {name} is the current one"))
        }
        ContextCommand::Delete { name } => {
            if config.contexts.remove(&name).is_none() {
                return Err(config.no_context(&name));
            }
            config.current_context.take_if(|current| *current == name);
            config.save(&path)?;
            terminal::say(format!("context {name} deleted"))
        }
    }
}

fn list(config: &Config) -> Result<(), Failure> {
    let mut rows = vec![
        ["", "NAME", "SERVER", "USER", "TOKEN"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (name, context) in &config.contexts {
        let mark = if config.current_context.as_ref() == Some(name) {
            "*"
        } else {
            ""
        };
        let token = match (&context.token, context.expires) {
            (None, _) => "none".to_owned(),
            (Some(_), Some(end)) if end < Timestamp::now() => "expired".to_owned(),
            (Some(_), Some(end)) => format!("until {end:.0}"),
            (Some(_), None) => "kept".to_owned(),
        };
        let user = context.user.clone().unwrap_or_default();
        rows.push(vec![
            mark.to_owned(),
            name.clone(),
            context.server.clone(),
            user,
            token,
        ]);
    }
    let table = Table::fitting(&rows, false);
    rows.iter()
        .try_for_each(|row| terminal::say(table.row(row, |_| Paint::Plain)))
}
