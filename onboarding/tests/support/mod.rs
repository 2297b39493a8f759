//! A real TPM emulator for tests: `swtpm`, one process and one state directory a test.
//!
//! Debian package `swtpm`; `swtpm-tools` for the one with an EK certificate.

#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

pub mod enrol;
pub mod log;
pub mod maker;
pub mod proxy;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use onboarding::tpm::template::{KeyUse, p256};
use onboarding::tpm::{Handle, Hierarchy, NvAttributes, Socket, Tpm, Transport};
use tempfile::TempDir;

/// A TPM of its own, with its own seeds.
pub struct Emulator {
    inner: testbed::Emulator,
    // Last, so that it is there as long as the emulator is.
    dir: TempDir,
}

impl Emulator {
    /// A TPM as it is without its maker's certificates.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            inner: testbed::Emulator::start(dir.path()).unwrap(),
            dir,
        }
    }

    /// A TPM with an RSA EK certificate at the usual NV index, by a certificate authority of its own.
    pub fn manufactured() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let inner = testbed::Emulator::manufactured(dir.path(), &dir.path().join("ca"));
        Self {
            inner: inner.unwrap(),
            dir,
        }
    }

    /// The certificates of the authority of [`Emulator::manufactured`]: its root and its issuer.
    pub fn makers(&self) -> String {
        testbed::maker_certificates(&self.dir.path().join("ca")).unwrap()
    }

    pub fn socket(&self) -> PathBuf {
        self.inner.socket()
    }

    /// A connection. The emulator serves one at a time: drop every other one first.
    pub fn connect(&self) -> Tpm {
        Tpm::over(self.dial())
    }

    pub fn dial(&self) -> Socket<UnixStream> {
        Socket::unix(&self.socket()).unwrap()
    }

    /// Power off without notice and on again: PCRs, loaded keys and sessions are gone, seeds and persistent keys stay.
    pub fn power_cycle(&mut self) {
        self.inner.power_cycle().unwrap();
    }

    /// What the firmware's menu calls "clear TPM": new owner's seed. Drop every connection first.
    pub fn clear(&self) {
        // TPM2_Clear, authorized by the empty lockout password.
        self.raw(&[
            0x80, 0x02, 0, 0, 0, 27, 0, 0, 0x01, 0x26, 0x40, 0, 0, 0x0a, 0, 0, 0, 9, 0x40, 0, 0, 9,
            0, 0, 0, 0, 0,
        ]);
    }

    /// Puts the TPM into lockout: no failure at all is allowed (TPM2_DictionaryAttackParameters). Drop every connection first.
    pub fn lock_out(&self) {
        self.raw(&[
            0x80, 0x02, 0, 0, 0, 39, 0, 0, 0x01, 0x3a, 0x40, 0, 0, 0x0a, 0, 0, 0, 9, 0x40, 0, 0, 9,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x10, 0,
        ]);
    }

    /// Sends a raw command on a connection of its own and checks that it succeeds.
    pub fn raw(&self, command: &[u8]) -> Vec<u8> {
        let answer = self.dial().exchange(command).unwrap();
        assert_eq!(answer[6..10], [0; 4], "{answer:02x?}");
        answer
    }
}

/// The transient objects and sessions that are loaded now.
pub fn loaded(tpm: &Tpm) -> Vec<Handle> {
    let mut all = tpm.handles(Handle(0x8000_0000)).unwrap();
    all.extend(tpm.handles(Handle(0x0300_0000)).unwrap());
    all.extend(tpm.handles(Handle(0x0200_0000)).unwrap());
    all
}

/// Leaves bytes in the TPM's memory, as its maker or the machine's would.
pub fn leave(tpm: &Tpm, index: u32, data: &[u8]) {
    let attributes = NvAttributes::OWNER_WRITE
        .with(NvAttributes::AUTH_READ)
        .with(NvAttributes::NO_DA);
    let key = tpm
        .create_primary(Hierarchy::Owner, &p256(KeyUse::Store))
        .unwrap();
    let session = tpm.start_hmac_session(&key, key.public()).unwrap();
    let size = u16::try_from(data.len()).unwrap();
    tpm.nv_define(index, attributes, size, &session).unwrap();
    tpm.nv_write(index, data, &session).unwrap();
}
