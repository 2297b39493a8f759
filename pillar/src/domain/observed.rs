//! What the device is: written by the reconcilers, read by `report`, never the other way round.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::SystemTime;

use protocol::ids::{AppId, ContentId, NetworkInstanceId, VolumeId};

/// Everything that the reconcilers found and made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Content trees.
    pub contents: BTreeMap<ContentId, ContentStatus>,
    /// Volumes.
    pub volumes: BTreeMap<VolumeId, VolumeStatus>,
    /// Network instances.
    pub networks: BTreeMap<NetworkInstanceId, NetworkStatus>,
    /// Apps.
    pub apps: BTreeMap<AppId, AppStatus>,
}

/// Something went wrong, in words for the operator, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Trouble {
    /// Operation, thing, reason, and what to do.
    pub message: String,
    /// When it was seen last.
    pub at: SystemTime,
    /// When it will be tried again, if it will be.
    pub retry_at: Option<SystemTime>,
}

/// A content tree on the device.
#[derive(Clone, Debug, PartialEq)]
pub struct ContentStatus {
    /// Name for people.
    pub name: String,
    /// How far it is.
    pub phase: ContentPhase,
    /// The last trouble with it; gone when it is ready.
    pub trouble: Option<Trouble>,
}

/// How far a content tree is.
#[derive(Clone, Debug, PartialEq)]
pub enum ContentPhase {
    /// Waits for its turn or for a retry.
    Waiting,
    /// Bytes arrive.
    Downloading {
        /// Bytes here so far.
        done: u64,
        /// Bytes in all, once known.
        total: Option<u64>,
    },
    /// All bytes are here and have the right digest.
    Ready,
}

/// A volume on the device.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeStatus {
    /// Name for people.
    pub name: String,
    /// Whether it can be used.
    pub ready: bool,
    /// Its file, once made.
    pub path: Option<PathBuf>,
    /// Bytes that it takes on the disk.
    pub used_bytes: u64,
    /// Size that the app sees.
    pub size_bytes: u64,
    /// The last trouble with it.
    pub trouble: Option<Trouble>,
}

/// A network instance on the device.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkStatus {
    /// Name for people.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// Its bridge.
    pub bridge: String,
    /// Addresses given out, by app.
    pub leases: BTreeMap<AppId, Ipv4Addr>,
    /// The last trouble with it.
    pub trouble: Option<Trouble>,
}

/// An app on the device.
#[derive(Clone, Debug, PartialEq)]
pub struct AppStatus {
    /// Name for people.
    pub name: String,
    /// Where in its life it is.
    pub phase: AppPhase,
    /// Times that it was started again after it ended by itself.
    pub restarts: u32,
    /// Its addresses, by interface name.
    pub addresses: BTreeMap<String, Ipv4Addr>,
    /// The host's ends of its interfaces, by interface name.
    pub links: BTreeMap<String, String>,
    /// Unix socket on which its monitor answers, if it has one. In a directory that belongs to the monitor's uid.
    pub control: Option<PathBuf>,
    /// Unix socket of its console, if it has one. As the one before.
    pub console: Option<PathBuf>,
    /// Main process of its monitor or container.
    pub pid: Option<u32>,
    /// The systemd unit that it runs in, from which its log is read.
    pub unit: Option<String>,
    /// The last trouble with it.
    pub trouble: Option<Trouble>,
}

/// Where in its life an app is.
///
/// ```text
/// Preparing --> Starting --> Running --> Stopping --> Halted
///                  ^            |
///                  +- BackOff <-+  ended by itself
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum AppPhase {
    /// Content, volumes or networks are not ready.
    Preparing,
    /// The monitor or container is being started.
    Starting,
    /// It runs.
    Running {
        /// Since when.
        since: SystemTime,
    },
    /// It ended by itself and will be started again.
    BackOff {
        /// When.
        until: SystemTime,
    },
    /// It is being stopped.
    Stopping,
    /// It does not run and is not meant to.
    Halted,
}
