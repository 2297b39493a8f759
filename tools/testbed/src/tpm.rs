//! The machine's TPM: one swtpm process while the machine is on, its state in the machine's directory.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;
use crate::command::{output_tail, run};

/// Its socket, in its directory.
const SOCKET: &str = "sock";

pub(crate) struct Tpm {
    child: Child,
}

/// Makes the TPM as its maker would: with an endorsement key and certificates for key and platform.
pub(crate) fn manufacture(dir: &Path) -> Result<(), Error> {
    if dir.join("tpm2-00.permall").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(dir).map_err(Error::file("making", dir))?;
    run(Command::new("swtpm_setup")
        .args([
            "--tpm2",
            "--create-ek-cert",
            "--create-platform-cert",
            "--overwrite",
        ])
        .args([
            "--pcr-banks".as_ref(),
            "sha256".as_ref(),
            "--tpmstate".as_ref(),
            dir.as_os_str(),
        ]))
}

impl Tpm {
    pub(crate) fn start(dir: &Path) -> Result<Tpm, Error> {
        let socket = socket(dir);
        let _ = std::fs::remove_file(&socket);
        let log = dir.join("swtpm.log");
        let child = Command::new("swtpm")
            .process_group(0)
            // Where the socket's name is short: it has 107 bytes at most (unix(7)).
            .current_dir(dir)
            .args(["socket", "--tpm2", "--tpmstate"])
            .arg(format!("dir={}", dir.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={SOCKET}"))
            .arg("--log")
            .arg(format!("file={},level=1", log.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| Error::Program {
                program: "swtpm".to_owned(),
                reason: e.to_string(),
            })?;
        let mut tpm = Tpm { child };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            let ended = tpm.child.try_wait().ok().flatten();
            if ended.is_some() || Instant::now() > deadline {
                return Err(Error::Program {
                    program: "swtpm".to_owned(),
                    reason: output_tail(&log),
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(tpm)
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        // swtpm ends with QEMU; after a power cut it is given a moment to write its state, as a chip would have it.
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join(SOCKET)
}
