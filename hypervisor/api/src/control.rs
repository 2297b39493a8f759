//! The control protocol: one JSON request a line, one JSON answer a line, over the monitor's unix socket.
//!
//! ```text
//!            create                 vCPUs run                 guest powers off, resets, crashes, or kill
//!  (process) ------> Starting ------------------> Running ------------------------------------------> (process ends,
//!                                                 |    ^                                               last words stay)
//!                                           pause v    | resume
//!                                                 Paused
//! ```

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What can be asked of a running monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "request")]
pub enum Request {
    /// Report state and counters.
    State,
    /// Stop all vCPUs where they are.
    Pause,
    /// Let paused vCPUs go on.
    Resume,
    /// Ask the guest to power off (ACPI power button). Answers at once; the guest takes its time.
    Shutdown,
    /// End the machine now. Disks are flushed, the guest is not asked.
    Kill,
}

/// What the monitor answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "answer")]
pub enum Answer {
    /// The request was carried out.
    Done,
    /// The state that was asked for.
    State(State),
    /// The request could not be carried out.
    Refused {
        /// Why, in words.
        reason: String,
    },
}

/// State and counters of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Where in its life the machine is.
    pub phase: Phase,
    /// Microseconds from the start of the monitor's process to the first vCPU's first instruction.
    pub boot_micros: u64,
    /// Per disk: bytes read, bytes written.
    pub disks: Vec<Transfer>,
    /// Per network interface: bytes received by, bytes sent by the guest.
    pub nets: Vec<Transfer>,
}

/// Bytes moved by a device since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transfer {
    /// Towards the guest.
    pub rx_bytes: u64,
    /// From the guest.
    pub tx_bytes: u64,
}

/// Where in its life a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Devices are being made; no vCPU has run.
    Starting,
    /// vCPUs run.
    Running,
    /// vCPUs stand still on request.
    Paused,
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket could not be reached, written or read.
    #[error("talking to the monitor at {path}: {source}")]
    Io {
        /// The monitor's control socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The answer was no answer.
    #[error("the monitor at {path} gave an answer that cannot be read: {source}")]
    Answer {
        /// The monitor's control socket.
        path: PathBuf,
        /// What was wrong with it.
        source: serde_json::Error,
    },
    /// The monitor refused.
    #[error("the monitor at {path} refused: {reason}")]
    Refused {
        /// The monitor's control socket.
        path: PathBuf,
        /// Its reason.
        reason: String,
    },
}

/// Sends one request and waits for its answer, five seconds at most. Blocking; a refusal is an error.
pub fn ask(socket: &Path, request: &Request) -> Result<Answer, ControlError> {
    let io = |source| ControlError::Io {
        path: socket.to_owned(),
        source,
    };
    let parse = |source| ControlError::Answer {
        path: socket.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(socket).map_err(io)?;
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .map_err(io)?;
    stream
        .set_write_timeout(Some(Duration::from_secs(5)))
        .map_err(io)?;
    let mut line = serde_json::to_vec(request).map_err(parse)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(io)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(io)?;
    match serde_json::from_str(&answer).map_err(parse)? {
        Answer::Refused { reason } => Err(ControlError::Refused {
            path: socket.to_owned(),
            reason,
        }),
        answer => Ok(answer),
    }
}
