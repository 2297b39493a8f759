//! The machine itself.
//!
//! ```text
//!          power_on                     guest powers off (wait_off), power_off, cut_power
//!   off ------------> on (QEMU, swtpm) --------------------------------------------------> off
//! ```

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::command::output_tail;
use crate::qmp::Qmp;
use crate::screen::Screen;
use crate::serial::Serial;
use crate::spec::{Bus, Clock, Spec};
use crate::tpm::{self, Tpm};
use crate::{Accelerator, Error};

/// The program that emulates the PC.
pub(crate) const QEMU: &str = "qemu-system-x86_64";
const FIRMWARE_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const FIRMWARE_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Sockets of the serial line and of QEMU's monitor, in the machine's directory.
const SERIAL: &str = "serial.sock";
const QMP: &str = "qmp.sock";

/// An emulated rugged PC.
pub struct Pc {
    spec: Spec,
    dir: PathBuf,
    stick: Option<PathBuf>,
    accelerator: Accelerator,
    serial: Serial,
    on: Option<On>,
}

struct On {
    qemu: Child,
    qmp: Qmp,
    _tpm: Option<Tpm>,
}

impl Pc {
    /// Puts a machine together in `dir` (absolute). What is already there (disk, TPM, firmware variables) is kept, so that a machine can be
    /// found again.
    pub fn build(spec: Spec, dir: &Path) -> Result<Pc, Error> {
        std::fs::create_dir_all(dir).map_err(Error::file("making", dir))?;
        let dir = dir.canonicalize().map_err(Error::file("finding", dir))?;
        for (i, drive) in spec.drives.iter().enumerate() {
            let path = drive_path(&dir, i);
            if !path.exists() {
                let file = File::create(&path).map_err(Error::file("making", &path))?;
                file.set_len(u64::from(drive.gib) << 30)
                    .map_err(Error::file("sizing", &path))?;
            }
        }
        let vars = dir.join("firmware-variables.fd");
        if spec.has_firmware() && !vars.exists() {
            std::fs::copy(FIRMWARE_VARS, &vars)
                .map_err(Error::file("copying the firmware's variables to", &vars))?;
        }
        if spec.tpm {
            tpm::manufacture(&dir.join("tpm"), spec.tpm_maker.as_deref())?;
        }
        let accelerator = Accelerator::detect();
        Ok(Pc {
            spec,
            dir,
            stick: None,
            accelerator,
            serial: Serial::new(),
            on: None,
        })
    }

    /// Which way the processor is emulated.
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// What the machine is made of; changes take effect at the next power-on.
    pub fn spec_mut(&mut self) -> &mut Spec {
        &mut self.spec
    }

    /// The file behind an internal drive.
    pub fn drive(&self, index: usize) -> PathBuf {
        drive_path(&self.dir, index)
    }

    /// The machine's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The certificate (DER) of the TPM's endorsement key, as it comes on paper or by mail with a machine.
    pub fn endorsement_certificate(&self) -> Result<Vec<u8>, Error> {
        tpm::certificate(&self.dir.join("tpm"))
    }

    /// Plugs a USB stick whose bytes are in `image`. The machine boots from it first at the next power-on.
    pub fn plug_stick(&mut self, image: &Path) {
        self.stick = Some(image.to_owned());
    }

    /// Unplugs the stick; if the machine is on, the stick is pulled.
    pub fn unplug_stick(&mut self) {
        if self.stick.take().is_some() && self.on.is_some() {
            let _ = self.monitor("device_del", json!({ "id": "stick" }));
        }
    }

    /// The serial line.
    pub fn serial(&mut self) -> &mut Serial {
        &mut self.serial
    }

