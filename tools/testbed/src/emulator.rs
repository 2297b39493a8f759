//! A TPM by itself: `swtpm` at a Unix socket, without a machine around it. For who speaks to a TPM and needs no boot.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;

/// Its socket, in its directory.
const SOCKET: &str = "tpm";

/// A TPM that is on; it goes off when this is dropped. It serves one connection at a time.
pub struct Emulator {
    child: Child,
    dir: PathBuf,
}

impl Emulator {
    /// Switches on the TPM whose state is in `dir`; an empty one is a new TPM, with seeds of its own and no certificate. It has gone
    /// through TPM2_Startup(CLEAR).
    ///
    /// # Errors
    /// [`Error::File`], and [`Error::Program`] if swtpm (Debian package `swtpm`) does not start.
    pub fn start(dir: &Path) -> Result<Emulator, Error> {
        std::fs::create_dir_all(dir).map_err(Error::file("making", dir))?;
        let dir = std::path::absolute(dir).map_err(Error::file("finding", dir))?;
        let _ = std::fs::remove_file(dir.join(SOCKET));
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", dir.display()))
            // Where the socket's name is short: it has 107 bytes at most (unix(7)).
            .current_dir(&dir)
            .args(["--server", &format!("type=unixio,path={SOCKET}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let mut emulator = Emulator { child, dir };
        emulator.until_it_listens()?;
        Ok(emulator)
    }

    fn until_it_listens(&mut self) -> Result<(), Error> {
        let (socket, deadline) = (self.socket(), Instant::now() + Duration::from_secs(20));
        // The file is there a moment before anybody listens.
        while UnixStream::connect(&socket).is_err() {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(failed(format!("it ended at once ({status})")));
            }
            if Instant::now() > deadline {
                return Err(failed(format!("nothing listens at {}", socket.display())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The same for a TPM as its maker sells it: with an RSA endorsement key's certificate at the usual NV index, by the certificate
    /// authority in `maker`, which the first TPM makes ([`crate::maker_certificates`] gives its certificates).
    ///
    /// # Errors
    /// As [`Emulator::start`]; swtpm_setup is in Debian's package `swtpm-tools`.
    pub fn manufactured(dir: &Path, maker: &Path) -> Result<Emulator, Error> {
        crate::tpm::manufacture(dir, Some(maker))?;
        Emulator::start(dir)
    }

    /// Power off without notice and on again: PCRs, loaded keys and sessions are gone, what lasts stays. Connections from before are
    /// dead.
    ///
    /// # Errors
    /// As [`Emulator::start`].
    pub fn power_cycle(&mut self) -> Result<(), Error> {
        self.switch_off();
        *self = Emulator::start(&self.dir)?;
        Ok(())
    }

    fn switch_off(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Where it takes commands.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.switch_off();
    }
}

fn failed(reason: String) -> Error {
    Error::Program {
        program: "swtpm".to_owned(),
        reason,
    }
}
