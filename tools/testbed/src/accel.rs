//! Which way the emulated processor runs, decided by what this machine really has.
//!
//! Nested KVM on AMD or Intel hardware is the fast way. A `/dev/kvm` that is a software implementation (module `kvm_pvm`)
//! cannot run UEFI firmware or stock kernels, so there, and on machines without KVM, QEMU's TCG emulates an AMD processor
//! with SVM. That is real enough for Debian's unmodified `kvm-amd`.

use std::fmt;
use std::fs;
use std::path::Path;

/// Which way the emulated processor runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// QEMU's own emulation, with SVM and nested paging.
    Tcg,
    /// KVM of the build machine, which lets guests use virtualisation themselves.
    NestedKvm,
}

impl Accelerator {
    /// Looks at the build machine.
    pub fn detect() -> Accelerator {
        Accelerator::detect_in(Path::new("/"))
    }

    fn detect_in(root: &Path) -> Accelerator {
        let nested = ["kvm_amd", "kvm_intel"].iter().any(|module| {
            fs::read_to_string(
                root.join("sys/module")
                    .join(module)
                    .join("parameters/nested"),
            )
            .is_ok_and(|value| matches!(value.trim(), "1" | "Y"))
        });
        if nested && root.join("dev/kvm").exists() {
            Accelerator::NestedKvm
        } else {
            Accelerator::Tcg
        }
    }

    pub(crate) fn arguments(self) -> [&'static str; 4] {
        match self {
            Accelerator::Tcg => [
                "-accel",
                "tcg,thread=multi,tb-size=512",
                "-cpu",
                "EPYC,+svm,+npt",
            ],
            Accelerator::NestedKvm => ["-accel", "kvm", "-cpu", "host"],
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accelerator::Tcg => "TCG (software emulation of an AMD processor with SVM)",
            Accelerator::NestedKvm => "KVM of this machine, nested",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_kvm_is_not_taken_for_hardware() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/kvm"), "").unwrap();
        fs::create_dir_all(root.path().join("sys/module/kvm_pvm")).unwrap();
        assert_eq!(Accelerator::detect_in(root.path()), Accelerator::Tcg);

        let parameters = root.path().join("sys/module/kvm_amd/parameters");
        fs::create_dir_all(&parameters).unwrap();
        fs::write(parameters.join("nested"), "0\n").unwrap();
        assert_eq!(Accelerator::detect_in(root.path()), Accelerator::Tcg);
        fs::write(parameters.join("nested"), "1\n").unwrap();
        assert_eq!(Accelerator::detect_in(root.path()), Accelerator::NestedKvm);
    }
}