    /// Presses the power button of a machine that is off.
    pub fn power_on(&mut self) -> Result<(), Error> {
        if self.is_on() {
            return Err(Error::State {
                operation: "powering on",
                state: "on",
            });
        }
        let tpm = if self.spec.tpm {
            Some(Tpm::start(&self.dir.join("tpm"))?)
        } else {
            None
        };
        let folder = File::open(&self.dir).map_err(Error::file("opening", &self.dir))?;
        let (serial_socket, qmp_socket) = (near(&folder, SERIAL), near(&folder, QMP));
        for socket in [&serial_socket, &qmp_socket] {
            let _ = std::fs::remove_file(socket);
        }
        let log = self.dir.join("qemu.log");
        let log_file = File::create(&log).map_err(Error::file("making", &log))?;
        let mut qemu = Command::new(QEMU)
            .args(self.arguments()?)
            // Where its sockets' names are short.
            .current_dir(&self.dir)
            // Ctrl-C in a terminal is for whoever started us, not for the machine.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .spawn()
            .map_err(|e| Error::Program {
                program: "qemu-system-x86_64".to_owned(),
                reason: e.to_string(),
            })?;
        let deadline = Instant::now() + Duration::from_secs(20);
        let qmp = loop {
            if let Ok(Some(status)) = qemu.try_wait() {
                let reason = format!("{status}: {}", output_tail(&log));
                return Err(Error::Program {
                    program: "qemu-system-x86_64".to_owned(),
                    reason,
                });
            }
            // QEMU waits (-S) until its clock is started below, so no line of the console is missed.
            let connected = UnixStream::connect(&serial_socket)
                .map_err(Error::file("connecting to", self.dir.join(SERIAL)))
                .and_then(|stream| {
                    self.serial
                        .connect(stream)
                        .map_err(Error::file("reading", self.dir.join(SERIAL)))
                })
                .and_then(|()| Qmp::connect(&qmp_socket));
            match connected {
                Ok(qmp) => break qmp,
                Err(e) if Instant::now() > deadline => {
                    let _ = qemu.kill();
                    let _ = qemu.wait();
                    return Err(e);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        self.on = Some(On {
            qemu,
            qmp,
            _tpm: tpm,
        });
        self.monitor("cont", json!({}))?;
        Ok(())
    }

    /// Whether it is on. A machine that powered itself off is off.
    pub fn is_on(&mut self) -> bool {
        if let Some(on) = &mut self.on
            && !matches!(on.qemu.try_wait(), Ok(None))
        {
            self.on = None;
        }
        self.on.is_some()
    }

    /// Waits until the machine has powered itself off.
    pub fn wait_off(&mut self, timeout: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + timeout;
        while self.is_on() {
            if Instant::now() > deadline {
                return Err(Error::StaysOn(timeout));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Presses the power button of a machine that is on, and waits for the system to shut down.
    pub fn power_off(&mut self, timeout: Duration) -> Result<(), Error> {
        self.monitor("system_powerdown", json!({}))?;
        self.wait_off(timeout)
    }

    /// Pulls the plug: nothing is flushed, nothing is asked.
    pub fn cut_power(&mut self) {
        if let Some(mut on) = self.on.take() {
            let _ = on.qemu.kill();
            let _ = on.qemu.wait();
        }
    }

    /// Pulls the cable of a network card.
    pub fn pull_cable(&mut self, nic: usize) -> Result<(), Error> {
        self.monitor(
            "set_link",
            json!({ "name": format!("nic{nic}"), "up": false }),
        )
        .map(drop)
    }

    /// Plugs the cable of a network card.
    pub fn plug_cable(&mut self, nic: usize) -> Result<(), Error> {
        self.monitor(
            "set_link",
            json!({ "name": format!("nic{nic}"), "up": true }),
        )
        .map(drop)
    }

    /// Writes what the screen shows to a PNG file.
    pub fn screenshot(&mut self, path: &Path) -> Result<(), Error> {
        let path = std::path::absolute(path).map_err(Error::file("finding", path))?;
        self.monitor("screendump", json!({ "filename": path, "format": "png" }))
            .map(drop)
    }

    /// What the screen shows, to look for text in it.
    pub fn screen(&mut self) -> Result<Screen, Error> {
        let path = self.dir.join("screen.ppm");
        self.monitor("screendump", json!({ "filename": path, "format": "ppm" }))?;
        Screen::read(&path)
    }

    /// Process id of QEMU, while the machine is on.
    pub fn pid(&self) -> Option<u32> {
        self.on.as_ref().map(|on| on.qemu.id())
    }

    /// Leaves a running machine to itself: this value forgets it, and its process goes on. For `demo`, which ends while its machine runs.
    pub fn detach(mut self) -> Option<u32> {
        let on = self.on.take()?;
        let pid = on.qemu.id();
        std::mem::forget(on);
        Some(pid)
    }

    fn monitor(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        match &mut self.on {
            Some(on) => on.qmp.run(command, arguments),
            None => Err(Error::State {
                operation: "talking to QEMU",
                state: "off",
            }),
        }
    }

    /// QEMU's command line, for a process that works in the machine's directory.
    fn arguments(&self) -> Result<Vec<String>, Error> {
        let absolute = |path: &Path| {
            std::path::absolute(path)
                .map(|path| path.to_string_lossy().into_owned())
                .map_err(Error::file("finding", path))
        };
        let spec = &self.spec;
        let dir = self.dir.display();
        let mut line: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| line.extend(words.iter().map(|word| (*word).to_owned()));
        add(&[
            "-name",
            &spec.serial,
            "-nodefaults",
            "-no-user-config",
            "-S",
        ]);
        add(&self.accelerator.arguments());
        add(&[
            "-machine",
            "q35,smm=off",
            "-smp",
            &spec.cpus.to_string(),
            "-m",
            &format!("{}M", spec.memory_mib),
        ]);
        let smbios = format!(
            "type=1,manufacturer={},product={},serial={}",
            comma(&spec.manufacturer),
            comma(&spec.product),
            comma(&spec.serial)
        );
        add(&[
            "-smbios",
            &smbios,
            "-vga",
            "std",
            "-display",
            "none",
            "-device",
            "virtio-rng-pci",
        ]);
        add(&[
            "-chardev",
            &format!(
                "socket,id=serial,path={SERIAL},server=on,wait=off,logfile={dir}/serial.log,logappend=on"
            ),
        ]);
        add(&[
            "-serial",
            "chardev:serial",
            "-qmp",
            &format!("unix:{QMP},server=on,wait=off"),
        ]);
        match &spec.clock {
            Clock::Now => add(&["-rtc", "base=utc"]),
            Clock::At(time) => add(&["-rtc", &format!("base={time}")]),
        }
        if let Some(boot) = &spec.direct {
            add(&[
                "-kernel",
                &absolute(&boot.kernel)?,
                "-initrd",
                &absolute(&boot.initrd)?,
            ]);
            add(&["-append", &boot.cmdline, "-no-reboot"]);
        }
        if spec.has_firmware() {
            add(&[
                "-drive",
                &format!("if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE_CODE}"),
            ]);
            add(&[
                "-drive",
                &format!("if=pflash,format=raw,unit=1,file={dir}/firmware-variables.fd"),
            ]);
        }
        if spec.tpm {
            let socket = tpm::socket(Path::new("tpm"));
            add(&[
                "-chardev",
                &format!("socket,id=tpm,path={}", socket.display()),
            ]);
            add(&[
                "-tpmdev",
                "emulator,id=tpm0,chardev=tpm",
                "-device",
                "tpm-crb,tpmdev=tpm0",
            ]);
        }
        for (i, drive) in spec.drives.iter().enumerate() {
            // Write-through: what the machine was told is on the disk survives a power cut, and no more.
            let file = drive_path(&self.dir, i);
            add(&[
                "-drive",
                &format!(
                    "if=none,id=drive{i},format=raw,cache=writethrough,discard=unmap,file={}",
                    file.display()
                ),
            ]);
            let boot = i + 1;
            add(&[
                "-device",
                &match drive.bus {
                    Bus::Nvme => format!("nvme,drive=drive{i},serial=DISK{i},bootindex={boot}"),
                    Bus::Sata => {
                        format!("ide-hd,drive=drive{i},serial=DISK{i},bus=ide.{i},bootindex={boot}")
                    }
                    Bus::Virtio => {
                        format!("virtio-blk-pci,drive=drive{i},serial=DISK{i},bootindex={boot}")
                    }
                },
            ]);
        }
        add(&["-device", "qemu-xhci"]);
        if let Some(stick) = &self.stick {
            add(&[
                "-drive",
                &format!(
                    "if=none,id=stick,format=raw,cache=writethrough,file={}",
                    absolute(stick)?
                ),
            ]);
            add(&[
                "-device",
                "usb-storage,id=stick,drive=stick,removable=on,bootindex=0",
            ]);
        }
        for (i, nic) in spec.nics.iter().enumerate() {
            let mut netdev = format!("user,id=net{i}");
            if i == 0 {
                for forward in &spec.forwards {
                    netdev += &format!(
                        ",hostfwd=tcp:127.0.0.1:{}-:{}",
                        forward.host, forward.machine
                    );
                }
            }
            // The hardware address follows from the serial number, so that two machines never share one. No boot ROM: no network boot.
            let hash = spec.serial.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
                (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
            });
            let [a, b, c, _] = hash.to_be_bytes();
            add(&["-netdev", &netdev]);
            add(&[
                "-device",
                &format!(
                    "{},id=nic{i},netdev=net{i},romfile=,mac=52:54:{a:02x}:{b:02x}:{c:02x}:{i:02x}",
                    nic.model
                ),
            ]);
        }
        Ok(line)
    }
}

impl Drop for Pc {
    fn drop(&mut self) {
        self.cut_power();
    }
}

/// A path by which this process reaches a socket in an open folder. The name of a unix socket has 107 bytes at most (unix(7)),
/// and a clone may lie deeper than that.
fn near(folder: &File, name: &str) -> PathBuf {
    Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(name)
}

fn drive_path(dir: &Path, index: usize) -> PathBuf {
    dir.join(format!("drive{index}.img"))
}

/// QEMU's option syntax doubles a comma inside a value.
fn comma(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// The folder's path is longer than the name of a socket can be.
    #[test]
    fn sockets_in_a_deep_folder_are_reached() {
        let place = std::env::temp_dir().join(format!("skerry-testbed-{}", std::process::id()));
        let deep = place.join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        assert!(UnixListener::bind(deep.join(QMP)).is_err());
        let folder = File::open(&deep).unwrap();
        let listener = UnixListener::bind(near(&folder, QMP)).unwrap();
        UnixStream::connect(near(&folder, QMP)).unwrap();
        drop(listener);
        std::fs::remove_dir_all(&place).unwrap();
    }
}
