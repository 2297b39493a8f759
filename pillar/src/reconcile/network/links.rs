//! Looks at links and changes them, over rtnetlink; taps over /dev/net/tun (Linux, Documentation/networking/tuntap.rst).

use std::fs::OpenOptions;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::Path;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkUnspec};

use super::plan::{Link, LinkKind, MARK, Step, tap_alias};

/// A change of the network that failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel could not be asked at all.
    #[error("opening a netlink socket: {0}")]
    Socket(std::io::Error),
    /// The kernel refused.
    #[error("{operation} {name}: {source}")]
    Netlink {
        /// What was attempted.
        operation: &'static str,
        /// On which link.
        name: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// The kernel refused.
    #[error("{operation} {name}: {source}")]
    System {
        /// What was attempted.
        operation: &'static str,
        /// On which link or file.
        name: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A link that should be there is not.
    #[error("the network interface {0} is gone")]
    Missing(String),
    /// A link that is not ours has the name.
    #[error("there is a network interface {0} that is not Skerry's; rename or remove it")]
    Taken(String),
}

/// A connection to the kernel's network configuration. Belongs to the network namespace in which it was opened.
pub struct Links {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Links {
    /// Opens a connection.
    pub fn open() -> Result<Self, LinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(LinkError::Socket)?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// The raw handle, for what only one place needs.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// All links with their IPv4 addresses.
    pub async fn list(&self) -> Result<Vec<Link>, LinkError> {
        let failed = |source| LinkError::Netlink {
            operation: "listing",
            name: "network interfaces".into(),
            source,
        };
        let messages: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed)?;
        let mut links: Vec<Link> = messages.into_iter().map(read_link).collect();
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.map_err(failed)? {
            if message.header.family != AddressFamily::Inet {
                continue;
            }
            let local = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                    _ => None,
                });
            if let (Some(local), Some(link)) = (
                local,
                links
                    .iter_mut()
                    .find(|link| link.index == message.header.index),
            ) {
                link.addresses.push((local, message.header.prefix_len));
            }
        }
        Ok(links)
    }

    /// The index of a link.
    pub async fn index(&self, name: &str) -> Result<u32, LinkError> {
        let mut found = self.handle.link().get().match_name(name).execute();
        match found.try_next().await {
            Ok(Some(link)) => Ok(link.header.index),
            _ => Err(LinkError::Missing(name.to_owned())),
        }
    }

    /// Does one step.
    pub async fn apply(&self, step: &Step) -> Result<(), LinkError> {
        tracing::debug!(?step, "network");
        match step {
            Step::Delete(name) => self.delete(name).await,
            Step::AddBridge(name, mac) => {
                let message = LinkBridge::new(name).down().address(mac.0.to_vec()).build();
                self.change(
                    "making the bridge",
                    name,
                    self.handle.link().add(message).execute(),
                )
                .await?;
                self.mark(name, MARK).await?;
                no_ipv6(name)
            }
            Step::AddTap(name, uid) => {
                add_tap(name, *uid)?;
                self.mark(name, &tap_alias(*uid)).await?;
                no_ipv6(name)
            }
            Step::AddAddress(name, address, prefix) => {
                let index = self.index(name).await?;
                let request = self
                    .handle
                    .address()
                    .add(index, IpAddr::V4(*address), *prefix)
                    .replace();
                self.change("giving an address to", name, request.execute())
                    .await
            }
            Step::RemoveAddress(name, address, prefix) => {
                self.remove_address(name, *address, *prefix).await
            }
            Step::Plug(name, bridge) => self.plug(name, bridge).await,
            Step::Up(name) => {
                let message = LinkUnspec::new_with_name(name).up().build();
                self.change(
                    "setting up",
                    name,
                    self.handle.link().set(message).execute(),
                )
                .await
            }
            Step::Taken(name) => Err(LinkError::Taken(name.clone())),
        }
    }

    /// Plugs a link into a bridge.
    pub async fn plug(&self, name: &str, bridge: &str) -> Result<(), LinkError> {
        let index = self.index(bridge).await?;
        let message = LinkUnspec::new_with_name(name).controller(index).build();
        self.change(
            "plugging into its bridge",
            name,
            self.handle.link().set(message).execute(),
        )
        .await
    }

    /// Takes a link away; that it is not there is fine.
    pub async fn delete(&self, name: &str) -> Result<(), LinkError> {
        match self.index(name).await {
            Ok(index) => {
                self.change("removing", name, self.handle.link().del(index).execute())
                    .await
            }
            Err(LinkError::Missing(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Marks a link as ours.
    pub async fn mark(&self, name: &str, alias: &str) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_name(name).alias(alias).build();
        self.change("marking", name, self.handle.link().set(message).execute())
            .await
    }

    async fn remove_address(
        &self,
        name: &str,
        address: Ipv4Addr,
        prefix: u8,
    ) -> Result<(), LinkError> {
        let index = self.index(name).await?;
        let mut found = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .set_prefix_length_filter(prefix)
            .set_address_filter(IpAddr::V4(address))
            .execute();
        if let Ok(Some(message)) = found.try_next().await {
            self.change(
                "taking an address from",
                name,
                self.handle.address().del(message).execute(),
            )
            .await?;
        }
        Ok(())
    }

    async fn change(
        &self,
        operation: &'static str,
        name: &str,
        request: impl Future<Output = Result<(), rtnetlink::Error>>,
    ) -> Result<(), LinkError> {
        request.await.map_err(|source| LinkError::Netlink {
            operation,
            name: name.to_owned(),
            source,
        })
    }
}

fn read_link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: LinkKind::Other,
        alias: String::new(),
        controller: None,
        up: message.header.flags.contains(LinkFlags::Up),
        mac: Vec::new(),
        addresses: Vec::new(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::Address(mac) => link.mac = mac,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Bridge) => link.kind = LinkKind::Bridge,
                        LinkInfo::Kind(InfoKind::Tun) => link.kind = LinkKind::Tap,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

/// linux/if_tun.h: `_IOW('T', nr, int)`, although the first takes a pointer to an ifreq.
mod ioctl {
    #![allow(missing_docs, reason = "the macros leave no place for it")]
    use nix::{ioctl_write_int_bad, ioctl_write_ptr_bad, request_code_write};

    ioctl_write_ptr_bad!(
        tun_set_iff,
        request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    ioctl_write_int_bad!(
        tun_set_persist,
        request_code_write!(b'T', 203, size_of::<libc::c_int>())
    );
    ioctl_write_int_bad!(
        tun_set_owner,
        request_code_write!(b'T', 204, size_of::<libc::c_int>())
    );
}

/// Makes a tap that stays and that `uid` may attach to without a capability.
fn add_tap(name: &str, uid: u32) -> Result<(), LinkError> {
    let failed = |source: std::io::Error| LinkError::System {
        operation: "making the tap",
        name: name.to_owned(),
        source,
    };
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(failed)?;
    // SAFETY: ifreq is plain data for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(failed(std::io::Error::other("the name is too long")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap_or_default();
    let owner =
        i32::try_from(uid).map_err(|_| failed(std::io::Error::other("the uid is too large")))?;
    // SAFETY: the descriptor is an open /dev/net/tun, and the pointer leads to a whole ifreq that lives over the call.
    unsafe { ioctl::tun_set_iff(device.as_raw_fd(), &raw const request) }
        .map_err(|error| failed(error.into()))?;
    // SAFETY: the descriptor is an open tap; the argument is a number.
    unsafe { ioctl::tun_set_owner(device.as_raw_fd(), owner) }
        .map_err(|error| failed(error.into()))?;
    // SAFETY: the same.
    unsafe { ioctl::tun_set_persist(device.as_raw_fd(), 1) }
        .map_err(|error| failed(error.into()))?;
    Ok(())
}

/// Networks for apps are IPv4 only; without this each bridge would get a link-local address that the packet filter has to
/// think of.
fn no_ipv6(name: &str) -> Result<(), LinkError> {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    // A kernel without IPv6 has no such file.
    if !Path::new(&path).exists() {
        return Ok(());
    }
    set_sysctl(&path, "1")
}

/// Writes a kernel setting.
pub fn set_sysctl(path: &str, value: &str) -> Result<(), LinkError> {
    std::fs::write(path, value).map_err(|source| LinkError::System {
        operation: "writing",
        name: path.to_owned(),
        source,
    })
}
