//! The device mapper's control device: just enough to make one read-only device (`linux/dm-ioctl.h`).
//!
//! ```text
//! DM_DEV_CREATE -> (no table) -- DM_TABLE_LOAD --> (inactive table) -- DM_DEV_SUSPEND without the flag --> live
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

use crate::Error;
use crate::verity::TableLine;

const CONTROL: &str = "/dev/mapper/control";

/// `struct dm_ioctl`: 312 bytes in every version 4.
const HEADER_LEN: usize = 312;
/// `struct dm_target_spec`.
const TARGET_LEN: usize = 40;
/// The kernel answers into the same buffer, never more than this for these requests.
const BUFFER_LEN: usize = 16 * 1024;

const DEV_CREATE: u8 = 3;
const DEV_REMOVE: u8 = 4;
const DEV_SUSPEND: u8 = 6;
const TABLE_LOAD: u8 = 9;

const READONLY: u32 = 1;

/// Makes the read-only verity device `name` and returns its number (`dm-<number>`).
pub fn create_verity(name: &str, uuid: &str, line: &TableLine) -> Result<u64, Error> {
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open(CONTROL)
        .map_err(Error::system("open", CONTROL))?;
    let step = |operation, number, flags, targets: Option<&TableLine>| {
        let mut buffer =
            request(name, uuid, number, flags, targets).map_err(Error::system(operation, name))?;
        call(&control, number, &mut buffer).map_err(Error::system(operation, name))?;
        Ok::<_, Error>(buffer)
    };
    let answer = step("create device mapper device", DEV_CREATE, 0, None)?;
    let made = step("load the verity table of", TABLE_LOAD, READONLY, Some(line))
        .and_then(|_| step("start device mapper device", DEV_SUSPEND, 0, None));
    if let Err(error) = made {
        // So that the name is free for another try; the error at hand is the one to tell.
        let _ = step("remove device mapper device", DEV_REMOVE, 0, None);
        return Err(error);
    }
    Ok(minor(&answer))
}

/// The bytes of a request.
fn request(
    name: &str,
    uuid: &str,
    number: u8,
    flags: u32,
    target: Option<&TableLine>,
) -> io::Result<Vec<u8>> {
    if name.len() >= 128 || uuid.len() >= 129 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut b = Vec::with_capacity(BUFFER_LEN);
    for n in [
        4,
        0,
        0,
        BUFFER_LEN as u32,
        HEADER_LEN as u32,
        u32::from(target.is_some()),
        0,
        flags,
        0,
        0,
    ] {
        b.extend(n.to_le_bytes());
    }
    b.extend(0u64.to_le_bytes());
    b.extend(name.as_bytes());
    b.resize(48 + 128, 0);
    // With any other request the name alone must say which device is meant.
    if number == DEV_CREATE {
        b.extend(uuid.as_bytes());
    }
    b.resize(HEADER_LEN, 0);
    if let Some(line) = target {
        let next = (TARGET_LEN + line.parameters.len() + 1).next_multiple_of(8);
        b.extend(0u64.to_le_bytes());
        b.extend(line.sectors.to_le_bytes());
        b.extend(0u32.to_le_bytes());
        b.extend((next as u32).to_le_bytes());
        b.extend(b"verity\0\0\0\0\0\0\0\0\0\0");
        b.extend(line.parameters.as_bytes());
    }
    if b.len() >= BUFFER_LEN {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    b.resize(BUFFER_LEN, 0);
    Ok(b)
}

fn call(control: &File, number: u8, buffer: &mut [u8]) -> io::Result<()> {
    let code = nix::request_code_readwrite!(0xfd, number, HEADER_LEN);
    // SAFETY: the buffer begins with a whole `struct dm_ioctl` whose data_size is the buffer's length (`request` sees to
    // both), and the kernel reads and writes no further than data_size.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), code as _, buffer.as_mut_ptr()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Minor number in the answer's field `dev`, in the kernel's wide encoding (`new_encode_dev`).
fn minor(answer: &[u8]) -> u64 {
    let dev = answer
        .get(40..48)
        .unwrap_or_default()
        .iter()
        .rev()
        .fold(0, |n, b| (n << 8) | u64::from(*b));
    (dev & 0xff) | ((dev >> 12) & 0xfff00)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_kernels_layout() {
        let line = TableLine {
            sectors: 800,
            parameters: "1 8:1".to_owned(),
        };
        let b = request("root", "U", TABLE_LOAD, READONLY, Some(&line)).unwrap();
        assert_eq!(b.len(), BUFFER_LEN);
        assert_eq!(b[12..16], (BUFFER_LEN as u32).to_le_bytes());
        assert_eq!((b[16], b[17], b[20], b[28]), (56, 1, 1, 1));
        assert_eq!(&b[48..53], b"root\0");
        assert_eq!(b[176], 0, "no uuid where a name is given");
        assert_eq!(b[320..328], 800u64.to_le_bytes());
        assert_eq!(b[332], 48);
        assert_eq!(&b[336..343], b"verity\0");
        assert_eq!(&b[352..358], b"1 8:1\0");
        let b = request("root", "U", DEV_CREATE, 0, None).unwrap();
        assert_eq!((b[176], b[20]), (b'U', 0));
        assert!(request(&"x".repeat(128), "", DEV_CREATE, 0, None).is_err());
        let long = TableLine {
            sectors: 1,
            parameters: "x".repeat(BUFFER_LEN),
        };
        assert!(request("root", "", TABLE_LOAD, 0, Some(&long)).is_err());
    }

    #[test]
    fn minors() {
        let mut answer = vec![0; HEADER_LEN];
        answer[40..48].copy_from_slice(&0xfd00u64.to_le_bytes());
        assert_eq!(minor(&answer), 0);
        answer[40..48].copy_from_slice(&0x10_fd05u64.to_le_bytes());
        assert_eq!(minor(&answer), 0x105);
    }
}
