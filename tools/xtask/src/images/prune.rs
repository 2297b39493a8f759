//! Takes away what the image does not need, by the rules of `images/host/prune`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::files::remove;

/// One line of the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// What matches the pattern goes.
    Away(String),
    /// Of what is in the folder only these names stay.
    Only { folder: String, stay: Vec<String> },
}

/// Reads the rules that hold for a variant: those of its section and those of none
/// (before any section, or in `[]`).
pub fn parse(text: &str, variant: &str) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut holds = true;
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let entry = line.trim();
        if entry.is_empty() {
            continue;
        }
        if let Some(section) = entry
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            holds = section.is_empty() || section == variant;
        } else if !holds {
            continue;
        } else if let Some((folder, names)) = entry
            .strip_prefix("only ")
            .and_then(|rest| rest.split_once(':'))
        {
            let stay = names.split_whitespace().map(str::to_owned).collect();
            rules.push(Rule::Only {
                folder: folder.trim().to_owned(),
                stay,
            });
        } else if let (true, Some(Rule::Only { stay, .. })) =
            (line.starts_with(' '), rules.last_mut())
        {
            // An indented line goes on with the names of the `only` before it.
            stay.extend(entry.split_whitespace().map(str::to_owned));
        } else {
            rules.push(Rule::Away(entry.to_owned()));
        }
    }
    rules
}

/// Applies the rules to a tree. Fails on a rule that finds nothing to do, and names it.
pub fn apply(root: &Path, rules: &[Rule]) -> Result<()> {
    for rule in rules {
        let gone = match rule {
            Rule::Away(pattern) => expand(root, pattern)?,
            Rule::Only { folder, stay } => surplus(root, folder, stay)?,
        };
        if gone.is_empty() {
            bail!("this rule of images/host/prune finds nothing: {rule:?}");
        }
        for path in gone {
            remove(&path)?;
        }
    }
    Ok(())
}

/// What is in a folder and not in the list; names in the list that are not in the folder are an error.
fn surplus(root: &Path, folder: &str, stay: &[String]) -> Result<Vec<PathBuf>> {
    let names = names_in(&root.join(folder))?;
    let is_kept = |name: &str| stay.iter().any(|pattern| matches(pattern, name));
    for pattern in stay {
        if !names.iter().any(|name| matches(pattern, name)) {
            bail!("images/host/prune keeps {folder}/{pattern}, which is not there");
        }
    }
    Ok(names
        .iter()
        .filter(|name| !is_kept(name))
        .map(|name| root.join(folder).join(name))
        .collect())
}

/// Paths that match a pattern; a `*` does not reach over a slash.
fn expand(root: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let mut found = vec![root.to_path_buf()];
    for part in pattern.split('/') {
        let mut next = Vec::new();
        for folder in found.iter().filter(|path| path.is_dir()) {
            next.extend(
                names_in(folder)?
                    .iter()
                    .filter(|name| matches(part, name))
                    .map(|name| folder.join(name)),
            );
        }
        found = next;
    }
    Ok(found)
}

fn names_in(folder: &Path) -> Result<BTreeSet<String>> {
    let list = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    list.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Whether a name fits a pattern in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| matches(tail, rest)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_for_a_variant() {
        let text = "# head\nvar # all of it\nonly usr/bin: a b\n  c\n[production]\nusr/x\n[debug]\nusr/y\n[]\nusr/z\n";
        let only = Rule::Only {
            folder: "usr/bin".into(),
            stay: vec!["a".into(), "b".into(), "c".into()],
        };
        let away = |path: &str| Rule::Away(path.into());
        assert_eq!(
            parse(text, "production"),
            [away("var"), only.clone(), away("usr/x"), away("usr/z")]
        );
        assert_eq!(
            parse(text, "debug"),
            [away("var"), only, away("usr/y"), away("usr/z")]
        );
    }

    #[test]
    fn stars_stay_within_a_name() {
        for (pattern, name, fits) in [
            ("a", "a", true),
            ("a*", "abc", true),
            ("*.a", "b.a", true),
            ("*.a", "b.ab", false),
            ("a*c*e", "abcde", true),
            ("a", "ab", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn a_tree_is_pruned_and_idle_rules_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for path in [
            "usr/bin/a",
            "usr/bin/b",
            "usr/lib/x.a",
            "usr/lib/x.so",
            "var/lib/d",
        ] {
            fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
            fs::write(dir.path().join(path), "").unwrap();
        }
        apply(
            dir.path(),
            &parse("var\nusr/lib/*.a\nonly usr/bin: b\n", "debug"),
        )
        .unwrap();
        let left: Vec<String> = crate::files::walk(dir.path())
            .unwrap()
            .iter()
            .map(|(p, _)| p.display().to_string())
            .collect();
        assert_eq!(
            left,
            ["usr", "usr/bin", "usr/bin/b", "usr/lib", "usr/lib/x.so"]
        );
        for idle in ["usr/lib/*.a", "only usr/bin: b", "only usr/bin: b c"] {
            assert!(apply(dir.path(), &parse(idle, "debug")).is_err(), "{idle}");
        }
    }
}
