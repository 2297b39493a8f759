//! A monitor that is being tested, and the lines that lead into its guest.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hypervisor_api::config::{Boot, Console, VmConfig};
use hypervisor_api::control::{self, Answer, Request, State};
use hypervisor_api::report::LastWords;

use crate::system::{self, Result};

/// Whom the monitor runs as: nobody in particular.
pub const UID: u32 = 200_000;
/// Long enough for the slowest step on a busy build machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The folder of a machine's files; they belong to the monitor.
pub fn folder(name: &str) -> Result<PathBuf> {
    let folder = Path::new("/run").join(name);
    std::fs::create_dir_all(&folder)?;
    chown(&folder, Some(UID), Some(UID))?;
    Ok(folder)
}

/// Gives a file to the monitor.
pub fn give(path: &Path) -> Result<()> {
    Ok(chown(path, Some(UID), Some(UID))?)
}

/// A console with a socket in a machine's folder.
pub fn console(folder: &Path, name: &str) -> Console {
    Console {
        socket: Some(folder.join(name)),
        stdout: false,
    }
}

/// The plainest machine that plays a scene.
pub fn machine(scene: &str, folder: &Path) -> VmConfig {
    VmConfig {
        name: scene.to_owned(),
        vcpus: 1,
        memory_mib: 128,
        boot: Boot::Kernel {
            kernel: "/shipped/vmlinuz".into(),
            initrds: vec!["/guest.img".into()],
            cmdline: format!("console=hvc0 quiet panic=-1 role=guest scene={scene}"),
        },
        disks: Vec::new(),
        nets: Vec::new(),
        serial: None,
        consoles: vec![console(folder, "hvc0")],
        vsock: None,
        rng: true,
        control_socket: folder.join("control"),
        last_words: Some(folder.join("last-words")),
        shutdown_grace_seconds: 30,
    }
}

/// A running monitor. Dropped, it is killed.
pub struct Monitor {
    config: VmConfig,
    folder: PathBuf,
    child: Child,
}

impl Monitor {
    /// Starts a monitor as an unprivileged user.
    pub fn start(config: VmConfig, folder: &Path) -> Result<Monitor> {
        let description = folder.join("vm.json");
        std::fs::write(&description, serde_json::to_vec(&config)?)?;
        let child = Command::new("/shipped/skerry-vmm")
            .args(["run", "-f"])
            .arg(&description)
            .uid(UID)
            .gid(UID)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.join("errors"))?)
            .spawn()?;
        Ok(Monitor {
            config,
            folder: folder.to_owned(),
            child,
        })
    }

    /// Connects to one of its sockets, as soon as it is there.
    pub fn line(&self, name: &str) -> Result<Line> {
        Line::connect(&self.folder.join(name))
    }

    pub fn ask(&self, request: &Request) -> Result<Answer> {
        Ok(control::ask(&self.config.control_socket, request)?)
    }

    pub fn state(&self) -> Result<State> {
        match self.ask(&Request::State)? {
            Answer::State(state) => Ok(state),
            other => Err(format!("asked for its state, it answered {other:?}").into()),
        }
    }

    pub fn signal(&self, signal: libc::c_int) -> Result<()> {
        system::signal(self.child.id(), signal)
    }

    /// Waits for its end, and gives what it said last and on its standard error, after a check that its exit status is the
    /// one that belongs to the last words.
    pub fn end(mut self) -> Result<(LastWords, String)> {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    return Err(format!("the monitor of {} does not end", self.config.name).into());
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let errors = std::fs::read_to_string(self.folder.join("errors"))?;
        let words = std::fs::read(self.folder.join("last-words"))
            .map_err(|error| format!("no last words ({error}), {status}, {errors:?}"))?;
        let words: LastWords = serde_json::from_slice(&words)?;
        if status.code() != Some(words.exit_code().into()) {
            return Err(format!("{status} with the last words {words:?}, {errors:?}").into());
        }
        Ok((words, errors))
    }

    /// How the kernel confines the monitor: each of its threads that do its work, by name, with the lines of its status that tell.
    pub fn confinement(&self) -> Result<Vec<Confinement>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let status = std::fs::read_to_string(entry?.path().join("status"))?;
            let field = |name: &str| -> Result<String> {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                let value = line.and_then(|rest| rest.strip_prefix(':'));
                Ok(value
                    .ok_or_else(|| format!("no {name} in {status:?}"))?
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" "))
            };
            let thread = field("Name")?;
            // Threads that KVM has in the process run no code of ours.
            if thread.starts_with("kvm-") {
                continue;
            }
            all.push(Confinement {
                thread,
                uids: field("Uid")?,
                capabilities: field("CapEff")?,
                no_new_privileges: field("NoNewPrivs")?,
                seccomp: field("Seccomp")?,
            });
        }
        Ok(all)
    }

    /// Memory of the monitor in KiB without that of its guest, each page shared by many counted in parts (Pss).
    pub fn own_memory(&self) -> Result<u64> {
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps", self.child.id()))?;
        let guest = u64::from(self.config.memory_mib) << 10;
        let (mut sum, mut size) = (0, 0);
        for line in maps.lines() {
            let kib = || line.split_whitespace().nth(1).and_then(|n| n.parse().ok());
            if line.starts_with("Size:") {
                size = kib().unwrap_or(0);
            } else if line.starts_with("Pss:") && size != guest {
                sum += kib().unwrap_or(0);
            }
        }
        Ok(sum)
    }
}

/// What proc_pid_status(5) says of a thread.
#[derive(Debug)]
pub struct Confinement {
    pub thread: String,
    pub uids: String,
    pub capabilities: String,
    pub no_new_privileges: String,
    pub seccomp: String,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A console's socket.
pub struct Line {
    name: String,
    stream: UnixStream,
    heard: String,
    /// How much of it has been found by [`Line::expect`].
    position: usize,
}

impl Line {
    fn connect(path: &Path) -> Result<Line> {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => {
                    return Err(format!("{}: {error}", path.display()).into());
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Line {
            name: path.display().to_string(),
            stream,
            heard: String::new(),
            position: 0,
        })
    }

    /// Hears what is said for a while; false at the end of the line.
    fn hear(&mut self) -> bool {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                let new = String::from_utf8_lossy(bytes.get(..count).unwrap_or_default());
                self.heard.push_str(&new);
                true
            }
            Err(_) => true,
        }
    }

    /// Waits until the guest says `wanted`, after what was found before; gives the line in which it stands.
    pub fn expect(&mut self, wanted: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut open = true;
        loop {
            let new = self.heard.get(self.position..).unwrap_or_default();
            if let Some(at) = new.find(wanted)
                && let Some((line, _)) = new.get(at..).and_then(|rest| rest.split_once('\n'))
            {
                self.position += at + line.len();
                return Ok(line.trim_end().to_owned());
            }
            if !open || new.contains("FAILED") || Instant::now() > deadline {
                return Err(format!("{} never said {wanted:?}, but {new:?}", self.name).into());
            }
            open = self.hear();
        }
    }

    /// Whether anything is said within a time.
    pub fn silent_for(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let before = self.heard.len();
        while Instant::now() < deadline && self.heard.len() == before {
            self.hear();
        }
        self.heard.len() == before
    }

    /// Hears out what is on its way.
    pub fn drain(&mut self) {
        while !self.silent_for(Duration::from_millis(100)) {}
        self.position = self.heard.len();
    }

    pub fn type_line(&mut self, text: &str) -> Result<()> {
        Ok(self.stream.write_all(format!("{text}\n").as_bytes())?)
    }
}
