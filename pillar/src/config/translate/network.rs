//! Network instances.

use std::net::Ipv4Addr;

use protocol::eve::config::{NetworkInstanceConfig, ZNetworkInstType};

use super::ObjectError;
use crate::domain::desired::NetworkInstance;

pub(super) fn instance(config: &NetworkInstanceConfig) -> Result<NetworkInstance, ObjectError> {
    if config.inst_type() != ZNetworkInstType::ZnetInstLocal {
        return Err(ObjectError::NetworkKind(config.inst_type().as_str_name()));
    }
    let ip = config.ip.as_ref().ok_or(ObjectError::NoSubnet)?;
    let subnet = Subnet::parse(&ip.subnet).ok_or_else(|| ObjectError::Subnet(ip.subnet.clone()))?;
    let address = |what: &'static str, text: &str| {
        text.trim()
            .parse::<Ipv4Addr>()
            .map_err(|_| ObjectError::Address {
                what,
                text: text.to_owned(),
            })
    };
    let gateway = match ip.gateway.as_str() {
        "" => subnet.host(1),
        text => address("gateway", text)?,
    };
    let range = match ip
        .dhcp_range
        .as_ref()
        .filter(|range| !range.start.is_empty() || !range.end.is_empty())
    {
        Some(range) => (
            address("first address", &range.start)?,
            address("last address", &range.end)?,
        ),
        None => (subnet.host(2), subnet.last_host()),
    };
    for (what, address) in [
        ("gateway", gateway),
        ("first address", range.0),
        ("last address", range.1),
    ] {
        if !subnet.has_host(address) {
            return Err(ObjectError::OtherSubnet {
                what,
                address,
                subnet: ip.subnet.clone(),
            });
        }
    }
    if range.0 > range.1 {
        return Err(ObjectError::Range {
            first: range.0,
            last: range.1,
        });
    }
    let dns = ip
        .dns
        .iter()
        .map(|text| address("name server", text))
        .collect::<Result<_, _>>()?;
    Ok(NetworkInstance {
        name: config.displayname.clone(),
        gateway,
        prefix: subnet.prefix,
        range,
        dns,
    })
}

/// An IPv4 network with room for a gateway and at least one app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Subnet {
    network: u32,
    prefix: u8,
}

impl Subnet {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.trim().split_once('/')?;
        let address: Ipv4Addr = address.parse().ok()?;
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|prefix| (8..=29).contains(prefix))?;
        let mask = u32::MAX << (32 - u32::from(prefix));
        let usable = !address.is_loopback() && !address.is_multicast() && !address.is_unspecified();
        usable.then_some(Self {
            network: u32::from(address) & mask,
            prefix,
        })
    }

    fn size(self) -> u32 {
        1 << (32 - u32::from(self.prefix))
    }

    fn host(self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.network.saturating_add(number))
    }

    fn last_host(self) -> Ipv4Addr {
        self.host(self.size() - 2)
    }

    /// Neither network nor broadcast address.
    fn has_host(self, address: Ipv4Addr) -> bool {
        let address = u32::from(address);
        (u32::from(self.host(1))..=u32::from(self.last_host())).contains(&address)
    }
}
