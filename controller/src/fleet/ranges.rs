//! Which addresses apps have on a device: a network behind the device, not seen outside, and not to be taken for one outside.
//!
//! The rule: apps are in the first of [`RANGES`] that no uplink's network touches; a range that a device has stays its range until an
//! uplink comes to touch it, so that apps do not move when an uplink comes and goes. Devices tell the addresses of their uplinks and
//! the routers there, not how large the networks are, so each address stands for its /16, which is as large as a site's network
//! usually is. If that leaves nothing, each stands for its /24; if that leaves nothing either, the range stays as it is.

use std::fmt;
use std::net::Ipv4Addr;

use operator_api::Interface;

/// One range of 254 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range([u8; 3]);

/// The ranges to choose from, out of the three private blocks (RFC 1918).
pub const RANGES: [Range; 5] = [
    Range([10, 11, 0]),
    Range([172, 27, 11]),
    Range([192, 168, 211]),
    Range([10, 211, 0]),
    Range([172, 30, 211]),
];

impl Range {
    /// The range that a device's status names; the first one if it names none.
    #[must_use]
    pub fn named(text: &str) -> Self {
        let [first, ..] = RANGES;
        RANGES
            .into_iter()
            .find(|range| range.to_string() == text)
            .unwrap_or(first)
    }

    /// The address in it that ends with `last`.
    #[must_use]
    pub fn host(self, last: u8) -> Ipv4Addr {
        let Self([a, b, c]) = self;
        Ipv4Addr::new(a, b, c, last)
    }

    /// The range of a device that has this one, once it has these interfaces.
    #[must_use]
    pub fn beside(self, interfaces: &[Interface]) -> Self {
        let outside: Vec<Ipv4Addr> = interfaces
            .iter()
            .filter(|interface| interface.uplink)
            .flat_map(|interface| interface.addresses.iter().chain(&interface.routers))
            .filter_map(|text| text.split('/').next()?.parse().ok())
            .collect();
        let all = || std::iter::once(self).chain(RANGES);
        let free = |octets: usize| {
            all().find(|range| {
                let near = |address: &Ipv4Addr| {
                    address
                        .octets()
                        .iter()
                        .zip(&range.0)
                        .take(octets)
                        .all(|(a, b)| a == b)
                };
                !outside.iter().any(near)
            })
        };
        free(2).or_else(|| free(3)).unwrap_or(self)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/24", self.host(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink(addresses: &[&str]) -> Interface {
        Interface {
            addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
            uplink: true,
            ..Interface::default()
        }
    }

    #[test]
    fn apps_keep_out_of_the_way_of_uplinks() {
        for (now, interfaces, wanted) in [
            ("", vec![], "10.11.0.0/24"),
            ("", vec![uplink(&["10.0.2.15", "fe80::1"])], "10.11.0.0/24"),
            ("", vec![uplink(&["10.11.0.7"])], "172.27.11.0/24"),
            ("", vec![uplink(&["10.11.200.7/16"])], "172.27.11.0/24"),
            (
                "",
                vec![uplink(&["10.11.0.7"]), uplink(&["172.27.1.1"])],
                "192.168.211.0/24",
            ),
            // It stays where it is when the uplink goes, and moves on when another comes.
            ("172.27.11.0/24", vec![], "172.27.11.0/24"),
            (
                "172.27.11.0/24",
                vec![uplink(&["172.27.5.5"])],
                "10.11.0.0/24",
            ),
            ("10.9.9.0/24", vec![], "10.11.0.0/24"),
            // Uplinks near every range: then only what lies inside counts.
            (
                "",
                vec![uplink(&[
                    "10.11.0.1",
                    "172.27.1.1",
                    "192.168.1.1",
                    "10.211.1.1",
                    "172.30.1.1",
                ])],
                "172.27.11.0/24",
            ),
            (
                "192.168.211.0/24",
                vec![uplink(&[
                    "10.11.0.1",
                    "172.27.11.1",
                    "192.168.211.1",
                    "10.211.0.1",
                    "172.30.211.1",
                ])],
                "192.168.211.0/24",
            ),
        ] {
            let range = Range::named(now).beside(&interfaces);
            assert_eq!(range.to_string(), wanted, "{now} {interfaces:?}");
        }
    }

    #[test]
    fn a_router_counts_and_what_is_no_uplink_does_not() {
        let routed = Interface {
            routers: vec!["10.11.3.1".to_owned()],
            ..uplink(&["192.0.2.1", "nonsense"])
        };
        assert_eq!(Range::named("").beside(&[routed]), RANGES[1]);
        let bridge = Interface {
            uplink: false,
            ..uplink(&["10.11.0.1"])
        };
        assert_eq!(Range::named("").beside(&[bridge]), RANGES[0]);
    }
}
