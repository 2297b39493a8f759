//! Addresses and routes, by netlink (rtnetlink(7)): three kinds of message, made by pure functions and sent one at a time.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use guest_api::Interface;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use crate::Error;

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
/// NLM_F_REQUEST and NLM_F_ACK: change what is there and say how that went.
const CHANGE: u16 = 1 | 4;
/// The same with NLM_F_REPLACE and NLM_F_CREATE.
const SET: u16 = CHANGE | 0x100 | 0x400;
const HEADER_LEN: usize = 16;
const MESSAGE_ERROR: u16 = 2;

/// Sets up the loopback interface and the container's own ones.
pub fn set_up(interfaces: &[Interface]) -> Result<(), Error> {
    let netlink = open().map_err(Error::system("open", "a netlink socket"))?;
    let step = |operation, thing: &str, message: Vec<u8>| {
        request(&netlink, message).map_err(Error::system(operation, thing))
    };
    step("bring up", "lo", link_up(index("lo")?))?;
    for (number, interface) in interfaces.iter().enumerate() {
        let name = format!("eth{number}");
        let index = index(&name)?;
        step("set the address of", &name, address(index, interface))?;
        step("bring up", &name, link_up(index))?;
        if let Some(gateway) = interface.gateway {
            step(
                "set the default route over",
                &name,
                default_route(index, gateway),
            )?;
        }
    }
    Ok(())
}

/// Index of an interface, which may still be on its way.
fn index(name: &str) -> Result<u32, Error> {
    const LIMIT: Duration = Duration::from_secs(2);
    let start = Instant::now();
    loop {
        match if_nametoindex(name) {
            Ok(index) => return Ok(index),
            Err(Errno::ENODEV) if start.elapsed() < LIMIT => {
                std::thread::sleep(Duration::from_millis(5))
            }
            Err(e) => return Err(Error::system("find network interface", name)(e)),
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    let kind = (
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    );
    Ok(socket(AddressFamily::Netlink, kind.0, kind.1, kind.2)?)
}

fn request(netlink: &OwnedFd, message: Vec<u8>) -> io::Result<()> {
    sendto(
        netlink.as_raw_fd(),
        &message,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut answer = [0; 4096];
    loop {
        match recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()) {
            Ok(n) => return result(answer.get(..n).unwrap_or_default()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// The kernel's answer: an error message with number 0 is the acknowledgement.
fn result(answer: &[u8]) -> io::Result<()> {
    let kind = answer
        .get(4..6)
        .and_then(|b| b.first_chunk())
        .map(|b| u16::from_ne_bytes(*b));
    let code = answer
        .get(HEADER_LEN..)
        .and_then(|b| b.first_chunk())
        .map(|b| i32::from_ne_bytes(*b));
    match (kind, code) {
        (Some(MESSAGE_ERROR), Some(0)) => Ok(()),
        (Some(MESSAGE_ERROR), Some(code)) => {
            Err(io::Error::from_raw_os_error(code.saturating_neg()))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = ((HEADER_LEN + body.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence and port: one request at a time on a socket of its own needs neither.
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn family(address: IpAddr) -> u8 {
    // AF_INET and AF_INET6.
    if address.is_ipv4() { 2 } else { 10 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// `struct ifinfomsg` with IFF_UP.
fn link_up(index: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for n in [index, 1, 1] {
        body.extend(n.to_ne_bytes());
    }
    message(NEW_LINK, CHANGE, &body)
}

/// `struct ifaddrmsg` with IFA_LOCAL and IFA_ADDRESS.
fn address(index: u32, interface: &Interface) -> Vec<u8> {
    // IFA_F_NODAD: the agent gives addresses out, and looking for a duplicate takes a second.
    let flags = if interface.address.is_ipv6() { 2 } else { 0 };
    let mut body = vec![family(interface.address), interface.prefix, flags, 0];
    body.extend(index.to_ne_bytes());
    let octets = octets(interface.address);
    body.extend(attribute(2, &octets));
    body.extend(attribute(1, &octets));
    message(NEW_ADDRESS, SET, &body)
}

/// `struct rtmsg`: main table, static, universe, unicast; RTA_GATEWAY and RTA_OIF.
fn default_route(index: u32, gateway: IpAddr) -> Vec<u8> {
    let mut body = vec![family(gateway), 0, 0, 0, 254, 4, 0, 1];
    // RTNH_F_ONLINK: the gateway is reached over this interface, also where the prefix does not say so.
    body.extend(4u32.to_ne_bytes());
    body.extend(attribute(5, &octets(gateway)));
    body.extend(attribute(4, &index.to_ne_bytes()));
    message(NEW_ROUTE, SET, &body)
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn messages_have_the_kernels_layout() {
        assert_eq!(
            link_up(3),
            [
                32, 0, 0, 0, 16, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0,
                0, 1, 0, 0, 0
            ]
        );
        let v4 = Interface {
            address: "10.1.0.2".parse().unwrap(),
            prefix: 24,
            gateway: None,
        };
        assert_eq!(
            address(2, &v4)[16..],
            [
                2, 24, 0, 0, 2, 0, 0, 0, 8, 0, 2, 0, 10, 1, 0, 2, 8, 0, 1, 0, 10, 1, 0, 2
            ]
        );
        assert_eq!(attribute(1, &[9]), [5, 0, 1, 0, 9, 0, 0, 0]);
    }

    #[test]
    fn answers() {
        let answer = |code: i32| message(MESSAGE_ERROR, 0, &code.to_ne_bytes());
        result(&answer(0)).unwrap();
        assert_eq!(result(&answer(-19)).unwrap_err().raw_os_error(), Some(19));
        assert!(result(&answer(i32::MIN)).is_err());
        assert!(result(&message(3, 0, &[0; 4])).is_err());
        assert!(result(&[]).is_err());
    }

    /// Against the real kernel, in a network namespace of the test's own.
    #[test]
    fn the_kernel_takes_the_messages() {
        let outcome = std::thread::spawn(|| {
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                return None;
            }
            // Loopback alone, but it can have any address and route.
            let up = set_up(&[]);
            let netlink = open().unwrap();
            let lo = index("lo").unwrap();
            // Machines are built with IPv6 switched off.
            let v6 = std::path::Path::new("/proc/net/if_inet6")
                .exists()
                .then_some("fd00::7");
            let mut bound = true;
            for text in ["10.9.8.7"].into_iter().chain(v6) {
                let own = Interface {
                    address: text.parse().unwrap(),
                    prefix: 16,
                    gateway: None,
                };
                let made = request(&netlink, address(lo, &own));
                assert!(made.is_ok(), "{text}: {made:?}");
                bound &= std::net::UdpSocket::bind((own.address, 0)).is_ok();
            }
            let gateway = "10.200.0.1".parse().unwrap();
            let route = request(&netlink, default_route(lo, gateway));
            assert!(route.is_ok(), "{route:?}");
            let missing = request(&netlink, link_up(4711)).unwrap_err().raw_os_error();
            Some((up.is_ok(), missing, bound))
        });
        match outcome.join().unwrap() {
            Some(seen) => assert_eq!(seen, (true, Some(19), true)),
            None => eprintln!("no right to make a network namespace: the kernel is not asked"),
        }
    }
}
