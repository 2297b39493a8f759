//! Whether the emulated PC can run guests of its own: asserted by running one, before a test looks for faults elsewhere.
//!
//! A processor's flag says little. QEMU offers SVM that some versions emulate wrongly, and a host's KVM may offer nesting
//! that is switched off further out.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::command::run;
use crate::pc::QEMU;
use crate::{Accelerator, DirectBoot, Error, Pc, Spec};

/// What the program in the machine has to say once its guest has run.
pub const RAN: &str = "nested: a guest ran on KVM";
/// How a line with a reason why it did not begins.
pub const FAILED: &str = "nested: FAILED";

/// Boots a bare PC with a kernel that has KVM and an initramfs whose init starts a guest and says [`RAN`]; gives the
/// accelerator on which that worked. `dir` is the machine's folder.
///
/// # Errors
/// [`Error::NotNested`] with the reason, or why the machine did not start at all.
pub fn check(boot: DirectBoot, dir: &Path, patience: Duration) -> Result<Accelerator, Error> {
    let mut pc = Pc::build(Spec::bare("SK-NESTED-CHECK", 512, boot), dir)?;
    let accelerator = pc.accelerator();
    pc.power_on()?;
    match pc
        .serial()
        .expect_or(RAN, &[FAILED, "Kernel panic"], patience)
    {
        Ok(_) => {
            pc.wait_off(patience)?;
            Ok(accelerator)
        }
        Err(error) => Err(Error::NotNested {
            accelerator,
            reason: error.to_string(),
        }),
    }
}

/// What the outcome of [`check`] depends on besides kernel and initramfs: QEMU's version, how it runs the processor, and with
/// KVM the build machine's kernel and processor. For comparing, not for reading.
///
/// # Errors
/// [`Error::Program`] if QEMU does not start, [`Error::File`] if the build machine does not say what it is.
pub fn conditions() -> Result<String, Error> {
    let accelerator = Accelerator::detect();
    let mut said = run(Command::new(QEMU).arg("--version"))?;
    said += &accelerator.arguments().join(" ");
    if accelerator == Accelerator::NestedKvm {
        let read = |path: &str| std::fs::read_to_string(path).map_err(Error::file("reading", path));
        said += &read("/proc/sys/kernel/osrelease")?;
        // One line of it: others change from one reading to the next (`cpu MHz`).
        said.extend(
            read("/proc/cpuinfo")?
                .lines()
                .find(|line| line.starts_with("model name")),
        );
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_name_qemu_and_stay() {
        let said = conditions().unwrap();
        assert!(said.starts_with("QEMU emulator version "), "{said}");
        assert!(said.contains("-accel"), "{said}");
        assert_eq!(conditions().unwrap(), said);
    }
}
