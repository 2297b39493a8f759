//! Chooses kernel modules: which lie in the root file system, which in an initramfs and in what order they are loaded.
//!
//! `modules.dep` of the kernel's package says who needs whom (kmod's depmod(8)); names are compared as the kernel does, `-`
//! and `_` alike.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

/// Modules by path relative to the kernel's module folder, `kernel/...`, each with all that it needs.
pub struct Modules {
    needs: BTreeMap<String, Vec<String>>,
    by_name: BTreeMap<String, String>,
    builtin: BTreeSet<String>,
}

/// The name by which a module is known: its file's name without `.ko` and compression.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

impl Modules {
    /// Reads `modules.dep` and `modules.builtin`.
    pub fn parse(dep: &str, builtin: &str) -> Modules {
        let mut needs = BTreeMap::new();
        let mut by_name = BTreeMap::new();
        for line in dep.lines() {
            if let Some((path, rest)) = line.split_once(':') {
                by_name.insert(name_of(path), path.to_owned());
                needs.insert(
                    path.to_owned(),
                    rest.split_whitespace().map(str::to_owned).collect(),
                );
            }
        }
        Modules {
            needs,
            by_name,
            builtin: builtin.lines().map(name_of).collect(),
        }
    }

    /// Paths of the wanted modules and of all that they need, each after what it needs. An entry is a module's name or a
    /// path below `kernel/`; a path that ends in a slash is a folder. What is built into the kernel needs no file.
    pub fn choose(&self, wanted: &[String]) -> Result<Vec<String>> {
        let mut chosen = Vec::new();
        let mut seen = BTreeSet::new();
        for entry in wanted {
            for path in self.matching(entry)? {
                // modules.dep lists needs in the reverse of loading order.
                let needs = self.needs.get(path).map(Vec::as_slice).unwrap_or_default();
                for module in needs.iter().rev().map(String::as_str).chain([path]) {
                    if seen.insert(module) {
                        chosen.push(module.to_owned());
                    }
                }
            }
        }
        Ok(chosen)
    }

    fn matching(&self, entry: &str) -> Result<Vec<&str>> {
        if entry.contains('/') {
            let prefix = format!("kernel/{entry}");
            let found: Vec<&str> = self
                .needs
                .keys()
                .map(String::as_str)
                .filter(|path| path.starts_with(&prefix))
                .collect();
            if found.is_empty() {
                bail!("no kernel module lies at {prefix}");
            }
            return Ok(found);
        }
        let name = entry.replace('-', "_");
        match self.by_name.get(&name) {
            Some(path) => Ok(vec![path]),
            None if self.builtin.contains(&name) => Ok(Vec::new()),
            None => bail!("the kernel has no module {entry}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/drivers/nvme/host/nvme.ko.xz: kernel/drivers/nvme/host/nvme-core.ko.xz kernel/drivers/nvme/common/nvme-auth.ko.xz\n\
        kernel/drivers/nvme/host/nvme-core.ko.xz: kernel/drivers/nvme/common/nvme-auth.ko.xz\n\
        kernel/drivers/nvme/common/nvme-auth.ko.xz:\n\
        kernel/net/bridge/bridge.ko.xz: kernel/net/llc/llc.ko.xz\n\
        kernel/net/llc/llc.ko.xz:\n";

    fn choose(wanted: &[&str]) -> Result<Vec<String>> {
        let wanted: Vec<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
        Modules::parse(DEP, "kernel/drivers/char/tpm/tpm_tis.ko\n").choose(&wanted)
    }

    #[test]
    fn what_a_module_needs_comes_before_it_and_once() {
        let order: Vec<String> = choose(&["nvme", "nvme-core", "net/bridge/"])
            .unwrap()
            .iter()
            .map(|p| name_of(p))
            .collect();
        assert_eq!(order, ["nvme_auth", "nvme_core", "nvme", "llc", "bridge"]);
    }

    #[test]
    fn built_in_is_fine_and_unknown_is_not() {
        assert!(choose(&["tpm-tis"]).unwrap().is_empty());
        assert!(
            choose(&["floppy"])
                .unwrap_err()
                .to_string()
                .contains("floppy")
        );
        assert!(
            choose(&["drivers/isdn/"])
                .unwrap_err()
                .to_string()
                .contains("drivers/isdn/")
        );
    }
}
