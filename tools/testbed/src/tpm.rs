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

/// The endorsement key's certificate beside the TPM's state, as swtpm_setup names it.
const CERTIFICATE: &str = "ek-rsa2048.crt";

/// Makes the TPM as its maker would: with an endorsement key and certificates for key and platform. `maker` is the folder of the maker's
/// certificate authority; the first TPM makes it. None: the one that swtpm keeps for this machine.
pub(crate) fn manufacture(dir: &Path, maker: Option<&Path>) -> Result<(), Error> {
    if dir.join("tpm2-00.permall").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(dir).map_err(Error::file("making", dir))?;
    let mut command = Command::new("swtpm_setup");
    command
        .args([
            "--tpm2",
            "--create-ek-cert",
            "--create-platform-cert",
            "--overwrite",
        ])
        .args(["--pcr-banks", "sha256"])
        .args(["--tpmstate".as_ref(), dir.as_os_str()])
        .args(["--write-ek-cert-files".as_ref(), dir.as_os_str()]);
    if let Some(maker) = maker {
        command.args(["--config".as_ref(), authority(dir, maker)?.as_os_str()]);
    }
    run(&mut command).map(drop)
}

/// Writes the settings (swtpm_setup.conf(5), swtpm-localca.conf(5)) that have a TPM certified by the authority in `maker`.
fn authority(dir: &Path, maker: &Path) -> Result<PathBuf, Error> {
    std::fs::create_dir_all(maker).map_err(Error::file("making", maker))?;
    let put = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(Error::file("writing", &path))?;
        Ok(path)
    };
    let place = maker.display();
    let settings = put(
        "localca.conf",
        format!(
            "statedir = {place}\nsigningkey = {place}/key.pem\nissuercert = {place}/issuer.pem\ncertserial = {place}/serial\n"
        ),
    )?;
    // A platform certificate names its platform, or swtpm_localca makes none.
    let options = put(
        "localca.options",
        "--platform-manufacturer Skerry\n--platform-version 1\n--platform-model Testbed\n"
            .to_owned(),
    )?;
    put(
        "setup.conf",
        format!(
            "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {}\ncreate_certs_tool_options = {}\n\
             active_pcr_banks = sha256\n",
            settings.display(),
            options.display()
        ),
    )
}

/// The endorsement key's certificate (DER) of a TPM that was made here.
pub(crate) fn certificate(dir: &Path) -> Result<Vec<u8>, Error> {
    let path = dir.join(CERTIFICATE);
    std::fs::read(&path).map_err(Error::file("reading", &path))
}

/// Certificates of a maker's authority, PEM: its root's, and the one below it that signs.
pub fn maker_certificates(maker: &Path) -> Result<String, Error> {
    let mut text = String::new();
    for name in ["swtpm-localca-rootca-cert.pem", "issuer.pem"] {
        let path = maker.join(name);
        text += &std::fs::read_to_string(&path).map_err(Error::file("reading", &path))?;
    }
    Ok(text)
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
