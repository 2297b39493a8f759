//! The way to a TPM: the kernel's resource manager device, or a socket of an emulator that speaks raw commands.
//!
//! A transport carries one command and brings back one whole answer. What stands in them is none of its business,
//! except for the length in an answer's header (bytes 2 to 5, big endian): a socket has no message borders.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The longest command and answer: TPM2_PT_MAX_RESPONSE_SIZE is 4096 with all known TPMs, and the kernel's buffer too
/// (`TPM_BUFSIZE`, drivers/char/tpm/tpm.h).
pub const MAX_MESSAGE: usize = 4096;

/// Tag, length and code.
const HEADER: usize = 10;

/// How long an emulator may take over a command; making an RSA key takes seconds on a loaded machine.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(120);

/// Carries a command to a TPM and brings its answer back.
pub trait Transport: Send {
    /// Sends `command`, waits for the answer and returns it whole.
    ///
    /// # Errors
    /// What the device or the socket said; `InvalidData` for an answer of an impossible length.
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>>;
}

/// `/dev/tpmrm0`: each open file has its own space of transient objects and sessions, at most three of each, swapped in
/// and out by the kernel and flushed on close (Documentation/security/tpm/tpm_tis.rst, drivers/char/tpm/tpm2-space.c).
pub struct DeviceFile(File);

impl DeviceFile {
    /// Opens the device.
    ///
    /// # Errors
    /// As opening a file.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map(Self)
    }
}

impl Transport for DeviceFile {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        // The driver takes a command in one write and gives the answer in one read; a part of either is an error.
        let written = self.0.write(command)?;
        if written != command.len() {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                format!("took {written} of {} bytes of the command", command.len()),
            ));
        }
        let mut answer = vec![0; MAX_MESSAGE];
        // The answer waits in the driver until it is read, so a signal costs nothing but another try.
        let length = loop {
            match self.0.read(&mut answer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => break done?,
            }
        };
        answer.truncate(length);
        Ok(answer)
    }
}

/// A socket to an emulator, as `swtpm socket --server` opens it.
///
/// After a failure nobody knows whose answer would come next, so it carries no further command.
pub struct Socket<S> {
    stream: S,
    broken: bool,
}

impl Socket<UnixStream> {
    /// Connects to a unix socket.
    ///
    /// # Errors
    /// As connecting a socket.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(SOCKET_TIMEOUT))?;
        stream.set_write_timeout(Some(SOCKET_TIMEOUT))?;
        Ok(Self {
            stream,
            broken: false,
        })
    }
}

impl<S: Read + Write> Socket<S> {
    fn carry(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.stream.write_all(command)?;
        let mut header = [0; HEADER];
        self.stream.read_exact(&mut header)?;
        let [_, _, a, b, c, d, ..] = header;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if !(HEADER..=MAX_MESSAGE).contains(&length) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("an answer says that it is {length} bytes long"),
            ));
        }
        let mut answer = header.to_vec();
        answer.resize(length, 0);
        if let Some(body) = answer.get_mut(HEADER..) {
            self.stream.read_exact(body)?;
        }
        Ok(answer)
    }
}

impl<S: Read + Write + Send> Transport for Socket<S> {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        if self.broken {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the connection broke during an earlier command",
            ));
        }
        self.carry(command).inspect_err(|_| self.broken = true)
    }
}
