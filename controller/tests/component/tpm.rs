//! A machine's TPM: an emulator with a state directory of its own.

use onboarding::tpm::Tpm;
use tempfile::TempDir;

pub struct Emulator {
    inner: testbed::Emulator,
    // Last, so that it is there as long as the emulator is.
    _directory: TempDir,
}

impl Emulator {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            inner: testbed::Emulator::start(directory.path()).unwrap(),
            _directory: directory,
        }
    }

    pub fn connect(&self) -> Tpm {
        Tpm::connect_unix(&self.inner.socket()).unwrap()
    }

    /// The machine is switched off and on again: PCRs are zero, what lasts is there. Connections from before are dead.
    pub fn power_cycle(&mut self) {
        self.inner.power_cycle().unwrap();
    }
}
