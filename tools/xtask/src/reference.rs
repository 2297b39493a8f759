//! The book's reference: pages that are written from the code, so that they cannot tell of something else.
//!
//! ```text
//! skerry docs (commands, operator API) --.
//! tests and benches of this program -------> docs/src/reference     `cargo xtask docs`
//!                                       `--> target/reference       compared by `cargo xtask lint`
//! ```
//!
//! The pages are kept in the repository: who reads the book there, unbuilt, finds them too, and a change of the command line or
//! of the API shows as a change of the book in review.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::progress::say;
use crate::{bench, build, e2e};

/// Where the pages stand in the book.
const PAGES: &str = "docs/src/reference";

/// Writes the pages into the book.
pub fn write() -> Result<()> {
    write_to(Path::new(PAGES))?;
    say(&format!("the reference is in {PAGES}"));
    Ok(())
}

/// Whether the book's pages are what the code would write.
///
/// # Errors
/// Names the pages that are not, and how to mend them.
pub fn check() -> Result<()> {
    let fresh = Path::new("target/reference");
    if fresh.exists() {
        // A page that is written no more must not stand there from an earlier time.
        fs::remove_dir_all(fresh).with_context(|| format!("emptying {}", fresh.display()))?;
    }
    write_to(fresh)?;
    let stale = differing(fresh, Path::new(PAGES))?;
    if !stale.is_empty() {
        bail!(
            "{} of {PAGES} not as the code writes it; run `cargo xtask docs` and look at the difference",
            stale.join(", ")
        );
    }
    Ok(())
}

/// Names of files that are in one folder only, or not the same in both.
fn differing(one: &Path, other: &Path) -> Result<Vec<String>> {
    let names = |dir: &Path| -> Result<Vec<String>> {
        fs::read_dir(dir)
            .with_context(|| format!("listing {}", dir.display()))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    let mut all = names(one)?;
    all.extend(names(other)?);
    all.sort();
    all.dedup();
    all.retain(|name| fs::read(one.join(name)).ok() != fs::read(other.join(name)).ok());
    Ok(all)
}

fn write_to(dir: &Path) -> Result<()> {
    let program = build::programs()?.join("skerry");
    let status = Command::new(&program)
        .args(["docs", "--out"])
        .arg(dir)
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("starting {}", program.display()))?;
    if !status.success() {
        bail!("{} docs: {status}", program.display());
    }
    let tests = dir.join("tests.md");
    fs::write(&tests, tests_page()).with_context(|| format!("writing {}", tests.display()))
}

fn tests_page() -> String {
    let mut page = String::from(
        "<!-- Written by `cargo xtask docs`; do not change by hand. -->\n\
         # Tests and benches\n\n\
         ## End-to-end tests\n\n\
         Run with `cargo xtask e2e NAME`, all with `cargo xtask e2e all`. Those that `cargo xtask test` runs say so.\n\n\
         | name | what it shows | in `cargo xtask test` |\n|---|---|---|\n",
    );
    for (name, about, essential) in e2e::catalogue() {
        let essential = if essential { "yes" } else { "" };
        page += &format!("| `{name}` | {about} | {essential} |\n");
    }
    page += "\n## Benches\n\nRun with `cargo xtask bench NAME`.\n\n| name | what it measures |\n|---|---|\n";
    for (name, about) in bench::catalogue() {
        page += &format!("| `{name}` | {about} |\n");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_differs_or_lacks_is_named() {
        let place = tempfile::tempdir().unwrap();
        let (one, other) = (place.path().join("one"), place.path().join("other"));
        for (dir, name, text) in [
            (&one, "same.md", "a"),
            (&other, "same.md", "a"),
            (&one, "changed.md", "a"),
            (&other, "changed.md", "b"),
            (&one, "new.md", "a"),
            (&other, "old.md", "a"),
        ] {
            fs::create_dir_all(dir).unwrap();
            fs::write(dir.join(name), text).unwrap();
        }
        assert_eq!(
            differing(&one, &other).unwrap(),
            ["changed.md", "new.md", "old.md"]
        );
    }
}
