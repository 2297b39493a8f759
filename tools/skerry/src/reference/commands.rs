//! The reference of the command line, from the definitions that read it.

use clap::{Arg, Command};

use super::{GENERATED, cell, table};

/// The page.
pub fn markdown(mut root: Command) -> String {
    // Without a width nothing is broken into lines, whatever terminal this runs in.
    root = root.term_width(0).max_term_width(0);
    root.build();
    let mut out = format!("{GENERATED}\n\n# The command `{}`\n\n", root.get_name());
    out += &body(&mut root, true);
    commands(&mut root, &mut out);
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn commands(parent: &mut Command, out: &mut String) {
    for command in parent.get_subcommands_mut() {
        if command.get_name() == "help" || command.is_hide_set() {
            continue;
        }
        let name = command
            .get_bin_name()
            .unwrap_or(command.get_name())
            .to_owned();
        out.push_str(&format!("## `{name}`\n\n{}", body(command, false)));
        commands(command, out);
    }
}

/// What a command does and takes, without its subcommands' own. What every command takes is told once, with the root.
fn body(command: &mut Command, is_root: bool) -> String {
    let mut out = String::new();
    let about = command.get_long_about().or(command.get_about());
    if let Some(about) = about {
        out += &format!("{}\n\n", sentence(&about.to_string()));
    }
    let usage = command.render_usage().to_string();
    out += &format!(
        "```text\n{}\n```\n\n",
        usage.trim_start_matches("Usage:").trim()
    );
    let shown = |arg: &&Arg| {
        !arg.is_hide_set()
            && !["help", "version"].contains(&arg.get_id().as_str())
            && (is_root || !arg.is_global_set())
    };
    let rows = |positional: bool| -> Vec<Vec<String>> {
        command
            .get_arguments()
            .filter(shown)
            .filter(|arg| arg.is_positional() == positional)
            .map(|arg| vec![format!("`{}`", name(arg)), meaning(arg)])
            .collect()
    };
    out += &table(&["Argument", "Meaning"], &rows(true));
    out += &table(&["Option", "Meaning"], &rows(false));
    if let Some(after) = command.get_after_help() {
        out += &format!("```text\n{after}\n```\n\n");
    }
    out
}

fn name(arg: &Arg) -> String {
    let values = arg
        .get_value_names()
        .filter(|_| arg.is_positional() || arg.get_action().takes_values())
        .map(|names| {
            names
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        });
    let flags: Vec<String> = arg
        .get_short()
        .map(|short| format!("-{short}"))
        .into_iter()
        .chain(arg.get_long().map(|long| format!("--{long}")))
        .collect();
    let flags = flags.join(", ");
    match (flags.is_empty(), values) {
        (true, Some(values)) => values,
        (true, None) => arg.get_id().to_string().to_ascii_uppercase(),
        (false, Some(values)) => format!("{flags} {values}"),
        (false, None) => flags,
    }
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let mut parts = vec![sentence(&cell(&help))];
    let values = arg.get_possible_values();
    if arg.get_action().takes_values() && !values.is_empty() {
        let one = |value: &clap::builder::PossibleValue| match value.get_help() {
            Some(help) => format!(
                "`{}` ({})",
                value.get_name(),
                cell(help.to_string().trim_end_matches('.'))
            ),
            None => format!("`{}`", value.get_name()),
        };
        let list: Vec<_> = values.iter().map(one).collect();
        parts.push(format!("One of {}.", list.join(", ")));
    }
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    if arg.get_action().takes_values() && !defaults.is_empty() {
        parts.push(format!("Default: {}.", defaults.join(", ")));
    }
    if let Some(variable) = arg.get_env() {
        parts.push(format!("Environment: `{}`.", variable.to_string_lossy()));
    }
    parts.join(" ")
}

/// With a full stop, which clap cuts off.
fn sentence(text: &str) -> String {
    if text.is_empty() || text.ends_with(['.', '!', '?']) {
        text.to_owned()
    } else {
        format!("{text}.")
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_shown_command_and_option_is_there() {
        let page = markdown(Cli::command());
        for part in [
            "# The command `skerry`\n",
            "\n## `skerry image build`\n",
            "\n## `skerry app delete`\n",
            "```text\nskerry rename",
            "| `-o, --output FILE` | File to write. |",
            "| `--idle TIME` |",
            "Default: `1s`.",
            "Environment: `SKERRY_CA`.",
            "`wide` (A table with more columns)",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        assert_eq!(page.matches("| `--context NAME` |").count(), 1, "{page}");
        assert!(!page.contains("skerry docs --out") && !page.contains("`skerry help"));
        assert_eq!(page, markdown(Cli::command()), "the same each time");
    }
}
