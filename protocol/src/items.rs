//! Names of what EVE's messages have no field for: items of ours in the maps and lists that EVE leaves open.
//!
//! | item of | name | what it says |
//! |---|---|---|
//! | `ZInfoConfigItemStatus.config_items` | [`CONFIG_HASH`] | the hash of the config in force |
//! | | [`ENROLMENT_LEVEL`] | how much the controller knew of the device when it granted it its id |
//! | | [`trouble`] | a trouble of the device as a whole |
//! | `EdgeDevConfig.configItems` | [`KEEP_RUNNING`] | whether a device that is refused goes on with what it runs |
//! | | [`ATTEST_INTERVAL`] | how often it attests |
//! | | [`TIME_SERVERS`] | by whom its clock goes between signed times |
//! | `DeviceMetric.metric_items` | [`MetricName`] | figures of apps and processes |
//!
//! But for those in the config, the device writes them and the controller reads them; what they mean in full stands in the page "Contracts" of the book.

use std::fmt;

use crate::authority::{Authority, AuthorityError};
use crate::ids::AppId;

/// Config item whose value is the hash of the config in force.
pub const CONFIG_HASH: &str = "skerry.config.hash";

/// Config item whose value is the level that the device was granted: `none`, `bronze`, `silver` or `gold`. Absent: it came by EVE's way.
pub const ENROLMENT_LEVEL: &str = "skerry.enrolment.level";
/// Item of a config, in its list `configItems`: `false` if a device whose boot is refused must stop what it runs. Absent: it goes on.
pub const KEEP_RUNNING: &str = "skerry.attestation.keep.running";

/// Item of a config: the longest time in seconds until the device attests again. Absent: 3000.
pub const ATTEST_INTERVAL: &str = "skerry.attest.interval";

/// Item of a config: time servers (NTP) by whom the clock goes between signed times, names or addresses with commas between. Absent: those
/// that the device's network names.
pub const TIME_SERVERS: &str = "skerry.time.servers";

/// Most time servers of a device.
pub const MAX_TIME_SERVERS: usize = 8;

/// Port of NTP (RFC 5905, section 16); the device's program asks at no other.
const NTP_PORT: u16 = 123;

/// Reads the name or address of a time server.
///
/// # Errors
/// If it is none, or has another port than NTP's.
pub fn time_server(text: &str) -> Result<String, AuthorityError> {
    let server = Authority::or_port(text.trim(), NTP_PORT)?;
    if server.port() != NTP_PORT {
        return Err(AuthorityError {
            text: server.to_string(),
            reason: "time servers are asked at port 123 only",
        });
    }
    Ok(server.host().to_owned())
}

const TROUBLE: &str = "skerry.trouble.";
const PROCESS: &str = "skerry.process.";
const PSS: &str = ".pssBytes";
const APP: &str = "skerry.app.";

/// Name of the config item whose error is the device's trouble with `topic`.
#[must_use]
pub fn trouble(topic: impl fmt::Display) -> String {
    format!("{TROUBLE}{topic}")
}

/// The topic of a trouble, if the config item of this name is one.
#[must_use]
pub fn trouble_topic(name: &str) -> Option<&str> {
    name.strip_prefix(TROUBLE)
}

/// Name of a metric item of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricName {
    /// Proportional memory of the process with this number, in bytes; of a monitor without the guest's RAM.
    ProcessPss(u32),
    /// A figure of an app.
    App(AppId, AppFigure),
}

/// A figure of an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppFigure {
    /// How often it was started again after it had ended by itself.
    Restarts,
    /// Memory of its monitor without the guest's RAM, in bytes.
    MonitorBytes,
    /// Bytes that it read from its disks.
    DiskReadBytes,
    /// Bytes that it wrote to its disks.
    DiskWriteBytes,
}

impl AppFigure {
    const ALL: [Self; 4] = [
        Self::Restarts,
        Self::MonitorBytes,
        Self::DiskReadBytes,
        Self::DiskWriteBytes,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Restarts => "restarts",
            Self::MonitorBytes => "monitorBytes",
            Self::DiskReadBytes => "diskReadBytes",
            Self::DiskWriteBytes => "diskWriteBytes",
        }
    }
}

impl fmt::Display for MetricName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProcessPss(pid) => write!(out, "{PROCESS}{pid}{PSS}"),
            Self::App(app, metric) => write!(out, "{APP}{app}.{}", metric.name()),
        }
    }
}

impl MetricName {
    /// Reads a name. What is not one of ours is nothing: devices may have items that this end does not know.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        if let Some(rest) = text.strip_prefix(PROCESS) {
            let pid = rest.strip_suffix(PSS)?.parse().ok()?;
            return Some(Self::ProcessPss(pid));
        }
        let (app, name) = text.strip_prefix(APP)?.split_once('.')?;
        let metric = AppFigure::ALL
            .into_iter()
            .find(|metric| metric.name() == name)?;
        Some(Self::App(app.parse().ok()?, metric))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn names_are_as_the_contract_says_and_are_read_back() {
        let app = AppId(Uuid::from_u128(7));
        let of_app = |metric| MetricName::App(app, metric);
        for (name, text) in [
            (
                MetricName::ProcessPss(9),
                "skerry.process.9.pssBytes".into(),
            ),
            (
                of_app(AppFigure::Restarts),
                format!("skerry.app.{app}.restarts"),
            ),
            (
                of_app(AppFigure::MonitorBytes),
                format!("skerry.app.{app}.monitorBytes"),
            ),
            (
                of_app(AppFigure::DiskReadBytes),
                format!("skerry.app.{app}.diskReadBytes"),
            ),
            (
                of_app(AppFigure::DiskWriteBytes),
                format!("skerry.app.{app}.diskWriteBytes"),
            ),
        ] {
            assert_eq!(name.to_string(), text);
            assert_eq!(MetricName::read(&text), Some(name));
        }
        assert_eq!(trouble("config.parts"), "skerry.trouble.config.parts");
        assert_eq!(
            trouble_topic("skerry.trouble.config.parts"),
            Some("config.parts")
        );
    }

    #[test]
    fn time_servers_are_hosts() {
        for (text, host) in [
            ("192.0.2.1", Some("192.0.2.1")),
            (" ntp.example.com ", Some("ntp.example.com")),
            ("ntp.example.com:123", Some("ntp.example.com")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("ntp.example.com:124", None),
            ("a b", None),
            ("a\nNTP=b", None),
            ("", None),
        ] {
            assert_eq!(time_server(text).ok().as_deref(), host, "{text:?}");
        }
    }

    #[test]
    fn what_is_not_ours_is_nothing() {
        for text in [
            "",
            "else",
            "skerry.process.x.pssBytes",
            "skerry.process.9.rssBytes",
            "skerry.app.nonsense.restarts",
            "skerry.app.00000000-0000-0000-0000-000000000007",
            "skerry.app.00000000-0000-0000-0000-000000000007.else",
        ] {
            assert_eq!(MetricName::read(text), None, "{text}");
        }
        assert_eq!(trouble_topic("timer.config.interval"), None);
    }
}
