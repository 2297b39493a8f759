//! Every command line that the book and the README show is one that this program takes.

use std::path::{Path, PathBuf};

use clap::Parser as _;
use clap::error::ErrorKind;

use super::Cli;

/// A command line in a page.
struct Shown {
    words: Vec<String>,
    /// In a block of its own, to be typed as it stands; in running text it may be the name of a command only.
    whole: bool,
}

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut pages = vec![root.join("README.md")];
    for folder in ["docs/src", "docs/src/internals"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// As a shell splits it, as far as the book's lines go: blanks, quotes, a comment at the end.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => word.push(c),
            (None, '\'' | '"') => quote = Some(c),
            (None, '#') if word.is_empty() => break,
            (None, _) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (None, _) => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

fn shown(page: &str) -> Vec<Shown> {
    let (mut found, mut block) = (Vec::new(), None);
    for line in page.replace("\\\n", " ").lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            block = match block {
                None => Some(language.to_owned()),
                Some(_) => None,
            };
            continue;
        }
        let is_ours = |text: &str| text.starts_with("skerry ");
        match &block {
            Some(language) if language == "sh" && is_ours(line) => found.push(Shown {
                words: split(line),
                whole: true,
            }),
            Some(_) => {}
            None => found.extend(
                line.split('`')
                    .skip(1)
                    .step_by(2)
                    .filter(|span| is_ours(span))
                    .map(|span| Shown {
                        words: split(span),
                        whole: false,
                    }),
            ),
        }
    }
    found
}

#[test]
fn every_command_line_in_the_docs_is_taken() {
    let (mut count, mut refused) = (0, Vec::new());
    for page in pages() {
        for Shown { words, whole } in shown(&std::fs::read_to_string(&page).unwrap()) {
            count += 1;
            let Err(error) = Cli::try_parse_from(&words) else {
                continue;
            };
            let is_a_name = matches!(
                error.kind(),
                ErrorKind::MissingRequiredArgument
                    | ErrorKind::MissingSubcommand
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            );
            if whole || !is_a_name {
                refused.push(format!("{}: {}: {error}", page.display(), words.join(" ")));
            }
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    assert!(count > 50, "only {count} command lines found");
}
