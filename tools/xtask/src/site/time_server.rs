//! A real time server (Debian's chrony) on the loopback address, where boxes reach it. It serves this machine's time and does not touch
//! this machine's clock (`-x`).

use std::fs::File;
use std::net::UdpSocket;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// NTP's port; clients ask at no other.
const ADDRESS: (&str, u16) = ("127.0.0.1", 123);

pub struct TimeServer(Child);

impl TimeServer {
    /// Starts it, and waits until it answers.
    pub fn start(dir: &Path) -> Result<TimeServer> {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let (settings, log) = (dir.join("chrony.conf"), dir.join("log"));
        // `local`: it serves its own clock although it asks nobody.
        let text = format!(
            "bindaddress {}\nport {}\ncmdport 0\nbindcmdaddress /\nlocal stratum 8\nallow\npidfile {}\n",
            ADDRESS.0,
            ADDRESS.1,
            dir.join("pid").display()
        );
        std::fs::write(&settings, text)
            .with_context(|| format!("writing {}", settings.display()))?;
        let file = File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let child = Command::new("chronyd")
            .args(["-d", "-x", "-u", "root", "-f"])
            .arg(&settings)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("starting chronyd")?;
        let mut server = TimeServer(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !answers()? {
            if let Some(status) = server.0.try_wait()? {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                bail!("chronyd ended at once ({status}): {said}");
            }
            if Instant::now() > deadline {
                bail!("chronyd does not answer; see {}", log.display());
            }
        }
        Ok(server)
    }
}

impl Drop for TimeServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether somebody tells the time (RFC 5905, section 7.3: version 4, mode 3; the rest of a client's 48 bytes may be zero).
fn answers() -> Result<bool> {
    let socket = UdpSocket::bind("127.0.0.1:0").context("opening a socket")?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let mut packet = [0; 48];
    packet[0] = 4 << 3 | 3;
    let sent = socket.connect(ADDRESS).and_then(|()| socket.send(&packet));
    let heard = sent.and_then(|_| socket.recv(&mut packet));
    if heard.is_err() {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(heard.is_ok_and(|length| length == packet.len()))
}
