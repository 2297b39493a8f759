//! What makes a step's result out of its inputs: our code and the build machine's tools. Part of each step's key.
//!
//! A finished step may be taken again only if everything that shapes its bytes is what it was. The inputs (packages by
//! digest, lists, overlays, our programs) go into the key where the step reads them. The rest stands here:
//!
//! - *sources*: the modules that shape the result, as they were compiled into this program, without comments and tests. Not
//!   the whole program, for an edit elsewhere must not cost minutes; not a number that somebody has to think of raising.
//! - *tools*: the Debian packages of the programs that shape it, by their installed versions.
//!
//! Modules that have no say in the bytes are in no recipe: `archive` and `lock` bring packages, which are inputs; `store` keeps
//! results; `command` starts tools. A test compares the sources with the modules that they name, so that none is forgotten.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::store::Key;
use crate::command::run;

/// What makes a step's result. See the head of this file.
pub struct Recipe {
    /// The step.
    pub name: &'static str,
    /// Modules, each with its text.
    pub sources: &'static [(&'static str, &'static str)],
    /// Debian packages.
    pub tools: &'static [&'static str],
}

macro_rules! sources {
    ($($path:literal),+) => { &[$(($path, include_str!($path))),+] };
}

pub const GUEST_KERNEL: Recipe = Recipe {
    name: "guest kernel",
    sources: sources!["guest_kernel.rs"],
    // `gcc` only names the compiler of the release.
    tools: &["binutils", "gcc-12", "lz4", "make"],
};

pub const HOST_BASE: Recipe = Recipe {
    name: "host base",
    sources: sources![
        "host/base.rs",
        "tree.rs",
        "modules.rs",
        "prune.rs",
        "../files.rs"
    ],
    tools: &["binutils", "dpkg", "kmod", "tar", "xz-utils"],
};

pub const HOST_ROOT: Recipe = Recipe {
    name: "host root",
    sources: sources!["host/root.rs", "host/squashfs.rs", "bare.rs", "../files.rs"],
    tools: &["cryptsetup-bin", "squashfs-tools"],
};

/// Only the packing counts, for the archive is the input; but its module puts that together too.
pub const INITRAMFS: Recipe = Recipe {
    name: "initramfs",
    sources: sources![
        "initramfs.rs",
        "tree.rs",
        "modules.rs",
        "prune.rs",
        "../files.rs"
    ],
    tools: &["zstd"],
};

pub const DEMO_CONTAINER: Recipe = Recipe {
    name: "demo container",
    // The lock, for tar and gzip are crates here.
    sources: sources!["demo_container.rs", "../files.rs", "../../../../Cargo.lock"],
    tools: &["dpkg"],
};

pub const DEMO_VM: Recipe = Recipe {
    name: "demo vm",
    sources: sources!["demo_vm.rs", "../files.rs"],
    tools: &[
        "apt",
        "dpkg",
        "e2fsprogs",
        "mmdebstrap",
        "qemu-utils",
        "tar",
    ],
};

impl Recipe {
    /// The beginning of the step's key; what the step reads is to be added.
    pub fn key(&self) -> Result<Key> {
        let mut key = Key::new(self.name);
        for (path, text) in self.sources {
            key = key
                .with("source", path.as_bytes())
                .with("code", code(text).as_bytes());
        }
        Ok(key.with("tools", versions(self.tools)?.as_bytes()))
    }
}

/// A source without what cannot change a result: lines that are comments, and the tests at its end.
fn code(text: &str) -> String {
    let shipped = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or(text);
    shipped
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .fold(String::new(), |code, line| code + line + "\n")
}

/// The installed versions of Debian packages, a line each.
fn versions(packages: &[&str]) -> Result<String> {
    if packages.is_empty() {
        return Ok(String::new());
    }
    let output = run(Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${Version} ${db:Status-Status}\n"])
        .args(packages))
    .context("asking for the versions of the tools that build images")?;
    let told = String::from_utf8_lossy(&output).into_owned();
    for package in packages {
        let installed = told.lines().any(|line| {
            line.split_whitespace().next() == Some(package) && line.ends_with(" installed")
        });
        ensure!(
            installed,
            "the package {package} is not installed; images cannot be built without it"
        );
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeSet;
    use std::path::Path;

    const ALL: &[&Recipe] = &[
        &GUEST_KERNEL,
        &HOST_BASE,
        &HOST_ROOT,
        &INITRAMFS,
        &DEMO_CONTAINER,
        &DEMO_VM,
    ];
    /// See the head of this file.
    const NO_SAY: &[&str] = &["archive", "lock", "recipe", "store"];

    /// Names of the image build's modules.
    fn modules() -> BTreeSet<String> {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut names = BTreeSet::from(["files".to_owned()]);
        for (path, _) in crate::files::walk(&src.join("images")).unwrap() {
            if let Some(name) = path.to_str().and_then(|path| path.strip_suffix(".rs")) {
                names.insert(name.rsplit('/').next().unwrap().to_owned());
            }
        }
        names
    }

    /// Whether code says `module::`.
    fn names(code: &str, module: &str) -> bool {
        code.match_indices(&format!("{module}::")).any(|(at, _)| {
            !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_')
        })
    }

    #[test]
    fn recipes_hold_every_module_that_their_sources_name() {
        let modules = modules();
        assert!(
            modules.contains("tree") && modules.contains("squashfs"),
            "{modules:?}"
        );
        for recipe in ALL {
            let held = |module: &str| {
                let file = format!("{module}.rs");
                recipe
                    .sources
                    .iter()
                    .any(|(path, _)| path.rsplit('/').next() == Some(&file))
            };
            for (path, text) in recipe.sources {
                for module in &modules {
                    assert!(
                        !names(&code(text), module)
                            || held(module)
                            || NO_SAY.contains(&module.as_str()),
                        "the recipe of {} lacks {module}, which {path} names",
                        recipe.name
                    );
                }
            }
        }
    }

    #[test]
    fn code_counts_and_comments_and_tests_do_not() {
        let one = "//! Head.\nfn f() {\n    // Why.\n    g(1);\n}\n\n#[cfg(test)]\nmod tests {\n    fn t() {}\n}\n";
        assert_eq!(code(one), "fn f() {\n    g(1);\n}\n");
        assert_eq!(
            code(&one.replace("Why", "What").replace("t()", "u()")),
            code(one)
        );
        assert_ne!(code(&one.replace("g(1)", "g(2)")), code(one));
        // The bytes of a step's own module are really there.
        assert!(code(HOST_BASE.sources[0].1).contains("store.step("));
    }

    #[test]
    fn versions_are_the_machines_and_a_missing_tool_is_named() {
        assert!(versions(&["tar", "dpkg"]).unwrap().lines().count() == 2);
        let error = format!("{:#}", versions(&["tar", "no-such-tool"]).unwrap_err());
        assert!(error.contains("no-such-tool"), "{error}");
    }
}
