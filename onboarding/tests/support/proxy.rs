//! A proxy between a device and its TPM.

use std::io;
use std::sync::{Arc, Mutex};

use onboarding::tpm::{Tpm, Transport};

use super::Emulator;

/// A connection that records what crosses it, and breaks at the commands that it is told.
pub struct Proxy {
    behind: Box<dyn Transport>,
    shared: Arc<Mutex<Tap>>,
    /// The emulator itself, if it may be reset.
    emulator: Option<Arc<Mutex<Emulator>>>,
}

/// How a command goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does not reach the TPM.
    Lost,
    /// The TPM does it, and its answer is lost.
    AnswerLost,
    /// It is answered with this code, and does not reach the TPM.
    Code(u32),
    /// One bit of its answer's last byte is changed.
    Changed,
    /// The TPM is reset and started again before it arrives, as by somebody with a wire at the reset line: PCRs, loaded keys and
    /// sessions are gone.
    Reset,
    /// The same, and it does not arrive: the power was cut.
    PowerCut,
}

/// What was recorded, and what to break.
#[derive(Default)]
pub struct Tap {
    /// Commands and answers, one after the other.
    pub record: Vec<Vec<u8>>,
    /// How many commands were sent since the last [`Tap::arm`].
    pub count: usize,
    /// Their codes (TPM_CC).
    pub sent: Vec<u32>,
    /// The command to break, counted from 0, and how.
    pub fault: Option<(usize, Fault)>,
    /// An algorithm that the TPM does not list.
    pub hidden: Option<u16>,
}

impl Tap {
    /// Counts from here, and breaks the command with this number.
    pub fn arm(&mut self, fault: Option<(usize, Fault)>) {
        self.count = 0;
        self.sent.clear();
        self.fault = fault;
    }

    /// Whether the bytes stand anywhere in what crossed.
    pub fn saw(&self, bytes: &[u8]) -> bool {
        self.record
            .iter()
            .any(|message| message.windows(bytes.len()).any(|window| window == bytes))
    }
}

impl Proxy {
    /// In front of an emulator.
    pub fn tap(emulator: &Emulator) -> (Tpm, Arc<Mutex<Tap>>) {
        Self::over(emulator.dial(), None)
    }

    /// In front of an emulator that may be reset.
    pub fn at_reset_line(emulator: &Arc<Mutex<Emulator>>) -> (Tpm, Arc<Mutex<Tap>>) {
        let behind = emulator.lock().unwrap().dial();
        Self::over(behind, Some(emulator.clone()))
    }

    fn over(
        behind: impl Transport + 'static,
        emulator: Option<Arc<Mutex<Emulator>>>,
    ) -> (Tpm, Arc<Mutex<Tap>>) {
        let shared = Arc::new(Mutex::new(Tap::default()));
        let proxy = Self {
            behind: Box::new(behind),
            shared: shared.clone(),
            emulator,
        };
        (Tpm::over(proxy), shared)
    }

    fn reset(&mut self) {
        let mut emulator = self.emulator.as_ref().unwrap().lock().unwrap();
        emulator.power_cycle();
        self.behind = Box::new(emulator.dial());
    }
}

impl Transport for Proxy {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let shared = self.shared.clone();
        let mut tap = shared.lock().unwrap();
        let number = tap.count;
        tap.count += 1;
        tap.record.push(command.to_vec());
        tap.sent
            .push(u32::from_be_bytes(command[6..10].try_into().unwrap()));
        let fault = tap
            .fault
            .filter(|(at, _)| *at == number)
            .map(|(_, fault)| fault);
        if matches!(fault, Some(Fault::Reset | Fault::PowerCut)) {
            self.reset();
        }
        let broken = || Err(io::Error::other("the bus was cut"));
        let mut answer = match fault {
            Some(Fault::Lost | Fault::PowerCut) => return broken(),
            Some(Fault::Code(code)) => {
                let mut answer = vec![0x80, 0x01, 0, 0, 0, 10];
                answer.extend(code.to_be_bytes());
                answer
            }
            _ => self.behind.exchange(command)?,
        };
        if fault == Some(Fault::AnswerLost) {
            return broken();
        }
        if fault == Some(Fault::Changed)
            && let Some(last) = answer.last_mut()
        {
            *last ^= 1;
        }
        if let Some(algorithm) = tap.hidden {
            hide(algorithm, command, &mut answer);
        }
        tap.record.push(answer.clone());
        Ok(answer)
    }
}

/// Takes an algorithm out of the answer to TPM2_GetCapability(TPM_CAP_ALGS) (TCG TPM 2.0 Library, part 3, 30.2): behind the header
/// a flag, the capability and a count, then six bytes for each.
fn hide(algorithm: u16, command: &[u8], answer: &mut Vec<u8>) {
    const LIST: usize = 10 + 1 + 4 + 4;
    if command[6..14] != [0, 0, 1, 0x7a, 0, 0, 0, 0] || answer[6..10] != [0; 4] {
        return;
    }
    let entries: Vec<u8> = answer[LIST..]
        .chunks(6)
        .filter(|entry| entry[..2] != algorithm.to_be_bytes())
        .flatten()
        .copied()
        .collect();
    answer.truncate(LIST);
    answer[LIST - 4..].copy_from_slice(&((entries.len() / 6) as u32).to_be_bytes());
    answer.extend(entries);
    let length = answer.len() as u32;
    answer[2..6].copy_from_slice(&length.to_be_bytes());
}
