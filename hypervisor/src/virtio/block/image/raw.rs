//! Raw images: a file or block device as it is.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::Image;
use crate::virtio::queue::Buffers;

/// Zeroes written at a time where the file system has no better way, in bytes.
const ZEROES: usize = 64 << 10;

/// A raw image.
pub struct Raw {
    file: File,
    size: u64,
}

impl Raw {
    /// Takes an open file or block device.
    pub fn new(mut file: File) -> io::Result<Self> {
        // The end by seeking: a block device's metadata has no length.
        let size = file.seek(SeekFrom::End(0))?;
        Ok(Raw { file, size })
    }

    fn allocate(&self, mode: libc::c_int, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: no pointers are passed.
        let result = unsafe {
            libc::fallocate(
                self.file.as_raw_fd(),
                mode | libc::FALLOC_FL_KEEP_SIZE,
                offset as libc::off_t,
                length as libc::off_t,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn transfer(
        &self,
        buffers: &Buffers<'_>,
        offset: u64,
        call: unsafe extern "C" fn(
            libc::c_int,
            *const libc::iovec,
            libc::c_int,
            libc::off_t,
        ) -> libc::ssize_t,
    ) -> io::Result<()> {
        let mut pieces = buffers.iovecs();
        let mut first = 0;
        let mut offset = offset;
        while let Some(rest) = pieces.get_mut(first..)
            && !rest.is_empty()
        {
            // SAFETY: the pieces describe guest memory, which stays mapped for the life of the process, and number
            // at most IOV_MAX. That the guest may change the bytes meanwhile is its own affair.
            let count = unsafe {
                call(
                    self.file.as_raw_fd(),
                    rest.as_ptr(),
                    rest.len() as libc::c_int,
                    offset as libc::off_t,
                )
            };
            if count < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += count as u64;
            first += advance(rest, count as usize);
        }
        Ok(())
    }
}

/// Uses up `count` bytes of the pieces; returns how many pieces are used up entirely.
fn advance(pieces: &mut [libc::iovec], mut count: usize) -> usize {
    let mut used = 0;
    for piece in pieces {
        if count < piece.iov_len {
            piece.iov_base = piece.iov_base.wrapping_byte_add(count);
            piece.iov_len -= count;
            break;
        }
        count -= piece.iov_len;
        used += 1;
    }
    used
}

impl Image for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, buffers: &Buffers<'_>, offset: u64) -> io::Result<()> {
        self.transfer(buffers, offset, libc::preadv)
    }

    fn write(&self, buffers: &Buffers<'_>, offset: u64) -> io::Result<()> {
        self.transfer(buffers, offset, libc::pwritev)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        match self.allocate(libc::FALLOC_FL_PUNCH_HOLE, offset, length) {
            // Nothing is promised about discarded bytes; a file system that cannot do it keeps them.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            other => other,
        }
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        let mode = if unmap {
            libc::FALLOC_FL_PUNCH_HOLE
        } else {
            libc::FALLOC_FL_ZERO_RANGE
        };
        match self.allocate(mode, offset, length) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            other => return other,
        }
        let zeroes = vec![0; ZEROES];
        let mut done = 0;
        while done < length {
            let count = (length - done).min(ZEROES as u64) as usize;
            self.file
                .write_all_at(zeroes.get(..count).unwrap_or_default(), offset + done)?;
            done += count as u64;
        }
        Ok(())
    }
}
