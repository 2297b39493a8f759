//! Whether the emulated PC can run guests of its own: asserted by running one, before a test looks for faults elsewhere.
//!
//! A processor's flag says little. QEMU offers SVM that some versions emulate wrongly, and a host's KVM may offer nesting
//! that is switched off further out.

use std::path::Path;
use std::time::Duration;

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
