//! A persistent tap device that the monitor's uid owns.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use virtio_bindings::virtio_net::VIRTIO_NET_F_GUEST_CSUM;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6};

/// Size in bytes of the header before each frame (`virtio_net_hdr_v1`).
pub const HEADER_SIZE: usize = 12;

// linux/if_tun.h
const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;
const TUN_F_CSUM: u64 = 1;
const TUN_F_TSO4: u64 = 2;
const TUN_F_TSO6: u64 = 4;

/// A tap that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name is longer than a network interface's name can be.
    #[error("tap name {0:?} is not a valid interface name (1 to 15 bytes)")]
    Name(String),
    /// There is none.
    #[error("there is no network interface {0}; make a persistent tap of that name first")]
    Missing(String),
    /// The system refused.
    #[error(
        "{operation} for tap {name}: {source}; the tap must belong to this process's uid and be free"
    )]
    System {
        /// What was tried.
        operation: &'static str,
        /// The tap.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

/// An open tap, non-blocking.
#[derive(Debug)]
pub struct Tap {
    file: File,
}

impl Tap {
    /// Attaches to the existing tap `name`.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let mut request: libc::ifreq =
            // SAFETY: ifreq is plain data, for which zeroes are valid.
            unsafe { std::mem::zeroed() };
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() >= request.ifr_name.len() || bytes.contains(&0) {
            return Err(TapError::Name(name.to_owned()));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        // Root would make a new interface by attaching to one that does not exist; a mistyped name must not do that.
        // SAFETY: the name is zero-terminated: it is shorter than the zeroed array.
        if unsafe { libc::if_nametoindex(request.ifr_name.as_ptr()) } == 0 {
            return Err(TapError::Missing(name.to_owned()));
        }
        let system = |operation| {
            move |source| TapError::System {
                operation,
                name: name.to_owned(),
                source,
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(system("opening /dev/net/tun"))?;
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: the request is an initialised ifreq.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw const request) })
            .map_err(system("attaching"))?;
        let size = HEADER_SIZE as libc::c_int;
        // SAFETY: the kernel reads one int.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) })
            .map_err(system("setting the header size"))?;
        Ok(Tap { file })
    }

    /// Any stream of frames, in place of a tap.
    pub fn from_file(file: File) -> Self {
        Tap { file }
    }

    /// Lets the host hand the guest what it can take: unfinished checksums and segments larger than the MTU.
    pub fn set_offloads(&self, features: u64) -> io::Result<()> {
        let has = |bit: u32| features & 1 << bit != 0;
        let mut offloads = 0;
        if has(VIRTIO_NET_F_GUEST_CSUM) {
            offloads |= TUN_F_CSUM;
            // Segments come with unfinished checksums; without the one there cannot be the other.
            if has(VIRTIO_NET_F_GUEST_TSO4) {
                offloads |= TUN_F_TSO4;
            }
            if has(VIRTIO_NET_F_GUEST_TSO6) {
                offloads |= TUN_F_TSO6;
            }
        }
        // SAFETY: the argument is a number.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, offloads) })
    }

    /// Reads one frame with its header.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the pointer and length describe `buffer`.
        let count = unsafe {
            libc::read(
                self.file.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
            )
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// Sends one frame with its header.
    pub fn send(&self, pieces: &[libc::iovec]) -> io::Result<usize> {
        // SAFETY: the pieces describe guest memory, which stays mapped; the kernel only reads them. There are at most
        // IOV_MAX (see `queue::MAX_BUFFERS`).
        let count = unsafe {
            libc::writev(
                self.file.as_raw_fd(),
                pieces.as_ptr(),
                pieces.len() as libc::c_int,
            )
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_name_is_an_error_and_makes_no_interface() {
        assert!(matches!(
            Tap::open("skerry-no-such"),
            Err(TapError::Missing(_))
        ));
        assert!(matches!(
            Tap::open("a-name-that-is-too-long"),
            Err(TapError::Name(_))
        ));
        assert!(matches!(Tap::open(""), Err(TapError::Name(_))));
    }
}
