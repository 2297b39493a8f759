//! Which way the emulated processor runs, decided by what this machine really has.
//!
//! Nested KVM on AMD or Intel hardware is the fast way. A `/dev/kvm` that is a software implementation (module `kvm_pvm`)
//! cannot run UEFI firmware or stock kernels, so there, and on machines without KVM, QEMU's TCG emulates an AMD processor
//! with SVM. That is real enough for Debian's unmodified `kvm-amd`, within two limits of QEMU 7.2 (Debian 12):
//!
//! - One processor. When any emulated processor restores its FPU state (`cpu_set_fpus`), QEMU clears a bit in `hflags2` of
//!   the *first* processor without a lock (`cpu_clear_ignne`, target/i386/tcg/sysemu/fpu_helper.c). If that one leaves a
//!   nested guest at this moment, its nested-paging flag comes back, the first instruction after the exit leaves once more,
//!   and the host's registers are saved as the guest's. The nested guest is lost: about one boot in five hung for good.
//! - No XSAVE, and so no AVX. QEMU does not give the exit that KVM asks for when a nested guest writes XCR0, so KVM goes on
//!   with its own idea (x87 alone) at each entry, and what the guest saves and restores lacks the SSE registers: its
//!   programs die at random. Without XSAVE, guests use FXSAVE, which has no such register.

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

    /// How many processors a usual machine has on this accelerator; see the head of this file.
    pub fn processors(self) -> u8 {
        match self {
            Accelerator::Tcg => 1,
            Accelerator::NestedKvm => 2,
        }
    }

    pub(crate) fn arguments(self) -> [&'static str; 4] {
        match self {
            Accelerator::Tcg => [
                "-accel",
                "tcg,thread=multi,tb-size=512",
                "-cpu",
                "EPYC,+svm,+npt,-xsave,-xsaveopt,-xsavec,-xgetbv1,-avx,-avx2,-fma,-f16c",
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
