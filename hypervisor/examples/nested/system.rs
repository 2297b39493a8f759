//! The system calls that an init and a test of devices need.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Whatever goes wrong is told in words and ends the test.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What the kernel sends to a guest's init when the power button is pressed (`images/guest/kernel.config`).
pub const POWER_BUTTON: libc::c_int = libc::SIGPWR;

/// What every init does first. Signals that it waits for are blocked before there is a second thread.
pub fn begin() -> Result<()> {
    block(POWER_BUTTON);
    for (kind, target) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/run"),
    ] {
        std::fs::create_dir_all(target)?;
        mount(kind, target)?;
    }
    let console = terminal(Path::new("/dev/console"))?;
    for fd in 0..3 {
        // SAFETY: both are numbers of descriptors; nothing of the standard library's keeps the old ones.
        unsafe { libc::dup2(console.as_raw_fd(), fd) };
    }
    Ok(())
}

/// The value of `name=value` on the kernel's command line.
pub fn from_command_line(name: &str) -> Option<String> {
    let line = std::fs::read_to_string("/proc/cmdline").ok()?;
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .map(str::to_owned)
}

fn check(result: libc::c_long, what: &str) -> Result<libc::c_long> {
    if result < 0 {
        return Err(format!("{what}: {}", io::Error::last_os_error()).into());
    }
    Ok(result)
}

fn mount(kind: &str, target: &str) -> Result<()> {
    let (kind, path) = (CString::new(kind)?, CString::new(target)?);
    // SAFETY: the strings live for the length of the call; no options are given.
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            path.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    check(result.into(), &format!("mounting {target}")).map(drop)
}

/// Opens a terminal without making it the one that controls this process.
pub fn terminal(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)
        .map_err(|error| format!("opening {}: {error}", path.display()).into())
}

/// Loads a kernel module.
pub fn load_module(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    // SAFETY: the descriptor is open, the parameters are an empty string.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    check(result, &format!("loading {}", path.display())).map(drop)
}

/// Writes everything out and switches the machine off.
pub fn power_off() -> ! {
    // SAFETY: neither call takes memory.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
    loop {
        std::thread::park();
    }
}

/// Makes a signal wait until [`wait_for`] takes it.
pub fn block(signal: libc::c_int) {
    let set = one(signal);
    // SAFETY: the set is valid for reading.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
}

/// Waits for a blocked signal.
pub fn wait_for(signal: libc::c_int) {
    let set = one(signal);
    let mut got = 0;
    // SAFETY: the set is valid for reading, the number for writing.
    while unsafe { libc::sigwait(&raw const set, &raw mut got) } != 0 || got != signal {}
}

fn one(signal: libc::c_int) -> libc::sigset_t {
    // SAFETY: a set of zeros is a set, and sigemptyset makes it an empty one before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        set
    }
}

/// Sends a signal to a process.
pub fn signal(pid: u32, signal: libc::c_int) -> Result<()> {
    // SAFETY: takes two numbers.
    let result = unsafe { libc::kill(pid as libc::pid_t, signal) };
    check(result.into(), "sending a signal").map(drop)
}

/// Takes what the kernel remembers of a block device away, so that the next read asks the device.
pub fn forget_cached(disk: &File) -> Result<()> {
    const BLKFLSBUF: libc::c_ulong = 0x1261;
    // SAFETY: this request takes no argument.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), BLKFLSBUF, 0) };
    check(result.into(), "dropping a disk's cache").map(drop)
}

fn request(interface: &str) -> libc::ifreq {
    // SAFETY: all of its fields are numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().zip(interface.bytes().take(15)) {
        *to = byte as libc::c_char;
    }
    request
}

/// Makes a tap that `owner` may open.
pub fn make_tap(name: &str, owner: u32) -> Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request is valid for reading and writing; the others take numbers.
    let results = unsafe {
        [
            libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request),
            libc::ioctl(
                file.as_raw_fd(),
                libc::TUNSETOWNER,
                libc::c_ulong::from(owner),
            ),
            libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, 1_u64),
        ]
    };
    for result in results {
        check(result.into(), "making a tap")?;
    }
    Ok(())
}

/// Gives an interface an address in a network of 24 bits and brings it up.
pub fn bring_up(interface: &str, address: [u8; 4]) -> Result<()> {
    let inet = |address: [u8; 4]| {
        let mut bytes = [0; 14];
        for (to, byte) in bytes.iter_mut().skip(2).zip(address) {
            *to = byte as libc::c_char;
        }
        libc::sockaddr {
            sa_family: libc::AF_INET as libc::sa_family_t,
            sa_data: bytes,
        }
    };
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let mut request = request(interface);
    let mut set = |number: libc::c_ulong, what: &str, fill: &dyn Fn(&mut libc::ifreq)| {
        fill(&mut request);
        // SAFETY: the request is valid for reading and writing.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), number, &raw mut request) };
        check(result.into(), &format!("{what} of {interface}")).map(drop)
    };
    set(libc::SIOCSIFADDR, "setting the address", &|request| {
        request.ifr_ifru.ifru_addr = inet(address);
    })?;
    set(libc::SIOCSIFNETMASK, "setting the mask", &|request| {
        request.ifr_ifru.ifru_netmask = inet([255, 255, 255, 0]);
    })?;
    set(libc::SIOCSIFFLAGS, "setting the flags", &|request| {
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    })
}

fn vsock() -> Result<(File, libc::sockaddr_vm)> {
    // SAFETY: takes numbers.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check(fd.into(), "making a vsock")?;
    // SAFETY: the descriptor was just made and belongs to nobody else; all fields of the address are numbers.
    Ok(unsafe { (File::from_raw_fd(fd), std::mem::zeroed()) })
}

const ADDRESS_SIZE: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

/// Connects to a port of the host.
pub fn vsock_connect(port: u32) -> Result<File> {
    let (socket, mut address) = vsock()?;
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = libc::VMADDR_CID_HOST;
    address.svm_port = port;
    // SAFETY: the address is valid for its size.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            ADDRESS_SIZE,
        )
    };
    check(result.into(), "connecting to the host")?;
    Ok(socket)
}

/// Listens at a port of this guest, and takes one connection.
pub fn vsock_accept(port: u32) -> Result<impl FnOnce() -> Result<File>> {
    let (socket, mut address) = vsock()?;
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = libc::VMADDR_CID_ANY;
    address.svm_port = port;
    // SAFETY: the address is valid for its size.
    let results = unsafe {
        let bound = libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            ADDRESS_SIZE,
        );
        [bound, libc::listen(socket.as_raw_fd(), 1)]
    };
    for result in results {
        check(result.into(), "listening at a vsock")?;
    }
    Ok(move || {
        // SAFETY: nobody wants the peer's address.
        let fd = unsafe {
            libc::accept(
                socket.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
        check(fd.into(), "taking a connection")?;
        // SAFETY: the descriptor was just made and belongs to nobody else.
        Ok(unsafe { File::from_raw_fd(fd) })
    })
}

/// Ends the sending half of a connection.
pub fn end_of_sending(socket: &File) {
    // SAFETY: takes numbers.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) };
}

/// Bytes that both sides know.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}
