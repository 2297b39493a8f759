//! Hardware addresses of network interfaces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A hardware address (IEEE 802), in text `02:00:00:00:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MacAddress(pub [u8; 6]);

/// The text is no hardware address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is {0:?}, must be six bytes like 02:00:00:00:00:01")]
pub struct MacError(pub String);

impl MacAddress {
    /// Whether it stands for a group of interfaces, which none can have for itself: the lowest bit of the first byte.
    #[must_use]
    pub fn is_group(self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 1
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let read = || {
            let mut bytes = [0; 6];
            let mut parts = text.split(':');
            for byte in &mut bytes {
                let part = parts.next()?;
                // from_str_radix would take a sign.
                if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                    return None;
                }
                *byte = u8::from_str_radix(part, 16).ok()?;
            }
            parts.next().is_none().then_some(Self(bytes))
        };
        read().ok_or_else(|| MacError(text.to_owned()))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_six_pairs() {
        let mac: MacAddress = "02:00:0a:fF:00:01".parse().unwrap();
        assert_eq!(mac, MacAddress([2, 0, 10, 255, 0, 1]));
        assert_eq!(mac.to_string(), "02:00:0a:ff:00:01");
        assert!(!mac.is_group() && MacAddress([1, 0, 0, 0, 0, 0]).is_group());
        for wrong in [
            "",
            "02:00:0a:ff:00:01:02",
            "2:0:a:ff:0:1",
            "02-00-0a-ff-00-01",
            "+2:00:00:00:00:00",
        ] {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
        }
    }
}
