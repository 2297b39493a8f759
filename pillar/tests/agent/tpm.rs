//! A simulated TPM (swtpm), and a hop before it that counts commands, may stop at one, and may hide what the TPM can do.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// One swtpm with its state in a folder.
pub struct Tpm(testbed::Emulator);

impl Tpm {
    /// A TPM without its maker's certificates, in a new folder.
    pub fn new(dir: &Path) -> Self {
        Self(testbed::Emulator::start(dir).unwrap())
    }

    pub fn socket(&self) -> PathBuf {
        self.0.socket()
    }

    /// A connection. The emulator serves one at a time: no agent may run.
    pub fn connect(&self) -> onboarding::tpm::Tpm {
        onboarding::tpm::Tpm::connect_unix(&self.socket()).unwrap()
    }

    /// Power off without notice and on again.
    pub fn power_cycle(&mut self) {
        self.0.power_cycle().unwrap();
    }

    /// Wrong passwords until the TPM takes none any more (TPM2_DictionaryAttackParameters is left as it is made: some thirty tries).
    pub fn lock_out(&self) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        // TPM2_NV_DefineSpace of an ordinary index (0x01800001, 8 bytes, password "x") under the owner's empty password. Its attributes are
        // AUTHREAD and AUTHWRITE without NO_DA, so that wrong passwords count.
        let define = [
            &[0x80, 0x02, 0, 0, 0, 0, 0, 0, 0x01, 0x2a, 0x40, 0, 0, 0x01][..],
            &[0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0],
            &[0, 1, b'x'],
            &[
                0, 14, 0x01, 0x80, 0, 1, 0, 0x0b, 0, 0x04, 0, 0x04, 0, 0, 0, 8,
            ],
        ]
        .concat();
        let code = command(&mut stream, define);
        assert_eq!(code, 0, "TPM2_NV_DefineSpace: {code:#x}");
        // TPM2_NV_Write first, or a read finds nothing to read and checks no password.
        let write = |password: u8| {
            [
                &[
                    0x80, 0x02, 0, 0, 0, 0, 0, 0, 0x01, 0x37, 0x01, 0x80, 0, 1, 0x01, 0x80, 0, 1,
                ][..],
                &[0, 0, 0, 10, 0x40, 0, 0, 9, 0, 0, 0, 0, 1, password],
                &[0, 1, 7, 0, 0],
            ]
            .concat()
        };
        assert_eq!(command(&mut stream, write(b'x')), 0);
        for _ in 0..64 {
            // TPM_RC_LOCKOUT.
            if command(&mut stream, write(b'y')) == 0x921 {
                return;
            }
        }
        panic!("the TPM takes wrong passwords for ever");
    }
}

/// Sends a command whose length is filled in, and gives the response code.
fn command(stream: &mut UnixStream, mut command: Vec<u8>) -> u32 {
    let length = u32::try_from(command.len()).unwrap().to_be_bytes();
    command[2..6].copy_from_slice(&length);
    loop {
        stream.write_all(&command).unwrap();
        let answer = message(stream).unwrap();
        // TPM_RC_RETRY: the TPM has noted that passwords are being tried, and wants the command again.
        match u32::from_be_bytes(answer[6..10].try_into().unwrap()) {
            0x922 => {}
            code => return code,
        }
    }
}

/// A command or an answer: a tag, its length, the rest.
fn message(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut head = [0; 10];
    stream.read_exact(&mut head).ok()?;
    let length = u32::from_be_bytes(head[2..6].try_into().unwrap());
    let mut message = head.to_vec();
    message.resize(usize::try_from(length).unwrap(), 0);
    stream.read_exact(&mut message[10..]).ok()?;
    Some(message)
}

/// A hop between the agent and its TPM.
#[derive(Clone)]
pub struct Hop {
    path: PathBuf,
    /// Commands until it stops.
    left: Arc<AtomicU32>,
    stopped: Arc<AtomicBool>,
    /// An algorithm that the TPM does not list; 0 (TPM_ALG_ERROR): none.
    hidden: Arc<AtomicU16>,
    open: Arc<Mutex<Vec<UnixStream>>>,
}

impl Hop {
    /// Before the TPM behind `upstream`.
    pub fn new(path: PathBuf, upstream: PathBuf) -> Self {
        let hop = Self {
            path: path.clone(),
            left: Arc::new(AtomicU32::new(u32::MAX)),
            stopped: Arc::default(),
            hidden: Arc::default(),
            open: Arc::default(),
        };
        let listener = UnixListener::bind(path).unwrap();
        let serving = hop.clone();
        std::thread::spawn(move || {
            for agent in listener.incoming() {
                let (agent, hop, upstream) = (agent.unwrap(), serving.clone(), upstream.clone());
                std::thread::spawn(move || hop.carry(agent, &upstream));
            }
        });
        hop
    }

    pub fn socket(&self) -> &Path {
        &self.path
    }

    fn carry(&self, mut agent: UnixStream, upstream: &Path) {
        let Ok(mut tpm) = UnixStream::connect(upstream) else {
            return;
        };
        self.open.lock().unwrap().push(tpm.try_clone().unwrap());
        while let Some(command) = message(&mut agent) {
            let before = self
                .left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                });
            if before.is_err() {
                // The command is neither done nor refused: the power is about to be cut.
                self.stopped.store(true, Ordering::SeqCst);
                std::thread::park();
            }
            if tpm.write_all(&command).is_err() {
                return;
            }
            let Some(mut answer) = message(&mut tpm) else {
                return;
            };
            hide(self.hidden.load(Ordering::SeqCst), &command, &mut answer);
            if agent.write_all(&answer).is_err() {
                return;
            }
        }
    }

    /// Lets so many commands through, and stops before the next.
    pub fn stop_after(&self, commands: u32) {
        self.left.store(commands, Ordering::SeqCst);
        self.stopped.store(false, Ordering::SeqCst);
    }

    /// Takes this algorithm out of the list of what the TPM can do; 0: none.
    pub fn hide(&self, algorithm: u16) {
        self.hidden.store(algorithm, Ordering::SeqCst);
    }

    /// Whether it has stopped.
    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Cuts what is connected.
    pub fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Takes an algorithm out of the answer to TPM2_GetCapability(TPM_CAP_ALGS) (TCG TPM 2.0 Library, part 3, 30.2): behind the header a flag, the
/// capability and a count, then six bytes for each.
fn hide(algorithm: u16, command: &[u8], answer: &mut Vec<u8>) {
    const LIST: usize = 10 + 1 + 4 + 4;
    let asked = [0, 0, 1, 0x7a, 0, 0, 0, 0];
    if command.get(6..14) != Some(&asked[..]) || answer[6..10] != [0; 4] {
        return;
    }
    let number = algorithm.to_be_bytes();
    let listed = answer.split_off(LIST);
    let left: Vec<&[u8]> = listed
        .chunks(6)
        .filter(|entry| !entry.starts_with(&number))
        .collect();
    answer[LIST - 4..].copy_from_slice(&u32::try_from(left.len()).unwrap().to_be_bytes());
    answer.extend(left.concat());
    let length = u32::try_from(answer.len()).unwrap();
    answer[2..6].copy_from_slice(&length.to_be_bytes());
}
