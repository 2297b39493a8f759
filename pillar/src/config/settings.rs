//! Config items: the knobs that a controller turns on a device, with EVE's names, defaults and limits, and two of ours.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::eve::config::EdgeDevConfig;
use protocol::items::{ATTEST_INTERVAL, KEEP_RUNNING, MAX_TIME_SERVERS, TIME_SERVERS, time_server};

/// What the config items say, as far as this device follows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `timer.config.interval`: longest time between two questions for the config.
    pub config_interval: Duration,
    /// `timer.metric.interval`: time between two metrics messages.
    pub metric_interval: Duration,
    /// `timer.deviceinfo.interval`: time between two device infos when nothing changes.
    pub device_info_interval: Duration,
    /// `timer.cert.interval`: time between two questions for the controller's certificates.
    pub cert_interval: Duration,
    /// `skerry.attest.interval`: longest time until the device attests again; the controller's policy has tokens end later than that.
    pub attest_interval: Duration,
    /// `skerry.attestation.keep.running`: whether a device whose boot is refused goes on with its apps.
    pub keep_running: bool,
    /// `skerry.time.servers`: whom the clock goes by between signed times; none: those that the network names.
    pub time_servers: Vec<String>,
    /// The controller's epoch; when it changes, all info is sent again.
    pub epoch: i64,
    /// Values in force by key, as reported.
    pub known: BTreeMap<String, String>,
    /// Items that this device does not follow or cannot read, with the reason.
    pub refused: BTreeMap<String, (String, String)>,
}

/// Key, default, least and largest value, in seconds.
const TIMERS: [(&str, u64, u64, u64); 5] = [
    ("timer.config.interval", 60, 5, 86_400),
    ("timer.metric.interval", 60, 5, 3_600),
    ("timer.deviceinfo.interval", 600, 30, u32::MAX as u64),
    ("timer.cert.interval", 86_400, 60, u32::MAX as u64),
    (ATTEST_INTERVAL, 3_000, 5, 86_400),
];

impl Default for Settings {
    fn default() -> Self {
        Self::read(&EdgeDevConfig::default())
    }
}

impl Settings {
    /// Reads them from a config.
    #[must_use]
    pub fn read(config: &EdgeDevConfig) -> Self {
        let mut known: BTreeMap<String, String> = BTreeMap::new();
        let mut refused = BTreeMap::new();
        let mut seconds = TIMERS.map(|(_, default, ..)| default);
        let (mut keep_running, mut time_servers) = (true, Vec::new());
        for item in &config.config_items {
            let refuse = |reason: String| (item.key.clone(), (item.value.clone(), reason));
            if item.key == KEEP_RUNNING {
                match item.value.trim().parse() {
                    Ok(value) => keep_running = value,
                    Err(_) => refused.extend([refuse("expected true or false".to_owned())]),
                }
                continue;
            }
            if item.key == TIME_SERVERS {
                match read_time_servers(&item.value) {
                    Ok(servers) => time_servers = servers,
                    Err(reason) => refused.extend([refuse(reason)]),
                }
                continue;
            }
            let Some(index) = TIMERS.iter().position(|(key, ..)| *key == item.key) else {
                refused.extend([refuse("not followed by this device".to_owned())]);
                continue;
            };
            let (Some((_, _, least, most)), Some(slot)) =
                (TIMERS.get(index), seconds.get_mut(index))
            else {
                continue;
            };
            match item.value.trim().parse::<u64>() {
                Ok(value) if (*least..=*most).contains(&value) => *slot = value,
                _ => refused.extend([refuse(format!("expected seconds from {least} to {most}"))]),
            }
        }
        for ((key, ..), value) in TIMERS.iter().zip(seconds) {
            known.insert((*key).to_owned(), value.to_string());
        }
        known.insert(KEEP_RUNNING.to_owned(), keep_running.to_string());
        if !time_servers.is_empty() {
            known.insert(TIME_SERVERS.to_owned(), time_servers.join(","));
        }
        let [
            config_interval,
            metric_interval,
            device_info_interval,
            cert_interval,
            attest_interval,
        ] = seconds.map(Duration::from_secs);
        Self {
            config_interval,
            metric_interval,
            device_info_interval,
            cert_interval,
            attest_interval,
            keep_running,
            time_servers,
            epoch: config.controller_epoch,
            known,
            refused,
        }
    }
}

fn read_time_servers(text: &str) -> Result<Vec<String>, String> {
    let servers: Vec<String> = text
        .split(',')
        .map(time_server)
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    if servers.len() > MAX_TIME_SERVERS {
        return Err(format!(
            "{} time servers; at most {MAX_TIME_SERVERS} are asked",
            servers.len()
        ));
    }
    Ok(servers)
}

#[cfg(test)]
mod tests {
    use protocol::eve::config::ConfigItem;

    use super::*;

    #[test]
    fn values_within_limits_are_taken_and_others_told() {
        let item = |key: &str, value: &str| ConfigItem {
            key: key.into(),
            value: value.into(),
        };
        let config = EdgeDevConfig {
            config_items: vec![
                item("timer.config.interval", "10"),
                item("timer.metric.interval", "4"),
                item("timer.deviceinfo.interval", "soon"),
                item("debug.enable.usb", "true"),
                item(KEEP_RUNNING, "false"),
                item(TIME_SERVERS, "192.0.2.1,ntp.example.com"),
            ],
            controller_epoch: 7,
            ..EdgeDevConfig::default()
        };
        let settings = Settings::read(&config);
        assert_eq!(settings.config_interval, Duration::from_secs(10));
        assert_eq!(settings.metric_interval, Duration::from_secs(60));
        assert_eq!(settings.device_info_interval, Duration::from_secs(600));
        assert_eq!(settings.epoch, 7);
        assert!(!settings.keep_running && Settings::default().keep_running);
        assert_eq!(settings.time_servers, ["192.0.2.1", "ntp.example.com"]);
        for bad in ["", "a,,b", "a b", "a\nNTP=b", "1,2,3,4,5,6,7,8,9"] {
            let config = EdgeDevConfig {
                config_items: vec![item(TIME_SERVERS, bad)],
                ..EdgeDevConfig::default()
            };
            let settings = Settings::read(&config);
            assert!(settings.time_servers.is_empty(), "{bad:?}");
            assert!(settings.refused.contains_key(TIME_SERVERS), "{bad:?}");
        }
        assert_eq!(settings.known["timer.config.interval"], "10");
        let refused: Vec<_> = settings.refused.keys().map(String::as_str).collect();
        assert_eq!(
            refused,
            [
                "debug.enable.usb",
                "timer.deviceinfo.interval",
                "timer.metric.interval"
            ]
        );
    }
}
